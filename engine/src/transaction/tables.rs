//! The tables of a transaction: opening, making, renaming and dropping them, and what tools are told of them. Changes of the catalog
//! are rows like any others: logged, undone and recovered in the transaction's chain of the catalog's partition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use hamal_pager::PartitionId;

use super::Transaction;
use crate::catalog::{CATALOG, TableRow, row_place, table_key};
use crate::change::Row;
use crate::engine::{Engine, PartitionHandle};
use crate::journal::{Author, Chain};
use crate::raw::{Owner, RawTable};
use crate::tree::{Decision, Tree};
use crate::{Error, ErrorKind, Result, recovery};

/// A table that a transaction or snapshot has opened.
#[derive(Debug)]
pub(crate) struct OpenTable {
    pub(crate) id: u32,
    pub(crate) key_type: String,
    pub(crate) value_type: String,
    pub(crate) handle: Arc<PartitionHandle>,
    pub(crate) tree: Tree,
    /// The transaction's chain in the table's partition; `None` in a snapshot.
    pub(crate) chain: Option<Chain>,
    /// Rows added less rows removed by this transaction.
    pub(crate) delta: AtomicI64,
    /// Bumped by every write of this transaction, so that ranges notice.
    pub(crate) writes: AtomicU64,
}

/// A table, as the catalog has it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableInfo {
    /// Its name.
    pub name: String,
    /// Its id; never reused.
    pub id: u32,
    /// Name of its key type, as the table definition gives it; bytes: `"bytes"`.
    pub key_type: String,
    /// Name of its value type.
    pub value_type: String,
    /// Rows.
    pub rows: u64,
    /// Its partition.
    pub partition: u32,
    /// Bytes its file takes.
    pub file_bytes: u64,
}

impl Transaction {
    fn catalog(&self) -> Result<(Tree, Chain)> {
        let tree = self.engine().partition(CATALOG)?.tree();
        Ok((tree, Chain { entry: self.entry.clone(), partition: CATALOG }))
    }

