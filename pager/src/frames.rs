//! The frame budget: one slot for each page that may be in memory, and the clock hand over them.
//!
//! I1. A page in memory, or on its way in, occupies one slot, the same one until it has left. So the number of slots
//!     bounds the memory, and a sweep over the slots sees every page that is in memory from its start to its end.
//! I2. Who takes a free slot gives it back or has its page evicted; a slot is given back only after the page's memory is.
//!
//! No threads of its own and no time: the same calls give the same victims.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::{PageNo, PartitionId};

/// Index of a frame slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(pub(crate) u32);

/// The slots of a cache.
#[derive(Debug)]
pub(crate) struct Frames {
    /// 0: free; else (partition + 1, page).
    slots: Box<[AtomicU64]>,
    /// How often the hand has spared a cold inner page.
    spared: Box<[AtomicU8]>,
    free: Mutex<Free>,
    freed: Condvar,
    hand: AtomicUsize,
}

#[derive(Debug)]
struct Free {
    given_back: Vec<Slot>,
    /// Slots from here on were never taken.
    fresh: u32,
}

impl Frames {
    pub(crate) fn new(slots: u32) -> Self {
        Frames {
            slots: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            spared: (0..slots).map(|_| AtomicU8::new(0)).collect(),
            free: Mutex::new(Free { given_back: Vec::new(), fresh: 0 }),
            freed: Condvar::new(),
            hand: AtomicUsize::new(0),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Slots in use.
    pub(crate) fn used(&self) -> usize {
        let free = self.free.lock();
        free.fresh as usize - free.given_back.len()
    }

    /// A free slot, if there is one.
    pub(crate) fn take(&self) -> Option<Slot> {
        let mut free = self.free.lock();
        if let Some(slot) = free.given_back.pop() {
            return Some(slot);
        }
        let slot = Slot(free.fresh);
        if (slot.0 as usize) < self.slots.len() {
            free.fresh += 1;
            return Some(slot);
        }
        None
    }

    /// The page that a slot taken is for.
    pub(crate) fn occupy(&self, slot: Slot, partition: PartitionId, page: PageNo) {
        let key = ((u64::from(partition.0) + 1) << 32) | u64::from(page.0);
        self.spared[slot.0 as usize].store(0, Ordering::Relaxed);
        // Release: a sweep that finds the page finds its partition's region made.
        self.slots[slot.0 as usize].store(key, Ordering::Release);
    }

    /// Gives slots back, and wakes those who wait for one.
    pub(crate) fn give_back(&self, slots: &[Slot]) {
        for slot in slots {
            self.slots[slot.0 as usize].store(0, Ordering::Release);
        }
        self.free.lock().given_back.extend_from_slice(slots);
        self.freed.notify_all();
    }

    /// Waits until somebody gives a slot back, or for `patience`.
    pub(crate) fn wait(&self, patience: Duration) {
        let mut free = self.free.lock();
        if free.given_back.is_empty() {
            self.freed.wait_for(&mut free, patience);
        }
    }

    /// The page in a slot.
    pub(crate) fn page(&self, slot: Slot) -> Option<(PartitionId, PageNo)> {
        let key = self.slots[slot.0 as usize].load(Ordering::Acquire);
        let partition = (key >> 32).checked_sub(1)?;
        Some((PartitionId(partition as u32), PageNo(key as u32)))
    }

    /// All slots.
    pub(crate) fn all(&self) -> impl Iterator<Item = Slot> {
        (0..self.slots.len() as u32).map(Slot)
    }

    /// The next slot under the clock hand.
    pub(crate) fn advance(&self) -> Slot {
        Slot((self.hand.fetch_add(1, Ordering::Relaxed) % self.slots.len()) as u32)
    }

    /// Whether a cold inner page has had its second chance; gives it if not.
    pub(crate) fn spare(&self, slot: Slot) -> bool {
        self.spared[slot.0 as usize].fetch_add(1, Ordering::Relaxed) > 0
    }

    /// The page in a slot was used: its next second chance is due.
    pub(crate) fn touched(&self, slot: Slot) {
        self.spared[slot.0 as usize].store(0, Ordering::Relaxed);
    }
}
