//! A black-box checker for histories of concurrent transactions.
//!
//! It is given what clients saw ([`History`]) and nothing of the engine, and says whether some order of the transactions, at the
//! isolation that each asked for, explains it. Values are unique, so that a read tells who wrote what it found (Adya, 1999);
//! lists are only appended to, so that the final list is the order of its versions (Kingsbury and Alvaro, VLDB 2020). A scan
//! is recorded as a read of every key it passed, misses too, so a phantom is an ordinary conflict.
//!
//! # What is checked
//!
//! | step | file | finds |
//! |---|---|---|
//! | each transaction by itself | `effects` | a transaction that does not see its own writes, or reads one key twice differently |
//! | each value read | `versions` | garbage, duplicates, G1a, G1b, lists that are no prefix of the final one, lost or half commits |
//! | all of them together | `graph`, `infer`, `cycle` | G0, G1c, G-single, G2, each within sessions or real time too |
//! | counts | `infer` | a `len` that no order explains |
//!
//! # The graph
//!
//! A transaction has two points in time: *start*, as of which it reads, and *commit*, as of which its writes are seen. For a
//! serializable transaction they are one node, and so for one that wrote nothing. An edge says "earlier":
//!
//! | edge | from | to | because |
//! |---|---|---|---|
//! | wr | commit of the writer | start of the reader | it read the version |
//! | ww | commit of the earlier writer | start of the later | first committer wins |
//! | rw | start of the reader | commit of the writer of a later version | it did not see that version |
//! | session, real time | commit | start | acknowledged before the other began |
//! | inner | start | commit | of one transaction |
//!
//! A cycle is a violation. With all nodes single this is strict serializability; with all nodes double a cycle is exactly
//! one in the DSG in which no two rw edges follow each other, which is what snapshot isolation forbids (Cerone and
//! Gotsman, JACM 2018); histories that mix both need no rule of their own.
//!
//! # Soundness: no false alarm
//!
//! S1. *Lists*: every list is read at the end, so its versions are in a known order.
//! S2. *Registers* are written blindly, so the order of their versions is inferred, never guessed: the initial value is first; if
//!     `w` was committed before the start of a reader of `v`, then `w` is before `v`; a version whose commit comes after that of
//!     `v` in the graph is after `v`. This is repeated until nothing follows any more. What it leaves open adds no edge.
//! S3. *Real time* goes from an acknowledgement to a beginning, by ticks taken after the one and before the other. An aborted
//!     transaction is before nothing: it may have seen commits that nobody had been told of, and a snapshot may begin behind
//!     those. A transaction of unknown outcome that took effect is before whatever began after the database had been opened again.
//! S4. *Unknown outcomes* took effect if a list or a final value shows it, or a read that counts; otherwise they add nothing.
//! S5. *Aborted* transactions must have read a consistent state too (`Isolation` promises it), as readers; [`Rules::aborted`]
//!     turns that off. They alone may have read commits that a crash took back.
//! S6. A `len` is checked against bounds: what must have been there, and what cannot have been.

mod clock;
mod cycle;
mod effects;
mod graph;
mod history;
mod infer;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod toy;
mod versions;
mod violation;

pub use history::{Element, History, Key, KeyKind, Level, Op, Outcome, Tick, Transaction};
pub use violation::{Anomaly, Violation};

use std::ops::AddAssign;

/// What is asked of a history beyond its isolation levels.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whether aborted transactions must have read a consistent state.
    pub aborted: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Rules { aborted: true }
    }
}

/// What a history without violations consisted of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Transactions.
    pub transactions: u64,
    /// Those that took effect, snapshots included.
    pub effective: u64,
    /// Those of unknown outcome that took effect.
    pub unknown_kept: u64,
    /// Those of unknown outcome that did not.
    pub unknown_lost: u64,
    /// Reads of keys that are not the transaction's own writes.
    pub reads: u64,
    /// Edges of the graph.
    pub edges: u64,
    /// Edges that had to be inferred, for registers.
    pub inferred: u64,
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Summary) {
        self.transactions += other.transactions;
        self.effective += other.effective;
        self.unknown_kept += other.unknown_kept;
        self.unknown_lost += other.unknown_lost;
        self.reads += other.reads;
        self.edges += other.edges;
        self.inferred += other.inferred;
    }
}

/// Checks a history.
pub fn check(history: &History, rules: Rules) -> Result<Summary, Violation> {
    history.check_shape()?;
    let history = &history.with_final_read();
    let effects = effects::all(history)?;
    let versions = versions::Versions::of(history, &effects)?;
    let mut graph = graph::Graph::of(history, &effects, &versions, rules);
    let inferred = infer::to_the_end(history, &effects, &versions, &mut graph)?;
    let effective = versions.effective.iter().filter(|effective| **effective).count() as u64 - 1;
    let of_unknown = |kept: bool| {
        let unknown = history.transactions.iter().zip(&versions.effective);
        unknown.filter(|(t, effective)| t.outcome == Outcome::Unknown && **effective == kept).count() as u64
    };
    Ok(Summary {
        transactions: history.transactions.len() as u64 - 1,
        effective,
        unknown_kept: of_unknown(true),
        unknown_lost: of_unknown(false),
        reads: effects.iter().map(|e| e.reads.len() as u64).sum(),
        edges: graph.edges.len() as u64,
        inferred,
    })
}
