//! Draining the ring into the segments, in whole blocks.
//!
//! I1. Every write starts and ends on a block boundary, so the kernel never reads to complete a page; the bytes
//!     after the last record of a block are zeros. The block that the frontier lies in is kept here and written
//!     again, its durable bytes unchanged.
//! I2. A flush that writes little writes past the system's cache, one that writes much through it (docs/adr/0019): all of a flush is written
//!     in the same way.
//! I3. Order of a flush: copy, write, sync each segment touched, move the durable frontier, zero and free the ring. What is much is
//!     found, copied and written piece by piece, so that a piece comes from another processor's cache once.

use std::sync::Arc;

use hamal_storage::{
    DIRECT_BLOCK_BYTES, DirectBuffer, Error, File, Result, write_all_at, write_all_direct_at,
};

use crate::group::Group;
use crate::ring::Ring;
use crate::segments::{BLOCK_BYTES, Segments, segment_name};

/// A piece, and the largest single write, bytes: twice as much fits the caches that a processor has for itself.
const CHUNK_BYTES: u64 = 128 << 10;
/// A flush that writes no more than this writes past the system's cache.
const DIRECT_BYTES: u64 = 64 << 10;

const _: () = assert!((BLOCK_BYTES as usize).is_multiple_of(DIRECT_BLOCK_BYTES));
const _: () = assert!(DIRECT_BYTES < CHUNK_BYTES, "what ends the first piece early is all that there is");

/// What only the leader touches.
#[derive(Debug)]
pub(crate) struct Flusher {
    /// Everything below is in the files and synced.
    position: u64,
    /// Holds the bytes from `position` rounded down to a block.
    staging: DirectBuffer,
    current: Option<(u64, Arc<dyn File>)>,
}

/// Part of a flush: up to where, and whether it is a small flush, or its last piece.
#[derive(Clone, Copy, Debug)]
struct Piece {
    to: u64,
    is_small: bool,
    is_last: bool,
}

/// What a flush did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flushed {
    pub(crate) written_bytes: u64,
    pub(crate) syncs: u64,
}

impl Flusher {
    /// Starts at `position`; `block` is what the files hold from there back to the last block boundary.
    pub(crate) fn new(position: u64, block: &[u8], buffer_bytes: usize) -> Self {
        debug_assert_eq!(block.len() as u64, position % BLOCK_BYTES);
        // One block more than the ring holds: a full ring may start inside a block.
        let mut staging = DirectBuffer::new(CHUNK_BYTES.min(buffer_bytes as u64 + BLOCK_BYTES) as usize);
        staging[..block.len()].copy_from_slice(block);
        Flusher { position, staging, current: None }
    }

    /// Makes everything published durable, and waits for what is not up to `at_least`.
    pub(crate) fn flush(
        &mut self,
        ring: &Ring,
        group: &Group,
        segments: &Segments,
        at_least: u64,
    ) -> Result<Flushed> {
        let from = self.position;
        // A long flush does not follow those who go on appending: that is for the next one.
        let tail = ring.tail();
        debug_assert!(at_least <= tail, "nobody would append what is waited for");
        let mut done = Flushed::default();
        let mut to = ring.published_end(from, at_least, CHUNK_BYTES);
        if from == to {
            return Ok(done);
        }
        let is_small = to - (from - from % BLOCK_BYTES) <= DIRECT_BYTES;
        loop {
            // Not beyond the tail: where the ring is full, its first frame comes after its last one.
            let next = if to < tail && !is_small {
                ring.published_end(to, at_least, CHUNK_BYTES.min(tail - to))
            } else {
                to
            };
            self.write(ring, segments, Piece { to, is_small, is_last: next == to }, &mut done)?;
            if next == to {
                break;
            }
            to = next;
        }
        self.sync_current(&mut done)?;
        group.advance(to);
        ring.retire(from, to);
        Ok(done)
    }

    fn write(
        &mut self,
        ring: &Ring,
        segments: &Segments,
        Piece { to, is_small, is_last }: Piece,
        done: &mut Flushed,
    ) -> Result<()> {
        let write_all = if is_small { write_all_direct_at } else { write_all_at };
        while self.position < to {
            let start = self.position - self.position % BLOCK_BYTES;
            let first = segments.first_of(start);
            let file = self.switch_to(segments, first, done)?;
            let upto = to.min(start + self.staging.len() as u64).min(first + segments.segment_bytes());
            let (kept, used) = ((self.position - start) as usize, (upto - start) as usize);
            let begun = used - used % BLOCK_BYTES as usize;
            ring.copy_out(self.position, &mut self.staging[kept..used]);
            let whole = if is_last { used.next_multiple_of(BLOCK_BYTES as usize) } else { begun };
            if whole > 0 {
                self.staging[used.min(whole)..whole].fill(0);
                write_all(file.as_ref(), &self.staging[..whole], start - first)
                    .map_err(|e| Error::io("write", segment_name(first), e))?;
                done.written_bytes += whole as u64;
            }
            // Keep the block that `upto` lies in.
            self.staging.copy_within(begun..used, 0);
            self.position = upto;
        }
        Ok(())
    }

    /// The file to write to; the one before is synced first if it is another.
    fn switch_to(&mut self, segments: &Segments, first: u64, done: &mut Flushed) -> Result<Arc<dyn File>> {
        if let Some((current, file)) = &self.current
            && *current == first
        {
            return Ok(Arc::clone(file));
        }
        if done.written_bytes != 0 {
            self.sync_current(done)?;
        }
        let file = segments.file(first).ok_or_else(|| {
            Error::Invalid(format!(
                "the log reached {} without having its room prepared",
                segment_name(first)
            ))
        })?;
        self.current = Some((first, Arc::clone(&file)));
        Ok(file)
    }

    fn sync_current(&mut self, done: &mut Flushed) -> Result<()> {
        if let Some((first, file)) = &self.current {
            file.sync_data().map_err(|e| Error::io("sync", segment_name(*first), e))?;
            done.syncs += 1;
        }
        Ok(())
    }
}
