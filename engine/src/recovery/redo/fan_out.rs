//! Redo by several threads: queues of batches from the reader to the workers.
//!
//! I1. A page's parts go to one worker (`lane_of`), in the order in which they are handed out.
//! I2. The reader never waits for a worker that has stopped: a worker empties its queue to the end whatever happens, a panic
//!     included, and only leaves out what is behind a failure.
//! I3. Memory is bounded: a queue has [`QUEUED_BATCHES`] at most, a batch [`BATCH_BYTES`] and one part more.
//! I4. A partition's end travels through all queues, and whoever passes it last notes the time.
//!
//! The reader holds nothing while it waits for room in a queue; a worker holds one page's latch while it waits for a frame, as any
//! thread that fixes a page may.

use std::any::Any;
use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use crossbeam::channel::{Receiver, Sender, bounded};
use crossbeam::queue::ArrayQueue;
use hamal_pager::{PageNo, PartitionId};
use hamal_wal::Lsn;
use parking_lot::Mutex;

use super::{Failure, Here, Pass, Place, Sink, Tally, TargetIndex, part_bytes};
use crate::change::PageChange;
use crate::record::PagePart;
use crate::{Error, ErrorKind};

/// A batch is sent when its changes take so many bytes, or it has so many items.
const BATCH_BYTES: usize = 32 << 10;
const BATCH_ITEMS: usize = 512;
/// Batches that wait for one worker at most.
const QUEUED_BATCHES: usize = 32;

/// One thing for a worker to do.
#[derive(Clone, Copy, Debug)]
enum Item {
    /// Redo a part. Its change is encoded in the batch's bytes, up to `end`.
    Part { at: Place, target: TargetIndex, page: PageNo, page_prev_lsn: Lsn, end: usize },
    /// The partition has no more parts.
    End { target: TargetIndex },
}

#[derive(Debug, Default)]
struct Batch {
    /// Where its first part stands.
    first: Lsn,
    items: Vec<Item>,
    bytes: Vec<u8>,
}

impl Batch {
    fn clear(&mut self) {
        self.first = Lsn::NEVER;
        self.items.clear();
        self.bytes.clear();
    }
}

/// What the reader and the workers share.
struct Shared {
    /// LSN of the earliest failure: what is behind it is left out.
    failed_at: AtomicU64,
    failure: Mutex<Option<Failure>>,
    /// For each partition, the queues that its end is still in.
    ends: Vec<AtomicUsize>,
    /// Empty batches.
    spare: ArrayQueue<Batch>,
}

impl Shared {
    fn fail(&self, failure: Failure) {
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
}

/// The reader's end of one worker's queue.
struct Lane<'s> {
    sender: Sender<Batch>,
    pending: Batch,
    /// Where each batch begins that was sent and, as far as was looked, not finished.
    sent: VecDeque<Lsn>,
    /// Batches sent, less those in `sent`.
    known_finished: u64,
    finished: &'s AtomicU64,
}

impl Lane<'_> {
    fn send(&mut self, shared: &Shared) {
        if self.pending.items.is_empty() {
            return;
        }
        let batch = std::mem::replace(&mut self.pending, shared.spare.pop().unwrap_or_default());
        self.sent.push_back(batch.first);
        // It fails only if the worker is gone, which it is not while there is a sender (I2).
        let _cannot_fail = self.sender.send(batch);
    }

    /// The first part that may not be redone yet.
    fn first_open(&mut self) -> Option<Lsn> {
        // Acquire: what the worker did for these batches has happened.
        let finished = self.finished.load(Ordering::Acquire);
        while self.known_finished < finished {
            self.sent.pop_front();
            self.known_finished += 1;
        }
        let parts = self.sent.iter().copied().chain([self.pending.first]);
        parts.filter(|first| *first != Lsn::NEVER).min()
    }
}

/// Hands parts out to workers.
struct FanOut<'s> {
    shared: &'s Shared,
    lanes: Vec<Lane<'s>>,
}

/// Which of `lanes` workers has the page.
fn lane_of(partition: PartitionId, page: PageNo, lanes: usize) -> usize {
    // Fibonacci hashing: the high half of the product depends on all bits.
    let key = (u64::from(partition.0) << 32) | u64::from(page.0);
    let hash = key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    ((hash * lanes as u64) >> 32) as usize
}

impl Sink for FanOut<'_> {
    fn part(&mut self, at: Place, target: TargetIndex, part: &PagePart<'_>) -> Result<(), Failure> {
        let lane = lane_of(part.partition, part.page, self.lanes.len());
        let lane = &mut self.lanes[lane];
        let batch = &mut lane.pending;
        if batch.first == Lsn::NEVER {
            batch.first = at.lsn;
        }
        part.change.encode(&mut batch.bytes);
        batch.items.push(Item::Part {
            at,
            target,
            page: part.page,
            page_prev_lsn: part.page_prev_lsn,
            end: batch.bytes.len(),
        });
        if batch.bytes.len() >= BATCH_BYTES || batch.items.len() >= BATCH_ITEMS {
            lane.send(self.shared);
        }
        Ok(())
    }

    fn end_of(&mut self, target: TargetIndex) {
        for lane in &mut self.lanes {
            lane.pending.items.push(Item::End { target });
            lane.send(self.shared);
        }
    }

    fn done_to(&mut self, position: Lsn) -> Lsn {
        self.lanes.iter_mut().filter_map(Lane::first_open).fold(position, Lsn::min)
    }

    fn has_failed(&self) -> bool {
        self.shared.failed_at() != Lsn(u64::MAX)
    }
}

