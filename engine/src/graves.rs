//! Partitions that no table will have again, until their files can go (hazard H11).
//!
//! I1. A partition's file goes only when the commit that dropped it is durable, and every view sees that commit: nobody reads it any
//!     more. What a crash leaves of them, recovery removes.

use std::sync::atomic::{AtomicUsize, Ordering};

use hamal_pager::PartitionId;
use hamal_wal::Lsn;
use parking_lot::Mutex;

use crate::Result;
use crate::engine::Engine;
use crate::ids::TxnId;

/// A partition that is to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grave {
    pub(crate) partition: PartitionId,
    /// Who dropped it, or made it and took that back.
    pub(crate) dropper: TxnId,
    /// The commit of the drop; [`Lsn::NEVER`]: none is needed.
    pub(crate) lsn: Lsn,
}

/// All partitions that are to go.
#[derive(Debug, Default)]
pub(crate) struct Graves {
    open: Mutex<Vec<Grave>>,
    count: AtomicUsize,
}

impl Graves {
    /// These partitions are to go.
    pub(crate) fn dig(&self, graves: impl Iterator<Item = Grave>) {
        let mut graves = graves.peekable();
        if graves.peek().is_none() {
            return;
        }
        let mut open = self.open.lock();
        open.extend(graves);
        self.count.store(open.len(), Ordering::Relaxed);
    }

    /// Takes those that nobody can read any more.
    fn due(&self, horizon: TxnId) -> Vec<Grave> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let mut open = self.open.lock();
        let (due, kept) = open.iter().partition(|grave| grave.dropper < horizon);
        *open = kept;
        self.count.store(open.len(), Ordering::Relaxed);
        due
    }
}

impl Engine {
    /// Deletes the partitions that nobody can read any more; whether there were any.
    pub(crate) fn bury(&self) -> Result<bool> {
        let due = self.graves.due(self.journal.horizon());
        for grave in &due {
            if grave.lsn != Lsn::NEVER {
                self.log.make_durable(grave.lsn)?;
            }
            self.delete_partition(grave.partition)?;
        }
        if !due.is_empty() {
            self.durable_moved();
        }
        Ok(!due.is_empty())
    }

    /// Lets go of what nobody needs any more, after a transaction. A failure poisons: what is left of files is removed by the next
    /// recovery.
    pub(crate) fn tidy(&self) {
        self.pause("before tidying");
        if let Err(error) = self.drop_settled_versions() {
            // They stay in memory.
            tracing::warn!(%error, "before-images could not be moved to a file");
        }
        if let Err(error) = self.bury() {
            self.poison(&error);
        }
    }
}
