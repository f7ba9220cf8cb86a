//! The log of a quarantined partition, kept aside so that the main log can be cut. Normative: docs/file-format.md section 11.
//!
//! I1. It has every record with a part in the partition's pages, whole, in the order of the log, between two LSNs; and no outcome of a
//!     transaction: when it is written every transaction that has changed the partition has committed, or is named in the state file.
//! I2. The file is synced before its state file names it, and never changed after that.
//! I3. What is read is checked, and nothing is allocated by a length that was read before the bytes are known to be there.

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use hamal_pager::PartitionId;
use hamal_storage::{Error as LowError, File, Storage, read_exact_at, write_all_at};
use hamal_wal::{Log, Lsn};

use super::file::{self, Origin, State};
use crate::codec::{put_u32, put_u64, take_u32, take_u64};
use crate::record::Record;
use crate::{Error, Result};

/// Bytes read or written at once.
const PIECE_BYTES: usize = 256 << 10;
/// A record's head: length, checksum, LSN.
const HEAD_BYTES: usize = 16;
/// Between two places that the index has, bytes.
const INDEX_BYTES: u64 = 64 << 10;

/// The records of one partition.
#[derive(Debug)]
pub(crate) struct KeptLog {
    file: Arc<dyn File>,
    name: String,
    bytes: u64,
    pub(crate) from: Lsn,
    pub(crate) end: Lsn,
    pub(crate) origin: Option<Origin>,
    /// Places of some records, made when it is first asked.
    index: OnceLock<Vec<(Lsn, u64)>>,
}

impl KeptLog {
    /// Opens what a state file names. `Corrupt` if it is not there.
    pub(crate) fn open(storage: &dyn Storage, state: &State) -> Result<KeptLog> {
        let name = file::log_name(state.partition, state.end);
        let missing = |found: String| Error::corrupt(&name, 0, format!("{} bytes", state.kept_bytes), found);
        let file = match storage.open(&name) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(missing("no file".to_owned())),
            file => file.map_err(|e| LowError::io("open", &name, e))?,
        };
        let len = file.len().map_err(|e| LowError::io("read the length of", &name, e))?;
        if len != state.kept_bytes {
            return Err(missing(format!("{len} bytes")));
        }
        let State { from, end, origin, .. } = *state;
        Ok(KeptLog { file, name, bytes: len, from, end, origin, index: OnceLock::new() })
    }

    /// Copies a partition's records out of the log, from `from` up to `end`, which are durable; behind those of `older`, if there is
    /// such a log.
    pub(crate) fn extract(
        storage: &dyn Storage,
        log: &Log,
        id: PartitionId,
        (from, end): (Lsn, Lsn),
        older: Option<&KeptLog>,
    ) -> Result<KeptLog> {
        let name = file::log_name(id, end);
        let mut writer = Writer::create(storage, &name)?;
        let (mut first, mut start) = (from, from);
        if let Some(older) = older {
            let mut records = older.records(Lsn::NEVER);
            while let Some((lsn, payload)) = records.next()? {
                writer.put(lsn, payload)?;
            }
            first = older.from;
            start = from.max(older.end);
        }
        log.each_durable(from, end, &mut |frame| -> Result<_> {
            let record =
                Record::decode(frame.payload).map_err(|e| e.context(format!("log record {}", frame.lsn)))?;
            if frame.lsn >= start && record.parts().iter().any(|part| part.partition == id) {
                writer.put(frame.lsn, frame.payload)?;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        let file = writer.file.clone();
        let bytes = writer.finish()?;
        // Those of another history are the older ones.
        let origin = older.and_then(|older| older.origin);
        Ok(KeptLog { file, name, bytes, from: first, end, origin, index: OnceLock::new() })
    }

    /// Its length, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All records from this LSN on, in order.
    pub(crate) fn records(&self, from: Lsn) -> Records<'_> {
        Records { log: self, at: 0, from, previous: Lsn::NEVER, buffer: Vec::new(), buffer_at: 0 }
    }

    /// The payload of one record. `Corrupt` if there is none.
    pub(crate) fn read(&self, lsn: Lsn) -> Result<Vec<u8>> {
        let index = if let Some(index) = self.index.get() {
            index
        } else {
            let made = self.make_index()?;
            self.index.get_or_init(|| made)
        };
        let place = index.partition_point(|(first, _)| *first <= lsn).checked_sub(1);
        let mut records = self.records(lsn);
        records.at = place.map_or(0, |place| index[place].1);
        match records.next()? {
            Some((found, payload)) if found == lsn => Ok(payload.to_vec()),
            other => {
                let found = other.map_or_else(|| "the end".to_owned(), |(lsn, _)| format!("record {lsn}"));
                Err(Error::corrupt(&self.name, 0, format!("log record {lsn}"), found))
            }
        }
    }

    fn make_index(&self) -> Result<Vec<(Lsn, u64)>> {
        let mut index: Vec<(Lsn, u64)> = Vec::new();
        let mut records = self.records(Lsn::NEVER);
        loop {
            let at = records.at;
            let Some((lsn, _)) = records.next()? else { return Ok(index) };
            if index.last().is_none_or(|(_, last)| at - last >= INDEX_BYTES) {
                index.push((lsn, at));
            }
        }
    }
}

/// Reads records in order.
pub(crate) struct Records<'k> {
    log: &'k KeptLog,
    /// Where the next one starts.
    at: u64,
    /// Those before are passed over.
    from: Lsn,
    previous: Lsn,
    buffer: Vec<u8>,
    /// Where in the file the buffer starts.
    buffer_at: u64,
}

