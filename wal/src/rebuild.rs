//! Making the files of a log out of its bytes, in a directory that has none.
//!
//! I1. Segments are whole: what the bytes leave open is zeros. [`LogBuilder::finish`] has synced all of them and their names; until then
//!     nothing here may be relied on.

use std::sync::Arc;

use hamal_storage::{Error, File, Result, Storage, write_all_at};

use crate::segments::{DIRECTORY, identification, segment_name, sync_directory, zero_fill};
use crate::{LogOptions, Lsn};

/// Bytes collected before they are written.
const BUFFER_BYTES: usize = 1 << 20;

/// Writes a log's bytes into new segment files.
#[derive(Debug)]
pub struct LogBuilder {
    storage: Arc<dyn Storage>,
    segment_bytes: u64,
    /// The segment being written: its start and its file.
    segment: Option<(u64, Arc<dyn File>)>,
    /// Written up to here.
    written: u64,
    buffer: Vec<u8>,
}

impl LogBuilder {
    /// Starts at `from`. The directory `wal` is made if it is missing; it must have no segments.
    pub fn new(storage: Arc<dyn Storage>, segment_bytes: u64, from: Lsn) -> Result<LogBuilder> {
        LogOptions { segment_bytes, ..LogOptions::default() }.check()?;
        storage.create_directory(DIRECTORY).map_err(|e| Error::io("create", DIRECTORY, e))?;
        Ok(LogBuilder {
            storage,
            segment_bytes,
            segment: None,
            written: from.get(),
            buffer: Vec::with_capacity(BUFFER_BYTES),
        })
    }

    /// The bytes that follow.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_BYTES { self.write_buffer() } else { Ok(()) }
    }

    /// Writes what is left, fills the last segment with zeros, and makes all of it durable.
    pub fn finish(mut self) -> Result<()> {
        self.write_buffer()?;
        // An empty log still has the segment it is to go on in.
        self.open_segment()?;
        self.close_segment()?;
        sync_directory(self.storage.as_ref())
    }

    fn write_buffer(&mut self) -> Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let mut rest = &buffer[..];
        while !rest.is_empty() {
            let (first, file) = self.open_segment()?;
            let room = first + self.segment_bytes - self.written;
            let (piece, later) = rest.split_at(rest.len().min(room as usize));
            write_all_at(&*file, piece, self.written - first)
                .map_err(|e| Error::io("write", segment_name(first), e))?;
            self.written += piece.len() as u64;
            rest = later;
            if piece.len() as u64 == room {
                self.close_segment()?;
            }
        }
        self.buffer = buffer;
        self.buffer.clear();
        Ok(())
    }

    /// The segment that the next byte belongs to.
    fn open_segment(&mut self) -> Result<(u64, Arc<dyn File>)> {
        if let Some((first, file)) = &self.segment {
            return Ok((*first, Arc::clone(file)));
        }
        let first = self.written - self.written % self.segment_bytes;
        let name = segment_name(first);
        let file = self.storage.create(&name).map_err(|e| Error::io("create", &name, e))?;
        file.allocate(0, self.segment_bytes).map_err(|e| Error::io("allocate", &name, e))?;
        let mut zeros_from = 0;
        if first == 0 {
            let block = identification::encode(self.segment_bytes);
            write_all_at(&*file, &block, 0).map_err(|e| Error::io("write", &name, e))?;
            zeros_from = block.len() as u64;
        }
        zero_fill(&*file, &name, zeros_from, self.written - first)?;
        self.segment = Some((first, Arc::clone(&file)));
        Ok((first, file))
    }

    fn close_segment(&mut self) -> Result<()> {
        let Some((first, file)) = self.segment.take() else { return Ok(()) };
        let name = segment_name(first);
        zero_fill(&*file, &name, self.written - first, self.segment_bytes)?;
        file.sync_data().map_err(|e| Error::io("sync", &name, e))
    }
}
