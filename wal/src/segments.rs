//! The segment files: names, making, recycling, and reading at a stream position.
//!
//! I1. A segment covers stream bytes [first, first + segment_bytes), `first` a multiple of segment_bytes, with no
//!     header of its own: file offset = position - first. The stream's bytes 0..4096, which no record uses, hold
//!     the log's identification while segment 0 lives.
//! I2. A file has a segment's name only once it has its full length, written and synced; and a segment is used only once
//!     its name is synced. So a flush overwrites allocated bytes and changes no metadata.
//! I3. The segments from the one of the oldest needed byte to `prepared_end` are all there.
//! I4. A segment that failed to be made or recycled leaves nothing that is relied on: the failure is the caller's
//!     alone and may be tried again (with a fresh file).

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hamal_storage::{Error, File, Result, Storage, read_exact_at, write_all_at};
use parking_lot::{Mutex, RwLock};

/// The directory of the log.
pub(crate) const DIRECTORY: &str = "wal";
/// The unit of all writes to the log, bytes.
pub(crate) const BLOCK_BYTES: u64 = 4096;
/// Zero-filling goes in pieces of this size.
const FILL_BYTES: usize = 1 << 20;
const TEMPORARY_SUFFIX: &str = ".tmp";

/// The name of the segment that starts at `first`.
pub(crate) fn segment_name(first: u64) -> String {
    format!("{DIRECTORY}/{first:020}.log")
}

/// The start in a segment's file name; `None` for other names.
pub(crate) fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
}

/// Whether a crash may have left this file while it was being made.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.strip_suffix(TEMPORARY_SUFFIX)
        .is_some_and(|stem| parse_segment_name(&format!("{stem}.log")).is_some())
}

/// The identification in the stream's first block.
pub(crate) mod identification {
    use super::BLOCK_BYTES;

    const MAGIC: &[u8; 8] = b"HAMALLOG";
    const VERSION: u32 = 1;
    /// Bytes that are looked at.
    pub(crate) const BYTES: usize = 32;

    /// | 0 | 8 | magic | 8 | 4 | version | 12 | 4 | zero | 16 | 8 | segment bytes | 24 | 4 | CRC-32C of 0..24 |
    pub(crate) fn encode(segment_bytes: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES as usize];
        block[..8].copy_from_slice(MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[16..24].copy_from_slice(&segment_bytes.to_le_bytes());
        let crc = crc32c::crc32c(&block[..24]);
        block[24..28].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// The segment size, or what is wrong: (expected, found).
    pub(crate) fn decode(bytes: &[u8; BYTES]) -> Result<u64, (String, String)> {
        let crc = crc32c::crc32c(&bytes[..24]);
        if bytes[..8] != *MAGIC {
            return Err(("a Hamal log".into(), "something else".into()));
        }
        if bytes[24..28] != crc.to_le_bytes() {
            return Err((format!("checksum {crc:#010x}"), format!("bytes {:02x?}", &bytes[24..28])));
        }
        if bytes[8..12] != VERSION.to_le_bytes() {
            return Err((format!("log format {VERSION}"), format!("format bytes {:02x?}", &bytes[8..12])));
        }
        let mut segment_bytes = [0; 8];
        segment_bytes.copy_from_slice(&bytes[16..24]);
        Ok(u64::from_le_bytes(segment_bytes))
    }
}

/// Open segments by start.
pub(crate) type Files = BTreeMap<u64, Arc<dyn File>>;

/// Counters for [`crate::LogStats`].
#[derive(Debug, Default)]
pub(crate) struct SegmentCounters {
    pub(crate) made: AtomicU64,
    pub(crate) recycled: AtomicU64,
    pub(crate) removed: AtomicU64,
}

/// The segments of an open log.
#[derive(Debug)]
pub(crate) struct Segments {
    storage: Arc<dyn Storage>,
    segment_bytes: u64,
    /// By start. Held for moments only: flushes and reads look files up here.
    table: RwLock<Files>,
    /// Everything below has a segment (from the oldest needed byte on).
    prepared_end: AtomicU64,
    /// Held while files are made, recycled or removed, which takes I/O. Taken before `table`.
    maintenance: Mutex<Maintenance>,
    pub(crate) counters: SegmentCounters,
}

#[derive(Debug)]
struct Maintenance {
    /// Where the log reached when it was last truncated: the distance since then says how many spares to keep.
    tail_at_truncation: u64,
    /// Preparing ahead failed at this `prepared_end`: wait until somebody needs it.
    failed_ahead_at: Option<u64>,
}

impl Segments {
    /// Takes over the files of a log whose tail is at `tail`.
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        segment_bytes: u64,
        files: Files,
        prepared_end: u64,
        tail: u64,
    ) -> Self {
        Segments {
            storage,
            segment_bytes,
            table: RwLock::new(files),
            prepared_end: AtomicU64::new(prepared_end),
            maintenance: Mutex::new(Maintenance { tail_at_truncation: tail, failed_ahead_at: None }),
            counters: SegmentCounters::default(),
        }
    }

