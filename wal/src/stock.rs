//! Room in the log and in the buffer that threads keep in stock, so that not every record makes all of them change the same words.
//!
//! A thread's shelf has spoken for some of the log, and claimed some of the buffer, beyond what its permits hold. Permits are filled from
//! it, what they leave returns to it, and only when it is empty, or overflows, are the budget and the ring asked.
//!
//! I1. A shelf never holds more of the buffer than of the log. So the ring's claims lie within what was spoken for, and hence within the
//!     segments that are prepared; only records that nobody promised room for can reach beyond.
//! I2. Room in stock is room that others may need: whoever finds too little clears all shelves before it fails or waits, and a shelf
//!     holds twice its refill at most.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::LogOptions;
use crate::sync::Padded;

/// Shelves for this many threads, where threads are many.
pub(crate) const MOST_SHELVES: usize = 16;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Stock {
    shelves: Box<[Padded<Mutex<Shelf>>]>,
    refill_bytes: u64,
}

#[derive(Debug, Default)]
struct Shelf {
    room: Room,
    /// Promised less released, by this shelf's threads: wraps, as one may promise what another releases.
    promised_bytes: u64,
}

/// Room spoken for in the log, and claimed in the buffer, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) log_bytes: u64,
    pub(crate) buffer_bytes: u64,
}

impl Room {
    fn add(&mut self, other: Room) {
        self.log_bytes += other.log_bytes;
        self.buffer_bytes += other.buffer_bytes;
    }
}

impl Stock {
    /// Empty shelves, that will hold so little that a log or a buffer of this size does not miss it.
    pub(crate) fn new(options: &LogOptions) -> Self {
        let refill_bytes = (options.buffer_bytes as u64 / 256).min(options.max_bytes / 4096);
        let shelves = (0..options.shelves.clamp(1, MOST_SHELVES)).map(|_| Padded::default()).collect();
        Stock { shelves, refill_bytes }
    }

    /// What to ask for beyond what a permit needs.
    pub(crate) fn refill(&self) -> Room {
        Room { log_bytes: 3 * self.refill_bytes, buffer_bytes: self.refill_bytes }
    }

    /// Takes room for `bytes` now and `promise_bytes` later, if the thread's shelf has it.
    pub(crate) fn take(&self, bytes: u64, promise_bytes: u64) -> bool {
        let mut shelf = self.mine();
        let Room { log_bytes, buffer_bytes } = shelf.room;
        if buffer_bytes < bytes || log_bytes - buffer_bytes < promise_bytes {
            return false;
        }
        shelf.room =
            Room { log_bytes: log_bytes - bytes - promise_bytes, buffer_bytes: buffer_bytes - bytes };
        shelf.promised_bytes = shelf.promised_bytes.wrapping_add(promise_bytes);
        true
    }

    /// Puts room on the thread's shelf. Returns what does not fit there.
    #[must_use]
    pub(crate) fn put(&self, room: Room) -> Room {
        let mut shelf = self.mine();
        shelf.room.add(room);
        self.overflow(&mut shelf)
    }

    /// Counts a promise whose room has been spoken for.
    pub(crate) fn promised(&self, bytes: u64) {
        let mut shelf = self.mine();
        shelf.promised_bytes = shelf.promised_bytes.wrapping_add(bytes);
    }

    /// Ends a promise: its room goes on the thread's shelf. Returns what does not fit there.
    #[must_use]
    pub(crate) fn release(&self, bytes: u64) -> Room {
        let mut shelf = self.mine();
        shelf.promised_bytes = shelf.promised_bytes.wrapping_sub(bytes);
        shelf.room.log_bytes += bytes;
        self.overflow(&mut shelf)
    }

    /// The promise outstanding; exact while nobody promises or releases.
    pub(crate) fn promised_bytes(&self) -> u64 {
        self.shelves.iter().fold(0, |sum, shelf| sum.wrapping_add(shelf.lock().promised_bytes))
    }

    /// Clears all shelves.
    #[must_use]
    pub(crate) fn clear(&self) -> Room {
        let mut all = Room::default();
        for shelf in &self.shelves {
            all.add(std::mem::take(&mut shelf.lock().room));
        }
        all
    }

    /// Clears all shelves of buffer room.
    #[must_use]
    pub(crate) fn clear_buffer(&self) -> u64 {
        self.shelves.iter().map(|shelf| std::mem::take(&mut shelf.lock().room.buffer_bytes)).sum()
    }

    /// What is too much for a shelf goes, down to the refill.
    fn overflow(&self, shelf: &mut Shelf) -> Room {
        let mut over = Room::default();
        let full = self.refill();
        if shelf.room.buffer_bytes > 2 * full.buffer_bytes {
            over.buffer_bytes = shelf.room.buffer_bytes - full.buffer_bytes;
            shelf.room.buffer_bytes = full.buffer_bytes;
        }
        if shelf.room.log_bytes > 2 * full.log_bytes {
            over.log_bytes = shelf.room.log_bytes - full.log_bytes;
            shelf.room.log_bytes = full.log_bytes;
        }
        debug_assert!(shelf.room.buffer_bytes <= shelf.room.log_bytes, "I1");
        over
    }

    fn mine(&self) -> MutexGuard<'_, Shelf> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MINE: usize = THREADS.fetch_add(1, Ordering::Relaxed);
        }
        // While the thread ends, any does.
        let number = MINE.try_with(|mine| *mine).unwrap_or(0);
        self.shelves[number % self.shelves.len()].lock()
    }
}
