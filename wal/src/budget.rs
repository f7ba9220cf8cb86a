//! The log's room, accounted to the byte.
//!
//! I1. spoken_for = tail + what permits may still append + what is promised + what is in stock, as a stream position: how far the
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
        Budget { spoken_for: Padded(AtomicU64::new(tail)), oldest: AtomicU64::new(oldest), max_bytes }
    }

    /// Speaks for `bytes`. Returns how far the log may reach now.
    pub(crate) fn speak_for(&self, bytes: u64, prepared_end: u64) -> Result<u64, Shortage> {
        let mut spoken_for = self.spoken_for.load(Ordering::Relaxed);
        loop {
            let limit = self.limit();
            let wanted = spoken_for.saturating_add(bytes);
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
                Ok(_) => return Ok(wanted),
                Err(now) => spoken_for = now,
            }
        }
    }

    /// Speaks for bytes whose room was promised before: no questions asked.
    pub(crate) fn speak_for_promised(&self, bytes: u64) {
        self.spoken_for.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes back room spoken for and not used.
    pub(crate) fn give_back(&self, bytes: u64) {
        let before = self.spoken_for.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "gave back more log room than was spoken for");
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
