//! Backups, the archive of the log, and what is restored from them. Normative for the bytes: docs/file-format.md section 10.
//!
//! A backup is pages, copied while others change them, and the log from before the first copy to after the last. No copy needs to fit
//! another: each is newer than the log's start, so that replaying the log to its end, as after a crash, makes them one state
//! (ARIES section 8, fuzzy image copies). With the log that follows, from the archive, it makes any later one.
//!
//! I1. A backup exists when its manifest does, which is written last. The manifest has a checksum of every other object.
//! I2. Every page copied has all changes of before the checkpoint that the backup starts from. The log holds all records from there on, and
//!     those that undo needs, to [`BackupInfo::end_lsn`], which no copied page is ahead of.
//! I3. A page that is not copied was free and not listed by the checkpoint, or was not written yet, when its bitmap was copied: whoever took it
//!     later began with a blind record, which the log has. A partition that is not copied was made later: the log has its making.
//! I4. What the log says about pages on disk ("pages clean") is not true of copies: recovery does not believe it below the end of a restored
//!     log (`restored_to` in the master record).
//!
//! I5. A backup has every partition of its moment: its pages, or, of one that is quarantined, what its repair needs; and says which. It is no
//!     base for the pages of the latter, neither of a later backup nor of a repair.
//!
//! In the order of reading: `target` (where objects go), `directory` (a target in files), `object` (how they are framed), `manifest`,
//! `quarantined` (what a backup has of quarantined partitions), `copy` (a backup), `logs` (the log of a backup and of the archive as one),
//! `restore`, `requarantine` (quarantined partitions, restored), `aside` (a part of a database), `verify`, `removal`; `crate::archive`.

pub(crate) mod aside;
mod copy;
mod directory;
pub(crate) mod logs;
pub(crate) mod manifest;
pub(crate) mod object;
pub(crate) mod pages;
mod quarantined;
mod removal;
mod requarantine;
mod restore;
mod target;
#[cfg(test)]
pub(crate) mod tests;
mod verify;

use std::ops::ControlFlow;

pub(crate) use copy::run;
pub use directory::DirectoryTarget;
pub use manifest::BackupInfo;
pub use quarantined::QuarantinedPartition;
pub use removal::{force_remove, remove};
pub use restore::{RestoreOptions, RestorePoint, RestoreReport, restore, restore_on};
pub use target::{ObjectReader, ObjectWriter, Target};
pub use verify::{BackupVerification, verify};

use crate::{Error, ErrorKind, Result};

/// What a backup is made of.
#[derive(Clone, Debug, Default)]
pub struct BackupOptions {
    since: Option<String>,
}

impl BackupOptions {
    /// A full backup.
    pub fn new() -> BackupOptions {
        BackupOptions::default()
    }

    /// An incremental backup: only pages that have changed since this one began, which has to be there to restore it, with all that it is
    /// based on itself.
    #[must_use]
    pub fn since(mut self, backup: impl Into<String>) -> BackupOptions {
        self.since = Some(backup.into());
        self
    }
}

/// A moment in a database's life, by both of the ways there are to name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Moment {
    /// For [`RestorePoint::Lsn`].
    pub lsn: u64,
    /// For [`RestorePoint::Micros`]: wall-clock time, microseconds since 1970.
    pub micros: u64,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Pages are copied, or checked.
    Pages,
    /// Log is copied, or checked.
    Log,
    /// What was copied is recovered: redo and undo. Records, or bytes of log, are counted.
    Recovery,
    /// Rows of then are compared with those of now, and put back.
    Rows,
}

/// How far a backup, a restore or a verification is.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Bytes done in this stage.
    pub done_bytes: u64,
    /// Bytes to do in this stage, as far as is known.
    pub total_bytes: u64,
}

/// Hears of progress; `Break` ends the work with `Cancelled`.
pub(crate) type OnProgress<'p> = dyn FnMut(Progress) -> ControlFlow<()> + 'p;

pub(crate) fn tell(
    on_progress: &mut OnProgress<'_>,
    stage: Stage,
    done_bytes: u64,
    total_bytes: u64,
) -> Result<()> {
    match on_progress(Progress { stage, done_bytes, total_bytes: total_bytes.max(done_bytes) }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::new(ErrorKind::Cancelled, "stopped by the progress callback")),
    }
}

/// The backups in a target, the oldest first. `Corrupt` if a manifest is damaged. What an interrupted backup left is none.
pub fn backups(target: &dyn Target) -> Result<Vec<BackupInfo>> {
    let mut found = Vec::new();
    for id in manifest::ids(target)? {
        if let Some(manifest) = manifest::read(target, &id)? {
            found.push(manifest.info(&id));
        }
    }
    Ok(found)
}
