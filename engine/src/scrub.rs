//! Scrubbing: looks at every page on the disk, in memory or not, before somebody needs it.
//!
//! I1. What is called bad has been looked at when no write of it can have been under way (`hamal_pager::Scrubbed`), and is in use: its bit is
//!     set, before and after. A page in use that has not been written for the first time yet (overflow runs are allocated first, and filled
//!     then) is not bad, whatever its place holds: the log says so ([`newest`]).
//! I2. Where nothing says how old a page may be, for it has not been in memory since the database was opened, the retained log does: the page
//!     must not be older than its newest record there. A stale page whose newest record is older than the retained log is not found.
//! I3. Nothing is kept from being deleted for longer than a few pages take; nothing is held while the caller hears of progress.
//! I4. The pages go past the cache, but for bitmaps and what is rebuilt.

mod newest;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_pager::space::Geometry;
use hamal_pager::{PageNo, PartitionId, Scrubbed, header};
use hamal_wal::Lsn;

use crate::engine::{Engine, PartitionHandle};
use crate::node;
use crate::report::Finding;
use crate::{Error, ErrorKind, Result};
use newest::Newest;

/// Pages between two calls of the progress callback.
const PAGES_AT_ONCE: u32 = 64;

/// Pages that the system refuses to read before the scrub ends with that error.
const MOST_IO_ERRORS: u32 = 16;

/// How far a scrub is.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ScrubProgress {
    /// Pages done.
    pub pages_done: u64,
    /// Pages to do, as far as is known.
    pub pages_total: u64,
}

/// What a scrub saw and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScrubReport {
    /// Partitions.
    pub partitions: u64,
    /// Pages looked at on the disk.
    pub pages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these, pages that memory had newer changes of.
    pub changing: u64,
    /// Bad pages that are good again, each with what was wrong.
    pub healed: Vec<Finding>,
    /// Bad pages that could not be rebuilt, each with what is wrong and what was tried; empty means sound.
    pub damaged: Vec<Finding>,
}

/// Scrubs all partitions.
pub(crate) fn run(
    engine: &Engine,
    progress: &mut dyn FnMut(ScrubProgress) -> ControlFlow<()>,
) -> Result<ScrubReport> {
    engine.check_poison()?;
    let _span = tracing::info_span!("scrub").entered();
    let newest = Newest::read(engine)?;
    let mut ids: Vec<PartitionId> = engine.open_partitions().iter().map(|h| h.partition.id()).collect();
    ids.sort_unstable();
    let total = engine.open_partitions().iter().map(|h| u64::from(h.partition.file_pages())).sum();
    let mut pass = Pass {
        engine,
        newest,
        report: ScrubReport::default(),
        image: vec![0; engine.page_bytes],
        pages_done: 0,
        pages_total: total,
        io_errors: 0,
        progress,
    };
    for id in ids {
        pass.partition(id)?;
    }
    pass.tell()?;
    let report = pass.report;
    let (pages, healed, damaged) = (report.pages, report.healed.len(), report.damaged.len());
    tracing::info!(pages, healed, damaged, "scrubbed");
    engine.counters.scrubs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Ok(report)
}

/// A scrub under way.
struct Pass<'s> {
    engine: &'s Engine,
    newest: Newest,
    report: ScrubReport,
    image: Vec<u8>,
    pages_done: u64,
    pages_total: u64,
    io_errors: u32,
    progress: &'s mut dyn FnMut(ScrubProgress) -> ControlFlow<()>,
}

