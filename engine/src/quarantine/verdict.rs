//! Which errors say that a partition cannot be used, and what becomes of it then.

use std::sync::atomic::Ordering;

use hamal_pager::PartitionId;
use hamal_storage::{Error as LowError, is_refused};

use super::{Case, Stage};
use crate::catalog::CATALOG;
use crate::engine::{Engine, PartitionHandle};
use crate::error::UnavailablePartition;
use crate::{Error, ErrorKind, Result, recovery};

impl Engine {
    /// Takes a partition offline, whoever is using it. The caller holds no latch and no epoch guard. Nothing happens if it is offline
    /// already.
    pub(crate) fn quarantine(&self, id: PartitionId, cause: &str) {
        let now = self.storage.now_micros();
        let is_new = self.quarantine.change(|cases| match cases.get_mut(&id) {
            None => {
                cases.insert(id, Case::new(cause.to_owned(), now));
                true
            }
            Some(case) if case.stage == Stage::Lifted => {
                case.reopen(cause.to_owned(), now);
                true
            }
            Some(_) => false,
        });
        if !is_new {
            return;
        }
        tracing::error!(partition = id.0, cause, "a partition is quarantined");
        self.counters.quarantines.fetch_add(1, Ordering::Relaxed);
        let dirty = self.pager.seal_partition(id);
        // Here before they leave the pager (I4).
        self.quarantine.add_dirty(id, dirty.into_iter());
        self.pause("between the seal of a partition and its leaving");
        self.pager.remove_sealed(id);
    }

    /// What becomes of an error that an operation on a partition's pages has returned: damage quarantines it. The caller holds no latch.
    pub(crate) fn blame(&self, id: PartitionId, error: Error) -> Error {
        if id == CATALOG {
            return error;
        }
        match error.kind() {
            ErrorKind::Corrupt if is_about_pages(&error) => {
                self.quarantine(id, &error.to_string());
                self.unavailable(id)
            }
            // The pager's word, which does not say why.
            ErrorKind::PartitionUnavailable if error.unavailable_partition().is_none() => {
                self.unavailable(id)
            }
            _ => error,
        }
    }

    /// As [`Engine::blame`], for who cannot go on without the page: one that the system refuses to read is damage too.
    pub(crate) fn blame_if_unreadable(&self, id: PartitionId, error: Error) -> Error {
        if self.convict(id, &error) { self.unavailable(id) } else { error }
    }

    /// Whether the error says that the partition cannot be used; then it is offline. The catalog is read by nobody here.
    pub(crate) fn convict(&self, id: PartitionId, error: &Error) -> bool {
        if id == CATALOG {
            return false;
        }
        if is_unreadable(error) || (error.kind() == ErrorKind::Corrupt && is_about_pages(error)) {
            self.quarantine(id, &error.to_string());
        }
        let may_be =
            matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Io | ErrorKind::PartitionUnavailable);
        may_be && self.quarantine.stage(id).is_some_and(|stage| stage != Stage::Lifted)
    }

    /// `PartitionUnavailable` if the partition cannot be used through this handle.
    pub(crate) fn check_online(&self, handle: &PartitionHandle) -> Result<()> {
        if handle.partition.is_sealed() { Err(self.unavailable(handle.partition.id())) } else { Ok(()) }
    }

    /// The error of whoever wants to use a quarantined partition. O(tables).
    pub(crate) fn unavailable(&self, id: PartitionId) -> Error {
        let repaired =
            "it has been repaired since the table was opened here; open it in a new transaction or snapshot";
        let otherwise = if self.options.leaves_out(id) { "it has not been restored" } else { repaired };
        let cause = self.quarantine.cause(id).map_or_else(|| otherwise.to_owned(), |(cause, _)| cause);
        let mut partition = UnavailablePartition {
            id: id.0,
            table: None,
            lower: None,
            upper: None,
            file: format!("part/{id}.dat"),
            cause,
        };
        // A catalog that cannot be read says so to whoever asks for it.
        for (name, table) in recovery::tables(self).unwrap_or_default() {
            if let Some(at) = table.partitions().position(|p| p == id) {
                let lower = |at: usize| table.cuts.get(at).map(|cut| cut.lower.to_vec());
                partition.table = Some(name);
                partition.lower = at.checked_sub(1).and_then(lower);
                partition.upper = lower(at);
                break;
            }
        }
        Error::unavailable(partition)
    }

    /// Quarantines the partitions whose files are not there any more as they should be; how many. What was written to them is lost, so no
    /// log may be given back before somebody has looked. An error if it is the catalog's.
    pub(crate) fn look_for_files(&self) -> Result<usize> {
        let mut misplaced = self.pager.misplaced_files()?;
        // One that is being built again is not under its name yet.
        misplaced.retain(|(id, _)| self.quarantine.stage(*id).is_none_or(|stage| stage == Stage::Lifted));
        for (id, what) in &misplaced {
            if *id == CATALOG {
                return Err(Error::corrupt(format!("part/{id}.dat"), 0, "the catalog's file", what));
            }
            self.quarantine(*id, what);
        }
        Ok(misplaced.len())
    }
}

/// Whether damage is in a partition's file, as far as the error says; and not in the log, say.
fn is_about_pages(error: &Error) -> bool {
    match error.low() {
        Some(LowError::Corrupt { file, .. }) => file.starts_with("part/"),
        _ => true,
    }
}

/// Whether the system refuses a file or a part of it, for a reason that lies with these: neither a full disk nor a limit of the process.
pub(crate) fn is_unreadable(error: &Error) -> bool {
    match error.low() {
        Some(LowError::Io { action, file, source }) => {
            file.starts_with("part/")
                && matches!(*action, "read" | "open" | "read the length of")
                && is_refused(source)
        }
        _ => false,
    }
}

/// Does what may meet a page that the system refuses to read, a second time if it does: only what is refused twice is taken for damage.
pub(crate) fn twice<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    match attempt() {
        Err(e) if is_unreadable(&e) => attempt(),
        other => other,
    }
}
