//! One page's part of a log record: the only way any page changes, forward and in redo alike.
//!
//! I1. `apply` is a pure function of the page's bytes and the change; it cannot fail on a page that `check` accepts.
//! I2. Each change is applicable without the other pages of its record.
//! I3. Blind changes (`is_blind`) do not look at what the page held before.

use hamal_pager::PageClass;

use crate::Result;
use crate::ids::TxnId;

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

/// One page's part of a log record. The tree's author owns this enum: variants, encoding, `apply`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PageChange<'a> {
    /// Leaf: the row of `key` becomes `row`; inserted if missing; a cell's capacity never shrinks (hazard H5).
    Row {
        /// The whole key.
        key: &'a [u8],
        /// Its new row.
        row: Row<'a>,
    },
}

#[expect(unused_variables, dead_code, reason = "interface")]
impl<'a> PageChange<'a> {
    /// Whether redo may apply it without reading the page.
    pub(crate) fn is_blind(&self) -> bool {
        unimplemented!()
    }

    /// The class of the page after this change, for a blind change.
    pub(crate) fn class(&self) -> PageClass {
        unimplemented!()
    }

    /// Appends the encoding.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        unimplemented!()
    }

    /// Upper bound of the encoding's length, bytes.
    pub(crate) fn encoded_bytes(&self) -> usize {
        unimplemented!()
    }

    /// Decodes one change from the front of `input` and advances it. Hostile bytes give `Corrupt`.
    pub(crate) fn decode(input: &mut &'a [u8]) -> Result<Self> {
        unimplemented!()
    }

    /// Whether `apply` would succeed on this page: the checks redo makes before it changes anything. `Err` is
    /// `Corrupt` without a place; the caller adds file and offset.
    pub(crate) fn check(&self, page: &[u8]) -> Result<()> {
        unimplemented!()
    }

    /// Changes the page. Does not touch checksum, identity or page LSN; raises `max_txn`.
    pub(crate) fn apply(&self, page: &mut [u8]) {
        unimplemented!()
    }
}
