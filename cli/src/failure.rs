//! Why a command did not succeed, and the exit status that says so.
//!
//! | status | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the answer is no: key absent, damage found by `check`, a failed `demo` |
//! | 2 | bad input: arguments, or a file to load; the database is as it was |
//! | 3 | the database cannot be used now: missing, locked, disk full, I/O error |
//! | 4 | the database is damaged |
//!
//! I1. A failure is one line on standard error, `hamal: ` in front.
//! I2. A reader of our output that goes away (`hamal dump ... | head`) is no failure, nor does it hide one.

use std::fmt;
use std::io;

use hamal::ErrorKind;

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// The exit statuses other than 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// The answer is no.
    Negative = 1,
    /// Arguments or input cannot be used.
    Input = 2,
    /// The database cannot be used now.
    Unusable = 3,
    /// The database is damaged.
    Damaged = 4,
}

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Said in one line.
    Message(Status, String),
    /// The command has printed all there is to say.
    Quiet(Status),
    /// Whoever read our output has gone.
    ReaderGone,
}

impl Failure {
    pub(crate) fn input(message: impl Into<String>) -> Failure {
        Failure::Message(Status::Input, message.into())
    }

    pub(crate) fn negative(message: impl Into<String>) -> Failure {
        Failure::Message(Status::Negative, message.into())
    }

    pub(crate) fn unusable(message: impl Into<String>) -> Failure {
        Failure::Message(Status::Unusable, message.into())
    }

    /// Adds what was being done, in front.
    #[must_use]
    pub(crate) fn context(self, what: impl fmt::Display) -> Failure {
        match self {
            Failure::Message(status, message) => Failure::Message(status, format!("{what}: {message}")),
            other => other,
        }
    }

    /// Adds a hint behind.
    #[must_use]
    pub(crate) fn hint(self, hint: impl fmt::Display) -> Failure {
        match self {
            Failure::Message(status, message) => Failure::Message(status, format!("{message} ({hint})")),
            other => other,
        }
    }
}

impl From<hamal::Error> for Failure {
    fn from(error: hamal::Error) -> Failure {
        let status = match error.kind() {
            ErrorKind::Corrupt | ErrorKind::PartitionUnavailable => Status::Damaged,
            ErrorKind::InvalidArgument
            | ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::TypeMismatch => Status::Input,
            _ => Status::Unusable,
        };
        Failure::Message(status, one_line(&error.to_string()))
    }
}

/// Failures of our own output; input files go through [`read_failure`].
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::ReaderGone;
        }
        Failure::unusable(format!("cannot write the output: {error}"))
    }
}

/// An input that cannot be read.
pub(crate) fn read_failure(name: &str, error: &io::Error) -> Failure {
    Failure::input(format!("cannot read {name}: {error}"))
}

/// The exit of a command that answers yes or no and has said why. A reader that went away meanwhile does not make a no a yes.
pub(crate) fn answer(said: Result<()>, is_yes: bool) -> Result<()> {
    match said {
        Ok(()) | Err(Failure::ReaderGone) if !is_yes => Err(Failure::Quiet(Status::Negative)),
        said => said,
    }
}

/// I1: whatever a message quotes, it stays on its line.
pub(crate) fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_several_lines_becomes_one() {
        assert_eq!(one_line("first\n  second\r\n\nthird\n"), "first; second; third");
    }

    #[test]
    fn a_reader_that_went_away_is_no_message() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(matches!(failure, Failure::ReaderGone));
        assert!(matches!(failure.context("dump"), Failure::ReaderGone));
    }

    #[test]
    fn a_reader_that_went_away_does_not_change_the_answer() {
        assert!(answer(Ok(()), true).is_ok());
        assert!(matches!(answer(Err(Failure::ReaderGone), true), Err(Failure::ReaderGone)));
        for said in [Ok(()), Err(Failure::ReaderGone)] {
            assert!(matches!(answer(said, false), Err(Failure::Quiet(Status::Negative))));
        }
        assert!(matches!(answer(Err(Failure::input("no")), false), Err(Failure::Message(Status::Input, _))));
    }

    #[test]
    fn context_goes_in_front_and_hints_behind() {
        let failure = Failure::input("no").context("line 3").hint("try harder");
        let Failure::Message(Status::Input, message) = failure else { panic!("not a message") };
        assert_eq!(message, "line 3: no (try harder)");
    }
}
