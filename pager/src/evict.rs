//! Eviction: who leaves when a frame is needed. Clock over the frame slots, in batches, by the thread that needs one.
//!
//! ```text
//!   UNLOCKED --(hand)--> MARKED --(hand)--+--> plain, clean: memory dropped, slot free
//!       ^                   |             +--> dirty: written back, then as if clean
//!       +---(any use)-------+             +--> inner: spared once; then LEAVING until no optimistic reader is left
//! ```
//!
//! I1. Only a page that is neither dirty nor in an in-flight batch leaves, and the check is made under its exclusive latch.
//! I2. A sweep holds no latch; latches are taken when the batch is complete, by try.
//! I3. Passes are bounded: when nothing can leave, the thread waits for a slot, and in the end says so.
//! I4. Pages that are LEAVING keep their slots; the next thread that needs a frame waits for the grace period, which is
//!     why it must not be pinned (hazard H16).

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::utils::Backoff;
use hamal_storage::{Error, Result};

use crate::core::{Core, Resident};
use crate::dirty::{is_clean, note_left};
use crate::epoch;
use crate::frames::Slot;
use crate::header;
use crate::region::{PageAt, drop_pages};
use crate::state::{Absence, Clock, Latch, PageClass};
use crate::{PageNo, Partition};

/// Visits per slot that one pass may make: an untouched inner page needs three.
const VISITS_PER_SLOT: usize = 3;
/// Fruitless passes before the thread waits for others to give something back.
const EAGER_PASSES: u32 = 4;
/// Fruitless passes in which nobody was seen to be reading before it gives up.
const MOST_PASSES: u32 = 1000;
/// How long it waits between passes.
const PATIENCE: Duration = Duration::from_millis(1);

/// What one sweep has found: cold pages.
#[derive(Default)]
struct Found {
    clean: Vec<(Slot, Resident)>,
    dirty: Vec<(Slot, Resident)>,
    /// Somebody is reading a page in: a frame will come free.
    loading: bool,
}

/// What one pass has come to.
enum Pass {
    /// Frames are free now.
    Freed,
    /// Nothing could leave, but somebody is reading a page in.
    Hopeful,
    /// Every page is latched.
    Stuck,
}

impl Core {
    /// A frame slot: a free one, or one whose page is made to leave. The caller holds no latch but that of the page it
    /// is loading, and no epoch guard.
    pub(crate) fn take_frame(&self) -> Result<Slot> {
        let mut passes = 0;
        loop {
            if let Some(slot) = self.frames.take() {
                return Ok(slot);
            }
            match self.evict()? {
                Pass::Freed => continue,
                Pass::Hopeful => passes = passes.min(EAGER_PASSES),
                Pass::Stuck => {}
            }
            passes += 1;
            if passes > MOST_PASSES {
                return Err(Error::Limit {
                    what: "a frame of the page cache".into(),
                    why: format!(
                        "all {} pages that fit are in use; use fewer threads or raise cache_bytes",
                        self.frames.len()
                    ),
                });
            }
            if passes > EAGER_PASSES {
                self.frames.wait(PATIENCE);
            }
        }
    }

    /// One pass: makes a batch of pages leave.
    fn evict(&self) -> Result<Pass> {
        if self.finish_leaving() > 0 {
            return Ok(Pass::Freed);
        }
        let found = self.sweep(self.check_poison().is_ok());
        let mut freed = self.release(&found.clean);
        let enough = self.batch_pages.div_ceil(4);
        if freed < enough && !found.dirty.is_empty() {
            let pages: Vec<Resident> = found.dirty.iter().map(|(_, resident)| resident.clone()).collect();
            match self.write_batch(pages) {
                Ok(_) => freed += self.release(&found.dirty),
                Err(_) if freed > 0 => {}
                Err(e) => {
                    // What cannot be written stays; reading goes on with what is clean.
                    freed = self.release(&self.sweep(false).clean) + self.finish_leaving();
                    return if freed > 0 { Ok(Pass::Freed) } else { Err(e) };
                }
            }
        }
        if freed > 0 || self.finish_leaving() > 0 {
            return Ok(Pass::Freed);
        }
        self.check_poison()?;
        Ok(if found.loading { Pass::Hopeful } else { Pass::Stuck })
    }

