//! The parent process: rounds of work, kill, recovery and comparison.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use hamal::{OpenMode, RecoveryReport};

use super::image::Image;
use super::model::{Model, Told};
use super::protocol::{Event, parse_line};
use super::random::Random;
use super::setup::{self, Settings};
use super::verify::{Verdict, verify};
use crate::commands::load::Loaded;
use crate::failure::{Failure, Result};

/// How long a child may take to get to where it is to be killed.
const OPEN_LIMIT: Duration = Duration::from_mins(2);
/// What SIGKILL is called.
const SIGKILL: i32 = 9;
/// How long after the announcement of a commit the kill comes that is aimed at one, at most.
const COMMIT_MICROS: u64 = 4000;
/// How long a kill that is aimed at a commit waits for one.
const COMMIT_WAIT: Duration = Duration::from_millis(500);
/// Recoveries that are killed in one round, at most.
const MAX_INTERRUPTIONS: u64 = 3;

/// What a campaign is run with.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) directory: PathBuf,
    pub(crate) seed: u64,
    pub(crate) workers: usize,
    pub(crate) settings: Settings,
    pub(crate) kill_within: Duration,
    /// Where the crashed database is copied before it is recovered.
    pub(crate) image: Option<Image>,
}

/// One round, from the kill to the verdict.
#[derive(Debug)]
pub(crate) struct Round {
    /// From the opening, or the first commit, to the kill.
    pub(crate) worked: Duration,
    pub(super) told: Told,
    /// Recoveries that were killed before the one that is reported.
    pub(crate) interrupted: u64,
    pub(crate) recovery: RecoveryReport,
    pub(crate) open_elapsed: Duration,
    pub(crate) check_elapsed: Duration,
    pub(super) verdict: Verdict,
    /// Whole messages that were cut short by the kill: 0 or 1.
    pub(crate) cut_short: u64,
}

/// A database and the model of it.
pub(crate) struct Campaign {
    plan: Plan,
    model: Model,
    random: Random,
    last_recovery: Duration,
    pub(crate) loaded: Loaded,
}

impl Campaign {
    /// Makes the database.
    pub(crate) fn start(plan: Plan) -> Result<Campaign> {
        let (model, loaded) = setup::make(&plan.directory, plan.settings, plan.workers)?;
        let random = Random::new(plan.seed);
        Ok(Campaign { plan, model, random, last_recovery: Duration::from_millis(20), loaded })
    }

    /// One round. `Err`: it could not be run to its verdict.
    pub(crate) fn round(&mut self) -> Result<Round> {
        self.model.told = Told::default();
        let seed = self.random.next();
        // Mostly the clock runs from the first commit: however slow the disk, there is something to lose.
        let from = if self.random.percent(80) { Signal::Acknowledged } else { Signal::Ready };
        let after = self.up_to(self.plan.kill_within);
        let aim = if self.random.percent(60) {
            Aim::Commit(Duration::from_micros(self.random.below(COMMIT_MICROS)))
        } else {
            Aim::Anywhere
        };
        let heard = self.run_child(seed, Role::Work, Moment { from, after, aim })?;
        let told = self.model.told;

        if let Some(image) = &mut self.plan.image {
            image.replace(&self.plan.directory)?;
        }

        let mut interrupted = 0;
        if self.random.percent(60) {
            for _ in 0..self.random.between(1, MAX_INTERRUPTIONS) {
                let after = self.up_to(self.last_recovery);
                let moment = Moment { from: Signal::Recovering, after, aim: Aim::Anywhere };
                let heard = self.run_child(0, Role::Recover, moment)?;
                interrupted += u64::from(heard.recovering && !heard.ready);
            }
        }

        let started = Instant::now();
        let db = self.plan.settings.options(OpenMode::Open).open(&self.plan.directory)?;
        let open_elapsed = started.elapsed();
        let recovery = db.recovery_report().clone();
        self.last_recovery = recovery.analysis.elapsed + recovery.redo.elapsed + recovery.undo.elapsed;
        let started = Instant::now();
        let verdict = verify(&db, &mut self.model)?;
        let check_elapsed = started.elapsed();
        db.close()?;
        Ok(Round {
            worked: heard.worked,
            told,
            interrupted,
            recovery,
            open_elapsed,
            check_elapsed,
            verdict,
            cut_short: heard.cut_short,
        })
    }

