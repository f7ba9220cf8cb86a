//! Where to split a node, what to put into the right half, and what a merge of two would be.
//!
//! Why a leaf can always be split for a row (I4). Let A = page - 128, F the longest key, M = F + 32 + 22 + 10 at most
//! the slot and cell of the biggest row; [`super::max_key_bytes`] and [`super::max_value_bytes`] make 2M + 2F <= A. The rows,
//! the new one included, take T <= A - L - U + M between fences of L and U bytes. Cut after the most rows that take
//! S <= A - L - F. Then the left half fits with any separator. One more row would have exceeded A - L - F, so the right rows
//! take T - S < T - (A - L - F) + M <= 2M + F - U <= A - F - U, and fit with any separator too. Prefixes only grow.
//! An inner node can be cut at any separator: that one's own cell pays for the fence it becomes.

use hamal_pager::PageNo;

use super::view::{Key, Node};
use super::{
    Builder, Damage, INNER_CELL_BYTES, SLOT_BYTES, SLOTS, Shape, Sort, common_bytes, damage, set_u16,
};

/// How to split a node in two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Leaf: the first slot of the right half. Inner: the slot whose separator moves up.
    pub(crate) at: usize,
    /// Every key of the right half is at or above it, every key of the left half below.
    pub(crate) separator: Vec<u8>,
}

/// One possible cut of a leaf: after how many rows (the new one counted), and what its separator would be.
struct Candidate {
    rows: usize,
    separator_bytes: usize,
    imbalance: usize,
}

/// Where to split a leaf that has no room for `key` with a value of `value_bytes`. Rows that ascend at the tree's
/// right edge leave a full page behind.
pub(crate) fn choose_leaf_cut(node: Node<'_>, key: &[u8], value_bytes: usize) -> Result<Cut, Damage> {
    let found = node.search(key)?;
    let rows = Rows { node, key, value_bytes, found };
    let appending = node.upper_fence()?.is_empty() && found == Err(node.len());
    let best = if appending { rows.last_cut()? } else { rows.middle_cut()? };
    let Some(best) = best else {
        return Err(damage("a leaf that can be split", node.len()));
    };
    let mut separator = rows.key(best.rows)?.to_vec();
    separator.truncate(best.separator_bytes);
    let at = match found {
        Err(new) if best.rows > new => best.rows - 1,
        _ => best.rows,
    };
    Ok(Cut { at, separator })
}

impl Candidate {
    /// Near the middle the shorter separator wins: it is kept in every level above.
    fn is_better_than(&self, other: &Candidate, near: usize) -> bool {
        if self.imbalance <= near && other.imbalance <= near {
            return (self.separator_bytes, self.imbalance) < (other.separator_bytes, other.imbalance);
        }
        self.imbalance < other.imbalance
    }
}

/// How unequal two halves may be, bytes, for the sake of a shorter separator.
const fn near_bytes(room: usize) -> usize {
    room / 8
}

/// A leaf's rows as they would be with one more, or one grown.
struct Rows<'a> {
    node: Node<'a>,
    key: &'a [u8],
    value_bytes: usize,
    found: Result<usize, usize>,
}

impl<'a> Rows<'a> {
    fn len(&self) -> usize {
        self.node.len() + usize::from(self.found.is_err())
    }

    /// The cut that leaves most rows on the left.
    fn last_cut(&self) -> Result<Option<Candidate>, Damage> {
        let total = self.total_bytes()?;
        let mut right = 0;
        for cut in (1..self.len()).rev() {
            right += self.bytes(cut)?;
            if let Some(candidate) = self.candidate(cut, [total - right, right])? {
                return Ok(Some(candidate));
            }
        }
        Ok(None)
    }

