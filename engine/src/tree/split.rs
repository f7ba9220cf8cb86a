//! Splitting a full node in two, and giving a full root a level below it.
//!
//! I1. A split is one record over four pages: new right half, parent, left half, bitmap. A parent without room for the
//!     separator is split first, in a record of its own, so no record ever covers more.
//! I2. Each try either splits, finds that somebody else has made room, or changes nothing.
//!     The new page of a try that fails stays behind in memory, zeros, clean, and free.
//! I3. Every round makes the full node smaller, if its page is sound. From round [`ROUNDS_BEFORE_CHECK`] on the pages are
//!     proven sound first, so that damage cannot make this go on for ever.

use std::cell::Cell;

use hamal_pager::{ExclusivePage, PageClass, header, pin_epoch};

use super::Tree;
use super::descent::{Halt, Patience, distinct, fixed};
use crate::Result;
use crate::change::{Image, PageChange};
use crate::ids::TxnId;
use crate::journal::{Admission, Author, Journal};
use crate::node::{self, Builder, Cut, Damage, Node, Room, Shape, Target};
use crate::space::Reservation;

/// Rounds without success before the pages are checked in full.
const ROUNDS_BEFORE_CHECK: u32 = 8;

/// What a node has no room for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted<'k> {
    /// A row of a leaf.
    Row { key: &'k [u8], value_bytes: usize },
    /// A separator of an inner node, which some split below wants to add.
    Separator(&'k [u8]),
}

impl Wanted<'_> {
    fn key(&self) -> &[u8] {
        match self {
            Wanted::Row { key, .. } | Wanted::Separator(key) => key,
        }
    }

    fn class(&self) -> PageClass {
        match self {
            Wanted::Row { .. } => PageClass::Plain,
            Wanted::Separator(_) => PageClass::Inner,
        }
    }

    /// Whether an inner node has the separator already: somebody else may have split the same node below at the same key
    /// while nothing was latched, and then even have split this one there.
    fn is_there(&self, node: Node<'_>) -> Result<bool, Damage> {
        match *self {
            Wanted::Row { .. } => Ok(false),
            Wanted::Separator(key) => Ok(node.search(key)?.is_ok() || key == node.lower_fence()?),
        }
    }

    /// Where to cut the node; `None` if it has room.
    fn cut(&self, node: Node<'_>) -> Result<Option<Cut>, Damage> {
        if self.is_there(node)? {
            return Ok(None);
        }
        let room = match *self {
            Wanted::Row { key, value_bytes } => node::plan_row(node, key, node.search(key)?, value_bytes)?,
            Wanted::Separator(key) => node::plan_separator(node, key)?,
        };
        Ok(match (room, *self) {
            (Room::Full { .. }, Wanted::Row { key, value_bytes }) => {
                Some(node::choose_leaf_cut(node, key, value_bytes)?)
            }
            (Room::Full { .. }, Wanted::Separator(key)) => Some(node::choose_inner_cut(node, key)?),
            _ => None,
        })
    }
}

/// What came of a try to split.
enum Outcome {
    /// There is room now, or has been all along.
    Done,
    /// The parent has no room for this separator.
    ParentFull(Vec<u8>),
    /// The full node is the root.
    Root,
}

