//! `log_bytes`: the log of a database that was not closed, with the fuzzer's bytes in it.
//!
//! Input: one byte that says how, two that say where, then content.
//!
//! | how mod 4 | what becomes of the content |
//! |---|---|
//! | 0 | raw bytes behind the end of the log |
//! | 1 | payload of a new record behind the end, framed with a right checksum |
//! | 2 | payload of the record that "where" picks, cut or filled to its length, checksum repaired |
//! | 3 | raw bytes over the log, from the record that "where" picks on |

use std::sync::{Arc, OnceLock};

use hamal::inspect;
use hamal_storage::Storage;
use hamal_storage::sim::SimStorage;

use super::Small;

const HEADER_BYTES: usize = 24;

struct Subject {
    small: Small,
    /// (LSN, end, incarnation) of each record recovery reads.
    records: Vec<(u64, u64, u32)>,
    end: u64,
}

fn subject() -> &'static Subject {
    static SUBJECT: OnceLock<Subject> = OnceLock::new();
    SUBJECT.get_or_init(|| {
        let small = Small::make(false);
        let storage: Arc<dyn Storage> = Arc::new(small.copy());
        let mut records = Vec::new();
        let visit = &mut |entry: &inspect::LogEntry| {
            records.push((entry.lsn, entry.end_lsn, entry.incarnation));
            true
        };
        inspect::log(&storage, 0, 0, visit).expect("a healthy log");
        let end = records.last().expect("a log has records").1;
        Subject { small, records, end }
    })
}

/// CRC-32C of the payload, then of header bytes 4..24.
fn seal(frame: &mut [u8]) {
    let (header, payload) = frame.split_at_mut(HEADER_BYTES);
    let crc = crc32c::crc32c_append(crc32c::crc32c(payload), &header[4..]);
    header[..4].copy_from_slice(&crc.to_le_bytes());
}

fn framed(payload: &[u8], lsn: u64, incarnation: u32) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    frame[4..8].copy_from_slice(&((HEADER_BYTES + payload.len()) as u32).to_le_bytes());
    frame[8..16].copy_from_slice(&lsn.to_le_bytes());
    frame[16..20].copy_from_slice(&incarnation.to_le_bytes());
    frame.extend_from_slice(payload);
    seal(&mut frame);
    frame
}

/// Puts bytes at a position of the log stream, as far as there are segments.
fn put(disk: &SimStorage, segment_bytes: u64, mut at: u64, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let first = at - at % segment_bytes;
        let count = bytes.len().min((first + segment_bytes - at) as usize);
        let _ = disk.overwrite(&format!("wal/{first:020}.log"), at - first, &bytes[..count]);
        at += count as u64;
        bytes = &bytes[count..];
    }
}

fn take(disk: &SimStorage, segment_bytes: u64, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let at = at + bytes.len() as u64;
        let first = at - at % segment_bytes;
        let segment = disk.read_file(&format!("wal/{first:020}.log")).unwrap_or_default();
        let within = (at - first) as usize;
        let Some(rest) = segment.get(within..).filter(|rest| !rest.is_empty()) else { break };
        bytes.extend_from_slice(&rest[..rest.len().min(len - bytes.len())]);
    }
    bytes
}

/// Recovery, inspection and use of a database whose log has these bytes.
pub fn log_bytes(input: &[u8]) {
    let Some((&[how, high, low], content)) = input.split_first_chunk::<3>() else { return };
    let subject = subject();
    let segment_bytes = subject.small.plan.segment_bytes;
    let disk = subject.small.copy();
    let place = usize::from(high) << 8 | usize::from(low);
    let (lsn, end, incarnation) = subject.records[place % subject.records.len()];
    match how % 4 {
        0 => put(&disk, segment_bytes, subject.end, content),
        1 => put(&disk, segment_bytes, subject.end, &framed(content, subject.end, incarnation)),
        2 => {
            let mut frame = take(&disk, segment_bytes, lsn, (end - lsn) as usize);
            if let [a, b, c, d] = frame[4..8] {
                frame.truncate(u32::from_le_bytes([a, b, c, d]) as usize);
            }
            for (byte, new) in frame[HEADER_BYTES..].iter_mut().zip(content) {
                *byte = *new;
            }
            seal(&mut frame);
            put(&disk, segment_bytes, lsn, &frame);
        }
        _ => put(&disk, segment_bytes, lsn, content),
    }
    subject.small.exercise(&disk);
}

/// Inputs to start from: real payloads, in place and behind the end, and raw pieces of log.
pub fn log_corpus() -> Vec<Vec<u8>> {
    let subject = subject();
    let segment_bytes = subject.small.plan.segment_bytes;
    let disk = subject.small.copy();
    let mut corpus = Vec::new();
    for (index, (lsn, end, _)) in subject.records.iter().enumerate() {
        let frame = take(&disk, segment_bytes, *lsn, (end - lsn) as usize);
        let place = [(index >> 8) as u8, index as u8];
        let with = |how: u8, content: &[u8]| [&[how], &place[..], content].concat();
        if frame.len() <= 1024 {
            corpus.push(with(1, &frame[HEADER_BYTES..]));
            corpus.push(with(2, &frame[HEADER_BYTES..]));
        } else {
            corpus.push(with(2, &frame[HEADER_BYTES..HEADER_BYTES + 200]));
        }
        if index % 8 == 0 {
            corpus.push(with(0, &frame[..frame.len().min(64)]));
            corpus.push(with(3, &frame[..frame.len().min(64)]));
        }
    }
    corpus
}
