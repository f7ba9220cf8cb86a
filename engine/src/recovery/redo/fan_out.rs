//! Dealing out: from the reader to those who redo, by page.
//!
//! Neighbouring pages belong to one *bucket*, where their parts are collected, and a bucket to one worker.
//!
//! I1. A page's parts go to one worker, in the order in which they are handed out: a bucket's batches go into one queue.
//! I2. The reader never waits for a worker that has stopped: a worker empties its queue to the end whatever happens, a panic
//!     included, and only leaves out what is behind a failure.
//! I3. Memory is bounded: all batches have [`collected_bytes`] together, or [`LEAST_BATCH_BYTES`] each if that is more, which is so for the
//!     smallest caches only, and one part more each.
//! I4. A partition's end travels through all queues, behind its parts, and whoever passes it last notes the time.
//!
//! The reader holds nothing while it waits for room in a queue; a worker holds one page's latch while it waits for a frame, as any
//! thread that fixes a page may.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crossbeam::channel::{Sender, bounded};
use hamal_pager::PartitionId;
use hamal_wal::Lsn;

use super::batch::{Batch, Shared, Worker};
use super::{Failure, Pass, Place, Tally, TargetIndex};
use crate::record::PagePart;

/// Neighbouring pages, as many as this at most, go to one bucket: files are read in the order of their pages, and they fit a processor's cache.
const MOST_NEIGHBOURS: u64 = 128;
/// Buckets for each worker at least, as long as there are pages for them: all are to have something to do.
const LEAST_BUCKETS: u64 = 16;
/// Buckets at most.
const MOST_BUCKETS: u64 = 1024;
/// Batches that wait for one worker at most.
const QUEUED_BATCHES: usize = 4;
/// A batch is redone when it takes so many bytes: so much is worth the while, and more gains nothing.
const LEAST_BATCH_BYTES: u64 = 32 << 10;
const MOST_BATCH_BYTES: u64 = 1 << 20;

/// What is collected before it is redone takes this part of the cache's size, and no more than so many bytes.
const PART_OF_CACHE: u64 = 4;
const MOST_BYTES: u64 = 64 << 20;

/// Memory for parts that are not redone yet, bytes.
fn collected_bytes(pass: &Pass<'_>) -> u64 {
    (pass.engine.options.cache_bytes / PART_OF_CACHE).min(MOST_BYTES)
}

/// Who redoes what goes into a lane.
enum Hands<'s> {
    /// A thread.
    Thread(Sender<Batch>),
    /// Whoever reads the log.
    Reader(Box<Worker<'s>>),
}

/// What is collected of a few pages.
#[derive(Debug)]
struct Bucket {
    batch: Batch,
    /// It is redone when it takes so many bytes.
    limit: usize,
}

/// The reader's end of a lane.
struct Lane<'s> {
    hands: Hands<'s>,
    buckets: Vec<Bucket>,
    /// The limit of a bucket's batches.
    batch_bytes: usize,
    /// Where each batch begins that was sent and, as far as was looked, not finished.
    sent: VecDeque<Lsn>,
    /// Batches sent, less those in `sent`.
    known_finished: u64,
    finished: &'s AtomicU64,
}

impl<'s> Lane<'s> {
    fn new(hands: Hands<'s>, buckets: usize, batch_bytes: usize, finished: &'s AtomicU64) -> Lane<'s> {
        // They fill alike. If all were full at once, there would be nothing to do before, and nobody to read the log then.
        let limits = (1..=buckets).map(|number| batch_bytes * number / buckets);
        let buckets = limits.map(|limit| Bucket { batch: Batch::default(), limit }).collect();
        Lane { hands, buckets, batch_bytes, sent: VecDeque::new(), known_finished: 0, finished }
    }

    fn part(&mut self, bucket: usize, at: Place, target: TargetIndex, part: &PagePart<'_>, shared: &Shared) {
        let Bucket { batch, limit } = &mut self.buckets[bucket];
        batch.push(at, target, part);
        if batch.memory() >= *limit {
            *limit = self.batch_bytes;
            self.send(bucket, shared);
        }
    }

    fn send(&mut self, bucket: usize, shared: &Shared) {
        let batch = std::mem::replace(&mut self.buckets[bucket].batch, shared.empty_batch());
        self.redo(batch);
    }

    fn send_all(&mut self, shared: &Shared) {
        for bucket in 0..self.buckets.len() {
            if !self.buckets[bucket].batch.is_empty() {
                self.send(bucket, shared);
            }
        }
    }

    fn redo(&mut self, batch: Batch) {
        self.sent.push_back(batch.first_lsn());
        match &mut self.hands {
            // It fails only if the worker is gone, which it is not while there is a sender (I2).
            Hands::Thread(sender) => drop(sender.send(batch)),
            Hands::Reader(worker) => worker.take(batch),
        }
    }

    /// The first part that may not be redone yet.
    fn first_open(&mut self) -> Option<Lsn> {
        // Acquire: what was done for these batches has happened.
        let finished = self.finished.load(Ordering::Acquire);
        while self.known_finished < finished {
            self.sent.pop_front();
            self.known_finished += 1;
        }
        let parts =
            self.sent.iter().copied().chain(self.buckets.iter().map(|bucket| bucket.batch.first_lsn()));
        parts.filter(|first| *first != Lsn::NEVER).min()
    }
}

/// Hands parts out.
pub(super) struct FanOut<'s> {
    shared: &'s Shared,
    lanes: Vec<Lane<'s>>,
    /// Of one lane.
    buckets: usize,
    /// Pages that go to one bucket together.
    neighbours: u32,
}

