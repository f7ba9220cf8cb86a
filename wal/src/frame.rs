//! How one record is framed; normative in docs/file-format.md.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | CRC-32C of the payload, then of header bytes 4..24 |
//! | 4 | 4 | length: header and payload, without padding; at least 24 |
//! | 8 | 8 | LSN: where in the stream this frame starts |
//! | 16 | 4 | incarnation of the log that wrote it |
//! | 20 | 4 | frontier delta: everything below LSN - delta was durable when this was written |
//! | 24 | length - 24 | payload |
//! | | 0..7 | zeros, to a multiple of 8 |
//!
//! I1. The first eight bytes of a frame are never all zero (the length is not), so zeros are never a frame and a
//!     zero word in the ring means "not published".
//! I2. The checksum takes the payload first, so an appender can compute nearly all of it before it has an LSN.

use std::fmt;

/// Bytes before the payload.
pub(crate) const HEADER_BYTES: usize = 24;
/// The largest frame any log may hold; a longer length is damage. A quarter of the largest buffer.
pub(crate) const MAX_FRAME_BYTES: u64 = 64 << 20;

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// CRC-32C over payload and the rest of the header.
    pub(crate) crc: u32,
    /// Header and payload, bytes.
    pub(crate) length: u32,
    /// Where the frame starts.
    pub(crate) lsn: u64,
    /// Who wrote it.
    pub(crate) incarnation: u32,
    /// How far behind its LSN the durable frontier was.
    pub(crate) frontier_delta: u32,
}

impl Header {
    /// The header of a payload with checksum `payload_crc`, its own checksum filled in.
    pub(crate) fn sealed(
        payload_crc: u32,
        length: u32,
        lsn: u64,
        incarnation: u32,
        frontier_delta: u32,
    ) -> Header {
        let mut header = Header { crc: 0, length, lsn, incarnation, frontier_delta };
        header.crc = header.checksum(payload_crc);
        header
    }

    /// Reads the fields; says nothing about their truth.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Header {
        let [word0, word1, word2] =
            [0, 8, 16].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default()));
        Header {
            crc: word0 as u32,
            length: (word0 >> 32) as u32,
            lsn: word1,
            incarnation: word2 as u32,
            frontier_delta: (word2 >> 32) as u32,
        }
    }

    /// The three words a header is made of; little-endian bytes of these are the header on disk.
    pub(crate) fn words(&self) -> [u64; 3] {
        [
            u64::from(self.crc) | u64::from(self.length) << 32,
            self.lsn,
            u64::from(self.incarnation) | u64::from(self.frontier_delta) << 32,
        ]
    }

    /// What `crc` must be.
    pub(crate) fn checksum(&self, payload_crc: u32) -> u32 {
        let mut bytes = [0; HEADER_BYTES];
        for (to, word) in bytes.chunks_exact_mut(8).zip(self.words()) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        crc32c::crc32c_append(payload_crc, &bytes[4..])
    }

    /// Bytes the frame takes in the stream.
    pub(crate) fn padded_bytes(&self) -> u64 {
        padded(self.length)
    }

    /// Everything below this was durable when the frame was written.
    pub(crate) fn attested(&self) -> u64 {
        self.lsn.saturating_sub(u64::from(self.frontier_delta))
    }

    /// Whether the fields can be those of a frame at `lsn`. The payload's checksum is still open.
    pub(crate) fn plausible(&self, lsn: u64) -> Result<(), Flaw> {
        if *self == (Header { crc: 0, length: 0, lsn: 0, incarnation: 0, frontier_delta: 0 }) {
            return Err(Flaw::Zeros);
        }
        if self.lsn != lsn {
            return Err(Flaw::Lsn(self.lsn));
        }
        if (self.length as usize) < HEADER_BYTES || self.padded_bytes() > MAX_FRAME_BYTES {
            return Err(Flaw::Length(self.length));
        }
        if u64::from(self.frontier_delta) > lsn {
            return Err(Flaw::Frontier(self.frontier_delta));
        }
        Ok(())
    }

    /// Checks the checksum over a whole frame's bytes (padding may be missing).
    pub(crate) fn verify(&self, frame: &[u8]) -> Result<(), Flaw> {
        let Some(payload) = frame.get(HEADER_BYTES..self.length as usize) else {
            return Err(Flaw::Cut);
        };
        let crc = self.checksum(crc32c::crc32c(payload));
        if crc == self.crc { Ok(()) } else { Err(Flaw::Checksum { stored: self.crc, computed: crc }) }
    }
}

/// Rounds a frame's length up to what it takes in the stream.
pub(crate) const fn padded(length: u32) -> u64 {
    (length as u64).next_multiple_of(8)
}

/// What is wrong with the bytes at some position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Nothing there: the header is zeros.
    Zeros,
    /// The LSN in the header is another.
    Lsn(u64),
    /// No frame has this length.
    Length(u32),
    /// The frontier lies before the beginning.
    Frontier(u32),
    /// The files end, or a segment is missing, before the frame does.
    Cut,
    /// Checksum mismatch.
    Checksum {
        /// In the header.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// Written by an earlier incarnation than the record before it.
    Incarnation(u32),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flaw::Zeros => write!(f, "zeros"),
            Flaw::Lsn(lsn) => write!(f, "LSN field {lsn}"),
            Flaw::Length(length) => write!(f, "record length {length}"),
            Flaw::Frontier(delta) => write!(f, "durable frontier {delta} bytes back"),
            Flaw::Cut => write!(f, "the end of the file"),
            Flaw::Checksum { stored, computed } => {
                write!(f, "checksum {stored:#010x} over bytes with checksum {computed:#010x}")
            }
            Flaw::Incarnation(incarnation) => write!(f, "a record of the earlier incarnation {incarnation}"),
        }
    }
}