impl Records<'_> {
    /// The next record. `Corrupt` for anything that is none.
    pub(crate) fn next(&mut self) -> Result<Option<(Lsn, &[u8])>> {
        loop {
            if self.at == self.log.bytes {
                return Ok(None);
            }
            let at = self.at;
            let left = self.log.bytes - at;
            if left < HEAD_BYTES as u64 {
                return Err(Error::corrupt(&self.log.name, at, "a record's head", format!("{left} bytes")));
            }
            self.fill(HEAD_BYTES)?;
            let head = Head::decode(self.bytes(HEAD_BYTES))?;
            let place = Place { name: &self.log.name, at, left, previous: self.previous, end: self.log.end };
            let total = head.total(&place)?;
            self.fill(total)?;
            head.check(&self.bytes(total)[HEAD_BYTES..], &place)?;
            let (total, lsn) = (total as u64, head.lsn);
            self.at += total;
            self.previous = lsn;
            if lsn >= self.from {
                let start = (at - self.buffer_at) as usize;
                return Ok(Some((lsn, &self.buffer[start + HEAD_BYTES..start + total as usize])));
            }
        }
    }

    /// Makes so many bytes from the next record on be in the buffer. They are in the file.
    fn fill(&mut self, count: usize) -> Result<()> {
        let end = self.buffer_at + self.buffer.len() as u64;
        if self.at >= self.buffer_at && self.at + count as u64 <= end {
            return Ok(());
        }
        let len = (count.max(PIECE_BYTES) as u64).min(self.log.bytes - self.at);
        self.buffer.resize(len as usize, 0);
        self.buffer_at = self.at;
        Ok(read_exact_at(&*self.log.file, &mut self.buffer, self.at)
            .map_err(|e| LowError::io("read", &self.log.name, e))?)
    }

    fn bytes(&self, count: usize) -> &[u8] {
        let start = (self.at - self.buffer_at) as usize;
        &self.buffer[start..start + count]
    }
}

/// What a record begins with.
struct Head {
    len: u32,
    crc: u32,
    lsn: Lsn,
}

/// Where a record stands, and must fit.
struct Place<'p> {
    name: &'p str,
    at: u64,
    /// Bytes from there to the end of the file.
    left: u64,
    previous: Lsn,
    /// Records are of before this LSN.
    end: Lsn,
}

