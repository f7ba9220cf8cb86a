//! What the database must hold: a map per table, with transactions, savepoints, and what a crash may take back.
//!
//! I1. `base` is what is known to be durable. `pending` are the commits after it, oldest first: acknowledged without a promise
//!     of durability, or (the last one only) in doubt. After a crash the database must hold `base` plus a prefix of them.
//! I2. `working` is `base` plus `pending` plus `active`, the changes of the running transaction.
//! I3. Every change can be taken back, so a rollback, whole or to a savepoint, costs what the transaction wrote.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use crate::value::Value;

/// A key, shared by all maps that hold it.
pub type Key = Arc<[u8]>;
/// One table's rows.
pub type Rows = BTreeMap<Key, Value>;

/// Every table and its rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// By name.
    pub tables: BTreeMap<String, Rows>,
}

#[derive(Clone, Debug)]
enum Change {
    Row { table: String, key: Key, before: Option<Value>, after: Option<Value> },
    Create { table: String },
    Drop { table: String, rows: Rows },
    Rename { from: String, to: String },
}

impl State {
    /// Rows of all tables.
    pub fn rows(&self) -> usize {
        self.tables.values().map(BTreeMap::len).sum()
    }

    fn set(&mut self, table: &str, key: &Key, value: Option<Value>) {
        let rows = self.tables.get_mut(table).expect("changes name tables that exist");
        match value {
            Some(value) => rows.insert(Arc::clone(key), value),
            None => rows.remove(key),
        };
    }

    fn rename(&mut self, from: &str, to: &str) {
        let rows = self.tables.remove(from).expect("changes name tables that exist");
        self.tables.insert(to.to_owned(), rows);
    }

    fn redo(&mut self, change: &Change) {
        match change {
            Change::Row { table, key, after, .. } => self.set(table, key, *after),
            Change::Create { table } => drop(self.tables.insert(table.clone(), Rows::new())),
            Change::Drop { table, .. } => drop(self.tables.remove(table)),
            Change::Rename { from, to } => self.rename(from, to),
        }
    }

    fn undo(&mut self, change: Change) {
        match change {
            Change::Row { table, key, before, .. } => self.set(&table, &key, before),
            Change::Create { table } => drop(self.tables.remove(&table)),
            Change::Drop { table, rows } => drop(self.tables.insert(table, rows)),
            Change::Rename { from, to } => self.rename(&to, &from),
        }
    }

    /// The first few places where two states differ, readable; empty if they are equal.
    pub fn difference(&self, found: &State) -> String {
        let mut lines = Vec::new();
        for name in found.tables.keys().filter(|name| !self.tables.contains_key(*name)) {
            lines.push(format!("table {name:?} should not be there"));
        }
        for (name, rows) in &self.tables {
            match found.tables.get(name) {
                None => lines.push(format!("table {name:?} ({} rows) is missing", rows.len())),
                Some(other) => row_differences(name, rows, other, &mut lines),
            }
        }
        let more = lines.len().saturating_sub(12);
        lines.truncate(12);
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        lines.join("; ")
    }
}

fn row_differences(table: &str, expected: &Rows, found: &Rows, lines: &mut Vec<String>) {
    for (key, value) in expected {
        match found.get(key) {
            None => lines.push(format!("{table}: {} is missing ({} bytes)", Hex(key), value.len)),
            Some(other) if other != value => {
                lines.push(format!("{table}: {} should be {value:x?}, is {other:x?}", Hex(key)));
            }
            Some(_) => {}
        }
    }
    for (key, value) in found.iter().filter(|(key, _)| !expected.contains_key(*key)) {
        lines.push(format!("{table}: {} should not be there ({} bytes)", Hex(key), value.len));
    }
}

/// A key for people: hexadecimal, the middle of long ones left out.
#[derive(Clone, Copy, Debug)]
pub struct Hex<'k>(pub &'k [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let write = |f: &mut fmt::Formatter<'_>, bytes: &[u8]| -> fmt::Result {
            bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        };
        match self.0 {
            [] => f.write_str("(empty key)"),
            key if key.len() <= 24 => write(f, key),
            key => {
                write(f, &key[..8])?;
                write!(f, "..{}..", key.len())?;
                write(f, &key[key.len() - 12..])
            }
        }
    }
}

