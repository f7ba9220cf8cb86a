//! A store of versions in memory, with mistakes to choose from: random histories of the sound one pass, and those of each mistake
//! are caught. One thread plays all clients, so a history is a function of its seed.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::choice::Choices;

/// What is wrong with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// Commits do not look at what they read.
    NoValidation,
    /// Nor at what they write.
    LastCommitterWins,
    /// Of what they read, commits do not look at what was not there.
    ForgetsMisses,
    /// Of what they read, commits do not look at the last key of a scan.
    ShortInterval,
    /// Snapshots are older than the newest commit.
    EarlySnapshot,
    /// Reads see the newest commit, not the one at the start.
    ReadCommitted,
    /// Reads see what is not committed.
    DirtyReads,
    /// A commit in so many vanishes.
    LosesCommits,
    /// A commit in so many loses one of its writes.
    HalvesCommits,
    /// Rolling back to a savepoint changes nothing.
    IgnoresSavepoints,
    /// A commit is seen one key at a time.
    TornCommits,
    /// A count is one too high now and then.
    Miscounts,
}

const FLAWS: [Flaw; 12] = [
    Flaw::NoValidation,
    Flaw::LastCommitterWins,
    Flaw::ForgetsMisses,
    Flaw::ShortInterval,
    Flaw::EarlySnapshot,
    Flaw::ReadCommitted,
    Flaw::DirtyReads,
    Flaw::LosesCommits,
    Flaw::HalvesCommits,
    Flaw::IgnoresSavepoints,
    Flaw::TornCommits,
    Flaw::Miscounts,
];

const KEYS: u32 = 10;
const LISTS: u32 = 5;

struct Open {
    snapshot: u64,
    began: u64,
    reads: BTreeSet<u32>,
    writes: BTreeMap<u32, Vec<Element>>,
    savepoint: Option<(usize, BTreeMap<u32, Vec<Element>>)>,
    left: u64,
    record: Transaction,
}

struct Toy {
    flaw: Flaw,
    choices: Choices,
    /// By key: commits and what they left there.
    versions: Vec<Vec<(u64, Vec<Element>)>>,
    now: u64,
    tick: Tick,
    next: Element,
    history: Vec<Transaction>,
}

