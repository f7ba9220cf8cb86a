//! Redo while the log is read for the first time: before anybody knows where the log ends, and which pages miss what.
//!
//! It saves reading the log a second time. What it can do is limited by two things: nothing may be written (a refused open changes
//! nothing), so all that it touches has to stay in memory; and what it knows of a page is what the page itself says.
//!
//! I1. A part is applied if and only if the page has an LSN below the record's and is the one that the part was done to (or the part is
//!     blind). So a page is at all times as it was at some moment: whatever analysis finds out later, nothing wrong has been done to it.
//! I2. A page that is in the dirty page table at the end, was taken when it entered it, and was not left, has all of its records. The others are
//!     forgotten: to the redo pass, and to whoever reads them, they are what their file has. That includes what has been written since (F14: whether
//!     that write was lost is looked at when the page is read), was freed, or is of a partition that is gone.
//! I3. A page is left for any error, once for all. The redo pass meets it too, and tells, or mends. A panic ends the open.
//! I4. No page leaves the cache meanwhile: fewer are taken than fit, and those that nobody wants any more stay until the end.
//! I5. No file is made, and none grows.
//!
//! Where the cache was too small for what was changed, the log says again and again that a page has been written, and what was done to it here was
//! done for nothing. So no more pages are taken once too many are gone again ([`MOST_GONE`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hamal_pager::{PageNo, Pager, Partition, PartitionId};
use hamal_storage::Storage;
use hamal_wal::Lsn;
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;

use super::apply::{Outcome, Step, redo_or_leave};
use super::fan_out::{self, FanOut, Size};
use super::{Failure, Tally, TargetIndex, Work, note_tally};
use crate::catalog::partition_of;
use crate::recovery::analysis::{Analysis, Place, Takes};
use crate::recovery::changes::EncodedPart;
use crate::report::RecoveryReport;
use crate::{Error, Result};

/// Of the pages that are taken not more than one in so many may be gone, but for the first ones.
const MOST_GONE: usize = 4;
const FIRST_GONE: usize = 256;

/// Who redoes pages along with analysis.
pub(crate) struct Eager {
    partitions: Vec<Arc<Partition>>,
    by_id: HashMap<PartitionId, TargetIndex>,
    /// Pages that are taken at most (I4).
    room: usize,
    /// Pages that cannot be redone here.
    left: Mutex<HashSet<(TargetIndex, PageNo)>>,
    /// There are some.
    has_left: AtomicBool,
    /// Nothing is worth anything.
    gives_up: AtomicBool,
    /// All pages that have been taken.
    taken: Mutex<Vec<(TargetIndex, PageNo)>>,
}

/// What has been redone.
#[derive(Debug, Default)]
pub(crate) struct Redone {
    tallies: Vec<(PartitionId, Tally)>,
    /// Threads; 0: no page was taken.
    workers: usize,
    /// What was read of the log meanwhile.
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

impl Redone {
    /// Adds it to the report. `ready`: when it was all done, from the beginning of the open.
    pub(crate) fn note(&self, analysis: &Analysis, ready: Duration, report: &mut RecoveryReport) {
        for (partition, tally) in &self.tallies {
            // No others: those that are gone, or have no page that anybody wants.
            if report.partitions.iter().any(|known| known.partition == partition.0) {
                note_tally(report, *partition, *tally);
            }
        }
        if self.workers > 0 {
            report.redo_workers = self.workers as u64;
            report.redo.records = self.records;
            report.redo.bytes = self.bytes;
        }
        report.first_pass_pages = analysis.dirty_pages() - analysis.left_pages();
        // Those of which pages are left are told again.
        report.partitions.iter_mut().for_each(|partition| partition.ready = Some(ready));
    }
}

impl Eager {
    /// Opens the partitions, of those that are `wanted`, that can be opened.
    pub(crate) fn new(
        storage: &dyn Storage,
        pager: &Arc<Pager>,
        wanted: &dyn Fn(PartitionId) -> bool,
    ) -> Eager {
        // If they cannot be listed none is open: whoever needs them tries again, and tells.
        let names = storage.list("part").unwrap_or_default();
        let mut ids: Vec<PartitionId> = names.iter().filter_map(|name| partition_of(name)).collect();
        ids.sort_unstable();
        // Whoever needs one of the others tries again.
        let partitions: Vec<Arc<Partition>> =
            ids.into_iter().filter(|id| wanted(*id)).filter_map(|id| pager.open_partition(id).ok()).collect();
        let by_id =
            partitions.iter().enumerate().map(|(target, partition)| (partition.id(), target)).collect();
        let capacity = pager.capacity_pages();
        Eager {
            partitions,
            by_id,
            room: capacity - capacity.div_ceil(32),
            left: Mutex::default(),
            has_left: AtomicBool::new(false),
            gives_up: AtomicBool::new(false),
            taken: Mutex::default(),
        }
    }

