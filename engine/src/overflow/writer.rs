//! Writing a long value: in one pass, in memory that hardly grows with it.

use hamal_wal::Lsn;

use super::reference::{List, MAX_INLINE_RUNS, Reference, index_page, index_pages};
use super::run::{Run, allocate, fill, push};
use super::{MAX_VALUE_BYTES, Tag, index_runs, part_bytes};
use crate::journal::{Chain, Journal};
use crate::space::Space;
use crate::{Error, Result};

/// Pages are allocated this many bytes at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// Writes one value in a transaction's chain: memory for one chunk, and 8 bytes per run. A value that is not finished is taken
/// back when the transaction, or its statement, is.
#[derive(Debug)]
pub(crate) struct Writer<'w> {
    journal: &'w Journal,
    chain: &'w Chain,
    space: &'w Space,
    /// What has not been written yet: less than a chunk.
    buffer: Vec<u8>,
    written_bytes: u64,
    runs: Vec<Run>,
    /// The value's identity, once it has a run.
    value: Option<Lsn>,
    parts: u32,
}

impl<'w> Writer<'w> {
    pub(crate) fn new(journal: &'w Journal, chain: &'w Chain, space: &'w Space) -> Self {
        Writer {
            journal,
            chain,
            space,
            buffer: Vec::new(),
            written_bytes: 0,
            runs: Vec::new(),
            value: None,
            parts: 0,
        }
    }

    fn page_bytes(&self) -> usize {
        self.space.partition().page_bytes()
    }

    fn chunk_pages(&self) -> u32 {
        (CHUNK_BYTES / self.page_bytes()).max(1) as u32
    }

    /// Bytes of a value that one chunk holds.
    fn chunk_part_bytes(&self) -> usize {
        self.chunk_pages() as usize * part_bytes(self.page_bytes())
    }

    /// Appends to the value. `InvalidArgument` beyond 4 GiB. After an error the value is good for nothing but being taken back. The
    /// caller holds no latch.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        let total_bytes = self.written_bytes + (self.buffer.len() + bytes.len()) as u64;
        if total_bytes > MAX_VALUE_BYTES {
            return Err(Error::invalid(format!(
                "a value has at most {MAX_VALUE_BYTES} bytes; this one has more"
            )));
        }
        let chunk = self.chunk_part_bytes();
        if !self.buffer.is_empty() {
            let (front, rest) = bytes.split_at(bytes.len().min(chunk - self.buffer.len()));
            self.buffer.extend_from_slice(front);
            bytes = rest;
            if self.buffer.len() == chunk {
                let full = std::mem::take(&mut self.buffer);
                self.write_chunk(&full)?;
                self.buffer = full;
                self.buffer.clear();
            }
        }
        while bytes.len() >= chunk {
            let (front, rest) = bytes.split_at(chunk);
            self.write_chunk(front)?;
            bytes = rest;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes what is left; returns the reference for the row, at most `max_reference_bytes` long: beside a long key there is
    /// no room for ten runs, so fewer make an index.
    pub(crate) fn finish(mut self, max_reference_bytes: usize) -> Result<Vec<u8>> {
        let rest = std::mem::take(&mut self.buffer);
        if !rest.is_empty() {
            self.write_chunk(&rest)?;
        }
        let value = self.value.unwrap_or(Lsn::NEVER);
        let runs = std::mem::take(&mut self.runs);
        let fits =
            runs.len() <= MAX_INLINE_RUNS && Reference::inline_bytes(runs.len()) <= max_reference_bytes;
        let list = if fits { List::Inline(runs) } else { self.write_index(&runs, value)? };
        Ok(Reference { total_bytes: self.written_bytes, value, list }.encode())
    }

    /// Allocates pages for `bytes`, a chunk or the value's end, and fills them.
    fn write_chunk(&mut self, bytes: &[u8]) -> Result<()> {
        let part_bytes = part_bytes(self.page_bytes());
        let (run, lsn) = self.allocate(bytes.len().div_ceil(part_bytes) as u32)?;
        let value = *self.value.get_or_insert(lsn);
        for (page, bytes) in run.pages().zip(bytes.chunks(part_bytes)) {
            fill(self.journal, self.space, page, Tag { value: value.0, part: self.parts }, bytes)?;
            self.parts += 1;
        }
        let page_bytes = self.page_bytes();
        push(&mut self.runs, run, page_bytes);
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Writes the list of runs into a chain of pages, from its end to its beginning.
    fn write_index(&mut self, runs: &[Run], value: Lsn) -> Result<List> {
        let per_page = index_runs(self.page_bytes());
        let mut left = index_pages(runs, self.page_bytes());
        let mut next = None;
        while left > 0 {
            let (run, _) = self.allocate(left.min(self.chunk_pages()))?;
            let pages: Vec<_> = run.pages().collect();
            for page in pages.into_iter().rev() {
                left -= 1;
                let first = left as usize * per_page;
                let listed = &runs[first..runs.len().min(first + per_page)];
                let tag = Tag { value: value.0, part: Tag::FIRST_INDEX_PART + left };
                fill(self.journal, self.space, page, tag, &index_page(listed, next))?;
                next = Some(page);
            }
        }
        Ok(next.map_or(List::Inline(Vec::new()), List::Index))
    }

    fn allocate(&self, count: u32) -> Result<(Run, Lsn)> {
        allocate(self.journal, self.chain, self.space, count)
    }
}
