//! Grace periods: when no optimistic reader can look at a page any more.
//!
//! crossbeam's epochs serve as a bare "has everybody let go since?": nothing is freed by deferred functions, so which
//! pages leave memory, and when, never depends on what other threads of the process are doing.
//!
//! I1. Who is pinned waits for nothing: no latch, no frame, no I/O, no grace period (hazard H16). So a grace period
//!     ends as soon as the descents that were under way have ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::utils::Backoff;
use crossbeam_epoch::Guard;

/// Keeps inner pages that are being read optimistically from being reused or evicted.
#[derive(Debug)]
pub struct EpochGuard {
    _guard: Guard,
}

/// Pins the current thread's epoch. Hold it only for one descent; never across a wait or I/O (hazard H16).
pub fn pin_epoch() -> EpochGuard {
    EpochGuard { _guard: crossbeam_epoch::pin() }
}

/// Whether this thread holds an epoch guard.
pub(crate) fn is_pinned() -> bool {
    crossbeam_epoch::is_pinned()
}

/// Returns when every guard that was held at the call has been dropped, with everything done under it.
pub(crate) fn wait_for_readers() {
    assert!(!is_pinned(), "waiting for optimistic readers while being one would never end");
    let passed = Arc::new(AtomicBool::new(false));
    let signal = Arc::clone(&passed);
    // Release, and acquire below: what the readers did happens before what the caller does next (the collector
    // itself is ordered after their unpinning).
    crossbeam_epoch::pin().defer(move || signal.store(true, Ordering::Release));
    let backoff = Backoff::new();
    while !passed.load(Ordering::Acquire) {
        crossbeam_epoch::pin().flush();
        if !passed.load(Ordering::Acquire) {
            backoff.snooze();
        }
    }
}
