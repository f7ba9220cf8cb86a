//! A range of a table, walked from both ends.
//!
//! I1. No latch and no epoch guard is held between calls: each end owns a private copy of one leaf.
//! I2. `lower..upper` is what neither end has returned yet; each end moves its own bound past every row it returns, so that the ends
//!     never cross.
//! I3. A copy is used only while the transaction has written nothing since it was taken; otherwise the end descends again from
//!     its bound. So a range always shows the transaction's own latest rows.
//! I4. A serializable transaction has the whole range in its read set from the start, and what was walked of it once the range is
//!     dropped. So one that is leaked is coarser, never wrong.
//! I5. Reverse walks descend again by the leaf's low fence; nothing is ever latched leftwards (hazard H21).
//! I6. The outermost leaves of a partition have no fence on that side: the bound of the partition is one, so that a walk goes on in the
//!     next partition as it goes on in the next leaf.
//! I7. A partition's tree may have rows at and above its upper bound, strays that a split or a merge has left: they are not its own, and
//!     nothing shows them. There are none below its lower bound.

use std::ops::Bound;

use crate::raw::RawTable;
use crate::routes::{RouteSlot, Routes};
use crate::tree::LeafCopy;
use crate::validation::RangeId;
use crate::{Error, Result};

/// Bound on the raw keys.
type KeyBound = Bound<Vec<u8>>;

/// One end: a leaf's copy and which of its rows are still to be returned.
#[derive(Debug, Default)]
struct End {
    leaf: LeafCopy,
    /// Which partition the leaf is in.
    slot: RouteSlot,
    /// Rows `start..stop` of the copy are still in the range.
    start: usize,
    stop: usize,
    /// The table's write count when the copy was taken; `None`: there is no copy.
    writes: Option<u64>,
}

impl End {
    /// No key of the leaf is below; `None`: it has the lowest keys of the table.
    fn lower_fence<'e>(&'e self, routes: &'e Routes) -> Option<&'e [u8]> {
        self.leaf.lower_fence().or_else(|| routes.lower(self.slot))
    }

    /// All keys of the leaf that are its partition's are below; `None`: it has the highest keys of the table.
    fn upper_fence<'e>(&'e self, routes: &'e Routes) -> Option<&'e [u8]> {
        match (self.leaf.upper_fence(), routes.upper(self.slot)) {
            (Some(fence), Some(bound)) => Some(fence.min(bound)),
            (fence, bound) => fence.or(bound),
        }
    }

    /// Index of the first row of the leaf that is not its partition's (I7).
    fn strays_index(&self, routes: &Routes) -> usize {
        match (self.leaf.upper_fence(), routes.upper(self.slot)) {
            (Some(fence), Some(bound)) if fence <= bound => self.leaf.len(),
            (_, Some(bound)) => self.leaf.lower_bound(bound),
            (_, None) => self.leaf.len(),
        }
    }
}

/// A range of a table, walked from both ends; holds no latch between calls.
#[derive(Debug)]
pub(crate) struct RawRange<'t> {
    table: RawTable<'t>,
    lower: KeyBound,
    upper: KeyBound,
    front: End,
    back: End,
    /// Both ends are used: each must mind the other's bound.
    both: bool,
    done: bool,
    /// Where it is in the transaction's read set.
    read: Option<RangeId>,
}

impl Drop for RawRange<'_> {
    fn drop(&mut self) {
        let Some(read) = self.read else { return };
        if self.done {
            self.table.narrow_read(read, Some(Bound::Unbounded), None);
        } else {
            self.table.narrow_read(read, passed(&self.lower), passed(&self.upper));
        }
    }
}

/// How far an end has come that goes on from here: the other way round, it is the bound of what it has walked. An end that has not
/// moved yet has walked nothing, and its bound encloses nothing.
fn passed(bound: &KeyBound) -> Option<Bound<&[u8]>> {
    match bound {
        Bound::Excluded(key) => Some(Bound::Included(key)),
        Bound::Included(key) => Some(Bound::Excluded(key)),
        Bound::Unbounded => None,
    }
}

