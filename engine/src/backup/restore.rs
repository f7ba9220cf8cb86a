//! Restoring a database into a new directory: its files as a crash at the wanted moment would have left them. Opening it then recovers it
//! in the ordinary way (docs/recovery.md): redo makes the copied pages one state, undo takes back what had not committed.
//!
//! | step | writes | if it stops here |
//! |---|---|---|
//! | mark | `RESTORING`, durable | no database: opening refuses it; restoring again begins anew |
//! | clear | what an interrupted restore left goes | same |
//! | pages | `part/`, from the full backup to the newest incremental one, synced | same |
//! | log | `wal/`, up to the wanted moment, synced; what that has of partitions that the backup has as quarantined, with what was kept of them, to `quarantine/` | same |
//! | quarantines | the state files in `quarantine/`, synced | same |
//! | page cache | the doublewrite area, empty, synced: opening may begin to redo pages at once | same |
//! | master | both copies, synced | same |
//! | unmark | `RESTORING` goes | a database, as after a crash |
//!
//! I1. Whatever is not an empty directory or an interrupted restore is left untouched.
//! I2. The restored database has a history of its own: from its first record on its log is another one than that of the database it is
//!     a copy of.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use hamal_pager::{PageNo, PartitionId};
use hamal_storage::{Error as LowError, Lock, OsStorage, Storage, write_all_at};
use hamal_wal::{FrameStream, LogBuilder, Lsn};

use super::logs::{LogBytes, gap_error};
use super::manifest::{self, Manifest, QuarantinedEntry};
use super::quarantined::QuarantinedPartition;
use super::requarantine::Requarantine;
use super::target::Target;
use super::{OnProgress, Progress, Stage, pages, tell};
use crate::master::{Master, MasterFiles, NAMES, RESTORING};
use crate::quarantine::file;
use crate::record::Record;
use crate::{Error, ErrorKind, Result, recovery};

/// A moment to restore to. Transactions whose commit record lies at or before it are in, all others are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestorePoint {
    /// All there is.
    #[default]
    End,
    /// A position in the log, for instance of [`crate::Database::restore_point`].
    Lsn(u64),
    /// Wall-clock time, microseconds since 1970. Commits are taken in the order of the log up to the first that is of later: if the clock
    /// was set back meanwhile, that is the first time it was this late.
    Micros(u64),
}

/// What to restore.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    to: RestorePoint,
    backup: Option<String>,
    is_whole: bool,
    /// Partitions that must not be quarantined in it.
    needs: BTreeSet<PartitionId>,
}

impl RestoreOptions {
    /// All there is, from the newest backup on.
    pub fn new() -> RestoreOptions {
        RestoreOptions::default()
    }

    /// To this moment.
    #[must_use]
    pub fn to(mut self, point: RestorePoint) -> RestoreOptions {
        self.to = point;
        self
    }

    /// From a backup in which no partition is quarantined: the newest such one. Restoring may take much more log, and time, than restoring
    /// from a newer one and repairing those partitions then.
    #[must_use]
    pub fn whole(mut self) -> RestoreOptions {
        self.is_whole = true;
        self
    }

    /// From a backup in which these partitions are not quarantined.
    pub(crate) fn needs(mut self, partitions: impl IntoIterator<Item = PartitionId>) -> RestoreOptions {
        self.needs.extend(partitions);
        self
    }

    /// `InvalidArgument` if a partition is quarantined in the backup that must not be.
    fn check_has(&self, backup: &str, manifest: &Manifest) -> Result<()> {
        let mut quarantined = manifest.quarantined.iter().map(|entry| entry.id);
        let missing = quarantined.find(|id| self.is_whole || self.needs.contains(id));
        missing.map_or(Ok(()), |id| manifest.check_has(backup, id))
    }

    /// The moment.
    pub(super) fn point(&self) -> RestorePoint {
        self.to
    }

    /// From this backup, rather than from the newest that reaches the moment soon enough.
    #[must_use]
    pub fn backup(mut self, id: impl Into<String>) -> RestoreOptions {
        self.backup = Some(id.into());
        self
    }
}

/// What was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreReport {
    /// The backup it started from.
    pub backup: String,
    /// That one and those it is based on.
    pub backups: u64,
    /// Partitions.
    pub partitions: u64,
    /// Pages written.
    pub pages: u64,
    /// Log written, bytes: what opening the database will replay.
    pub log_bytes: u64,
    /// Where the restored log ends.
    pub end_lsn: u64,
    /// Time of the last commit that is in, among those whose records are in the log; 0: there is none.
    pub last_commit_micros: u64,
    /// Partitions that are quarantined in what was restored, for the backup has none of their pages: to be repaired from an earlier one.
    pub quarantined: Vec<QuarantinedPartition>,
}

