//! Rebuilding a page whose copy on the disk is bad, at the moment it is read in.
//!
//! ```text
//!   LOADING --read--> sound, and not older than known --> in memory
//!                 \-> damaged, misplaced, missing or stale --[`Healer`]--> rebuilt --area, sync, in place, sync--> in memory, clean
//!                                                                     \-> `Corrupt`: what was found, and why it could not be rebuilt
//! ```
//!
//! What makes a page newest again is no business of the pager: the [`Healer`] knows the log.
//!
//! I1. Who heals a page owns it (LOADING), and holds no latch, no epoch guard and none of the cache's locks while the healer works: it may
//!     do I/O. Whoever else wants the page waits for that one, as for any page being read in.
//! I2. A rebuilt page is written at once, through the doublewrite area, and only then in memory, clean. So nobody has to remember what it
//!     was rebuilt from: until its copy in place is durable, nothing is overwritten or given back that another attempt after a crash would
//!     need ([`Healing::Rebuilt`]). In particular its new copy does not go to the slot of the area where an older copy is.
//! I3. Only a rebuilt page that is the newest is ever written: a sound but older one would be taken for the page after a crash.
//! I4. In a poisoned cache nothing is written: the page is rebuilt in memory alone, again each time it is read.

use std::fmt::Debug;
use std::sync::atomic::Ordering;

use hamal_storage::{Error, Result, write_all_at};
use hamal_wal::Lsn;

use crate::core::Core;
use crate::dirty::left_at;
use crate::header;
use crate::{PageNo, Partition, PartitionId};

/// A page that the file does not have as it should.
#[derive(Debug)]
pub struct BadPage<'b> {
    /// Which partition.
    pub partition: PartitionId,
    /// Which page.
    pub page: PageNo,
    /// What is wrong with it.
    pub fault: &'b Error,
    /// It is known to have been changed last at this LSN; [`Lsn::NEVER`]: nothing is known.
    pub known_lsn: Lsn,
    /// Sound copies of the page, of any age: what the file has, if that is one; what the doublewrite area has.
    pub copies: &'b [PageCopy],
}

/// A sound copy of a page.
#[derive(Clone, Debug)]
pub struct PageCopy {
    /// Where it was found.
    pub found: CopyPlace,
    /// The page, with its header.
    pub image: Vec<u8>,
}

/// Where a copy of a page was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyPlace {
    /// In its own place: it is older than it should be.
    InPlace,
    /// In the doublewrite area.
    Doublewrite,
}

/// What a [`Healer`] came to.
#[derive(Debug)]
pub enum Healing {
    /// The page is rebuilt, and as new as any record says. What is in here is dropped once the page is durable in its place: until then
    /// what it was rebuilt from must stay.
    Rebuilt(Box<dyn Debug + Send>),
    /// It cannot be rebuilt: why, in words.
    Impossible(String),
}

/// Rebuilds pages. Whoever keeps a log can.
pub trait Healer: Debug + Send + Sync {
    /// Makes `out`, which is all zeros, the page as of its newest record, page LSN included; what the pager itself writes into a header
    /// (checksum, number, partition, database) may be left out. The caller holds no latch, but the page is being read in: whoever is called
    /// here must not wait for anybody who may wait for this page, nor for log room. An error is one that trying again may get over.
    fn rebuild(&self, bad: &BadPage<'_>, out: &mut [u8]) -> Result<Healing>;
}

impl Partition {
    /// Puts the page into `bytes`, which hold what was read, unless that is sound. `fault`: what is wrong with it.
    #[cold]
    pub(crate) fn heal(&self, page: PageNo, known_lsn: Lsn, bytes: &mut [u8], fault: Error) -> Result<()> {
        let (core, id) = (self.core(), self.id());
        let (Some(healer), Error::Corrupt { .. }) = (core.healer.get(), &fault) else { return Err(fault) };
        Core::count(&core.counters.damaged, 1);
        let mut copies = Vec::new();
        if self.identity(page).check(bytes, self.file_name(), self.offset(page)).is_ok() {
            copies.push(PageCopy { found: CopyPlace::InPlace, image: bytes.to_vec() });
        }
        copies.extend(core.copy_in_area(self.identity(page)));
        bytes.fill(0);
        let bad = BadPage { partition: id, page, fault: &fault, known_lsn, copies: &copies };
        let healed = healer.rebuild(&bad, bytes).and_then(|healing| match healing {
            Healing::Rebuilt(kept) => {
                self.identity(page).seal(bytes);
                let written = core.write_rebuilt(self, page, bytes);
                drop(kept);
                written
            }
            Healing::Impossible(why) => Err(not_rebuilt(&fault, &why)),
        });
        let counter = if healed.is_ok() { &core.counters.healed } else { &core.counters.unhealed };
        Core::count(counter, 1);
        healed
    }

