//! The concurrent runner: one seed, one database, several lives, in each of which several clients work at once.
//!
//! As [`crate::crash`], but the database is worked on by clients on threads of their own, and by one that does its upkeep, which take
//! turns as the seed has it ([`crate::scheduler`]): interleavings, crashes and faults are explored together. While they work, what
//! they ask and are told is written down; when a life is over it is checked against the one order that can explain it, that of the
//! commit records in the log (`history.rs`).
//!
//! I1. The history of every life is explained by the order of its commits, whatever a crash left of them.
//! I2. After a crash the database holds what a prefix of these commits left, with all that were promised to be durable, and all
//!     that the log said were. Which of those without an answer are among them is learnt from that.
//! I3. An error on a healthy disk that a client must not be given, a `Corrupt` on any disk, a word of the monitor, a panic, or
//!     threads that wait for ever fail the run.
//! I4. A run is a function of its seed: same seed, same fingerprint.

mod client;
mod history;
mod life;
mod operation;
mod perform;
mod upkeep;
mod world;

use std::sync::Arc;

use hamal::{Database, ErrorKind};

use self::client::Client;
use self::history::{Commit, settle};
use self::life::{Life, Record};
use self::world::World;
use crate::choice::{Choices, mix};
use crate::crash::{Report, RunOptions};
use crate::machine::{Machine, Verdict};
use crate::plan::Plan;
use crate::scheduler::{Task, Turns};
use crate::workload::{Step, Stop, Trace, verify};

/// Runs one seed. The error says what went wrong.
pub fn run_seed(seed: u64, options: RunOptions) -> Result<Report, String> {
    let mut choices = Choices::seeded(mix(seed));
    let plan = plan(&mut choices, options.page_bytes);
    let lives = choices.between(2, 6);
    let trace = if options.trace { Trace::Print } else { Trace::Off };
    let turns = Arc::new(Turns::new(choices.fresh(), options.trace));
    let preloaded = plan.preload_rows == 0;
    let machine = Machine::new(seed, choices, plan, trace, Some(Arc::clone(&turns)));
    let world = World::default();
    Run { machine, turns, traced: options.trace, world, commits: Vec::new(), required: 0, preloaded }
        .go(lives)
}

/// Mostly few keys, so that clients meet.
fn plan(choices: &mut Choices, page_bytes: Option<usize>) -> Plan {
    let mut plan = Plan::draw(choices, page_bytes);
    if choices.once_in(3) {
        plan.preload_rows = plan.preload_rows.min(1500);
    } else {
        plan.preload_rows = 0;
    }
    let keys = *choices.pick(&[4, 30, 200]);
    plan.key_space = plan.preload_rows.max(keys);
    plan.big_value_bytes = plan.big_value_bytes.min(100_000);
    plan.transactions = choices.between(2, 16);
    plan
}

struct Run {
    machine: Machine,
    turns: Arc<Turns>,
    traced: bool,
    /// What the database holds if all of `commits` are there.
    world: World,
    /// Those of the last life, until the next one tells which are there.
    commits: Vec<Commit>,
    /// All commits up to this LSN are.
    required: u64,
    preloaded: bool,
}

impl Run {
    fn go(mut self, lives: u64) -> Result<Report, String> {
        let machine = &mut self.machine;
        machine.trace.say(|| format!("{:?}", machine.plan));
        let mut lived = 0;
        let mut run = || -> Step {
            while lived < lives {
                lived += 1;
                self.life()?;
            }
            self.last_life()
        };
        run().map_err(|stop| format!("life {lived}: {stop}"))?;
        let counts = self.turns.counts();
        let tally = &mut self.machine.tally;
        tally.pauses += counts.pauses;
        tally.switches += counts.switches;
        tally.wait_pauses += counts.waits;
        let fingerprint = mix(self.machine.sum_up() ^ self.turns.fingerprint());
        Ok(Report { tally: self.machine.tally, fingerprint })
    }

    fn life(&mut self) -> Step {
        self.machine.arm(&[0, 0, 0, 40, 300]);
        let Some(db) = self.machine.open_until_it_works()? else { return Ok(()) };
        let worked = self.work(&db);
        let ended = match worked {
            Ok(()) => self.end_in_peace(db),
            Err(stop) => self.machine.end_by(db, stop),
        };
        self.machine.watched()?;
        ended
    }

