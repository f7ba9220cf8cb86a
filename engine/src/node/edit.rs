//! Changing a node in place. Every function here either does all of its work or, on a damaged page, nothing.

use std::cell::RefCell;

use hamal_pager::PageNo;

use super::build::{set_hints, set_slot, write_cell};
use super::view::Node;
use super::{
    Builder, Damage, FLAG_GHOST, SLOT_BYTES, SLOTS, Shape, Slot, Sort, common_bytes, damage, head_of,
    hint_distance, max_key_bytes, set_u16, set_u32, u16_at,
};
use crate::change::Row;
use crate::ids::TxnId;

/// Where a row or separator goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// Over the row in this slot, whose capacity suffices.
    Over(usize),
    /// In place of the row in this slot, in a cell of its own.
    Instead(usize),
    /// Into a new slot here.
    New(usize),
    /// It does not fit: so many bytes are free, so many needed.
    Full { free_bytes: usize, needed_bytes: usize },
}

/// Where a row with a value of `value_bytes` goes; `found` is what `node.search(key)` said.
pub(crate) fn plan_row(
    node: Node<'_>,
    key: &[u8],
    found: Result<usize, usize>,
    value_bytes: usize,
) -> Result<Room, Damage> {
    let (room, needed_bytes) = match found {
        Ok(slot) => {
            let capacity = node.cell(slot)?.capacity;
            if value_bytes <= capacity {
                return Ok(Room::Over(slot));
            }
            (Room::Instead(slot), value_bytes - capacity)
        }
        Err(slot) => {
            let suffix = key.len().saturating_sub(node.prefix_bytes());
            (Room::New(slot), SLOT_BYTES + node.sort().cell_bytes(suffix, value_bytes))
        }
    };
    Ok(room.unless_full(node, needed_bytes))
}

/// Where a separator goes. `Damage` if it is outside the fences, or there already.
pub(crate) fn plan_separator(node: Node<'_>, key: &[u8]) -> Result<Room, Damage> {
    if !node.covers(key)? || key <= node.lower_fence()? {
        return Err(damage("a separator within the node's fences", key.len()));
    }
    match node.search(key)? {
        Ok(slot) => Err(damage("a separator that is not there yet", slot)),
        Err(slot) => {
            let suffix = key.len() - node.prefix_bytes();
            Ok(Room::New(slot).unless_full(node, SLOT_BYTES + Sort::Inner.cell_bytes(suffix, 0)))
        }
    }
}

impl Room {
    fn unless_full(self, node: Node<'_>, needed_bytes: usize) -> Room {
        let free_bytes = node.free_bytes();
        if needed_bytes <= free_bytes { self } else { Room::Full { free_bytes, needed_bytes } }
    }
}

impl Node<'_> {
    /// Whether `key` lies within the fences.
    pub(crate) fn covers(self, key: &[u8]) -> Result<bool, Damage> {
        let upper = self.upper_fence()?;
        Ok(self.lower_fence()? <= key && (upper.is_empty() || key < upper))
    }

    /// What slot `index` and its cell take.
    pub(super) fn slot_and_cell_bytes(self, index: usize) -> Result<usize, Damage> {
        let capacity = if self.sort() == Sort::Leaf { self.cell(index)?.capacity } else { 0 };
        Ok(SLOT_BYTES + self.sort().cell_bytes(self.key(index)?.back.len(), capacity))
    }

    /// What both fences take.
    pub(super) fn fence_bytes(self) -> Result<usize, Damage> {
        let sort = self.sort();
        Ok(sort.heap_bytes(self.lower_fence()?.len()) + sort.heap_bytes(self.upper_fence()?.len()))
    }
}

/// The page's length when compacted, by its cells themselves instead of its header's word.
pub(crate) fn compacted_bytes(node: Node<'_>) -> Result<usize, Damage> {
    check_prefix(node)?;
    let mut bytes = SLOTS + node.fence_bytes()?;
    for index in 0..node.len() {
        bytes += node.slot_and_cell_bytes(index)?;
    }
    Ok(bytes)
}

