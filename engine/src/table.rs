//! Typed tables: what an application works with.
//!
//! Owns the typed interface over the byte-level table of `raw.rs`: encoding arguments, decoding answers, the `BTreeMap`
//! names. Knows nothing of trees, snapshots or locks; what a read sees and what a write conflicts with is the raw table's affair.
//!
//! I1. Everything here goes through `RawTable`: a typed table can do nothing that a byte-level one cannot.
//! I2. An argument that cannot work (a key too long, bounds reversed) is `InvalidArgument` before anything has changed.
//! I3. Bytes in a table that are not of its types give `Corrupt`, naming the table and key; rows beyond stay readable.

mod entry;
mod iter;
mod plain;
mod read;
mod scratch;
#[cfg(test)]
mod tests;
mod write;

pub use self::entry::{Entry, OccupiedEntry, VacantEntry};
pub use self::iter::{ExtractIf, Keys, Range, Values};
pub use self::read::ReadTable;
pub use self::write::Table;

use std::fmt;
use std::marker::PhantomData;
use std::ops::ControlFlow;

use crate::{Database, Error, Key, ReshapeProgress, ReshapeReport, Result, Snapshot, Transaction, Value};

/// Longest table name, bytes.
const MAX_NAME_BYTES: usize = 255;

/// A table's name and types. Usually a constant:
///
/// ```
/// use hamal::TableDef;
///
/// const ACCOUNTS: TableDef<&str, u64> = TableDef::new("accounts");
/// ```
///
/// A name may also be made as the program runs: `TableDef::<&str, u64>::new(&name)`.
pub struct TableDef<'n, K, V> {
    name: &'n str,
    types: PhantomData<fn() -> (K, V)>,
}

impl<'n, K: Key, V: Value> TableDef<'n, K, V> {
    /// A table of this name, 1 to 255 bytes (checked when it is opened).
    pub const fn new(name: &'n str) -> Self {
        TableDef { name, types: PhantomData }
    }

    /// The name.
    pub const fn name(&self) -> &'n str {
        self.name
    }

    /// The name, if it can be one.
    fn checked_name(&self) -> Result<&'n str> {
        check_name(self.name)?;
        Ok(self.name)
    }
}

impl<K, V> Clone for TableDef<'_, K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for TableDef<'_, K, V> {}

impl<K: Key, V: Value> fmt::Debug for TableDef<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TableDef({:?}: {} -> {})", self.name, K::type_name(), V::type_name())
    }
}

fn check_name(name: &str) -> Result<()> {
    if (1..=MAX_NAME_BYTES).contains(&name.len()) {
        return Ok(());
    }
    Err(Error::invalid(format!("a table name of {} bytes; it must have 1 to {MAX_NAME_BYTES}", name.len())))
}

impl Transaction {
    /// Opens a table, and makes it if it is missing. `TypeMismatch` if it was made with other types.
    ///
    /// ```
    /// # fn main() -> hamal::Result<()> {
    /// use hamal::{Database, TableDef};
    ///
    /// const ACCOUNTS: TableDef<&str, u64> = TableDef::new("accounts");
    ///
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path().join("bank.hamal");
    /// let db = Database::open(path)?;
    /// let tx = db.begin()?;
    /// {
    ///     let mut accounts = tx.open_table(ACCOUNTS)?;
    ///     accounts.insert("alice", 100)?;
    ///     accounts.insert("bob", 20)?;
    ///     assert_eq!(accounts.get("alice")?.unwrap_or(0), 100);
    ///     let mut total = 0;
    ///     for row in accounts.range("a".."n")? {
    ///         let (_name, cents) = row?;
    ///         total += cents;
    ///     }
    ///     assert_eq!(total, 120);
    /// }
    /// tx.commit()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn open_table<K: Key, V: Value>(&self, table: TableDef<'_, K, V>) -> Result<Table<'_, K, V>> {
        let name = table.checked_name()?;
        let opened = self.open_raw(name, Some((&K::type_name(), &V::type_name())), true)?;
        Ok(Table::new(ReadTable::new(opened)))
    }

    /// Makes a table that is cut into range partitions at these keys, and opens it: the first partition has the keys below the lowest
    /// split key, each other one those from its own split key on. No split keys: one partition, as [`Transaction::open_table`] makes it.
    /// Each partition is a file, a tree and a recovery scope of its own; whoever reads and writes the table sees no difference.
    /// `AlreadyExists`; `InvalidArgument` if a split key is empty when encoded, comes twice, or has more than a quarter page less 69 bytes.
    ///
    /// ```
    /// # fn main() -> hamal::Result<()> {
    /// use hamal::{Database, TableDef};
    ///
    /// const ACCOUNTS: TableDef<&str, u64> = TableDef::new("accounts");
    ///
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path().join("bank.hamal");
    /// let db = Database::open(path)?;
    /// db.transact(|tx| tx.create_table(ACCOUNTS, ["h", "p"])?.put("alice", 100))?;
    /// assert_eq!(db.tables()?[0].partitions.len(), 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn create_table<'k, K: Key, V: Value>(
        &self,
        table: TableDef<'_, K, V>,
        splits: impl IntoIterator<Item = K::View<'k>>,
    ) -> Result<Table<'_, K, V>> {
        let name = table.checked_name()?;
        let mut keys = Vec::new();
        for split in splits {
            let mut key = Vec::new();
            K::encode(&split, &mut key)?;
            keys.push(key);
        }
        let created = self.create_raw(name, (&K::type_name(), &V::type_name()), keys)?;
        Ok(Table::new(ReadTable::new(created)))
    }

    /// As [`Transaction::create_table`], for a table of byte strings.
    pub fn create_bytes_table<S: AsRef<[u8]>>(
        &self,
        name: &str,
        splits: &[S],
    ) -> Result<Table<'_, &'static [u8], &'static [u8]>> {
        check_name(name)?;
        let splits = splits.iter().map(|split| split.as_ref().to_vec()).collect();
        let created = self.create_raw(name, ("bytes", "bytes"), splits)?;
        Ok(Table::new(ReadTable::new(created)))
    }

    /// Opens a table of any types as bytes, for tools that know no types; makes one of byte strings if it is missing. What is
    /// written must be what the table's types encode to; nobody checks that.
    pub fn open_bytes_table(&self, name: &str) -> Result<Table<'_, &'static [u8], &'static [u8]>> {
        check_name(name)?;
        let opened = self.open_raw(name, None, true)?;
        Ok(Table::new(ReadTable::new(opened)))
    }
}

