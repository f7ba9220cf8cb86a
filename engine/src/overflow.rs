//! Values too long to stand beside their key: runs of pages of their own, and a short reference in the row.
//!
//! Owns the reference, the pages' content, and the life of the runs: allocated and filled by a [`Writer`], listed for freeing by
//! [`unlink`] when the row lets go of them, freed by [`free_pending`] when nobody can read them any more. Knows the row only as a
//! reference given and taken; which reference is current is the row's affair.
//!
//! I1. A run is allocated by a record of its own in the transaction's chain, whose undo frees it; what its pages hold is logged
//!     page by page, redo-only. So no record is larger than a page and a bit, at most one page is latched at a time, and a
//!     rollback gives everything back (hazard H9). The row comes last.
//! I2. Each page says which value it belongs to and which part of it it is. So a page that has been given to somebody else, or
//!     whose last write was lost (faults, F14), is found and never taken for the value's.
//! I3. A run is in the hands of exactly one of: the transaction that is writing it; a row; the list of pending runs. The list is
//!     rows of the partition's system tree, written in the chain of the transaction that let go, stamped with it. A ghost there
//!     is no entry: the transaction took it back, or the run has been freed.
//! I4. Freeing is one record: the bits cleared and the entry gone. Memory goes while the bitmap's latch is still held, so never
//!     that of the run's next owner.
//! I5. Everything read is checked before it is used: a run lies in the file, and lists add up to the value's length, so a
//!     damaged reference ends in `Corrupt` after no more pages than the file has.
//!
//! Latches: one page at a time; only freeing takes two, the system tree's leaf and then, by trying, the bitmap. Little-endian
//! formats, normative in docs/file-format.md:
//!
//! | reference | bytes | |
//! |---|---|---|
//! | 0 | 8 | value's length, bytes |
//! | 8 | 8 | value's identity: LSN of the record that allocated its first run |
//! | 16 | 1 | number of runs that follow, at most 10, fewer beside a long key; or 255: an index |
//! | 17 | 8 each | runs: first page (4), number of pages (4) |
//! | 17 | 4 | with 255 instead: first page of the index |
//!
//! | overflow page | bytes | |
//! |---|---|---|
//! | 40 | 4 | length of what follows at 48 (the rest of the page is zeros) |
//! | 44 | 4 | zero |
//! | 48 | 8 | the value's identity |
//! | 56 | 4 | which part: 0, 1, ...; index pages: 2^31 and up |
//! | 60 | | the part of the value; all parts but the last fill their page |
//! | 60 | 4 | index pages instead: next index page, or 0 |
//! | 64 | 8 each | index pages: runs, as in the reference; at least one |
//!
//! Key of a pending run: first page (4), number of pages (4), both big-endian; no value.

mod pending;
mod reader;
mod reference;
mod run;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use self::pending::{free_pending, pending_runs, unlink};
pub(crate) use self::reader::Reader;
pub(crate) use self::reference::runs_of;
pub(crate) use self::run::{Run, undo_extent};
pub(crate) use self::writer::Writer;

use hamal_pager::PageNo;

use crate::change::OVERFLOW_HEADER_BYTES;

/// Longest value, bytes.
pub(crate) const MAX_VALUE_BYTES: u64 = 1 << 32;

/// What an overflow page's data begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag {
    /// The value's identity.
    value: u64,
    /// Which part of it.
    part: u32,
}

impl Tag {
    const BYTES: usize = 12;
    /// Parts from here on are index pages.
    const FIRST_INDEX_PART: u32 = 1 << 31;

    fn encode(self) -> [u8; Tag::BYTES] {
        let mut bytes = [0; Tag::BYTES];
        bytes[..8].copy_from_slice(&self.value.to_le_bytes());
        bytes[8..].copy_from_slice(&self.part.to_le_bytes());
        bytes
    }
}

/// Bytes of a value that one page holds.
const fn part_bytes(page_bytes: usize) -> usize {
    page_bytes - OVERFLOW_HEADER_BYTES - Tag::BYTES
}

/// Runs that one index page lists.
const fn index_runs(page_bytes: usize) -> usize {
    (part_bytes(page_bytes) - size_of::<PageNo>()) / Run::BYTES
}

/// Pages a value of this length takes, its index aside. At most 2^21: values have at most 4 GiB, and pages at least 4 KiB.
fn data_pages(total_bytes: u64, page_bytes: usize) -> u32 {
    total_bytes.div_ceil(part_bytes(page_bytes) as u64) as u32
}
