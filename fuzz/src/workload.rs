//! What an application might do to its database, drawn from choices and mirrored in the model.
//!
//! I1. Every answer of the database is compared with the model's at once: old values, reads, ranges, counts, errors.
//! I2. An error that a healthy database on a healthy disk may not give stops the step with [`Stop::Engine`]; whether the disk was
//!     healthy is for the caller to say. Before it does, the model knows what became of the transaction.
//! I3. One read-write transaction at a time, all on one thread, so that a run is a function of its choices.

mod check;
mod reshape;
mod transaction;

pub use check::{compare_range, read_state, verify};
pub(crate) use reshape::reshape;

use std::fmt;
use std::io;

use hamal::{Database, Error, ErrorKind};

use crate::choice::Choices;
use crate::model::Model;
use crate::plan::Plan;
use crate::tally::Tally;

/// Why a step ended early.
#[derive(Debug)]
pub enum Stop {
    /// The database gave an error that it should not on a healthy disk.
    Engine {
        /// What was being done.
        doing: String,
        /// The error.
        error: Error,
    },
    /// A streamed value could not be read to its end.
    Read {
        /// What was being done.
        doing: String,
        /// The error.
        error: io::Error,
    },
    /// Verification found something; what it could not read is among it.
    Unsound(String),
    /// The database gave a wrong answer, whatever the disk did.
    Wrong(String),
}

impl Stop {
    /// The kind of the database's error.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Stop::Engine { error, .. } => Some(error.kind()),
            _ => None,
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Engine { doing, error } => write!(f, "{doing}: {:?}: {error}", error.kind()),
            Stop::Read { doing, error } => write!(f, "{doing}: {error}"),
            Stop::Unsound(what) | Stop::Wrong(what) => f.write_str(what),
        }
    }
}

/// Result of a step.
pub type Step<T = ()> = Result<T, Stop>;

/// Names what was being done when the database gave an error.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Step<T>;
}

impl<T> Doing<T> for hamal::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Step<T> {
        self.map_err(|error| Stop::Engine { doing: what(), error })
    }
}

/// Fails the run unless `found` is what was expected.
pub(crate) fn expect_same<T: PartialEq + fmt::Debug>(
    expected: &T,
    found: &T,
    what: impl FnOnce() -> String,
) -> Step {
    if expected == found {
        return Ok(());
    }
    Err(Stop::Wrong(format!("{}: expected {expected:x?}, found {found:x?}", what())))
}

/// Fails the run unless `result` is an error of this kind.
pub(crate) fn expect_error<T: fmt::Debug>(
    result: hamal::Result<T>,
    kind: ErrorKind,
    what: impl FnOnce() -> String,
) -> Step {
    match result {
        Err(error) if error.kind() == kind => Ok(()),
        Err(error) => Err(Stop::Engine { doing: what(), error }),
        Ok(answer) => Err(Stop::Wrong(format!("{}: expected {kind:?}, got {answer:?}", what()))),
    }
}

/// Who listens to what a run does.
#[derive(Debug, Default)]
pub enum Trace {
    /// Nobody.
    #[default]
    Off,
    /// Standard error.
    Print,
    /// The last lines are kept.
    Keep(Vec<String>),
}

impl Trace {
    /// Tells a line.
    pub fn say(&mut self, line: impl FnOnce() -> String) {
        match self {
            Trace::Off => {}
            Trace::Print => eprintln!("{}", line()),
            Trace::Keep(lines) => lines.push(line()),
        }
    }
}

/// Everything a step needs.
#[derive(Debug)]
pub struct Session<'r> {
    /// The database.
    pub db: &'r Database,
    /// What it must hold.
    pub model: &'r mut Model,
    /// What the run is like.
    pub plan: &'r Plan,
    /// Where decisions come from.
    pub choices: &'r mut Choices,
    /// Counts.
    pub tally: &'r mut Tally,
    /// Listener.
    pub trace: &'r mut Trace,
}

impl Session<'_> {
    /// Writes the plan's first rows, in transactions of a few hundred, so that there is more data than cache.
    pub fn preload(&mut self) -> Step {
        let mut next = 0;
        while next < self.plan.preload_rows {
            let end = (next + 400).min(self.plan.preload_rows);
            self.bulk_load(next..end)?;
            next = end;
        }
        Ok(())
    }

    /// One transaction, and sometimes something between transactions.
    pub fn step(&mut self) -> Step {
        self.transaction()?;
        match self.choices.below(24) {
            0 | 1 => self.checkpoint(),
            2 | 3 => self.flush(),
            4..=9 => self.maintain(),
            10 => self.compare(),
            11 => self.compare_snapshot(),
            12 if self.choices.once_in(4) => self.verify(),
            13..=15 => self.reshape(),
            _ => Ok(()),
        }
    }

    /// Takes a checkpoint.
    pub fn checkpoint(&mut self) -> Step {
        self.trace.say(|| "checkpoint".to_owned());
        match self.db.checkpoint() {
            Ok(report) => {
                self.trace.say(|| format!("  {report:?}"));
                self.model.all_durable();
                Ok(())
            }
            Err(error) => Err(Stop::Engine { doing: "checkpoint".to_owned(), error }),
        }
    }

    /// Makes all commits durable.
    pub fn flush(&mut self) -> Step {
        self.trace.say(|| "flush".to_owned());
        self.db.flush().doing(|| "flush".to_owned())?;
        self.model.all_durable();
        Ok(())
    }

    /// Does what background threads would do.
    pub fn maintain(&mut self) -> Step {
        self.trace.say(|| "maintain".to_owned());
        let mut rounds = 0;
        while self.db.maintain().doing(|| "maintain".to_owned())? {
            rounds += 1;
            if rounds > 10_000 {
                return Err(Stop::Wrong("maintain() has something to do for ever".to_owned()));
            }
        }
        Ok(())
    }
}
