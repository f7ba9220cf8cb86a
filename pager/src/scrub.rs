//! Looking at a page's copy on the disk, whether or not the page is in memory, and pushing nothing out of it.
//!
//! I1. A copy is called bad only when no write of it can have been under way while it was read: of a page in memory it is read again with the
//!     batch lock held, under which alone pages are written; a page that is not in memory must not have been since before the first read.
//! I2. A bad copy of a page in memory is written again from there, which is the best source there is. It is a batch of its own: log first,
//!     then the doublewrite area. Nothing changes about the page's being dirty: what is written is never older than `rec_lsn` says.
//! I3. No latch is held during I/O.
//! I4. A page that was found sound is known from then on by its LSN, as one that has left memory is: a lost write behind its back is noticed.
//!     Only where there is memory mapped for its part of the file already.

use std::io::ErrorKind;

use hamal_storage::{Error, Result, read_exact_at};
use hamal_wal::Lsn;

use crate::core::Core;
use crate::dirty::is_clean;
use crate::header;
use crate::region::PageAt;
use crate::state::Latch;
use crate::{PageNo, Partition};

/// Attempts at a page that is on its way in or out of memory.
const ATTEMPTS: usize = 16;

/// What a page's copy on the disk is.
#[derive(Debug)]
pub enum Scrubbed {
    /// Sound, and the newest as far as is known here: its LSN. The image is the caller's.
    Sound(Lsn),
    /// The page is in memory and has changes that are not on the disk yet, or is too busy to be looked at.
    Changing,
    /// It was bad, and has been written again from memory.
    Rewritten(Error),
    /// It is bad, and the page is not in memory: [`Partition::load`] rebuilds it. `is_known`: the page has been in memory since the database
    /// was opened, so that there is a page to be rebuilt.
    Bad {
        /// What is wrong.
        fault: Error,
        /// See above.
        is_known: bool,
    },
}

impl Partition {
    /// Looks at the page's copy on the disk; `image` has the size of a page and gets the copy. The caller holds no latch and no epoch guard.
    /// An error is one of reading or writing a file.
    pub fn scrub_page(&self, page: PageNo, image: &mut [u8]) -> Result<Scrubbed> {
        for _ in 0..ATTEMPTS {
            let before = self.known_lsn(page);
            let fault = match self.read_copy(page, image)? {
                Ok(lsn) if before.is_some_and(|known| known > lsn) => {
                    self.check_age(page, image, before.unwrap_or_default()).err()
                }
                Ok(lsn) if before.is_some() => {
                    // Not at the price of mapping memory for a part of the file that nobody uses.
                    if before == Some(Lsn::NEVER) && self.place(page).is_some() {
                        // From now on an older one would be noticed.
                        self.expect_page(page, lsn)?;
                    }
                    return Ok(Scrubbed::Sound(lsn));
                }
                Ok(_) => None,
                Err(fault) => Some(fault),
            };
            match (before, fault) {
                (Some(known), Some(fault)) if self.known_lsn(page) == Some(known) => {
                    return Ok(Scrubbed::Bad { fault, is_known: known > Lsn::NEVER });
                }
                (Some(_), _) => {}
                (None, _) => {
                    if let Some(scrubbed) = self.scrub_resident(page, image)? {
                        return Ok(scrubbed);
                    }
                    // It is leaving, perhaps: an inner page waits for its readers, however long nobody needs its memory.
                    self.core().hurry_leaving()?;
                }
            }
            std::thread::yield_now();
        }
        Ok(Scrubbed::Changing)
    }

    /// As [`Partition::scrub_page`] for a page that is in memory; `image` has what its file had just now. `None`: it is not.
    fn scrub_resident(&self, page: PageNo, image: &mut [u8]) -> Result<Option<Scrubbed>> {
        let Some(at) = self.place(page) else { return Ok(None) };
        match self.compare(at, page, image) {
            Compared::Fits(lsn) => return Ok(Some(Scrubbed::Sound(lsn))),
            Compared::Ahead => return Ok(Some(Scrubbed::Changing)),
            Compared::Absent => return Ok(None),
            Compared::Bad(_) => {}
        }
        let core = self.core();
        let mut batch = core.batch.lock();
        if core.check_poison().is_err() || core.finish_in_place(&mut batch).is_err() {
            // Nothing can be written: it is seen when it is read in.
            return Ok(Some(Scrubbed::Changing));
        }
        self.read_copy(page, image)?.ok();
        let fault = match self.compare(at, page, image) {
            Compared::Fits(lsn) => return Ok(Some(Scrubbed::Sound(lsn))),
            Compared::Ahead => return Ok(Some(Scrubbed::Changing)),
            Compared::Absent => return Ok(None),
            Compared::Bad(fault) => fault,
        };
        if at.state().try_shared() != Latch::Taken {
            return Ok(Some(Scrubbed::Changing));
        }
        // SAFETY: we hold a shared latch until after the copy.
        image.copy_from_slice(unsafe { at.bytes() });
        at.state().unlock_shared();
        Core::count(&core.counters.damaged, 1);
        self.identity(page).seal(image);
        if header::page_lsn(image) > Lsn::NEVER {
            core.log.make_durable(header::page_lsn(image))?;
        }
        core.write_alone(self, page, image)?;
        Core::count(&core.counters.healed, 1);
        Ok(Some(Scrubbed::Rewritten(fault)))
    }

    /// Reads the page past the cache: its LSN, or what is wrong with it.
    fn read_copy(&self, page: PageNo, image: &mut [u8]) -> Result<Result<Lsn>> {
        let offset = self.offset(page);
        match read_exact_at(self.file(), image, offset) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => image.fill(0),
            Err(e) => return Err(Error::io("read", self.file_name(), e)),
        }
        let checked = self.identity(page).check(image, self.file_name(), offset);
        Ok(checked.map(|()| header::page_lsn(image)))
    }

    /// Compares what the file had with the page in memory.
    fn compare(&self, at: PageAt<'_>, page: PageNo, image: &[u8]) -> Compared {
        let sound = self.identity(page).check(image, self.file_name(), self.offset(page));
        let was_marked = at.state().is_marked();
        match at.state().try_shared() {
            Latch::Taken => {}
            Latch::Busy => return sound.map_or_else(Compared::Bad, |()| Compared::Ahead),
            Latch::Absent(_) => return Compared::Absent,
        }
        // SAFETY: we hold a shared latch until the LSN is read.
        let newest = header::page_lsn(unsafe { at.bytes() });
        let clean = is_clean(at.rec_lsn());
        at.state().unlock_shared();
        if was_marked {
            // Our own visit is no use of the page.
            at.state().mark();
        }
        match sound {
            // Never written yet: that comes.
            Err(_) if !clean && image.iter().all(|&byte| byte == 0) => Compared::Ahead,
            Err(fault) => Compared::Bad(fault),
            Ok(()) if !clean => Compared::Ahead,
            Ok(()) if header::page_lsn(image) == newest => Compared::Fits(newest),
            Ok(()) => match self.check_age(page, image, newest) {
                Err(fault) => Compared::Bad(fault),
                // Written, and changed again, since it was read.
                Ok(()) => Compared::Ahead,
            },
        }
    }
}

/// A copy on the disk beside the page in memory.
enum Compared {
    Fits(Lsn),
    Ahead,
    Absent,
    Bad(Error),
}
