//! Walking a table.

use std::fmt;
use std::iter::FusedIterator;

use super::read::{ReadTable, Row};
use super::write::Table;
use crate::raw::RawRange;
use crate::{Key, Result, Value};

/// Which end of a range.
#[derive(Clone, Copy, Debug)]
enum End {
    Front,
    Back,
}

/// What is wanted of a row. A long value costs I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Key,
    Both,
}

/// The rows of a range, from both ends: made by [`ReadTable::range`].
///
/// An item is an error where a row could not be read (then the range ends) or decoded (then the next item is the next row).
pub struct Range<'t, K, V> {
    table: ReadTable<'t, K, V>,
    raw: RawRange<'t>,
    key: Vec<u8>,
    value: Vec<u8>,
    ended: bool,
}

impl<'t, K: Key, V: Value> Range<'t, K, V> {
    pub(super) fn new(table: ReadTable<'t, K, V>, raw: RawRange<'t>) -> Self {
        Range { table, raw, key: Vec::new(), value: Vec::new(), ended: false }
    }

    /// Moves to the next row from this end: `self.key` and `self.value` hold it then.
    fn advance(&mut self, end: End, want: Want) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let value = (want == Want::Both).then_some(&mut self.value);
        let moved = match end {
            End::Front => self.raw.next(&mut self.key, value),
            End::Back => self.raw.next_back(&mut self.key, value),
        };
        self.ended = !matches!(moved, Ok(true));
        moved
    }

    /// Moves to the next row from the front and gives its encoded key.
    pub(super) fn next_encoded_key(&mut self) -> Result<Option<&[u8]>> {
        let moved = self.advance(End::Front, Want::Key)?;
        Ok(moved.then_some(&self.key))
    }

    fn key(&self) -> Result<K::Owned> {
        self.table.decode_key(&self.key)
    }

    fn value(&mut self) -> Result<V::Owned> {
        self.table.decode_value(&self.key, &mut self.value)
    }

    fn row(&mut self) -> Result<Row<K, V>> {
        Ok((self.key()?, self.value()?))
    }

    fn step<T>(
        &mut self,
        end: End,
        want: Want,
        decode: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Option<Result<T>> {
        match self.advance(end, want) {
            Ok(true) => Some(decode(self)),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

impl<K, V> fmt::Debug for Range<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Range")
            .field("table", &self.table)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl<K: Key, V: Value> Iterator for Range<'_, K, V> {
    type Item = Result<Row<K, V>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(End::Front, Want::Both, Range::row)
    }
}

impl<K: Key, V: Value> DoubleEndedIterator for Range<'_, K, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(End::Back, Want::Both, Range::row)
    }
}

impl<K: Key, V: Value> FusedIterator for Range<'_, K, V> {}

/// The keys of a table, from both ends: made by [`ReadTable::keys`].
#[derive(Debug)]
pub struct Keys<'t, K, V>(Range<'t, K, V>);

impl<'t, K: Key, V: Value> Keys<'t, K, V> {
    pub(super) fn new(range: Range<'t, K, V>) -> Self {
        Keys(range)
    }
}

impl<K: Key, V: Value> Iterator for Keys<'_, K, V> {
    type Item = Result<K::Owned>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.step(End::Front, Want::Key, |range| range.key())
    }
}

impl<K: Key, V: Value> DoubleEndedIterator for Keys<'_, K, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.step(End::Back, Want::Key, |range| range.key())
    }
}

impl<K: Key, V: Value> FusedIterator for Keys<'_, K, V> {}

/// The values of a table, by key, from both ends: made by [`ReadTable::values`].
#[derive(Debug)]
pub struct Values<'t, K, V>(Range<'t, K, V>);

impl<'t, K: Key, V: Value> Values<'t, K, V> {
    pub(super) fn new(range: Range<'t, K, V>) -> Self {
        Values(range)
    }
}

impl<K: Key, V: Value> Iterator for Values<'_, K, V> {
    type Item = Result<V::Owned>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.step(End::Front, Want::Both, Range::value)
    }
}

impl<K: Key, V: Value> DoubleEndedIterator for Values<'_, K, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.step(End::Back, Want::Both, Range::value)
    }
}

impl<K: Key, V: Value> FusedIterator for Values<'_, K, V> {}

/// Removes rows as it is advanced, from either end: made by [`Table::extract_if`].
pub struct ExtractIf<'a, 't, K, V, F> {
    table: &'a mut Table<'t, K, V>,
    range: Range<'t, K, V>,
    remove: F,
}

impl<'a, 't, K, V, F> ExtractIf<'a, 't, K, V, F> {
    pub(super) fn new(table: &'a mut Table<'t, K, V>, range: Range<'t, K, V>, remove: F) -> Self {
        ExtractIf { table, range, remove }
    }
}

impl<K, V, F> fmt::Debug for ExtractIf<'_, '_, K, V, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExtractIf").field("range", &self.range).finish_non_exhaustive()
    }
}

impl<K: Key, V: Value, F> ExtractIf<'_, '_, K, V, F>
where
    F: FnMut(&K::Owned, &V::Owned) -> bool,
{
    fn extract(&mut self, end: End) -> Option<Result<Row<K, V>>> {
        loop {
            let (key, value) = match self.range.step(end, Want::Both, Range::row)? {
                Ok(row) => row,
                Err(error) => return Some(Err(error)),
            };
            if (self.remove)(&key, &value) {
                let removed = self.table.raw().delete(&self.range.key);
                return Some(removed.map(|()| (key, value)));
            }
        }
    }
}

impl<K: Key, V: Value, F> Iterator for ExtractIf<'_, '_, K, V, F>
where
    F: FnMut(&K::Owned, &V::Owned) -> bool,
{
    type Item = Result<Row<K, V>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.extract(End::Front)
    }
}

impl<K: Key, V: Value, F> DoubleEndedIterator for ExtractIf<'_, '_, K, V, F>
where
    F: FnMut(&K::Owned, &V::Owned) -> bool,
{
    fn next_back(&mut self) -> Option<Self::Item> {
        self.extract(End::Back)
    }
}

impl<K: Key, V: Value, F> FusedIterator for ExtractIf<'_, '_, K, V, F> where
    F: FnMut(&K::Owned, &V::Owned) -> bool
{
}