/// The page leaves out of its keys what its fences have in common, and nothing else: who rebuilds it, or adds a key, relies on that.
fn check_prefix(node: Node<'_>) -> Result<(), Damage> {
    if node.prefix_bytes() == common_bytes(node.lower_fence()?, node.upper_fence()?) {
        return Ok(());
    }
    Err(damage("a prefix that is what the fences have in common", node.prefix_bytes()))
}

/// The row of `key` becomes `row`; its capacity never shrinks (hazard H5).
pub(crate) fn put_row(page: &mut [u8], key: &[u8], row: Row<'_>) -> Result<(), Damage> {
    let node = Node::leaf(page)?;
    if row.value.len() > usize::from(u16::MAX) || key.len() > max_key_bytes(page.len()) {
        return Err(damage("a row that fits a leaf", key.len() + row.value.len()));
    }
    let found = node.search(key)?;
    let room = plan_row(node, key, found, row.value.len())?;
    let slot = match room {
        Room::Over(index) => {
            let slot = node.slot(index)?;
            write_cell(page, slot.offset, slot.suffix_bytes, row);
            return Ok(());
        }
        Room::New(index) | Room::Instead(index) => index,
        Room::Full { free_bytes, .. } => return Err(damage("room for the row", free_bytes)),
    };
    make_gap(page, key, row.value.len(), room)?;
    let suffix = &key[u16_at(page, 42)..];
    let offset = push_cell(page, slot, suffix, Sort::Leaf.cell_bytes(suffix.len(), row.value.len()));
    let start = offset + Sort::Leaf.cell_header_bytes();
    page[start..start + suffix.len()].copy_from_slice(suffix);
    set_u16(page, offset + 12, row.value.len());
    write_cell(page, offset, suffix.len(), row);
    Ok(())
}

/// The row of `key` gets this stamp and ghost flag; its value stays.
pub(crate) fn mark_row(page: &mut [u8], key: &[u8], stamp: TxnId, ghost: bool) -> Result<(), Damage> {
    let node = Node::leaf(page)?;
    let Ok(index) = node.search(key)? else { return Err(damage("the row to be marked", 0)) };
    node.cell(index)?;
    let offset = node.slot(index)?.offset;
    page[offset..offset + 8].copy_from_slice(&stamp.0.to_le_bytes());
    page[offset + 8] = (page[offset + 8] & !FLAG_GHOST) | if ghost { FLAG_GHOST } else { 0 };
    Ok(())
}

/// Adds a separator and the child to its right.
pub(crate) fn insert_separator(page: &mut [u8], key: &[u8], child: PageNo) -> Result<(), Damage> {
    let node = Node::inner(page)?;
    let room = plan_separator(node, key)?;
    let Room::New(slot) = room else {
        return Err(damage("room for the separator", node.free_bytes()));
    };
    make_gap(page, key, 0, room)?;
    let suffix = &key[u16_at(page, 42)..];
    let bytes = Sort::Inner.cell_bytes(suffix.len(), 0);
    let offset = push_cell(page, slot, suffix, bytes);
    page[offset..offset + bytes].fill(0);
    set_u32(page, offset, child.0 as usize);
    let start = offset + Sort::Inner.cell_header_bytes();
    page[start..start + suffix.len()].copy_from_slice(suffix);
    Ok(())
}

/// Removes a separator and the child to its right.
pub(crate) fn remove_separator(page: &mut [u8], key: &[u8]) -> Result<(), Damage> {
    let node = Node::inner(page)?;
    let Ok(slot) = node.search(key)? else {
        return Err(damage("the separator to be removed", key.len()));
    };
    let bytes = node.slot_and_cell_bytes(slot)?;
    remove_slot(page, slot, bytes - SLOT_BYTES);
    Ok(())
}

