//! Many records at once, with the bytes they were read into: they can be handed to another thread, and their bytes be looked at all together.

use hamal_storage::Result;

use super::{Frame, Scanner};
use crate::Lsn;
use crate::frame::{HEADER_BYTES, Header};

/// Records that follow each other in the log. Empty when made; its memory is used again when it is filled again.
#[derive(Debug, Default)]
pub struct FrameBatch {
    buffer: Vec<u8>,
    frames: Vec<Stub>,
}

/// A record, without its payload.
#[derive(Clone, Copy, Debug)]
struct Stub {
    lsn: Lsn,
    end: Lsn,
    incarnation: u32,
    attested: Lsn,
    /// Where its payload starts in the buffer, and how long it is.
    start: usize,
    bytes: usize,
}

impl FrameBatch {
    /// What its records take in the log, bytes.
    pub fn log_bytes(&self) -> u64 {
        self.frames.first().zip(self.frames.last()).map_or(0, |(first, last)| last.end.0 - first.lsn.0)
    }

    /// Its records, in the order of the log.
    pub fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        self.frames.iter().map(|stub| Frame {
            lsn: stub.lsn,
            end: stub.end,
            incarnation: stub.incarnation,
            attested: stub.attested,
            payload: &self.buffer[stub.start..stub.start + stub.bytes],
        })
    }
}

impl Scanner {
    /// The next records, at least one, up to the end of what one read brings; `None` at the end of the log. `batch`: an old one, whose memory
    /// is used. Errors as [`Scanner::next_frame`]; what is before the damage comes first, in a batch of its own.
    pub fn next_batch(&mut self, mut batch: FrameBatch) -> Result<Option<FrameBatch>> {
        batch.frames.clear();
        while batch.frames.is_empty() || self.next_is_here() {
            let start = self.position;
            let stub = match self.next_frame() {
                Ok(Some(Frame { lsn, end, incarnation, attested, payload })) => {
                    Stub { lsn, end, incarnation, attested, start: 0, bytes: payload.len() }
                }
                Ok(None) => break,
                Err(error) if batch.frames.is_empty() => return Err(error),
                // What is before it first.
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            };
            // The window has not moved since the first one.
            batch.frames.push(Stub { start: self.window.offset(start) + HEADER_BYTES, ..stub });
        }
        if batch.frames.is_empty() {
            return Ok(None);
        }
        batch.buffer = self.window.take(self.position, batch.buffer);
        Ok(Some(batch))
    }

    /// Whether the next record, or what tells that there is none, is in the window, so that nothing has to be read.
    fn next_is_here(&self) -> bool {
        let rest = self.rest();
        let Some(header) = rest.first_chunk().map(Header::decode) else { return false };
        header.plausible(self.position).is_err() || header.padded_bytes() <= rest.len() as u64
    }
}