impl Head {
    fn decode(mut bytes: &[u8]) -> Result<Head> {
        let i = &mut bytes;
        let (len, crc) = (take_u32(i, "a length")?, take_u32(i, "a checksum")?);
        Ok(Head { len, crc, lsn: Lsn(take_u64(i, "an LSN")?) })
    }

    /// The record's length, bytes, all of which are in the file.
    fn total(&self, place: &Place<'_>) -> Result<usize> {
        let total = HEAD_BYTES as u64 + u64::from(self.len);
        if total > place.left || self.lsn <= place.previous || self.lsn >= place.end {
            let found = format!("record {} of {} bytes", self.lsn, self.len);
            return Err(Error::corrupt(place.name, place.at, "a record within the file, in order", found));
        }
        Ok(total as usize)
    }

    fn check(&self, payload: &[u8], place: &Place<'_>) -> Result<()> {
        let found = crc_of(self.lsn, payload);
        if found == self.crc {
            return Ok(());
        }
        let expected = format!("a record with the checksum {:#010x}", self.crc);
        Err(Error::corrupt(place.name, place.at, expected, format!("{found:#010x}")))
    }
}

fn crc_of(lsn: Lsn, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&lsn.0.to_le_bytes()), payload)
}

/// Appends a record as it is kept.
pub(crate) fn put_record(out: &mut Vec<u8>, lsn: Lsn, payload: &[u8]) {
    put_u32(out, payload.len() as u32);
    put_u32(out, crc_of(lsn, payload));
    put_u64(out, lsn.0);
    out.extend_from_slice(payload);
}

/// Takes records out of bytes that come in pieces, cut anywhere.
pub(crate) struct RecordStream {
    name: String,
    /// What has come and is not taken, from `start` on.
    buffer: Vec<u8>,
    start: usize,
    at: u64,
    bytes: u64,
    previous: Lsn,
    end: Lsn,
}

impl RecordStream {
    /// Of the records that a state file speaks of; `name` is what errors name.
    pub(crate) fn new(name: &str, state: &State) -> RecordStream {
        let (bytes, end) = (state.kept_bytes, state.end);
        let name = name.to_owned();
        RecordStream { name, buffer: Vec::new(), start: 0, at: 0, bytes, previous: Lsn::NEVER, end }
    }

    /// Takes in more bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next record, if all of it has come. `Corrupt` for anything that is none.
    pub(crate) fn next(&mut self) -> Result<Option<(Lsn, &[u8])>> {
        let bytes = &self.buffer[self.start..];
        let Some(head) = bytes.get(..HEAD_BYTES) else { return Ok(None) };
        let head = Head::decode(head)?;
        let left = self.bytes.saturating_sub(self.at);
        let place = Place { name: &self.name, at: self.at, left, previous: self.previous, end: self.end };
        let total = head.total(&place)?;
        let Some(record) = bytes.get(..total) else { return Ok(None) };
        head.check(&record[HEAD_BYTES..], &place)?;
        let start = self.start + HEAD_BYTES;
        self.start += total;
        self.at += total as u64;
        self.previous = head.lsn;
        Ok(Some((head.lsn, &self.buffer[start..self.start])))
    }

    /// At the end: `Corrupt` unless all has been taken that there should be.
    pub(crate) fn finish(&self) -> Result<()> {
        let found = self.at + (self.buffer.len() - self.start) as u64;
        if self.at == self.bytes && found == self.at {
            return Ok(());
        }
        let expected = format!("{} bytes of records", self.bytes);
        Err(Error::corrupt(&self.name, self.at, expected, format!("{found} bytes")))
    }
}

/// Writes records into a new file.
pub(crate) struct Writer {
    file: Arc<dyn File>,
    name: String,
    buffer: Vec<u8>,
    written: u64,
}

impl Writer {
    /// Makes the file, in place of one of that name.
    pub(crate) fn create(storage: &dyn Storage, name: &str) -> Result<Writer> {
        file::remove(storage, name)?;
        let file = storage.create(name).map_err(|e| LowError::io("create", name, e))?;
        Ok(Writer { file, name: name.to_owned(), buffer: Vec::new(), written: 0 })
    }

