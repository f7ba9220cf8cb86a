//! What a history is found guilty of, in words.

use std::fmt::{self, Write};

use super::history::History;

/// The kinds of violation, by their names in the literature where they have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Anomaly {
    /// The recorder made a mistake.
    Malformed,
    /// A transaction does not see its own writes, or reads the same differently.
    Internal,
    /// A read of what nobody wrote there.
    Garbage,
    /// A read of a list that has an element twice.
    Duplicate,
    /// A read of what was rolled back, by a transaction or to a savepoint.
    G1a,
    /// A read of what its own transaction wrote over, or added to.
    G1b,
    /// A read of a list that is not how the final one begins.
    NotAPrefix,
    /// An acknowledged append is not there.
    Lost,
    /// A part of a commit is there, and a part is not.
    Half,
    /// A read that counts of a commit that a crash took back.
    TakenBack,
    /// A cycle of writes.
    G0,
    /// A cycle of writes and reads of them.
    G1c,
    /// A cycle with one read of what was overwritten.
    GSingle,
    /// A cycle with several.
    G2,
    /// A count that no order explains.
    Count,
}

impl Anomaly {
    /// The name it is known by.
    pub fn name(self) -> &'static str {
        match self {
            Anomaly::Malformed => "malformed history",
            Anomaly::Internal => "internal inconsistency",
            Anomaly::Garbage => "garbage read",
            Anomaly::Duplicate => "duplicate element",
            Anomaly::G1a => "G1a (aborted read)",
            Anomaly::G1b => "G1b (intermediate read)",
            Anomaly::NotAPrefix => "incompatible order",
            Anomaly::Lost => "lost append",
            Anomaly::Half => "half a commit",
            Anomaly::TakenBack => "read of a commit that was taken back",
            Anomaly::G0 => "G0 (write cycle)",
            Anomaly::G1c => "G1c (circular information flow)",
            Anomaly::GSingle => "G-single",
            Anomaly::G2 => "G2",
            Anomaly::Count => "wrong count",
        }
    }
}

/// Of what a cycle needs besides reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beyond {
    Nothing,
    Session,
    RealTime,
}

/// A violation.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Its kind.
    pub anomaly: Anomaly,
    /// Whether it takes the order of sessions or of real time to see it.
    pub in_real_time: bool,
    text: String,
}

impl Violation {
    pub(super) fn of_transactions(
        anomaly: Anomaly,
        what: impl fmt::Display,
        history: &History,
        transactions: impl IntoIterator<Item = u32>,
    ) -> Violation {
        Violation::of_cycle(anomaly, Beyond::Nothing, what, history, transactions)
    }

    pub(super) fn of_cycle(
        anomaly: Anomaly,
        beyond: Beyond,
        what: impl fmt::Display,
        history: &History,
        transactions: impl IntoIterator<Item = u32>,
    ) -> Violation {
        let suffix = match beyond {
            Beyond::Nothing => "",
            Beyond::Session => ", within sessions",
            Beyond::RealTime => ", in real time",
        };
        let mut text = format!("{}{suffix}: {what}", anomaly.name());
        let mut told: Vec<u32> = Vec::new();
        for index in transactions {
            if !told.contains(&index) {
                told.push(index);
                let _ = write!(text, "\n  T{index} = {}", history.transactions[index as usize]);
            }
        }
        Violation { anomaly, in_real_time: beyond != Beyond::Nothing, text }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Violation {}
