//! A client: transactions one after the other, and snapshots that live across them. What it asks and is told goes into the history.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use hamal::{
    CommitTicket, Durability, ErrorKind, Isolation, Savepoint, Snapshot, Transaction, TransactionOptions,
};

use super::history::{Attempt, Fate, Look, Who};
use super::life::Life;
use super::operation::{
    Answer, Bounds, End, Get, Name, Operation, Put, Removal, RowOperation, Step, Written,
};
use super::perform::{Broken, in_snapshot, in_transaction};
use crate::choice::Choices;
use crate::model::Key;
use crate::plan::NAMES;
use crate::value::Recipe;
use crate::workload::{self, Doing, Stop};

/// Longer than a simulated machine runs: such a wait ends only as it should.
const FOR_EVER: Duration = Duration::from_secs(5);

/// Rows per transaction of the first load.
const PRELOAD_ROWS: u64 = 150;

pub(super) struct Client<'l> {
    life: &'l Life<'l>,
    me: usize,
    choices: Choices,
    number: u64,
    snapshots: Vec<(Snapshot, Look)>,
    /// Commits that it was not told are durable, and what is if they are.
    tickets: Vec<(CommitTicket, u64)>,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Commit,
    Ticket,
    Rollback,
    Drop,
}

/// A running transaction.
struct Running {
    tx: Transaction,
    attempt: Attempt,
    savepoints: Vec<Savepoint>,
}

impl<'l> Client<'l> {
    pub(super) fn new(life: &'l Life<'l>, me: usize, choices: Choices) -> Self {
        Client { life, me, choices, number: 0, snapshots: Vec::new(), tickets: Vec::new() }
    }

    /// Works until it has done its share or something has ended the life.
    pub(super) fn run(mut self) {
        let ended = self.work();
        for (_, look) in self.snapshots.drain(..) {
            self.life.record().history.looks.push(look);
        }
        self.life.record().busy -= 1;
        self.life.ended(self.me, ended);
    }

    fn work(&mut self) -> workload::Step {
        let count = self.choices.between(2, self.life.plan.transactions.max(2));
        for _ in 0..count {
            self.life.pause("between transactions");
            if self.life.is_over() {
                return Ok(());
            }
            match self.choices.below(10) {
                0 if self.snapshots.len() < 3 => self.take_snapshot()?,
                1 => self.drop_snapshot(),
                2 => self.settle_ticket()?,
                3..=4 => self.look()?,
                _ => {}
            }
            self.transaction()?;
        }
        while !self.tickets.is_empty() && !self.life.is_over() {
            self.settle_ticket()?;
        }
        if self.choices.once_in(2) {
            self.look()?;
        }
        Ok(())
    }

    /// Writes the plan's first rows, so that there is more data than cache.
    pub(super) fn preload(&mut self) -> workload::Step {
        let name = NAMES[0];
        let mut next = 0;
        while next < self.life.plan.preload_rows {
            let end = (next + PRELOAD_ROWS).min(self.life.plan.preload_rows);
            let mut running = self.begin(Isolation::Serializable, Durability::Relaxed, FOR_EVER)?;
            let mut load = || -> Result<(), Broken> {
                self.call(&mut running, Operation::Create(name))?;
                for index in next..end {
                    let bytes = self.life.plan.value_bytes;
                    let len = bytes / 2 + self.choices.below(bytes);
                    let written = Written::new(Recipe { len: len as u32, seed: self.choices.fresh() });
                    let key = Key::from(self.life.plan.key(name, index));
                    self.call(
                        &mut running,
                        Operation::Rows(name, RowOperation::Put(key, written, Put::Blind)),
                    )?;
                }
                Ok(())
            };
            match load() {
                Ok(()) => self.end(running, Ending::Commit)?,
                // The log may be too small for so many rows; there will be some.
                Err(broken) => self.give_up(running, broken.stop)?,
            }
            next = end;
        }
        Ok(())
    }

