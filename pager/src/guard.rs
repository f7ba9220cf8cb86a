//! The guards on a page: shared, exclusive, optimistic.
//!
//! I1. A [`SharedPage`] or [`ExclusivePage`] holds the latch it is named after until it is dropped.
//! I2. An [`OptimisticPage`] exists for pages of class inner only, and no longer than the epoch guard it was made with.
//! I3. The bytes of a page of class inner are written through relaxed stores of aligned words only, under the
//!     exclusive latch. A page stops being inner, is filled from its file or loses its memory only after a grace period in
//!     which nobody could start to read it.
//!
//! I2 and I3 are the argument why a safe caller cannot make a data race, whatever it does with the guards.

use std::cell::Cell;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};

use hamal_storage::Result;
use hamal_wal::Lsn;

use crate::dirty::rec_lsn;
use crate::epoch::EpochGuard;
use crate::region::PageAt;
use crate::state::{PageClass, Seen, store_words};
use crate::{PageNo, Partition};

/// The answer of an operation that neither waits nor does I/O.
#[derive(Debug)]
pub enum Attempt<G> {
    /// It worked.
    Fixed(G),
    /// Somebody holds the latch.
    Busy,
    /// The page is not in memory: let go of everything, call [`Partition::load`], start again.
    Absent,
}

/// A page under a shared latch.
pub struct SharedPage<'p> {
    at: PageAt<'p>,
    page: PageNo,
}

/// A page under the exclusive latch. Dropping it bumps the page's version and unlatches.
pub struct ExclusivePage<'p> {
    at: PageAt<'p>,
    page: PageNo,
    partition: &'p Partition,
}

/// An inner page read without a latch: everything it returns is noise until [`OptimisticPage::validate`] says so.
pub struct OptimisticPage<'p> {
    at: PageAt<'p>,
    words: &'p [AtomicU64],
    seen: Seen,
    page: PageNo,
    partition: &'p Partition,
}

impl<'p> SharedPage<'p> {
    /// The caller has just taken a shared latch.
    #[inline]
    pub(crate) fn latched(at: PageAt<'p>, page: PageNo) -> Self {
        SharedPage { at, page }
    }

    /// Which page.
    #[inline]
    pub fn page_no(&self) -> PageNo {
        self.page
    }

    /// The page's bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the slice lives no longer than `self`, which holds a shared latch (I1): nobody writes.
        unsafe { self.at.bytes() }
    }
}

impl Drop for SharedPage<'_> {
    #[inline]
    fn drop(&mut self) {
        self.at.state().unlock_shared();
    }
}

impl<'p> ExclusivePage<'p> {
    /// The caller has just taken the exclusive latch.
    #[inline]
    pub(crate) fn latched(at: PageAt<'p>, page: PageNo, partition: &'p Partition) -> Self {
        ExclusivePage { at, page, partition }
    }

    /// Which page.
    #[inline]
    pub fn page_no(&self) -> PageNo {
        self.page
    }

    /// The page's bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the slice lives no longer than `self`, which holds the exclusive latch (I1), and no longer than the
        // shared borrow of `self`, which excludes `edit`.
        unsafe { self.at.bytes() }
    }

    /// Changes the page. `Plain`: in place. `Inner`: on a copy, whose changed words are then stored one by one. A
    /// panic inside aborts the process.
    #[inline]
    pub fn edit<R>(&mut self, change: impl FnOnce(&mut [u8]) -> R) -> R {
        let no_unwinding = AbortOnDrop;
        let result = match self.at.state().class() {
            PageClass::Plain => {
                // SAFETY: the exclusive latch is held (I1), `&mut self` excludes other slices, and no optimistic reader can
                // reach a page of class plain (I2, I3).
                change(unsafe { self.at.bytes_mut() })
            }
            PageClass::Inner => with_scratch(self.bytes(), |image| {
                let result = change(bytemuck::cast_slice_mut(image));
                // SAFETY: the page is of class inner and latched.
                store_words(unsafe { self.at.words() }, image);
                result
            }),
        };
        mem::forget(no_unwinding);
        result
    }

    /// Whether its partition is not used any more: then the page must not be changed. Under this latch the answer "no" stays right.
    #[inline]
    pub fn is_sealed(&self) -> bool {
        self.partition.is_sealed()
    }

    /// `Offline` if its partition is not used any more. See [`ExclusivePage::is_sealed`].
    pub fn check_unsealed(&self) -> Result<()> {
        self.partition.check_unsealed()
    }

    /// Marks the page dirty: `rec_lsn` becomes `tail` unless it is set already. Must be called under this latch with the log's
    /// tail, *before* the record is appended (hazard H2).
    pub fn mark_dirty(&mut self, tail: impl FnOnce() -> Lsn) {
        // Mostly the page is dirty already, and the tail need not be asked for: every appender changes it.
        if rec_lsn(self.at.rec_lsn()) == Lsn::NEVER {
            let slot = self.at.slot().load(Ordering::Relaxed);
            self.partition.core().dirty.mark(slot, self.at.rec_lsn(), tail());
        }
    }

    /// The page has been freed (in a logged change, already applied): it leaves the cache unwritten and clean. An
    /// inner page's memory goes once no optimistic reader can see it.
    pub fn discard(self) {
        self.partition.core().discard(self.partition, self.page, self.at);
        mem::forget(self);
    }
}

