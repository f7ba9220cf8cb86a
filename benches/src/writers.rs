//! Many writers on one database: one face for engines whose transactions run beside each other and for those that take turns.
//!
//! I1. One transaction of a workload is one commit of the engine. Who takes the same work in larger transactions is measured by
//!     `peers`; here that would measure the application's batching.
//! I2. `Failure::Conflict` is what the engine's documentation asks an application to answer by running the transaction again;
//!     every other error ends the benchmark.
//! I3. Each engine is set up as its documentation advises; the page that says so is named at the head of its file.

pub mod cell;
mod fjall;
mod hamal;
mod lmdb;
pub mod machine;
mod redb;
pub mod report;
#[cfg(feature = "rocksdb")]
mod rocksdb;
mod sqlite;
pub mod workload;

use std::path::Path;

use ::hamal::Isolation;

use crate::peer::{Commit, Outcome};

/// Why a transaction did not commit.
#[derive(Debug)]
pub enum Failure {
    /// It lost against another one: run it again (I2).
    Conflict,
    /// Something is wrong.
    Fatal(Box<dyn std::error::Error + Send + Sync>),
}

/// What a statement of a transaction returns.
pub type Step<T> = Result<T, Failure>;

/// For errors that running the transaction again does not mend.
fn fatal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::Fatal(error.into())
}

/// An open read-write transaction on the one table.
pub trait Transaction {
    /// Shows the value of `key` to `look`; `false` if there is none.
    fn read(&mut self, key: &[u8], look: &mut dyn FnMut(&[u8])) -> Step<bool>;

    /// The same, where the transaction will write this row: for engines that have a call for it.
    fn read_to_write(&mut self, key: &[u8], look: &mut dyn FnMut(&[u8])) -> Step<bool> {
        self.read(key, look)
    }

    /// Writes a row, new or not.
    fn write(&mut self, key: &[u8], value: &[u8]) -> Step<()>;
}

/// What runs inside a transaction; it may run more than once.
pub type Work<'a> = dyn FnMut(&mut dyn Transaction) -> Step<()> + 'a;

/// One thread's access to a database.
pub trait Session {
    /// Runs `work` in a transaction and commits it, or rolls it back if it fails. Does not try again.
    fn run(&mut self, work: &mut Work<'_>) -> Step<()>;
}

/// What an engine says about its log.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogCounters {
    /// Flushes so far.
    pub flushes: u64,
    /// Commits so far.
    pub commits: u64,
}

/// An open database with one table.
pub trait Store: Sync {
    /// Access for the calling thread.
    fn session(&self) -> Outcome<Box<dyn Session + '_>>;

    /// Shows every row of one consistent view to `look`.
    fn scan(&self, look: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()>;

    /// Does now what it would otherwise do in the background, so that it does not disturb the next engine's turn.
    fn settle(&self) -> Outcome<()>;

    /// What it says about its log, if it does.
    fn log_counters(&self) -> Option<LogCounters> {
        None
    }
}

/// How a database is opened.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Memory for pages, bytes. LMDB has no cache of its own.
    pub cache_bytes: u64,
    /// When commits return.
    pub commit: Commit,
    /// Threads that will write, for engines whose caches belong to connections.
    pub writers: usize,
}

/// Which engine, and how it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Contender {
    /// Hamal, serializable; a row that will be written is read with `get_for_update`.
    Hamal,
    /// Hamal, serializable; rows are read with `get`.
    HamalGet,
    /// Hamal with snapshot isolation; rows are read with `get`.
    HamalSnapshot,
    /// LMDB, through heed: writers take turns.
    Lmdb,
    /// redb: writers take turns.
    Redb,
    /// fjall with optimistic transactions.
    Fjall,
    /// SQLite in WAL mode, one connection per thread: writers take turns, and poll for them.
    Sqlite,
    /// The same, with a mutex of the application around each transaction, so that nobody polls.
    SqliteMutex,
    /// RocksDB, `OptimisticTransactionDB`.
    #[cfg(feature = "rocksdb")]
    RocksdbOptimistic,
    /// RocksDB, `TransactionDB`: locks.
    #[cfg(feature = "rocksdb")]
    RocksdbLocking,
}

impl Contender {
    /// Hamal as it comes, and its peers.
    pub const USUAL: &[Contender] = &[
        Contender::Hamal,
        Contender::Lmdb,
        Contender::Redb,
        Contender::Fjall,
        Contender::Sqlite,
        Contender::SqliteMutex,
        #[cfg(feature = "rocksdb")]
        Contender::RocksdbOptimistic,
        #[cfg(feature = "rocksdb")]
        Contender::RocksdbLocking,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Hamal => "Hamal",
            Contender::HamalGet => "Hamal, plain get",
            Contender::HamalSnapshot => "Hamal, snapshot isolation",
            Contender::Lmdb => "LMDB",
            Contender::Redb => "redb",
            Contender::Fjall => "fjall, optimistic",
            Contender::Sqlite => "SQLite",
            Contender::SqliteMutex => "SQLite, mutex",
            #[cfg(feature = "rocksdb")]
            Contender::RocksdbOptimistic => "RocksDB, optimistic",
            #[cfg(feature = "rocksdb")]
            Contender::RocksdbLocking => "RocksDB, locking",
        }
    }

    /// Makes a database in an empty directory.
    pub fn open(self, directory: &Path, setup: Setup) -> Outcome<Box<dyn Store>> {
        use self::hamal::{HamalStore, Reads};
        let hamal = |isolation, reads| HamalStore::open(directory, setup, isolation, reads);
        Ok(match self {
            Contender::Hamal => Box::new(hamal(Isolation::Serializable, Reads::ForUpdate)?),
            Contender::HamalGet => Box::new(hamal(Isolation::Serializable, Reads::Plain)?),
            Contender::HamalSnapshot => Box::new(hamal(Isolation::Snapshot, Reads::Plain)?),
            Contender::Lmdb => Box::new(lmdb::LmdbStore::open(directory, setup)?),
            Contender::Redb => Box::new(redb::RedbStore::open(directory, setup)?),
            Contender::Fjall => Box::new(fjall::FjallStore::open(directory, setup)?),
            Contender::Sqlite => {
                Box::new(sqlite::SqliteStore::open(directory, setup, sqlite::Turns::BusyHandler)?)
            }
            Contender::SqliteMutex => {
                Box::new(sqlite::SqliteStore::open(directory, setup, sqlite::Turns::Mutex)?)
            }
            #[cfg(feature = "rocksdb")]
            Contender::RocksdbOptimistic => Box::new(rocksdb::open_optimistic(directory, setup)?),
            #[cfg(feature = "rocksdb")]
            Contender::RocksdbLocking => Box::new(rocksdb::open_locking(directory, setup)?),
        })
    }
}

#[cfg(test)]
mod tests;
