//! Read-write transactions, any number at once. The protocol and why it is right: docs/concurrency.md, section 8.
//!
//! I1. A statement is one log record, or is rolled back to where it began: a failed statement has no effect, but keeps its locks.
//! I2. A row that carries an active transaction's stamp is locked by it; so are the keys it has in [`crate::locks`]. Locks are kept
//!     until the transaction has left the timeline's table: at the reservation of its commit record, not when that is durable.
//! I3. A transaction that cannot be rolled back poisons the handle: reopening recovers.
//! I4. A transaction has one [`OpenTable`] for each table id it has opened, until it ends, whatever the table is called and whether
//!     it is dropped meanwhile: all handles of a table share its row count, and a rollback finds every count.
//! I5. What a serializable transaction has read, misses included, is in its read set, or was locked when it was read and had not changed
//!     since the transaction's view.
//! I6. Code of the caller that runs inside a statement (a value's source, a type's decoding) may read and nothing else; and a statement
//!     that it leaves by a panic leaves the transaction good for nothing but rolling back.

mod cancel;
mod commit;
mod conflict;
mod reshape;
mod sets;
mod tables;
mod ticket;
mod witness;

use std::cell::{Cell, OnceCell, Ref, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hamal_pager::PartitionId;
use hamal_wal::Lsn;
use smallvec::SmallVec;

use crate::active::TxnEntry;
use crate::catalog::CATALOG;
use crate::database::Handle;
use crate::engine::{Engine, TableGate};
use crate::ids::TxnId;
use crate::journal::Chain;
use crate::options::{Durability, Isolation};
use crate::schema::TableMeta;
use crate::timeline::{Birth, LiveView};
use crate::versions::VersionTable;
use crate::view::View;
use crate::{Error, ErrorKind, Result, TransactionOptions, rollback, shard};

pub use cancel::Canceller;
use conflict::SpilledKey;
pub(crate) use conflict::{Access, Obstacle};
use sets::Sets;
pub use tables::TableInfo;
pub(crate) use tables::{OpenTable, check_types, no_table, table_infos};
pub use ticket::CommitTicket;
pub(crate) use ticket::Wakers;

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
    isolation: Isolation,
    lock_timeout: Duration,
    live: RefCell<LiveView>,
    /// Whether anything has been read, recorded or not.
    has_read: Cell<bool>,
    /// What it has read and written.
    sets: RefCell<Sets>,
    /// Its before-images, once it has any.
    versions: OnceCell<Arc<VersionTable>>,
    /// What its files said of the key that is being written.
    spilled: RefCell<Option<SpilledKey>>,
    work: RefCell<Work>,
    /// A statement of several records is under way, of which others are part.
    is_compound: Cell<bool>,
    /// When the statement's waits must end, monotonic, once it has waited.
    waits_until: Cell<Option<Duration>>,
    /// Code of the caller runs inside a statement (I6).
    is_calling_out: Cell<bool>,
    /// Once it has ended: commits since its view was taken.
    commits_since_view: Cell<u64>,
}

/// What a transaction remembers besides its chains.
#[derive(Debug, Default)]
struct Work {
    /// By table id; entries stay (I4).
    tables: SmallVec<[Arc<OpenTable>; 2]>,
    /// What the catalog is known to say: by name, ids of tables that are open.
    names: SmallVec<[(Arc<str>, u32); 2]>,
    /// Partitions it has made, and of which tables.
    created: Vec<(u32, PartitionId)>,
    /// A partition it has made for a table that is there, and one that it has taken from it.
    grown: Option<PartitionId>,
    merged: Option<PartitionId>,
    /// The table whose partitions it splits or merges.
    reshaped: Option<Arc<TableGate>>,
    /// Tables whose creation was taken back.
    unmade: BTreeSet<u32>,
    dropped: Vec<Arc<TableMeta>>,
    /// Tables it has locked to drop or reshape them, whether or not a drop was taken back since.
    dropping: Vec<Arc<TableGate>>,
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

/// Fails the transaction unless it is forgotten: for what a panic leaves half done (I6).
struct Unfinished<'t>(&'t Transaction);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let mut work = self.0.work.borrow_mut();
        work.failure.get_or_insert_with(|| "a panic has left a statement half done".to_owned());
    }
}

/// A point to roll back to, made by [`Transaction::savepoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Savepoint {
    transaction: u64,
    id: u64,
}

impl Work {
    fn table_position(&self, id: u32) -> std::result::Result<usize, usize> {
        self.tables.binary_search_by_key(&id, |table| table.meta.id)
    }

    fn name_position(&self, name: &str) -> std::result::Result<usize, usize> {
        self.names.binary_search_by_key(&name, |(name, _)| name)
    }

    /// The table that is open under this name.
    fn named(&self, name: &str) -> Option<(Arc<str>, Arc<OpenTable>)> {
        let (name, id) = &self.names[self.name_position(name).ok()?];
        let table = &self.tables[self.table_position(*id).ok()?];
        Some((name.clone(), table.clone()))
    }