impl Drop for ExclusivePage<'_> {
    #[inline]
    fn drop(&mut self) {
        self.at.state().unlock_exclusive();
    }
}

impl<'p> OptimisticPage<'p> {
    /// The caller has just seen `seen` in a page of class inner, pinned to `_epoch`.
    #[inline]
    pub(crate) fn begun(
        at: PageAt<'p>,
        page: PageNo,
        partition: &'p Partition,
        seen: Seen,
        _epoch: &'p EpochGuard,
    ) -> Self {
        // SAFETY: the page was of class inner, and in memory, while the caller was pinned: until the guard goes, which
        // outlives `'p`, its bytes are written by words only (I3).
        let words = unsafe { at.words() };
        OptimisticPage { at, words, seen, page, partition }
    }

    /// Which page.
    #[inline]
    pub fn page_no(&self) -> PageNo {
        self.page
    }

    /// Number of 8-byte words.
    #[inline]
    pub fn words(&self) -> usize {
        self.words.len()
    }

    /// One aligned word, little-endian, by a relaxed load; 0 if `index` is out of range.
    #[inline]
    pub fn word(&self, index: usize) -> u64 {
        self.words.get(index).map_or(0, |word| u64::from_le(word.load(Ordering::Relaxed)))
    }

    /// Whether nothing has changed since the read began, so that all words read so far were one consistent page.
    #[inline]
    pub fn validate(&self) -> bool {
        self.at.state().unchanged(self.seen)
    }

    /// The shared latch, if the page is still at the version that was read (compare-and-swap, never check-then-lock).
    #[inline]
    pub fn upgrade_shared(self) -> Option<SharedPage<'p>> {
        self.at.state().upgrade_shared(self.seen).then(|| SharedPage::latched(self.at, self.page))
    }

    /// The exclusive latch, if the page is still at the version that was read.
    #[inline]
    pub fn upgrade_exclusive(self) -> Option<ExclusivePage<'p>> {
        let latched = self.at.state().upgrade_exclusive(self.seen);
        latched.then(|| ExclusivePage::latched(self.at, self.page, self.partition))
    }
}

macro_rules! debug_by_page_number {
    ($($guard:ident)*) => {$(
        impl fmt::Debug for $guard<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($guard)).field(&self.page).finish()
            }
        }
    )*};
}
debug_by_page_number!(SharedPage ExclusivePage OptimisticPage);

/// Half-changed, unlogged bytes must never reach the disk: no unwinding out of a change.
struct AbortOnDrop;

impl Drop for AbortOnDrop {
    #[inline]
    fn drop(&mut self) {
        std::process::abort();
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<u64>> = const { Cell::new(Vec::new()) };
}

/// Runs `change` on a copy of the page, in a buffer that the thread keeps.
fn with_scratch<R>(page: &[u8], change: impl FnOnce(&mut [u64]) -> R) -> R {
    // Taken out, so that a change within a change gets a buffer of its own.
    let mut scratch = SCRATCH.take();
    scratch.resize(page.len() / size_of::<u64>(), 0);
    bytemuck::cast_slice_mut(&mut scratch).copy_from_slice(page);
    let result = change(&mut scratch);
    SCRATCH.set(scratch);
    result
}
