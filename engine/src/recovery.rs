//! Opening a database: make a new one, or recover what is there (ARIES: analysis, redo, undo).
//!
//! | step | reads | writes |
//! |---|---|---|
//! | master | both copies | nothing |
//! | analysis ([`analysis`]) | log from the last checkpoint's BEGIN | nothing |
//! | incarnation | - | master, synced: from here on, older log bytes can never pass for new ones (hazard H1) |
//! | resume | - | the log's unattested end again, its torn tail away, synced (F6) |
//! | torn pages | doublewrite area | pages whose copy in place is torn (F5, hazard H13) |
//! | redo ([`redo`]) | log from the oldest `rec_lsn` | pages, in memory |
//! | undo ([`crate::rollback`]) | losers' chains, backwards | compensation and end records |
//! | orphans | catalog, `part/` | partition-deleted records; files without a catalog row go (F8) |
//! | checkpoint | - | so that the next open starts here |
//!
//! I1. Until the incarnation is written nothing on disk changes: whatever is refused is refused untouched (F16, F18).
//! I2. Every step may be cut short anywhere and started again from the top (F15): redo is idempotent by page LSN, undo by
//!     compensation records.

pub(crate) mod analysis;
mod create;
mod redo;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_pager::{PagerOptions, PartitionId};
use hamal_storage::{Error as LowError, Lock, Storage};
use hamal_wal::{Log, LogOptions, Lsn, Scanner};

use crate::catalog::{CATALOG, TableRow, Tables, partition_of};
use crate::checkpoint::{CheckpointState, Effort};
use crate::engine::{Engine, Layers, Parts};
use crate::master::{self, CREATING, Found, Master, MasterFiles};
use crate::options::{MAX_LOG_BYTES, Maintenance, OpenMode};
use crate::report::{PartitionReport, RecoveryPass, RecoveryProgress, RecoveryReport};
use crate::rollback;
use crate::tree::LeafCopy;
use crate::versions::run::remove_leftovers;
use crate::{Error, ErrorKind, Options, Result};
use analysis::Analysis;

/// Opens the database on `storage`, as `options` say.
pub(crate) fn open(storage: Arc<dyn Storage>, options: Options) -> Result<Engine> {
    // Looked at before the lock file is made, so that a foreign directory stays untouched.
    let found = master::find(&*storage)?;
    check_options(&options, &found)?;
    match (&found, options.mode) {
        (Found::Nothing, OpenMode::Open) => {
            return Err(Error::new(ErrorKind::NotADatabase, "there is no database in this directory"));
        }
        (Found::Database(_), OpenMode::Create) => {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                "there is a database in this directory already",
            ));
        }
        _ => {}
    }
    let lock = lock(&*storage, matches!(found, Found::Nothing))?;
    // Again: another opener may have made or changed it before we had the lock.
    let found = master::find(&*storage)?;
    check_options(&options, &found)?;
    match found {
        Found::Nothing => create::create(storage, options, lock),
        Found::Database(_) if options.mode == OpenMode::Create => {
            Err(Error::new(ErrorKind::AlreadyExists, "there is a database in this directory already"))
        }
        Found::Database(master) => recover(storage, options, lock, &master),
    }
}

fn check_options(options: &Options, found: &Found) -> Result<()> {
    options.check(match found {
        Found::Nothing => options.page_bytes,
        Found::Database(master) => master.page_bytes,
    })
}

fn lock(storage: &dyn Storage, make: bool) -> Result<Box<dyn Lock>> {
    if make {
        storage.create_directory("").map_err(|e| LowError::io("create", "the database directory", e))?;
    }
    storage.lock("LOCK").map_err(|e| {
        if e.kind() == std::io::ErrorKind::WouldBlock {
            Error::new(ErrorKind::Locked, "the database is open in another handle or process")
        } else {
            LowError::io("lock", "LOCK", e).into()
        }
    })
}

pub(crate) fn log_options(options: &Options, segment_bytes: u64) -> LogOptions {
    LogOptions {
        segment_bytes,
        buffer_bytes: options.log_buffer_bytes,
        max_bytes: options.max_log_bytes,
        // Whoever drives the database by hand expects the same of the same calls.
        shelves: if options.maintenance == Maintenance::Manual { 1 } else { LogOptions::default().shelves },
    }
}

