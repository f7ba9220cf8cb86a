//! Vacuum: purging what is settled, merging what has become small, giving pages back.
//!
//! I1. A merge is one record over three pages: parent, left page, bitmap. The right page is not part of it: it is freed, and
//!     leaves the cache unwritten.
//! I2. A merged page is at most three quarters full, so that it does not split again at once.

use std::cell::Cell;

use hamal_pager::{header, pin_epoch};

use super::Tree;
use super::descent::{Halt, Patience, distinct, fixed};
use crate::Result;
use crate::change::{Image, PageChange};
use crate::ids::TxnId;
use crate::journal::{Admission, Author, Journal};
use crate::node::{self, Damage, Node, Target};

/// What a look at a leaf says.
struct Look {
    upper_fence: Vec<u8>,
    /// It has ghosts to purge, or much capacity to trim.
    worth_purging: bool,
    used_bytes: usize,
    unsettled: Unsettled,
}

/// Ghosts that somebody may still need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unsettled {
    pub(crate) ghosts: u64,
    /// The largest of their stamps: they are settled once the horizon is above it.
    pub(crate) newest: TxnId,
}

impl Unsettled {
    pub(crate) fn add(&mut self, other: Unsettled) {
        self.ghosts += other.ghosts;
        self.newest = self.newest.max(other.newest);
    }
}

/// What a vacuum of some leaves came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vacuumed {
    /// The key to go on from; `None` at the end.
    pub(crate) next: Option<Vec<u8>>,
    /// Leaves looked at.
    pub(crate) leaves: usize,
    /// A leaf was purged or merged.
    pub(crate) found_work: bool,
    /// What had to stay in the leaves that it left.
    pub(crate) unsettled: Unsettled,
}

