//! Row locks that no row shows.
//!
//! A row whose stamp is an active transaction's is locked by it; nothing else says so, and nothing need be done to release it. This
//! table has the others: keys that `get_for_update` has locked, and keys whose writes a savepoint took back (hazard H21).
//!
//! I1. Taking and asking happen under the exclusive latch of the leaf that answers for the key, so of two writers one sees the other.
//! I2. An entry of a transaction that is no longer active locks nothing.

use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::ids::TxnId;

/// A table's key.
pub(crate) type LockedKey = (u32, Box<[u8]>);

/// All row locks that no row shows.
#[derive(Debug, Default)]
pub(crate) struct RowLocks {
    holders: Mutex<HashMap<LockedKey, TxnId>>,
    /// Entries there are. Asked without the mutex; the leaf's latch orders it (I1).
    held: AtomicUsize,
}

impl RowLocks {
    /// Who has locked the key; it may have ended meanwhile.
    pub(crate) fn holder(&self, table: u32, key: &[u8]) -> Option<TxnId> {
        if self.held.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.holders.lock().get(&(table, Box::from(key))).copied()
    }

    /// Locks the key. Whoever had locked it has ended. Whether the lock is a new one of this transaction's.
    pub(crate) fn take(&self, holder: TxnId, table: u32, key: &[u8]) -> bool {
        let mut holders = self.holders.lock();
        let before = holders.insert((table, Box::from(key)), holder);
        self.held.store(holders.len(), Ordering::Relaxed);
        before != Some(holder)
    }

    /// Forgets the locks of a transaction that has ended, but for keys that somebody else has locked since.
    pub(crate) fn release(&self, holder: TxnId, keys: &[LockedKey]) {
        if keys.is_empty() {
            return;
        }
        let mut holders = self.holders.lock();
        for key in keys {
            if holders.get(key) == Some(&holder) {
                holders.remove(key);
            }
        }
        self.held.store(holders.len(), Ordering::Relaxed);
    }

    /// Keys locked.
    pub(crate) fn len(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_taken_over_is_not_released_by_its_last_holder() {
        let locks = RowLocks::default();
        assert_eq!(locks.holder(1, b"k"), None);
        assert!(locks.take(TxnId(1), 1, b"k"));
        assert!(!locks.take(TxnId(1), 1, b"k"), "it has it already");
        assert!(locks.take(TxnId(2), 1, b"k"));
        locks.release(TxnId(1), &[(1, Box::from(&b"k"[..]))]);
        assert_eq!(locks.holder(1, b"k"), Some(TxnId(2)));
        assert_eq!(locks.holder(2, b"k"), None);
        locks.release(TxnId(2), &[(1, Box::from(&b"k"[..]))]);
        assert_eq!((locks.holder(1, b"k"), locks.len()), (None, 0));
    }
}
