//! Log sequence numbers.

use std::fmt;

/// A byte offset in the endless log stream, where a record starts. 0 means never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Never: no record has this LSN.
    pub const NEVER: Lsn = Lsn(0);
    /// Where the first record of a new log starts.
    pub const FIRST: Lsn = Lsn(4096);

    /// The raw offset.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
