//! Reading the log forward, and deciding where it ends. Read-only.
//!
//! What the scan meets at a position X where a record should start, and what that means. "Witness": a valid record
//! beyond X, of the same or a later incarnation than the record before X, that attests a durable frontier
//! beyond X (its writer knew that X was on disk). "Sworn": the caller's `attested` is beyond X.
//!
//! | case | at X | beyond X | verdict |
//! |---|---|---|---|
//! | R1 | a valid record, incarnation not below its predecessor's | | replay it |
//! | R2 | anything else | sworn | `Corrupt`: somebody was told that this is durable |
//! | R3 | anything else | not sworn, but a witness | `Corrupt`, for the same reason |
//! | R4 | a valid record of an earlier incarnation | no witness | end of log, torn: left by a cut tail (H1) |
//! | R5 | zeros | no witness | end of log, clean |
//! | R6 | other bytes: a torn record, or what a recycled segment held | no witness | end of log, torn |
//! | R7 | no segment, or the file ends | no witness | end of log: the newest segment's name was lost (F8), or a full one was the last |
//! | R8 | a record that runs into a missing segment or the end of the file | no witness | end of log, torn |
//! | R9 | the system fails to read | | that error; nothing is decided |
//!
//! "Valid": length possible, LSN field = X, checksum right, frontier not beyond X. A witness is looked for in the
//! next two buffers' worth of bytes that exist, and at the start of each later segment: as the frontier is never
//! further behind a record than one buffer, the first record that starts a buffer's length beyond X is a
//! witness if the log really went on.
//!
//! I1. Nothing is allocated by a length that was read until that many bytes are known to exist.
//! I2. The search for a witness computes checksums only of headers that claim to be one, and only a bounded number
//!     of bytes in all, so it is linear in what it looks at whatever the bytes are.

mod batch;
mod source;
mod window;
mod witness;

use std::sync::Arc;

use hamal_storage::{Error, Result, Storage};

pub use self::batch::FrameBatch;
pub(crate) use self::source::{Source, list};
use self::window::Window;
use crate::frame::{Flaw, HEADER_BYTES, Header};
use crate::segments::{BLOCK_BYTES, identification, segment_name};
use crate::{LogOptions, Lsn};

/// Bytes read at a time: of 32 KiB to 1 MiB what was fastest, beside 64 KiB (docs/benchmarks.md).
const CHUNK_BYTES: u64 = 128 << 10;
/// How far ahead the system is asked to read, bytes, at most; and not further than what has been read already, as a log may be short.
const AHEAD_BYTES: u64 = 4 << 20;

/// One record as found in the log.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Where it starts.
    pub lsn: Lsn,
    /// Where the next one would start.
    pub end: Lsn,
    /// The log's incarnation when it was written.
    pub incarnation: u32,
    /// Everything below this was durable when it was written.
    pub attested: Lsn,
    /// The payload, opaque here.
    pub payload: &'a [u8],
}

/// Why and where a scan ended.
#[derive(Clone, Debug)]
pub struct End {
    /// The first byte that is not part of a valid record.
    pub lsn: Lsn,
    /// Bytes of a torn or stale record were found there, rather than zeros or the end of the files.
    pub torn: bool,
}

/// What [`crate::Log::resume`] needs of a finished scan.
#[derive(Clone, Debug)]
pub struct Resume {
    /// Where the log ends.
    pub end: Lsn,
    /// The highest frontier any valid record, or the caller, attested.
    pub attested: Lsn,
    /// The highest incarnation seen.
    pub incarnation: u32,
}

/// Reads records forward from a known start; read-only, changes nothing on disk.
#[derive(Debug)]
pub struct Scanner {
    source: Source,
    /// How far beyond the end a witness is looked for.
    look_ahead_bytes: u64,
    /// The bytes that exist without a gap, and are to be read, end here.
    readable_end: u64,
    /// Nothing at or beyond this is looked at.
    to: u64,
    window: Window,
    /// Where it started.
    begin: u64,
    /// The system has been asked to read what is below.
    asked: u64,
    position: u64,
    incarnation: u32,
    attested: u64,
    end: Option<End>,
    /// What is to be said next: a batch has ended before it.
    failed: Option<Error>,
}

