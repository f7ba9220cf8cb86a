//! The open engine: what every transaction, checkpoint and recovery pass shares.
//!
//! Lock order, outermost first: `repairing` or `restoring`, `reshaping`, a chain of [`crate::trailing`], `checkpoint`, `vacuum`, log room, page latches, the
//! timeline, a transaction's section ([`crate::active`]). `partitions`, the schema, the row locks and the before-images are leaves: nothing but their own is taken under
//! them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hamal_pager::{PageNo, Pager, PagerOptions, Partition, PartitionId, WriteAhead, WrittenPage};
use hamal_storage::{Error as LowError, Lock, Storage};
use hamal_wal::{Log, Lsn};
use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::archive::Archive;
use crate::balance::Balancer;
use crate::catalog::CATALOG;
use crate::checkpoint::{CheckpointState, standing_promise};
use crate::graves::Graves;
use crate::healing::PageHealer;
use crate::ids::TxnId;
use crate::journal::Journal;
use crate::load::Load;
use crate::locks::RowLocks;
use crate::maintenance::VacuumState;
use crate::quarantine::{Quarantine, is_unreadable, twice};
use crate::record::Record;
use crate::reshape::{Changes, Strays};
use crate::retention::Retention;
use crate::schema::Schema;
use crate::space::Space;
use crate::timeline::{Hints, Timeline};
use crate::trailing::TrailingUndo;
use crate::transaction::Wakers;
use crate::tree::{ROOT, SYSTEM_ROOT, Tree};
use crate::versions::Versions;
use crate::waits::Waits;
use crate::{Error, ErrorKind, Options, RecoveryReport, Result};

/// Counters that no other part keeps.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) commits_waited: AtomicU64,
    pub(crate) rollbacks: AtomicU64,
    /// Times that a transaction could not be serialized: what it read, or was to write, had been changed.
    pub(crate) overtaken: AtomicU64,
    /// Transactions that had been cancelled when they were rolled back.
    pub(crate) cancelled: AtomicU64,
    /// Statements that failed with `LogFull`.
    pub(crate) log_full: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    /// Times that a partition was quarantined.
    pub(crate) quarantines: AtomicU64,
    /// Scrubs that have seen every page.
    pub(crate) scrubs: AtomicU64,
    /// Pages that scrubs have looked at.
    pub(crate) scrubbed_pages: AtomicU64,
}

/// One open database, apart from its background threads.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) options: Options,
    pub(crate) page_bytes: usize,
    pub(crate) log: Arc<Log>,
    pub(crate) pager: Arc<Pager>,
    pub(crate) journal: Journal,
    pub(crate) timeline: Timeline,
    pub(crate) schema: Schema,
    pub(crate) versions: Versions,
    /// Held by whoever merges before-images.
    merging: Mutex<()>,
    pub(crate) row_locks: RowLocks,
    pub(crate) waits: Waits,
    pub(crate) graves: Graves,
    pub(crate) balancer: Balancer,
    pub(crate) trailing: TrailingUndo,
    pub(crate) retention: Retention,
    pub(crate) healer: Arc<PageHealer>,
    pub(crate) quarantine: Quarantine,
    pub(crate) archive: Option<Archive>,
    pub(crate) wakers: Wakers,
    pub(crate) checkpoint: Mutex<CheckpointState>,
    /// Held by whoever purges, merges or frees in the background; verification holds it to keep the trees still.
    pub(crate) vacuum: Mutex<()>,
    /// Held by whoever splits or merges partitions, or removes what that has left behind.
    pub(crate) reshaping: Mutex<()>,
    /// Held by whoever restores a range: there is one directory to do that in.
    pub(crate) restoring: Mutex<()>,
    pub(crate) next_id: AtomicU32,
    pub(crate) counters: Counters,
    /// By when (monotonic, nanoseconds) the log must be flushed for a `Periodic` commit; [`u64::MAX`]: nothing is due.
    pub(crate) flush_by: AtomicU64,
    /// The newest checkpoint's beginning: a copy of what `checkpoint` has.
    pub(crate) checkpointed_to: AtomicU64,
    pub(crate) pager_log: Arc<PagerLog>,
    partitions: RwLock<HashMap<PartitionId, Arc<PartitionHandle>>>,
    poison: OnceLock<String>,
    /// A transaction could not be rolled back: its changes are still in the pages, and nobody may read them.
    unresolved: AtomicBool,
    pub(crate) report: OnceLock<RecoveryReport>,
    _lock: Box<dyn Lock>,
}

