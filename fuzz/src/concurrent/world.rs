//! The committed state that the checker works with: every change can be taken back, so any transaction can be tried on it.
//!
//! A table is an id here, as in the database: its name may change while a transaction writes to it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use hamal::ErrorKind;

use super::operation::{Answer, Bounds, End, Get, Operation, Put, Removal, RowOperation, Step, is_empty};
use crate::model::{Key, Rows, State};
use crate::value::Value;

/// A table, whatever it is called.
pub(super) type TableId = u64;

/// Every table and its rows. Tables that are dropped stay, without a name.
#[derive(Debug, Default)]
pub(super) struct World {
    names: BTreeMap<String, TableId>,
    tables: BTreeMap<TableId, Rows>,
    /// How to take back what was done since [`World::keep`], newest last.
    undo: Vec<Undo>,
}

/// One change, by what was there before it.
#[derive(Debug)]
pub(super) enum Undo {
    Row { table: TableId, key: Key, before: Option<Value> },
    Name { name: String, before: Option<TableId> },
}

/// What a transaction leaves of what it did.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) names: BTreeMap<String, Option<TableId>>,
    pub(super) rows: BTreeMap<(TableId, Key), Option<Value>>,
    /// Tables that have no name any more when it ends.
    pub(super) nameless: BTreeSet<TableId>,
}

impl World {
    /// Asks what a transaction or snapshot was asked. `savepoints`: those it has.
    pub(super) fn ask(&mut self, operation: &Operation, savepoints: &mut Vec<usize>) -> Answer {
        match operation {
            Operation::Savepoint => savepoints.push(self.undo.len()),
            Operation::RollBackTo(index) => {
                savepoints.truncate(index + 1);
                self.take_back_to(savepoints[*index]);
            }
            Operation::Tables => {
                let rows = |id| self.tables[id].len() as u64;
                return Answer::Tables(
                    self.names.iter().map(|(name, id)| (name.clone(), rows(id))).collect(),
                );
            }
            Operation::HasTable(name) => return Answer::Is(self.names.contains_key(*name)),
            Operation::Create(name) => {
                if !self.names.contains_key(*name) {
                    let id = self.tables.len() as TableId;
                    self.tables.insert(id, Rows::new());
                    self.set_name(name, Some(id));
                }
            }
            Operation::Drop(name) => {
                if !self.names.contains_key(*name) {
                    return Answer::Refused(ErrorKind::NotFound);
                }
                self.set_name(name, None);
            }
            Operation::Rename(from, to) => {
                let Some(id) = self.names.get(*from).copied() else {
                    return Answer::Refused(ErrorKind::NotFound);
                };
                if from != to {
                    if self.names.contains_key(*to) {
                        return Answer::Refused(ErrorKind::AlreadyExists);
                    }
                    self.set_name(from, None);
                    self.set_name(to, Some(id));
                }
            }
            Operation::Rows(name, rows) => {
                return match self.names.get(*name).copied() {
                    Some(table) => self.ask_rows(table, rows),
                    None => Answer::Refused(ErrorKind::NotFound),
                };
            }
        }
        Answer::Done
    }

    fn ask_rows(&mut self, table: TableId, operation: &RowOperation) -> Answer {
        let rows = &self.tables[&table];
        match operation {
            RowOperation::Get(key, Get::Contains) => Answer::Is(rows.contains_key(key)),
            RowOperation::Get(key, Get::Value | Get::Reader) | RowOperation::Lock(key) => {
                Answer::Value(rows.get(key).copied())
            }
            RowOperation::Count => Answer::Count(rows.len() as u64),
            RowOperation::Put(key, written, how) => {
                let old = self.set_row(table, key, Some(written.value));
                match how {
                    Put::Blind => Answer::Done,
                    Put::Insert => Answer::Value(old),
                    Put::Stream => Answer::Count(u64::from(written.value.len)),
                }
            }
            RowOperation::Remove(key, how) => {
                let old = self.set_row(table, key, None);
                match how {
                    Removal::Blind => Answer::Done,
                    Removal::Remove => Answer::Value(old),
                }
            }
            RowOperation::Pop(end) => {
                let row = match end {
                    End::Front => rows.first_key_value(),
                    End::Back => rows.last_key_value(),
                };
                let row = row.map(|(key, value)| (Arc::clone(key), *value));
                if let Some((key, _)) = &row {
                    self.set_row(table, key, None);
                }
                Answer::Row(row)
            }
            RowOperation::Walk(bounds, steps) => self.walk(table, bounds.clone(), steps),
            RowOperation::Clear => {
                let keys: Vec<Key> = rows.keys().cloned().collect();
                for key in keys {
                    self.set_row(table, &key, None);
                }
                Answer::Done
            }
        }
    }

