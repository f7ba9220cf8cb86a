//! One face for every engine that is measured, so that all of them are asked for exactly the same work.

mod hamal;
mod lmdb;
mod redb;

use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::rows::{KEY_BYTES, Picks, VALUE_BYTES};

pub use self::hamal::{Hamal, ROWS};
pub use self::lmdb::Lmdb;
pub use self::redb::Redb;

/// What a benchmark does about an error: it ends, and says why.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// When a commit returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
pub enum Commit {
    /// Once it is on the disk.
    #[value(name = "synchronous", alias = "sync")]
    #[serde(rename = "synchronous")]
    Durable,
    /// At once. What a crash then costs differs: Hamal and redb lose the newest commits; LMDB (`MDB_NOSYNC`) may lose the
    /// database, which its manual says.
    #[value(name = "relaxed")]
    #[serde(rename = "relaxed")]
    Lazy,
}

impl Commit {
    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Commit::Durable => "synchronous",
            Commit::Lazy => "relaxed",
        }
    }
}

/// How an engine is opened.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Memory for pages, bytes. LMDB has no cache of its own: it takes what the system's page cache gives it.
    pub cache_bytes: u64,
    /// When its commits return.
    pub commit: Commit,
}

/// A row to write.
pub type Row = ([u8; KEY_BYTES], [u8; VALUE_BYTES]);

/// An engine under measurement, with one open database.
pub trait Peer: fmt::Debug {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Writes rows, new or not, in one transaction.
    fn write(&self, rows: &mut dyn Iterator<Item = Row>) -> Outcome<()>;

    /// Removes rows in one transaction.
    fn remove(&self, keys: &mut dyn Iterator<Item = [u8; KEY_BYTES]>) -> Outcome<()>;

    /// Reads the rows of `picks`, one by one, in one read transaction. Returns a digest of the values, so that no engine gets away
    /// with not looking at them, and all can be compared.
    fn read(&self, picks: &mut dyn Iterator<Item = [u8; KEY_BYTES]>) -> Outcome<u64>;

    /// From each of `starts`, reads that many rows in order, in one read transaction. Returns a digest.
    fn scan(&self, starts: &mut dyn Iterator<Item = [u8; KEY_BYTES]>, rows: usize) -> Outcome<u64>;

    /// Number of rows.
    fn len(&self) -> Outcome<u64>;

    /// Whether there are no rows.
    fn is_empty(&self) -> Outcome<bool> {
        Ok(self.len()? == 0)
    }

    /// Does now what it would otherwise do in the background, so that it does not disturb the next engine's turn.
    fn settle(&self) -> Outcome<()>;
}

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// Hamal.
    Hamal,
    /// LMDB, through heed.
    Lmdb,
    /// redb.
    Redb,
}

impl Engine {
    /// All of them.
    pub const ALL: [Engine; 3] = [Engine::Hamal, Engine::Lmdb, Engine::Redb];

    /// Makes a database in an empty directory.
    pub fn open(self, directory: &Path, settings: Settings) -> Outcome<Box<dyn Peer>> {
        Ok(match self {
            Engine::Hamal => Box::new(Hamal::open(directory, settings)?),
            Engine::Lmdb => Box::new(Lmdb::open(directory, settings)?),
            Engine::Redb => Box::new(Redb::open(directory, settings)?),
        })
    }
}

/// The keys of `count` random rows.
pub fn random_keys(mut picks: Picks, count: u64) -> impl Iterator<Item = [u8; KEY_BYTES]> {
    (0..count).map(move |_| crate::rows::key(picks.pick()))
}

/// Folds a value into a digest: its first and last words, and its length.
fn digest(sum: u64, value: &[u8]) -> u64 {
    let word = |chunk: Option<&[u8; 8]>| chunk.map_or(0, |c| u64::from_le_bytes(*c));
    sum.rotate_left(1)
        ^ word(value.first_chunk()).wrapping_add(word(value.last_chunk())).wrapping_add(value.len() as u64)
}
