//! From the root to a leaf, or to an inner node of a given level.
//!
//! Inner nodes are read without a latch. Each step: read the child's number from the parent, validate the parent, begin to read
//! (or latch) the child, validate the parent again. The second validation shows that the page was still this parent's child
//! when it was begun, so whatever it says is about the keys that are searched for.
//!
//! I1. What is read is not believed, and no error raised from it, before it is validated.
//! I2. Levels fall by one at each step, so a descent ends, whatever the pages hold.
//! I3. No thread waits for a latch that it holds itself: pages that are latched together are different ones, whatever the pages
//!     hold ([`distinct`]).

use std::hint;
use std::thread;

use hamal_pager::{
    Attempt, EpochGuard, ExclusivePage, OptimisticPage, PageNo, Partition, SharedPage, header, pin_epoch,
};

use super::Tree;
use crate::node::{Damage, Route, Target, route};
use crate::{Error, ErrorKind, Result};

/// Pages that one descent may read in before it asks whether the cache is poisoned; a path has a handful.
const ODD_LOADS: u32 = 64;
/// Pages that one descent may read in at all.
const MOST_LOADS: u32 = 10_000;
/// How often they may come to that, if dirty pages could be written meanwhile.
const MOST_TIMES_ANEW: u32 = 8;
/// Restarts before a descent waits for the page that stops it.
const OPTIMISTIC_RESTARTS: u32 = 8;
/// How often in a row the tree must lead to the same unreadable page before that is an error: once may be a race with the
/// page being freed.
const UNREADABLE_TIMES: u32 = 3;

/// Why a descent stopped. It holds nothing any more.
#[derive(Debug)]
pub(super) enum Halt {
    /// The page is not in memory.
    Absent(PageNo),
    /// Somebody has the page's latch.
    Busy(PageNo),
    /// The page cannot be read optimistically: somebody has its latch, or it is not an inner node.
    Unread(PageNo),
    /// A page changed while it was read.
    Changed,
    /// The page is damaged.
    Damaged(PageNo, Damage),
    /// Something else failed.
    Failed(Error),
}

/// The guard, or why there is none.
pub(super) fn fixed<G>(page: PageNo, attempt: Attempt<G>) -> Result<G, Halt> {
    match attempt {
        Attempt::Fixed(guard) => Ok(guard),
        Attempt::Busy => Err(Halt::Busy(page)),
        Attempt::Absent => Err(Halt::Absent(page)),
    }
}

/// The optimistic read, or why there is none.
fn begun<G>(page: PageNo, attempt: Attempt<G>) -> Result<G, Halt> {
    match attempt {
        Attempt::Fixed(guard) => Ok(guard),
        Attempt::Busy => Err(Halt::Unread(page)),
        Attempt::Absent => Err(Halt::Absent(page)),
    }
}

/// Fails if one of the pages that are to be latched together is named twice: damage, for which trying again would go on for ever.
pub(super) fn distinct(pages: &[PageNo]) -> Result<(), Halt> {
    for (index, page) in pages.iter().enumerate() {
        if pages[..index].contains(page) {
            return Err(named_twice(*page));
        }
    }
    Ok(())
}

/// Out of line: descents are hot.
#[cold]
fn named_twice(page: PageNo) -> Halt {
    Halt::Damaged(page, Damage { expected: "a page that has one place in the tree", found: page.0.into() })
}

/// What a validated read says, if it can be true of a node at the level `expected`.
fn believe(page: PageNo, found: Option<Route>, expected: Option<u8>) -> Result<Route, Halt> {
    let Some(route) = found else {
        let damage = Damage { expected: "an inner node that can be searched for the key", found: 0 };
        return Err(Halt::Damaged(page, damage));
    };
    if expected.is_some_and(|level| level != route.level) {
        let damage = Damage { expected: "a level one below the parent's", found: route.level.into() };
        return Err(Halt::Damaged(page, damage));
    }
    Ok(route)
}

/// What a series of descents has been through.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// Pages read in.
    loads: u32,
    /// How often room was made when that had come to nothing.
    times_anew: u32,
    restarts: u32,
    unreadable: Option<PageNo>,
    unreadable_times: u32,
}

/// Whether the pages of one path fit the cache.
enum Crowding {
    No,
    /// More were read in than a path has.
    Odd,
    Hopeless,
}

/// An inner node, being read, and where it sends the descent.
pub(super) struct Found<'e> {
    pub(super) node: OptimisticPage<'e>,
    pub(super) child: PageNo,
    /// The tree's root is below the level that was asked for.
    pub(super) too_high: bool,
}