/// Restores a database into a directory that is missing or empty, or holds an interrupted restore. `AlreadyExists` for any other; `NotFound`
/// if no backup reaches the moment. Partitions that are quarantined in the backup are so in what is restored, with what their repair needs
/// ([`RestoreReport::quarantined`], [`crate::Database::repair`]); all else is whole. `Corrupt` naming the object that is damaged or missing.
pub fn restore(
    target: &dyn Target,
    path: impl AsRef<Path>,
    options: &RestoreOptions,
    on_progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<RestoreReport> {
    let path = path.as_ref();
    restore_on(target, Arc::new(OsStorage::new(path)), options, on_progress)
        .map_err(|e| e.context(format!("restoring into {}", path.display())))
}

/// As [`restore`], on any [`Storage`].
#[expect(clippy::needless_pass_by_value, reason = "like all that work on a storage")]
pub fn restore_on(
    target: &dyn Target,
    storage: Arc<dyn Storage>,
    options: &RestoreOptions,
    on_progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<RestoreReport> {
    let _span = tracing::info_span!("restore").entered();
    check_free(&*storage)?;
    let backup = choose(target, options, None)?;
    let chain = manifest::chain(target, &backup)?;
    let Some((id, newest)) = chain.last() else {
        return Err(Error::new(ErrorKind::NotFound, "there is no backup"));
    };
    let _lock = mark(&storage)?;
    clear(&*storage)?;
    let mut report =
        RestoreReport { backup: id.clone(), backups: chain.len() as u64, ..RestoreReport::default() };
    write_partitions(target, &storage, &chain, &|_| true, &mut report, on_progress)?;
    let mut quarantine = Requarantine::begin(target, &storage, (id, newest), on_progress)?;
    report.quarantined = newest.quarantined.iter().map(QuarantinedEntry::tell).collect();
    let source = (id.as_str(), newest);
    let log = write_log(target, &storage, source, options.to, &mut quarantine, &mut report, on_progress)?;
    quarantine.finish(&storage, log.end)?;
    recovery::prepare(&*storage, newest.page_bytes, newest.database_id)?;
    write_master(&storage, newest, &log)?;
    storage.remove(RESTORING).map_err(|e| LowError::io("remove", RESTORING, e))?;
    sync_directory(&*storage, "")?;
    tracing::info!(?report, "restored");
    Ok(report)
}

/// Writes both copies of the master record: the last that makes a database of what has been written.
pub(super) fn write_master(storage: &Arc<dyn Storage>, newest: &Manifest, log: &WrittenLog) -> Result<()> {
    let master = Master {
        sequence: 0,
        database_id: newest.database_id,
        page_bytes: newest.page_bytes,
        incarnation: log.incarnation,
        log_segment_bytes: newest.log_segment_bytes,
        checkpoint_lsn: newest.checkpoint_lsn,
        attested: log.end,
        oldest_lsn: newest.log_lsn,
        restored_to: log.end,
        history: storage.random_u64() | 1,
    };
    MasterFiles::open(&**storage, master.clone())?.write(master)?;
    sync_directory(&**storage, "")
}

/// The newest backup from which the moment can be reached; of this database alone, where its id and history are given: `InvalidArgument`
/// if there are only others'.
pub(super) fn choose(
    target: &dyn Target,
    options: &RestoreOptions,
    origin: Option<(u64, u64)>,
) -> Result<String> {
    let is_ours =
        |manifest: &Manifest| origin.is_none_or(|origin| (manifest.database_id, manifest.history) == origin);
    let reaches = |manifest: &Manifest| match options.to {
        RestorePoint::End => true,
        RestorePoint::Lsn(lsn) => manifest.end_lsn.0 <= lsn.saturating_add(1),
        RestorePoint::Micros(micros) => manifest.end_micros <= micros,
    };
    if let Some(id) = &options.backup {
        let manifest = manifest::must_read(target, id)?;
        if !is_ours(&manifest) {
            return Err(of_another(&format!("the backup {id} is")));
        }
        options.check_has(id, &manifest)?;
        if reaches(&manifest) {
            return Ok(id.clone());
        }
        return Err(Error::invalid(format!(
            "the backup {id} is of a later moment: it ends at LSN {}, time {}",
            manifest.end_lsn, manifest.end_micros
        )));
    }
    let mut newest: Option<(Lsn, u64, String)> = None;
    let mut earliest: Option<(Lsn, u64)> = None;
    let mut has_others = false;
    let mut passed_over = None;
    for id in manifest::ids(target)? {
        let Some(manifest) = manifest::read(target, &id)? else { continue };
        if !is_ours(&manifest) {
            has_others = true;
            continue;
        }
        let place = (manifest.end_lsn, manifest.end_micros);
        if earliest.is_none_or(|known| place < known) {
            earliest = Some(place);
        }
        // Of two histories the one that was written to last counts.
        let is_newer = newest.as_ref().is_none_or(|(lsn, micros, _)| (*micros, *lsn) < (place.1, place.0));
        if is_newer && reaches(&manifest) {
            match options.check_has(&id, &manifest) {
                Ok(()) => newest = Some((place.0, place.1, id)),
                Err(error) => passed_over = Some(error),
            }
        }
    }
    if let (None, Some(error)) = (&newest, passed_over) {
        let what = format!("no backup of before the moment has all partitions that are wanted: {error}");
        return Err(Error::new(ErrorKind::NotFound, what));
    }
    match (newest, earliest) {
        (Some((_, _, id)), _) => Ok(id),
        (None, Some((lsn, micros))) => Err(Error::new(
            ErrorKind::NotFound,
            format!("no backup is of so early a moment: the first ends at LSN {lsn}, time {micros}"),
        )),
        (None, None) if has_others => Err(of_another("all backups in the target are")),
        (None, None) => Err(Error::new(ErrorKind::NotFound, "there is no backup in the target")),
    }
}

fn of_another(which: &str) -> Error {
    Error::invalid(format!("{which} of another database, or of before this one was restored"))
}

/// Refuses what must not be touched (I1).
fn check_free(storage: &dyn Storage) -> Result<()> {
    let names = match storage.list("") {
        Ok(names) => names,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(LowError::io("list", "the directory", e).into()),
    };
    if names.iter().any(|name| name == RESTORING) || names.iter().all(|name| name == "LOCK") {
        return Ok(());
    }
    let what = if names.iter().any(|name| NAMES.contains(&name.as_str())) {
        "there is a database in this directory already"
    } else {
        "the directory is not empty"
    };
    Err(Error::new(ErrorKind::AlreadyExists, what))
}

/// Marks the directory as one that is no database yet.
fn mark(storage: &Arc<dyn Storage>) -> Result<Box<dyn Lock>> {
    storage.create_directory("").map_err(|e| LowError::io("create", "the database directory", e))?;
    let lock = storage.lock("LOCK").map_err(|e| {
        if e.kind() == std::io::ErrorKind::WouldBlock {
            Error::new(ErrorKind::Locked, "another process works in this directory")
        } else {
            LowError::io("lock", "LOCK", e).into()
        }
    })?;
    // Again: another may have made a database before we had the lock.
    check_free(&**storage)?;
    match storage.create(RESTORING) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(LowError::io("create", RESTORING, e).into());
        }
        _ => sync_directory(&**storage, "")?,
    }
    Ok(lock)
}

