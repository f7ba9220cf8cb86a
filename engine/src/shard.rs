//! Spreading what all threads change, so that they do not change the same cache lines.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::options::Maintenance;

/// Parts: more than there are threads at work, mostly.
pub(crate) const COUNT: u64 = 16;

/// Number of the calling thread's part. Where the database is driven by hand, all threads have one: what is done must not depend on the
/// numbers that the process has given them.
pub(crate) fn number(maintenance: Maintenance) -> u64 {
    match maintenance {
        Maintenance::Background => of_this_thread(),
        Maintenance::Manual => 0,
    }
}

fn of_this_thread() -> u64 {
    static THREADS: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static MINE: u64 = THREADS.fetch_add(1, Ordering::Relaxed) % COUNT;
    }
    // While the thread ends, any does.
    MINE.try_with(|mine| *mine).unwrap_or(0)
}

/// Something in several parts, each in a cache line of its own.
#[derive(Debug)]
pub(crate) struct Shards<T>([CachePadded<T>; COUNT as usize]);

impl<T: Default> Default for Shards<T> {
    fn default() -> Self {
        Shards::new(T::default)
    }
}

impl<T> Shards<T> {
    /// Parts that are made one after the other.
    pub(crate) fn new(make: impl Fn() -> T) -> Self {
        Shards(array::from_fn(|_| CachePadded::new(make())))
    }

    /// The part that goes with a number.
    pub(crate) fn at(&self, number: u64) -> &T {
        &self.0[(number % COUNT) as usize]
    }

    /// The part of the calling thread, as [`number`] has it: one of several threads', if there are many.
    pub(crate) fn of(&self, maintenance: Maintenance) -> &T {
        self.at(number(maintenance))
    }

    /// All parts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|part| &**part)
    }
}
