//! Read-only views.
//!
//! A snapshot sees a committed state as of its taking, as far as a crash could no longer take it back then, or somebody had been told of
//! it (hazard H10). Nobody waits for it, and it for nobody but for undo that trails behind the open ([`crate::trailing`]); the
//! before-images, ghosts and files that it may need are kept while it lives.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::catalog::{Catalog, Definition};
use crate::database::Handle;
use crate::engine::Engine;
use crate::partitions::{PartitionInfo, partition_infos};
use crate::raw::{Owner, RawTable};
use crate::timeline::LiveView;
use crate::transaction::{OpenTable, check_types, no_table, table_infos};
use crate::view::View;
use crate::{Result, TableInfo};

/// A read-only view of the committed state. `Send` and `Sync`; it keeps the database open. Reading it never waits for a transaction
/// and never fails because of one; but where one of before the open is still to be rolled back
/// ([`crate::Options::trailing_undo_bytes`]), the first to read a row of a partition that it has changed does that there. It sees every
/// commit that had been acknowledged when it was taken.
#[derive(Debug)]
pub struct Snapshot {
    handle: Arc<Handle>,
    live: LiveView,
}

impl Snapshot {
    pub(crate) fn begin(handle: &Arc<Handle>) -> Result<Snapshot> {
        let engine = &handle.engine;
        engine.pause("a snapshot");
        engine.check_resolved()?;
        let live = engine.timeline.view(engine.log.durable(), engine.storage.monotonic());
        Ok(Snapshot { handle: handle.clone(), live })
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.handle.engine
    }

    pub(crate) fn view(&self) -> &View {
        &self.live.view
    }

    fn catalog(&self) -> Result<Catalog<'_>> {
        let table = OpenTable::new(self.engine().catalog_meta()?, None);
        Ok(Catalog::new(RawTable::new(Owner::Snapshot(self), Arc::new(table))))
    }

    /// Opens a table by name; `types` as for transactions. `NotFound` if it is missing.
    pub(crate) fn open_raw(
        &self,
        name: &str,
        types: Option<(&str, &str)>,
    ) -> Result<(Arc<str>, RawTable<'_>)> {
        let engine = self.engine();
        let (name, meta) = if let Some(found) = engine.schema.find(name, self.view()) {
            found
        } else {
            let table = self.catalog()?.definition(name)?.ok_or_else(|| no_table(name))?;
            engine.remember_table(name)?;
            (Arc::from(name), engine.table_meta(table)?)
        };
        check_types(&name, &meta, types)?;
        Ok((name, RawTable::new(Owner::Snapshot(self), Arc::new(OpenTable::new(meta, None)))))
    }

    /// Whether there is a table of this name.
    pub fn has_table(&self, name: &str) -> Result<bool> {
        Ok(self.catalog()?.find(name)?.is_some())
    }

    /// All tables, by name.
    pub fn tables(&self) -> Result<Vec<TableInfo>> {
        table_infos(self.engine(), self.catalog()?.all()?, self.live.view.as_of, &BTreeMap::new())
    }

    /// All tables, by name, as the catalog has them.
    pub(crate) fn definitions(&self) -> Result<Vec<(String, Definition)>> {
        self.catalog()?.all()
    }

    /// All partitions, as [`crate::Database::partitions`] has them.
    pub(crate) fn partitions(&self) -> Result<Vec<PartitionInfo>> {
        partition_infos(self.engine(), self.catalog()?.all()?, self.live.view.as_of)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let engine = &self.handle.engine;
        engine.timeline.release(&self.live);
        engine.tidy();
    }
}