/// Drops ghosts stamped below `horizon` and trims rows stamped below it to their values: hazard H14's garbage.
pub(crate) fn purge(page: &mut [u8], horizon: TxnId) -> Result<(), Damage> {
    rebuild(page, |node, page| {
        let fences = [node.lower_fence().ok()?, node.upper_fence().ok()?];
        let mut builder = Builder::new(page, Shape::Leaf, fences)?;
        for index in 0..node.len() {
            let cell = node.cell(index).ok()?;
            let settled = cell.row.stamp < horizon;
            if !(settled && cell.row.ghost) {
                let capacity = if settled { cell.row.value.len() } else { cell.capacity };
                builder.push_row(node.key(index).ok()?, cell.row, capacity)?;
            }
        }
        builder.finish();
        Some(())
    })
}

/// What [`purge`] would free, bytes.
pub(crate) fn purge_gain_bytes(node: Node<'_>, horizon: TxnId) -> Result<usize, Damage> {
    let mut bytes = 0;
    for index in 0..node.len() {
        let cell = node.cell(index)?;
        if cell.row.stamp >= horizon {
            continue;
        }
        bytes += if cell.row.ghost {
            node.slot_and_cell_bytes(index)?
        } else {
            cell.capacity - cell.row.value.len()
        };
    }
    Ok(bytes)
}

/// Drops every key at or above `separator`, which becomes the upper fence. In an inner node the children right of
/// the dropped separators go with them.
pub(crate) fn truncate_right(page: &mut [u8], separator: &[u8]) -> Result<(), Damage> {
    let bytes = truncated_bytes(Node::open(page)?, separator)?;
    if bytes > page.len() {
        return Err(damage("a left half that fits its page", bytes));
    }
    rebuild(page, |node, page| {
        let fences = [node.lower_fence().ok()?, separator];
        let mut builder = Builder::new(page, Shape::of(node).ok()?, fences)?;
        for index in 0..node.search(separator).ok()?.unwrap_or_else(|index| index) {
            builder.push_from(node, index)?;
        }
        builder.finish();
        Some(())
    })
}

/// The page's length after [`truncate_right`] and compaction. `Damage` if the separator is not within the fences.
pub(crate) fn truncated_bytes(node: Node<'_>, separator: &[u8]) -> Result<usize, Damage> {
    let lower = node.lower_fence()?;
    if separator <= lower || separator.len() > max_key_bytes(node.page().len()) || !node.covers(separator)? {
        return Err(damage("a separator within the node's fences", separator.len()));
    }
    let sort = node.sort();
    let prefix_bytes = common_bytes(lower, separator);
    let mut bytes = SLOTS + sort.heap_bytes(lower.len()) + sort.heap_bytes(separator.len());
    for index in 0..node.search(separator)?.unwrap_or_else(|index| index) {
        let Some(suffix) = node.key(index)?.skip(prefix_bytes) else {
            return Err(damage("a key that begins with its page's prefix", index));
        };
        let capacity = if sort == Sort::Leaf { node.cell(index)?.capacity } else { 0 };
        bytes += SLOT_BYTES + sort.cell_bytes(suffix.len(), capacity);
    }
    Ok(bytes)
}

/// What a new cell needs of its page before it can be written.
#[derive(Clone, Copy, Debug)]
struct Growth {
    /// The slot it replaces, and that one's cell.
    without: Option<(usize, usize)>,
    compact: bool,
}

/// How to find the place that `room` needs; `Damage` if the page's cells leave less than its header says.
fn growth(node: Node<'_>, key: &[u8], value_bytes: usize, room: Room) -> Result<Growth, Damage> {
    let without = match room {
        Room::Instead(slot) => Some((slot, node.slot_and_cell_bytes(slot)? - SLOT_BYTES)),
        _ => None,
    };
    if node.sort() == Sort::Inner && !node.heap_start().is_multiple_of(8) {
        return Err(damage("an aligned heap", node.heap_start()));
    }
    check_prefix(node)?;
    let suffix_bytes = key.len().saturating_sub(node.prefix_bytes());
    let needed_bytes = SLOT_BYTES + node.sort().cell_bytes(suffix_bytes, value_bytes);
    let slot_bytes = without.map_or(0, |_| SLOT_BYTES);
    if node.gap_bytes() + slot_bytes >= needed_bytes {
        return Ok(Growth { without, compact: false });
    }
    let cell_bytes = without.map_or(0, |(_, bytes)| bytes);
    let bytes = compacted_bytes(node)? - slot_bytes - cell_bytes + needed_bytes;
    if bytes > node.page().len() {
        return Err(damage("cells and free space that add up to the page's size", bytes));
    }
    Ok(Growth { without, compact: true })
}

