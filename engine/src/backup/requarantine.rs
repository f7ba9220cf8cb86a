//! Partitions that a backup has as quarantined ([`super::quarantined`]), in what is restored from it: quarantined again, with what their repair
//! needs.
//!
//! I1. The log that is restored may have more of such a partition than was kept when the backup was taken: it was repaired, and used. Recovery
//!     leaves a quarantined partition's records out, so all of them up to the restored log's end are kept too; and the chains are those that
//!     are to be undone there. So a repair brings the partition to the very moment that all else is restored to.
//! I2. Between the end of what was kept and the start of the backup's log there is no record of the partition: it was settled all the time.

use std::collections::BTreeMap;
use std::sync::Arc;

use hamal_pager::PartitionId;
use hamal_storage::{Error as LowError, Storage};
use hamal_wal::Lsn;

use super::manifest::{Manifest, QuarantinedEntry};
use super::quarantined::KeptObject;
use super::target::Target;
use super::{OnProgress, Stage, tell};
use crate::Result;
use crate::ids::TxnId;
use crate::quarantine::DeferredChain;
use crate::quarantine::file::{self, State};
use crate::quarantine::kept::Writer;
use crate::record::Record;

/// All that a backup has as quarantined, being restored.
pub(super) struct Requarantine {
    history: u64,
    partitions: Vec<Restored>,
}

/// One of them.
struct Restored {
    state: State,
    /// The kept log, under the name that it has by `state`; `None`: nothing was kept.
    kept: Option<Writer>,
    /// What is to be undone: last LSN, and where undo goes on.
    chains: BTreeMap<TxnId, (Lsn, Lsn)>,
    /// The restored log has more of the partition.
    has_more: bool,
}

impl Requarantine {
    /// Writes what was kept, so far. `manifest` is that of the newest backup that is restored.
    pub(super) fn begin(
        target: &dyn Target,
        storage: &Arc<dyn Storage>,
        (backup, manifest): (&str, &Manifest),
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Requarantine> {
        let mut partitions = Vec::new();
        if !manifest.quarantined.is_empty() {
            file::make_directory(&**storage)?;
        }
        for entry in &manifest.quarantined {
            partitions.push(match KeptObject::open(target, backup, manifest, entry)? {
                Some(object) => Restored::copy(object, storage, entry, on_progress)?,
                None => Restored::lost(manifest.database_id, entry),
            });
        }
        Ok(Requarantine { history: manifest.history, partitions })
    }

    /// None at all, as where only a part is restored, and the rest is left out.
    pub(super) fn none() -> Requarantine {
        Requarantine { history: 0, partitions: Vec::new() }
    }

    /// A record of the restored log. They come in order.
    pub(super) fn see(&mut self, lsn: Lsn, payload: &[u8], record: &Record<'_>) -> Result<()> {
        self.partitions.iter_mut().try_for_each(|partition| partition.see(lsn, payload, record))
    }

    /// Says durably that they are quarantined. The restored log ends at `end`.
    pub(super) fn finish(self, storage: &Arc<dyn Storage>, end: Lsn) -> Result<()> {
        self.partitions.into_iter().try_for_each(|partition| partition.finish(storage, self.history, end))
    }
}

impl Restored {
    fn copy(
        mut object: KeptObject,
        storage: &Arc<dyn Storage>,
        entry: &QuarantinedEntry,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Restored> {
        let mut kept = Writer::create(&**storage, &file::log_name(entry.id, object.state.end))?;
        let total_bytes = entry.kept.map_or(0, |sum| sum.bytes);
        object.read(&mut |lsn, payload| kept.put(lsn, payload), &mut |bytes| {
            tell(on_progress, Stage::Log, bytes, total_bytes)
        })?;
        let chains = object.state.chains.iter().map(|c| (c.txn, (c.last_lsn, c.undo_next_lsn))).collect();
        Ok(Restored { state: object.state, kept: Some(kept), chains, has_more: false })
    }

    fn lost(database_id: u64, entry: &QuarantinedEntry) -> Restored {
        let state = State {
            database_id,
            partition: entry.id,
            since_micros: entry.since_micros,
            from: Lsn::NEVER,
            end: Lsn::NEVER,
            lifted: Lsn::NEVER,
            kept_bytes: 0,
            cause: entry.cause.clone(),
            chains: Vec::new(),
            origin: None,
            is_lost: true,
        };
        Restored { state, kept: None, chains: BTreeMap::new(), has_more: false }
    }

    fn see(&mut self, lsn: Lsn, payload: &[u8], record: &Record<'_>) -> Result<()> {
        let Some(kept) = self.kept.as_mut().filter(|_| lsn >= self.state.end) else { return Ok(()) };
        let id = self.state.partition;
        match record {
            Record::Update { txn, parts, .. } if is_of(id, parts) => {
                self.chains.insert(*txn, (lsn, lsn));
            }
            Record::Compensation { txn, parts, undo_next_lsn, .. } if is_of(id, parts) => {
                self.chains.insert(*txn, (lsn, *undo_next_lsn));
            }
            Record::Commit { txn, .. } => {
                self.has_more |= self.chains.remove(txn).is_some();
            }
            Record::End { txn, partition } if *partition == id => {
                self.has_more |= self.chains.remove(txn).is_some();
            }
            _ => {}
        }
        if record.parts().iter().any(|part| part.partition == id) {
            self.has_more = true;
            kept.put(lsn, payload)?;
        }
        Ok(())
    }

    fn finish(mut self, storage: &Arc<dyn Storage>, history: u64, end: Lsn) -> Result<()> {
        if let Some(kept) = self.kept.take() {
            self.state.kept_bytes = kept.finish()?;
        }
        if self.has_more {
            let id = self.state.partition;
            let (before, now) = (file::log_name(id, self.state.end), file::log_name(id, end));
            storage.rename(&before, &now).map_err(|e| LowError::io("rename", &before, e))?;
            self.state.end = end;
            if let Some(origin) = self.state.origin.as_mut().filter(|origin| origin.history == history) {
                origin.to = end;
            }
            let chain = |(txn, (last_lsn, undo_next_lsn))| DeferredChain { txn, last_lsn, undo_next_lsn };
            self.state.chains = self.chains.into_iter().map(chain).collect();
        }
        // Makes the kept log's name durable too.
        self.state.write(storage)
    }
}

/// Whether a transaction's record belongs to its chain in the partition.
fn is_of(id: PartitionId, parts: &[crate::record::PagePart<'_>]) -> bool {
    parts.first().is_some_and(|part| part.partition == id)
}