    /// `Corrupt` if the page is not the one that left memory last.
    pub(crate) fn check_age(&self, page: PageNo, bytes: &[u8], known_lsn: Lsn) -> Result<()> {
        let found = header::page_lsn(bytes);
        if found >= known_lsn {
            return Ok(());
        }
        Err(Error::Corrupt {
            file: self.file_name().to_owned(),
            offset: self.offset(page) + 24,
            expected: format!("page LSN {known_lsn} of page {page} (a write has been lost)"),
            found: found.to_string(),
        })
    }

    /// The page was changed at `page_lsn`: if it is not in memory, what is read in must not be older. Only for pages that have been written
    /// back since, and are in use. Whether that is known now. The caller holds no latch.
    pub fn expect_page(&self, page: PageNo, page_lsn: Lsn) -> Result<bool> {
        if page.0 >= self.file_pages() {
            return Ok(false);
        }
        let at = self.place_or_map(page)?;
        if !at.state().begin_load() {
            return Ok(false);
        }
        let newest = left_at(at.rec_lsn()).max(page_lsn);
        crate::dirty::note_left(at.rec_lsn(), newest);
        at.state().abandon_load();
        self.core().loads.wake(at.key());
        Ok(true)
    }

    /// Reads the page in anew, because what is in memory is older than `page_lsn`, although nothing was left out: it is rebuilt. For redo,
    /// which has found that a write was lost, and has discarded the page. The caller holds no latch.
    pub fn read_anew(&self, page: PageNo, page_lsn: Lsn) -> Result<()> {
        while !self.expect_page(page, page_lsn)? {
            // It is leaving, or somebody has read it in meanwhile and met what it should not be.
            self.core().hurry_leaving()?;
            match self.try_exclusive(page) {
                crate::Attempt::Fixed(fixed) if header::page_lsn(fixed.bytes()) >= page_lsn => return Ok(()),
                crate::Attempt::Fixed(fixed) => fixed.discard(),
                _ => std::thread::yield_now(),
            }
        }
        self.load(page)
    }
}

/// What is told of a page that stays damaged.
fn not_rebuilt(fault: &Error, why: &str) -> Error {
    match fault {
        Error::Corrupt { file, offset, expected, found } => Error::Corrupt {
            file: file.clone(),
            offset: *offset,
            expected: expected.clone(),
            found: format!("{found}; it could not be rebuilt: {why}"),
        },
        other => Error::Invalid(format!("{other}; {why}")),
    }
}

impl Core {
    /// Writes a page that its caller owns and that is not dirty (I2).
    pub(crate) fn write_rebuilt(&self, partition: &Partition, page: PageNo, image: &[u8]) -> Result<()> {
        if self.check_poison().is_err() {
            return Ok(()); // I4
        }
        let mut batch = self.batch.lock();
        // After this the area is of use to nobody but torn pages of before the last open.
        self.finish_in_place(&mut batch)?;
        let slot = self.doublewrite.slot_beside(partition.identity(page), self.page_bytes);
        let failed = |poisons: bool, e: Error| {
            if poisons {
                self.poison(&e);
            }
            e
        };
        let area = self.doublewrite.write_slot(image, slot);
        area.map_err(|e| failed(!e.is_no_space(), e))?;
        self.doublewrite.sync().map_err(|e| failed(true, e))?;
        let in_place = write_all_at(partition.file(), image, partition.offset(page))
            .map_err(|e| Error::io("write", partition.file_name(), e));
        in_place.map_err(|e| failed(!e.is_no_space(), e))?;
        let synced = partition.file().sync_data().map_err(|e| Error::io("sync", partition.file_name(), e));
        synced.map_err(|e| failed(true, e))?;
        self.counters.pages_written.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
