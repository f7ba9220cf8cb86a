//! The ring that appenders copy into and the flusher drains: reservation is one `fetch_add`, nothing locks.
//!
//! Positions are stream offsets; position p lives in word (p / 8) mod size. A frame's first word is never zero.
//!
//! I1. claimed = tail + what permits may still append + what is in stock; claimed <= free + capacity. So a reserved position never
//!     laps bytes that the flusher still needs.
//! I2. Every word in [tail, free + capacity) is zero, or belongs to a frame whose first word is still zero.
//! I3. A frame's first word is stored last, `PUBLISH` (release), and loaded `OBSERVE` (acquire): who sees it sees the
//!     frame.
//! I4. The flusher zeroes [free, to) and then moves `free` to `to`, `FREE` (release); a claim loads `free` with
//!     acquire, and the claim's knowledge travels from appender to appender along the `RESERVE` (acquire-release)
//!     chain on `tail`. So every appender that reserves a recycled position sees its zeros.
//! I5. A reader of an undurable frame copies words and then looks at the durable frontier again; `retire` is called
//!     after the frontier has moved, and fences, so a copy that caught zeros is never taken for the frame.

use std::hint;
use std::marker::PhantomData;

use crate::frame::{HEADER_BYTES, Header, padded};
use crate::sync::{AtomicU64, Backoff, Ordering, Padded, fence};

/// The flusher asks for so much of what it is to walk at once, bytes.
const AHEAD_BYTES: u64 = 4 << 10;
/// A cache line.
const LINE_BYTES: usize = 64;

/// The orderings that the invariants rest on. A type, so that models run this same code with one of them broken.
pub(crate) trait Orderings {
    /// `fetch_add` on the tail (I4).
    const RESERVE: Ordering = Ordering::AcqRel;
    /// Store of a frame's first word (I3).
    const PUBLISH: Ordering = Ordering::Release;
    /// Load of a frame's first word (I3).
    const OBSERVE: Ordering = Ordering::Acquire;
    /// Store of the free frontier (I4).
    const FREE: Ordering = Ordering::Release;
    /// Fences between copying and re-reading the frontier, and between frontier and zeroing (I5).
    const READ_FENCE: bool = true;
}

/// The orderings that ship.
#[derive(Debug)]
pub(crate) struct Sound;

impl Orderings for Sound {}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Ring<O = Sound> {
    words: Box<[AtomicU64]>,
    /// Next position to reserve.
    tail: Padded<AtomicU64>,
    /// See I1.
    claimed: Padded<AtomicU64>,
    /// Everything below was drained and zeroed.
    free: Padded<AtomicU64>,
    orderings: PhantomData<fn() -> O>,
}

impl<O: Orderings> Ring<O> {
    /// An empty ring of `bytes` (a power of two, at least 8) whose first record goes to `start`.
    pub(crate) fn new(bytes: usize, start: u64) -> Self {
        debug_assert!(bytes.is_power_of_two() && bytes >= 8 && start.is_multiple_of(8));
        Ring {
            words: (0..bytes / 8).map(|_| AtomicU64::new(0)).collect(),
            tail: Padded(AtomicU64::new(start)),
            claimed: Padded(AtomicU64::new(start)),
            free: Padded(AtomicU64::new(start)),
            orderings: PhantomData,
        }
    }

    /// Bytes it holds.
    pub(crate) fn capacity(&self) -> u64 {
        self.words.len() as u64 * 8
    }

    /// The next position to be reserved.
    pub(crate) fn tail(&self) -> u64 {
        self.tail.load(Ordering::Acquire)
    }

    /// Claims room for `bytes`, if there is.
    pub(crate) fn try_claim(&self, bytes: u64) -> bool {
        let mut claimed = self.claimed.load(Ordering::Relaxed);
        loop {
            // Acquire pairs with the release in `retire` (I4). Loaded afresh each time round.
            let free = self.free.load(Ordering::Acquire);
            if claimed + bytes > free + self.capacity() {
                return false;
            }
            match self.claimed.compare_exchange_weak(
                claimed,
                claimed + bytes,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => claimed = now,
            }
        }
    }

    /// How far the log reaches if all claimed room is used.
    pub(crate) fn claimed(&self) -> u64 {
        self.claimed.load(Ordering::Relaxed)
    }

