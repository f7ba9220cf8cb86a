//! One client: a thread that runs transactions one after the other and writes down what it sees.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use hamal::{Database, ErrorKind, Isolation, Savepoint, Snapshot, TransactionOptions};
use hamal_storage::sim::SimStorage;

use super::content::{Broken, Bytes, BytesMut, Layout, TABLES};
use super::script::{Script, Step};
use super::{Outcomes, Shared};
use crate::checker::{Element, Key, Level, Op, Outcome, Tick, Transaction};
use crate::choice::Choices;

/// Where ticks come from.
pub(super) trait Moments {
    fn tick(&self) -> Tick;
}

/// How often a refused transaction is tried again, at most.
const RETRIES: u32 = 3;
/// The longest wait for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// A client, and what it has written down.
pub(super) struct Client<'r> {
    shared: &'r Shared<'r>,
    db: &'r Database,
    sim: Option<&'r SimStorage>,
    session: u32,
    choices: Choices,
}

/// What a client has written down.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) transactions: Vec<Transaction>,
    pub(super) outcomes: Outcomes,
    pub(super) failure: Option<String>,
}

/// How a transaction ended.
enum End {
    Committed,
    /// Rolled back as drawn.
    GaveUp,
    /// Refused; it may be tried again.
    Conflict,
    LogFull,
    /// An error before the commit, on a machine that has stopped.
    Stopped,
    Unknown,
    /// An error that may not be, or an answer that cannot be.
    Failed(String),
}

