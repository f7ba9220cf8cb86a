//! Write-back: dirty pages become clean, a batch at a time, through the doublewrite area.
//!
//! ```text
//!            copy, take rec_lsn         make_durable            doublewrite            in place, sync each file
//!  dirty ----------------------> taken --------------> logged ----------------> staged ---------------------> clean
//!    ^      (shared latch)         |                      |   write, sync          |   settle
//!    +-----------------------------+----------------------+                       | no space: stays staged, and the
//!                put_back: the log failed, or no space                            | next batch begins with it
//! ```
//!
//! Every other failure of a write, and every failure of a sync, poisons the cache for ever: after it nobody knows what the
//! disk holds, and the kernel may have marked the pages clean (design section 8). Reading goes on.
//!
//! I1. One batch at a time, under `Core::batch`, from the first copy to the last sync. So a page is in at most one
//!     batch, and the area is overwritten only after its batch is in place (hazards H3, H13).
//! I2. No page is written in place before the log is durable up to its LSN.
//! I3. Latches are taken by try, one at a time, and held for the copy alone.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hamal_storage::{Error, Result, write_all_at};
use hamal_wal::Lsn;

use crate::core::{Core, Resident};
use crate::dirty::rec_lsn;
use crate::frames::Slot;
use crate::header::{self, Identity};
use crate::state::Latch;
use crate::{PartitionId, WrittenPage};

/// The batch in flight: copies of pages, in the order of `pages`.
pub(crate) struct Batch {
    images: Vec<u8>,
    pages: Vec<(Resident, Lsn)>,
}

impl Batch {
    pub(crate) fn new(bytes: usize) -> Self {
        Batch { images: vec![0; bytes], pages: Vec::new() }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.pages.clear();
    }

    /// Takes a partition's pages out, and closes the gaps.
    fn remove(&mut self, partition: PartitionId, page_bytes: usize) -> Vec<Resident> {
        let (images, mut kept) = (&mut self.images, 0);
        let mut removed = Vec::new();
        let pages = std::mem::take(&mut self.pages).into_iter().enumerate();
        for (index, (resident, lsn)) in pages {
            if resident.partition.id() == partition {
                removed.push(resident);
            } else {
                images.copy_within(index * page_bytes..(index + 1) * page_bytes, kept * page_bytes);
                self.pages.push((resident, lsn));
                kept += 1;
            }
        }
        removed
    }
}

impl Core {
    /// Writes back those of `pages` that are dirty and not latched exclusively; at most `batch_pages` are considered.
    /// Returns how many became clean.
    pub(crate) fn write_batch(&self, mut pages: Vec<Resident>) -> Result<usize> {
        pages.truncate(self.batch_pages);
        pages.sort_by_key(|resident| (resident.partition.id(), resident.page));
        // The clock may have come round to a page twice.
        pages.dedup_by_key(|resident| (resident.partition.id(), resident.page));
        let mut batch = self.batch.lock();
        self.check_poison()?;
        self.finish_in_place(&mut batch)?;
        self.copy_pages(&mut batch, pages);
        if batch.pages.is_empty() {
            return Ok(0);
        }
        if let Err(e) = self.secure(&mut batch) {
            self.put_back(&mut batch);
            return Err(e);
        }
        self.finish_in_place(&mut batch)
    }

    /// Waits for the batch that is under way, and finishes one that a full disk held up.
    /// Returns how many pages became clean.
    pub(crate) fn settle_batch(&self) -> Result<usize> {
        let mut batch = self.batch.lock();
        self.check_poison()?;
        self.finish_in_place(&mut batch)
    }

    /// Takes a partition that is being closed out of a batch that a full disk held up.
    pub(crate) fn drop_from_batch(&self, batch: &mut Batch, partition: PartitionId) {
        for resident in batch.remove(partition, self.page_bytes) {
            if let Some(at) = resident.partition.place(resident.page) {
                self.dirty.settle((partition, resident.page), at.rec_lsn());
            }
        }
    }

    fn copy_pages(&self, batch: &mut Batch, pages: Vec<Resident>) {
        for resident in pages {
            let key = (resident.partition.id(), resident.page);
            let Some(at) = resident.partition.place(resident.page) else { continue };
            let was_marked = at.state().is_marked();
            if at.state().try_shared() != Latch::Taken {
                continue;
            }
            let taken = self.dirty.take(key, at.slot().load(Ordering::Relaxed), at.rec_lsn());
            if let Some(lsn) = taken {
                let start = batch.pages.len() * self.page_bytes;
                // SAFETY: we hold a shared latch, until after the copy.
                let bytes = unsafe { at.bytes() };
                batch.images[start..start + self.page_bytes].copy_from_slice(bytes);
                batch.pages.push((resident.clone(), lsn));
            }
            at.state().unlock_shared();
            if was_marked {
                // Our own visit is no use of the page.
                at.state().mark();
            }
        }
    }

    /// Log first (I2), then the copies into the doublewrite area.
    fn secure(&self, batch: &mut Batch) -> Result<()> {
        let mut newest = Lsn::NEVER;
        for (image, (resident, _)) in batch.images.chunks_exact_mut(self.page_bytes).zip(&batch.pages) {
            let (partition, page) = (resident.partition.id(), resident.page);
            Identity { partition, page, database_id: self.database_id }.seal(image);
            newest = newest.max(header::page_lsn(image));
        }
        if newest > Lsn::NEVER {
            self.log.make_durable(newest)?;
        }
        let written = self.doublewrite.write(&batch.images[..batch.pages.len() * self.page_bytes]);
        if let Err(e) = &written
            && !e.is_no_space()
        {
            self.poison(e);
        }
        written?;
        self.doublewrite.sync().inspect_err(|e| self.poison(e))
    }

