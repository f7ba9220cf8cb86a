//! What a small commit has written: keys of one table, few and short.
//!
//! What a commit publishes is looked at, and taken away, by other threads than the one that has written it. If it lies in the history itself, in one
//! cache line, that is all that goes from processor to processor: no counter of references, no allocation, no buffers.
//!
//! I1. Its keys rise: so all but the first have bytes, and one that ends where the one before ends is none.

use crate::validation::Writes;
use crate::validation::keys::KeySet;
use crate::validation::span::{Sequence, Span};

/// Keys, at most.
const KEYS: usize = 2;
/// Bytes of all keys, at most: then an entry of the history is a cache line.
const KEY_BYTES: usize = 48;

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Brief {
    table: u32,
    /// Where each key ends in `bytes` (I1).
    ends: [u8; KEYS],
    /// Whether the table's number of rows changed.
    is_counted: bool,
    bytes: [u8; KEY_BYTES],
}

impl Default for Brief {
    fn default() -> Self {
        Brief::EMPTY
    }
}

impl Brief {
    pub(super) const EMPTY: Brief =
        Brief { table: 0, ends: [0; KEYS], is_counted: false, bytes: [0; KEY_BYTES] };

    /// Becomes the same as another.
    pub(super) fn set(&mut self, other: &Brief) {
        self.table = other.table;
        self.ends = other.ends;
        self.is_counted = other.is_counted;
        self.bytes = other.bytes;
    }

    /// Becomes what was written, if it has room for that. `keys` are sorted; `counts`: the tables whose number of rows changed, rising.
    pub(super) fn refill(&mut self, keys: &KeySet, counts: &[u32]) -> bool {
        let Some((table, _)) = keys.each_point().next() else { return false };
        let has_room = keys.is_few_points(KEYS, KEY_BYTES) && keys.table_range() == Some((table, table));
        if !has_room || counts.iter().any(|counted| *counted != table) {
            return false;
        }
        self.table = table;
        self.is_counted = !counts.is_empty();
        let mut end = 0;
        let mut points = keys.each_point();
        for key_end in &mut self.ends {
            if let Some((_, key)) = points.next() {
                self.bytes[end..end + key.len()].copy_from_slice(key);
                end += key.len();
            }
            *key_end = end as u8;
        }
        true
    }

    /// The table it wrote to.
    pub(super) fn table(&self) -> u32 {
        self.table
    }
}

impl Writes for Brief {
    fn is_empty(&self) -> bool {
        false
    }

    fn is_everything(&self) -> bool {
        false
    }

    fn is_exact(&self) -> bool {
        true
    }

    fn overlap<'a>(&'a self, reads: &'a KeySet) -> Option<Span<'a>> {
        reads.overlap_with(self)
    }

    fn counts(&self) -> &[u32] {
        if self.is_counted { std::slice::from_ref(&self.table) } else { &[] }
    }
}

impl<'b> Sequence<'b> for &'b Brief {
    fn len(&self) -> usize {
        if self.ends[1] > self.ends[0] { 2 } else { 1 }
    }

    fn at(&self, index: usize) -> Span<'b> {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Span::point(self.table, &self.bytes[usize::from(start)..usize::from(self.ends[index])])
    }
}
