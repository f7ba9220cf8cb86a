//! Hamal: durability `Sync`, or `Relaxed`; everything else by default but the cache.

use std::path::Path;

use hamal::{Database, Durability, Isolation, Options, Table, TransactionOptions};

use super::{Failure, LogCounters, Session, Setup, Step, Store, Transaction, Work};
use crate::peer::{Commit, Outcome};

const ROWS: &str = "rows";

/// How a transaction reads a row that it will write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    /// With `get_for_update`.
    ForUpdate,
    /// With `get`.
    Plain,
}

/// A database with one table.
#[derive(Debug)]
pub(super) struct HamalStore {
    database: Database,
    options: TransactionOptions,
    reads: Reads,
}

impl HamalStore {
    pub(super) fn open(
        directory: &Path,
        setup: Setup,
        isolation: Isolation,
        reads: Reads,
    ) -> Outcome<HamalStore> {
        let database = Options::new().cache_bytes(setup.cache_bytes).open(directory.join("rows.hamal"))?;
        database.transact(|tx| tx.open_bytes_table(ROWS).map(drop))?;
        let durability = match setup.commit {
            Commit::Durable => Durability::Sync,
            Commit::Lazy => Durability::Relaxed,
        };
        let options = TransactionOptions::new().isolation(isolation).durability(durability);
        Ok(HamalStore { database, options, reads })
    }
}

fn failure(error: hamal::Error) -> Failure {
    if error.is_retryable() { Failure::Conflict } else { super::fatal(error) }
}

struct Rows<'t> {
    table: Table<'t, &'static [u8], &'static [u8]>,
    reads: Reads,
}

fn show(value: Option<Vec<u8>>, look: &mut dyn FnMut(&[u8])) -> bool {
    value.is_some_and(|value| {
        look(&value);
        true
    })
}

impl Transaction for Rows<'_> {
    fn read(&mut self, key: &[u8], look: &mut dyn FnMut(&[u8])) -> Step<bool> {
        Ok(show(self.table.get(key).map_err(failure)?, look))
    }

    fn read_to_write(&mut self, key: &[u8], look: &mut dyn FnMut(&[u8])) -> Step<bool> {
        match self.reads {
            Reads::ForUpdate => Ok(show(self.table.get_for_update(key).map_err(failure)?, look)),
            Reads::Plain => self.read(key, look),
        }
    }

    fn write(&mut self, key: &[u8], value: &[u8]) -> Step<()> {
        self.table.put(key, value).map_err(failure)
    }
}

impl Session for &HamalStore {
    fn run(&mut self, work: &mut Work<'_>) -> Step<()> {
        let tx = self.database.begin_with(self.options).map_err(failure)?;
        let table = tx.open_bytes_table(ROWS).map_err(failure)?;
        work(&mut Rows { table, reads: self.reads })?;
        tx.commit().map_err(failure)
    }
}

impl Store for HamalStore {
    fn session(&self) -> Outcome<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn scan(&self, look: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()> {
        let snapshot = self.database.snapshot()?;
        for row in snapshot.open_bytes_table(ROWS)?.iter()? {
            let (key, value) = row?;
            look(&key, &value);
        }
        Ok(())
    }

    fn settle(&self) -> Outcome<()> {
        self.database.flush()?;
        self.database.checkpoint()?;
        Ok(())
    }

    fn log_counters(&self) -> Option<LogCounters> {
        let stats = self.database.stats();
        Some(LogCounters { flushes: stats.log_flushes, commits: stats.commits })
    }
}
