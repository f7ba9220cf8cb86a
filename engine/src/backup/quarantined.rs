//! What a backup has of partitions that are quarantined ([`crate::quarantine`]): not their pages, but what their repair needs.
//!
//! The object of one is its state file and its kept log, as docs/file-format.md section 11 has them, one behind the other. They are all that the
//! database itself has; so whoever restores the backup has the partition as it was: out of use, and to be repaired from an earlier backup.
//!
//! I1. Only a settled partition is in a backup so. What is taken of it is taken behind the backup's checkpoint: whatever that lists of the
//!     partition, and whatever the backup's log has of it up to the kept log's end, the kept log has too, and the state's chains.
//! I2. The partition's pages are not in the backup, even if it is repaired before the backup ends: if it was settled before the checkpoint, that
//!     does not list its losers.

use std::sync::Arc;

use hamal_pager::PartitionId;
use hamal_wal::Lsn;

use super::manifest::{self, Manifest, QuarantinedEntry};
use super::object::{BLOCK_BYTES, Header, Kind, ObjectIn, ObjectOut, Sum};
use super::target::Target;
use crate::engine::Engine;
use crate::quarantine::file::{HEAD_BYTES, Origin, State, short_cause};
use crate::quarantine::kept::{KeptLog, RecordStream, put_record};
use crate::quarantine::{Held, Stage};
use crate::{Error, ErrorKind, Result};

/// A partition that was quarantined when a backup was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuarantinedPartition {
    /// Its number.
    pub partition: u32,
    /// Its table; `None`: no table had it.
    pub table: Option<String>,
    /// What was wrong.
    pub cause: String,
    /// Since when, microseconds since 1970.
    pub since_micros: u64,
    /// What a repair needs beside an earlier backup is in this one. `false`: the database had lost it.
    pub is_repairable: bool,
}

impl QuarantinedEntry {
    /// For people.
    pub(super) fn tell(&self) -> QuarantinedPartition {
        QuarantinedPartition {
            partition: self.id.0,
            table: Some(self.table.clone()).filter(|table| !table.is_empty()),
            cause: self.cause.clone(),
            since_micros: self.since_micros,
            is_repairable: self.kept.is_some(),
        }
    }
}

/// A quarantined partition that goes into a backup.
pub(super) struct Captured {
    pub(super) id: PartitionId,
    since_micros: u64,
    table: String,
    cause: String,
    kept: Option<(State, Arc<KeptLog>)>,
}

/// All that are quarantined now, to be copied. `Conflict` if one is in between: what to do is said.
pub(super) fn capture(engine: &Engine, database_id: u64, held: Vec<Held>) -> Result<Vec<Captured>> {
    held.into_iter().map(|held| capture_one(engine, database_id, held)).collect()
}

fn capture_one(engine: &Engine, database_id: u64, held: Held) -> Result<Captured> {
    let Held { id, stage, cause, since_micros, settled } = held;
    let conflict = |what: String| Err(Error::new(ErrorKind::Conflict, what));
    match stage {
        Stage::Settled => {}
        Stage::Open => {
            return conflict(format!(
                "partition {id} is quarantined ({cause}), and transactions are open that have changed it: a backup can be taken once they \
                 have ended"
            ));
        }
        Stage::Lifted => {
            return conflict(format!(
                "partition {id} is being repaired: a backup can be taken once that is done"
            ));
        }
    }
    let kept = match settled {
        Some(settled) => match check(&settled.kept) {
            Ok(()) => {
                let kept = settled.kept;
                let state = State {
                    database_id,
                    partition: id,
                    since_micros,
                    from: kept.from,
                    end: kept.end,
                    lifted: Lsn::NEVER,
                    kept_bytes: kept.bytes(),
                    cause: cause.clone(),
                    chains: settled.chains,
                    origin: kept.origin,
                    is_lost: false,
                };
                Some((state, kept))
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tracing::warn!(%error, partition = id.0, "what was kept of a quarantined partition is damaged: a backup goes without");
                None
            }
            Err(error) => return Err(error),
        },
        None => None,
    };
    let unavailable = engine.unavailable(id);
    let table = unavailable.unavailable_partition().and_then(|partition| partition.table.clone());
    let cause = short_cause(&cause).to_owned();
    Ok(Captured { id, since_micros, table: table.unwrap_or_default(), cause, kept })
}

