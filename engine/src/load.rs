//! How much a partition is used: about how many operations, and which keys.
//!
//! I1. Threads do not share anything for an operation that is not drawn: each counts down to its next draw by itself, one in
//!     [`GAP`] on average. What is drawn stands for that many.
//! I2. Gaps vary, so that a thread which does the same things in turn is not always seen doing the same one.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Operations per draw, on average.
const GAP: u64 = 64;
/// Keys that are remembered.
const KEYS: usize = 128;
/// So few say nothing.
const FEW_KEYS: usize = 16;
/// Bytes of a key that are remembered: the front of a key can be a bound as well as the whole.
const KEY_BYTES: usize = 128;

thread_local! {
    /// Operations up to the next draw, and what the gaps are drawn from.
    static TURN: Cell<(u32, u32)> = const { Cell::new((GAP as u32, 0x9e37_79b9)) };
}

/// The load of one partition.
#[derive(Debug, Default)]
pub(crate) struct Load {
    operations: AtomicU64,
    /// Operations per second of late, as the balancer reckons.
    rate: AtomicU64,
    keys: Mutex<VecDeque<Box<[u8]>>>,
}

impl Load {
    /// An operation on this key.
    #[inline]
    pub(crate) fn note(&self, key: &[u8]) {
        let (left, state) = TURN.get();
        if left > 1 {
            TURN.set((left - 1, state));
        } else {
            self.draw(key, state);
        }
    }

    #[cold]
    #[inline(never)]
    fn draw(&self, key: &[u8], mut state: u32) {
        // Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        TURN.set((1 + state % (2 * GAP as u32 - 1), state));
        self.operations.fetch_add(GAP, Ordering::Relaxed);
        // Somebody else's key is as good.
        if let Some(mut keys) = self.keys.try_lock() {
            if keys.len() == KEYS {
                keys.pop_front();
            }
            keys.push_back(key[..key.len().min(KEY_BYTES)].into());
        }
    }

    /// About how many operations there have been since the database was opened.
    pub(crate) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Operations per second of late.
    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    pub(crate) fn set_rate(&self, rate: u64) {
        self.rate.store(rate, Ordering::Relaxed);
    }

    /// The key below and above which about as many of the operations of late have been; `None` if there were too few, or most of them
    /// were on one key, or on its side.
    pub(crate) fn middle(&self) -> Option<Box<[u8]>> {
        let mut keys: Vec<Box<[u8]>> = self.keys.lock().iter().cloned().collect();
        keys.sort_unstable();
        let key = keys.get(keys.len() / 2).filter(|_| keys.len() >= FEW_KEYS)?;
        let below = keys.partition_point(|other| other < key);
        // The next one, where many are the same.
        let (key, below) = if below * 4 >= keys.len() {
            (key, below)
        } else {
            let next = keys.partition_point(|other| other <= key);
            (keys.get(next)?, next)
        };
        (below * 4 >= keys.len() && below * 4 <= 3 * keys.len()).then(|| key.clone())
    }

    /// The key in the middle of the newest few operations.
    pub(crate) fn newest(&self) -> Option<Box<[u8]>> {
        let mut keys: Vec<Box<[u8]>> = self.keys.lock().iter().rev().take(FEW_KEYS).cloned().collect();
        keys.sort_unstable();
        keys.get(FEW_KEYS / 2).cloned()
    }

    /// What has been drawn says nothing about what is left.
    pub(crate) fn forget_keys(&self) {
        self.keys.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::cast_precision_loss, reason = "small counts")]

    use super::*;

    #[test]
    fn draws_stand_for_what_was_done() {
        let loads = [Load::default(), Load::default()];
        // In turn, and one twice as often: what a fixed gap would see wrongly.
        for round in 0..64_000_u32 {
            loads[0].note(&round.to_be_bytes());
            loads[0].note(&round.to_be_bytes());
            loads[1].note(b"k");
        }
        let [one, other] = loads.each_ref().map(|load| load.operations() as f64);
        assert!((0.9..1.1).contains(&(one / 128_000.0)), "{one}");
        assert!((0.85..1.15).contains(&(other / 64_000.0)), "{other}");
        let middle = loads[0].middle().unwrap();
        let at = u32::from_be_bytes((*middle).try_into().unwrap());
        assert!(at > 50_000, "of late: {at}");
        assert_eq!(loads[1].middle(), None, "one key cannot be halved");
    }

    #[test]
    fn a_middle_has_some_on_either_side() {
        let load = Load::default();
        let put = |keys: &[&[u8]]| {
            *load.keys.lock() = keys.iter().map(|key| Box::from(*key)).collect();
            load.middle().map(Vec::from)
        };
        let many = |key: &'static [u8], count| vec![key; count];
        assert_eq!(put(&[many(b"a", 8), many(b"b", 7)].concat()), None, "too few");
        assert_eq!(put(&[many(b"a", 20), many(b"b", 20)].concat()), Some(b"b".to_vec()));
        assert_eq!(put(&[many(b"a", 25), many(b"b", 15)].concat()), Some(b"b".to_vec()));
        assert_eq!(put(&[many(b"a", 35), many(b"b", 5)].concat()), None, "one key has most of it");
        assert_eq!(put(&[many(b"a", 5), many(b"b", 35)].concat()), None, "one key has most of it");
        load.forget_keys();
        assert_eq!(load.middle(), None);
    }
}
