//! How a database is opened and how a transaction is run.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::{ControlFlow, RangeInclusive};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hamal_pager::PartitionId;
use hamal_storage::Storage;

use crate::backup::Target;
use crate::balance::BalancerOptions;
use crate::report::RecoveryProgress;
use crate::{Database, Error, Result};

/// The least the page cache holds, bytes and pages.
const MIN_CACHE_BYTES: u64 = 1 << 20;
const MIN_CACHE_PAGES: u64 = 64;
/// The least the log's buffer holds, pages: any record fits.
const MIN_LOG_BUFFER_PAGES: usize = 16;
/// The most the log's buffer can have, bytes.
const MAX_LOG_BUFFER_BYTES: usize = 256 << 20;
/// What a log segment can have, bytes.
pub(crate) const LOG_SEGMENT_BYTES: RangeInclusive<u64> = 64 << 10..=1 << 40;
/// The highest limit the log takes, bytes.
pub(crate) const MAX_LOG_BYTES: u64 = 1 << 60;

/// When a commit returns, and what a crash can take back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// A commit returns once its log record is on the disk. Nothing acknowledged is ever lost.
    #[default]
    Sync,
    /// A commit returns at once; the log is flushed in the background when it has waited for this interval, or sooner for another reason. A
    /// crash loses at most the commits of the interval and of the time until the flush that is due then is done: newest first,
    /// never half of one. With [`Maintenance::Manual`] what is due is flushed by [`crate::Database::maintain`].
    Periodic(Duration),
    /// A commit returns at once; the log reaches the disk when something else needs it to. A crash loses the newest
    /// commits, never half of one.
    Relaxed,
}

/// What a read-write transaction is protected from. Either way it reads the committed state as of its start, and its own writes;
/// it never waits for readers, nor they for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isolation {
    /// As if all transactions had run one after the other, in the order of their commits. A commit whose reads have been overtaken
    /// returns `Conflict`.
    #[default]
    Serializable,
    /// Of two transactions that overlap and write the same key, one returns `Conflict` (first committer wins). What is only read is
    /// not protected: two transactions that each read what the other writes both commit (write skew).
    Snapshot,
}

/// What to do about a database that is, or is not, there yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpenMode {
    /// Open it, or make it where the directory is missing or empty.
    #[default]
    OpenOrCreate,
    /// Open it; `NotADatabase` where there is none.
    Open,
    /// Make it; `AlreadyExists` where there is one.
    Create,
}

/// Who does checkpoints, write-back and vacuum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Maintenance {
    /// Background threads of the database.
    #[default]
    Background,
    /// Nobody, until [`Database::maintain`] is called: for programs that need every I/O in one thread, simulators first.
    Manual,
}

/// How pages on the disk are looked at in the background, before somebody needs them ([`Database::scrub`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scrub {
    /// Not at all: a damaged page is found when it is read.
    Off,
    /// All of them, spread over this time, and then again. At most as fast as one read after the other.
    Every(Duration),
}

impl Default for Scrub {
    fn default() -> Scrub {
        Scrub::Every(Duration::from_hours(7 * 24))
    }
}

/// The most threads that may be asked to recover.
const MAX_RECOVERY_WORKERS: usize = 256;

/// A callback that hears of recovery's progress and can stop it.
pub(crate) type ProgressCallback = Arc<dyn Fn(&RecoveryProgress) -> ControlFlow<()> + Send + Sync>;

