//! The recovered database against the model: every row of every table, the balances, and the engine's own verification.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::ControlFlow;

use hamal::{Database, Key, ReadTable, Snapshot, TableDef, Value};

use super::model::{Model, Settled};
use super::{ACCOUNTS, CHARACTERS, LEDGER};
use crate::commands::check::finding_line;
use crate::failure::Result;
use crate::output::cut;
use crate::text::{self, grouped};

/// Differences named in full; the others are counted.
const NAMED: usize = 8;

/// What a comparison found.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    pub(super) settled: Settled,
    pub(super) rows: u64,
    pub(super) balance: i128,
    pub(super) pages: u64,
    /// What is wrong; empty: nothing.
    pub(super) wrong: Vec<String>,
    pub(super) wrong_count: u64,
}

impl Verdict {
    fn wrong(&mut self, what: impl FnOnce() -> String) {
        self.wrong_count += 1;
        if self.wrong.len() < NAMED {
            self.wrong.push(what());
        }
    }
}

/// Settles what was in doubt, then compares everything.
pub(super) fn verify(db: &Database, model: &mut Model) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    {
        let snapshot = db.snapshot()?;
        let ledger = rows(&snapshot, LEDGER)?;
        verdict.settled = model.settle(&ledger);
        compare(&snapshot, LEDGER, model.ledger.iter().map(|(k, v)| (k, *v)), &mut verdict)?;
        compare(&snapshot, CHARACTERS, model.characters.iter().map(|(k, v)| (k, v.clone())), &mut verdict)?;

        let accounts = rows(&snapshot, ACCOUNTS)?;
        verdict.balance = accounts.values().map(|cents| i128::from(*cents)).sum();
        if verdict.balance != Model::total() {
            let found = verdict.balance;
            verdict.wrong(|| format!("the balances add up to {found}, not {}", Model::total()));
        }
        // A balance below zero would be the model's: it has no bytes in the table and shows as a difference.
        let expected = model.accounts.iter().map(|(k, v)| (k, u64::try_from(*v).unwrap_or(u64::MAX)));
        compare(&snapshot, ACCOUNTS, expected, &mut verdict)?;
    }
    let report = db.verify(&mut |_| ControlFlow::Continue(()))?;
    verdict.pages = report.pages;
    for finding in &report.findings {
        verdict.wrong(|| format!("verify: {}", finding_line(finding)));
    }
    Ok(verdict)
}

/// All rows of a small table.
fn rows<V>(snapshot: &Snapshot, table: TableDef<'_, &'static str, V>) -> Result<BTreeMap<String, V::Owned>>
where
    V: Value,
{
    let table = snapshot.open_table(table)?;
    Ok(table.iter()?.collect::<hamal::Result<_>>()?)
}

/// Walks the table and the model side by side, both sorted by key.
fn compare<'m, V>(
    snapshot: &Snapshot,
    table: TableDef<'_, &'static str, V>,
    expected: impl Iterator<Item = (&'m String, V::Owned)>,
    verdict: &mut Verdict,
) -> Result<()>
where
    V: Value,
    V::Owned: PartialEq + Display,
{
    let name = table.name();
    let table = snapshot.open_table(table)?;
    let mut expected = expected.peekable();
    let mut expected_rows = 0;
    let mut found_rows = 0;
    for row in table.iter()? {
        let (key, found) = row?;
        found_rows += 1;
        while let Some((missing, _)) = expected.next_if(|(expected, _)| **expected < key) {
            expected_rows += 1;
            verdict.wrong(|| format!("{name}: {missing} is missing"));
        }
        match expected.next_if(|(expected, _)| **expected == key) {
            Some((_, value)) => {
                expected_rows += 1;
                if found != value {
                    verdict.wrong(|| format!("{name}: {key} is {}, not {}", shown(&found), shown(&value)));
                }
            }
            None => verdict.wrong(|| format!("{name}: {key} should not be there")),
        }
    }
    for (missing, _) in expected {
        expected_rows += 1;
        verdict.wrong(|| format!("{name}: {missing} is missing"));
    }
    check_len(&table, name, expected_rows, verdict)?;
    verdict.rows += found_rows;
    Ok(())
}

fn check_len<K: Key, V: Value>(
    table: &ReadTable<'_, K, V>,
    name: &str,
    expected: u64,
    verdict: &mut Verdict,
) -> Result<()> {
    let len = table.len()?;
    if len != expected {
        verdict.wrong(|| format!("{name}: its count of rows is {}, not {}", grouped(len), grouped(expected)));
    }
    Ok(())
}

fn shown(value: &impl Display) -> String {
    cut(&text::escape(value.to_string().as_bytes()), 60)
}

#[cfg(test)]
mod tests;
