//! Where a repair has the partition's records from: the log of a backup and the archive behind it, then what was kept aside.

use hamal_pager::PartitionId;
use hamal_wal::{FrameStream, Lsn};

use crate::backup::logs::LogBytes;
use crate::backup::manifest::{self, Manifest};
use crate::backup::{OnProgress, Stage, Target, tell};
use crate::quarantine::file::{Origin, State};
use crate::quarantine::kept::KeptLog;
use crate::record::{PageParts, Record};
use crate::{Error, ErrorKind, Result};

/// Records between two calls of the progress callback.
const PROGRESS_RECORDS: u64 = 1024;

/// Which backups' log is this database's, and up to where: its own, and those of the database that it was restored from when the partition
/// was quarantined already.
pub(crate) struct Limits {
    database_id: u64,
    history: u64,
    end: Lsn,
    origin: Option<Origin>,
}

impl Limits {
    /// `origin`: id and history of the database.
    pub(super) fn new((database_id, history): (u64, u64), kept: &KeptLog) -> Limits {
        Limits { database_id, history, end: kept.end, origin: kept.origin }
    }

    /// Those of a partition that a backup has as quarantined, in what is restored from that.
    pub(crate) fn of_restored(backup: &Manifest, state: &State) -> Limits {
        let Manifest { database_id, history, .. } = *backup;
        Limits { database_id, history, end: state.end, origin: state.origin }
    }

    /// Whether the partition can be built from the backup, if the log from there on is archived. One that was made since has its making there.
    pub(crate) fn is_base(&self, backup: &Manifest, partition: PartitionId) -> bool {
        self.of(backup).is_some_and(|limit| backup.end_lsn <= limit)
            && backup.quarantined(partition).is_none()
    }

    /// Up to where the log of a backup, and that archived behind it, can be used; `None`: not at all.
    pub(super) fn of(&self, manifest: &Manifest) -> Option<Lsn> {
        let own = (self.history == manifest.history).then_some(self.end);
        let of_origin = self.origin.filter(|origin| origin.history == manifest.history);
        own.or(of_origin.map(|origin| origin.to.min(self.end)))
            .filter(|_| self.database_id == manifest.database_id)
    }
}

/// A backup that the partition can be built from.
pub(super) struct Source<'t> {
    pub(super) target: &'t dyn Target,
    pub(super) backup: String,
    /// It and those it is based on, the full one first.
    pub(super) chain: Vec<(String, Manifest)>,
    /// Records from here on are not to be taken from it.
    limit: Lsn,
}

impl<'t> Source<'t> {
    /// Opens a backup of the database. `InvalidArgument` if it is another's, or has none of the partition's pages because that was
    /// quarantined already.
    pub(super) fn open(
        target: &'t dyn Target,
        backup: &str,
        partition: PartitionId,
        limits: &Limits,
    ) -> Result<Source<'t>> {
        let chain = manifest::chain(target, backup)?;
        let mut source = Source { target, backup: backup.to_owned(), chain, limit: Lsn::NEVER };
        let newest = source.newest()?;
        let limit = limits.of(newest).ok_or_else(|| {
            Error::invalid(format!(
                "the backup {backup} is of another database, or of before this one was restored"
            ))
        })?;
        newest.check_has(backup, partition)?;
        // This database's partition has not changed since it was quarantined. In the other, it may have.
        if newest.end_lsn > limit && newest.history != limits.history {
            let what = format!(
                "the backup {backup}, which ends at LSN {}, is of behind LSN {limit}, where this database and that one part",
                newest.end_lsn
            );
            return Err(Error::invalid(what));
        }
        source.limit = limit;
        Ok(source)
    }

    pub(super) fn newest(&self) -> Result<&Manifest> {
        let newest = self.chain.last().map(|(_, manifest)| manifest);
        newest.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no backup {}", self.backup)))
    }
}

