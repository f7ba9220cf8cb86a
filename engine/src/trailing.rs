//! Undo that trails behind an open: losers with much to take back are rolled back when the database is open already.
//!
//! A partition in which such a loser has a chain is *behind* until all of these are undone. Nobody is shown its rows before: whoever comes
//! to them ([`crate::routes::Route::tree`]) undoes what is in the way, beside a background thread that undoes all of it, and beside others
//! who need another partition, or the same.
//!
//! I1. A partition is behind before anybody can be routed to it. It catches up once, and is never behind again.
//! I2. The timeline has a loser that trails, set aside, until its last chain is undone, or left to a repair. So checkpoints list it
//!     and the log keeps its records; and whoever closes the database, or lets it crash, leaves what is left to the next open. No view
//!     knows of it, nor does the horizon: elsewhere nobody need mind it.
//! I3. It has no chain in the catalog, and none in a partition that is quarantined: there is nothing to be undone before open has returned
//!     (hazard H11), and nobody but those who come to its partitions meets what it has locked.
//! I4. In a partition that is behind nothing is purged, trimmed or freed but by undo, and its file stays, whatever the horizon says.
//! I5. The log has promised what its compensation takes.
//! I6. A chain is undone by one thread at a time, some records after the other. Who has its lock has no latch, and no lock that undo takes.
//! I7. If undo fails, or panics, the handle is poisoned, and the partition stays behind: what is half undone is shown to nobody.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hamal_pager::PartitionId;
use parking_lot::{Mutex, MutexGuard};

use crate::active::TxnEntry;
use crate::engine::{Engine, PartitionHandle};
use crate::ids::TxnId;
use crate::report::{RecoveryPass, RecoveryProgress};
use crate::rollback::{self, Rolled};
use crate::{Error, ErrorKind, Result};

/// Records undone between two looks at whether the chain is wanted by others, or the caller has waited long enough.
const STEPS: u64 = 64;

/// What is left to be undone.
#[derive(Debug, Default)]
pub(crate) struct TrailingUndo {
    behind: Mutex<BTreeMap<PartitionId, Behind>>,
    /// Records there seemed to be, and those undone.
    total: AtomicU64,
    done: AtomicU64,
}

/// A partition that is behind.
#[derive(Debug)]
struct Behind {
    handle: Arc<PartitionHandle>,
    chains: Vec<Arc<TrailingChain>>,
}

/// What a loser did in one partition.
#[derive(Debug)]
struct TrailingChain {
    loser: Arc<Loser>,
    partition: PartitionId,
    is_undone: Mutex<bool>,
}

/// A transaction to be rolled back.
#[derive(Debug)]
struct Loser {
    entry: Arc<TxnEntry>,
    /// Its chains that are not undone.
    open: AtomicUsize,
}

impl TrailingUndo {
    /// The partitions that are behind.
    pub(crate) fn partitions(&self) -> Vec<PartitionId> {
        self.behind.lock().keys().copied().collect()
    }

    /// How many transactions are not rolled back yet.
    pub(crate) fn losers(&self) -> usize {
        let behind = self.behind.lock();
        let chains = behind.values().flat_map(|behind| &behind.chains);
        chains.map(|chain| chain.loser.entry.id).collect::<BTreeSet<TxnId>>().len()
    }

    /// Whether a partition is behind.
    pub(crate) fn is_behind(&self, id: PartitionId) -> bool {
        self.behind.lock().contains_key(&id)
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> RecoveryProgress {
        let done = self.done.load(Ordering::Relaxed);
        let total = self.total.load(Ordering::Relaxed).max(done);
        RecoveryProgress { pass: RecoveryPass::Undo, done, total }
    }

    fn chains_of(&self, id: PartitionId) -> Vec<Arc<TrailingChain>> {
        self.behind.lock().get(&id).map(|behind| behind.chains.clone()).unwrap_or_default()
    }

    /// Any chain that is left.
    fn next(&self) -> Option<Arc<TrailingChain>> {
        self.behind.lock().values().flat_map(|behind| &behind.chains).next().cloned()
    }

    /// A chain is undone.
    fn forget(&self, chain: &Arc<TrailingChain>) {
        let mut all = self.behind.lock();
        let Some(behind) = all.get_mut(&chain.partition) else { return };
        behind.chains.retain(|known| !Arc::ptr_eq(known, chain));
        if behind.chains.is_empty() {
            behind.handle.behind.store(false, Ordering::Release);
            all.remove(&chain.partition);
            tracing::info!(partition = chain.partition.0, "the partition has caught up");
        }
    }
}

impl Engine {
    /// Leaves a loser, which is in the timeline and has its promise (I5), to be rolled back later. Before anybody has begun. `records`:
    /// about how many there are.
    pub(crate) fn let_trail(&self, entry: Arc<TxnEntry>, records: u64) -> Result<()> {
        let partitions: Vec<PartitionId> = entry.lock().chains.iter().map(|chain| chain.partition).collect();
        let handles: Vec<_> = partitions.iter().map(|id| self.partition(*id)).collect::<Result<_>>()?;
        self.timeline.set_aside(&entry);
        let loser = Arc::new(Loser { entry, open: AtomicUsize::new(partitions.len()) });
        self.trailing.total.fetch_add(records, Ordering::Relaxed);
        let mut all = self.trailing.behind.lock();
        for (partition, handle) in partitions.into_iter().zip(handles) {
            handle.behind.store(true, Ordering::Release);
            let behind = all.entry(partition).or_insert_with(|| Behind { handle, chains: Vec::new() });
            let loser = loser.clone();
            behind.chains.push(Arc::new(TrailingChain { loser, partition, is_undone: Mutex::new(false) }));
        }
        Ok(())
    }

