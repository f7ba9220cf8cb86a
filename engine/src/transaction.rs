//! Read-write transactions.
//!
//! For now read-write transactions take turns ([`Engine::turn`]), so a transaction is serial by construction; its rows carry its id as
//! their stamp, its records are chained per partition, and everything below this file is ready for many at once.
//!
//! I1. A statement is one log record, or is rolled back to where it began: a failed statement has no effect.
//! I2. The turn is given up once the commit record is reserved, not when it is durable (early release): the next committer's flush
//!     covers both. Snapshots and empty transactions wait until what they saw is durable (hazard H10).
//! I3. A transaction that cannot be rolled back poisons the handle: reopening recovers.
//! I4. A transaction has one [`OpenTable`] for each table id it has opened, until it ends, whatever the table is called and whether
//!     it is dropped meanwhile: all handles of a table share its row count, and a rollback finds every count.

mod tables;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hamal_pager::PartitionId;
use hamal_wal::{Log, Lsn};
use parking_lot::{ArcRwLockWriteGuard, Mutex, RawRwLock};

use crate::active::TxnEntry;
use crate::catalog::CATALOG;
use crate::checkpoint::Effort;
use crate::database::Handle;
use crate::engine::Engine;
use crate::journal::Chain;
use crate::options::Durability;
use crate::record::Record;
use crate::{Error, ErrorKind, Result, TransactionOptions, recovery, rollback};

pub use tables::TableInfo;
pub(crate) use tables::{OpenTable, check_types, find_table, no_table, table_infos};

/// A read-write transaction: sees its own writes; rolls back when dropped uncommitted. It keeps the database open.
///
/// `Send`, but not `Sync`: its statements are one thread's at a time, or taking one back would take back another's.
///
/// ```compile_fail
/// fn shared<T: Sync>() {}
/// shared::<hamal::Transaction>();
/// ```
#[derive(Debug)]
pub struct Transaction {
    handle: Arc<Handle>,
    entry: Arc<TxnEntry>,
    durability: Durability,
    work: Mutex<Work>,
    turn: Option<ArcRwLockWriteGuard<RawRwLock, ()>>,
    not_sync: PhantomData<Cell<()>>,
}

/// What a transaction remembers besides its chains.
#[derive(Debug, Default)]
struct Work {
    /// By table id; entries stay (I4).
    tables: BTreeMap<u32, Arc<OpenTable>>,
    /// What the catalog is known to say: table ids by name, of tables that are open.
    names: BTreeMap<String, u32>,
    created: Vec<PartitionId>,
    /// Those whose creation was taken back.
    unmade: BTreeSet<PartitionId>,
    dropped: Vec<PartitionId>,
    savepoints: Vec<Mark>,
    next_savepoint: u64,
    failure: Option<String>,
    ended: bool,
}

/// Where a transaction stood: enough to roll back to.
#[derive(Clone, Debug)]
struct Mark {
    id: u64,
    /// Last record of each chain.
    chains: Vec<(PartitionId, Lsn)>,
    deltas: BTreeMap<u32, i64>,
    created: usize,
    dropped: usize,
}

/// A point to roll back to, made by [`Transaction::savepoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Savepoint {
    transaction: u64,
    id: u64,
}

impl Work {
    fn check_usable(&self) -> Result<()> {
        match &self.failure {
            None => Ok(()),
            Some(cause) => Err(Error::new(
                ErrorKind::TransactionEnded,
                format!("the transaction has failed and can only be rolled back: {cause}"),
            )),
        }
    }
}

impl Transaction {
    pub(crate) fn begin(handle: &Arc<Handle>, options: TransactionOptions) -> Result<Transaction> {
        let engine = &handle.engine;
        engine.check_poison()?;
        let timeout = engine.options.lock_timeout;
        let turn = engine.turn.try_write_arc_for(timeout).ok_or_else(|| {
            Error::new(
                ErrorKind::Conflict,
                format!("waited {timeout:?} for the turn to write; another transaction or snapshot holds it"),
            )
        })?;
        engine.check_poison()?;
        Ok(Transaction {
            handle: handle.clone(),
            entry: engine.active.begin(),
            durability: options.durability.unwrap_or(engine.options.durability),
            work: Mutex::default(),
            turn: Some(turn),
            not_sync: PhantomData,
        })
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.handle.engine
    }

