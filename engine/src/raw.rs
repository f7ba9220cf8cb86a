//! One table as bytes, inside a transaction or snapshot (interface). The typed tables stand on it.

use std::io;
use std::marker::PhantomData;
use std::ops::Bound;

use crate::Result;

/// A table of byte strings.
#[derive(Clone, Debug)]
pub(crate) struct RawTable<'t> {
    _owner: PhantomData<&'t ()>,
}

/// A range of a table, walked from both ends; holds no latch between calls.
#[derive(Debug)]
pub(crate) struct RawRange<'t> {
    _owner: PhantomData<&'t ()>,
}

/// Streams one value. `Read + Seek`; O(1) memory.
#[derive(Debug)]
pub struct ValueReader<'t> {
    _owner: PhantomData<&'t ()>,
}

#[expect(
    unused_variables,
    dead_code,
    clippy::unused_self,
    clippy::needless_pass_by_value,
    reason = "interface"
)]
impl<'t> RawTable<'t> {
    /// Longest key, bytes.
    pub(crate) fn max_key_bytes(&self) -> usize {
        unimplemented!()
    }

    /// Appends the key's value to `out` (cleared first); whether there is one.
    pub(crate) fn get_into(&self, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        unimplemented!()
    }

    pub(crate) fn contains(&self, key: &[u8]) -> Result<bool> {
        unimplemented!()
    }

    /// Writes, without looking at what was there (a blind write).
    pub(crate) fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        unimplemented!()
    }

    /// Writes and returns the old value.
    pub(crate) fn replace(&self, key: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>> {
        unimplemented!()
    }

    /// Removes, without saying whether it was there.
    pub(crate) fn delete(&self, key: &[u8]) -> Result<()> {
        unimplemented!()
    }

    /// Removes and returns the old value.
    pub(crate) fn take(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        unimplemented!()
    }

    /// Exact number of rows, O(1).
    pub(crate) fn len(&self) -> Result<u64> {
        unimplemented!()
    }

    /// The rows between the bounds. `InvalidArgument` if they are reversed.
    pub(crate) fn range(&self, lower: Bound<Vec<u8>>, upper: Bound<Vec<u8>>) -> Result<RawRange<'t>> {
        unimplemented!()
    }

    /// Writes a value read from `source` to its end, in bounded memory; returns its length in bytes.
    pub(crate) fn put_stream(&self, key: &[u8], source: &mut dyn io::Read) -> Result<u64> {
        unimplemented!()
    }

    /// Streams a value.
    pub(crate) fn read_stream(&self, key: &[u8]) -> Result<Option<ValueReader<'t>>> {
        unimplemented!()
    }
}

#[expect(unused_variables, dead_code, clippy::unused_self, reason = "interface")]
impl RawRange<'_> {
    /// Moves to the next row from the front and fills `key` and `value` (cleared first); `false` at the end.
    pub(crate) fn next(&mut self, key: &mut Vec<u8>, value: &mut Vec<u8>) -> Result<bool> {
        unimplemented!()
    }

    /// As `next`, from the back.
    pub(crate) fn next_back(&mut self, key: &mut Vec<u8>, value: &mut Vec<u8>) -> Result<bool> {
        unimplemented!()
    }
}

#[expect(unused_variables, clippy::unused_self, reason = "interface")]
impl ValueReader<'_> {
    /// The value's length, bytes.
    pub fn len(&self) -> u64 {
        unimplemented!()
    }

    /// Whether the value is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl io::Read for ValueReader<'_> {
    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        unimplemented!()
    }
}

impl io::Seek for ValueReader<'_> {
    fn seek(&mut self, _to: io::SeekFrom) -> io::Result<u64> {
        unimplemented!()
    }
}
