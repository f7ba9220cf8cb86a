//! The open database: the public handle, and the background threads behind it.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hamal_pager::PartitionId;
use hamal_storage::{OsStorage, Storage};
use hamal_wal::Lsn;

use crate::backup::{self, BackupInfo, BackupOptions, Moment, Target};
use crate::checkpoint::Effort;
use crate::engine::Engine;
use crate::maintenance::{Threads, start_thread};
use crate::options::{Durability, Maintenance};
use crate::report::{
    CheckpointReport, RecoveryProgress, RecoveryReport, Stats, VerifyProgress, VerifyReport,
};
use crate::shard::Shards;
use crate::validation::History;
use crate::{
    ArchiveReport, BalanceAction, Error, ErrorKind, KeyRange, Options, PartitionInfo, RangeRestoreOptions,
    RangeRestoreReport, RepairOptions, RepairReport, ReshapeProgress, ReshapeReport, Result, ScrubProgress,
    ScrubReport, Snapshot, TableInfo, Transaction, TransactionOptions, balance, recovery, repair, reshape,
    restore_range, scrub, verify,
};

/// An open database. Cheap to clone; all clones, transactions and snapshots share it, and it closes when the last is dropped.
#[derive(Clone, Debug)]
pub struct Database {
    pub(crate) handle: Arc<Handle>,
    /// One for each shard of threads.
    handles: Arc<Shards<Arc<Handle>>>,
}

/// What a transaction or a snapshot has of the database. There are several, so that threads do not all count references to the same one.
///
/// Aligned, so that the counter of references in front of it, which every transaction changes twice, is not in the cache line of anything else.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Handle {
    pub(crate) engine: Arc<Engine>,
    /// Keeps it open; not for its own background threads.
    opened: Option<Arc<Opened>>,
}

impl Handle {
    /// One for a background thread of the database: it closes nothing when it goes.
    pub(crate) fn of_thread(engine: &Arc<Engine>) -> Arc<Handle> {
        Arc::new(Handle { engine: engine.clone(), opened: None })
    }

    fn threads(&self) -> Option<&Threads> {
        self.opened.as_ref()?.threads.as_ref()
    }

    /// Lets the background threads know that there is more log, up to a commit at `lsn`, and by when it must be on the disk.
    pub(crate) fn after_commit(&self, durability: Durability, lsn: Lsn) {
        if let Durability::Periodic(interval) = durability {
            self.engine.flush_within(interval);
        }
        if let Some(threads) = self.threads() {
            threads.notify_if_due(&self.engine, lsn);
        }
    }

    /// The log must be flushed as soon as possible, by whoever does that in the background.
    pub(crate) fn flush_soon(&self) {
        self.engine.flush_within(Duration::ZERO);
        if let Some(threads) = self.threads() {
            threads.notify_flush();
        }
    }
}

/// What all handles share. Dropping it closes the database.
#[derive(Debug)]
struct Opened {
    engine: Arc<Engine>,
    threads: Option<Threads>,
    closed: bool,
}

impl Opened {
    fn shut_down(&mut self) -> Result<()> {
        self.closed = true;
        if let Some(threads) = self.threads.take() {
            threads.stop();
        }
        // A poisoned handle writes nothing more: recovery settles it.
        self.engine.check_poison()?;
        self.engine.close()
    }

    /// Whether the calling thread is one of those in the background, which end before the database is closed.
    fn is_running_this(&self) -> bool {
        self.threads.as_ref().is_some_and(Threads::are_running_this)
    }

    /// A background thread has dropped what kept the database open last: a waker that it woke did. It cannot wait for itself to end.
    fn leave_to_another_thread(&mut self) {
        let threads = self.threads.take();
        // If none can be started they end all the same, and let go of the database.
        threads.iter().for_each(Threads::tell_to_stop);
        let mut opened = Opened { engine: self.engine.clone(), threads, closed: true };
        let close = move || opened.shut_down().unwrap_or_else(|error| not_closed(&error));
        if let Err(error) = start_thread("hamal-close", close) {
            not_closed(&error);
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        if self.is_running_this() {
            self.leave_to_another_thread();
        } else if let Err(error) = self.shut_down() {
            not_closed(&error);
        }
    }
}

fn not_closed(error: &Error) {
    tracing::warn!(%error, "the database was not closed cleanly; the next open recovers it");
}

impl Database {
    /// Opens, or makes, the database in this directory with default [`Options`].
    pub fn open(path: impl AsRef<Path>) -> Result<Database> {
        Options::new().open(path)
    }

