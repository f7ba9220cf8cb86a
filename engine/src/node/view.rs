//! Reading a node under its latch, or a private copy of one.
//!
//! What opens a node and finds a cell in it is always inlined. What is returned through memory is read back in larger pieces than it was written in,
//! and a processor answers that only once all that came before is done: so a row that is not in the cache would be asked for only
//! when its cell's header has come, which was up to a sixth of the time of a `get` in a tree that a processor's own caches do not hold.

use std::cmp::Ordering;
use std::ops::Range;

use hamal_pager::{PageNo, header};

use super::{
    Damage, FLAG_GHOST, FLAG_OVERFLOW, HINT_COUNT, HINTS, INNER_CELL_BYTES, LEAF_CELL_BYTES, SLOT_BYTES,
    SLOTS, Slot, Sort, damage, head_of, hint_distance, u16_at, u32_at, u64_at,
};
use crate::change::Row;
use crate::ids::TxnId;

/// A key in two parts, one after the other: a node's prefix and a suffix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a> {
    pub(crate) front: &'a [u8],
    pub(crate) back: &'a [u8],
}

impl<'a> Key<'a> {
    pub(crate) fn whole(key: &'a [u8]) -> Key<'a> {
        Key { front: &[], back: key }
    }

    pub(crate) fn len(self) -> usize {
        self.front.len() + self.back.len()
    }

    /// The key without its first `bytes`, if it has as many.
    pub(crate) fn skip(self, bytes: usize) -> Option<Key<'a>> {
        match self.front.get(bytes..) {
            Some(front) => Some(Key { front, back: self.back }),
            None => Some(Key { front: &[], back: self.back.get(bytes - self.front.len()..)? }),
        }
    }

    pub(crate) fn append_to(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.front);
        out.extend_from_slice(self.back);
    }

    pub(crate) fn to_vec(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        self.append_to(&mut bytes);
        bytes
    }

    pub(crate) fn compare(self, key: &[u8]) -> Ordering {
        let cut = self.front.len().min(key.len());
        self.front.cmp(&key[..cut]).then_with(|| self.back.cmp(&key[cut..]))
    }
}

/// A leaf's cell, decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeafCell<'a> {
    pub(crate) suffix: &'a [u8],
    pub(crate) row: Row<'a>,
    pub(crate) capacity: usize,
}

/// A page seen as a node. Opening it has shown that its slots lie within the page, nothing more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node<'a> {
    page: &'a [u8],
    slots: &'a [[u8; SLOT_BYTES]],
    sort: Sort,
}

impl<'a> Node<'a> {
    #[expect(clippy::inline_always, reason = "see the module")]
    #[inline(always)]
    pub(crate) fn open(page: &'a [u8]) -> Result<Node<'a>, Damage> {
        let sort = Sort::of(page)?;
        let count = u16_at(page, 40);
        let Some(slots) = page.get(SLOTS..SLOTS + count * SLOT_BYTES) else {
            return Err(damage("a slot count that fits the page", count));
        };
        Ok(Node { page, slots: slots.as_chunks().0, sort })
    }

    /// Opens a page that must be a leaf.
    #[expect(clippy::inline_always, reason = "see the module")]
    #[inline(always)]
    pub(crate) fn leaf(page: &'a [u8]) -> Result<Node<'a>, Damage> {
        Node::open(page)?.expect_sort(Sort::Leaf, "a leaf (4)")
    }

    /// Opens a page that must be an inner node.
    pub(crate) fn inner(page: &'a [u8]) -> Result<Node<'a>, Damage> {
        Node::open(page)?.expect_sort(Sort::Inner, "an inner node (3)")
    }

    #[expect(clippy::inline_always, reason = "see the module")]
    #[inline(always)]
    fn expect_sort(self, sort: Sort, expected: &'static str) -> Result<Node<'a>, Damage> {
        if self.sort == sort {
            return Ok(self);
        }
        Err(damage(expected, header::kind(self.page).into()))
    }

    pub(crate) fn page(self) -> &'a [u8] {
        self.page
    }

    pub(crate) fn sort(self) -> Sort {
        self.sort
    }

    pub(crate) fn level(self) -> u8 {
        header::level(self.page)
    }

    /// Number of slots: rows of a leaf, separators of an inner node.
    pub(crate) fn len(self) -> usize {
        self.slots.len()
    }

    pub(super) fn prefix_bytes(self) -> usize {
        u16_at(self.page, 42)
    }

    pub(super) fn heap_start(self) -> usize {
        u32_at(self.page, 44)
    }

    pub(super) fn live_bytes(self) -> usize {
        u32_at(self.page, 48)
    }

    /// Bytes free for cells and slots, however scattered (I2).
    pub(crate) fn free_bytes(self) -> usize {
        self.page.len().saturating_sub(SLOTS + self.len() * SLOT_BYTES).saturating_sub(self.live_bytes())
    }

    /// Bytes between the last slot and the heap.
    pub(super) fn gap_bytes(self) -> usize {
        self.heap_start().min(self.page.len()).saturating_sub(SLOTS + self.len() * SLOT_BYTES)
    }

    /// The gap's place, if the header makes sense.
    pub(crate) fn gap(self) -> Option<Range<usize>> {
        let (start, end) = (SLOTS + self.len() * SLOT_BYTES, self.heap_start());
        (start <= end && end <= self.page.len()).then_some(start..end)
    }

    fn fence(self, at: usize) -> Result<&'a [u8], Damage> {
        let (offset, bytes) = (u16_at(self.page, at), u16_at(self.page, at + 2));
        self.page.get(offset..offset + bytes).ok_or(damage("a fence within the page", offset + bytes))
    }

    /// Keys are at or above it; empty: no bound.
    pub(crate) fn lower_fence(self) -> Result<&'a [u8], Damage> {
        self.fence(52)
    }

    /// Keys are below it; empty: no bound.
    pub(crate) fn upper_fence(self) -> Result<&'a [u8], Damage> {
        self.fence(56)
    }

