//! One table as bytes, inside a transaction or snapshot. The typed tables stand on it.
//!
//! I1. Each operation is one statement: done, or without effect. Decoding the old value is part of it.
//! I2. The table's `delta` moves with every row that appears or goes, so that `len` is exact and counts no rows.

mod range;
mod streams;

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::active::TxnEntry;
use crate::change::Row;
use crate::engine::{Engine, PartitionHandle};
use crate::journal::{Author, Chain};
use crate::routes::{Route, Routes};
use crate::snapshot::Snapshot;
use crate::transaction::{Access, OpenTable, Transaction};
use crate::tree::{Decision, Eyes, RowChange, Tree, Updated};
use crate::validation::RangeId;
use crate::versions::run::Run;
use crate::versions::{Found, OwnedRow, Search, Write};
use crate::view::View;
use crate::{Error, ErrorKind, Result, overflow};

pub(crate) use range::RawRange;
pub use streams::ValueReader;

/// Who a table was opened in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owner<'t> {
    Transaction(&'t Transaction),
    Snapshot(&'t Snapshot),
}

/// A table of byte strings.
#[derive(Clone, Debug)]
pub(crate) struct RawTable<'t> {
    owner: Owner<'t>,
    table: Arc<OpenTable>,
}

/// What was there before a write.
#[derive(Debug, Default)]
struct Before {
    existed: bool,
    /// The old value, where it was wanted and inline.
    value: Option<Vec<u8>>,
    /// The old value's overflow reference.
    reference: Option<Vec<u8>>,
    /// The view does not see the old row.
    unseen: bool,
}

impl Before {
    fn see(&mut self, row: Option<Row<'_>>, wanted: bool) {
        *self = Before::default();
        if let Some(row) = row.filter(|r| !r.ghost) {
            self.existed = true;
            if row.overflow {
                self.reference = Some(row.value.to_vec());
            } else if wanted {
                self.value = Some(row.value.to_vec());
            }
        }
    }
}

/// Who writes.
struct Writer<'t, 'w> {
    transaction: &'t Transaction,
    entry: &'w Arc<TxnEntry>,
}

/// Where a key is written: its partition, and the transaction's chain there.
struct Place<'p> {
    route: &'p Route,
    tree: &'p Tree,
    chain: Chain,
}

/// A row that is written, or (no row) removed, once nothing is in the way.
struct RowWrite<'w, 'v> {
    transaction: &'w Transaction,
    table: u32,
    partition: &'w PartitionHandle,
    key: &'w [u8],
    row: Option<Row<'v>>,
    wanted: bool,
    before: Before,
}

impl<'w, 'v> RowWrite<'w, 'v> {
    fn new(
        transaction: &'w Transaction,
        (table, partition): (u32, &'w PartitionHandle),
        key: &'w [u8],
        row: Option<Row<'v>>,
        wanted: bool,
    ) -> Self {
        RowWrite { transaction, table, partition, key, row, wanted, before: Before::default() }
    }
}

impl<'v> RowChange<'v> for RowWrite<'_, 'v> {
    fn decide(&mut self, old: Option<Row<'_>>) -> Result<Decision<'v>> {
        let is_there = old.is_some_and(|old| !old.ghost);
        // A removal that finds nothing does nothing, and so depends on there being nothing.
        let reads = self.wanted || (self.row.is_none() && !is_there);
        let access = if reads { Access::Reads } else { Access::Blind };
        let write = if self.row.is_some() { Write::Put } else { Write::Remove };
        if let Some(obstacle) = self.transaction.obstacle(self.table, self.key, old, access, Some(write)) {
            return Ok(Decision::Stop(obstacle));
        }
        self.before.see(old, self.wanted);
        self.before.unseen = old.is_some_and(|old| !self.transaction.view().sees(old.stamp));
        Ok(match self.row {
            Some(row) => Decision::Write(row),
            None if is_there => Decision::Remove(self.transaction.id()),
            None => Decision::Keep,
        })
    }

    fn commence(&mut self, old: Option<Row<'_>>, write: Write) {
        self.partition.changes.note(self.key);
        self.transaction.keep_version(self.table, self.key, old, write);
    }
}

/// A key that is locked, and its row read.
struct RowLock<'w> {
    transaction: &'w Transaction,
    table: u32,
    key: &'w [u8],
    out: &'w mut Vec<u8>,
    /// Whether the row is long.
    found: Option<bool>,
}

impl<'v> RowChange<'v> for RowLock<'_> {
    fn decide(&mut self, old: Option<Row<'_>>) -> Result<Decision<'v>> {
        if let Some(obstacle) = self.transaction.obstacle(self.table, self.key, old, Access::Reads, None) {
            return Ok(Decision::Stop(obstacle));
        }
        if old.is_none_or(|old| old.stamp != self.transaction.id()) {
            self.transaction.lock_key(self.table, self.key);
        }
        self.out.clear();
        self.found = old.filter(|old| !old.ghost).map(|old| {
            self.out.extend_from_slice(old.value);
            old.overflow
        });
        Ok(Decision::Keep)
    }
}

impl<'t> RawTable<'t> {
    pub(crate) fn new(owner: Owner<'t>, table: Arc<OpenTable>) -> Self {
        RawTable { owner, table }
    }