    /// `TransactionEnded` once a failure has left it with nothing to do but roll back.
    pub(crate) fn check_usable(&self) -> Result<()> {
        self.work.lock().check_usable()
    }

    /// Whether rows of the table may be written: what went into a table that is gone would be lost without a word.
    pub(crate) fn check_writable(&self, table: &OpenTable) -> Result<()> {
        let work = self.work.lock();
        work.check_usable()?;
        let partition = table.handle.partition.id();
        if work.unmade.contains(&partition) || work.dropped.contains(&partition) {
            return Err(Error::new(
                ErrorKind::NotFound,
                "the table has been dropped, or its creation rolled back, since this handle was opened",
            ));
        }
        Ok(())
    }

    /// Runs a statement of several records; if it fails, takes back what it did (I1). `LogFull` is tried once more after a checkpoint.
    pub(crate) fn statement<T>(&self, mut run: impl FnMut() -> Result<T>) -> Result<T> {
        self.check_usable()?;
        let mark = self.mark();
        let mut result = run();
        if let Err(e) = &result {
            let full = e.kind() == ErrorKind::LogFull;
            self.roll_back_to_mark(&mark)?;
            if full {
                self.engine().take_checkpoint(Effort::Full)?;
                result = run();
                if result.is_err() {
                    self.roll_back_to_mark(&mark)?;
                }
            }
        }
        result
    }

    /// Runs a statement on the rows of one table, whose records are all in the table's chain; if it fails, takes back what it did (I1).
    /// `LogFull` is tried once more after a checkpoint.
    pub(crate) fn row_statement<T>(
        &self,
        table: &OpenTable,
        chain: &Chain,
        mut run: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let down_to = self.entry.lock().last_lsn(chain.partition);
        let delta = table.delta.load(Ordering::Relaxed);
        let mut attempt = || {
            run().inspect_err(|_| table.delta.store(delta, Ordering::Relaxed)).or_else(|e| {
                rollback::undo_chain(self.engine(), chain, down_to).inspect_err(|e| self.fail(e))?;
                Err(e)
            })
        };
        match attempt() {
            Err(e) if e.kind() == ErrorKind::LogFull => {
                self.engine().take_checkpoint(Effort::Full)?;
                attempt()
            }
            other => other,
        }
    }

    /// The transaction can only be rolled back from here on.
    fn fail(&self, cause: &Error) {
        self.work.lock().failure.get_or_insert_with(|| cause.to_string());
    }

    /// Net change of row counts by table id.
    fn deltas(&self) -> BTreeMap<u32, i64> {
        let work = self.work.lock();
        work.tables.values().map(|t| (t.id, t.delta.load(Ordering::Relaxed))).collect()
    }

    fn mark(&self) -> Mark {
        let chains = self.entry.lock().chains.iter().map(|c| (c.partition, c.last_lsn)).collect();
        let deltas = self.deltas();
        let work = self.work.lock();
        let (created, dropped) = (work.created.len(), work.dropped.len());
        Mark { id: work.next_savepoint, chains, deltas, created, dropped }
    }

    /// Takes back everything since the mark. A failure leaves the transaction good for nothing but rolling back.
    fn roll_back_to_mark(&self, mark: &Mark) -> Result<()> {
        self.undo_to(&mark.chains).inspect_err(|e| self.fail(e))?;
        let work = &mut *self.work.lock();
        for table in work.tables.values() {
            table.writes.fetch_add(1, Ordering::Relaxed);
            table.delta.store(mark.deltas.get(&table.id).copied().unwrap_or(0), Ordering::Relaxed);
        }
        // Names may mean other tables again: they are looked up anew.
        work.names.clear();
        work.dropped.truncate(mark.dropped);
        // Partitions made since stay in `created`: their catalog rows are gone, their files go when the transaction ends.
        work.unmade.extend(&work.created[mark.created..]);
        Ok(())
    }

