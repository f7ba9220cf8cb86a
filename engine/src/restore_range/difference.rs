//! How the rows of a range differ between two tables: one walk through both, side by side, in bounded memory.
//!
//! I1. Each key of the range in either table is met once, in order; those that differ are shown before the walk goes on. Whoever is shown
//!     one may write that row in `now`: the walk is past it.
//! I2. Long values are compared as streams, and are never in memory as a whole.

use std::cmp::Ordering;
use std::io::{self, Read};
use std::ops::Bound;

use hamal_storage::Error as LowError;

use crate::raw::{RawRange, RawTable, ValueReader};
use crate::{Error, ErrorKind, Result};

/// Bytes of long values compared at once.
const COMPARE_BYTES: usize = 64 << 10;

/// A key whose row is not the same in both tables.
#[derive(Debug)]
pub(super) enum Difference<'d> {
    /// There is a row in `then` alone.
    Missing(Row<'d>),
    /// The rows have different values: the one of `then`.
    Changed(Row<'d>),
    /// There is a row in `now` alone: its key.
    Extra(&'d [u8]),
}

/// A row of `then`.
#[derive(Debug)]
pub(super) struct Row<'d> {
    pub(super) key: &'d [u8],
    table: &'d RawTable<'d>,
    /// The value, or the reference of a long one.
    stored: &'d [u8],
    is_long: bool,
}

/// The value of a row.
pub(super) enum Value<'d> {
    Inline(&'d [u8]),
    Long(LongValue<'d>),
}

/// A long value of `then`, for somebody who takes a stream and tells its errors as those of any stream.
pub(super) struct LongValue<'d> {
    reader: ValueReader<'d>,
    failed: Option<Error>,
}

impl LongValue<'_> {
    /// Bytes of it.
    pub(super) fn len(&self) -> u64 {
        self.reader.len()
    }

    /// What has gone wrong: the error of reading it, if it is that, and otherwise `error`.
    pub(super) fn blame(self, error: Error) -> Error {
        self.failed.unwrap_or(error)
    }
}

impl Read for LongValue<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer).map_err(|error| {
            let kind = error.kind();
            let error = of_then(of_reader(error));
            let told = io::Error::new(kind, error.to_string());
            self.failed = Some(error);
            told
        })
    }
}

impl<'d> Row<'d> {
    /// Its value. Errors are those of `then`.
    pub(super) fn value(&self) -> Result<Value<'d>> {
        if !self.is_long {
            return Ok(Value::Inline(self.stored));
        }
        let reader = self.table.long_value(self.key, self.stored).map_err(of_then)?;
        Ok(Value::Long(LongValue { reader, failed: None }))
    }
}

/// One of the tables, at a row.
struct Side<'s> {
    table: &'s RawTable<'s>,
    range: RawRange<'s>,
    key: Vec<u8>,
    /// As [`Row::stored`].
    stored: Vec<u8>,
    /// `None`: there are no more rows.
    is_long: Option<bool>,
}

impl<'s> Side<'s> {
    fn begin(table: &'s RawTable<'s>, from: &[u8], below: Option<&[u8]>) -> Result<Side<'s>> {
        let upper = below.map_or(Bound::Unbounded, |below| Bound::Excluded(below.to_vec()));
        let range = table.range(Bound::Included(from.to_vec()), upper)?;
        let mut side = Side { table, range, key: Vec::new(), stored: Vec::new(), is_long: None };
        side.step()?;
        Ok(side)
    }

    fn step(&mut self) -> Result<()> {
        self.is_long = self.range.next_stored(&mut self.key, &mut self.stored)?;
        Ok(())
    }

    fn row(&self) -> Row<'_> {
        Row {
            key: &self.key,
            table: self.table,
            stored: &self.stored,
            is_long: self.is_long.unwrap_or_default(),
        }
    }

    /// Bytes of the row, a long value's aside.
    fn bytes(&self) -> u64 {
        (self.key.len() + self.stored.len()) as u64
    }
}

/// Shows `each` where the rows from `from` up to `below` (`None`: to the end) differ. `progress` hears of every step how many bytes it
/// passed. Returns how many rows are the same.
pub(super) fn walk(
    now: &RawTable<'_>,
    then: &RawTable<'_>,
    (from, below): (&[u8], Option<&[u8]>),
    each: &mut dyn FnMut(Difference<'_>) -> Result<()>,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let mut new = Side::begin(now, from, below)?;
    let mut old = Side::begin(then, from, below).map_err(of_then)?;
    let mut same = 0;
    loop {
        let order = match (new.is_long, old.is_long) {
            (None, None) => return Ok(same),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), Some(_)) => new.key.cmp(&old.key),
        };
        let mut passed = 0;
        match order {
            Ordering::Less => each(Difference::Extra(&new.key))?,
            Ordering::Greater => each(Difference::Missing(old.row()))?,
            Ordering::Equal => {
                let (is_same, long_bytes) = are_same(&new, &old)?;
                passed += long_bytes;
                if is_same {
                    same += 1;
                } else {
                    each(Difference::Changed(old.row()))?;
                }
            }
        }
        if order.is_le() {
            passed += new.bytes();
            new.step()?;
        }
        if order.is_ge() {
            passed += old.bytes();
            old.step().map_err(of_then)?;
        }
        progress(passed)?;
    }
}

/// Whether two rows of a key have the same value, and how many bytes of long ones it took to tell.
fn are_same(new: &Side<'_>, old: &Side<'_>) -> Result<(bool, u64)> {
    match (new.is_long, old.is_long) {
        (Some(true), Some(true)) => {
            let mut one = new.table.long_value(&new.key, &new.stored)?;
            let mut other = old.table.long_value(&old.key, &old.stored).map_err(of_then)?;
            if one.len() != other.len() {
                return Ok((false, 0));
            }
            are_same_streams(&mut one, &mut other)
        }
        // How long an inline value can be depends on the key and the page size alone: a long one is longer.
        (Some(true), _) | (_, Some(true)) => Ok((false, 0)),
        _ => Ok((new.stored == old.stored, 0)),
    }
}

fn are_same_streams(new: &mut ValueReader<'_>, old: &mut ValueReader<'_>) -> Result<(bool, u64)> {
    let (mut ours, mut theirs) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    let mut bytes = 0;
    loop {
        let count = read_full(new, &mut ours).map_err(of_reader)?;
        let other = read_full(old, &mut theirs).map_err(|e| of_then(of_reader(e)))?;
        bytes += (count + other) as u64;
        if ours[..count] != theirs[..other] {
            return Ok((false, bytes));
        }
        if count == 0 {
            return Ok((true, bytes));
        }
    }
}

/// Fills the buffer as far as there is something.
fn read_full(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// The error that a long value's reader has wrapped.
fn of_reader(error: io::Error) -> Error {
    error.downcast::<Error>().unwrap_or_else(|error| LowError::io("read", "a long value", error).into())
}

/// What was wrong was in what has been restored, and not in the database: nothing of that is unavailable.
pub(super) fn of_then(error: Error) -> Error {
    match error.kind() {
        ErrorKind::PartitionUnavailable => {
            Error::new(ErrorKind::Corrupt, format!("what was restored is damaged: {error}"))
        }
        _ => error.context("in what was restored"),
    }
}
