//! A machine from life to life: its disk, what is done to it, and what a database on it may say because of that.

use std::sync::Arc;

use hamal::{Database, ErrorKind, OpenMode};
use hamal_storage::sim::{CrashMode, Fault, FaultKind, Repeat, When};

use crate::choice::{Choices, mix};
use crate::disk::Disk;
use crate::model::State;
use crate::plan::Plan;
use crate::scheduler::Turns;
use crate::tally::Tally;
use crate::workload::{Step, Stop, Trace, read_state};

/// The machine of a run, and what the run is made of.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) choices: Choices,
    pub(crate) plan: Plan,
    pub(crate) disk: Disk,
    pub(crate) tally: Tally,
    pub(crate) trace: Trace,
    /// Who runs its threads, if it has several.
    turns: Option<Arc<Turns>>,
    /// An open has succeeded: from now on there is a database, whatever happens.
    created: bool,
    /// Faults of this machine that have been dealt with.
    pub(crate) forgiven: usize,
}

/// How a life may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The machine is dead.
    Crashed,
    /// The handle is of no more use, or may not be; the disk goes on.
    Failed,
}

impl Machine {
    pub(crate) fn new(
        seed: u64,
        choices: Choices,
        plan: Plan,
        trace: Trace,
        turns: Option<Arc<Turns>>,
    ) -> Machine {
        let disk = Disk::new(mix(seed), plan.page_bytes);
        let tally = Tally::default();
        let machine = Machine { choices, plan, disk, tally, trace, turns, created: false, forgiven: 0 };
        machine.set_scheduler();
        machine
    }

    fn set_scheduler(&self) {
        if let Some(turns) = &self.turns {
            self.disk.sim().set_scheduler(Arc::clone(turns) as _);
        }
    }

    fn mode(&self) -> OpenMode {
        if self.created { OpenMode::Open } else { OpenMode::OpenOrCreate }
    }

    /// Schedules a crash within one of these numbers of I/Os; 0: none.
    pub(crate) fn crash_within(&mut self, ios: &[u64]) {
        let within = *self.choices.pick(ios);
        if within > 0 {
            let io = self.disk.sim().io_count() + 1 + self.choices.below(within);
            self.trace.say(|| format!("crash at I/O {io}"));
            self.disk.sim().crash_at(io);
        }
    }

    /// Schedules the crash of this life, and sometimes lesser faults.
    pub(crate) fn arm(&mut self, ios: &[u64]) {
        self.crash_within(ios);
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
    pub(crate) fn open_until_it_works(&mut self) -> Step<Option<Database>> {
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
                    self.carry_on(verdict);
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

    /// What a database holds that was opened just now. If there is something left to be undone behind the open it is sometimes left
    /// alone, and what is committed is read from a copy of the disk: reading would undo it.
    pub(crate) fn state(&mut self, db: &Database) -> Step<State> {
        if db.stats().trailing_losers == 0 || self.disk.sim().is_crashed() || self.choices.once_in(3) {
            return read_state(db);
        }
        self.tally.left_behind += 1;
        self.trace.say(|| "  read from a copy".to_owned());
        let plan = Plan { trailing_undo: false, ..self.plan.clone() };
        read_state(&self.disk.image(CrashMode::KeepAll, self.choices.fresh()).open(&plan, OpenMode::Open)?)
    }

    /// Whether this error may be, given what was done to the disk.
    pub(crate) fn judge(&mut self, stop: Stop) -> Step<Verdict> {
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
    pub(crate) fn struck(&self) -> bool {
        let fired = self.disk.sim().fired();
        fired.iter().skip(self.forgiven).any(|fired| matches!(fired.kind, FaultKind::Eio | FaultKind::Enospc))
    }

    /// After a crash or failure: what the disk is for the next life.
    pub(crate) fn carry_on(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Crashed => self.crash(),
            Verdict::Failed if self.choices.once_in(2) => self.crash(),
            Verdict::Failed => {}
        }
        self.tally.faults += u64::from(matches!(verdict, Verdict::Failed));
        self.end_faults();
    }

    pub(crate) fn end_faults(&mut self) {
        self.disk.sim().clear_faults();
        self.forgiven = self.disk.sim().fired().len();
    }

    pub(crate) fn crash(&mut self) {
        let modes = [CrashMode::Any, CrashMode::Any, CrashMode::Subset, CrashMode::Kill];
        let mode = *self.choices.pick(&modes);
        self.tally.ios += self.disk.sim().io_count();
        self.tally.crashes += 1;
        self.tally.kills += u64::from(mode == CrashMode::Kill);
        self.trace.say(|| format!("crash ({mode:?})"));
        let seed = self.choices.fresh();
        self.disk.crash(mode, seed);
        self.set_scheduler();
    }

    /// The life ends with this error, if it may; so does the handle.
    pub(crate) fn end_by(&mut self, db: Database, stop: Stop) -> Step {
        self.trace.say(|| format!("life ends: {stop}"));
        self.tally.add_stats(&db.stats());
        let verdict = self.judge(stop)?;
        // A process that dies leaves no chance to its destructors; one that gives up on a handle drops it.
        match verdict {
            Verdict::Crashed => {
                self.carry_on(verdict);
                drop(db);
            }
            Verdict::Failed => {
                drop(db);
                self.carry_on(verdict);
            }
        }
        Ok(())
    }

    /// Fails if the monitor has seen something.
    pub(crate) fn watched(&mut self) -> Step {
        match self.disk.monitor().violations().first() {
            None => Ok(()),
            Some(violation) => Err(Stop::Wrong(format!("write-ahead monitor: {violation}"))),
        }
    }

    pub(crate) fn open_until_it_works_for_good(&mut self, round: u64) -> Step<Option<Database>> {
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

    /// The sum of everything it did, once it is at its end: counts, and a digest of the disk and of all decisions.
    pub(crate) fn sum_up(&mut self) -> u64 {
        self.tally.runs = 1;
        self.tally.ios += self.disk.sim().io_count();
        self.tally.pages_monitored = self.disk.monitor().pages();
        self.tally.log_wraps = self.disk.monitor().recycled();
        mix(self.choices.fingerprint() ^ self.disk.sim().fingerprint())
    }
}
