//! What the database must hold, by what the parent was told.
//!
//! I1. A transaction is applied when it is acknowledged, or when the ledger proves that it was committed; never otherwise.
//! I2. A worker has at most one transaction announced and not settled.

use std::collections::BTreeMap;

use super::protocol::{Change, Event, big_value};
use super::{ACCOUNT_COUNT, FIRST_BALANCE, account_name, ledger_key};

/// The tables, as they must be.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) characters: BTreeMap<String, String>,
    pub(super) accounts: BTreeMap<String, i128>,
    pub(super) ledger: BTreeMap<String, u64>,
    in_doubt: BTreeMap<usize, Announced>,
    /// Counts since the last [`Model::settle`].
    pub(super) told: Told,
}

#[derive(Clone, Debug)]
struct Announced {
    sequence: u64,
    changes: Vec<Change>,
}

/// What the child told, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) acknowledged: u64,
    pub(super) refused: u64,
    pub(super) changes: u64,
    pub(super) rollbacks: u64,
    pub(super) rolled_back_changes: u64,
    pub(super) audits: u64,
    pub(super) pages_stolen: u64,
    pub(super) checkpoints: u64,
    pub(super) structure_changes: u64,
    pub(super) evictions: u64,
}

/// What became of the transactions that were announced but not acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) present: u64,
    pub(super) absent: u64,
}

impl Model {
    /// A database as `setup` makes it.
    pub(super) fn new(characters: BTreeMap<String, String>, workers: usize) -> Model {
        Model {
            characters,
            accounts: (0..ACCOUNT_COUNT).map(|n| (account_name(n), i128::from(FIRST_BALANCE))).collect(),
            ledger: (0..workers).map(|worker| (ledger_key(worker), 0)).collect(),
            ..Model::default()
        }
    }