/// `Corrupt` if a record is.
fn check(kept: &KeptLog) -> Result<()> {
    let mut records = kept.records(Lsn::NEVER);
    while records.next()?.is_some() {}
    Ok(())
}

impl Captured {
    /// Writes its object, if there is anything to write, and returns what the manifest says of it. `go_on` is called between pieces.
    pub(super) fn write(
        &self,
        target: &dyn Target,
        backup: &str,
        header: &Header,
        go_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<QuarantinedEntry> {
        let mut entry = QuarantinedEntry {
            id: self.id,
            since_micros: self.since_micros,
            table: self.table.clone(),
            cause: self.cause.clone(),
            kept: None,
        };
        let Some((state, kept)) = &self.kept else { return Ok(entry) };
        let mut object = ObjectOut::create(target, &manifest::kept_name(backup, self.id), header)?;
        put_all(&mut object, &state.encode())?;
        let mut records = kept.records(Lsn::NEVER);
        let mut bytes = Vec::new();
        while let Some((lsn, payload)) = records.next()? {
            put_record(&mut bytes, lsn, payload);
            if bytes.len() >= BLOCK_BYTES {
                put_all(&mut object, &bytes)?;
                bytes.clear();
                go_on()?;
            }
        }
        put_all(&mut object, &bytes)?;
        entry.kept = Some(object.finish()?);
        Ok(entry)
    }
}

fn put_all(object: &mut ObjectOut, bytes: &[u8]) -> Result<()> {
    bytes.chunks(BLOCK_BYTES).try_for_each(|piece| object.put(piece))
}

/// A quarantined partition's object, being read.
pub(super) struct KeptObject {
    object: ObjectIn,
    records: RecordStream,
    sum: Sum,
    /// What it says of itself; its origin is the backup's, where it has no other.
    pub(super) state: State,
}

impl KeptObject {
    /// Opens it; `None`: nothing was kept. `Corrupt` for anything that does not fit the manifest.
    pub(super) fn open(
        target: &dyn Target,
        backup: &str,
        manifest: &Manifest,
        entry: &QuarantinedEntry,
    ) -> Result<Option<KeptObject>> {
        let Some(sum) = entry.kept else { return Ok(None) };
        let name = manifest::kept_name(backup, entry.id);
        let mut object = ObjectIn::open(target, &name, Kind::Quarantine)?;
        object.check_origin(manifest.database_id, manifest.history)?;
        if object.header.argument != u64::from(entry.id.0) {
            let expected = format!("partition {}", entry.id);
            return Err(Error::corrupt(&name, 40, expected, object.header.argument));
        }
        let mut bytes = Vec::new();
        // Grows by what has been read and checked.
        let end = loop {
            if let Some(head) = bytes.first_chunk::<HEAD_BYTES>() {
                let end = State::encoded_bytes(*head, &name)?;
                if bytes.len() >= end {
                    break end;
                }
            }
            let Some(block) = object.next_block()? else {
                return Err(Error::corrupt(
                    &name,
                    0,
                    "a partition's state",
                    format!("{} bytes", bytes.len()),
                ));
            };
            bytes.extend_from_slice(block);
        };
        let mut state = State::decode(&bytes[..end], &name).map_err(|e| e.context(&name))?;
        let is_ours = (state.partition, state.database_id) == (entry.id, manifest.database_id);
        if !is_ours || state.lifted != Lsn::NEVER || state.is_lost || state.end > manifest.end_lsn {
            let expected =
                format!("the settled state of partition {} up to LSN {}", entry.id, manifest.end_lsn);
            return Err(Error::corrupt(&name, 0, expected, format!("{state:?}")));
        }
        state.origin.get_or_insert(Origin { history: manifest.history, to: state.end });
        let mut records = RecordStream::new(&name, &state);
        records.push(&bytes[end..]);
        Ok(Some(KeptObject { object, records, sum, state }))
    }

    /// Hands all records to `visit`, in order. `Corrupt` for anything that is not what was written.
    pub(super) fn read(
        &mut self,
        visit: &mut dyn FnMut(Lsn, &[u8]) -> Result<()>,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        loop {
            while let Some((lsn, payload)) = self.records.next()? {
                visit(lsn, payload)?;
            }
            let Some(block) = self.object.next_block()? else { break };
            self.records.push(block);
            progress(self.object.read_bytes())?;
        }
        self.records.finish()?;
        self.object.check_sum(self.sum)
    }
}
