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

use hamal::{Database, ErrorKind, OpenMode};
use hamal_storage::sim::{CrashMode, Fault, FaultKind, Repeat, When};

use crate::choice::{Choices, mix};
use crate::disk::Disk;
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
    choices: Choices,
    plan: Plan,
    disk: Disk,
    model: Model,
    tally: Tally,
    trace: Trace,
    /// An open has succeeded: from now on there is a database, whatever happens.
    created: bool,
    preloaded: bool,
    /// Faults of this machine that have been dealt with.
    forgiven: usize,
}

/// How a life may end.
enum Verdict {
    /// The machine is dead.
    Crashed,
    /// The handle is of no more use, or may not be; the disk goes on.
    Failed,
}

impl Run {
    fn new(seed: u64, choices: Choices, plan: Plan, trace: Trace) -> Run {
        let disk = Disk::new(mix(seed), plan.page_bytes);
        let preloaded = plan.preload_rows == 0;
        let (model, tally) = (Model::default(), Tally::default());
        Run { choices, plan, disk, model, tally, trace, created: false, preloaded, forgiven: 0 }
    }

    fn go(mut self, lives: u64) -> Result<Report, String> {
        self.trace.say(|| format!("{:?}", self.plan));
        let mut lived = 0;
        let mut run = || -> Step {
            while lived < lives && !(lived > 0 && self.choices.exhausted()) {
                lived += 1;
                self.life()?;
            }
            self.last_life()
        };
        run().map_err(|stop| format!("life {lived}: {stop}"))?;
        self.tally.runs = 1;
        self.tally.pages_monitored = self.disk.monitor().pages();
        self.tally.log_wraps = self.disk.monitor().recycled();
        let fingerprint = mix(self.choices.fingerprint() ^ self.disk.sim().fingerprint());
        Ok(Report { tally: self.tally, fingerprint })
    }

    fn mode(&self) -> OpenMode {
        if self.created { OpenMode::Open } else { OpenMode::OpenOrCreate }
    }

    fn life(&mut self) -> Step {
        self.arm();
        let Some(db) = self.open_until_it_works()? else { return Ok(()) };
        let worked = self.work(&db);
        let ended = match worked {
            Ok(()) => self.end_in_peace(db),
            Err(stop) => self.end_by(db, stop),
        };
        self.watched()?;
        ended
    }

    /// Schedules the crash of this life, and sometimes lesser faults.
    fn arm(&mut self) {
        let within = *self.choices.pick(&[0, 40, 40, 300, 300, 2000, 8000]);
        if within > 0 {
            let io = self.disk.sim().io_count() + 1 + self.choices.below(within);
            self.trace.say(|| format!("crash at I/O {io}"));
            self.disk.sim().crash_at(io);
        }
        if self.choices.once_in(4) {
            let kinds = [
                FaultKind::Eio,
                FaultKind::Enospc,
                FaultKind::Enospc,
                FaultKind::Short,
                FaultKind::Interrupted,
            ];
            let kind = *self.choices.pick(&kinds);
            let lasting = matches!(kind, FaultKind::Enospc | FaultKind::Short) && self.choices.once_in(2);
            let repeat = if lasting { Repeat::Forever } else { Repeat::Once };
            let within = *self.choices.pick(&[100, 1000, 4000]);
            let io = self.disk.sim().io_count() + 1 + self.choices.below(within);
            self.trace.say(|| format!("{kind:?} {repeat:?} at I/O {io}"));
            self.disk.sim().inject(Fault::new(kind, When::Io(io), repeat));
        }
    }

