//! One read-write transaction, drawn and mirrored.

use std::ops::Range;

use hamal::{Durability, Error, ErrorKind, Savepoint, Table, Transaction, TransactionOptions};

use super::{Doing, Session, Step, Stop, expect_error, expect_same};
use crate::model::{Hex, Mark};
use crate::plan::NAMES;
use crate::value::{Recipe, Value};

type Bytes<'t> = Table<'t, &'static [u8], &'static [u8]>;

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Commit,
    Rollback,
    Drop,
}

impl Session<'_> {
    /// Runs one drawn transaction to its end.
    pub(super) fn transaction(&mut self) -> Step {
        let durability = self.some_durability();
        self.trace.say(|| format!("begin ({durability:?})"));
        let options = TransactionOptions::new().durability(durability);
        let tx = self.db.begin_with(options).doing(|| "begin".to_owned())?;
        let count = match self.choices.below(8) {
            0 => 0,
            1 => self.choices.between(40, 300),
            _ => self.choices.between(1, 20),
        };
        let mut savepoints = Vec::new();
        for _ in 0..count {
            if let Err(stop) = self.operation(&tx, &mut savepoints) {
                return self.failed(tx, stop);
            }
        }
        let ending = match self.choices.below(8) {
            0 => Ending::Rollback,
            1 => Ending::Drop,
            _ => Ending::Commit,
        };
        self.end(tx, durability, ending)
    }

    /// Some operations in a transaction that will never end; the caller takes the model back.
    pub fn scribble(&mut self, tx: &Transaction) -> Step {
        self.trace.say(|| "begin, never to end".to_owned());
        let mut savepoints = Vec::new();
        for _ in 0..self.choices.between(1, 60) {
            self.operation(tx, &mut savepoints)?;
        }
        Ok(())
    }

    /// A transaction that puts these rows, for [`Session::preload`].
    pub(super) fn bulk_load(&mut self, indexes: Range<u64>) -> Step {
        self.trace.say(|| format!("preload rows {indexes:?}"));
        let options = TransactionOptions::new().durability(Durability::Relaxed);
        let tx = self.db.begin_with(options).doing(|| "begin".to_owned())?;
        let load = || -> Step {
            let name = NAMES[0];
            let mut table = self.open_or_create(&tx, name)?;
            for index in indexes {
                let len = self.plan.value_bytes / 2 + self.choices.below(self.plan.value_bytes);
                let recipe = Recipe { len: len as u32, seed: self.choices.fresh() };
                let key = self.plan.key(name, index);
                table.put(&key, &recipe.bytes()).doing(|| format!("put {}", Hex(&key)))?;
                self.model.set(name, &key, Some(recipe.value()));
                self.tally.writes += 1;
            }
            Ok(())
        };
        match load() {
            Ok(()) => self.end(tx, Durability::Relaxed, Ending::Commit),
            Err(stop) => self.failed(tx, stop),
        }
    }

    /// After an error: the transaction goes, with a call or without. A full log is nobody's fault.
    fn failed(&mut self, tx: Transaction, stop: Stop) -> Step {
        self.trace.say(|| format!("  {stop}"));
        self.model.rollback();
        let log_full = matches!(&stop, Stop::Engine { error, .. } if error.kind() == ErrorKind::LogFull);
        // Dropping is a rollback too, whose result nobody hears of.
        let rolled_back = if self.choices.once_in(2) { Some(tx.rollback()) } else { None };
        if !log_full {
            return Err(stop);
        }
        self.tally.log_full += 1;
        rolled_back.unwrap_or(Ok(())).doing(|| "roll back after LogFull".to_owned())?;
        self.checkpoint()
    }

    fn end(&mut self, tx: Transaction, durability: Durability, ending: Ending) -> Step {
        self.trace.say(|| format!("{ending:?}"));
        match ending {
            Ending::Commit => {
                let result = tx.commit();
                self.committed(durability, result)
            }
            Ending::Rollback => {
                self.model.rollback();
                self.tally.rollbacks += 1;
                tx.rollback().doing(|| "rollback".to_owned())
            }
            Ending::Drop => {
                self.model.rollback();
                self.tally.drops += 1;
                drop(tx);
                Ok(())
            }
        }
    }

    fn committed(&mut self, durability: Durability, result: Result<(), Error>) -> Step {
        match result {
            Ok(()) => {
                self.model.commit();
                if durability == Durability::Sync {
                    self.model.all_durable();
                    self.tally.sync_commits += 1;
                } else {
                    self.tally.relaxed_commits += 1;
                }
                Ok(())
            }
            Err(error) => {
                self.trace.say(|| format!("  commit: {:?}: {error}", error.kind()));
                // Only an unknown outcome leaves the matter open: after any other error the transaction must be gone.
                if error.kind() == ErrorKind::CommitUnknown {
                    self.model.commit_in_doubt();
                } else {
                    self.model.rollback();
                }
                Err(Stop::Engine { doing: "commit".to_owned(), error })
            }
        }
    }

    fn some_durability(&mut self) -> Durability {
        match self.plan.relaxed_one_in {
            0 => Durability::Sync,
            one_in if self.choices.once_in(one_in) => Durability::Relaxed,
            _ => Durability::Sync,
        }
    }

    fn operation(&mut self, tx: &Transaction, savepoints: &mut Vec<(Savepoint, Mark)>) -> Step {
        match self.choices.below(64) {
            0..=1 => self.change_tables(tx),
            2..=4 => {
                self.trace.say(|| format!("  savepoint {}", savepoints.len()));
                let savepoint = tx.savepoint().doing(|| "savepoint".to_owned())?;
                savepoints.push((savepoint, self.model.mark()));
                Ok(())
            }
            5..=6 => self.roll_back_to_some(tx, savepoints),
            7 => self.compare_tables(tx),
            kind => {
                let name = self.some_name();
                let mut table = self.open_or_create(tx, name)?;
                self.row_operation(&mut table, name, kind)
            }
        }
    }

    /// The table of this name, made with the plan's split keys if there is none.
    fn open_or_create<'t>(&mut self, tx: &'t Transaction, name: &str) -> Step<Bytes<'t>> {
        if self.model.working().tables.contains_key(name) {
            return tx.open_bytes_table(name).doing(|| format!("open table {name}"));
        }
        let splits = self.plan.splits(name);
        self.trace.say(|| format!("  create table {name}, cut at {}", shown_keys(&splits)));
        let table = tx.create_bytes_table(name, &splits).doing(|| format!("create table {name}"))?;
        self.model.create(name);
        Ok(table)
    }

    fn row_operation(&mut self, table: &mut Bytes<'_>, name: &str, kind: u64) -> Step {
        match kind {
            8..=19 => self.remove_some(table, name),
            20..=25 => self.read_some(table, name),
            26..=28 => self.compare_some_range(table),
            29 => {
                let expected = self.model.working().tables.get(name).map_or(0, |rows| rows.len() as u64);
                let found = table.len().doing(|| format!("count {name}"))?;
                expect_same(&expected, &found, || format!("rows of {name}"))
            }
            30 => refused(table, name),
            31 => self.pop_some(table, name),
            32..=33 => self.sweep_some(table, name),
            _ => self.write_some(table, name),
        }
    }

    /// Mostly a table that is there.
    fn some_name(&mut self) -> &'static str {
        NAMES[self.choices.skewed(NAMES.len() as u64) as usize]
    }

    /// A key of the table's key space, sometimes the next one that is there.
    pub(super) fn some_key(&mut self, name: &str) -> Vec<u8> {
        let index = if self.choices.once_in(2) {
            self.choices.skewed(self.plan.key_space)
        } else {
            self.choices.below(self.plan.key_space)
        };
        let key = self.plan.key(name, index);
        let next = self.choices.once_in(3).then(|| self.model.keys_from(name, &key).next());
        next.flatten().map(|next| next.to_vec()).unwrap_or(key)
    }

    fn write_some(&mut self, table: &mut Bytes<'_>, name: &str) -> Step {
        let key = self.some_key(name);
        let len = self.plan.value_len(self.choices);
        let recipe = Recipe { len, seed: self.choices.fresh() };
        let (bytes, value) = (recipe.bytes(), recipe.value());
        let what = |how: &str| format!("{how} {name} {} ({len} bytes)", Hex(&key));
        self.tally.writes += 1;
        self.tally.big_values += u64::from(len as usize > self.plan.page_bytes);
        match self.choices.below(4) {
            0 => {
                self.trace.say(|| format!("  {}", what("insert")));
                let old = table.insert(&key, &bytes).doing(|| what("insert"))?;
                let expected = self.model.set(name, &key, Some(value));
                expect_same(&expected, &old.map(|old| Value::of(&old)), || what("old value of insert"))
            }
            1 => {
                self.trace.say(|| format!("  {}", what("insert_from")));
                let written = table.insert_from(&key, &bytes[..]).doing(|| what("insert_from"))?;
                self.model.set(name, &key, Some(value));
                expect_same(&u64::from(len), &written, || what("length from insert_from"))
            }
            _ => {
                self.trace.say(|| format!("  {}", what("put")));
                table.put(&key, &bytes).doing(|| what("put"))?;
                self.model.set(name, &key, Some(value));
                Ok(())
            }
        }
    }

    fn remove_some(&mut self, table: &mut Bytes<'_>, name: &str) -> Step {
        let key = self.some_key(name);
        let what = |how: &str| format!("{how} {name} {}", Hex(&key));
        self.tally.writes += 1;
        if self.choices.once_in(2) {
            self.trace.say(|| format!("  {}", what("delete")));
            table.delete(&key).doing(|| what("delete"))?;
            self.model.set(name, &key, None);
            return Ok(());
        }
        self.trace.say(|| format!("  {}", what("remove")));
        let old = table.remove(&key).doing(|| what("remove"))?;
        let expected = self.model.set(name, &key, None);
        expect_same(&expected, &old.map(|old| Value::of(&old)), || what("old value of remove"))
    }

    fn read_some(&mut self, table: &Bytes<'_>, name: &str) -> Step {
        let key = self.some_key(name);
        let what = |how: &str| format!("{how} {name} {}", Hex(&key));
        let expected = self.model.working().tables.get(name).and_then(|rows| rows.get(&key[..])).copied();
        let found = match self.choices.below(3) {
            0 => table.get(&key).doing(|| what("get"))?.map(|value| Value::of(&value)),
            1 => {
                let there = table.contains_key(&key).doing(|| what("contains_key"))?;
                return expect_same(&expected.is_some(), &there, || what("contains_key"));
            }
            _ => match table.reader(&key).doing(|| what("reader"))? {
                Some(mut reader) => {
                    let len = reader.len();
                    let value = Value::read(&mut reader)
                        .map_err(|error| Stop::Read { doing: what("read to the end"), error })?;
                    expect_same(&u64::from(value.len), &len, || what("length from the reader"))?;
                    Some(value)
                }
                None => None,
            },
        };
        expect_same(&expected, &found, || what("value"))
    }

    fn pop_some(&mut self, table: &mut Bytes<'_>, name: &str) -> Step {
        let first = self.choices.once_in(2);
        self.trace.say(|| format!("  {name}: pop {}", if first { "first" } else { "last" }));
        let popped = if first { table.pop_first() } else { table.pop_last() };
        let popped = popped.doing(|| format!("pop {name}"))?;
        let rows = &self.model.working().tables[name];
        let expected = if first { rows.first_key_value() } else { rows.last_key_value() };
        let expected = expected.map(|(key, value)| (key.to_vec(), *value));
        let found = popped.map(|(key, value)| (key, Value::of(&value)));
        expect_same(&expected, &found, || format!("pop {name} (first: {first})"))?;
        if let Some((key, _)) = expected {
            self.model.set(name, &key, None);
        }
        Ok(())
    }

    /// Removes or rewrites a run of neighbouring rows: empties leaves and fills them again.
    fn sweep_some(&mut self, table: &mut Bytes<'_>, name: &str) -> Step {
        let from = self.some_key(name);
        let count = self.choices.between(2, 120) as usize;
        let rewrite = self.choices.once_in(3);
        self.trace.say(|| format!("  {name}: sweep {count} rows from {} (rewrite: {rewrite})", Hex(&from)));
        let keys: Vec<_> = self.model.keys_from(name, &from).take(count).cloned().collect();
        for key in keys {
            self.tally.writes += 1;
            if rewrite {
                let recipe = Recipe { len: self.plan.value_len(self.choices), seed: self.choices.fresh() };
                table.put(&key, &recipe.bytes()).doing(|| format!("put {name} {}", Hex(&key)))?;
                self.model.set(name, &key, Some(recipe.value()));
            } else {
                table.delete(&key).doing(|| format!("delete {name} {}", Hex(&key)))?;
                self.model.set(name, &key, None);
            }
        }
        Ok(())
    }

    fn roll_back_to_some(&mut self, tx: &Transaction, savepoints: &mut Vec<(Savepoint, Mark)>) -> Step {
        if savepoints.is_empty() {
            return Ok(());
        }
        let index = self.choices.below(savepoints.len() as u64) as usize;
        let (savepoint, mark) = savepoints[index];
        self.trace.say(|| format!("  roll back to savepoint {index}"));
        tx.rollback_to(savepoint).doing(|| "rollback_to".to_owned())?;
        self.model.rollback_to(mark);
        self.tally.savepoint_rollbacks += 1;
        for (forgotten, _) in savepoints.drain(index + 1..) {
            expect_error(tx.rollback_to(forgotten), ErrorKind::NotFound, || {
                "roll back to a forgotten savepoint".to_owned()
            })?;
        }
        Ok(())
    }

    fn compare_tables(&mut self, tx: &Transaction) -> Step {
        let mut found: Vec<(String, u64)> = Vec::new();
        for table in tx.tables().doing(|| "list the tables".to_owned())? {
            found.push((table.name, table.rows));
        }
        let expected: Vec<(String, u64)> = self
            .model
            .working()
            .tables
            .iter()
            .map(|(name, rows)| (name.clone(), rows.len() as u64))
            .collect();
        expect_same(&expected, &found, || "tables in a transaction".to_owned())
    }

    fn change_tables(&mut self, tx: &Transaction) -> Step {
        let (name, other) = (self.some_name(), self.some_name());
        let there = |session: &Self, name: &str| session.model.working().tables.contains_key(name);
        expect_same(&there(self, name), &tx.has_table(name).doing(|| "has_table".to_owned())?, || {
            format!("has_table({name})")
        })?;
        match self.choices.below(3) {
            0 => {
                self.trace.say(|| format!("  drop table {name}"));
                if !there(self, name) {
                    return expect_error(tx.drop_table(name), ErrorKind::NotFound, || format!("drop {name}"));
                }
                // The first table carries the bulk of the data: it goes rarely.
                if name == NAMES[0] && !self.choices.once_in(8) {
                    return Ok(());
                }
                tx.drop_table(name).doing(|| format!("drop table {name}"))?;
                self.model.drop_table(name);
            }
            1 => {
                self.trace.say(|| format!("  rename table {name} to {other}"));
                let result = tx.rename_table(name, other);
                if !there(self, name) {
                    return expect_error(result, ErrorKind::NotFound, || format!("rename {name}"));
                }
                if name != other && there(self, other) {
                    return expect_error(result, ErrorKind::AlreadyExists, || format!("rename to {other}"));
                }
                result.doing(|| format!("rename table {name} to {other}"))?;
                if name != other {
                    self.model.rename(name, other);
                }
            }
            _ => {
                if there(self, name) {
                    let again = tx.create_bytes_table(name, &self.plan.splits(name));
                    let kind = ErrorKind::AlreadyExists;
                    return expect_error(again, kind, || format!("create table {name} again"));
                }
                self.open_or_create(tx, name)?;
            }
        }
        self.tally.table_changes += 1;
        Ok(())
    }
}

fn shown_keys(keys: &[Vec<u8>]) -> String {
    let keys: Vec<String> = keys.iter().map(|key| Hex(key).to_string()).collect();
    format!("[{}]", keys.join(", "))
}

/// Things that must be refused and change nothing.
fn refused(table: &mut Bytes<'_>, name: &str) -> Step {
    let long = vec![7; table.max_key_bytes() + 1];
    expect_error(table.put(&long, b"x"), ErrorKind::InvalidArgument, || format!("{name}: too long a key"))?;
    expect_error(table.range(&b"b"[..]..&b"a"[..]), ErrorKind::InvalidArgument, || {
        format!("{name}: reversed range")
    })?;
    let none = table.get(&long).doing(|| format!("{name}: get too long a key"))?;
    expect_same(&None, &none, || format!("{name}: value of too long a key"))
}
