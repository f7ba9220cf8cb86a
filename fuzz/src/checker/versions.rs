//! Who wrote what, what of it took effect, and whether every single read can be.

use std::collections::{HashMap, HashSet};

use super::effects::Effects;
use super::history::{Element, History, Key, KeyKind, Level, Outcome};
use super::violation::{Anomaly, Violation};

/// What became of an element inside its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The last its transaction wrote under the key.
    Last,
    /// Followed by another of its transaction.
    Intermediate,
    /// Taken back to a savepoint.
    Undone,
}

#[derive(Clone, Copy, Debug)]
struct Origin {
    transaction: u32,
    key: Key,
    fate: Fate,
}

/// The versions of all keys.
#[derive(Debug)]
pub(super) struct Versions {
    origins: HashMap<Element, Origin>,
    /// Whether a transaction took effect.
    pub(super) effective: Vec<bool>,
    /// Those that read a commit that a crash took back, and may have.
    pub(super) astray: Vec<bool>,
}

impl Versions {
    /// Checks every read of every transaction.
    pub(super) fn of(history: &History, effects: &[Effects<'_>]) -> Result<Versions, Violation> {
        let origins = origins(history, effects)?;
        let effective = history.transactions.iter().map(|t| t.outcome == Outcome::Committed).collect();
        let astray = vec![false; effects.len()];
        let mut versions = Versions { origins, effective, astray };
        versions.settle(history, effects)?;
        for (reader, effects) in effects.iter().enumerate() {
            for (key, found) in &effects.reads {
                versions.check_read(history, reader as u32, *key, found)?;
            }
        }
        Ok(versions)
    }

    /// The transaction that wrote an element which has been checked.
    pub(super) fn writer(&self, element: Element) -> u32 {
        self.origins[&element].transaction
    }

    /// Settles unknown outcomes by what there is of them, and finds lost and half commits.
    fn settle(&mut self, history: &History, effects: &[Effects<'_>]) -> Result<(), Violation> {
        let mut seen: HashSet<Element> = HashSet::new();
        for (transaction, effects) in history.transactions.iter().zip(effects) {
            // Read by somebody whose reads count: the final reader is among them.
            if transaction.outcome == Outcome::Committed {
                let registers = |(key, _): &&(Key, _)| history.keys[*key as usize] == KeyKind::Register;
                seen.extend(effects.reads.iter().filter(registers).flat_map(|(_, found)| *found));
            }
        }
        seen.extend(history.final_state.iter().flatten());
        for (index, transaction) in history.transactions.iter().enumerate() {
            let writes = &effects[index].writes;
            let of_lists = writes.iter().filter(|(key, _)| history.keys[*key as usize] == KeyKind::List);
            let missing = of_lists.flat_map(|(_, elements)| elements).find(|element| !seen.contains(element));
            let there = writes.iter().flat_map(|(_, elements)| elements).find(|e| seen.contains(e));
            let anomaly = match (transaction.outcome, missing, there) {
                (Outcome::Committed, Some(_), None) => Anomaly::Lost,
                (Outcome::Committed | Outcome::Unknown, Some(_), Some(_)) => Anomaly::Half,
                (Outcome::Unknown, None, Some(_)) => {
                    self.effective[index] = true;
                    continue;
                }
                _ => continue,
            };
            let name = |element: Option<&Element>| element.map_or("nothing".to_owned(), Element::to_string);
            let what = format!("of T{index}, {} is missing, and {} is there", name(missing), name(there));
            return Err(Violation::of_transactions(anomaly, what, history, [index as u32]));
        }
        Ok(())
    }

    fn check_read(
        &mut self,
        history: &History,
        reader: u32,
        key: Key,
        found: &[Element],
    ) -> Result<(), Violation> {
        let last_read = history.transactions.len() as u32 - 1;
        let full = &history.final_state[key as usize];
        let is_prefix = history.keys[key as usize] == KeyKind::List && full.starts_with(found);
        if !is_prefix || reader == last_read {
            self.check_elements(history, reader, key, found)?;
        }
        let astray = self.astray[reader as usize];
        if !is_prefix && history.keys[key as usize] == KeyKind::List && !astray {
            let what = format!("T{reader} read key {key} as a list that is not how the final one begins");
            return Err(Violation::of_transactions(Anomaly::NotAPrefix, what, history, [reader]));
        }
        match found.last().map(|element| (element, self.origins[element])) {
            Some((element, origin)) if origin.fate == Fate::Intermediate => {
                let what =
                    format!("T{reader} read key {key} at {element}, in the midst of its writer's work");
                let both = [reader, origin.transaction];
                Err(Violation::of_transactions(Anomaly::G1b, what, history, both))
            }
            _ => Ok(()),
        }
    }

    /// Each element for itself: somebody wrote it here, and it was not taken back.
    fn check_elements(
        &mut self,
        history: &History,
        reader: u32,
        key: Key,
        found: &[Element],
    ) -> Result<(), Violation> {
        let may_stray = {
            let reader = reader as usize;
            !self.effective[reader] && history.transactions[reader].level != Level::ReadOnly
        };
        let mut met = HashSet::new();
        for element in found {
            let origin = self.origins.get(element).filter(|origin| origin.key == key);
            let fails = |anomaly, why: &str| {
                let what = format!("T{reader} read {element} under key {key}, {why}");
                let both = [Some(reader), origin.map(|origin| origin.transaction)];
                Err(Violation::of_transactions(anomaly, what, history, both.into_iter().flatten()))
            };
            let Some(origin) = origin else {
                return fails(Anomaly::Garbage, "which nobody wrote there");
            };
            let writer = origin.transaction as usize;
            if !met.insert(*element) {
                return fails(Anomaly::Duplicate, "more than once");
            }
            if writer == reader as usize {
                return fails(Anomaly::Internal, "its own, before it wrote it or after it took it back");
            }
            if origin.fate == Fate::Undone {
                return fails(Anomaly::G1a, "which was taken back to a savepoint");
            }
            match history.transactions[writer].outcome {
                Outcome::Aborted => return fails(Anomaly::G1a, "whose transaction rolled back"),
                Outcome::Unknown if !self.effective[writer] && !may_stray => {
                    return fails(Anomaly::TakenBack, "which was gone afterwards");
                }
                Outcome::Unknown if !self.effective[writer] => self.astray[reader as usize] = true,
                Outcome::Unknown | Outcome::Committed => {}
            }
        }
        Ok(())
    }
}

fn origins(history: &History, effects: &[Effects<'_>]) -> Result<HashMap<Element, Origin>, Violation> {
    let written = effects.iter().map(|e| e.writes.iter().map(|w| w.1.len()).sum::<usize>() + e.undone.len());
    let mut origins = HashMap::with_capacity(written.sum());
    for (transaction, effects) in effects.iter().enumerate() {
        let transaction = transaction as u32;
        let written = effects.writes.iter().flat_map(|(key, elements)| {
            elements.iter().enumerate().map(|(at, element)| {
                let last = at + 1 == elements.len();
                (*key, *element, if last { Fate::Last } else { Fate::Intermediate })
            })
        });
        let undone = effects.undone.iter().map(|(key, element)| (*key, *element, Fate::Undone));
        for (key, element, fate) in written.chain(undone) {
            if let Some(other) = origins.insert(element, Origin { transaction, key, fate }) {
                let both = [other.transaction, transaction];
                let what = format!("{element} was written twice");
                return Err(Violation::of_transactions(Anomaly::Malformed, what, history, both));
            }
        }
    }
    Ok(origins)
}
