//! What a log record says: encoding and decoding of payloads. Normative: docs/file-format.md section 5.

use hamal_pager::PageNo;

use crate::change::Row;

/// How a change is taken back. Logical: by tree and key, wherever the row is by then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Undo<'a> {
    /// The key's row before the change; `None`: there was none (undo leaves a settled ghost). The key is that of the
    /// record's `PageChange::Row`.
    Row {
        /// Root page of the tree the key is in.
        root: PageNo,
        /// The row before.
        before: Option<Row<'a>>,
    },
    /// The extent was allocated: undo frees it.
    Extent {
        /// First page.
        first: PageNo,
        /// Number of pages.
        count: u32,
    },
}
