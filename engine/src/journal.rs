//! The one place where pages change: append the record, then apply it to every page it names.
//!
//! I1. Write-ahead: a page's bytes change only after its record is in the log buffer, under the page's exclusive latch, and its
//!     page LSN becomes the record's LSN.
//! I2. `mark_dirty(tail)` comes before the reservation (hazard H2).
//! I3. Nothing between reservation and the last page's change can fail or wait.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hamal_pager::ExclusivePage;
use hamal_wal::{Log, Lsn, Permit};

use crate::Result;
use crate::change::PageChange;
use crate::ids::TxnId;
use crate::record::Undo;

/// The log as the tree sees it.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) log: Arc<Log>,
    /// Every transaction below this id is settled: no snapshot, no undo needs what it overwrote (hazard H6).
    pub(crate) horizon: AtomicU64,
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

/// A transaction's chain of records in one partition (filled in by the transaction's author).
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) txn: TxnId,
}

/// One page of a change: the latched page and what happens to it.
pub(crate) type PageEdit<'e, 'p, 'c> = (&'e mut ExclusivePage<'p>, PageChange<'c>);

#[expect(unused_variables, dead_code, reason = "interface")]
impl Journal {
    /// The horizon now.
    pub(crate) fn horizon(&self) -> TxnId {
        unimplemented!()
    }

    /// Room for one record with changes of at most `change_bytes` (sum of `encoded_bytes`) and undo of at most
    /// `undo_bytes` over at most `pages` pages. Called before any latch; may flush and wait. For
    /// `Author::Transaction` also promises room for its compensation (undo of up to `undo_bytes`).
    pub(crate) fn admit(
        &self,
        author: Author<'_>,
        pages: usize,
        change_bytes: usize,
        undo_bytes: usize,
    ) -> Result<Permit<'_>> {
        unimplemented!()
    }

    /// Logs one record that covers all `edits`, then makes them and sets the page LSNs. Every change has passed
    /// `check` on its page. Never waits. `undo` is `Some` exactly for `Author::Transaction`.
    pub(crate) fn write(
        &self,
        permit: &mut Permit<'_>,
        author: Author<'_>,
        edits: &mut [PageEdit<'_, '_, '_>],
        undo: Option<&Undo<'_>>,
    ) -> Result<Lsn> {
        unimplemented!()
    }
}
