//! Hamal, with default options apart from the cache and the durability.

use std::path::Path;

use hamal::{Database, Durability, Options, TableDef};

use super::{Commit, Outcome, Peer, Row, Settings, digest};
use crate::rows::KEY_BYTES;

/// The table all benchmarks of the engine use.
pub const ROWS: TableDef<&[u8], &[u8]> = TableDef::new("rows");

/// A Hamal database with one table.
#[derive(Debug)]
pub struct Hamal {
    database: Database,
}

impl Hamal {
    /// Makes a database in an empty directory.
    pub fn open(directory: &Path, settings: Settings) -> Outcome<Hamal> {
        let durability = match settings.commit {
            Commit::Durable => Durability::Sync,
            Commit::Lazy => Durability::Relaxed,
        };
        Hamal::open_with(directory, Options::new().cache_bytes(settings.cache_bytes).durability(durability))
    }

    /// Opens a database with any options, and makes its table if it is missing.
    pub fn open_with(directory: &Path, options: Options) -> Outcome<Hamal> {
        let database = options.open(directory.join("rows.hamal"))?;
        let tx = database.begin()?;
        tx.open_table(ROWS)?;
        tx.commit()?;
        Ok(Hamal { database })
    }

    /// The database itself.
    pub fn database(&self) -> &Database {
        &self.database
    }
}

impl Peer for Hamal {
    fn name(&self) -> &'static str {
        "Hamal"
    }

    fn write(&self, rows: &mut dyn Iterator<Item = Row>) -> Outcome<()> {
        let tx = self.database.begin()?;
        {
            let mut table = tx.open_table(ROWS)?;
            for (key, value) in rows {
                table.put(&key, &value)?;
            }
        }
        Ok(tx.commit()?)
    }

    fn remove(&self, keys: &mut dyn Iterator<Item = [u8; KEY_BYTES]>) -> Outcome<()> {
        let tx = self.database.begin()?;
        {
            let mut table = tx.open_table(ROWS)?;
            for key in keys {
                table.delete(&key)?;
            }
        }
        Ok(tx.commit()?)
    }

    fn read(&self, picks: &mut dyn Iterator<Item = [u8; KEY_BYTES]>) -> Outcome<u64> {
        let snapshot = self.database.snapshot()?;
        let table = snapshot.open_table(ROWS)?;
        let mut sum = 0;
        for key in picks {
            let value = table.get(&key)?.ok_or("Hamal lost a row")?;
            sum = digest(sum, &value);
        }
        Ok(sum)
    }

    fn scan(&self, starts: &mut dyn Iterator<Item = [u8; KEY_BYTES]>, rows: usize) -> Outcome<u64> {
        let snapshot = self.database.snapshot()?;
        let table = snapshot.open_table(ROWS)?;
        let mut sum = 0;
        for start in starts {
            for row in table.range(&start[..]..)?.take(rows) {
                let (key, value) = row?;
                sum = digest(digest(sum, &key), &value);
            }
        }
        Ok(sum)
    }

    fn len(&self) -> Outcome<u64> {
        let snapshot = self.database.snapshot()?;
        Ok(snapshot.open_table(ROWS)?.len()?)
    }

    fn settle(&self) -> Outcome<()> {
        self.database.flush()?;
        self.database.checkpoint()?;
        Ok(())
    }
}
