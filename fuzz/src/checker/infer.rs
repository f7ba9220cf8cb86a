//! What follows about registers and counts.
//!
//! The order of a register's versions is not in any read, but much of it follows (rules S2 and S6 of [`super`]). Rounds of two
//! rules, until neither adds an edge:
//!
//! R1. `T` read version `v` (or none), and the commit of `w`, another writer, comes after that of `v` (or there is no `v`): then
//!     `T` is before `w`, for it did not see it: rw.
//! R2. `T` read version `v`, and the commit of `w` comes before the start of `T`: then `w` is before `v`: ww.
//!
//! For each session only the nearest such `w` counts, the others follow by the session's order. Besides, two transactions that both
//! read one version and both wrote the next are a lost update, whichever came first.

use std::collections::HashMap;

use super::clock::{Clocks, Places};
use super::cycle::{self, Components, Outgoing};
use super::effects::Effects;
use super::graph::{Graph, NOWHERE};
use super::history::{History, Key, KeyKind};
use super::versions::Versions;
use super::violation::{Anomaly, Violation};

/// Rounds after which inference stops; what it has not found by then is left open.
const ROUNDS: usize = 16;

/// Looks for cycles, infers edges, and looks again. Returns how many edges were inferred.
pub(super) fn to_the_end(
    history: &History,
    effects: &[Effects<'_>],
    versions: &Versions,
    graph: &mut Graph,
) -> Result<u64, Violation> {
    let places = Places::of(history, graph);
    let registers = Registers::of(history, effects, versions, graph, &places);
    let mut inferred = 0;
    let mut clocks = clocks(history, graph, &places)?;
    registers.check_updates(history, graph)?;
    for _ in 0..ROUNDS {
        let mut added = registers.later_versions(graph, &clocks);
        if added > 0 {
            clocks = self::clocks(history, graph, &places)?;
        }
        added += registers.earlier_versions(graph, &clocks);
        if added == 0 {
            break;
        }
        inferred += added;
        clocks = self::clocks(history, graph, &places)?;
    }
    check_counts(history, effects, &Creators { registers: &registers, versions, graph, clocks: &clocks })?;
    Ok(inferred)
}

fn clocks(history: &History, graph: &Graph, places: &Places) -> Result<Clocks, Violation> {
    let outgoing = Outgoing::of_all(graph);
    let components = Components::of(graph, &outgoing);
    if !components.is_acyclic() {
        return Err(cycle::name(history, graph, &components));
    }
    Ok(Clocks::of(graph, &outgoing, &components, places))
}

/// A read of a register.
#[derive(Clone, Copy, Debug)]
struct Read {
    reader: u32,
    key: Key,
    /// Who wrote what was read.
    writer: Option<u32>,
}

/// Who wrote registers, and who read which version.
struct Registers<'p> {
    places: &'p Places,
    /// By key and session, in order: those that wrote the key and took effect, with their places.
    writers: HashMap<Key, Vec<Vec<(u32, u32)>>>,
    reads: Vec<Read>,
}

impl<'p> Registers<'p> {
    fn of(
        history: &History,
        effects: &[Effects<'_>],
        versions: &Versions,
        graph: &Graph,
        places: &'p Places,
    ) -> Registers<'p> {
        let mut registers = Registers { places, writers: HashMap::new(), reads: Vec::new() };
        let is_register = |key: Key| history.keys[key as usize] == KeyKind::Register;
        for (index, effects) in effects.iter().enumerate() {
            let (session, place) = (places.session[index] as usize, places.place[index]);
            for (key, _) in effects.writes.iter().filter(|(key, _)| place > 0 && is_register(*key)) {
                let by_session =
                    registers.writers.entry(*key).or_insert_with(|| vec![Vec::new(); places.sessions]);
                by_session[session].push((place, index as u32));
            }
            if graph.start[index] == NOWHERE {
                continue;
            }
            for (key, found) in effects.reads.iter().filter(|(key, _)| is_register(*key)) {
                let writer = found.last().map(|element| versions.writer(*element));
                registers.reads.push(Read { reader: index as u32, key: *key, writer });
            }
        }
        registers
    }

    fn writers_of(&self, key: Key) -> impl Iterator<Item = (usize, &Vec<(u32, u32)>)> {
        self.writers.get(&key).into_iter().flatten().enumerate()
    }

    /// Whether a transaction's commit is among those of a clock.
    fn has(&self, clock: &[u32], transaction: u32) -> bool {
        let place = self.places.place[transaction as usize];
        place > 0 && clock[self.places.session[transaction as usize] as usize] >= place
    }

