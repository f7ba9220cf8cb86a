//! Building a partition's file again, beside everything else: a copy of its pages, and all records since.
//!
//! Two passes over the records, as in recovery: the first finds which pages may miss what (a page that was freed is not replayed, hazard
//! H21) and whether all records are there; the second repeats history. Pages go through the cache like any others, in a partition that
//! nobody else has.
//!
//! I1. The copies are no newer than where the records end, and each has all changes of before the records that concern it: what a backup
//!     promises of its pages, and a file of all pages that were clean when the first of the kept records was written.
//! I2. Checkpoints do not list the pages being built ([`crate::quarantine`]): if the machine stops they are nothing.

use std::sync::Arc;

use hamal_pager::{PageNo, PartitionId};
use hamal_storage::{Error as LowError, File, is_refused, read_exact_at, write_all_at};
use hamal_wal::Lsn;

use super::sources::{Limits, Records, Seen, Source};
use super::{Bounds, RepairBase, RepairReport, leave, prove};
use crate::backup::{OnProgress, Stage, Target, manifest, pages, tell};
use crate::engine::{Engine, PartitionHandle};
use crate::master::Master;
use crate::quarantine::Settled;
use crate::quarantine::file;
use crate::record::PagePart;
use crate::recovery::analysis::{Analysis, Nobody};
use crate::recovery::redo::apply::{Outcome, Step, in_redo, pages_with, redo_part};
use crate::{Error, ErrorKind, Result};

/// Bytes of a file copied at once.
const COPY_BYTES: usize = 1 << 20;

/// What is to be repaired, and with what.
pub(super) struct Job<'j> {
    pub(super) engine: &'j Engine,
    pub(super) id: PartitionId,
    pub(super) target: Option<&'j dyn Target>,
    pub(super) settled: &'j Settled,
    pub(super) bounds: &'j Bounds,
    pub(super) limits: Limits,
}