fn pager_options(options: &Options, page_bytes: usize, database_id: u64) -> PagerOptions {
    PagerOptions { page_bytes, cache_bytes: options.cache_bytes, database_id, batch_pages: 64 }
}

/// Reports progress; `Cancelled` if the caller wants to stop.
fn progress(options: &Options, pass: RecoveryPass, done: u64, total: u64) -> Result<()> {
    match options.on_recovery.as_ref().map(|f| f(&RecoveryProgress { pass, done, total })) {
        Some(ControlFlow::Break(())) => {
            Err(Error::new(ErrorKind::Cancelled, "recovery was stopped by its progress callback"))
        }
        _ => Ok(()),
    }
}

/// Analysis alone, for tools: what recovery would find. Changes nothing.
pub(crate) fn dry_run(storage: &Arc<dyn Storage>) -> Result<RecoveryReport> {
    match master::find(&**storage)? {
        Found::Nothing => Err(Error::new(ErrorKind::NotADatabase, "there is no database in this directory")),
        Found::Database(master) => {
            let options = Options::new();
            let analysis = analysis::run(storage, &options, &master)?;
            Ok(first_report(&master, &analysis))
        }
    }
}

fn recover(
    storage: Arc<dyn Storage>,
    options: Options,
    lock: Box<dyn Lock>,
    master: &Master,
) -> Result<Engine> {
    let _span = tracing::info_span!("recovery").entered();
    let page_bytes = master.page_bytes;
    let mut log_options = log_options(&options, master.log_segment_bytes);
    // A log that is longer than today's limit is still recovered; the limit holds for what comes after.
    let mut analysis = analysis::run(&storage, &options, master)?;
    let live = analysis.resume.end.0 - master.oldest_lsn.0;
    log_options.max_bytes = log_options.max_bytes.max(live.saturating_mul(2)).min(MAX_LOG_BYTES);
    let mut report = first_report(master, &analysis);

    let incarnation = master.incarnation.max(analysis.resume.incarnation) + 1;
    let mut files = MasterFiles::open(&*storage, master.clone())?;
    files.write(Master { incarnation, ..master.clone() })?;
    remove_marker(&*storage)?;
    remove_leftovers(&*storage)?;
    report.incarnation = incarnation;
    let log =
        Log::resume(storage.clone(), log_options.clone(), incarnation, master.oldest_lsn, &analysis.resume)?;
    let pages = pager_options(&options, page_bytes, master.database_id);
    let layers = Layers::open(&storage, log, pages)?;
    for torn in layers.pager.restore_torn_pages(master.oldest_lsn, analysis.resume.end)? {
        if analysis.restore(torn.partition, torn.page, torn.page_lsn) {
            partition_report(&mut report, torn.partition).restored_pages += 1;
        }
    }

    let engine = Engine::new(Parts {
        storage,
        options,
        page_bytes,
        layers,
        counts: analysis.row_counts(),
        next_txn: analysis.next_txn,
        next_id: analysis.next_id,
        checkpoint: CheckpointState {
            master: files,
            last_begin: master.checkpoint_lsn,
            needed_from: master.oldest_lsn,
            last_end: analysis.resume.end,
            last_at: std::time::Duration::ZERO,
        },
        lock,
    })?;

    redo::run(&engine, &log_options, &analysis, &mut report)?;
    undo(&engine, &analysis, &mut report)?;
    remove_orphans(&engine)?;
    if !report.clean {
        engine.take_checkpoint(Effort::Fuzzy)?;
    }
    engine.checkpoint.lock().last_at = engine.storage.monotonic();
    tracing::info!(?report, "recovered");
    engine.report.get_or_init(|| report);
    Ok(engine)
}

/// Rolls the losers back, before anybody else can begin: what they wrote is locked by their stamps.
fn undo(engine: &Engine, analysis: &Analysis, report: &mut RecoveryReport) -> Result<()> {
    let _span = tracing::info_span!("undo", losers = report.losers).entered();
    let started = engine.storage.monotonic();
    let entries: Vec<_> = analysis.losers().iter().map(|image| engine.timeline.restore(image)).collect();
    let total = analysis.loser_records;
    let mut done = 0;
    for entry in entries.iter().rev() {
        entry.lock().chains.retain(|c| !analysis.deleted.contains(&c.partition));
        rollback::roll_back(engine, entry, &mut |partition| {
            done += 1;
            partition_report(report, partition).undone += 1;
            // What is undone stays undone, also if the caller stops here: its compensation records are made durable.
            progress(&engine.options, RecoveryPass::Undo, done, total.max(done)).inspect_err(|_| {
                let _next_time_then = engine.log.flush();
            })
        })?;
        engine.timeline.end(entry, None);
    }
    report.undo.records = done;
    report.undo.applied = done;
    report.undo.elapsed = engine.storage.monotonic().saturating_sub(started);
    progress(&engine.options, RecoveryPass::Undo, done, done)
}

