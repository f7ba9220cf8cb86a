//! Mistakes to make on purpose: how the campaigns that look for such mistakes are themselves tested.
//!
//! Test-only. Without the feature `planted-bugs` none can be planted and the questions cost nothing. One at a time, for the whole
//! process.

#[cfg(feature = "planted-bugs")]
use std::sync::atomic::{AtomicU8, Ordering};

/// A mistake in the isolation of transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PlantedBug {
    /// No mistake.
    None,
    /// A serializable commit does not ask whether its reads have been overtaken.
    NoValidation,
    /// A transaction or snapshot begins at an earlier commit than it must.
    EarlySnapshot,
    /// The interval that a scan is remembered by ends before the last key it examined.
    ShortInterval,
}

#[cfg(feature = "planted-bugs")]
static PLANTED: AtomicU8 = AtomicU8::new(PlantedBug::None as u8);

/// Makes this mistake from now on, and no other.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: PlantedBug) {
    // A switch on its own: it orders nothing.
    PLANTED.store(bug as u8, Ordering::Relaxed);
}

/// Whether to make this mistake.
#[cfg(feature = "planted-bugs")]
pub(crate) fn is_planted(bug: PlantedBug) -> bool {
    PLANTED.load(Ordering::Relaxed) == bug as u8
}

/// Whether to make this mistake: never.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn is_planted(_: PlantedBug) -> bool {
    false
}