    pub(crate) fn engine(&self) -> &'t Engine {
        match self.owner {
            Owner::Transaction(t) => t.engine(),
            Owner::Snapshot(s) => s.engine(),
        }
    }

    /// The table's id.
    pub(crate) fn id(&self) -> u32 {
        self.table.meta.id
    }

    /// Where its rows are.
    pub(crate) fn routes(&self) -> &Routes {
        &self.table.meta.routes
    }

    /// Where its writers and whoever drops it meet.
    #[cfg(test)]
    pub(crate) fn gate(&self) -> &Arc<crate::engine::TableGate> {
        &self.table.meta.gate
    }

    /// Changes of this transaction so far: a range that finds another number descends again.
    pub(crate) fn writes(&self) -> u64 {
        self.table.writes.load(Ordering::Relaxed)
    }

    /// Longest key, bytes.
    pub(crate) fn max_key_bytes(&self) -> usize {
        Tree::max_key_bytes(self.engine().page_bytes)
    }

    fn check_key(&self, key: &[u8]) -> Result<()> {
        let max = self.max_key_bytes();
        if key.len() > max {
            return Err(Error::invalid(format!("a key of {} bytes is longer than {max} bytes", key.len())));
        }
        Ok(())
    }

    /// The transaction; snapshots cannot write.
    fn writer(&self) -> Result<Writer<'t, '_>> {
        match (self.owner, &self.table.writer) {
            (Owner::Transaction(transaction), Some(entry)) => {
                transaction.check_writable(&self.table)?;
                Ok(Writer { transaction, entry })
            }
            _ => Err(Error::invalid("a snapshot is read-only")),
        }
    }

