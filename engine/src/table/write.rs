//! Writing a table.

#![expect(
    clippy::needless_pass_by_value,
    reason = "a view goes in by value: so literals, &String and &[u8; N] coerce to it"
)]

use std::fmt;
use std::io;
use std::ops::{Deref, RangeBounds};

use super::entry::Entry;
use super::iter::ExtractIf;
use super::plain::Plain;
use super::read::{ReadTable, Row};
use super::scratch::Scratch;
use crate::{Error, Key, Result, Value};

/// Rows that [`Table::clear`] removes between two looks at the table.
const CLEARED_ROWS: usize = 256;

/// A table in a [`crate::Transaction`]: everything a [`ReadTable`] has, and writing.
///
/// Names and meanings are those of `BTreeMap`; keys and values come out owned. A table may be opened several times in its
/// transaction; all handles see the same rows.
pub struct Table<'t, K, V>(ReadTable<'t, K, V>);

impl<K, V> fmt::Debug for Table<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Table").field(&self.0).finish()
    }
}

impl<'t, K, V> Deref for Table<'t, K, V> {
    type Target = ReadTable<'t, K, V>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<'t, K: Key, V: Value> Table<'t, K, V> {
    pub(super) fn new(read: ReadTable<'t, K, V>) -> Self {
        Table(read)
    }

    /// Writes a row and returns the value it replaces. Reads what was there; [`Table::put`] does not.
    pub fn insert(&mut self, key: K::View<'_>, value: V::View<'_>) -> Result<Option<V::Owned>> {
        let key = self.encode_own_key(&key)?;
        self.replace_encoded(&key, &Plain::of::<V>(&value)?)
    }

    /// Writes a row, whatever was there: a blind write, which is cheaper and conflicts with nobody's read.
    pub fn put(&mut self, key: K::View<'_>, value: V::View<'_>) -> Result<()> {
        let key = self.encode_own_key(&key)?;
        self.raw().put(&key, &Plain::of::<V>(&value)?)
    }

    /// Writes a row whose value is read from `source` to its end, in bounded memory; returns its length in bytes. The bytes
    /// must be an encoded value; of a byte string or string, they are its own bytes. On an error of `source` the row is as it was.
    /// `source` may read in this transaction; what it changes there is refused (`InvalidArgument`).
    pub fn insert_from(&mut self, key: K::View<'_>, mut source: impl io::Read) -> Result<u64> {
        let key = self.encode_own_key(&key)?;
        self.raw().put_stream(&key, &mut source)
    }

    /// Removes a row and returns its value. Reads what was there; [`Table::delete`] does not.
    pub fn remove(&mut self, key: K::View<'_>) -> Result<Option<V::Owned>> {
        self.take_encoded(&Plain::of::<K>(&key)?)
    }

    /// Removes a row if it is there, without saying so: a blind write.
    pub fn delete(&mut self, key: K::View<'_>) -> Result<()> {
        self.raw().delete(&Plain::of::<K>(&key)?)
    }

    /// The key's value, locked: nobody else can change it, or make it if it is missing, until this transaction ends. Waits for whoever has
    /// it locked. `Conflict` if it has changed since the transaction's start, unless the transaction has read nothing that has.
    pub fn get_for_update(&mut self, key: K::View<'_>) -> Result<Option<V::Owned>> {
        let encoded = self.encode_own_key(&key)?;
        let mut value = Scratch::new();
        if !self.raw().get_locked(&encoded, &mut value)? {
            return Ok(None);
        }
        self.decode_value(&encoded, &mut value).map(Some)
    }

    /// Removes the first row and returns it.
    pub fn pop_first(&mut self) -> Result<Option<Row<K, V>>> {
        self.extract_if(.., |_, _| true)?.next().transpose()
    }

    /// Removes the last row and returns it.
    pub fn pop_last(&mut self) -> Result<Option<Row<K, V>>> {
        self.extract_if(.., |_, _| true)?.next_back().transpose()
    }

    /// Keeps the rows that `keep` says yes to. After an error some of the others may be gone and some not.
    pub fn retain(&mut self, mut keep: impl FnMut(&K::Owned, &V::Owned) -> bool) -> Result<()> {
        for row in self.extract_if(.., |key, value| !keep(key, value))? {
            row?;
        }
        Ok(())
    }

    /// Removes the rows between two bounds that `remove` says yes to, one by one as the iterator is advanced. Rows it has not
    /// come to when it is dropped stay.
    pub fn extract_if<'a, 'k, F>(
        &'a mut self,
        bounds: impl RangeBounds<K::View<'k>>,
        remove: F,
    ) -> Result<ExtractIf<'a, 't, K, V, F>>
    where
        F: FnMut(&K::Owned, &V::Owned) -> bool,
    {
        let range = self.range(bounds)?;
        Ok(ExtractIf::new(self, range, remove))
    }

    /// Removes all rows.
    pub fn clear(&mut self) -> Result<()> {
        // In batches: a range that finds its table changed has to find its place again.
        let mut rows = self.iter()?;
        let mut keys: Vec<Vec<u8>> = Vec::with_capacity(CLEARED_ROWS);
        loop {
            while keys.len() < CLEARED_ROWS
                && let Some(key) = rows.next_encoded_key()?
            {
                keys.push(key.to_vec());
            }
            let last = keys.len() < CLEARED_ROWS;
            keys.drain(..).try_for_each(|key| self.raw().delete(&key))?;
            if last {
                return Ok(());
            }
        }
    }

    /// The place of a key, there or not, to look at and change in one go.
    ///
    /// ```
    /// # fn main() -> hamal::Result<()> {
    /// # use hamal::{Database, TableDef};
    /// const WORDS: TableDef<&str, u64> = TableDef::new("words");
    ///
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let db = Database::open(directory.path().join("words.hamal"))?;
    /// # let tx = db.begin()?;
    /// let mut words = tx.open_table(WORDS)?;
    /// for word in ["to", "be", "or", "not", "to", "be"] {
    ///     words.entry(word)?.and_modify(|count| *count += 1)?.or_insert(1)?;
    /// }
    /// assert_eq!(words.get("be")?, Some(2));
    /// # Ok(())
    /// # }
    /// ```
    pub fn entry(&mut self, key: K::View<'_>) -> Result<Entry<'_, 't, K, V>> {
        let encoded = self.encode_own_key(&key)?;
        let value = self.get(key)?;
        Entry::new(self, encoded.into_scratch(), value)
    }

    pub(super) fn replace_encoded(&mut self, key: &[u8], value: &[u8]) -> Result<Option<V::Owned>> {
        self.raw().replace(key, value, |mut old| self.decode_value(key, &mut old))
    }

    pub(super) fn take_encoded(&mut self, key: &[u8]) -> Result<Option<V::Owned>> {
        self.raw().take(key, |mut old| self.decode_value(key, &mut old))
    }

    /// Encodes a key that is to be stored: it must not be too long.
    fn encode_own_key<'v>(&self, key: &K::View<'v>) -> Result<Plain<'v>> {
        let encoded = Plain::of::<K>(key)?;
        let max_bytes = self.max_key_bytes();
        if encoded.len() > max_bytes {
            return Err(Error::invalid(format!(
                "a key of {} bytes in table {:?}; keys have at most {max_bytes} bytes at this page size",
                encoded.len(),
                self.name()
            )));
        }
        Ok(encoded)
    }
}
