//! Partitions that no table will have again, until their files can go (hazard H11).
//!
//! I1. A partition's file goes only when the commit that dropped it is durable, and every view sees that commit: nobody reads it any
//!     more. What a crash leaves of them, recovery removes.
//! I2. None goes while a backup copies files, or as long as something is to be undone there ([`crate::trailing`]).

use std::sync::atomic::{AtomicUsize, Ordering};

use hamal_pager::PartitionId;
use hamal_wal::Lsn;
use parking_lot::Mutex;

use crate::Result;
use crate::engine::{Engine, FilesLocked};
use crate::ids::TxnId;

/// Before-images that are worth a look at each view that goes, bytes.
const FEW_BYTES: u64 = 64 << 10;

/// A partition that is to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grave {
    /// The table it was of, which goes as a whole; `None`: the table stays.
    pub(crate) table: Option<u32>,
    pub(crate) partition: PartitionId,
    /// Who dropped it, merged it into another, or made it and took that back.
    pub(crate) dropper: TxnId,
    /// The commit of the drop; [`Lsn::NEVER`]: none is needed.
    pub(crate) lsn: Lsn,
}

/// All partitions that are to go.
#[derive(Debug, Default)]
pub(crate) struct Graves {
    open: Mutex<Vec<Grave>>,
    count: AtomicUsize,
    /// Backups under way.
    kept: AtomicUsize,
}

/// No partition is deleted until it is dropped.
#[derive(Debug)]
pub(crate) struct FilesKept<'e> {
    graves: &'e Graves,
}

impl Drop for FilesKept<'_> {
    fn drop(&mut self) {
        self.graves.kept.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Graves {
    /// Keeps all partitions there are (I2). `locked`: none is being deleted now.
    pub(crate) fn keep(&self, _locked: &FilesLocked<'_>) -> FilesKept<'_> {
        self.kept.fetch_add(1, Ordering::SeqCst);
        FilesKept { graves: self }
    }

    fn are_kept(&self) -> bool {
        self.kept.load(Ordering::SeqCst) > 0
    }

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

    /// Whether any `is_due`.
    fn are_due(&self, is_due: impl Fn(&Grave) -> bool) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && !self.are_kept() && self.open.lock().iter().any(is_due)
    }

    /// Takes those that are due.
    fn take_due(&self, is_due: impl Fn(&Grave) -> bool) -> Vec<Grave> {
        let mut open = self.open.lock();
        let (due, kept) = open.iter().partition(|grave| is_due(grave));
        *open = kept;
        self.count.store(open.len(), Ordering::Relaxed);
        due
    }
}

impl Engine {
    /// Deletes the partitions that nobody can read any more; whether there were any. Waits for a checkpoint and a vacuum.
    pub(crate) fn bury(&self) -> Result<bool> {
        self.bury_with(|| Some(self.lock_files()))
    }

    fn bury_with<'e>(&'e self, lock: impl FnOnce() -> Option<FilesLocked<'e>>) -> Result<bool> {
        // Nobody can read it any more, nor is anything to be undone there (I1, I2).
        let is_due = |grave: &Grave| {
            grave.dropper < self.journal.horizon() && !self.trailing.is_behind(grave.partition)
        };
        if !self.graves.are_due(is_due) {
            return Ok(false);
        }
        let Some(locked) = lock() else { return Ok(false) };
        // Asked again: a backup begins with the files locked.
        if self.graves.are_kept() {
            return Ok(false);
        }
        let due = self.graves.take_due(is_due);
        for grave in &due {
            if grave.lsn != Lsn::NEVER {
                self.log.make_durable(grave.lsn)?;
            }
            if let Some(table) = grave.table {
                self.timeline.forget_table(table);
            }
            self.delete_partition(&locked, grave.partition)?;
        }
        drop(locked);
        self.durable_moved();
        Ok(!due.is_empty())
    }

    /// Lets go of what nobody needs any more, after a view has gone.
    pub(crate) fn tidy(&self) {
        self.pause("before tidying");
        // Less can wait for the next commit, or round of maintenance.
        if self.versions.bytes() > FEW_BYTES
            && let Err(error) = self.drop_settled_versions()
        {
            // They stay in memory.
            tracing::warn!(%error, "before-images could not be moved to a file");
        }
        self.bury_due();
    }

    /// Deletes the partitions that nobody can read any more, unless a checkpoint, a vacuum or a verification runs, which may be the caller's
    /// own: then next time. A failure poisons: what is left of files is removed by the next recovery.
    pub(crate) fn bury_due(&self) {
        if let Err(error) = self.bury_with(|| self.try_lock_files()) {
            self.poison(&error);
        }
    }
}
