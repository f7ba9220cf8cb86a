//! What all clients of a life did and saw, and whether any serial order explains it: the one in which the log has their commits.
//!
//! H1. A transaction or snapshot sees the state that one commit left, and its own changes: whatever it was answered, committed or not, is
//!     what the model answers as of that commit. But for the row counts of a serializable transaction, which mean something only if it
//!     commits.
//! H2. A serializable transaction's answers are also what the model answers as of its own commit, row counts included: it might have
//!     run alone there. If it wrote nothing it might have run alone as of what it saw.
//! H3. What a transaction at snapshot isolation wrote, nobody else wrote between what it saw and its commit: the first committer
//!     wins. No row is written to a table that is gone.
//! H4. A snapshot sees nothing that a crash could take back then, unless somebody was told of it: what it sees was durable, or is no later
//!     than a commit of weaker durability.

use std::collections::HashMap;
use std::fmt;

use hamal::{Durability, Isolation};

use super::operation::{Answer, Operation, shown};
use super::world::{Effects, TableId, Undo, World};
use crate::model::Key;

/// Calls and their answers, in order.
pub(super) type Calls = Vec<(Operation, Answer)>;

/// A transaction.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) who: Who,
    pub(super) isolation: Isolation,
    pub(super) durability: Durability,
    pub(super) calls: Calls,
    /// LSN of the newest commit it saw; 0: none of this life.
    pub(super) seen_up_to: u64,
    pub(super) fate: Fate,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    RolledBack,
    /// At this LSN; `None`: it wrote nothing.
    Committed(Option<u64>),
}

/// A snapshot.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) who: Who,
    pub(super) calls: Calls,
    pub(super) seen_up_to: u64,
    /// The log was durable to here when it was taken.
    pub(super) durable: u64,
}

/// Who it was, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) client: usize,
    /// Of its transactions and snapshots.
    pub(super) number: u64,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {}, number {}", self.client, self.number)
    }
}

/// Everything that was done in one life.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) attempts: Vec<Attempt>,
    pub(super) looks: Vec<Look>,
}

/// A commit that has been checked and done in the world.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) lsn: u64,
    /// It is not certain: nobody was told.
    pub(super) is_relaxed: bool,
    pub(super) undo: Vec<Undo>,
}

/// Which answers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    All,
    AllButCounts,
}

impl History {
    /// Checks everything, and does the commits in `world`, which is as it was at the start of the life. Returns them, the oldest first.
    pub(super) fn check(&self, world: &mut World) -> Result<Vec<Commit>, String> {
        let mut order: Vec<(u64, usize)> = Vec::new();
        for (index, attempt) in self.attempts.iter().enumerate() {
            if let Fate::Committed(Some(lsn)) = attempt.fate {
                order.push((lsn, index));
            }
        }
        order.sort_unstable();
        if let Some(two) = order.windows(2).find(|two| two[0].0 == two[1].0) {
            return Err(format!("two commits have LSN {}", two[0].0));
        }
        // It may be a commit of the database's own, of a split or a merge, behind that of a client.
        let position = |seen_up_to: u64| order.partition_point(|commit| commit.0 <= seen_up_to);
        let mut views: Vec<Vec<usize>> = vec![Vec::new(); order.len() + 1];
        for (index, attempt) in self.attempts.iter().enumerate() {
            views[position(attempt.seen_up_to)].push(index);
        }
        let mut looks: Vec<Vec<&Look>> = vec![Vec::new(); order.len() + 1];
        for look in &self.looks {
            self.check_durable(look)?;
            looks[position(look.seen_up_to)].push(look);
        }
        let mut checker = Checker { world, effects: HashMap::new(), writers: Writers::default() };
        let mut commits = Vec::new();
        for at in 0..=order.len() {
            for index in &views[at] {
                checker.check_view(*index, &self.attempts[*index])?;
            }
            for look in &looks[at] {
                let what = format!("snapshot of {} as of {}", look.who, look.seen_up_to);
                checker.replay(&look.calls, Compare::All, &what)?;
                checker.world.take_back();
            }
            if let Some((lsn, index)) = order.get(at) {
                let attempt = &self.attempts[*index];
                let undo = checker.commit(*lsn, *index, attempt)?;
                let is_relaxed = attempt.durability != Durability::Sync;
                commits.push(Commit { lsn: *lsn, is_relaxed, undo });
            }
        }
        Ok(commits)
    }

    /// H4.
    fn check_durable(&self, look: &Look) -> Result<(), String> {
        let exposes = |attempt: &Attempt| {
            attempt.durability != Durability::Sync
                && match attempt.fate {
                    Fate::Committed(lsn) => lsn.unwrap_or(attempt.seen_up_to) >= look.seen_up_to,
                    Fate::RolledBack => false,
                }
        };
        if look.seen_up_to < look.durable || self.attempts.iter().any(exposes) {
            return Ok(());
        }
        Err(format!(
            "the snapshot of {} sees the commit at {}, of which nobody was told, and the log was durable to {} only",
            look.who, look.seen_up_to, look.durable
        ))
    }
}

/// The newest commit that wrote each row and each name.
#[derive(Debug, Default)]
struct Writers {
    rows: HashMap<(TableId, Key), u64>,
    names: HashMap<String, u64>,
}

struct Checker<'w> {
    world: &'w mut World,
    /// Of transactions at snapshot isolation that commit later.
    effects: HashMap<usize, Effects>,
    writers: Writers,
}

