//! One table as bytes, inside a transaction or snapshot. The typed tables stand on it.
//!
//! I1. Each operation is one statement: done, or without effect. Decoding the old value is part of it.
//! I2. The table's `delta` moves with every row that appears or goes, so that `len` is exact and O(1).

mod range;

use std::io::{self, Read as _};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::change::Row;
use crate::engine::Engine;
use crate::journal::{Author, Chain};
use crate::snapshot::Snapshot;
use crate::transaction::{OpenTable, Transaction};
use crate::tree::{Decision, Tree};
use crate::{Error, ErrorKind, Result, overflow};

pub(crate) use range::RawRange;

/// Bytes read at a time from the source of a streamed value.
const STREAM_BYTES: usize = 64 << 10;

/// Who a table was opened in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owner<'t> {
    Transaction(&'t Transaction),
    Snapshot(&'t Snapshot),
}

/// A table of byte strings.
#[derive(Clone, Debug)]
pub(crate) struct RawTable<'t> {
    owner: Owner<'t>,
    table: Arc<OpenTable>,
}

/// What was there before a write.
#[derive(Debug, Default)]
struct Before {
    existed: bool,
    /// The old value, where it was wanted and inline.
    value: Option<Vec<u8>>,
    /// The old value's overflow reference.
    reference: Option<Vec<u8>>,
}

impl Before {
    fn see(&mut self, row: Option<Row<'_>>, wanted: bool) {
        *self = Before::default();
        if let Some(row) = row.filter(|r| !r.ghost) {
            self.existed = true;
            if row.overflow {
                self.reference = Some(row.value.to_vec());
            } else if wanted {
                self.value = Some(row.value.to_vec());
            }
        }
    }
}

impl<'t> RawTable<'t> {
    pub(crate) fn new(owner: Owner<'t>, table: Arc<OpenTable>) -> Self {
        RawTable { owner, table }
    }

