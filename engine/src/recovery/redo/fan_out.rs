//! Dealing out: from the reader to those who redo, by page.
//!
//! Neighbouring pages belong to one *bucket*, where their parts are collected, and a bucket to one worker.
//!
//! I1. A page's parts go to one worker, in the order in which they are handed out: a bucket's batches go into one queue.
//! I2. The reader never waits for a worker that has stopped: a worker empties its queue to the end whatever happens, a panic
//!     included, and only leaves out what is behind a failure.
//! I3. Memory is bounded: all batches have [`Size::collected_bytes`] together, or [`LEAST_BATCH_BYTES`] each if that is more, which is so for the
//!     smallest caches only, and one part more each.
//! I4. Threads may be started at any time: what was handed out until then is redone first, and so each page's order is kept.
//! I5. A partition's end travels through all queues, behind its parts, and whoever passes it last notes the time.
//!
//! The reader holds nothing while it waits for room in a queue; a worker holds one page's latch while it waits for a frame, as any
//! thread that fixes a page may.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};

use crossbeam::channel::{Sender, bounded};
use hamal_pager::PartitionId;
use hamal_wal::Lsn;

use super::batch::{Batch, Shared, Worker};
use super::{Failure, Place, Tally, TargetIndex, Work};
use crate::recovery::changes::EncodedPart;

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

/// How much there is to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Threads to redo it with; 1: no others.
    pub(super) workers: usize,
    /// Pages that may be redone, at most.
    pub(super) pages: u64,
    pub(super) cache_bytes: u64,
}

impl Size {
    /// Memory for parts that are not redone yet, bytes.
    fn collected_bytes(self) -> u64 {
        (self.cache_bytes / PART_OF_CACHE).min(MOST_BYTES)
    }

    /// Pages that go to one bucket together.
    fn neighbours(self) -> u64 {
        (self.pages / (self.workers as u64 * LEAST_BUCKETS)).clamp(1, MOST_NEIGHBOURS)
    }

    /// Buckets of each lane, if there are so many.
    fn buckets(self, lanes: usize) -> usize {
        // Half of the memory is for them, and they are of use only with a batch of some size each.
        let affordable = (self.collected_bytes() / LEAST_BATCH_BYTES / 2).clamp(1, MOST_BUCKETS);
        (self.pages / self.neighbours()).clamp(1, affordable).div_ceil(lanes as u64) as usize
    }

    /// Batches that there are at once: those in the buckets and those on their way.
    fn batches(self, lanes: usize) -> usize {
        lanes * (self.buckets(lanes) + if lanes > 1 { QUEUED_BATCHES + 2 } else { 2 })
    }

