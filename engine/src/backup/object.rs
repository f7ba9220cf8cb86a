//! How the objects of backups and archives are framed. Normative: docs/file-format.md section 10.
//!
//! I1. Every byte lies under a checksum, which also covers where its block stands: nothing can be changed, left out, moved or appended
//!     unseen.
//! I2. No more is allocated for reading than a block may have.

use std::io;

use hamal_storage::Error as LowError;

use super::target::{ObjectReader, ObjectWriter, Target};
use crate::codec::{put_u32, put_u64, take_u32, take_u64};
use crate::{Error, ErrorKind, Result};

const MAGIC: &[u8; 8] = b"HAMALOBJ";
const VERSION: u32 = 1;
/// Of objects that speak of quarantined partitions: programs from before these must not take a backup for one that has all of them.
const VERSION_QUARANTINE: u32 = 2;
const HEADER_BYTES: usize = 56;
/// Payload of a block, at most.
pub(crate) const BLOCK_BYTES: usize = 1 << 20;

/// What an object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    Manifest = 1,
    Pages = 2,
    Log = 3,
    /// What was kept of a quarantined partition.
    Quarantine = 4,
}

/// What an object says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) database_id: u64,
    pub(crate) history: u64,
    /// Pages, what was kept: the partition. Log: the LSN of the first byte. Manifest: how many quarantined partitions it names.
    pub(crate) argument: u64,
    /// When it was begun, microseconds since 1970.
    pub(crate) micros: u64,
}

/// What the manifest remembers of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) bytes: u64,
    pub(crate) crc: u32,
}

impl Header {
    fn version(&self) -> u32 {
        match (self.kind, self.argument) {
            (Kind::Quarantine, _) | (Kind::Manifest, 1..) => VERSION_QUARANTINE,
            _ => VERSION,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(HEADER_BYTES);
        put_u32(&mut body, self.version());
        put_u32(&mut body, self.kind as u32);
        put_u32(&mut body, 0);
        put_u64(&mut body, self.database_id);
        put_u64(&mut body, self.history);
        put_u64(&mut body, self.argument);
        put_u64(&mut body, self.micros);
        let mut out = MAGIC.to_vec();
        put_u32(&mut out, crc32c::crc32c(&body));
        out.extend_from_slice(&body);
        out
    }

    fn decode(bytes: &[u8; HEADER_BYTES], name: &str) -> Result<Header> {
        if bytes[..8] != *MAGIC {
            return Err(Error::corrupt(name, 0, "a Hamal backup object", "something else"));
        }
        let mut input = &bytes[8..];
        let i = &mut input;
        let (crc, found) = (take_u32(i, "the checksum")?, crc32c::crc32c(&bytes[12..]));
        if crc != found {
            return Err(Error::corrupt(
                name,
                8,
                format!("checksum {crc:#010x}"),
                format!("{found:#010x} over the header"),
            ));
        }
        let version = take_u32(i, "the version")?;
        if !(VERSION..=VERSION_QUARANTINE).contains(&version) {
            let expected = format!("object version {VERSION} or {VERSION_QUARANTINE}");
            return Err(Error::corrupt(name, 12, expected, version));
        }
        let kind = match take_u32(i, "the kind")? {
            1 => Kind::Manifest,
            2 => Kind::Pages,
            3 => Kind::Log,
            4 => Kind::Quarantine,
            other => return Err(Error::corrupt(name, 16, "an object kind from 1 to 4", other)),
        };
        take_u32(i, "a zero")?;
        let header = Header {
            kind,
            database_id: take_u64(i, "the database")?,
            history: take_u64(i, "the history")?,
            argument: take_u64(i, "the argument")?,
            micros: take_u64(i, "the time")?,
        };
        if header.version() != version {
            let expected = format!("object version {}", header.version());
            return Err(Error::corrupt(name, 12, expected, version));
        }
        Ok(header)
    }
}

/// Covers a block's place as well as its payload; the end has no payload, and the sum of all in its place.
fn block_crc(index: u64, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&index.to_le_bytes()), payload)
}

fn io_error(action: &'static str, name: &str, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::InvalidInput {
        return Error::invalid(error.to_string());
    }
    LowError::io(action, name, error).into()
}