impl<'t> RawRange<'t> {
    pub(crate) fn new(table: RawTable<'t>, lower: KeyBound, upper: KeyBound) -> Result<Self> {
        let done = match (&lower, &upper) {
            (Bound::Included(l), Bound::Included(u)) if l > u => return Err(reversed()),
            (Bound::Included(l) | Bound::Excluded(l), Bound::Included(u) | Bound::Excluded(u)) if l > u => {
                return Err(reversed());
            }
            (Bound::Included(l), Bound::Excluded(u))
            | (Bound::Excluded(l), Bound::Included(u) | Bound::Excluded(u)) => l == u,
            _ => false,
        };
        let read = if done { None } else { table.note_range(as_slice(&lower), as_slice(&upper)) };
        Ok(RawRange {
            table,
            lower,
            upper,
            front: End::default(),
            back: End::default(),
            both: false,
            done,
            read,
        })
    }

    /// Moves to the next row from the front and fills `key` and, where it is wanted, `value` (cleared first); `false` at the end.
    pub(crate) fn next(&mut self, key: &mut Vec<u8>, value: Option<&mut Vec<u8>>) -> Result<bool> {
        let Some(index) = self.advance(key)? else { return Ok(false) };
        fill(&self.table, &self.front, index, value)?;
        Ok(true)
    }

    /// As `next`, but `stored` gets what the row itself has: its value, or the reference of a long one
    /// ([`RawTable::long_value`]). Whether it is long; `None` at the end.
    pub(crate) fn next_stored(&mut self, key: &mut Vec<u8>, stored: &mut Vec<u8>) -> Result<Option<bool>> {
        let Some(index) = self.advance(key)? else { return Ok(None) };
        let row = self.front.leaf.row(index);
        stored.clear();
        stored.extend_from_slice(row.value);
        Ok(Some(row.overflow))
    }

    /// Moves the front past its next row and fills `key`: the row's index in the front's leaf.
    fn advance(&mut self, key: &mut Vec<u8>) -> Result<Option<usize>> {
        self.table.check_readable()?;
        self.both |= self.back.writes.is_some();
        while !self.done {
            let writes = self.table.writes();
            if self.front.writes != Some(writes) {
                self.descend_front(writes)?;
            }
            if self.both {
                self.front.stop = self.front.stop.min(stop_index(&self.front.leaf, &self.upper));
            }
            while self.front.start < self.front.stop {
                let index = self.front.start;
                self.front.start += 1;
                if self.front.leaf.row(index).ghost {
                    continue;
                }
                key.clear();
                self.front.leaf.key_into(index, key);
                set_excluded(&mut self.lower, key);
                return Ok(Some(index));
            }
            // The leaf is used up: go on above its upper fence, unless the range ends first.
            match self.front.upper_fence(self.table.routes()) {
                Some(fence) if before_upper(fence, &self.upper) => {
                    self.lower = Bound::Included(fence.to_vec());
                    self.front.writes = None;
                }
                _ => self.done = true,
            }
        }
        Ok(None)
    }

    /// As `next`, from the back.
    pub(crate) fn next_back(&mut self, key: &mut Vec<u8>, value: Option<&mut Vec<u8>>) -> Result<bool> {
        self.table.check_readable()?;
        self.both |= self.front.writes.is_some();
        while !self.done {
            let writes = self.table.writes();
            if self.back.writes != Some(writes) {
                self.descend_back(writes)?;
            }
            if self.both {
                self.back.start = self.back.start.max(start_index(&self.back.leaf, &self.lower));
            }
            while self.back.start < self.back.stop {
                self.back.stop -= 1;
                let index = self.back.stop;
                if self.back.leaf.row(index).ghost {
                    continue;
                }
                key.clear();
                self.back.leaf.key_into(index, key);
                set_excluded(&mut self.upper, key);
                fill(&self.table, &self.back, index, value)?;
                return Ok(true);
            }
            match self.back.lower_fence(self.table.routes()) {
                Some(fence) if after_lower(fence, &self.lower) => {
                    self.upper = Bound::Excluded(fence.to_vec());
                    self.back.writes = None;
                }
                _ => self.done = true,
            }
        }
        Ok(false)
    }

