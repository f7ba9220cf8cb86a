//! What a view sees of a row that it does not see as it is: the way back, from image to image.

use std::sync::Arc;

use super::run::Run;
use crate::change::Row;
use crate::ids::TxnId;
use crate::view::View;

/// A row that is kept apart from any page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnedRow {
    pub(crate) stamp: TxnId,
    pub(crate) ghost: bool,
    pub(crate) overflow: bool,
    pub(crate) value: Vec<u8>,
}

impl OwnedRow {
    pub(crate) fn set(&mut self, row: Row<'_>) {
        (self.stamp, self.ghost, self.overflow) = (row.stamp, row.ghost, row.overflow);
        self.value.clear();
        self.value.extend_from_slice(row.value);
    }

    pub(crate) fn as_row(&self) -> Row<'_> {
        Row { stamp: self.stamp, ghost: self.ghost, overflow: self.overflow, value: &self.value }
    }
}

/// What a view sees of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The row as it is.
    Current,
    /// No row.
    Absent,
    /// The row as it is, but not removed.
    Revived,
    /// An older one, which has been copied out.
    Older,
}

impl Seen {
    /// The row that is seen, of the current one and an older one.
    pub(crate) fn of<'r>(self, current: Row<'r>, older: &'r OwnedRow) -> Option<Row<'r>> {
        match self {
            Seen::Absent => None,
            Seen::Current => Some(current),
            Seen::Revived => Some(Row { ghost: false, ..current }),
            Seen::Older => Some(older.as_row()),
        }
    }
}

/// Where the search for what a view sees has come to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Search {
    /// Who wrote the row that the view does not see.
    pub(super) writer: TxnId,
    pub(super) ghost: bool,
    pub(super) seen: Seen,
}

/// What a search has found.
#[derive(Debug)]
pub(crate) enum Found {
    Seen(Seen),
    /// It goes on in a file: [`super::Versions::finish`], without a latch.
    Spilled(Search, Vec<Arc<Run>>),
}

/// What a table says of a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Word {
    Nothing,
    Absent,
    /// An image, which has been copied out.
    Row,
}

impl Search {
    /// Goes one step on; the answer, once there is one.
    pub(super) fn step(&mut self, word: Word, view: &View, older: &mut OwnedRow) -> Option<Seen> {
        match word {
            // The stamp explains itself (I2 of [`super`]): the row was removed, settled before; or inserted.
            Word::Nothing if self.ghost => {
                older.ghost = false;
                Some(self.seen)
            }
            Word::Nothing | Word::Absent => Some(Seen::Absent),
            Word::Row => {
                debug_assert_ne!(older.stamp, self.writer, "an image is of an earlier writer");
                *self = Search { writer: older.stamp, ghost: older.ghost, seen: Seen::Older };
                view.sees(older.stamp).then_some(if older.ghost { Seen::Absent } else { Seen::Older })
            }
        }
    }
}
