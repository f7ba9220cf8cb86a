//! The graph of what must come before what.

use std::collections::HashSet;

use super::Rules;
use super::effects::Effects;
use super::history::{History, Key, KeyKind, Level, Tick};
use super::versions::Versions;

/// Why one node is before another; sets of kinds are sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kinds(pub(super) u8);

impl Kinds {
    pub(super) const WW: Kinds = Kinds(1);
    pub(super) const WR: Kinds = Kinds(2);
    pub(super) const RW: Kinds = Kinds(4);
    pub(super) const SESSION: Kinds = Kinds(8);
    pub(super) const REAL_TIME: Kinds = Kinds(16);
    /// From a transaction's start to its commit.
    pub(super) const INNER: Kinds = Kinds(32);

    pub(super) fn has(self, kind: Kinds) -> bool {
        self.0 & kind.0 != 0
    }
}

impl std::ops::BitOr for Kinds {
    type Output = Kinds;

    fn bitor(self, other: Kinds) -> Kinds {
        Kinds(self.0 | other.0)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) kind: Kinds,
    /// Of ww, wr and rw.
    pub(super) key: Key,
}

/// A node that is not there.
pub(super) const NOWHERE: u32 = u32::MAX;

/// Nodes are numbers; see the table in [`super`] for what edges there are.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) edges: Vec<Edge>,
    /// The transaction of each node; [`NOWHERE`] for a moment of real time.
    pub(super) transaction_of: Vec<u32>,
    /// Where each transaction starts: [`NOWHERE`] if it takes no part.
    pub(super) start: Vec<u32>,
    /// Where each transaction commits: [`NOWHERE`] if it did not take effect.
    pub(super) commit: Vec<u32>,
    known: HashSet<(u32, u32, u8, Key)>,
}

impl Graph {
    pub(super) fn of(history: &History, effects: &[Effects<'_>], versions: &Versions, rules: Rules) -> Graph {
        let mut graph = Graph::default();
        for (index, transaction) in history.transactions.iter().enumerate() {
            let effective = versions.effective[index];
            let takes_part = effective || (rules.aborted && !versions.astray[index]);
            let start = if takes_part { graph.node(index as u32) } else { NOWHERE };
            let split = transaction.level == Level::Snapshot && !effects[index].writes.is_empty();
            let commit = match effective {
                true if split => graph.node(index as u32),
                true => start,
                false => NOWHERE,
            };
            graph.start.push(start);
            graph.commit.push(commit);
            if effective && split {
                graph.add(start, commit, Kinds::INNER, 0);
            }
        }
        graph.add_lists(history, effects, versions);
        graph.add_sessions(history);
        graph.add_real_time(history);
        graph
    }

    fn node(&mut self, transaction: u32) -> u32 {
        self.transaction_of.push(transaction);
        self.transaction_of.len() as u32 - 1
    }

    /// Adds an edge, unless it is there already or an end of it is not. Returns whether it is new.
    pub(super) fn add(&mut self, from: u32, to: u32, kind: Kinds, key: Key) -> bool {
        if from == NOWHERE || to == NOWHERE || from == to || !self.known.insert((from, to, kind.0, key)) {
            return false;
        }
        self.edges.push(Edge { from, to, kind, key });
        true
    }

    pub(super) fn add_ww(&mut self, earlier: u32, later: u32, key: Key) -> bool {
        self.add(self.commit[earlier as usize], self.start[later as usize], Kinds::WW, key)
    }

    fn add_wr(&mut self, writer: u32, reader: u32, key: Key) {
        self.add(self.commit[writer as usize], self.start[reader as usize], Kinds::WR, key);
    }

    pub(super) fn add_rw(&mut self, reader: u32, writer: u32, key: Key) -> bool {
        // A transaction that both reads and writes a key does not precede itself.
        reader != writer
            && self.add(self.start[reader as usize], self.commit[writer as usize], Kinds::RW, key)
    }

    fn add_lists(&mut self, history: &History, effects: &[Effects<'_>], versions: &Versions) {
        for (key, full) in history.final_state.iter().enumerate() {
            if history.keys[key] == KeyKind::Register {
                continue;
            }
            for pair in full.windows(2) {
                let (earlier, later) = (versions.writer(pair[0]), versions.writer(pair[1]));
                if earlier != later {
                    self.add_ww(earlier, later, key as Key);
                }
            }
        }
        for (reader, effects) in effects.iter().enumerate() {
            let reader = reader as u32;
            if self.start[reader as usize] == NOWHERE {
                continue;
            }
            for (key, found) in &effects.reads {
                if let Some(last) = found.last() {
                    self.add_wr(versions.writer(*last), reader, *key);
                }
                let list = history.keys[*key as usize] == KeyKind::List;
                if let Some(next) = history.final_state[*key as usize].get(found.len()).filter(|_| list) {
                    self.add_rw(reader, versions.writer(*next), *key);
                }
            }
        }
    }

    /// From each transaction that took effect to the next of its client.
    fn add_sessions(&mut self, history: &History) {
        let mut last = std::collections::HashMap::new();
        for (index, transaction) in history.transactions.iter().enumerate() {
            let before = last.get(&transaction.session).copied().unwrap_or(NOWHERE);
            self.add(before, self.start[index], Kinds::SESSION, 0);
            if self.commit[index] != NOWHERE {
                last.insert(transaction.session, self.commit[index]);
            }
        }
    }

    /// From every end to every later beginning, through a chain of moments: one for each end.
    fn add_real_time(&mut self, history: &History) {
        let effective = |index: &usize| self.commit[*index] != NOWHERE;
        let all = 0..history.transactions.len();
        let mut ends: Vec<(Tick, usize)> =
            all.clone().filter(effective).map(|index| (history.transactions[index].end, index)).collect();
        ends.sort_unstable();
        let mut begins: Vec<(Tick, usize)> =
            all.map(|index| (history.transactions[index].begin, index)).collect();
        begins.sort_unstable();
        let mut begins = begins.into_iter().peekable();
        let mut moment = NOWHERE;
        for (end, index) in ends {
            while let Some((_, later)) = begins.next_if(|(begin, _)| *begin < end) {
                self.add(moment, self.start[later], Kinds::REAL_TIME, 0);
            }
            let before = moment;
            moment = self.node(NOWHERE);
            self.add(before, moment, Kinds::REAL_TIME, 0);
            self.add(self.commit[index], moment, Kinds::REAL_TIME, 0);
        }
        for (_, later) in begins {
            self.add(moment, self.start[later], Kinds::REAL_TIME, 0);
        }
    }
}
