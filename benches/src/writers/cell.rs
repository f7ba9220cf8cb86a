//! One measurement: some threads, one database, a fixed time.
//!
//! I1. A transaction counts towards the rate if it commits inside the window, and its latency counts if it began there, however
//!     long it then took: otherwise the slowest ones would drop out at the end.
//! I2. Latency runs from the first attempt to the commit, lost attempts included.
//! I3. A transaction that keeps losing when the window closes is given up; its time so far enters the histogram as a lower
//!     bound.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::workload::{Job, Ledger, Script};
use super::{Failure, Session, Store};
use crate::peer::Outcome;

/// How long to run.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Before anything counts.
    pub warm_up: Duration,
    /// While it counts.
    pub measured: Duration,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Length of the window.
    pub elapsed: Duration,
    /// Commits in the window.
    pub commits: u64,
    /// Attempts in the window that lost and were run again.
    pub conflicts: u64,
    /// Transactions given up when the window closed.
    pub abandoned: u64,
    /// Nanoseconds from first attempt to commit.
    pub latency_ns: Histogram<u64>,
    /// Log flushes per commit, where the engine tells.
    pub flushes_per_commit: Option<f64>,
    /// Everything that was committed, outside the window too.
    pub ledger: Ledger,
}

impl Sample {
    /// Commits per second.
    #[expect(clippy::cast_precision_loss, reason = "a measurement")]
    pub fn commits_per_second(&self) -> f64 {
        self.commits as f64 / self.elapsed.as_secs_f64()
    }
}

/// An empty histogram for nanoseconds up to two minutes, three digits.
pub fn latency_histogram() -> Outcome<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 120_000_000_000, 3)?)
}

/// Nanoseconds since `began`.
pub fn ns_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

const WARM_UP: u8 = 0;
const MEASURED: u8 = 1;
const OVER: u8 = 2;

/// Where the clock stands, for all threads. Relaxed: nothing but counting depends on it.
#[derive(Debug)]
struct Phase(AtomicU8);

impl Phase {
    fn is(&self, phase: u8) -> bool {
        self.0.load(Ordering::Relaxed) == phase
    }

    fn set(&self, phase: u8) {
        self.0.store(phase, Ordering::Relaxed);
    }
}

/// What one thread counted.
#[derive(Debug)]
struct Tally {
    commits: u64,
    conflicts: u64,
    abandoned: u64,
    latency_ns: Histogram<u64>,
    ledger: Ledger,
}

fn write_until_over(session: &mut dyn Session, mut script: Script, phase: &Phase) -> Outcome<Tally> {
    let mut tally = Tally {
        commits: 0,
        conflicts: 0,
        abandoned: 0,
        latency_ns: latency_histogram()?,
        ledger: Ledger::default(),
    };
    while !phase.is(OVER) {
        let action = script.next_action();
        let counted = phase.is(MEASURED);
        let began = Instant::now();
        loop {
            match session.run(&mut |tx| action.run(tx)) {
                Ok(()) => {
                    tally.commits += u64::from(phase.is(MEASURED));
                    tally.ledger.add(action.entry());
                    break;
                }
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::Conflict) if phase.is(OVER) => {
                    tally.abandoned += u64::from(counted);
                    break;
                }
                Err(Failure::Conflict) => tally.conflicts += u64::from(phase.is(MEASURED)),
            }
        }
        if counted {
            tally.latency_ns.saturating_record(ns_since(began));
        }
    }
    Ok(tally)
}

/// Runs `job` in its `round` on a database for the time of `window`.
pub fn measure(store: &dyn Store, job: Job, round: u64, window: Window) -> Outcome<Sample> {
    let phase = &Phase(AtomicU8::new(WARM_UP));
    let start = &Barrier::new(usize::try_from(job.threads())? + 1);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..job.threads())
            .map(|thread| {
                scope.spawn(move || {
                    let session = store.session();
                    start.wait();
                    write_until_over(&mut *session?, Script::new(job, round, thread), phase)
                })
            })
            .collect();
        start.wait();
        thread::sleep(window.warm_up);
        let log_before = store.log_counters();
        let began = Instant::now();
        phase.set(MEASURED);
        thread::sleep(window.measured);
        phase.set(OVER);
        let elapsed = began.elapsed();
        let log_after = store.log_counters();

        let mut sample = Sample {
            elapsed,
            commits: 0,
            conflicts: 0,
            abandoned: 0,
            latency_ns: latency_histogram()?,
            flushes_per_commit: log_before.zip(log_after).map(|(before, after)| {
                #[expect(clippy::cast_precision_loss, reason = "a measurement")]
                let per = |flushes: u64, commits: u64| flushes as f64 / commits.max(1) as f64;
                per(after.flushes - before.flushes, after.commits - before.commits)
            }),
            ledger: Ledger::default(),
        };
        for writer in writers {
            let tally = writer.join().map_err(|_| "a writer panicked")??;
            sample.commits += tally.commits;
            sample.conflicts += tally.conflicts;
            sample.abandoned += tally.abandoned;
            sample.latency_ns.add(&tally.latency_ns)?;
            sample.ledger.add(tally.ledger);
        }
        Ok(sample)
    })
}
