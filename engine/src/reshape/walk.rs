//! Walking over rows of a range, as they are: each leaf as it was when the walk came to it.

use crate::Result;
use crate::change::Row;
use crate::tree::{LeafCopy, Tree};

/// The rows of a range of keys in a tree, from the lowest on; ghosts are none. No latch is held from one to the next.
#[derive(Debug)]
pub(super) struct Walk {
    tree: Tree,
    upper: Option<Vec<u8>>,
    leaf: LeafCopy,
    /// The next row of the leaf to be looked at.
    next: usize,
    /// From which key on the walk goes on behind the leaf.
    beyond: Option<Vec<u8>>,
    /// The row that the walk has come to, and its key.
    here: Option<usize>,
    key: Vec<u8>,
    leaves: u64,
}

impl Walk {
    /// A walk over nothing.
    pub(super) fn over(tree: Tree) -> Walk {
        Walk {
            tree,
            upper: None,
            leaf: LeafCopy::default(),
            next: 0,
            beyond: None,
            here: None,
            key: Vec::new(),
            leaves: 0,
        }
    }

    /// Begins again, before the rows from `lower` on, up to `upper` (`None`: to the end).
    pub(super) fn begin(&mut self, lower: &[u8], upper: Option<&[u8]>) {
        self.upper = upper.map(Vec::from);
        self.beyond = Some(lower.to_vec());
        (self.next, self.here) = (usize::MAX, None);
    }

    /// Goes on to the next row, if there is one.
    pub(super) fn step(&mut self) -> Result<()> {
        self.here = None;
        loop {
            while self.next < self.leaf.len() {
                let index = self.next;
                self.next += 1;
                if self.leaf.row(index).ghost {
                    continue;
                }
                self.key.clear();
                self.leaf.key_into(index, &mut self.key);
                if self.upper.as_ref().is_some_and(|upper| self.key >= *upper) {
                    (self.next, self.beyond) = (usize::MAX, None);
                    return Ok(());
                }
                self.here = Some(index);
                return Ok(());
            }
            let Some(at) = self.beyond.take() else { return Ok(()) };
            self.tree.leaf_at(Some(&at), None, &mut self.leaf)?;
            self.leaves += 1;
            // A vacuum may have put the leaf together with one that the walk has been through.
            self.next = self.leaf.lower_bound(&at);
            let fence = self.leaf.upper_fence();
            let is_within = |fence: &[u8]| self.upper.as_ref().is_none_or(|upper| *fence < **upper);
            self.beyond = fence.filter(|fence| is_within(fence)).map(Vec::from);
        }
    }

    /// The row that the walk has come to; `None` at the end.
    pub(super) fn here(&self) -> Option<(&[u8], Row<'_>)> {
        self.here.map(|index| (&*self.key, self.leaf.row(index)))
    }

    /// How many leaves it has come through, since it was made.
    pub(super) fn leaves(&self) -> u64 {
        self.leaves
    }
}