    /// A range goes by key: it shows what is there when it comes there, and once it has come to its end it is over.
    fn walk(&mut self, table: TableId, mut left: Bounds, steps: &[Step]) -> Answer {
        let (mut found, mut over) = (Vec::new(), false);
        for step in steps {
            match step {
                Step::Put(key, written) => drop(self.set_row(table, key, Some(written.value))),
                Step::Delete(key) => drop(self.set_row(table, key, None)),
                Step::Next(end) => {
                    over = over || is_empty(&left);
                    let mut rows = (!over).then(|| self.tables[&table].range(left.clone()));
                    let row = rows.as_mut().and_then(|rows| match end {
                        End::Front => rows.next(),
                        End::Back => rows.next_back(),
                    });
                    let row = row.map(|(key, value)| (Arc::clone(key), *value));
                    match (&row, end) {
                        (None, _) => over = true,
                        (Some((key, _)), End::Front) => left.0 = Bound::Excluded(Arc::clone(key)),
                        (Some((key, _)), End::Back) => left.1 = Bound::Excluded(Arc::clone(key)),
                    }
                    found.push(row);
                }
            }
        }
        Answer::Rows(found)
    }

    /// Writes or removes a row; returns the old value.
    fn set_row(&mut self, table: TableId, key: &Key, after: Option<Value>) -> Option<Value> {
        let rows = self.tables.entry(table).or_default();
        let before = match after {
            Some(value) => rows.insert(Arc::clone(key), value),
            None => rows.remove(key),
        };
        if before.is_some() || after.is_some() {
            self.undo.push(Undo::Row { table, key: Arc::clone(key), before });
        }
        before
    }

    fn set_name(&mut self, name: &str, after: Option<TableId>) {
        let before = match after {
            Some(id) => self.names.insert(name.to_owned(), id),
            None => self.names.remove(name),
        };
        self.undo.push(Undo::Name { name: name.to_owned(), before });
    }

    /// Takes back everything since the last [`World::keep`].
    pub(super) fn take_back(&mut self) {
        self.take_back_to(0);
    }

    fn take_back_to(&mut self, mark: usize) {
        let undone = self.undo.split_off(mark);
        self.unmake(undone);
    }

    /// Takes back a commit that [`World::keep`] returned, if all later ones have been taken back.
    pub(super) fn unmake(&mut self, commit: Vec<Undo>) {
        for undo in commit.into_iter().rev() {
            match undo {
                Undo::Row { table, key, before: Some(value) } => {
                    self.tables.entry(table).or_default().insert(key, value);
                }
                Undo::Row { table, key, before: None } => {
                    self.tables.entry(table).or_default().remove(&key);
                }
                Undo::Name { name, before: Some(id) } => {
                    self.names.insert(name, id);
                }
                Undo::Name { name, before: None } => {
                    self.names.remove(&name);
                }
            }
        }
    }

    /// Keeps everything since the last time; returns how to take it back.
    pub(super) fn keep(&mut self) -> Vec<Undo> {
        std::mem::take(&mut self.undo)
    }

    /// What everything since the last [`World::keep`] amounts to.
    pub(super) fn effects(&self) -> Effects {
        let mut effects = Effects::default();
        for undo in &self.undo {
            match undo {
                Undo::Row { table, key, .. } => {
                    let after = self.tables[table].get(key).copied();
                    effects.rows.insert((*table, Arc::clone(key)), after);
                    if !self.has_name(*table) {
                        effects.nameless.insert(*table);
                    }
                }
                Undo::Name { name, .. } => {
                    effects.names.insert(name.clone(), self.names.get(name).copied());
                }
            }
        }
        effects
    }