    /// The table of this id, opened if it is not.
    fn open(&mut self, meta: Arc<TableMeta>, writer: &Arc<TxnEntry>) -> Arc<OpenTable> {
        let at = match self.table_position(meta.id) {
            Ok(at) => at,
            Err(at) => {
                self.tables.insert(at, Arc::new(OpenTable::new(meta, Some(writer))));
                at
            }
        };
        self.tables[at].clone()
    }

    /// A table has this name.
    fn set_name(&mut self, name: Arc<str>, id: u32) {
        match self.name_position(&name) {
            Ok(at) => self.names[at].1 = id,
            Err(at) => self.names.insert(at, (name, id)),
        }
    }

    /// No table has this name any more; returns which one had.
    fn unset_name(&mut self, name: &str) -> Option<u32> {
        self.name_position(name).ok().map(|at| self.names.remove(at).1)
    }

    /// All partitions it has made, each with its table if it has made that too.
    fn made(&self) -> impl Iterator<Item = (Option<u32>, PartitionId)> {
        let created = self.created.iter().map(|(table, partition)| (Some(*table), *partition));
        created.chain(self.grown.map(|partition| (None, partition)))
    }

    /// Whether it drops the table of this id.
    fn has_dropped(&self, table: u32) -> bool {
        self.dropped.iter().any(|dropped| dropped.id == table)
    }

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
    pub(crate) fn begin(
        handle: &Arc<Handle>,
        options: TransactionOptions,
        age: Option<u64>,
    ) -> Result<Transaction> {
        let engine = &handle.engine;
        engine.pause("begin");
        engine.check_poison()?;
        let lock_timeout = options.lock_timeout.unwrap_or(engine.options.lock_timeout);
        let isolation = options.isolation.unwrap_or(engine.options.isolation);
        let shard = shard::number(engine.options.maintenance);
        let birth = Birth { age, validates: isolation == Isolation::Serializable, shard };
        let begin = |patience| engine.timeline.begin(birth, engine.storage.monotonic(), patience);
        let begun = engine.take_within(
            lock_timeout,
            "a verification",
            || begin(Duration::ZERO),
            || begin(lock_timeout),
        );
        let (entry, live) = begun.ok_or_else(|| {
            Error::new(ErrorKind::Conflict, format!("waited {lock_timeout:?} for a verification to end"))
        })?;
        Ok(Transaction {
            handle: handle.clone(),
            entry,
            durability: options.durability.unwrap_or(engine.options.durability),
            isolation,
            lock_timeout,
            live: RefCell::new(live),
            has_read: Cell::new(false),
            sets: RefCell::default(),
            versions: OnceCell::new(),
            spilled: RefCell::default(),
            work: RefCell::default(),
            is_compound: Cell::new(false),
            waits_until: Cell::new(None),
            is_calling_out: Cell::new(false),
            commits_since_view: Cell::new(0),
        })
    }

    pub(crate) fn id(&self) -> TxnId {
        self.entry.id
    }

    pub(crate) fn age(&self) -> u64 {
        self.entry.age
    }

    /// The partitions it has a chain in.
    #[cfg(test)]
    pub(crate) fn chains(&self) -> Vec<PartitionId> {
        self.entry.lock().chains.iter().map(|chain| chain.partition).collect()
    }

