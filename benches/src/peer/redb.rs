//! redb, with its default commit strategy and the same cache as Hamal.

use std::path::Path;

use redb::{
    Database, Durability, ReadableDatabase, ReadableTableMetadata, TableDefinition, WriteTransaction,
};

use super::{Commit, Outcome, Peer, Row, Settings, digest};
use crate::rows::KEY_BYTES;

const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");

/// A redb database with one table.
#[derive(Debug)]
pub struct Redb {
    database: Database,
    commit: Commit,
}

impl Redb {
    /// Makes a database in an empty directory.
    pub fn open(directory: &Path, settings: Settings) -> Outcome<Redb> {
        let database = Database::builder()
            .set_cache_size(usize::try_from(settings.cache_bytes)?)
            .create(directory.join("rows.redb"))?;
        let tx = database.begin_write()?;
        tx.open_table(ROWS)?;
        tx.commit()?;
        Ok(Redb { database, commit: settings.commit })
    }

    fn begin(&self) -> Outcome<WriteTransaction> {
        let mut tx = self.database.begin_write()?;
        if self.commit == Commit::Lazy {
            tx.set_durability(Durability::None)?;
        }
        Ok(tx)
    }
}

impl Peer for Redb {
    fn name(&self) -> &'static str {
        "redb"
    }

    fn write(&self, rows: &mut dyn Iterator<Item = Row>) -> Outcome<()> {
        let tx = self.begin()?;
        {
            let mut table = tx.open_table(ROWS)?;
            for (key, value) in rows {
                table.insert(&key[..], &value[..])?;
            }
        }
        Ok(tx.commit()?)
    }

    fn remove(&self, keys: &mut dyn Iterator<Item = [u8; KEY_BYTES]>) -> Outcome<()> {
        let tx = self.begin()?;
        {
            let mut table = tx.open_table(ROWS)?;
            for key in keys {
                table.remove(&key[..])?;
            }
        }
        Ok(tx.commit()?)
    }

    fn read(&self, picks: &mut dyn Iterator<Item = [u8; KEY_BYTES]>) -> Outcome<u64> {
        let table = self.database.begin_read()?.open_table(ROWS)?;
        let mut sum = 0;
        for key in picks {
            let value = table.get(&key[..])?.ok_or("redb lost a row")?;
            sum = digest(sum, value.value());
        }
        Ok(sum)
    }

    fn scan(&self, starts: &mut dyn Iterator<Item = [u8; KEY_BYTES]>, rows: usize) -> Outcome<u64> {
        let table = self.database.begin_read()?.open_table(ROWS)?;
        let mut sum = 0;
        for start in starts {
            for row in table.range(&start[..]..)?.take(rows) {
                let (key, value) = row?;
                sum = digest(digest(sum, key.value()), value.value());
            }
        }
        Ok(sum)
    }

    fn len(&self) -> Outcome<u64> {
        Ok(self.database.begin_read()?.open_table(ROWS)?.len()?)
    }

    fn settle(&self) -> Outcome<()> {
        // An empty durable commit makes the lazy ones before it durable.
        Ok(self.database.begin_write()?.commit()?)
    }
}
