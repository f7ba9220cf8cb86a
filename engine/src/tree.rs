//! The B+tree of one partition (interface).

use std::sync::Arc;

use hamal_pager::{PageNo, Partition};

use crate::Result;
use crate::change::Row;
use crate::ids::TxnId;
use crate::journal::{Author, Journal};

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
    /// The row that is there becomes a ghost with this stamp; everything else of it stays. Keep, if there is none. (A change of its
    /// own, `PageChange::Mark { key, stamp, ghost }`, so that the value is not logged again; its undo is `Undo::Mark`, taken back by
    /// `undo_mark`.)
    Remove(TxnId),
}

/// One B+tree. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) partition: Arc<Partition>,
    pub(crate) root: PageNo,
}

/// A private copy of one leaf: no latch is held while it is read.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeafCopy {}

#[expect(unused_variables, dead_code, clippy::unused_self, reason = "interface")]
impl Tree {
    /// Formats a new partition's pages 0 to 5 (header, bitmap, two trees) in one structure-change record.
    pub(crate) fn format_partition(journal: &Journal, partition: &Arc<Partition>) -> Result<()> {
        unimplemented!()
    }

    /// Longest key, bytes: a quarter page.
    pub(crate) fn max_key_bytes(page_bytes: usize) -> usize {
        unimplemented!()
    }

    /// Longest value kept inline beside a key of this length, bytes; longer ones go to overflow extents.
    pub(crate) fn max_inline_bytes(page_bytes: usize, key_bytes: usize) -> usize {
        unimplemented!()
    }

    /// Calls `read` with the key's row (ghosts included: visibility is the caller's) under the leaf's shared latch.
    pub(crate) fn get<R>(&self, key: &[u8], read: impl FnOnce(Row<'_>) -> R) -> Result<Option<R>> {
        unimplemented!()
    }

    /// Calls `decide` with the key's row (ghosts included) under the leaf's exclusive latch and does what it says,
    /// with one record (and structure changes of their own before, where the leaf is full). `decide` may be called again
    /// after a structure change; `max_value_bytes` bounds the value it may write. Returns whether anything was written.
    pub(crate) fn update<'v>(
        &self,
        journal: &Journal,
        author: Author<'_>,
        key: &[u8],
        max_value_bytes: usize,
        decide: &mut dyn FnMut(Option<Row<'_>>) -> Result<Decision<'v>>,
    ) -> Result<bool> {
        unimplemented!()
    }

    /// Takes a row change back: writes `before` (or a settled ghost) by a compensation record. Needs no space, never
    /// splits (hazard H5).
    pub(crate) fn undo_row(
        &self,
        journal: &Journal,
        author: Author<'_>,
        key: &[u8],
        before: Option<Row<'_>>,
    ) -> Result<()> {
        unimplemented!()
    }

    /// Takes a removal back: gives the row its old stamp and ghost flag by a compensation record.
    pub(crate) fn undo_mark(
        &self,
        journal: &Journal,
        author: Author<'_>,
        key: &[u8],
        stamp: TxnId,
        ghost: bool,
    ) -> Result<()> {
        unimplemented!()
    }

    /// Copies the leaf whose range holds `key` (`None`: the first leaf) into `copy`.
    pub(crate) fn leaf_at(&self, key: Option<&[u8]>, copy: &mut LeafCopy) -> Result<()> {
        unimplemented!()
    }

    /// Copies the leaf that holds the largest possible key below `key` (`None`: the last leaf) into `copy`.
    pub(crate) fn leaf_before(&self, key: Option<&[u8]>, copy: &mut LeafCopy) -> Result<()> {
        unimplemented!()
    }

    /// Purges settled ghosts and trims settled capacity from the leaf that holds `key` on, merges underfull leaves and
    /// frees their pages, for at most `max_leaves` leaves. Returns the key to go on from, `None` at the end.
    pub(crate) fn vacuum(
        &self,
        journal: &Journal,
        key: Option<&[u8]>,
        max_leaves: usize,
    ) -> Result<Option<Vec<u8>>> {
        unimplemented!()
    }
}

#[expect(unused_variables, dead_code, clippy::unused_self, reason = "interface")]
impl LeafCopy {
    /// Number of rows, ghosts included.
    pub(crate) fn len(&self) -> usize {
        unimplemented!()
    }

    /// Index of the first row whose key is at or above `key`.
    pub(crate) fn lower_bound(&self, key: &[u8]) -> usize {
        unimplemented!()
    }

    /// Index of the first row whose key is above `key`.
    pub(crate) fn upper_bound(&self, key: &[u8]) -> usize {
        unimplemented!()
    }

    /// Appends the whole key of row `index` to `out`.
    pub(crate) fn key_into(&self, index: usize, out: &mut Vec<u8>) {
        unimplemented!()
    }

    /// Row `index`.
    pub(crate) fn row(&self, index: usize) -> Row<'_> {
        unimplemented!()
    }

    /// The leaf holds keys at or above this (`None`: no bound).
    pub(crate) fn lower_fence(&self) -> Option<&[u8]> {
        unimplemented!()
    }

    /// The leaf holds keys below this (`None`: no bound).
    pub(crate) fn upper_fence(&self) -> Option<&[u8]> {
        unimplemented!()
    }
}