/// An open partition and what the engine remembers about it.
#[derive(Debug)]
pub(crate) struct PartitionHandle {
    pub(crate) partition: Arc<Partition>,
    pub(crate) space: Arc<Space>,
    /// Ghosts and unlinked extents made, or settled, since the last vacuum pass began: an estimate.
    pub(crate) garbage: AtomicU64,
    /// There may be overflow runs to free. True at open: what was let go of before a restart is due (hazard H9).
    pub(crate) pending: AtomicBool,
    pub(crate) vacuum: Mutex<VacuumState>,
    /// Rows that are not its own any more, or not yet.
    pub(crate) strays: Strays,
    /// What whoever copies its rows hears of those that change.
    pub(crate) changes: Changes,
    pub(crate) load: Load,
    /// See [`PartitionHandle::is_behind`].
    pub(crate) behind: AtomicBool,
    /// That of the table its rows belong to, once somebody has opened the table.
    gate: Arc<OnceLock<Arc<TableGate>>>,
}

/// Where those who write to a table meet those who drop it, or split or merge its partitions: one for each table, whatever it was opened
/// through.
#[derive(Debug)]
pub(crate) struct TableGate {
    pub(crate) table: u32,
    /// Id of the transaction that has locked the table, to drop it or to move rows between its partitions; 0: nobody.
    pub(crate) dropper: AtomicU64,
    /// A commit has dropped the table.
    pub(crate) dropped: AtomicBool,
    /// The last transaction that has committed a split or a merge of its partitions; 0: none since the database was opened. Whoever does
    /// not see it does not know where the rows are now. Changed in the commit section.
    pub(crate) reshaper: AtomicU64,
}

impl TableGate {
    /// That of a table nobody drops.
    pub(crate) fn new(table: u32) -> TableGate {
        TableGate {
            table,
            dropper: AtomicU64::new(0),
            dropped: AtomicBool::new(false),
            reshaper: AtomicU64::new(0),
        }
    }
}

impl PartitionHandle {
    /// The table its rows belong to. `None`: nobody has opened that, so nobody has written to it either since the database was opened.
    pub(crate) fn table(&self) -> Option<u32> {
        self.gate.get().map(|gate| gate.table)
    }

    /// The gate of its table: this one, unless there is one already. `Corrupt` if that is another table's.
    pub(crate) fn enter(&self, gate: &Arc<TableGate>) -> Result<Arc<TableGate>> {
        let known = self.gate.get_or_init(|| gate.clone());
        if known.table != gate.table {
            let (id, one, other) = (self.partition.id(), known.table, gate.table);
            let what = format!("partition {id} belongs to table {one} and to table {other}");
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        Ok(known.clone())
    }

    /// Whether something is to be undone before its rows can be shown to anybody ([`crate::trailing`]).
    pub(crate) fn is_behind(&self) -> bool {
        // Acquire: if not, what has been undone is done.
        self.behind.load(Ordering::Acquire)
    }

    /// The tree of user rows.
    pub(crate) fn tree(&self) -> Tree {
        Tree::new(&self.space, ROOT)
    }

    /// The tree of system rows.
    pub(crate) fn system_tree(&self) -> Tree {
        Tree::new(&self.space, SYSTEM_ROOT)
    }

    /// The tree with this root page, if there is one.
    pub(crate) fn tree_at(&self, root: PageNo) -> Result<Tree> {
        match root {
            ROOT => Ok(self.tree()),
            SYSTEM_ROOT => Ok(self.system_tree()),
            other => {
                Err(Error::new(ErrorKind::Corrupt, format!("an undo names page {other} as a tree's root")))
            }
        }
    }
}

/// The pager's view of the log. It notes in the log which pages have reached the disk, so that analysis need not suspect them,
/// and counts steals: pages that go to disk while a transaction that may yet roll back has changed them.
#[derive(Debug)]
pub(crate) struct PagerLog {
    /// Until recovery knows where it ends there is none, and no page is written.
    log: OnceLock<Arc<Log>>,
    hints: Arc<Hints>,
    pub(crate) steals: AtomicU64,
}

impl WriteAhead for PagerLog {
    fn make_durable(&self, lsn: Lsn) -> hamal_storage::Result<()> {
        match self.log.get() {
            Some(log) => log.make_durable(lsn),
            None => Err(LowError::Invalid("a page was to be written before the log was open".into())),
        }
    }