    /// When a batch is redone, bytes.
    fn batch_bytes(self, lanes: usize) -> usize {
        let share = self.collected_bytes() / self.batches(lanes) as u64;
        share.clamp(LEAST_BATCH_BYTES, MOST_BATCH_BYTES) as usize
    }
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
        // Relaxed: whoever has finished batches of this lane before was this thread.
        let known_finished = finished.load(Ordering::Relaxed);
        Lane { hands, buckets, batch_bytes, sent: VecDeque::new(), known_finished, finished }
    }

    fn part(
        &mut self,
        bucket: usize,
        at: Place,
        target: TargetIndex,
        part: EncodedPart<'_>,
        shared: &Shared,
    ) {
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

/// Hands parts out: to the reader itself, until it starts threads.
pub(super) struct FanOut<'scope, 'env> {
    work: &'env dyn Work,
    shared: &'env Shared,
    size: Size,
    scope: &'scope Scope<'scope, 'env>,
    threads: Vec<ScopedJoinHandle<'scope, Vec<Tally>>>,
    lanes: Vec<Lane<'env>>,
    /// Of one lane.
    buckets: usize,
    /// Pages that go to one bucket together.
    neighbours: u32,
    /// Batches finished: for each thread, and for the reader.
    finished: &'env [AtomicU64],
    /// What the reader itself has done to each partition.
    tallies: Vec<Tally>,
}

/// Which of `count` buckets has the pages with this number, `page / neighbours`.
fn bucket_of(partition: PartitionId, pages: u32, count: usize) -> usize {
    // Fibonacci hashing: the high half of the product depends on all bits.
    let key = (u64::from(partition.0) << 32) | u64::from(pages);
    let hash = key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    ((hash * count as u64) >> 32) as usize
}

impl<'env> FanOut<'_, 'env> {
    /// A part that may be missing from its page. The partition is open and its file large enough.
    pub(super) fn part(&mut self, at: Place, target: TargetIndex, part: EncodedPart<'_>) {
        let bucket =
            bucket_of(part.partition, part.page.0 / self.neighbours, self.lanes.len() * self.buckets);
        self.lanes[bucket / self.buckets].part(bucket % self.buckets, at, target, part, self.shared);
    }

    /// No more parts of this partition will come. What is collected is redone now: somebody may wait for that. For partitions whose end
    /// comes when all threads have been started.
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

    /// Whether other threads redo.
    pub(super) fn has_threads(&self) -> bool {
        !self.threads.is_empty()
    }

    /// Whether something that was handed out has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.has_failed()
    }

    /// What is behind this is left out.
    pub(super) fn fail(&self, failure: Failure) {
        self.shared.fail(failure);
    }

    /// All that is not redone yet is left out.
    pub(super) fn stop(&self) {
        self.shared.stop();
    }

    /// From here on threads redo, as many as there are to be; whoever calls this, if none can be started. Once.
    pub(super) fn start_threads(&mut self) {
        if self.size.workers < 2 {
            return;
        }
        self.finish_lanes();
        let mut senders = Vec::new();
        for (number, finished) in self.finished.iter().enumerate().take(self.size.workers) {
            let (sender, receiver) = bounded(QUEUED_BATCHES);
            let (work, shared) = (self.work, self.shared);
            let redo = move || {
                let mut worker = Worker::new(work, shared, finished);
                receiver.into_iter().for_each(|batch| worker.take(batch));
                worker.finish()
            };
            match thread::Builder::new().name(format!("hamal-redo-{number}")).spawn_scoped(self.scope, redo) {
                Ok(thread) => self.threads.push(thread),
                Err(error) => {
                    tracing::warn!(%error, started = number, "a redo thread could not be started");
                    break;
                }
            }
            senders.push((Hands::Thread(sender), finished));
        }
        if senders.is_empty() {
            senders.push(self.own_hands());
        }
        self.make_lanes(senders);
    }

    fn own_hands(&self) -> (Hands<'env>, &'env AtomicU64) {
        let finished = &self.finished[self.size.workers];
        (Hands::Reader(Box::new(Worker::new(self.work, self.shared, finished))), finished)
    }

    fn make_lanes(&mut self, hands: Vec<(Hands<'env>, &'env AtomicU64)>) {
        let lanes = hands.len();
        self.shared.expect_ends(lanes);
        self.buckets = self.size.buckets(lanes);
        let batch_bytes = self.size.batch_bytes(lanes);
        let lane = |(hands, finished)| Lane::new(hands, self.buckets, batch_bytes, finished);
        self.lanes = hands.into_iter().map(lane).collect();
    }

    /// Sends what is collected. What goes to the reader itself is redone when this returns.
    fn finish_lanes(&mut self) {
        for mut lane in self.lanes.drain(..) {
            // Also after a failure: what is before it may fail too (I6 of the pass).
            lane.send_all(self.shared);
            if let Hands::Reader(worker) = lane.hands {
                add_up(&mut self.tallies, worker.finish());
            }
        }
    }
}

fn add_up(sum: &mut [Tally], tallies: Vec<Tally>) {
    sum.iter_mut().zip(tallies).for_each(|(sum, tally)| sum.add(tally));
}

/// What became of what was handed out.
pub(super) struct Done {
    /// What was done to each partition.
    pub(super) tallies: Vec<Tally>,
    /// By how many threads.
    pub(super) workers: usize,
    /// The first failure in the log's order.
    pub(super) failure: Option<Failure>,
}

/// Lets `read` hand out parts; returns what that returns when everything is redone.
pub(super) fn run<R>(work: &dyn Work, size: Size, read: impl FnOnce(&mut FanOut<'_, '_>) -> R) -> (R, Done) {
    let size = Size { workers: size.workers.max(1), ..size };
    let finished: Vec<AtomicU64> = (0..=size.workers).map(|_| AtomicU64::new(0)).collect();
    let shared = Shared::new(work.targets(), size.batches(size.workers));
    let (result, tallies, workers) = thread::scope(|scope| {
        let mut fan_out = FanOut {
            work,
            shared: &shared,
            size,
            scope,
            threads: Vec::new(),
            lanes: Vec::new(),
            buckets: 0,
            neighbours: size.neighbours() as u32,
            finished: &finished,
            tallies: vec![Tally::default(); work.targets()],
        };
        fan_out.make_lanes(vec![fan_out.own_hands()]);
        let result = read(&mut fan_out);
        fan_out.finish_lanes();
        let FanOut { threads, mut tallies, .. } = fan_out;
        let workers = threads.len().max(1);
        for thread in threads {
            // A worker catches its panics.
            add_up(&mut tallies, thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        (result, tallies, workers)
    });
    (result, Done { tallies, workers, failure: shared.into_failure() })
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
