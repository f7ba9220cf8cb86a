//! How a database is opened and how a transaction is run.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hamal_storage::Storage;

use crate::report::RecoveryProgress;
use crate::{Database, Error, Result};

/// When a commit returns, and what a crash can take back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// A commit returns once its log record is on the disk. Nothing acknowledged is ever lost.
    #[default]
    Sync,
    /// A commit returns at once; the log reaches the disk within this interval. A crash loses at most the commits of the
    /// last interval, newest first, never half of one.
    Periodic(Duration),
    /// A commit returns at once; the log reaches the disk when something else needs it to. A crash loses the newest
    /// commits, never half of one.
    Relaxed,
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
    pub(crate) lock_timeout: Duration,
    pub(crate) maintenance: Maintenance,
    pub(crate) on_recovery: Option<ProgressCallback>,
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
            lock_timeout: Duration::from_secs(10),
            maintenance: Maintenance::default(),
            on_recovery: None,
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
            .field("lock_timeout", &self.lock_timeout)
            .field("maintenance", &self.maintenance)
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

    /// Most bytes of pages kept in memory. Default 256 MiB; at least 1 MiB.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Size of the log's buffer, bytes, a power of two. Default 8 MiB; at least 16 pages.
    #[must_use]
    pub fn log_buffer_bytes(mut self, bytes: usize) -> Self {
        self.log_buffer_bytes = bytes;
        self
    }

    /// *Creation.* Size of one log segment, bytes. Default 64 MiB.
    #[must_use]
    pub fn log_segment_bytes(mut self, bytes: u64) -> Self {
        self.log_segment_bytes = bytes;
        self
    }

    /// The most log a database may need at once, bytes; beyond it writers get `LogFull`. Default 1 GiB.
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

    /// Longest wait for a lock before `Conflict`. Default 10 s.
    #[must_use]
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }

    /// Who does checkpoints, write-back and vacuum. Default: background threads.
    #[must_use]
    pub fn maintenance(mut self, maintenance: Maintenance) -> Self {
        self.maintenance = maintenance;
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

    /// Opens the database in this directory, recovering it if it was not closed.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Database> {
        Database::open_path(path.as_ref(), self)
    }

    /// Opens the database on any [`Storage`]: the simulated disk, first of all.
    pub fn open_on(self, storage: Arc<dyn Storage>) -> Result<Database> {
        Database::open_storage(storage, self)
    }

    /// Settings that cannot work are refused before anything is touched.
    pub(crate) fn check(&self) -> Result<()> {
        if !matches!(self.page_bytes, 4096 | 8192 | 16384 | 32768 | 65536) {
            return Err(Error::invalid(format!(
                "page size {} is not one of 4096, 8192, 16384, 32768 and 65536 bytes",
                self.page_bytes
            )));
        }
        if !self.log_buffer_bytes.is_power_of_two() || self.log_buffer_bytes < 16 * self.page_bytes {
            return Err(Error::invalid(format!(
                "a log buffer of {} bytes is not a power of two of at least 16 pages ({} bytes)",
                self.log_buffer_bytes,
                16 * self.page_bytes
            )));
        }
        if !self.log_segment_bytes.is_multiple_of(4096) || self.log_segment_bytes < 64 << 10 {
            return Err(Error::invalid(format!(
                "a log segment of {} bytes is not a multiple of 4096 of at least 64 KiB",
                self.log_segment_bytes
            )));
        }
        let least_log_bytes = 4 * self.log_buffer_bytes as u64;
        if self.max_log_bytes < least_log_bytes {
            return Err(Error::invalid(format!(
                "a log limit of {} bytes is below four times the log buffer ({least_log_bytes} bytes)",
                self.max_log_bytes
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
}
