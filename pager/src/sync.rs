//! The atomics, fences and locks of the pieces that are model-checked: std's and parking_lot's in a normal
//! build, loom's under `--cfg loom`, so that the models run the very code that ships.
//!
//! [`planted`] is how a model proves its own strength: under loom a test plants one [`Mistake`] and the model must
//! fail. In a normal build it is the constant `false` and the branches vanish.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(not(loom))]
pub(crate) use parking_lot::Mutex;

/// loom's mutex with parking_lot's interface.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().expect("no model panics while holding a lock")
    }
}

/// A mistake that a loom model plants to show that it would be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// The writer stores its words without a release fence after latching.
    NoWriterFence,
    /// The reader re-reads the version without an acquire fence.
    NoReaderFence,
    /// Unlatching exclusively, or evicting, leaves the version as it was.
    NoVersionBump,
    /// Unlatching stores the word relaxed.
    RelaxedUnlock,
    /// An upgrade checks the version and latches in two steps.
    CheckThenLatch,
    /// A page on its way to the disk leaves the dirty array before it is in the in-flight table.
    GapBeforeInFlight,
    /// The checkpoint scans the in-flight table first and the array second.
    InFlightFirst,
    /// A page written back is clean even if it was changed again meanwhile.
    ForgetRedirtied,
    /// A page goes back into the dirty array, and the checkpoint's scan does not hear of it.
    PutBackUncounted,
}

/// Whether this mistake is planted: never, outside loom.
#[cfg(not(loom))]
pub(crate) const fn planted(_mistake: Mistake) -> bool {
    false
}

#[cfg(loom)]
thread_local! {
    // loom runs all threads of a model on the thread that called it.
    static PLANTED: std::cell::Cell<Option<Mistake>> = const { std::cell::Cell::new(None) };
}

/// Whether this mistake is planted.
#[cfg(loom)]
pub(crate) fn planted(mistake: Mistake) -> bool {
    PLANTED.get() == Some(mistake)
}

/// Plants a mistake for the models this thread runs from now on.
#[cfg(all(loom, test))]
pub(crate) fn plant(mistake: Mistake) {
    PLANTED.set(Some(mistake));
}