impl<'r> Client<'r> {
    pub(super) fn new(
        shared: &'r Shared<'r>,
        db: &'r Database,
        sim: Option<&'r SimStorage>,
        session: u32,
        choices: Choices,
    ) -> Client<'r> {
        Client { shared, db, sim, session, choices }
    }

    fn has_stopped(&self) -> bool {
        self.sim.is_some_and(SimStorage::is_crashed)
    }

    /// Runs transactions until there are enough, the machine stops, or somebody fails.
    pub(super) fn run(mut self) -> Notes {
        let mut notes = Notes::default();
        while !self.shared.failed.load(Ordering::Relaxed)
            && !self.has_stopped()
            && self.shared.left.fetch_sub(1, Ordering::Relaxed) > 0
        {
            let script = Script::draw(&mut self.choices, self.shared.config, &self.shared.layout);
            for _ in 0..=RETRIES {
                let end = self.transaction(&script, &mut notes);
                let again = matches!(end, End::Conflict) && self.choices.once_in(2);
                self.shared.progress.fetch_add(1, Ordering::Relaxed);
                let outcomes = &mut notes.outcomes;
                match end {
                    End::Committed => outcomes.committed += 1,
                    End::GaveUp | End::Stopped => outcomes.aborted += 1,
                    End::Conflict => outcomes.conflicts += 1,
                    End::LogFull => outcomes.log_full += 1,
                    End::Unknown => outcomes.unknown += 1,
                    End::Failed(what) => {
                        self.shared.failed.store(true, Ordering::Relaxed);
                        notes.failure = Some(format!("session {}: {what}", self.session));
                        return notes;
                    }
                }
                if !again || self.has_stopped() {
                    break;
                }
            }
        }
        notes
    }

    /// Runs one transaction and writes it down.
    fn transaction(&self, script: &Script, notes: &mut Notes) -> End {
        let begin = self.shared.tick();
        let mut ops = Vec::new();
        let (level, end) = match script.isolation {
            None => (Level::ReadOnly, self.read_only(script, &mut ops)),
            Some(isolation) => {
                let level = match isolation {
                    Isolation::Snapshot => Level::Snapshot,
                    _ => Level::Serializable,
                };
                (level, self.read_write(script, isolation, &mut ops))
            }
        };
        let outcome = match end {
            End::Committed => Outcome::Committed,
            End::Unknown => Outcome::Unknown,
            // What a snapshot has shown counts, whatever came then.
            _ if level == Level::ReadOnly => Outcome::Committed,
            _ => Outcome::Aborted,
        };
        let end_tick = if outcome == Outcome::Unknown { Tick::MAX } else { self.shared.tick() };
        let session = self.session;
        if !ops.is_empty() {
            notes.transactions.push(Transaction { session, level, begin, end: end_tick, outcome, ops });
        }
        end
    }

    /// What an error before a commit means.
    fn judge(&self, broken: Broken) -> End {
        match broken {
            Broken::Engine(e) if e.kind() == ErrorKind::Conflict => End::Conflict,
            Broken::Engine(e) if e.kind() == ErrorKind::LogFull => End::LogFull,
            Broken::Engine(e) if e.kind() != ErrorKind::Corrupt && self.has_stopped() => End::Stopped,
            broken => End::Failed(broken.to_string()),
        }
    }

    fn read_only(&self, script: &Script, ops: &mut Vec<Op>) -> End {
        let read = |ops: &mut Vec<Op>| -> Result<(), Broken> {
            let snapshot = self.db.snapshot()?;
            let tables = open_tables(&snapshot)?;
            for step in &script.steps {
                self.read_step(step, |table| &tables[table], ops)?;
            }
            Ok(())
        };
        read(ops).map_or_else(|broken| self.judge(broken), |()| End::Committed)
    }

    fn read_write(&self, script: &Script, isolation: Isolation, ops: &mut Vec<Op>) -> End {
        let options = TransactionOptions::new()
            .isolation(isolation)
            .durability(script.durability)
            .lock_timeout(LOCK_TIMEOUT);
        let tx = match self.db.begin_with(options) {
            Ok(tx) => tx,
            Err(error) => return self.judge(error.into()),
        };
        if let Err(broken) = self.steps(&tx, script, ops) {
            let end = self.judge(broken);
            drop(tx);
            return end;
        }
        if script.gives_up {
            return match tx.rollback() {
                Ok(()) => End::GaveUp,
                Err(error) => self.judge(error.into()),
            };
        }
        match tx.commit() {
            Ok(()) => End::Committed,
            Err(e) if e.kind() == ErrorKind::Conflict => End::Conflict,
            Err(e) if e.kind() == ErrorKind::LogFull => End::LogFull,
            Err(e) if e.kind() != ErrorKind::Corrupt && self.has_stopped() => End::Unknown,
            Err(e) => End::Failed(format!("commit: {:?}: {e}", e.kind())),
        }
    }

    fn steps(&self, tx: &hamal::Transaction, script: &Script, ops: &mut Vec<Op>) -> Result<(), Broken> {
        let mut tables = [tx.open_bytes_table(TABLES[0])?, tx.open_bytes_table(TABLES[1])?];
        let mut savepoints: Vec<(Savepoint, usize)> = Vec::new();
        for step in &script.steps {
            match step {
                Step::Append { key, for_update } => {
                    let table = &mut tables[self.shared.layout.table_of(*key)];
                    self.append(table, *key, *for_update, ops)?;
                }
                Step::Write(key) => {
                    let element = self.element();
                    let bytes = self.shared.layout.register(element);
                    tables[self.shared.layout.table_of(*key)].put(&Layout::name(*key), &bytes)?;
                    ops.push(Op::Write { key: *key, element });
                }
                Step::Update { key, by_insert } => {
                    let table = &mut tables[self.shared.layout.table_of(*key)];
                    self.update(table, *key, *by_insert, ops)?;
                }
                Step::Savepoint => savepoints.push((tx.savepoint()?, ops.len())),
                Step::RollBack => {
                    // The last one, which stays good for another time.
                    if let Some((savepoint, to)) = savepoints.last() {
                        tx.rollback_to(*savepoint)?;
                        ops.push(Op::RollBack { to: *to });
                    }
                }
                _ => self.read_step(step, |table| &tables[table], ops)?,
            }
        }
        Ok(())
    }

    fn element(&self) -> Element {
        self.shared.elements.fetch_add(1, Ordering::Relaxed)
    }

    fn append(
        &self,
        table: &mut BytesMut<'_>,
        key: Key,
        for_update: bool,
        ops: &mut Vec<Op>,
    ) -> Result<(), Broken> {
        let name = Layout::name(key);
        let found = if for_update { table.get_for_update(&name)? } else { table.get(&name)? };
        ops.push(Op::Read { key, found: self.shared.layout.elements(key, found.as_deref())? });
        if !for_update {
            thread::yield_now();
        }
        let (element, mut bytes) = (self.element(), found.unwrap_or_default());
        bytes.extend(element.to_le_bytes());
        table.put(&name, &bytes)?;
        ops.push(Op::Append { key, element });
        Ok(())
    }

    fn update(
        &self,
        table: &mut BytesMut<'_>,
        key: Key,
        by_insert: bool,
        ops: &mut Vec<Op>,
    ) -> Result<(), Broken> {
        let (name, element) = (Layout::name(key), self.element());
        let bytes = self.shared.layout.register(element);
        let found = if by_insert {
            table.insert(&name, &bytes)?
        } else {
            let found = table.get_for_update(&name)?;
            table.put(&name, &bytes)?;
            found
        };
        ops.push(Op::Read { key, found: self.shared.layout.elements(key, found.as_deref())? });
        ops.push(Op::Write { key, element });
        Ok(())
    }

    fn read_step<'t, 'a: 't>(
        &self,
        step: &Step,
        table: impl Fn(usize) -> &'t Bytes<'a>,
        ops: &mut Vec<Op>,
    ) -> Result<(), Broken> {
        let layout = &self.shared.layout;
        match step {
            Step::Get(key) => {
                let found = table(layout.table_of(*key)).get(&Layout::name(*key))?;
                ops.push(Op::Read { key: *key, found: layout.elements(*key, found.as_deref())? });
            }
            Step::Scan { table: index, keys, backward, limit } => {
                layout.scan(table(*index), keys.clone(), *backward, *limit, ops)?;
            }
            Step::First(index) | Step::Last(index) => {
                let backward = matches!(step, Step::Last(_));
                let found = if backward { table(*index).last()? } else { table(*index).first()? };
                let mut left = layout.keys_of(*index);
                match found {
                    Some(row) => layout.pass(&row, backward, &mut left, ops)?,
                    None => ops.extend(left.map(|key| Op::Read { key, found: Vec::new() })),
                }
            }
            Step::Len(index) => {
                let rows = table(*index).len()?;
                let count = rows.checked_sub(layout.rows_between(*index)).ok_or_else(|| {
                    Broken::Wrong(format!("a table of {rows} rows, fewer than nobody ever removes"))
                })?;
                ops.push(Op::Len { keys: layout.keys_of(*index), count });
            }
            Step::Pause(time) if time.is_zero() => thread::yield_now(),
            Step::Pause(time) => thread::sleep(*time),
            _ => {}
        }
        Ok(())
    }
}

fn open_tables(snapshot: &Snapshot) -> hamal::Result<[Bytes<'_>; 2]> {
    Ok([snapshot.open_bytes_table(TABLES[0])?, snapshot.open_bytes_table(TABLES[1])?])
}
