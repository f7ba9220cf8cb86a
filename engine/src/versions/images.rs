//! The before-images of one writer, or of several that no view tells apart, in memory. Buffers are kept per thread: a short
//! transaction allocates none.

use std::cell::RefCell;
use std::hash::BuildHasher;
use std::mem;
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

#[derive(Debug, Default)]
struct Buffers {
    /// Indexes into `images`.
    index: HashTable<u32>,
    images: Vec<Image>,
    /// Keys and values; those of images that were removed stay until there are too many.
    bytes: Vec<u8>,
}

impl Buffers {
    fn memory_bytes(&self) -> usize {
        let index_bytes = self.index.capacity() * (size_of::<u32>() + 1);
        self.bytes.capacity() + self.images.capacity() * size_of::<Image>() + index_bytes
    }
}

/// Images by table and key.
#[derive(Debug)]
pub(super) struct Images {
    buffers: Buffers,
    dead_bytes: usize,
    hasher: DefaultHashBuilder,
}

/// Dead bytes that are not worth an effort.
const FEW_BYTES: usize = 64 << 10;
/// Buffers that one thread keeps, at most.
const KEPT: usize = 16;
/// Larger ones are not kept, bytes.
const KEPT_BYTES: usize = 4 << 10;

thread_local! {
    static POOL: RefCell<Vec<Buffers>> = const { RefCell::new(Vec::new()) };
}

impl Default for Images {
    fn default() -> Self {
        // No pool while the thread ends: then they are just new.
        let kept = POOL.try_with(|pool| pool.borrow_mut().pop()).ok().flatten();
        Images { buffers: kept.unwrap_or_default(), dead_bytes: 0, hasher: DefaultHashBuilder::default() }
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        if self.buffers.memory_bytes() > KEPT_BYTES {
            return;
        }
        let mut buffers = mem::take(&mut self.buffers);
        buffers.index.clear();
        buffers.images.clear();
        buffers.bytes.clear();
        let _no_pool = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                pool.push(buffers);
            }
        });
    }
}

impl Images {
    pub(super) fn len(&self) -> usize {
        self.buffers.index.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffers.index.is_empty()
    }

    fn hash(&self, table: u32, key: &[u8]) -> u64 {
        self.hasher.hash_one((table, key))
    }

    fn is_at(&self, at: u32, table: u32, key: &[u8]) -> bool {
        let image = &self.buffers.images[at as usize];
        image.table == table && self.buffers.bytes[image.key.clone()] == *key
    }

    fn before(&self, image: &Image) -> Before<'_> {
        match &image.before {
            None => Before::Absent,
            Some(Kept { stamp, ghost, overflow, value }) => Before::Row(Row {
                stamp: *stamp,
                ghost: *ghost,
                overflow: *overflow,
                value: &self.buffers.bytes[value.clone()],
            }),
        }
    }

    pub(super) fn find(&self, table: u32, key: &[u8]) -> Option<Before<'_>> {
        let at = self.buffers.index.find(self.hash(table, key), |at| self.is_at(*at, table, key))?;
        Some(self.before(&self.buffers.images[*at as usize]))
    }

    /// All images, in no order: table, key and what was there.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &[u8], Before<'_>)> {
        self.buffers.index.iter().map(|at| {
            let image = &self.buffers.images[*at as usize];
            (image.table, &self.buffers.bytes[image.key.clone()], self.before(image))
        })
    }

    fn keep(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.buffers.bytes.len();
        self.buffers.bytes.extend_from_slice(bytes);
        start..self.buffers.bytes.len()
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
        let at = self.buffers.images.len() as u32;
        self.buffers.images.push(Image { table, key, before });
        let Images { buffers: Buffers { index, images, bytes }, hasher, .. } = self;
        index.insert_unique(hash, at, |at| {
            let image = &images[*at as usize];
            hasher.hash_one((image.table, &bytes[image.key.clone()]))
        });
    }

    /// Removes a key's image, if it has one.
    pub(super) fn remove(&mut self, table: u32, key: &[u8]) {
        let hash = self.hash(table, key);
        let Images { buffers: Buffers { index, images, bytes }, .. } = self;
        let found = index.find_entry(hash, |at| {
            let image = &images[*at as usize];
            image.table == table && bytes[image.key.clone()] == *key
        });
        let Ok(found) = found else { return };
        let image = &images[found.remove().0 as usize];
        self.dead_bytes += image.key.len() + image.before.as_ref().map_or(0, |kept| kept.value.len());
        if self.dead_bytes > self.buffers.bytes.len() / 2 && self.dead_bytes > FEW_BYTES
            || self.buffers.index.is_empty()
        {
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
        self.buffers.memory_bytes() as u64
    }
}
