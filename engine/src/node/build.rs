//! Writing a node from scratch: compaction, purge, split and merge all rebuild their pages here.

use hamal_pager::{PageNo, header};

use super::view::{Key, Node};
use super::{
    FLAG_GHOST, FLAG_OVERFLOW, HINT_COUNT, HINTS, SLOT_BYTES, SLOTS, Slot, Sort, common_bytes, head_of,
    hint_distance, set_u16, set_u32, u16_at, u64_at,
};
use crate::change::Row;

/// What sort of node, and where its first child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Leaf,
    Inner { level: u8, leftmost: PageNo },
}

impl Shape {
    pub(crate) fn of(node: Node<'_>) -> Result<Shape, super::Damage> {
        Ok(match node.sort() {
            Sort::Leaf => Shape::Leaf,
            Sort::Inner => Shape::Inner { level: node.level(), leftmost: node.child(0)? },
        })
    }

    fn sort(self) -> Sort {
        match self {
            Shape::Leaf => Sort::Leaf,
            Shape::Inner { .. } => Sort::Inner,
        }
    }
}

/// Fills a page with a node, slot by slot in key order. Leaves the pager's header alone, kind and level apart.
/// `None` from any step: it does not fit; the page is then of no use.
#[derive(Debug)]
pub(crate) struct Builder<'p> {
    page: &'p mut [u8],
    sort: Sort,
    prefix_bytes: usize,
    count: usize,
    heap: usize,
}

impl<'p> Builder<'p> {
    /// Starts a node between two fences (empty: no bound).
    pub(crate) fn new(page: &'p mut [u8], shape: Shape, fences: [&[u8]; 2]) -> Option<Self> {
        page[header::HEADER_BYTES..].fill(0);
        match shape {
            Shape::Leaf => {
                header::set_kind(page, header::kind::LEAF);
                header::set_level(page, 0);
            }
            Shape::Inner { level, leftmost } => {
                header::set_kind(page, header::kind::INNER);
                header::set_level(page, level);
                set_u32(page, 60, leftmost.0 as usize);
            }
        }
        let prefix_bytes = common_bytes(fences[0], fences[1]);
        let heap = page.len();
        let mut builder = Builder { page, sort: shape.sort(), prefix_bytes, count: 0, heap };
        set_u16(builder.page, 42, prefix_bytes);
        for (at, fence) in [(56, fences[1]), (52, fences[0])] {
            if !fence.is_empty() {
                let offset = builder.take(fence.len())?;
                builder.page[offset..offset + fence.len()].copy_from_slice(fence);
                set_u16(builder.page, at, offset);
                set_u16(builder.page, at + 2, fence.len());
            }
        }
        Some(builder)
    }

    fn take(&mut self, bytes: usize) -> Option<usize> {
        let heap = self.heap.checked_sub(self.sort.heap_bytes(bytes))?;
        if heap < SLOTS + self.count * SLOT_BYTES {
            return None;
        }
        self.heap = heap;
        Some(heap)
    }

    /// Appends a slot and the room for its cell; returns the cell's offset and suffix length.
    fn push(&mut self, key: Key<'_>, value_capacity: usize) -> Option<(usize, usize)> {
        let suffix = key.skip(self.prefix_bytes)?;
        let bytes = suffix.len();
        self.count += 1;
        let offset = self.take(self.sort.cell_header_bytes() + bytes + value_capacity)?;
        let start = offset + self.sort.cell_header_bytes();
        let middle = start + suffix.front.len();
        self.page[start..middle].copy_from_slice(suffix.front);
        self.page[middle..start + bytes].copy_from_slice(suffix.back);
        let slot = Slot { offset, suffix_bytes: bytes, head: head_of(&self.page[start..start + bytes]) };
        set_slot(self.page, self.count - 1, slot);
        Some((offset, bytes))
    }

    /// Appends a row to a leaf.
    pub(crate) fn push_row(&mut self, key: Key<'_>, row: Row<'_>, capacity: usize) -> Option<()> {
        let (offset, suffix_bytes) = self.push(key, capacity)?;
        write_cell(self.page, offset, suffix_bytes, row);
        set_u16(self.page, offset + 12, capacity);
        Some(())
    }

    /// Appends a separator and the child to its right to an inner node.
    pub(crate) fn push_child(&mut self, key: Key<'_>, child: PageNo) -> Option<()> {
        let (offset, _) = self.push(key, 0)?;
        set_u32(self.page, offset, child.0 as usize);
        Some(())
    }

    /// Appends slot `index` of another node of the same sort.
    pub(crate) fn push_from(&mut self, node: Node<'_>, index: usize) -> Option<()> {
        let key = node.key(index).ok()?;
        match self.sort {
            Sort::Leaf => {
                let cell = node.cell(index).ok()?;
                self.push_row(key, cell.row, cell.capacity)
            }
            Sort::Inner => self.push_child(key, node.child(index + 1).ok()?),
        }
    }

    /// Completes the header.
    pub(crate) fn finish(self) {
        set_u16(self.page, 40, self.count);
        set_u32(self.page, 44, self.heap);
        let live_bytes = self.page.len() - self.heap;
        set_u32(self.page, 48, live_bytes);
        set_hints(self.page, 0);
    }
}

pub(super) fn set_slot(page: &mut [u8], index: usize, slot: Slot) {
    let at = SLOTS + index * SLOT_BYTES;
    page[at..at + SLOT_BYTES].copy_from_slice(&slot.to_word().to_le_bytes());
}

/// Writes all of a leaf's cell but key and capacity. The capacity is at least the value's length.
pub(super) fn write_cell(page: &mut [u8], offset: usize, suffix_bytes: usize, row: Row<'_>) {
    page[offset..offset + 8].copy_from_slice(&row.stamp.0.to_le_bytes());
    page[offset + 8] = if row.ghost { FLAG_GHOST } else { 0 } | if row.overflow { FLAG_OVERFLOW } else { 0 };
    page[offset + 9] = 0;
    set_u16(page, offset + 10, row.value.len());
    let start = offset + Sort::Leaf.cell_header_bytes() + suffix_bytes;
    page[start..start + row.value.len()].copy_from_slice(row.value);
}

/// Sets the hints anew after slots from `from` on have changed place (all of them if the distance may have changed).
pub(super) fn set_hints(page: &mut [u8], from: usize) {
    let distance = hint_distance(u16_at(page, 40));
    for hint in 0..HINT_COUNT {
        let slot = (hint + 1) * distance;
        if slot < from {
            continue;
        }
        let head =
            if distance == 0 { 0 } else { Slot::from_word(u64_at(page, SLOTS + slot * SLOT_BYTES)).head };
        set_u32(page, HINTS + 4 * hint, head as usize);
    }
}
