//! One page's part of a log record: the only way any page changes, forward and in redo alike.
//!
//! I1. `apply` is a pure function of the page's bytes and the change; it cannot fail on a page that `check` accepts.
//! I2. Each change is applicable without the other pages of its record.
//! I3. Blind changes (`is_blind`) do not look at what the page held before.
//! I4. `check` is cheap: the header and the cells that are touched. It promises that `apply` does what it says without
//!     a panic, not that the page is sound; `node::check_page` does that.
//!
//! Encodings, one tag byte first (normative: docs/file-format.md section 5): see `encode`, which is the table.

mod apply;

#[cfg(test)]
mod tests;

use hamal_pager::{PageClass, PageNo, header};

use crate::ids::TxnId;
use crate::node::Node;
use crate::{Error, ErrorKind, Result};

pub(crate) use apply::{BitmapCount, overflow_data};

/// Where an overflow page's bytes begin; before them their number (4 bytes) and a zero (4).
pub(crate) const OVERFLOW_HEADER_BYTES: usize = header::HEADER_BYTES + 8;

/// What is stored beside a key, apart from the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    /// The row's last writer.
    pub(crate) stamp: TxnId,
    /// Removed, but its bytes are kept (see design: ghosts).
    pub(crate) ghost: bool,
    /// `value` is an [`crate::tree`] overflow reference instead of the bytes themselves.
    pub(crate) overflow: bool,
    /// Inline value, or overflow reference.
    pub(crate) value: &'a [u8],
}

/// One page's part of a log record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PageChange<'a> {
    /// Leaf: the row of `key` becomes `row`; inserted if missing; a cell's capacity never shrinks (hazard H5).
    Row {
        /// The whole key.
        key: &'a [u8],
        /// Its new row.
        row: Row<'a>,
    },
    /// Leaf: the row of `key` gets this stamp and ghost flag; its value stays.
    Mark {
        /// The whole key; its row exists.
        key: &'a [u8],
        /// Its new stamp.
        stamp: TxnId,
        /// Whether it is a ghost now.
        ghost: bool,
    },
    /// Leaf: ghosts stamped below the horizon go, spare capacity of rows stamped below it too (hazard H14).
    Purge {
        /// Which stamps are settled.
        horizon: TxnId,
    },
    /// Any page, blind: all its bytes behind the pager's header.
    Image(Image<'a>),
    /// The left half of a split: keys (and children) from `separator` on go, and it becomes the upper fence.
    TruncateRight {
        /// The new upper fence.
        separator: &'a [u8],
    },
    /// Inner: a new separator, and the child to its right.
    InsertSeparator {
        /// The separator.
        key: &'a [u8],
        /// The child that holds the keys from it on.
        child: PageNo,
    },
    /// Inner: a separator goes, with the child to its right.
    RemoveSeparator {
        /// The separator.
        key: &'a [u8],
    },
    /// Bitmap: these pages are now in use; none of them was.
    SetBits {
        /// First bit.
        first: u32,
        /// Number of bits.
        count: u32,
    },
    /// Bitmap: these pages are now free; all of them were in use.
    ClearBits {
        /// First bit.
        first: u32,
        /// Number of bits.
        count: u32,
    },
    /// Overflow page, blind: its part of a long value.
    Overflow {
        /// At most the page's size less [`OVERFLOW_HEADER_BYTES`].
        data: &'a [u8],
    },
    /// Partition header: how many bitmap pages there are.
    BitmapPages {
        /// Their number, one more than before.
        count: BitmapCount,
    },
}

/// All of a page but the pager's header and the free gap in its middle, which is zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Image<'a> {
    kind: u8,
    level: u8,
    max_txn: TxnId,
    /// The bytes from the pager's header on.
    low: &'a [u8],
    /// The bytes up to the page's end.
    high: &'a [u8],
}

impl<'a> Image<'a> {
    /// The image of a page, which must be sound if it is a node.
    pub(crate) fn of(page: &'a [u8], max_txn: TxnId) -> Image<'a> {
        let body = &page[header::HEADER_BYTES..];
        let (low, high) = match Node::open(page).ok().and_then(Node::gap) {
            Some(gap) => (&page[header::HEADER_BYTES..gap.start], &page[gap.end..]),
            None => (&body[..body.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)], &[][..]),
        };
        Image { kind: header::kind(page), level: header::level(page), max_txn, low, high }
    }
}

const ROW: u8 = 1;
const PURGE: u8 = 2;
const IMAGE: u8 = 3;
const TRUNCATE_RIGHT: u8 = 4;
const INSERT_SEPARATOR: u8 = 5;
const REMOVE_SEPARATOR: u8 = 6;
const SET_BITS: u8 = 7;
const CLEAR_BITS: u8 = 8;
const OVERFLOW: u8 = 9;
const BITMAP_PAGES: u8 = 10;
const MARK: u8 = 11;

