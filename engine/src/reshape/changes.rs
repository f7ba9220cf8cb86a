//! Which keys of a partition may have changed since they were copied, while its writers go on.
//!
//! The keys that are to move are cut into ranges, about a leaf each, and each range has a mark: it has to be copied, again or at all. Who
//! changes a row marks its range; who copies takes the mark away and then looks.
//!
//! I1. Every change of a row marks its range before the row's leaf is unlatched: writes, removals, and each step of an undo. So memory is
//!     that of the ranges, however much is written, and no writer waits for more than a look at a table in memory.
//! I2. A range without a mark is in the copy as it is in the source. For who takes a mark away reads the leaves afterwards: if a change's mark
//!     came before that, its leaf was latched by then, so what is read there is read behind the change; if it comes later, it stays. Whether
//!     anybody watches is asked in the same place, so either the change is marked, or it was made before any leaf was read.
//! I3. Whoever cuts the ranges anew takes over the marks while nobody can set one. Each new range has a mark that has a key in common with a
//!     range that had one.
//! I4. There are at most [`MOST_RANGES`], whatever the pages say.
//!
//! Order: the lock here is a leaf, taken under a row's latch; nothing waits, nor latches, with it in hand.

use std::cmp::Ordering::Less;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use crate::Result;
use crate::engine::PartitionHandle;
use crate::tree::Tree;

/// Most ranges: as many as a partition of 2 GiB has leaves of 8 KiB.
const MOST_RANGES: usize = 1 << 18;

/// Where those who change rows of a partition meet one who copies them.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Somebody copies.
    watched: AtomicBool,
    ranges: RwLock<Option<Arc<Ranges>>>,
}

impl Changes {
    /// The row of this key changes; its leaf is latched exclusively.
    #[inline]
    pub(crate) fn note(&self, key: &[u8]) {
        // Relaxed: the leaf's latch orders it with whoever reads the leaf (I2).
        if self.watched.load(Ordering::Relaxed) {
            self.mark(key);
        }
    }

    #[cold]
    #[inline(never)]
    fn mark(&self, key: &[u8]) {
        if let Some(ranges) = &*self.ranges.read()
            && let Some(range) = ranges.find(key)
        {
            ranges.mark(range);
        }
    }
}

/// Somebody watches a partition's changes, until this is dropped. One at a time: who splits or merges.
#[derive(Debug)]
pub(super) struct Watch<'h> {
    handle: &'h PartitionHandle,
    lower: &'h [u8],
    upper: Option<&'h [u8]>,
}

impl<'h> Watch<'h> {
    /// Watches a partition's keys from `lower` on, up to `upper` (`None`: to the end). All of them are to be copied.
    pub(super) fn begin(
        handle: &'h PartitionHandle,
        lower: &'h [u8],
        upper: Option<&'h [u8]>,
    ) -> Result<Watch<'h>> {
        let watch = Watch { handle, lower, upper };
        let ranges = watch.cut()?;
        ranges.marks.iter().for_each(|mark| mark.store(true, Ordering::Relaxed));
        let changes = &handle.changes;
        let before = changes.ranges.write().replace(Arc::new(ranges));
        debug_assert!(before.is_none(), "one at a time");
        // Before the first leaf is latched.
        changes.watched.store(true, Ordering::Release);
        Ok(watch)
    }

    fn cut(&self) -> Result<Ranges> {
        Ranges::of(&self.handle.tree(), self.lower, self.upper)
    }

    /// The ranges as they are cut now.
    pub(super) fn ranges(&self) -> Arc<Ranges> {
        self.handle.changes.ranges.read().clone().unwrap_or_default()
    }

    /// Cuts the ranges anew, for leaves have been split meanwhile, and returns how many of them are to be copied. Nobody copies.
    pub(super) fn cut_anew(&self) -> Result<usize> {
        let new = self.cut()?;
        let mut ranges = self.handle.changes.ranges.write();
        if let Some(old) = &*ranges {
            new.take_marks(old);
        }
        let marked = new.marks.iter().filter(|mark| mark.load(Ordering::Relaxed)).count();
        *ranges = Some(Arc::new(new));
        Ok(marked)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let changes = &self.handle.changes;
        changes.watched.store(false, Ordering::Release);
        changes.ranges.write().take();
    }
}

/// Neighbouring ranges of keys, the marked ones of which have to be copied.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// Where each begins, one key behind the other. The first one's is the lowest key of all.
    keys: Vec<u8>,
    /// Where each of these keys ends.
    ends: Vec<usize>,
    /// Where the last one ends; `None`: nowhere.
    upper: Option<Box<[u8]>>,
    marks: Box<[AtomicBool]>,
    /// Leaves that there were when the ranges were cut.
    leaves: usize,
}

impl Ranges {
    /// A range for each leaf, or for some neighbouring ones if there are too many. None is marked.
    fn of(tree: &Tree, lower: &[u8], upper: Option<&[u8]>) -> Result<Ranges> {
        let mut leaves = 1_usize;
        tree.leaf_starts(lower, upper, &mut |_| leaves += 1)?;
        let stride = leaves.div_ceil(MOST_RANGES);
        let mut ranges = Ranges { upper: upper.map(Box::from), leaves, ..Ranges::default() };
        ranges.push(lower);
        let mut number = 0;
        // They may be more by now than they were a moment ago.
        tree.leaf_starts(lower, upper, &mut |start| {
            number += 1;
            if number % stride == 0 && ranges.len() < MOST_RANGES && ranges.start(ranges.len() - 1) < start {
                ranges.push(start);
            }
        })?;
        ranges.marks = (0..ranges.len()).map(|_| AtomicBool::new(false)).collect();
        Ok(ranges)
    }

