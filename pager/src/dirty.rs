//! Which pages are dirty, and since when: `rec_lsn` per page, and the table of pages on their way to the disk.
//!
//! A page's word in the `rec_lsn` array: bit 63 says that a copy of the page is in an in-flight batch, bit 62 that the
//! page was discarded meanwhile, the rest is the LSN from which on records may be missing from the page's durable copy
//! (0: none). Bit 61 says that the page is not in memory: the rest is the LSN it had when it left, clean, and so the one
//! that its file must have (I5).
//!
//! ```text
//!             mark                      take                      settle
//!  0 ---------------------> lsn ---------------------> IN_FLIGHT ---------------------> 0
//!                            ^  <----- put_back -----      | mark                        ^
//!                            |  settle                     v                             | (written back again)
//!                            +------------------- IN_FLIGHT + lsn' ----------------------+
//! ```
//!
//! I1. A page's lsn in the array changes under its latch only: set under the exclusive one, taken under a shared one by
//!     the one batch there is.
//! I2. `mark` comes before the reservation of the record it is for; a checkpoint scans after the reservation of
//!     its BEGIN. Both reservations are acquire-release operations on one counter, so the scan sees every mark whose record
//!     is below BEGIN.
//! I3. A page taken is in the table before its lsn leaves the array (one critical section), and leaves the table when its
//!     copy is durable in place; a checkpoint scans the array first and the table second. So it is never missed
//!     (hazard H3). Only a batch that came to nothing puts pages back from the table into the array, against the
//!     scan's direction: it counts that, and a scan that met it starts again.
//! I4. `bits` has one bit per frame slot, set exactly while the slot's page has an lsn in the array; changed together
//!     with it, under the same latch. Only an index: it makes the scans proportional to what is dirty.
//! I5. Who makes a clean page leave notes its LSN (`note_left`), who reads it in or makes it anew takes the note away: both own the page
//!     (EXCLUSIVE, LEAVING or LOADING). To everybody else a page with a note is a clean one.

use std::collections::BTreeMap;

use hamal_wal::Lsn;

use crate::sync::{AtomicU64, Mistake, Mutex, Ordering, planted};
use crate::{PageNo, PartitionId};

const IN_FLIGHT: u64 = 1 << 63;
const VOID: u64 = 1 << 62;
const LEFT: u64 = 1 << 61;

/// A page of the database.
pub(crate) type Key = (PartitionId, PageNo);

/// The dirty pages of a cache, but for the `rec_lsn` arrays, which lie beside the pages.
#[derive(Debug)]
pub(crate) struct DirtyPages {
    bits: Box<[AtomicU64]>,
    in_flight: Mutex<InFlight>,
    count: AtomicU64,
}

/// The pages with a copy in the batch.
#[derive(Debug, Default)]
struct InFlight {
    pages: BTreeMap<Key, Lsn>,
    /// How often a page went back into the array.
    put_back: u64,
}

fn lsn(word: u64) -> Lsn {
    if word & LEFT != 0 { Lsn::NEVER } else { Lsn(word & !(IN_FLIGHT | VOID)) }
}

/// The page leaves memory, clean, with this LSN; [`Lsn::NEVER`]: nobody knows. The caller owns it (I5).
pub(crate) fn note_left(word: &AtomicU64, page_lsn: Lsn) {
    debug_assert!(is_clean(word), "only clean pages leave");
    let note = if page_lsn == Lsn::NEVER { 0 } else { LEFT | page_lsn.0 };
    // Relaxed: published by the release of the state word that follows.
    word.store(note, Ordering::Relaxed);
}

/// The note of a page that is not in memory, as far as there is one. A hint to all but its owner.
pub(crate) fn left_at(word: &AtomicU64) -> Lsn {
    let word = word.load(Ordering::Relaxed);
    if word & LEFT == 0 { Lsn::NEVER } else { Lsn(word & !LEFT) }
}

/// Takes the note of a page that is being read in, or made anew. The caller owns it (I5).
pub(crate) fn take_left(word: &AtomicU64) -> Lsn {
    let lsn = left_at(word);
    if lsn != Lsn::NEVER {
        word.store(0, Ordering::Relaxed);
    }
    lsn
}

/// Since when the page has been dirty, as far as the array knows; `NEVER` if it is clean or in flight.
pub(crate) fn rec_lsn(word: &AtomicU64) -> Lsn {
    lsn(word.load(Ordering::Acquire))
}

/// Whether the page may leave memory as it is: neither dirty nor in flight. Stable only under its exclusive latch.
pub(crate) fn is_clean(word: &AtomicU64) -> bool {
    // Acquire: pairs with the release in `settle`; what is read in again comes from a file that has been written.
    let word = word.load(Ordering::Acquire);
    word == 0 || word & LEFT != 0
}

impl DirtyPages {
    pub(crate) fn new(slots: usize) -> Self {
        DirtyPages {
            bits: (0..slots.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            in_flight: Mutex::new(InFlight::default()),
            count: AtomicU64::new(0),
        }
    }

    /// Pages that are dirty or in flight.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn set_bit(&self, slot: u32) {
        // Relaxed: published by the reservation that follows (I2).
        self.bits[slot as usize / 64].fetch_or(1 << (slot % 64), Ordering::Relaxed);
    }

    fn clear_bit(&self, slot: u32) {
        self.bits[slot as usize / 64].fetch_and(!(1 << (slot % 64)), Ordering::Relaxed);
    }