    fn pages_written(&self, pages: &[WrittenPage]) {
        let Some(log) = self.log.get() else { return };
        let horizon = self.hints.horizon();
        let steals = pages.iter().filter(|p| p.max_txn >= horizon.0).count();
        self.steals.fetch_add(steals as u64, Ordering::Relaxed);
        let pages = pages.iter().map(|p| (p.partition, p.page, p.page_lsn)).collect();
        let mut payload = Vec::new();
        Record::PagesClean { pages }.encode(&mut payload);
        // Only a hint: where it would have to wait for room, or the log has failed, recovery reads a few pages more. It must not wait:
        // whoever evicts may have log room already, and whoever waits for room waits for those who have it.
        if let Some(mut permit) = log.try_admit(Log::framed_bytes(payload.len())) {
            let _unneeded = permit.append(&payload);
        }
    }
}

/// No checkpoint and no vacuum runs.
pub(crate) struct FilesLocked<'e> {
    _checkpoint: MutexGuard<'e, CheckpointState>,
    _vacuum: MutexGuard<'e, ()>,
}

/// A page cache whose log is not open yet: pages can be read and changed in memory, and none is written.
#[derive(Debug)]
pub(crate) struct PageCache {
    pub(crate) pager: Arc<Pager>,
    pager_log: Arc<PagerLog>,
    hints: Arc<Hints>,
}

impl PageCache {
    pub(crate) fn open(storage: &Arc<dyn Storage>, pages: PagerOptions) -> Result<PageCache> {
        let hints = Arc::new(Hints::default());
        let log = OnceLock::new();
        let pager_log = Arc::new(PagerLog { log, hints: hints.clone(), steals: AtomicU64::new(0) });
        let pager = Pager::open(storage.clone(), pager_log.clone(), pages)?;
        Ok(PageCache { pager, pager_log, hints })
    }

    /// Now there is a log.
    pub(crate) fn over(self, log: Log) -> Layers {
        let PageCache { pager, pager_log, hints } = self;
        let log = pager_log.log.get_or_init(|| Arc::new(log)).clone();
        let journal = Journal::new(log.clone(), hints.clone());
        Layers { log, pager_log, pager, journal, hints }
    }
}

/// What stands on an open log.
pub(crate) struct Layers {
    pub(crate) log: Arc<Log>,
    pub(crate) pager_log: Arc<PagerLog>,
    pub(crate) pager: Arc<Pager>,
    pub(crate) journal: Journal,
    hints: Arc<Hints>,
}

/// The parts that recovery has made by the time an [`Engine`] can be put together.
pub(crate) struct Parts {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) options: Options,
    pub(crate) page_bytes: usize,
    pub(crate) layers: Layers,
    /// Those that are open already.
    pub(crate) partitions: Vec<Arc<Partition>>,
    pub(crate) counts: BTreeMap<u32, u64>,
    pub(crate) next_txn: TxnId,
    pub(crate) next_id: u32,
    pub(crate) checkpoint: CheckpointState,
    pub(crate) lock: Box<dyn Lock>,
}

