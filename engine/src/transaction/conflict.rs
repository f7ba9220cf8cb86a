//! Where transactions meet: what stands in a write's way, waiting for it, and moving the view forward.
//!
//! I1. What stands in the way is found under the exclusive latch of the key's leaf, and nothing waits there: the write lets go of
//!     everything, overcomes the obstacle here, and starts again (hazard H16).
//! I2. The view moves forward only if nothing that was read has changed up to then, so all that was read is of the new view too
//!     (hazard H18).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{OpenTable, Transaction, reshape};
use crate::active::TxnState;
use crate::catalog::CATALOG;
use crate::change::Row;
use crate::engine::TableGate;
use crate::ids::TxnId;
use crate::options::Isolation;
use crate::planted::{PlantedBug, is_planted};
use crate::validation::{History, Overlap, RangeId};
use crate::versions::{Write, must_keep};
use crate::waits::{LockKey, Waited, Waiter};
use crate::{Error, ErrorKind, Result};

/// What a write is about to do with its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Writes whatever is there.
    Blind,
    /// Its answer, or what it does, depends on what is there: it must be what the view sees.
    Reads,
}

/// Why a write cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// This transaction has locked the key.
    Locked(TxnId),
    /// A commit that the view does not see has changed the key.
    Overtaken,
    /// Whether something is kept of the key is written in a file.
    Unknown,
}

/// What the files say of a key of its own.
#[derive(Debug)]
pub(super) struct SpilledKey {
    table: u32,
    key: Box<[u8]>,
    is_kept: bool,
}

impl SpilledKey {
    fn is_of(&self, table: u32, key: &[u8]) -> bool {
        self.table == table && *self.key == *key
    }
}

impl Transaction {
    /// What stands in the way of access to a key whose row is `row`, and of the write that would follow. The key's leaf is latched
    /// exclusively.
    pub(crate) fn obstacle(
        &self,
        table: u32,
        key: &[u8],
        row: Option<Row<'_>>,
        access: Access,
        write: Option<Write>,
    ) -> Option<Obstacle> {
        let timeline = &self.engine().timeline;
        let unseen = row.map(|row| row.stamp).filter(|stamp| !self.view().sees(*stamp));
        // A row with this transaction's stamp nobody else can have locked.
        let is_own = row.is_some_and(|row| row.stamp == self.entry.id);
        if let Some(holder) = unseen.filter(|stamp| timeline.is_active(*stamp)) {
            return Some(Obstacle::Locked(holder));
        }
        if !is_own
            && let Some(holder) = self.engine().row_locks.holder(table, key)
            && holder != self.entry.id
            && timeline.is_active(holder)
        {
            return Some(Obstacle::Locked(holder));
        }
        let overtaken =
            unseen.is_some() && (access == Access::Reads || self.isolation == Isolation::Snapshot);
        if overtaken {
            return Some(Obstacle::Overtaken);
        }
        let unknown = row.zip(write).is_some_and(|(row, write)| self.is_unknown(table, key, row, write));
        unknown.then_some(Obstacle::Unknown)
    }

    /// Waits until a locked key may be free, or moves the view forward past what has overtaken it.
    pub(crate) fn overcome(&self, obstacle: Obstacle, table: u32, key: &[u8]) -> Result<()> {
        match obstacle {
            Obstacle::Locked(holder) => self.wait_for(holder, lock_key(table, key), || {
                format!("a row of table {table} that transaction {holder} has locked")
            }),
            Obstacle::Overtaken => self.advance(),
            Obstacle::Unknown => self.ask_files(table, key),
        }
    }

    /// The key is not going to be locked after all: those who queue behind this transaction need not wait for its end.
    pub(crate) fn gave_up(&self, table: u32, key: &[u8]) {
        self.engine().waits.gave_up(self.entry.id, lock_key(table, key));
    }

    /// A statement begins: its waits may take the lock timeout, all together.
    pub(crate) fn begin_waits(&self) {
        if !self.is_compound.get() {
            self.waits_until.set(None);
        }
    }

    /// Longest that a statement waits for locks.
    pub(crate) fn lock_timeout(&self) -> Duration {
        self.lock_timeout
    }

    /// What is left of the statement's lock timeout.
    fn patience(&self) -> Duration {
        let now = self.engine().storage.monotonic();
        let until = self.waits_until.get().unwrap_or_else(|| now.saturating_add(self.lock_timeout));
        self.waits_until.set(Some(until));
        until.saturating_sub(now)
    }

    fn wait_for(&self, holder: TxnId, key: LockKey, what: impl Fn() -> String) -> Result<()> {
        self.wait_while(|holder| self.engine().timeline.is_active(holder), holder, key, what)
    }

