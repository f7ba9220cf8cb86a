//! The segment files of a log that is not open, as one stream with gaps.

use std::collections::BTreeMap;
use std::sync::Arc;

use hamal_storage::{Error, File, Result, Storage, read_exact_at};

use crate::segments::{DIRECTORY, parse_segment_name, segment_name};

/// Segments from a given one on.
#[derive(Debug)]
pub(crate) struct Source {
    segment_bytes: u64,
    files: BTreeMap<u64, Segment>,
}

#[derive(Debug)]
struct Segment {
    file: Arc<dyn File>,
    /// What exists of it, at most segment_bytes.
    len: u64,
}

impl Source {
    /// Opens the segment that holds `from`, if it exists, and all later ones.
    pub(crate) fn open(storage: &dyn Storage, segment_bytes: u64, from: u64) -> Result<Source> {
        let mut files = BTreeMap::new();
        for first in list(storage, segment_bytes)? {
            if first + segment_bytes <= from {
                continue;
            }
            let name = segment_name(first);
            let file = storage.open(&name).map_err(|e| Error::io("open", &name, e))?;
            let len = file.len().map_err(|e| Error::io("measure", &name, e))?.min(segment_bytes);
            files.insert(first, Segment { file, len });
        }
        Ok(Source { segment_bytes, files })
    }

    /// Segment size.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// The start of the segment that holds `position`.
    pub(crate) fn first_of(&self, position: u64) -> u64 {
        position - position % self.segment_bytes
    }

    /// Whether the segment that starts at `first` has a file.
    pub(crate) fn has(&self, first: u64) -> bool {
        self.files.contains_key(&first)
    }

    /// The runs of bytes that exist at or beyond `from`, a segment each: (start, end).
    pub(crate) fn extents(&self, from: u64) -> impl Iterator<Item = (u64, u64)> {
        self.files
            .iter()
            .map(move |(first, segment)| ((*first).max(from), first + segment.len))
            .filter(|(start, end)| start < end)
    }

    /// Where the bytes that exist without a gap from `from` on end.
    pub(crate) fn contiguous_end(&self, from: u64) -> u64 {
        let mut end = from;
        for (start, to) in self.extents(from) {
            if start != end {
                break;
            }
            end = to;
        }
        end
    }

    /// Lets the system begin to read the bytes from `from` to `to`, as far as they exist.
    pub(crate) fn will_need(&self, from: u64, to: u64) {
        for (first, segment) in self.files.range(self.first_of(from)..to) {
            let (start, end) = (from.max(*first), to.min(first + segment.len));
            if start < end {
                segment.file.will_need(start - first, end - start);
            }
        }
    }

    /// Fills `out` from stream position `at`; the bytes must exist.
    pub(crate) fn read(&self, mut at: u64, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            let first = self.first_of(at);
            let name = segment_name(first);
            let missing = || Error::io("read", &name, std::io::ErrorKind::NotFound.into());
            let segment = self.files.get(&first).ok_or_else(missing)?;
            let count = out.len().min((first + self.segment_bytes - at) as usize);
            let (piece, rest) = out.split_at_mut(count);
            read_exact_at(segment.file.as_ref(), piece, at - first)
                .map_err(|e| Error::io("read", &name, e))?;
            at += count as u64;
            out = rest;
        }
        Ok(())
    }
}

/// The starts of all segments in the log's directory, ascending.
pub(crate) fn list(storage: &dyn Storage, segment_bytes: u64) -> Result<Vec<u64>> {
    let names = storage.list(DIRECTORY).map_err(|e| Error::io("list", DIRECTORY, e))?;
    let mut firsts = Vec::new();
    for name in &names {
        let Some(first) = parse_segment_name(name) else { continue };
        if !first.is_multiple_of(segment_bytes) || first > u64::MAX / 4 {
            return Err(Error::Corrupt {
                file: format!("{DIRECTORY}/{name}"),
                offset: 0,
                expected: format!("a name that is a multiple of the segment size, {segment_bytes}"),
                found: first.to_string(),
            });
        }
        firsts.push(first);
    }
    firsts.sort_unstable();
    Ok(firsts)
}
