//! The log of a backup and of the archive behind it, as one stream of bytes.
//!
//! Archived log is in objects named by where they begin and end. They are cut anywhere, not at records. They follow one another without a
//! gap, unless log had to be given up before it was archived ([`crate::Options::archive_hold_bytes`]).

use hamal_storage::Error as LowError;
use hamal_wal::Lsn;

use super::manifest::{self, Manifest};
use super::object::{Kind, ObjectIn};
use super::target::Target;
use crate::{Error, ErrorKind, Result};

/// A piece of archived log, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Chunk {
    pub(crate) first: Lsn,
    pub(crate) end: Lsn,
}

/// The directory of a database's archived log.
pub(crate) fn directory(database_id: u64, history: u64) -> String {
    format!("log/{database_id:016x}-{history:016x}")
}

/// The object of a piece.
pub(crate) fn chunk_name(directory: &str, chunk: Chunk) -> String {
    format!("{directory}/{:020}-{:020}", chunk.first, chunk.end)
}

fn parse_chunk(name: &str) -> Option<Chunk> {
    let number = |digits: &str| {
        (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
    };
    let (first, end) = name.split_once('-')?;
    let chunk = Chunk { first: Lsn(number(first)?), end: Lsn(number(end)?) };
    (chunk.first < chunk.end).then_some(chunk)
}

/// The pieces there are, in order. Other names are nobody's.
pub(crate) fn chunks(target: &dyn Target, directory: &str) -> Result<Vec<Chunk>> {
    let names = target.list(directory).map_err(|e| LowError::io("list", directory, e))?;
    let mut chunks: Vec<Chunk> = names.iter().filter_map(|name| parse_chunk(name)).collect();
    chunks.sort_unstable();
    Ok(chunks)
}

/// Reads the stream, in order.
pub(crate) struct LogBytes<'t> {
    target: &'t dyn Target,
    manifest: &'t Manifest,
    directory: String,
    chunks: std::vec::IntoIter<Chunk>,
    object: Option<Open>,
    /// Everything before has been handed out.
    position: u64,
    /// The archive has log behind this, where some is missing.
    gap: Option<u64>,
    /// When the newest object that was read was begun.
    micros: u64,
    total_bytes: u64,
}

/// An object being read.
struct Open {
    object: ObjectIn,
    /// Where its next byte stands in the log.
    at: u64,
    /// Where its bytes must end.
    end: u64,
    is_backup: bool,
}

impl<'t> LogBytes<'t> {
    /// The log of the backup `id`, and what the archive has behind it.
    pub(crate) fn open(target: &'t dyn Target, id: &str, manifest: &'t Manifest) -> Result<LogBytes<'t>> {
        let directory = directory(manifest.database_id, manifest.history);
        let mut chunks = chunks(target, &directory)?;
        chunks.retain(|chunk| chunk.end > manifest.end_lsn);
        let object = ObjectIn::open(target, &manifest::log_name(id), Kind::Log)?;
        let (at, end) = (manifest.log_lsn.0, manifest.end_lsn.0);
        let (mut reach, mut gap) = (end, None);
        for chunk in &chunks {
            if chunk.first.0 > reach {
                gap = Some(reach);
                break;
            }
            reach = reach.max(chunk.end.0);
        }
        let mut bytes = LogBytes {
            target,
            manifest,
            directory,
            chunks: chunks.into_iter(),
            object: None,
            position: at,
            gap,
            micros: manifest.end_micros,
            total_bytes: reach - at,
        };
        bytes.object = Some(bytes.checked(object, at, end, true)?);
        Ok(bytes)
    }

    /// Bytes of log there are without a gap.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Where the stream has a gap, with more behind it.
    pub(crate) fn gap(&self) -> Option<Lsn> {
        self.gap.map(Lsn)
    }

    /// What has been read so far covers all commits acknowledged before this time.
    pub(crate) fn micros(&self) -> u64 {
        self.micros
    }

    /// The name of the object that the last bytes were from.
    pub(crate) fn source(&self) -> String {
        self.object.as_ref().map_or_else(|| self.directory.clone(), |open| open.object.name().to_owned())
    }

    fn checked(&self, object: ObjectIn, first: u64, end: u64, is_backup: bool) -> Result<Open> {
        object.check_origin(self.manifest.database_id, self.manifest.history)?;
        if object.header.argument != first {
            return Err(Error::corrupt(
                object.name(),
                40,
                format!("log from {first}"),
                object.header.argument,
            ));
        }
        Ok(Open { object, at: first, end, is_backup })
    }

    /// The bytes that follow; `None` at the end, or at a gap.
    pub(crate) fn next(&mut self, out: &mut Vec<u8>) -> Result<bool> {
        out.clear();
        loop {
            let Some(open) = &mut self.object else {
                if !self.open_next()? {
                    return Ok(false);
                }
                continue;
            };
            if let Some(block) = open.object.next_block()? {
                let skip = self.position.saturating_sub(open.at).min(block.len() as u64);
                out.extend_from_slice(&block[skip as usize..]);
                open.at += block.len() as u64;
                if open.at > open.end {
                    return Err(Error::corrupt(
                        open.object.name(),
                        0,
                        format!("log to {}", open.end),
                        open.at,
                    ));
                }
                if !out.is_empty() {
                    self.position = open.at;
                    return Ok(true);
                }
                continue;
            }
            if open.at != open.end {
                return Err(Error::corrupt(open.object.name(), 0, format!("log to {}", open.end), open.at));
            }
            if open.is_backup {
                open.object.check_sum(self.manifest.log)?;
            } else {
                self.micros = self.micros.max(open.object.header.micros);
            }
            self.object = None;
        }
    }

    fn open_next(&mut self) -> Result<bool> {
        // Two may overlap, where an archive went on after its last object had become visible, but was not heard of.
        let Some(chunk) = self.chunks.find(|chunk| chunk.end.0 > self.position) else { return Ok(false) };
        if chunk.first.0 > self.position {
            self.chunks = Vec::new().into_iter();
            return Ok(false);
        }
        let name = chunk_name(&self.directory, chunk);
        let object = ObjectIn::open(self.target, &name, Kind::Log)?;
        self.object = Some(self.checked(object, chunk.first.0, chunk.end.0, false)?);
        Ok(true)
    }
}

/// `Corrupt`: log is missing.
pub(crate) fn gap_error(directory_of: &LogBytes<'_>, at: Lsn) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("{}: log is missing from {at} on, and there is more behind it", directory_of.directory),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_pieces_survive_and_others_are_nobodys() {
        let chunk = Chunk { first: Lsn(4096), end: Lsn(8192) };
        let name = chunk_name("log/x", chunk);
        assert_eq!(parse_chunk(name.strip_prefix("log/x/").unwrap()), Some(chunk));
        for name in [
            "",
            "1-2",
            "00000000000000008192-00000000000000004096",
            "0000000000000000409x-00000000000000008192",
        ] {
            assert_eq!(parse_chunk(name), None, "{name:?}");
        }
    }
}