    pub(crate) fn open_path(path: &Path, options: Options) -> Result<Database> {
        Database::open_storage(Arc::new(OsStorage::new(path)), options)
            .map_err(|e| e.context(format!("opening {}", path.display())))
    }

    pub(crate) fn open_storage(storage: Arc<dyn Storage>, options: Options) -> Result<Database> {
        let maintenance = options.maintenance;
        let engine = Arc::new(recovery::open(storage, options)?);
        let threads = match maintenance {
            Maintenance::Background => Some(Threads::start(&engine)?),
            Maintenance::Manual => None,
        };
        let opened = Arc::new(Opened { engine: engine.clone(), threads, closed: false });
        let handle = || Arc::new(Handle { engine: engine.clone(), opened: Some(opened.clone()) });
        Ok(Database { handle: handle(), handles: Arc::new(Shards::new(handle)) })
    }

    /// The handle of the calling thread's transactions.
    pub(crate) fn own_handle(&self) -> &Arc<Handle> {
        self.handles.of(self.handle.engine.options.maintenance)
    }

    /// Starts a read-write transaction with the database's isolation and durability. Any number of them run at once. `Conflict` if a
    /// verification does not end within the lock timeout.
    pub fn begin(&self) -> Result<Transaction> {
        self.begin_with(TransactionOptions::new())
    }

    /// Starts a read-write transaction.
    pub fn begin_with(&self, options: TransactionOptions) -> Result<Transaction> {
        Transaction::begin(self.own_handle(), options, None)
    }

    /// A read-only view of the committed state. Never waits.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::begin(self.own_handle())
    }

    /// All tables, by name.
    pub fn tables(&self) -> Result<Vec<TableInfo>> {
        self.snapshot()?.tables()
    }

    /// All range partitions: the catalog, then those of each table by name, from the lowest keys on. O(partitions).
    pub fn partitions(&self) -> Result<Vec<PartitionInfo>> {
        self.snapshot()?.partitions()
    }

    /// Splits the partition of a table that has this key, encoded, in two: the key will be the lowest of the right one. Everybody goes on,
    /// but that writers of the table wait at the end while what they have changed since it was copied is copied again, and those that began
    /// before and have not written to it yet get `Conflict` at their first write: [`Database::transact`] runs them again. `NotFound`: no such table. `InvalidArgument`: a partition begins at the
    /// key already, or none can. `Conflict`: transactions that have written to the table did not end within the lock timeout. `Cancelled`
    /// if `progress` breaks. An error leaves everything as it was. O(rows that move).
    pub fn split(
        &self,
        table: &str,
        key: &[u8],
        progress: &mut dyn FnMut(ReshapeProgress) -> ControlFlow<()>,
    ) -> Result<ReshapeReport> {
        reshape::split(&self.handle, table, key, None, progress)
    }

    /// Merges the partition of a table that begins at this key, encoded, into the one before it: the reverse of [`Database::split`], with the
    /// same errors, but `NotFound` if no partition begins there, and `Conflict` also while somebody may still be reading as before a split of
    /// the two. The file goes once nobody reads it any more. O(rows of the right partition).
    pub fn merge(
        &self,
        table: &str,
        key: &[u8],
        progress: &mut dyn FnMut(ReshapeProgress) -> ControlFlow<()>,
    ) -> Result<ReshapeReport> {
        reshape::merge(&self.handle, table, key, None, progress)
    }

