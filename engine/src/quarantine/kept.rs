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

use super::file::{self, State};
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
        Ok(KeptLog { file, name, bytes: len, from: state.from, end: state.end, index: OnceLock::new() })
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
        file::remove(storage, &name)?;
        let file = storage.create(&name).map_err(|e| LowError::io("create", &name, e))?;
        let mut writer = Writer { file: &*file, name: &name, buffer: Vec::new(), written: 0 };
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
        let bytes = writer.finish()?;
        Ok(KeptLog { file, name, bytes, from: first, end, index: OnceLock::new() })
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
            let damaged = |expected: &str, found: String| Error::corrupt(&self.log.name, at, expected, found);
            if self.log.bytes - at < HEAD_BYTES as u64 {
                return Err(damaged("a record's head", format!("{} bytes", self.log.bytes - at)));
            }
            self.fill(HEAD_BYTES)?;
            let mut head = self.bytes(HEAD_BYTES);
            let len = take_u32(&mut head, "a length")?;
            let crc = take_u32(&mut head, "a checksum")?;
            let lsn = Lsn(take_u64(&mut head, "an LSN")?);
            let total = HEAD_BYTES as u64 + u64::from(len);
            let damaged = |expected: &str, found: String| Error::corrupt(&self.log.name, at, expected, found);
            if total > self.log.bytes - at || lsn <= self.previous || lsn >= self.log.end {
                return Err(damaged(
                    "a record within the file, in order",
                    format!("record {lsn} of {len} bytes"),
                ));
            }
            self.fill(total as usize)?;
            let found = crc32c::crc32c(&self.bytes(total as usize)[8..]);
            if found != crc {
                return Err(Error::corrupt(
                    &self.log.name,
                    at,
                    format!("a record with the checksum {crc:#010x}"),
                    format!("{found:#010x}"),
                ));
            }
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

struct Writer<'w> {
    file: &'w dyn File,
    name: &'w str,
    buffer: Vec<u8>,
    written: u64,
}

impl Writer<'_> {
    fn put(&mut self, lsn: Lsn, payload: &[u8]) -> Result<()> {
        put_u32(&mut self.buffer, payload.len() as u32);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&lsn.0.to_le_bytes()), payload);
        put_u32(&mut self.buffer, crc);
        put_u64(&mut self.buffer, lsn.0);
        self.buffer.extend_from_slice(payload);
        if self.buffer.len() >= PIECE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        write_all_at(self.file, &self.buffer, self.written)
            .map_err(|e| LowError::io("write", self.name, e))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<u64> {
        self.flush()?;
        self.file.sync_data().map_err(|e| LowError::io("sync", self.name, e))?;
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
        let file = storage.create(&name).unwrap();
        let mut writer = Writer { file: &*file, name: &name, buffer: Vec::new(), written: 0 };
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