    fn who(&mut self) -> Who {
        self.number += 1;
        Who { client: self.me, number: self.number }
    }

    fn begin(
        &mut self,
        isolation: Isolation,
        durability: Durability,
        lock_timeout: Duration,
    ) -> workload::Step<Running> {
        let options =
            TransactionOptions::new().isolation(isolation).durability(durability).lock_timeout(lock_timeout);
        let who = self.who();
        self.life.say(self.me, || format!("begin {} ({isolation:?}, {durability:?})", who.number));
        let returned = self.life.record().returned;
        let tx = self.life.db.begin_with(options).doing(|| "begin".to_owned())?;
        let seen_up_to = tx.seen_up_to();
        if seen_up_to < returned {
            return Err(Stop::Wrong(format!(
                "{who} sees commits up to {seen_up_to}, but one at {returned} had returned when it began"
            )));
        }
        self.life.record().tally.transactions += 1;
        self.life.record().running.insert(self.me, tx.canceller());
        let (calls, fate) = (Vec::new(), Fate::RolledBack);
        let attempt = Attempt { who, isolation, durability, calls, seen_up_to, fate };
        Ok(Running { tx, attempt, savepoints: Vec::new() })
    }

    /// Runs one drawn transaction to its end.
    fn transaction(&mut self) -> workload::Step {
        let isolation =
            *self.choices.pick(&[Isolation::Serializable, Isolation::Serializable, Isolation::Snapshot]);
        let durability = match self.life.plan.relaxed_one_in {
            0 => Durability::Sync,
            one_in if self.choices.once_in(one_in) => {
                *self.choices.pick(&[Durability::Relaxed, Durability::Periodic(Duration::from_millis(1))])
            }
            _ => Durability::Sync,
        };
        let lock_timeout = *self.choices.pick(&[
            FOR_EVER,
            FOR_EVER,
            FOR_EVER,
            FOR_EVER,
            Duration::from_millis(1),
            Duration::ZERO,
        ]);
        let mut running = match self.begin(isolation, durability, lock_timeout) {
            // A verification did not end in time.
            Err(stop) if stop.kind() == Some(ErrorKind::Conflict) => return Ok(()),
            other => other?,
        };
        let count = match self.choices.below(8) {
            0 => 0,
            1 => self.choices.between(10, 60),
            _ => self.choices.between(1, 12),
        };
        for _ in 0..count {
            self.life.pause("between operations");
            let Err(broken) = self.some_operation(&mut running) else { continue };
            let conflict = broken.stop.kind() == Some(ErrorKind::Conflict);
            // A failed statement has no effect: the transaction may go on, and may even commit.
            if !conflict || broken.torn || !self.choices.once_in(3) {
                return self.give_up(running, broken.stop);
            }
            self.life.say(self.me, || format!("goes on after: {}", broken.stop));
        }
        self.life.pause("before the end of a transaction");
        let ending = *self.choices.pick(&[
            Ending::Commit,
            Ending::Commit,
            Ending::Commit,
            Ending::Commit,
            Ending::Commit,
            Ending::Ticket,
            Ending::Rollback,
            Ending::Drop,
        ]);
        self.end(running, ending)
    }

    /// After an error the transaction goes, with a call or without. Returns errors that may not be.
    fn give_up(&mut self, running: Running, stop: Stop) -> workload::Step {
        self.life.say(self.me, || format!("gives up: {stop}"));
        let ending = if self.choices.once_in(2) { Ending::Rollback } else { Ending::Drop };
        let ended = self.end(running, ending);
        let kind = stop.kind();
        match kind {
            Some(ErrorKind::Conflict) => self.life.record().tally.conflicts += 1,
            Some(ErrorKind::Cancelled) => self.life.record().tally.cancelled += 1,
            Some(ErrorKind::LogFull) => {
                self.life.record().tally.log_full += 1;
                ended?;
                return self.checkpoint();
            }
            _ => self.life.make_room(self.me, stop)?,
        }
        ended
    }