    /// Opens the database, through as many crashes inside opening as are drawn. `None`: the life ended there.
    fn open_until_it_works(&mut self) -> Step<Option<Database>> {
        for attempt in 0.. {
            let mode = self.mode();
            let ios = self.disk.sim().io_count();
            self.trace.say(|| format!("open ({mode:?}) at I/O {ios}"));
            match self.disk.open(&self.plan, mode) {
                Ok(db) => {
                    self.created = true;
                    self.tally.add_recovery(db.recovery_report());
                    self.trace.say(|| format!("  {:?}", db.recovery_report()));
                    return Ok(Some(db));
                }
                Err(stop) => {
                    self.trace.say(|| format!("  {stop}"));
                    let verdict = self.judge(stop)?;
                    self.tally.crashes_in_recovery += u64::from(matches!(verdict, Verdict::Crashed));
                    self.carry_on(&verdict);
                    self.watched()?;
                    // Again and again, the later the less likely.
                    if attempt < 6 && self.choices.once_in(2) {
                        let io = self.disk.sim().io_count() + 1 + self.choices.skewed(200);
                        self.trace.say(|| format!("crash at I/O {io}, inside this opening if it can"));
                        self.disk.sim().crash_at(io);
                    }
                }
            }
        }
        Ok(None)
    }

    fn work(&mut self, db: &Database) -> Step {
        let found = read_state(db)?;
        let before = self.model.pending() as u64;
        let outcome = self.model.recovered(found).map_err(Stop::Wrong)?;
        self.trace.say(|| format!("  of {before} pending commits: {outcome:?}"));
        let in_doubt = outcome.in_doubt;
        self.tally.in_doubt_kept += u64::from(in_doubt == Some(true));
        self.tally.in_doubt_lost += u64::from(in_doubt == Some(false));
        self.tally.relaxed_kept += outcome.kept - u64::from(in_doubt == Some(true));
        self.tally.relaxed_lost += outcome.lost - u64::from(in_doubt == Some(false));
        if self.choices.once_in(3) {
            verify(db, &mut self.tally)?;
        }
        if !self.preloaded {
            self.session(db).preload()?;
            self.preloaded = true;
        }
        for _ in 0..self.plan.transactions {
            if self.choices.exhausted() {
                break;
            }
            let step = self.session(db).step();
            self.watched()?;
            match step {
                Err(stop) if stop.kind() == Some(ErrorKind::NoSpace) => self.full_disk(db, stop)?,
                other => other?,
            }
        }
        Ok(())
    }

    /// Disk full: what was refused had no effect, reads work, and so does everything once there is room (F9).
    fn full_disk(&mut self, db: &Database, stop: Stop) -> Step {
        self.trace.say(|| format!("  {stop}"));
        if self.disk.sim().is_crashed() || !self.struck() {
            return Err(stop);
        }
        self.session(db).compare()?;
        self.end_faults();
        self.tally.faults += 1;
        self.trace.say(|| "there is room again".to_owned());
        Ok(())
    }

    fn session<'r>(&'r mut self, db: &'r Database) -> Session<'r> {
        Session {
            db,
            model: &mut self.model,
            plan: &self.plan,
            choices: &mut self.choices,
            tally: &mut self.tally,
            trace: &mut self.trace,
        }
    }

    /// Whether this error may be, given what was done to the disk.
    fn judge(&mut self, stop: Stop) -> Step<Verdict> {
        let corrupt = stop.kind() == Some(ErrorKind::Corrupt);
        let wrong = matches!(stop, Stop::Wrong(_));
        let struck = self.struck() || (self.forgiven > 0 && stop.kind() == Some(ErrorKind::Poisoned));
        match () {
            () if corrupt || wrong => Err(stop),
            () if self.disk.sim().is_crashed() => Ok(Verdict::Crashed),
            () if struck => Ok(Verdict::Failed),
            () => Err(stop),
        }
    }

    /// Whether a fault that is more than a nuisance has struck and has not been dealt with.
    fn struck(&self) -> bool {
        let fired = self.disk.sim().fired();
        fired.iter().skip(self.forgiven).any(|fired| matches!(fired.kind, FaultKind::Eio | FaultKind::Enospc))
    }