/// Removes what an interrupted restore has left.
fn clear(storage: &dyn Storage) -> Result<()> {
    let remove = |name: &str| match storage.remove(name) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(LowError::io("remove", name, e)),
        _ => Ok(()),
    };
    for name in NAMES.into_iter().chain([hamal_pager::DOUBLEWRITE]) {
        remove(name)?;
    }
    sync_directory(storage, "")?;
    for directory in ["wal", "part"] {
        storage.create_directory(directory).map_err(|e| LowError::io("create", directory, e))?;
        for name in storage.list(directory).map_err(|e| LowError::io("list", directory, e))? {
            remove(&format!("{directory}/{name}"))?;
        }
        sync_directory(storage, directory)?;
    }
    for name in file::names(storage)? {
        remove(&format!("{}/{name}", file::DIRECTORY))?;
    }
    sync_directory(storage, "")
}

fn sync_directory(storage: &dyn Storage, name: &str) -> Result<()> {
    let shown = if name.is_empty() { "the database directory" } else { name };
    Ok(storage.sync_directory(name).map_err(|e| LowError::io("sync", shown, e))?)
}

/// Writes the files of the partitions that are wanted and that the newest backup has.
pub(super) fn write_partitions(
    target: &dyn Target,
    storage: &Arc<dyn Storage>,
    chain: &[(String, Manifest)],
    is_wanted: &dyn Fn(PartitionId) -> bool,
    report: &mut RestoreReport,
    on_progress: &mut OnProgress<'_>,
) -> Result<()> {
    let Some((_, newest)) = chain.last() else { return Ok(()) };
    let wanted = || newest.partitions.iter().filter(|entry| is_wanted(entry.id));
    let all = wanted().flat_map(|entry| manifest::pages_of(chain, entry.id));
    let total_bytes = all.fold(0, |sum: u64, (.., entry)| sum.saturating_add(entry.sum.bytes));
    let mut done_bytes = 0;
    for last in wanted() {
        let name = format!("part/{}.dat", last.id);
        let file = storage.create(&name).map_err(|e| LowError::io("create", &name, e))?;
        let file_bytes = u64::from(last.file_pages) * newest.page_bytes as u64;
        file.allocate(0, file_bytes).map_err(|e| LowError::io("reserve space for", &name, e))?;
        for (id, manifest, entry) in manifest::pages_of(chain, last.id) {
            let write = &mut |first: PageNo, images: &[u8]| {
                let offset = u64::from(first.0) * newest.page_bytes as u64;
                Ok(write_all_at(&*file, images, offset).map_err(|e| LowError::io("write", &name, e))?)
            };
            let start = done_bytes;
            let mut progress = |bytes| tell(on_progress, Stage::Pages, start + bytes, total_bytes);
            pages::read(target, id, manifest, entry, write, &mut progress)?;
            report.pages += u64::from(entry.pages);
            done_bytes += entry.sum.bytes;
        }
        file.sync_data().map_err(|e| LowError::io("sync", &name, e))?;
        report.partitions += 1;
    }
    sync_directory(&**storage, "part")
}

