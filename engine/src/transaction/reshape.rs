//! What a transaction does to the partitions of a table that stays: the parts of a split or a merge that are transactional. Moving the
//! rows is [`crate::reshape`]'s.
//!
//! I1. Whoever drops, renames, splits or merges has locked the table's row in the catalog, and the first and the last two also its gate.
//!     So there is one at a time, and from the last look at rows that move to the commit nobody else has changed one in that table and not
//!     ended (hazard H4).
//! I2. The gate names the last of them that has committed. A transaction that does not see it may read where it always has, for as long
//!     as its view lives; it does not write, nor drop the table, whose cuts it does not know, and its view does not move past it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hamal_pager::PartitionId;

use super::conflict::conflict;
use super::{Transaction, no_table};
use crate::catalog::{Cut, Definition};
use crate::engine::{PartitionHandle, TableGate};
use crate::ids::TxnId;
use crate::schema::TableMeta;
use crate::tree::Tree;
use crate::view::View;
use crate::{Error, Result};

impl Transaction {
    /// Whether a view sees the last change of where the table's rows are.
    pub(super) fn knows_shape(gate: &TableGate, view: &View) -> bool {
        let reshaper = TxnId(gate.reshaper.load(Ordering::SeqCst));
        reshaper == TxnId::NONE || view.sees(reshaper)
    }

    /// `Conflict` if the view does not see the last change of where the rows of an open table are.
    pub(super) fn check_shapes(&self, view: &View) -> Result<()> {
        let work = self.work.borrow();
        let moved_table = work.tables.iter().find(|table| !Self::knows_shape(&table.meta.gate, view));
        moved_table.map_or(Ok(()), |table| Err(moved(table.meta.id)))
    }

    /// `Conflict` if this transaction does not see the last change of where the table's rows are.
    pub(super) fn check_shape(&self, gate: &TableGate) -> Result<()> {
        if Self::knows_shape(gate, &self.view()) {
            return Ok(());
        }
        self.engine().note_overtaken();
        Err(moved(gate.table))
    }

    /// Keeps others from dropping, renaming, splitting or merging a table, and says what it is now. `NotFound`. For a transaction that
    /// has read nothing yet.
    pub(crate) fn lock_definition(&self, name: &str) -> Result<(Definition, Arc<TableMeta>)> {
        let catalog = self.catalog()?;
        if !catalog.lock(name)? {
            return Err(no_table(name));
        }
        // While this one waited its cuts may have changed, though not its row.
        self.advance()?;
        let table = catalog.definition(name)?.ok_or_else(|| no_table(name))?;
        let meta = self.engine().table_meta(table.clone())?;
        Ok((table, meta))
    }

    /// Keeps writers from a table whose definition it has locked, once those who have written have ended. `Conflict` after the lock
    /// timeout.
    pub(crate) fn lock_rows(&self, gate: &Arc<TableGate>) -> Result<()> {
        self.begin_waits();
        self.lock_table(gate)?;
        self.work.borrow_mut().reshaped = Some(gate.clone());
        Ok(())
    }

    /// Whether the key can be that of a cut. `InvalidArgument`.
    pub(crate) fn check_split_key(&self, key: &[u8]) -> Result<()> {
        self.catalog()?.sort_splits(&mut [key.to_vec()])
    }

    /// Makes an empty partition for a table that is there. Nobody knows it but by [`Transaction::add_cut`]; if the transaction does not
    /// commit it goes again.
    pub(crate) fn grow(&self, gate: &Arc<TableGate>) -> Result<Arc<PartitionHandle>> {
        let engine = self.engine();
        let id = PartitionId(engine.draw_id()?);
        let handle = engine.create_partition(id)?;
        self.work.borrow_mut().grown = Some(id);
        handle.enter(gate)?;
        Tree::format_partition(&engine.journal, &handle.partition)?;
        Ok(handle)
    }

    /// The table's keys from this one on are in that partition, up to the next cut.
    pub(crate) fn add_cut(&self, table: u32, lower: &[u8], partition: PartitionId) -> Result<()> {
        self.catalog()?.add_cut(table, &Cut { lower: lower.into(), partition })
    }

    /// The table's keys from this one on are in the partition before. The partition that had them goes, once nobody sees it any more.
    pub(crate) fn remove_cut(&self, table: u32, cut: &Cut) -> Result<()> {
        self.catalog()?.remove_cut(table, &cut.lower)?;
        self.work.borrow_mut().merged = Some(cut.partition);
        Ok(())
    }

    /// Whether everybody sees a cut, which this transaction sees and nobody else can change.
    pub(crate) fn is_settled_cut(&self, table: u32, lower: &[u8]) -> Result<bool> {
        Ok(self.catalog()?.stamp_of_cut(table, lower)? < self.engine().journal.horizon())
    }
}

/// The error of a transaction that does not know where rows are now.
pub(super) fn moved(table: u32) -> Error {
    conflict(format!(
        "the partitions of table {table} have been split or merged since the transaction's start"
    ))
}