    /// Appends a record.
    pub(crate) fn put(&mut self, lsn: Lsn, payload: &[u8]) -> Result<()> {
        put_record(&mut self.buffer, lsn, payload);
        if self.buffer.len() >= PIECE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        write_all_at(&*self.file, &self.buffer, self.written)
            .map_err(|e| LowError::io("write", &self.name, e))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes the file durable; its name is not yet. Returns its length, bytes.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.flush()?;
        self.file.sync_data().map_err(|e| LowError::io("sync", &self.name, e))?;
        Ok(self.written)
    }
}

#[cfg(test)]
mod tests {
    use hamal_storage::sim::SimStorage;

    use super::*;
    use crate::ErrorKind;

    #[test]
    fn records_come_back_in_order_and_one_by_one_and_damage_is_told() {
        let disk = SimStorage::new(1);
        let storage: &dyn Storage = &disk;
        file::make_directory(storage).unwrap();
        let (id, end) = (PartitionId(4), Lsn(1 << 20));
        let name = file::log_name(id, end);
        let mut writer = Writer::create(storage, &name).unwrap();
        let payload = |n: u64| vec![n as u8; (n % 3000) as usize];
        for n in 1..400 {
            writer.put(Lsn(n * 8), &payload(n)).unwrap();
        }
        let kept_bytes = writer.finish().unwrap();
        let state = State {
            database_id: 1,
            partition: id,
            since_micros: 0,
            from: Lsn(8),
            end,
            lifted: Lsn::NEVER,
            kept_bytes,
            cause: String::new(),
            chains: Vec::new(),
            origin: None,
            is_lost: false,
        };
        let kept = KeptLog::open(storage, &state).unwrap();
        let mut records = kept.records(Lsn(800));
        for n in 100..400 {
            let (lsn, bytes) = records.next().unwrap().unwrap();
            assert_eq!((lsn, bytes), (Lsn(n * 8), &payload(n)[..]));
        }
        assert!(records.next().unwrap().is_none());
        for n in [1, 2, 77, 399] {
            assert_eq!(kept.read(Lsn(n * 8)).unwrap(), payload(n));
        }
        for lsn in [0, 12, 3200] {
            assert_eq!(kept.read(Lsn(lsn)).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        let whole = disk.read_file(&name).unwrap();
        for piece in [1, 7, 4096, whole.len()] {
            let (mut stream, mut n) = (RecordStream::new("x", &state), 0);
            for bytes in whole.chunks(piece) {
                stream.push(bytes);
                while let Some((lsn, bytes)) = stream.next().unwrap() {
                    n += 1;
                    assert_eq!((lsn, bytes), (Lsn(n * 8), &payload(n)[..]));
                }
            }
            stream.finish().unwrap();
            assert_eq!(n, 399);
            stream.push(&[0]);
            assert_eq!(stream.finish().unwrap_err().kind(), ErrorKind::Corrupt, "a byte more");
        }
        let mut cut = RecordStream::new("x", &state);
        cut.push(&whole[..whole.len() - 1]);
        while cut.next().unwrap().is_some() {}
        assert_eq!(cut.finish().unwrap_err().kind(), ErrorKind::Corrupt, "a byte less");
        // Any byte: the length, the checksum, the LSN, the payload.
        for byte in 0..40 {
            disk.flip_bit(&name, byte * 8 + 3).unwrap();
            let read = |kept: &KeptLog| -> Result<()> {
                let mut records = kept.records(Lsn::NEVER);
                while records.next()?.is_some() {}
                Ok(())
            };
            assert_eq!(read(&kept).unwrap_err().kind(), ErrorKind::Corrupt, "byte {byte}");
            disk.flip_bit(&name, byte * 8 + 3).unwrap();
        }
        assert!(KeptLog::open(storage, &State { kept_bytes: kept_bytes - 1, ..state }).is_err());
    }
}
