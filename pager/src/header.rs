//! The header every page begins with; normative in docs/file-format.md section 3.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | CRC-32C of bytes 4..page_bytes |
//! | 4 | 1 | kind |
//! | 5 | 1 | level (0 = leaf) |
//! | 6 | 2 | zero |
//! | 8 | 4 | page number |
//! | 12 | 4 | partition |
//! | 16 | 8 | database id |
//! | 24 | 8 | page LSN |
//! | 32 | 8 | `max_txn`: no row of the page was stamped by a later transaction |
//!
//! The pager writes checksum, page number, partition and database id at write-back; the engine owns the rest.

use hamal_storage::Error;
use hamal_wal::Lsn;

use crate::state::PageClass;
use crate::{PageNo, PartitionId};

/// Bytes the header takes.
pub const HEADER_BYTES: usize = 40;
/// Kinds of page. The pager cares for `INNER` alone: such pages may be read optimistically.
pub mod kind {
    /// Page 0 of a partition's file.
    pub const PARTITION_HEADER: u8 = 1;
    /// Allocation bitmap.
    pub const BITMAP: u8 = 2;
    /// Inner node of a B-tree.
    pub const INNER: u8 = 3;
    /// Leaf of a B-tree.
    pub const LEAF: u8 = 4;
    /// Part of an overflow extent.
    pub const OVERFLOW: u8 = 5;
}

/// The kind byte.
pub fn kind(page: &[u8]) -> u8 {
    page[4]
}

/// Sets the kind byte.
pub fn set_kind(page: &mut [u8], kind: u8) {
    page[4] = kind;
}

/// The level: 0 for leaves.
pub fn level(page: &[u8]) -> u8 {
    page[5]
}

/// Sets the level.
pub fn set_level(page: &mut [u8], level: u8) {
    page[5] = level;
}

fn u32_at(page: &[u8], at: usize) -> u32 {
    let mut b = [0; 4];
    b.copy_from_slice(&page[at..at + 4]);
    u32::from_le_bytes(b)
}

fn u64_at(page: &[u8], at: usize) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&page[at..at + 8]);
    u64::from_le_bytes(b)
}

/// The partition the page says it belongs to.
pub fn partition(page: &[u8]) -> PartitionId {
    let mut b = [0; 4];
    b.copy_from_slice(&page[12..16]);
    PartitionId(u32::from_le_bytes(b))
}

/// The number the page says it has.
pub fn page_no(page: &[u8]) -> PageNo {
    PageNo(u32_at(page, 8))
}

/// Checks an image of a page that is nowhere in a cache: checksum, number, partition, database. `Corrupt`, naming `file` and the place,
/// where the image begins at `offset`. At least [`HEADER_BYTES`] bytes.
pub fn check_image(
    image: &[u8],
    (partition, page): (PartitionId, PageNo),
    database_id: u64,
    file: &str,
    offset: u64,
) -> Result<(), Error> {
    Identity { partition, page, database_id }.check(image, file, offset)
}

/// The LSN of the last record that changed the page.
pub fn page_lsn(page: &[u8]) -> Lsn {
    Lsn(u64_at(page, 24))
}

/// Sets the page LSN.
pub fn set_page_lsn(page: &mut [u8], lsn: Lsn) {
    page[24..32].copy_from_slice(&lsn.0.to_le_bytes());
}

/// `max_txn`.
pub fn max_txn(page: &[u8]) -> u64 {
    u64_at(page, 32)
}

/// Raises `max_txn` to at least `txn`.
pub fn raise_max_txn(page: &mut [u8], txn: u64) {
    if txn > max_txn(page) {
        page[32..40].copy_from_slice(&txn.to_le_bytes());
    }
}

/// Which page of which database an image claims to be, or must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) partition: PartitionId,
    pub(crate) page: PageNo,
    pub(crate) database_id: u64,
}

impl Identity {
    /// Who an image says it is.
    pub(crate) fn of(page: &[u8]) -> Identity {
        Identity {
            partition: PartitionId(u32_at(page, 12)),
            page: PageNo(u32_at(page, 8)),
            database_id: u64_at(page, 16),
        }
    }

    /// Writes the identity fields.
    pub(crate) fn write(self, page: &mut [u8]) {
        page[8..12].copy_from_slice(&self.page.0.to_le_bytes());
        page[12..16].copy_from_slice(&self.partition.0.to_le_bytes());
        page[16..24].copy_from_slice(&self.database_id.to_le_bytes());
    }

    /// Writes the identity fields and, last, the checksum: the image may go to the disk.
    pub(crate) fn seal(self, page: &mut [u8]) {
        self.write(page);
        let checksum = checksum(page);
        page[..4].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Checks an image read from `file` at `offset`.
    pub(crate) fn check(self, page: &[u8], file: &str, offset: u64) -> Result<(), Error> {
        let corrupt = |at: u64, expected: String, found: String| {
            Err(Error::Corrupt { file: file.to_owned(), offset: offset + at, expected, found })
        };
        if !is_sound(page) {
            if page.iter().all(|&byte| byte == 0) {
                return corrupt(0, format!("page {}", self.page), "all zeros: a page never written".into());
            }
            let (stored, computed) = (u32_at(page, 0), checksum(page));
            let expected = format!("checksum {computed:#010x} of page {}'s bytes", self.page);
            return corrupt(0, expected, format!("{stored:#010x}"));
        }
        let found = Identity::of(page);
        if found.database_id != self.database_id {
            let (expected, found) = (self.database_id, found.database_id);
            return corrupt(16, format!("database {expected:#018x}"), format!("database {found:#018x}"));
        }
        if found.partition != self.partition {
            let (expected, found) = (self.partition, found.partition);
            return corrupt(12, format!("partition {expected}"), format!("a page of partition {found}"));
        }
        if found.page != self.page {
            return corrupt(8, format!("page {}", self.page), format!("page {}", found.page));
        }
        Ok(())
    }
}

/// The checksum the image ought to have.
fn checksum(page: &[u8]) -> u32 {
    crc32c::crc32c(&page[4..])
}

/// Whether the checksum is right.
pub(crate) fn is_sound(page: &[u8]) -> bool {
    u32_at(page, 0) == checksum(page) && page.iter().any(|&byte| byte != 0)
}

/// How a page of this kind is reached once it is in memory.
pub(crate) fn class(page: &[u8]) -> PageClass {
    if kind(page) == kind::INNER { PageClass::Inner } else { PageClass::Plain }
}
