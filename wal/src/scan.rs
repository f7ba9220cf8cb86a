//! Reading the log forward (interface).

use std::sync::Arc;

use hamal_storage::{Result, Storage};

use crate::{LogOptions, Lsn};

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
pub struct Scanner {}

#[expect(unused_variables, reason = "interface")]
impl Scanner {
    /// Starts at `from`, which must be the start of a record (or the end of the log). `attested`: the caller knows
    /// (from its master record) that everything below it was durable.
    pub fn open(
        storage: Arc<dyn Storage>,
        options: &LogOptions,
        from: Lsn,
        attested: Lsn,
    ) -> Result<Scanner> {
        unimplemented!()
    }

    /// The next record, or `None` at the end of the log. `Corrupt` for damage below what anything valid attests
    /// as durable (hazard H1), naming segment file and LSN.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>> {
        unimplemented!()
    }

    /// Once `next_frame` has returned `None`: why it did.
    pub fn end(&self) -> Option<&End> {
        unimplemented!()
    }

    /// Once `next_frame` has returned `None`: what `Log::resume` needs.
    pub fn resume(&self) -> Option<Resume> {
        unimplemented!()
    }
}
