//! Records out of stream bytes that come from elsewhere than the log's files: from copies of the log.
//!
//! Unlike a scan there is nothing to decide: what was copied had been durable, so whatever is no valid record is damage.
//!
//! I1. Nothing is allocated by a length that was read: the window grows by the bytes that are pushed, alone.

use std::ops::ControlFlow;

use hamal_storage::{Error, Result};

use crate::frame::{Flaw, HEADER_BYTES, Header};
use crate::{Frame, Log, Lsn};

/// Bytes of a live log read at once.
const PIECE_BYTES: u64 = 256 << 10;

/// Takes stream bytes in order, hands out records.
#[derive(Debug)]
pub struct FrameStream {
    window: Vec<u8>,
    /// Where in the window the next record starts.
    at: usize,
    /// Its LSN.
    position: u64,
    incarnation: u32,
}

impl FrameStream {
    /// Starts at `from`, where a record starts.
    pub fn new(from: Lsn) -> FrameStream {
        FrameStream { window: Vec::new(), at: 0, position: from.get(), incarnation: 0 }
    }

    /// The bytes that follow.
    pub fn push(&mut self, bytes: &[u8]) {
        self.window.drain(..self.at);
        self.at = 0;
        self.window.extend_from_slice(bytes);
    }

    /// Where the next record starts.
    pub fn position(&self) -> Lsn {
        Lsn(self.position)
    }

    /// Bytes pushed that belong to no record handed out yet.
    pub fn rest_bytes(&self) -> usize {
        self.window.len() - self.at
    }

    /// The highest incarnation seen.
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// The next record and the bytes it takes in the stream; `None`: more bytes are needed. `Corrupt`, naming `source` and the LSN, if no
    /// record starts there.
    pub fn next_frame(&mut self, source: &str) -> Result<Option<(Frame<'_>, &[u8])>> {
        let Some(header) = self.window[self.at..].first_chunk().map(Header::decode) else { return Ok(None) };
        let position = self.position;
        let damage = |flaw: Flaw| Error::Corrupt {
            file: source.to_owned(),
            offset: position,
            expected: format!("the log record with LSN {position}"),
            found: flaw.to_string(),
        };
        header.plausible(position).map_err(damage)?;
        let padded = header.padded_bytes() as usize;
        if self.rest_bytes() < padded {
            return Ok(None);
        }
        let raw = &self.window[self.at..self.at + padded];
        header.verify(raw).map_err(damage)?;
        if header.incarnation < self.incarnation {
            return Err(damage(Flaw::Incarnation(header.incarnation)));
        }
        self.incarnation = header.incarnation;
        self.at += padded;
        self.position += padded as u64;
        let frame = Frame {
            lsn: Lsn(header.lsn),
            end: Lsn(self.position),
            incarnation: header.incarnation,
            attested: Lsn(header.attested()),
            payload: &raw[HEADER_BYTES..header.length as usize],
        };
        Ok(Some((frame, raw)))
    }
}

impl Log {
    /// Shows `visit` all records from `from`, where one starts, up to `to`, which is durable, in order, until it breaks. Reads 256 KiB at a
    /// time. `Corrupt`, naming the LSN, if no record starts where one must; `Invalid` as [`Log::read_durable`]. The caller keeps the log from
    /// being cut there.
    pub fn each_durable<E: From<Error>>(
        &self,
        from: Lsn,
        to: Lsn,
        visit: &mut dyn FnMut(&Frame<'_>) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        let (mut frames, mut at, mut bytes) = (FrameStream::new(from), from, Vec::new());
        while at < to {
            let count = (to.0 - at.0).min(PIECE_BYTES);
            bytes.resize(count as usize, 0);
            self.read_durable(at, &mut bytes)?;
            at.0 += count;
            frames.push(&bytes);
            while let Some((frame, _)) = frames.next_frame("the log")? {
                if visit(&frame)?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
