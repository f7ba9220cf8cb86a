//! Every invariant of a node that its own page can show.

use hamal_pager::header;

use super::view::Node;
use super::{
    Damage, HINT_COUNT, INNER_CELL_BYTES, LEAF_CELL_BYTES, SLOT_BYTES, SLOTS, Sort, common_bytes, damage,
    head_of, hint_distance, max_key_bytes, u16_at, u32_at,
};

/// Proves a node sound: counts, fences, prefix, slots, keys, cells, hints, the space account, stamps.
pub(crate) fn check_page(page: &[u8]) -> Result<(), Damage> {
    let node = Node::open(page)?;
    check_header(node)?;
    let mut used = Vec::with_capacity(node.len() + 2);
    check_fences(node, &mut used)?;
    for index in 0..node.len() {
        check_key(node, index)?;
        let bytes = match node.sort() {
            Sort::Leaf => check_leaf_cell(node, index)?,
            Sort::Inner => check_inner_cell(node, index)?,
        };
        used.push((node.slot(index)?.offset, bytes));
    }
    check_hints(node)?;
    check_heap(node, &mut used)
}

fn check_header(node: Node<'_>) -> Result<(), Damage> {
    let page = node.page();
    let start = node.heap_start();
    if start < SLOTS + node.len() * SLOT_BYTES || start > page.len() {
        return Err(damage("a heap between slots and the page's end", start));
    }
    let (level, leftmost) = (node.level(), u32_at(page, 60));
    match node.sort() {
        Sort::Leaf if level != 0 => Err(damage("level 0 for a leaf", level.into())),
        Sort::Leaf if leftmost != 0 => Err(damage("no child in a leaf", leftmost)),
        Sort::Inner if level == 0 => Err(damage("a level above 0 for an inner node", 0)),
        Sort::Inner if leftmost == 0 => Err(damage("a leftmost child", 0)),
        Sort::Inner if !start.is_multiple_of(8) => Err(damage("an aligned heap", start)),
        _ => Ok(()),
    }
}

fn check_fences(node: Node<'_>, used: &mut Vec<(usize, usize)>) -> Result<(), Damage> {
    let page = node.page();
    let (lower, upper) = (node.lower_fence()?, node.upper_fence()?);
    for (fence, offset) in [(lower, u16_at(page, 52)), (upper, u16_at(page, 56))] {
        if fence.len() > max_key_bytes(page.len()) {
            return Err(damage("a fence no longer than the longest key", fence.len()));
        }
        if fence.is_empty() {
            if offset != 0 {
                return Err(damage("offset 0 for a missing fence", offset));
            }
        } else if node.sort() == Sort::Inner && !offset.is_multiple_of(8) {
            return Err(damage("an aligned fence", offset));
        } else {
            used.push((offset, node.sort().heap_bytes(fence.len())));
        }
    }
    if !upper.is_empty() && lower >= upper {
        return Err(damage("a lower fence below the upper", lower.len()));
    }
    if node.prefix_bytes() != common_bytes(lower, upper) {
        return Err(damage("the fences' common prefix", node.prefix_bytes()));
    }
    Ok(())
}

fn check_key(node: Node<'_>, index: usize) -> Result<(), Damage> {
    let key = node.key(index)?;
    if key.len() > max_key_bytes(node.page().len()) {
        return Err(damage("a key no longer than the longest", key.len()));
    }
    if node.slot(index)?.head != head_of(key.back) {
        return Err(damage("a head that begins its key", index));
    }
    // The prefix is the same in all of them.
    if index > 0 && node.key(index - 1)?.back >= key.back {
        return Err(damage("keys in ascending order", index));
    }
    let order = key.compare(node.lower_fence()?);
    // A separator equal to the lower fence would leave the child before it without a range.
    if order.is_lt() || (order.is_eq() && node.sort() == Sort::Inner) {
        return Err(damage("a key above the lower fence", index));
    }
    let upper = node.upper_fence()?;
    if !upper.is_empty() && key.compare(upper).is_ge() {
        return Err(damage("a key below the upper fence", index));
    }
    Ok(())
}

fn check_leaf_cell(node: Node<'_>, index: usize) -> Result<usize, Damage> {
    let (page, offset) = (node.page(), node.slot(index)?.offset);
    let cell = node.cell(index)?;
    if page[offset + 8] > 3 || page[offset + 9] != 0 {
        return Err(damage("flags up to 3, and a zero", u16_at(page, offset + 8)));
    }
    if cell.row.stamp.0 > header::max_txn(page) {
        let found = cell.row.stamp.0;
        return Err(Damage { expected: "a stamp no later than the page's max_txn", found });
    }
    Ok(LEAF_CELL_BYTES + cell.suffix.len() + cell.capacity)
}

fn check_inner_cell(node: Node<'_>, index: usize) -> Result<usize, Damage> {
    let slot = node.slot(index)?;
    if !slot.offset.is_multiple_of(8) {
        return Err(damage("an aligned cell", slot.offset));
    }
    let bytes = Sort::Inner.cell_bytes(slot.suffix_bytes, 0);
    let Some(cell) = node.page().get(slot.offset..slot.offset + bytes) else {
        return Err(damage("a cell within the page", slot.offset));
    };
    if u32_at(cell, 0) == 0 {
        return Err(damage("a child", 0));
    }
    if u32_at(cell, 4) != 0 || cell[INNER_CELL_BYTES + slot.suffix_bytes..].iter().any(|&b| b != 0) {
        return Err(damage("zeros about a separator", index));
    }
    Ok(bytes)
}

fn check_hints(node: Node<'_>) -> Result<(), Damage> {
    let distance = hint_distance(node.len());
    for hint in 0..HINT_COUNT {
        let head = if distance == 0 { 0 } else { node.slot((hint + 1) * distance)?.head };
        if node.hint(hint) != head {
            return Err(damage("a hint that repeats its slot's head", hint));
        }
    }
    Ok(())
}

/// Cells and fences lie in the heap, do not overlap, and add up.
fn check_heap(node: Node<'_>, used: &mut [(usize, usize)]) -> Result<(), Damage> {
    used.sort_unstable();
    let (mut end, mut sum) = (node.heap_start(), 0);
    for &(offset, bytes) in used.iter() {
        if offset < end {
            return Err(damage("heap items that do not overlap", offset));
        }
        end = offset + bytes;
        sum += bytes;
    }
    if end > node.page().len() {
        return Err(damage("a heap within the page", end));
    }
    if sum != node.live_bytes() {
        return Err(damage("live bytes that are the sum of the heap's items", node.live_bytes()));
    }
    Ok(())
}