    /// Waits, if `holds` is true of the holder once this transaction is known as waiting.
    fn wait_while(
        &self,
        holds: impl Fn(TxnId) -> bool,
        holder: TxnId,
        key: LockKey,
        what: impl Fn() -> String,
    ) -> Result<()> {
        let engine = self.engine();
        let waiter = Waiter { id: self.entry.id, age: self.entry.age };
        // Asked once the waiter is known, so that a cancellation, or a holder that can never end, either wakes it or is seen here.
        let must_wait = |id| holds(id) && !self.entry.is_cancelled() && !engine.is_unresolved();
        let waited = engine.waits.wait(waiter, holder, key, self.patience(), &must_wait);
        engine.pause("after a lock wait");
        match waited {
            Waited::Again => self.check_usable().and_then(|()| engine.check_resolved()),
            Waited::Deadlock => Err(conflict(format!("a deadlock, broken here; it waited for {}", what()))),
            Waited::TimedOut => Err(conflict(format!("waited {:?} for {}", self.lock_timeout, what()))),
            Waited::Cancelled => Err(Error::new(
                ErrorKind::Cancelled,
                format!("the transaction was cancelled while it waited for {}", what()),
            )),
        }
    }

    /// Makes the view that of now. `Conflict` if something that was read has changed since.
    pub(crate) fn advance(&self) -> Result<()> {
        let engine = self.engine();
        let mut live = self.live.borrow_mut();
        let as_of = live.view.as_of;
        let mut sets = self.sets.borrow_mut();
        let reads = sets.get().reads.prepare();
        let seen = live.view.clone();
        let check = |history: &History| {
            // In the timeline's section, as what it compares with is changed: rows that have moved are not where it would look for them.
            self.check_shapes(&seen)?;
            match self.isolation {
                Isolation::Serializable => {
                    history.check(&reads, as_of).map_err(|overlap| overtaken(&overlap))
                }
                // Reads are not recorded.
                Isolation::Snapshot if self.has_read.get() => {
                    Err(conflict("a row to be written was changed by a commit since the transaction's start"))
                }
                Isolation::Snapshot => Ok(()),
            }
        };
        engine
            .timeline
            .advance(&mut live, engine.storage.monotonic(), check)
            .inspect_err(|_| engine.note_overtaken())
    }

    /// Keeps what a view may need of a row that is about to change. The key's leaf is latched exclusively.
    pub(crate) fn keep_version(&self, table: u32, key: &[u8], old: Option<Row<'_>>, write: Write) {
        let engine = self.engine();
        if table == CATALOG.0 {
            engine.schema.forget();
        }
        if let Some(old) = old
            && must_keep(self.entry.id, old, write, || engine.journal.horizon())
            && !self.spilled.take().is_some_and(|spilled| spilled.is_of(table, key) && spilled.is_kept)
        {
            let versions = self.versions.get_or_init(|| engine.versions.open(self.entry.id));
            versions.keep(self.entry.id, table, key, old);
        }
    }

    /// Whether only a file can tell if something is kept of a row of its own that is about to change.
    fn is_unknown(&self, table: u32, key: &[u8], row: Row<'_>, write: Write) -> bool {
        row.stamp == self.entry.id
            && must_keep(self.entry.id, row, write, || TxnId::NONE)
            && self.versions.get().is_some_and(|versions| versions.is_unknown(table, key))
            && !self.spilled.borrow().as_ref().is_some_and(|spilled| spilled.is_of(table, key))
    }

    /// Asks the files what [`Transaction::is_unknown`]. Nobody else can change the answer: the row is this transaction's.
    fn ask_files(&self, table: u32, key: &[u8]) -> Result<()> {
        let Some(versions) = self.versions.get() else { return Ok(()) };
        let is_kept = versions.is_spilled(table, key)?;
        *self.spilled.borrow_mut() = Some(SpilledKey { table, key: key.into(), is_kept });
        Ok(())
    }

    /// Makes room for before-images, if there is little left.
    pub(super) fn spill_if_needed(&self) -> Result<()> {
        match self.versions.get() {
            Some(versions) if self.engine().versions.must_spill(versions) => {
                self.engine().versions.spill(versions)
            }
            _ => Ok(()),
        }
    }

    /// Locks a key that this transaction has not written. The key's leaf is latched exclusively.
    pub(crate) fn lock_key(&self, table: u32, key: &[u8]) {
        if let Some(lock) = self.engine().row_locks.take(self.entry.id, table, key) {
            self.entry.lock().locked.push(lock);
        }
    }