    /// Moves the hand until a batch of cold pages is found, or every slot has been seen often enough.
    fn sweep(&self, dirty_too: bool) -> Found {
        let partitions = self.partitions();
        let mut found = Found::default();
        for _ in 0..VISITS_PER_SLOT * self.frames.len() {
            if found.clean.len() + found.dirty.len() >= self.batch_pages {
                break;
            }
            let slot = self.frames.advance();
            let Some((id, page)) = self.frames.page(slot) else { continue };
            let Some(partition) = partitions.get(&id) else { continue };
            let Some(at) = partition.place(page) else { continue };
            match at.state().visit() {
                Clock::Taken => {}
                Clock::Loading => found.loading = true,
                Clock::Marked => self.frames.touched(slot),
                Clock::Cold(PageClass::Inner) if !self.frames.spare(slot) => {}
                Clock::Cold(_) => {
                    let resident = Resident { partition: Arc::clone(partition), page };
                    if is_clean(at.rec_lsn()) {
                        found.clean.push((slot, resident));
                    } else if dirty_too {
                        found.dirty.push((slot, resident));
                    }
                }
            }
        }
        found
    }

    /// Makes those leave that are still cold and clean. Returns how many slots are free now; inner pages follow
    /// after their grace period.
    fn release(&self, pages: &[(Slot, Resident)]) -> usize {
        let mut gone = Vec::with_capacity(pages.len());
        let mut slots = Vec::with_capacity(pages.len());
        let mut inner = Vec::new();
        for (slot, resident) in pages {
            let Some(at) = resident.partition.place(resident.page) else { continue };
            if !at.state().try_exclusive_marked() {
                continue;
            }
            // The page may have left and come back into another slot since the sweep.
            if at.slot().load(Ordering::Relaxed) != slot.0 || !is_clean(at.rec_lsn()) {
                at.state().unlock_unchanged();
                continue;
            }
            // SAFETY: the page is latched exclusively by us, and nobody writes it through the slice.
            note_left(at.rec_lsn(), header::page_lsn(unsafe { at.bytes() }));
            if at.state().class() == PageClass::Inner {
                at.state().leave();
                inner.push(resident.clone());
            } else {
                gone.push(at);
                slots.push(*slot);
            }
        }
        if !inner.is_empty() {
            self.leaving.lock().append(&mut inner);
        }
        // SAFETY: each page is latched exclusively by us, and plain: no optimistic reader can reach it.
        unsafe { drop_pages(&mut gone) };
        for at in &gone {
            at.state().evicted();
        }
        self.give_back(&slots);
        slots.len()
    }

    fn give_back(&self, slots: &[Slot]) {
        if !slots.is_empty() {
            self.frames.give_back(slots);
            Core::count(&self.counters.evictions, slots.len());
        }
    }

    /// A page that was freed leaves the cache as it is. The caller has it latched exclusively and lets go of it.
    pub(crate) fn discard(&self, partition: &Partition, page: PageNo, at: PageAt<'_>) {
        self.dirty.forget(at.slot().load(Ordering::Relaxed), at.rec_lsn());
        match self.partitions().get(&partition.id()) {
            Some(partition) => {
                at.state().leave();
                self.leaving.lock().push(Resident { partition: Arc::clone(partition), page });
            }
            // Closed: its pages are gone from the books already.
            None => at.state().unlock_exclusive(),
        }
    }