    fn checkpoint(&mut self) -> workload::Step {
        match self.life.db.checkpoint().doing(|| "checkpoint after LogFull".to_owned()) {
            Err(stop) => self.life.make_room(self.me, stop),
            Ok(_) => Ok(()),
        }
    }

    fn end(&mut self, running: Running, ending: Ending) -> workload::Step {
        let Running { tx, mut attempt, .. } = running;
        self.life.say(self.me, || format!("{ending:?} of {}", attempt.who.number));
        attempt.seen_up_to = tx.seen_up_to();
        let mut lsn = None;
        let result = match ending {
            Ending::Commit => tx.commit_witnessed(&mut lsn).map(|()| None),
            Ending::Ticket => tx.commit_ticket().map(|ticket| {
                lsn = ticket.lsn();
                Some(ticket)
            }),
            Ending::Rollback => tx.rollback().map(|()| None),
            Ending::Drop => {
                drop(tx);
                Ok(None)
            }
        };
        let mut record = self.life.record();
        record.running.remove(&self.me);
        let commits = matches!(ending, Ending::Commit | Ending::Ticket);
        let unknown = matches!(&result, Err(error) if error.kind() == ErrorKind::CommitUnknown);
        if commits && (result.is_ok() || unknown) {
            attempt.fate = Fate::Committed(lsn);
        }
        let (sync, reached) = (attempt.durability == Durability::Sync, lsn.unwrap_or(attempt.seen_up_to));
        let (seen_up_to, who) = (attempt.seen_up_to, attempt.who);
        record.history.attempts.push(attempt);
        record.tally.rollbacks += u64::from(ending == Ending::Rollback);
        record.tally.drops += u64::from(ending == Ending::Drop);
        if commits && result.is_ok() {
            record.returned = record.returned.max(lsn.unwrap_or(0));
            match (&result, sync) {
                (Ok(Some(_)), true) => {}
                (_, true) => {
                    record.tally.sync_commits += 1;
                    record.told = record.told.max(reached);
                    record.required = record.required.max(reached);
                }
                (_, false) => {
                    record.tally.relaxed_commits += 1;
                    record.told = record.told.max(reached);
                }
            }
        }
        record.tally.commits_unknown += u64::from(unknown);
        drop(record);
        self.life.say(self.me, || format!("  saw {seen_up_to}, committed at {lsn:?}"));
        match result {
            Ok(Some(ticket)) => {
                self.tickets.push((ticket, reached));
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => {
                self.life.say(self.me, || format!("  {:?}: {error}", error.kind()));
                let kind = error.kind();
                if lsn.is_some() && !unknown {
                    return Err(Stop::Wrong(format!("{who} was committed at {lsn:?}, and answered {error}")));
                }
                match (commits, kind) {
                    (true, ErrorKind::Conflict) => self.life.record().tally.conflicts += 1,
                    (true, ErrorKind::Cancelled) => self.life.record().tally.cancelled += 1,
                    _ => {
                        self.life.make_room(self.me, Stop::Engine { doing: format!("{ending:?}"), error })?;
                    }
                }
                Ok(())
            }
        }
    }

    fn call(&mut self, running: &mut Running, mut operation: Operation) -> Result<Answer, Broken> {
        self.life.say(self.me, || super::operation::shown(&operation));
        match in_transaction(&running.tx, self.life.plan, &mut operation, &mut running.savepoints) {
            Ok(answer) => {
                self.life.say(self.me, || format!("  {}", super::operation::shown(&answer)));
                running.attempt.calls.push((operation, answer.clone()));
                Ok(answer)
            }
            Err(mut broken) => {
                if let Some(answer) = broken.so_far.take() {
                    running.attempt.calls.push((operation, answer));
                }
                Err(broken)
            }
        }
    }

    fn some_operation(&mut self, running: &mut Running) -> Result<(), Broken> {
        let name = self.some_name();
        let operation = match self.choices.below(64) {
            0 => Operation::Drop(self.rare_name()),
            1 => Operation::Rename(self.rare_name(), self.rare_name()),
            2..=4 => Operation::Savepoint,
            5..=7 if !running.savepoints.is_empty() => {
                Operation::RollBackTo(self.choices.below(running.savepoints.len() as u64) as usize)
            }
            8 => Operation::Tables,
            9 => Operation::HasTable(name),
            10 => return self.sweep(running, name),
            kind => {
                self.call(running, Operation::Create(name))?;
                Operation::Rows(name, self.row_operation(name, kind))
            }
        };
        self.life.record().tally.table_changes +=
            u64::from(matches!(operation, Operation::Drop(_) | Operation::Rename(..)));
        self.call(running, operation).map(drop)
    }

    fn row_operation(&mut self, name: Name, kind: u64) -> RowOperation {
        let key = self.some_key(name);
        match kind {
            11..=18 => {
                let how = *self.choices.pick(&[Removal::Blind, Removal::Remove]);
                RowOperation::Remove(key, how)
            }
            19..=26 => self.some_get(key),
            27..=30 => RowOperation::Lock(key),
            31..=32 => RowOperation::Count,
            33..=34 => RowOperation::Pop(self.some_end()),
            35..=42 => self.some_walk(name, true),
            43 if self.life.plan.preload_rows == 0 || name != NAMES[0] => RowOperation::Clear,
            _ => {
                let how = *self.choices.pick(&[Put::Blind, Put::Blind, Put::Insert, Put::Stream]);
                let written = self.some_value();
                RowOperation::Put(key, written, how)
            }
        }
    }

    fn some_get(&mut self, key: Key) -> RowOperation {
        RowOperation::Get(key, *self.choices.pick(&[Get::Value, Get::Contains, Get::Reader]))
    }

    /// Reads a run of rows and removes or rewrites them: empties leaves and fills them again.
    fn sweep(&mut self, running: &mut Running, name: Name) -> Result<(), Broken> {
        self.call(running, Operation::Create(name))?;
        let bounds = (Bound::Included(self.some_key(name)), Bound::Unbounded);
        let steps = vec![Step::Next(End::Front); self.choices.between(2, 60) as usize];
        let answer = self.call(running, Operation::Rows(name, RowOperation::Walk(bounds, steps)))?;
        let Answer::Rows(rows) = answer else { return Ok(()) };
        let rewrite = self.choices.once_in(3);
        for (key, _) in rows.into_iter().flatten() {
            let operation = if rewrite {
                RowOperation::Put(key, self.some_value(), Put::Blind)
            } else {
                RowOperation::Remove(key, Removal::Blind)
            };
            self.call(running, Operation::Rows(name, operation))?;
        }
        Ok(())
    }

    fn some_walk(&mut self, name: Name, writes: bool) -> RowOperation {
        let bounds = self.some_bounds(name);
        let count = *self.choices.pick(&[1, 3, 10, 80]);
        let turns = *self.choices.pick(&[0, 0, 2]);
        let first = self.some_end();
        let mut steps = Vec::new();
        for _ in 0..self.choices.between(1, count) {
            let step = match self.choices.below(12) {
                0 if writes => Step::Put(self.some_key(name), self.some_value()),
                1 if writes => Step::Delete(self.some_key(name)),
                _ if turns == 0 => Step::Next(first),
                _ => Step::Next(self.some_end()),
            };
            steps.push(step);
        }
        RowOperation::Walk(bounds, steps)
    }

    fn some_bounds(&mut self, name: Name) -> Bounds {
        let mut bound = || {
            let key = self.some_key(name);
            match self.choices.below(4) {
                0 | 1 => Bound::Unbounded,
                2 => Bound::Included(key),
                _ => Bound::Excluded(key),
            }
        };
        let (lower, upper) = (bound(), bound());
        match (&lower, &upper) {
            (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) if a > b => {
                (upper, lower)
            }
            _ => (lower, upper),
        }
    }

    fn some_end(&mut self) -> End {
        *self.choices.pick(&[End::Front, End::Back])
    }

    fn some_name(&mut self) -> Name {
        NAMES[self.choices.skewed(NAMES.len() as u64) as usize]
    }

    /// The first table carries the bulk of the data: it goes rarely.
    fn rare_name(&mut self) -> Name {
        match self.some_name() {
            name if name == NAMES[0] && !self.choices.once_in(4) => NAMES[1],
            name => name,
        }
    }

    fn some_key(&mut self, name: Name) -> Key {
        let space = self.life.plan.key_space;
        let index =
            if self.choices.once_in(2) { self.choices.skewed(space) } else { self.choices.below(space) };
        Arc::from(self.life.plan.key(name, index))
    }

    fn some_value(&mut self) -> Written {
        let len = self.life.plan.value_len(&mut self.choices);
        let mut record = self.life.record();
        record.tally.writes += 1;
        record.tally.big_values += u64::from(len as usize > self.life.plan.page_bytes);
        drop(record);
        Written::new(Recipe { len, seed: self.choices.fresh() })
    }

    fn take_snapshot(&mut self) -> workload::Step {
        let who = self.who();
        let told = self.life.record().told;
        let snapshot = self.life.db.snapshot().doing(|| "snapshot".to_owned())?;
        let durable = self.life.db.stats().log_durable;
        let seen_up_to = snapshot.seen_up_to();
        self.life.say(self.me, || format!("snapshot {} sees up to {seen_up_to}", who.number));
        if seen_up_to < told {
            return Err(Stop::Wrong(format!(
                "the snapshot of {who} sees commits up to {seen_up_to}, but somebody had been told of one at {told}"
            )));
        }
        self.life.record().tally.snapshots += 1;
        self.snapshots.push((snapshot, Look { who, calls: Vec::new(), seen_up_to, durable }));
        Ok(())
    }

    fn drop_snapshot(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        let index = self.choices.below(self.snapshots.len() as u64) as usize;
        let (snapshot, look) = self.snapshots.swap_remove(index);
        self.life.say(self.me, || format!("drop snapshot {}", look.who.number));
        self.life.record().history.looks.push(look);
        drop(snapshot);
    }

    /// Asks each of its snapshots something.
    fn look(&mut self) -> workload::Step {
        for index in 0..self.snapshots.len() {
            for _ in 0..self.choices.between(1, 4) {
                self.life.pause("between looks at a snapshot");
                let name = self.some_name();
                let mut operation = match self.choices.below(8) {
                    0 => Operation::Tables,
                    1 => Operation::HasTable(name),
                    kind => {
                        let key = self.some_key(name);
                        let rows = match kind {
                            2..=3 => self.some_get(key),
                            4 => RowOperation::Count,
                            _ => self.some_walk(name, false),
                        };
                        Operation::Rows(name, rows)
                    }
                };
                let (snapshot, look) = &mut self.snapshots[index];
                self.life.say(self.me, || format!("snapshot {}: {operation:x?}", look.who.number));
                match in_snapshot(snapshot, &mut operation) {
                    Ok(answer) => look.calls.push((operation, answer)),
                    Err(broken) => {
                        look.calls.extend(broken.so_far.map(|answer| (operation, answer)));
                        return Err(broken.stop);
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits for a commit to be durable, or sees that it is.
    fn settle_ticket(&mut self) -> workload::Step {
        if self.tickets.is_empty() {
            return Ok(());
        }
        let index = self.choices.below(self.tickets.len() as u64) as usize;
        let (ticket, reached) = self.tickets.swap_remove(index);
        if !ticket.is_durable() || self.choices.once_in(2) {
            ticket.wait().doing(|| "wait for a ticket".to_owned())?;
        }
        let mut record = self.life.record();
        record.required = record.required.max(reached);
        record.told = record.told.max(reached);
        Ok(())
    }
}
