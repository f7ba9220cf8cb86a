//! Rounds of clients at once: random transactions of several threads on one database, every answer recorded, and the history
//! checked ([`crate::checker`]).
//!
//! A round has one new database with few keys. Its clients share a budget of transactions. With [`Config::crashes`] the simulated
//! machine stops at a drawn I/O, all clients come to an end, what the disk still holds is opened again, and they go on with
//! the same history; then all commits are `Sync`, so that what is acknowledged, or seen by a snapshot, must stay.
//!
//! I1. A commit is acknowledged only by `Ok`. `Conflict` is a refusal. Any other error of a commit is an unknown outcome; any
//!     error before it is an abort.
//! I2. An error other than `Conflict` and `LogFull` is right only on a machine that has stopped.
//! I3. Decisions are a function of the seed; how the threads interleave is not.

mod client;
mod content;
mod script;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread;

use hamal::{Database, Durability, OpenMode, Options};
use hamal_storage::sim::{CrashMode, SimStorage};

use crate::checker::{History, Level, Outcome, Rules, Summary, Transaction, check};
use crate::choice::{Choices, mix};
use crate::flips::panic_text;
use client::{Client, Moments};
use content::{Layout, TABLES};

/// What levels the transactions of a campaign have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Levels {
    /// All are serializable.
    Serializable,
    /// All have snapshot isolation.
    Snapshot,
    /// Both.
    Mixed,
}

/// What a round is asked to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its seed.
    pub seed: u64,
    /// Transactions, over all clients.
    pub transactions: u64,
    /// Clients.
    pub threads: u32,
    /// Keys.
    pub keys: u32,
    /// Whether the machine stops now and then.
    pub crashes: bool,
    /// Isolation levels.
    pub levels: Levels,
    /// Whether commits have any durability; otherwise all are `Sync`.
    pub mixed_durability: bool,
    /// Whether the database is in a temporary directory instead of on the simulated disk.
    pub on_disk: bool,
    /// What is asked of the history.
    pub rules: Rules,
}

/// What a round did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcomes {
    /// Transactions that were acknowledged, snapshots included.
    pub committed: u64,
    /// Those rolled back on purpose, or by a crash.
    pub aborted: u64,
    /// Those refused.
    pub conflicts: u64,
    /// Those of unknown outcome.
    pub unknown: u64,
    /// Transactions that met a full log.
    pub log_full: u64,
    /// Crashes.
    pub crashes: u64,
    /// Those inside a recovery.
    pub crashes_in_recovery: u64,
    /// Verifications of the database.
    pub verifications: u64,
    /// Pages evicted.
    pub evictions: u64,
    /// Nanoseconds of running.
    pub run_nanos: u64,
    /// Nanoseconds of checking.
    pub check_nanos: u64,
}

impl std::ops::AddAssign for Outcomes {
    fn add_assign(&mut self, other: Outcomes) {
        self.committed += other.committed;
        self.aborted += other.aborted;
        self.conflicts += other.conflicts;
        self.unknown += other.unknown;
        self.log_full += other.log_full;
        self.crashes += other.crashes;
        self.crashes_in_recovery += other.crashes_in_recovery;
        self.verifications += other.verifications;
        self.evictions += other.evictions;
        self.run_nanos += other.run_nanos;
        self.check_nanos += other.check_nanos;
    }
}

/// What is wrong with a round.
#[derive(Debug)]
pub struct Failure {
    /// In words.
    pub what: String,
    /// What was recorded.
    pub history: History,
    /// Whether it is a history that nothing explains; otherwise an error that may not be.
    pub is_violation: bool,
}

/// Runs a round and checks its history. `progress` counts finished transactions.
pub fn run_round(config: &Config, progress: &AtomicU64) -> (Outcomes, Result<Summary, Box<Failure>>) {
    let started = std::time::Instant::now();
    let mut round = Round::new(config, progress);
    let ran = round.run();
    let mut outcomes = round.outcomes;
    outcomes.run_nanos = started.elapsed().as_nanos() as u64;
    let history = round.history;
    if let Err(what) = ran {
        return (outcomes, Err(Box::new(Failure { what, history, is_violation: false })));
    }
    let started = std::time::Instant::now();
    let result = check(&history, config.rules)
        .map_err(|violation| Box::new(Failure { what: violation.to_string(), history, is_violation: true }));
    outcomes.check_nanos = started.elapsed().as_nanos() as u64;
    (outcomes, result)
}