impl Pass<'_> {
    fn tell(&mut self) -> Result<()> {
        let (pages_done, pages_total) = (self.pages_done, self.pages_total.max(self.pages_done));
        match (self.progress)(ScrubProgress { pages_done, pages_total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::new(ErrorKind::Cancelled, "the scrub was stopped")),
        }
    }

    fn partition(&mut self, id: PartitionId) -> Result<()> {
        let mut at = 0_u32;
        loop {
            self.tell()?;
            self.engine.pause("between pages of a scrub");
            // From here on the partition's file stays (I3).
            let kept = self.engine.graves.keep(&self.engine.lock_files());
            let Some(handle) = self.engine.opened_partition(id) else { return Ok(()) };
            if at == 0 {
                self.report.partitions += 1;
            }
            if handle.partition.is_sealed() {
                self.damaged(id, None, "the partition is quarantined".to_owned());
                return Ok(());
            }
            let end = handle.partition.file_pages();
            let next = at.saturating_add(PAGES_AT_ONCE).min(end);
            let done = self.run_of_pages(&handle, at, next);
            drop(kept);
            match done {
                // Nothing says which of its pages are in use.
                Err(e) if !matches!(e.kind(), ErrorKind::Io | ErrorKind::Poisoned | ErrorKind::Cancelled) => {
                    self.damaged(id, None, e.to_string());
                    self.pages_done += u64::from(end - at);
                    return Ok(());
                }
                other => other?,
            }
            self.pages_done += u64::from(next - at);
            at = next;
            if at >= end {
                return Ok(());
            }
        }
    }

    fn run_of_pages(&mut self, handle: &Arc<PartitionHandle>, from: u32, to: u32) -> Result<()> {
        for page in (from..to).map(PageNo) {
            if is_in_use(handle, page)? {
                self.page(handle, page)?;
            }
        }
        Ok(())
    }

    fn page(&mut self, handle: &Arc<PartitionHandle>, page: PageNo) -> Result<()> {
        let partition = &handle.partition;
        let id = partition.id();
        self.report.pages += 1;
        self.report.bytes += self.engine.page_bytes as u64;
        self.engine.counters.scrubbed_pages.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let newest = self.newest.of(id, page);
        let scrubbed = match partition.scrub_page(page, &mut self.image) {
            Ok(scrubbed) => scrubbed,
            Err(error) => return self.unreadable(id, page, error.into()),
        };
        let fault = match scrubbed {
            Scrubbed::Changing => {
                self.report.changing += 1;
                return Ok(());
            }
            Scrubbed::Rewritten(fault) => {
                self.healed(id, page, fault.to_string());
                return Ok(());
            }
            Scrubbed::Sound(lsn) if lsn >= newest => {
                self.check_structure(id, page);
                return Ok(());
            }
            Scrubbed::Sound(lsn) => {
                if !self.is_lost(handle, page)? {
                    return Ok(());
                }
                // Not if it is in memory by now: then it was read in, and may be what it should.
                if !partition.expect_page(page, newest)? {
                    return self.look_again(handle, page, newest);
                }
                format!("expected page LSN {newest} (a write has been lost), found {lsn}")
            }
            Scrubbed::Bad { is_known: false, .. } if !self.is_lost(handle, page)? => return Ok(()),
            Scrubbed::Bad { fault, .. } => {
                if newest > Lsn::NEVER {
                    partition.expect_page(page, newest)?;
                }
                fault.to_string()
            }
        };
        match partition.load(page) {
            Ok(()) => self.healed(id, page, fault),
            // Freed meanwhile: nobody wants it.
            Err(_) if !is_in_use(handle, page)? => {}
            Err(error @ hamal_storage::Error::Corrupt { .. }) => {
                self.damaged(id, Some(page), error.to_string())
            }
            Err(error) => return self.unreadable(id, page, error.into()),
        }
        Ok(())
    }

    /// The system refuses to read a page: the others may go on, unless there is something more to it.
    fn unreadable(&mut self, id: PartitionId, page: PageNo, error: Error) -> Result<()> {
        self.engine.check_poison()?;
        if self.engine.opened_partition(id).is_none_or(|handle| handle.partition.is_sealed()) {
            // Quarantined meanwhile: told with the next pages.
            return Ok(());
        }
        self.io_errors += 1;
        if self.io_errors > MOST_IO_ERRORS {
            return Err(error);
        }
        self.damaged(id, Some(page), error.to_string());
        Ok(())
    }

    /// Whether a page whose place does not hold what it should is in use, and has been written before (I1).
    fn is_lost(&self, handle: &Arc<PartitionHandle>, page: PageNo) -> Result<bool> {
        let is_new = newest::awaits_first_write(self.engine, handle.partition.id(), page)?;
        Ok(!is_new && is_in_use(handle, page)?)
    }

    /// A page that was stale on the disk has got into memory meanwhile: if as it was, somebody has read a page that lacks changes.
    fn look_again(&mut self, handle: &Arc<PartitionHandle>, page: PageNo, newest: Lsn) -> Result<()> {
        let fixed = handle.partition.fix_shared(page)?;
        let found = header::page_lsn(fixed.bytes());
        drop(fixed);
        if found < newest {
            let what = format!("expected page LSN {newest} (a write has been lost), found {found} in memory");
            self.damaged(handle.partition.id(), Some(page), what);
        }
        Ok(())
    }

    /// A node whose checksum is right, but that cannot be one, is no fault of the disk's: no copy of it is better.
    fn check_structure(&mut self, id: PartitionId, page: PageNo) {
        if matches!(header::kind(&self.image), header::kind::INNER | header::kind::LEAF)
            && let Err(damage) = node::check_page(&self.image)
        {
            self.damaged(id, Some(page), damage.to_string());
        }
    }

    fn healed(&mut self, id: PartitionId, page: PageNo, what: String) {
        tracing::warn!(partition = id.0, page = page.0, what, "bad page healed");
        self.report.healed.push(finding(id, Some(page), what));
    }

    fn damaged(&mut self, id: PartitionId, page: Option<PageNo>, what: String) {
        tracing::error!(partition = id.0, page = page.map(|p| p.0), what, "damage");
        self.report.damaged.push(finding(id, page, what));
    }
}

fn finding(id: PartitionId, page: Option<PageNo>, what: String) -> Finding {
    Finding { file: format!("part/{id}.dat"), page: page.map(|page| page.0), what }
}

/// Whether the page's bit is set, or it is one that is always in use.
fn is_in_use(handle: &PartitionHandle, page: PageNo) -> Result<bool> {
    let geometry: Geometry = handle.space.geometry();
    let index = page.0 / geometry.coverage();
    if index >= handle.space.bitmap_pages()? {
        return Ok(false);
    }
    let bitmap = handle.space.bitmap(index)?;
    Ok(page.0 == 0 || geometry.is_bitmap(page) || geometry.is_set(bitmap.bytes(), geometry.bit_of(page)))
}

impl Engine {
    /// The partition, if it is open.
    fn opened_partition(&self, id: PartitionId) -> Option<Arc<PartitionHandle>> {
        self.open_partitions().into_iter().find(|handle| handle.partition.id() == id)
    }
}