    fn undo_to(&self, chains: &[(PartitionId, Lsn)]) -> Result<()> {
        let mut now: Vec<PartitionId> = self.entry.lock().chains.iter().map(|c| c.partition).collect();
        now.sort_by_key(|p| *p == CATALOG);
        for partition in now {
            let down_to = chains.iter().find(|c| c.0 == partition).map_or(Lsn::NEVER, |c| c.1);
            let chain = Chain { entry: self.entry.clone(), partition };
            rollback::undo_chain(self.engine(), &chain, down_to)?;
        }
        Ok(())
    }

    /// Marks this point. Savepoints nest to any depth; rolling back to one forgets those made after it.
    pub fn savepoint(&self) -> Result<Savepoint> {
        self.check_usable()?;
        let mark = self.mark();
        let mut work = self.work.lock();
        work.next_savepoint += 1;
        let savepoint = Savepoint { transaction: self.entry.id.0, id: mark.id };
        work.savepoints.push(mark);
        Ok(savepoint)
    }

    /// Takes back everything since the savepoint, which stays good for another time. `NotFound` if it has been forgotten or is
    /// another transaction's. Open handles stay with their tables, also those that were dropped or renamed since; a handle of a table
    /// that was created since writes no more (`NotFound`).
    pub fn rollback_to(&self, savepoint: Savepoint) -> Result<()> {
        self.check_usable()?;
        let mark = {
            let mut work = self.work.lock();
            let at = work
                .savepoints
                .iter()
                .position(|m| m.id == savepoint.id && savepoint.transaction == self.entry.id.0)
                .ok_or_else(|| {
                    Error::new(
                        ErrorKind::NotFound,
                        "the savepoint has been forgotten, or is another transaction's",
                    )
                })?;
            work.savepoints.truncate(at + 1);
            work.savepoints[at].clone()
        };
        self.roll_back_to_mark(&mark)
    }

    /// Commits. Durable when it returns, if the durability is `Sync`. `CommitUnknown`: the record was written but the disk failed;
    /// reopening tells. Any other error: the transaction has been rolled back.
    pub fn commit(mut self) -> Result<()> {
        let work = mem::take(self.work.get_mut());
        self.work.get_mut().ended = true;
        if let Some(cause) = &work.failure {
            let error = Error::new(
                ErrorKind::TransactionEnded,
                format!("the transaction had failed and was rolled back: {cause}"),
            );
            self.abandon(&work.created);
            return Err(error);
        }
        let deltas: Vec<(u32, i64)> = work
            .tables
            .values()
            .map(|t| (t.id, t.delta.load(Ordering::Relaxed)))
            .filter(|(_, delta)| *delta != 0)
            .collect();
        let handle = self.handle.clone();
        let engine = &handle.engine;
        if self.entry.lock().chains.is_empty() {
            rollback::end(engine, &self.entry);
            for partition in &work.created {
                // Made, and taken back since.
                let _poisoned = self.delete_if_unnamed(*partition);
            }
            self.turn = None;
            // What it read may belong to a commit that is not durable yet (hazard H10); a durable answer must not be
            // taken back, and a weaker one may be only as far as the commits it stands on.
            return match self.durability {
                Durability::Sync => wait_for_all_commits(engine),
                _ => wait_for_readers_prefix(engine),
            };
        }
        // No commit once pages could not be written, though the log still could (F7).
        let lsn = match engine.check_poison().and_then(|()| self.append_commit(deltas)) {
            Ok(lsn) => lsn,
            Err(e) => {
                self.abandon(&work.created);
                return Err(e);
            }
        };
        rollback::end(engine, &self.entry);
        engine.counters.commits.fetch_add(1, Ordering::Relaxed);
        if !work.dropped.is_empty() || !work.created.is_empty() {
            // Files go only after the commit that drops them is durable (hazard H11), and before anybody else's turn.
            make_commit_durable(engine, lsn)?;
            for partition in work.dropped.iter().chain(&work.created) {
                // The commit stands whatever happens here; what is left of the file is removed by the next recovery.
                let _poisoned = self.delete_if_unnamed(*partition);
            }
        }
        self.turn = None;
        handle.after_commit(self.durability);
        if self.durability == Durability::Sync { make_commit_durable(engine, lsn) } else { Ok(()) }
    }

