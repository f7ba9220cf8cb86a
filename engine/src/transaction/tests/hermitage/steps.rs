//! The steps of schedules: what one transaction does between two of another.

use std::collections::BTreeMap;

use super::stage::Layout;
use crate::{Result, Table, TableDef, Transaction};

/// A table of numbers.
pub(super) const fn numbers(name: &str) -> TableDef<'_, u64, u64> {
    TableDef::new(name)
}

pub(super) type Work = Box<dyn FnOnce(&Transaction, Layout) -> Result<Vec<u64>> + Send>;

/// What becomes of a transaction that gets `Conflict`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnConflict {
    RollBack,
    GoOn,
}

/// What a transaction is to do next. The answer is the values it saw.
pub(super) enum Step {
    Work(Work, OnConflict),
    Commit,
    RollBack,
}

/// Any work.
pub(super) fn work(work: impl FnOnce(&Transaction, Layout) -> Result<Vec<u64>> + Send + 'static) -> Step {
    Step::Work(Box::new(work), OnConflict::RollBack)
}

/// Work on the table of a key.
fn on_key(
    key: u64,
    run: impl FnOnce(&mut Table<'_, u64, u64>) -> Result<Option<u64>> + Send + 'static,
) -> Step {
    work(move |tx, layout| {
        let mut table = tx.open_table(numbers(layout.table_of(key)))?;
        Ok(run(&mut table)?.into_iter().collect())
    })
}

pub(super) fn get(key: u64) -> Step {
    on_key(key, move |table| table.get(key))
}

/// `get_for_update`.
pub(super) fn lock(key: u64) -> Step {
    on_key(key, move |table| table.get_for_update(key))
}

/// A blind write.
pub(super) fn put(key: u64, value: u64) -> Step {
    on_key(key, move |table| table.put(key, value).map(|()| None))
}

/// A write that sees what it replaces.
pub(super) fn insert(key: u64, value: u64) -> Step {
    on_key(key, move |table| table.insert(key, value))
}

/// A blind removal.
pub(super) fn delete(key: u64) -> Step {
    on_key(key, move |table| table.delete(key).map(|()| None))
}

/// A removal that sees what it removes.
pub(super) fn remove(key: u64) -> Step {
    on_key(key, move |table| table.remove(key))
}

/// The values that the predicate is true of, by key.
pub(super) fn scan(is_wanted: fn(u64) -> bool) -> Step {
    work(move |tx, layout| Ok(rows_of(tx, layout)?.into_values().filter(|value| is_wanted(*value)).collect()))
}

/// As [`scan`], from the last row to the first.
pub(super) fn scan_back(is_wanted: fn(u64) -> bool) -> Step {
    work(move |tx, layout| {
        let mut rows = BTreeMap::new();
        for name in layout.tables() {
            for row in tx.open_table(numbers(name))?.iter()?.rev() {
                rows.extend([row?]);
            }
        }
        Ok(rows.into_values().filter(|value| is_wanted(*value)).collect())
    })
}

/// Adds to the value of every row.
pub(super) fn add_to_all(amount: u64) -> Step {
    work(move |tx, layout| {
        for (key, value) in rows_of(tx, layout)? {
            tx.open_table(numbers(layout.table_of(key)))?.put(key, value + amount)?;
        }
        Ok(Vec::new())
    })
}

/// Deletes the rows that have this value.
pub(super) fn delete_where(value: u64) -> Step {
    work(move |tx, layout| {
        for (key, _) in rows_of(tx, layout)?.into_iter().filter(|row| row.1 == value) {
            tx.open_table(numbers(layout.table_of(key)))?.delete(key)?;
        }
        Ok(Vec::new())
    })
}

fn rows_of(tx: &Transaction, layout: Layout) -> Result<BTreeMap<u64, u64>> {
    let mut rows = BTreeMap::new();
    for name in layout.tables() {
        for row in tx.open_table(numbers(name))?.iter()? {
            rows.extend([row?]);
        }
    }
    Ok(rows)
}

/// Does the step's work, then takes it back to a savepoint before it.
pub(super) fn taken_back(step: Step) -> Step {
    let Step::Work(run, on_conflict) = step else { panic!("only work can be taken back") };
    let run = move |tx: &Transaction, layout: Layout| {
        let savepoint = tx.savepoint()?;
        let seen = run(tx, layout)?;
        tx.rollback_to(savepoint)?;
        Ok(seen)
    };
    Step::Work(Box::new(run), on_conflict)
}

/// The step, after whose `Conflict` the transaction goes on.
pub(super) fn kept(step: Step) -> Step {
    let Step::Work(run, _) = step else { panic!("nothing goes on after it") };
    Step::Work(run, OnConflict::GoOn)
}

pub(super) fn commit() -> Step {
    Step::Commit
}

pub(super) fn roll_back() -> Step {
    Step::RollBack
}
