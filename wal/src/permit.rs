//! Admission and appending.

use hamal_storage::{Error, Result};

use crate::frame::{HEADER_BYTES, Header};
use crate::{Log, Lsn};

/// Room in the buffer and in the log for what its holder is about to append. Taken before any latch, because
/// taking it may flush and wait; appending under it never waits and never fails. What is left when it is dropped goes
/// back.
///
/// A thread holds at most one at a time, and not for long: others may be waiting for its room.
#[derive(Debug)]
pub struct Permit<'log> {
    log: &'log Log,
    remaining_bytes: u64,
}

impl<'log> Permit<'log> {
    /// For [`Log`], which has accounted for the bytes.
    pub(crate) fn new(log: &'log Log, bytes: u64) -> Self {
        Permit { log, remaining_bytes: bytes }
    }

    /// What may still be appended, bytes of [`Log::framed_bytes`].
    pub fn remaining_bytes(&self) -> u64 {
        self.remaining_bytes
    }

    /// Appends one record: reserves by `fetch_add`, copies, publishes. Never waits. `Invalid` if the permit has less
    /// room left than the record needs (nothing is reserved then).
    pub fn append(&mut self, payload: &[u8]) -> Result<Lsn> {
        let bytes = Log::framed_bytes(payload.len());
        if bytes > self.remaining_bytes || payload.len() > self.log.max_payload_bytes() {
            return Err(Error::Invalid(format!(
                "a log record of {} bytes does not fit: {} bytes were admitted, {} is the largest payload",
                payload.len(),
                self.remaining_bytes,
                self.log.max_payload_bytes()
            )));
        }
        let payload_crc = crc32c::crc32c(payload);
        // Between reserving and publishing everybody's commits wait for this thread: nothing here may block.
        let lsn = self.log.ring.reserve(bytes);
        // Never ahead of `lsn`, which is not published yet, and at most a buffer behind it.
        let frontier_delta = lsn - self.log.group.durable();
        let header = Header::sealed(
            payload_crc,
            (HEADER_BYTES + payload.len()) as u32,
            lsn,
            self.log.incarnation,
            frontier_delta as u32,
        );
        self.log.ring.publish(&header, payload);
        self.remaining_bytes -= bytes;
        Ok(Lsn(lsn))
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.remaining_bytes != 0 {
            self.log.ring.unclaim(self.remaining_bytes);
            self.log.budget.give_back(self.remaining_bytes);
        }
        self.log.group.room_given();
    }
}