    /// The commit section: the record, the counts and the end of the transaction in one step (hazards H2, H8, H17).
    fn append_commit(&self, counts: Vec<(u32, i64)>) -> Result<Lsn> {
        let engine = self.engine();
        let record = Record::Commit { txn: self.entry.id, micros: engine.storage.now_micros(), counts };
        let mut payload = Vec::new();
        record.encode(&mut payload);
        let mut permit = engine.log.admit_promised(Log::framed_bytes(payload.len()))?;
        let mut commits = engine.commits.lock();
        let mut state = self.entry.lock();
        let lsn = permit.append(&payload)?;
        state.ended = true;
        if let Record::Commit { counts, .. } = record {
            for (table, delta) in counts {
                let count = commits.counts.entry(table).or_default();
                *count = count.saturating_add_signed(delta);
            }
        }
        commits.last_lsn = lsn;
        if self.durability == Durability::Sync {
            commits.last_sync_lsn = lsn;
        }
        Ok(lsn)
    }

    /// After a commit: a partition that was dropped, or made and lost again to a savepoint, goes.
    fn delete_if_unnamed(&self, partition: PartitionId) -> Result<()> {
        let engine = self.engine();
        let named = recovery::tables(engine)?.iter().any(|(_, row)| row.partition == partition);
        let open = engine.open_partitions().iter().any(|h| h.partition.id() == partition);
        if named || !open {
            return Ok(());
        }
        engine.delete_partition(partition).inspect_err(|e| engine.poison(e))
    }

    /// Rolls back, and says whether that worked (dropping does the same silently).
    pub fn rollback(mut self) -> Result<()> {
        let work = mem::take(self.work.get_mut());
        self.work.get_mut().ended = true;
        self.abandon(&work.created);
        self.engine().check_poison()
    }

    /// Undoes everything. What cannot be undone now is left to recovery: the handle is poisoned (I3).
    fn abandon(&mut self, created: &[PartitionId]) {
        let engine = &self.handle.engine;
        let undone = if self.entry.lock().chains.is_empty() {
            rollback::end(engine, &self.entry);
            Ok(())
        } else {
            engine
                .journal
                .append(&Record::Abort { txn: self.entry.id })
                .and_then(|_| rollback::roll_back(engine, &self.entry, &mut |_| Ok(())).map(|_| ()))
        };
        let failed = |e: Error| e.context(format!("transaction {} could not be rolled back", self.entry.id));
        match undone {
            Err(e) => engine.leave_unresolved(&failed(e)),
            Ok(()) => {
                if let Err(e) = created.iter().try_for_each(|p| self.delete_if_unnamed(*p)) {
                    engine.poison(&failed(e));
                }
            }
        }
        self.turn = None;
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.work.get_mut().ended {
            let work = mem::take(self.work.get_mut());
            self.abandon(&work.created);
        }
    }
}

fn make_commit_durable(engine: &Engine, lsn: Lsn) -> Result<()> {
    engine.log.make_durable(lsn).map_err(|e| {
        let e = Error::from(e);
        engine.poison(&e);
        Error::new(
            ErrorKind::CommitUnknown,
            format!("the commit may or may not survive; reopen the database to learn which: {e}"),
        )
    })
}

/// Waits until every commit that a reader may see, and that promised to be durable, is durable.
pub(crate) fn wait_for_readers_prefix(engine: &Engine) -> Result<()> {
    let lsn = engine.commits.lock().last_sync_lsn;
    if lsn != Lsn::NEVER {
        engine.log.make_durable(lsn)?;
    }
    Ok(())
}

/// Returns when every commit so far is durable, whatever its durability.
fn wait_for_all_commits(engine: &Engine) -> Result<()> {
    let lsn = engine.commits.lock().last_lsn;
    if lsn != Lsn::NEVER {
        engine.log.make_durable(lsn)?;
    }
    Ok(())
}
