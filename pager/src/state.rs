//! The state word of a page: its latch, its class and its version in one `AtomicU64`.
//!
//! ```text
//!  63      56 55    54                     0
//! +----------+-----+------------------------+
//! |  state   |inner|        version         |
//! +----------+-----+------------------------+
//!
//!            begin_load            finish_load                mark
//!  EVICTED -------------> LOADING ------------+--> UNLOCKED <------> MARKED   (any latch or optimistic
//!     ^  ^                   |                |     |    ^              |      read takes the mark off)
//!     |  +-------------------+ abandon_load   |     |    | unlock       |
//!     |                                       |     v    |              |
//!     |                                       +--> SHARED 1..=249       |
//!     |                                       |     EXCLUSIVE <---------+ try_exclusive_marked
//!     |        evicted                        +------^   |
//!     +---- LEAVING <------------------------------------+ leave
//!     +--------------------------------------------------+ evicted
//! ```
//!
//! I1. The version grows at every exclusive unlatch and whenever the page leaves memory, and at no other time.
//! I2. LOADING, LEAVING and EXCLUSIVE have one owner, who alone changes the word.
//! I3. An optimistic read begins only on a page of class inner that is UNLOCKED, MARKED or SHARED, and counts only if
//!     class and version are the same, and nobody owns the page, when it ends.
//!
//! Orderings. A latch is taken by an acquire operation, which pairs with the release by which it was given back (the
//! marks in between are read-modify-writes and so continue the release sequence). The fences are those of
//! crossbeam's `SeqLock`: see [`StateWord::try_exclusive`] and [`StateWord::unchanged`].

use crate::sync::{AtomicU64, Mistake, Ordering, fence, planted};

/// How a page's bytes may be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageClass {
    /// Inner nodes: read optimistically, so every write is a relaxed store of aligned words.
    Inner,
    /// Everything else: read and written under its latch.
    Plain,
}

const STATE_SHIFT: u32 = 56;
const ONE_SHARED: u64 = 1 << STATE_SHIFT;
const INNER: u64 = 1 << 55;
const VERSION: u64 = INNER - 1;

const EVICTED: u64 = 0;
const UNLOCKED: u64 = 1;
const LAST_JOINABLE: u64 = 249;
const MARKED: u64 = 251;
const LOADING: u64 = 252;
const LEAVING: u64 = 253;
const EXCLUSIVE: u64 = 254;

/// Why there was nothing to latch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absence {
    /// Not in memory.
    Evicted,
    /// Somebody is reading it in.
    Loading,
    /// Its memory waits for the optimistic readers to go.
    Leaving,
}

/// The answer of an attempt at a latch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Latch {
    Taken,
    Busy,
    Absent(Absence),
}

/// What a page becomes once it has been read in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loaded {
    Unlocked,
    Shared,
    Exclusive,
}

/// What the clock hand found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Used since the last visit; marked now.
    Marked,
    /// Not used since the last visit.
    Cold(PageClass),
    /// Latched, leaving, or not in memory.
    Taken,
    /// Being read in.
    Loading,
}

/// Class and version at the start of an optimistic read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen(u64);

/// The state word of one page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateWord<'a>(&'a AtomicU64);

const fn state(word: u64) -> u64 {
    word >> STATE_SHIFT
}

/// The same class and version in another state.
const fn with_state(word: u64, state: u64) -> u64 {
    (word & (INNER | VERSION)) | (state << STATE_SHIFT)
}

const fn next_version(word: u64) -> u64 {
    (word & !VERSION) | (word.wrapping_add(1) & VERSION)
}

const fn class(word: u64) -> PageClass {
    if word & INNER == 0 { PageClass::Plain } else { PageClass::Inner }
}

const fn with_class(word: u64, class: PageClass) -> u64 {
    match class {
        PageClass::Inner => word | INNER,
        PageClass::Plain => word & !INNER,
    }
}

impl<'a> StateWord<'a> {
    #[inline]
    pub(crate) fn new(word: &'a AtomicU64) -> Self {
        StateWord(word)
    }

    /// The class; stable only while the caller holds a latch.
    #[inline]
    pub(crate) fn class(self) -> PageClass {
        class(self.0.load(Ordering::Relaxed))
    }

    /// Whether the page is being read in right now.
    pub(crate) fn is_loading(self) -> bool {
        state(self.0.load(Ordering::Acquire)) == LOADING
    }

    /// Whether the page is in memory and may be latched, now or soon.
    pub(crate) fn presence(self) -> Latch {
        match state(self.0.load(Ordering::Acquire)) {
            EVICTED => Latch::Absent(Absence::Evicted),
            LOADING => Latch::Absent(Absence::Loading),
            LEAVING => Latch::Absent(Absence::Leaving),
            EXCLUSIVE => Latch::Busy,
            _ => Latch::Taken,
        }
    }