thread_local! {
    /// The right half before it is logged.
    static IMAGE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Tree {
    /// Splits the leaf for `key`, unless it has room for a value of `value_bytes` by now.
    pub(super) fn split_leaf(
        &self,
        journal: &Journal,
        key: &[u8],
        value_bytes: usize,
        rounds: u32,
    ) -> Result<()> {
        self.split(journal, Wanted::Row { key, value_bytes }, 0, rounds)
    }

    /// Splits the node at `level` that has no room for what is wanted.
    pub(super) fn split(
        &self,
        journal: &Journal,
        wanted: Wanted<'_>,
        level: u8,
        mut rounds: u32,
    ) -> Result<()> {
        let page_bytes = self.page_bytes();
        // The image, twice a separator, the bits.
        let change_bytes = PageChange::max_image_bytes(page_bytes) + 2 * node::max_key_bytes(page_bytes) + 64;
        let mut patience = Patience::default();
        loop {
            let reservation = self.space.reserve(journal, 1)?;
            let mut admission = journal.admit(Author::System, 4, change_bytes, 0)?;
            let new = self.partition.fix_new(reservation.first(), wanted.class())?;
            let tried = self.try_split(journal, &mut admission, wanted, level, rounds, &reservation, new);
            drop((admission, reservation));
            rounds += 1;
            match tried {
                Ok(Outcome::ParentFull(separator)) => {
                    self.split(journal, Wanted::Separator(&separator), level + 1, rounds)?;
                }
                Ok(Outcome::Root) => {
                    if !self.grow_root(journal, wanted)? {
                        return Ok(());
                    }
                }
                Ok(Outcome::Done) => return Ok(()),
                Err(halt) => self.overcome(halt, &mut patience)?,
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what a try needs is got before the first latch")]
    fn try_split(
        &self,
        journal: &Journal,
        admission: &mut Admission<'_>,
        wanted: Wanted<'_>,
        level: u8,
        rounds: u32,
        reservation: &Reservation<'_>,
        new: ExclusivePage<'_>,
    ) -> Result<Outcome, Halt> {
        let epoch = pin_epoch();
        let Some(above) = level.checked_add(1) else {
            let damage = Damage { expected: "a tree of fewer levels", found: level.into() };
            return Err(Halt::Damaged(self.root, damage));
        };
        let found = self.descend(Target::At(wanted.key()), above, &epoch)?;
        if found.too_high {
            return Ok(Outcome::Root);
        }
        let mut parent = found.node.upgrade_exclusive().ok_or(Halt::Changed)?;
        distinct(&[parent.page_no(), found.child, reservation.first(), reservation.bitmap()])?;
        let mut left = fixed(found.child, self.partition.try_exclusive(found.child))?;
        for page in [&parent, &left] {
            if rounds >= ROUNDS_BEFORE_CHECK {
                node::check_page(page.bytes()).map_err(|damage| Halt::Damaged(page.page_no(), damage))?;
            }
        }
        let left_no = left.page_no();
        let in_left = |damage| Halt::Damaged(left_no, damage);
        let node = Node::open(left.bytes()).map_err(in_left)?;
        if node.level() != level {
            return Err(in_left(Damage {
                expected: "a level one below the parent's",
                found: node.level().into(),
            }));
        }
        let Some(cut) = wanted.cut(node).map_err(in_left)? else {
            return Ok(Outcome::Done);
        };
        let parent_no = parent.page_no();
        let room = Node::inner(parent.bytes()).and_then(|node| node::plan_separator(node, &cut.separator));
        if let Room::Full { .. } = room.map_err(|damage| Halt::Damaged(parent_no, damage))? {
            return Ok(Outcome::ParentFull(cut.separator));
        }
        let mut image = IMAGE.take();
        image.clear();
        image.extend_from_slice(new.bytes());
        node::build_right(node, &cut, &mut image).map_err(in_left)?;
        let max_txn = TxnId(header::max_txn(left.bytes()));
        let bitmap = reservation.bitmap();
        let mut bitmap = fixed(bitmap, self.partition.try_exclusive(bitmap))?;
        let separator = cut.separator.as_slice();
        let mut new = new;
        let mut edits = [
            (&mut new, PageChange::Image(Image::of(&image, max_txn))),
            (&mut parent, PageChange::InsertSeparator { key: separator, child: reservation.first() }),
            (&mut left, PageChange::TruncateRight { separator }),
            (&mut bitmap, reservation.set_bits()),
        ];
        self.write_structure(journal, admission, &mut edits)?;
        IMAGE.set(image);
        self.space.count_split();
        Ok(Outcome::Done)
    }

    /// Checks all changes of a structure change, then makes them.
    pub(super) fn write_structure(
        &self,
        journal: &Journal,
        admission: &mut Admission<'_>,
        edits: &mut [(&mut ExclusivePage<'_>, PageChange<'_>)],
    ) -> Result<(), Halt> {
        for (page, change) in &*edits {
            change.check(page.bytes()).map_err(|e| Halt::Failed(self.in_page(page.page_no(), e)))?;
        }
        journal.write(admission, Author::System, edits, None).map_err(Halt::Failed)?;
        Ok(())
    }

    /// Moves the content of a full root into a new page, which becomes its only child: the split that follows is like
    /// any other. `false` if it has room by now.
    fn grow_root(&self, journal: &Journal, wanted: Wanted<'_>) -> Result<bool> {
        let change_bytes = 2 * PageChange::max_image_bytes(self.page_bytes()) + 64;
        let mut patience = Patience::default();
        loop {
            let reservation = self.space.reserve(journal, 1)?;
            let mut admission = journal.admit(Author::System, 3, change_bytes, 0)?;
            let new = self.partition.fix_new(reservation.first(), PageClass::Inner)?;
            let tried = self.try_grow_root(journal, &mut admission, wanted, &reservation, new);
            drop((admission, reservation));
            match tried {
                Ok(grown) => return Ok(grown),
                Err(halt) => self.overcome(halt, &mut patience)?,
            }
        }
    }

    fn try_grow_root(
        &self,
        journal: &Journal,
        admission: &mut Admission<'_>,
        wanted: Wanted<'_>,
        reservation: &Reservation<'_>,
        new: ExclusivePage<'_>,
    ) -> Result<bool, Halt> {
        distinct(&[self.root, reservation.first(), reservation.bitmap()])?;
        let mut root = fixed(self.root, self.partition.try_exclusive(self.root))?;
        let in_root = |damage| Halt::Damaged(self.root, damage);
        let node = Node::inner(root.bytes()).map_err(in_root)?;
        if wanted.is_there(node).map_err(in_root)? {
            return Ok(false);
        }
        let Room::Full { .. } = node::plan_separator(node, wanted.key()).map_err(in_root)? else {
            return Ok(false);
        };
        let Some(level) = node.level().checked_add(1) else {
            return Err(in_root(Damage { expected: "a tree of fewer levels", found: node.level().into() }));
        };
        let mut above = root.bytes().to_vec();
        let shape = Shape::Inner { level, leftmost: reservation.first() };
        let Some(builder) = Builder::new(&mut above, shape, [b"", b""]) else {
            return Err(in_root(Damage { expected: "a page big enough for a node", found: 0 }));
        };
        builder.finish();
        let below = root.bytes().to_vec();
        let bitmap = reservation.bitmap();
        let mut bitmap = fixed(bitmap, self.partition.try_exclusive(bitmap))?;
        let mut new = new;
        let mut edits = [
            (&mut new, PageChange::Image(Image::of(&below, TxnId::NONE))),
            (&mut root, PageChange::Image(Image::of(&above, TxnId::NONE))),
            (&mut bitmap, reservation.set_bits()),
        ];
        self.write_structure(journal, admission, &mut edits)?;
        Ok(true)
    }
}
