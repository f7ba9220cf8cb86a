//! The doublewrite area: a copy of every page about to be written in place, so that a write torn by a power cut can
//! be mended. docs/file-format.md section 7.
//!
//! The file is a plain concatenation of page images; each image's header names its page. It is made, full of zeros and
//! synced, before its first use, so that a batch needs no space.
//!
//! I1. A batch's copies are durable here before its first page is written in place, and are overwritten only after its
//!     in-place writes are durable (hazard H13). `write_back` sees to both.
//! I2. A copy is believed only if its checksum and database id are right, its kind is one there is, it is the latest such
//!     copy of its page, and its LSN is within the log; and it is used only where the page in place is damaged.
//! I3. At open a copy is put in place only where redo replays the page from the copy's LSN on, and would again after another crash, for the
//!     checkpoint says so. Otherwise the page was clean, and has rotted since: an old copy in its place would be taken for the page if the
//!     machine stopped before redo's end. It is left to [`crate::Healer`], which writes what is newest or nothing.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use hamal_storage::{Error, File, Result, Storage, is_refused, read_exact_at, write_all_at};
use hamal_wal::Lsn;

use crate::core::Core;
use crate::header::{self, Identity, kind};
use crate::heal::{CopyPlace, PageCopy};
use crate::partition::file_name;
use crate::{Mending, PageNo, PartitionId, RestoredPage, TornPages};

/// The area's name in the database's directory.
pub const NAME: &str = "doublewrite";
/// The least: a rebuilt page is written beside an older copy of it.
pub(crate) const MIN_SLOTS: usize = 2;
/// The most pages an area can have; whatever is behind them in the file is ignored.
pub(crate) const MAX_PAGES: usize = 4096;

/// The open area.
#[derive(Debug)]
pub(crate) struct Doublewrite {
    file: Arc<dyn File>,
}

impl Doublewrite {
    /// Opens the area; makes it, or makes it larger, if need be, and its name durable. What it holds stays.
    pub(crate) fn open(storage: &dyn Storage, bytes: usize) -> Result<Doublewrite> {
        let failed = |action| move |e| Error::io(action, NAME, e);
        let exists = storage.exists(NAME).map_err(failed("look for"))?;
        let file = if exists {
            storage.open(NAME).map_err(failed("open"))?
        } else {
            storage.create(NAME).map_err(failed("create"))?
        };
        let have = file.len().map_err(failed("read the length of"))?;
        if have < bytes as u64 {
            file.allocate(have, bytes as u64 - have).map_err(failed("reserve space for"))?;
            // Really written, so that later overwrites need no metadata.
            let zeros = vec![0; bytes - have as usize];
            write_all_at(&*file, &zeros, have).map_err(failed("write"))?;
            file.sync_data().map_err(failed("sync"))?;
        }
        // Even if it was there: whoever made it may have died before this.
        storage.sync_directory("").map_err(|e| Error::io("sync", "the database directory", e))?;
        Ok(Doublewrite { file })
    }

    /// Whether the area is there, and as large as this.
    pub(crate) fn is_prepared(storage: &dyn Storage, bytes: usize) -> Result<bool> {
        let failed = |action| move |e| Error::io(action, NAME, e);
        if !storage.exists(NAME).map_err(failed("look for"))? {
            return Ok(false);
        }
        let file = storage.open(NAME).map_err(failed("open"))?;
        Ok(file.len().map_err(failed("read the length of"))? >= bytes as u64)
    }

    /// Writes a batch's copies to the start of the area. Not durable yet.
    pub(crate) fn write(&self, images: &[u8]) -> Result<()> {
        write_all_at(&*self.file, images, 0).map_err(|e| Error::io("write", NAME, e))
    }

    /// Writes one image to a slot of the area. Not durable yet.
    pub(crate) fn write_slot(&self, image: &[u8], slot: u64) -> Result<()> {
        write_all_at(&*self.file, image, slot * image.len() as u64).map_err(|e| Error::io("write", NAME, e))
    }

    /// A slot that has no sound copy of this page: one of the first two.
    pub(crate) fn slot_beside(&self, identity: Identity, page_bytes: usize) -> u64 {
        let latest = self.latest_copy(identity, page_bytes);
        u64::from(latest.is_some_and(|(slot, _)| slot == 0))
    }

    /// The latest sound copy of one page, and its slot. What cannot be read is no copy.
    fn latest_copy(&self, identity: Identity, page_bytes: usize) -> Option<(u64, Vec<u8>)> {
        let pages = self.file.len().ok()? / page_bytes as u64;
        let mut image = vec![0; page_bytes];
        let mut latest: Option<(u64, Vec<u8>)> = None;
        for slot in 0..pages.min(MAX_PAGES as u64) {
            let offset = slot * page_bytes as u64;
            if read_exact_at(&*self.file, &mut image, offset).is_err()
                || identity.check(&image, NAME, offset).is_err()
            {
                continue;
            }
            if latest.as_ref().is_none_or(|(_, best)| header::page_lsn(best) < header::page_lsn(&image)) {
                latest = Some((slot, image.clone()));
            }
        }
        latest
    }

