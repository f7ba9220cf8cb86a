//! What the child tells the parent: one JSON document a line.

use std::fmt::Write as _;
use std::io::{self, Stdout, Write};

use serde::{Deserialize, Serialize};

use super::random::Random;

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Change {
    /// A character's row is now this.
    Put { key: String, value: String },
    /// A character's row is now [`big_value`] of these.
    PutBig { key: String, bytes: u64, seed: u64 },
    /// A character's row is gone.
    Delete { key: String },
    /// An amount went from one account to another.
    Transfer { from: String, to: String, cents: u64 },
}

/// What happened in the child.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    /// Recovery is in this pass.
    Recovering { pass: String },
    /// The database is open, the workers start.
    Ready,
    /// A worker is about to commit its transaction number `sequence`.
    Commit { worker: usize, sequence: u64, changes: Vec<Change> },
    /// It is committed.
    Acknowledged { worker: usize, sequence: u64 },
    /// It could not be serialized: nothing of it is there.
    Refused { worker: usize, sequence: u64 },
    /// A worker rolled a transaction back after this many changes.
    RolledBack { changes: u64 },
    /// A snapshot was read whole and its balances were right.
    Audited,
    /// Counters of the engine.
    Counters { pages_stolen: u64, checkpoints: u64, structure_changes: u64, evictions: u64 },
    /// Something is wrong; the child ends.
    Failed { what: String },
}

/// The child's end of the pipe.
#[derive(Debug)]
pub(super) struct Reporter {
    stdout: Stdout,
}

impl Reporter {
    pub(super) fn new() -> Reporter {
        Reporter { stdout: io::stdout() }
    }

    /// Returns once the line is in the pipe, where it outlives this process.
    pub(super) fn tell(&self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let mut stdout = self.stdout.lock();
        stdout.write_all(&line)?;
        stdout.flush()
    }
}

/// The events of the lines that are whole; a last one cut short is none.
pub(super) fn parse_line(line: &[u8]) -> Option<Result<Event, String>> {
    let line = line.strip_suffix(b"\n")?;
    Some(
        serde_json::from_slice(line)
            .map_err(|error| format!("{error} in {:?}", String::from_utf8_lossy(line))),
    )
}

/// A value too large for a page, different for each seed.
pub(super) fn big_value(bytes: u64, seed: u64) -> String {
    let mut random = Random::new(seed);
    let mut value = String::with_capacity(bytes as usize + 16);
    while (value.len() as u64) < bytes {
        let _ = write!(value, "{:016x}", random.next());
    }
    value.truncate(bytes as usize);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_pipe() {
        let events = [
            Event::Ready,
            Event::Commit {
                worker: 1,
                sequence: 7,
                changes: vec![
                    Change::Put { key: "0041".into(), value: "[\"a\\n\"]".into() },
                    Change::PutBig { key: "0042".into(), bytes: 9, seed: 1 },
                    Change::Delete { key: "0043".into() },
                    Change::Transfer { from: "a".into(), to: "b".into(), cents: 3 },
                ],
            },
            Event::Counters { pages_stolen: 1, checkpoints: 2, structure_changes: 3, evictions: 5 },
        ];
        for event in events {
            let mut line = serde_json::to_vec(&event).unwrap();
            assert!(parse_line(&line).is_none(), "cut short");
            line.push(b'\n');
            assert_eq!(parse_line(&line), Some(Ok(event)));
        }
        assert!(parse_line(b"{}\n").unwrap().is_err());
    }

    #[test]
    fn big_values_have_their_length_and_depend_on_the_seed() {
        assert_eq!(big_value(20_001, 1).len(), 20_001);
        assert_eq!(big_value(20_001, 1), big_value(20_001, 1));
        assert_ne!(big_value(64, 1), big_value(64, 2));
    }
}