impl Tree {
    /// Goes down to the inner node of `level` (at least 1) on the way to `target`. Its reading is valid so far.
    pub(super) fn descend<'e>(
        &'e self,
        target: Target<'_>,
        level: u8,
        epoch: &'e EpochGuard,
    ) -> Result<Found<'e>, Halt> {
        let mut node = begun(self.root, self.partition.optimistic(self.root, epoch))?;
        let mut expected = None;
        loop {
            let found = route(&node, target);
            if !node.validate() {
                return Err(Halt::Changed);
            }
            let Route { level: at, child } = believe(node.page_no(), found, expected)?;
            if at <= level {
                if child == node.page_no() {
                    return Err(named_twice(child));
                }
                return Ok(Found { node, child, too_high: at < level });
            }
            let below = begun(child, self.partition.optimistic(child, epoch))?;
            if !node.validate() {
                return Err(Halt::Changed);
            }
            (node, expected) = (below, Some(at - 1));
        }
    }

    /// The leaf for `target`, latched by `latch`.
    fn try_leaf<'t, G>(
        &'t self,
        target: Target<'_>,
        latch: impl Fn(PageNo) -> Attempt<G> + 't,
    ) -> Result<G, Halt> {
        let epoch = pin_epoch();
        let found = self.descend(target, 1, &epoch)?;
        let leaf = fixed(found.child, latch(found.child))?;
        if found.node.validate() { Ok(leaf) } else { Err(Halt::Changed) }
    }

    fn leaf<'t, G>(
        &'t self,
        target: Target<'_>,
        latch: impl Fn(PageNo) -> Attempt<G> + Copy + 't,
    ) -> Result<G> {
        let mut patience = Patience::default();
        loop {
            match self.try_leaf(target, latch) {
                Ok(leaf) => return Ok(leaf),
                Err(halt) => self.overcome(halt, &mut patience)?,
            }
        }
    }

    /// The leaf for `target` under its shared latch. The caller holds nothing.
    pub(super) fn leaf_shared(&self, target: Target<'_>) -> Result<SharedPage<'_>> {
        self.leaf(target, |page| self.partition.try_shared(page))
    }

    /// The leaf for `target` under its exclusive latch. The caller holds nothing.
    pub(crate) fn leaf_exclusive(&self, target: Target<'_>) -> Result<ExclusivePage<'_>> {
        self.leaf(target, |page| self.partition.try_exclusive(page))
    }

    /// Does what is needed before a descent can be tried again: the waiting that it must not do itself.
    #[cold]
    pub(super) fn overcome(&self, halt: Halt, patience: &mut Patience) -> Result<()> {
        match halt {
            Halt::Absent(page) => match self.partition.load(page) {
                Ok(()) => patience.loaded(&self.partition),
                Err(error) => patience.unreadable(page, error.into()),
            },
            Halt::Busy(page) | Halt::Unread(page) => {
                if patience.pause() {
                    return Ok(());
                }
                match self.partition.fix_shared(page) {
                    Ok(fixed) => {
                        let kind = header::kind(fixed.bytes());
                        if matches!(halt, Halt::Busy(_)) || kind == header::kind::INNER {
                            return Ok(());
                        }
                        let damage = Damage { expected: "an inner node (3)", found: kind.into() };
                        patience.unreadable(page, self.damaged(page, damage))
                    }
                    Err(error) => patience.unreadable(page, error.into()),
                }
            }
            Halt::Changed => {
                patience.pause();
                Ok(())
            }
            Halt::Damaged(page, damage) => Err(self.damaged(page, damage)),
            Halt::Failed(error) => Err(error),
        }
    }
}

impl Patience {
    /// Steps aside for a moment; `false` if that has been done often enough.
    fn pause(&mut self) -> bool {
        self.restarts += 1;
        if self.restarts <= 2 {
            hint::spin_loop();
        } else {
            thread::yield_now();
        }
        self.restarts <= OPTIMISTIC_RESTARTS
    }

    /// A page had to be read in that has to be in memory along with others. Fails if they push each other out again and again.
    pub(crate) fn loaded(&mut self, partition: &Partition) -> Result<()> {
        match self.load_again() {
            Crowding::No => Ok(()),
            Crowding::Odd => Ok(partition.check_poison()?),
            // Pages that a full disk keeps in memory are no reason to ask for more of it.
            Crowding::Hopeless if partition.make_room()? && self.begin_anew() => Ok(()),
            Crowding::Hopeless => Err(Error::new(
                ErrorKind::Limit,
                "the page cache cannot hold one path through a tree; use fewer threads or raise cache_bytes",
            )),
        }
    }

    /// Counts a page that had to be read in: how likely is it that the pages of one path push each other out? That happens
    /// when nearly all frames hold pages that cannot leave: latched ones, or dirty ones of a cache that is poisoned.
    fn load_again(&mut self) -> Crowding {
        self.loads += 1;
        if self.loads <= ODD_LOADS {
            Crowding::No
        } else if self.loads <= MOST_LOADS {
            Crowding::Odd
        } else {
            Crowding::Hopeless
        }
    }

    /// Pages that were in the way can leave now. `false` if that has not helped so many times.
    fn begin_anew(&mut self) -> bool {
        self.loads = 0;
        self.times_anew += 1;
        self.times_anew <= MOST_TIMES_ANEW
    }

    /// Fails if `page`, which a valid parent led to, has been damaged each of the last few times.
    fn unreadable(&mut self, page: PageNo, error: Error) -> Result<()> {
        self.unreadable_times = if self.unreadable == Some(page) { self.unreadable_times + 1 } else { 1 };
        self.unreadable = Some(page);
        if error.kind() == ErrorKind::Corrupt && self.unreadable_times < UNREADABLE_TIMES {
            return Ok(());
        }
        Err(error)
    }
}