impl Checker<'_> {
    /// H1, and H2 for who wrote nothing.
    fn check_view(&mut self, index: usize, attempt: &Attempt) -> Result<(), String> {
        let is_exact = attempt.isolation == Isolation::Snapshot || attempt.fate == Fate::Committed(None);
        let compare = if is_exact { Compare::All } else { Compare::AllButCounts };
        let what = format!("{} as of what it saw, {}", describe(attempt), attempt.seen_up_to);
        self.replay(&attempt.calls, compare, &what)?;
        match (attempt.isolation, attempt.fate) {
            (Isolation::Snapshot, Fate::Committed(Some(_))) => {
                self.effects.insert(index, self.world.effects());
            }
            (_, Fate::Committed(None)) => {
                let effects = self.world.effects();
                if !effects.rows.is_empty() || !effects.names.is_empty() {
                    return Err(format!("{what}: it wrote something, and says that it did not"));
                }
            }
            _ => {}
        }
        self.world.take_back();
        Ok(())
    }

    /// H2 and H3.
    fn commit(&mut self, lsn: u64, index: usize, attempt: &Attempt) -> Result<Vec<Undo>, String> {
        let what = format!("{} as of its commit, {lsn}", describe(attempt));
        if lsn <= attempt.seen_up_to {
            return Err(format!("{what}: it saw up to {}", attempt.seen_up_to));
        }
        match self.effects.remove(&index) {
            Some(effects) => {
                self.check_first_committer(&effects, attempt, &what)?;
                self.world.make(&effects).map_err(|e| format!("{what}: {e}"))?;
            }
            None => self.replay(&attempt.calls, Compare::All, &what)?,
        }
        let undo = self.world.keep();
        for change in &undo {
            match change {
                Undo::Row { table, key, .. } => self.writers.rows.insert((*table, Key::clone(key)), lsn),
                Undo::Name { name, .. } => self.writers.names.insert(name.clone(), lsn),
            };
        }
        Ok(undo)
    }

    fn check_first_committer(&self, effects: &Effects, attempt: &Attempt, what: &str) -> Result<(), String> {
        let seen_up_to = attempt.seen_up_to;
        let late = |lsn: Option<&u64>| lsn.copied().filter(|lsn| *lsn > seen_up_to);
        let row = effects.rows.keys().find_map(|at| Some((at, late(self.writers.rows.get(at))?)));
        if let Some(((table, key), by)) = row {
            let key = crate::model::Hex(key);
            return Err(format!(
                "{what}: it saw up to {seen_up_to}, and overwrote {key} of table {table}, written at {by}"
            ));
        }
        let name = effects.names.keys().find_map(|at| Some((at, late(self.writers.names.get(at))?)));
        match name {
            None => Ok(()),
            Some((name, by)) => Err(format!(
                "{what}: it saw up to {seen_up_to}, and gave the name {name} a meaning, as {by} had done"
            )),
        }
    }

    /// Asks the world the same, and compares the answers.
    fn replay(&mut self, calls: &Calls, compare: Compare, what: &str) -> Result<(), String> {
        let mut savepoints = Vec::new();
        for (at, (operation, answer)) in calls.iter().enumerate() {
            let mut expected = self.world.ask(operation, &mut savepoints);
            let mut answer = answer;
            let names_alone;
            if compare == Compare::AllButCounts {
                if let (Answer::Tables(expected), Answer::Tables(found)) = (&mut expected, answer) {
                    let forget = |tables: &[(String, u64)]| {
                        tables.iter().map(|(name, _)| (name.clone(), 0)).collect::<Vec<_>>()
                    };
                    *expected = forget(expected);
                    names_alone = Answer::Tables(forget(found));
                    answer = &names_alone;
                } else if let (Answer::Count(_), Operation::Rows(_, super::operation::RowOperation::Count)) =
                    (&expected, operation)
                {
                    continue;
                }
            }
            if expected != *answer {
                return Err(format!(
                    "{what}: call {at}, {}, should have been answered {}, was answered {}",
                    shown(operation),
                    shown(&expected),
                    shown(answer)
                ));
            }
        }
        Ok(())
    }
}

fn describe(attempt: &Attempt) -> String {
    format!("{}, {:?}, {:?}", attempt.who, attempt.isolation, attempt.fate)
}

/// What became of commits, seen from the life after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Survivors {
    pub(super) kept: u64,
    pub(super) relaxed_lost: u64,
    pub(super) sync_lost: u64,
}

/// Finds the prefix of the commits that `found` holds, the longest, and takes the others back. It must hold all up to `required`.
pub(super) fn settle(
    world: &mut World,
    mut commits: Vec<Commit>,
    required: u64,
    found: &crate::model::State,
) -> Result<Survivors, String> {
    let mut survivors = Survivors::default();
    let (all, mut nearest) = (commits.len(), (usize::MAX, 0, String::new()));
    loop {
        if world.is(found) {
            survivors.kept = commits.len() as u64;
            return Ok(survivors);
        }
        let difference = world.state().difference(found);
        if difference.len() < nearest.0 {
            nearest = (difference.len(), commits.len(), difference);
        }
        let Some(last) = commits.pop_if(|last| last.lsn > required) else {
            let (_, with, difference) = nearest;
            return Err(format!(
                "no prefix of the {all} commits explains what is there; at least {} must be there; with {with} of them: {difference}",
                commits.len()
            ));
        };
        survivors.relaxed_lost += u64::from(last.is_relaxed);
        survivors.sync_lost += u64::from(!last.is_relaxed);
        world.unmake(last.undo);
    }
}
