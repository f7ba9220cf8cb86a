//! Reading a long value: a page at a time, from any place, in memory that does not grow with it.

use std::io;
use std::sync::Arc;

use hamal_pager::{PageNo, Partition};

use super::reference::{Reference, Runs, read_page};
use super::{Tag, data_pages, part_bytes};
use crate::node::Damage;
use crate::space::damaged;
use crate::{Error, ErrorKind, Result};

/// Reads one value. It holds no latch between calls; whoever opened it sees to it that the value is not freed meanwhile (if it
/// were, reading would give `Corrupt`, never another value's bytes).
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    partition: Arc<Partition>,
    runs: Runs,
    /// Place in the value; may lie behind its end.
    position: u64,
    cursor: Cursor,
}

/// A run of the piece at hand, and which part of the value it begins with.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    run: usize,
    first_part: u32,
}

impl Reader {
    /// Opens the value that a row's reference stands for. Reads no page yet.
    pub(crate) fn open(partition: &Arc<Partition>, reference: &[u8]) -> Result<Reader> {
        let runs = Runs::new(partition, Reference::decode(partition, reference)?)?;
        Ok(Reader { partition: Arc::clone(partition), runs, position: 0, cursor: Cursor::default() })
    }

    /// The value's length, bytes.
    pub(crate) fn len(&self) -> u64 {
        self.runs.reference().total_bytes
    }

    /// Fills the front of `buffer` with what comes next; 0 at the end. Ends early at the end of a page.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.with_part(|part| {
            let count = part.len().min(buffer.len());
            buffer[..count].copy_from_slice(&part[..count]);
            count
        })
    }

    /// Appends all that is left.
    pub(crate) fn read_to_end(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let left = self.len().saturating_sub(self.position);
        // The length is within the file's (reference), but that may be more than there is memory.
        let room = usize::try_from(left).ok().and_then(|left| out.try_reserve_exact(left).ok());
        room.ok_or_else(|| {
            Error::new(ErrorKind::Limit, format!("there is no memory for a value of {left} bytes"))
        })?;
        while self.with_part(|part| {
            out.extend_from_slice(part);
            part.len()
        })? > 0
        {}
        Ok(())
    }

    /// Moves to another place, which may lie behind the end.
    pub(crate) fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let target = match to {
            io::SeekFrom::Start(position) => Some(position),
            io::SeekFrom::End(offset) => self.len().checked_add_signed(offset),
            io::SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = target.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "a place before the beginning of a value, or beyond 2^64",
            )
        })?;
        Ok(self.position)
    }

    /// Gives `take` what comes next in the page at hand (nothing at the end), and moves on by as many bytes as it says.
    fn with_part(&mut self, take: impl FnOnce(&[u8]) -> usize) -> Result<usize> {
        if self.position >= self.len() {
            return Ok(0);
        }
        let full_bytes = part_bytes(self.partition.page_bytes()) as u64;
        let (part, start) = ((self.position / full_bytes) as u32, (self.position % full_bytes) as usize);
        let part_len = full_bytes.min(self.len() - u64::from(part) * full_bytes) as usize;
        let page_no = self.page_of(part)?;
        let tag = Tag { value: self.runs.reference().value.0, part };
        let taken = read_page(&self.partition, page_no, tag, |bytes| {
            if bytes.len() != part_len {
                let damage =
                    Damage { expected: "a part of the length its value has", found: bytes.len() as u64 };
                return Err(damaged(&self.partition, page_no, damage));
            }
            Ok(take(&bytes[start..]))
        })?;
        self.position += taken as u64;
        Ok(taken)
    }

    /// The page that has this part, which the value has.
    fn page_of(&mut self, part: u32) -> Result<PageNo> {
        debug_assert!(
            part < data_pages(self.len(), self.partition.page_bytes()),
            "the position is in the value"
        );
        if part < self.runs.parts_before {
            self.runs.rewind(&self.partition)?;
            self.cursor = Cursor::default();
        }
        while part >= self.runs.parts_before + self.runs.parts {
            if self.runs.advance(&self.partition)?.is_none() {
                // Runs add up to the value's pages, so this is not reached.
                return Err(Error::new(ErrorKind::Corrupt, "an overflow value ends before its length"));
            }
            self.cursor = Cursor { run: 0, first_part: self.runs.parts_before };
        }
        if part < self.cursor.first_part {
            self.cursor = Cursor { run: 0, first_part: self.runs.parts_before };
        }
        loop {
            let run = self.runs.piece[self.cursor.run];
            let at = part - self.cursor.first_part;
            if at < run.count {
                return Ok(PageNo(run.first.0 + at));
            }
            self.cursor = Cursor { run: self.cursor.run + 1, first_part: self.cursor.first_part + run.count };
        }
    }
}
