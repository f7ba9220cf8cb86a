//! What clients did and saw.

use std::fmt;
use std::ops::Range;

use super::violation::{Anomaly, Violation};

/// A key, by its place in the order of all keys.
pub type Key = u32;
/// A value that is written once in a history.
pub type Element = u64;
/// A moment, by one counter of the whole history.
pub type Tick = u64;

/// What is kept under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// A list of elements; a write appends one.
    List,
    /// One element; a write replaces it.
    Register,
}

/// What a transaction asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Read-write, serializable.
    Serializable,
    /// Read-write, snapshot isolation.
    Snapshot,
    /// A read-only snapshot.
    ReadOnly,
}

/// What its client knows of a transaction's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The commit was acknowledged. So is every read of a read-only snapshot.
    Committed,
    /// Rolled back, or an error came before the commit was asked for, or the commit was refused.
    Aborted,
    /// The commit was asked for and neither acknowledged nor refused.
    Unknown,
}

/// One operation, with what it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Found these elements: of a register at most one. Nothing: the key was not there.
    Read {
        /// The key.
        key: Key,
        /// What was found.
        found: Vec<Element>,
    },
    /// Appended to a list.
    Append {
        /// The key.
        key: Key,
        /// What was appended.
        element: Element,
    },
    /// Replaced what a register held.
    Write {
        /// The key.
        key: Key,
        /// What was written.
        element: Element,
    },
    /// So many of these keys were there.
    Len {
        /// The keys.
        keys: Range<Key>,
        /// How many.
        count: u64,
    },
    /// Took back the writes of operation `to` and of all after it.
    RollBack {
        /// The first operation whose write is taken back.
        to: usize,
    },
}

/// One transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Its client. A client has one transaction at a time.
    pub session: u32,
    /// What it asked for.
    pub level: Level,
    /// Before it was begun.
    pub begin: Tick,
    /// After its end was known; of an unknown outcome: after the database had been opened again.
    pub end: Tick,
    /// Its end.
    pub outcome: Outcome,
    /// What it did.
    pub ops: Vec<Op>,
}

/// All that happened to one database, beginning with no key there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// What is kept under each key.
    pub keys: Vec<KeyKind>,
    /// The transactions, those of one session in their order.
    pub transactions: Vec<Transaction>,
    /// What was found under each key when all was over.
    pub final_state: Vec<Vec<Element>>,
}

impl History {
    /// What every later step relies on; a violation of it is a mistake of the recorder.
    pub(super) fn check_shape(&self) -> Result<(), Violation> {
        let malformed = |what: String, of: &[u32]| {
            Err(Violation::of_transactions(Anomaly::Malformed, what, self, of.iter().copied()))
        };
        if self.final_state.len() != self.keys.len() {
            return malformed(
                format!("{} keys, and {} in the final state", self.keys.len(), self.final_state.len()),
                &[],
            );
        }
        let mut last_of_session = std::collections::HashMap::new();
        for (index, transaction) in self.transactions.iter().enumerate() {
            let index = index as u32;
            if transaction.begin >= transaction.end {
                return malformed("a transaction ends before it begins".to_owned(), &[index]);
            }
            if let Some(before) = last_of_session.insert(transaction.session, index) {
                let earlier: &Transaction = &self.transactions[before as usize];
                if earlier.end >= transaction.begin {
                    return malformed("two transactions of one session overlap".to_owned(), &[before, index]);
                }
            }
            for (at, op) in transaction.ops.iter().enumerate() {
                let fits = |key: Key, kind: KeyKind| self.keys.get(key as usize) == Some(&kind);
                let good = match op {
                    Op::Read { key, found } => {
                        let most = if fits(*key, KeyKind::Register) { 1 } else { usize::MAX };
                        (*key as usize) < self.keys.len() && found.len() <= most
                    }
                    Op::Append { key, .. } => fits(*key, KeyKind::List),
                    Op::Write { key, .. } => fits(*key, KeyKind::Register),
                    Op::Len { keys, .. } => keys.end as usize <= self.keys.len(),
                    Op::RollBack { to } => *to <= at,
                };
                let writes = matches!(op, Op::Append { .. } | Op::Write { .. });
                if !good || (writes && transaction.level == Level::ReadOnly) {
                    return malformed(format!("operation {at} cannot be: {op}"), &[index]);
                }
            }
        }
        Ok(())
    }

    /// The same, ending with a read-only transaction that reads the final state.
    pub(super) fn with_final_read(&self) -> History {
        let last = self.transactions.iter().map(|t| t.end).max().unwrap_or(0);
        let read = |(key, found): (usize, &Vec<Element>)| Op::Read { key: key as Key, found: found.clone() };
        let mut all = self.clone();
        all.transactions.push(Transaction {
            session: self.transactions.iter().map(|t| t.session + 1).max().unwrap_or(0),
            level: Level::ReadOnly,
            begin: last.saturating_add(1),
            end: last.saturating_add(2),
            outcome: Outcome::Committed,
            ops: self.final_state.iter().enumerate().map(read).collect(),
        });
        all
    }
}

/// Elements that are shown of a long list.
const SHOWN: usize = 12;

fn list(f: &mut fmt::Formatter<'_>, found: &[Element]) -> fmt::Result {
    let skipped = if f.alternate() { 0 } else { found.len().saturating_sub(SHOWN) };
    f.write_str("[")?;
    if skipped > 0 {
        write!(f, "{skipped} more, ")?;
    }
    for (at, element) in found[skipped..].iter().enumerate() {
        write!(f, "{}{element}", if at == 0 { "" } else { " " })?;
    }
    f.write_str("]")
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Read { key, found } => {
                write!(f, "r{key}=")?;
                list(f, found)
            }
            Op::Append { key, element } => write!(f, "a{key}+{element}"),
            Op::Write { key, element } => write!(f, "w{key}:={element}"),
            Op::Len { keys, count } => write!(f, "len({}..{})={count}", keys.start, keys.end),
            Op::RollBack { to } => write!(f, "back-to-op-{to}"),
        }
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (level, outcome) =
            (format!("{:?}", self.level).to_lowercase(), format!("{:?}", self.outcome).to_lowercase());
        write!(f, "session {} {level} {outcome} {}..{}:", self.session, self.begin, self.end)?;
        for op in &self.ops {
            f.write_str(" ")?;
            op.fmt(f)?;
        }
        Ok(())
    }
}

/// One line for each transaction and each final value; `{:#}` shows long lists whole.
impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, transaction) in self.transactions.iter().enumerate() {
            write!(f, "T{index} ")?;
            transaction.fmt(f)?;
            writeln!(f)?;
        }
        for (key, found) in self.final_state.iter().enumerate() {
            write!(f, "final {key} {:?} ", self.keys[key])?;
            list(f, found)?;
            writeln!(f)?;
        }
        Ok(())
    }
}