/// What the restored log is like.
pub(super) struct WrittenLog {
    end: Lsn,
    /// The highest incarnation that has written to it.
    incarnation: u32,
}

/// Writes the log up to the wanted moment.
pub(super) fn write_log(
    target: &dyn Target,
    storage: &Arc<dyn Storage>,
    (id, newest): (&str, &Manifest),
    to: RestorePoint,
    quarantine: &mut Requarantine,
    report: &mut RestoreReport,
    on_progress: &mut OnProgress<'_>,
) -> Result<WrittenLog> {
    let mut log = LogBytes::open(target, id, newest)?;
    let mut builder = LogBuilder::new(Arc::clone(storage), newest.log_segment_bytes, newest.log_lsn)?;
    let mut frames = FrameStream::new(newest.log_lsn);
    let mut bytes = Vec::new();
    // Only what lies wholly behind the backup may be left out.
    let mut stopped = None;
    let mut incarnation = 0;
    let mut done_bytes = 0;
    while stopped.is_none() && log.next(&mut bytes)? {
        let source = log.source();
        frames.push(&bytes);
        while let Some((frame, raw)) = frames.next_frame(&source)? {
            let lsn = frame.lsn;
            let record = Record::decode(frame.payload)
                .map_err(|e| e.context(format!("{source}: log record {lsn}")))?;
            let is_later = match (to, &record) {
                (RestorePoint::Lsn(last), _) => lsn.0 > last,
                (RestorePoint::Micros(last), Record::Commit { micros, .. }) => *micros > last,
                _ => false,
            };
            if is_later {
                stopped = Some(lsn);
                break;
            }
            if let Record::Commit { micros, .. } = record {
                report.last_commit_micros = report.last_commit_micros.max(micros);
            }
            incarnation = frame.incarnation;
            quarantine.see(lsn, frame.payload, &record)?;
            builder.append(raw)?;
        }
        done_bytes += bytes.len() as u64;
        tell(on_progress, Stage::Log, done_bytes, log.total_bytes())?;
    }
    // A record that is archived in part only is not there yet.
    let end = stopped.unwrap_or_else(|| frames.position());
    if end < newest.end_lsn {
        return Err(Error::invalid(format!(
            "the moment lies within the backup {id}, which can be restored to LSN {} at the earliest",
            newest.end_lsn
        )));
    }
    if stopped.is_none() {
        check_reached(&log, to, end)?;
    }
    builder.finish()?;
    report.log_bytes = end.0 - newest.log_lsn.0;
    report.end_lsn = end.0;
    Ok(WrittenLog { end, incarnation })
}

/// The log has come to its end before the wanted moment: whether that is what was wanted.
fn check_reached(log: &LogBytes<'_>, to: RestorePoint, end: Lsn) -> Result<()> {
    if let Some(gap) = log.gap() {
        return Err(gap_error(log, gap));
    }
    match to {
        RestorePoint::End => Ok(()),
        RestorePoint::Lsn(lsn) if lsn < end.0 => Ok(()),
        RestorePoint::Micros(micros) if micros <= log.micros() => Ok(()),
        RestorePoint::Lsn(_) | RestorePoint::Micros(_) => Err(Error::new(
            ErrorKind::NotFound,
            format!("the archived log does not reach so far: it ends at LSN {end}, time {}", log.micros()),
        )),
    }
}
