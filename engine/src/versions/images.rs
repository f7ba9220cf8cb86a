//! The before-images of one writer, or of several that no view tells apart, in memory.

use std::hash::BuildHasher;
use std::ops::Range;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::change::Row;
use crate::ids::TxnId;

/// What a writer found at a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before<'i> {
    Absent,
    Row(Row<'i>),
}

#[derive(Clone, Debug)]
struct Image {
    table: u32,
    key: Range<usize>,
    before: Option<Kept>,
}

#[derive(Clone, Debug)]
struct Kept {
    stamp: TxnId,
    ghost: bool,
    overflow: bool,
    value: Range<usize>,
}

/// Images by table and key.
#[derive(Debug, Default)]
pub(super) struct Images {
    /// Indexes into `all`.
    index: HashTable<u32>,
    all: Vec<Image>,
    /// Keys and values; those of images that were removed stay until there are too many.
    bytes: Vec<u8>,
    dead_bytes: usize,
    hasher: DefaultHashBuilder,
}

/// Dead bytes that are not worth an effort.
const FEW_BYTES: usize = 64 << 10;

impl Images {
    /// Forgets them, and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.index.clear();
        self.all.clear();
        self.bytes.clear();
        self.dead_bytes = 0;
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    fn hash(&self, table: u32, key: &[u8]) -> u64 {
        self.hasher.hash_one((table, key))
    }

    fn is_at(&self, at: u32, table: u32, key: &[u8]) -> bool {
        let image = &self.all[at as usize];
        image.table == table && self.bytes[image.key.clone()] == *key
    }

    fn before(&self, image: &Image) -> Before<'_> {
        match &image.before {
            None => Before::Absent,
            Some(Kept { stamp, ghost, overflow, value }) => Before::Row(Row {
                stamp: *stamp,
                ghost: *ghost,
                overflow: *overflow,
                value: &self.bytes[value.clone()],
            }),
        }
    }

    pub(super) fn find(&self, table: u32, key: &[u8]) -> Option<Before<'_>> {
        let at = self.index.find(self.hash(table, key), |at| self.is_at(*at, table, key))?;
        Some(self.before(&self.all[*at as usize]))
    }

    /// All images, in no order: table, key and what was there.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &[u8], Before<'_>)> {
        self.index.iter().map(|at| {
            let image = &self.all[*at as usize];
            (image.table, &self.bytes[image.key.clone()], self.before(image))
        })
    }

    fn keep(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    /// Adds an image of a key that has none.
    pub(super) fn add(&mut self, table: u32, key: &[u8], before: Before<'_>) {
        let hash = self.hash(table, key);
        let key = self.keep(key);
        let before = match before {
            Before::Absent => None,
            Before::Row(Row { stamp, ghost, overflow, value }) => {
                Some(Kept { stamp, ghost, overflow, value: self.keep(value) })
            }
        };
        let at = self.all.len() as u32;
        self.all.push(Image { table, key, before });
        let Images { index, all, bytes, hasher, .. } = self;
        index.insert_unique(hash, at, |at| {
            let image = &all[*at as usize];
            hasher.hash_one((image.table, &bytes[image.key.clone()]))
        });
    }

    /// Removes a key's image, if it has one.
    pub(super) fn remove(&mut self, table: u32, key: &[u8]) {
        let hash = self.hash(table, key);
        let Images { index, all, bytes, .. } = self;
        let found = index.find_entry(hash, |at| {
            let image = &all[*at as usize];
            image.table == table && bytes[image.key.clone()] == *key
        });
        let Ok(found) = found else { return };
        let image = &all[found.remove().0 as usize];
        self.dead_bytes += image.key.len() + image.before.as_ref().map_or(0, |kept| kept.value.len());
        if self.dead_bytes > self.bytes.len() / 2 && self.dead_bytes > FEW_BYTES || self.index.is_empty() {
            self.compact();
        }
    }

    fn compact(&mut self) {
        let mut compacted = Images::default();
        self.iter().for_each(|(table, key, before)| compacted.add(table, key, before));
        *self = compacted;
    }

    /// Memory they take, bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        let index_bytes = self.index.capacity() * (size_of::<u32>() + 1);
        (self.bytes.capacity() + self.all.capacity() * size_of::<Image>() + index_bytes) as u64
    }
}
