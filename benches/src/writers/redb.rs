//! redb. One write transaction at a time: `begin_write` waits for the one before (docs.rs, `Database::begin_write`).
//! Synchronous commits are `Durability::Immediate`, the default, with one-phase commits and checksums; relaxed ones are
//! `Durability::None`, persisted only by a later `Immediate` commit (docs.rs, `Durability`).

use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition};

use super::{Session, Setup, Step, Store, Transaction, Work, fatal};
use crate::peer::{Commit, Outcome};

const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");

/// A redb database with one table.
#[derive(Debug)]
pub(super) struct RedbStore {
    database: Database,
    durability: Durability,
}

impl RedbStore {
    pub(super) fn open(directory: &Path, setup: Setup) -> Outcome<RedbStore> {
        let database = Database::builder()
            .set_cache_size(usize::try_from(setup.cache_bytes)?)
            .create(directory.join("rows.redb"))?;
        let tx = database.begin_write()?;
        tx.open_table(ROWS)?;
        tx.commit()?;
        let durability = match setup.commit {
            Commit::Durable => Durability::Immediate,
            Commit::Lazy => Durability::None,
        };
        Ok(RedbStore { database, durability })
    }
}

struct Rows<'t>(Table<'t, &'static [u8], &'static [u8]>);

impl Transaction for Rows<'_> {
    fn read(&mut self, key: &[u8], look: &mut dyn FnMut(&[u8])) -> Step<bool> {
        let value = self.0.get(key).map_err(fatal)?;
        Ok(value.map(|value| look(value.value())).is_some())
    }

    fn write(&mut self, key: &[u8], value: &[u8]) -> Step<()> {
        self.0.insert(key, value).map_err(fatal)?;
        Ok(())
    }
}

impl Session for &RedbStore {
    fn run(&mut self, work: &mut Work<'_>) -> Step<()> {
        let mut tx = self.database.begin_write().map_err(fatal)?;
        tx.set_durability(self.durability).map_err(fatal)?;
        work(&mut Rows(tx.open_table(ROWS).map_err(fatal)?))?;
        tx.commit().map_err(fatal)
    }
}

impl Store for RedbStore {
    fn session(&self) -> Outcome<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn scan(&self, look: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()> {
        for row in self.database.begin_read()?.open_table(ROWS)?.iter()? {
            let (key, value) = row?;
            look(key.value(), value.value());
        }
        Ok(())
    }

    fn settle(&self) -> Outcome<()> {
        // An empty durable commit makes the relaxed ones before it durable.
        Ok(self.database.begin_write()?.commit()?)
    }
}
