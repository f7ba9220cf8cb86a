//! Parts are redone a batch at a time, and those of one page together, instead of in the order of the log.
//!
//! Where rows were changed at random, the log comes back to a page only after it has been to thousands of others, and each time the page has to
//! be fetched again: from memory into the processor's caches or, where the cache is smaller than what was changed, from the disk. So
//! the parts of a few neighbouring pages are collected (by [`super::fan_out`]) until there are several of each, and those of one page are redone
//! together. A cold cache is read in the order of the file, too.
//!
//! I1. Parts of one page are redone in the order in which they were collected. Parts of different pages do not depend on each other (I3 of the
//!     pass), so nothing else about the order counts.
//! I2. Behind a failure nothing is redone, before it everything is, but for what is in one batch with a panic.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;
use hamal_pager::PageNo;
use hamal_wal::Lsn;
use parking_lot::Mutex;

use super::apply::{Outcome, Step, part_bytes};
use super::{Failure, Place, Tally, TargetIndex, Work};
use crate::change::PageChange;
use crate::recovery::changes::EncodedPart;
use crate::{Error, ErrorKind};

/// Parts on their way to whoever redoes them, and ends of partitions, which are behind the parts.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// For each part, its page's key, and where in `bytes` it begins.
    parts: Vec<(u64, u32)>,
    /// Each part's [`Head`] and change.
    bytes: Vec<u8>,
    /// Where the first part stands.
    first: Lsn,
    ends: Vec<TargetIndex>,
}

/// What is in front of a part's change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    at: Place,
    page_prev_lsn: Lsn,
}

impl Head {
    fn encode(self, out: &mut Vec<u8>) {
        out.extend(self.at.lsn.0.to_le_bytes());
        out.extend((self.at.part as u64).to_le_bytes());
        out.extend(self.page_prev_lsn.0.to_le_bytes());
    }

    /// Its own bytes only come back here; others give `None`.
    fn decode(input: &mut &[u8]) -> Option<Head> {
        let mut number = || input.split_off(..8)?.try_into().ok().map(u64::from_le_bytes);
        let at = Place { lsn: Lsn(number()?), part: usize::try_from(number()?).ok()? };
        Some(Head { at, page_prev_lsn: Lsn(number()?) })
    }
}

/// What parts are sorted by: partition, then page.
fn page_key(target: TargetIndex, page: PageNo) -> u64 {
    ((target as u64) << 32) | u64::from(page.0)
}

fn page_of(key: u64) -> (TargetIndex, PageNo) {
    ((key >> 32) as TargetIndex, PageNo(key as u32))
}

impl Batch {
    pub(super) fn push(&mut self, at: Place, target: TargetIndex, part: EncodedPart<'_>) {
        if self.parts.is_empty() {
            self.first = at.lsn;
        }
        self.parts.push((page_key(target, part.page), self.bytes.len() as u32));
        Head { at, page_prev_lsn: part.page_prev_lsn }.encode(&mut self.bytes);
        self.bytes.extend_from_slice(part.change.bytes);
    }

    /// No more parts of this partition will come.
    pub(super) fn push_end(&mut self, target: TargetIndex) {
        self.ends.push(target);
    }

    /// Memory that its parts take.
    pub(super) fn memory(&self) -> usize {
        self.bytes.len() + self.parts.len() * size_of::<(u64, u32)>()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.ends.is_empty()
    }

    /// Where its first part stands; [`Lsn::NEVER`] if it has none.
    pub(super) fn first_lsn(&self) -> Lsn {
        self.first
    }

    /// The encoding of the part that begins there, and what is behind it.
    fn part(&self, start: u32) -> &[u8] {
        self.bytes.get(start as usize..).unwrap_or_default()
    }

    /// Lets the processor fetch the parts: in this order memory comes faster than in that of their pages.
    fn prefetch(&self) {
        const LINE_BYTES: usize = 64;
        std::hint::black_box(self.bytes.iter().step_by(LINE_BYTES).fold(0, |sum, byte| sum ^ byte));
    }

    fn clear(&mut self) {
        self.parts.clear();
        self.bytes.clear();
        self.ends.clear();
        self.first = Lsn::NEVER;
    }
}

/// What the reader and all that redo share.
pub(super) struct Shared {
    /// LSN of the earliest failure: what is behind it is left out.
    failed_at: AtomicU64,
    failure: Mutex<Option<Failure>>,
    /// For each partition, the lanes that have not come to its end.
    ends: Vec<AtomicUsize>,
    /// Empty batches.
    spare: ArrayQueue<Batch>,
}

impl Shared {
    /// `spare`: how many empty batches are kept.
    pub(super) fn new(targets: usize, spare: usize) -> Shared {
        Shared {
            failed_at: AtomicU64::new(u64::MAX),
            failure: Mutex::new(None),
            ends: (0..targets).map(|_| AtomicUsize::new(0)).collect(),
            spare: ArrayQueue::new(spare.max(1)),
        }
    }

    /// As many lanes have to come to every partition's end. Before any of them begins.
    pub(super) fn expect_ends(&self, lanes: usize) {
        for ends in &self.ends {
            // Relaxed: the queues order it before the ends that are sent.
            ends.store(lanes, Ordering::Relaxed);
        }
    }

