//! LMDB through heed, set up as its documentation advises: a generous map, reader slots in thread-local storage (the faster
//! kind), no zeroing of fresh pages.

use std::ops::Bound;
use std::path::Path;

use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions};

use super::{Commit, Outcome, Peer, Row, Settings, digest};
use crate::rows::KEY_BYTES;

/// Address space for the map; it takes no memory and no disk by itself.
const MAP_BYTES: usize = 64 << 30;

/// An LMDB environment with one database.
#[derive(Debug)]
pub struct Lmdb {
    env: Env,
    rows: Database<Bytes, Bytes>,
}

impl Lmdb {
    /// Makes an environment in an empty directory.
    pub fn open(directory: &Path, settings: Settings) -> Outcome<Lmdb> {
        let mut options = EnvOpenOptions::new();
        options.map_size(MAP_BYTES);
        let mut flags = EnvFlags::NO_MEM_INIT;
        if settings.commit == Commit::Lazy {
            flags |= EnvFlags::NO_SYNC;
        }
        // SAFETY: `NO_SYNC` endangers only what a crash leaves, and the directory is thrown away.
        unsafe { options.flags(flags) };
        // SAFETY: the directory is fresh and private to this process, so nobody else changes the mapped file.
        let env = unsafe { options.open(directory)? };
        let mut tx = env.write_txn()?;
        let rows = env.create_database(&mut tx, None)?;
        tx.commit()?;
        Ok(Lmdb { env, rows })
    }
}

impl Peer for Lmdb {
    fn name(&self) -> &'static str {
        "LMDB"
    }

    fn write(&self, rows: &mut dyn Iterator<Item = Row>) -> Outcome<()> {
        let mut tx = self.env.write_txn()?;
        for (key, value) in rows {
            self.rows.put(&mut tx, &key, &value)?;
        }
        Ok(tx.commit()?)
    }

    fn remove(&self, keys: &mut dyn Iterator<Item = [u8; KEY_BYTES]>) -> Outcome<()> {
        let mut tx = self.env.write_txn()?;
        for key in keys {
            self.rows.delete(&mut tx, &key)?;
        }
        Ok(tx.commit()?)
    }

    fn read(&self, picks: &mut dyn Iterator<Item = [u8; KEY_BYTES]>) -> Outcome<u64> {
        let tx = self.env.read_txn()?;
        let mut sum = 0;
        for key in picks {
            let value = self.rows.get(&tx, &key)?.ok_or("LMDB lost a row")?;
            sum = digest(sum, value);
        }
        Ok(sum)
    }

    fn scan(&self, starts: &mut dyn Iterator<Item = [u8; KEY_BYTES]>, rows: usize) -> Outcome<u64> {
        let tx = self.env.read_txn()?;
        let mut sum = 0;
        for start in starts {
            let range = (Bound::Included(&start[..]), Bound::Unbounded);
            for row in self.rows.range(&tx, &range)?.take(rows) {
                let (key, value) = row?;
                sum = digest(digest(sum, key), value);
            }
        }
        Ok(sum)
    }

    fn len(&self) -> Outcome<u64> {
        let tx = self.env.read_txn()?;
        Ok(self.rows.len(&tx)?)
    }

    fn settle(&self) -> Outcome<()> {
        Ok(self.env.force_sync()?)
    }
}