    /// What it sees.
    pub(crate) fn view(&self) -> Ref<'_, View> {
        Ref::map(self.live.borrow(), |live| &live.view)
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.handle.engine
    }

    /// `TransactionEnded` once a failure has left it with nothing to do but roll back.
    pub(crate) fn check_usable(&self) -> Result<()> {
        if self.entry.is_cancelled() {
            return Err(Error::new(
                ErrorKind::Cancelled,
                "the transaction was cancelled; it can only be rolled back",
            ));
        }
        self.work.borrow().check_usable()
    }

    /// Calls code of the caller inside a statement (I6).
    pub(crate) fn call_out<T>(&self, call: impl FnOnce() -> T) -> T {
        struct Back<'t>(&'t Cell<bool>, bool);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                self.0.set(self.1);
            }
        }
        let _back = Back(&self.is_calling_out, self.is_calling_out.replace(true));
        call()
    }

    /// `InvalidArgument` if code of the caller runs inside a statement: what it changed would be in the middle of that.
    fn check_between_statements(&self) -> Result<()> {
        if self.is_calling_out.get() {
            return Err(Error::invalid(
                "the source or the decoding of a value may read in its transaction, but not change or take back anything",
            ));
        }
        Ok(())
    }

    /// Whether rows of the table may be written: what went into a table that is gone would be lost without a word.
    pub(crate) fn check_writable(&self, table: &OpenTable) -> Result<()> {
        self.check_usable()?;
        self.check_between_statements()?;
        let work = self.work.borrow();
        if work.unmade.contains(&table.meta.id) || work.has_dropped(table.meta.id) {
            return Err(Error::new(
                ErrorKind::NotFound,
                "the table has been dropped, or its creation rolled back, since this handle was opened",
            ));
        }
        Ok(())
    }

    /// Runs a statement of several records; if it fails, takes back what it did (I1). `LogFull` is tried once more after a checkpoint.
    pub(crate) fn statement<T>(&self, mut run: impl FnMut() -> Result<T>) -> Result<T> {
        self.engine().pause("a statement");
        self.check_usable()?;
        self.check_between_statements()?;
        self.begin_waits();
        let unfinished = Unfinished(self);
        self.is_compound.set(true);
        let result = self.run_statement(&mut run);
        self.is_compound.set(false);
        mem::forget(unfinished);
        self.note_failure(&result);
        result
    }

    /// Counts what a statement has failed with, if no other counter does.
    fn note_failure<T>(&self, result: &Result<T>) {
        if !self.is_compound.get() && result.as_ref().is_err_and(|e| e.kind() == ErrorKind::LogFull) {
            self.engine().counters.log_full.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn run_statement<T>(&self, run: &mut dyn FnMut() -> Result<T>) -> Result<T> {
        let mark = self.mark();
        let mut result = run();
        if let Err(e) = &result {
            let full = e.kind() == ErrorKind::LogFull;
            self.roll_back_to_mark(&mark)?;
            if full {
                self.engine().make_log_room(self.lock_timeout)?;
                result = run();
                if result.is_err() {
                    self.roll_back_to_mark(&mark)?;
                }
            }
        }
        result
    }

    /// Runs a statement on the rows of one table, whose records are all in one chain; if it fails, takes back what it did (I1).
    /// `LogFull` is tried once more after [`Engine::make_log_room`].
    pub(crate) fn row_statement<T>(
        &self,
        table: &OpenTable,
        chain: &Chain,
        mut run: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        self.engine().pause("a row's statement");
        self.begin_waits();
        self.intend_to_write(table)?;
        self.spill_if_needed()?;
        let down_to = self.entry.lock().last_lsn(chain.partition);
        let delta = table.delta.load(Ordering::Relaxed);
        let mut attempt = || {
            run().inspect_err(|_| table.delta.store(delta, Ordering::Relaxed)).or_else(|e| {
                rollback::undo_chain(self.engine(), chain, down_to).inspect_err(|e| self.fail(e))?;
                Err(e)
            })
        };
        let unfinished = Unfinished(self);
        let result = match attempt() {
            Err(e) if e.kind() == ErrorKind::LogFull => {
                self.engine().make_log_room(self.lock_timeout).and_then(|()| attempt())
            }
            other => other,
        };
        mem::forget(unfinished);
        self.note_failure(&result);
        result
    }

    /// The transaction can only be rolled back from here on.
    fn fail(&self, cause: &Error) {
        self.work.borrow_mut().failure.get_or_insert_with(|| cause.to_string());
    }

    /// Net change of row counts by table id.
    fn deltas(&self) -> BTreeMap<u32, i64> {
        let work = self.work.borrow();
        work.tables.iter().map(|t| (t.meta.id, t.delta.load(Ordering::Relaxed))).collect()
    }

    fn mark(&self) -> Mark {
        let chains = self.entry.lock().chains.iter().map(|c| (c.partition, c.last_lsn)).collect();
        let deltas = self.deltas();
        let work = self.work.borrow();
        let (created, dropped) = (work.created.len(), work.dropped.len());
        Mark { id: work.next_savepoint, chains, deltas, created, dropped }
    }

    /// Takes back everything since the mark. A failure leaves the transaction good for nothing but rolling back.
    fn roll_back_to_mark(&self, mark: &Mark) -> Result<()> {
        self.undo_to(&mark.chains).inspect_err(|e| self.fail(e))?;
        let work = &mut *self.work.borrow_mut();
        for table in &work.tables {
            table.writes.fetch_add(1, Ordering::Relaxed);
            table.delta.store(mark.deltas.get(&table.meta.id).copied().unwrap_or(0), Ordering::Relaxed);
        }
        // Names may mean other tables again: they are looked up anew.
        work.names.clear();
        work.dropped.truncate(mark.dropped);
        // Partitions made since stay in `created`: their catalog rows are gone, their files go when the transaction ends.
        work.unmade.extend(work.created[mark.created..].iter().map(|(table, _)| *table));
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
        self.check_between_statements()?;
        let mark = self.mark();
        let mut work = self.work.borrow_mut();
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
        self.check_between_statements()?;
        let mark = {
            let mut work = self.work.borrow_mut();
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
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.work.get_mut().ended {
            let work = mem::take(self.work.get_mut());
            self.abandon(&work);
        }
    }
}

#[cfg(test)]
mod tests;
