//! Row locks that no row shows.
//!
//! A row whose stamp is an active transaction's is locked by it; nothing else says so, and nothing need be done to release it. This
//! table has the others: keys that `get_for_update` has locked, and keys whose writes a savepoint took back (hazard H21).
//!
//! I1. Taking and asking happen under the exclusive latch of the leaf that answers for the key, so of two writers one sees the other.
//! I2. An entry of a transaction that is no longer active locks nothing.
//! I3. A key has at most one entry, in the part that its hash says: who locks other keys is met elsewhere, mostly.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::ids::TxnId;
use crate::shard::Shards;

/// A lock, for its holder to release it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LockId(u64);

#[derive(Debug)]
struct RowLock {
    id: LockId,
    holder: TxnId,
    table: u32,
    /// In place while it is short.
    key: SmallVec<[u8; 24]>,
}

impl RowLock {
    fn is_of(&self, table: u32, key: &[u8]) -> bool {
        self.table == table && *self.key == *key
    }
}

/// Room for so many locks a part does not give back.
const KEPT: usize = 1024;

/// Some of the locks.
#[derive(Debug, Default)]
struct Part {
    locks: Mutex<HashTable<RowLock>>,
    /// How many there are. Asked without the mutex; the leaf's latch orders it (I1).
    held: AtomicUsize,
}

/// All row locks that no row shows.
#[derive(Debug, Default)]
pub(crate) struct RowLocks {
    hasher: DefaultHashBuilder,
    parts: Shards<Part>,
}

impl RowLocks {
    fn id(&self, table: u32, key: &[u8]) -> LockId {
        LockId(self.hasher.hash_one((table, key)))
    }

    /// Where locks with this id are. By other bits of the hash than tables look at.
    fn part(&self, id: LockId) -> &Part {
        self.parts.at(id.0 >> 32)
    }

    /// Who has locked the key; it may have ended meanwhile.
    pub(crate) fn holder(&self, table: u32, key: &[u8]) -> Option<TxnId> {
        let id = self.id(table, key);
        let part = self.part(id);
        if part.held.load(Ordering::Relaxed) == 0 {
            return None;
        }
        part.locks.lock().find(id.0, |lock| lock.is_of(table, key)).map(|lock| lock.holder)
    }

    /// Locks the key. Whoever had locked it has ended. `None` if this transaction had.
    pub(crate) fn take(&self, holder: TxnId, table: u32, key: &[u8]) -> Option<LockId> {
        let id = self.id(table, key);
        let part = self.part(id);
        let mut locks = part.locks.lock();
        if let Some(lock) = locks.find_mut(id.0, |lock| lock.is_of(table, key)) {
            let before = std::mem::replace(&mut lock.holder, holder);
            return (before != holder).then_some(id);
        }
        let lock = RowLock { id, holder, table, key: SmallVec::from_slice(key) };
        locks.insert_unique(id.0, lock, |lock| lock.id.0);
        part.held.store(locks.len(), Ordering::Relaxed);
        Some(id)
    }

    /// Forgets these locks of a transaction that has ended, but for those that somebody else has taken since.
    pub(crate) fn release(&self, holder: TxnId, held: &[LockId]) {
        for id in held {
            let part = self.part(*id);
            let mut locks = part.locks.lock();
            // Of two keys with one hash each is in the list, so either may go first.
            if let Ok(lock) = locks.find_entry(id.0, |lock| lock.id == *id && lock.holder == holder) {
                let _gone = lock.remove();
                part.held.store(locks.len(), Ordering::Relaxed);
                // What has been large gives memory back as it empties. Amortized: so many removals go before.
                if locks.capacity() > KEPT && locks.len() < locks.capacity() / 8 {
                    let room = 2 * locks.len();
                    locks.shrink_to(room, |lock| lock.id.0);
                }
            }
        }
    }

    /// Keys locked.
    pub(crate) fn len(&self) -> usize {
        self.parts.iter().map(|part| part.held.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_taken_over_is_not_released_by_its_last_holder() {
        let locks = RowLocks::default();
        assert_eq!(locks.holder(1, b"k"), None);
        let first = locks.take(TxnId(1), 1, b"k").unwrap();
        assert_eq!(locks.take(TxnId(1), 1, b"k"), None, "it has it already");
        let second = locks.take(TxnId(2), 1, b"k").unwrap();
        locks.release(TxnId(1), &[first]);
        assert_eq!(locks.holder(1, b"k"), Some(TxnId(2)));
        assert_eq!(locks.holder(2, b"k"), None);
        locks.release(TxnId(2), &[second]);
        assert_eq!((locks.holder(1, b"k"), locks.len()), (None, 0));
    }

    #[test]
    fn keys_of_all_lengths_are_told_apart_and_released_one_by_one() {
        let locks = RowLocks::default();
        let keys: Vec<Vec<u8>> = (0..200).map(|bytes| vec![7; bytes]).collect();
        let places = || keys.iter().flat_map(|key| [(1, key), (2, key)]);
        let held: Vec<LockId> =
            places().map(|(table, key)| locks.take(TxnId(u64::from(table)), table, key).unwrap()).collect();
        assert_eq!(locks.len(), 400);
        for (table, key) in places() {
            assert_eq!(locks.holder(table, key), Some(TxnId(u64::from(table))));
            assert_eq!(locks.holder(3, key), None);
        }
        // Locks of others stay, whatever list they are in.
        locks.release(TxnId(1), &held);
        for (table, key) in places() {
            assert_eq!(locks.holder(table, key), (table == 2).then_some(TxnId(2)));
        }
        locks.release(TxnId(2), &held);
        assert_eq!(locks.len(), 0);
    }

    #[test]
    fn what_many_locks_took_is_given_back() {
        let locks = RowLocks::default();
        let take = |key: u32| locks.take(TxnId(1), 1, &key.to_be_bytes()).unwrap();
        let held: Vec<LockId> = (0..200_000).map(take).collect();
        let room = || locks.parts.iter().map(|part| part.locks.lock().capacity()).sum::<usize>();
        assert!(room() >= 200_000);
        let (most, rest) = held.split_at(199_000);
        locks.release(TxnId(1), most);
        assert_eq!(locks.len(), 1000);
        assert!(room() <= 40_000, "{}", room());
        assert_eq!(locks.holder(1, &199_999_u32.to_be_bytes()), Some(TxnId(1)));
        locks.release(TxnId(1), rest);
        assert_eq!(locks.len(), 0);
    }
}
