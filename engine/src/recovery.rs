//! Opening a database: make a new one, or recover what is there (ARIES: analysis, redo, undo; analysis and most of redo in one pass).
//!
//! | step | reads | writes |
//! |---|---|---|
//! | master | both copies | nothing |
//! | first pass ([`first_pass`]): analysis, and redo of what fits in memory ([`redo::eager`]) | log from the oldest `rec_lsn` of the last checkpoint | pages, in memory |
//! | incarnation | - | master, synced: from here on, older log bytes can never pass for new ones (hazard H1) |
//! | resume | - | the log's unattested end again, its torn tail away, synced (F6) |
//! | torn pages | doublewrite area | pages whose copy in place is torn (F5, hazard H13) |
//! | redo ([`redo`]) of what is left | log from the oldest `rec_lsn` of these pages | pages |
//! | undo ([`undo`], [`crate::rollback`]) of what does not trail ([`crate::trailing`]) | losers' chains, backwards | compensation and end records |
//! | orphans | catalog, `part/` | partition-deleted records; files without a catalog row go (F8) |
//! | checkpoint | - | so that the next open starts here |
//!
//! I1. Until the incarnation is written nothing on disk changes: whatever is refused is refused untouched (F16, F18).
//! I2. Every step may be cut short anywhere and started again from the top (F15): redo is idempotent by page LSN, undo by
//!     compensation records.

mod ahead;
pub(crate) mod analysis;
pub(crate) mod changes;
mod create;
mod first_pass;
pub(crate) mod redo;
#[cfg(test)]
mod tests;
mod undo;

use std::any::Any;
use std::collections::HashSet;
use std::num::NonZero;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use hamal_pager::{Mending, PageNo, Pager, PagerOptions, PartitionId};
use hamal_storage::{Error as LowError, Lock, Storage};
use hamal_wal::{Log, LogOptions};

use crate::backup::aside;
use crate::catalog::{CATALOG, Definition, Tables, each_row, partition_of};
use crate::checkpoint::{CheckpointState, Effort};
use crate::engine::{Engine, PageCache, PartitionHandle, Parts};
use crate::master::{self, CREATING, Found, Master, MasterFiles};
use crate::options::{MAX_LOG_BYTES, Maintenance, OpenMode};
use crate::quarantine::{Loaded, twice};
use crate::report::{PartitionReport, RecoveryPass, RecoveryProgress, RecoveryReport};
use crate::versions::run::remove_leftovers;
use crate::{Error, ErrorKind, Options, Result};
use analysis::Analysis;
use redo::eager::Eager;

/// The most threads that recover if their number is not given.
const DEFAULT_WORKERS: usize = 8;
/// Log that is worth starting threads for, bytes, unless their number is given.
const PARALLEL_BYTES: u64 = 1 << 20;
/// Records between two calls of the progress callback.
const PROGRESS_RECORDS: u64 = if cfg!(test) { 64 } else { 65_536 };

/// Opens the database on `storage`, as `options` say.
pub(crate) fn open(storage: Arc<dyn Storage>, options: Options) -> Result<Engine> {
    let began = storage.monotonic();
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
        Found::Database(master) => recover(storage, options, lock, &master, began),
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

/// Makes what opening a database that has been put there would have to make before it may begin to redo pages, durable.
pub(crate) fn prepare(storage: &dyn Storage, page_bytes: usize, database_id: u64) -> Result<()> {
    Ok(Pager::prepare(storage, &pager_options(&Options::new(), page_bytes, database_id))?)
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
            let mut analysis = first_pass::analyse(storage, &options, &master)?;
            mind_quarantines(&mut analysis, &Loaded::read(&**storage, master.database_id)?, &master);
            Ok(first_report(&master, &analysis))
        }
    }
}

/// A database behind analysis: nothing is redone yet, but everything is open that redo needs.
struct Analysed {
    engine: Engine,
    log_options: LogOptions,
    analysis: Analysis,
    report: RecoveryReport,
}

