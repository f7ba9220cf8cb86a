//! A hot backup: copies pages and log while everybody goes on.
//!
//! 1. Keep: no partition's file goes, and no log is cut, from here to the end.
//! 2. Take a checkpoint, which settles what is quarantined; recovery of the copy will start from it. Whatever page is copied from now on has all changes of before its BEGIN:
//!    it comes from memory, or from its file when it is not in memory, which is when the file is up to date.
//! 3. Per quarantined partition: what was kept of it ([`super::quarantined`]).
//!    One that is quarantined later, but before its pages are copied, likewise.
//! 4. Per other partition: header, bitmaps, the pages that the copied bitmaps say are in use, and those that the checkpoint lists as dirty: one that
//!    was freed while it was on its way to the disk is listed still, and redo will ask for it. Meanwhile the log that has become durable is
//!    copied too, and let go of.
//! 5. Flush the log, and copy it to there: no copied page is ahead of it.
//! 6. The manifest.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_pager::space::Geometry;
use hamal_pager::{Copied, PageNo, Partition, PartitionId, header};
use hamal_wal::Lsn;

use super::manifest::{self, BackupInfo, Manifest, PartitionEntry};
use super::object::{Header, Kind, ObjectOut, Sum};
use super::quarantined::{self, Captured};
use super::target::Target;
use super::{BackupOptions, OnProgress, Progress, Stage, tell};
use crate::catalog::{self, CATALOG};
use crate::checkpoint::Effort;
use crate::engine::{Engine, PartitionHandle};
use crate::quarantine::Stage as Quarantined;
use crate::record::Record;
use crate::retention::Hold;
use crate::space::HEADER_PAGE;
use crate::{Error, ErrorKind, Result};

/// Pages copied between two looks at the log and at the caller.
const PAGES_AT_ONCE: u32 = 64;
/// Log copied at once, bytes.
const LOG_BYTES_AT_ONCE: u64 = 256 << 10;

/// Copies of a partition, at most, that goes offline and comes back meanwhile.
const ATTEMPTS: u32 = 3;