    fn up_to(&mut self, longest: Duration) -> Duration {
        let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.random.between(0, micros))
    }

    /// Starts a child, listens to it, kills it, and takes in what it had said.
    fn run_child(&mut self, seed: u64, role: Role, moment: Moment) -> Result<Heard> {
        let mut child = self.spawn(seed, role)?;
        let pipe =
            child.stdout.take().ok_or_else(|| Failure::unusable("the child has no standard output"))?;
        let (sender, signals) = mpsc::channel();
        let model = &mut self.model;
        let (killed, heard) = thread::scope(|scope| {
            let listener = scope.spawn(move || listen(pipe, model, &sender));
            let killed = kill_at(&mut child, &signals, moment);
            (killed, listener.join())
        });
        let (status, worked) = killed?;
        let mut heard = heard
            .map_err(|_| Failure::unusable("the demo's listener panicked"))?
            .map_err(|what| Failure::negative(format!("the child process went wrong: {what}")))?;
        if status.signal() != Some(SIGKILL) {
            return Err(Failure::negative(format!("the child process ended by itself: {status}")));
        }
        heard.worked = worked;
        Ok(heard)
    }

    fn spawn(&self, seed: u64, role: Role) -> Result<Child> {
        let fail = |error| Failure::unusable(format!("cannot start the child process: {error}"));
        let mut command = Command::new(std::env::current_exe().map_err(fail)?);
        command.arg("demo-worker").arg(&self.plan.directory);
        command.args(["--seed", &seed.to_string()]);
        command.args(["--workers", &self.plan.workers.to_string()]);
        command.args(["--cache-bytes", &self.plan.settings.cache_bytes.to_string()]);
        if role == Role::Recover {
            command.arg("--recover-only");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(fail)
    }
}

/// What a child is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Work,
    Recover,
}

/// What a child said before it was killed.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    recovering: bool,
    ready: bool,
    worked: Duration,
    cut_short: u64,
}

/// What the killer waits for, in the order in which it comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Signal {
    Recovering,
    Ready,
    /// A worker is about to commit.
    Committing,
    /// A worker has committed.
    Acknowledged,
}

/// When a child is killed.
#[derive(Clone, Copy, Debug)]
struct Moment {
    /// From this signal on, or a later one,
    from: Signal,
    /// this long.
    after: Duration,
    aim: Aim,
}

/// What it is to be killed at.
#[derive(Clone, Copy, Debug)]
enum Aim {
    Anywhere,
    /// The next commit, this long after its announcement: so that there is something in doubt.
    Commit(Duration),
}

/// Takes in what the child says until its end of the pipe closes.
fn listen(pipe: ChildStdout, model: &mut Model, signals: &Sender<Signal>) -> Result<Heard, String> {
    let mut pipe = BufReader::with_capacity(256 << 10, pipe);
    let mut heard = Heard::default();
    let mut result = Ok(());
    let mut line = Vec::new();
    loop {
        line.clear();
        // To the end in any case: a child whose pipe is full would wait for ever.
        if pipe.read_until(b'\n', &mut line).map_err(|error| error.to_string())? == 0 {
            break;
        }
        let Some(event) = parse_line(&line) else {
            heard.cut_short += 1;
            continue;
        };
        if result.is_err() {
            continue;
        }
        // Signals that nobody waits for any more are fine.
        match &event {
            Ok(Event::Recovering { .. }) if !heard.recovering => {
                heard.recovering = true;
                let _ = signals.send(Signal::Recovering);
            }
            Ok(Event::Ready) => {
                heard.ready = true;
                let _ = signals.send(Signal::Ready);
            }
            Ok(Event::Commit { .. }) => {
                let _ = signals.send(Signal::Committing);
            }
            Ok(Event::Acknowledged { .. }) => {
                let _ = signals.send(Signal::Acknowledged);
            }
            _ => {}
        }
        result = event.and_then(|event| model.hear(event));
    }
    result.map(|()| heard)
}

/// Waits for the child to be where it is to be killed, then for the moment, then kills it.
fn kill_at(child: &mut Child, signals: &Receiver<Signal>, moment: Moment) -> Result<(ExitStatus, Duration)> {
    let opened = loop {
        match signals.recv_timeout(OPEN_LIMIT) {
            Ok(signal) if signal < moment.from => {}
            // Disconnected: it has ended; what it said, or its exit status, tells why.
            Ok(_) | Err(RecvTimeoutError::Disconnected) => break Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                break Err(Failure::negative("the child process did not get to work in time"));
            }
        }
    };
    let started = Instant::now();
    if opened.is_ok() {
        pause(signals, moment.after);
        if let Aim::Commit(behind) = moment.aim {
            while signals.try_recv().is_ok() {}
            await_commit(signals);
            pause(signals, behind);
        }
    }
    let worked = started.elapsed();
    let fail = |error| Failure::unusable(format!("cannot kill the child process: {error}"));
    // On Unix this is SIGKILL; a child that has ended by itself is no error here.
    child.kill().map_err(fail)?;
    let status = child.wait().map_err(fail)?;
    opened.map(|()| (status, worked))
}

/// Waits for the next announcement of a commit, but not for ever.
fn await_commit(signals: &Receiver<Signal>) {
    let started = Instant::now();
    while let Some(left) = COMMIT_WAIT.checked_sub(started.elapsed()) {
        match signals.recv_timeout(left) {
            Ok(Signal::Committing) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Lets this time pass. Ends early if the child does: its end of the channel goes with its pipe.
fn pause(signals: &Receiver<Signal>, time: Duration) {
    let started = Instant::now();
    while let Some(left) = time.checked_sub(started.elapsed()).filter(|left| !left.is_zero()) {
        if signals.recv_timeout(left) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}