impl Engine {
    /// Puts the parts together, and promises the log room that nobody may be refused.
    pub(crate) fn new(parts: Parts) -> Result<Engine> {
        let Layers { log, pager_log, pager, journal, hints } = parts.layers;
        log.promise(standing_promise(&parts.options, parts.page_bytes))?;
        let retention = Retention::new(log.oldest());
        let healer = {
            let master = parts.checkpoint.master.current();
            let target = parts.options.heal_from.clone().or_else(|| parts.options.archive.clone());
            let origin = (master.database_id, master.history);
            Arc::new(PageHealer::new(
                (log.clone(), parts.storage.clone()),
                retention.clone(),
                origin,
                parts.page_bytes,
                target,
            ))
        };
        if parts.options.self_repair {
            pager.set_healer(healer.clone());
        }
        let archive = parts.options.archive.clone().map(|target| {
            let master = parts.checkpoint.master.current();
            let oldest = log.oldest();
            Archive::new(target, (master.database_id, master.history), retention.hold(oldest), oldest)
        });
        let versions = Versions::new(parts.storage.clone(), parts.options.version_bytes);
        let schema = Schema::new(parts.options.maintenance);
        Ok(Engine {
            waits: Waits::new(parts.storage.clone()),
            storage: parts.storage,
            options: parts.options,
            page_bytes: parts.page_bytes,
            log,
            pager,
            journal,
            timeline: Timeline::new(parts.next_txn, parts.counts, hints),
            schema,
            versions,
            merging: Mutex::new(()),
            row_locks: RowLocks::default(),
            graves: Graves::default(),
            balancer: Balancer::default(),
            trailing: TrailingUndo::default(),
            retention,
            healer,
            quarantine: Quarantine::default(),
            archive,
            wakers: Wakers::default(),
            checkpointed_to: AtomicU64::new(parts.checkpoint.last_begin.0),
            checkpoint: Mutex::new(parts.checkpoint),
            vacuum: Mutex::new(()),
            reshaping: Mutex::new(()),
            restoring: Mutex::new(()),
            next_id: AtomicU32::new(parts.next_id),
            counters: Counters::default(),
            flush_by: AtomicU64::new(u64::MAX),
            pager_log,
            partitions: RwLock::new(parts.partitions.into_iter().map(|p| (p.id(), new_handle(p))).collect()),
            poison: OnceLock::new(),
            unresolved: AtomicBool::new(false),
            report: OnceLock::new(),
            _lock: parts.lock,
        })
    }

    /// Drops the before-images that nobody needs any more; and puts the others together, once there are many.
    pub(crate) fn drop_settled_versions(&self) -> Result<()> {
        self.versions.drop_settled(self.journal.horizon());
        self.merge_versions()
    }

    /// Puts before-images together that no view tells apart, once there are many.
    pub(crate) fn merge_versions(&self) -> Result<()> {
        // Somebody else's merge is as good as one's own.
        if self.versions.may_merge()
            && let Some(_merging) = self.merging.try_lock()
        {
            self.versions.merge(&self.timeline.indistinguishable(&self.versions.retired()))?;
        }
        Ok(())
    }

    /// A transaction could not be serialized.
    pub(crate) fn note_overtaken(&self) {
        self.counters.overtaken.fetch_add(1, Ordering::Relaxed);
    }

    /// A flush that makes the log durable up to now must begin within this interval. Whether none had to before.
    pub(crate) fn flush_within(&self, interval: Duration) -> bool {
        let by = self.storage.monotonic().saturating_add(interval);
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.flush_by.fetch_min(by, Ordering::Release) > by
    }

