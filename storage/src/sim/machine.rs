//! The simulated machine: one disk, and everything that decides what its calls do.
//!
//! All state is behind one lock, so calls are atomic and have an order; observers are called under it.
//!
//! I1. A call counts as an I/O before anything else is decided about it, failing calls included.
//! I2. Once the machine has stopped no call has an effect any more.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::clock::Clock;
use super::content::BLOCK_BYTES;
use super::crash::{CrashMode, Plan};
use super::fault::{FaultKind, OPERATIONS, Operation, Schedule};
use super::fingerprint::Fingerprint;
use super::namespace::{InodeId, Namespace};
use super::observer::Observer;
use super::rng::Rng;
use crate::Scheduler;

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) state: Mutex<State>,
    pub(super) scheduler: OnceLock<Arc<dyn Scheduler>>,
}

/// What becomes of a call that would do something.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    Proceed,
    Fault(FaultKind),
    /// The machine stops during this call.
    Stop,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) names: Namespace,
    /// Numbers every change; orders versions, lengths and names among each other.
    sequence: u64,
    pub(super) io_count: u64,
    pub(super) operation_counts: [u64; OPERATIONS],
    pub(super) crash_at: Option<u64>,
    pub(super) stopped: bool,
    pub(super) faults: Schedule,
    pub(super) capacity_bytes: Option<u64>,
    pub(super) locked: BTreeSet<InodeId>,
    pub(super) observer: Option<Arc<dyn Observer>>,
    /// Decides what faults and crashes do in detail.
    pub(super) chance: Rng,
    /// What `random_u64` draws from.
    pub(super) random: Rng,
    pub(super) clock: Clock,
}

/// The error of every call once the machine has stopped.
pub(super) fn crashed() -> io::Error {
    io::Error::other(super::SIMULATED_CRASH)
}

impl Machine {
    pub(super) fn new(seed: u64) -> Machine {
        let mut rng = Rng::new(seed);
        let clock = Clock::new(rng.fork());
        Machine {
            state: Mutex::new(State::new(Namespace::new(), clock, &mut rng)),
            scheduler: OnceLock::new(),
        }
    }

    /// The machine that comes up after this one stops here and now.
    pub(super) fn restart(&self, mode: CrashMode, seed: u64) -> Machine {
        let mut rng = Rng::new(seed);
        let state = self.state.lock();
        let names = match mode.decide(&mut rng) {
            CrashMode::Kill => state.names.after_kill(),
            mode => {
                let plan = Plan::choose(mode, state.sequence, &mut rng);
                state.names.after_power_cut(&plan, &mut rng)
            }
        };
        let clock = state.clock.restart(rng.fork());
        let mut next = State::new(names, clock, &mut rng);
        next.sequence = state.sequence;
        next.capacity_bytes = state.capacity_bytes;
        Machine { state: Mutex::new(next), scheduler: OnceLock::new() }
    }
}

impl State {
    fn new(names: Namespace, clock: Clock, rng: &mut Rng) -> State {
        State {
            names,
            sequence: 0,
            io_count: 0,
            operation_counts: [0; OPERATIONS],
            crash_at: None,
            stopped: false,
            faults: Schedule::default(),
            capacity_bytes: None,
            locked: BTreeSet::new(),
            observer: None,
            chance: rng.fork(),
            random: rng.fork(),
            clock,
        }
    }

    /// Counts a call and decides what becomes of it.
    pub(super) fn begin(&mut self, operation: Operation, names: &[&str]) -> io::Result<Verdict> {
        self.check_running()?;
        self.io_count += 1;
        self.operation_counts[operation as usize] += 1;
        if self.crash_at.is_some_and(|number| self.io_count >= number) {
            self.stopped = true;
            return Ok(Verdict::Stop);
        }
        Ok(self.faults.strike(self.io_count, operation, names).map_or(Verdict::Proceed, Verdict::Fault))
    }

    pub(super) fn check_running(&self) -> io::Result<()> {
        if self.stopped { Err(crashed()) } else { Ok(()) }
    }

    /// The number of the next change.
    pub(super) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Counts and decides a call that has its effect either whole or not at all. When the machine stops during it, the
    /// effect has happened or not, by chance.
    pub(super) fn whole<T>(
        &mut self,
        operation: Operation,
        names: &[&str],
        effect: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        match self.begin(operation, names)? {
            Verdict::Proceed => effect(self),
            Verdict::Fault(kind) => match kind.error() {
                Some(error) => Err(error),
                None => effect(self),
            },
            Verdict::Stop => {
                if self.chance.chance(1, 2) {
                    let _ = effect(self);
                }
                Err(crashed())
            }
        }
    }

    pub(super) fn observe(&self, tell: impl FnOnce(&dyn Observer)) {
        if let Some(observer) = &self.observer {
            tell(&**observer);
        }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.names.allocated_blocks() * BLOCK_BYTES as u64
    }

    /// How many blocks can still be taken.
    pub(super) fn free_blocks(&self) -> u64 {
        match self.capacity_bytes {
            Some(capacity) => capacity.saturating_sub(self.used_bytes()) / BLOCK_BYTES as u64,
            None => u64::MAX,
        }
    }

    pub(super) fn fingerprint(&self) -> u64 {
        let mut summary = Fingerprint::new();
        self.names.fingerprint(&mut summary);
        summary.word(self.sequence);
        summary.word(self.io_count);
        summary.word(u64::from(self.stopped));
        for rng in [&self.chance, &self.random] {
            rng.state().into_iter().for_each(|word| summary.word(word));
        }
        self.clock.fingerprint(&mut summary);
        summary.finish()
    }
}