fn recover(
    storage: Arc<dyn Storage>,
    options: Options,
    lock: Box<dyn Lock>,
    master: &Master,
    began: Duration,
) -> Result<Engine> {
    let _span = tracing::info_span!("recovery").entered();
    let Analysed { engine, log_options, analysis, mut report } =
        analyse(storage, options, lock, master, began)?;
    expect_written(&engine, &analysis)?;
    redo::run(&engine, &log_options, &analysis, &mut report, began)?;
    undo::run(&engine, &analysis, &mut report, began)?;
    engine.end_lifted_quarantines()?;
    let behind = engine.trailing.partitions();
    remove_orphans(&engine)?;
    note_trailing(&engine, &behind, &mut report, began);
    // One that is restored in part goes on from the same checkpoint when there is more of it.
    if engine.options.only.is_none() && (!report.clean || engine.quarantine.has_open()) {
        engine.take_checkpoint(Effort::Fuzzy)?;
    }
    engine.checkpoint.lock().last_at = engine.storage.monotonic();
    report.partitions.sort_by_key(|p| p.partition);
    report.elapsed = engine.storage.monotonic().saturating_sub(began);
    tracing::info!(?report, "recovered");
    engine.report.get_or_init(|| report);
    Ok(engine)
}

/// Everything up to the redo pass. `began`: when the open began, on the storage's clock.
fn analyse(
    storage: Arc<dyn Storage>,
    options: Options,
    lock: Box<dyn Lock>,
    master: &Master,
    began: Duration,
) -> Result<Analysed> {
    let page_bytes = master.page_bytes;
    let mut log_options = log_options(&options, master.log_segment_bytes);
    let quarantines = Loaded::read(&*storage, master.database_id)?;
    let pages = pager_options(&options, page_bytes, master.database_id);
    let is_prepared = Pager::is_prepared(&*storage, &pages)?;
    let cache = is_prepared.then(|| PageCache::open(&storage, pages.clone())).transpose()?;
    let is_in_use = |id| !options.leaves_out(id) && !quarantines.is_settled(id);
    let eager = cache.as_ref().map(|cache| Eager::new(&*storage, &cache.pager, &is_in_use));
    // A log that is longer than today's limit is still recovered; the limit holds for what comes after.
    let (mut analysis, redone) = first_pass::run(&storage, &options, master, eager.as_ref())?;
    if options.only.is_some() {
        analysis.keep_only(&|id| !options.leaves_out(id));
    }
    mind_quarantines(&mut analysis, &quarantines, master);
    let live = analysis.resume.end.0 - master.oldest_lsn.0;
    log_options.max_bytes = log_options.max_bytes.max(live.saturating_mul(2)).min(MAX_LOG_BYTES);
    let mut report = first_report(master, &analysis);
    redone.note(&analysis, storage.monotonic().saturating_sub(began), &mut report);

    let incarnation = master.incarnation.max(analysis.resume.incarnation) + 1;
    let mut files = MasterFiles::open(&*storage, master.clone())?;
    files.write(Master { incarnation, ..master.clone() })?;
    remove_marker(&*storage)?;
    remove_leftovers(&*storage)?;
    if let Err(error) = aside::remove_leftovers(&storage) {
        // Nobody reads what is there. Who restores a range next clears it, or is told.
        tracing::warn!(%error, "what an unfinished restore of a range has left cannot be removed");
    }
    report.incarnation = incarnation;
    let log =
        Log::resume(storage.clone(), log_options.clone(), incarnation, master.oldest_lsn, &analysis.resume)?;
    let cache = cache.map_or_else(|| PageCache::open(&storage, pages), Ok)?;
    let layers = cache.over(log);
    let mending = |id| match id {
        CATALOG => Mending::Must,
        id if quarantines.is_settled(id) || options.leaves_out(id) => Mending::None,
        _ => Mending::IfReadable,
    };
    // A page that is redone already is in memory, and stays damaged in place until it is written. Should there be a crash before, recovery
    // begins it anew again, with the blind record that it has begun it with now.
    let replays =
        |partition, page, lsn| analysis.rec_lsn(partition, page).is_some_and(|rec_lsn| rec_lsn <= lsn);
    let torn_pages =
        layers.pager.restore_torn_pages(master.oldest_lsn, analysis.resume.end, &mending, &replays)?;
    let mut partitions = eager.map(Eager::into_partitions).unwrap_or_default();
    for gone in partitions.extract_if(.., |partition| analysis.deleted.contains(&partition.id())) {
        layers.pager.close_partition(gone.id(), false)?;
    }
    for torn in torn_pages.restored {
        if let Some(partition) = partitions.iter().find(|partition| partition.id() == torn.partition)
            && let Err(error) = partition.measure()
        {
            // The page may be behind what was its file's end. Then whoever reads it is told, and that concerns one partition alone.
            tracing::debug!(partition = torn.partition.0, %error, "a file's length cannot be read");
        }
        if analysis.restore(torn.partition, torn.page, torn.page_lsn) {
            partition_report(&mut report, torn.partition).restored_pages += 1;
        }
    }

    let engine = Engine::new(Parts {
        storage,
        options,
        page_bytes,
        layers,
        partitions,
        counts: analysis.row_counts(),
        next_txn: analysis.next_txn,
        next_id: analysis.next_id,
        checkpoint: CheckpointState {
            master: files,
            last_begin: master.checkpoint_lsn,
            needed_from: master.oldest_lsn,
            last_end: analysis.resume.end,
            last_at: Duration::ZERO,
        },
        lock,
    })?;
    for id in engine.quarantine.load(&*engine.storage, quarantines)? {
        engine.offline_partition(id)?;
    }
    for (partition, page) in torn_pages.damaged {
        if !analysis.deleted.contains(&partition) {
            heal_now(&engine, partition, page);
        }
    }
    Ok(Analysed { engine, log_options, analysis, report })
}