    /// A partition, opened if it is not yet. One whose file is missing, or refused by the system, is quarantined: whatever is asked of its
    /// pages is answered by `PartitionUnavailable`.
    pub(crate) fn partition(&self, id: PartitionId) -> Result<Arc<PartitionHandle>> {
        if self.options.leaves_out(id) {
            return self.offline_partition(id);
        }
        match twice(|| self.open_partition(id)) {
            Err(e) if id != CATALOG && (e.kind() == ErrorKind::Corrupt || is_unreadable(&e)) => {
                self.quarantine(id, &e.to_string());
                self.offline_partition(id)
            }
            other => other,
        }
    }

    /// The handle of a quarantined partition.
    pub(crate) fn offline_partition(&self, id: PartitionId) -> Result<Arc<PartitionHandle>> {
        let handle = new_handle(self.pager.offline_partition(id)?);
        Ok(self.partitions.write().entry(id).or_insert(handle).clone())
    }

    /// The handle of a quarantined partition's new file, which nobody else has yet: for the same table as the old one.
    pub(crate) fn handle_instead(
        &self,
        id: PartitionId,
        partition: Arc<Partition>,
    ) -> Result<Arc<PartitionHandle>> {
        let gate = self.offline_partition(id)?.gate.clone();
        Ok(handle_with(partition, gate))
    }

    /// From here on this is the partition's handle. Whoever has the old one stays with that until the table is opened again.
    pub(crate) fn replace_handle(&self, handle: Arc<PartitionHandle>) {
        self.partitions.write().insert(handle.partition.id(), handle);
        self.schema.forget();
    }

    /// As [`Engine::partition`], but `Corrupt` if its file is missing.
    pub(crate) fn open_partition(&self, id: PartitionId) -> Result<Arc<PartitionHandle>> {
        if let Some(handle) = self.partitions.read().get(&id) {
            return Ok(handle.clone());
        }
        let mut partitions = self.partitions.write();
        if let Some(handle) = partitions.get(&id) {
            return Ok(handle.clone());
        }
        let partition = self.pager.open_partition(id).map_err(|e| missing_file(id, e))?;
        Ok(partitions.entry(id).or_insert(new_handle(partition)).clone())
    }

    /// Makes a new partition's file.
    pub(crate) fn create_partition(&self, id: PartitionId) -> Result<Arc<PartitionHandle>> {
        let handle = new_handle(self.pager.create_partition(id)?);
        // No list of pending runs to look at before it has been formatted.
        handle.pending.store(false, Ordering::Relaxed);
        handle.vacuum.lock().has_passed = true;
        handle.strays.note_none();
        self.partitions.write().insert(id, handle.clone());
        Ok(handle)
    }

    /// All open partitions, by id.
    pub(crate) fn open_partitions(&self) -> Vec<Arc<PartitionHandle>> {
        let mut handles: Vec<_> = self.partitions.read().values().cloned().collect();
        handles.sort_by_key(|h| h.partition.id());
        handles
    }

