//! What a client asks for, and what it is told: enough to ask a model the same later.

use std::fmt::Debug;
use std::ops::Bound;

use hamal::ErrorKind;

use crate::model::Key;
use crate::value::{Recipe, Value};

/// A table's name.
pub(super) type Name = &'static str;

/// One thing that a client asks of a transaction or snapshot.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Savepoint,
    /// To the savepoint of this index; forgets those made after it.
    RollBackTo(usize),
    Tables,
    HasTable(Name),
    /// Opens a table, and makes it if it is missing.
    Create(Name),
    Drop(Name),
    Rename(Name, Name),
    /// On the rows of a table that is there; in a snapshot, perhaps.
    Rows(Name, RowOperation),
}

/// One thing that a client asks of a table.
#[derive(Clone, Debug)]
pub(super) enum RowOperation {
    Put(Key, Written, Put),
    Remove(Key, Removal),
    Get(Key, Get),
    /// Reads the row and locks it.
    Lock(Key),
    Count,
    Pop(End),
    /// A range from one of its ends or both, with writes on the way.
    Walk(Bounds, Vec<Step>),
    Clear,
}

/// A value and how to make it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) recipe: Recipe,
    pub(super) value: Value,
}

impl Written {
    pub(super) fn new(recipe: Recipe) -> Written {
        Written { recipe, value: recipe.value() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Blind,
    /// Returns the old value.
    Insert,
    Stream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    Blind,
    /// Returns the old value.
    Remove,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Get {
    Value,
    Contains,
    Reader,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Front,
    Back,
}

/// Lower and upper bound, not reversed.
pub(super) type Bounds = (Bound<Key>, Bound<Key>);

/// A step of a walk.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Next(End),
    Put(Key, Written),
    Delete(Key),
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Is(bool),
    Count(u64),
    Value(Option<Value>),
    Row(Option<(Key, Value)>),
    /// One for each step of a walk that asks for a row.
    Rows(Vec<Option<(Key, Value)>>),
    /// Names and row counts.
    Tables(Vec<(String, u64)>),
    /// Refused, and nothing has changed.
    Refused(ErrorKind),
}

/// Whether no key lies between the bounds; maps panic where some of these are asked of them.
pub(super) fn is_empty((lower, upper): &Bounds) -> bool {
    match (lower, upper) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(lower), Bound::Included(upper)) => lower > upper,
        (
            Bound::Included(lower) | Bound::Excluded(lower),
            Bound::Included(upper) | Bound::Excluded(upper),
        ) => lower >= upper,
    }
}

/// Anything about operations, for people: cut off where it gets long.
pub(super) fn shown(what: &impl Debug) -> String {
    const MOST: usize = 600;
    let mut text = format!("{what:x?}");
    if let Some((cut, _)) = text.char_indices().nth(MOST) {
        text.truncate(cut);
        text.push_str("..");
    }
    text
}
