//! What each change does to its page, and what the page must look like before.

use hamal_pager::header;
use hamal_pager::space::Geometry;

use super::{Image, OVERFLOW_HEADER_BYTES, PageChange, Row};
use crate::node::{self, Damage, Node};
use crate::{Error, ErrorKind, Result};

/// A number of bitmap pages, kept at byte 60 of the partition header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BitmapCount(pub(crate) u32);

impl BitmapCount {
    /// Where the partition header keeps it.
    pub(crate) const OFFSET: usize = 60;

    /// Reads it from a partition header.
    pub(crate) fn of(page: &[u8]) -> BitmapCount {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&page[Self::OFFSET..Self::OFFSET + 4]);
        BitmapCount(u32::from_le_bytes(bytes))
    }
}

/// An overflow page's part of its value.
pub(crate) fn overflow_data(page: &[u8]) -> Result<&[u8], Damage> {
    expect_kind(page, header::kind::OVERFLOW, "an overflow page (5)")?;
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&page[header::HEADER_BYTES..header::HEADER_BYTES + 4]);
    let bytes = u32::from_le_bytes(bytes);
    page[OVERFLOW_HEADER_BYTES..]
        .get(..bytes as usize)
        .ok_or(Damage { expected: "a value part that fits its page", found: bytes.into() })
}

fn expect_kind(page: &[u8], kind: u8, expected: &'static str) -> Result<(), Damage> {
    match header::kind(page) {
        found if found == kind => Ok(()),
        found => Err(Damage { expected, found: found.into() }),
    }
}

impl From<Damage> for Error {
    /// `Corrupt` without a place: the caller adds file and offset.
    fn from(damage: Damage) -> Error {
        Error::new(ErrorKind::Corrupt, damage.to_string())
    }
}

impl PageChange<'_> {
    /// Whether `apply` would succeed on this page: the checks redo makes before it changes anything. `Err` is
    /// `Corrupt` without a place; the caller adds file and offset.
    pub(crate) fn check(&self, page: &[u8]) -> Result<()> {
        Ok(self.find_damage(page)?)
    }

    fn find_damage(&self, page: &[u8]) -> Result<(), Damage> {
        match self {
            PageChange::Row { key, row } => check_row(page, key, *row),
            PageChange::Mark { key, .. } => {
                let node = Node::leaf(page)?;
                match node.search(key)? {
                    Ok(slot) => node.cell(slot).map(|_| ()),
                    Err(_) => Err(Damage { expected: "the row to be marked", found: 0 }),
                }
            }
            PageChange::Purge { .. } => fits(page, node::compacted_bytes(Node::leaf(page)?)?),
            PageChange::Image(image) => image.check(page),
            PageChange::TruncateRight { separator } => {
                let node = Node::open(page)?;
                fits(page, node::truncated_bytes(node, separator)?)
            }
            PageChange::InsertSeparator { key, .. } => {
                let node = Node::inner(page)?;
                let room = node::plan_separator(node, key)?;
                node::check_growth(node, key, 0, room)
            }
            PageChange::RemoveSeparator { key } => {
                let node = Node::inner(page)?;
                match node.search(key)? {
                    Ok(slot) => node.key(slot).map(|_| ()),
                    Err(_) => Err(Damage { expected: "the separator to be removed", found: 0 }),
                }
            }
            PageChange::SetBits { first, count } => check_bits(page, [*first, *count], Bits::Clear),
            PageChange::ClearBits { first, count } => check_bits(page, [*first, *count], Bits::Set),
            PageChange::Overflow { data } => fits(page, OVERFLOW_HEADER_BYTES + data.len()),
            PageChange::BitmapPages { count } => {
                expect_kind(page, header::kind::PARTITION_HEADER, "a partition header (1)")?;
                let found = BitmapCount::of(page).0;
                if found.checked_add(1) == Some(count.0) {
                    return Ok(());
                }
                Err(Damage { expected: "one bitmap page less", found: found.into() })
            }
        }
    }

    /// [`PageChange::check`] and [`PageChange::apply`] in one, so that a row is searched for once. On an error the page is as it was.
    pub(crate) fn check_and_apply(&self, page: &mut [u8]) -> Result<()> {
        if let PageChange::Row { key, row } = self {
            covered(Node::leaf(page)?, key)?;
            // Whatever else may be wrong it finds before it changes anything.
            node::put_row(page, key, *row)?;
            header::raise_max_txn(page, row.stamp.0);
        } else {
            self.check(page)?;
            self.apply(page);
        }
        Ok(())
    }

    /// Changes the page. Does not touch checksum, identity or page LSN; raises `max_txn`.
    pub(crate) fn apply(&self, page: &mut [u8]) {
        let done = match self {
            PageChange::Row { key, row } => {
                let done = node::put_row(page, key, *row);
                header::raise_max_txn(page, row.stamp.0);
                done
            }
            PageChange::Mark { key, stamp, ghost } => {
                let done = node::mark_row(page, key, *stamp, *ghost);
                header::raise_max_txn(page, stamp.0);
                done
            }
            PageChange::Purge { horizon } => node::purge(page, *horizon),
            PageChange::Image(image) => {
                image.apply(page);
                Ok(())
            }
            PageChange::TruncateRight { separator } => node::truncate_right(page, separator),
            PageChange::InsertSeparator { key, child } => node::insert_separator(page, key, *child),
            PageChange::RemoveSeparator { key } => node::remove_separator(page, key),
            PageChange::SetBits { first, count } => assign_bits(page, [*first, *count], Bits::Set),
            PageChange::ClearBits { first, count } => assign_bits(page, [*first, *count], Bits::Clear),
            PageChange::Overflow { data } => {
                apply_overflow(page, data);
                Ok(())
            }
            PageChange::BitmapPages { count } => {
                page[BitmapCount::OFFSET..BitmapCount::OFFSET + 4].copy_from_slice(&count.0.to_le_bytes());
                Ok(())
            }
        };
        debug_assert_eq!(done, Ok(()), "a change must pass `check` before `apply`: {self:?}");
    }
}

