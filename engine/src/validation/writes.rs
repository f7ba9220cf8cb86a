//! What one transaction has written: gathered while it runs, published when it commits.

use crate::validation::keys::KeySet;

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

    /// A copy for the history, exactly as large as it must be; the buffers stay here, to be used again. `counts` are the tables whose
    /// number of rows the transaction changed.
    pub(crate) fn publish(&mut self, counts: impl Iterator<Item = u32>) -> Published {
        let mut counts: Vec<u32> = counts.collect();
        counts.sort_unstable();
        counts.dedup();
        if counts.len() * size_of::<u32>() > self.limit_bytes {
            counts.clear();
            self.keys.everything();
        }
        self.keys.sort();
        Published { keys: self.keys.to_packed(), counts: counts.into_boxed_slice() }
    }
}

/// What a commit wrote: sorted, and never changed again.
#[derive(Debug)]
pub(crate) struct Published {
    keys: KeySet,
    counts: Box<[u32]>,
}

impl Published {
    /// Whether the commit wrote nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.counts.is_empty()
    }

    /// Bytes it uses.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.keys.bytes() + size_of_val::<[u32]>(&self.counts)
    }

    /// The keys.
    pub(super) fn keys(&self) -> &KeySet {
        &self.keys
    }

    /// Tables whose number of rows changed, rising.
    pub(super) fn counts(&self) -> &[u32] {
        &self.counts
    }
}