/// Takes a backup. What it has written is removed again if it fails.
pub(crate) fn run(
    engine: &Engine,
    target: &dyn Target,
    options: &BackupOptions,
    on_progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<BackupInfo> {
    engine.check_poison()?;
    engine.check_resolved()?;
    let _span = tracing::info_span!("backup").entered();
    let started_micros = engine.storage.now_micros();
    let (hold, _files) = {
        let locked = engine.lock_files();
        (engine.retention.hold(engine.log.oldest()), engine.graves.keep(&locked))
    };
    engine.take_checkpoint(Effort::Fuzzy)?;
    let mut held = engine.quarantine.held();
    if held.iter().any(|held| held.stage == Quarantined::Open) {
        // Found since, or only just sealed.
        engine.take_checkpoint(Effort::Fuzzy)?;
        held = engine.quarantine.held();
    }
    let (master, needed_from) = {
        let state = engine.lock(&engine.checkpoint, "a checkpoint");
        (state.master.current().clone(), state.needed_from)
    };
    hold.advance(needed_from);
    let quarantined = quarantined::capture(engine, master.database_id, held)?;
    let mut manifest = Manifest {
        database_id: master.database_id,
        history: master.history,
        page_bytes: engine.page_bytes,
        log_segment_bytes: master.log_segment_bytes,
        checkpoint_lsn: master.checkpoint_lsn,
        log_lsn: needed_from,
        end_lsn: Lsn::NEVER,
        started_micros,
        end_micros: 0,
        base: options.since.clone().unwrap_or_default(),
        log: Sum::default(),
        partitions: Vec::new(),
        quarantined: Vec::new(),
    };
    let base = base(target, &manifest)?;
    let listed = listed_pages(engine, manifest.checkpoint_lsn)?;
    let id = manifest::new_id(manifest.checkpoint_lsn, engine.storage.random_u64());
    let mut written = Vec::new();
    let copied = Copy {
        engine,
        target,
        id: &id,
        base: base.as_ref(),
        since: Lsn::NEVER,
        quarantined: &quarantined,
        listed: &listed,
        written: &mut written,
        hold: &hold,
        log: None,
        log_at: needed_from,
        done_pages: 0,
        total_pages: 0,
        on_progress,
    }
    .all(&mut manifest);
    if let Err(error) = copied {
        for name in written {
            // Without a manifest it is no backup: if even that fails, it is only in the way of the disk's space.
            let _left = target.remove(&name);
        }
        return Err(error);
    }
    let info = manifest.info(&id);
    tracing::info!(?info, "backed up");
    Ok(info)
}

/// What an incremental backup is based on; `None`: a full one.
fn base(target: &dyn Target, manifest: &Manifest) -> Result<Option<Manifest>> {
    if manifest.base.is_empty() {
        return Ok(None);
    }
    // All of the chain must be there.
    let base = manifest::chain(target, &manifest.base)?.pop().map(|(_, base)| base);
    let base = base.filter(|base| {
        base.database_id == manifest.database_id
            && base.history == manifest.history
            && base.checkpoint_lsn <= manifest.checkpoint_lsn
    });
    base.map(Some).ok_or_else(|| {
        Error::invalid(format!(
            "the backup {} is of another database, or of before this one was restored: take a full backup",
            manifest.base
        ))
    })
}

/// The pages in the dirty page table of the checkpoint that begins there, and is whole.
fn listed_pages(engine: &Engine, begin: Lsn) -> Result<BTreeSet<(PartitionId, PageNo)>> {
    let (mut listed, mut is_whole) = (BTreeSet::new(), false);
    engine.log.each_durable(begin, engine.log.durable(), &mut |frame| -> Result<_> {
        match Record::decode(frame.payload)? {
            Record::CheckpointPages { partition, pages } => {
                listed.extend(pages.into_iter().map(|(page, _)| (partition, page)));
            }
            Record::EndCheckpoint { begin_lsn, .. } if begin_lsn == begin => {
                is_whole = true;
                return Ok(ControlFlow::Break(()));
            }
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if is_whole {
        return Ok(listed);
    }
    Err(Error::corrupt("the log", begin.0, "a whole checkpoint", "one that does not end"))
}

fn header(manifest: &Manifest, kind: Kind, argument: u64) -> Header {
    let Manifest { database_id, history, started_micros: micros, .. } = *manifest;
    Header { kind, database_id, history, argument, micros }
}

/// A backup under way.
struct Copy<'c> {
    engine: &'c Engine,
    target: &'c dyn Target,
    id: &'c str,
    /// Of an incremental backup.
    base: Option<&'c Manifest>,
    /// From which page LSN on pages of the partition at hand are copied. [`Lsn::NEVER`]: all are, for there is no base that has them.
    since: Lsn,
    /// Partitions that were quarantined when it began.
    quarantined: &'c [Captured],
    /// Pages that the checkpoint lists as dirty.
    listed: &'c BTreeSet<(PartitionId, PageNo)>,
    /// Objects that are there.
    written: &'c mut Vec<String>,
    hold: &'c Hold,
    log: Option<ObjectOut>,
    /// The log is copied up to here.
    log_at: Lsn,
    done_pages: u64,
    total_pages: u64,
    on_progress: &'c mut OnProgress<'c>,
}

impl Copy<'_> {
    fn all(mut self, manifest: &mut Manifest) -> Result<()> {
        let log_name = manifest::log_name(self.id);
        self.log =
            Some(ObjectOut::create(self.target, &log_name, &header(manifest, Kind::Log, self.log_at.0))?);
        for captured in self.quarantined {
            self.without_pages(captured, manifest)?;
        }
        let mut handles = self.engine.open_partitions();
        // One that has been repaired meanwhile stays out: the checkpoint does not know its losers.
        handles.retain(|h| self.quarantined.iter().all(|captured| captured.id != h.partition.id()));
        self.total_pages = handles.iter().map(|h| u64::from(h.partition.file_pages())).sum();
        for handle in handles {
            self.engine.pause("between partitions of a backup");
            self.with_pages(handle, manifest)?;
        }
        manifest.quarantined.sort_by_key(|entry| entry.id);

        let flushed = self.engine.log.flush();
        self.engine.durable_moved();
        flushed?;
        manifest.end_lsn = self.engine.log.durable();
        // Read after the end: every commit below has taken its time before.
        manifest.end_micros = self.engine.storage.now_micros();
        self.copy_log(manifest.end_lsn)?;
        if let Some(log) = self.log.take() {
            manifest.log = log.finish()?;
            self.written.push(log_name);
        }
        // A write of pages that failed meanwhile leaves unknown what was read from files.
        self.engine.check_poison()?;
        manifest.write(self.target, self.id)
    }

    /// A partition in use; or one that was when the backup began.
    fn with_pages(&mut self, mut handle: Arc<PartitionHandle>, manifest: &mut Manifest) -> Result<()> {
        let id = handle.partition.id();
        let name = manifest::pages_name(self.id, id);
        let base = self.base.filter(|base| base.entry(id).is_some());
        self.since = base.map_or(Lsn::NEVER, |base| base.checkpoint_lsn);
        for _ in 0..ATTEMPTS {
            let header = header(manifest, Kind::Pages, u64::from(id.0));
            let object = ObjectOut::create(self.target, &name, &header)?;
            let copied = self.partition(&handle, object);
            if !handle.partition.is_sealed() {
                if let Some((entry, object)) = copied? {
                    let sum = object.finish()?;
                    self.written.push(name);
                    manifest.partitions.push(PartitionEntry { sum, ..entry });
                }
                return Ok(());
            }
            // Quarantined meanwhile: what is read past the cache is not up to date any more, or damaged. Settled late is settled well, for
            // whatever the checkpoint lists of it the kept log has.
            self.engine.take_checkpoint(Effort::Fuzzy)?;
            let mut held = self.engine.quarantine.held();
            held.retain(|held| held.id == id);
            if let Some(captured) = quarantined::capture(self.engine, manifest.database_id, held)?.pop() {
                return self.without_pages(&captured, manifest);
            }
            // Repaired meanwhile, with losers that were undone behind the checkpoint: any other partition.
            handle = self.engine.partition(id)?;
        }
        Err(self.engine.unavailable(id).context("it went offline again and again while it was backed up"))
    }

    /// A quarantined partition.
    fn without_pages(&mut self, captured: &Captured, manifest: &mut Manifest) -> Result<()> {
        let header = header(manifest, Kind::Quarantine, u64::from(captured.id.0));
        let (target, id) = (self.target, self.id);
        let entry = captured.write(target, id, &header, &mut || self.go_on())?;
        if entry.kept.is_some() {
            self.written.push(manifest::kept_name(id, captured.id));
        }
        manifest.quarantined.push(entry);
        Ok(())
    }

    /// `None` if the partition is being made: its log is all there is of it.
    fn partition(
        &mut self,
        handle: &PartitionHandle,
        mut object: ObjectOut,
    ) -> Result<Option<(PartitionEntry, ObjectOut)>> {
        let (partition, id) = (&handle.partition, handle.partition.id());
        let geometry = Geometry::new(self.engine.page_bytes);
        let (mut image, mut bitmap) = (vec![0; self.engine.page_bytes], vec![0; self.engine.page_bytes]);
        if !copy(partition, HEADER_PAGE, &mut image)? {
            // A partition that no table has yet gets its first record when we have the checkpoint already.
            if !catalog::is_named(&self.engine.partition(CATALOG)?.tree(), partition.id())? {
                return Ok(None);
            }
            if !copy(partition, HEADER_PAGE, &mut image)? {
                return Err(damaged(partition, HEADER_PAGE, "a partition header", "a page never written"));
            }
        }
        let mut pages = 0;
        for index in 0..handle.space.bitmap_pages()? {
            let first = index * geometry.coverage();
            let bitmap_page = PageNo(first + 1);
            if !copy(partition, bitmap_page, &mut bitmap)? || header::kind(&bitmap) != header::kind::BITMAP {
                return Err(damaged(partition, bitmap_page, "a bitmap", header::kind(&bitmap)));
            }
            let covered = (id, PageNo(first))..(id, PageNo(first + geometry.coverage()));
            let listed: BTreeSet<PageNo> = self.listed.range(covered).map(|(_, page)| *page).collect();
            let to_last_listed = listed.last().map_or(0, |page| page.0 - first + 1);
            let last = geometry.bits_to_last_set(&bitmap).max(to_last_listed).min(geometry.coverage());
            for bit in 0..last {
                let page = PageNo(first + bit);
                if bit % PAGES_AT_ONCE == 0 {
                    self.go_on()?;
                }
                self.done_pages += 1;
                let is_listed = listed.contains(&page);
                if page == bitmap_page {
                    pages += u32::from(self.put(&mut object, &bitmap, is_listed)?);
                } else if (page == HEADER_PAGE || is_listed || geometry.is_set(&bitmap, bit))
                    && copy(partition, page, &mut image)?
                {
                    pages += u32::from(self.put(&mut object, &image, is_listed)?);
                }
            }
        }
        self.tell()?;
        let entry = PartitionEntry {
            id: partition.id(),
            file_pages: partition.file_pages(),
            pages,
            sum: Sum::default(),
        };
        Ok(Some((entry, object)))
    }

    /// Whether the page went into the backup: an incremental one leaves out what its base has. A free page the base may not have.
    fn put(&self, object: &mut ObjectOut, image: &[u8], is_listed: bool) -> Result<bool> {
        let is_new = is_listed || header::page_lsn(image) >= self.since;
        if is_new {
            object.put(image)?;
        }
        Ok(is_new)
    }

    /// Between pages: the log, so that it need not be kept, and whether to go on.
    fn go_on(&mut self) -> Result<()> {
        self.engine.pause("between pages of a backup");
        let durable = self.engine.log.durable();
        if durable.0 - self.log_at.0 >= LOG_BYTES_AT_ONCE {
            self.copy_log(durable)?;
        }
        self.tell()
    }

    fn copy_log(&mut self, to: Lsn) -> Result<()> {
        let Some(object) = &mut self.log else { return Ok(()) };
        let mut bytes = Vec::new();
        while self.log_at < to {
            let count = (to.0 - self.log_at.0).min(LOG_BYTES_AT_ONCE);
            bytes.resize(count as usize, 0);
            self.engine.log.read_durable(self.log_at, &mut bytes)?;
            object.put(&bytes)?;
            self.log_at.0 += count;
        }
        // Only where a record starts: it may become the oldest LSN of a master record.
        self.hold.advance(to);
        Ok(())
    }

    fn tell(&mut self) -> Result<()> {
        let page_bytes = self.engine.page_bytes as u64;
        let (done, total) = (self.done_pages * page_bytes, self.total_pages * page_bytes);
        tell(self.on_progress, Stage::Pages, done, total)
            .map_err(|e: Error| if e.kind() == ErrorKind::Cancelled { e.context("backup") } else { e })
    }
}

/// Copies a page; whether there was one: what is allocated is not written at once.
fn copy(partition: &Partition, page: PageNo, image: &mut [u8]) -> Result<bool> {
    Ok(partition.copy_page(page, image)? == Copied::Page && header::page_lsn(image) != Lsn::NEVER)
}

fn damaged(partition: &Partition, page: PageNo, expected: &str, found: impl std::fmt::Display) -> Error {
    let offset = u64::from(page.0) * partition.page_bytes() as u64;
    Error::corrupt(format!("part/{}.dat", partition.id()), offset, expected, found)
}