/// An object being written.
pub(crate) struct ObjectOut {
    writer: Box<dyn ObjectWriter>,
    name: String,
    block: Vec<u8>,
    blocks: u64,
    payload_bytes: u64,
    sum: Sum,
}

impl ObjectOut {
    pub(crate) fn create(target: &dyn Target, name: &str, header: &Header) -> Result<ObjectOut> {
        let writer = target.create(name).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => {
                Error::new(ErrorKind::AlreadyExists, format!("the object {name} is there already"))
            }
            _ => io_error("create", name, e),
        })?;
        let mut out = ObjectOut {
            writer,
            name: name.to_owned(),
            block: Vec::new(),
            blocks: 0,
            payload_bytes: 0,
            sum: Sum::default(),
        };
        out.write(&header.encode())?;
        Ok(out)
    }

    /// Appends payload that stays together in a block: at most [`BLOCK_BYTES`].
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if self.block.len() + bytes.len() > BLOCK_BYTES {
            self.end_block()?;
        }
        self.block.extend_from_slice(bytes);
        Ok(())
    }

    fn end_block(&mut self) -> Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = std::mem::take(&mut self.block);
        let mut head = Vec::with_capacity(8);
        put_u32(&mut head, block.len() as u32);
        put_u32(&mut head, block_crc(self.blocks, &block));
        self.write(&head)?;
        self.write(&block)?;
        self.blocks += 1;
        self.payload_bytes += block.len() as u64;
        self.block = block;
        self.block.clear();
        Ok(())
    }

    /// Makes the object appear.
    pub(crate) fn finish(mut self) -> Result<Sum> {
        self.end_block()?;
        let total = self.payload_bytes.to_le_bytes();
        let mut end = Vec::with_capacity(16);
        put_u32(&mut end, 0);
        put_u32(&mut end, block_crc(self.blocks, &total));
        end.extend_from_slice(&total);
        self.write(&end)?;
        self.writer.finish().map_err(|e| io_error("finish", &self.name, e))?;
        Ok(self.sum)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write(bytes).map_err(|e| io_error("write", &self.name, e))?;
        self.sum.bytes += bytes.len() as u64;
        self.sum.crc = crc32c::crc32c_append(self.sum.crc, bytes);
        Ok(())
    }
}

/// An object being read.
pub(crate) struct ObjectIn {
    reader: Box<dyn ObjectReader>,
    name: String,
    pub(crate) header: Header,
    block: Vec<u8>,
    blocks: u64,
    payload_bytes: u64,
    sum: Sum,
    ended: bool,
}

impl ObjectIn {
    /// Opens an object of this kind. `Corrupt` if it is missing or another.
    pub(crate) fn open(target: &dyn Target, name: &str, kind: Kind) -> Result<ObjectIn> {
        ObjectIn::find(target, name, kind)?
            .ok_or_else(|| Error::corrupt(name, 0, "an object of the backup or archive", "no such object"))
    }

