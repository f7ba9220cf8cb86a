//! The tables of a transaction: opening, making, renaming and dropping them, and what tools are told of them. Changes of the catalog
//! are rows like any others: logged, undone and recovered in the transaction's chain of the catalog's partition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use hamal_pager::PartitionId;
use hamal_wal::Lsn;

use super::Transaction;
use crate::active::TxnEntry;
use crate::catalog::{CATALOG, Catalog, Cut, Definition, TableRow, table_key};
use crate::engine::Engine;
use crate::raw::{Owner, RawTable};
use crate::schema::TableMeta;
use crate::tree::Tree;
use crate::{Error, ErrorKind, Result};

/// A table that a transaction or snapshot has opened.
#[derive(Debug)]
pub(crate) struct OpenTable {
    pub(crate) meta: Arc<TableMeta>,
    /// Whose chains its writes are in; `None` in a snapshot.
    pub(crate) writer: Option<Arc<TxnEntry>>,
    /// Rows added less rows removed by this transaction.
    pub(crate) delta: AtomicI64,
    /// Bumped by every write of this transaction, so that ranges notice.
    pub(crate) writes: AtomicU64,
    /// The transaction has told others that it writes to the table.
    pub(crate) intended: AtomicBool,
    /// It has written over a row that its view does not see: `delta` is not relative to the view.
    pub(crate) overtaken: AtomicBool,
}

impl OpenTable {
    /// `writer`: the transaction that opens it.
    pub(crate) fn new(meta: Arc<TableMeta>, writer: Option<&Arc<TxnEntry>>) -> OpenTable {
        OpenTable {
            meta,
            writer: writer.cloned(),
            delta: AtomicI64::new(0),
            writes: AtomicU64::new(0),
            intended: AtomicBool::new(false),
            overtaken: AtomicBool::new(false),
        }
    }
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
    /// Its partitions, from the lowest keys on: at least one. [`Database::partitions`](crate::Database::partitions) tells more of them.
    pub partitions: Vec<u32>,
    /// Bytes their files take.
    pub file_bytes: u64,
}