impl Database {
    /// As [`Database::split`], at a key of the table's type; `TypeMismatch` if the table was made with other types.
    pub fn split_table<K: Key, V: Value>(
        &self,
        table: TableDef<'_, K, V>,
        key: &K::View<'_>,
        progress: &mut dyn FnMut(ReshapeProgress) -> ControlFlow<()>,
    ) -> Result<ReshapeReport> {
        self.split(table.checked_name()?, &self.bound(table, key)?, progress)
    }

    /// As [`Database::merge`], at a key of the table's type; `TypeMismatch` if the table was made with other types.
    pub fn merge_table<K: Key, V: Value>(
        &self,
        table: TableDef<'_, K, V>,
        key: &K::View<'_>,
        progress: &mut dyn FnMut(ReshapeProgress) -> ControlFlow<()>,
    ) -> Result<ReshapeReport> {
        self.merge(table.checked_name()?, &self.bound(table, key)?, progress)
    }

    /// A key of a table that is there, encoded.
    fn bound<K: Key, V: Value>(&self, table: TableDef<'_, K, V>, key: &K::View<'_>) -> Result<Vec<u8>> {
        self.snapshot()?.open_table(table)?;
        let mut encoded = Vec::new();
        K::encode(key, &mut encoded)?;
        Ok(encoded)
    }
}

impl Snapshot {
    /// Opens a table. `NotFound` if there is none in this snapshot; `TypeMismatch` if it was made with other types.
    ///
    /// ```
    /// # fn main() -> hamal::Result<()> {
    /// use hamal::{Database, TableDef};
    ///
    /// const ACCOUNTS: TableDef<&str, u64> = TableDef::new("accounts");
    ///
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path().join("bank.hamal");
    /// let db = Database::open(path)?;
    /// db.transact(|tx| tx.open_table(ACCOUNTS)?.put("alice", 100))?;
    ///
    /// let snapshot = db.snapshot()?;
    /// let accounts = snapshot.open_table(ACCOUNTS)?;
    /// assert_eq!(accounts.get("alice")?, Some(100));
    /// assert_eq!(accounts.len()?, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn open_table<K: Key, V: Value>(&self, table: TableDef<'_, K, V>) -> Result<ReadTable<'_, K, V>> {
        let name = table.checked_name()?;
        let opened = self.open_raw(name, Some((&K::type_name(), &V::type_name())))?;
        Ok(ReadTable::new(opened))
    }

    /// Opens a table of any types as bytes, for tools that know no types. `NotFound` if there is none.
    pub fn open_bytes_table(&self, name: &str) -> Result<ReadTable<'_, &'static [u8], &'static [u8]>> {
        check_name(name)?;
        let opened = self.open_raw(name, None)?;
        Ok(ReadTable::new(opened))
    }
}
