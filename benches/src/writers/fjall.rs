//! fjall with optimistic transactions: "multi-writer, serializable", and those that conflict "may have to be rerun" (README,
//! "Transactional modes"). A commit is synchronous with `PersistMode::SyncData`, its `fdatasync` ("ACID transactions", docs.rs,
//! `DatabaseBuilder::manual_journal_persist`); relaxed commits are the default, `PersistMode::Buffer`: in the system's hands,
//! which survives the process but not the machine (README, "Durability"). A block cache that the data fits is advised
//! (`DatabaseBuilder::cache_size`), and no filters in the last level where reads hit
//! (`KeyspaceCreateOptions::expect_point_read_hits`).

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use fjall::{
    KeyspaceCreateOptions, OptimisticTxDatabase, OptimisticTxKeyspace, OptimisticWriteTx, PersistMode,
    Readable,
};

use super::{Failure, Session, Setup, Step, Store, Transaction, Work, fatal};
use crate::peer::{Commit, Outcome};

/// A fjall database with one keyspace.
pub(super) struct FjallStore {
    database: OptimisticTxDatabase,
    rows: OptimisticTxKeyspace,
    persist: PersistMode,
}

/// Longest wait for compactions between two turns.
const MAX_SETTLE: Duration = Duration::from_secs(10);

impl FjallStore {
    pub(super) fn open(directory: &Path, setup: Setup) -> Outcome<FjallStore> {
        let database = OptimisticTxDatabase::builder(directory.join("rows.fjall"))
            .cache_size(setup.cache_bytes)
            .open()?;
        let rows =
            database.keyspace("rows", || KeyspaceCreateOptions::default().expect_point_read_hits(true))?;
        let persist = match setup.commit {
            Commit::Durable => PersistMode::SyncData,
            Commit::Lazy => PersistMode::Buffer,
        };
        Ok(FjallStore { database, rows, persist })
    }
}

struct Rows<'s> {
    rows: &'s OptimisticTxKeyspace,
    tx: OptimisticWriteTx,
}

impl Transaction for Rows<'_> {
    fn read(&mut self, key: &[u8], look: &mut dyn FnMut(&[u8])) -> Step<bool> {
        let value = self.tx.get(self.rows, key).map_err(fatal)?;
        Ok(value.map(|value| look(&value)).is_some())
    }

    fn write(&mut self, key: &[u8], value: &[u8]) -> Step<()> {
        self.tx.insert(self.rows, key, value);
        Ok(())
    }
}

impl Session for &FjallStore {
    fn run(&mut self, work: &mut Work<'_>) -> Step<()> {
        let tx = self.database.write_tx().map_err(fatal)?.durability(Some(self.persist));
        let mut rows = Rows { rows: &self.rows, tx };
        work(&mut rows)?;
        rows.tx.commit().map_err(fatal)?.map_err(|fjall::Conflict| Failure::Conflict)
    }
}

impl Store for FjallStore {
    fn session(&self) -> Outcome<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn scan(&self, look: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()> {
        for row in self.database.read_tx().iter(&self.rows) {
            let (key, value) = row.into_inner()?;
            look(&key, &value);
        }
        Ok(())
    }

    fn settle(&self) -> Outcome<()> {
        self.database.persist(PersistMode::SyncAll)?;
        let background = self.database.inner();
        let began = Instant::now();
        while background.outstanding_flushes() + background.active_compactions() > 0
            && began.elapsed() < MAX_SETTLE
        {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}
