//! The one place where pages change: append the record, then apply it to every page it names.
//!
//! I1. Write-ahead: a page's bytes change only after its record is in the log buffer, under the page's exclusive latch, and its
//!     page LSN becomes the record's LSN.
//! I2. `mark_dirty(tail)` comes before the reservation (hazard H2).
//! I3. Nothing between reservation and the last page's change can fail or wait.
//! I4. Every update has promised the log room its compensation will take, so rollback never meets a full log. Once that is written the promise
//!     is given back: of a transaction half undone as much is promised as the rest takes.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hamal_pager::{ExclusivePage, PartitionId, header};
use hamal_wal::{Log, Lsn, Permit};

use crate::active::TxnEntry;
use crate::change::PageChange;
use crate::ids::TxnId;
use crate::record::{
    HEAD_BYTES, PART_BYTES, Record, UNDO_BYTES, Undo, put_compensation_head, put_part, put_structure_head,
    put_undo, put_update_head,
};
use crate::timeline::Hints;
use crate::{Error, Result};

/// The log as the tree sees it.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) log: Arc<Log>,
    hints: Arc<Hints>,
    compensations: AtomicU64,
    structure_changes: AtomicU64,
}

/// On whose behalf a change is made: decides the record's kind, chain and undo.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Author<'t> {
    /// A transaction going forward: logged with undo, chained, room for its compensation promised.
    Transaction(&'t Chain),
    /// A transaction being rolled back: a compensation record, whose `undo_next_lsn` is given.
    Rollback(&'t Chain, Lsn),
    /// Nobody: a structure change or purge, redo-only, never undone.
    System,
}

/// A transaction's chain of records in one partition.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) entry: Arc<TxnEntry>,
    pub(crate) partition: PartitionId,
}

impl Chain {
    /// The transaction's id: the stamp of the rows it writes.
    pub(crate) fn txn(&self) -> TxnId {
        self.entry.id
    }
}

/// Room for one record, and the promise for its compensation; what is not used goes back when dropped.
#[derive(Debug)]
pub(crate) struct Admission<'j> {
    permit: Permit<'j>,
    log: &'j Log,
    promised_bytes: u64,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if self.promised_bytes > 0 {
            self.log.release(self.promised_bytes);
        }
    }
}

/// One page of a change: the latched page and what happens to it.
pub(crate) type PageEdit<'e, 'p, 'c> = (&'e mut ExclusivePage<'p>, PageChange<'c>);