/// Lets the page cache know how old pages may be: what the log says has been written must be on the disk (F14).
fn expect_written(engine: &Engine, analysis: &Analysis) -> Result<()> {
    let mut known: Option<Arc<PartitionHandle>> = None;
    let mut written: Vec<_> = analysis.written().collect();
    written.sort_unstable();
    for (partition, page, lsn) in written {
        if known.as_ref().is_none_or(|handle| handle.partition.id() != partition) {
            // If it cannot be opened, redo, or whoever looks for it, says more about that.
            known = engine.open_partition(partition).ok();
        }
        if let Some(handle) = &known {
            handle.partition.expect_page(page, lsn)?;
        }
    }
    Ok(())
}

/// What analysis found of settled partitions is kept aside already; what lifted ones have to undo a checkpoint may not list yet.
fn mind_quarantines(analysis: &mut Analysis, quarantines: &Loaded, master: &Master) {
    quarantines.settled().for_each(|id| analysis.leave_out(id));
    analysis.add_losers(&quarantines.losers(master.checkpoint_lsn));
}

/// Rebuilds a page that has a copy in the doublewrite area, as long as that is there.
fn heal_now(engine: &Engine, partition: PartitionId, page: PageNo) {
    if let Err(error) = engine.open_partition(partition).and_then(|handle| Ok(handle.partition.load(page)?)) {
        // Whoever reads it is told; it may be free.
        tracing::debug!(partition = partition.0, page = page.0, %error, "a page with a copy stays bad");
    }
}

/// How many threads recover: as the options say, but one where a simulation decides who runs.
fn recovery_workers(storage: &dyn Storage, options: &Options) -> usize {
    match (storage.scheduler(), options.recovery_workers) {
        (Some(_), _) => 1,
        (None, Some(workers)) => workers,
        (None, None) if options.maintenance == Maintenance::Manual => 1,
        (None, None) => std::thread::available_parallelism().map_or(1, NonZero::get).min(DEFAULT_WORKERS),
    }
}