    /// Does what a transaction's effects say. The error names a table that is gone.
    pub(super) fn make(&mut self, effects: &Effects) -> Result<(), String> {
        for (name, id) in &effects.names {
            self.set_name(name, *id);
        }
        for ((table, key), value) in &effects.rows {
            if !self.has_name(*table) && !effects.nameless.contains(table) {
                return Err(format!("it wrote to table {table}, which a commit had dropped"));
            }
            self.set_row(*table, key, *value);
        }
        Ok(())
    }

    fn has_name(&self, table: TableId) -> bool {
        self.names.values().any(|id| *id == table)
    }

    /// Whether this is what was found.
    pub(super) fn is(&self, found: &State) -> bool {
        self.names.len() == found.tables.len()
            && self
                .names
                .iter()
                .zip(&found.tables)
                .all(|((name, id), (other, rows))| name == other && self.tables[id] == *rows)
    }

    /// As a map of maps.
    pub(super) fn state(&self) -> State {
        let tables = self.names.iter().map(|(name, id)| (name.clone(), self.tables[id].clone()));
        State { tables: tables.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::operation::Written;
    use super::*;
    use crate::value::Recipe;

    fn put(key: &[u8], len: u32) -> Operation {
        let written = Written::new(Recipe { len, seed: 3 });
        Operation::Rows("t", RowOperation::Put(Arc::from(key), written, Put::Blind))
    }

    fn len_of(world: &mut World, key: &[u8]) -> Option<u32> {
        let get = Operation::Rows("t", RowOperation::Get(Arc::from(key), Get::Value));
        match world.ask(&get, &mut Vec::new()) {
            Answer::Value(value) => value.map(|value| value.len),
            other => panic!("{other:?}"),
        }
    }

    fn world_with_one_row() -> World {
        let mut world = World::default();
        for operation in [Operation::Create("t"), put(b"a", 1)] {
            assert_eq!(world.ask(&operation, &mut Vec::new()), Answer::Done);
        }
        world.keep();
        world
    }

    #[test]
    fn what_was_done_can_be_taken_back_to_a_savepoint_wholly_or_after_it_was_kept() {
        let mut world = world_with_one_row();
        let (start, savepoints) = (world.state(), &mut Vec::new());
        world.ask(&put(b"a", 2), savepoints);
        world.ask(&Operation::Savepoint, savepoints);
        let middle = world.state();
        for operation in [Operation::Drop("t"), Operation::Create("t"), put(b"b", 3)] {
            world.ask(&operation, savepoints);
        }
        world.ask(&Operation::RollBackTo(0), savepoints);
        assert!(world.is(&middle));
        world.take_back();
        assert!(world.is(&start));
        world.ask(&put(b"b", 3), savepoints);
        let commit = world.keep();
        assert!(!world.is(&start));
        world.unmake(commit);
        assert!(world.is(&start));
    }

    #[test]
    fn effects_follow_a_table_to_its_new_name_and_not_beyond_its_end() {
        let mut world = world_with_one_row();
        world.ask(&put(b"b", 2), &mut Vec::new());
        let effects = world.effects();
        world.take_back();
        world.ask(&Operation::Rename("t", "u"), &mut Vec::new());
        world.keep();
        world.make(&effects).unwrap();
        world.ask(&Operation::Rename("u", "t"), &mut Vec::new());
        assert_eq!(len_of(&mut world, b"b"), Some(2));
        world.take_back();
        world.ask(&Operation::Drop("u"), &mut Vec::new());
        assert!(world.make(&effects).is_err());
    }

    #[test]
    fn a_walk_sees_what_is_written_ahead_of_it_and_stays_over_once_it_is() {
        let mut world = world_with_one_row();
        let written = Written::new(Recipe { len: 5, seed: 3 });
        let key = |key: &[u8]| -> Key { Arc::from(key) };
        let steps = vec![
            Step::Next(End::Front),
            Step::Put(key(b"c"), written),
            Step::Next(End::Back),
            Step::Next(End::Front),
            Step::Put(key(b"d"), written),
            Step::Next(End::Front),
        ];
        let walk = Operation::Rows("t", RowOperation::Walk((Bound::Unbounded, Bound::Unbounded), steps));
        let Answer::Rows(rows) = world.ask(&walk, &mut Vec::new()) else { panic!("no rows") };
        let keys: Vec<_> = rows.iter().map(|row| row.as_ref().map(|(key, _)| key[0])).collect();
        assert_eq!(keys, [Some(b'a'), Some(b'c'), None, None]);
    }
}
