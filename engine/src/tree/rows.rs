//! Rows: reading one, changing one, taking a change back.
//!
//! I1. A leaf answers for keys between its fences only. A descent has shown under the leaf's latch that the parent leads to it, so a
//!     key beyond them is damage: a lost write or a false separator.

use std::cell::Cell;

use hamal_pager::{ExclusivePage, PageNo};

use super::{Decision, RowChange, Tree, Updated};
use crate::change::{PageChange, Row};
use crate::ids::TxnId;
use crate::journal::{Admission, Author, Journal};
use crate::node::{self, Damage, Node, Room, Target};
use crate::record::Undo;
use crate::versions::Write;
use crate::{Error, Result};

/// How a row change ended.
enum Outcome {
    Done(Updated),
    /// The leaf has no room for a value of this length.
    Full {
        value_bytes: usize,
    },
}

thread_local! {
    /// The row's value before a change: the page it is in changes while the undo record still needs it.
    static BEFORE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Tree {
    /// Calls `read` with the key's row (ghosts included: visibility is the caller's) under the leaf's shared latch.
    pub(crate) fn get<R>(&self, key: &[u8], read: impl FnOnce(Row<'_>) -> R) -> Result<Option<R>> {
        let page = self.leaf_shared(Target::At(key))?;
        let row = leaf_about(page.bytes(), key).and_then(|node| match node.search(key)? {
            Ok(slot) => node.cell(slot).map(|cell| Some(cell.row)),
            Err(_) => Ok(None),
        });
        Ok(row.map_err(|damage| self.damaged(page.page_no(), damage))?.map(read))
    }

    /// Asks `change` about the key's row (ghosts included) under the leaf's exclusive latch and does what it says,
    /// with one record (and structure changes of their own before, where the leaf is full). It may be asked again
    /// after a structure change; `max_value_bytes` bounds the value it may write.
    pub(crate) fn update(
        &self,
        journal: &Journal,
        author: Author<'_>,
        key: &[u8],
        max_value_bytes: usize,
        change: &mut dyn RowChange<'_>,
    ) -> Result<Updated> {
        self.check_row_fits(key.len(), max_value_bytes)?;
        let undo_bytes = node::max_value_bytes(self.page_bytes(), key.len());
        let change_bytes = PageChange::row_bytes(key.len(), max_value_bytes);
        let mut rounds = 0;
        loop {
            let mut admission = journal.admit(author, 1, change_bytes, undo_bytes)?;
            let mut leaf = self.leaf_exclusive(Target::At(key))?;
            match self.change_in(&mut leaf, journal, &mut admission, author, key, change)? {
                Outcome::Done(updated) => return Ok(updated),
                Outcome::Full { value_bytes } => {
                    self.check_row_fits(key.len(), value_bytes)?;
                    drop((leaf, admission));
                    self.make_room(journal, key, value_bytes, rounds)?;
                    rounds += 1;
                }
            }
        }
    }

    fn check_row_fits(&self, key_bytes: usize, value_bytes: usize) -> Result<()> {
        let longest = node::max_key_bytes(self.page_bytes());
        if key_bytes > longest {
            return Err(Error::invalid(format!("a key of {key_bytes} bytes is longer than {longest}")));
        }
        let longest = node::max_value_bytes(self.page_bytes(), key_bytes);
        if value_bytes > longest {
            return Err(Error::invalid(format!(
                "an inline value of {value_bytes} bytes is longer than {longest}, the most beside this key"
            )));
        }
        Ok(())
    }

    fn change_in(
        &self,
        leaf: &mut ExclusivePage<'_>,
        journal: &Journal,
        admission: &mut Admission<'_>,
        author: Author<'_>,
        key: &[u8],
        making: &mut dyn RowChange<'_>,
    ) -> Result<Outcome> {
        let page_no = leaf.page_no();
        let damaged = |damage| self.damaged(page_no, damage);
        let node = leaf_about(leaf.bytes(), key).map_err(damaged)?;
        let found = node.search(key).map_err(damaged)?;
        let before = match found {
            Ok(slot) => Some(node.cell(slot).map_err(damaged)?.row),
            Err(_) => None,
        };
        let (row, before) = match (making.decide(before)?, before) {
            (Decision::Write(row), _) => (row, before),
            (Decision::WriteAnew(row), before) => {
                debug_assert!(before.is_none_or(|row| row.ghost), "only a ghost is forgotten");
                (row, None)
            }
            (Decision::Remove(stamp), Some(row)) => {
                let undo = Undo::Mark { root: self.root, stamp: row.stamp, ghost: row.ghost };
                let change = PageChange::Mark { key, stamp, ghost: true };
                making.commence(Some(row), Write::Remove);
                write_row(leaf, journal, admission, author, change, &undo)?;
                return Ok(Outcome::Done(Updated::Written));
            }
            (Decision::Keep, _) | (Decision::Remove(_), None) => return Ok(Outcome::Done(Updated::Kept)),
            (Decision::Stop(obstacle), _) => return Ok(Outcome::Done(Updated::Stopped(obstacle))),
        };
        let room = node::plan_row(node, key, found, row.value.len()).map_err(damaged)?;
        if matches!(room, Room::Full { .. }) {
            return Ok(Outcome::Full { value_bytes: row.value.len() });
        }
        node::check_growth(node, key, row.value.len(), room).map_err(damaged)?;
        making.commence(before, Write::Put);
        let change = PageChange::Row { key, row };
        let mut value = BEFORE.take();
        value.clear();
        value.extend_from_slice(before.map_or(&[], |row| row.value));
        let before =
            before.map(|Row { stamp, ghost, overflow, .. }| Row { stamp, ghost, overflow, value: &value });
        write_row(leaf, journal, admission, author, change, &Undo::Row { root: self.root, before })?;
        BEFORE.set(value);
        Ok(Outcome::Done(Updated::Written))
    }

    /// Takes a row change back: writes `before` (or a settled ghost) by a compensation record. Needs no space, never
    /// splits (hazard H5). `restored` is called before the leaf is unlatched.
    pub(crate) fn undo_row(
        &self,
        journal: &Journal,
        author: Author<'_>,
        key: &[u8],
        before: Option<Row<'_>>,
        restored: impl FnOnce(),
    ) -> Result<()> {
        let ghost = Row { stamp: TxnId::NONE, ghost: true, overflow: false, value: &[] };
        let change = PageChange::Row { key, row: before.unwrap_or(ghost) };
        let mut admission = journal.admit(author, 1, change.encoded_bytes(), 0)?;
        let mut leaf = self.leaf_exclusive(Target::At(key))?;
        check_undo(&leaf, key, before).map_err(|damage| self.damaged(leaf.page_no(), damage))?;
        journal.write(&mut admission, author, &mut [(&mut leaf, change)], None)?;
        restored();
        Ok(())
    }

    /// Takes a removal back: gives the row its old stamp and ghost flag by a compensation record. `restored` is called before the leaf
    /// is unlatched.
    pub(crate) fn undo_mark(
        &self,
        journal: &Journal,
        author: Author<'_>,
        key: &[u8],
        (stamp, ghost): (TxnId, bool),
        restored: impl FnOnce(),
    ) -> Result<()> {
        let change = PageChange::Mark { key, stamp, ghost };
        let mut admission = journal.admit(author, 1, change.encoded_bytes(), 0)?;
        let mut leaf = self.leaf_exclusive(Target::At(key))?;
        check_undo(&leaf, key, None).map_err(|damage| self.damaged(leaf.page_no(), damage))?;
        journal.write(&mut admission, author, &mut [(&mut leaf, change)], None)?;
        restored();
        Ok(())
    }

    /// Purges the leaf if that makes enough room, else splits it.
    fn make_room(&self, journal: &Journal, key: &[u8], value_bytes: usize, rounds: u32) -> Result<()> {
        if self.purge_for(journal, key, value_bytes)? {
            return Ok(());
        }
        self.split_leaf(journal, key, value_bytes, rounds)
    }

    /// Whether the leaf has room now, settled ghosts having gone where that was needed.
    fn purge_for(&self, journal: &Journal, key: &[u8], value_bytes: usize) -> Result<bool> {
        let horizon = journal.horizon();
        let change = PageChange::Purge { horizon };
        let mut admission = journal.admit(Author::System, 1, change.encoded_bytes(), 0)?;
        let mut leaf = self.leaf_exclusive(Target::At(key))?;
        let enough = leaf_about(leaf.bytes(), key).and_then(|node| {
            Ok(match node::plan_row(node, key, node.search(key)?, value_bytes)? {
                Room::Full { free_bytes, needed_bytes } => {
                    Some(free_bytes + node::purge_gain_bytes(node, horizon)? >= needed_bytes)
                }
                _ => None,
            })
        });
        match enough.map_err(|damage| self.damaged(leaf.page_no(), damage))? {
            None => Ok(true),
            Some(false) => Ok(false),
            Some(true) => {
                self.write_purge(journal, &mut admission, &mut leaf, horizon)?;
                Ok(true)
            }
        }
    }

    pub(super) fn write_purge(
        &self,
        journal: &Journal,
        admission: &mut Admission<'_>,
        leaf: &mut ExclusivePage<'_>,
        horizon: TxnId,
    ) -> Result<()> {
        let change = PageChange::Purge { horizon };
        change.check(leaf.bytes()).map_err(|error| self.in_page(leaf.page_no(), error))?;
        journal.write(admission, Author::System, &mut [(leaf, change)], None)?;
        Ok(())
    }

    pub(super) fn in_page(&self, page: PageNo, error: Error) -> Error {
        error.context(format!("page {page} of part/{}.dat", self.partition.id()))
    }
}

fn write_row(
    leaf: &mut ExclusivePage<'_>,
    journal: &Journal,
    admission: &mut Admission<'_>,
    author: Author<'_>,
    change: PageChange<'_>,
    undo: &Undo<'_>,
) -> Result<()> {
    let undo = matches!(author, Author::Transaction(_)).then_some(undo);
    journal.write(admission, author, &mut [(leaf, change)], undo)?;
    Ok(())
}

/// The page as a leaf, which must be the one for `key` (I1): a search leaves the bytes of the prefix unseen.
#[expect(clippy::inline_always, reason = "as what it opens: see `node::view`")]
#[inline(always)]
fn leaf_about<'a>(page: &'a [u8], key: &[u8]) -> Result<Node<'a>, Damage> {
    let node = Node::leaf(page)?;
    if node.covers(key)? {
        return Ok(node);
    }
    Err(Damage { expected: "fences about the key that led here", found: 0 })
}

/// The row that is taken back is still there, with room for what was there before.
fn check_undo(leaf: &ExclusivePage<'_>, key: &[u8], before: Option<Row<'_>>) -> Result<(), Damage> {
    let node = leaf_about(leaf.bytes(), key)?;
    let Ok(slot) = node.search(key)? else {
        return Err(Damage { expected: "the row whose change is taken back", found: 0 });
    };
    let (capacity, needed) = (node.cell(slot)?.capacity, before.map_or(0, |row| row.value.len()));
    if needed > capacity {
        return Err(Damage { expected: "a cell that has kept its capacity", found: capacity as u64 });
    }
    Ok(())
}
