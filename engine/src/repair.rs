//! Repair of a quarantined partition while the others serve (docs/repair.md): its file is built again from a copy of its pages and all
//! records since, and the losers that were left there are undone.
//!
//! | step | on the disk | a crash here leaves it |
//! |---|---|---|
//! | rebuild ([`rebuild`]) | `quarantine/<id>.building` | quarantined; the building file goes at the next open |
//! | swap | the old file to `quarantine/<id>.damaged`, the new one to `part/<id>.dat` | quarantined; its file is whole |
//! | lift | the state file says from which LSN on the file is whole; without losers it goes at once | recovered like any other, its losers' older records from the kept log |
//! | undo | compensation and end records in the log | same |
//! | end | the state file goes, then what it named | in use |
//!
//! I1. Until the swap nothing has changed that was there before: a source that is missing or damaged, or a cancellation, leaves all as it was.
//! I2. The file holds, at the swap, everything that was done to the partition: it is synced, and its trees are proven. So it does not matter
//!     which of the partition's older records a later recovery meets: their pages have them (redo goes by page LSN).
//! I3. The lift happens with the checkpoint's lock held: a checkpoint that began before it does not list the partition's losers, and they
//!     are added by whoever recovers from it; one that begins after it lists them ([`crate::quarantine`], I4).
//! I4. Users come last: nobody reads the partition before its losers are undone, for the timeline does not know them.

pub(crate) mod rebuild;
mod sources;

use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_pager::PartitionId;
use hamal_storage::Error as LowError;

use crate::active::TxnEntry;
use crate::backup::{OnProgress, Progress, Stage as Work, Target, tell};
use crate::catalog::CATALOG;
use crate::checkpoint::Effort;
use crate::engine::{Engine, PartitionHandle};
use crate::quarantine::file::{self, State};
use crate::quarantine::{Settled, Stage};
use crate::record::{ChainImage, TxnImage};
use crate::{Error, ErrorKind, Result, recovery, rollback, verify};
pub(crate) use sources::Limits;

/// How to repair a partition.
#[derive(Clone, Debug, Default)]
pub struct RepairOptions {
    backup: Option<String>,
}

impl RepairOptions {
    /// From the newest backup that can be used; or else from the file itself, if it is readable again; or else from the log alone, if that
    /// has the making of the partition.
    pub fn new() -> RepairOptions {
        RepairOptions::default()
    }

    /// From this backup alone.
    #[must_use]
    pub fn backup(mut self, id: impl Into<String>) -> RepairOptions {
        self.backup = Some(id.into());
        self
    }
}

/// What a partition was built again from, beside the log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RepairBase {
    /// This backup.
    Backup(String),
    /// Its own file, which is readable again.
    File,
    /// Nothing: the log has it from its making on.
    Log,
}

/// What a repair did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairReport {
    /// The partition.
    pub partition: u32,
    /// Why it was quarantined.
    pub cause: String,
    /// Since when, microseconds since 1970.
    pub quarantined_micros: u64,
    /// What it was built again from, beside the log.
    pub base: RepairBase,
    /// Pages copied from there.
    pub pages: u64,
    /// Changes of pages redone.
    pub redone: u64,
    /// Transactions that had not committed, and were undone there.
    pub losers: u64,
    /// Records of theirs undone.
    pub undone: u64,
    /// Rows in it now.
    pub rows: u64,
}

/// A partition's place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bounds {
    pub(crate) lower: Box<[u8]>,
    /// Empty: there is none.
    pub(crate) upper: Box<[u8]>,
}