/// Removes the files of partitions that no table has: creations that were rolled back, drops whose file had not gone yet. And the row
/// counts of tables that are no more.
fn remove_orphans(engine: &Engine) -> Result<()> {
    let tables = tables(engine)?;
    let ids: HashSet<u32> = tables.iter().map(|(_, table)| table.row.id).collect();
    engine.timeline.keep_tables(|id| ids.contains(&id));
    let known: HashSet<PartitionId> = tables.iter().flat_map(|(_, table)| table.partitions()).collect();
    for name in engine.storage.list("part").map_err(|e| LowError::io("list", "part", e))? {
        let Some(id) = partition_of(&name) else {
            continue;
        };
        if id == CATALOG || known.contains(&id) {
            continue;
        }
        engine.next_id.fetch_max(id.0.saturating_add(1), std::sync::atomic::Ordering::Relaxed);
        tracing::info!(partition = id.0, "removing the file of a partition that no table has");
        // A loser's chain may be there still if its undo trailed already when the table was dropped.
        engine.catch_up(id, &mut || {
            let RecoveryProgress { pass, done, total } = engine.trailing.progress();
            progress(&engine.options, pass, done, total).inspect_err(|_| {
                let _next_time_then = engine.log.flush();
            })?;
            Ok(Duration::MAX)
        })?;
        engine.delete_partition(&engine.lock_files(), id)?;
    }
    for id in engine.quarantine.all().into_iter().filter(|id| !known.contains(id)) {
        engine.next_id.fetch_max(id.0.saturating_add(1), std::sync::atomic::Ordering::Relaxed);
        engine.delete_partition(&engine.lock_files(), id)?;
    }
    // Every table's files are looked for now: a missing one, or one that is no partition of this database, is told at open, not at the
    // first read.
    for id in tables.iter().flat_map(|(_, table)| table.partitions()) {
        if engine.options.leaves_out(id) {
            continue;
        }
        let handle = engine.partition(id)?;
        match twice(|| handle.space.check_header()) {
            Err(e) if !engine.convict(id, &e) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// What trails; some of that may have been in the way of a file's removal. `behind`: the partitions in which something was left before.
fn note_trailing(engine: &Engine, behind: &[PartitionId], report: &mut RecoveryReport, began: Duration) {
    let RecoveryProgress { done, .. } = engine.trailing.progress();
    report.undo.records += done;
    report.undo.applied += done;
    report.trailing_losers = engine.trailing.losers() as u64;
    let ready = engine.storage.monotonic().saturating_sub(began);
    for partition in behind.iter().filter(|id| !engine.trailing.is_behind(**id)) {
        partition_report(report, *partition).ready = Some(ready);
    }
}

/// All tables in the catalog as it is, whoever has written it: for when nobody writes. `Corrupt` if two claim one id or partition.
pub(crate) fn tables(engine: &Engine) -> Result<Vec<(String, Definition)>> {
    let mut tables = Tables::default();
    let catalog = engine.partition(CATALOG)?.tree();
    each_row(&catalog, None, &[], None, &mut |key, row| tables.add(key, row))?;
    Ok(tables.rows)
}

fn first_report(master: &Master, analysis: &Analysis) -> RecoveryReport {
    let losers = analysis.losers();
    let redo_lsn = analysis.oldest_rec_lsn();
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
    report.undo.records = analysis.loser_records();
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

/// What a thread that panicked said.
fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

fn remove_marker(storage: &dyn Storage) -> Result<()> {
    let io = |e| LowError::io("remove", CREATING, e);
    if storage.exists(CREATING).map_err(io)? {
        storage.remove(CREATING).map_err(io)?;
        storage.sync_directory("").map_err(io)?;
    }
    Ok(())
}
