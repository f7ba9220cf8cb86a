//! The log being written (interface; see the crate's documentation for the protocol).

use std::sync::Arc;

use hamal_storage::{Result, Storage};

use crate::{Lsn, Resume};

/// How a log is laid out and bounded.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Size of one segment file, bytes; a multiple of 4096. Default 64 MiB.
    pub segment_bytes: u64,
    /// Size of the buffer that appenders copy into, bytes; a power of two. Default 8 MiB.
    pub buffer_bytes: usize,
    /// The most the live log may span, from its oldest needed byte to its tail, promises included. Default 1 GiB.
    pub max_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions { segment_bytes: 64 << 20, buffer_bytes: 8 << 20, max_bytes: 1 << 30 }
    }
}

/// The log, open for appending. Shared by all threads.
#[derive(Debug)]
pub struct Log {}

/// Room in the buffer and in the log for what its holder is about to append. Taken before any latch, because
/// taking it may flush and wait; appending under it never waits and never fails.
#[derive(Debug)]
pub struct Permit<'log> {
    _log: &'log Log,
}

#[expect(unused_variables, reason = "interface")]
impl Log {
    /// Makes a new, empty log in directory `wal` (created); the first record will have [`Lsn::FIRST`].
    pub fn create(storage: Arc<dyn Storage>, options: LogOptions, incarnation: u32) -> Result<Log> {
        unimplemented!()
    }

    /// Continues a log where a [`crate::Scanner`] found its end. `incarnation` must be above every earlier one and
    /// durable already in the caller's master record; `oldest` is the first LSN still needed. What the scan relied on beyond the
    /// attested frontier is rewritten and synced first; the torn tail is cut, and that is synced, before this returns.
    pub fn resume(
        storage: Arc<dyn Storage>,
        options: LogOptions,
        incarnation: u32,
        oldest: Lsn,
        end: &Resume,
    ) -> Result<Log> {
        unimplemented!()
    }

    /// Bytes that a payload of this length takes in the log, frame and alignment included.
    pub const fn framed_bytes(payload_bytes: usize) -> u64 {
        (24 + payload_bytes as u64).next_multiple_of(8)
    }

    /// The largest payload one record may have, bytes (at least 1/8 of the buffer).
    pub fn max_payload_bytes(&self) -> usize {
        unimplemented!()
    }

    /// Room for `bytes` (sum of [`Log::framed_bytes`]) now, and a promise of `promise_bytes` more later, for
    /// compensation. Waits for a flush if the buffer is full. `LogFull` if the log has no such room; `Poisoned`.
    pub fn admit(&self, bytes: u64, promise_bytes: u64) -> Result<Permit<'_>> {
        unimplemented!()
    }

    /// Room for `bytes` out of what was promised: compensation, commit, abort, end, checkpoint records. Never
    /// `LogFull`; the promise itself is given back by [`Log::release`].
    pub fn admit_promised(&self, bytes: u64) -> Result<Permit<'_>> {
        unimplemented!()
    }

    /// Adds to the promise without appending (a checkpoint's standing reserve). `LogFull` if there is no room.
    pub fn promise(&self, bytes: u64) -> Result<()> {
        unimplemented!()
    }

    /// Gives back promised bytes that were used or are no longer needed.
    pub fn release(&self, bytes: u64) {
        unimplemented!()
    }

    /// The LSN the next record gets if nobody appends first. A load with acquire ordering.
    pub fn tail(&self) -> Lsn {
        unimplemented!()
    }

    /// Everything below this offset is durable; a record at `lsn` is durable once `durable() > lsn`.
    pub fn durable(&self) -> Lsn {
        unimplemented!()
    }

    /// The oldest LSN that can still be read.
    pub fn oldest(&self) -> Lsn {
        unimplemented!()
    }

    /// Returns when the record at `lsn` is durable: leads a group flush, or joins one. An error poisons the log
    /// for ever: outcome unknown, never retried.
    pub fn make_durable(&self, lsn: Lsn) -> Result<()> {
        unimplemented!()
    }

    /// Makes everything appended so far durable.
    pub fn flush(&self) -> Result<()> {
        unimplemented!()
    }

    /// Reads back the payload of the record at `lsn`, from the buffer or from its segment. O(payload).
    /// `Corrupt` if no valid record starts there.
    pub fn read(&self, lsn: Lsn) -> Result<Vec<u8>> {
        unimplemented!()
    }

    /// Everything below `lsn` is no longer needed: whole segments below it are recycled.
    pub fn truncate(&self, lsn: Lsn) -> Result<()> {
        unimplemented!()
    }

    /// The cause, once a write or sync has failed.
    pub fn poison(&self) -> Option<String> {
        unimplemented!()
    }

    /// Live log, bytes: from the oldest needed offset to the tail.
    pub fn used_bytes(&self) -> u64 {
        unimplemented!()
    }

    /// The promise outstanding, bytes.
    pub fn promised_bytes(&self) -> u64 {
        unimplemented!()
    }

    /// Number of flushes (syncs) so far.
    pub fn flushes(&self) -> u64 {
        unimplemented!()
    }
}

#[expect(unused_variables, reason = "interface")]
impl Permit<'_> {
    /// Appends one record: reserves by `fetch_add`, copies, publishes. Never waits. `Invalid` if the permit has less
    /// room left than the record needs (nothing is reserved then).
    pub fn append(&mut self, payload: &[u8]) -> Result<Lsn> {
        unimplemented!()
    }
}