    /// Opens a table by name. `types`: the key's and value's type names, or `None` to take it as bytes whatever it is.
    /// `create`: make it (with those types, else bytes) if it is missing, else `NotFound`.
    pub(crate) fn open_raw(
        &self,
        name: &str,
        types: Option<(&str, &str)>,
        create: bool,
    ) -> Result<RawTable<'_>> {
        self.check_usable()?;
        {
            let work = self.work.lock();
            if let Some(table) = work.names.get(name).and_then(|id| work.tables.get(id)) {
                check_types(name, table, types)?;
                return Ok(RawTable::new(Owner::Transaction(self), table.clone()));
            }
        }
        let (catalog, _) = self.catalog()?;
        let found = find_table(&catalog, name)?;
        let row = match found {
            Some(row) => row,
            None if create => {
                self.statement(|| self.create_table(name, types.unwrap_or(("bytes", "bytes"))))?
            }
            None => return Err(no_table(name)),
        };
        let handle = self.engine().partition(row.partition)?;
        let open = || {
            Arc::new(OpenTable {
                id: row.id,
                tree: handle.tree(),
                chain: Some(Chain { entry: self.entry.clone(), partition: row.partition }),
                key_type: row.key_type,
                value_type: row.value_type,
                handle,
                delta: AtomicI64::new(0),
                writes: AtomicU64::new(0),
            })
        };
        let table = {
            let mut work = self.work.lock();
            work.names.insert(name.to_owned(), row.id);
            work.tables.entry(row.id).or_insert_with(open).clone()
        };
        check_types(name, &table, types)?;
        Ok(RawTable::new(Owner::Transaction(self), table))
    }

    fn create_table(&self, name: &str, (key_type, value_type): (&str, &str)) -> Result<TableRow> {
        let key = table_key(name)?;
        let engine = self.engine();
        let id = engine.draw_id()?;
        let row = TableRow {
            id,
            partition: PartitionId(id),
            key_type: key_type.to_owned(),
            value_type: value_type.to_owned(),
        };
        let handle = engine.create_partition(row.partition)?;
        self.work.lock().created.push(row.partition);
        Tree::format_partition(&engine.journal, &handle.partition)?;
        self.write_catalog_row(key, Some(&row.encode()))?;
        Ok(row)
    }

    /// Writes or removes a row of the catalog.
    fn write_catalog_row(&self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        let (tree, chain) = self.catalog()?;
        let stamp = chain.txn();
        let row = Row { stamp, ghost: value.is_none(), overflow: false, value: value.unwrap_or_default() };
        tree.update(&self.engine().journal, Author::Transaction(&chain), key, row.value.len(), &mut |_| {
            Ok(Decision::Write(row))
        })?;
        Ok(())
    }

    /// Whether there is a table of this name.
    pub fn has_table(&self, name: &str) -> Result<bool> {
        Ok(find_table(&self.catalog()?.0, name)?.is_some())
    }

    /// All tables, by name, this transaction's changes included.
    pub fn tables(&self) -> Result<Vec<TableInfo>> {
        let rows = recovery::tables(self.engine())?;
        let deltas = self.deltas();
        table_infos(self.engine(), rows, &deltas)
    }

    /// Renames a table. `NotFound`; `AlreadyExists`. Names are 1 to 255 bytes. Open handles to the table stay valid.
    pub fn rename_table(&self, from: &str, to: &str) -> Result<()> {
        let (catalog, _) = self.catalog()?;
        let row = find_table(&catalog, from)?.ok_or_else(|| no_table(from))?;
        table_key(to)?;
        if from == to {
            return Ok(());
        }
        if find_table(&catalog, to)?.is_some() {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("there is a table {to:?} already")));
        }
        self.statement(|| {
            self.write_catalog_row(table_key(from)?, None)?;
            self.write_catalog_row(table_key(to)?, Some(&row.encode()))
        })?;
        let mut work = self.work.lock();
        if let Some(id) = work.names.remove(from) {
            work.names.insert(to.to_owned(), id);
        }
        Ok(())
    }

    /// Drops a table and all its rows. Its file goes once the commit is durable. `NotFound`. Open handles to it write no more
    /// (`NotFound`), unless the drop is rolled back to a savepoint.
    pub fn drop_table(&self, name: &str) -> Result<()> {
        let (catalog, _) = self.catalog()?;
        let row = find_table(&catalog, name)?.ok_or_else(|| no_table(name))?;
        self.statement(|| self.write_catalog_row(table_key(name)?, None))?;
        let mut work = self.work.lock();
        work.names.remove(name);
        work.dropped.push(row.partition);
        Ok(())
    }
}

pub(crate) fn find_table(catalog: &Tree, name: &str) -> Result<Option<TableRow>> {
    let row = catalog.get(table_key(name)?, |row| (!row.ghost).then(|| TableRow::of(row)))?.flatten();
    row.transpose().map_err(|e| e.context(row_place(name)))
}

pub(crate) fn no_table(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no table {name:?}"))
}

pub(crate) fn check_types(name: &str, table: &OpenTable, types: Option<(&str, &str)>) -> Result<()> {
    match types {
        Some((key, value)) if (key, value) != (table.key_type.as_str(), table.value_type.as_str()) => {
            Err(Error::new(
                ErrorKind::TypeMismatch,
                format!(
                    "table {name:?} holds {} -> {}, and was opened as {key} -> {value}",
                    table.key_type, table.value_type
                ),
            ))
        }
        _ => Ok(()),
    }
}

/// What tools show of the catalog.
pub(crate) fn table_infos(
    engine: &Engine,
    rows: Vec<(String, TableRow)>,
    deltas: &BTreeMap<u32, i64>,
) -> Result<Vec<TableInfo>> {
    rows.into_iter()
        .map(|(name, row)| {
            let committed = engine.commits.lock().counts.get(&row.id).copied().unwrap_or(0);
            let delta = deltas.get(&row.id).copied().unwrap_or(0);
            let file_pages = engine.partition(row.partition)?.partition.file_pages();
            Ok(TableInfo {
                name,
                id: row.id,
                key_type: row.key_type,
                value_type: row.value_type,
                rows: committed.saturating_add_signed(delta),
                partition: row.partition.0,
                file_bytes: u64::from(file_pages) * engine.page_bytes as u64,
            })
        })
        .collect()
}