    /// Writes the staged batch in place, syncs, and settles it. Returns how many pages became clean.
    pub(crate) fn finish_in_place(&self, batch: &mut Batch) -> Result<usize> {
        match self.write_in_place(batch) {
            Ok(()) => {}
            // The copies are durable and still in memory: the next batch tries again first.
            Err((e, Step::Write)) if e.is_no_space() => return Err(e),
            Err((e, _)) => {
                self.poison(&e);
                self.put_back(batch);
                return Err(e);
            }
        }
        if batch.pages.is_empty() {
            return Ok(0);
        }
        Core::count(&self.counters.batches, 1);
        Core::count(&self.counters.pages_written, batch.pages.len());
        let written: Vec<WrittenPage> = batch
            .images
            .chunks_exact(self.page_bytes)
            .zip(&batch.pages)
            .map(|(image, (resident, _))| WrittenPage {
                partition: resident.partition.id(),
                page: resident.page,
                page_lsn: header::page_lsn(image),
                max_txn: header::max_txn(image),
            })
            .collect();
        self.log.pages_written(&written);
        let mut clean = 0;
        for (resident, _) in batch.pages.drain(..) {
            if let Some(at) = resident.partition.place(resident.page) {
                let key = (resident.partition.id(), resident.page);
                clean += usize::from(self.dirty.settle(key, at.rec_lsn()));
            }
        }
        Ok(clean)
    }

    fn write_in_place(&self, batch: &Batch) -> Result<(), (Error, Step)> {
        let mut index = 0;
        // Neighbours in one write: the batch is sorted.
        let neighbours = |a: &(Resident, Lsn), b: &(Resident, Lsn)| {
            a.0.partition.id() == b.0.partition.id() && a.0.page.0.checked_add(1) == Some(b.0.page.0)
        };
        for run in batch.pages.chunk_by(neighbours) {
            let (partition, first) = (&run[0].0.partition, run[0].0.page);
            let images = &batch.images[index * self.page_bytes..][..run.len() * self.page_bytes];
            write_all_at(partition.file(), images, partition.offset(first))
                .map_err(|e| (Error::io("write", partition.file_name(), e), Step::Write))?;
            index += run.len();
        }
        for pages in batch.pages.chunk_by(|a, b| a.0.partition.id() == b.0.partition.id()) {
            let partition = &pages[0].0.partition;
            partition
                .file()
                .sync_data()
                .map_err(|e| (Error::io("sync", partition.file_name(), e), Step::Sync))?;
        }
        Ok(())
    }

    /// The batch came to nothing: its pages are dirty as before.
    fn put_back(&self, batch: &mut Batch) {
        for (resident, lsn) in batch.pages.drain(..) {
            if let Some(at) = resident.partition.place(resident.page) {
                let key = (resident.partition.id(), resident.page);
                self.dirty.put_back(key, at.slot().load(Ordering::Relaxed), at.rec_lsn(), lsn);
            }
        }
    }

    /// Writes back the oldest of the pages dirty since before `below`, at most `max_pages`.
    pub(crate) fn write_back(&self, below: Lsn, max_pages: usize) -> Result<usize> {
        let mut clean = self.settle_batch()?;
        let mut old: Vec<(Lsn, Resident)> = self.dirty_in_slots(|lsn| lsn < below);
        old.sort_by_key(|(lsn, resident)| (*lsn, resident.partition.id(), resident.page));
        old.truncate(max_pages);
        for pages in old.chunks(self.batch_pages) {
            clean += self.write_batch(pages.iter().map(|(_, resident)| resident.clone()).collect())?;
        }
        Ok(clean)
    }

    /// Writes back all dirty pages of a partition.
    pub(crate) fn write_back_partition(&self, id: PartitionId) -> Result<()> {
        loop {
            self.settle_batch()?;
            let mut dirty = self.dirty_in_slots(|_| true);
            dirty.retain(|(_, resident)| resident.partition.id() == id);
            if dirty.is_empty() {
                return Ok(());
            }
            for pages in dirty.chunks(self.batch_pages) {
                self.write_batch(pages.iter().map(|(_, resident)| resident.clone()).collect())?;
            }
        }
    }

    /// The pages that are dirty by their `rec_lsn` array, as far as `wanted`.
    pub(crate) fn dirty_in_slots(&self, wanted: impl Fn(Lsn) -> bool) -> Vec<(Lsn, Resident)> {
        let partitions = self.partitions();
        let mut pages = Vec::new();
        for slot in self.dirty.slots() {
            let Some((id, page)) = self.frames.page(Slot(slot)) else { continue };
            let Some(partition) = partitions.get(&id) else { continue };
            let Some(at) = partition.place(page) else { continue };
            let lsn = rec_lsn(at.rec_lsn());
            if lsn > Lsn::NEVER && wanted(lsn) {
                pages.push((lsn, Resident { partition: Arc::clone(partition), page }));
            }
        }
        pages
    }
}

/// Where writing in place failed.
enum Step {
    Write,
    Sync,
}
