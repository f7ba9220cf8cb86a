//! Each transaction by itself: what it read of others, what it wrote, and whether it saw its own writes.

use std::collections::BTreeMap;
use std::ops::Range;

use super::history::{Element, History, Key, KeyKind, Op};
use super::violation::{Anomaly, Violation};

/// What a transaction did to and learnt of the rest.
#[derive(Debug, Default)]
pub(super) struct Effects<'h> {
    /// What it found under each key, without what it had put there itself.
    pub(super) reads: Vec<(Key, &'h [Element])>,
    /// What it wrote and did not take back, by key, in order.
    pub(super) writes: Vec<(Key, Vec<Element>)>,
    /// What it wrote and took back.
    pub(super) undone: Vec<(Key, Element)>,
    /// What it counted.
    pub(super) counts: Vec<Count>,
}

/// A count of keys, and what the transaction knew by its other operations.
#[derive(Debug)]
pub(super) struct Count {
    pub(super) keys: Range<Key>,
    pub(super) found: u64,
    /// Keys it had written or read, and whether they were there.
    pub(super) known: BTreeMap<Key, bool>,
}

/// What a transaction knows of one key.
#[derive(Default)]
struct Local<'h> {
    /// What others left there.
    base: Option<&'h [Element]>,
    /// Its own writes by operation.
    writes: Vec<(usize, Element)>,
}

impl Local<'_> {
    fn is_there(&self) -> Option<bool> {
        if self.writes.is_empty() { self.base.map(|base| !base.is_empty()) } else { Some(true) }
    }
}

pub(super) fn all(history: &History) -> Result<Vec<Effects<'_>>, Violation> {
    (0..history.transactions.len() as u32).map(|index| of(history, index)).collect()
}

fn of(history: &History, index: u32) -> Result<Effects<'_>, Violation> {
    let mut effects = Effects::default();
    let mut keys: BTreeMap<Key, Local<'_>> = BTreeMap::new();
    let internal =
        |what: String| Violation::of_transactions(Anomaly::Internal, what, history, std::iter::once(index));
    for (at, op) in history.transactions[index as usize].ops.iter().enumerate() {
        match op {
            Op::Append { key, element } | Op::Write { key, element } => {
                keys.entry(*key).or_default().writes.push((at, *element));
            }
            Op::RollBack { to } => {
                for (key, local) in &mut keys {
                    let kept = local.writes.partition_point(|(at, _)| at < to);
                    effects.undone.extend(local.writes.drain(kept..).map(|(_, element)| (*key, element)));
                }
            }
            Op::Read { key, found } => {
                let local = keys.entry(*key).or_default();
                if !shows_own(history.keys[*key as usize], local, found) {
                    return Err(internal(format!(
                        "T{index} does not see its own writes under key {key}: {op}"
                    )));
                }
                match (local.base, others_part(history.keys[*key as usize], local, found)) {
                    (Some(before), Some(now)) if before != now => {
                        return Err(internal(format!("T{index} reads key {key} twice, differently: {op}")));
                    }
                    (None, Some(now)) => {
                        local.base = Some(now);
                        effects.reads.push((*key, now));
                    }
                    _ => {}
                }
            }
            Op::Len { keys: counted, count } => {
                let known = keys.range(counted.clone()).filter_map(|(key, l)| Some((*key, l.is_there()?)));
                effects.counts.push(Count { keys: counted.clone(), found: *count, known: known.collect() });
            }
        }
    }
    effects.writes = keys
        .into_iter()
        .filter(|(_, local)| !local.writes.is_empty())
        .map(|(key, local)| (key, local.writes.into_iter().map(|(_, element)| element).collect()))
        .collect();
    Ok(effects)
}

/// Whether a read shows what the transaction has written itself.
fn shows_own(kind: KeyKind, local: &Local<'_>, found: &[Element]) -> bool {
    let mut own = local.writes.iter().map(|(_, element)| element);
    match kind {
        KeyKind::List => {
            let tail = found.len().checked_sub(own.len()).map(|base| &found[base..]);
            tail.is_some_and(|tail| tail.iter().eq(own))
        }
        KeyKind::Register => own.next_back().is_none_or(|last| found == [*last]),
    }
}

/// What of a read that shows its own is others'; `None`: that is hidden.
fn others_part<'h>(kind: KeyKind, local: &Local<'_>, found: &'h [Element]) -> Option<&'h [Element]> {
    match kind {
        KeyKind::List => Some(&found[..found.len() - local.writes.len()]),
        KeyKind::Register => local.writes.is_empty().then_some(found),
    }
}
