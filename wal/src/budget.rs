//! The log's room, accounted to the byte.
//!
//! I1. spoken_for = tail + what permits may still append + what is promised, as a stream position: how far the
//!     log would reach if everybody used all they were told they may.
//! I2. An ordinary admission keeps spoken_for at or below both oldest + max_bytes (else `LogFull`) and the end of the
//!     prepared segments (else a segment is prepared first). So promised records always find room, on a full
//!     log and on a full disk (hazard H20, fault F9).

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sync::Padded;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Budget {
    spoken_for: Padded<AtomicU64>,
    promised: AtomicU64,
    oldest: AtomicU64,
    max_bytes: u64,
}

/// Why room cannot be spoken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// The log may not grow that far.
    Full {
        /// What is left.
        available_bytes: u64,
    },
    /// Segments must be prepared up to here first.
    Unprepared {
        /// A stream position.
        up_to: u64,
    },
}

impl Budget {
    /// Nothing admitted, nothing promised.
    pub(crate) fn new(oldest: u64, tail: u64, max_bytes: u64) -> Self {
        Budget {
            spoken_for: Padded(AtomicU64::new(tail)),
            promised: AtomicU64::new(0),
            oldest: AtomicU64::new(oldest),
            max_bytes,
        }
    }

    /// Speaks for `bytes` to append now and `promise_bytes` for later.
    pub(crate) fn speak_for(
        &self,
        bytes: u64,
        promise_bytes: u64,
        prepared_end: u64,
    ) -> Result<u64, Shortage> {
        let mut spoken_for = self.spoken_for.load(Ordering::Relaxed);
        loop {
            let limit = self.limit();
            let wanted = spoken_for
                .checked_add(bytes)
                .and_then(|sum| sum.checked_add(promise_bytes))
                .unwrap_or(u64::MAX);
            if wanted > limit {
                return Err(Shortage::Full { available_bytes: limit.saturating_sub(spoken_for) });
            }
            if wanted > prepared_end {
                return Err(Shortage::Unprepared { up_to: wanted });
            }
            match self.spoken_for.compare_exchange_weak(
                spoken_for,
                wanted,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => spoken_for = now,
            }
        }
        if promise_bytes != 0 {
            self.promised.fetch_add(promise_bytes, Ordering::Relaxed);
        }
        Ok(spoken_for + bytes + promise_bytes)
    }

    /// Speaks for bytes whose room was promised before: no questions asked. Returns how far the log may reach now.
    pub(crate) fn speak_for_promised(&self, bytes: u64) -> u64 {
        self.spoken_for.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    /// Takes back room spoken for and not used.
    pub(crate) fn give_back(&self, bytes: u64) {
        let before = self.spoken_for.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "gave back more log room than was spoken for");
    }

    /// Takes back promised room.
    pub(crate) fn release(&self, bytes: u64) {
        // In this order: whoever sees the promise gone sees the room given back too, and never needs more than there is.
        self.give_back(bytes);
        let before = self.promised.fetch_sub(bytes, Ordering::Release);
        debug_assert!(before >= bytes, "released {bytes} promised bytes of {before}");
    }

    /// The promise outstanding.
    pub(crate) fn promised_bytes(&self) -> u64 {
        self.promised.load(Ordering::Acquire)
    }

    /// How far the log would reach if all room spoken for were used.
    pub(crate) fn spoken_for(&self) -> u64 {
        self.spoken_for.load(Ordering::Relaxed)
    }

    /// How far the log may reach.
    pub(crate) fn limit(&self) -> u64 {
        self.oldest().saturating_add(self.max_bytes)
    }

    /// The oldest position still needed.
    pub(crate) fn oldest(&self) -> u64 {
        self.oldest.load(Ordering::Acquire)
    }

    /// Moves `oldest` forward, never back.
    pub(crate) fn forget_below(&self, oldest: u64) {
        self.oldest.fetch_max(oldest, Ordering::AcqRel);
    }
}
