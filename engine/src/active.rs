//! An active transaction, as others see it, and its one critical section. Which ones there are is the timeline's.
//!
//! I1. Every reservation of a transaction's record, the change of its chain's LSNs, and its commit happen inside its critical
//!     section ([`TxnEntry::lock`]). A checkpointer that has reserved BEGIN enters each section once before it copies the entry, so
//!     analysis sees either the copy or the record (hazard H2).

use std::sync::atomic::{AtomicBool, Ordering};

use hamal_pager::PartitionId;
use hamal_wal::Lsn;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use crate::ids::TxnId;
use crate::locks::LockId;
use crate::record::{ChainImage, TxnImage};

/// Where one chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChainState {
    pub(crate) partition: PartitionId,
    /// The chain's newest record.
    pub(crate) last_lsn: Lsn,
    /// The newest record not yet undone.
    pub(crate) undo_next_lsn: Lsn,
}

/// What changes in a transaction's critical section.
#[derive(Debug, Default)]
pub(crate) struct TxnState {
    /// One per partition it has written to, in order of first write.
    pub(crate) chains: SmallVec<[ChainState; 2]>,
    /// Its oldest record: the log must keep it while the transaction may roll back.
    pub(crate) first_lsn: Lsn,
    /// Log promised for its compensation, bytes: what all of it would take now, at most.
    pub(crate) promised_bytes: u64,
    /// Its commit record, or its last end record, is reserved: a checkpoint no longer lists it.
    pub(crate) ended: bool,
    /// Tables whose rows it writes, or is about to: nobody may drop them.
    pub(crate) writes_to: SmallVec<[u32; 2]>,
    /// Its row locks that no row shows.
    pub(crate) locked: Vec<LockId>,
}

impl TxnState {
    /// The newest record of the chain in this partition; [`Lsn::NEVER`] if there is none.
    pub(crate) fn last_lsn(&self, partition: PartitionId) -> Lsn {
        self.chains.iter().find(|c| c.partition == partition).map_or(Lsn::NEVER, |c| c.last_lsn)
    }

    /// The newest record of the chain in this partition that is not undone; [`Lsn::NEVER`] if there is none.
    pub(crate) fn undo_next_lsn(&self, partition: PartitionId) -> Lsn {
        self.chains.iter().find(|c| c.partition == partition).map_or(Lsn::NEVER, |c| c.undo_next_lsn)
    }

    /// The chain in this partition, made if missing.
    pub(crate) fn chain(&mut self, partition: PartitionId) -> &mut ChainState {
        let at = self.chains.iter().position(|c| c.partition == partition).unwrap_or_else(|| {
            self.chains.push(ChainState { partition, last_lsn: Lsn::NEVER, undo_next_lsn: Lsn::NEVER });
            self.chains.len() - 1
        });
        &mut self.chains[at]
    }
}

/// One active transaction.
#[derive(Debug)]
pub(crate) struct TxnEntry {
    pub(crate) id: TxnId,
    /// The id of its first attempt, if it is one of several: of two in each other's way the older one wins.
    pub(crate) age: u64,
    state: Mutex<TxnState>,
    cancelled: AtomicBool,
}

impl TxnEntry {
    /// A transaction that has done nothing yet, and has no id. `age`: that of an earlier attempt.
    pub(crate) fn new(age: Option<u64>) -> Self {
        let age = age.unwrap_or(0);
        TxnEntry { id: TxnId::NONE, age, state: Mutex::default(), cancelled: AtomicBool::new(false) }
    }

    /// Gives it its id, which is its age too if it is a first attempt.
    pub(crate) fn set_id(&mut self, id: TxnId) {
        self.id = id;
        if self.age == 0 {
            self.age = id.0;
        }
    }

    /// A loser that analysis found.
    pub(crate) fn restored(image: &TxnImage) -> Self {
        let chains = image
            .chains
            .iter()
            .map(|c| ChainState {
                partition: c.partition,
                last_lsn: c.last_lsn,
                undo_next_lsn: c.undo_next_lsn,
            })
            .collect();
        let mut entry = TxnEntry::new(None);
        entry.set_id(image.txn);
        *entry.state.lock() = TxnState { chains, first_lsn: image.first_lsn, ..TxnState::default() };
        entry
    }

    /// What a checkpoint says of it; `None` if it has no records, or has ended.
    pub(crate) fn image(&self) -> Option<TxnImage> {
        let state = self.state.lock();
        if state.ended || state.first_lsn == Lsn::NEVER {
            return None;
        }
        let chains = state
            .chains
            .iter()
            .map(|c| ChainImage {
                partition: c.partition,
                last_lsn: c.last_lsn,
                undo_next_lsn: c.undo_next_lsn,
            })
            .collect();
        Some(TxnImage { txn: self.id, first_lsn: state.first_lsn, undo_bytes: state.promised_bytes, chains })
    }

    /// Somebody wants it to end.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether somebody wants it to end.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Enters the critical section. Held over a reservation, never over a wait.
    pub(crate) fn lock(&self) -> MutexGuard<'_, TxnState> {
        self.state.lock()
    }
}
