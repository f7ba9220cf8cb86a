//! Making a scanned log fit for appending again.
//!
//! I1. Nothing below the end changes: [attested, end) is rewritten with the same bytes, since the page cache may
//!     hold what the disk never got (F6), and synced.
//! I2. What lies beyond the end within reach of a scan is zeroed and synced, so that nothing stale follows what is
//!     appended next; what is further away is kept out by its LSNs and the incarnation (H1).
//! I3. Interrupted anywhere, it leaves a log with the same records, or with a whole record more that was torn
//!     before, and can simply be run again (F15).

use std::sync::Arc;

use hamal_storage::{Error, File, Result, Storage, write_all_at};

use crate::scan::list;
use crate::segments::{
    BLOCK_BYTES, DIRECTORY, Files, Segments, is_temporary, segment_name, sync_directory, zero_fill,
};
use crate::{LogOptions, Resume};

/// Segments that are no longer needed are recycled until there are so many spares; more are removed.
const SPARES: u64 = 2;
const CHUNK_BYTES: u64 = 1 << 20;

/// Settles the files of a log that is needed from `oldest` and ends at `end`. Returns the segments, and what the last
/// block holds below the end.
pub(crate) fn settle(
    storage: Arc<dyn Storage>,
    options: &LogOptions,
    oldest: u64,
    resume: &Resume,
) -> Result<(Segments, Vec<u8>)> {
    let end = resume.end.get();
    let (files, prepared_end) = settle_names(storage.as_ref(), options, oldest, end)?;
    let segments = Segments::new(storage, options.segment_bytes, files, prepared_end, end);

    let from = resume.attested.get().clamp(oldest, end);
    rewrite(&segments, from - from % BLOCK_BYTES, end)?;
    let block = read_block(&segments, end)?;
    cut(&segments, end, &block, options.buffer_bytes as u64)?;
    // Syncs whatever of the three was touched: they lie in these segments.
    let mut first = segments.first_of(from);
    while let Some(file) = segments.file(first) {
        file.sync_data().map_err(|e| Error::io("sync", segment_name(first), e))?;
        first += options.segment_bytes;
    }
    Ok((segments, block))
}

/// Opens the segments from `oldest` to `end`, finds or makes spares, removes what is left over. Returns the
/// files and where they end.
fn settle_names(storage: &dyn Storage, options: &LogOptions, oldest: u64, end: u64) -> Result<(Files, u64)> {
    let segment_bytes = options.segment_bytes;
    let names = storage.list(DIRECTORY).map_err(|e| Error::io("list", DIRECTORY, e))?;
    for name in names.iter().filter(|name| is_temporary(name)) {
        let name = format!("{DIRECTORY}/{name}");
        storage.remove(&name).map_err(|e| Error::io("remove", &name, e))?;
    }

    let oldest_first = oldest - oldest % segment_bytes;
    // The first segment that no byte below `end` lies in.
    let spare_first = end.next_multiple_of(segment_bytes);
    let mut spare_end = spare_first;
    // Spares in place may back promises that undo is about to need on a full disk: all that can be used stay.
    let spare_limit = oldest.saturating_add(options.max_bytes);
    let recycle_limit = spare_limit.min(spare_first + SPARES * segment_bytes);
    let mut files = Files::new();
    let mut retired = Vec::new();
    for first in list(storage, segment_bytes)? {
        let needed = (oldest_first..spare_first).contains(&first);
        let next_spare = first == spare_end && first < spare_limit;
        if !needed && !next_spare {
            retired.push(first);
            continue;
        }
        let name = segment_name(first);
        let file = storage.open(&name).map_err(|e| Error::io("open", &name, e))?;
        let len = file.len().map_err(|e| Error::io("measure", &name, e))?;
        if len < segment_bytes {
            // Only a foreign hand shortens a segment; what the scan found valid is below.
            file.allocate(len, segment_bytes - len).map_err(|e| Error::io("allocate", &name, e))?;
            zero_fill(file.as_ref(), &name, len, segment_bytes)?;
            file.sync_data().map_err(|e| Error::io("sync", &name, e))?;
        }
        if next_spare {
            spare_end += segment_bytes;
        }
        files.insert(first, file);
    }
    for first in (oldest_first..spare_first).step_by(segment_bytes as usize) {
        if !files.contains_key(&first) {
            return Err(Error::Corrupt {
                file: segment_name(first),
                offset: 0,
                expected: format!("a segment of the log from {oldest} to {end}"),
                found: "no such file".into(),
            });
        }
    }
    for first in retired {
        let name = segment_name(first);
        let is_full_length = |file: &Arc<dyn File>| file.len().is_ok_and(|len| len == segment_bytes);
        let candidate =
            (spare_end < recycle_limit).then(|| storage.open(&name).ok().filter(is_full_length)).flatten();
        if let Some(file) = candidate {
            let to = segment_name(spare_end);
            storage.rename(&name, &to).map_err(|e| Error::io("rename", &name, e))?;
            files.insert(spare_end, file);
            spare_end += segment_bytes;
        } else {
            storage.remove(&name).map_err(|e| Error::io("remove", &name, e))?;
        }
    }
    // Also when nothing changed here: a spare may bear a name that a killed process gave it and never synced.
    sync_directory(storage)?;
    Ok((files, spare_end))
}

/// Reads [from, to) and writes it back.
fn rewrite(segments: &Segments, from: u64, to: u64) -> Result<()> {
    let mut at = from;
    let mut bytes = Vec::new();
    while at < to {
        let first = segments.first_of(at);
        let upto = to.min(at + CHUNK_BYTES).min(first + segments.segment_bytes());
        bytes.resize((upto - at) as usize, 0);
        segments.read(at, &mut bytes)?;
        write(segments, at, &bytes)?;
        at = upto;
    }
    Ok(())
}

/// What the block that `end` lies in holds below `end`.
fn read_block(segments: &Segments, end: u64) -> Result<Vec<u8>> {
    let mut block = vec![0; (end % BLOCK_BYTES) as usize];
    segments.read(end - block.len() as u64, &mut block)?;
    Ok(block)
}

/// Zeroes the rest of the last block and what a buffer's length beyond it may hold.
fn cut(segments: &Segments, end: u64, block: &[u8], buffer_bytes: u64) -> Result<()> {
    let mut at = end;
    if !block.is_empty() {
        let mut whole = block.to_vec();
        whole.resize(BLOCK_BYTES as usize, 0);
        write(segments, end - block.len() as u64, &whole)?;
        at = end.next_multiple_of(BLOCK_BYTES);
    }
    let to = (end + buffer_bytes).next_multiple_of(BLOCK_BYTES).min(segments.prepared_end());
    while at < to {
        let first = segments.first_of(at);
        let upto = to.min(first + segments.segment_bytes());
        if let Some(file) = segments.file(first) {
            zero_fill(file.as_ref(), &segment_name(first), at - first, upto - first)?;
        }
        at = upto;
    }
    Ok(())
}

/// Writes `bytes`, which lie in one segment.
fn write(segments: &Segments, at: u64, bytes: &[u8]) -> Result<()> {
    let first = segments.first_of(at);
    let name = segment_name(first);
    let Some(file) = segments.file(first) else {
        return Err(Error::io("write", name, std::io::ErrorKind::NotFound.into()));
    };
    write_all_at(file.as_ref(), bytes, at - first).map_err(|e| Error::io("write", name, e))
}
