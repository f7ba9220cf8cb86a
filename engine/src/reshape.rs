//! Splitting and merging range partitions while transactions go on. Docs: docs/concurrency.md section 10, docs/adr/0012.
//!
//! A **split** moves the rows from a key on into a new partition: lock the table's definition; copy the rows while writers go on; keep
//! writers out of the table, once those who have written have ended; copy again what has changed meanwhile ([`copy`]); write the cut;
//! commit. A **merge** copies a partition's rows into the one before it, above its upper bound, removes the cut, commits; the
//! partition is buried ([`crate::graves`]).
//!
//! I1. Only the cut's row is transactional: it alone says where rows are. Until the commit the copies are nobody's, behind it the
//!     originals are, once every view sees the cut ([`strays`]). So a crash at any moment leaves the one or the other.
//! I2. From the last look at the source to the commit nobody has an undo chain in the table, so none ever has to follow a row into another
//!     partition (hazard H4); and no row changes whose copy would not ([`changes`]).
//! I3. Views of before go on reading where they always have; a transaction that has such a view writes no more in the table, and gets
//!     `Conflict` ([`crate::transaction`], `reshape`).
//! I4. Row counts, locks, before-images and read sets go by table and key: a split or a merge does not touch them. A before-image
//!     that names a long value names it in the partition in which its reader looks: who wrote it over knew the same cuts.
//! I5. A merge writes over keys that are above the left partition's bound. So every view must see that bound, and there are no strays left.
//! I6. Writers wait for what was written while one short pass ran, not for the rows that move.
//!
//! Lock order: `reshaping` (one split or merge at a time, and not beside the removal of strays), then row locks and the gate as any
//! transaction.

mod changes;
mod copy;
mod errand;
mod strays;
#[cfg(test)]
mod tests;
mod walk;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::MutexGuard;

use self::copy::{Copied, Copy};
use self::strays::Cleared;
use crate::catalog::Cut;
use crate::database::Handle;
use crate::engine::{Engine, PartitionHandle};
use crate::options::Isolation;
use crate::schema::TableMeta;
use crate::transaction::Transaction;
use crate::{Error, ErrorKind, Result, TransactionOptions};

pub(crate) use self::changes::Changes;
pub(crate) use self::strays::Strays;

/// How far a split or a merge is.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ReshapeProgress {
    /// Bytes done: pages of rows that have been copied, and long values; those that were copied again too.
    pub done_bytes: u64,
    /// Bytes to do, as far as is known: long values are found on the way, and what is changed meanwhile has to be copied again.
    pub total_bytes: u64,
}

/// Hears of progress; `Break` ends the work with `Cancelled`.
pub(crate) type OnProgress<'p> = dyn FnMut(ReshapeProgress) -> ControlFlow<()> + 'p;

fn tell(on_progress: &mut OnProgress<'_>, done_bytes: u64, total_bytes: u64) -> Result<()> {
    match on_progress(ReshapeProgress { done_bytes, total_bytes: total_bytes.max(done_bytes) }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::new(ErrorKind::Cancelled, "stopped by the progress callback")),
    }
}

/// What a split or a merge has done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReshapeReport {
    /// The partition that has the lower keys of a split; after a merge the one that has all.
    pub left: u32,
    /// The partition that has the keys from the cut on; after a merge it is gone.
    pub right: u32,
    /// Rows that have been moved.
    pub rows: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// How long writers of the table had to wait: for those who had written already, and for what was copied behind them.
    pub locked: Duration,
    /// How often rows were copied, all or those that had changed, before writers had to wait: at least once.
    pub passes: u32,
    /// Rows that were copied, again or at all, or taken back, while writers waited.
    pub late_rows: u64,
}

/// Rows that are where they are to be, and since when (monotonic) their writers are kept out.
struct Moved {
    copied: Copied,
    since: Duration,
}

/// The transaction of a split or a merge, with the table's definition locked.
struct Reshaping<'e> {
    engine: &'e Engine,
    tx: Transaction,
    meta: Arc<TableMeta>,
    cuts: Vec<Cut>,
    _one_at_a_time: MutexGuard<'e, ()>,
}