impl Scanner {
    /// Starts at `from`, which must be the start of a record (or the end of the log). `attested`: the caller knows
    /// (from its master record) that everything below it was durable.
    #[expect(clippy::needless_pass_by_value, reason = "like all that work on a storage")]
    pub fn open(
        storage: Arc<dyn Storage>,
        options: &LogOptions,
        from: Lsn,
        attested: Lsn,
    ) -> Result<Scanner> {
        Self::open_within(&*storage, options, from, attested, u64::MAX)
    }

    /// Reads a part of a log that is known to be there, from `from` up to `to`, where a record ends. Nothing beyond is looked at, for the log may
    /// be written to there at the same time: half a flush looks like damage.
    #[expect(clippy::needless_pass_by_value, reason = "like all that work on a storage")]
    pub fn open_between(
        storage: Arc<dyn Storage>,
        options: &LogOptions,
        from: Lsn,
        to: Lsn,
    ) -> Result<Scanner> {
        Self::open_within(&*storage, options, from, to, to.get())
    }

    fn open_within(
        storage: &dyn Storage,
        options: &LogOptions,
        from: Lsn,
        attested: Lsn,
        to: u64,
    ) -> Result<Scanner> {
        options.check()?;
        let from = from.get();
        if from < Lsn::FIRST.get() || !from.is_multiple_of(8) {
            return Err(Error::Invalid(format!("no log record starts at {from}")));
        }
        let source = Source::open(storage, options.segment_bytes, from)?;
        source.check_identification()?;
        // A smaller buffer than the log was written with must not blind the search for a witness.
        let buffer_bytes = (options.buffer_bytes as u64).max(LogOptions::default().buffer_bytes as u64);
        Ok(Scanner {
            look_ahead_bytes: 2 * buffer_bytes,
            readable_end: source.contiguous_end(from).min(to),
            to,
            source,
            window: Window::at(from),
            begin: from,
            asked: from,
            position: from,
            incarnation: 0,
            attested: attested.get(),
            end: None,
            failed: None,
        })
    }

