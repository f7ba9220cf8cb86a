//! Validation of serializable transactions at commit: what one read against what others have written since its snapshot.
//!
//! A transaction reads a snapshot as of the commit LSN `since`. It may commit only if no commit with a higher LSN changed anything it
//! read: a key, found or not, an interval of keys, or a table's number of rows. It gathers what it reads in a [`ReadSet`] and what it
//! writes in a [`WriteSet`]; commits leave theirs, as their [`Publication`], in the [`History`].
//!
//! V1. Coarser, never wrong: whatever a limit makes a set or the history forget is replaced by something that covers it, so a true
//!     conflict is never missed.
//! V2. Exact while nothing was forgotten: a conflict is then a key that one side wrote and the other read.
//! V3. To gather costs an append. Sorting and merging wait until there is a commit to check, or is likely to be, or a limit is reached.
//! V4. To check costs the smaller side times the logarithm of the larger ([`span::meet`]).
//!
//! Nothing here locks. The history's owner has a lock, held over the check of a few reads against a few commits, or else only to copy
//! references out of it ([`History::after`]) and over the check of what came while those were checked:
//!
//! ```text
//! let seen = since;
//! commit section {
//!     if history.newest() > seen {
//!         if there is much to check, for the first time {
//!             leave the section;
//!             let reads = read_set.prepare();
//!             let later = lock(history).after(&reads, seen)?;
//!             later.check(&reads)?;                            // without the lock: most of the work
//!             seen = later.seen_up_to;
//!             enter it again;
//!         }
//!         history.check(&read_set.prepare(), seen)?;           // to prepare costs nothing the second time
//!     }
//!     publication.leave(writes, counts, history, lsn);
//! }
//! ```

mod brief;
mod history;
mod keys;
mod publication;
mod reads;
mod span;
#[cfg(test)]
mod tests;
mod writes;

use std::fmt;
use std::ops::Bound;

pub(crate) use history::{Garbage, History};
pub(crate) use publication::Publication;
pub(crate) use reads::{PreparedReads, RangeId, ReadSet};
pub(crate) use writes::{Published, WriteSet};

use self::keys::KeySet;
use self::span::Span;

/// Something that a transaction read and a later commit wrote, or may have written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overlap {
    /// The table; `None` where a set remembers only that there was something.
    pub(crate) table: Option<u32>,
    /// The part of the table.
    pub(crate) part: Part,
    /// Whether this is certain. If not, a limit made a set or the history coarser, and a higher limit might let the transaction pass.
    pub(crate) exact: bool,
}

/// What of a table was both read and written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// One key.
    Key(Vec<u8>),
    /// An interval of keys, one of which, at least, both sides may have touched.
    Keys {
        /// Where it starts.
        lower: Bound<Vec<u8>>,
        /// Where it ends.
        upper: Bound<Vec<u8>>,
    },
    /// The number of rows.
    Count,
    /// Something in it: which keys is not remembered.
    Something,
}

/// For an error message: follows "read and since changed: ".
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Key(key) => write!(f, "the key {}", Hex(key)),
            Part::Keys { lower: Bound::Unbounded, upper: Bound::Unbounded } => write!(f, "some key"),
            Part::Keys { lower, upper } => {
                write!(f, "a key")?;
                match lower {
                    Bound::Included(key) => write!(f, " from {}", Hex(key))?,
                    Bound::Excluded(key) => write!(f, " above {}", Hex(key))?,
                    Bound::Unbounded => {}
                }
                match upper {
                    Bound::Included(key) => write!(f, " up to {}", Hex(key)),
                    Bound::Excluded(key) => write!(f, " below {}", Hex(key)),
                    Bound::Unbounded => Ok(()),
                }
            }
            Part::Count => write!(f, "the number of rows"),
            Part::Something => write!(f, "something that is no longer remembered"),
        }
    }
}

/// The start of a key in hexadecimal; a message has no room for a kilobyte.
struct Hex<'k>(&'k [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_BYTES: usize = 32;
        write!(f, "0x")?;
        for byte in self.0.iter().take(SHOWN_BYTES) {
            write!(f, "{byte:02x}")?;
        }
        if self.0.len() > SHOWN_BYTES { write!(f, "...") } else { Ok(()) }
    }
}

/// What a commit has written, in whatever form.
trait Writes {
    /// Whether that is nothing.
    fn is_empty(&self) -> bool;

    /// Whether it may be any key of any table.
    fn is_everything(&self) -> bool;

    /// Whether it is nothing but what was written.
    fn is_exact(&self) -> bool;

    /// What was read and written, if anything; neither is everything.
    fn overlap<'a>(&'a self, reads: &'a KeySet) -> Option<Span<'a>>;

    /// Tables whose number of rows changed, rising.
    fn counts(&self) -> &[u32];
}

/// Something that was read and that this commit wrote, if there is any.
fn conflict(reads: &PreparedReads<'_>, writes: &impl Writes) -> Option<Overlap> {
    if reads.is_empty() || writes.is_empty() {
        return None;
    }
    let exact = reads.keys().is_exact() && writes.is_exact();
    if reads.keys().is_everything() || writes.is_everything() {
        return Some(Overlap { table: None, part: Part::Something, exact });
    }
    if let Some(common) = writes.overlap(reads.keys()) {
        return Some(Overlap { table: Some(common.table), part: common.to_part(), exact });
    }
    let (few, many) = if reads.counts().len() <= writes.counts().len() {
        (reads.counts(), writes.counts())
    } else {
        (writes.counts(), reads.counts())
    };
    let table = few.iter().find(|table| many.binary_search(table).is_ok())?;
    Some(Overlap { table: Some(*table), part: Part::Count, exact: true })
}
