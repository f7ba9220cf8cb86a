//! The way down through an inner node that is read without a latch.
//!
//! Everything here may be noise until the caller validates its read: words are looked at one by one, every offset is
//! clamped by [`Words::word`] (0 when out of range), every loop is bounded by the key's or the page's length.

use std::cmp::Ordering;

use hamal_pager::{OptimisticPage, PageNo, header};

use super::{HINT_COUNT, HINTS, SLOT_BYTES, SLOTS, Slot, head_of, hint_distance};

/// A page as aligned little-endian words; out of range: 0.
pub(crate) trait Words {
    fn words(&self) -> usize;
    fn word(&self, index: usize) -> u64;
}

impl Words for OptimisticPage<'_> {
    fn words(&self) -> usize {
        OptimisticPage::words(self)
    }

    fn word(&self, index: usize) -> u64 {
        OptimisticPage::word(self, index)
    }
}

/// Which child is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'k> {
    /// The one whose range holds this key.
    At(&'k [u8]),
    /// The one that holds the largest possible key below this one.
    Before(&'k [u8]),
    /// The rightmost.
    Last,
}

/// Where an inner node sends a descent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The node's own level.
    pub(crate) level: u8,
    pub(crate) child: PageNo,
}

/// The child for `target`. `None`: not an inner node, or it contradicts itself.
pub(crate) fn route(page: &impl Words, target: Target<'_>) -> Option<Route> {
    let first = page.word(0).to_le_bytes();
    if first[4] != header::kind::INNER || first[5] == 0 {
        return None;
    }
    let shape = page.word(5);
    let count = ((shape & 0xffff) as usize).min(page.words().saturating_sub(SLOTS / 8));
    let prefix_bytes = (shape >> 16 & 0xffff) as usize;
    let index = match target {
        Target::At(key) => upper_bound(page, count, key.get(prefix_bytes..)?, Ordering::Equal),
        Target::Before(key) => upper_bound(page, count, key.get(prefix_bytes..)?, Ordering::Less),
        Target::Last => count,
    };
    let child = match index.checked_sub(1) {
        None => (page.word(7) >> 32) as u32,
        Some(slot) => page.word(slot_at(page, slot).offset / 8) as u32,
    };
    Some(Route { level: first[5], child: PageNo(child) })
}

fn slot_at(page: &impl Words, index: usize) -> Slot {
    Slot::from_word(page.word((SLOTS + index * SLOT_BYTES) / 8))
}

/// How many separators are below `suffix`, or at most equal to it if `last` says so.
fn upper_bound(page: &impl Words, count: usize, suffix: &[u8], last: Ordering) -> usize {
    let head = head_of(suffix);
    let (mut low, mut high) = hinted_range(page, count, head);
    while low < high {
        let middle = low.midpoint(high);
        let slot = slot_at(page, middle);
        let order = match slot.head.cmp(&head) {
            Ordering::Equal => compare_tails(page, slot, suffix),
            order => order,
        };
        if order <= last {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Compares a separator with a suffix that has the same head.
fn compare_tails(page: &impl Words, slot: Slot, suffix: &[u8]) -> Ordering {
    if slot.suffix_bytes > 4 && suffix.len() > 4 {
        // Word by word, big-endian, both padded with zeros; the first word holds the head again.
        let cell = slot.offset / 8 + 1;
        for (index, chunk) in suffix.chunks(8).take(slot.suffix_bytes.div_ceil(8)).enumerate() {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            match page.word(cell + index).swap_bytes().cmp(&u64::from_be_bytes(bytes)) {
                Ordering::Equal => {}
                order => return order,
            }
        }
    }
    slot.suffix_bytes.cmp(&suffix.len())
}

fn hinted_range(page: &impl Words, count: usize, head: u32) -> (usize, usize) {
    let distance = hint_distance(count);
    if distance == 0 {
        return (0, count);
    }
    let (mut below, mut not_above) = (0, 0);
    for index in HINTS / 8..SLOTS / 8 {
        let pair = page.word(index);
        for hint in [pair as u32, (pair >> 32) as u32] {
            below += usize::from(hint < head);
            not_above += usize::from(hint <= head);
        }
    }
    let high = if not_above == HINT_COUNT { count } else { (not_above + 1) * distance };
    ((below * distance).min(high), high)
}
