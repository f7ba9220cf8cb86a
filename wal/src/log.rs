//! The log being written: what the parts do together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hamal_storage::{Error, Result, Storage};
use parking_lot::Mutex;

use crate::behind::ReadBehind;
use crate::budget::{Budget, Shortage};
use crate::flusher::Flusher;
use crate::frame::{HEADER_BYTES, Header, MAX_FRAME_BYTES};
use crate::group::{Group, RoomWait};
use crate::permit::Source;
use crate::ring::Ring;
use crate::segments::{
    BLOCK_BYTES, DIRECTORY, Segments, identification, is_temporary, make_segment, parse_segment_name,
    segment_name, sync_directory,
};
use crate::stock::{MOST_SHELVES, Room, Stock};
use crate::{Lsn, Permit, Resume, resume};

/// How a log is laid out and bounded.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Size of one segment file, bytes; a multiple of 4096. Default 64 MiB. Fixed for the life of a log.
    pub segment_bytes: u64,
    /// Size of the buffer that appenders copy into, bytes; a power of two from 4 KiB to 256 MiB. Default 8 MiB.
    pub buffer_bytes: usize,
    /// The most the live log may span, from its oldest needed byte to its tail, promises included. Default 1 GiB.
    pub max_bytes: u64,
    /// Number of groups that threads are put into, each of which keeps some room of its own in stock, 1 to 16. Default 16. With 1 it does
    /// not depend on who asks whether there is room.
    pub shelves: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            segment_bytes: 64 << 20,
            buffer_bytes: 8 << 20,
            max_bytes: 1 << 30,
            shelves: MOST_SHELVES,
        }
    }
}

impl LogOptions {
    /// `Invalid` if no log can have these.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |what: String| Err(Error::Invalid(what));
        if self.segment_bytes == 0
            || !self.segment_bytes.is_multiple_of(BLOCK_BYTES)
            || self.segment_bytes > 1 << 40
        {
            return invalid(format!("segment_bytes is {}: not a multiple of 4096", self.segment_bytes));
        }
        let buffers = BLOCK_BYTES as usize..=4 * MAX_FRAME_BYTES as usize;
        if !self.buffer_bytes.is_power_of_two() || !buffers.contains(&self.buffer_bytes) {
            return invalid(format!(
                "buffer_bytes is {}: not a power of two from 4 KiB to 256 MiB",
                self.buffer_bytes
            ));
        }
        if self.max_bytes < self.buffer_bytes as u64 || self.max_bytes > 1 << 60 {
            return invalid(format!("max_bytes is {}: less than the buffer, or absurd", self.max_bytes));
        }
        if !(1..=MOST_SHELVES).contains(&self.shelves) {
            return invalid(format!("shelves is {}: not from 1 to {MOST_SHELVES}", self.shelves));
        }
        Ok(())
    }
}

/// Counters since open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogStats {
    /// Group flushes.
    pub flushes: u64,
    /// Most threads that one flush has served: who led it, and who had waited for it.
    pub largest_group: u64,
    /// Calls of sync on a segment: one a flush, more where a flush crosses segments.
    pub syncs: u64,
    /// Bytes written by flushes, whole blocks.
    pub written_bytes: u64,
    /// Admissions that found the buffer full.
    pub room_waits: u64,
    /// Segments made and zero-filled.
    pub segments_made: u64,
    /// Segments recycled.
    pub segments_recycled: u64,
    /// Segments removed.
    pub segments_removed: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    flushes: AtomicU64,
    syncs: AtomicU64,
    written_bytes: AtomicU64,
    room_waits: AtomicU64,
}

/// The log, open for appending. Shared by all threads.
#[derive(Debug)]
pub struct Log {
    pub(crate) ring: Ring,
    pub(crate) group: Group,
    pub(crate) budget: Budget,
    pub(crate) stock: Stock,
    pub(crate) incarnation: u32,
    options: LogOptions,
    segments: Segments,
    behind: ReadBehind,
    /// The leader's; no one else ever waits for it.
    flusher: Mutex<Flusher>,
    counters: Counters,
}