    /// Where a write of the key goes.
    fn place(&self, writer: &Writer<'t, '_>, key: &[u8]) -> Result<Place<'_>> {
        let route = self.routes().of(key);
        let tree = self.tree(route)?;
        Ok(Place { route, tree, chain: Chain { entry: writer.entry.clone(), partition: route.id() } })
    }

    /// The tree of a partition. If something is left to be undone there, helps with that: a transaction as long as it would wait for a lock, a
    /// snapshot, which is never refused what it sees, to the end.
    pub(crate) fn tree<'r>(&self, route: &'r Route) -> Result<&'r Tree> {
        route.tree(|id| {
            let timeout = match self.owner {
                Owner::Transaction(transaction) => transaction.lock_timeout(),
                Owner::Snapshot(_) => Duration::MAX,
            };
            self.engine().catch_up_within(id, timeout, &mut || self.check_readable())
        })
    }

    /// What an operation on the pages of a partition came to: damage quarantines that.
    fn told<T>(&self, route: &Route, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            // What is wrong with a file that is out of use says nothing about the one that may have taken its place.
            if route.handle.partition.is_sealed() && error.kind() == ErrorKind::Corrupt {
                return self.engine().unavailable(route.id());
            }
            self.engine().blame(route.id(), error)
        })
    }

    /// Whether its owner may still read: one that was cancelled, or has failed, shows nothing any more. What a rollback has left half
    /// done is no state at all.
    fn check_readable(&self) -> Result<()> {
        match self.owner {
            Owner::Transaction(t) => t.check_usable(),
            Owner::Snapshot(_) => Ok(()),
        }
    }

    /// Whose rows are shown: calls `look` with the view.
    pub(crate) fn with_eyes<R>(&self, look: impl FnOnce(Eyes<'_>) -> R) -> R {
        let versions = &self.engine().versions;
        match self.owner {
            Owner::Transaction(t) => look(Eyes { view: &t.view(), versions, table: self.table.meta.id }),
            Owner::Snapshot(s) => look(Eyes { view: s.view(), versions, table: self.table.meta.id }),
        }
    }

    /// Calls `read` with the key's row, if the view sees one, and notes the read.
    pub(crate) fn read_row<R>(&self, key: &[u8], read: impl FnOnce(Row<'_>) -> R) -> Result<Option<R>> {
        self.check_readable()?;
        let route = self.routes().of(key);
        let tree = self.tree(route)?;
        let mut own = false;
        let mut read = Some(read);
        let mut answer = |row: Row<'_>| read.take().map(|read| read(row));
        let found = self.with_eyes(|eyes| {
            let mut spilled = None;
            route.handle.load.note(key);
            let found = tree.get(key, |row| {
                own = row.stamp == eyes.view.own;
                if eyes.view.sees(row.stamp) {
                    return if row.ghost { None } else { answer(row) };
                }
                look_behind(eyes, key, row, &mut spilled, &mut answer)
            });
            let found = self.told(route, found)?;
            match spilled {
                None => Ok(found.flatten()),
                Some(spilled) => spilled.answer(eyes, key, &mut answer),
            }
        })?;
        // What it has written itself nobody else can change.
        if let Owner::Transaction(t) = self.owner
            && !own
        {
            t.note_point(self.table.meta.id, key);
        }
        Ok(found)
    }

    /// A value that was found in a partition, or its reference, which is resolved.
    fn finish_value<'r>(
        &self,
        route: impl FnOnce() -> &'r Route,
        found: Option<bool>,
        out: &mut Vec<u8>,
    ) -> Result<bool> {
        if found == Some(true) {
            let reference = std::mem::take(out);
            self.resolve(route(), &reference, out)?;
        }
        Ok(found.is_some())
    }

    /// Fills `out` with the value that an overflow reference in a partition stands for.
    fn resolve(&self, route: &Route, reference: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let reader = overflow::Reader::open(&route.handle.partition, reference);
        self.told(route, reader.and_then(|mut reader| reader.read_to_end(out)))
    }

    /// Notes that a range has been begun.
    fn note_range(&self, lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> Option<RangeId> {
        match self.owner {
            Owner::Transaction(t) => t.note_range(self.table.meta.id, lower, upper),
            Owner::Snapshot(_) => None,
        }
    }

    /// A range has ended: this is how far it was walked from either end.
    fn narrow_read(&self, range: RangeId, front: Option<Bound<&[u8]>>, back: Option<Bound<&[u8]>>) {
        if let Owner::Transaction(t) = self.owner {
            t.narrow_range(range, front, back);
        }
    }

    /// Appends the key's value to `out` (cleared first); whether there is one.
    pub(crate) fn get_into(&self, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        out.clear();
        if key.len() > self.max_key_bytes() {
            return Ok(false);
        }
        let found = self.read_row(key, |row| {
            out.extend_from_slice(row.value);
            row.overflow
        })?;
        self.finish_value(|| self.routes().of(key), found, out)
    }

    /// Locks the key, whether or not there is a row, and appends its value to `out` (cleared first); whether there is one.
    pub(crate) fn get_locked(&self, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let writer = self.writer()?;
        let transaction = writer.transaction;
        self.check_key(key)?;
        transaction.begin_waits();
        transaction.intend_to_write(&self.table)?;
        let place = self.place(&writer, key)?;
        let mut look = RowLock { transaction, table: self.table.meta.id, key, out, found: None };
        self.change_row(transaction, &place, key, 0, &mut look)?;
        let found = look.found;
        self.finish_value(|| place.route, found, out)
    }

    pub(crate) fn contains(&self, key: &[u8]) -> Result<bool> {
        if key.len() > self.max_key_bytes() {
            return Ok(false);
        }
        Ok(self.read_row(key, |_| ())?.is_some())
    }

    /// Writes, without looking at what was there (a blind write).
    pub(crate) fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.write(key, value, false, |_| Ok(())).map(|_| ())
    }

    /// Writes and returns the old value, decoded.
    pub(crate) fn replace<T>(
        &self,
        key: &[u8],
        value: &[u8],
        decode: impl FnMut(Vec<u8>) -> Result<T>,
    ) -> Result<Option<T>> {
        self.write(key, value, true, decode)
    }

    fn write<T>(
        &self,
        key: &[u8],
        value: &[u8],
        wanted: bool,
        mut decode: impl FnMut(Vec<u8>) -> Result<T>,
    ) -> Result<Option<T>> {
        let writer = self.writer()?;
        let transaction = writer.transaction;
        self.check_key(key)?;
        let inline = Tree::max_inline_bytes(self.engine().page_bytes, key.len());
        let place = self.place(&writer, key)?;
        transaction.row_statement(&self.table, &place.chain, || {
            let old = if value.len() <= inline {
                self.write_row(transaction, &place, key, (value, false), wanted)?
            } else {
                let mut writer = self.overflow_writer(&place);
                let written = writer.write(value).and_then(|()| writer.finish(inline));
                let reference = self.told(place.route, written)?;
                self.write_row(transaction, &place, key, (&reference, true), wanted)?
            };
            old.map(|old| transaction.call_out(|| decode(old))).transpose()
        })
    }

    fn overflow_writer<'w>(&'w self, place: &'w Place<'_>) -> overflow::Writer<'w> {
        overflow::Writer::new(&self.engine().journal, &place.chain, &place.route.handle.space)
    }

    /// Writes the row, and lists the extents of the value it replaces for freeing.
    fn write_row(
        &self,
        transaction: &Transaction,
        place: &Place<'_>,
        key: &[u8],
        (value, overflow): (&[u8], bool),
        wanted: bool,
    ) -> Result<Option<Vec<u8>>> {
        let row = Row { stamp: place.chain.txn(), ghost: false, overflow, value };
        let at = (self.table.meta.id, &*place.route.handle);
        let mut write = RowWrite::new(transaction, at, key, Some(row), wanted);
        self.change_row(transaction, place, key, value.len(), &mut write)?;
        let before = write.before;
        self.after_write(transaction, place, key, before, true, wanted)
    }

    /// Removes the row; its bytes stay in a ghost.
    fn remove_row(
        &self,
        transaction: &Transaction,
        place: &Place<'_>,
        key: &[u8],
        wanted: bool,
    ) -> Result<Option<Vec<u8>>> {
        let at = (self.table.meta.id, &*place.route.handle);
        let mut removal = RowWrite::new(transaction, at, key, None, wanted);
        if self.change_row(transaction, place, key, 0, &mut removal)? == Updated::Kept {
            // That there was nothing to remove is a read; nothing is locked.
            transaction.gave_up(self.table.meta.id, key);
            transaction.note_point(self.table.meta.id, key);
            return Ok(None);
        }
        let before = removal.before;
        self.after_write(transaction, place, key, before, false, wanted)
    }

    /// Changes a row as soon as nothing is in the way any more.
    fn change_row(
        &self,
        transaction: &Transaction,
        place: &Place<'_>,
        key: &[u8],
        max_value_bytes: usize,
        change: &mut dyn RowChange<'_>,
    ) -> Result<Updated> {
        let author = Author::Transaction(&place.chain);
        place.route.handle.load.note(key);
        let mut attempt = || loop {
            let updated = place.tree.update(&self.engine().journal, author, key, max_value_bytes, change);
            match self.told(place.route, updated)? {
                Updated::Stopped(obstacle) => transaction.overcome(obstacle, self.table.meta.id, key)?,
                updated => return Ok(updated),
            }
        };
        attempt().inspect_err(|_| transaction.gave_up(self.table.meta.id, key))
    }

    fn after_write(
        &self,
        transaction: &Transaction,
        place: &Place<'_>,
        key: &[u8],
        before: Before,
        exists: bool,
        wanted: bool,
    ) -> Result<Option<Vec<u8>>> {
        transaction.note_write(self.table.meta.id, key);
        if before.unseen {
            self.table.overtaken.store(true, Ordering::Relaxed);
        }
        let handle = &place.route.handle;
        let mut value = before.value;
        if let Some(reference) = &before.reference {
            if wanted {
                let mut bytes = Vec::new();
                self.resolve(place.route, reference, &mut bytes)?;
                value = Some(bytes);
            }
            let unlinked = overflow::unlink(&self.engine().journal, &place.chain, &handle.space, reference);
            self.told(place.route, unlinked)?;
            handle.pending.store(true, Ordering::Relaxed);
        }
        if before.existed && (!exists || before.reference.is_some()) {
            handle.garbage.fetch_add(1, Ordering::Relaxed);
        }
        self.table.delta.fetch_add(i64::from(exists) - i64::from(before.existed), Ordering::Relaxed);
        self.table.writes.fetch_add(1, Ordering::Relaxed);
        Ok(value)
    }

    /// Removes, without saying whether it was there.
    pub(crate) fn delete(&self, key: &[u8]) -> Result<()> {
        self.remove(key, false, |_| Ok(())).map(|_| ())
    }

    /// Removes and returns the old value, decoded.
    pub(crate) fn take<T>(&self, key: &[u8], decode: impl FnMut(Vec<u8>) -> Result<T>) -> Result<Option<T>> {
        self.remove(key, true, decode)
    }

    fn remove<T>(
        &self,
        key: &[u8],
        wanted: bool,
        mut decode: impl FnMut(Vec<u8>) -> Result<T>,
    ) -> Result<Option<T>> {
        let writer = self.writer()?;
        let transaction = writer.transaction;
        if key.len() > self.max_key_bytes() {
            return Ok(None);
        }
        let place = self.place(&writer, key)?;
        transaction.row_statement(&self.table, &place.chain, || {
            let old = self.remove_row(transaction, &place, key, wanted)?;
            old.map(|old| transaction.call_out(|| decode(old))).transpose()
        })
    }

    /// Exact number of rows: looked up, O(log of what [`crate::counts`] keeps). `Conflict` if it has been overtaken by a commit since the view, and so has something that was read.
    pub(crate) fn len(&self) -> Result<u64> {
        self.check_readable()?;
        let committed = |view: &View| self.engine().timeline.rows_as_of(self.table.meta.id, view.as_of);
        let transaction = match self.owner {
            Owner::Snapshot(snapshot) => return Ok(committed(snapshot.view())),
            Owner::Transaction(transaction) => transaction,
        };
        if self.table.overtaken.load(Ordering::Relaxed) {
            transaction.advance()?;
            self.table.overtaken.store(false, Ordering::Relaxed);
        }
        transaction.note_count(self.table.meta.id);
        let delta = self.table.delta.load(Ordering::Relaxed);
        let rows = committed(&transaction.view());
        rows.checked_add_signed(delta).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("a table of {rows} rows cannot have lost {delta}"))
        })
    }

    /// The rows between the bounds. `InvalidArgument` if they are reversed.
    pub(crate) fn range(&self, lower: Bound<Vec<u8>>, upper: Bound<Vec<u8>>) -> Result<RawRange<'t>> {
        RawRange::new(self.clone(), lower, upper)
    }
}