/// How to open a database. Every setting has a default that suits most; settings marked *creation* are fixed when the database is
/// made and ignored afterwards.
#[derive(Clone)]
pub struct Options {
    pub(crate) mode: OpenMode,
    pub(crate) page_bytes: usize,
    pub(crate) cache_bytes: u64,
    pub(crate) log_buffer_bytes: usize,
    pub(crate) log_segment_bytes: u64,
    pub(crate) max_log_bytes: u64,
    pub(crate) checkpoint_interval: Duration,
    pub(crate) checkpoint_log_bytes: u64,
    pub(crate) durability: Durability,
    pub(crate) isolation: Isolation,
    pub(crate) lock_timeout: Duration,
    pub(crate) version_bytes: u64,
    pub(crate) maintenance: Maintenance,
    pub(crate) balancer: Option<BalancerOptions>,
    pub(crate) recovery_workers: Option<usize>,
    pub(crate) trailing_undo_bytes: u64,
    pub(crate) on_recovery: Option<ProgressCallback>,
    pub(crate) archive: Option<Arc<dyn Target>>,
    pub(crate) archive_interval: Duration,
    pub(crate) archive_hold_bytes: Option<u64>,
    pub(crate) keep_log_bytes: u64,
    pub(crate) self_repair: bool,
    pub(crate) heal_from: Option<Arc<dyn Target>>,
    pub(crate) scrub: Scrub,
    /// Of a database that has been restored in part ([`crate::backup::aside`]): the partitions there are. Nothing of the others is there.
    pub(crate) only: Option<Arc<BTreeSet<PartitionId>>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            mode: OpenMode::default(),
            page_bytes: 8192,
            cache_bytes: 256 << 20,
            log_buffer_bytes: 8 << 20,
            log_segment_bytes: 64 << 20,
            max_log_bytes: 1 << 30,
            checkpoint_interval: Duration::from_mins(1),
            checkpoint_log_bytes: 128 << 20,
            durability: Durability::default(),
            isolation: Isolation::default(),
            lock_timeout: Duration::from_secs(10),
            version_bytes: 64 << 20,
            maintenance: Maintenance::default(),
            balancer: Some(BalancerOptions::default()),
            recovery_workers: None,
            trailing_undo_bytes: 4 << 20,
            on_recovery: None,
            archive: None,
            archive_interval: Duration::from_secs(10),
            archive_hold_bytes: None,
            keep_log_bytes: 0,
            self_repair: true,
            heal_from: None,
            scrub: Scrub::default(),
            only: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("mode", &self.mode)
            .field("page_bytes", &self.page_bytes)
            .field("cache_bytes", &self.cache_bytes)
            .field("log_buffer_bytes", &self.log_buffer_bytes)
            .field("log_segment_bytes", &self.log_segment_bytes)
            .field("max_log_bytes", &self.max_log_bytes)
            .field("checkpoint_interval", &self.checkpoint_interval)
            .field("checkpoint_log_bytes", &self.checkpoint_log_bytes)
            .field("durability", &self.durability)
            .field("isolation", &self.isolation)
            .field("lock_timeout", &self.lock_timeout)
            .field("version_bytes", &self.version_bytes)
            .field("maintenance", &self.maintenance)
            .field("balancer", &self.balancer)
            .field("recovery_workers", &self.recovery_workers)
            .field("trailing_undo_bytes", &self.trailing_undo_bytes)
            .field("archive", &self.archive)
            .field("archive_interval", &self.archive_interval)
            .field("archive_hold_bytes", &self.archive_hold_bytes)
            .field("keep_log_bytes", &self.keep_log_bytes)
            .field("self_repair", &self.self_repair)
            .field("heal_from", &self.heal_from)
            .field("scrub", &self.scrub)
            .field("only", &self.only)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        Options::default()
    }

    /// Whether the database may, or must, be there already. Default: open or create.
    #[must_use]
    pub fn mode(mut self, mode: OpenMode) -> Self {
        self.mode = mode;
        self
    }

    /// *Creation.* Page size, bytes: 4096, 8192 (default), 16384, 32768 or 65536.
    #[must_use]
    pub fn page_bytes(mut self, bytes: usize) -> Self {
        self.page_bytes = bytes;
        self
    }

    /// Most bytes of pages kept in memory. Default 256 MiB; at least 1 MiB and 64 pages.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Size of the log's buffer, bytes, a power of two. Default 8 MiB; at least 16 pages, at most 256 MiB.
    #[must_use]
    pub fn log_buffer_bytes(mut self, bytes: usize) -> Self {
        self.log_buffer_bytes = bytes;
        self
    }

    /// *Creation.* Size of one log segment, bytes, a multiple of 4096. Default 64 MiB; at least 64 KiB, at most 1 TiB.
    #[must_use]
    pub fn log_segment_bytes(mut self, bytes: u64) -> Self {
        self.log_segment_bytes = bytes;
        self
    }

    /// The most log a database may need at once, bytes; beyond it writers get `LogFull`. Default 1 GiB; at least four times the log
    /// buffer, at most 2^60.
    #[must_use]
    pub fn max_log_bytes(mut self, bytes: u64) -> Self {
        self.max_log_bytes = bytes;
        self
    }

    /// Longest time between checkpoints. Default 60 s.
    #[must_use]
    pub fn checkpoint_interval(mut self, interval: Duration) -> Self {
        self.checkpoint_interval = interval;
        self
    }

    /// Most log between checkpoints, and so about what a recovery replays, bytes. Default 128 MiB.
    #[must_use]
    pub fn checkpoint_log_bytes(mut self, bytes: u64) -> Self {
        self.checkpoint_log_bytes = bytes;
        self
    }

    /// Durability of transactions that do not choose their own. Default [`Durability::Sync`].
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Isolation of transactions that do not choose their own. Default [`Isolation::Serializable`].
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Longest that one statement waits for locks before `Conflict`, of transactions that do not choose their own. Default 10 s.
    #[must_use]
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }

    /// About how much memory before-images take, bytes: older values of rows, for transactions and snapshots that do not see the newer
    /// ones. Beyond it they go to temporary files. For a moment it may be twice as much, as buffers double. Default 64 MiB.
    #[must_use]
    pub fn version_bytes(mut self, bytes: u64) -> Self {
        self.version_bytes = bytes;
        self
    }

    /// Who does checkpoints, write-back and vacuum. Default: background threads.
    #[must_use]
    pub fn maintenance(mut self, maintenance: Maintenance) -> Self {
        self.maintenance = maintenance;
        self
    }

    /// When partitions are split and merged without being asked for ([`crate::Database::split`] says what that means to writers); `None`:
    /// never. Default: [`BalancerOptions::default`], by a background thread; with [`Maintenance::Manual`] by
    /// [`crate::Database::balance`] only.
    #[must_use]
    pub fn balancer(mut self, options: Option<BalancerOptions>) -> Self {
        self.balancer = options;
        self
    }

    /// How many threads redo and undo when the database was not closed, beside the one that reads the log; 1: that one does
    /// it all, so that the same files give the same I/O in the same order. 1 to 256. Default: as many as the machine runs at once, at
    /// most 8, and 1 where there is little to do; 1 with [`Maintenance::Manual`].
    #[must_use]
    pub fn recovery_workers(mut self, workers: usize) -> Self {
        self.recovery_workers = Some(workers);
        self
    }

    /// When a transaction that had not committed is rolled back after the database is open: if that takes at least so much log, bytes. `open`
    /// then returns without waiting for that, and the partitions that it has not changed serve at once; whoever reads or writes a row of
    /// one that it has changed first helps to undo there: a snapshot to the end, a transaction for its lock timeout at each of them, behind
    /// which it gets `Conflict`. A background thread undoes the rest; with [`Maintenance::Manual`] [`crate::Database::maintain`] does some of
    /// it at each call. [`crate::Database::finish_recovery`] does all of it at once, [`crate::Stats::trailing_losers`] says what is left.
    /// Default 4 MiB: some ten thousand rows; [`u64::MAX`]: all is undone when `open` returns.
    ///
    /// As long as something is left, the log is kept from where that begins.
    ///
    /// One that has created, dropped or reshaped a table, or has changed a quarantined partition, is never left to later; nor are
    /// those whose undo takes more than three quarters of the log there is still room for.
    #[must_use]
    pub fn trailing_undo_bytes(mut self, bytes: u64) -> Self {
        self.trailing_undo_bytes = bytes;
        self
    }

    /// Hears of recovery's progress while the database opens; `Break` stops it with `Cancelled` (nothing is lost: the next
    /// open starts recovery again).
    #[must_use]
    pub fn on_recovery(
        mut self,
        callback: impl Fn(&RecoveryProgress) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> Self {
        self.on_recovery = Some(Arc::new(callback));
        self
    }

    /// Archives the log to this target while the database is open: with a backup in the same target, [`crate::backup::restore`] can bring
    /// back any moment since. The log is kept until it is archived, so open the database with the same archive every time. Default: none.
    #[must_use]
    pub fn archive(mut self, target: Arc<dyn Target>) -> Self {
        self.archive = Some(target);
        self
    }

    /// How long log waits at most before it is archived, where there is less than 16 MiB of it: what the loss of the database's disk can
    /// take. Default 10 s.
    #[must_use]
    pub fn archive_interval(mut self, interval: Duration) -> Self {
        self.archive_interval = interval;
        self
    }

    /// The most log that is kept for an archive that does not get it, bytes. Beyond it a checkpoint gives up what recovery does not need:
    /// the archive has a gap then ([`crate::Stats::archive_gaps`]), and moments behind it can be restored from later backups only. Default
    /// `None`: all is kept, and writers get `LogFull` once that is [`Options::max_log_bytes`].
    #[must_use]
    pub fn archive_hold_bytes(mut self, bytes: Option<u64>) -> Self {
        self.archive_hold_bytes = bytes;
        self
    }

    /// Log that is kept though recovery does not need it, bytes, at most a quarter of [`Options::max_log_bytes`]: from it alone a damaged page
    /// can be rebuilt that was made, or written over, so long ago, and a scrub can tell by it that a page is stale. Default 0: what happens to
    /// be there since the last two checkpoints.
    #[must_use]
    pub fn keep_log_bytes(mut self, bytes: u64) -> Self {
        self.keep_log_bytes = bytes;
        self
    }

    pub(crate) fn kept_log_bytes(&self) -> u64 {
        self.keep_log_bytes.min(self.max_log_bytes / 4)
    }

    /// Whether a page that is found to be damaged or stale is rebuilt at once, if that can be done, and the work goes on. Otherwise its
    /// partition is quarantined, until [`Database::repair`]: for who wants to look at the damage first. Default: true.
    #[must_use]
    pub fn self_repair(mut self, self_repair: bool) -> Self {
        self.self_repair = self_repair;
        self
    }

    /// Where backups of this database are, with its archived log: what a damaged page is rebuilt from that the retained log alone does not
    /// give. Default: the archive ([`Options::archive`]), if there is one.
    #[must_use]
    pub fn heal_from(mut self, target: Arc<dyn Target>) -> Self {
        self.heal_from = Some(target);
        self
    }

    /// Whether pages are scrubbed in the background, and how fast. Default: all within a week, again and again, beginning anew at every
    /// open. With [`Maintenance::Manual`] nothing is, until [`Database::scrub`] is called.
    #[must_use]
    pub fn scrub(mut self, scrub: Scrub) -> Self {
        self.scrub = scrub;
        self
    }

    /// Opens the database in this directory, recovering it if it was not closed.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Database> {
        Database::open_path(path.as_ref(), self)
    }

    /// Opens the database on any [`Storage`]: the simulated disk, first of all.
    pub fn open_on(self, storage: Arc<dyn Storage>) -> Result<Database> {
        Database::open_storage(storage, self)
    }

    /// The least a page cache with pages of this size can have.
    pub(crate) fn least_cache_bytes(page_bytes: usize) -> u64 {
        MIN_CACHE_BYTES.max(MIN_CACHE_PAGES * page_bytes as u64)
    }

    /// Whether the partition is not there, for only a part of the database has been restored.
    pub(crate) fn leaves_out(&self, partition: PartitionId) -> bool {
        self.only.as_ref().is_some_and(|only| !only.contains(&partition))
    }

    /// Settings that cannot work with pages of `page_bytes` (the database's own, where there is one) are refused before anything is
    /// touched. As strict as the log and the page cache are, which look only when it is too late for that.
    pub(crate) fn check(&self, page_bytes: usize) -> Result<()> {
        if !matches!(self.page_bytes, 4096 | 8192 | 16384 | 32768 | 65536) {
            return Err(Error::invalid(format!(
                "page size {} is not one of 4096, 8192, 16384, 32768 and 65536 bytes",
                self.page_bytes
            )));
        }
        let least_cache_bytes = Options::least_cache_bytes(page_bytes);
        if self.cache_bytes < least_cache_bytes {
            return Err(Error::invalid(format!(
                "a cache of {} bytes is below {least_cache_bytes} bytes, the least with pages of {page_bytes} bytes",
                self.cache_bytes
            )));
        }
        let least_buffer_bytes = MIN_LOG_BUFFER_PAGES * page_bytes;
        if !self.log_buffer_bytes.is_power_of_two()
            || !(least_buffer_bytes..=MAX_LOG_BUFFER_BYTES).contains(&self.log_buffer_bytes)
        {
            return Err(Error::invalid(format!(
                "a log buffer of {} bytes is not a power of two from 16 pages ({least_buffer_bytes} bytes) to 256 MiB",
                self.log_buffer_bytes
            )));
        }
        if !self.log_segment_bytes.is_multiple_of(4096)
            || !LOG_SEGMENT_BYTES.contains(&self.log_segment_bytes)
        {
            return Err(Error::invalid(format!(
                "a log segment of {} bytes is not a multiple of 4096 from 64 KiB to 1 TiB",
                self.log_segment_bytes
            )));
        }
        let least_log_bytes = 4 * self.log_buffer_bytes as u64;
        if !(least_log_bytes..=MAX_LOG_BYTES).contains(&self.max_log_bytes) {
            return Err(Error::invalid(format!(
                "a log limit of {} bytes is not from four times the log buffer ({least_log_bytes} bytes) to 2^60",
                self.max_log_bytes
            )));
        }
        if self.balancer.is_some_and(|balancer| balancer.interval < Duration::from_millis(1)) {
            return Err(Error::invalid("the balancer's interval is below a millisecond"));
        }
        if let Some(workers) = self.recovery_workers
            && !(1..=MAX_RECOVERY_WORKERS).contains(&workers)
        {
            return Err(Error::invalid(format!(
                "{workers} threads for recovery: it must be 1 to {MAX_RECOVERY_WORKERS}"
            )));
        }
        Ok(())
    }
}