impl Log {
    /// Makes a new, empty log in directory `wal` (created); the first record will have [`Lsn::FIRST`].
    ///
    /// The caller knows that there is no database here: log files that an unfinished creation left are removed.
    pub fn create(storage: Arc<dyn Storage>, options: LogOptions, incarnation: u32) -> Result<Log> {
        options.check()?;
        storage.create_directory(DIRECTORY).map_err(|e| Error::io("create", DIRECTORY, e))?;
        storage.sync_directory("").map_err(|e| Error::io("sync", "the database directory", e))?;
        let names = storage.list(DIRECTORY).map_err(|e| Error::io("list", DIRECTORY, e))?;
        for name in names.iter().filter(|name| parse_segment_name(name).is_some() || is_temporary(name)) {
            let name = format!("{DIRECTORY}/{name}");
            storage.remove(&name).map_err(|e| Error::io("remove", &name, e))?;
        }
        sync_directory(storage.as_ref())?;
        let block = identification::encode(options.segment_bytes);
        let file = make_segment(storage.as_ref(), 0, options.segment_bytes, &block)?;
        let files = BTreeMap::from([(0, file)]);
        let start = Lsn::FIRST.get();
        let segments = Segments::new(storage, options.segment_bytes, files, options.segment_bytes, start);
        Ok(Log::assemble(options, incarnation, Lsn::FIRST, start, &[], segments))
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
        options.check()?;
        if incarnation <= end.incarnation {
            return Err(Error::Invalid(format!(
                "incarnation {incarnation} is not above {}, which the log has seen",
                end.incarnation
            )));
        }
        if oldest < Lsn::FIRST || oldest > end.end || !end.end.get().is_multiple_of(8) {
            return Err(Error::Invalid(format!("no log spans {oldest} to {}", end.end)));
        }
        let (segments, block) = resume::settle(storage, &options, oldest.get(), end)?;
        Ok(Log::assemble(options, incarnation, oldest, end.end.get(), &block, segments))
    }

    fn assemble(
        options: LogOptions,
        incarnation: u32,
        oldest: Lsn,
        tail: u64,
        block: &[u8],
        segments: Segments,
    ) -> Log {
        Log {
            ring: Ring::new(options.buffer_bytes, tail),
            group: Group::new(tail),
            budget: Budget::new(oldest.get(), tail, options.max_bytes),
            stock: Stock::new(&options),
            incarnation,
            segments,
            behind: ReadBehind::new(),
            flusher: Mutex::new(Flusher::new(tail, block, options.buffer_bytes)),
            counters: Counters::default(),
            options,
        }
    }

    /// How the log is laid out and bounded.
    pub fn options(&self) -> &LogOptions {
        &self.options
    }

    /// Bytes that a payload of this length takes in the log, frame and alignment included.
    pub const fn framed_bytes(payload_bytes: usize) -> u64 {
        (HEADER_BYTES as u64 + payload_bytes as u64).next_multiple_of(8)
    }

    /// The largest payload one record may have, bytes: a quarter of the buffer, less the frame.
    pub fn max_payload_bytes(&self) -> usize {
        self.options.buffer_bytes / 4 - HEADER_BYTES
    }