    /// Makes the copies durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("sync", NAME, e))
    }

    /// The latest valid copy of each page: where it is in the area, and its LSN.
    fn copies(
        &self,
        database_id: u64,
        page_bytes: usize,
    ) -> Result<BTreeMap<(PartitionId, PageNo), (u64, Lsn)>> {
        let failed = |action| move |e| Error::io(action, NAME, e);
        let pages = self.file.len().map_err(failed("read the length of"))? / page_bytes as u64;
        let mut latest = BTreeMap::new();
        let mut image = vec![0; page_bytes];
        for index in 0..pages.min(MAX_PAGES as u64) {
            let offset = index * page_bytes as u64;
            read_exact_at(&*self.file, &mut image, offset).map_err(failed("read"))?;
            let identity = Identity::of(&image);
            let known_kind = (kind::PARTITION_HEADER..=kind::OVERFLOW).contains(&header::kind(&image));
            if !known_kind || identity.database_id != database_id || !header::is_sound(&image) {
                continue;
            }
            let lsn = header::page_lsn(&image);
            let copy = latest.entry((identity.partition, identity.page)).or_insert((offset, lsn));
            if lsn > copy.1 {
                *copy = (offset, lsn);
            }
        }
        Ok(latest)
    }
}

impl Doublewrite {
    fn read(&self, image: &mut [u8], offset: u64) -> Result<()> {
        read_exact_at(&*self.file, image, offset).map_err(|e| Error::io("read", NAME, e))
    }
}

impl Core {
    /// The latest sound copy of a page that the area has.
    pub(crate) fn copy_in_area(&self, identity: Identity) -> Option<PageCopy> {
        // No batch overwrites it meanwhile.
        let _batch = self.batch.lock();
        let (_, image) = self.doublewrite.latest_copy(identity, self.page_bytes)?;
        Some(PageCopy { found: CopyPlace::Doublewrite, image })
    }
}

/// What to do about a page that has a copy in the area.
enum Verdict {
    /// It is older or newer than the copy, and sound.
    Leave,
    /// It is what the copy is. The write may still be unsynced, or its sync may have failed and the page cache hold what
    /// the disk does not (faults.md F6): only writing it again and syncing makes it safe to overwrite the copy.
    Confirm,
    /// It is damaged, and redo will replay it from the copy's LSN on.
    Restore,
    /// It is damaged, and was not on its way to the disk.
    Report,
}

impl Core {
    /// Puts back the pages whose copy in place is damaged and whose copy here is good (I2), and makes sure of the others of
    /// the last batch: after this the area may be overwritten (I1).
    pub(crate) fn restore_torn_pages(
        &self,
        oldest_lsn: Lsn,
        end_lsn: Lsn,
        mending: &dyn Fn(PartitionId) -> Mending,
        replays: &dyn Fn(PartitionId, PageNo, Lsn) -> bool,
    ) -> Result<TornPages> {
        let (mut restored, mut damaged) = (Vec::new(), Vec::new());
        let mut image = vec![0; self.page_bytes];
        let mut files = BTreeMap::new();
        let copies = self.doublewrite.copies(self.database_id, self.page_bytes)?;
        for ((partition, page), (offset, page_lsn)) in copies {
            let mending = mending(partition);
            if mending == Mending::None {
                continue;
            }
            let name = file_name(partition);
            let open = || self.storage.open(&name);
            let file = match open().or_else(|_| open()) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) if is_refused(&e) && mending == Mending::IfReadable => continue,
                Err(e) => return Err(Error::io("open", name, e)),
            };
            let in_log = page_lsn >= oldest_lsn && page_lsn < end_lsn;
            let in_place = u64::from(page.0) * self.page_bytes as u64;
            let identity = Identity { partition, page, database_id: self.database_id };
            let damaged_in_log =
                if replays(partition, page, page_lsn) { Verdict::Restore } else { Verdict::Report };
            let mut read = || read_exact_at(&*file, &mut image, in_place);
            let read = read().or_else(|_| read());
            let verdict = match read {
                Ok(()) if identity.check(&image, &name, in_place).is_ok() => {
                    if header::page_lsn(&image) == page_lsn { Verdict::Confirm } else { Verdict::Leave }
                }
                Ok(()) if in_log => damaged_in_log,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && in_log => damaged_in_log,
                Err(e) if is_refused(&e) && mending == Mending::IfReadable => Verdict::Leave,
                Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(Error::io("read", name, e)),
                _ => Verdict::Report,
            };
            match verdict {
                Verdict::Leave => continue,
                Verdict::Report => {
                    damaged.push((partition, page));
                    continue;
                }
                Verdict::Confirm => {}
                Verdict::Restore => restored.push(RestoredPage { partition, page, page_lsn }),
            }
            self.doublewrite.read(&mut image, offset)?;
            write_all_at(&*file, &image, in_place).map_err(|e| Error::io("write", &name, e))?;
            files.insert(partition, file);
        }
        for (partition, file) in files {
            file.sync_data().map_err(|e| Error::io("sync", file_name(partition), e))?;
        }
        Ok(TornPages { restored, damaged })
    }
}