    /// After a crash or failure: what the disk is for the next life.
    fn carry_on(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Crashed => self.crash(),
            Verdict::Failed if self.choices.once_in(2) => self.crash(),
            Verdict::Failed => {}
        }
        self.tally.faults += u64::from(matches!(verdict, Verdict::Failed));
        self.end_faults();
    }

    fn end_faults(&mut self) {
        self.disk.sim().clear_faults();
        self.forgiven = self.disk.sim().fired().len();
    }

    fn crash(&mut self) {
        let modes = [CrashMode::Any, CrashMode::Any, CrashMode::Subset, CrashMode::Kill];
        let mode = *self.choices.pick(&modes);
        self.tally.ios += self.disk.sim().io_count();
        self.tally.crashes += 1;
        self.tally.kills += u64::from(mode == CrashMode::Kill);
        self.trace.say(|| format!("crash ({mode:?})"));
        let seed = self.choices.fresh();
        self.disk.crash(mode, seed);
    }

    fn end_by(&mut self, db: Database, stop: Stop) -> Step {
        self.trace.say(|| format!("life ends: {stop}"));
        self.tally.add_stats(&db.stats());
        let verdict = self.judge(stop)?;
        // A process that dies leaves no chance to its destructors; one that gives up on a handle drops it.
        match verdict {
            Verdict::Crashed => {
                self.carry_on(&verdict);
                drop(db);
            }
            Verdict::Failed => {
                drop(db);
                self.carry_on(&verdict);
            }
        }
        Ok(())
    }

    fn end_in_peace(&mut self, db: Database) -> Step {
        self.tally.add_stats(&db.stats());
        match self.choices.below(4) {
            0 => {
                self.trace.say(|| "close".to_owned());
                match db.close() {
                    Ok(()) => self.model.all_durable(),
                    Err(error) => {
                        let verdict = self.judge(Stop::Engine { doing: "close".to_owned(), error })?;
                        self.carry_on(&verdict);
                    }
                }
            }
            1 => {
                self.trace.say(|| "drop the handle".to_owned());
                drop(db);
                if self.disk.sim().is_crashed() {
                    self.crash();
                }
            }
            _ => {
                // In the middle of a transaction, whose changes may have been written back.
                let tx = db.begin();
                if let Ok(tx) = &tx {
                    let _ = self.session(&db).scribble(tx);
                }
                self.model.rollback();
                self.crash();
                drop(tx);
            }
        }
        self.end_faults();
        Ok(())
    }

    fn watched(&mut self) -> Step {
        match self.disk.monitor().violations().first() {
            None => Ok(()),
            Some(violation) => Err(Stop::Wrong(format!("write-ahead monitor: {violation}"))),
        }
    }

    /// No more faults: the database opens, holds what it must, is sound, closes, and opens again with nothing to do.
    fn last_life(&mut self) -> Step {
        self.end_faults();
        self.disk.sim().crash_at(u64::MAX);
        if self.disk.sim().is_crashed() || self.choices.once_in(2) {
            self.crash();
        }
        for round in 0..2 {
            let Some(db) = self.open_until_it_works_for_good(round)? else { continue };
            let found = read_state(&db)?;
            self.model.recovered(found).map_err(Stop::Wrong)?;
            verify(&db, &mut self.tally)?;
            self.session(&db).maintain()?;
            self.tally.add_stats(&db.stats());
            db.close().map_err(|error| Stop::Engine { doing: "close".to_owned(), error })?;
            self.watched()?;
        }
        self.tally.ios += self.disk.sim().io_count();
        Ok(())
    }

    fn open_until_it_works_for_good(&mut self, round: u64) -> Step<Option<Database>> {
        let mode = self.mode();
        self.trace.say(|| format!("open for good ({mode:?}), round {round}"));
        let db = self.disk.open(&self.plan, mode)?;
        self.created = true;
        self.tally.add_recovery(db.recovery_report());
        if round > 0 && !db.recovery_report().clean {
            return Err(Stop::Wrong(format!("a closed database was recovered: {:?}", db.recovery_report())));
        }
        Ok(Some(db))
    }
}
