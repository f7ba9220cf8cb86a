//! What a transaction has read and written, in buffers that are kept per thread: a short transaction allocates none.

use std::cell::RefCell;

use crate::validation::{Publication, ReadSet, WriteSet};

/// Most memory that a transaction's read set, or write set, takes, bytes; beyond, it becomes coarser.
const SET_BYTES: usize = 1 << 20;
/// Pairs that one thread keeps, at most.
const KEPT: usize = 4;

thread_local! {
    #[expect(clippy::vec_box, reason = "a pair goes in and out by its pointer")]
    static POOL: RefCell<Vec<Box<Pair>>> = const { RefCell::new(Vec::new()) };
}

/// A read set, a write set, and what a commit leaves of that.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) reads: ReadSet,
    pub(super) writes: WriteSet,
    pub(super) publication: Publication,
}

impl Default for Pair {
    fn default() -> Self {
        Pair {
            reads: ReadSet::new(SET_BYTES),
            writes: WriteSet::new(SET_BYTES),
            publication: Publication::default(),
        }
    }
}

/// A transaction's read set and write set, made when they are first needed.
#[derive(Debug, Default)]
pub(super) struct Sets(Option<Box<Pair>>);

impl Sets {
    /// The two sets.
    pub(super) fn get(&mut self) -> &mut Pair {
        self.0.get_or_insert_with(|| {
            // No pool while the thread ends: then they are just new.
            POOL.try_with(|pool| pool.borrow_mut().pop()).ok().flatten().unwrap_or_default()
        })
    }
}

impl Drop for Sets {
    /// Keeps the buffers for another transaction of this thread.
    fn drop(&mut self) {
        let Some(mut pair) = self.0.take() else { return };
        let _no_pool = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                pair.reads.clear();
                pair.writes.clear();
                pair.publication.clear();
                pool.push(pair);
            }
        });
    }
}