    /// Gives back claimed room that was not used.
    pub(crate) fn unclaim(&self, bytes: u64) {
        let before = self.claimed.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "gave back more room than was claimed");
    }

    /// Takes `bytes` of claimed room; the caller must publish there without waiting for anything.
    pub(crate) fn reserve(&self, bytes: u64) -> u64 {
        self.tail.fetch_add(bytes, O::RESERVE)
    }

    /// Copies a frame to where its header says and makes it visible to the flusher.
    pub(crate) fn publish(&self, header: &Header, payload: &[u8]) {
        debug_assert_eq!(header.length as usize, HEADER_BYTES + payload.len());
        if cfg!(any(debug_assertions, loom)) {
            self.assert_zeros(header.lsn, header.padded_bytes());
        }
        let [first, second, third] = header.words();
        self.word(header.lsn + 8).store(second, Ordering::Relaxed);
        self.word(header.lsn + 16).store(third, Ordering::Relaxed);
        let (head, wrapped) = self.runs(header.lsn + HEADER_BYTES as u64, payload.len().div_ceil(8));
        let (front, back) = payload.split_at(payload.len().min(head.len() * 8));
        store_bytes(head, front);
        store_bytes(wrapped, back);
        debug_assert_ne!(first, 0);
        self.word(header.lsn).store(first, O::PUBLISH);
    }

    /// Walks published frames from `from`: the end of the last one before a gap, or of the first that reaches so many bytes. Waits at a gap
    /// below `at_least`, where an appender is between reserving and publishing.
    pub(crate) fn published_end(&self, from: u64, at_least: u64, bytes: u64) -> u64 {
        let mut at = from;
        let mut fetched = from;
        let mut backoff = Backoff::default();
        // After one whole lap the word at `at` is the first frame's again.
        while at < from + bytes.min(self.capacity()) {
            // Not in the models: there it would be one more load to interleave, of a position that the walk does not go by.
            if !cfg!(loom) && at >= fetched {
                fetched = self.tail().min(at + AHEAD_BYTES);
                self.fetch(at, fetched);
            }
            let first = self.word(at).load(O::OBSERVE);
            if first != 0 {
                at += padded((first >> 32) as u32);
            } else if at < at_least {
                backoff.pause();
            } else {
                break;
            }
        }
        at
    }

    /// Asks for the memory from `from` to `to`, all of it at once. Where a frame ends is told by its first word: who walks waits for
    /// one after the other, and most are in another processor's cache.
    fn fetch(&self, from: u64, to: u64) {
        let words = (to.saturating_sub(from) / 8) as usize;
        let (head, wrapped) = self.runs(from, words.min(self.words.len()));
        // One word of each line but, for `from` lies anywhere in its own, perhaps the last.
        let lines = head.iter().step_by(LINE_BYTES / 8).chain(wrapped.iter().step_by(LINE_BYTES / 8));
        hint::black_box(lines.fold(0, |all, word| all | word.load(Ordering::Relaxed)));
    }

    /// Copies published bytes out; `out` is whole words.
    pub(crate) fn copy_out(&self, from: u64, out: &mut [u8]) {
        debug_assert!(out.len().is_multiple_of(8));
        let (head, wrapped) = self.runs(from, out.len() / 8);
        let (front, back) = out.split_at_mut(head.len() * 8);
        load_bytes(head, front);
        load_bytes(wrapped, back);
    }

    /// Zeroes what was drained and gives its room to appenders. Flusher only; the durable frontier is at `to`
    /// already.
    pub(crate) fn retire(&self, from: u64, to: u64) {
        if O::READ_FENCE {
            // Pairs with the fence in `peek`: who reads a zero from below also sees the durable frontier moved (I5).
            fence(Ordering::Release);
        }
        let (head, wrapped) = self.runs(from, ((to - from) / 8) as usize);
        for word in head.iter().chain(wrapped) {
            word.store(0, Ordering::Relaxed);
        }
        self.free.store(to, O::FREE);
    }

    /// Copies what looks like a frame at `lsn`, which nobody may trust before having loaded the durable frontier
    /// *after* this call and found it at or below `lsn` (I5). `None` if no frame below `limit` starts there.
    pub(crate) fn peek(&self, lsn: u64, limit: u64) -> Option<Vec<u8>> {
        let first = self.word(lsn).load(O::OBSERVE);
        let length = padded((first >> 32) as u32);
        let frame = (length >= HEADER_BYTES as u64 && length <= self.capacity() && lsn + length <= limit)
            .then(|| {
                let mut frame = vec![0; length as usize];
                self.copy_out(lsn, &mut frame);
                frame
            });
        if O::READ_FENCE {
            fence(Ordering::Acquire);
        }
        frame
    }

    /// I2, from the point of view of the thread that is about to publish.
    fn assert_zeros(&self, at: u64, bytes: u64) {
        let (head, wrapped) = self.runs(at, (bytes / 8) as usize);
        let all_zero = head.iter().chain(wrapped).all(|word| word.load(Ordering::Relaxed) == 0);
        assert!(all_zero, "the ring still holds an older frame at {at}");
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        &self.words[(at / 8) as usize & (self.words.len() - 1)]
    }

    /// The one or two contiguous runs that hold `count` words from position `at`.
    fn runs(&self, at: u64, count: usize) -> (&[AtomicU64], &[AtomicU64]) {
        debug_assert!(count <= self.words.len());
        let start = (at / 8) as usize & (self.words.len() - 1);
        let first = count.min(self.words.len() - start);
        (&self.words[start..start + first], &self.words[..count - first])
    }
}

/// Stores bytes as words; the last is padded with zeros.
fn store_bytes(words: &[AtomicU64], bytes: &[u8]) {
    let (whole, rest) = bytes.as_chunks::<8>();
    for (word, bytes) in words.iter().zip(whole) {
        word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        words[whole.len()].store(u64::from_le_bytes(last), Ordering::Relaxed);
    }
}

fn load_bytes(words: &[AtomicU64], out: &mut [u8]) {
    for (bytes, word) in out.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *bytes = word.load(Ordering::Relaxed).to_le_bytes();
    }
}