/// A read that goes on in a file, without a latch. In a box: few reads come here, and all have room for it.
struct SpilledRead {
    current: OwnedRow,
    older: OwnedRow,
    search: (Search, Vec<Arc<Run>>),
}

impl SpilledRead {
    fn answer<R>(
        mut self,
        eyes: Eyes<'_>,
        key: &[u8],
        answer: &mut dyn FnMut(Row<'_>) -> Option<R>,
    ) -> Result<Option<R>> {
        let seen = eyes.versions.finish(eyes.view, (eyes.table, key), self.search, &mut self.older)?;
        Ok(seen.of(self.current.as_row(), &self.older).and_then(answer))
    }
}

/// Answers with what the view sees instead of a row that it does not see; or says where to look for it. Out of line of the common case.
#[cold]
#[inline(never)]
fn look_behind<R>(
    eyes: Eyes<'_>,
    key: &[u8],
    row: Row<'_>,
    spilled: &mut Option<Box<SpilledRead>>,
    answer: &mut dyn FnMut(Row<'_>) -> Option<R>,
) -> Option<R> {
    let mut older = OwnedRow::default();
    match eyes.versions.resolve(eyes.view, (eyes.table, key), row, &mut older) {
        Found::Seen(seen) => seen.of(row, &older).and_then(answer),
        Found::Spilled(search, runs) => {
            let mut current = OwnedRow::default();
            current.set(row);
            *spilled = Some(Box::new(SpilledRead { current, older, search: (search, runs) }));
            None
        }
    }
}