    /// Before the first write to a table: waits for whoever drops it or moves its rows, and keeps others from it (hazards H4, H11).
    pub(crate) fn intend_to_write(&self, table: &OpenTable) -> Result<()> {
        if table.intended.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (id, gate) = (table.meta.id, &table.meta.gate);
        let pass_on = || self.engine().waits.gave_up(self.entry.id, table_key(id));
        loop {
            // Said before the look, as whoever drops says so before it looks: one of the two sees the other.
            self.entry.lock().writes_to.push(id);
            self.engine().pause("between a claim to a table and the look at who drops it");
            let dropper = TxnId(gate.dropper.load(Ordering::SeqCst));
            self.engine().pause("between who drops a table and whether it is dropped");
            // Asked after who drops it: whoever has dropped it says so before it lets go.
            let dropped = gate.dropped.load(Ordering::SeqCst);
            let moved = !Self::knows_shape(gate, &self.view());
            if !dropped && !moved && (dropper == TxnId::NONE || dropper == self.entry.id) {
                table.intended.store(true, Ordering::Relaxed);
                // Writers do not exclude each other: those who have queued behind this one may write too.
                pass_on();
                return Ok(());
            }
            self.entry.lock().writes_to.retain(|table| *table != id);
            // Whoever drops the table may wait for this one because of the claim: it looks again.
            pass_on();
            if dropped || moved {
                self.engine().note_overtaken();
            }
            if dropped {
                return Err(conflict("the table has been dropped since the transaction's start"));
            }
            if moved {
                return Err(reshape::moved(id));
            }
            let waited = self.wait_for(dropper, table_key(id), || {
                format!("table {id}, which transaction {dropper} is dropping, splitting or merging")
            });
            waited.inspect_err(|_| pass_on())?;
        }
    }

    /// Keeps writers from a table that is about to be dropped or reshaped, and waits for those that have written. The caller has locked
    /// the table's row in the catalog: nobody else does the same.
    pub(super) fn lock_table(&self, gate: &Arc<TableGate>) -> Result<()> {
        gate.dropper.store(self.entry.id.0, Ordering::SeqCst);
        self.work.borrow_mut().dropping.push(gate.clone());
        self.engine().pause("between dropping a table and the look at who writes to it");
        let table = gate.table;
        let writes = |section: &TxnState| section.writes_to.contains(&table);
        let timeline = &self.engine().timeline;
        while let Some(writer) = timeline.others(self.entry.id, writes) {
            // Asked again once it is known that this one waits: a writer that takes its claim back wakes only who waits.
            let still_writes = |writer| timeline.others(self.entry.id, writes) == Some(writer);
            self.wait_while(still_writes, writer, table_key(table), || {
                format!("table {table}, which transaction {writer} writes")
            })?;
        }
        Ok(())
    }

    /// A key is read, whether or not there is a row.
    pub(crate) fn note_point(&self, table: u32, key: &[u8]) {
        self.has_read.set(true);
        if self.isolation == Isolation::Serializable {
            self.sets.borrow_mut().get().reads.point(table, key);
        }
    }

    /// A range of a table is about to be read.
    pub(crate) fn note_range(&self, table: u32, lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> Option<RangeId> {
        self.has_read.set(true);
        (self.isolation == Isolation::Serializable)
            .then(|| self.sets.borrow_mut().get().reads.range(table, lower, upper))
    }

    /// A range has been read this far from either end.
    pub(crate) fn narrow_range(
        &self,
        range: RangeId,
        front: Option<Bound<&[u8]>>,
        back: Option<Bound<&[u8]>>,
    ) {
        let front = front.map(|front| match front {
            Bound::Included(key) if is_planted(PlantedBug::ShortInterval) => Bound::Excluded(key),
            other => other,
        });
        self.sets.borrow_mut().get().reads.narrow(range, front, back);
    }

    /// The table's row count is read.
    pub(crate) fn note_count(&self, table: u32) {
        self.has_read.set(true);
        if self.isolation == Isolation::Serializable {
            self.sets.borrow_mut().get().reads.count(table);
        }
    }

    /// The key is written.
    pub(crate) fn note_write(&self, table: u32, key: &[u8]) {
        self.sets.borrow_mut().get().writes.add(table, key);
    }
}

/// What those who wait for a key wait for. A collision costs a needless wait.
fn lock_key(table: u32, key: &[u8]) -> LockKey {
    let mut hasher = DefaultHasher::new();
    (table, key).hash(&mut hasher);
    LockKey(hasher.finish())
}

/// What those who wait for a whole table wait for.
fn table_key(table: u32) -> LockKey {
    let mut hasher = DefaultHasher::new();
    table.hash(&mut hasher);
    LockKey(hasher.finish())
}

pub(super) fn conflict(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Conflict, what)
}

/// The error of a transaction whose reads have been overtaken.
pub(super) fn overtaken(overlap: &Overlap) -> Error {
    let table = overlap.table.map_or_else(String::new, |table| format!(" of table {table}"));
    conflict(format!(
        "a commit since the transaction's start has changed what it read: {}{table}",
        overlap.part
    ))
}
