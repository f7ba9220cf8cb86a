//! What the tests share.

use std::sync::Arc;

use hamal_storage::{Result, Storage};

use crate::{Log, LogOptions, Lsn, Resume, Scanner};

/// A log with the smallest segments and buffer, so that everything wraps soon.
pub(super) fn small() -> LogOptions {
    LogOptions { segment_bytes: 16 << 10, buffer_bytes: 8 << 10, max_bytes: 256 << 10 }
}

/// A payload that says which it is and fills `len` bytes.
pub(super) fn payload(number: u64, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len as u64).map(|i| (number.wrapping_mul(31) + i) as u8).collect();
    let stamp = number.to_le_bytes();
    let n = len.min(8);
    bytes[..n].copy_from_slice(&stamp[..n]);
    bytes
}

/// Appends one record by itself.
pub(super) fn append(log: &Log, payload: &[u8]) -> Result<Lsn> {
    log.admit(Log::framed_bytes(payload.len()), 0)?.append(payload)
}

/// All records from `from` on, and how the scan ended.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) records: Vec<(Lsn, Vec<u8>)>,
    pub(super) torn: bool,
    pub(super) resume: Resume,
}

/// Scans to the end.
pub(super) fn scan(
    storage: &Arc<dyn Storage>,
    options: &LogOptions,
    from: Lsn,
    attested: Lsn,
) -> Result<Scanned> {
    let mut scanner = Scanner::open(Arc::clone(storage), options, from, attested)?;
    let mut records = Vec::new();
    let mut next = from;
    while let Some(frame) = scanner.next_frame()? {
        assert_eq!(frame.lsn, next, "records follow each other without a gap");
        assert!(frame.attested <= frame.lsn);
        next = frame.end;
        records.push((frame.lsn, frame.payload.to_vec()));
    }
    assert!(scanner.next_frame()?.is_none(), "the end stays the end");
    let end = scanner.end().expect("a finished scan has an end").clone();
    assert_eq!(end.lsn, next);
    let resume = scanner.resume().expect("a finished scan can be resumed");
    assert_eq!(resume.end, end.lsn);
    Ok(Scanned { records, torn: end.torn, resume })
}