/// Repairs a partition. See [`crate::Database::repair`].
pub(crate) fn run(
    engine: &Engine,
    id: PartitionId,
    target: Option<&dyn Target>,
    options: &RepairOptions,
    on_progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<RepairReport> {
    engine.check_poison()?;
    engine.check_resolved()?;
    let _one_at_a_time = engine.lock(&engine.quarantine.repairing, "a repair");
    let _span = tracing::info_span!("repair", partition = id.0).entered();
    let settled = settle(engine, id)?;
    // Nor is it dropped meanwhile.
    let _files = {
        let locked = engine.lock_files();
        engine.graves.keep(&locked)
    };
    let bounds = bounds_of(engine, id)?;
    if engine.archive.is_some()
        && let Err(error) = engine.archive_all()
    {
        // What was kept aside may do.
        tracing::warn!(%error, "the log could not be archived before a repair");
    }
    let mut report = RepairReport {
        partition: id.0,
        cause: settled.cause.clone(),
        quarantined_micros: settled.since_micros,
        base: RepairBase::Log,
        pages: 0,
        redone: 0,
        losers: settled.chains.len() as u64,
        undone: 0,
        rows: 0,
    };
    let limits = sources::Limits::new(engine.origin(), &settled.kept);
    let job = rebuild::Job { engine, id, target, settled: &settled, bounds: &bounds, limits };
    let handle = job.rebuild(options.backup.as_deref(), &mut report, on_progress)?;
    let losers = match lift(engine, id, &settled) {
        Ok(losers) => losers,
        Err(e) => {
            // Whatever the disk has of it now: a partition that is whole, and quarantined or not.
            leave(engine, id);
            return Err(e);
        }
    };
    if let Err(e) = finish(engine, &handle, &losers, &bounds, &mut report, on_progress) {
        // What is undone stays undone; the rest waits for the next repair.
        engine.quarantine(id, &format!("its repair could not be finished: {e}"));
        leave(engine, id);
        return Err(e);
    }
    tracing::info!(?report, "repaired");
    Ok(report)
}

/// Lets go of a file that is not to be used.
fn leave(engine: &Engine, id: PartitionId) {
    engine.pager.seal_partition(id);
    engine.pager.remove_sealed(id);
}

/// What a quarantined partition is repaired with: all of it durable.
fn settle(engine: &Engine, id: PartitionId) -> Result<Settled> {
    for _ in 0..2 {
        match engine.quarantine.stage(id) {
            None if id == CATALOG => {
                return Err(Error::invalid("the catalog cannot be repaired alone: restore the database"));
            }
            None => return Err(Error::invalid(format!("partition {id} is not quarantined"))),
            Some(Stage::Settled) => break,
            Some(_) => drop(engine.take_checkpoint(Effort::Fuzzy)?),
        }
    }
    engine.quarantine.settled(id).unwrap_or_else(|| {
        Err(Error::new(
            ErrorKind::Conflict,
            format!("partition {id} can be repaired once the transactions have ended that have changed it"),
        ))
    })
}

/// Where the partition's keys are. `NotFound` if no table has it.
fn bounds_of(engine: &Engine, id: PartitionId) -> Result<Bounds> {
    for (_, table) in recovery::tables(engine)? {
        if let Some(at) = table.partitions().position(|p| p == id) {
            let bound = |at: usize| table.cuts.get(at).map(|cut| cut.lower.clone()).unwrap_or_default();
            let lower = at.checked_sub(1).map(bound).unwrap_or_default();
            return Ok(Bounds { lower, upper: bound(at) });
        }
    }
    Err(Error::new(ErrorKind::NotFound, format!("no table has partition {id}")))
}

/// Puts the new file in its place and lifts the quarantine, but for the losers, which are returned.
fn lift(engine: &Engine, id: PartitionId, settled: &Settled) -> Result<Vec<Arc<TxnEntry>>> {
    let state = engine.lock(&engine.checkpoint, "a checkpoint");
    engine.check_poison()?;
    swap(engine, id)?;
    engine.pause("between the swap and the lift of a repair");
    let lifted = engine.log.tail();
    let losers: Vec<_> = settled
        .chains
        .iter()
        .map(|chain| {
            let chains = vec![ChainImage {
                partition: id,
                last_lsn: chain.last_lsn,
                undo_next_lsn: chain.undo_next_lsn,
            }];
            // Of what is older the log need keep nothing: it is kept aside.
            let image = TxnImage { txn: chain.txn, first_lsn: lifted, undo_bytes: u64::MAX, chains };
            Arc::new(TxnEntry::restored(&image))
        })
        .collect();
    if !losers.is_empty() {
        let kept = &settled.kept;
        let state = State {
            database_id: state.master.current().database_id,
            partition: id,
            since_micros: settled.since_micros,
            from: kept.from,
            end: kept.end,
            lifted,
            kept_bytes: kept.bytes(),
            cause: settled.cause.clone(),
            chains: settled.chains.clone(),
            origin: kept.origin,
            is_lost: false,
        };
        state.write(&engine.storage)?;
        engine.quarantine.lift(id, losers.clone());
    }
    Ok(losers)
}

/// Puts the new file under the partition's name, durably.
fn swap(engine: &Engine, id: PartitionId) -> Result<()> {
    let storage = &*engine.storage;
    let name = format!("part/{id}.dat");
    let io = |action, name: &str, e| LowError::io(action, name, e);
    let (building, damaged) = (file::building_name(id), file::damaged_name(id));
    if storage.exists(&name).map_err(|e| io("look for", &name, e))? {
        storage.rename(&name, &damaged).map_err(|e| io("rename", &name, e))?;
        file::sync_directory(storage)?;
    }
    storage.rename(&building, &name).map_err(|e| io("rename", &building, e))?;
    storage.sync_directory("part").map_err(|e| io("sync", "part", e))?;
    file::sync_directory(storage)
}

/// Undoes the losers, proves the result, ends the quarantine, lets users in.
fn finish(
    engine: &Engine,
    handle: &Arc<PartitionHandle>,
    losers: &[Arc<TxnEntry>],
    bounds: &Bounds,
    report: &mut RepairReport,
    on_progress: &mut OnProgress<'_>,
) -> Result<()> {
    let id = handle.partition.id();
    for loser in losers {
        engine.pause("between losers of a repair");
        rollback::roll_back_chain_in(engine, handle, loser, &mut |_| {
            report.undone += 1;
            tell(on_progress, Work::Log, report.undone, 0)
        })?;
    }
    if !losers.is_empty() {
        report.rows = prove(engine, handle, bounds, true)?;
        // Before what their older records are in goes.
        engine.log.flush()?;
        engine.durable_moved();
    }
    // Whoever recovers from here on finds an ordinary partition, whether the files there go or not.
    engine.pause("before the end of a repair");
    engine.end_quarantine(id)?;
    // First this: from here on checkpoints list its pages. Then somebody may change them.
    engine.quarantine.forget(id);
    engine.replace_handle(handle.clone());
    Ok(())
}

/// Proves a partition's trees and, if nobody is half done there, that all of its pages are accounted for. Returns its rows. `Corrupt`.
fn prove(engine: &Engine, handle: &Arc<PartitionHandle>, bounds: &Bounds, whole: bool) -> Result<u64> {
    let (rows, findings) = verify::check_alone(engine, handle, bounds, whole)?;
    match findings.first() {
        None => Ok(rows),
        Some(finding) => {
            let (file, page) =
                (&finding.file, finding.page.map_or_else(String::new, |p| format!(" page {p}")));
            let what = format!("{file}{page} is not right after its repair: {}", finding.what);
            Err(Error::new(ErrorKind::Corrupt, what))
        }
    }
}