impl Job<'_> {
    /// Builds the file, from the first of the bases that works. It is whole, synced, and not in its place.
    pub(super) fn rebuild(
        &self,
        backup: Option<&str>,
        report: &mut RepairReport,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Arc<PartitionHandle>> {
        let (mut kind, mut reasons) = (ErrorKind::NotFound, Vec::new());
        for base in self.bases(backup)? {
            tracing::info!(?base, "trying to repair");
            match self.build_from(&base, report, on_progress) {
                Ok(handle) => {
                    report.base = base;
                    return Ok(handle);
                }
                // Another may do: this one is damaged, or does not reach far enough.
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::InvalidArgument
                    ) =>
                {
                    tracing::warn!(error = %e, ?base, "not to be repaired from this");
                    if reasons.is_empty() {
                        kind = e.kind();
                    }
                    reasons.push(match base {
                        RepairBase::Backup(id) => format!("from backup {id}: {e}"),
                        RepairBase::File => format!("from its own file: {e}"),
                        RepairBase::Log => format!("from the log alone: {e}"),
                    });
                }
                Err(e) => return Err(e),
            }
        }
        let reasons = reasons.join("; ");
        Err(Error::new(kind, format!("partition {} cannot be repaired: {reasons}", self.id)))
    }

    /// What it could be built from, the best first.
    fn bases(&self, backup: Option<&str>) -> Result<Vec<RepairBase>> {
        if let Some(backup) = backup {
            return Ok(vec![RepairBase::Backup(backup.to_owned())]);
        }
        let mut bases = Vec::new();
        if let Some(target) = self.target {
            let mut backups = Vec::new();
            for id in manifest::ids(target)? {
                // One that cannot be read is none.
                let Ok(Some(manifest)) = manifest::read(target, &id) else { continue };
                if self.limits.is_base(&manifest, self.id) {
                    backups.push((manifest.end_lsn, id));
                }
            }
            backups.sort_unstable();
            bases.extend(backups.into_iter().rev().map(|(_, id)| RepairBase::Backup(id)));
        }
        bases.extend([RepairBase::File, RepairBase::Log]);
        Ok(bases)
    }

    fn build_from(
        &self,
        base: &RepairBase,
        report: &mut RepairReport,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Arc<PartitionHandle>> {
        let source = match (base, self.target) {
            (RepairBase::Backup(id), Some(target)) => Some(Source::open(target, id, self.id, &self.limits)?),
            (RepairBase::Backup(_), None) => {
                return Err(Error::invalid("there is no target to read a backup from"));
            }
            _ => None,
        };
        let records = Records { id: self.id, source: source.as_ref(), kept: &self.settled.kept };
        let dirty = self.analyse(&records, on_progress)?;
        let storage = &*self.engine.storage;
        let name = file::building_name(self.id);
        file::make_directory(storage)?;
        file::remove(storage, &name)?;
        let new = storage.create(&name).map_err(|e| LowError::io("create", &name, e))?;
        let mut build = || {
            report.pages = match (&source, base) {
                (Some(source), _) => self.copy_backup(source, &*new, &name, on_progress)?,
                (None, RepairBase::File) => self.copy_file(&*new, &name, on_progress)?,
                (None, _) => 0,
            };
            let partition = self.engine.pager.adopt_partition(self.id, Arc::clone(&new))?;
            let handle = self.engine.handle_instead(self.id, partition)?;
            self.redo(&handle, &records, &dirty, report, on_progress)?;
            self.engine.pause("between redo and write-back of a repair");
            self.engine.pager.write_back_partition(self.id)?;
            // What needed no redo is not in the cache.
            new.sync_data().map_err(|e| LowError::io("sync", &name, e))?;
            handle.space.check_header()?;
            report.rows = prove(self.engine, &handle, self.bounds, self.settled.chains.is_empty())?;
            Ok(handle)
        };
        let built = build();
        if built.is_err() {
            leave(self.engine, self.id);
            self.engine.remove_leftover(&name);
        }
        built
    }

    /// Which pages may miss what; `Corrupt` if a record is missing or damaged.
    fn analyse(&self, records: &Records<'_, '_>, on_progress: &mut OnProgress<'_>) -> Result<Analysis> {
        let engine = self.engine;
        let begin = match records.source {
            Some(source) => source.newest()?.checkpoint_lsn,
            None => Lsn::NEVER,
        };
        let master = {
            let state = engine.lock(&engine.checkpoint, "a checkpoint");
            Master { checkpoint_lsn: begin, ..state.master.current().clone() }
        };
        let mut analysis = Analysis::new(&master);
        let mut see = |lsn: Lsn, seen: Seen<'_>| match seen {
            // What is older concerns pages that the checkpoint lists.
            Seen::Parts(_) if lsn < begin => Ok(()),
            Seen::Parts(parts) => {
                for part in parts {
                    let cleared = part.change.cleared_bits();
                    analysis.see_part(lsn, (part.partition, part.page), cleared, &mut Nobody);
                }
                Ok(())
            }
            Seen::Listed(record) => analysis.see(lsn, begin, &master, &record, &mut Nobody),
        };
        records.each(&mut see, on_progress)?;
        Ok(analysis)
    }

    fn copy_backup(
        &self,
        source: &Source<'_>,
        new: &dyn File,
        name: &str,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<u64> {
        let page_bytes = self.engine.page_bytes as u64;
        let newest = source.newest()?;
        if newest.page_bytes as u64 != page_bytes {
            return Err(Error::invalid("the backup has pages of another size"));
        }
        let entries = manifest::pages_of(&source.chain, self.id);
        // A partition made later has its making in the log.
        let Some((.., last)) = entries.last() else { return Ok(0) };
        new.allocate(0, u64::from(last.file_pages) * page_bytes)
            .map_err(|e| LowError::io("reserve space for", name, e))?;
        let (mut pages, mut done_bytes) = (0, 0);
        let total_bytes = entries.iter().fold(0, |sum: u64, (.., entry)| sum.saturating_add(entry.sum.bytes));
        for (id, manifest, entry) in entries {
            let write = &mut |first: PageNo, images: &[u8]| {
                let offset = u64::from(first.0) * page_bytes;
                Ok(write_all_at(new, images, offset).map_err(|e| LowError::io("write", name, e))?)
            };
            let mut progress = |bytes| tell(on_progress, Stage::Pages, done_bytes + bytes, total_bytes);
            pages::read(source.target, id, manifest, entry, write, &mut progress)?;
            pages += u64::from(entry.pages);
            done_bytes += entry.sum.bytes;
        }
        Ok(pages)
    }

    /// The damaged file as it is: what is not right in it is found when it is used.
    fn copy_file(&self, new: &dyn File, name: &str, on_progress: &mut OnProgress<'_>) -> Result<u64> {
        let old_name = format!("part/{}.dat", self.id);
        let old = match self.engine.storage.open(&old_name) {
            Err(e) if is_refused(&e) => {
                return Err(Error::corrupt(&old_name, 0, "the partition's file", e));
            }
            old => old.map_err(|e| LowError::io("open", &old_name, e))?,
        };
        let page_bytes = self.engine.page_bytes as u64;
        let len = old.len().map_err(|e| LowError::io("read the length of", &old_name, e))?;
        let len = len - len % page_bytes;
        if len > 0 {
            new.allocate(0, len).map_err(|e| LowError::io("reserve space for", name, e))?;
        }
        let (mut at, mut bytes) = (0, Vec::new());
        while at < len {
            bytes.resize((len - at).min(COPY_BYTES as u64) as usize, 0);
            match read_exact_at(&*old, &mut bytes, at) {
                Err(e) if is_refused(&e) => {
                    return Err(Error::corrupt(&old_name, at, "bytes that can be read", e));
                }
                read => read.map_err(|e| LowError::io("read", &old_name, e))?,
            }
            write_all_at(new, &bytes, at).map_err(|e| LowError::io("write", name, e))?;
            at += bytes.len() as u64;
            tell(on_progress, Stage::Pages, at, len)?;
        }
        Ok(len / page_bytes)
    }

    /// Repeats history.
    fn redo(
        &self,
        handle: &PartitionHandle,
        records: &Records<'_, '_>,
        dirty: &Analysis,
        report: &mut RepairReport,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<()> {
        report.redone = 0;
        let partition = &handle.partition;
        let redo = |lsn: Lsn, part: &PagePart<'_>| {
            if part.change.is_blind() {
                partition.ensure_file_pages(pages_with(self.engine, partition, part.page)?)?;
            }
            redo_part(partition, Step::of(lsn, part))
        };
        let mut visit = |lsn: Lsn, seen: Seen<'_>| {
            let Seen::Parts(parts) = seen else { return Ok(()) };
            for part in &parts {
                if dirty.rec_lsn(self.id, part.page).is_none_or(|rec_lsn| lsn < rec_lsn) {
                    continue;
                }
                let outcome = redo(lsn, part).map_err(|e| in_redo(e, lsn, self.id, part.page))?;
                report.redone += u64::from(outcome == Outcome::Redone);
            }
            Ok(())
        };
        records.each(&mut visit, on_progress)
    }
}