thread_local! {
    /// The merged page before it is logged.
    static MERGED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Tree {
    /// Purges settled ghosts and trims settled capacity from the leaf that holds `key` on, merges underfull leaves and
    /// frees their pages, for at most `max_leaves` leaves.
    pub(crate) fn vacuum(
        &self,
        journal: &Journal,
        key: Option<&[u8]>,
        max_leaves: usize,
    ) -> Result<Vacuumed> {
        let mut key = key.unwrap_or_default().to_vec();
        let mut found_work = false;
        let mut unsettled = Unsettled::default();
        for leaves in 1..=max_leaves {
            let horizon = journal.horizon();
            let mut look = self.look(&key, horizon)?;
            if look.worth_purging {
                self.purge_leaf(journal, &key, horizon)?;
                found_work = true;
                look = self.look(&key, horizon)?;
            }
            if look.used_bytes < self.page_bytes() / 3 && self.merge(journal, &key, 0)? {
                found_work = true;
                // The levels above have one child less.
                let mut level = 1;
                while level < u8::MAX && self.merge(journal, &key, level)? {
                    level += 1;
                }
                continue; // the merged leaf's turn
            }
            unsettled.add(look.unsettled);
            if look.upper_fence.is_empty() {
                return Ok(Vacuumed { next: None, leaves, found_work, unsettled });
            }
            key = look.upper_fence;
        }
        Ok(Vacuumed { next: Some(key), leaves: max_leaves, found_work, unsettled })
    }

    fn look(&self, key: &[u8], horizon: TxnId) -> Result<Look> {
        let page = self.leaf_shared(Target::At(key))?;
        let look = Node::leaf(page.bytes()).and_then(|node| {
            let upper = node.upper_fence()?;
            if !node.covers(key)? {
                return Err(Damage { expected: "fences about the key that led here", found: 0 });
            }
            let gain_bytes = node::purge_gain_bytes(node, horizon)?;
            let (has_settled_ghost, unsettled) = ghosts(node, horizon)?;
            Ok(Look {
                upper_fence: upper.to_vec(),
                worth_purging: gain_bytes >= node.page().len() / 32 || has_settled_ghost,
                used_bytes: node.page().len() - node.free_bytes(),
                unsettled,
            })
        });
        look.map_err(|damage| self.damaged(page.page_no(), damage))
    }

    fn purge_leaf(&self, journal: &Journal, key: &[u8], horizon: TxnId) -> Result<()> {
        let bytes = PageChange::Purge { horizon }.encoded_bytes();
        let mut admission = journal.admit(Author::System, 1, bytes, 0)?;
        let mut leaf = self.leaf_exclusive(Target::At(key))?;
        self.write_purge(journal, &mut admission, &mut leaf, horizon)
    }

    /// Merges the node at `level` for `key` with a neighbour under the same parent, if they fit together well. Whether
    /// it did.
    fn merge(&self, journal: &Journal, key: &[u8], level: u8) -> Result<bool> {
        let page_bytes = self.page_bytes();
        let change_bytes = PageChange::max_image_bytes(page_bytes) + node::max_key_bytes(page_bytes) + 64;
        let mut admission = journal.admit(Author::System, 3, change_bytes, 0)?;
        let mut patience = Patience::default();
        loop {
            match self.try_merge(journal, &mut admission, key, level) {
                Ok(merged) => return Ok(merged),
                Err(halt) => self.overcome(halt, &mut patience)?,
            }
        }
    }

    fn try_merge(
        &self,
        journal: &Journal,
        admission: &mut Admission<'_>,
        key: &[u8],
        level: u8,
    ) -> Result<bool, Halt> {
        let epoch = pin_epoch();
        let found = self.descend(Target::At(key), level + 1, &epoch)?;
        if found.too_high {
            return Ok(false);
        }
        let mut parent = found.node.upgrade_exclusive().ok_or(Halt::Changed)?;
        let pair = Node::inner(parent.bytes()).and_then(|node| Pair::about(node, key));
        let Some(pair) = pair.map_err(|damage| Halt::Damaged(parent.page_no(), damage))? else {
            return Ok(false);
        };
        let geometry = self.space.geometry();
        let bitmap = geometry.bitmap_of(pair.right);
        distinct(&[parent.page_no(), pair.left, pair.right, bitmap])?;
        let mut left = fixed(pair.left, self.partition.try_exclusive(pair.left))?;
        let right = fixed(pair.right, self.partition.try_exclusive(pair.right))?;
        let left_no = left.page_no();
        let in_left = |damage| Halt::Damaged(left_no, damage);
        let nodes = Node::open(left.bytes()).and_then(|l| Ok((l, Node::open(right.bytes())?)));
        let (l, r) = nodes.map_err(in_left)?;
        if l.level() != level || r.level() != level || l.sort() != r.sort() {
            return Err(in_left(Damage {
                expected: "two neighbours of the same level",
                found: r.level().into(),
            }));
        }
        if node::merged_bytes(l, r, &pair.separator).map_err(in_left)? > self.page_bytes() / 4 * 3 {
            return Ok(false);
        }
        let mut merged = MERGED.take();
        merged.clear();
        merged.extend_from_slice(left.bytes());
        node::build_merged(l, r, &pair.separator, &mut merged).map_err(in_left)?;
        let max_txn = TxnId(header::max_txn(left.bytes()).max(header::max_txn(right.bytes())));
        let mut bitmap = fixed(bitmap, self.partition.try_exclusive(bitmap))?;
        let mut edits = [
            (&mut parent, PageChange::RemoveSeparator { key: &pair.separator }),
            (&mut left, PageChange::Image(Image::of(&merged, max_txn))),
            (&mut bitmap, PageChange::ClearBits { first: geometry.bit_of(pair.right), count: 1 }),
        ];
        self.write_structure(journal, admission, &mut edits)?;
        // Before the bitmap is unlatched: whoever takes the page next must find it gone.
        right.discard();
        drop(bitmap);
        MERGED.set(merged);
        self.space.freed(pair.right);
        self.space.count_merge();
        Ok(true)
    }
}

/// Whether a leaf has settled ghosts, and which are not settled.
fn ghosts(node: Node<'_>, horizon: TxnId) -> Result<(bool, Unsettled), Damage> {
    let mut has_settled = false;
    let mut unsettled = Unsettled::default();
    for index in 0..node.len() {
        let row = node.cell(index)?.row;
        match row.ghost {
            true if row.stamp < horizon => has_settled = true,
            true => unsettled.add(Unsettled { ghosts: 1, newest: row.stamp }),
            false => {}
        }
    }
    Ok((has_settled, unsettled))
}

/// Two neighbours under one parent.
struct Pair {
    left: hamal_pager::PageNo,
    right: hamal_pager::PageNo,
    separator: Vec<u8>,
}

impl Pair {
    /// The child for `key` and its right neighbour, or else its left one; `None` if it is an only child.
    fn about(parent: Node<'_>, key: &[u8]) -> Result<Option<Pair>, Damage> {
        if parent.len() == 0 {
            return Ok(None);
        }
        let child = parent.search(key)?.map_or_else(|index| index, |index| index + 1);
        let slot = child.min(parent.len() - 1);
        Ok(Some(Pair {
            left: parent.child(slot)?,
            right: parent.child(slot + 1)?,
            separator: parent.key(slot)?.to_vec(),
        }))
    }
}