/// A point in a transaction to roll back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(usize);

/// What a crash did to the commits that were not certainly durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Such commits that are there.
    pub kept: u64,
    /// Such commits that are gone.
    pub lost: u64,
    /// The commit in doubt, if there was one, is there (`Some(true)`) or gone.
    pub in_doubt: Option<bool>,
}

/// The whole of what the database must hold, and may have lost.
#[derive(Clone, Debug, Default)]
pub struct Model {
    base: State,
    pending: Vec<Vec<Change>>,
    in_doubt: bool,
    working: State,
    active: Vec<Change>,
}

#[expect(clippy::missing_panics_doc, reason = "a panic here is a mistake in the harness, never an answer")]
impl Model {
    /// What a reader inside the running transaction sees; without one: what is committed.
    pub fn working(&self) -> &State {
        &self.working
    }

    /// What is committed, seen by those outside the running transaction.
    pub fn committed(&self) -> State {
        let mut state = self.working.clone();
        for change in self.active.iter().rev() {
            state.undo(change.clone());
        }
        state
    }

    /// Writes or removes a row; returns the old value.
    pub fn set(&mut self, table: &str, key: &[u8], after: Option<Value>) -> Option<Value> {
        let rows = self.working.tables.get(table).expect("the table exists");
        let (key, before) = match rows.get_key_value(key) {
            Some((key, value)) => (Arc::clone(key), Some(*value)),
            None => (Arc::from(key), None),
        };
        if before.is_some() || after.is_some() {
            self.change(Change::Row { table: table.to_owned(), key, before, after });
        }
        before
    }

    /// Makes a table, unless it is there.
    pub fn create(&mut self, table: &str) {
        if !self.working.tables.contains_key(table) {
            self.change(Change::Create { table: table.to_owned() });
        }
    }

    /// Drops a table that exists.
    pub fn drop_table(&mut self, table: &str) {
        let rows = self.working.tables.get(table).expect("the table exists").clone();
        self.change(Change::Drop { table: table.to_owned(), rows });
    }

    /// Renames a table that exists to a name that is free.
    pub fn rename(&mut self, from: &str, to: &str) {
        self.change(Change::Rename { from: from.to_owned(), to: to.to_owned() });
    }

    fn change(&mut self, change: Change) {
        self.working.redo(&change);
        self.active.push(change);
    }

    /// A point to roll back to.
    pub fn mark(&self) -> Mark {
        Mark(self.active.len())
    }

    /// Takes back what was done since `mark`.
    pub fn rollback_to(&mut self, mark: Mark) {
        while self.active.len() > mark.0 {
            if let Some(change) = self.active.pop() {
                self.working.undo(change);
            }
        }
    }

    /// Takes the running transaction back.
    pub fn rollback(&mut self) {
        self.rollback_to(Mark(0));
    }

    /// The running transaction was acknowledged; [`Model::all_durable`] follows if that promised durability.
    pub fn commit(&mut self) {
        self.pending.push(std::mem::take(&mut self.active));
    }

    /// The running transaction's commit has an unknown outcome; no commit can follow until the database is reopened.
    pub fn commit_in_doubt(&mut self) {
        self.commit();
        self.in_doubt = true;
    }

    /// Every commit so far is durable.
    pub fn all_durable(&mut self) {
        assert!(!self.in_doubt, "nothing is made durable by a handle that left a commit in doubt");
        for change in self.pending.drain(..).flatten() {
            self.base.redo(&change);
        }
    }

    /// Commits that a crash may take back.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Which prefix of the pending commits `found` holds, the longest if several would do; changes nothing.
    pub fn explain(&self, found: &State) -> Result<Outcome, String> {
        let mut matched = None;
        self.candidates(|index, state| {
            if state == found {
                matched = Some(index);
            }
        });
        let Some(kept) = matched else {
            return Err(self.nearest_difference(found));
        };
        let lost = self.pending.len() - kept;
        Ok(Outcome { kept: kept as u64, lost: lost as u64, in_doubt: self.in_doubt.then_some(lost == 0) })
    }