/// How one transaction is run.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TransactionOptions {
    /// Its durability; `None`: the database's.
    pub durability: Option<Durability>,
    /// Its isolation; `None`: the database's.
    pub isolation: Option<Isolation>,
    /// Longest wait for a lock before `Conflict`; `None`: the database's.
    pub lock_timeout: Option<Duration>,
}

impl TransactionOptions {
    /// The database's defaults.
    pub fn new() -> Self {
        TransactionOptions::default()
    }

    /// Chooses the durability.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Chooses the isolation.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = Some(isolation);
        self
    }

    /// Chooses how long one statement waits for locks; zero: never.
    #[must_use]
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = Some(timeout);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hamal_storage::sim::{CrashMode, SimStorage};

    use super::*;
    use crate::ErrorKind;

    fn small(page_bytes: usize) -> Options {
        Options::new().page_bytes(page_bytes).cache_bytes(8 << 20).maintenance(Maintenance::Manual)
    }

    /// Every file and its bytes, the lock file too.
    fn files(disk: &SimStorage) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> =
            disk.files().into_iter().map(|name| (name.clone(), disk.read_file(&name).unwrap())).collect();
        files.sort();
        files
    }

    #[test]
    fn options_that_cannot_work_are_refused_untouched() {
        let made = SimStorage::new(1);
        let db = small(65536).open_on(Arc::new(made.clone())).unwrap();
        db.transact(|tx| tx.open_bytes_table("t")?.put(b"k", b"v")).unwrap();
        db.flush().unwrap();
        // As after a crash: an open that went on would have something to change.
        let made = made.crash_image(CrashMode::LoseAll, 1);
        let refused = |disk: &SimStorage, options: Options| {
            let before = files(disk);
            let error = options.open_on(Arc::new(disk.clone())).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            assert!(files(disk) == before, "{error}");
        };
        for bad in [
            small(65536).cache_bytes(64 * 65536 - 1),
            small(4096).cache_bytes((1 << 20) - 1),
            small(4096).page_bytes(5000),
            small(4096).log_buffer_bytes(512 << 20).max_log_bytes(4 << 30),
            small(4096).log_buffer_bytes(1 << 63).max_log_bytes(u64::MAX),
            small(4096).log_buffer_bytes(3 << 20),
            small(65536).log_buffer_bytes(512 << 10),
            small(4096).log_segment_bytes((1 << 40) + 4096),
            small(4096).max_log_bytes((1 << 60) + 1),
            small(4096).max_log_bytes(1 << 20),
            small(4096).recovery_workers(0),
            small(4096).recovery_workers(257),
            small(4096).balancer(Some(BalancerOptions::new().interval(Duration::ZERO))),
        ] {
            refused(&SimStorage::new(2), bad.clone());
            refused(&made, bad);
        }
        // It is the database's pages that count, once there is one.
        refused(&made, small(4096).cache_bytes(2 << 20));
        refused(&made, small(4096).log_buffer_bytes(512 << 10));
        let db = small(65536).open_on(Arc::new(made)).unwrap();
        assert_eq!(db.tables().unwrap().len(), 1);
        let made = SimStorage::new(3);
        small(4096).open_on(Arc::new(made.clone())).unwrap().close().unwrap();
        let frugal = small(65536).cache_bytes(1 << 20).log_buffer_bytes(64 << 10);
        frugal.open_on(Arc::new(made)).unwrap().close().unwrap();
    }
}