    fn push(&mut self, start: &[u8]) {
        self.keys.extend_from_slice(start);
        self.ends.push(self.keys.len());
    }

    /// How many there are: one at least, while somebody watches.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    fn start(&self, range: usize) -> &[u8] {
        let begin = range.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.keys[begin..self.ends[range]]
    }

    /// The lowest key of a range, and the key that it ends before (`None`: it has no end).
    pub(super) fn bounds(&self, range: usize) -> (&[u8], Option<&[u8]>) {
        let next = range + 1;
        let upper = if next < self.len() { Some(self.start(next)) } else { self.upper.as_deref() };
        (self.start(range), upper)
    }

    /// The range that has this key.
    fn find(&self, key: &[u8]) -> Option<usize> {
        if self.upper.as_ref().is_some_and(|upper| *key >= **upper) {
            return None;
        }
        let (mut from, mut to) = (0, self.len());
        while from < to {
            let middle = from.midpoint(to);
            if self.start(middle) <= key { from = middle + 1 } else { to = middle }
        }
        from.checked_sub(1)
    }

    /// A range has to be copied.
    pub(super) fn mark(&self, range: usize) {
        self.marks[range].store(true, Ordering::Release);
    }

    /// Whether a range has to be copied.
    pub(super) fn is_marked(&self, range: usize) -> bool {
        self.marks[range].load(Ordering::Acquire)
    }

    /// Takes a range's mark away; whether it had one. Whoever does so copies it next.
    pub(super) fn take(&self, range: usize) -> bool {
        // Acquire: behind the latch of who set it (I2). An exchange, for a store would not see what it overwrites.
        self.is_marked(range) && self.marks[range].swap(false, Ordering::AcqRel)
    }

    /// How many have to be copied.
    pub(super) fn marked(&self) -> usize {
        (0..self.len()).filter(|range| self.is_marked(*range)).count()
    }

    /// About how many leaves have to be copied.
    pub(super) fn marked_leaves(&self) -> usize {
        self.marked() * self.leaves.div_ceil(self.len().max(1))
    }

    /// Marks what others that cover the same keys have marked.
    fn take_marks(&self, old: &Ranges) {
        for range in (0..old.len()).filter(|range| old.is_marked(*range)) {
            let (lower, upper) = old.bounds(range);
            let first = self.find(lower).unwrap_or(0);
            let reaches = |range: usize| upper.is_none_or(|upper| self.start(range).cmp(upper) == Less);
            (first..self.len()).take_while(|range| reaches(*range)).for_each(|range| self.mark(range));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn ranges(starts: &[Vec<u8>], upper: Option<&[u8]>) -> Ranges {
        let mut ranges = Ranges { upper: upper.map(Box::from), ..Ranges::default() };
        for start in starts {
            ranges.push(start);
        }
        ranges.marks = starts.iter().map(|_| AtomicBool::new(false)).collect();
        ranges
    }

    fn starts() -> impl Strategy<Value = Vec<Vec<u8>>> {
        btree_set(vec(1..250_u8, 1..3), 0..12).prop_map(|starts| {
            let lowest = vec![1];
            std::iter::once(lowest.clone()).chain(starts.into_iter().filter(|s| *s > lowest)).collect()
        })
    }

    proptest! {
        #[test]
        fn each_key_is_of_one_range_and_ranges_that_are_cut_anew_lose_no_mark(
            old in starts(),
            new in starts(),
            keys in vec(vec(any::<u8>(), 0..3), 1..20),
            is_bounded in any::<bool>(),
        ) {
            let upper = is_bounded.then_some(&[250][..]);
            let (old, new) = (ranges(&old, upper), ranges(&new, upper));
            let is_within = |key: &[u8]| key >= &[1][..] && upper.is_none_or(|upper| key < upper);
            let has = |ranges: &Ranges, range: usize, key: &[u8]| {
                let (lower, upper) = ranges.bounds(range);
                key >= lower && upper.is_none_or(|upper| key < upper)
            };
            for key in &keys {
                let found = old.find(key);
                prop_assert_eq!(found.is_some(), is_within(key));
                for range in 0..old.len() {
                    prop_assert_eq!(found == Some(range), has(&old, range, key));
                }
                if let Some(range) = found {
                    old.mark(range);
                }
            }
            new.take_marks(&old);
            for key in keys.iter().filter(|key| is_within(key)) {
                prop_assert!(new.is_marked(new.find(key).unwrap()), "{:?}", key);
            }
            // And no more than have something in common with one of the old.
            for range in (0..new.len()).filter(|range| new.is_marked(*range)) {
                let (lower, upper) = new.bounds(range);
                let meets = (0..old.len()).filter(|range| old.is_marked(*range)).any(|range| {
                    let (l, u) = old.bounds(range);
                    u.is_none_or(|u| lower < u) && upper.is_none_or(|upper| l < upper)
                });
                prop_assert!(meets);
            }
            let marked = new.marked();
            prop_assert_eq!((0..new.len()).filter(|range| new.take(*range)).count(), marked);
            prop_assert_eq!(new.marked(), 0);
        }
    }
}