    /// The cut with the shortest separator near the middle; if none there will do, the one nearest to it.
    fn middle_cut(&self) -> Result<Option<Candidate>, Damage> {
        let total = self.total_bytes()?;
        let near = near_bytes(self.node.page().len() - SLOTS);
        for limit in [near, usize::MAX] {
            let (mut left, mut best) = (0, None::<Candidate>);
            for cut in 1..self.len() {
                left += self.bytes(cut - 1)?;
                let halves = [left, total - left];
                if halves[0].abs_diff(halves[1]) > limit {
                    continue;
                }
                if let Some(candidate) = self.candidate(cut, halves)?
                    && best.as_ref().is_none_or(|best| candidate.is_better_than(best, near))
                {
                    best = Some(candidate);
                }
            }
            if best.is_some() {
                return Ok(best);
            }
        }
        Ok(None)
    }

    /// The cut between rows `cut - 1` and `cut`, if both halves fit their pages.
    fn candidate(&self, cut: usize, halves: [usize; 2]) -> Result<Option<Candidate>, Damage> {
        let separator_bytes = self.separator_bytes(cut)?;
        let room = self.node.page().len() - SLOTS;
        let fences = [self.node.lower_fence()?.len(), self.node.upper_fence()?.len()];
        if (0..2).any(|half| halves[half] + separator_bytes + fences[half] > room) {
            return Ok(None);
        }
        Ok(Some(Candidate { rows: cut, separator_bytes, imbalance: halves[0].abs_diff(halves[1]) }))
    }

    fn total_bytes(&self) -> Result<usize, Damage> {
        (0..self.len()).try_fold(0, |sum, index| Ok(sum + self.bytes(index)?))
    }

    /// The leaf's own slot, unless `index` is the new row's.
    fn slot(&self, index: usize) -> Option<usize> {
        match self.found {
            Err(new) if index == new => None,
            Err(new) if index > new => Some(index - 1),
            _ => Some(index),
        }
    }

    fn key(&self, index: usize) -> Result<Key<'a>, Damage> {
        match self.slot(index) {
            Some(slot) => self.node.key(slot),
            None => Ok(Key::whole(self.key)),
        }
    }

    fn bytes(&self, index: usize) -> Result<usize, Damage> {
        let Some(slot) = self.slot(index) else {
            let suffix = self.key.len() - self.node.prefix()?.len();
            return Ok(SLOT_BYTES + Sort::Leaf.cell_bytes(suffix, self.value_bytes));
        };
        let grown = if self.found == Ok(slot) {
            self.value_bytes.saturating_sub(self.node.cell(slot)?.capacity)
        } else {
            0
        };
        Ok(self.node.slot_and_cell_bytes(slot)? + grown)
    }

    /// Length of the shortest separator between the rows before `cut` and those from it on.
    fn separator_bytes(&self, cut: usize) -> Result<usize, Damage> {
        let (left, right) = (self.key(cut - 1)?, self.key(cut)?);
        // Both have the page's prefix, the new key in one piece with the rest.
        let prefix = self.node.prefix()?.len();
        let common = match (left.skip(prefix), right.skip(prefix)) {
            (Some(left), Some(right)) => prefix + common_bytes(left.back, right.back),
            _ => return Err(damage("keys that begin with their page's prefix", cut)),
        };
        if common >= right.len() {
            return Err(damage("keys in ascending order", cut));
        }
        Ok(common + 1)
    }
}

/// Where to split an inner node that has no room for the separator `key`.
pub(crate) fn choose_inner_cut(node: Node<'_>, key: &[u8]) -> Result<Cut, Damage> {
    let count = node.len();
    if count == 0 {
        return Err(damage("an inner node that can be split", count));
    }
    let appending = node.upper_fence()?.is_empty() && node.search(key)? == Err(count);
    let at = if appending { count - 1 } else { middle_separator(node)? };
    Ok(Cut { at, separator: node.key(at)?.to_vec() })
}