    /// Waits until no optimistic reader can see the pages that are LEAVING, and frees their memory and slots. Those
    /// with a copy on its way to the disk wait for that.
    pub(crate) fn finish_leaving(&self) -> usize {
        let leaving = mem::take(&mut *self.leaving.lock());
        if leaving.is_empty() {
            return 0;
        }
        epoch::wait_for_readers();
        let (mut gone, mut slots, mut later) = (Vec::new(), Vec::new(), Vec::new());
        for resident in &leaving {
            let Some(at) = resident.partition.place(resident.page) else { continue };
            debug_assert_eq!(at.state().presence(), Latch::Absent(Absence::Leaving));
            if is_clean(at.rec_lsn()) {
                gone.push(at);
                slots.push(at.slot().load(Ordering::Relaxed));
            } else {
                later.push(resident.clone());
            }
        }
        // SAFETY: the pages are LEAVING and were on our list alone, so they are ours; since then every optimistic
        // reader has gone, and no new one begins on such a page.
        unsafe { drop_pages(&mut gone) };
        for at in &gone {
            at.state().evicted();
        }
        self.give_back(&slots.into_iter().map(Slot).collect::<Vec<_>>());
        if !later.is_empty() {
            self.leaving.lock().append(&mut later);
        }
        gone.len()
    }

    /// Somebody wants a page that is LEAVING.
    pub(crate) fn hurry_leaving(&self) -> Result<()> {
        if self.finish_leaving() == 0 && !self.leaving.lock().is_empty() {
            // Only pages in flight are left: wait for their batch.
            self.settle_batch()?;
        }
        Ok(())
    }

    /// Waits until nobody has a page of the partition latched who had latched it before this was called.
    pub(crate) fn wait_for_latches(&self, partition: &Partition) {
        for slot in self.frames.all() {
            let backoff = Backoff::new();
            while let Some((id, page)) = self.frames.page(slot).filter(|(id, _)| *id == partition.id()) {
                debug_assert_eq!(id, partition.id());
                let Some(at) = partition.place(page) else { break };
                match at.state().try_exclusive() {
                    Latch::Taken => {
                        at.state().unlock_unchanged();
                        break;
                    }
                    Latch::Busy | Latch::Absent(Absence::Loading) => backoff.snooze(),
                    // Nobody has it latched, nor will.
                    Latch::Absent(_) => break,
                }
            }
        }
    }

    /// Makes all pages of a partition leave, unwritten. Nobody uses it, and it is off the map already.
    pub(crate) fn empty_partition(&self, partition: &Partition) {
        // Held to the end: no batch copies one of its pages meanwhile.
        let mut batch = self.batch.lock();
        self.drop_from_batch(&mut batch, partition.id());
        self.finish_leaving();
        let (mut pages, mut slots) = (Vec::new(), Vec::new());
        for slot in self.frames.all() {
            if let Some(at) = self.own_in_slot(partition, slot) {
                self.dirty.forget(slot.0, at.rec_lsn());
                pages.push(at);
                slots.push(slot);
            }
        }
        if pages.iter().any(|at| at.state().class() == PageClass::Inner) {
            epoch::wait_for_readers();
        }
        // SAFETY: each page is latched exclusively by us; a grace period has passed if one of them was inner.
        unsafe { drop_pages(&mut pages) };
        for at in &pages {
            at.state().evicted();
        }
        self.frames.give_back(&slots);
        self.space.lock().unmap(partition.region());
    }

    /// Latches the page in a slot exclusively if it is one of this partition's; waits while an evictor has it.
    fn own_in_slot<'p>(&self, partition: &'p Partition, slot: Slot) -> Option<PageAt<'p>> {
        let backoff = Backoff::new();
        loop {
            let (id, page) = self.frames.page(slot)?;
            let at = partition.place(page).filter(|_| id == partition.id())?;
            match at.state().try_exclusive() {
                Latch::Taken if at.slot().load(Ordering::Relaxed) == slot.0 => return Some(at),
                Latch::Taken => at.state().unlock_unchanged(),
                Latch::Absent(Absence::Leaving) => {
                    // Its evictor may be waiting for the batch, which we hold.
                    self.finish_leaving();
                    backoff.snooze();
                }
                _ => backoff.snooze(),
            }
        }
    }
}