/// Whether the place that `room` promises can be had: `Damage` if the page's cells leave less than its header says.
pub(crate) fn check_growth(node: Node<'_>, key: &[u8], value_bytes: usize, room: Room) -> Result<(), Damage> {
    match room {
        Room::Over(_) => Ok(()),
        Room::New(_) | Room::Instead(_) => growth(node, key, value_bytes, room).map(|_| ()),
        Room::Full { free_bytes, .. } => Err(damage("room for the change", free_bytes)),
    }
}

/// Makes the gap that `room` needs.
fn make_gap(page: &mut [u8], key: &[u8], value_bytes: usize, room: Room) -> Result<(), Damage> {
    let growth = growth(Node::open(page)?, key, value_bytes, room)?;
    if let Some((slot, cell_bytes)) = growth.without {
        remove_slot(page, slot, cell_bytes);
    }
    if growth.compact { rebuild(page, copy_all) } else { Ok(()) }
}

fn copy_all(node: Node<'_>, page: &mut [u8]) -> Option<()> {
    let fences = [node.lower_fence().ok()?, node.upper_fence().ok()?];
    let mut builder = Builder::new(page, Shape::of(node).ok()?, fences)?;
    for index in 0..node.len() {
        builder.push_from(node, index)?;
    }
    builder.finish();
    Some(())
}

/// Takes a cell from the gap, which is big enough, and gives it a slot at `index`.
fn push_cell(page: &mut [u8], index: usize, suffix: &[u8], cell_bytes: usize) -> usize {
    let (count, heap_start, live_bytes) =
        { (u16_at(page, 40), super::u32_at(page, 44).min(page.len()), super::u32_at(page, 48)) };
    let offset = heap_start - cell_bytes;
    let at = SLOTS + index * SLOT_BYTES;
    page.copy_within(at..SLOTS + count * SLOT_BYTES, at + SLOT_BYTES);
    set_slot(page, index, Slot { offset, suffix_bytes: suffix.len(), head: head_of(suffix) });
    set_u16(page, 40, count + 1);
    set_u32(page, 44, offset);
    set_u32(page, 48, live_bytes + cell_bytes);
    hints_after(page, index, count);
    offset
}

fn remove_slot(page: &mut [u8], index: usize, cell_bytes: usize) {
    let count = u16_at(page, 40);
    let at = SLOTS + index * SLOT_BYTES;
    page.copy_within(at + SLOT_BYTES..SLOTS + count * SLOT_BYTES, at);
    set_u16(page, 40, count - 1);
    let live_bytes = super::u32_at(page, 48).saturating_sub(cell_bytes);
    set_u32(page, 48, live_bytes);
    hints_after(page, index, count);
}

/// Brings the hints up to date after the slots from `index` on have moved.
fn hints_after(page: &mut [u8], index: usize, old_count: usize) {
    let same = hint_distance(u16_at(page, 40)) == hint_distance(old_count);
    set_hints(page, if same { index } else { 0 });
}

/// Lets `fill` write the page anew from a copy of what it was. If it cannot, the page stays what it was.
fn rebuild(page: &mut [u8], fill: impl FnOnce(Node<'_>, &mut [u8]) -> Option<()>) -> Result<(), Damage> {
    thread_local! {
        static COPY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    COPY.with_borrow_mut(|copy| {
        copy.clear();
        copy.extend_from_slice(page);
        if fill(Node::open(copy)?, page).is_some() {
            return Ok(());
        }
        page.copy_from_slice(copy);
        Err(damage("cells that fit their page", u16_at(page, 40)))
    })
}