/// The shortest separator about the middle, by bytes.
fn middle_separator(node: Node<'_>) -> Result<usize, Damage> {
    let mut total = 0;
    for index in 0..node.len() {
        total += node.slot_and_cell_bytes(index)?;
    }
    let near = near_bytes(node.page().len() - SLOTS);
    let (mut left, mut best) = (0_usize, None);
    for index in 0..node.len() {
        let bytes = node.slot_and_cell_bytes(index)?;
        let candidate =
            Candidate { rows: index, separator_bytes: bytes, imbalance: left.abs_diff(total - left - bytes) };
        left += bytes;
        if best.as_ref().is_none_or(|best| candidate.is_better_than(best, near)) {
            best = Some(candidate);
        }
    }
    Ok(best.map_or(0, |best| best.rows))
}

/// Writes the right half of `node` into `page`.
pub(crate) fn build_right(node: Node<'_>, cut: &Cut, page: &mut [u8]) -> Result<(), Damage> {
    let (shape, first) = match Shape::of(node)? {
        Shape::Leaf => (Shape::Leaf, cut.at),
        Shape::Inner { level, .. } => (Shape::Inner { level, leftmost: node.child(cut.at + 1)? }, cut.at + 1),
    };
    let fences = [cut.separator.as_slice(), node.upper_fence()?];
    fill(page, shape, fences, |builder| {
        (first..node.len()).try_for_each(|index| builder.push_from(node, index))
    })
}

/// Writes what `left` and `right`, neighbours under `separator`, hold together into `page`.
pub(crate) fn build_merged(
    left: Node<'_>,
    right: Node<'_>,
    separator: &[u8],
    page: &mut [u8],
) -> Result<(), Damage> {
    let fences = [left.lower_fence()?, right.upper_fence()?];
    let down = right.child_between()?;
    fill(page, Shape::of(left)?, fences, |builder| {
        (0..left.len()).try_for_each(|index| builder.push_from(left, index))?;
        if let Some(child) = down {
            builder.push_child(Key::whole(separator), child)?;
        }
        (0..right.len()).try_for_each(|index| builder.push_from(right, index))
    })
}

/// The length of what [`build_merged`] would write, bytes; more than a page if it would not fit.
pub(crate) fn merged_bytes(left: Node<'_>, right: Node<'_>, separator: &[u8]) -> Result<usize, Damage> {
    let (lower, upper) = (left.lower_fence()?, right.upper_fence()?);
    let sort = left.sort();
    let prefix_bytes = common_bytes(lower, upper);
    let mut bytes = SLOTS + sort.heap_bytes(lower.len()) + sort.heap_bytes(upper.len());
    if sort == Sort::Inner {
        let suffix = separator.len().saturating_sub(prefix_bytes);
        bytes += SLOT_BYTES + sort.heap_bytes(INNER_CELL_BYTES + suffix);
    }
    for node in [left, right] {
        for index in 0..node.len() {
            let suffix = node.key(index)?.len().saturating_sub(prefix_bytes);
            let capacity = if sort == Sort::Leaf { node.cell(index)?.capacity } else { 0 };
            bytes += SLOT_BYTES + sort.cell_bytes(suffix, capacity);
        }
    }
    Ok(bytes)
}

impl Node<'_> {
    /// The child that a merge puts right of the separator coming down: an inner right half's leftmost one.
    fn child_between(self) -> Result<Option<PageNo>, Damage> {
        match self.sort() {
            Sort::Leaf => Ok(None),
            Sort::Inner => self.child(0).map(Some),
        }
    }
}

fn fill(
    page: &mut [u8],
    shape: Shape,
    fences: [&[u8]; 2],
    push: impl FnOnce(&mut Builder<'_>) -> Option<()>,
) -> Result<(), Damage> {
    let bytes = page.len();
    let built = Builder::new(page, shape, fences).and_then(|mut builder| {
        push(&mut builder)?;
        builder.finish();
        Some(())
    });
    if built.is_none() {
        set_u16(page, 40, 0);
        return Err(damage("cells that fit their page", bytes));
    }
    Ok(())
}