    /// As [`ObjectIn::open`]; `None` if it is missing.
    pub(crate) fn find(target: &dyn Target, name: &str, kind: Kind) -> Result<Option<ObjectIn>> {
        let reader = match target.open(name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| io_error("open", name, e))?,
        };
        let header = Header { kind, database_id: 0, history: 0, argument: 0, micros: 0 };
        let mut object = ObjectIn {
            reader,
            name: name.to_owned(),
            header,
            block: Vec::new(),
            blocks: 0,
            payload_bytes: 0,
            sum: Sum::default(),
            ended: false,
        };
        let mut bytes = [0; HEADER_BYTES];
        object.read_exact(&mut bytes)?;
        object.header = Header::decode(&bytes, name)?;
        if object.header.kind != kind {
            return Err(Error::corrupt(
                name,
                16,
                format!("an object with {kind:?}"),
                format!("{:?}", object.header.kind),
            ));
        }
        Ok(Some(object))
    }

    /// The object's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `Corrupt` unless the object is of this database and history.
    pub(crate) fn check_origin(&self, database_id: u64, history: u64) -> Result<()> {
        let found = (self.header.database_id, self.header.history);
        if found == (database_id, history) {
            return Ok(());
        }
        Err(Error::corrupt(
            &self.name,
            24,
            format!("database {database_id:#018x}, history {history:#018x}"),
            format!("{:#018x}, {:#018x}", found.0, found.1),
        ))
    }

    /// The payload of the next block; `None` at the end, where nothing may follow.
    pub(crate) fn next_block(&mut self) -> Result<Option<&[u8]>> {
        if self.ended {
            return Ok(None);
        }
        let at = self.sum.bytes;
        let mut head = [0; 8];
        self.read_exact(&mut head)?;
        let mut input = &head[..];
        let length = take_u32(&mut input, "a block's length")? as usize;
        let crc = take_u32(&mut input, "a block's checksum")?;
        if length > BLOCK_BYTES {
            return Err(Error::corrupt(
                &self.name,
                at,
                format!("a block of at most {BLOCK_BYTES} bytes"),
                length,
            ));
        }
        let mut block = std::mem::take(&mut self.block);
        block.resize(if length == 0 { 8 } else { length }, 0);
        self.read_exact(&mut block)?;
        let found = block_crc(self.blocks, &block);
        self.block = block;
        if crc != found {
            return Err(Error::corrupt(
                &self.name,
                at + 4,
                format!("checksum {crc:#010x}"),
                format!("{found:#010x} over block {}", self.blocks),
            ));
        }
        if length == 0 {
            if self.block != self.payload_bytes.to_le_bytes() {
                return Err(Error::corrupt(
                    &self.name,
                    at + 8,
                    format!("{} bytes of payload", self.payload_bytes),
                    format!("{:02x?}", self.block),
                ));
            }
            self.ended = true;
            let at = self.sum.bytes;
            if self.read_some(&mut [0])? != 0 {
                return Err(Error::corrupt(&self.name, at, "the end of the object", "more bytes"));
            }
            return Ok(None);
        }
        self.blocks += 1;
        self.payload_bytes += length as u64;
        Ok(Some(&self.block))
    }

    /// Read so far, bytes.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.sum.bytes
    }

    /// Once all blocks are read: `Corrupt` unless the object is the one that the manifest means.
    pub(crate) fn check_sum(&self, expected: Sum) -> Result<()> {
        if self.sum == expected {
            return Ok(());
        }
        Err(Error::corrupt(
            &self.name,
            0,
            format!("{} bytes with checksum {:#010x}, as the manifest says", expected.bytes, expected.crc),
            format!("{} bytes with checksum {:#010x}", self.sum.bytes, self.sum.crc),
        ))
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let count = self.reader.read(buffer).map_err(|e| io_error("read", &self.name, e))?;
        Ok(count.min(buffer.len()))
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_some(&mut buffer[filled..])? {
                0 => {
                    let at = self.sum.bytes + filled as u64;
                    return Err(Error::corrupt(&self.name, at, "more of the object", "its end"));
                }
                count => filled += count,
            }
        }
        self.sum.bytes += buffer.len() as u64;
        self.sum.crc = crc32c::crc32c_append(self.sum.crc, buffer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hamal_storage::sim::SimStorage;

    use super::*;
    use crate::backup::DirectoryTarget;

    /// Written by another program, after docs/file-format.md.
    const GOLDEN: &str = "\
        48414d414c4f424a9159b940010000000300000000000000887766554433221199000000000000000010000000000000\
        3412000000000000050000009d68586368656c6c6f000000005e685dd80500000000000000";

    #[test]
    fn an_object_is_what_the_format_says_to_the_byte() {
        let disk = SimStorage::new(1);
        let target = DirectoryTarget::within(Arc::new(disk.clone()), "");
        let header = Header {
            kind: Kind::Log,
            database_id: 0x1122_3344_5566_7788,
            history: 0x99,
            argument: 4096,
            micros: 0x1234,
        };
        let mut out = ObjectOut::create(&target, "x", &header).unwrap();
        out.put(b"hello").unwrap();
        let sum = out.finish().unwrap();
        let bytes = disk.read_file("x").unwrap();
        let hex = bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        assert_eq!(hex, GOLDEN);
        assert_eq!(sum, Sum { bytes: 85, crc: 0x125f_a237 });
        let mut object = ObjectIn::open(&target, "x", Kind::Log).unwrap();
        assert_eq!(object.header, header);
        assert_eq!(object.next_block().unwrap(), Some(&b"hello"[..]));
        assert_eq!(object.next_block().unwrap(), None);
        object.check_sum(sum).unwrap();
        assert!(ObjectIn::open(&target, "x", Kind::Pages).is_err());
    }
}
