//! What a client's next transaction will do, drawn before it begins so that it can be tried again.

use std::ops::Range;
use std::time::Duration;

use hamal::{Durability, Isolation};

use super::content::{Layout, TABLES};
use super::{Config, Levels};
use crate::checker::{Key, KeyKind};
use crate::choice::Choices;

/// One step.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Get(Key),
    /// Reads a list and puts it back with one more element.
    Append {
        key: Key,
        for_update: bool,
    },
    /// Puts into a register, blindly.
    Write(Key),
    /// Reads a register with the intent to write it, or by `insert`, and writes it.
    Update {
        key: Key,
        by_insert: bool,
    },
    Scan {
        table: usize,
        keys: Range<Key>,
        backward: bool,
        limit: usize,
    },
    First(usize),
    Last(usize),
    Len(usize),
    Savepoint,
    RollBack,
    /// Lets others run.
    Pause(Duration),
}

/// One transaction.
#[derive(Clone, Debug)]
pub(super) struct Script {
    /// `None`: a read-only snapshot.
    pub(super) isolation: Option<Isolation>,
    pub(super) durability: Durability,
    pub(super) steps: Vec<Step>,
    /// Rolls back at the end instead of committing.
    pub(super) gives_up: bool,
}

impl Script {
    pub(super) fn draw(choices: &mut Choices, config: &Config, layout: &Layout) -> Script {
        let isolation = match config.levels {
            _ if choices.once_in(5) => None,
            Levels::Serializable => Some(Isolation::Serializable),
            Levels::Snapshot => Some(Isolation::Snapshot),
            Levels::Mixed => Some(*choices.pick(&[Isolation::Serializable, Isolation::Snapshot])),
        };
        let durability = if config.mixed_durability {
            let periodic = Durability::Periodic(Duration::from_millis(2));
            *choices.pick(&[Durability::Sync, Durability::Relaxed, periodic])
        } else {
            Durability::Sync
        };
        let long = choices.once_in(20);
        let count = if long { choices.between(10, 40) } else { choices.between(1, 8) };
        let mut steps = Vec::new();
        let mut shuffled = Shuffled { choices, config, layout, writes: isolation.is_some() };
        for _ in 0..count {
            steps.push(shuffled.step());
            // What is not interrupted now and then is hardly ever concurrent.
            if long && shuffled.choices.once_in(4) {
                steps.push(Step::Pause(Duration::from_micros(shuffled.choices.below(300))));
            } else if shuffled.choices.once_in(2) {
                steps.push(Step::Pause(Duration::ZERO));
            }
        }
        let gives_up = isolation.is_some() && choices.once_in(10);
        Script { isolation, durability, steps, gives_up }
    }
}

struct Shuffled<'a> {
    choices: &'a mut Choices,
    config: &'a Config,
    layout: &'a Layout,
    writes: bool,
}

impl Shuffled<'_> {
    fn step(&mut self) -> Step {
        let table = self.choices.below(TABLES.len() as u64) as usize;
        match self.choices.below(24) {
            0..=9 if self.writes => self.write(),
            10 | 11 => self.scan(table),
            12 => Step::First(table),
            13 => Step::Last(table),
            14 => Step::Len(table),
            15 if self.writes => Step::Savepoint,
            16 if self.writes => Step::RollBack,
            _ => Step::Get(self.key()),
        }
    }

    /// Any key, some far more often than others.
    fn key(&mut self) -> Key {
        let keys = u64::from(self.config.keys);
        if self.choices.once_in(2) {
            self.choices.skewed(keys) as Key
        } else {
            self.choices.below(keys) as Key
        }
    }

    fn write(&mut self) -> Step {
        let key = self.key();
        let coin = self.choices.once_in(2);
        match Layout::kind(key) {
            KeyKind::List => Step::Append { key, for_update: coin },
            KeyKind::Register if coin => Step::Write(key),
            KeyKind::Register => Step::Update { key, by_insert: self.choices.once_in(2) },
        }
    }

    fn scan(&mut self, table: usize) -> Step {
        let all = self.layout.keys_of(table);
        let (a, b) = (self.choices.below(all.len() as u64 + 1), self.choices.below(all.len() as u64 + 1));
        let whole = self.choices.once_in(4);
        let keys = if whole { all } else { all.start + a.min(b) as Key..all.start + a.max(b) as Key };
        let limit = *self.choices.pick(&[1, 2, 4, usize::MAX]);
        Step::Scan { table, keys, backward: self.choices.once_in(2), limit }
    }
}
