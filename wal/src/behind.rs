//! Asking the system for what a walk back through the log, as a rollback's, will read next. Systems read ahead, not behind, and what
//! small flushes wrote is in no cache.
//!
//! I1. All of it is a hint: two walks at once, or reads that only look like a walk, cost questions too many or too few, never a wrong read.

use std::ops::Range;

use crate::sync::{AtomicU64, Ordering};

/// So much is asked for at a time, bytes.
const WINDOW_BYTES: u64 = 256 << 10;

/// Where the last read was, and what was asked for.
#[derive(Debug)]
pub(crate) struct ReadBehind {
    last: AtomicU64,
    /// What was asked for begins here.
    asked: AtomicU64,
}

impl ReadBehind {
    /// Nothing read.
    pub(crate) fn new() -> Self {
        ReadBehind { last: AtomicU64::new(0), asked: AtomicU64::new(0) }
    }

    /// Somebody reads at this position: what to ask for, if that is a step of a walk back and little is left of what was asked for.
    pub(crate) fn step(&self, at: u64) -> Option<Range<u64>> {
        let last = self.last.swap(at, Ordering::Relaxed);
        if at >= last || last - at > WINDOW_BYTES {
            return None;
        }
        let asked = self.asked.load(Ordering::Relaxed);
        let end = match at.checked_sub(asked) {
            // Just after the last question a window and a half is left.
            Some(left) if left > 2 * WINDOW_BYTES => at,
            Some(left) if left > WINDOW_BYTES / 2 => return None,
            Some(_) => asked,
            None => at,
        };
        let start = end.saturating_sub(WINDOW_BYTES);
        self.asked.store(start, Ordering::Relaxed);
        Some(start..end)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_walk_back_asks_for_everything_once_and_in_time() {
        let behind = ReadBehind::new();
        let begin = 20 * WINDOW_BYTES;
        let mut asked: Vec<Range<u64>> = Vec::new();
        for at in (10 * WINDOW_BYTES..begin).rev().step_by(240) {
            if let Some(range) = behind.step(at) {
                assert!(asked.last().is_none_or(|last| last.start == range.end), "{range:?} after {asked:?}");
                asked.push(range);
            }
            assert!(at + 240 >= begin || asked.last().is_some_and(|last| last.start + 240 < at), "at {at}");
        }
        assert!(asked.len() < 13, "{asked:?}");
    }

    #[test]
    fn reads_that_are_no_walk_back_ask_for_nothing() {
        let behind = ReadBehind::new();
        let places = [1, 2, 40, 3, 4, 90, 50, 91].map(|place| place * 2 * WINDOW_BYTES);
        assert!(places.iter().all(|at| behind.step(*at).is_none()));
    }
}
