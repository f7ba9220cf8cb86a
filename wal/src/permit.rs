//! Admission and appending.

use hamal_storage::{Error, Result};

use crate::frame::{HEADER_BYTES, Header};
use crate::stock::Room;
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
    source: Source,
}

/// What a permit's room was counted as before: what it leaves goes back there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nothing else: it may be kept in stock.
    Ordinary,
    /// A promise, and still is: it would be counted twice in stock.
    Promised,
}

impl<'log> Permit<'log> {
    /// For [`Log`], which has accounted for the bytes.
    pub(crate) fn new(log: &'log Log, bytes: u64, source: Source) -> Self {
        Permit { log, remaining_bytes: bytes, source }
    }

    /// What may still be appended, bytes of [`Log::framed_bytes`].
    pub fn remaining_bytes(&self) -> u64 {
        self.remaining_bytes
    }

    /// Appends one record: reserves by `fetch_add`, copies, publishes. Never waits. `Invalid` if the permit has less
    /// room left than the record needs (nothing is reserved then).
    pub fn append(&mut self, payload: &[u8]) -> Result<Lsn> {
        Ok(self.place(payload)?.lsn())
    }

    /// Gives one record its place in the log, and leaves the copying to the [`Placed`], which does it when it is dropped. For those who
    /// reserve under a lock that many want. Until then everybody's commits wait, so nothing may block meanwhile. `Invalid` as
    /// [`Permit::append`].
    pub fn place<'r>(&mut self, payload: &'r [u8]) -> Result<Placed<'log, 'r>> {
        let bytes = Log::framed_bytes(payload.len());
        if bytes > self.remaining_bytes || payload.len() > self.log.max_payload_bytes() {
            return Err(Error::Invalid(format!(
                "a log record of {} bytes does not fit: {} bytes were admitted, {} is the largest payload",
                payload.len(),
                self.remaining_bytes,
                self.log.max_payload_bytes()
            )));
        }
        self.remaining_bytes -= bytes;
        Ok(Placed { log: self.log, payload, lsn: self.log.ring.reserve(bytes) })
    }
}

/// A record that has its place in the log, and is written there when this is dropped: by [`Permit::place`].
#[derive(Debug)]
#[must_use = "dropping it is what writes the record"]
pub struct Placed<'log, 'r> {
    log: &'log Log,
    payload: &'r [u8],
    lsn: u64,
}

impl Placed<'_, '_> {
    /// The record's LSN.
    pub fn lsn(&self) -> Lsn {
        Lsn(self.lsn)
    }
}

impl Drop for Placed<'_, '_> {
    fn drop(&mut self) {
        // Never ahead of the LSN, which is not published yet, and at most a buffer behind it.
        let frontier_delta = self.lsn - self.log.group.durable();
        let header = Header::sealed(
            crc32c::crc32c(self.payload),
            (HEADER_BYTES + self.payload.len()) as u32,
            self.lsn,
            self.log.incarnation,
            frontier_delta as u32,
        );
        self.log.ring.publish(&header, self.payload);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.remaining_bytes != 0 {
            let room = Room { log_bytes: self.remaining_bytes, buffer_bytes: self.remaining_bytes };
            let over = if self.source == Source::Ordinary { self.log.stock.put(room) } else { room };
            self.log.give_back(over);
        }
        self.log.group.room_given();
    }
}
