//! Values as streams: written from a source, and read, in O(1) memory.

use std::io::{self, Read as _};

use hamal_pager::PartitionId;

use super::RawTable;
use crate::tree::Tree;
use crate::{Error, ErrorKind, Result, overflow};

/// Bytes read at a time from the source of a streamed value.
const STREAM_BYTES: usize = 64 << 10;

impl<'t> RawTable<'t> {
    /// Writes a value read from `source` to its end, in bounded memory; returns its length in bytes. An error of the source is
    /// `Io`, and leaves the old value.
    pub(crate) fn put_stream(&self, key: &[u8], source: &mut dyn io::Read) -> Result<u64> {
        let writer = self.writer()?;
        let transaction = writer.transaction;
        self.check_key(key)?;
        let inline = Tree::max_inline_bytes(self.engine().page_bytes, key.len());
        // Before the source is touched, for it can be refused.
        let place = self.place(&writer, key)?;
        let mut head = Vec::new();
        transaction.call_out(|| read_up_to(source, &mut head, inline + 1))?;
        if head.len() <= inline {
            self.put(key, &head)?;
            return Ok(head.len() as u64);
        }
        // A source can be read only once, so this statement is not tried again when the log is full.
        let mut once = Some(source);
        transaction.row_statement(&self.table, &place.chain, || {
            let source = once.take().ok_or_else(|| {
                Error::new(ErrorKind::LogFull, "the log is full, and the value's source cannot be read again")
            })?;
            let mut writer = self.overflow_writer(&place);
            let mut total = head.len() as u64;
            self.told(place.route, writer.write(&head))?;
            let mut chunk = Vec::with_capacity(STREAM_BYTES);
            loop {
                chunk.clear();
                transaction.call_out(|| read_up_to(&mut *source, &mut chunk, STREAM_BYTES))?;
                if chunk.is_empty() {
                    break;
                }
                self.told(place.route, writer.write(&chunk))?;
                total += chunk.len() as u64;
            }
            let reference = self.told(place.route, writer.finish(inline))?;
            self.write_row(transaction, &place, key, (&reference, true), false)?;
            Ok(total)
        })
    }

    /// Streams the long value that a row of this key has a reference to ([`super::RawRange::next_stored`]).
    pub(crate) fn long_value(&self, key: &[u8], reference: &[u8]) -> Result<ValueReader<'t>> {
        let route = self.routes().of(key);
        let reader = overflow::Reader::open(&route.handle.partition, reference);
        let source = Source::Overflow(self.told(route, reader)?, route.id());
        Ok(ValueReader { source, table: self.clone() })
    }

    /// Streams a value.
    pub(crate) fn read_stream(&self, key: &[u8]) -> Result<Option<ValueReader<'t>>> {
        if key.len() > self.max_key_bytes() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let found = self.read_row(key, |row| {
            bytes.extend_from_slice(row.value);
            row.overflow
        })?;
        let source = match found {
            None => return Ok(None),
            Some(false) => Source::Inline(io::Cursor::new(bytes)),
            Some(true) => return self.long_value(key, &bytes).map(Some),
        };
        Ok(Some(ValueReader { source, table: self.clone() }))
    }
}

/// Appends up to `limit` bytes of `source`.
fn read_up_to(source: &mut dyn io::Read, out: &mut Vec<u8>, limit: usize) -> Result<()> {
    io::Read::take(source, limit as u64)
        .read_to_end(out)
        .map(|_| ())
        .map_err(|e| hamal_storage::Error::io("read", "the value's source", e).into())
}

#[derive(Debug)]
enum Source {
    Inline(io::Cursor<Vec<u8>>),
    /// And the partition it is in.
    Overflow(overflow::Reader, PartitionId),
}

/// Streams one value: `Read + Seek`, in O(1) memory. Made by a table's `reader`. It reads the value as it was when it was
/// opened, until the transaction or snapshot ends; but of a value that the transaction has written itself and then taken back to a
/// savepoint, a long one is gone: the reader may fail (`Corrupt`), and never gives other bytes.
#[derive(Debug)]
pub struct ValueReader<'t> {
    source: Source,
    table: RawTable<'t>,
}

impl ValueReader<'_> {
    /// The value's length, bytes.
    pub fn len(&self) -> u64 {
        match &self.source {
            Source::Inline(bytes) => bytes.get_ref().len() as u64,
            Source::Overflow(reader, _) => reader.len(),
        }
    }

    /// Whether the value is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl io::Read for ValueReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.source {
            Source::Inline(bytes) => bytes.read(buffer),
            Source::Overflow(reader, id) => {
                let blame = |error| io::Error::other(self.table.engine().blame(*id, error));
                reader.read(buffer).map_err(blame)
            }
        }
    }
}

impl io::Seek for ValueReader<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        match &mut self.source {
            Source::Inline(bytes) => bytes.seek(to),
            Source::Overflow(reader, _) => reader.seek(to),
        }
    }
}
