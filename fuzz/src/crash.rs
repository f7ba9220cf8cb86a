//! The crash runner: one seed, one database, several lives.
//!
//! A life opens the database (which recovers it), compares it with the model, works on it, and ends: at a crash that strikes at a
//! drawn I/O, opening and recovery included, by a fault that leaves the handle useless, or in peace. What the disk then
//! holds is what the crash mode leaves of it, and the next life begins on that.
//!
//! I1. Whatever is acknowledged as durable is in every later life; what is not is a prefix, no commit ever by half
//!     ([`Model::recovered`]).
//! I2. An error on a healthy disk, a `Corrupt` on any disk, or a word of the monitor fails the run.
//! I3. A run is a function of its seed: same seed, same fingerprint.

use hamal::{Database, ErrorKind};

use crate::choice::Choices;
use crate::machine::Machine;
use crate::model::Model;
use crate::plan::Plan;
use crate::tally::Tally;
use crate::workload::{Session, Step, Stop, Trace, read_state, verify};

/// What a run is asked to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// This page size instead of one drawn by the seed.
    pub page_bytes: Option<usize>,
    /// Whether each operation is told on standard error.
    pub trace: bool,
}

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Counts.
    pub tally: Tally,
    /// A digest of every decision and of the disk: equal for equal seeds.
    pub fingerprint: u64,
}

/// Runs one seed. The error says what went wrong.
pub fn run_seed(seed: u64, options: RunOptions) -> Result<Report, String> {
    let mut choices = Choices::seeded(seed);
    let plan = Plan::draw(&mut choices, options.page_bytes);
    let lives = choices.between(2, 8);
    let trace = if options.trace { Trace::Print } else { Trace::Off };
    Run::new(seed, choices, plan, trace).go(lives)
}

/// Runs the decisions that `bytes` spell out, on a small database.
pub fn run_bytes(bytes: &[u8]) -> Result<Report, String> {
    let mut choices = Choices::from_bytes(bytes);
    let page_bytes = *choices.pick(&[4096, 16384]);
    Run::new(0, choices, Plan::small(page_bytes), Trace::Off).go(u64::MAX)
}

struct Run {
    machine: Machine,
    model: Model,
    preloaded: bool,
}

impl Run {
    fn new(seed: u64, choices: Choices, plan: Plan, trace: Trace) -> Run {
        let preloaded = plan.preload_rows == 0;
        let machine = Machine::new(seed, choices, plan, trace, None);
        Run { machine, model: Model::default(), preloaded }
    }

    fn go(mut self, lives: u64) -> Result<Report, String> {
        let machine = &mut self.machine;
        machine.trace.say(|| format!("{:?}", machine.plan));
        let mut lived = 0;
        let mut run = || -> Step {
            while lived < lives && !(lived > 0 && self.machine.choices.exhausted()) {
                lived += 1;
                self.life()?;
            }
            self.last_life()
        };
        run().map_err(|stop| format!("life {lived}: {stop}"))?;
        let fingerprint = self.machine.sum_up();
        Ok(Report { tally: self.machine.tally, fingerprint })
    }

    fn life(&mut self) -> Step {
        self.machine.arm(&[0, 40, 40, 300, 300, 2000, 8000]);
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
        let found = self.machine.state(db)?;
        let before = self.model.pending() as u64;
        let outcome = self.model.recovered(found).map_err(Stop::Wrong)?;
        self.machine.trace.say(|| format!("  of {before} pending commits: {outcome:?}"));
        let in_doubt = outcome.in_doubt;
        self.machine.tally.in_doubt_kept += u64::from(in_doubt == Some(true));
        self.machine.tally.in_doubt_lost += u64::from(in_doubt == Some(false));
        self.machine.tally.relaxed_kept += outcome.kept - u64::from(in_doubt == Some(true));
        self.machine.tally.relaxed_lost += outcome.lost - u64::from(in_doubt == Some(false));
        if self.machine.choices.once_in(3) {
            verify(db, &mut self.machine.tally)?;
        }
        if !self.preloaded {
            self.session(db).preload()?;
            self.preloaded = true;
        }
        for _ in 0..self.machine.plan.transactions {
            if self.machine.choices.exhausted() {
                break;
            }
            let step = self.session(db).step();
            self.machine.watched()?;
            match step {
                Err(stop) if stop.kind() == Some(ErrorKind::NoSpace) => self.full_disk(db, stop)?,
                other => other?,
            }
        }
        Ok(())
    }

    /// Disk full: what was refused had no effect, reads work, and so does everything once there is room (F9).
    fn full_disk(&mut self, db: &Database, stop: Stop) -> Step {
        self.machine.trace.say(|| format!("  {stop}"));
        if self.machine.disk.sim().is_crashed() || !self.machine.struck() {
            return Err(stop);
        }
        self.session(db).compare()?;
        self.machine.end_faults();
        self.machine.tally.faults += 1;
        self.machine.trace.say(|| "there is room again".to_owned());
        Ok(())
    }

    fn session<'r>(&'r mut self, db: &'r Database) -> Session<'r> {
        Session {
            db,
            model: &mut self.model,
            plan: &self.machine.plan,
            choices: &mut self.machine.choices,
            tally: &mut self.machine.tally,
            trace: &mut self.machine.trace,
        }
    }

    fn end_in_peace(&mut self, db: Database) -> Step {
        self.machine.tally.add_stats(&db.stats());
        match self.machine.choices.below(4) {
            0 => {
                self.machine.trace.say(|| "close".to_owned());
                match db.close() {
                    Ok(()) => self.model.all_durable(),
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
                    self.machine.crash();
                }
            }
            _ => {
                // In the middle of a transaction, whose changes may have been written back.
                let tx = db.begin();
                if let Ok(tx) = &tx {
                    let _ = self.session(&db).scribble(tx);
                }
                self.model.rollback();
                self.machine.crash();
                drop(tx);
            }
        }
        self.machine.end_faults();
        Ok(())
    }

    /// No more faults: the database opens, holds what it must, is sound, closes, and opens again with nothing to do.
    fn last_life(&mut self) -> Step {
        self.machine.end_faults();
        self.machine.disk.sim().crash_at(u64::MAX);
        if self.machine.disk.sim().is_crashed() || self.machine.choices.once_in(2) {
            self.machine.crash();
        }
        for round in 0..2 {
            let Some(db) = self.machine.open_until_it_works_for_good(round)? else { continue };
            let found = read_state(&db)?;
            self.model.recovered(found).map_err(Stop::Wrong)?;
            verify(&db, &mut self.machine.tally)?;
            self.session(&db).maintain()?;
            self.machine.tally.add_stats(&db.stats());
            db.close().map_err(|error| Stop::Engine { doing: "close".to_owned(), error })?;
            self.machine.watched()?;
        }
        Ok(())
    }
}