    /// Does a round of the balancer now, and says what it has done: what its thread does once in an interval ([`Options::balancer`]).
    /// `InvalidArgument` if the database was opened without one. For programs that do the maintenance themselves.
    pub fn balance(&self) -> Result<Vec<BalanceAction>> {
        let options = self.handle.engine.options.balancer.ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, "the database was opened without a balancer")
        })?;
        balance::round(&self.handle, &options, &|| false)
    }

    /// Takes a checkpoint now, after writing back every page that is dirty. Transactions go on meanwhile.
    pub fn checkpoint(&self) -> Result<CheckpointReport> {
        self.handle.engine.take_checkpoint(Effort::Full)
    }

    /// Takes a backup while transactions go on: nobody waits for it. It is in the target when this returns, and as of
    /// [`BackupInfo::end_lsn`]; what it had written before it failed, or was stopped, is removed. O(database). Until it is done no log is
    /// given back that it has not copied yet, and files of dropped tables stay.
    ///
    /// A partition that is quarantined does not keep the others from being backed up: [`BackupInfo::quarantined`] names it, and it is
    /// quarantined in what is restored, to be repaired from an earlier backup. `Conflict`: a transaction is open that has changed such a
    /// partition, or one is being repaired; end it, or wait for it. `Corrupt`: a page of a partition in use is damaged.
    pub fn backup(
        &self,
        target: &dyn Target,
        options: &BackupOptions,
        progress: &mut dyn FnMut(backup::Progress) -> ControlFlow<()>,
    ) -> Result<BackupInfo> {
        backup::run(&self.handle.engine, target, options, progress)
    }

    /// Repairs a quarantined partition while everything else goes on: builds its file again, from the newest backup in `target` that can be
    /// used and the log that is archived there, or from its own file if that is readable again, and from what was kept of the log; undoes
    /// what had not committed there; and brings it back, with every commit there was. O(partition + log since the backup).
    ///
    /// `InvalidArgument` if it is not quarantined; `Conflict` while a transaction is open that has changed it; `Corrupt` or `NotFound` if
    /// there is no base, or log is missing: then nothing has changed. Tables that were opened before have to be opened again, in a new
    /// transaction or snapshot. Until it is done no file of a dropped table goes.
    pub fn repair(
        &self,
        partition: u32,
        target: Option<&dyn Target>,
        options: &RepairOptions,
        progress: &mut dyn FnMut(backup::Progress) -> ControlFlow<()>,
    ) -> Result<RepairReport> {
        repair::run(&self.handle.engine, PartitionId(partition), target, options, progress)
    }

    /// Brings a range of a table's keys back to what it was at an earlier moment, while everything else goes on: somebody has deleted or
    /// spoiled rows. The rows of then are restored from the backups and the archived log in `target`, beside the database, in `scratch/`; what
    /// differs is put back in one serializable transaction, which others see as a whole or not at all, and which is archived like any other:
    /// a later restore can take it back. Log that is not archived yet is archived first. Rows alone come back: the table's partitions, and
    /// its name, stay as they are. With [`RangeRestoreOptions::dry_run`] it only says what it would do.
    ///
    /// `NotFound`: there is no such table now, or was not then (a table that was renamed is the same, one that was dropped and made again
    /// is not); no backup is of before the moment; the archive ends before it. `InvalidArgument`: the moment is the end, the bounds are
    /// reversed, or all backups are of other databases. `Corrupt`: an object in the target is damaged, or log is missing.
    /// `PartitionUnavailable`: a part of the range is quarantined; repair it first. `Conflict`: somebody changed rows of the range in every
    /// attempt. `AlreadyExists`: there are files in `scratch/` that are not of a restore. `LogFull`: the log has no room for the differences.
    /// `Cancelled` if `progress` breaks. Any error leaves everything as it was, but that `CommitUnknown` may have put back all.
    ///
    /// One range is restored at a time, and the next one waits; so `progress` must not restore another.
    ///
    /// O(partitions that had the range then + log since the backup), in time and disk space; memory is bounded.
    pub fn restore_range(
        &self,
        table: &str,
        range: &KeyRange,
        target: &dyn Target,
        options: &RangeRestoreOptions,
        progress: &mut dyn FnMut(backup::Progress) -> ControlFlow<()>,
    ) -> Result<RangeRestoreReport> {
        restore_range::run(self, table, range, target, options, progress)
    }

    /// Archives all log there is, now: flushes it first, and returns when it is in the target. `InvalidArgument` if the database was
    /// opened without an archive.
    pub fn archive(&self) -> Result<ArchiveReport> {
        self.handle.engine.archive_all()
    }

    /// This moment, as [`crate::backup::RestorePoint`] names it. A database restored to its LSN has every commit that has returned, and none
    /// that begins later; restored to its time likewise, as far as the clock tells moments apart.
    pub fn restore_point(&self) -> Moment {
        let engine = &self.handle.engine;
        // The next record begins at the tail.
        Moment { lsn: engine.log.tail().0 - 1, micros: engine.storage.now_micros() }
    }

    /// With [`Maintenance::Manual`]: does what the background threads would do by now. Returns whether anything was done.
    pub fn maintain(&self) -> Result<bool> {
        self.handle.engine.maintain()
    }

    /// Makes every commit so far durable, whatever its durability.
    pub fn flush(&self) -> Result<()> {
        let engine = &self.handle.engine;
        let flushed = engine.log.flush();
        engine.durable_moved();
        Ok(flushed?)
    }

    /// Proves every invariant of every page of every partition, once nothing trails behind the open any more
    /// ([`Options::trailing_undo_bytes`]). Read-write transactions wait meanwhile; `Conflict` if those that are
    /// open do not end within the lock timeout. Damage is reported in the findings, not as an error; `Cancelled` if `progress` breaks.
    /// O(database).
    pub fn verify(
        &self,
        progress: &mut dyn FnMut(VerifyProgress) -> ControlFlow<()>,
    ) -> Result<VerifyReport> {
        let engine = &self.handle.engine;
        engine.check_resolved()?;
        let pages_total = engine.open_partitions().iter().map(|h| u64::from(h.partition.file_pages())).sum();
        engine.catch_up_all(&mut || match progress(VerifyProgress { pages_done: 0, pages_total }) {
            ControlFlow::Continue(()) => Ok(Duration::MAX),
            ControlFlow::Break(()) => Err(Error::new(ErrorKind::Cancelled, "verification was stopped")),
        })?;
        let timeout = engine.options.lock_timeout;
        let quiet = engine.take_within(
            timeout,
            "transactions to end",
            || engine.timeline.close(Duration::ZERO),
            || engine.timeline.close(timeout),
        );
        let _quiet = quiet.ok_or_else(|| {
            Error::new(ErrorKind::Conflict, format!("waited {timeout:?} for read-write transactions to end"))
        })?;
        verify::run(engine, progress)
    }

    /// Reads every page in use from the disk, whether or not it is in memory, and rebuilds those that are damaged, misplaced, missing or
    /// stale: from memory, from older copies and the log, from backups ([`Options::heal_from`]). Transactions go on meanwhile. What could not
    /// be rebuilt is in the report, not an error; `Cancelled` if `progress` breaks. Unlike [`Database::verify`] it looks at pages one by one,
    /// not at how they fit together. O(database + retained log).
    pub fn scrub(&self, progress: &mut dyn FnMut(ScrubProgress) -> ControlFlow<()>) -> Result<ScrubReport> {
        scrub::run(&self.handle.engine, progress)
    }

    /// Undoes what `open` has left to be undone behind it ([`Options::trailing_undo_bytes`]), beside the background thread: every partition is
    /// ready when this returns. O(records left). `Cancelled` if `progress` breaks: what is undone stays undone. Any other error is that of the
    /// undo, and has poisoned the handle.
    pub fn finish_recovery(
        &self,
        progress: &mut dyn FnMut(RecoveryProgress) -> ControlFlow<()>,
    ) -> Result<()> {
        let engine = &self.handle.engine;
        engine.catch_up_all(&mut || match progress(engine.trailing.progress()) {
            ControlFlow::Continue(()) => Ok(Duration::MAX),
            ControlFlow::Break(()) => {
                Err(Error::new(ErrorKind::Cancelled, "stopped by the progress callback"))
            }
        })
    }

    /// What opening found and did.
    pub fn recovery_report(&self) -> &RecoveryReport {
        self.handle.engine.report.get_or_init(RecoveryReport::default)
    }

    /// Counters. Cheap.
    pub fn stats(&self) -> Stats {
        let engine = &self.handle.engine;
        let pager = engine.pager.stats();
        let log = engine.log.stats();
        let waits = engine.waits.stats();
        let (views, oldest_view) = engine.timeline.live_views();
        let archive = engine.archive.as_ref().map(|archive| archive.stats(engine.log.durable()));
        let archive = archive.unwrap_or_default();
        Stats {
            page_bytes: engine.page_bytes as u64,
            resident_bytes: pager.resident_bytes,
            cache_bytes: engine.options.cache_bytes,
            cache_misses: pager.misses,
            evictions: pager.evictions,
            dirty_pages: pager.dirty_pages,
            pages_written: pager.pages_written,
            pages_stolen: engine.pager_log.steals.load(Ordering::Relaxed),
            commits: engine.timeline.commits(),
            commits_waited: engine.counters.commits_waited.load(Ordering::Relaxed),
            overtaken: engine.counters.overtaken.load(Ordering::Relaxed),
            cancelled: engine.counters.cancelled.load(Ordering::Relaxed),
            log_full: engine.counters.log_full.load(Ordering::Relaxed),
            deadlocks: waits.deadlocks,
            lock_timeouts: waits.timeouts,
            lock_waits: waits.waits,
            lock_waited: Duration::from_nanos(waits.waited_ns),
            waiting_transactions: waits.waiting,
            row_locks: engine.row_locks.len() as u64,
            version_bytes: engine.versions.bytes(),
            version_spilled_bytes: engine.versions.spilled_bytes(),
            version_writers: engine.versions.writers() as u64,
            views: views as u64,
            oldest_view: oldest_view.map(|taken| engine.storage.monotonic().saturating_sub(taken)),
            history_bytes: engine.timeline.with_history(History::bytes) as u64,
            rollbacks: engine.counters.rollbacks.load(Ordering::Relaxed),
            compensation_records: engine.journal.compensations(),
            log_flushes: log.flushes,
            largest_group: log.largest_group,
            log_tail: engine.log.tail().0,
            log_durable: engine.log.durable().0,
            log_used_bytes: engine.log.used_bytes(),
            checkpoints: engine.counters.checkpoints.load(Ordering::Relaxed),
            structure_changes: engine.journal.structure_changes(),
            active_transactions: engine.timeline.active() as u64,
            partitions: engine.open_partitions().len() as u64,
            archive_lsn: archive.lsn,
            archive_lag_bytes: archive.lag_bytes,
            archive_gaps: archive.gaps,
            archive_failures: archive.failures,
            pages_damaged: pager.damaged,
            pages_healed: pager.healed,
            pages_unhealed: pager.unhealed,
            healed_from_copies: engine.healer.counters.copies.load(Ordering::Relaxed),
            healed_from_log: engine.healer.counters.log.load(Ordering::Relaxed),
            healed_from_backups: engine.healer.counters.backups.load(Ordering::Relaxed),
            quarantined_partitions: engine.quarantine.offline(),
            quarantines: engine.counters.quarantines.load(Ordering::Relaxed),
            trailing_partitions: engine.trailing.partitions().len() as u64,
            trailing_losers: engine.trailing.losers() as u64,
            scrubs: engine.counters.scrubs.load(Ordering::Relaxed),
            scrubbed_pages: engine.counters.scrubbed_pages.load(Ordering::Relaxed),
        }
    }

    /// Closes the database: stops background work, writes everything back, takes a last checkpoint, and says whether all that
    /// worked. What trails behind the open still ([`Options::trailing_undo_bytes`]) is left to the next one. `InvalidArgument` while another
    /// clone, a transaction, a snapshot or a [`crate::CommitTicket`] is still there: the database stays open for them, and closes when the
    /// last of them is dropped. `InvalidArgument` also in a thread of the database's own, which may call wakers: another one closes it then.
    pub fn close(self) -> Result<()> {
        let Database { handle, handles } = self;
        let opened = handle.opened.clone();
        drop((handle, handles));
        match opened.and_then(Arc::into_inner) {
            Some(opened) if opened.is_running_this() => Err(Error::invalid(
                "a background thread cannot wait for its own end; another thread closes the database",
            )),
            Some(mut opened) => opened.shut_down(),
            None => Err(Error::new(
                ErrorKind::InvalidArgument,
                "other handles, transactions, snapshots or commit tickets are still there; the database closes when the last is dropped",
            )),
        }
    }
}