impl Transaction {
    pub(super) fn catalog(&self) -> Result<Catalog<'_>> {
        let meta = self.engine().catalog_meta()?;
        let table = self.work.borrow_mut().open(meta, &self.entry);
        Ok(Catalog::new(RawTable::new(Owner::Transaction(self), table)))
    }

    /// What the catalog says of a name, to this transaction: noted as read.
    fn find_table(&self, name: &str) -> Result<Option<(Arc<str>, Arc<TableMeta>)>> {
        let engine = self.engine();
        if let Some(found) = engine.schema.find(name, &self.view()) {
            self.note_point(CATALOG.0, name.as_bytes());
            return Ok(Some(found));
        }
        let Some(table) = self.catalog()?.definition(name)? else { return Ok(None) };
        engine.remember_table(name)?;
        Ok(Some((Arc::from(name), engine.table_meta(table)?)))
    }

    /// Opens a table by name. `types`: the key's and value's type names, or `None` to take it as bytes whatever it is.
    /// `create`: make it (with those types, else bytes) if it is missing, else `NotFound`.
    pub(crate) fn open_raw(
        &self,
        name: &str,
        types: Option<(&str, &str)>,
        create: bool,
    ) -> Result<(Arc<str>, RawTable<'_>)> {
        self.check_usable()?;
        let open = self.work.borrow().named(name);
        let (name, table) = if let Some(open) = open {
            open
        } else {
            let (name, meta) = match self.find_table(name)? {
                Some(found) => found,
                None if create => {
                    let types = types.unwrap_or(("bytes", "bytes"));
                    (Arc::from(name), self.make_table(name, types, Vec::new())?)
                }
                None => return Err(no_table(name)),
            };
            let mut work = self.work.borrow_mut();
            work.set_name(name.clone(), meta.id);
            (name, work.open(meta, &self.entry))
        };
        check_types(&name, &table.meta, types)?;
        Ok((name, RawTable::new(Owner::Transaction(self), table)))
    }

    /// Makes a table, cut at these keys, and opens it. `AlreadyExists`.
    pub(crate) fn create_raw(
        &self,
        name: &str,
        types: (&str, &str),
        splits: Vec<Vec<u8>>,
    ) -> Result<(Arc<str>, RawTable<'_>)> {
        self.check_usable()?;
        if self.find_table(name)?.is_some() {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("there is a table {name:?} already")));
        }
        let meta = self.make_table(name, types, splits)?;
        let name: Arc<str> = Arc::from(name);
        let mut work = self.work.borrow_mut();
        work.set_name(name.clone(), meta.id);
        let table = work.open(meta, &self.entry);
        Ok((name, RawTable::new(Owner::Transaction(self), table)))
    }

    /// Makes a table that is not there, cut at these keys.
    fn make_table(
        &self,
        name: &str,
        types: (&str, &str),
        mut splits: Vec<Vec<u8>>,
    ) -> Result<Arc<TableMeta>> {
        table_key(name)?;
        self.catalog()?.sort_splits(&mut splits)?;
        let definition = self.statement(|| self.write_table(name, types, &splits))?;
        self.engine().table_meta(definition)
    }

    fn write_table(
        &self,
        name: &str,
        (key_type, value_type): (&str, &str),
        splits: &[Vec<u8>],
    ) -> Result<Definition> {
        let id = self.engine().draw_id()?;
        let partition = PartitionId(id);
        self.make_partition(id, partition)?;
        let mut cuts = Vec::with_capacity(splits.len());
        for split in splits {
            let partition = PartitionId(self.engine().draw_id()?);
            self.make_partition(id, partition)?;
            cuts.push(Cut { lower: split.as_slice().into(), partition });
        }
        let (key_type, value_type) = (key_type.to_owned(), value_type.to_owned());
        let definition = Definition { row: TableRow { id, partition, key_type, value_type }, cuts };
        self.catalog()?.create(name, &definition)?;
        Ok(definition)
    }

    /// Makes an empty partition of a table that is being made.
    fn make_partition(&self, table: u32, partition: PartitionId) -> Result<()> {
        let engine = self.engine();
        let handle = engine.create_partition(partition)?;
        self.work.borrow_mut().created.push((table, partition));
        Tree::format_partition(&engine.journal, &handle.partition)
    }

    /// Whether there is a table of this name.
    pub fn has_table(&self, name: &str) -> Result<bool> {
        Ok(self.catalog()?.find(name)?.is_some())
    }

    /// All tables, by name, this transaction's changes included. `Conflict` if a row count has been overtaken by a commit since the
    /// transaction's start, and so has something that was read.
    pub fn tables(&self) -> Result<Vec<TableInfo>> {
        self.check_usable()?;
        self.settle_counts()?;
        let rows = self.catalog()?.all()?;
        for (_, table) in &rows {
            self.note_count(table.row.id);
        }
        let deltas = self.deltas();
        let as_of = self.view().as_of;
        table_infos(self.engine(), rows, as_of, &deltas)
    }

    /// Makes the row counts of all tables relative to the view again, by moving that forward if need be.
    fn settle_counts(&self) -> Result<()> {
        let work = self.work.borrow();
        let mut overtaken = work
            .tables
            .iter()
            .filter(|t| t.meta.id != CATALOG.0 && t.overtaken.load(Ordering::Relaxed))
            .peekable();
        if overtaken.peek().is_some() {
            self.advance()?;
        }
        for table in overtaken {
            table.overtaken.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Renames a table. `NotFound`; `AlreadyExists`. Names are 1 to 255 bytes. Open handles to the table stay valid.
    pub fn rename_table(&self, from: &str, to: &str) -> Result<()> {
        let catalog = self.catalog()?;
        let row = catalog.find(from)?.ok_or_else(|| no_table(from))?;
        table_key(to)?;
        if from == to {
            return Ok(());
        }
        if catalog.find(to)?.is_some() {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("there is a table {to:?} already")));
        }
        self.statement(|| {
            catalog.write(from, None)?;
            catalog.write(to, Some(&row))
        })?;
        let mut work = self.work.borrow_mut();
        if let Some(id) = work.unset_name(from) {
            work.set_name(Arc::from(to), id);
        }
        Ok(())
    }

    /// Drops a table and all its rows, once those who have written to it have ended; its files go once the commit is durable and
    /// nobody sees the table any more. `NotFound`; `Conflict` if it has been split or merged since the transaction's start. Open handles to it write no more
    /// (`NotFound`), unless the drop is rolled back to a savepoint.
    pub fn drop_table(&self, name: &str) -> Result<()> {
        let catalog = self.catalog()?;
        let table = catalog.definition(name)?.ok_or_else(|| no_table(name))?;
        let meta = self.engine().table_meta(table.clone())?;
        self.statement(|| {
            catalog.remove(name, &table)?;
            self.lock_table(&meta.gate)?;
            // Now that nobody else changes them: are these all of its cuts?
            self.check_shape(&meta.gate)
        })?;
        let mut work = self.work.borrow_mut();
        work.unset_name(name);
        work.dropped.push(meta);
        Ok(())
    }
}

pub(crate) fn no_table(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no table {name:?}"))
}

pub(crate) fn check_types(name: &str, table: &TableMeta, types: Option<(&str, &str)>) -> Result<()> {
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
    tables: Vec<(String, Definition)>,
    as_of: Lsn,
    deltas: &BTreeMap<u32, i64>,
) -> Result<Vec<TableInfo>> {
    tables
        .into_iter()
        .map(|(name, table)| {
            let mut file_bytes = 0;
            for id in table.partitions() {
                let file_pages = engine.partition(id)?.partition.file_pages();
                file_bytes += u64::from(file_pages) * engine.page_bytes as u64;
            }
            let partitions = table.partitions().map(|id| id.0).collect();
            let row = table.row;
            let committed = engine.timeline.rows_as_of(row.id, as_of);
            let delta = deltas.get(&row.id).copied().unwrap_or(0);
            Ok(TableInfo {
                name,
                id: row.id,
                key_type: row.key_type,
                value_type: row.value_type,
                rows: committed.saturating_add_signed(delta),
                partitions,
                file_bytes,
            })
        })
        .collect()
}