impl<'e> Reshaping<'e> {
    /// `patience`: how long it waits for each of those who may be in its way; `None`: as any transaction.
    fn begin(handle: &'e Arc<Handle>, name: &str, patience: Option<Duration>) -> Result<Reshaping<'e>> {
        let engine = &*handle.engine;
        engine.check_poison()?;
        let timeout = patience.unwrap_or(engine.options.lock_timeout);
        let one_at_a_time = engine.take_within(
            timeout,
            "another split or merge",
            || engine.reshaping.try_lock(),
            || engine.reshaping.try_lock_for(timeout),
        );
        let one_at_a_time = one_at_a_time.ok_or_else(|| {
            Error::new(ErrorKind::Conflict, format!("waited {timeout:?} for another split or merge"))
        })?;
        let options = TransactionOptions::new().isolation(Isolation::Serializable).lock_timeout(timeout);
        let tx = Transaction::begin(handle, options, None)?;
        let (table, meta) = tx.lock_definition(name)?;
        Ok(Reshaping { engine, tx, meta, cuts: table.cuts, _one_at_a_time: one_at_a_time })
    }

    /// Whether a partition can be read: it is not quarantined, and is not behind, or is no longer in time.
    fn check_ready(&self, handle: &PartitionHandle, on_progress: &mut OnProgress<'_>) -> Result<()> {
        self.engine.check_online(handle)?;
        let mut check = || tell(on_progress, 0, 0);
        self.engine.catch_up_within(handle.partition.id(), self.tx.lock_timeout(), &mut check)
    }

    /// Copies the rows from `lower` on, up to `upper` (`None`: to the end), from a partition into another: most of them while writers go
    /// on, the rest with writers kept out, from then on.
    fn copy(
        &self,
        (from, to): (&Arc<PartitionHandle>, &Arc<PartitionHandle>),
        lower: &[u8],
        upper: Option<&[u8]>,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Moved> {
        let (engine, tx) = (self.engine, &self.tx);
        let mut copy = Copy::begin(engine, (from, to), lower, upper)?;
        copy.run(&|| tx.advance(), on_progress)?;
        engine.pause("before a table is locked");
        let since = engine.storage.monotonic();
        tx.lock_rows(&self.meta.gate)?;
        engine.pause("with a table locked");
        Ok(Moved { copied: copy.finish(on_progress)?, since })
    }

    fn commit(
        self,
        (left, right): (&PartitionHandle, &PartitionHandle),
        Moved { copied, since }: Moved,
    ) -> Result<ReshapeReport> {
        let Reshaping { engine, tx, .. } = self;
        engine.pause("before a split or merge commits");
        tx.commit()?;
        Ok(ReshapeReport {
            left: left.partition.id().0,
            right: right.partition.id().0,
            rows: copied.rows,
            bytes: copied.bytes,
            locked: engine.storage.monotonic().saturating_sub(since),
            passes: copied.passes,
            late_rows: copied.late_rows,
        })
    }
}

/// Splits the partition that has this key in two; the key will be the lowest of the right one.
pub(crate) fn split(
    handle: &Arc<Handle>,
    name: &str,
    key: &[u8],
    patience: Option<Duration>,
    on_progress: &mut OnProgress<'_>,
) -> Result<ReshapeReport> {
    let _span = tracing::info_span!("split", table = name).entered();
    let work = Reshaping::begin(handle, name, patience)?;
    work.tx.check_split_key(key)?;
    if work.cuts.iter().any(|cut| *cut.lower == *key) {
        return Err(Error::invalid(format!("a partition begins at \"{}\" already", key.escape_ascii())));
    }
    let meta = work.meta.clone();
    let slot = meta.routes.slot_of(key);
    let left = &meta.routes.at(slot).handle;
    work.check_ready(left, on_progress)?;
    let right = work.tx.grow(&meta.gate)?;
    let moved = work.copy((left, &right), key, meta.routes.upper(slot), on_progress)?;
    work.tx.add_cut(meta.id, key, right.partition.id())?;
    // Before anybody can see the cut.
    left.strays.note_some();
    let report = work.commit((left, &right), moved)?;
    tracing::info!(?report, "split");
    Ok(report)
}

/// Merges the partition that begins at this key into the one before it.
pub(crate) fn merge(
    handle: &Arc<Handle>,
    name: &str,
    key: &[u8],
    patience: Option<Duration>,
    on_progress: &mut OnProgress<'_>,
) -> Result<ReshapeReport> {
    let _span = tracing::info_span!("merge", table = name).entered();
    let work = Reshaping::begin(handle, name, patience)?;
    let cut = work.cuts.iter().find(|cut| *cut.lower == *key).cloned();
    let cut = cut.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("no partition begins at \"{}\"", key.escape_ascii()))
    })?;
    let meta = work.meta.clone();
    let (slot, before) = (meta.routes.slot_of(key), meta.routes.slot_before(Some(key)));
    let (left, right) = (&meta.routes.at(before).handle, &meta.routes.at(slot).handle);
    work.check_ready(left, on_progress)?;
    work.check_ready(right, on_progress)?;
    if !work.tx.is_settled_cut(meta.id, key)? {
        return Err(Error::new(
            ErrorKind::Conflict,
            "the partitions were split a moment ago: a transaction or snapshot of before may still be reading them",
        ));
    }
    clear_all_strays(work.engine, left, key)?;
    // Whatever becomes of this.
    left.strays.note_some();
    let moved = work.copy((right, left), key, meta.routes.upper(slot), on_progress)?;
    work.tx.remove_cut(meta.id, &cut)?;
    let report = work.commit((left, right), moved)?;
    tracing::info!(?report, "merged");
    Ok(report)
}

/// Removes all strays of a partition whose upper bound, `upper`, everybody sees.
fn clear_all_strays(engine: &Engine, handle: &Arc<PartitionHandle>, upper: &[u8]) -> Result<()> {
    let mut retried = false;
    while handle.strays.are_possible() {
        let cleared = {
            let _vacuum = engine.lock(&engine.vacuum, "a vacuum");
            engine.clear_strays_of(handle, Some(upper))
        };
        match cleared {
            Ok(Cleared::NotNow) => return Err(Error::new(ErrorKind::Conflict, "a verification runs")),
            Ok(Cleared::All | Cleared::Some) => retried = false,
            Err(e) if e.kind() == ErrorKind::LogFull && !retried => {
                engine.make_log_room(engine.options.lock_timeout)?;
                retried = true;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