impl<'a> PageChange<'a> {
    /// Whether redo may apply it without reading the page.
    pub(crate) fn is_blind(&self) -> bool {
        matches!(self, PageChange::Image(_) | PageChange::Overflow { .. })
    }

    /// The class of the page after this change, for a blind change.
    pub(crate) fn class(&self) -> PageClass {
        match self {
            PageChange::Image(image) if image.kind == header::kind::INNER => PageClass::Inner,
            PageChange::InsertSeparator { .. } | PageChange::RemoveSeparator { .. } => PageClass::Inner,
            _ => PageClass::Plain,
        }
    }

    /// The bits of a bitmap that it clears: the first, and how many.
    pub(crate) fn cleared_bits(&self) -> Option<(u32, u32)> {
        match self {
            PageChange::ClearBits { first, count } => Some((*first, *count)),
            _ => None,
        }
    }

    /// Appends the encoding.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            PageChange::Row { key, row } => {
                out.extend([ROW, u8::from(row.ghost) | u8::from(row.overflow) << 1]);
                out.extend((key.len() as u16).to_le_bytes());
                out.extend((row.value.len() as u16).to_le_bytes());
                out.extend(row.stamp.0.to_le_bytes());
                out.extend_from_slice(key);
                out.extend_from_slice(row.value);
            }
            PageChange::Mark { key, stamp, ghost } => {
                encode_key(out, MARK, key);
                out.extend(stamp.0.to_le_bytes());
                out.push(u8::from(*ghost));
            }
            PageChange::Purge { horizon } => {
                out.push(PURGE);
                out.extend(horizon.0.to_le_bytes());
            }
            PageChange::Image(image) => {
                out.extend([IMAGE, image.kind, image.level]);
                out.extend(image.max_txn.0.to_le_bytes());
                out.extend((image.low.len() as u32).to_le_bytes());
                out.extend((image.high.len() as u32).to_le_bytes());
                out.extend_from_slice(image.low);
                out.extend_from_slice(image.high);
            }
            PageChange::TruncateRight { separator: key } => encode_key(out, TRUNCATE_RIGHT, key),
            PageChange::RemoveSeparator { key } => encode_key(out, REMOVE_SEPARATOR, key),
            PageChange::InsertSeparator { key, child } => {
                encode_key(out, INSERT_SEPARATOR, key);
                out.extend(child.0.to_le_bytes());
            }
            PageChange::SetBits { first, count } => encode_pair(out, SET_BITS, [*first, *count]),
            PageChange::ClearBits { first, count } => encode_pair(out, CLEAR_BITS, [*first, *count]),
            PageChange::Overflow { data } => {
                out.push(OVERFLOW);
                out.extend((data.len() as u32).to_le_bytes());
                out.extend_from_slice(data);
            }
            PageChange::BitmapPages { count } => {
                out.push(BITMAP_PAGES);
                out.extend(count.0.to_le_bytes());
            }
        }
    }

    /// The encoding's length, bytes.
    pub(crate) fn encoded_bytes(&self) -> usize {
        match self {
            PageChange::Row { key, row } => PageChange::row_bytes(key.len(), row.value.len()),
            PageChange::Mark { key, .. } => PageChange::mark_bytes(key.len()),
            PageChange::Image(image) => 19 + image.low.len() + image.high.len(),
            PageChange::TruncateRight { separator: key } | PageChange::RemoveSeparator { key } => {
                3 + key.len()
            }
            PageChange::InsertSeparator { key, .. } => 7 + key.len(),
            PageChange::Purge { .. } | PageChange::SetBits { .. } | PageChange::ClearBits { .. } => 9,
            PageChange::Overflow { data } => 5 + data.len(),
            PageChange::BitmapPages { .. } => 5,
        }
    }

    /// The length of a row change's encoding, bytes.
    pub(crate) const fn row_bytes(key_bytes: usize, value_bytes: usize) -> usize {
        14 + key_bytes + value_bytes
    }

    /// The length of a mark's encoding, bytes.
    pub(crate) const fn mark_bytes(key_bytes: usize) -> usize {
        12 + key_bytes
    }

    /// The most any image of a page takes encoded, bytes.
    pub(crate) const fn max_image_bytes(page_bytes: usize) -> usize {
        19 + page_bytes - header::HEADER_BYTES
    }

    /// Decodes one change from the front of `input` and advances it. Hostile bytes give `Corrupt`.
    pub(crate) fn decode(input: &mut &'a [u8]) -> Result<Self> {
        let mut reader = Reader { rest: input };
        let change = reader.change().ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "a log record holds a page change that cannot be decoded")
        })?;
        *input = reader.rest;
        Ok(change)
    }
}

