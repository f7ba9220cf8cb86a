//! Rows that are in a partition's tree and are not the partition's: at or above its upper bound. A split leaves those that it has moved
//! away, for views that do not see it yet; a merge that did not commit leaves those that it had copied.
//!
//! I1. There are none below a partition's lower bound.
//! I2. Who sees a partition's upper bound reads nothing at or above it, and who does not see it keeps the horizon below the bound's
//!     stamp. So once the stamp is below the horizon strays are nobody's, and nobody's for ever: who comes later sees the bound, too.
//! I3. Nobody but a split or a merge writes at or above an upper bound, and these hold `reshaping`, as whoever removes strays does.
//! I4. A stray's long value is given to the list of pending runs in one transaction with the row's going. An inline row, or a leaf of them,
//!     goes by a redo-only record: half of the work is no other state than none of it.
//! I5. Whether there are any is written nowhere: after an open each partition that has an upper bound is looked at once, in the background.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hamal_pager::header;
use parking_lot::Mutex;

use super::errand::Errand;
use crate::catalog::{CATALOG, settled_uppers};
use crate::change::{Image, PageChange, Row};
use crate::engine::{Engine, PartitionHandle};
use crate::ids::TxnId;
use crate::journal::Author;
use crate::node::{Builder, Damage, Node, Shape, Target};
use crate::tree::{Decision, LeafCopy, Tree};
use crate::{ErrorKind, Result};

/// Leaves looked at per partition and round.
const LEAVES: usize = 256;

/// What is known of the strays of a partition.
#[derive(Debug)]
pub(crate) struct Strays {
    /// There may be some.
    possible: AtomicBool,
    /// There are none before this key.
    cleared_to: Mutex<Vec<u8>>,
}

impl Default for Strays {
    fn default() -> Self {
        Strays { possible: AtomicBool::new(true), cleared_to: Mutex::default() }
    }
}

impl Strays {
    /// There are none.
    pub(crate) fn note_none(&self) {
        self.possible.store(false, Ordering::Release);
    }

    /// There are going to be some.
    pub(crate) fn note_some(&self) {
        self.cleared_to.lock().clear();
        self.possible.store(true, Ordering::Release);
    }

    /// Whether there may be some.
    pub(crate) fn are_possible(&self) -> bool {
        self.possible.load(Ordering::Acquire)
    }
}

/// How far the removal of a partition's strays has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cleared {
    /// There are none any more.
    All,
    /// As many leaves as fit a round.
    Some,
    /// A verification keeps everybody out.
    NotNow,
}

impl Engine {
    /// Removes strays that nobody needs any more, unless a split or merge is under way. Whether there may be more to do at once. The caller
    /// holds `vacuum`.
    pub(crate) fn clear_strays(&self) -> Result<bool> {
        let Some(_no_reshaping) = self.reshaping.try_lock() else { return Ok(false) };
        let mut handles = self.open_partitions();
        handles.retain(|handle| {
            handle.strays.are_possible() && !handle.partition.is_sealed() && !handle.is_behind()
        });
        if handles.is_empty() {
            return Ok(false);
        }
        let mut uppers = settled_uppers(&self.partition(CATALOG)?.tree(), self.journal.horizon())?;
        uppers.insert(CATALOG, None);
        let mut is_more = false;
        for handle in handles {
            // Unknown: it is not settled, or no table's any more.
            let Some(upper) = uppers.get(&handle.partition.id()) else { continue };
            self.pause("between partitions with strays");
            is_more |= match self.clear_strays_of(&handle, upper.as_deref()) {
                Ok(cleared) => cleared == Cleared::Some,
                // Tidying up can wait until there is log again; and until a damaged partition has been repaired.
                Err(e) if matches!(e.kind(), ErrorKind::LogFull | ErrorKind::PartitionUnavailable) => false,
                Err(e) => return Err(e),
            };
        }
        Ok(is_more)
    }

    /// Removes strays of a partition whose upper bound everybody sees, from a few leaves. The caller holds `reshaping`, and `vacuum`.
    pub(super) fn clear_strays_of(
        &self,
        handle: &Arc<PartitionHandle>,
        upper: Option<&[u8]>,
    ) -> Result<Cleared> {
        self.clear_some_strays_of(handle, upper).map_err(|error| self.blame(handle.partition.id(), error))
    }

