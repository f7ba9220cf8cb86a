//! The primitives the lock-free parts are written against: the real ones, or loom's under `--cfg loom`, so that
//! the models in `loom_models.rs` run the very code that ships.

use std::ops::Deref;

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(not(loom))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};

#[cfg(not(loom))]
pub(crate) use std::thread;

#[cfg(loom)]
pub(crate) use loom::thread;

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(crate) use self::modelled::{Condvar, Mutex, MutexGuard};

/// Waits on `condvar`, giving up the lock meanwhile.
#[cfg(not(loom))]
pub(crate) fn wait<'a, T>(condvar: &Condvar, mut guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(&mut guard);
    guard
}

/// Waits on `condvar`, giving up the lock meanwhile.
#[cfg(loom)]
pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard)
}

/// One step of waiting for another thread that is known to be running towards its store: spins a little, then
/// gives up the processor at every call.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    steps: u32,
}

impl Backoff {
    const SPINS: u32 = 64;

    /// Waits a moment.
    #[cfg(not(loom))]
    pub(crate) fn pause(&mut self) {
        if self.steps < Self::SPINS {
            self.steps += 1;
            std::hint::spin_loop();
        } else {
            thread::yield_now();
        }
    }

    /// Lets another modelled thread run.
    #[cfg(loom)]
    pub(crate) fn pause(&mut self) {
        self.steps = (self.steps + 1).min(Self::SPINS);
        thread::yield_now();
    }
}

/// Keeps a hot atomic on cache lines of its own (two, because of the adjacent-line prefetcher).
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

impl<T> Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

#[cfg(loom)]
mod modelled {
    //! loom's lock and condition variable with parking_lot's shape: no poisoning.

    pub(crate) use loom::sync::MutexGuard;

    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a modelled thread panicked")
        }
    }

    #[derive(Debug)]
    pub(crate) struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Condvar(loom::sync::Condvar::new())
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(guard).expect("a modelled thread panicked")
        }
    }
}
