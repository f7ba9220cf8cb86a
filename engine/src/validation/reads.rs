//! What one transaction has read.
//!
//! I1. A range counts as read whole from the moment it is opened, and is narrowed to what was examined when it ends. So an iterator that
//!     is leaked makes the set coarser, never wrong.
//! I2. Open ranges have an arena of their own, used as a stack, for ranges mostly end in the reverse order of their opening.
//! I3. The limit has three parts: an eighth for open ranges, an eighth for row counts, the rest for keys. Open ranges beyond their
//!     part are taken as read whole; counts beyond theirs, as everything read.

use std::ops::Bound;

use crate::validation::keys::{KeySet, StoredSpan};
use crate::validation::span::{Cut, Span};
use crate::validation::writes::table_range;

/// A range that was opened; of one [`ReadSet`], also after that was cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RangeId(u64);

/// A range that has not ended.
#[derive(Debug)]
struct OpenRange {
    id: RangeId,
    span: StoredSpan,
    /// Where its keys end in the arena.
    arena_end: usize,
}

/// What one transaction has read.
#[derive(Debug)]
pub(crate) struct ReadSet {
    keys: KeySet,
    open: Vec<OpenRange>,
    open_arena: Vec<u8>,
    open_limit_bytes: usize,
    next_range: u64,
    /// Tables; sorted when there is something to check.
    counts: Vec<u32>,
    counts_limit: usize,
}

impl ReadSet {
    /// An empty set that will use about this many bytes at most.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        let eighth = (limit_bytes / 8).min(u32::MAX as usize);
        ReadSet {
            keys: KeySet::new(limit_bytes - 2 * eighth),
            open: Vec::new(),
            open_arena: Vec::new(),
            open_limit_bytes: eighth,
            next_range: 0,
            counts: Vec::new(),
            counts_limit: eighth / size_of::<u32>(),
        }
    }

    /// Empties it for the next transaction, keeping what is not too large of its buffers.
    pub(crate) fn clear(&mut self) {
        const KEPT_RANGES: usize = 16;
        const KEPT_KEY_BYTES: usize = 4 << 10;
        self.keys.clear();
        self.open.clear();
        self.open.shrink_to(KEPT_RANGES);
        self.open_arena.clear();
        self.open_arena.shrink_to(KEPT_KEY_BYTES);
        self.counts.clear();
        self.counts.shrink_to(KEPT_RANGES);
    }

    /// A key was looked up, and found or not.
    #[inline]
    pub(crate) fn point(&mut self, table: u32, key: &[u8]) {
        self.keys.point(table, key);
    }

    /// A range was opened; it counts as read whole until it is narrowed.
    pub(crate) fn range(&mut self, table: u32, lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> RangeId {
        let id = RangeId(self.next_range);
        self.next_range += 1;
        let span = Span { table, lo: Cut::lower(lower), hi: Cut::upper(upper) };
        if span.is_empty() {
            return id;
        }
        let needed = size_of::<OpenRange>() + span.key_bytes();
        if self.open_bytes() + needed > self.open_limit_bytes {
            self.close_all();
            if needed > self.open_limit_bytes {
                self.keys.span(span);
                self.keys.set_inexact();
                return id;
            }
        }
        let span = StoredSpan::append(&mut self.open_arena, span);
        self.open.push(OpenRange { id, span, arena_end: self.open_arena.len() });
        id
    }

    /// A range has ended, and this of it was examined: from its lower bound to `front`, and from `back` to its upper bound; `None` is
    /// nothing from that end. Does nothing to a range that was taken as read whole.
    pub(crate) fn narrow(&mut self, id: RangeId, front: Option<Bound<&[u8]>>, back: Option<Bound<&[u8]>>) {
        let Some(index) = self.open.iter().rposition(|range| range.id == id) else { return };
        let range = self.open.remove(index);
        let span = range.span.view(&self.open_arena);
        if let Some(front) = front {
            self.keys.span(Span { hi: Cut::upper(front).min(span.hi), ..span });
        }
        if let Some(back) = back {
            self.keys.span(Span { lo: Cut::lower(back).max(span.lo), ..span });
        }
        self.open_arena.truncate(self.open.last().map_or(0, |last| last.arena_end));
    }

    /// A table's number of rows was read.
    pub(crate) fn count(&mut self, table: u32) {
        if self.counts.last() == Some(&table) {
            return;
        }
        if self.counts.len() >= self.counts_limit {
            self.sort_counts();
            // Half must be free now, or the next call would sort again.
            if self.counts.len() >= self.counts_limit.div_ceil(2) {
                self.counts.clear();
                self.keys.everything();
                return;
            }
        }
        self.counts.push(table);
    }

    /// Number of keys, intervals and row counts so far, repeats included.
    pub(crate) fn len(&self) -> usize {
        self.keys.len() + self.open.len() + self.counts.len()
    }

    /// Whether nothing was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.open.is_empty() && self.counts.is_empty()
    }

    /// Bytes it uses, never above its limit.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.keys.bytes() + self.open_bytes() + self.counts.len() * size_of::<u32>()
    }

    /// Sorts it, to be checked; costs nothing if nothing was read since the last time. Ranges that are open are taken as read whole.
    pub(crate) fn prepare(&mut self) -> PreparedReads<'_> {
        self.close_all();
        self.keys.sort();
        self.sort_counts();
        PreparedReads { keys: &self.keys, counts: &self.counts }
    }

    fn open_bytes(&self) -> usize {
        self.open_arena.len() + self.open.len() * size_of::<OpenRange>()
    }

    /// Takes the open ranges as read whole.
    fn close_all(&mut self) {
        if self.open.is_empty() {
            return;
        }
        self.keys.set_inexact();
        for range in self.open.drain(..) {
            self.keys.span(range.span.view(&self.open_arena));
        }
        self.open_arena.clear();
    }

    fn sort_counts(&mut self) {
        self.counts.sort_unstable();
        self.counts.dedup();
    }
}

/// A [`ReadSet`] that is sorted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PreparedReads<'r> {
    keys: &'r KeySet,
    counts: &'r [u32],
}

impl<'r> PreparedReads<'r> {
    /// Whether nothing was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.counts.is_empty()
    }

    /// The least and the greatest table that was read or counted: every one, if not more is remembered.
    pub(super) fn table_range(&self) -> (u32, u32) {
        table_range(self.keys, self.counts)
    }

    /// The keys and intervals.
    pub(super) fn keys(&self) -> &'r KeySet {
        self.keys
    }

    /// Tables whose number of rows was read, rising.
    pub(super) fn counts(&self) -> &'r [u32] {
        self.counts
    }
}