    pub(crate) fn engine(&self) -> &'t Engine {
        match self.owner {
            Owner::Transaction(t) => t.engine(),
            Owner::Snapshot(s) => s.engine(),
        }
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.table.tree
    }

    /// Changes of this transaction so far: a range that finds another number descends again.
    pub(crate) fn writes(&self) -> u64 {
        self.table.writes.load(Ordering::Relaxed)
    }

    /// Longest key, bytes.
    pub(crate) fn max_key_bytes(&self) -> usize {
        Tree::max_key_bytes(self.engine().page_bytes)
    }

    fn check_key(&self, key: &[u8]) -> Result<()> {
        let max = self.max_key_bytes();
        if key.len() > max {
            return Err(Error::invalid(format!("a key of {} bytes is longer than {max} bytes", key.len())));
        }
        Ok(())
    }

    /// The transaction and its chain; snapshots cannot write.
    fn writer(&self) -> Result<(&'t Transaction, &Chain)> {
        match (self.owner, &self.table.chain) {
            (Owner::Transaction(t), Some(chain)) => {
                t.check_writable(&self.table)?;
                Ok((t, chain))
            }
            _ => Err(Error::invalid("a snapshot is read-only")),
        }
    }

    /// Appends the key's value to `out` (cleared first); whether there is one.
    pub(crate) fn get_into(&self, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        out.clear();
        if key.len() > self.max_key_bytes() {
            return Ok(false);
        }
        let found = self.table.tree.get(key, |row| {
            if row.ghost {
                return None;
            }
            out.extend_from_slice(row.value);
            Some(row.overflow)
        })?;
        match found.flatten() {
            None => Ok(false),
            Some(false) => Ok(true),
            Some(true) => {
                let reference = std::mem::take(out);
                self.resolve(&reference, out)?;
                Ok(true)
            }
        }
    }

    /// Fills `out` with the value that an overflow reference stands for.
    pub(crate) fn resolve(&self, reference: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let mut reader = overflow::Reader::open(&self.table.handle.partition, reference)?;
        reader.read_to_end(out)
    }

    pub(crate) fn contains(&self, key: &[u8]) -> Result<bool> {
        if key.len() > self.max_key_bytes() {
            return Ok(false);
        }
        Ok(self.table.tree.get(key, |row| !row.ghost)?.unwrap_or(false))
    }

    /// Writes, without looking at what was there (a blind write).
    pub(crate) fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.write(key, value, false, |_| Ok(())).map(|_| ())
    }

    /// Writes and returns the old value, decoded.
    pub(crate) fn replace<T>(
        &self,
        key: &[u8],
        value: &[u8],
        decode: impl FnMut(Vec<u8>) -> Result<T>,
    ) -> Result<Option<T>> {
        self.write(key, value, true, decode)
    }

    fn write<T>(
        &self,
        key: &[u8],
        value: &[u8],
        wanted: bool,
        mut decode: impl FnMut(Vec<u8>) -> Result<T>,
    ) -> Result<Option<T>> {
        let (transaction, chain) = self.writer()?;
        self.check_key(key)?;
        let inline = Tree::max_inline_bytes(self.engine().page_bytes, key.len());
        transaction.row_statement(&self.table, chain, || {
            let old = if value.len() <= inline {
                self.write_row(chain, key, value, false, wanted)?
            } else {
                let mut writer = self.overflow_writer(chain);
                writer.write(value)?;
                let reference = writer.finish(inline)?;
                self.write_row(chain, key, &reference, true, wanted)?
            };
            old.map(&mut decode).transpose()
        })
    }

    fn overflow_writer<'w>(&'w self, chain: &'w Chain) -> overflow::Writer<'w> {
        overflow::Writer::new(&self.engine().journal, chain, &self.table.handle.space)
    }

    /// Writes the row, and lists the extents of the value it replaces for freeing.
    fn write_row(
        &self,
        chain: &Chain,
        key: &[u8],
        value: &[u8],
        overflow: bool,
        wanted: bool,
    ) -> Result<Option<Vec<u8>>> {
        let mut before = Before::default();
        let row = Row { stamp: chain.txn(), ghost: false, overflow, value };
        self.table.tree.update(
            &self.engine().journal,
            Author::Transaction(chain),
            key,
            value.len(),
            &mut |old| {
                before.see(old, wanted);
                Ok(Decision::Write(row))
            },
        )?;
        self.after_write(chain, before, true, wanted)
    }

    /// Removes the row; its bytes stay in a ghost.
    fn remove_row(&self, chain: &Chain, key: &[u8], wanted: bool) -> Result<Option<Vec<u8>>> {
        let mut before = Before::default();
        self.table.tree.update(&self.engine().journal, Author::Transaction(chain), key, 0, &mut |old| {
            before.see(old, wanted);
            Ok(if before.existed { Decision::Remove(chain.txn()) } else { Decision::Keep })
        })?;
        self.after_write(chain, before, false, wanted)
    }

    fn after_write(
        &self,
        chain: &Chain,
        before: Before,
        exists: bool,
        wanted: bool,
    ) -> Result<Option<Vec<u8>>> {
        let handle = &self.table.handle;
        let mut value = before.value;
        if let Some(reference) = &before.reference {
            if wanted {
                let mut bytes = Vec::new();
                self.resolve(reference, &mut bytes)?;
                value = Some(bytes);
            }
            overflow::unlink(&self.engine().journal, chain, &handle.space, reference)?;
            handle.pending.store(true, Ordering::Relaxed);
        }
        if before.existed && (!exists || before.reference.is_some()) {
            handle.garbage.fetch_add(1, Ordering::Relaxed);
        }
        self.table.delta.fetch_add(i64::from(exists) - i64::from(before.existed), Ordering::Relaxed);
        self.table.writes.fetch_add(1, Ordering::Relaxed);
        Ok(value)
    }

    /// Removes, without saying whether it was there.
    pub(crate) fn delete(&self, key: &[u8]) -> Result<()> {
        self.remove(key, false, |_| Ok(())).map(|_| ())
    }

    /// Removes and returns the old value, decoded.
    pub(crate) fn take<T>(&self, key: &[u8], decode: impl FnMut(Vec<u8>) -> Result<T>) -> Result<Option<T>> {
        self.remove(key, true, decode)
    }

    fn remove<T>(
        &self,
        key: &[u8],
        wanted: bool,
        mut decode: impl FnMut(Vec<u8>) -> Result<T>,
    ) -> Result<Option<T>> {
        let (transaction, chain) = self.writer()?;
        if key.len() > self.max_key_bytes() {
            return Ok(None);
        }
        transaction.row_statement(&self.table, chain, || {
            self.remove_row(chain, key, wanted)?.map(&mut decode).transpose()
        })
    }

    /// Exact number of rows, O(1).
    pub(crate) fn len(&self) -> Result<u64> {
        let committed = self.engine().commits.lock().counts.get(&self.table.id).copied().unwrap_or(0);
        let delta = self.table.delta.load(Ordering::Relaxed);
        committed.checked_add_signed(delta).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("a table of {committed} rows cannot have lost {delta}"))
        })
    }

    /// The rows between the bounds. `InvalidArgument` if they are reversed.
    pub(crate) fn range(&self, lower: Bound<Vec<u8>>, upper: Bound<Vec<u8>>) -> Result<RawRange<'t>> {
        RawRange::new(self.clone(), lower, upper)
    }

    /// Writes a value read from `source` to its end, in bounded memory; returns its length in bytes. An error of the source is
    /// `Io`, and leaves the old value.
    pub(crate) fn put_stream(&self, key: &[u8], source: &mut dyn io::Read) -> Result<u64> {
        let (transaction, chain) = self.writer()?;
        self.check_key(key)?;
        let inline = Tree::max_inline_bytes(self.engine().page_bytes, key.len());
        let mut head = Vec::new();
        read_up_to(source, &mut head, inline + 1)?;
        if head.len() <= inline {
            self.put(key, &head)?;
            return Ok(head.len() as u64);
        }
        // A source can be read only once, so this statement is not tried again when the log is full.
        let mut once = Some(source);
        transaction.row_statement(&self.table, chain, || {
            let source = once.take().ok_or_else(|| {
                Error::new(ErrorKind::LogFull, "the log is full, and the value's source cannot be read again")
            })?;
            let mut writer = self.overflow_writer(chain);
            let mut total = head.len() as u64;
            writer.write(&head)?;
            let mut chunk = Vec::with_capacity(STREAM_BYTES);
            loop {
                chunk.clear();
                read_up_to(&mut *source, &mut chunk, STREAM_BYTES)?;
                if chunk.is_empty() {
                    break;
                }
                writer.write(&chunk)?;
                total += chunk.len() as u64;
            }
            let reference = writer.finish(inline)?;
            self.write_row(chain, key, &reference, true, false)?;
            Ok(total)
        })
    }

    /// Streams a value.
    pub(crate) fn read_stream(&self, key: &[u8]) -> Result<Option<ValueReader<'t>>> {
        if key.len() > self.max_key_bytes() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let found = self.table.tree.get(key, |row| {
            bytes.extend_from_slice(row.value);
            (!row.ghost).then_some(row.overflow)
        })?;
        let source = match found.flatten() {
            None => return Ok(None),
            Some(false) => Source::Inline(io::Cursor::new(bytes)),
            Some(true) => Source::Overflow(overflow::Reader::open(&self.table.handle.partition, &bytes)?),
        };
        Ok(Some(ValueReader { source, _table: self.clone() }))
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
    Overflow(overflow::Reader),
}

/// Streams one value: `Read + Seek`, in O(1) memory. Made by a table's `reader`. It reads the value as it was when it was
/// opened, until the transaction or snapshot ends.
#[derive(Debug)]
pub struct ValueReader<'t> {
    source: Source,
    _table: RawTable<'t>,
}

impl ValueReader<'_> {
    /// The value's length, bytes.
    pub fn len(&self) -> u64 {
        match &self.source {
            Source::Inline(bytes) => bytes.get_ref().len() as u64,
            Source::Overflow(reader) => reader.len(),
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
            Source::Overflow(reader) => reader.read(buffer).map_err(io::Error::other),
        }
    }
}

impl io::Seek for ValueReader<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        match &mut self.source {
            Source::Inline(bytes) => bytes.seek(to),
            Source::Overflow(reader) => reader.seek(to),
        }
    }
}