    /// Undoes what a partition is behind by, beside others who do so too. The caller has no latch. `keep_on` is asked before each piece, and
    /// can stop it; else it says for how long to wait for others who are at the same chain.
    pub(crate) fn catch_up(&self, id: PartitionId, keep_on: &mut KeepOn<'_>) -> Result<()> {
        for chain in self.trailing.chains_of(id) {
            while !self.undo_some(&chain, keep_on()?)? {}
        }
        Ok(())
    }

    /// The same, as long as `check` finds nothing wrong; `Conflict` if it takes longer than the timeout. One piece is undone in any case,
    /// unless others are at it.
    pub(crate) fn catch_up_within(
        &self,
        id: PartitionId,
        timeout: Duration,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let began = self.storage.monotonic();
        let mut is_first = true;
        self.catch_up(id, &mut || {
            check()?;
            let left = timeout.saturating_sub(self.storage.monotonic().saturating_sub(began));
            if mem::take(&mut is_first) || !left.is_zero() {
                return Ok(left);
            }
            let what =
                "what a transaction that had not committed did there is still being undone since the database was opened";
            Err(Error::new(ErrorKind::Conflict, format!("waited {timeout:?} for partition {id}: {what}")))
        })
    }

    /// The same for all partitions together.
    pub(crate) fn catch_up_all_within(&self, timeout: Duration) -> Result<()> {
        let began = self.storage.monotonic();
        self.trailing.partitions().into_iter().try_for_each(|id| {
            let left = timeout.saturating_sub(self.storage.monotonic().saturating_sub(began));
            self.catch_up_within(id, left, &mut || Ok(()))
        })
    }

    /// The same for all partitions, however long it takes.
    pub(crate) fn catch_up_all(&self, keep_on: &mut KeepOn<'_>) -> Result<()> {
        self.trailing.partitions().into_iter().try_for_each(|id| self.catch_up(id, keep_on))
    }

    /// Undoes some of what is left; whether there was any.
    pub(crate) fn catch_up_some(&self) -> Result<bool> {
        let Some(chain) = self.trailing.next() else { return Ok(false) };
        self.undo_some(&chain, Duration::MAX)?;
        Ok(true)
    }

    /// Leaves what trails in partitions that were quarantined meanwhile to their repair, so that a checkpoint can settle them. The caller
    /// holds nothing.
    pub(crate) fn give_up_trailing_undo_offline(&self) -> Result<()> {
        let mut behind = self.trailing.partitions();
        behind.retain(|id| self.quarantine.stage(*id).is_some());
        behind.into_iter().try_for_each(|id| self.catch_up(id, &mut || Ok(Duration::MAX)))
    }

    /// Goes on with a chain (I6), if it can be had within the timeout; whether it is undone.
    fn undo_some(&self, chain: &Arc<TrailingChain>, timeout: Duration) -> Result<bool> {
        let taken = self.take_within(
            timeout,
            "an undo that trails",
            || chain.is_undone.try_lock(),
            || chain.is_undone.try_lock_for(timeout),
        );
        let Some(mut is_undone) = taken else { return Ok(false) };
        if *is_undone {
            return Ok(true);
        }
        self.check_poison()?;
        let entry = &chain.loser.entry;
        let unfinished = Unfinished(self);
        let rolled_back = rollback::roll_back_some(self, entry, chain.partition, STEPS);
        mem::forget(unfinished);
        let Rolled { undone, is_over } = rolled_back.inspect_err(|error| {
            if error.kind() != ErrorKind::Poisoned {
                self.poison(error);
            }
        })?;
        self.trailing.done.fetch_add(undone, Ordering::Relaxed);
        if !is_over {
            // Whoever waits for it has come because it is in the way.
            MutexGuard::unlock_fair(is_undone);
            return Ok(false);
        }
        *is_undone = true;
        // Acquire and release: whoever ends the transaction has all that was done in its other chains behind it. It ends before the last
        // partition has caught up: whoever sees that finds nothing of it left.
        if chain.loser.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            rollback::note_rolled_back(self);
            self.timeline.end(entry, None);
            rollback::give_back_promise(self, entry);
            tracing::info!(txn = entry.id.0, "a transaction that had not committed is rolled back");
        }
        self.trailing.forget(chain);
        Ok(true)
    }
}

/// Says whether to go on, and for how long to wait for others.
pub(crate) type KeepOn<'k> = dyn FnMut() -> Result<Duration> + 'k;

/// Poisons the handle unless it is forgotten: what a panic leaves may be logged and not done (I7).
struct Unfinished<'e>(&'e Engine);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.poison(&Error::new(ErrorKind::Poisoned, "an undo behind the open has panicked"));
    }
}