    /// The next record, or `None` at the end of the log. `Corrupt` for damage below what anything valid attests
    /// as durable (hazard H1), naming segment file and LSN.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if self.end.is_some() {
            return Ok(None);
        }
        if self.position >= self.to {
            self.end = Some(End { lsn: Lsn(self.position), torn: false });
            return Ok(None);
        }
        let header = match self.examine()? {
            Ok(header) => header, // R1
            Err(flaw) => {
                self.end = Some(self.conclude(flaw)?);
                return Ok(None);
            }
        };
        let start = self.position;
        self.position += header.padded_bytes();
        self.incarnation = header.incarnation;
        self.attested = self.attested.max(header.attested());
        Ok(Some(Frame {
            lsn: Lsn(header.lsn),
            end: Lsn(self.position),
            incarnation: header.incarnation,
            attested: Lsn(header.attested()),
            payload: &self.window.from(start)[HEADER_BYTES..header.length as usize],
        }))
    }

    /// Once there are no more records: why.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Once there are no more records: what `Log::resume` needs.
    pub fn resume(&self) -> Option<Resume> {
        self.end.as_ref().map(|end| Resume {
            end: end.lsn,
            attested: Lsn(self.attested),
            incarnation: self.incarnation,
        })
    }

    /// Checks the record at the position and brings it into the window whole.
    fn examine(&mut self) -> Result<Result<Header, Flaw>> {
        if !self.fill(HEADER_BYTES as u64)? {
            return Ok(Err(Flaw::Cut));
        }
        let Some(header) = self.rest().first_chunk().map(Header::decode) else { return Ok(Err(Flaw::Cut)) };
        if let Err(flaw) = header.plausible(self.position) {
            return Ok(Err(flaw));
        }
        if !self.fill(header.padded_bytes())? {
            return Ok(Err(Flaw::Cut));
        }
        if let Err(flaw) = header.verify(self.rest()) {
            return Ok(Err(flaw));
        }
        if header.incarnation < self.incarnation {
            return Ok(Err(Flaw::Incarnation(header.incarnation)));
        }
        Ok(Ok(header))
    }

    /// There is no record at the position: damage, or the end?
    fn conclude(&self, flaw: Flaw) -> Result<End> {
        if self.attested > self.position {
            return Err(self.damage(flaw, &format!("everything below {} was made durable", self.attested))); // R2
        }
        let witness = witness::search(&self.source, self.position, self.incarnation, self.look_ahead_bytes)?;
        match witness {
            None => {}
            Some(witness::Found::Record(header)) => {
                let why = format!(
                    "the record with LSN {} attests that everything below {} was made durable",
                    header.lsn,
                    header.attested()
                );
                return Err(self.damage(flaw, &why)); // R3
            }
            Some(witness::Found::TooManyClaims) => {
                return Err(self.damage(flaw, "too many damaged records follow that claim so"));
            }
        }
        let torn = match flaw {
            Flaw::Zeros => false, // R5
            Flaw::Cut => self.readable_end > self.position && self.rest().iter().any(|byte| *byte != 0), // R7, R8
            _ => true, // R4, R6
        };
        Ok(End { lsn: Lsn(self.position), torn })
    }

    fn damage(&self, flaw: Flaw, why: &str) -> Error {
        let first = self.source.first_of(self.position);
        let found = match flaw {
            Flaw::Cut if !self.source.has(first) => "no such file".to_owned(),
            other => other.to_string(),
        };
        Error::Corrupt {
            file: segment_name(first),
            offset: self.position - first,
            expected: format!("the record with LSN {} ({why})", self.position),
            found,
        }
    }

    /// The window from the position on.
    fn rest(&self) -> &[u8] {
        self.window.from(self.position)
    }

    /// Brings at least `bytes` from the position into the window; false if so many do not exist.
    fn fill(&mut self, bytes: u64) -> Result<bool> {
        let wanted = self.position + bytes;
        if wanted <= self.window.end() {
            return Ok(true);
        }
        if wanted > self.readable_end {
            return Ok(false);
        }
        // Whole blocks, and what is asked for in any case.
        let to = (self.window.end() + CHUNK_BYTES).next_multiple_of(BLOCK_BYTES).max(wanted);
        self.window.move_to(self.position, to.min(self.readable_end), &self.source)?;
        self.look_ahead();
        Ok(true)
    }

    /// Lets the system read on while somebody looks at what is here.
    fn look_ahead(&mut self) {
        let end = self.window.end();
        let ahead = AHEAD_BYTES.min(end - self.begin);
        let (from, to) = (self.asked.max(end), (end + ahead).min(self.readable_end));
        if from < to {
            self.source.will_need(from, to);
            self.asked = to;
        }
    }
}

impl Source {
    /// Checks the stream's first block, if its segment is still there.
    fn check_identification(&self) -> Result<()> {
        if !self.has(0) {
            return Ok(());
        }
        let corrupt = |expected, found| Error::Corrupt { file: segment_name(0), offset: 0, expected, found };
        if self.contiguous_end(0) < BLOCK_BYTES {
            return Err(corrupt("a log segment".into(), "a shorter file".into()));
        }
        let mut bytes = [0; identification::BYTES];
        self.read(0, &mut bytes)?;
        let segment_bytes =
            identification::decode(&bytes).map_err(|(expected, found)| corrupt(expected, found))?;
        if segment_bytes == self.segment_bytes() {
            Ok(())
        } else {
            Err(Error::Invalid(format!(
                "the log was made with segments of {segment_bytes} bytes, not {}",
                self.segment_bytes()
            )))
        }
    }
}