    fn work(&mut self, db: &Database) -> Step {
        self.settle(db)?;
        if self.machine.choices.once_in(3) {
            verify(db, &mut self.machine.tally)?;
        }
        let machine = &mut self.machine;
        // Most crashes are to come while clients are at work.
        if machine.choices.once_in(2) {
            machine.crash_within(&[20, 60, 200, 600]);
        }
        let clients = machine.choices.between(2, 6) as usize;
        let mut seeds = || Choices::seeded(machine.choices.fresh());
        let (loader, keeper) = (seeds(), seeds());
        let seeds: Vec<Choices> = (0..clients).map(|_| seeds()).collect();
        let life = Life::new(db, &machine.plan, &machine.disk, &self.turns, self.traced, machine.forgiven);
        let mut loaded = Ok(());
        if !self.preloaded {
            loaded = Client::new(&life, clients + 1, loader).preload();
            self.preloaded = loaded.is_ok();
        }
        let ran = if loaded.is_ok() {
            life.record().busy = clients;
            let life = &life;
            let mut tasks: Vec<Task<'_>> = Vec::new();
            for (me, choices) in seeds.into_iter().enumerate() {
                tasks.push(Box::new(move || Client::new(life, me, choices).run()));
            }
            tasks.push(Box::new(move || upkeep::run(life, clients, keeper)));
            self.turns.run(tasks)
        } else {
            Ok(())
        };
        life.ended(clients + 1, loaded);
        let record = life.into_record();
        self.judge_life(db, record, ran)
    }

    /// Checks what was done in the life, then says how it ended.
    fn judge_life(&mut self, db: &Database, mut record: Record, ran: Result<(), String>) -> Step {
        self.machine.tally += record.tally;
        self.machine.forgiven = record.forgiven;
        ran.map_err(Stop::Wrong)?;
        let fails = |stop: &Stop| matches!(stop, Stop::Wrong(_)) || stop.kind() == Some(ErrorKind::Corrupt);
        if let Some(at) = record.stops.iter().position(fails) {
            return Err(record.stops.swap_remove(at));
        }
        self.commits = record.history.check(&mut self.world).map_err(Stop::Wrong)?;
        let durable = db.stats().log_durable;
        let durable = self.commits.iter().map(|commit| commit.lsn).rfind(|lsn| *lsn < durable);
        self.required = record.required.max(durable.unwrap_or(0));
        let in_commit = |stop: &Stop| stop.kind() == Some(ErrorKind::CommitUnknown);
        self.machine.tally.ends_in_commit += u64::from(record.stops.iter().any(in_commit));
        let mut stops = record.stops.into_iter();
        let Some(first) = stops.next() else { return Ok(()) };
        // Whatever the others met must be of the same cause.
        for stop in stops {
            self.machine.judge(stop)?;
        }
        Err(first)
    }

    /// The database was opened: finds out which commits are there.
    fn settle(&mut self, db: &Database) -> Step {
        let found = self.machine.state(db)?;
        let commits = std::mem::take(&mut self.commits);
        let before = commits.len();
        let survivors = settle(&mut self.world, commits, self.required, &found).map_err(Stop::Wrong)?;
        self.machine.trace.say(|| format!("  of {before} commits: {survivors:?}"));
        self.required = 0;
        let tally = &mut self.machine.tally;
        tally.commits_kept += survivors.kept;
        tally.relaxed_lost += survivors.relaxed_lost;
        tally.sync_lost += survivors.sync_lost;
        Ok(())
    }

    fn end_in_peace(&mut self, db: Database) -> Step {
        self.machine.tally.add_stats(&db.stats());
        match self.machine.choices.below(3) {
            0 => {
                self.machine.trace.say(|| "close".to_owned());
                match db.close() {
                    Ok(()) => self.required = u64::MAX,
                    Err(error) => {
                        let verdict =
                            self.machine.judge(Stop::Engine { doing: "close".to_owned(), error })?;
                        self.machine.carry_on(verdict);
                    }
                }
            }
            1 => {
                self.machine.trace.say(|| "drop the handle".to_owned());
                drop(db);
                if self.machine.disk.sim().is_crashed() {
                    self.machine.carry_on(Verdict::Crashed);
                }
            }
            _ => {
                self.machine.carry_on(Verdict::Crashed);
                drop(db);
            }
        }
        self.machine.end_faults();
        Ok(())
    }

    /// No more faults: the database opens, holds what it must, is sound, closes, and opens again with nothing to do.
    fn last_life(&mut self) -> Step {
        let machine = &mut self.machine;
        machine.end_faults();
        machine.disk.sim().crash_at(u64::MAX);
        if machine.disk.sim().is_crashed() || machine.choices.once_in(2) {
            machine.carry_on(Verdict::Crashed);
        }
        for round in 0..2 {
            let Some(db) = self.machine.open_until_it_works_for_good(round)? else { continue };
            self.settle(&db)?;
            verify(&db, &mut self.machine.tally)?;
            while db.maintain().map_err(|error| Stop::Engine { doing: "maintain".to_owned(), error })? {}
            self.machine.tally.add_stats(&db.stats());
            db.close().map_err(|error| Stop::Engine { doing: "close".to_owned(), error })?;
            self.machine.watched()?;
        }
        Ok(())
    }
}