    /// The start of the segment that holds `position`.
    pub(crate) fn first_of(&self, position: u64) -> u64 {
        position - position % self.segment_bytes
    }

    /// A clock that does not run backwards.
    pub(crate) fn monotonic(&self) -> Duration {
        self.storage.monotonic()
    }

    /// Segment size.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Everything below has a segment.
    pub(crate) fn prepared_end(&self) -> u64 {
        self.prepared_end.load(Ordering::Acquire)
    }

    /// The file of the segment that starts at `first`.
    pub(crate) fn file(&self, first: u64) -> Option<Arc<dyn File>> {
        self.table.read().get(&first).cloned()
    }

    /// Fills `out` from stream position `at`.
    pub(crate) fn read(&self, mut at: u64, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            let first = self.first_of(at);
            let name = segment_name(first);
            let file = self
                .file(first)
                .ok_or_else(|| Error::io("read", &name, io::Error::from(io::ErrorKind::NotFound)))?;
            let count = out.len().min((first + self.segment_bytes - at) as usize);
            let (piece, rest) = out.split_at_mut(count);
            read_exact_at(file.as_ref(), piece, at - first).map_err(|e| Error::io("read", &name, e))?;
            at += count as u64;
            out = rest;
        }
        Ok(())
    }

    /// A hint that stream positions `from` to `to` will be read soon.
    pub(crate) fn will_need(&self, mut from: u64, to: u64) {
        while from < to {
            let first = self.first_of(from);
            let end = to.min(first + self.segment_bytes);
            if let Some(file) = self.file(first) {
                file.will_need(from - first, end - from);
            }
            from = end;
        }
    }

    /// Prepares segments until everything below `up_to` has one.
    pub(crate) fn prepare_to(&self, up_to: u64) -> Result<()> {
        let mut maintenance = self.maintenance.lock();
        while self.prepared_end() < up_to {
            self.make_next(&mut maintenance)?;
        }
        Ok(())
    }

    /// Prepares one more segment unless somebody is at it, or it failed before and nothing has changed since.
    pub(crate) fn prepare_ahead(&self, up_to: u64) {
        if self.prepared_end() >= up_to {
            return;
        }
        let Some(mut maintenance) = self.maintenance.try_lock() else { return };
        let end = self.prepared_end();
        if end < up_to
            && maintenance.failed_ahead_at != Some(end)
            && self.make_next(&mut maintenance).is_err()
        {
            // Not an error yet: whoever needs the room tries again and is told.
            maintenance.failed_ahead_at = Some(end);
        }
    }

    fn make_next(&self, _maintenance: &mut Maintenance) -> Result<()> {
        let first = self.prepared_end();
        let file = make_segment(self.storage.as_ref(), first, self.segment_bytes, &[])?;
        self.table.write().insert(first, file);
        self.prepared_end.store(first + self.segment_bytes, Ordering::Release);
        self.counters.made.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Recycles the segments that lie wholly below `oldest` to follow the prepared ones, up to `limit`; removes
    /// the rest. `tail`: where the log reaches now.
    pub(crate) fn recycle_below(&self, oldest: u64, tail: u64, limit: u64) -> Result<()> {
        let mut maintenance = self.maintenance.lock();
        let retired: Vec<u64> = {
            let table = self.table.read();
            table.keys().copied().take_while(|first| first + self.segment_bytes <= oldest).collect()
        };
        if retired.is_empty() {
            return Ok(());
        }
        // Spares for what the log used up since the last truncation, and two more: then nothing is made.
        let distance = tail.saturating_sub(maintenance.tail_at_truncation) + 2 * self.segment_bytes;
        let wanted_end = tail.saturating_add(distance).min(limit);
        maintenance.tail_at_truncation = maintenance.tail_at_truncation.max(tail);

        let mut ready = Vec::new();
        let mut end = self.prepared_end();
        for first in retired {
            // Out of the table first: whatever happens, nobody may read there any more.
            let file = self.table.write().remove(&first);
            let name = segment_name(first);
            match file {
                Some(file) if end < wanted_end => {
                    let to = segment_name(end);
                    self.storage.rename(&name, &to).map_err(|e| Error::io("rename", &name, e))?;
                    ready.push((end, file));
                    end += self.segment_bytes;
                    self.counters.recycled.fetch_add(1, Ordering::Relaxed);
                }
                _ => {
                    self.storage.remove(&name).map_err(|e| Error::io("remove", &name, e))?;
                    self.counters.removed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        sync_directory(self.storage.as_ref())?;
        self.table.write().extend(ready);
        self.prepared_end.store(end, Ordering::Release);
        Ok(())
    }
}

/// Makes a segment: written whole under a temporary name, synced, renamed, and its name synced.
pub(crate) fn make_segment(
    storage: &dyn Storage,
    first: u64,
    segment_bytes: u64,
    content: &[u8],
) -> Result<Arc<dyn File>> {
    let name = segment_name(first);
    let temporary = format!("{DIRECTORY}/{first:020}{TEMPORARY_SUFFIX}");
    let made = fill_segment(storage, &temporary, segment_bytes, content).and_then(|file| {
        storage.rename(&temporary, &name).map_err(|e| Error::io("rename", &temporary, e))?;
        Ok(file)
    });
    match made {
        Ok(file) => {
            sync_directory(storage)?;
            Ok(file)
        }
        Err(error) => {
            // Gives the disk space back; if even that fails, the next attempt or the next open removes it.
            let _ = storage.remove(&temporary);
            Err(error)
        }
    }
}

fn fill_segment(
    storage: &dyn Storage,
    name: &str,
    segment_bytes: u64,
    content: &[u8],
) -> Result<Arc<dyn File>> {
    let file = match storage.create(name) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            storage.remove(name).map_err(|e| Error::io("remove", name, e))?;
            storage.create(name)
        }
        other => other,
    }
    .map_err(|e| Error::io("create", name, e))?;
    file.allocate(0, segment_bytes).map_err(|e| Error::io("allocate", name, e))?;
    write_all_at(file.as_ref(), content, 0).map_err(|e| Error::io("write", name, e))?;
    zero_fill(file.as_ref(), name, content.len() as u64, segment_bytes)?;
    file.sync_data().map_err(|e| Error::io("sync", name, e))?;
    Ok(file)
}

/// Writes zeros over the file's bytes [from, to).
pub(crate) fn zero_fill(file: &dyn File, name: &str, from: u64, to: u64) -> Result<()> {
    let zeros = vec![0; FILL_BYTES.min(to.saturating_sub(from) as usize)];
    let mut at = from;
    while at < to {
        let count = (zeros.len() as u64).min(to - at);
        write_all_at(file, &zeros[..count as usize], at).map_err(|e| Error::io("write", name, e))?;
        at += count;
    }
    Ok(())
}

/// Makes names in the log's directory durable.
pub(crate) fn sync_directory(storage: &dyn Storage) -> Result<()> {
    storage.sync_directory(DIRECTORY).map_err(|e| Error::io("sync", DIRECTORY, e))
}