    /// Calls `visit` with the base and after each pending commit.
    fn candidates(&self, mut visit: impl FnMut(usize, &State)) {
        let mut state = self.base.clone();
        visit(0, &state);
        for (index, changes) in self.pending.iter().enumerate() {
            for change in changes {
                state.redo(change);
            }
            visit(index + 1, &state);
        }
    }

    fn nearest_difference(&self, found: &State) -> String {
        let mut nearest = (usize::MAX, 0, String::new());
        self.candidates(|index, state| {
            let text = state.difference(found);
            if text.len() < nearest.0 {
                nearest = (text.len(), index, text);
            }
        });
        let (_, index, text) = nearest;
        let pending = self.pending.len();
        format!(
            "no prefix of the {pending} pending commits explains what is there; with {index} of them: {text}"
        )
    }

    /// The database was reopened and holds `found`: checks that it may, and takes it as durable.
    pub fn recovered(&mut self, found: State) -> Result<Outcome, String> {
        let outcome = self.explain(&found)?;
        self.working = found.clone();
        self.base = found;
        self.pending.clear();
        self.active.clear();
        self.in_doubt = false;
        Ok(outcome)
    }

    /// The keys of a table of the working state from `key` on; none if there is no such table.
    pub fn keys_from<'m>(&'m self, table: &str, key: &'m [u8]) -> impl Iterator<Item = &'m Key> {
        let rows = self.working.tables.get(table);
        let from = (Bound::Included(key), Bound::Unbounded);
        rows.into_iter().flat_map(move |rows| rows.range::<[u8], _>(from)).map(|(key, _)| key)
    }

    /// The rows of a table of the working state between two bounds.
    pub fn range<'m>(
        &'m self,
        table: &str,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
    ) -> impl DoubleEndedIterator<Item = (&'m Key, &'m Value)> {
        let rows = self.working.tables.get(table).expect("the table exists");
        rows.range::<[u8], _>((lower, upper))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(n: u32) -> Value {
        Value { len: n, hash: u64::from(n) }
    }

    fn model_with_two_pending_commits() -> (Model, State, State, State) {
        let mut model = Model::default();
        model.create("t");
        model.set("t", b"a", Some(value(1)));
        model.commit();
        model.all_durable();
        let base = model.working().clone();
        model.set("t", b"a", Some(value(2)));
        model.commit();
        let one = model.working().clone();
        model.set("t", b"b", Some(value(3)));
        model.set("t", b"a", None);
        model.commit_in_doubt();
        let two = model.working().clone();
        (model, base, one, two)
    }

    #[test]
    fn a_crash_may_keep_any_prefix_of_the_pending_commits() {
        let (model, base, one, two) = model_with_two_pending_commits();
        let outcome = |found| model.clone().recovered(found).unwrap();
        assert_eq!(outcome(base), Outcome { kept: 0, lost: 2, in_doubt: Some(false) });
        assert_eq!(outcome(one), Outcome { kept: 1, lost: 1, in_doubt: Some(false) });
        assert_eq!(outcome(two), Outcome { kept: 2, lost: 0, in_doubt: Some(true) });
    }

    #[test]
    fn half_a_commit_or_a_later_one_without_an_earlier_is_refused() {
        let (model, base, _, two) = model_with_two_pending_commits();
        let mut half = two.clone();
        half.set("t", &Arc::from(&b"a"[..]), Some(value(2)));
        assert!(model.explain(&half).is_err());
        let mut skipped = base;
        skipped.set("t", &Arc::from(&b"b"[..]), Some(value(3)));
        assert!(model.explain(&skipped).is_err());
        assert!(model.explain(&State::default()).is_err(), "what was durable cannot go");
    }

    #[test]
    fn rolling_back_restores_rows_and_tables_to_each_savepoint() {
        let mut model = Model::default();
        model.create("t");
        model.set("t", b"a", Some(value(1)));
        model.commit();
        let start = model.working().clone();
        model.set("t", b"a", Some(value(2)));
        let mark = model.mark();
        let middle = model.working().clone();
        model.rename("t", "u");
        model.set("u", b"a", None);
        model.drop_table("u");
        model.create("t");
        assert_eq!(model.committed(), start);
        model.rollback_to(mark);
        assert_eq!(*model.working(), middle);
        model.rollback();
        assert_eq!(*model.working(), start);
    }
}
