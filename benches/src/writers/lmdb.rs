//! LMDB through heed. Writers take turns by LMDB's own mutex, a write transaction belongs to its thread, and readers never wait
//! (`lmdb.h`, "Introduction" and "Restrictions/caveats"). Synchronous commits are the default; relaxed ones are `MDB_NOSYNC`,
//! which loses only the newest transactions "if the filesystem preserves write order" and otherwise may lose the database
//! (`lmdb.h`, `mdb_env_open`). Not used: `MDB_WRITEMAP`, whose stray writes reach the file; `MDB_NOMETASYNC`, which still syncs
//! every commit.

use std::path::Path;

use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, RwTxn};

use super::{Session, Setup, Step, Store, Transaction, Work, fatal};
use crate::peer::{Commit, Outcome};

/// Address space for the map; it takes no memory and no disk by itself.
const MAP_BYTES: usize = 64 << 30;

/// An LMDB environment with one database.
#[derive(Debug)]
pub(super) struct LmdbStore {
    env: Env,
    rows: Database<Bytes, Bytes>,
}

impl LmdbStore {
    pub(super) fn open(directory: &Path, setup: Setup) -> Outcome<LmdbStore> {
        let mut options = EnvOpenOptions::new();
        options.map_size(MAP_BYTES);
        let mut flags = EnvFlags::NO_MEM_INIT;
        if setup.commit == Commit::Lazy {
            flags |= EnvFlags::NO_SYNC;
        }
        // SAFETY: `NO_SYNC` endangers only what a crash leaves, and the directory is thrown away.
        unsafe { options.flags(flags) };
        // SAFETY: the directory is fresh and private to this process, so nobody else changes the mapped file.
        let env = unsafe { options.open(directory)? };
        let mut tx = env.write_txn()?;
        let rows = env.create_database(&mut tx, None)?;
        tx.commit()?;
        Ok(LmdbStore { env, rows })
    }
}

struct Rows<'s, 't> {
    rows: Database<Bytes, Bytes>,
    tx: &'t mut RwTxn<'s>,
}

impl Transaction for Rows<'_, '_> {
    fn read(&mut self, key: &[u8], look: &mut dyn FnMut(&[u8])) -> Step<bool> {
        let value = self.rows.get(self.tx, key).map_err(fatal)?;
        Ok(value.map(look).is_some())
    }

    fn write(&mut self, key: &[u8], value: &[u8]) -> Step<()> {
        self.rows.put(self.tx, key, value).map_err(fatal)
    }
}

impl Session for &LmdbStore {
    fn run(&mut self, work: &mut Work<'_>) -> Step<()> {
        let mut tx = self.env.write_txn().map_err(fatal)?;
        work(&mut Rows { rows: self.rows, tx: &mut tx })?;
        tx.commit().map_err(fatal)
    }
}

impl Store for LmdbStore {
    fn session(&self) -> Outcome<Box<dyn Session + '_>> {
        Ok(Box::new(self))
    }

    fn scan(&self, look: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()> {
        let tx = self.env.read_txn()?;
        for row in self.rows.iter(&tx)? {
            let (key, value) = row?;
            look(key, value);
        }
        Ok(())
    }

    fn settle(&self) -> Outcome<()> {
        Ok(self.env.force_sync()?)
    }
}
