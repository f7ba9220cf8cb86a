//! What the engine tells about its own work.

use std::time::Duration;

/// Counters of an open database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Page size, bytes.
    pub page_bytes: u64,
    /// Pages in memory, bytes.
    pub resident_bytes: u64,
    /// Cache budget, bytes.
    pub cache_bytes: u64,
    /// Page fixes that read a file.
    pub cache_misses: u64,
    /// Pages evicted.
    pub evictions: u64,
    /// Dirty pages now.
    pub dirty_pages: u64,
    /// Pages written back.
    pub pages_written: u64,
    /// Pages written back while a transaction that changed them was still active.
    pub pages_stolen: u64,
    /// Committed read-write transactions.
    pub commits: u64,
    /// Of these, the ones that were not done before the log was on the disk: with [`crate::Durability::Sync`], or waited for with
    /// [`crate::CommitTicket::wait`]. Its growth over that of `log_flushes` is the mean number of commits that shared a
    /// flush: at least, for some flushes are not for a commit (a page to be evicted, a checkpoint, a full buffer).
    pub commits_waited: u64,
    /// Rolled back transactions that had written, whatever the reason.
    pub rollbacks: u64,
    /// Times a transaction could not be serialized: what it had read, or was to write, had been changed by a commit since its start, or
    /// the table dropped, split or merged.
    pub overtaken: u64,
    /// Transactions that had been cancelled when they were rolled back ([`crate::Canceller`]).
    pub cancelled: u64,
    /// Statements that failed because the log was full, also after a checkpoint.
    pub log_full: u64,
    /// Waits for a lock that were ended to break a deadlock.
    pub deadlocks: u64,
    /// Statements that failed because the lock they wanted was not free in time, also where the time is 0.
    pub lock_timeouts: u64,
    /// Waits for a lock.
    pub lock_waits: u64,
    /// Time spent in them, all transactions together.
    pub lock_waited: Duration,
    /// Transactions that wait for a lock now.
    pub waiting_transactions: u64,
    /// Row locks now that are not shown by the row itself: `get_for_update`, and writes taken back by a savepoint.
    pub row_locks: u64,
    /// Memory of before-images, bytes; what an active transaction has kept is counted in steps of 8 KiB.
    pub version_bytes: u64,
    /// Before-images moved to temporary files since the database was opened, bytes.
    pub version_spilled_bytes: u64,
    /// Transactions whose before-images are kept, for views that do not see them.
    pub version_writers: u64,
    /// Live views: snapshots, and read-write transactions.
    pub views: u64,
    /// Age of the oldest view; `None`: there is none.
    pub oldest_view: Option<Duration>,
    /// Memory of what recent commits wrote, kept for the validation of others, bytes.
    pub history_bytes: u64,
    /// Compensation records written (rollback, savepoints, recovery).
    pub compensation_records: u64,
    /// Log flushes.
    pub log_flushes: u64,
    /// Most threads that one flush has served since the database was opened: who led it, and who had waited for it, for a commit or for
    /// something else.
    pub largest_group: u64,
    /// Where the log ends.
    pub log_tail: u64,
    /// Below this the log is on the disk.
    pub log_durable: u64,
    /// Log in use, bytes.
    pub log_used_bytes: u64,
    /// Checkpoints taken.
    pub checkpoints: u64,
    /// Structure changes: splits, merges, purges, pages allocated and freed.
    pub structure_changes: u64,
    /// Active read-write transactions, and `trailing_losers`.
    pub active_transactions: u64,
    /// Partitions that are open: one for each range of each table, and the catalog's.
    pub partitions: u64,
    /// Below this the log is archived, or was given back before this open; 0: there is no archive.
    pub archive_lsn: u64,
    /// Durable log that is not archived yet, bytes; it is kept. 0 without an archive.
    pub archive_lag_bytes: u64,
    /// Times that log was given up before it was archived ([`crate::Options::archive_hold_bytes`]).
    pub archive_gaps: u64,
    /// Times that the target failed.
    pub archive_failures: u64,
    /// Pages found damaged, misplaced, missing or stale on the disk, when they were read or scrubbed.
    pub pages_damaged: u64,
    /// Bad pages rebuilt and written again.
    pub pages_healed: u64,
    /// Attempts to rebuild a page that failed: whoever wanted it got `Corrupt`.
    pub pages_unhealed: u64,
    /// Pages rebuilt from an older copy of them and the log.
    pub healed_from_copies: u64,
    /// Pages rebuilt from the log alone.
    pub healed_from_log: u64,
    /// Pages rebuilt from a backup, or the archived log.
    pub healed_from_backups: u64,
    /// Partitions that are quarantined now: their rows cannot be used until they are repaired. [`crate::Database::partitions`] says which.
    pub quarantined_partitions: u64,
    /// Times that a partition was quarantined.
    pub quarantines: u64,
    /// Partitions in which something is left to be undone behind the open ([`crate::Options::trailing_undo_bytes`]).
    pub trailing_partitions: u64,
    /// Transactions, not committed when the database was opened, that are left to be rolled back.
    pub trailing_losers: u64,
    /// Scrubs that have seen every page.
    pub scrubs: u64,
    /// Pages that scrubs have looked at.
    pub scrubbed_pages: u64,
}