    /// Two that read one version and wrote the next.
    fn check_updates(&self, history: &History, graph: &Graph) -> Result<(), Violation> {
        let mut updates: HashMap<(Key, Option<u32>), u32> = HashMap::new();
        for read in &self.reads {
            let session = self.places.session[read.reader as usize] as usize;
            let place = self.places.place[read.reader as usize];
            let writes = self.writers.get(&read.key).is_some_and(|by_session| {
                place > 0 && by_session[session].binary_search_by_key(&place, |(place, _)| *place).is_ok()
            });
            if !writes || graph.commit[read.reader as usize] == NOWHERE {
                continue;
            }
            if let Some(other) = updates.insert((read.key, read.writer), read.reader) {
                let both = [other, read.reader];
                let what = format!(
                    "a lost update: T{other} and T{} both read one version of key {} and replaced it",
                    read.reader, read.key
                );
                return Err(Violation::of_transactions(Anomaly::GSingle, what, history, both));
            }
        }
        Ok(())
    }

    /// R1.
    fn later_versions(&self, graph: &mut Graph, clocks: &Clocks) -> u64 {
        let mut added = 0;
        for Read { reader, key, writer } in &self.reads {
            for (_, writers) in self.writers_of(*key) {
                // The clocks of a session's commits only grow, so the later ones are all behind.
                let after = writers.partition_point(|(_, other)| {
                    let clock = clocks.at(graph.commit[*other as usize]);
                    writer.is_some_and(|writer| writer == *other || !self.has(clock, writer))
                });
                // A version of its own is behind the one it read: the others of that session follow from it.
                let later = writers[after..].iter().find(|(_, other)| other != reader);
                if let Some((_, later)) = later
                    && !self.has(clocks.at(graph.commit[*later as usize]), *reader)
                {
                    added += u64::from(graph.add_rw(*reader, *later, *key));
                }
            }
        }
        added
    }

    /// R2.
    fn earlier_versions(&self, graph: &mut Graph, clocks: &Clocks) -> u64 {
        let mut added = 0;
        for Read { reader, key, writer } in &self.reads {
            let Some(writer) = writer else { continue };
            let seen = clocks.at(graph.start[*reader as usize]);
            let before = clocks.at(graph.start[*writer as usize]);
            for (session, writers) in self.writers_of(*key) {
                let end = writers.partition_point(|(place, _)| *place <= seen[session]);
                // Where a transaction's start is its commit, it is itself among those.
                let others = |(_, other): &&(u32, u32)| other != writer && other != reader;
                let earlier = writers[..end].iter().rev().find(others);
                if let Some((place, earlier)) = earlier
                    && before[session] < *place
                {
                    added += u64::from(graph.add_ww(*earlier, *writer, *key));
                }
            }
        }
        added
    }
}

/// Who can have put a key there first.
struct Creators<'a> {
    registers: &'a Registers<'a>,
    versions: &'a Versions,
    graph: &'a Graph,
    clocks: &'a Clocks,
}

impl Creators<'_> {
    /// Whether the key is there when a transaction starts; `None`: that is open.
    fn is_there(&self, history: &History, key: Key, transaction: u32) -> Option<bool> {
        let clock = self.clocks.at(self.graph.start[transaction as usize]);
        let single = self.graph.start[transaction as usize] == self.graph.commit[transaction as usize];
        // What it puts there itself is not there when it starts.
        let is_seen = |writer: u32| writer != transaction && self.registers.has(clock, writer);
        let is_later = |writer: u32| {
            let commit = self.graph.commit[writer as usize];
            writer == transaction || (single && self.registers.has(self.clocks.at(commit), transaction))
        };
        let (seen, all_later) = match history.keys[key as usize] {
            KeyKind::List => {
                let first = history.final_state[key as usize].first().map(|e| self.versions.writer(*e));
                (first.is_some_and(is_seen), first.is_none_or(is_later))
            }
            KeyKind::Register => {
                let writers = || self.registers.writers_of(key).flat_map(|(_, writers)| writers);
                (writers().any(|(_, w)| is_seen(*w)), writers().all(|(_, w)| is_later(*w)))
            }
        };
        match () {
            () if seen => Some(true),
            () if all_later => Some(false),
            () => None,
        }
    }
}

fn check_counts(
    history: &History,
    effects: &[Effects<'_>],
    creators: &Creators<'_>,
) -> Result<(), Violation> {
    for (index, effects) in effects.iter().enumerate() {
        let index = index as u32;
        for count in effects.counts.iter().filter(|_| creators.graph.start[index as usize] != NOWHERE) {
            let (mut least, mut most) = (0, 0);
            for key in count.keys.clone() {
                let known = count.known.get(&key).copied();
                let there = known.or_else(|| creators.is_there(history, key, index));
                least += u64::from(there == Some(true));
                most += u64::from(there != Some(false));
            }
            if !(least..=most).contains(&count.found) {
                let what = format!("T{index} counted {}, which must be {least} to {most}", count.found);
                return Err(Violation::of_transactions(Anomaly::Count, what, history, [index]));
            }
        }
    }
    Ok(())
}