thread_local! {
    /// Where records are encoded before they are copied into the log's buffer.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Journal {
    pub(crate) fn new(log: Arc<Log>, hints: Arc<Hints>) -> Self {
        Journal { log, hints, compensations: AtomicU64::new(0), structure_changes: AtomicU64::new(0) }
    }

    /// The horizon now: every transaction below this id is settled (hazard H6).
    pub(crate) fn horizon(&self) -> TxnId {
        self.hints.horizon()
    }

    /// Compensation records written.
    pub(crate) fn compensations(&self) -> u64 {
        self.compensations.load(Ordering::Relaxed)
    }

    /// Structure changes written.
    pub(crate) fn structure_changes(&self) -> u64 {
        self.structure_changes.load(Ordering::Relaxed)
    }

    /// Room for one record with changes of at most `change_bytes` (sum of `encoded_bytes`) and undo of at most
    /// `undo_bytes` (the old row's value) over at most `pages` pages. Called before any latch; may flush and wait. For
    /// `Author::Transaction` also promises room for its compensation (which restores up to `undo_bytes`).
    pub(crate) fn admit(
        &self,
        author: Author<'_>,
        pages: usize,
        change_bytes: usize,
        undo_bytes: usize,
    ) -> Result<Admission<'_>> {
        let parts_bytes = HEAD_BYTES + pages * PART_BYTES + change_bytes;
        let (permit, promised_bytes) = match author {
            Author::Transaction(_) => {
                let bytes = Log::framed_bytes(parts_bytes + UNDO_BYTES + undo_bytes);
                // The compensation writes the old value under the same key: no more than key, both values and heads.
                let promise = Log::framed_bytes(parts_bytes + UNDO_BYTES + undo_bytes);
                (self.log.admit(bytes, promise)?, promise)
            }
            Author::Rollback(..) => (self.log.admit_promised(Log::framed_bytes(parts_bytes))?, 0),
            Author::System => (self.log.admit(Log::framed_bytes(parts_bytes), 0)?, 0),
        };
        Ok(Admission { permit, log: &self.log, promised_bytes })
    }

    /// Logs one record that covers all `edits`, then makes them and sets the page LSNs. Every change has passed
    /// `check` on its page. Never waits. `undo` is `Some` exactly for `Author::Transaction`.
    pub(crate) fn write(
        &self,
        admission: &mut Admission<'_>,
        author: Author<'_>,
        edits: &mut [PageEdit<'_, '_, '_>],
        undo: Option<&Undo<'_>>,
    ) -> Result<Lsn> {
        debug_assert_eq!(undo.is_some(), matches!(author, Author::Transaction(_)), "undo is a transaction's");
        for (page, _) in edits.iter_mut() {
            page.check_unsealed()?;
        }
        for (page, _) in edits.iter_mut() {
            page.mark_dirty(|| self.log.tail());
        }
        let lsn = SCRATCH.with_borrow_mut(|payload| {
            payload.clear();
            match author {
                Author::Transaction(chain) => {
                    let undo = undo.ok_or_else(|| Error::invalid("an update needs its undo"))?;
                    let mut state = chain.entry.lock();
                    let place = state.chain(chain.partition);
                    put_update_head(payload, chain.txn(), place.last_lsn, edits.len());
                    put_edits(payload, edits);
                    put_undo(payload, undo);
                    let lsn = admission.permit.append(payload)?;
                    place.last_lsn = lsn;
                    place.undo_next_lsn = lsn;
                    if state.first_lsn == Lsn::NEVER {
                        state.first_lsn = lsn;
                    }
                    let promise =
                        Log::framed_bytes(compensation_bytes(edits, undo)).min(admission.promised_bytes);
                    state.promised_bytes += promise;
                    admission.promised_bytes -= promise;
                    Ok::<Lsn, Error>(lsn)
                }
                Author::Rollback(chain, undo_next_lsn) => {
                    let mut state = chain.entry.lock();
                    let place = state.chain(chain.partition);
                    put_compensation_head(payload, chain.txn(), place.last_lsn, undo_next_lsn, edits.len());
                    put_edits(payload, edits);
                    let lsn = admission.permit.append(payload)?;
                    place.last_lsn = lsn;
                    place.undo_next_lsn = undo_next_lsn;
                    // What was promised for it is others' now.
                    let promise = Log::framed_bytes(payload.len()).min(state.promised_bytes);
                    if promise > 0 {
                        state.promised_bytes -= promise;
                        self.log.release(promise);
                    }
                    self.compensations.fetch_add(1, Ordering::Relaxed);
                    Ok(lsn)
                }
                Author::System => {
                    put_structure_head(payload, edits.len());
                    put_edits(payload, edits);
                    self.structure_changes.fetch_add(1, Ordering::Relaxed);
                    Ok(admission.permit.append(payload)?)
                }
            }
        })?;
        for (page, change) in edits.iter_mut() {
            page.edit(|bytes| {
                change.apply(bytes);
                header::set_page_lsn(bytes, lsn);
            });
        }
        Ok(lsn)
    }

    /// Appends a record that changes no page and belongs to no chain, out of promised room.
    pub(crate) fn append(&self, record: &Record<'_>) -> Result<Lsn> {
        let mut payload = Vec::new();
        record.encode(&mut payload);
        let mut permit = self.log.admit_promised(Log::framed_bytes(payload.len()))?;
        Ok(permit.append(&payload)?)
    }
}

fn put_edits(payload: &mut Vec<u8>, edits: &[PageEdit<'_, '_, '_>]) {
    for (page, change) in edits {
        let bytes = page.bytes();
        put_part(payload, header::partition(bytes), page.page_no(), header::page_lsn(bytes), change);
    }
}

/// Upper bound of the compensation's payload for an update with these edits and undo.
fn compensation_bytes(edits: &[PageEdit<'_, '_, '_>], undo: &Undo<'_>) -> usize {
    let changes = match (edits, undo) {
        ([(_, change @ PageChange::Row { row, .. })], Undo::Row { before, .. }) => {
            change.encoded_bytes() - row.value.len() + before.map_or(0, |b| b.value.len())
        }
        ([(_, change @ PageChange::Mark { .. })], Undo::Mark { .. }) => change.encoded_bytes(),
        // An extent's compensation clears the bits that the update set.
        _ => edits.len().min(4) * 32,
    };
    HEAD_BYTES + edits.len().min(4) * PART_BYTES + changes
}

#[cfg(test)]
mod tests;
