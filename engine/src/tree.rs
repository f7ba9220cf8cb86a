//! The B+tree of one partition.
//!
//! Owns how pages are found, changed, split and merged; `node` knows what is in a page, `space` which pages are free.
//!
//! I1. The root is an inner node for ever, and stays where it is (hazard H15). A full root moves its content into one new child.
//! I2. A row change touches one leaf. A structure change is one redo-only record over all its pages: new pages first, then parent
//!     before child, left before right, bitmaps last. All of them are latched by trying, before the first byte changes.
//! I3. No latch and no epoch guard is held while anything waits: for log room, a frame, I/O or a latch (hazard H16). Whatever is
//!     not to be had at once ([`descent::Halt`]) lets go of everything, is overcome, and the descent starts again.
//! I4. Undo finds its row where it is by then, and never needs space (hazard H5).
//!
//! Descent is by optimistic lock coupling (Leis, Haubenschild, Neumann, 2019): docs/concurrency.md.

mod copy;
mod descent;
mod format;
mod merge;
mod outline;
mod rows;
mod split;
mod verify;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use hamal_pager::{PageNo, Partition};

use crate::Result;
use crate::change::Row;
use crate::ids::TxnId;
use crate::node;
use crate::space::Space;
use crate::transaction::Obstacle;
use crate::versions::Write;

pub(crate) use copy::{Eyes, LeafCopy};
pub(crate) use descent::Patience;
pub(crate) use merge::Unsettled;
pub(crate) use verify::{PageSet, TreeReport};

/// Root of a partition's user rows: page 2, always an inner node (hazard H15). Its first leaf is page 3.
pub(crate) const ROOT: PageNo = PageNo(2);
/// Root of a partition's system rows (pending-free extents): page 4; its first leaf is page 5.
pub(crate) const SYSTEM_ROOT: PageNo = PageNo(4);

/// What to do with a row, decided under its leaf's latch.
#[derive(Clone, Debug)]
pub(crate) enum Decision<'v> {
    /// Leave everything as it is.
    Keep,
    /// Write this row.
    Write(Row<'v>),
    /// Write this row where there is none, or a ghost that nobody needs: taken back, there is none again, whatever has become of the
    /// ghost's cell.
    WriteAnew(Row<'v>),
    /// The row that is there becomes a ghost with this stamp; everything else of it stays. Keep, if there is none. (A change of its
    /// own, `PageChange::Mark { key, stamp, ghost }`, so that the value is not logged again; its undo is `Undo::Mark`, taken back by
    /// `undo_mark`.)
    Remove(TxnId),
    /// Nothing can be done yet.
    Stop(Obstacle),
}

/// What [`Tree::update`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Updated {
    Written,
    Kept,
    /// Nothing: this is in the way.
    Stopped(Obstacle),
}

/// A row change in the making. Both are called under the leaf's exclusive latch.
pub(crate) trait RowChange<'v> {
    /// Says what to do about the row. May be called again, the leaf having been unlatched in between.
    fn decide(&mut self, old: Option<Row<'_>>) -> Result<Decision<'v>>;

    /// The change that was decided on is about to be made: nothing can stop it any more.
    fn commence(&mut self, _old: Option<Row<'_>>, _write: Write) {}
}

impl<'v, F: FnMut(Option<Row<'_>>) -> Result<Decision<'v>>> RowChange<'v> for F {
    fn decide(&mut self, old: Option<Row<'_>>) -> Result<Decision<'v>> {
        self(old)
    }
}

/// One B+tree. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) partition: Arc<Partition>,
    pub(crate) root: PageNo,
    /// Shared by the partition's trees.
    pub(crate) space: Arc<Space>,
}

impl Tree {
    /// The tree with this root, [`ROOT`] or [`SYSTEM_ROOT`].
    pub(crate) fn new(space: &Arc<Space>, root: PageNo) -> Tree {
        Tree { partition: Arc::clone(space.partition()), root, space: Arc::clone(space) }
    }

    /// Longest key, bytes: a little less than a quarter page.
    pub(crate) fn max_key_bytes(page_bytes: usize) -> usize {
        node::max_key_bytes(page_bytes)
    }

    /// Longest value kept inline beside a key of this length, bytes (at least 32); longer ones go to overflow extents.
    pub(crate) fn max_inline_bytes(page_bytes: usize, key_bytes: usize) -> usize {
        node::max_value_bytes(page_bytes, key_bytes)
    }

    fn page_bytes(&self) -> usize {
        self.partition.page_bytes()
    }

    fn damaged(&self, page: PageNo, damage: node::Damage) -> crate::Error {
        self.space.damaged(page, damage)
    }
}
