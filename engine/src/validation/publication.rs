//! What a commit leaves in the history, made ready outside of the commit section where that can be.

use std::collections::VecDeque;
use std::sync::Arc;

use hamal_wal::Lsn;

use crate::validation::brief::Brief;
use crate::validation::{History, Published, WriteSet};

/// What a transaction has written, as its commit is going to leave it in the history; and buffers of what earlier ones of its thread have
/// left there, to be used again: memory that one thread asks for and another one gives back is dear.
#[derive(Debug, Default)]
pub(crate) struct Publication {
    form: Form,
    /// Filled in place, if that is its form: what is moved waits for memory.
    brief: Brief,
    kept: VecDeque<Arc<Published>>,
}

#[derive(Debug, Default)]
enum Form {
    #[default]
    NotReady,
    Brief,
    Full(Arc<Published>),
}

impl Publication {
    /// Kept at most, and the largest that is kept, bytes.
    const KEPT: usize = 16;
    const KEPT_BYTES: usize = 4 << 10;

    /// Makes ready what has been written, unless that is done. `counts` are the tables whose number of rows the transaction changed, rising.
    pub(crate) fn prepare(&mut self, writes: &mut WriteSet, counts: &[u32]) {
        if self.is_ready() {
            return;
        }
        self.form = if self.brief.refill(writes.sorted(), counts) {
            Form::Brief
        } else {
            // The oldest one is the first that the history lets go of.
            let is_free = |oldest: &mut Arc<Published>| Arc::get_mut(oldest).is_some();
            let mut published = self.kept.pop_front_if(is_free).unwrap_or_default();
            if let Some(published) = Arc::get_mut(&mut published) {
                published.refill(writes, counts);
            }
            Form::Full(published)
        };
    }

    /// Whether it has been made ready.
    pub(crate) fn is_ready(&self) -> bool {
        !matches!(self.form, Form::NotReady)
    }

    /// Leaves it as that of the commit at `lsn`, the newest; made ready, as by [`Publication::prepare`], unless that is done.
    pub(crate) fn leave(&mut self, writes: &mut WriteSet, counts: &[u32], history: &mut History, lsn: Lsn) {
        self.prepare(writes, counts);
        if let Form::Full(published) = &self.form {
            history.push(lsn, published.clone());
        } else {
            history.push_brief(lsn, &self.brief);
        }
    }

    /// Ready for another transaction.
    pub(crate) fn clear(&mut self) {
        if let Form::Full(published) = std::mem::take(&mut self.form)
            && published.bytes() <= Self::KEPT_BYTES
        {
            if self.kept.len() == Self::KEPT {
                self.kept.pop_front();
            }
            self.kept.push_back(published);
        }
    }
}
