//! What a transaction has read and written, in buffers that are kept per thread: a short transaction allocates none.

use std::cell::RefCell;

use crate::validation::{ReadSet, WriteSet};

/// Most memory that a transaction's read set, or write set, takes, bytes; beyond, it becomes coarser.
const SET_BYTES: usize = 1 << 20;
/// Pairs that one thread keeps, at most.
const KEPT: usize = 4;

thread_local! {
    static POOL: RefCell<Vec<Sets>> = const { RefCell::new(Vec::new()) };
}

/// A read set and a write set.
#[derive(Debug)]
pub(super) struct Sets {
    pub(super) reads: ReadSet,
    pub(super) writes: WriteSet,
}

impl Sets {
    /// Empty ones, without buffers.
    fn empty() -> Sets {
        Sets { reads: ReadSet::new(SET_BYTES), writes: WriteSet::new(SET_BYTES) }
    }

    /// Empty ones.
    pub(super) fn new() -> Sets {
        // No pool while the thread ends: then they are just new.
        let kept = POOL.try_with(|pool| pool.borrow_mut().pop()).ok().flatten();
        kept.unwrap_or_else(Sets::empty)
    }

    /// Keeps the buffers for another transaction of this thread.
    pub(super) fn give_back(&mut self) {
        let _no_pool = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                let mut sets = std::mem::replace(self, Sets::empty());
                sets.reads.clear();
                sets.writes.clear();
                pool.push(sets);
            }
        });
    }
}