    /// The bytes every key begins with.
    pub(crate) fn prefix(self) -> Result<&'a [u8], Damage> {
        let bytes = self.prefix_bytes();
        self.lower_fence()?.get(..bytes).ok_or(damage("a prefix no longer than the lower fence", bytes))
    }

    pub(super) fn slot(self, index: usize) -> Result<Slot, Damage> {
        match self.slots.get(index) {
            Some(bytes) => Ok(Slot::from_word(u64::from_le_bytes(*bytes))),
            None => Err(damage("a slot below the slot count", index)),
        }
    }

    pub(super) fn hint(self, index: usize) -> u32 {
        u32_at(self.page, HINTS + 4 * index) as u32
    }

    fn suffix_of(self, slot: Slot) -> Result<&'a [u8], Damage> {
        let start = slot.offset + self.sort.cell_header_bytes();
        self.page
            .get(start..start + slot.suffix_bytes)
            .ok_or(damage("a key within the page", start + slot.suffix_bytes))
    }

    /// The key of slot `index`.
    pub(crate) fn key(self, index: usize) -> Result<Key<'a>, Damage> {
        Ok(Key { front: self.prefix()?, back: self.suffix_of(self.slot(index)?)? })
    }

    /// The row in slot `index` of a leaf.
    #[expect(clippy::inline_always, reason = "see the module")]
    #[inline(always)]
    pub(crate) fn cell(self, index: usize) -> Result<LeafCell<'a>, Damage> {
        self.cell_at(self.slot(index)?)
    }

    #[expect(clippy::inline_always, reason = "see the module")]
    #[inline(always)]
    fn cell_at(self, slot: Slot) -> Result<LeafCell<'a>, Damage> {
        let out = damage("a cell within the page", slot.offset);
        let cell = self.page.get(slot.offset..).ok_or(out)?;
        let (head, rest) = cell.split_at_checked(LEAF_CELL_BYTES).ok_or(out)?;
        let (suffix, rest) = rest.split_at_checked(slot.suffix_bytes).ok_or(out)?;
        let (value_bytes, capacity) = (u16_at(head, 10), u16_at(head, 12));
        if capacity > rest.len() {
            return Err(out);
        }
        let value = rest[..capacity]
            .get(..value_bytes)
            .ok_or(damage("a value no longer than its capacity", value_bytes))?;
        let row = Row {
            stamp: TxnId(u64_at(head, 0)),
            ghost: head[8] & FLAG_GHOST != 0,
            overflow: head[8] & FLAG_OVERFLOW != 0,
            value,
        };
        Ok(LeafCell { suffix, row, capacity })
    }

    /// Child `index` of an inner node, 0 (the leftmost) to `len()`.
    pub(crate) fn child(self, index: usize) -> Result<PageNo, Damage> {
        let Some(slot) = index.checked_sub(1) else {
            return Ok(PageNo(u32_at(self.page, 60) as u32));
        };
        let at = self.slot(slot)?.offset;
        let cell = self.page.get(at..at + INNER_CELL_BYTES).ok_or(damage("a cell within the page", at))?;
        Ok(PageNo(u32_at(cell, 0) as u32))
    }

    /// The index of `key`'s slot, or else that of the first slot above it.
    pub(crate) fn search(self, key: &[u8]) -> Result<Result<usize, usize>, Damage> {
        let bytes = self.prefix_bytes();
        let Some(suffix) = key.get(bytes..) else {
            return Err(damage("a prefix that the key searched for begins with", bytes));
        };
        let head = head_of(suffix);
        let (mut low, mut high) = self.hinted_range(head);
        while low < high {
            let middle = low.midpoint(high);
            let slot = Slot::from_word(u64::from_le_bytes(self.slots[middle]));
            let order = match slot.head.cmp(&head) {
                Ordering::Equal => self.compare_tails(slot, suffix)?,
                order => order,
            };
            match order {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(Ok(middle)),
            }
        }
        Ok(Err(low))
    }

    /// Compares a slot's key with a suffix that has the same head.
    fn compare_tails(self, slot: Slot, suffix: &[u8]) -> Result<Ordering, Damage> {
        // With equal heads, one that ends within the head is the other's prefix but for zeros.
        if slot.suffix_bytes <= 4 || suffix.len() <= 4 {
            return Ok(slot.suffix_bytes.cmp(&suffix.len()));
        }
        Ok(self.suffix_of(slot)?[4..].cmp(&suffix[4..]))
    }

    /// The range of slots that the hints leave for a head, within the slots.
    fn hinted_range(self, head: u32) -> (usize, usize) {
        let count = self.slots.len();
        let distance = hint_distance(count);
        if distance == 0 {
            return (0, count);
        }
        let (mut below, mut not_above) = (0, 0);
        for hint in self.page[HINTS..SLOTS].as_chunks::<4>().0 {
            let hint = u32::from_le_bytes(*hint);
            below += usize::from(hint < head);
            not_above += usize::from(hint <= head);
        }
        let high = if not_above == HINT_COUNT { count } else { (not_above + 1) * distance };
        ((below * distance).min(high), high)
    }
}
