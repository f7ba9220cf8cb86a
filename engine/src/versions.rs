//! Before-images of rows, for views that do not see the row's last writer (after Umbra: Freitag, Kemper, Neumann, VLDB 2022).
//!
//! Owns the images; the rows are the tree's, who sees what is [`View`]'s. Images are kept by writer: a reader that does not see a row's
//! stamp asks that writer's table what it found there, then that image's stamp, and so on down.
//!
//! I1. A row's stamp and its writer's table change in one exclusive section of the leaf's latch, the table first; a reader
//!     resolves a row before it unlatches. Order: leaf latch, then a table's mutex (hazard H7).
//! I2. What a table says of a key is what was there before its writer's *first* write to it. No word of a key whose row has the
//!     writer's stamp means: a ghost's row was there with the same bytes, settled; a row was not there (or only a settled ghost).
//!     So inserts and removals of settled rows, which are most of them, keep nothing.
//! I3. A table goes when every view, live or to come, sees its writer.

use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use parking_lot::{Mutex, RwLock};

use crate::change::Row;
use crate::ids::TxnId;
use crate::view::View;

/// A row that is kept apart from any page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnedRow {
    pub(crate) stamp: TxnId,
    pub(crate) ghost: bool,
    pub(crate) overflow: bool,
    pub(crate) value: Vec<u8>,
}

impl OwnedRow {
    fn set(&mut self, row: Row<'_>) {
        (self.stamp, self.ghost, self.overflow) = (row.stamp, row.ghost, row.overflow);
        self.value.clear();
        self.value.extend_from_slice(row.value);
    }

    pub(crate) fn as_row(&self) -> Row<'_> {
        Row { stamp: self.stamp, ghost: self.ghost, overflow: self.overflow, value: &self.value }
    }
}

/// What a view sees of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The row as it is.
    Current,
    /// No row.
    Absent,
    /// The row as it is, but not removed.
    Revived,
    /// An older one, which has been copied out.
    Older,
}

/// What a writer found at a key.
#[derive(Clone, Debug)]
enum Before {
    Absent,
    Row { stamp: TxnId, ghost: bool, overflow: bool, value: Range<usize> },
}

#[derive(Clone, Debug)]
struct Image {
    table: u32,
    key: Range<usize>,
    before: Before,
}

/// The images of one writer.
#[derive(Debug, Default)]
struct Images {
    /// Indexes into `images`, by table and key.
    index: HashTable<u32>,
    images: Vec<Image>,
    /// Keys and values.
    bytes: Vec<u8>,
    hasher: DefaultHashBuilder,
}

impl Images {
    fn hash(&self, table: u32, key: &[u8]) -> u64 {
        self.hasher.hash_one((table, key))
    }

    fn find(&self, table: u32, key: &[u8]) -> Option<&Image> {
        let equal = |at: &u32| {
            let image = &self.images[*at as usize];
            image.table == table && self.bytes[image.key.clone()] == *key
        };
        self.index.find(self.hash(table, key), equal).map(|at| &self.images[*at as usize])
    }

    fn keep(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    fn add(&mut self, table: u32, key: &[u8], before: Option<Row<'_>>) {
        let hash = self.hash(table, key);
        let key = self.keep(key);
        let before = match before {
            None => Before::Absent,
            Some(Row { stamp, ghost, overflow, value }) => {
                Before::Row { stamp, ghost, overflow, value: self.keep(value) }
            }
        };
        let at = self.images.len() as u32;
        self.images.push(Image { table, key, before });
        let Images { index, images, bytes, hasher } = self;
        index.insert_unique(hash, at, |at| {
            let image = &images[*at as usize];
            hasher.hash_one((image.table, &bytes[image.key.clone()]))
        });
    }

    fn remove(&mut self, table: u32, key: &[u8]) {
        let hash = self.hash(table, key);
        let Images { index, images, bytes, .. } = self;
        let equal = |at: &u32| {
            let image = &images[*at as usize];
            image.table == table && bytes[image.key.clone()] == *key
        };
        if let Ok(found) = index.find_entry(hash, equal) {
            found.remove();
        }
        if self.index.is_empty() {
            self.images.clear();
            self.bytes.clear();
        }
    }

    fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.images.capacity() * size_of::<Image>() + self.index.capacity() * 8
    }
}

/// The before-images of one writer, shared with readers.
#[derive(Debug)]
pub(crate) struct VersionTable {
    writer: TxnId,
    images: Mutex<Images>,
    /// What is counted of it in [`Versions::bytes`].
    counted_bytes: AtomicU64,
}

/// All before-images.
#[derive(Debug, Default)]
pub(crate) struct Versions {
    tables: RwLock<HashMap<TxnId, Arc<VersionTable>>>,
    bytes: AtomicU64,
}

