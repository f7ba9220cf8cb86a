//! One B-tree page: the slotted node that leaves and inner nodes share.
//!
//! A *page* is the bytes; a *node* is what they say. All numbers are little-endian; the page begins with the pager's
//! header (`hamal_pager::header`). Normative: docs/file-format.md section 4.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 40 | 2 | `slot_count` |
//! | 42 | 2 | `prefix_bytes`: length of the prefix all keys share, which the slots leave out |
//! | 44 | 4 | `heap_start`: lowest used byte of the heap, which grows down from the page's end |
//! | 48 | 4 | `live_bytes`: sum of all cells and fences in the heap |
//! | 52 | 2 + 2 | offset and length of the lower fence; length 0: the empty key, no bound |
//! | 56 | 2 + 2 | offset and length of the upper fence; length 0: no bound (an upper fence is never empty) |
//! | 60 | 4 | inner: leftmost child; leaf: zero |
//! | 64 | 16 x 4 | hints: the heads of slots d, 2d, .. 16d for d = `slot_count` / 17; zero if d = 0 |
//! | 128 | 8 each | slots in key order: cell offset (2), suffix length (2), head (4) |
//!
//! *Suffix*: the key without the prefix. *Head*: the suffix's first four bytes, zero-padded, as a big-endian number, so
//! that one slot is one aligned word. *Prefix*: what the two fences have in common, nothing if one is missing.
//!
//! Leaf cell: stamp (8), flags (1: ghost 1, overflow 2), zero (1), value length (2), value capacity (2), suffix, value,
//! padding up to the capacity. Inner cell: child (4), zero (4), suffix, zeros up to a multiple of 8. In an inner node every heap
//! item starts at a multiple of 8, fences too, because optimistic readers load aligned words only.
//! Child i + 1 holds the keys from separator i (included) on, the leftmost child those below separator 0.
//!
//! I1. Keys ascend strictly and lie within the fences: `lower <= key < upper` (separators: `lower < key < upper`).
//! I2. Free space is a matter of content, not of layout: page - 128 - 8 * `slot_count` - `live_bytes`. A change that
//!     fits but finds no gap big enough compacts the page, silently: compaction keeps content, and is not logged.
//! I3. A cell's capacity shrinks by [`purge`] only (hazard H5).
//! I4. Any leaf holds one row, and any inner node two separators, of the greatest size between fences of the greatest size; any
//!     row can be added to any leaf by splitting it (proof at [`choose_leaf_cut`]).
//! I5. No byte of a page can make anything here panic, loop or allocate: what does not add up is [`Damage`].

mod build;
mod check;
mod cut;
mod edit;
mod route;
mod view;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fmt;

use hamal_pager::header::kind;

pub(crate) use build::{Builder, Shape};
pub(crate) use check::check_page;
pub(crate) use cut::{Cut, build_merged, build_right, choose_inner_cut, choose_leaf_cut, merged_bytes};
pub(crate) use edit::{
    Room, check_growth, compacted_bytes, insert_separator, mark_row, plan_row, plan_separator, purge,
    purge_gain_bytes, put_row, remove_separator, truncate_right, truncated_bytes,
};
pub(crate) use route::{Route, Target, route};
#[cfg(test)]
pub(crate) use view::Key;
pub(crate) use view::Node;

/// Where the slots begin: the size of the node header, pager's header included.
pub(crate) const SLOTS: usize = 128;
const SLOT_BYTES: usize = 8;
const HINTS: usize = 64;
const HINT_COUNT: usize = 16;
const LEAF_CELL_BYTES: usize = 14;
const INNER_CELL_BYTES: usize = 8;
const FLAG_GHOST: u8 = 1;
const FLAG_OVERFLOW: u8 = 2;

/// Longest key, bytes. A little below a quarter page, so that I4 holds.
pub(crate) const fn max_key_bytes(page_bytes: usize) -> usize {
    page_bytes / 4 - 64
}

/// Longest value beside a key of `key_bytes` (at most the longest key), bytes; never less than 32, room for an overflow
/// reference.
pub(crate) const fn max_value_bytes(page_bytes: usize, key_bytes: usize) -> usize {
    (page_bytes / 4 - 32).saturating_sub(key_bytes)
}

/// What a page says that a sound page would not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    /// What a sound page has.
    pub(crate) expected: &'static str,
    /// What this one has.
    pub(crate) found: u64,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, found {}", self.expected, self.found)
    }
}

const fn damage(expected: &'static str, found: usize) -> Damage {
    Damage { expected, found: found as u64 }
}

/// The two sorts of node, as far as their cells differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    Leaf,
    Inner,
}

impl Sort {
    fn of(page: &[u8]) -> Result<Sort, Damage> {
        match hamal_pager::header::kind(page) {
            kind::LEAF => Ok(Sort::Leaf),
            kind::INNER => Ok(Sort::Inner),
            other => Err(damage("a leaf (4) or inner node (3)", other as usize)),
        }
    }

    const fn cell_header_bytes(self) -> usize {
        match self {
            Sort::Leaf => LEAF_CELL_BYTES,
            Sort::Inner => INNER_CELL_BYTES,
        }
    }

    /// What an item of `bytes` takes in the heap.
    const fn heap_bytes(self, bytes: usize) -> usize {
        match self {
            Sort::Leaf => bytes,
            Sort::Inner => bytes.next_multiple_of(8),
        }
    }

    /// What a cell takes in the heap; `capacity` is 0 in inner nodes.
    const fn cell_bytes(self, suffix_bytes: usize, capacity: usize) -> usize {
        self.heap_bytes(self.cell_header_bytes() + suffix_bytes + capacity)
    }
}

fn u16_at(page: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([page[at], page[at + 1]]))
}

fn u32_at(page: &[u8], at: usize) -> usize {
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]) as usize
}

fn u64_at(page: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&page[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn set_u16(page: &mut [u8], at: usize, value: usize) {
    page[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
}

fn set_u32(page: &mut [u8], at: usize, value: usize) {
    page[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
}

/// A suffix's head.
fn head_of(suffix: &[u8]) -> u32 {
    if let Some(four) = suffix.first_chunk::<4>() {
        return u32::from_be_bytes(*four);
    }
    let mut bytes = [0; 4];
    bytes[..suffix.len()].copy_from_slice(suffix);
    u32::from_be_bytes(bytes)
}

/// One slot, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    offset: usize,
    suffix_bytes: usize,
    head: u32,
}

impl Slot {
    const fn from_word(word: u64) -> Slot {
        Slot {
            offset: (word & 0xffff) as usize,
            suffix_bytes: (word >> 16 & 0xffff) as usize,
            head: (word >> 32) as u32,
        }
    }

    const fn to_word(self) -> u64 {
        self.offset as u64 & 0xffff | (self.suffix_bytes as u64 & 0xffff) << 16 | (self.head as u64) << 32
    }
}

/// Distance between hinted slots; 0: the hints are not used.
const fn hint_distance(slot_count: usize) -> usize {
    slot_count / (HINT_COUNT + 1)
}

/// Length of the common prefix.
fn common_bytes(a: &[u8], b: &[u8]) -> usize {
    let words = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0).take_while(|(x, y)| x == y).count();
    let same = 8 * words;
    same + a[same..].iter().zip(&b[same..]).take_while(|(x, y)| x == y).count()
}