/// What the clients share.
#[derive(Debug)]
struct Shared<'c> {
    config: &'c Config,
    layout: Layout,
    ticks: AtomicU64,
    elements: AtomicU64,
    /// Transactions left to begin.
    left: AtomicI64,
    /// Somebody has met what may not be.
    failed: AtomicBool,
    progress: &'c AtomicU64,
}

/// The disk of a round.
enum Place {
    Simulated(SimStorage),
    Directory(tempfile::TempDir),
}

struct Round<'c> {
    config: &'c Config,
    choices: Choices,
    shared: Shared<'c>,
    history: History,
    outcomes: Outcomes,
}

impl<'c> Round<'c> {
    fn new(config: &'c Config, progress: &'c AtomicU64) -> Round<'c> {
        let mut choices = Choices::seeded(config.seed);
        let layout = Layout::draw(&mut choices, config.keys);
        let shared = Shared {
            config,
            ticks: AtomicU64::new(1),
            elements: AtomicU64::new(1),
            left: AtomicI64::new(config.transactions.cast_signed()),
            failed: AtomicBool::new(false),
            progress,
            layout,
        };
        let keys = (0..config.keys).map(Layout::kind).collect();
        let history = History { keys, ..History::default() };
        Round { config, choices, shared, history, outcomes: Outcomes::default() }
    }

    fn run(&mut self) -> Result<(), String> {
        let mut place = if self.config.on_disk {
            Place::Directory(tempfile::tempdir().map_err(|e| format!("temporary directory: {e}"))?)
        } else {
            Place::Simulated(SimStorage::new(mix(self.config.seed)))
        };
        let mut db = Self::open(&place, OpenMode::Create)?;
        self.shared.layout.fill(&db).map_err(|e| format!("filling the tables: {e}"))?;
        loop {
            self.arm(&place);
            let stopped = self.life(&db, &place)?;
            self.outcomes.evictions += db.stats().evictions;
            if stopped {
                db = self.recover(db, &mut place)?;
            }
            if self.shared.left.load(Ordering::Relaxed) <= 0 {
                break;
            }
        }
        self.end(db, &place)
    }

    /// Clients until the budget is used up, or the machine stops. Returns whether it has stopped.
    fn life(&mut self, db: &Database, place: &Place) -> Result<bool, String> {
        let sim = match place {
            Place::Simulated(sim) => Some(sim),
            Place::Directory(_) => None,
        };
        let shared = &self.shared;
        let clients: Vec<Client<'_>> = (0..self.config.threads)
            .map(|session| Client::new(shared, db, sim, session, Choices::seeded(self.choices.fresh())))
            .collect();
        let (mut failure, mut ended) = (None, Vec::new());
        thread::scope(|scope| {
            let threads: Vec<_> = clients.into_iter().map(|client| scope.spawn(|| client.run())).collect();
            for handle in threads {
                match handle.join() {
                    Ok(client) => ended.push(client),
                    Err(panic) => failure = Some(format!("a client panicked: {}", panic_text(&*panic))),
                }
            }
        });
        for client in ended {
            self.outcomes += client.outcomes;
            failure = failure.or(client.failure);
            self.history.transactions.extend(client.transactions);
        }
        if let Some(what) = failure {
            return Err(what);
        }
        // The database's own threads must not meet what the clients did not.
        sim.inspect(|sim| sim.crash_at(u64::MAX));
        Ok(sim.is_some_and(SimStorage::is_crashed))
    }

    /// Schedules the machine's stop.
    fn arm(&mut self, place: &Place) {
        if let Place::Simulated(sim) = place
            && self.config.crashes
            && self.shared.left.load(Ordering::Relaxed) > 0
        {
            let within = *self.choices.pick(&[50, 400, 2000, 2000]);
            sim.crash_at(sim.io_count() + 1 + self.choices.below(within));
        }
    }

    /// After the machine has stopped: what comes up, through crashes of recoveries too.
    fn recover(&mut self, db: Database, place: &mut Place) -> Result<Database, String> {
        let mut old = Some(db);
        for attempt in 0.. {
            self.outcomes.crashes += 1;
            if let Place::Simulated(sim) = place {
                let mode = *self.choices.pick(&[CrashMode::Any, CrashMode::Subset, CrashMode::Kill]);
                *sim = sim.crash(mode, self.choices.fresh());
                if attempt < 3 && self.choices.once_in(3) {
                    sim.crash_at(1 + self.choices.skewed(200));
                }
            }
            // Only now, so that nothing it does can reach the new disk.
            drop(old.take());
            match Self::open(place, OpenMode::Open) {
                Ok(db) => {
                    if let Place::Simulated(sim) = place {
                        sim.crash_at(u64::MAX);
                        if sim.is_crashed() {
                            old = Some(db);
                            continue;
                        }
                    }
                    self.settle();
                    self.read_all(&db)?;
                    return Ok(db);
                }
                Err(what) => match place {
                    Place::Simulated(sim) if sim.is_crashed() => self.outcomes.crashes_in_recovery += 1,
                    _ => return Err(what),
                },
            }
        }
        Err("no recovery came to an end".to_owned())
    }

    /// From now on, what took effect of the unknown outcomes is there for everybody.
    fn settle(&mut self) {
        let now = self.shared.tick();
        for transaction in &mut self.history.transactions {
            if transaction.outcome == Outcome::Unknown && transaction.end == u64::MAX {
                transaction.end = now;
            }
        }
    }

    /// Reads everything there is, as one more client does.
    fn read_all(&mut self, db: &Database) -> Result<(), String> {
        let begin = self.shared.tick();
        let ops = self.shared.layout.read_all(db)?;
        let end = self.shared.tick();
        let session = self.config.threads;
        let (level, outcome) = (Level::ReadOnly, Outcome::Committed);
        self.history.transactions.push(Transaction { session, level, begin, end, outcome, ops });
        Ok(())
    }

    fn end(&mut self, db: Database, place: &Place) -> Result<(), String> {
        self.settle();
        if self.choices.once_in(4) {
            self.verify(&db)?;
        }
        self.read_all(&db)?;
        db.close().map_err(|e| format!("close: {e}"))?;
        let db = Self::open(place, OpenMode::Open)?;
        self.read_all(&db)?;
        let last = self.history.transactions.last().map_or(Vec::new(), |last| last.ops.clone());
        self.history.final_state = vec![Vec::new(); self.config.keys as usize];
        for op in last {
            if let crate::checker::Op::Read { key, found } = op {
                self.history.final_state[key as usize] = found;
            }
        }
        db.close().map_err(|e| format!("close: {e}"))
    }

    fn verify(&mut self, db: &Database) -> Result<(), String> {
        let report = db.verify(&mut |_| ControlFlow::Continue(())).map_err(|e| format!("verify: {e}"))?;
        self.outcomes.verifications += 1;
        match report.findings.first() {
            None => Ok(()),
            Some(first) => Err(format!("verify has {} findings: {first:?}", report.findings.len())),
        }
    }

    fn open(place: &Place, mode: OpenMode) -> Result<Database, String> {
        let options = Options::new()
            .mode(mode)
            .page_bytes(4096)
            .cache_bytes(1 << 20)
            .log_buffer_bytes(64 << 10)
            .log_segment_bytes(256 << 10)
            .max_log_bytes(64 << 20)
            .checkpoint_log_bytes(512 << 10)
            .durability(Durability::Sync);
        let opened = match place {
            Place::Simulated(sim) => options.open_on(Arc::new(sim.clone())),
            Place::Directory(directory) => options.open(Path::join(directory.path(), "db")),
        };
        opened.map_err(|e| format!("open: {:?}: {e}", e.kind()))
    }
}

impl Moments for Shared<'_> {
    fn tick(&self) -> u64 {
        // Sequentially consistent, as real time is: a later tick is later for everybody.
        self.ticks.fetch_add(1, Ordering::SeqCst)
    }
}

const _: () = assert!(TABLES.len() == 2, "key ranges are halved");