    /// What keeps partitions from being deleted. From the record of a deletion on, no checkpoint may list the partition's pages: its
    /// BEGIN would lie behind the record, and analysis would never know why the file is gone.
    pub(crate) fn lock_files(&self) -> FilesLocked<'_> {
        let checkpoint = self.lock(&self.checkpoint, "a checkpoint");
        FilesLocked { _checkpoint: checkpoint, _vacuum: self.lock(&self.vacuum, "a vacuum") }
    }

    /// As [`Engine::lock_files`], without waiting.
    pub(crate) fn try_lock_files(&self) -> Option<FilesLocked<'_>> {
        let checkpoint = self.checkpoint.try_lock()?;
        Some(FilesLocked { _checkpoint: checkpoint, _vacuum: self.vacuum.try_lock()? })
    }

    /// Removes a partition that no committed catalog row names any more (hazard H11): first a durable record that says so, then
    /// the file. Nobody uses the partition.
    pub(crate) fn delete_partition(&self, _locked: &FilesLocked<'_>, id: PartitionId) -> Result<()> {
        let lsn = self.journal.append(&Record::PartitionDeleted { partition: id })?;
        self.log.make_durable(lsn)?;
        self.pause("between the record of a deletion and the deletion");
        self.partitions.write().remove(&id);
        if self.quarantine.stage(id).is_some() {
            self.quarantine.forget(id);
            if let Err(error) = self.end_quarantine(id) {
                tracing::warn!(partition = id.0, %error, "what was kept of a deleted partition could not be removed");
            }
        }
        if let Err(error) = self.pager.close_partition(id, true) {
            // The record is durable, so nothing depends on the file any more: whatever is left of it goes at the next open.
            tracing::warn!(partition = id.0, %error, "a deleted partition's file could not be removed");
        }
        Ok(())
    }

    /// Whose backups are this database's: its id and its history.
    pub(crate) fn origin(&self) -> (u64, u64) {
        let state = self.lock(&self.checkpoint, "a checkpoint");
        let master = state.master.current();
        (master.database_id, master.history)
    }

    /// Draws an id for a table or a partition. Never given out again.
    pub(crate) fn draw_id(&self) -> Result<u32> {
        self.next_id
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |id| id.checked_add(1))
            .map_err(|_| Error::new(ErrorKind::Limit, "all ids of tables and partitions have been used"))
    }

    /// After a failure that leaves the disk's content unknown: no more transactions in this handle. The caller holds nothing.
    pub(crate) fn poison(&self, cause: &Error) {
        tracing::error!(%cause, "database poisoned");
        self.poison.get_or_init(|| cause.to_string());
        // Nothing more will be durable: no ticket may sleep on.
        self.durable_moved();
    }

    /// Poisoned, with a transaction left half undone: from here on nothing may be read either.
    pub(crate) fn leave_unresolved(&self, cause: &Error) {
        self.unresolved.store(true, Ordering::Release);
        // Whoever is about to wait for it has passed the timeline before this, and is woken, or passes it later, and sees the store.
        let _passed = self.timeline.active();
        self.poison(cause);
    }

    /// Whether a transaction has been left half undone: it never ends.
    pub(crate) fn is_unresolved(&self) -> bool {
        self.unresolved.load(Ordering::Acquire)
    }

    /// Whether what is committed can be told from what is not.
    pub(crate) fn check_resolved(&self) -> Result<()> {
        if self.is_unresolved() { self.check_poison() } else { Ok(()) }
    }

    /// `Poisoned` if an earlier failure, of the log or of pages, has left the disk's content unknown.
    pub(crate) fn check_poison(&self) -> Result<()> {
        let cause = self.poison.get().cloned().or_else(|| self.log.poison()).or_else(|| self.pager.poison());
        match cause {
            None => Ok(()),
            Some(cause) => Err(Error::new(
                ErrorKind::Poisoned,
                format!("an earlier failure has poisoned this handle; reopen the database: {cause}"),
            )),
        }
    }
}

fn new_handle(partition: Arc<Partition>) -> Arc<PartitionHandle> {
    handle_with(partition, Arc::default())
}

fn handle_with(partition: Arc<Partition>, gate: Arc<OnceLock<Arc<TableGate>>>) -> Arc<PartitionHandle> {
    let space = Space::new(Arc::clone(&partition));
    Arc::new(PartitionHandle {
        partition,
        space,
        garbage: AtomicU64::new(0),
        pending: AtomicBool::new(true),
        vacuum: Mutex::new(VacuumState::default()),
        strays: Strays::default(),
        changes: Changes::default(),
        load: Load::default(),
        behind: AtomicBool::new(false),
        gate,
    })
}

fn missing_file(id: PartitionId, error: LowError) -> Error {
    match &error {
        LowError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Error::corrupt(format!("part/{id}.dat"), 0, "the partition's file", "no file")
        }
        _ => error.into(),
    }
}