impl Toy {
    fn tick(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    fn begin(&mut self, session: u32, level: Level) -> Open {
        let early = if self.flaw == Flaw::EarlySnapshot { self.choices.below(4) } else { 0 };
        let begin = self.tick();
        let ops = Vec::new();
        let record = Transaction { session, level, begin, end: 0, outcome: Outcome::Committed, ops };
        Open {
            snapshot: self.now.saturating_sub(early),
            began: self.now,
            reads: BTreeSet::new(),
            writes: BTreeMap::new(),
            savepoint: None,
            left: self.choices.between(1, 6),
            record,
        }
    }

    fn get(&self, open: &Open, others: &[Option<Open>], key: u32) -> Vec<Element> {
        if let Some(own) = open.writes.get(&key) {
            return own.clone();
        }
        let dirty = |other: &&Option<Open>| {
            other.as_ref().is_some_and(|other| {
                other.record.session != open.record.session && other.writes.contains_key(&key)
            })
        };
        if self.flaw == Flaw::DirtyReads
            && let Some(Some(other)) = others.iter().find(dirty)
        {
            return other.writes[&key].clone();
        }
        let torn = self.flaw == Flaw::TornCommits && key.is_multiple_of(2);
        let newest = self.flaw == Flaw::ReadCommitted || torn;
        let as_of = if newest { self.now } else { open.snapshot };
        let seen = self.versions[key as usize].iter().rev().find(|(commit, _)| *commit <= as_of);
        seen.map_or(Vec::new(), |(_, value)| value.clone())
    }

    fn read(&self, open: &mut Open, others: &[Option<Open>], key: u32) -> Vec<Element> {
        let found = self.get(open, others, key);
        open.record.ops.push(Op::Read { key, found: found.clone() });
        if self.flaw != Flaw::ForgetsMisses || !found.is_empty() {
            open.reads.insert(key);
        }
        found
    }

    fn operate(&mut self, open: &mut Open, others: &[Option<Open>]) {
        let key = self.choices.below(u64::from(KEYS)) as u32;
        let writes = open.record.level != Level::ReadOnly;
        self.next += 1;
        match self.choices.below(12) {
            0..=3 if writes && key < LISTS => {
                let mut value = self.read(open, others, key);
                value.push(self.next);
                open.writes.insert(key, value);
                open.record.ops.push(Op::Append { key, element: self.next });
            }
            0..=3 if writes => {
                if self.choices.once_in(3) {
                    self.read(open, others, key);
                }
                open.writes.insert(key, vec![self.next]);
                open.record.ops.push(Op::Write { key, element: self.next });
            }
            4 => {
                let end = KEYS.min(key + 4);
                for key in key..end {
                    self.read(open, others, key);
                }
                if self.flaw == Flaw::ShortInterval && !open.writes.contains_key(&(end - 1)) {
                    open.reads.remove(&(end - 1));
                }
            }
            5 => {
                let there = (0..KEYS).filter(|key| !self.get(open, others, *key).is_empty()).count() as u64;
                let wrong = self.flaw == Flaw::Miscounts && self.choices.once_in(4);
                open.record.ops.push(Op::Len { keys: 0..KEYS, count: there + u64::from(wrong) });
                open.reads.extend(0..KEYS);
            }
            6 if writes => open.savepoint = Some((open.record.ops.len(), open.writes.clone())),
            7 | 8 => {
                if let Some((to, writes)) = open.savepoint.take() {
                    open.record.ops.push(Op::RollBack { to });
                    if self.flaw != Flaw::IgnoresSavepoints {
                        open.writes = writes;
                    }
                }
            }
            _ => {
                self.read(open, others, key);
            }
        }
    }

    fn end(&mut self, mut open: Open) {
        let changed = |key: &u32, since: u64| {
            self.versions[*key as usize].last().is_some_and(|(commit, _)| *commit > since)
        };
        let validates = !matches!(
            self.flaw,
            Flaw::NoValidation | Flaw::LastCommitterWins | Flaw::ReadCommitted | Flaw::DirtyReads
        );
        let read_over = open.reads.iter().any(|key| changed(key, open.began));
        // A write that read nothing does not conflict for a serializable transaction.
        let update = |key: &&u32| open.record.level == Level::Snapshot || open.reads.contains(key);
        let written_over = open.writes.keys().filter(update).any(|key| changed(key, open.began));
        let refused = match open.record.level {
            Level::ReadOnly => false,
            _ if self.flaw == Flaw::LastCommitterWins => false,
            Level::Serializable => (validates && read_over && !open.writes.is_empty()) || written_over,
            Level::Snapshot => written_over,
        };
        if refused || self.choices.once_in(12) {
            open.record.outcome =
                if open.record.level == Level::ReadOnly { Outcome::Committed } else { Outcome::Aborted };
        } else {
            self.now += 1;
            let lost = self.flaw == Flaw::LosesCommits && self.choices.once_in(20);
            let half = self.flaw == Flaw::HalvesCommits && self.choices.once_in(10);
            for (key, value) in open.writes.iter().skip(usize::from(half)) {
                if !lost {
                    self.versions[*key as usize].push((self.now, value.clone()));
                }
            }
        }
        open.record.end = self.tick();
        self.history.push(open.record);
    }
}

/// A history of `count` transactions of 6 clients.
fn play(flaw: Flaw, levels: &[Level], count: usize, seed: u64) -> History {
    let mut toy = Toy {
        flaw,
        choices: Choices::seeded(seed),
        versions: vec![Vec::new(); KEYS as usize],
        now: 0,
        tick: 0,
        next: 0,
        history: Vec::new(),
    };
    let mut clients: Vec<Option<Open>> = (0..6).map(|_| None).collect();
    while toy.history.len() < count {
        let session = toy.choices.below(clients.len() as u64) as usize;
        let Some(mut open) = clients[session].take() else {
            let level = *toy.choices.pick(levels);
            clients[session] = Some(toy.begin(session as u32, level));
            continue;
        };
        if open.left == 0 {
            toy.end(open);
            continue;
        }
        open.left -= 1;
        toy.operate(&mut open, &clients);
        clients[session] = Some(open);
    }
    let kind = |key| if key < LISTS { KeyKind::List } else { KeyKind::Register };
    let newest = |versions: &Vec<(u64, Vec<Element>)>| versions.last().map_or(Vec::new(), |v| v.1.clone());
    History {
        keys: (0..KEYS).map(kind).collect(),
        final_state: toy.versions.iter().map(newest).collect(),
        transactions: toy.history,
    }
}

const ALL_LEVELS: [Level; 3] = [Level::Serializable, Level::Snapshot, Level::ReadOnly];

#[test]
fn random_histories_of_a_sound_store_are_clean() {
    for seed in 0..300 {
        for levels in [&[Level::Serializable][..], &[Level::Snapshot, Level::ReadOnly], &ALL_LEVELS] {
            let history = play(Flaw::None, levels, 150, seed);
            if let Err(violation) = check(&history, Rules::default()) {
                panic!("seed {seed}, {levels:?}: {violation}\n{history}");
            }
        }
    }
}

#[test]
fn random_histories_of_each_mistake_are_caught() {
    for flaw in FLAWS {
        let levels: &[Level] =
            if flaw == Flaw::NoValidation { &[Level::Serializable] } else { &ALL_LEVELS[..] };
        let caught = (0..40).filter(|seed| check(&play(flaw, levels, 600, *seed), Rules::default()).is_err());
        let caught = caught.count();
        println!("{flaw:?}: {caught} of 40 histories");
        assert!(caught >= 20, "{flaw:?}: caught in {caught} of 40 histories");
    }
}

#[test]
fn snapshot_isolation_that_is_called_serializable_is_caught_and_by_its_own_name_is_not() {
    let mut caught = 0;
    for seed in 0..40 {
        let mut history = play(Flaw::NoValidation, &[Level::Snapshot], 150, seed);
        check(&history, Rules::default()).unwrap();
        history.transactions.iter_mut().for_each(|t| t.level = Level::Serializable);
        caught += u64::from(check(&history, Rules::default()).is_err());
    }
    assert!(caught >= 35, "caught in {caught} of 40 histories");
}

#[test]
fn fifty_thousand_transactions_are_checked() {
    let history = play(Flaw::None, &ALL_LEVELS, 3000, 1);
    // Copies on keys and clients of their own, one after the other in real time.
    let mut all = History::default();
    let last = history.transactions.iter().map(|t| t.end).max().unwrap() + 1;
    for copy in 0..17_u32 {
        let (keys, elements, ticks) = (copy * KEYS, u64::from(copy) << 32, u64::from(copy) * last);
        let moved = |found: &[Element]| found.iter().map(|e| e + elements).collect::<Vec<_>>();
        for transaction in &history.transactions {
            let mut transaction = transaction.clone();
            transaction.begin += ticks;
            transaction.end += ticks;
            for op in &mut transaction.ops {
                match op {
                    Op::Read { key, found } => (*key, *found) = (*key + keys, moved(found)),
                    Op::Append { key, element } | Op::Write { key, element } => {
                        (*key, *element) = (*key + keys, *element + elements);
                    }
                    Op::Len { keys: counted, .. } => {
                        *counted = counted.start + keys..counted.end + keys;
                    }
                    Op::RollBack { .. } => {}
                }
            }
            all.transactions.push(transaction);
        }
        all.keys.extend(&history.keys);
        all.final_state.extend(history.final_state.iter().map(|found| moved(found)));
    }
    let started = std::time::Instant::now();
    let summary = check(&all, Rules::default()).unwrap_or_else(|violation| panic!("{violation}"));
    println!("{summary:?} in {:?}", started.elapsed());
    assert_eq!(summary.transactions, 51_000);
}