    /// The page in `slot` is about to be changed by a record that is not below `tail`. Under the exclusive latch, before
    /// the record's reservation.
    pub(crate) fn mark(&self, slot: u32, word: &AtomicU64, tail: Lsn) {
        let mut old = word.load(Ordering::Relaxed);
        debug_assert_eq!(old & LEFT, 0, "only what is in memory becomes dirty");
        while lsn(old) == Lsn::NEVER {
            // A loop, because `settle` may take the in-flight bit off under our hands.
            // Relaxed: published by the reservation that follows (I2).
            match word.compare_exchange_weak(old, old | tail.0, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    self.set_bit(slot);
                    if old == 0 {
                        self.count.fetch_add(1, Ordering::Relaxed);
                    }
                    return;
                }
                Err(now) => old = now,
            }
        }
    }

    /// The page is being copied into the batch: its lsn moves to the in-flight table. `None` if there is nothing to
    /// write. Under a shared latch, by the one batch there is.
    pub(crate) fn take(&self, key: Key, slot: u32, word: &AtomicU64) -> Option<Lsn> {
        let old = word.load(Ordering::Relaxed);
        let moved = lsn(old);
        // In flight already: the batch was given the page twice, and has its copy.
        if moved == Lsn::NEVER || old & IN_FLIGHT != 0 {
            return None;
        }
        if planted(Mistake::GapBeforeInFlight) {
            word.store(IN_FLIGHT, Ordering::Release);
            self.in_flight.lock().pages.insert(key, moved);
            return Some(moved);
        }
        let mut in_flight = self.in_flight.lock();
        in_flight.pages.insert(key, moved);
        self.clear_bit(slot);
        word.store(IN_FLIGHT, Ordering::Release);
        Some(moved)
    }

    /// The page's copy is durable in place. Whether it is clean now: it may have been changed again meanwhile.
    pub(crate) fn settle(&self, key: Key, word: &AtomicU64) -> bool {
        let mut in_flight = self.in_flight.lock();
        in_flight.pages.remove(&key);
        // Release: pairs with the acquire in `is_clean`.
        let old = if planted(Mistake::ForgetRedirtied) {
            word.swap(0, Ordering::Release) & IN_FLIGHT
        } else {
            word.fetch_and(!(IN_FLIGHT | VOID), Ordering::Release)
        };
        let clean = lsn(old) == Lsn::NEVER;
        if clean {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        clean
    }

    /// The batch came to nothing: the page is dirty as before it was taken.
    pub(crate) fn put_back(&self, key: Key, slot: u32, word: &AtomicU64, taken: Lsn) {
        let mut in_flight = self.in_flight.lock();
        in_flight.pages.remove(&key);
        if !planted(Mistake::PutBackUncounted) {
            in_flight.put_back += 1;
        }
        let mut old = word.load(Ordering::Relaxed);
        loop {
            // What was taken is older than anything marked since.
            let new = if old & VOID == 0 { taken.0 } else { 0 };
            match word.compare_exchange_weak(old, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) if new == 0 => {
                    self.count.fetch_sub(1, Ordering::Relaxed);
                    break;
                }
                Ok(_) => {
                    self.set_bit(slot);
                    break;
                }
                Err(now) => old = now,
            }
        }
    }

    /// The page's content is void (freed, or its partition is closed). Under the exclusive latch. A copy in flight stays
    /// in the table until it is settled.
    pub(crate) fn forget(&self, slot: u32, word: &AtomicU64) {
        let mut old = word.load(Ordering::Relaxed);
        loop {
            let new = if old & IN_FLIGHT == 0 { 0 } else { IN_FLIGHT | VOID };
            match word.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
        if lsn(old) != Lsn::NEVER {
            self.clear_bit(slot);
            if old & IN_FLIGHT == 0 {
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// The slots whose pages are dirty in the array.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> {
        self.bits.iter().enumerate().flat_map(|(group, bits)| {
            let bits = bits.load(Ordering::Acquire);
            (0..64).filter(move |bit| bits & (1 << bit) != 0).map(move |bit| group as u32 * 64 + bit)
        })
    }

    /// The dirty page table: `array` yields what the arrays say, and is run first; the in-flight table comes second; the
    /// smaller lsn counts; all over again if a page went back into the array meanwhile (I3).
    pub(crate) fn scan<I: Iterator<Item = (Key, Lsn)>>(&self, array: impl Fn() -> I) -> BTreeMap<Key, Lsn> {
        if planted(Mistake::InFlightFirst) {
            let mut pages = self.in_flight.lock().pages.clone();
            array().for_each(|(key, lsn)| note(&mut pages, key, lsn));
            return pages;
        }
        let mut put_back = self.in_flight.lock().put_back;
        loop {
            let mut pages = BTreeMap::new();
            array().for_each(|(key, lsn)| note(&mut pages, key, lsn));
            let in_flight = self.in_flight.lock();
            if in_flight.put_back == put_back {
                in_flight.pages.iter().for_each(|(&key, &lsn)| note(&mut pages, key, lsn));
                return pages;
            }
            put_back = in_flight.put_back;
        }
    }
}

fn note(pages: &mut BTreeMap<Key, Lsn>, key: Key, lsn: Lsn) {
    pages.entry(key).and_modify(|known| *known = lsn.min(*known)).or_insert(lsn);
}