/// A change as it is in the log: it decodes. Its tag is kept apart, so that nobody looks at the bytes to learn what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EncodedChange<'a> {
    tag: Tag,
    pub(crate) bytes: &'a [u8],
}

/// Which of [`PageChange`]'s variants it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag(u8);

impl Tag {
    /// That of an encoding.
    pub(crate) fn of(bytes: &[u8]) -> Tag {
        Tag(bytes.first().copied().unwrap_or_default())
    }
}

impl<'a> EncodedChange<'a> {
    pub(crate) fn new(tag: Tag, bytes: &'a [u8]) -> EncodedChange<'a> {
        EncodedChange { tag, bytes }
    }

    /// As [`PageChange::is_blind`].
    pub(crate) fn is_blind(self) -> bool {
        matches!(self.tag, Tag(IMAGE | OVERFLOW))
    }

    /// As [`PageChange::cleared_bits`].
    pub(crate) fn cleared_bits(self) -> Option<(u32, u32)> {
        let EncodedChange { tag, mut bytes } = self;
        if tag == Tag(CLEAR_BITS) { PageChange::decode(&mut bytes).ok()?.cleared_bits() } else { None }
    }
}

fn encode_key(out: &mut Vec<u8>, tag: u8, key: &[u8]) {
    out.push(tag);
    out.extend((key.len() as u16).to_le_bytes());
    out.extend_from_slice(key);
}

fn encode_pair(out: &mut Vec<u8>, tag: u8, pair: [u32; 2]) {
    out.push(tag);
    out.extend(pair.iter().flat_map(|number| number.to_le_bytes()));
}

/// Takes an encoding apart; `None` where it ends too early or holds what `encode` never writes.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        Some(front)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (front, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*front)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Option<usize> {
        Some(u16::from_le_bytes(self.array()?).into())
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.array()?))
    }

    fn key(&mut self) -> Option<&'a [u8]> {
        let bytes = self.u16()?;
        self.take(bytes)
    }

    fn change(&mut self) -> Option<PageChange<'a>> {
        Some(match self.u8()? {
            ROW => self.row()?,
            PURGE => PageChange::Purge { horizon: TxnId(self.u64()?) },
            IMAGE => PageChange::Image(self.image()?),
            TRUNCATE_RIGHT => PageChange::TruncateRight { separator: self.key()? },
            INSERT_SEPARATOR => PageChange::InsertSeparator { key: self.key()?, child: PageNo(self.u32()?) },
            REMOVE_SEPARATOR => PageChange::RemoveSeparator { key: self.key()? },
            SET_BITS => PageChange::SetBits { first: self.u32()?, count: self.u32()? },
            CLEAR_BITS => PageChange::ClearBits { first: self.u32()?, count: self.u32()? },
            OVERFLOW => {
                let bytes = self.u32()?;
                PageChange::Overflow { data: self.take(bytes as usize)? }
            }
            MARK => {
                let key = self.key()?;
                let stamp = TxnId(self.u64()?);
                match self.u8()? {
                    ghost @ 0..=1 => PageChange::Mark { key, stamp, ghost: ghost == 1 },
                    _ => return None,
                }
            }
            BITMAP_PAGES => PageChange::BitmapPages { count: BitmapCount(self.u32()?) },
            _ => return None,
        })
    }

    fn row(&mut self) -> Option<PageChange<'a>> {
        let flags = self.u8()?;
        if flags > 3 {
            return None;
        }
        let (key_bytes, value_bytes) = (self.u16()?, self.u16()?);
        let stamp = TxnId(self.u64()?);
        let key = self.take(key_bytes)?;
        let value = self.take(value_bytes)?;
        Some(PageChange::Row {
            key,
            row: Row { stamp, ghost: flags & 1 != 0, overflow: flags & 2 != 0, value },
        })
    }

    fn image(&mut self) -> Option<Image<'a>> {
        let (kind, level) = (self.u8()?, self.u8()?);
        if !(header::kind::PARTITION_HEADER..=header::kind::OVERFLOW).contains(&kind) {
            return None;
        }
        let max_txn = TxnId(self.u64()?);
        let (low_bytes, high_bytes) = (self.u32()?, self.u32()?);
        let low = self.take(low_bytes as usize)?;
        let high = self.take(high_bytes as usize)?;
        Some(Image { kind, level, max_txn, low, high })
    }
}