    /// Lets `read` take pages and hand out their parts; returns when all is redone.
    pub(crate) fn run(
        &self,
        workers: usize,
        cache_bytes: u64,
        read: impl FnOnce(&mut Dealer<'_, '_, '_>) -> Result<()>,
    ) -> Result<Redone> {
        let pages = self.partitions.iter().map(|partition| u64::from(partition.file_pages())).sum();
        let (result, done) = fan_out::run(self, Size { workers, pages, cache_bytes }, |fan_out| {
            let mut dealer = Dealer {
                eager: self,
                fan_out,
                known: None,
                taken: Vec::new(),
                gone: HashSet::new(),
                has_threads: false,
            };
            let result = read(&mut dealer);
            if result.is_err() {
                dealer.fan_out.stop();
            }
            *self.taken.lock() = dealer.taken;
            result
        });
        result?;
        if let Some(failure) = done.failure {
            // A panic, and who knows what it has left: the page that it was at may be for ever on its way into memory.
            return Err(failure.error);
        }
        let workers = if self.taken.lock().is_empty() { 0 } else { done.workers };
        let ids = self.partitions.iter().map(|partition| partition.id());
        Ok(Redone { tallies: ids.zip(done.tallies).collect(), workers, ..Redone::default() })
    }

    /// Tells analysis which pages are redone, and forgets the others (I2).
    pub(crate) fn settle(&self, analysis: &mut Analysis) {
        let left = std::mem::take(&mut *self.left.lock());
        let gives_up = self.gives_up.load(Ordering::Relaxed);
        analysis.settle_taken(|partition, page| {
            !gives_up && self.by_id.get(&partition).is_some_and(|target| !left.contains(&(*target, page)))
        });
        let mut taken = std::mem::take(&mut *self.taken.lock());
        taken.retain(|(target, page)| !analysis.is_redone(self.partitions[*target].id(), *page));
        taken.sort_unstable();
        for pages in taken.chunk_by(|one, next| one.0 == next.0) {
            self.partitions[pages[0].0].forget(pages.iter().map(|(_, page)| *page));
        }
    }

    /// The partitions that it has opened.
    pub(crate) fn into_partitions(self) -> Vec<Arc<Partition>> {
        self.partitions
    }
}

impl Work for Eager {
    fn targets(&self) -> usize {
        self.partitions.len()
    }

    fn partition(&self, target: TargetIndex) -> Option<&Partition> {
        Some(&self.partitions[target])
    }

    fn rec_lsn(&self, target: TargetIndex, page: PageNo) -> Option<Lsn> {
        // Relaxed: whoever has left the page is the thread that asks.
        let is_left = self.has_left.load(Ordering::Relaxed) && self.left.lock().contains(&(target, page));
        (!is_left).then_some(Lsn::NEVER)
    }

    fn redo(&self, _: Place, target: TargetIndex, step: Step<'_>) -> Result<Outcome, Failure> {
        let partition = &self.partitions[target];
        let redone = redo_or_leave(partition, step).unwrap_or_else(|error| {
            tracing::debug!(%error, partition = partition.id().0, page = step.page.0, "a page is left to the redo pass");
            Outcome::Left
        });
        if redone == Outcome::Left {
            self.left.lock().insert((target, step.page));
            self.has_left.store(true, Ordering::Relaxed);
        }
        Ok(redone)
    }

    fn note_done(&self, _: TargetIndex) {}
}

/// The reader's end: takes pages, and hands their parts out.
pub(crate) struct Dealer<'d, 'scope, 'env> {
    eager: &'d Eager,
    fan_out: &'d mut FanOut<'scope, 'env>,
    /// The partition of the page before.
    known: Option<(PartitionId, Option<TargetIndex>)>,
    /// Every page that was taken, once.
    taken: Vec<(TargetIndex, PageNo)>,
    /// Those of them that have left the table.
    gone: HashSet<(TargetIndex, PageNo)>,
    /// Threads redo, or it has been tried.
    has_threads: bool,
}

impl Dealer<'_, '_, '_> {
    /// From here on threads redo, if it is worth their while and they do not yet.
    pub(crate) fn start_threads_if(&mut self, is_worth_it: bool) {
        if is_worth_it && !self.has_threads {
            self.has_threads = true;
            self.fan_out.start_threads();
        }
    }

    /// Records are missing: nothing that is redone counts.
    pub(crate) fn give_up(&self, error: &Error) {
        tracing::debug!(%error, "all pages are left to the redo pass");
        self.eager.gives_up.store(true, Ordering::Relaxed);
        self.fan_out.stop();
    }

    fn has_given_up(&self) -> bool {
        self.eager.gives_up.load(Ordering::Relaxed)
    }

    fn target(&mut self, partition: PartitionId) -> Option<TargetIndex> {
        match self.known {
            Some((id, target)) if id == partition => target,
            _ => self.known.insert((partition, self.eager.by_id.get(&partition).copied())).1,
        }
    }
}

impl Takes for Dealer<'_, '_, '_> {
    fn takes(&mut self, partition: PartitionId, page: PageNo) -> bool {
        let Some(target) = self.target(partition) else { return false };
        if self.has_given_up() {
            return false;
        }
        // Neither a page that was taken before: it would be taken and be gone for ever.
        if self.gone.len() > FIRST_GONE + self.taken.len() / MOST_GONE {
            return false;
        }
        if self.gone.remove(&(target, page)) {
            return true;
        }
        let has_room = self.taken.len() < self.eager.room;
        // A page behind the file's end would make it grow (I5).
        let takes = has_room && page.0 < self.eager.partitions[target].file_pages();
        if takes {
            self.taken.push((target, page));
        }
        takes
    }

    fn gone(&mut self, partition: PartitionId, page: PageNo) {
        if let Some(target) = self.target(partition) {
            self.gone.insert((target, page));
        }
    }

    fn part(&mut self, at: Place, part: EncodedPart<'_>) {
        if let Some(target) = self.target(part.partition).filter(|_| !self.has_given_up()) {
            self.fan_out.part(at, target, part);
        }
    }
}
