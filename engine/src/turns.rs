//! Taking turns in a simulation, whose scheduler runs one thread at a time. Where there is none, nothing here does anything but lock.
//!
//! I1. Whoever pauses holds no latch and no log permit; of locks, only those that all take through here. So no thread ever waits for
//!     one that pauses, but by pausing itself.

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::engine::Engine;

impl Engine {
    /// A place where a simulation may let another thread run.
    pub(crate) fn pause(&self, place: &'static str) {
        if let Some(scheduler) = self.storage.scheduler() {
            scheduler.pause(place);
        }
    }

    /// Locks a mutex whose holders may pause.
    pub(crate) fn lock<'m, T>(&self, mutex: &'m Mutex<T>, place: &'static str) -> MutexGuard<'m, T> {
        let Some(scheduler) = self.storage.scheduler() else { return mutex.lock() };
        loop {
            if let Some(guard) = mutex.try_lock() {
                return guard;
            }
            scheduler.wait(place);
        }
    }

    /// Takes, within the timeout, what those who have it may keep while they pause: with `attempt`, which does not wait, in a
    /// simulation; otherwise with `take`, which does.
    pub(crate) fn take_within<G>(
        &self,
        timeout: Duration,
        place: &'static str,
        attempt: impl Fn() -> Option<G>,
        take: impl FnOnce() -> Option<G>,
    ) -> Option<G> {
        let Some(scheduler) = self.storage.scheduler() else { return take() };
        let deadline = self.storage.monotonic().saturating_add(timeout);
        loop {
            let taken = attempt();
            if taken.is_some() || self.storage.monotonic() >= deadline {
                return taken;
            }
            scheduler.wait(place);
        }
    }
}
