//! Comparing what the database holds with what it must hold.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use hamal::{Database, ReadTable};

use super::{Doing, Session, Step, Stop, expect_same};
use crate::model::{Hex, Model, State};
use crate::tally::Tally;
use crate::value::Value;

/// Any table of bytes.
pub(crate) type Bytes<'t> = ReadTable<'t, &'static [u8], &'static [u8]>;

/// Reads every row of every table of the committed state, and checks that counts and order are right.
pub fn read_state(db: &Database) -> Step<State> {
    let snapshot = db.snapshot().doing(|| "snapshot".to_owned())?;
    let mut state = State::default();
    for table in snapshot.tables().doing(|| "list the tables".to_owned())? {
        let name = table.name;
        let rows = snapshot.open_bytes_table(&name).doing(|| format!("open table {name}"))?;
        let found = state.tables.entry(name.clone()).or_default();
        let mut last: Option<Vec<u8>> = None;
        for row in rows.iter().doing(|| format!("iterate over {name}"))? {
            let (key, value) = row.doing(|| format!("read {name} on from {:?}", last.as_deref().map(hex)))?;
            if last.as_ref().is_some_and(|last| *last >= key) {
                let last = last.as_deref().map(hex);
                return Err(Stop::Wrong(format!("{name}: {} comes after {last:?}", Hex(&key))));
            }
            found.insert(Arc::from(&key[..]), Value::of(&value));
            last = Some(key);
        }
        let count = rows.len().doing(|| format!("count {name}"))?;
        expect_same(&(found.len() as u64), &count, || format!("rows of {name} by its count"))?;
        expect_same(&count, &table.rows, || format!("rows of {name} by the list of tables"))?;
    }
    Ok(state)
}

fn hex(key: &[u8]) -> String {
    Hex(key).to_string()
}

/// Verifies every page and fails if anything is wrong with any.
pub fn verify(db: &Database, tally: &mut Tally) -> Step {
    let report = db.verify(&mut |_| ControlFlow::Continue(())).doing(|| "verify".to_owned())?;
    tally.verifications += 1;
    tally.pages_verified += report.pages;
    if report.findings.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = report.findings.iter().take(8).map(|finding| format!("{finding:?}")).collect();
    Err(Stop::Unsound(format!("verify has {} findings: {}", report.findings.len(), shown.join("; "))))
}

/// From which ends a range is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    Forward,
    Backward,
    Both,
}

/// Walks the rows between two bounds, at most `limit` of them, and compares each with the model.
pub fn compare_range(
    table: &Bytes<'_>,
    model: &Model,
    (lower, upper): (Bound<&[u8]>, Bound<&[u8]>),
    walk: &mut dyn FnMut() -> bool,
    limit: usize,
) -> Step {
    let name = table.name().to_owned();
    let what = |place: &str| format!("{name}: range {lower:x?}..{upper:x?}: {place}");
    let mut found = table.range((lower, upper)).doing(|| what("start"))?;
    let mut expected = model.range(&name, lower, upper);
    for step in 0..limit {
        let (end, expected, found) = if walk() {
            ("front", expected.next(), found.next())
        } else {
            ("back", expected.next_back(), found.next_back())
        };
        let found = found.transpose().doing(|| what(end))?;
        let found = found.map(|(key, value)| (hex(&key), Value::of(&value)));
        let expected = expected.map(|(key, value)| (hex(key), *value));
        expect_same(&expected, &found, || what(&format!("row {step}, from the {end}")))?;
        if found.is_none() {
            break;
        }
    }
    Ok(())
}

impl Session<'_> {
    /// Compares everything that is committed with the model.
    pub fn compare(&mut self) -> Step {
        self.trace.say(|| "compare everything".to_owned());
        let found = read_state(self.db)?;
        self.tally.comparisons += 1;
        if found == *self.model.working() {
            return Ok(());
        }
        Err(Stop::Wrong(format!("a full read differs: {}", self.model.working().difference(&found))))
    }

    /// Verifies every page.
    pub fn verify(&mut self) -> Step {
        self.trace.say(|| "verify".to_owned());
        verify(self.db, self.tally)
    }

    /// Compares some of what a snapshot shows with the model.
    pub(super) fn compare_snapshot(&mut self) -> Step {
        let snapshot = self.db.snapshot().doing(|| "snapshot".to_owned())?;
        let names: Vec<String> = self.model.working().tables.keys().cloned().collect();
        for name in names {
            let table = snapshot.open_bytes_table(&name).doing(|| format!("open table {name}"))?;
            self.compare_some_range(&table)?;
        }
        Ok(())
    }

    /// Compares a drawn range of a table, from a drawn end or both.
    pub(super) fn compare_some_range(&mut self, table: &Bytes<'_>) -> Step {
        let name = table.name().to_owned();
        let (mut lower, mut upper) = (self.some_bound(&name), self.some_bound(&name));
        if let (Some((from, _)), Some((to, _))) = (&lower, &upper)
            && from > to
        {
            std::mem::swap(&mut lower, &mut upper);
        }
        let [lower, upper] = [lower, upper].map(|bound| match bound {
            None => Bound::Unbounded,
            Some((key, true)) => Bound::Included(key),
            Some((key, false)) => Bound::Excluded(key),
        });
        let walk = *self.choices.pick(&[Walk::Forward, Walk::Backward, Walk::Both]);
        self.trace.say(|| format!("  {name}: compare range {lower:x?}..{upper:x?} {walk:?}"));
        let limit = *self.choices.pick(&[5, 40, 400]);
        let choices = &mut *self.choices;
        let mut from_front = || match walk {
            Walk::Forward => true,
            Walk::Backward => false,
            Walk::Both => choices.once_in(2),
        };
        let bounds = (as_slice(&lower), as_slice(&upper));
        if is_refused_by_maps(bounds) {
            return Ok(());
        }
        compare_range(table, self.model, bounds, &mut from_front, limit)?;
        self.tally.scans += 1;
        Ok(())
    }

    /// A key and whether the bound includes it; `None`: no bound.
    fn some_bound(&mut self, name: &str) -> Option<(Vec<u8>, bool)> {
        if self.choices.once_in(4) {
            return None;
        }
        Some((self.some_key(name), self.choices.once_in(2)))
    }
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    match bound {
        Bound::Included(key) => Bound::Included(key),
        Bound::Excluded(key) => Bound::Excluded(key),
        Bound::Unbounded => Bound::Unbounded,
    }
}

/// A `BTreeMap` panics where both bounds exclude the same key; there is nothing to compare then.
fn is_refused_by_maps(bounds: (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    matches!(bounds, (Bound::Excluded(lower), Bound::Excluded(upper)) if lower == upper)
}