    pub(super) fn empty_batch(&self) -> Batch {
        self.spare.pop().unwrap_or_default()
    }

    pub(super) fn fail(&self, failure: Failure) {
        let mut first = self.failure.lock();
        // Relaxed: who sees it late does work that is not needed.
        self.failed_at.fetch_min(failure.at.lsn.0, Ordering::Relaxed);
        if first.as_ref().is_none_or(|known| failure.at < known.at) {
            *first = Some(failure);
        }
    }

    fn failed_at(&self) -> Lsn {
        Lsn(self.failed_at.load(Ordering::Relaxed))
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed_at() != Lsn(u64::MAX)
    }

    /// Nothing more need be done: what is handed out is left out.
    pub(super) fn stop(&self) {
        // Relaxed: as in `fail`.
        self.failed_at.store(0, Ordering::Relaxed);
    }

    /// The first failure in the log's order.
    pub(super) fn into_failure(self) -> Option<Failure> {
        self.failure.into_inner()
    }
}

/// Redoes batches: on a thread of its own, or on the reader's.
pub(super) struct Worker<'s> {
    work: &'s dyn Work,
    shared: &'s Shared,
    /// Batches redone.
    finished: &'s AtomicU64,
    /// What is redone when another one comes, or no more.
    next: Option<Batch>,
    tallies: Vec<Tally>,
}

impl<'s> Worker<'s> {
    pub(super) fn new(work: &'s dyn Work, shared: &'s Shared, finished: &'s AtomicU64) -> Worker<'s> {
        Worker { work, shared, finished, next: None, tallies: vec![Tally::default(); work.targets()] }
    }

    /// Takes a batch, whose pages the system begins to read, and redoes the one before.
    pub(super) fn take(&mut self, mut batch: Batch) {
        // No two are equal: this order is the one in which they were collected, too.
        batch.parts.sort_unstable();
        for parts in batch.parts.chunk_by(|one, next| page_of(one.0).0 == page_of(next.0).0) {
            let target = page_of(parts[0].0).0;
            if let Some(partition) = self.work.partition(target) {
                let pages = parts.chunk_by(|one, next| one.0 == next.0).map(|parts| page_of(parts[0].0).1);
                let may_miss = |page: &PageNo| self.work.rec_lsn(target, *page).is_some();
                partition.read_ahead(pages.filter(may_miss));
            }
        }
        if let Some(before) = self.next.replace(batch) {
            self.redo(before);
        }
    }

    /// Redoes the last batch; what was done to each partition.
    pub(super) fn finish(mut self) -> Vec<Tally> {
        if let Some(last) = self.next.take() {
            self.redo(last);
        }
        self.tallies
    }

    fn redo(&mut self, mut batch: Batch) {
        let mut at = Place::default();
        batch.prefetch();
        let all = || redo_in_order(self.work, self.shared, &batch, &mut self.tallies, &mut at);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(all)) {
            self.shared.fail(Failure { at, error: panicked(at.lsn, &*panic) });
        }
        for target in &batch.ends {
            // Acquire and release: the last one's time is behind what all have done.
            if self.shared.ends[*target].fetch_sub(1, Ordering::AcqRel) == 1 {
                self.work.note_done(*target);
            }
        }
        // Release: with what was done for it.
        self.finished.fetch_add(1, Ordering::Release);
        batch.clear();
        // More are made if there are none; too many go.
        let _full = self.shared.spare.push(batch);
    }
}

/// `now`: what is being redone.
fn redo_in_order(work: &dyn Work, shared: &Shared, batch: &Batch, tallies: &mut [Tally], now: &mut Place) {
    let (mut page, mut rec_lsn) = (None, Lsn::NEVER);
    for (key, start) in &batch.parts {
        let (target, page_no) = page_of(*key);
        if page.replace(*key) != Some(*key) {
            // Asked for once for each page.
            rec_lsn = work.rec_lsn(target, page_no).unwrap_or(Lsn(u64::MAX));
        }
        let mut bytes = batch.part(*start);
        let Some(Head { at, page_prev_lsn }) = Head::decode(&mut bytes) else { continue };
        if at.lsn < rec_lsn || at.lsn > shared.failed_at() {
            continue;
        }
        *now = at;
        let redone = match PageChange::decode(&mut bytes) {
            Ok(ref change) => work
                .redo(at, target, Step { lsn: at.lsn, page: page_no, page_prev_lsn, change })
                .map(|outcome| (outcome, part_bytes(change))),
            Err(error) => Err(Failure { at, error }),
        };
        match redone {
            Ok((Outcome::Left, _)) => rec_lsn = Lsn(u64::MAX),
            Ok((outcome, bytes)) => tallies[target].count(outcome, bytes),
            Err(failure) => shared.fail(failure),
        }
    }
}

/// What is told of a panic. Nothing it had half done is anywhere but in memory.
fn panicked(lsn: Lsn, panic: &(dyn Any + Send)) -> Error {
    let text = crate::recovery::panic_text(panic);
    Error::new(ErrorKind::Poisoned, format!("redo of log record {lsn} panicked: {text}"))
}
