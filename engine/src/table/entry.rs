//! One key's place in a table, looked up once and then changed.

#![expect(
    clippy::needless_pass_by_value,
    reason = "a view goes in by value: so literals, &String and &[u8; N] coerce to it"
)]

use std::fmt;

use super::plain::Plain;
use super::scratch::Scratch;
use super::write::Table;
use crate::{Key, Result, Value};

/// The place of one key: made by [`Table::entry`].
///
/// As in `BTreeMap`, but values are given and returned, not borrowed: there is nothing in memory to borrow from.
#[derive(Debug)]
pub enum Entry<'a, 't, K: Key, V: Value> {
    /// The key is there.
    Occupied(OccupiedEntry<'a, 't, K, V>),
    /// It is not.
    Vacant(VacantEntry<'a, 't, K, V>),
}

/// The place of a key that is there.
pub struct OccupiedEntry<'a, 't, K: Key, V: Value> {
    place: Place<'a, 't, K, V>,
    value: V::Owned,
}

/// The place of a key that is not there.
pub struct VacantEntry<'a, 't, K: Key, V: Value> {
    place: Place<'a, 't, K, V>,
}

struct Place<'a, 't, K: Key, V: Value> {
    table: &'a mut Table<'t, K, V>,
    encoded: Scratch,
    key: K::Owned,
}

impl<K: Key, V: Value> Place<'_, '_, K, V> {
    fn put(&mut self, value: &V::View<'_>) -> Result<()> {
        self.table.raw().put(&self.encoded, &Plain::of::<V>(value)?)
    }
}

impl<'a, 't, K: Key, V: Value> Entry<'a, 't, K, V> {
    pub(super) fn new(
        table: &'a mut Table<'t, K, V>,
        encoded: Scratch,
        value: Option<V::Owned>,
    ) -> Result<Self> {
        let key = table.decode_key(&encoded)?;
        let place = Place { table, encoded, key };
        Ok(match value {
            Some(value) => Entry::Occupied(OccupiedEntry { place, value }),
            None => Entry::Vacant(VacantEntry { place }),
        })
    }

    /// The key.
    pub fn key(&self) -> &K::Owned {
        match self {
            Entry::Occupied(entry) => entry.key(),
            Entry::Vacant(entry) => entry.key(),
        }
    }

    /// Changes the value, if there is one.
    pub fn and_modify(self, change: impl FnOnce(&mut V::Owned)) -> Result<Self> {
        match self {
            Entry::Occupied(mut entry) => {
                change(&mut entry.value);
                entry.place.put(&V::view(&entry.value))?;
                Ok(Entry::Occupied(entry))
            }
            vacant @ Entry::Vacant(_) => Ok(vacant),
        }
    }

    /// Writes this value if there is none; returns the one that is there now.
    pub fn or_insert(self, value: V::View<'_>) -> Result<V::Owned> {
        match self {
            Entry::Occupied(entry) => Ok(entry.value),
            Entry::Vacant(mut entry) => {
                let mut encoded = Scratch::new();
                V::encode(&value, &mut encoded)?;
                let Place { table, encoded: key, .. } = &mut entry.place;
                table.raw().put(key, &encoded)?;
                table.decode_value(key, &mut encoded)
            }
        }
    }

    /// As [`Entry::or_insert`], with a value that is made only if it is needed.
    pub fn or_insert_with(self, make: impl FnOnce() -> V::Owned) -> Result<V::Owned> {
        self.or_insert_with_key(|_| make())
    }

    /// As [`Entry::or_insert_with`], with a value made from the key.
    pub fn or_insert_with_key(self, make: impl FnOnce(&K::Owned) -> V::Owned) -> Result<V::Owned> {
        match self {
            Entry::Occupied(entry) => Ok(entry.value),
            Entry::Vacant(mut entry) => {
                let value = make(&entry.place.key);
                entry.place.put(&V::view(&value))?;
                Ok(value)
            }
        }
    }

    /// As [`Entry::or_insert`], with the type's default.
    pub fn or_default(self) -> Result<V::Owned>
    where
        V::Owned: Default,
    {
        self.or_insert_with(V::Owned::default)
    }
}

impl<K: Key, V: Value> OccupiedEntry<'_, '_, K, V> {
    /// The key.
    pub fn key(&self) -> &K::Owned {
        &self.place.key
    }

    /// The value.
    pub fn get(&self) -> &V::Owned {
        &self.value
    }

    /// Writes another value; returns the one it replaces.
    pub fn insert(mut self, value: V::View<'_>) -> Result<V::Owned> {
        self.place.put(&value)?;
        Ok(self.value)
    }

    /// Removes the row; returns its value.
    pub fn remove(self) -> Result<V::Owned> {
        self.remove_entry().map(|(_, value)| value)
    }

    /// Removes the row and returns it.
    pub fn remove_entry(self) -> Result<(K::Owned, V::Owned)> {
        self.place.table.raw().delete(&self.place.encoded)?;
        Ok((self.place.key, self.value))
    }
}

impl<K: Key, V: Value> VacantEntry<'_, '_, K, V> {
    /// The key.
    pub fn key(&self) -> &K::Owned {
        &self.place.key
    }

    /// The key, taken.
    pub fn into_key(self) -> K::Owned {
        self.place.key
    }

    /// Writes a value.
    pub fn insert(mut self, value: V::View<'_>) -> Result<()> {
        self.place.put(&value)
    }
}

impl<K: Key, V: Value> fmt::Debug for OccupiedEntry<'_, '_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OccupiedEntry").field("table", &self.place.table).finish_non_exhaustive()
    }
}

impl<K: Key, V: Value> fmt::Debug for VacantEntry<'_, '_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VacantEntry").field("table", &self.place.table).finish_non_exhaustive()
    }
}
