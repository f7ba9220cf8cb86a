//! Read-only views.
//!
//! For now a snapshot shares the turn: any number of them at once, and read-write transactions wait until they are dropped. It
//! sees only what a crash can no longer take back (hazard H10).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use parking_lot::{ArcRwLockReadGuard, RawRwLock};

use crate::catalog::CATALOG;
use crate::database::Handle;
use crate::engine::Engine;
use crate::raw::{Owner, RawTable};
use crate::transaction::{
    OpenTable, check_types, find_table, no_table, table_infos, wait_for_readers_prefix,
};
use crate::{Error, ErrorKind, Result, TableInfo, recovery};

/// A read-only view of the committed state. `Send` and `Sync`; it keeps the database open. While it lives, read-write transactions
/// wait.
#[derive(Debug)]
pub struct Snapshot {
    handle: Arc<Handle>,
    _turn: ArcRwLockReadGuard<RawRwLock, ()>,
}

impl Snapshot {
    pub(crate) fn begin(handle: &Arc<Handle>) -> Result<Snapshot> {
        let engine = &handle.engine;
        let timeout = engine.options.lock_timeout;
        // Recursive: a thread that holds one snapshot gets another even when a writer is waiting.
        let turn = engine.turn.try_read_arc_recursive_for(timeout).ok_or_else(|| {
            Error::new(ErrorKind::Conflict, format!("waited {timeout:?} for a writing transaction to end"))
        })?;
        engine.check_resolved()?;
        wait_for_readers_prefix(engine)?;
        Ok(Snapshot { handle: handle.clone(), _turn: turn })
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.handle.engine
    }

    /// Opens a table by name; `types` as for transactions. `NotFound` if it is missing.
    pub(crate) fn open_raw(&self, name: &str, types: Option<(&str, &str)>) -> Result<RawTable<'_>> {
        let catalog = self.engine().partition(CATALOG)?.tree();
        let row = find_table(&catalog, name)?.ok_or_else(|| no_table(name))?;
        let handle = self.engine().partition(row.partition)?;
        let table = OpenTable {
            id: row.id,
            key_type: row.key_type,
            value_type: row.value_type,
            tree: handle.tree(),
            handle,
            chain: None,
            delta: AtomicI64::new(0),
            writes: AtomicU64::new(0),
        };
        check_types(name, &table, types)?;
        Ok(RawTable::new(Owner::Snapshot(self), Arc::new(table)))
    }

    /// Whether there is a table of this name.
    pub fn has_table(&self, name: &str) -> Result<bool> {
        Ok(find_table(&self.engine().partition(CATALOG)?.tree(), name)?.is_some())
    }

    /// All tables, by name.
    pub fn tables(&self) -> Result<Vec<TableInfo>> {
        table_infos(self.engine(), recovery::tables(self.engine())?, &BTreeMap::new())
    }
}
