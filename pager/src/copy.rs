//! Copies of pages for a backup, taken while others read and write them.
//!
//! I1. What is handed out is a version of the page that was whole at some moment after the call began, sealed with its checksum.
//! I2. A page that is not in memory is read from its file past the cache: a backup pushes nothing out. While it is read it may be read in
//!     by others, changed and written back, so a copy that fails its checks proves nothing; the last attempt goes through the cache, where
//!     nobody writes what is being read, and is believed. A page that is older than the one that left memory last fails its checks.

use hamal_storage::{Error, Result, read_exact_at};
use hamal_wal::Lsn;

use crate::dirty::left_at;
use crate::header;
use crate::state::{Absence, Latch};
use crate::{Attempt, PageNo, Partition, SharedPage};

/// Attempts past the cache.
const ATTEMPTS: usize = 4;

/// What a copy of a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// The page, with its checksum.
    Page,
    /// The file has no page there, or only zeros: it has never been written, and nobody has it in memory.
    NeverWritten,
}

impl Partition {
    /// Copies a page into `out`, which has the size of one. The caller holds no latch and no epoch guard. `Corrupt` if the page fails its
    /// checks.
    pub fn copy_page(&self, page: PageNo, out: &mut [u8]) -> Result<Copied> {
        for _ in 0..ATTEMPTS {
            match self.try_shared(page) {
                Attempt::Fixed(fixed) => return Ok(self.copy_fixed(page, fixed, out)),
                Attempt::Busy => break,
                Attempt::Absent => {}
            }
            if page.0 >= self.file_pages() {
                return Ok(Copied::NeverWritten);
            }
            let Some(known_lsn) = self.known_lsn(page) else { break };
            let offset = self.offset(page);
            match read_exact_at(self.file(), out, offset) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => out.fill(0),
                Err(e) => return Err(Error::io("read", self.file_name(), e)),
            }
            if self.identity(page).check(out, self.file_name(), offset).is_ok()
                && header::page_lsn(out) >= known_lsn
            {
                return Ok(Copied::Page);
            }
            if out.iter().all(|&byte| byte == 0) && matches!(self.try_shared(page), Attempt::Absent) {
                return Ok(Copied::NeverWritten);
            }
        }
        Ok(self.copy_fixed(page, self.fix_shared(page)?, out))
    }

    /// The least LSN that what is read from the file from now on may have, of a page that is not in memory. `None`: it is, or somebody is
    /// reading it in, or makes it leave.
    pub(crate) fn known_lsn(&self, page: PageNo) -> Option<Lsn> {
        let Some(at) = self.place(page) else { return Some(Lsn::NEVER) };
        let known_lsn = left_at(at.rec_lsn());
        // Looked at second: if somebody was reading it in, and so had taken the note, he has found it sound, or made it so.
        (at.state().presence() == Latch::Absent(Absence::Evicted)).then_some(known_lsn)
    }

    /// The checksum, which takes longer than the copy, is for after the latch.
    fn copy_fixed(&self, page: PageNo, fixed: SharedPage<'_>, out: &mut [u8]) -> Copied {
        out.copy_from_slice(fixed.bytes());
        drop(fixed);
        self.identity(page).seal(out);
        Copied::Page
    }
}
