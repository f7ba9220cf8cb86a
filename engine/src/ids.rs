//! Identities above the pager.

use std::fmt;

/// A transaction. Ids grow with begin order and never restart (hazard H19); 0 is nobody: settled for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TxnId(pub(crate) u64);

impl TxnId {
    /// No transaction; as a stamp: older than every snapshot.
    pub(crate) const NONE: TxnId = TxnId(0);
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
