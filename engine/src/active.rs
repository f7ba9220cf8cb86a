//! The table of active transactions, and the one critical section each transaction has.
//!
//! I1. A transaction is in the table before its first record is reserved, and leaves it after its last.
//! I2. Every reservation of a transaction's record, the change of its chain's LSNs, and its commit happen inside its critical
//!     section ([`TxnEntry::lock`]). A checkpointer that has reserved BEGIN enters each section once before it copies the entry, so
//!     analysis sees either the copy or the record (hazard H2).
//! I3. `horizon` is at or below the id of every transaction in the table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hamal_pager::PartitionId;
use hamal_wal::Lsn;
use parking_lot::{Mutex, MutexGuard};

use crate::ids::TxnId;
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
    pub(crate) chains: Vec<ChainState>,
    /// Its oldest record: the log must keep it while the transaction may roll back.
    pub(crate) first_lsn: Lsn,
    /// Log promised for its compensation, bytes.
    pub(crate) promised_bytes: u64,
    /// Its commit record, or its last end record, is reserved: a checkpoint no longer lists it.
    pub(crate) ended: bool,
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
    state: Mutex<TxnState>,
}

impl TxnEntry {
    /// Enters the critical section. Held over a reservation, never over a wait.
    pub(crate) fn lock(&self) -> MutexGuard<'_, TxnState> {
        self.state.lock()
    }
}

/// All active transactions, losers that are not undone yet included.
#[derive(Debug)]
pub(crate) struct ActiveTable {
    entries: Mutex<BTreeMap<TxnId, Arc<TxnEntry>>>,
    next: AtomicU64,
    horizon: Arc<AtomicU64>,
}

impl ActiveTable {
    /// An empty table whose first transaction will be `next` (hazard H19: ids never restart).
    pub(crate) fn new(next: TxnId, horizon: Arc<AtomicU64>) -> Self {
        horizon.store(next.0, Ordering::Release);
        ActiveTable { entries: Mutex::default(), next: AtomicU64::new(next.0), horizon }
    }

    /// Registers a new transaction.
    pub(crate) fn begin(&self) -> Arc<TxnEntry> {
        let mut entries = self.entries.lock();
        // The id is drawn inside the lock, so that the horizon never passes an id that is about to register.
        let id = TxnId(self.next.fetch_add(1, Ordering::Relaxed));
        let entry = Arc::new(TxnEntry { id, state: Mutex::default() });
        entries.insert(id, entry.clone());
        self.publish_horizon(&entries);
        entry
    }

    /// Puts a loser found by analysis back.
    pub(crate) fn restore(&self, image: &TxnImage) -> Arc<TxnEntry> {
        let chains = image
            .chains
            .iter()
            .map(|c| ChainState {
                partition: c.partition,
                last_lsn: c.last_lsn,
                undo_next_lsn: c.undo_next_lsn,
            })
            .collect();
        let state = TxnState { chains, first_lsn: image.first_lsn, promised_bytes: 0, ended: false };
        let entry = Arc::new(TxnEntry { id: image.txn, state: Mutex::new(state) });
        let mut entries = self.entries.lock();
        entries.insert(image.txn, entry.clone());
        self.publish_horizon(&entries);
        entry
    }

    /// Takes an ended transaction out.
    pub(crate) fn remove(&self, id: TxnId) {
        let mut entries = self.entries.lock();
        entries.remove(&id);
        self.publish_horizon(&entries);
    }

    fn publish_horizon(&self, entries: &BTreeMap<TxnId, Arc<TxnEntry>>) {
        let oldest = entries.keys().next().map_or(self.next.load(Ordering::Relaxed), |id| id.0);
        self.horizon.store(oldest, Ordering::Release);
    }

    /// The id the next transaction will get.
    pub(crate) fn next_id(&self) -> TxnId {
        TxnId(self.next.load(Ordering::Relaxed))
    }

    /// Number of active transactions.
    pub(crate) fn len(&self) -> usize {
        self.entries.lock().len()
    }

    /// The checkpoint's transaction table: every transaction that has records and has not ended. BEGIN is reserved.
    pub(crate) fn images(&self) -> Vec<TxnImage> {
        let entries: Vec<_> = self.entries.lock().values().cloned().collect();
        let mut images = Vec::new();
        for entry in entries {
            let state = entry.lock();
            if state.ended || state.first_lsn == Lsn::NEVER {
                continue;
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
            images.push(TxnImage { txn: entry.id, first_lsn: state.first_lsn, chains });
        }
        images
    }
}