/// Removes the files of partitions that no table has: creations that were rolled back, drops whose file had not gone yet.
fn remove_orphans(engine: &Engine) -> Result<()> {
    let known = tables(engine)?;
    for name in engine.storage.list("part").map_err(|e| LowError::io("list", "part", e))? {
        let Some(id) = partition_of(&name) else {
            continue;
        };
        if id == CATALOG || known.iter().any(|(_, row)| row.partition == id) {
            continue;
        }
        engine.next_id.fetch_max(id.0.saturating_add(1), std::sync::atomic::Ordering::Relaxed);
        tracing::info!(partition = id.0, "removing the file of a partition that no table has");
        engine.delete_partition(&engine.lock_files(), id)?;
    }
    // Every table's file is looked for now: a missing one is told at open, not at the first read.
    for (_, row) in &known {
        engine.partition(row.partition)?;
    }
    Ok(())
}

/// All tables in the catalog as it is, whoever has written it: for when nobody writes. `Corrupt` if two claim one id or partition.
pub(crate) fn tables(engine: &Engine) -> Result<Vec<(String, TableRow)>> {
    let tree = engine.partition(CATALOG)?.tree();
    let mut leaf = LeafCopy::default();
    let mut tables = Tables::default();
    let (mut at, mut key): (Option<Vec<u8>>, _) = (None, Vec::new());
    loop {
        tree.leaf_at(at.as_deref(), None, &mut leaf)?;
        for index in 0..leaf.len() {
            let row = leaf.row(index);
            if !row.ghost {
                key.clear();
                leaf.key_into(index, &mut key);
                tables.add(&key, row)?;
            }
        }
        match leaf.upper_fence() {
            Some(fence) => at = Some(fence.to_vec()),
            None => return Ok(tables.rows),
        }
    }
}

fn first_report(master: &Master, analysis: &Analysis) -> RecoveryReport {
    let losers = analysis.losers();
    let redo_lsn = analysis.redo_lsn();
    let mut report = RecoveryReport {
        clean: redo_lsn.is_none() && losers.is_empty() && analysis.quiet,
        created: false,
        checkpoint_lsn: master.checkpoint_lsn.0,
        redo_lsn: redo_lsn.map_or(0, |l| l.0),
        end_lsn: analysis.resume.end.0,
        torn_tail: analysis.torn,
        losers: losers.len() as u64,
        oldest_loser_lsn: losers.iter().map(|l| l.first_lsn.0).min().unwrap_or(0),
        winners: analysis.winners,
        analysis: analysis.report,
        incarnation: master.incarnation,
        ..RecoveryReport::default()
    };
    report.undo.records = analysis.loser_records;
    for partition in analysis.dirty_partitions() {
        partition_report(&mut report, partition).dirty_pages += 1;
    }
    report
}

fn partition_report(report: &mut RecoveryReport, id: PartitionId) -> &mut PartitionReport {
    let at = report.partitions.iter().position(|p| p.partition == id.0).unwrap_or_else(|| {
        report.partitions.push(PartitionReport { partition: id.0, ..PartitionReport::default() });
        report.partitions.len() - 1
    });
    &mut report.partitions[at]
}

fn remove_marker(storage: &dyn Storage) -> Result<()> {
    let io = |e| LowError::io("remove", CREATING, e);
    if storage.exists(CREATING).map_err(io)? {
        storage.remove(CREATING).map_err(io)?;
        storage.sync_directory("").map_err(io)?;
    }
    Ok(())
}

/// Opens a scanner that starts where a master record, and the pages, say that a record starts.
fn scanner(storage: &Arc<dyn Storage>, options: &LogOptions, from: Lsn, attested: Lsn) -> Result<Scanner> {
    Ok(Scanner::open(storage.clone(), options, from, attested)?)
}