    /// Room for `bytes` (sum of [`Log::framed_bytes`]) now, and a promise of `promise_bytes` more later, for
    /// compensation. Waits for a flush if the buffer is full. `LogFull` if the log has no such room; `Poisoned`;
    /// `Io` if the disk has no room for another segment (nothing is harmed then). The promise outlives the permit:
    /// [`Log::release`] ends it.
    pub fn admit(&self, bytes: u64, promise_bytes: u64) -> Result<Permit<'_>> {
        self.check_fits_buffer(bytes)?;
        self.group.check()?;
        if !self.stock.take(bytes, promise_bytes) && !self.refill(bytes, promise_bytes) {
            self.speak_for(bytes.saturating_add(promise_bytes))?;
            if let Err(error) = self.claim(bytes) {
                self.budget.give_back(bytes + promise_bytes);
                return Err(error);
            }
            self.stock.promised(promise_bytes);
        }
        Ok(Permit::new(self, bytes, Source::Ordinary))
    }

    /// Room for `bytes` now if that takes no waiting, no flush and no new segment. For records that nothing depends on, by callers that
    /// may have room already.
    pub fn try_admit(&self, bytes: u64) -> Option<Permit<'_>> {
        self.check_fits_buffer(bytes).and_then(|()| self.group.check()).ok()?;
        if !self.stock.take(bytes, 0) {
            self.budget.speak_for(bytes, self.segments.prepared_end()).ok()?;
            if !self.ring.try_claim(bytes) {
                self.budget.give_back(bytes);
                return None;
            }
        }
        Some(Permit::new(self, bytes, Source::Ordinary))
    }

    /// Room for `bytes` out of what was promised: compensation, commit, abort, end, checkpoint records. Never
    /// `LogFull`; the promise itself is given back by [`Log::release`].
    pub fn admit_promised(&self, bytes: u64) -> Result<Permit<'_>> {
        self.check_fits_buffer(bytes)?;
        self.group.check()?;
        if self.stock.take(bytes, 0) || self.refill(bytes, 0) {
            return Ok(Permit::new(self, bytes, Source::Ordinary));
        }
        self.budget.speak_for_promised(bytes);
        let claimed = self.claim(bytes).and_then(|()| {
            // It was spoken for when it was promised, and so prepared, unless more is used than was promised. Be kind if the disk allows.
            let reach = self.ring.claimed();
            if reach <= self.segments.prepared_end() {
                return Ok(());
            }
            self.segments.prepare_to(reach).inspect_err(|_| self.ring.unclaim(bytes))
        });
        if let Err(error) = claimed {
            self.budget.give_back(bytes);
            self.group.room_given();
            return Err(error);
        }
        Ok(Permit::new(self, bytes, Source::Promised))
    }

    /// Adds to the promise without appending (a checkpoint's standing reserve). `LogFull` if there is no room.
    pub fn promise(&self, bytes: u64) -> Result<()> {
        self.group.check()?;
        self.speak_for(bytes)?;
        self.stock.promised(bytes);
        Ok(())
    }

    /// Gives back promised bytes that were used or are no longer needed.
    pub fn release(&self, bytes: u64) {
        self.give_back(self.stock.release(bytes));
    }

    /// Prepares the next segment if less than one is ready beyond what is spoken for. For a background thread, so
    /// that no writer has to; a failure (a full disk) is not an error until somebody needs the room.
    pub fn prepare_ahead(&self) {
        if self.group.check().is_ok() {
            let wanted = self.budget.spoken_for() + self.segments.segment_bytes();
            self.segments.prepare_ahead(wanted.min(self.budget.limit()));
        }
    }

    /// The LSN the next record gets if nobody appends first. A load with acquire ordering.
    pub fn tail(&self) -> Lsn {
        Lsn(self.ring.tail())
    }

    /// Everything below this offset is durable; a record at `lsn` is durable once `durable() > lsn`.
    pub fn durable(&self) -> Lsn {
        Lsn(self.group.durable())
    }

    /// The oldest LSN that can still be read.
    pub fn oldest(&self) -> Lsn {
        Lsn(self.budget.oldest())
    }

    /// Returns when the record at `lsn` is durable: leads a group flush, or joins one. An error poisons the log
    /// for ever: outcome unknown, never retried. `Invalid` if the log has no such LSN yet.
    pub fn make_durable(&self, lsn: Lsn) -> Result<()> {
        if self.group.durable() > lsn.get() {
            return Ok(());
        }
        let tail = self.tail();
        if lsn >= tail {
            return Err(Error::Invalid(format!("no log record at {lsn}: the log ends at {tail}")));
        }
        // The frontier only ever stands between records, so beyond `lsn` means beyond the record.
        self.reach(lsn.get() + 1)
    }

    /// Makes everything appended so far durable.
    pub fn flush(&self) -> Result<()> {
        self.reach(self.ring.tail())
    }

    /// Reads back the payload of the record at `lsn`, from the buffer or from its segment. O(payload).
    /// `Corrupt` if no valid record starts there.
    pub fn read(&self, lsn: Lsn) -> Result<Vec<u8>> {
        let at = lsn.get();
        let (oldest, tail) = (self.budget.oldest(), self.ring.tail());
        if at < oldest || at.saturating_add(HEADER_BYTES as u64) > tail || !at.is_multiple_of(8) {
            return Err(self.no_record(at, &format!("a log from {oldest} to {tail}")));
        }
        if self.group.durable() <= at {
            let frame = self.ring.peek(at, tail);
            // Only if the frontier is still behind was the ring's copy not being zeroed meanwhile.
            if self.group.durable() <= at {
                let mut frame = frame.ok_or_else(|| self.no_record(at, "unpublished bytes"))?;
                let header = self.check_header(at, &frame, tail)?;
                header.verify(&frame).map_err(|flaw| self.no_record(at, &flaw.to_string()))?;
                frame.truncate(header.length as usize);
                frame.drain(..HEADER_BYTES);
                return Ok(frame);
            }
        }
        self.read_file(at)
    }

    /// Fills `out` with the durable bytes of the stream from `from` on: for copies of the log. `Invalid` if they are not all between
    /// [`Log::oldest`] and [`Log::durable`]. The caller keeps the log from being cut there.
    pub fn read_durable(&self, from: Lsn, out: &mut [u8]) -> Result<()> {
        let end = from.get().saturating_add(out.len() as u64);
        let check = || {
            let (oldest, durable) = (self.budget.oldest(), self.group.durable());
            if from.get() < oldest || end > durable {
                return Err(Error::Invalid(format!(
                    "log bytes {from} to {end} are not durable and there: the log has {oldest} to {durable}"
                )));
            }
            Ok(())
        };
        check()?;
        self.segments.read(from.get(), out)?;
        // A segment that was cut meanwhile may have been recycled under the read.
        check()
    }

    fn read_file(&self, at: u64) -> Result<Vec<u8>> {
        // Most records are short: one read gets header and payload.
        const FIRST_READ_BYTES: u64 = 1024;
        if let Some(behind) = self.behind.step(at) {
            self.segments.will_need(behind.start.max(self.budget.oldest()), behind.end);
        }
        let durable = self.group.durable();
        let mut frame = vec![0; FIRST_READ_BYTES.min(durable - at) as usize];
        self.segments.read(at, &mut frame)?;
        let header = self.check_header(at, &frame, durable)?;
        let (have, length) = (frame.len(), header.length as usize);
        frame.resize(length, 0);
        if length > have {
            self.segments.read(at + have as u64, &mut frame[have..])?;
        }
        header.verify(&frame).map_err(|flaw| self.no_record(at, &flaw.to_string()))?;
        frame.drain(..HEADER_BYTES);
        Ok(frame)
    }

    /// The header at the start of `frame`, if it can be that of a record at `at` which ends by `limit`.
    fn check_header(&self, at: u64, frame: &[u8], limit: u64) -> Result<Header> {
        let header = frame.first_chunk().map(Header::decode);
        let header = header.ok_or_else(|| self.no_record(at, "the end of the log"))?;
        header.plausible(at).map_err(|flaw| self.no_record(at, &flaw.to_string()))?;
        if at + header.padded_bytes() > limit {
            return Err(self.no_record(at, &format!("record length {}", header.length)));
        }
        Ok(header)
    }

    fn no_record(&self, at: u64, found: &str) -> Error {
        let first = self.segments.first_of(at);
        Error::Corrupt {
            file: segment_name(first),
            offset: at - first,
            expected: format!("the record with LSN {at}"),
            found: found.to_owned(),
        }
    }

    /// Everything below `lsn` is no longer needed: whole segments below it are recycled. `Invalid` beyond the durable
    /// frontier. An error leaves the log as usable as before.
    pub fn truncate(&self, lsn: Lsn) -> Result<()> {
        let durable = self.durable();
        if lsn > durable {
            return Err(Error::Invalid(format!("the log is durable to {durable}: cannot be cut at {lsn}")));
        }
        self.budget.forget_below(lsn.get());
        self.segments.recycle_below(self.budget.oldest(), self.ring.tail(), self.budget.limit())
    }

    /// The cause, once a write or sync has failed.
    pub fn poison(&self) -> Option<String> {
        self.group.cause()
    }

    /// Live log, bytes: from the oldest needed offset to the tail.
    pub fn used_bytes(&self) -> u64 {
        let oldest = self.budget.oldest();
        self.ring.tail() - oldest
    }

    /// Room that nobody has spoken for, bytes: what is neither in use, nor promised, nor in stock.
    pub fn free_bytes(&self) -> u64 {
        self.budget.limit().saturating_sub(self.budget.spoken_for())
    }

    /// The promise outstanding, bytes.
    pub fn promised_bytes(&self) -> u64 {
        self.stock.promised_bytes()
    }

    /// Number of flushes (syncs) so far.
    pub fn flushes(&self) -> u64 {
        self.counters.flushes.load(Ordering::Relaxed)
    }

    /// Counters since open.
    pub fn stats(&self) -> LogStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LogStats {
            flushes: load(&self.counters.flushes),
            largest_group: self.group.largest() as u64,
            syncs: load(&self.counters.syncs),
            written_bytes: load(&self.counters.written_bytes),
            room_waits: load(&self.counters.room_waits),
            segments_made: load(&self.segments.counters.made),
            segments_recycled: load(&self.segments.counters.recycled),
            segments_removed: load(&self.segments.counters.removed),
        }
    }

    fn check_fits_buffer(&self, bytes: u64) -> Result<()> {
        if bytes > self.ring.capacity() {
            return Err(Error::Invalid(format!(
                "{bytes} bytes at once do not fit a log buffer of {}",
                self.ring.capacity()
            )));
        }
        Ok(())
    }

    /// Room for a permit and for stock at once, if there is plenty of both.
    fn refill(&self, bytes: u64, promise_bytes: u64) -> bool {
        let stock = self.stock.refill();
        let spoken_for = bytes.saturating_add(promise_bytes).saturating_add(stock.log_bytes);
        let prepared_end = self.segments.prepared_end();
        let Ok(reach) = self.budget.speak_for(spoken_for, prepared_end) else {
            return false;
        };
        if !self.ring.try_claim(bytes + stock.buffer_bytes) {
            self.budget.give_back(spoken_for);
            return false;
        }
        self.look_ahead(reach, prepared_end);
        self.stock.promised(promise_bytes);
        self.give_back(self.stock.put(stock));
        true
    }

    /// Room in the log, preparing segments where it takes them.
    fn speak_for(&self, bytes: u64) -> Result<()> {
        let mut cleared = false;
        loop {
            let prepared_end = self.segments.prepared_end();
            match self.budget.speak_for(bytes, prepared_end) {
                Ok(reach) => {
                    self.look_ahead(reach, prepared_end);
                    return Ok(());
                }
                Err(Shortage::Unprepared { up_to }) => self.segments.prepare_to(up_to)?,
                Err(Shortage::Full { .. }) if !cleared => {
                    self.give_back(self.stock.clear());
                    cleared = true;
                }
                Err(Shortage::Full { available_bytes }) => {
                    return Err(Error::LogFull { needed_bytes: bytes, available_bytes });
                }
            }
        }
    }

    fn look_ahead(&self, reach: u64, prepared_end: u64) {
        if prepared_end - reach < self.segments.segment_bytes() / 2 {
            self.prepare_ahead();
        }
    }

    /// Room that nobody has any more.
    pub(crate) fn give_back(&self, room: Room) {
        // In this order: claims lie within what is spoken for.
        if room.buffer_bytes > 0 {
            self.ring.unclaim(room.buffer_bytes);
        }
        if room.log_bytes > 0 {
            self.budget.give_back(room.log_bytes);
        }
    }

    /// Room in the ring, flushing or waiting where it takes that.
    fn claim(&self, bytes: u64) -> Result<()> {
        if self.ring.try_claim(bytes) {
            return Ok(());
        }
        self.counters.room_waits.fetch_add(1, Ordering::Relaxed);
        let try_claim = || {
            self.ring.unclaim(self.stock.clear_buffer());
            self.ring.try_claim(bytes)
        };
        let flushable = || {
            let durable = self.group.durable();
            (self.ring.tail() > durable).then_some(durable + 1)
        };
        loop {
            match self.group.wait_for_room(try_claim, flushable)? {
                RoomWait::Claimed => return Ok(()),
                RoomWait::FlushWanted { at_least } => self.reach(at_least)?,
            }
        }
    }

    fn reach(&self, at_least: u64) -> Result<()> {
        self.group.reach(at_least, &|| self.segments.monotonic(), |at_least| {
            let done = self.flusher.lock().flush(&self.ring, &self.group, &self.segments, at_least)?;
            self.counters.flushes.fetch_add(1, Ordering::Relaxed);
            self.counters.syncs.fetch_add(done.syncs, Ordering::Relaxed);
            self.counters.written_bytes.fetch_add(done.written_bytes, Ordering::Relaxed);
            Ok(())
        })
    }
}