impl Versions {
    /// A table for a writer that is about to keep its first image.
    pub(crate) fn open(&self, writer: TxnId) -> Arc<VersionTable> {
        let images = Mutex::default();
        let table = Arc::new(VersionTable { writer, images, counted_bytes: AtomicU64::new(0) });
        self.tables.write().insert(writer, table.clone());
        table
    }

    /// The table of a writer, if it has kept anything.
    pub(crate) fn of(&self, writer: TxnId) -> Option<Arc<VersionTable>> {
        self.tables.read().get(&writer).cloned()
    }

    /// What a view sees of a row, which the caller has under its leaf's latch. `older` is filled where it is an older one.
    pub(crate) fn resolve(
        &self,
        view: &View,
        table: u32,
        key: &[u8],
        row: Row<'_>,
        older: &mut OwnedRow,
    ) -> Seen {
        if view.sees(row.stamp) {
            return if row.ghost { Seen::Absent } else { Seen::Current };
        }
        let (mut stamp, mut ghost, mut seen) = (row.stamp, row.ghost, Seen::Revived);
        loop {
            let found = self.of(stamp).is_some_and(|versions| {
                let images = versions.images.lock();
                let Some(image) = images.find(table, key) else { return false };
                match &image.before {
                    Before::Absent => (ghost, seen) = (true, Seen::Absent),
                    Before::Row { stamp, ghost, overflow, value } => {
                        let value = &images.bytes[value.clone()];
                        older.set(Row { stamp: *stamp, ghost: *ghost, overflow: *overflow, value });
                        seen = Seen::Older;
                    }
                }
                true
            });
            match (found, seen) {
                (true, Seen::Older) => (stamp, ghost) = (older.stamp, older.ghost),
                (true, _) => return Seen::Absent,
                // The stamp explains itself (I2): the row was removed, settled before; or inserted.
                (false, _) if ghost => {
                    older.ghost = false;
                    return seen;
                }
                (false, _) => return Seen::Absent,
            }
            if view.sees(stamp) {
                return if ghost { Seen::Absent } else { Seen::Older };
            }
        }
    }

    /// Drops the tables of writers that every view sees.
    pub(crate) fn drop_below(&self, horizon: TxnId, writers: impl IntoIterator<Item = TxnId>) {
        debug_assert!(horizon > TxnId::NONE, "the horizon is a transaction's id");
        let mut gone = Vec::new();
        {
            let mut tables = self.tables.write();
            for writer in writers {
                debug_assert!(writer < horizon, "images of {writer} are needed from {horizon} on");
                gone.extend(tables.remove(&writer));
            }
        }
        for table in &gone {
            self.bytes.fetch_sub(table.counted_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Drops a writer's table: it has rolled back, and no row has its stamp any more.
    pub(crate) fn forget(&self, writer: TxnId) {
        if let Some(table) = self.tables.write().remove(&writer) {
            self.bytes.fetch_sub(table.counted_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Memory that images take, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Writers whose images are kept.
    pub(crate) fn writers(&self) -> usize {
        self.tables.read().len()
    }

    /// Accounts for what a table has grown or shrunk by.
    fn count(&self, table: &VersionTable, images: &Images) {
        let now = images.memory_bytes() as u64;
        let before = table.counted_bytes.swap(now, Ordering::Relaxed);
        self.bytes.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }
}

/// What a writer does to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Writes a value.
    Put,
    /// Makes it a ghost; its bytes stay.
    Remove,
}

/// Whether a writer must keep what it is about to change (I2), if nothing is kept of the key yet. `horizon`: stamps below are settled.
pub(crate) fn must_keep(writer: TxnId, old: Option<Row<'_>>, write: Write, horizon: TxnId) -> bool {
    match old {
        None => false,
        // Its own insert is removed, or its own ghost written over: then the stamp no longer explains itself.
        Some(old) if old.stamp == writer => old.ghost == (write == Write::Put),
        Some(old) => old.stamp >= horizon || (write == Write::Put && !old.ghost),
    }
}

impl VersionTable {
    /// Keeps a row that its writer is about to change, unless the key's row is kept already. The leaf is latched exclusively, and
    /// [`must_keep`] said so.
    pub(crate) fn keep(&self, versions: &Versions, table: u32, key: &[u8], old: Row<'_>) {
        let images = &mut *self.images.lock();
        if images.find(table, key).is_some() {
            return;
        }
        let before = match (old.stamp == self.writer, old.ghost) {
            (false, _) => Some(old),
            // Its first write removed a settled row.
            (true, true) => Some(Row { stamp: TxnId::NONE, ghost: false, ..old }),
            // Its first write was an insert.
            (true, false) => None,
        };
        images.add(table, key, before);
        versions.count(self, images);
    }

    /// The key's row has got back a stamp that is not the writer's: nothing need be kept of it. The leaf is latched exclusively.
    pub(crate) fn undone(&self, versions: &Versions, table: u32, key: &[u8]) {
        let images = &mut *self.images.lock();
        images.remove(table, key);
        versions.count(self, images);
    }
}
