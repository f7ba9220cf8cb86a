//! Read-write transactions (interface).

use crate::Result;
use crate::raw::RawTable;

/// A read-write transaction: sees its own writes; rolls back when dropped uncommitted.
#[derive(Debug)]
pub struct Transaction {}

/// A point to roll back to, made by [`Transaction::savepoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Savepoint {}

/// A table, as the catalog has it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableInfo {
    /// Its name.
    pub name: String,
    /// Its id; never reused.
    pub id: u32,
    /// Name of its key type, as [`crate::TableDef`] gives it; bytes: `"bytes"`.
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

#[expect(unused_variables, dead_code, clippy::unused_self, reason = "interface")]
impl Transaction {
    /// Opens a table by name. `types`: the key's and value's type names, or `None` to take it as bytes whatever it is.
    /// `create`: make it (with those types, else bytes) if it is missing, else `NotFound`.
    pub(crate) fn open_raw(
        &self,
        name: &str,
        types: Option<(&str, &str)>,
        create: bool,
    ) -> Result<RawTable<'_>> {
        unimplemented!()
    }

    /// Whether there is a table of this name.
    pub fn has_table(&self, name: &str) -> Result<bool> {
        unimplemented!()
    }

    /// All tables, by name, this transaction's changes included.
    pub fn tables(&self) -> Result<Vec<TableInfo>> {
        unimplemented!()
    }

    /// Renames a table. `NotFound`; `AlreadyExists`. Names are 1 to 255 bytes.
    pub fn rename_table(&self, from: &str, to: &str) -> Result<()> {
        unimplemented!()
    }

    /// Drops a table and all its rows. Its file goes once the commit is durable. `NotFound`.
    pub fn drop_table(&self, name: &str) -> Result<()> {
        unimplemented!()
    }

    /// Marks this point. Savepoints nest to any depth; rolling back to one forgets those made after it.
    pub fn savepoint(&self) -> Result<Savepoint> {
        unimplemented!()
    }

    /// Takes back everything since the savepoint. `NotFound` if it has been forgotten.
    pub fn rollback_to(&self, savepoint: Savepoint) -> Result<()> {
        unimplemented!()
    }

    /// Commits. Durable when it returns, if the durability is `Sync`.
    pub fn commit(self) -> Result<()> {
        unimplemented!()
    }

    /// Rolls back, and says whether that worked (dropping does the same silently).
    pub fn rollback(self) -> Result<()> {
        unimplemented!()
    }
}