fn fits(page: &[u8], bytes: usize) -> Result<(), Damage> {
    if bytes <= page.len() {
        return Ok(());
    }
    Err(Damage { expected: "content that fits the page", found: bytes as u64 })
}

fn covered(leaf: Node<'_>, key: &[u8]) -> Result<(), Damage> {
    if leaf.covers(key)? {
        return Ok(());
    }
    Err(Damage { expected: "a key within the leaf's fences", found: key.len() as u64 })
}

fn check_row(page: &[u8], key: &[u8], row: Row<'_>) -> Result<(), Damage> {
    let node = Node::leaf(page)?;
    if key.len() > node::max_key_bytes(page.len()) || row.value.len() > usize::from(u16::MAX) {
        return Err(Damage { expected: "a row that fits a leaf", found: key.len() as u64 });
    }
    covered(node, key)?;
    let room = node::plan_row(node, key, node.search(key)?, row.value.len())?;
    node::check_growth(node, key, row.value.len(), room)
}

impl Image<'_> {
    fn check(&self, page: &[u8]) -> Result<(), Damage> {
        fits(page, header::HEADER_BYTES + self.low.len() + self.high.len())
    }

    fn apply(&self, page: &mut [u8]) {
        header::set_kind(page, self.kind);
        header::set_level(page, self.level);
        page[6..8].fill(0);
        set_max_txn(page, self.max_txn.0);
        let (low_end, high_start) = (header::HEADER_BYTES + self.low.len(), page.len() - self.high.len());
        page[header::HEADER_BYTES..low_end].copy_from_slice(self.low);
        page[low_end..high_start].fill(0);
        page[high_start..].copy_from_slice(self.high);
    }
}

/// A blind change says what `max_txn` is, whatever the page held before.
fn set_max_txn(page: &mut [u8], max_txn: u64) {
    page[32..40].copy_from_slice(&max_txn.to_le_bytes());
}

fn apply_overflow(page: &mut [u8], data: &[u8]) {
    header::set_kind(page, header::kind::OVERFLOW);
    header::set_level(page, 0);
    page[6..8].fill(0);
    set_max_txn(page, 0);
    let at = header::HEADER_BYTES;
    page[at..at + 4].copy_from_slice(&(data.len() as u32).to_le_bytes());
    page[at + 4..OVERFLOW_HEADER_BYTES].fill(0);
    let end = OVERFLOW_HEADER_BYTES + data.len();
    page[OVERFLOW_HEADER_BYTES..end].copy_from_slice(data);
    page[end..].fill(0);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bits {
    Clear,
    Set,
}

fn check_bits(page: &[u8], [first, count]: [u32; 2], before: Bits) -> Result<(), Damage> {
    expect_kind(page, header::kind::BITMAP, "a bitmap (2)")?;
    let geometry = Geometry::new(page.len());
    let end = u64::from(first) + u64::from(count);
    if count == 0 || end > u64::from(geometry.coverage()) {
        return Err(Damage { expected: "bits within their bitmap", found: end });
    }
    let expected = match before {
        Bits::Clear => "pages that are free",
        Bits::Set => "pages in use",
    };
    match (first..first + count).find(|&bit| geometry.is_set(page, bit) != (before == Bits::Set)) {
        None => Ok(()),
        Some(bit) => Err(Damage { expected, found: bit.into() }),
    }
}

fn assign_bits(page: &mut [u8], [first, count]: [u32; 2], after: Bits) -> Result<(), Damage> {
    if Geometry::new(page.len()).assign(page, first, count, after == Bits::Set) {
        return Ok(());
    }
    Err(Damage { expected: "bits that have the other value", found: first.into() })
}
