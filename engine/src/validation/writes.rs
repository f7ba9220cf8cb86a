//! What one transaction has written: gathered while it runs, published when it commits.

use crate::validation::Writes;
use crate::validation::keys::KeySet;
use crate::validation::span::Span;

/// What one transaction has written so far. Keys that a rollback to a savepoint took back stay in it: coarser, not wrong.
#[derive(Debug)]
pub(crate) struct WriteSet {
    keys: KeySet,
    limit_bytes: usize,
}

impl WriteSet {
    /// An empty set that will use this many bytes at most.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        WriteSet { keys: KeySet::new(limit_bytes), limit_bytes }
    }

    /// Empties it for the next transaction, keeping what is not too large of its buffers.
    pub(crate) fn clear(&mut self) {
        self.keys.clear();
    }

    /// A key was inserted, changed or removed.
    #[inline]
    pub(crate) fn add(&mut self, table: u32, key: &[u8]) {
        self.keys.point(table, key);
    }

    /// Number of keys so far, repeats included.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The keys, sorted.
    pub(super) fn sorted(&mut self) -> &KeySet {
        self.keys.sort();
        &self.keys
    }

    /// Whether nothing was written.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Bytes it uses, never above its limit.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.keys.bytes()
    }

    /// A copy; the buffers stay here, to be used again. `counts` are the tables whose number of rows the transaction changed, rising.
    #[cfg(test)]
    pub(crate) fn publish(&mut self, counts: &[u32]) -> Published {
        let mut published = Published::default();
        published.refill(self, counts);
        published
    }
}

/// What a commit wrote: sorted, and not changed as long as anybody else may look at it.
#[derive(Debug)]
pub(crate) struct Published {
    keys: KeySet,
    counts: Vec<u32>,
}

impl Default for Published {
    fn default() -> Self {
        Published { keys: KeySet::new(0), counts: Vec::new() }
    }
}

impl Published {
    /// Becomes what a transaction has written. `counts` are the tables whose number of rows it changed, rising.
    pub(crate) fn refill(&mut self, writes: &mut WriteSet, counts: &[u32]) {
        self.counts.clear();
        self.counts.extend_from_slice(counts);
        if self.counts.len() * size_of::<u32>() > writes.limit_bytes {
            self.counts.clear();
            writes.keys.everything();
        }
        writes.keys.sort();
        self.keys.copy(&writes.keys);
    }

    /// The least and the greatest table that were written to, or counted: every one, if not more is remembered.
    pub(super) fn table_range(&self) -> (u32, u32) {
        table_range(&self.keys, &self.counts)
    }

    /// Bytes it uses.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.keys.bytes() + size_of_val(&self.counts[..])
    }

    /// The keys.
    pub(super) fn keys(&self) -> &KeySet {
        &self.keys
    }
}

impl Writes for Published {
    fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.counts.is_empty()
    }

    fn is_everything(&self) -> bool {
        self.keys.is_everything()
    }

    fn is_exact(&self) -> bool {
        self.keys.is_exact()
    }

    fn overlap<'a>(&'a self, reads: &'a KeySet) -> Option<Span<'a>> {
        reads.overlap(&self.keys)
    }

    fn counts(&self) -> &[u32] {
        &self.counts
    }
}

/// The least and the greatest table among sorted keys and tables: every table, if the keys are not remembered.
pub(super) fn table_range(keys: &KeySet, counts: &[u32]) -> (u32, u32) {
    if keys.is_everything() {
        return (0, u32::MAX);
    }
    let counts = counts.first().copied().zip(counts.last().copied());
    let ranges = keys.table_range().into_iter().chain(counts);
    // Of nothing: one that meets no other.
    ranges.fold((u32::MAX, 0), |all, range| (all.0.min(range.0), all.1.max(range.1)))
}