/// Lets `read` hand out parts to `workers` threads, or to itself if that is one, or if none can be started. Returns what was done to
/// each partition, and by how many.
pub(super) fn run(
    pass: &Pass<'_>,
    workers: usize,
    read: impl FnOnce(&mut dyn Sink) -> Result<(), Failure>,
) -> Result<(Vec<Tally>, usize), Failure> {
    let finished: Vec<AtomicU64> = (0..workers).map(|_| AtomicU64::new(0)).collect();
    let shared = Shared {
        failed_at: AtomicU64::new(u64::MAX),
        failure: Mutex::new(None),
        ends: pass.targets.iter().map(|_| AtomicUsize::new(0)).collect(),
        spare: ArrayQueue::new(workers * QUEUED_BATCHES),
    };
    let tallies = thread::scope(|scope| {
        let (mut threads, mut lanes) = (Vec::new(), Vec::new());
        for (number, finished) in finished.iter().enumerate().filter(|_| workers > 1) {
            let (sender, receiver) = bounded(QUEUED_BATCHES);
            let shared = &shared;
            let work = move || work(pass, shared, receiver, finished);
            match thread::Builder::new().name(format!("hamal-redo-{number}")).spawn_scoped(scope, work) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    tracing::warn!(%error, started = threads.len(), "a redo thread could not be started");
                    break;
                }
            }
            lanes.push(Lane {
                sender,
                pending: Batch::default(),
                sent: VecDeque::new(),
                known_finished: 0,
                finished,
            });
        }
        if lanes.is_empty() {
            let mut here = Here { pass, tallies: vec![Tally::default(); pass.targets.len()] };
            return read(&mut here).map(|()| (here.tallies, 1));
        }
        for ends in &shared.ends {
            // Relaxed: the queues order it before the ends that are sent.
            ends.store(lanes.len(), Ordering::Relaxed);
        }
        let mut fan_out = FanOut { shared: &shared, lanes };
        if let Err(failure) = read(&mut fan_out) {
            shared.fail(failure);
        }
        for lane in &mut fan_out.lanes {
            // Also after a failure: what is before it may fail too (I6 of the pass).
            lane.send(&shared);
        }
        drop(fan_out);
        let mut sum = vec![Tally::default(); pass.targets.len()];
        let started = threads.len();
        for thread in threads {
            // A worker catches its panics.
            let done = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            for (sum, done) in sum.iter_mut().zip(done) {
                sum.add(done);
            }
        }
        Ok((sum, started))
    })?;
    match shared.failure.into_inner() {
        Some(failure) => Err(failure),
        None => Ok(tallies),
    }
}

/// A worker: to the end of its queue (I2).
fn work(pass: &Pass<'_>, shared: &Shared, batches: Receiver<Batch>, finished: &AtomicU64) -> Vec<Tally> {
    let mut tallies = vec![Tally::default(); pass.targets.len()];
    for mut batch in batches {
        let at = Cell::new(Place { lsn: batch.first, part: 0 });
        let done = catch_unwind(AssertUnwindSafe(|| redo_batch(pass, shared, &batch, &mut tallies, &at)));
        if let Err(panic) = done {
            shared.fail(Failure { at: at.get(), error: panicked(at.get().lsn, &*panic) });
        }
        finished.fetch_add(1, Ordering::Release);
        batch.clear();
        // More are made if there are none; too many go.
        let _full = shared.spare.push(batch);
    }
    tallies
}

/// `now`: what is being redone.
fn redo_batch(pass: &Pass<'_>, shared: &Shared, batch: &Batch, tallies: &mut [Tally], now: &Cell<Place>) {
    let mut start = 0;
    for item in &batch.items {
        match *item {
            Item::Part { at, target, page, page_prev_lsn, end } => {
                let mut bytes = &batch.bytes[start..end];
                start = end;
                if at.lsn > shared.failed_at() {
                    continue;
                }
                now.set(at);
                let change = PageChange::decode(&mut bytes);
                let redone = change.map_err(|error| Failure { at, error }).and_then(|change| {
                    let partition = pass.targets[target].id;
                    let part = PagePart { partition, page, page_prev_lsn, change };
                    Ok((pass.redo(at, target, &part)?, part_bytes(&part.change)))
                });
                match redone {
                    Ok((outcome, bytes)) => tallies[target].count(outcome, bytes),
                    Err(failure) => shared.fail(failure),
                }
            }
            Item::End { target } => {
                // Acquire and release: the last one's time is behind what all have done.
                if shared.ends[target].fetch_sub(1, Ordering::AcqRel) == 1 {
                    pass.note_done(target);
                }
            }
        }
    }
}

/// What is told of a worker's panic. Nothing it had half done is anywhere but in memory.
fn panicked(lsn: Lsn, panic: &(dyn Any + Send)) -> Error {
    let text = crate::recovery::panic_text(panic);
    Error::new(ErrorKind::Poisoned, format!("redo of log record {lsn} panicked: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_spread_evenly_over_the_workers_and_stay_with_theirs() {
        for lanes in [2, 3, 7, 256] {
            let mut pages = vec![0_u64; lanes];
            for partition in 0..16 {
                for page in 0..2_000 {
                    let lane = lane_of(PartitionId(partition), PageNo(page), lanes);
                    assert_eq!(lane, lane_of(PartitionId(partition), PageNo(page), lanes));
                    pages[lane] += 1;
                }
            }
            let mean = 32_000 / lanes as u64;
            assert!(pages.iter().all(|n| n.abs_diff(mean) < mean / 4), "{lanes}: {pages:?}");
        }
        assert!(lane_of(PartitionId(u32::MAX), PageNo(u32::MAX), 3) < 3);
    }
}