/// What concerns one partition in a record of the log.
pub(super) enum Seen<'r> {
    /// Changes of its pages.
    Parts(PageParts<'r>),
    /// Some of its pages, as the checkpoint lists them that the backup starts from.
    Listed(Record<'r>),
}

/// All records there are of a partition, from where `source` begins, or what was kept, to where nobody changed it any more.
pub(super) struct Records<'s, 't> {
    pub(super) id: PartitionId,
    pub(super) source: Option<&'s Source<'t>>,
    pub(super) kept: &'s KeptLog,
}

impl Records<'_, '_> {
    /// Shows them in order. `Corrupt` if log is missing between the source and what was kept.
    pub(super) fn each(
        &self,
        visit: &mut dyn FnMut(Lsn, Seen<'_>) -> Result<()>,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<()> {
        let mut at = self.kept.from;
        if let Some(source) = self.source {
            at = self.each_of_source(source, visit, on_progress)?;
        }
        if at < self.kept.from.min(self.kept.end) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "log is missing: what backup and archive have ends at {at}, what was kept begins at {}",
                    self.kept.from
                ),
            ));
        }
        let mut records = self.kept.records(at);
        let mut count = 0;
        while let Some((lsn, payload)) = records.next()? {
            let record = Record::decode(payload).map_err(|e| e.context(format!("kept log record {lsn}")))?;
            self.show(lsn, record, false, visit)?;
            count += 1;
            if count % PROGRESS_RECORDS == 0 {
                tell(on_progress, Stage::Log, lsn.0 - self.kept.from.0, self.kept.end.0 - self.kept.from.0)?;
            }
        }
        Ok(())
    }

    /// Returns the LSN of the first record that there is none of.
    fn each_of_source(
        &self,
        source: &Source<'_>,
        visit: &mut dyn FnMut(Lsn, Seen<'_>) -> Result<()>,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Lsn> {
        let manifest = source.newest()?;
        let mut log = LogBytes::open(source.target, &source.backup, manifest)?;
        let mut frames = FrameStream::new(manifest.log_lsn);
        let (mut bytes, mut done_bytes) = (Vec::new(), 0);
        // The base's checkpoint is whole before the backup's log ends; later ones say nothing of its pages.
        let mut in_checkpoint = false;
        while log.next(&mut bytes)? {
            let name = log.source();
            frames.push(&bytes);
            while let Some((frame, _)) = frames.next_frame(&name)? {
                let lsn = frame.lsn;
                if lsn >= source.limit {
                    return Ok(source.limit);
                }
                let record = Record::decode(frame.payload)
                    .map_err(|e| e.context(format!("{name}: log record {lsn}")))?;
                match record {
                    Record::BeginCheckpoint { .. } => in_checkpoint = lsn == manifest.checkpoint_lsn,
                    Record::EndCheckpoint { .. } => in_checkpoint = false,
                    record => self.show(lsn, record, in_checkpoint, visit)?,
                }
            }
            done_bytes += bytes.len() as u64;
            tell(on_progress, Stage::Log, done_bytes, log.total_bytes())?;
        }
        if frames.position() < manifest.end_lsn {
            let found = frames.position();
            let name = manifest::log_name(&source.backup);
            return Err(Error::corrupt(name, 0, format!("records to {}", manifest.end_lsn), found));
        }
        Ok(frames.position())
    }

    fn show(
        &self,
        lsn: Lsn,
        record: Record<'_>,
        in_checkpoint: bool,
        visit: &mut dyn FnMut(Lsn, Seen<'_>) -> Result<()>,
    ) -> Result<()> {
        match record {
            Record::Update { mut parts, .. }
            | Record::Compensation { mut parts, .. }
            | Record::Structure { mut parts } => {
                parts.retain(|part| part.partition == self.id);
                if parts.is_empty() { Ok(()) } else { visit(lsn, Seen::Parts(parts)) }
            }
            Record::CheckpointPages { partition, .. } if partition == self.id && in_checkpoint => {
                visit(lsn, Seen::Listed(record))
            }
            _ => Ok(()),
        }
    }
}