    /// One more shared latch.
    #[inline]
    pub(crate) fn try_shared(self) -> Latch {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let next = match state(word) {
                MARKED => with_state(word, UNLOCKED + 1),
                UNLOCKED..=LAST_JOINABLE => word + ONE_SHARED,
                EVICTED => return Latch::Absent(Absence::Evicted),
                LOADING => return Latch::Absent(Absence::Loading),
                LEAVING => return Latch::Absent(Absence::Leaving),
                _ => return Latch::Busy,
            };
            // Acquire: pairs with the release in `unlock_exclusive` and `finish_load`.
            match self.0.compare_exchange_weak(word, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Latch::Taken,
                Err(now) => word = now,
            }
        }
    }

    /// Gives back a shared latch.
    #[inline]
    pub(crate) fn unlock_shared(self) {
        // Release: pairs with the acquire in `try_exclusive`, which must see that our reads are over.
        self.0.fetch_sub(ONE_SHARED, Ordering::Release);
    }

    /// The exclusive latch.
    #[inline]
    pub(crate) fn try_exclusive(self) -> Latch {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            match state(word) {
                UNLOCKED | MARKED => {}
                EVICTED => return Latch::Absent(Absence::Evicted),
                LOADING => return Latch::Absent(Absence::Loading),
                LEAVING => return Latch::Absent(Absence::Leaving),
                _ => return Latch::Busy,
            }
            match self.own(word, EXCLUSIVE) {
                Ok(()) => return Latch::Taken,
                Err(now) => word = now,
            }
        }
    }

    /// The exclusive latch, if nobody has used the page since the clock hand marked it.
    pub(crate) fn try_exclusive_marked(self) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        state(word) == MARKED && self.own(word, EXCLUSIVE).is_ok()
    }

    #[inline]
    fn own(self, word: u64, owned: u64) -> Result<(), u64> {
        // Acquire: pairs with the release of whoever held a latch before.
        self.0.compare_exchange(word, with_state(word, owned), Ordering::Acquire, Ordering::Relaxed)?;
        // Release fence: pairs with the acquire fence in `unchanged`. A reader that sees one of the words the owner is
        // about to store must see the page owned (or a later version) when it looks again.
        if !planted(Mistake::NoWriterFence) {
            fence(Ordering::Release);
        }
        Ok(())
    }

    /// Gives back the exclusive latch: a new version.
    #[inline]
    pub(crate) fn unlock_exclusive(self) {
        let word = self.0.load(Ordering::Relaxed);
        debug_assert_eq!(state(word), EXCLUSIVE, "only the owner unlatches");
        let next = if planted(Mistake::NoVersionBump) { word } else { next_version(word) };
        let order = if planted(Mistake::RelaxedUnlock) { Ordering::Relaxed } else { Ordering::Release };
        // Release: pairs with the acquire of the next latch, and with the one in `begin_read`.
        self.0.store(with_state(next, UNLOCKED), order);
    }

    /// Gives back the exclusive latch of a page that was not changed: readers may go on.
    pub(crate) fn unlock_unchanged(self) {
        let word = self.0.load(Ordering::Relaxed);
        debug_assert_eq!(state(word), EXCLUSIVE, "only the owner unlatches");
        self.0.store(with_state(word, UNLOCKED), Ordering::Release);
    }

    /// Sets the class of a page latched exclusively. From inner to plain only after a grace period.
    pub(crate) fn set_class(self, class: PageClass) {
        let word = self.0.load(Ordering::Relaxed);
        debug_assert_eq!(state(word), EXCLUSIVE, "only the owner changes the class");
        self.0.store(with_class(word, class), Ordering::Relaxed);
    }

    /// Takes over a page that is not in memory, to read it in.
    pub(crate) fn begin_load(self) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        // Acquire in `own`: pairs with the release in `evicted`, so that the memory is seen to be dropped.
        state(word) == EVICTED && self.own(word, LOADING).is_ok()
    }

    /// The page is in memory.
    pub(crate) fn finish_load(self, class: PageClass, into: Loaded) {
        let word = self.0.load(Ordering::Relaxed);
        debug_assert_eq!(state(word), LOADING, "only the loader finishes a load");
        let state = match into {
            Loaded::Unlocked => UNLOCKED,
            Loaded::Shared => UNLOCKED + 1,
            Loaded::Exclusive => EXCLUSIVE,
        };
        // Release: pairs with the acquire of the next latch, and with the one in `begin_read`.
        self.0.store(with_class(with_state(word, state), class), Ordering::Release);
    }

    /// The page could not be read; its memory is dropped.
    pub(crate) fn abandon_load(self) {
        let word = self.0.load(Ordering::Relaxed);
        debug_assert_eq!(state(word), LOADING, "only the loader abandons a load");
        self.0.store(with_state(word, EVICTED), Ordering::Release);
    }

    /// The owner lets go of a page that nobody may latch again before its memory is gone.
    pub(crate) fn leave(self) {
        let word = self.0.load(Ordering::Relaxed);
        debug_assert_eq!(state(word), EXCLUSIVE, "only the owner sends a page away");
        self.0.store(with_state(word, LEAVING), Ordering::Release);
    }

    /// The page's memory is dropped; the caller owns it (EXCLUSIVE or LEAVING).
    pub(crate) fn evicted(self) {
        let word = self.0.load(Ordering::Relaxed);
        debug_assert!(matches!(state(word), EXCLUSIVE | LEAVING), "only the owner evicts");
        let next = if planted(Mistake::NoVersionBump) { word } else { next_version(word) };
        self.0.store(with_state(with_class(next, PageClass::Plain), EVICTED), Ordering::Release);
    }

    /// One visit of the clock hand.
    pub(crate) fn visit(self) -> Clock {
        let word = self.0.load(Ordering::Relaxed);
        match state(word) {
            MARKED => Clock::Cold(class(word)),
            UNLOCKED => {
                self.mark();
                Clock::Marked
            }
            LOADING => Clock::Loading,
            _ => Clock::Taken,
        }
    }

    /// Marks the page as unused, if nobody has it.
    pub(crate) fn mark(self) {
        let word = self.0.load(Ordering::Relaxed);
        if state(word) == UNLOCKED {
            // Relaxed: nothing is read or written on the strength of a mark.
            let marked = with_state(word, MARKED);
            let _ = self.0.compare_exchange(word, marked, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Whether the clock hand's mark is on the page.
    pub(crate) fn is_marked(self) -> bool {
        state(self.0.load(Ordering::Relaxed)) == MARKED
    }

    /// Starts an optimistic read (I3).
    #[inline]
    pub(crate) fn begin_read(self) -> Result<Seen, Latch> {
        // Acquire: pairs with the release of the last writer, so that its words are seen.
        let word = self.0.load(Ordering::Acquire);
        match state(word) {
            EVICTED => return Err(Latch::Absent(Absence::Evicted)),
            LOADING => return Err(Latch::Absent(Absence::Loading)),
            LEAVING => return Err(Latch::Absent(Absence::Leaving)),
            EXCLUSIVE => return Err(Latch::Busy),
            MARKED => {
                // The page is in use: take the mark off.
                let used = with_state(word, UNLOCKED);
                let _ = self.0.compare_exchange(word, used, Ordering::Relaxed, Ordering::Relaxed);
            }
            _ => {}
        }
        if class(word) == PageClass::Plain {
            return Err(Latch::Busy);
        }
        Ok(Seen(word & (INNER | VERSION)))
    }

    /// Whether all words loaded since `seen` was taken are one consistent page.
    #[inline]
    pub(crate) fn unchanged(self, seen: Seen) -> bool {
        // Acquire fence: pairs with the release fence in `own`. The relaxed loads of the page's words before it
        // stay before the load of the state word behind it.
        if !planted(Mistake::NoReaderFence) {
            fence(Ordering::Acquire);
        }
        let word = self.0.load(Ordering::Relaxed);
        word & (INNER | VERSION) == seen.0 && matches!(state(word), UNLOCKED..=MARKED)
    }

    /// A shared latch, if nothing has changed since the read began.
    #[inline]
    pub(crate) fn upgrade_shared(self, seen: Seen) -> bool {
        if planted(Mistake::CheckThenLatch) {
            return self.unchanged(seen) && self.try_shared() == Latch::Taken;
        }
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            if word & (INNER | VERSION) != seen.0 {
                return false;
            }
            let next = match state(word) {
                MARKED => with_state(word, UNLOCKED + 1),
                UNLOCKED..=LAST_JOINABLE => word + ONE_SHARED,
                _ => return false,
            };
            match self.0.compare_exchange_weak(word, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
    }

    /// The exclusive latch, if nothing has changed since the read began and nobody holds a latch.
    #[inline]
    pub(crate) fn upgrade_exclusive(self, seen: Seen) -> bool {
        if planted(Mistake::CheckThenLatch) {
            return self.unchanged(seen) && self.try_exclusive() == Latch::Taken;
        }
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            if word & (INNER | VERSION) != seen.0 || !matches!(state(word), UNLOCKED | MARKED) {
                return false;
            }
            match self.own(word, EXCLUSIVE) {
                Ok(()) => return true,
                Err(now) => word = now,
            }
        }
    }
}

/// Stores the words of `image` that differ, one by one: how an inner page is written. The caller holds the
/// exclusive latch.
pub(crate) fn store_words(page: &[AtomicU64], image: &[u64]) {
    for (word, &new) in page.iter().zip(image) {
        // Relaxed: ordered by the latch and the fences around it.
        if word.load(Ordering::Relaxed) != new {
            word.store(new, Ordering::Relaxed);
        }
    }
}
