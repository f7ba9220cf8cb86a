//! Cancelling a transaction from another thread.

use std::sync::{Arc, Weak};

use super::Transaction;
use crate::active::TxnEntry;
use crate::database::Handle;

/// Cancels a transaction, from any thread: made by [`Transaction::canceller`]. It does not keep the database open.
#[derive(Clone, Debug)]
pub struct Canceller {
    entry: Arc<TxnEntry>,
    handle: Weak<Handle>,
}

impl Canceller {
    /// Ends the transaction's wait for a lock, if it waits for one, and refuses every later statement and its commit: all return
    /// `Cancelled`. What it has done is rolled back when its owner drops it. Nothing happens to one that has ended.
    pub fn cancel(&self) {
        self.entry.cancel();
        if let Some(handle) = self.handle.upgrade() {
            handle.engine.waits.cancel(self.entry.id);
        }
    }
}

impl Transaction {
    /// What cancels this transaction from another thread.
    pub fn canceller(&self) -> Canceller {
        Canceller { entry: self.entry.clone(), handle: Arc::downgrade(&self.handle) }
    }
}