    fn descend_front(&mut self, writes: u64) -> Result<()> {
        self.table.engine().pause("before a leaf of a range");
        let from = match &self.lower {
            Bound::Included(key) | Bound::Excluded(key) => Some(key.as_slice()),
            Bound::Unbounded => None,
        };
        let (routes, end) = (self.table.routes(), &mut self.front);
        end.slot = routes.slot_of(from.unwrap_or_default());
        let (route, leaf) = (routes.at(end.slot), &mut end.leaf);
        let tree = self.table.tree(route)?;
        route.handle.load.note(from.unwrap_or_default());
        let copied = self.table.with_eyes(|eyes| tree.leaf_at(from, Some(eyes), leaf));
        self.table.told(route, copied)?;
        self.front.start = start_index(&self.front.leaf, &self.lower);
        self.front.stop =
            stop_index(&self.front.leaf, &self.upper).min(self.front.strays_index(self.table.routes()));
        self.front.writes = Some(writes);
        Ok(())
    }

    fn descend_back(&mut self, writes: u64) -> Result<()> {
        self.table.engine().pause("before a leaf of a range");
        let (routes, end) = (self.table.routes(), &mut self.back);
        let (key, is_in) = match &self.upper {
            Bound::Included(key) => (Some(key.as_slice()), true),
            Bound::Excluded(key) => (Some(key.as_slice()), false),
            Bound::Unbounded => (None, false),
        };
        end.slot = match key {
            Some(key) if is_in => routes.slot_of(key),
            _ => routes.slot_before(key),
        };
        let (route, leaf) = (routes.at(end.slot), &mut end.leaf);
        let tree = self.table.tree(route)?;
        route.handle.load.note(key.unwrap_or_default());
        let copied = self.table.with_eyes(|eyes| match key {
            Some(_) if is_in => tree.leaf_at(key, Some(eyes), leaf),
            _ => tree.leaf_before(key, Some(eyes), leaf),
        });
        self.table.told(route, copied)?;
        self.back.start = start_index(&self.back.leaf, &self.lower);
        self.back.stop =
            stop_index(&self.back.leaf, &self.upper).min(self.back.strays_index(self.table.routes()));
        self.back.writes = Some(writes);
        Ok(())
    }
}

fn reversed() -> Error {
    Error::invalid("the range's lower bound is above its upper bound")
}

fn as_slice(bound: &KeyBound) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

fn set_excluded(bound: &mut KeyBound, key: &[u8]) {
    if let Bound::Excluded(old) = bound {
        old.clear();
        old.extend_from_slice(key);
    } else {
        *bound = Bound::Excluded(key.to_vec());
    }
}

/// Index of the first row of the leaf that is at or above the bound.
fn start_index(leaf: &LeafCopy, lower: &KeyBound) -> usize {
    match lower {
        Bound::Unbounded => 0,
        Bound::Included(key) => leaf.lower_bound(key),
        Bound::Excluded(key) => leaf.upper_bound(key),
    }
}

/// Index behind the last row of the leaf that is at or below the bound.
fn stop_index(leaf: &LeafCopy, upper: &KeyBound) -> usize {
    match upper {
        Bound::Unbounded => leaf.len(),
        Bound::Included(key) => leaf.upper_bound(key),
        Bound::Excluded(key) => leaf.lower_bound(key),
    }
}

/// Whether keys at or above `fence` can be below the upper bound.
fn before_upper(fence: &[u8], upper: &KeyBound) -> bool {
    match upper {
        Bound::Unbounded => true,
        Bound::Included(key) => fence <= key.as_slice(),
        Bound::Excluded(key) => fence < key.as_slice(),
    }
}

/// Whether keys below `fence` can be above the lower bound.
fn after_lower(fence: &[u8], lower: &KeyBound) -> bool {
    match lower {
        Bound::Unbounded => true,
        Bound::Included(key) | Bound::Excluded(key) => key.as_slice() < fence,
    }
}

fn fill(table: &RawTable<'_>, end: &End, index: usize, value: Option<&mut Vec<u8>>) -> Result<()> {
    let Some(value) = value else { return Ok(()) };
    let row = end.leaf.row(index);
    value.clear();
    if row.overflow {
        table.resolve(table.routes().at(end.slot), row.value, value)
    } else {
        value.extend_from_slice(row.value);
        Ok(())
    }
}
