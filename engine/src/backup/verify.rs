//! Verifying a backup, and the archived log behind it, without restoring.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use hamal_pager::PartitionId;
use hamal_wal::{FrameStream, Lsn};

use super::logs::LogBytes;
use super::manifest::{self, Manifest, QuarantinedEntry};
use super::quarantined::{KeptObject, QuarantinedPartition};
use super::target::Target;
use super::{OnProgress, Progress, Stage, pages, tell};
use crate::record::Record;
use crate::{Error, Result};

/// What a verified backup is good for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupVerification {
    /// The backup.
    pub backup: String,
    /// That one and those it is based on.
    pub backups: u64,
    /// Pages checked.
    pub pages: u64,
    /// Log records checked, the archive's behind the backup too.
    pub records: u64,
    /// The earliest LSN it can be restored to.
    pub from_lsn: u64,
    /// The latest LSN it can be restored to.
    pub to_lsn: u64,
    /// The latest time it can be restored to, microseconds since 1970.
    pub to_micros: u64,
    /// The archive misses log from this LSN on, and has more behind it, which this backup is too old for.
    pub gap_lsn: Option<u64>,
    /// Partitions that will be quarantined in what is restored from it: it has what their repair needs beside an earlier backup, as far as
    /// that is not lost, and none of their pages.
    pub quarantined: Vec<QuarantinedPartition>,
}

/// Proves that a backup can be restored: every object of it, and of those it is based on, is there and is what the manifest says; every page
/// has its checksum and its place, and is of before the log's end; what was kept of quarantined partitions is whole; every record of the log, to the end of what is archived behind it, follows
/// the one before, and can be decoded; the checkpoint is whole. `Corrupt` naming the object; `NotFound` if there is no such backup.
/// O(backups and log), without writing anything.
pub fn verify(
    target: &dyn Target,
    backup: &str,
    on_progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<BackupVerification> {
    let chain = manifest::chain(target, backup)?;
    let mut report = BackupVerification {
        backup: backup.to_owned(),
        backups: chain.len() as u64,
        ..BackupVerification::default()
    };
    let total_bytes = chain.iter().flat_map(|(_, manifest)| manifest.sums());
    let total_bytes = total_bytes.fold(0, |total: u64, sum| total.saturating_add(sum.bytes));
    let mut done_bytes = 0;
    // The partitions that the backup before has.
    let mut known: BTreeSet<PartitionId> = BTreeSet::new();
    for (id, manifest) in &chain {
        for entry in &manifest.partitions {
            let start = done_bytes;
            let mut progress = |bytes| tell(on_progress, Stage::Pages, start + bytes, total_bytes);
            pages::read(target, id, manifest, entry, &mut |_, _| Ok(()), &mut progress)?;
            report.pages += u64::from(entry.pages);
            done_bytes += entry.sum.bytes;
            // Where a partition appears, or appears again, it must have all of its pages, the first one above all.
            if !known.contains(&entry.id) && entry.pages == 0 {
                return Err(Error::corrupt(
                    manifest::pages_name(id, entry.id),
                    0,
                    "a partition's pages",
                    "none",
                ));
            }
        }
        known = manifest.partitions.iter().map(|entry| entry.id).collect();
        for entry in &manifest.quarantined {
            let start = done_bytes;
            let mut progress = |bytes| tell(on_progress, Stage::Pages, start + bytes, total_bytes);
            check_kept(target, (id, manifest), entry, &mut progress)?;
            done_bytes += entry.kept.map_or(0, |sum| sum.bytes);
        }
    }
    if let Some((id, newest)) = chain.last() {
        report.quarantined = newest.quarantined.iter().map(QuarantinedEntry::tell).collect();
        check_log(target, (id, newest), &mut report, on_progress)?;
    }
    Ok(report)
}

/// What was kept of a quarantined partition: every record.
fn check_kept(
    target: &dyn Target,
    (id, manifest): (&str, &Manifest),
    entry: &QuarantinedEntry,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let Some(mut object) = KeptObject::open(target, id, manifest, entry)? else { return Ok(()) };
    let name = manifest::kept_name(id, entry.id);
    let mut visit = |lsn: Lsn, payload: &[u8]| {
        let record = Record::decode(payload).map_err(|e| e.context(format!("{name}: log record {lsn}")))?;
        if record.parts().iter().any(|part| part.partition == entry.id) {
            return Ok(());
        }
        let expected = format!("records of partition {}", entry.id);
        Err(Error::corrupt(&name, 0, expected, format!("record {lsn}, of others alone")))
    };
    object.read(&mut visit, progress)
}

fn check_log(
    target: &dyn Target,
    (id, newest): (&str, &Manifest),
    report: &mut BackupVerification,
    on_progress: &mut OnProgress<'_>,
) -> Result<()> {
    let mut log = LogBytes::open(target, id, newest)?;
    let mut frames = FrameStream::new(newest.log_lsn);
    let mut bytes = Vec::new();
    let mut checkpoint = Checkpoint::Awaited;
    let mut done_bytes = 0;
    while log.next(&mut bytes)? {
        let source = log.source();
        frames.push(&bytes);
        while let Some((frame, _)) = frames.next_frame(&source)? {
            let lsn = frame.lsn;
            let record = Record::decode(frame.payload)
                .map_err(|e| e.context(format!("{source}: log record {lsn}")))?;
            checkpoint.see(newest, lsn, &record);
            report.records += 1;
        }
        done_bytes += bytes.len() as u64;
        tell(on_progress, Stage::Log, done_bytes, log.total_bytes())?;
    }
    if frames.position() < newest.end_lsn {
        let found = frames.position();
        return Err(Error::corrupt(
            manifest::log_name(id),
            0,
            format!("records to {}", newest.end_lsn),
            found,
        ));
    }
    if checkpoint != Checkpoint::Whole {
        let expected = format!("the checkpoint at {}, begun and ended", newest.checkpoint_lsn);
        return Err(Error::corrupt(manifest::log_name(id), 0, expected, format!("{checkpoint:?}")));
    }
    report.from_lsn = newest.end_lsn.0;
    report.to_lsn = frames.position().0;
    report.to_micros = log.micros();
    report.gap_lsn = log.gap().map(|lsn| lsn.0);
    Ok(())
}

/// How much has been seen of the checkpoint that recovery will start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checkpoint {
    Awaited,
    Begun,
    Whole,
}

impl Checkpoint {
    fn see(&mut self, manifest: &Manifest, lsn: Lsn, record: &Record<'_>) {
        match record {
            Record::BeginCheckpoint { database_id }
                if lsn == manifest.checkpoint_lsn && *database_id == manifest.database_id =>
            {
                *self = Checkpoint::Begun;
            }
            Record::EndCheckpoint { begin_lsn, .. }
                if *begin_lsn == manifest.checkpoint_lsn
                    && *self == Checkpoint::Begun
                    && lsn < manifest.end_lsn =>
            {
                *self = Checkpoint::Whole;
            }
            _ => {}
        }
    }
}