    /// Takes one event in. An error is a breach of the protocol, or what the child complains about.
    pub(super) fn hear(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Commit { worker, sequence, changes } => {
                let last =
                    *self.ledger.get(&ledger_key(worker)).ok_or(format!("there is no worker {worker}"))?;
                if sequence != last + 1 {
                    return Err(format!("worker {worker} announced transaction {sequence} after {last}"));
                }
                if self.in_doubt.insert(worker, Announced { sequence, changes }).is_some() {
                    return Err(format!("worker {worker} announced two transactions at once"));
                }
            }
            Event::Acknowledged { worker, sequence } => {
                let changes = self.take(worker, sequence)?;
                self.told.acknowledged += 1;
                self.told.changes += changes.len() as u64;
                self.apply(worker, sequence, changes);
            }
            Event::Refused { worker, sequence } => {
                self.take(worker, sequence)?;
                self.told.refused += 1;
            }
            Event::RolledBack { changes } => {
                self.told.rollbacks += 1;
                self.told.rolled_back_changes += changes;
            }
            Event::Audited => self.told.audits += 1,
            Event::Counters { pages_stolen, checkpoints, structure_changes, evictions } => {
                self.told = Told { pages_stolen, checkpoints, structure_changes, evictions, ..self.told };
            }
            Event::Failed { what } => return Err(what),
            Event::Ready | Event::Recovering { .. } => {}
        }
        Ok(())
    }

    fn take(&mut self, worker: usize, sequence: u64) -> Result<Vec<Change>, String> {
        match self.in_doubt.remove(&worker) {
            Some(announced) if announced.sequence == sequence => Ok(announced.changes),
            _ => Err(format!("worker {worker} settled transaction {sequence}, which it had not announced")),
        }
    }

    fn apply(&mut self, worker: usize, sequence: u64, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put { key, value } => {
                    self.characters.insert(key, value);
                }
                Change::PutBig { key, bytes, seed } => {
                    self.characters.insert(key, big_value(bytes, seed));
                }
                Change::Delete { key } => {
                    self.characters.remove(&key);
                }
                Change::Transfer { from, to, cents } => {
                    *self.accounts.entry(from).or_default() -= i128::from(cents);
                    *self.accounts.entry(to).or_default() += i128::from(cents);
                }
            }
        }
        self.ledger.insert(ledger_key(worker), sequence);
    }

    /// After a crash: decides the announced transactions by the ledger that was recovered. A ledger that none of them explains is left to
    /// the comparison, which will name it.
    pub(super) fn settle(&mut self, recovered_ledger: &BTreeMap<String, u64>) -> Settled {
        let mut settled = Settled::default();
        for (worker, announced) in std::mem::take(&mut self.in_doubt) {
            if recovered_ledger.get(&ledger_key(worker)) == Some(&announced.sequence) {
                settled.present += 1;
                self.apply(worker, announced.sequence, announced.changes);
            } else {
                settled.absent += 1;
            }
        }
        settled
    }

    /// What the balances must add up to.
    pub(super) fn total() -> i128 {
        i128::from(ACCOUNT_COUNT * FIRST_BALANCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        Model::new(BTreeMap::from([("0041".to_owned(), "A".to_owned())]), 2)
    }

    fn put(key: &str, value: &str) -> Change {
        Change::Put { key: key.into(), value: value.into() }
    }

    fn commit(worker: usize, sequence: u64, changes: Vec<Change>) -> Event {
        Event::Commit { worker, sequence, changes }
    }

    #[test]
    fn an_acknowledged_transaction_counts_and_an_announced_one_waits() {
        let mut model = model();
        model.hear(commit(0, 1, vec![put("0042", "B"), Change::Delete { key: "0041".into() }])).unwrap();
        assert!(model.characters.contains_key("0041"));
        model.hear(Event::Acknowledged { worker: 0, sequence: 1 }).unwrap();
        assert_eq!(model.characters, BTreeMap::from([("0042".to_owned(), "B".to_owned())]));
        assert_eq!(model.ledger["worker-0"], 1);
    }

    #[test]
    fn the_ledger_decides_what_was_in_doubt() {
        let mut model = model();
        model.hear(commit(0, 1, vec![put("0042", "B")])).unwrap();
        model.hear(commit(1, 1, vec![put("0043", "C")])).unwrap();
        let recovered = BTreeMap::from([("worker-0".to_owned(), 1), ("worker-1".to_owned(), 0)]);
        assert_eq!(model.settle(&recovered), Settled { present: 1, absent: 1 });
        assert!(model.characters.contains_key("0042") && !model.characters.contains_key("0043"));
        assert_eq!(model.ledger, recovered);
    }

    #[test]
    fn a_refused_transaction_leaves_nothing_and_its_number_is_used_again() {
        let mut model = model();
        model.hear(commit(0, 1, vec![put("0042", "B")])).unwrap();
        model.hear(Event::Refused { worker: 0, sequence: 1 }).unwrap();
        assert!(!model.characters.contains_key("0042"));
        model.hear(commit(0, 1, vec![])).unwrap();
    }

    #[test]
    fn transfers_keep_the_total_in_any_order() {
        let mut model = model();
        let transfer = |from: u64, to: u64| Change::Transfer {
            from: account_name(from),
            to: account_name(to),
            cents: 5,
        };
        model.hear(commit(0, 1, vec![transfer(1, 2), transfer(2, 3)])).unwrap();
        model.hear(commit(1, 1, vec![transfer(3, 1)])).unwrap();
        model.hear(Event::Acknowledged { worker: 1, sequence: 1 }).unwrap();
        model.hear(Event::Acknowledged { worker: 0, sequence: 1 }).unwrap();
        assert_eq!(model.accounts.values().sum::<i128>(), Model::total());
        assert_eq!(model.accounts["account-0001"], 1000);
    }

    #[test]
    fn a_worker_that_breaks_the_protocol_is_found_out() {
        assert!(model().hear(commit(2, 1, vec![])).is_err(), "no such worker");
        assert!(model().hear(commit(0, 2, vec![])).is_err(), "a number left out");
        assert!(model().hear(Event::Acknowledged { worker: 0, sequence: 1 }).is_err(), "never announced");
        let mut model = model();
        model.hear(commit(0, 1, vec![])).unwrap();
        assert!(model.hear(commit(0, 1, vec![])).is_err(), "two at once");
        assert_eq!(model.hear(Event::Failed { what: "no".into() }), Err("no".into()));
    }
}