/// Which of `count` buckets has the pages with this number, `page / neighbours`.
fn bucket_of(partition: PartitionId, pages: u32, count: usize) -> usize {
    // Fibonacci hashing: the high half of the product depends on all bits.
    let key = (u64::from(partition.0) << 32) | u64::from(pages);
    let hash = key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    ((hash * count as u64) >> 32) as usize
}

impl FanOut<'_> {
    /// A part that may be missing from its page. The partition is open and its file large enough.
    pub(super) fn part(&mut self, at: Place, target: TargetIndex, part: &PagePart<'_>) {
        let bucket =
            bucket_of(part.partition, part.page.0 / self.neighbours, self.lanes.len() * self.buckets);
        self.lanes[bucket / self.buckets].part(bucket % self.buckets, at, target, part, self.shared);
    }

    /// No more parts of this partition will come. What is collected is redone now: somebody may wait for that.
    pub(super) fn end_of(&mut self, target: TargetIndex) {
        for lane in &mut self.lanes {
            lane.send_all(self.shared);
            let mut end = self.shared.empty_batch();
            end.push_end(target);
            lane.redo(end);
        }
    }

    /// Everything below this LSN has been redone, if all that was handed out is below `position`.
    pub(super) fn done_to(&mut self, position: Lsn) -> Lsn {
        self.lanes.iter_mut().filter_map(Lane::first_open).fold(position, Lsn::min)
    }

    /// Whether something that was handed out has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.has_failed()
    }
}

/// Lets `read` hand out parts to `workers` threads, or to itself if that is one, or if none can be started. Returns what was done to
/// each partition, and by how many.
pub(super) fn run(
    pass: &Pass<'_>,
    workers: usize,
    read: impl FnOnce(&mut FanOut<'_>) -> Result<(), Failure>,
) -> Result<(Vec<Tally>, usize), Failure> {
    let workers = workers.max(1);
    let pages = pass.analysis.dirty_pages();
    let neighbours = (pages / (workers as u64 * LEAST_BUCKETS)).clamp(1, MOST_NEIGHBOURS);
    // Half of the memory is for them, and they are of use only with a batch of some size each.
    let affordable = (collected_bytes(pass) / LEAST_BATCH_BYTES / 2).clamp(1, MOST_BUCKETS);
    let buckets = (pages / neighbours).clamp(1, affordable).div_ceil(workers as u64) as usize;
    let batches = workers * (buckets + if workers > 1 { QUEUED_BATCHES + 2 } else { 2 });
    let batch_bytes = collected_bytes(pass) / batches as u64;
    let batch_bytes = batch_bytes.clamp(LEAST_BATCH_BYTES, MOST_BATCH_BYTES) as usize;
    let finished: Vec<AtomicU64> = (0..workers).map(|_| AtomicU64::new(0)).collect();
    let shared = Shared::new(pass.targets.len(), batches);
    let tallies = thread::scope(|scope| {
        let (mut threads, mut lanes) = (Vec::new(), Vec::new());
        for (number, finished) in finished.iter().enumerate().filter(|_| workers > 1) {
            let (sender, receiver) = bounded(QUEUED_BATCHES);
            let shared = &shared;
            let work = move || {
                let mut worker = Worker::new(pass, shared, finished);
                receiver.into_iter().for_each(|batch| worker.take(batch));
                worker.finish()
            };
            match thread::Builder::new().name(format!("hamal-redo-{number}")).spawn_scoped(scope, work) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    tracing::warn!(%error, started = threads.len(), "a redo thread could not be started");
                    break;
                }
            }
            lanes.push(Lane::new(Hands::Thread(sender), buckets, batch_bytes, finished));
        }
        if lanes.is_empty() {
            let worker = Worker::new(pass, &shared, &finished[0]);
            lanes.push(Lane::new(Hands::Reader(Box::new(worker)), buckets, batch_bytes, &finished[0]));
        }
        let started = lanes.len();
        shared.expect_ends(started);
        let mut fan_out = FanOut { shared: &shared, lanes, buckets, neighbours: neighbours as u32 };
        if let Err(failure) = read(&mut fan_out) {
            shared.fail(failure);
        }
        let mut sum = vec![Tally::default(); pass.targets.len()];
        let mut add = |tallies: Vec<Tally>| {
            sum.iter_mut().zip(tallies).for_each(|(sum, tally)| sum.add(tally));
        };
        for mut lane in fan_out.lanes {
            // Also after a failure: what is before it may fail too (I6 of the pass).
            lane.send_all(&shared);
            if let Hands::Reader(worker) = lane.hands {
                add(worker.finish());
            }
        }
        for thread in threads {
            // A worker catches its panics.
            add(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        (sum, started)
    });
    match shared.into_failure() {
        Some(failure) => Err(failure),
        None => Ok(tallies),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_spread_evenly_over_the_buckets() {
        for count in [2, 3, 7, 256] {
            let mut pages = vec![0_u64; count];
            for partition in 0..16 {
                for page in 0..2_000 {
                    pages[bucket_of(PartitionId(partition), page, count)] += 1;
                }
            }
            let mean = 32_000 / count as u64;
            assert!(pages.iter().all(|n| n.abs_diff(mean) < mean / 4), "{count}: {pages:?}");
        }
        assert!(bucket_of(PartitionId(u32::MAX), u32::MAX, 3) < 3);
    }
}
