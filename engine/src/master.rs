//! The two copies of the master record: where the last checkpoint is. Normative: docs/file-format.md section 2.
//!
//! I1. Both copies are written, one after the other, each synced before the next: at any instant one of them is whole, and the
//!     log that it needs is still there, because truncation comes after both.
//! I2. A database exists once a master record does. Before that, `CREATING` marks what a broken-off creation left.

use std::sync::Arc;

use hamal_storage::{Error as LowError, File, Storage, read_exact_at, write_all_at};
use hamal_wal::Lsn;

use crate::codec::{put_u32, put_u64, take, take_u32, take_u64};
use crate::options::LOG_SEGMENT_BYTES;
use crate::{Error, ErrorKind, Result};

const MAGIC: &[u8; 8] = b"HAMALMST";
/// The version of every on-disk format together; another version is refused.
pub(crate) const FORMAT_VERSION: u32 = 1;
const MASTER_BYTES: usize = 4096;
/// The highest LSN a master record may hold.
const MAX_LSN: u64 = 1 << 62;
/// The names of the two copies.
pub(crate) const NAMES: [&str; 2] = ["MASTER-A", "MASTER-B"];
/// Marks a directory in which a database is being made.
pub(crate) const CREATING: &str = "CREATING";
/// Marks a directory into which a database is being restored: whatever else is there is no database.
pub(crate) const RESTORING: &str = "RESTORING";

/// What the master record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Master {
    pub(crate) sequence: u64,
    pub(crate) database_id: u64,
    pub(crate) page_bytes: usize,
    pub(crate) incarnation: u32,
    pub(crate) log_segment_bytes: u64,
    /// BEGIN record of the last complete checkpoint.
    pub(crate) checkpoint_lsn: Lsn,
    /// Everything below this was durable when the record was written.
    pub(crate) attested: Lsn,
    /// Oldest LSN that redo or undo may need, or that the archive has not got.
    pub(crate) oldest_lsn: Lsn,
    /// The log below was written about other copies of the files: what it says of pages on disk is not true of these. 0: none of it was.
    pub(crate) restored_to: Lsn,
    /// Tells the logs of a database and of what was restored from it apart, which go on differently from the same LSN. 0: as created.
    pub(crate) history: u64,
}

impl Master {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(MASTER_BYTES);
        put_u32(&mut body, FORMAT_VERSION);
        put_u64(&mut body, self.sequence);
        put_u64(&mut body, self.database_id);
        put_u32(&mut body, self.page_bytes as u32);
        put_u32(&mut body, self.incarnation);
        put_u64(&mut body, self.log_segment_bytes);
        put_u64(&mut body, self.checkpoint_lsn.0);
        put_u64(&mut body, self.attested.0);
        put_u64(&mut body, self.oldest_lsn.0);
        put_u64(&mut body, self.restored_to.0);
        put_u64(&mut body, self.history);
        body.resize(MASTER_BYTES - 12, 0);
        let mut out = MAGIC.to_vec();
        put_u32(&mut out, crc32c::crc32c(&body));
        out.extend_from_slice(&body);
        out
    }

    /// Whether the fields are within their ranges: checked before a record is written and after one is read.
    fn is_sound(&self) -> bool {
        let lsns = [self.checkpoint_lsn, self.attested, self.oldest_lsn, self.restored_to];
        // Far from their ends, so that sums of positions are numbers too.
        lsns.iter().all(|lsn| lsn.0.is_multiple_of(8) && lsn.0 <= MAX_LSN)
            && self.sequence < u64::MAX
            && matches!(self.page_bytes, 4096 | 8192 | 16384 | 32768 | 65536)
            && self.log_segment_bytes.is_multiple_of(4096)
            && LOG_SEGMENT_BYTES.contains(&self.log_segment_bytes)
            && self.oldest_lsn <= self.checkpoint_lsn
            && Lsn::FIRST <= self.oldest_lsn
            && self.incarnation < u32::MAX
    }

    fn decode(bytes: &[u8], name: &str) -> Result<Master> {
        let mut input = bytes;
        let i = &mut input;
        if take(i, 8, "the magic")? != MAGIC {
            return Err(Error::new(ErrorKind::NotADatabase, format!("{name} is not a Hamal master record")));
        }
        let crc = take_u32(i, "the checksum")?;
        let found = crc32c::crc32c(i);
        if crc != found {
            return Err(Error::corrupt(
                name,
                8,
                format!("checksum {crc:#010x}"),
                format!("{found:#010x} over the record"),
            ));
        }
        let version = take_u32(i, "the version")?;
        if version != FORMAT_VERSION {
            return Err(Error::new(
                ErrorKind::NotADatabase,
                format!("{name} has format version {version}; this program reads version {FORMAT_VERSION}"),
            ));
        }
        let master = Master {
            sequence: take_u64(i, "the sequence")?,
            database_id: take_u64(i, "the database id")?,
            page_bytes: take_u32(i, "the page size")? as usize,
            incarnation: take_u32(i, "the incarnation")?,
            log_segment_bytes: take_u64(i, "the segment size")?,
            checkpoint_lsn: Lsn(take_u64(i, "the checkpoint's LSN")?),
            attested: Lsn(take_u64(i, "the durable frontier")?),
            oldest_lsn: Lsn(take_u64(i, "the oldest LSN")?),
            restored_to: Lsn(take_u64(i, "the LSN restored to")?),
            history: take_u64(i, "the history")?,
        };
        if !master.is_sound() {
            return Err(Error::corrupt(name, 12, "fields within their ranges", format!("{master:?}")));
        }
        Ok(master)
    }
}