    fn clear_some_strays_of(&self, handle: &Arc<PartitionHandle>, upper: Option<&[u8]>) -> Result<Cleared> {
        let Some(upper) = upper else {
            handle.strays.note_none();
            return Ok(Cleared::All);
        };
        let tree = handle.tree();
        let mut at = handle.strays.cleared_to.lock().clone();
        if *at < *upper {
            at = upper.to_vec();
        }
        let mut leaf = LeafCopy::default();
        for _ in 0..LEAVES {
            self.pause("between leaves with strays");
            tree.leaf_at(Some(&at), None, &mut leaf)?;
            let first = leaf.lower_bound(upper);
            let count = (first..leaf.len()).filter(|index| !leaf.row(*index).ghost).count();
            if count > 0 && !self.clear_leaf(handle, &tree, &leaf, first)? {
                return Ok(Cleared::NotNow);
            }
            // The vacuum purges what ghosts are left, and gives empty leaves back.
            handle.garbage.fetch_add(count as u64, Ordering::Relaxed);
            let Some(fence) = leaf.upper_fence() else {
                tracing::debug!(partition = handle.partition.id().0, "no strays any more");
                handle.strays.note_none();
                return Ok(Cleared::All);
            };
            at = fence.to_vec();
            handle.strays.cleared_to.lock().clone_from(&at);
        }
        Ok(Cleared::Some)
    }

    /// Removes the rows of a leaf from the one with index `first` on; `false`: not now.
    fn clear_leaf(
        &self,
        handle: &Arc<PartitionHandle>,
        tree: &Tree,
        leaf: &LeafCopy,
        first: usize,
    ) -> Result<bool> {
        let mut key = Vec::new();
        let mut key_of = |index| {
            key.clear();
            leaf.key_into(index, &mut key);
            key.clone()
        };
        let live: Vec<usize> = (first..leaf.len()).filter(|index| !leaf.row(*index).ghost).collect();
        let (long, short): (Vec<usize>, Vec<usize>) =
            live.iter().partition(|index| leaf.row(**index).overflow);
        if !long.is_empty() {
            let Some(errand) = Errand::begin(self, handle.partition.id()) else { return Ok(false) };
            for index in long {
                errand.remove_long(handle, &key_of(index), leaf.row(index).value)?;
            }
            errand.commit()?;
        }
        if first == 0 {
            // All of the leaf, which is nobody's: nobody splits it meanwhile.
            return self.empty_leaf(tree, &key_of(0)).map(|()| true);
        }
        for index in short {
            let remove = &mut |_: Option<Row<'_>>| Ok(Decision::Remove(TxnId::NONE));
            tree.update(&self.journal, Author::System, &key_of(index), 0, remove)?;
        }
        Ok(true)
    }

    /// Takes all rows out of the leaf for a key, unless one of them has a long value that is not given up.
    fn empty_leaf(&self, tree: &Tree, key: &[u8]) -> Result<()> {
        let max_bytes = PageChange::max_image_bytes(self.page_bytes);
        let mut admission = self.journal.admit(Author::System, 1, max_bytes, 0)?;
        let mut leaf = tree.leaf_exclusive(Target::At(key))?;
        let page = leaf.page_no();
        let mut image = leaf.bytes().to_vec();
        let fences = Node::leaf(leaf.bytes()).and_then(|node| {
            for index in 0..node.len() {
                let row = node.cell(index)?.row;
                if row.overflow && !row.ghost {
                    return Err(Damage { expected: "long values that have been given up", found: 1 });
                }
            }
            Ok([node.lower_fence()?.to_vec(), node.upper_fence()?.to_vec()])
        });
        let [lower, upper] = fences.map_err(|damage| tree.space.damaged(page, damage))?;
        let builder = Builder::new(&mut image, Shape::Leaf, [&lower, &upper]);
        let no_room = || tree.space.damaged(page, Damage { expected: "fences that fit a leaf", found: 0 });
        builder.ok_or_else(no_room)?.finish();
        let max_txn = TxnId(header::max_txn(leaf.bytes()));
        let change = PageChange::Image(Image::of(&image, max_txn));
        self.journal.write(&mut admission, Author::System, &mut [(&mut leaf, change)], None)?;
        Ok(())
    }
}
