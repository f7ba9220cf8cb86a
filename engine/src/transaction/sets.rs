//! What a transaction has read and written, in buffers that are kept per thread: a short transaction allocates none.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::validation::{Published, ReadSet, WriteSet};

/// Most memory that a transaction's read set, or write set, takes, bytes; beyond, it becomes coarser.
const SET_BYTES: usize = 1 << 20;
/// Pairs that one thread keeps, at most.
const KEPT: usize = 4;

thread_local! {
    #[expect(clippy::vec_box, reason = "a pair goes in and out by its pointer")]
    static POOL: RefCell<Vec<Box<Pair>>> = const { RefCell::new(Vec::new()) };
}

/// A read set and a write set, and what earlier ones were published as.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) reads: ReadSet,
    pub(super) writes: WriteSet,
    pub(super) shown: Shown,
}

/// What a thread's commits have published, for the buffers to be used again: memory that one thread asks for and another one gives back is
/// dear.
#[derive(Debug, Default)]
pub(super) struct Shown(VecDeque<Arc<Published>>);

impl Shown {
    /// Kept at most, and the largest that is kept, bytes.
    const KEPT: usize = 16;
    const KEPT_BYTES: usize = 4 << 10;

    /// What has been written, for the history; the buffers of the write set stay there. `counts` are the tables whose number of rows the
    /// transaction changed.
    pub(super) fn publish(
        &mut self,
        writes: &mut WriteSet,
        counts: impl Iterator<Item = u32>,
    ) -> Arc<Published> {
        // The oldest one is the first that the history lets go of.
        let is_free = |oldest: &mut Arc<Published>| Arc::get_mut(oldest).is_some();
        let mut published = self.0.pop_front_if(is_free).unwrap_or_default();
        if let Some(published) = Arc::get_mut(&mut published) {
            published.refill(writes, counts);
        }
        if published.bytes() <= Self::KEPT_BYTES {
            if self.0.len() == Self::KEPT {
                self.0.pop_front();
            }
            self.0.push_back(published.clone());
        }
        published
    }
}

impl Default for Pair {
    fn default() -> Self {
        Pair { reads: ReadSet::new(SET_BYTES), writes: WriteSet::new(SET_BYTES), shown: Shown::default() }
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
                pool.push(pair);
            }
        });
    }
}