/// What one checkpoint did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckpointReport {
    /// LSN of its begin record.
    pub begin_lsn: u64,
    /// LSN of its end record.
    pub end_lsn: u64,
    /// Dirty pages in its table.
    pub dirty_pages: u64,
    /// Active transactions in its table.
    pub active_transactions: u64,
    /// Where redo would start.
    pub redo_lsn: u64,
    /// Pages written back beforehand.
    pub pages_written: u64,
    /// Log given back, bytes.
    pub log_freed_bytes: u64,
}

/// The pass recovery is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecoveryPass {
    /// Reading the log from the last checkpoint, and repeating history as far as memory allows.
    Analysis,
    /// Repeating history: what is left of it.
    Redo,
    /// Rolling back losers.
    Undo,
}

/// Progress of a running recovery.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RecoveryProgress {
    /// Which pass.
    pub pass: RecoveryPass,
    /// Log bytes (undo: records) done in this pass.
    pub done: u64,
    /// Log bytes (undo: records) this pass has, as far as known.
    pub total: u64,
}

/// What one pass of recovery did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PassReport {
    /// Records read.
    pub records: u64,
    /// Records (redo: page changes) applied. Also those of pages that the first pass has redone in memory, until the log said that they had been
    /// written or freed since.
    pub applied: u64,
    /// Distinct pages touched.
    pub pages: u64,
    /// Log bytes read.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// What recovery found and did for one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionReport {
    /// Which partition.
    pub partition: u32,
    /// Pages in its dirty page table after analysis.
    pub dirty_pages: u64,
    /// Page changes redone, as [`PassReport::applied`].
    pub redone: u64,
    /// Page changes found on the page already, likewise.
    pub skipped: u64,
    /// Log that these page changes take, bytes.
    pub redo_bytes: u64,
    /// Records undone when `open` returned.
    pub undone: u64,
    /// Torn pages put back from the doublewrite area.
    pub restored_pages: u64,
    /// When nothing of it was left to redo or undo, from the beginning of the open; `None`: something is left to be undone behind it
    /// ([`crate::Options::trailing_undo_bytes`]). A partition that is not in the report was ready once analysis had ended.
    pub ready: Option<Duration>,
}

/// What opening found and did. All LSNs are byte offsets in the log stream; 0 is never.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The database was closed cleanly: there was nothing to redo or undo.
    pub clean: bool,
    /// The database was made by this open.
    pub created: bool,
    /// BEGIN record of the checkpoint analysis started from.
    pub checkpoint_lsn: u64,
    /// Where redo started (0: nothing to redo).
    pub redo_lsn: u64,
    /// Where the log ended.
    pub end_lsn: u64,
    /// Bytes of a torn record were found behind the end, and cut.
    pub torn_tail: bool,
    /// Transactions that had not committed.
    pub losers: u64,
    /// Of these, the ones that were left to be rolled back behind the open ([`crate::Options::trailing_undo_bytes`]).
    pub trailing_losers: u64,
    /// First LSN of the oldest loser (0: none).
    pub oldest_loser_lsn: u64,
    /// Transactions seen committed.
    pub winners: u64,
    /// Analysis, and redo of [`RecoveryReport::first_pass_pages`].
    pub analysis: PassReport,
    /// Redo: all of it, but that `elapsed` is the time of the redo pass alone.
    pub redo: PassReport,
    /// Pages redone while analysis read the log; the redo pass has done the others.
    pub first_pass_pages: u64,
    /// Threads that redid (0: there was nothing to redo). 1: the one that read the log.
    pub redo_workers: u64,
    /// Undo, as far as `open` has done it.
    pub undo: PassReport,
    /// Threads that undid (0: there was nothing to undo). 1: the opening one.
    pub undo_workers: u64,
    /// Per partition that had something to redo or undo, by id.
    pub partitions: Vec<PartitionReport>,
    /// The whole open, the checkpoint at its end included.
    pub elapsed: Duration,
    /// The log's incarnation from now on.
    pub incarnation: u32,
}

/// Progress of a running verification.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct VerifyProgress {
    /// Pages done.
    pub pages_done: u64,
    /// Pages to do.
    pub pages_total: u64,
}

/// One thing that verification found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The file, relative to the database directory.
    pub file: String,
    /// The page, where it is about one.
    pub page: Option<u32>,
    /// What is wrong: expected and found.
    pub what: String,
}

/// What verification saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Tables.
    pub tables: u64,
    /// Partitions.
    pub partitions: u64,
    /// Pages read and checked.
    pub pages: u64,
    /// Free pages.
    pub free_pages: u64,
    /// Rows.
    pub rows: u64,
    /// Ghosts.
    pub ghosts: u64,
    /// Overflow values.
    pub overflow_values: u64,
    /// Greatest height of a tree.
    pub height: u64,
    /// Everything that is wrong; empty means sound.
    pub findings: Vec<Finding>,
}
