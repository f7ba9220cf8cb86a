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

use hamal_wal::Lsn;

use crate::PartitionId;

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