/// What a directory holds, before anything is opened.
#[derive(Debug)]
pub(crate) enum Found {
    /// Nothing, or what a broken-off creation left.
    Nothing,
    /// A database.
    Database(Master),
}

/// Reads the master record; changes nothing. `NotADatabase` for a directory with something else in it; `Corrupt` when both
/// copies are damaged.
pub(crate) fn find(storage: &dyn Storage) -> Result<Found> {
    let names = match storage.list("") {
        Ok(names) => names,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(e) => return Err(LowError::io("list", "the database directory", e).into()),
    };
    if names.iter().any(|n| n == RESTORING) {
        return Err(Error::new(
            ErrorKind::NotADatabase,
            "a restore into this directory was interrupted: restore again, or remove the directory",
        ));
    }
    let mut best: Option<Master> = None;
    let mut failure: Option<Error> = None;
    for name in NAMES {
        if !names.iter().any(|n| n == name) {
            continue;
        }
        match read(storage, name) {
            Ok(master) => {
                if best.as_ref().is_none_or(|b| b.sequence < master.sequence) {
                    best = Some(master);
                }
            }
            Err(e) if e.kind() == ErrorKind::Io => return Err(e),
            Err(e) => failure = Some(e),
        }
    }
    if let Some(master) = best {
        return Ok(Found::Database(master));
    }
    if names.iter().any(|n| n == CREATING) {
        return Ok(Found::Nothing);
    }
    match failure {
        Some(e) => Err(e.context("no copy of the master record can be read")),
        // A lock file alone is what an opener that found nothing to open may have left.
        None if names.iter().all(|n| n == "LOCK") => Ok(Found::Nothing),
        None => Err(Error::new(
            ErrorKind::NotADatabase,
            "the directory is not empty and holds no Hamal database (no MASTER-A or MASTER-B)",
        )),
    }
}

fn read(storage: &dyn Storage, name: &str) -> Result<Master> {
    let io = |e| LowError::io("read", name, e);
    let file = storage.open(name).map_err(io)?;
    let mut bytes = vec![0; MASTER_BYTES];
    match read_exact_at(&*file, &mut bytes, 0) {
        Ok(()) => Master::decode(&bytes, name),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(Error::corrupt(
            name,
            0,
            format!("{MASTER_BYTES} bytes"),
            format!("{} bytes", file.len().map_err(io)?),
        )),
        Err(e) => Err(io(e).into()),
    }
}

/// The two copies, open for writing.
#[derive(Debug)]
pub(crate) struct MasterFiles {
    files: [Arc<dyn File>; 2],
    current: Master,
}

impl MasterFiles {
    /// Opens both copies, making what is missing; `current` is what [`find`] returned.
    pub(crate) fn open(storage: &dyn Storage, current: Master) -> Result<MasterFiles> {
        let open = |name: &str| match storage.open(name) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let file = storage.create(name)?;
                storage.sync_directory("")?;
                Ok(file)
            }
            other => other,
        };
        let file = |name: &'static str| open(name).map_err(|e| LowError::io("open", name, e));
        Ok(MasterFiles { files: [file(NAMES[0])?, file(NAMES[1])?], current })
    }

    /// What was written last.
    pub(crate) fn current(&self) -> &Master {
        &self.current
    }

    /// Writes both copies, durably, under the next sequence number.
    pub(crate) fn write(&mut self, mut next: Master) -> Result<()> {
        next.sequence = self.current.sequence + 1;
        if !next.is_sound() {
            // A bug of ours, and the last chance to keep it from costing the database: both copies stay as they are.
            return Err(Error::invalid(format!(
                "refused to write a master record that no open would accept: {next:?}"
            )));
        }
        let bytes = next.encode();
        for (file, name) in self.files.iter().zip(NAMES) {
            write_all_at(&**file, &bytes, 0).map_err(|e| LowError::io("write", name, e))?;
            file.sync_data().map_err(|e| LowError::io("sync", name, e))?;
        }
        self.current = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Master {
        Master {
            sequence: 7,
            database_id: 0x1122_3344_5566_7788,
            page_bytes: 8192,
            incarnation: 3,
            log_segment_bytes: 64 << 20,
            checkpoint_lsn: Lsn(123_456),
            attested: Lsn(130_000),
            oldest_lsn: Lsn(100_000),
            restored_to: Lsn(90_000),
            history: 0x99aa_bbcc_ddee_ff00,
        }
    }

    #[test]
    fn a_master_record_survives_encoding() {
        let bytes = sample().encode();
        assert_eq!(bytes.len(), MASTER_BYTES);
        assert_eq!(Master::decode(&bytes, "MASTER-A").unwrap(), sample());
    }

    #[test]
    fn fields_out_of_their_ranges_are_corrupt() {
        let changes: [&dyn Fn(&mut Master); 9] = [
            &|m| m.checkpoint_lsn.0 += 4,
            &|m| m.attested.0 += 1,
            &|m| m.oldest_lsn.0 += 2,
            &|m| m.checkpoint_lsn.0 = (1 << 62) + 8,
            &|m| m.attested.0 = u64::MAX - 7,
            &|m| m.oldest_lsn.0 = m.checkpoint_lsn.0 + 8,
            &|m| m.sequence = u64::MAX,
            &|m| m.incarnation = u32::MAX,
            &|m| m.restored_to.0 += 4,
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut master = sample();
            change(&mut master);
            let error = Master::decode(&master.encode(), "MASTER-A").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "change {index}");
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let good = sample().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Master::decode(&bad, "MASTER-A").is_err(), "bit {bit}");
        }
    }
}
