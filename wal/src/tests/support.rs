//! What the tests share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hamal_storage::sim::{CrashMode, SimStorage};
use hamal_storage::{DIRECT_BLOCK_BYTES, File, FileId, Lock, Result, Storage};

use crate::{Frame, FrameBatch, Log, LogOptions, Lsn, Resume, Scanner};

/// A log with small segments and buffer, so that everything wraps soon.
pub(super) fn small() -> LogOptions {
    LogOptions { segment_bytes: 16 << 10, buffer_bytes: 8 << 10, max_bytes: 256 << 10, shelves: 16 }
}

/// A handle for the log.
pub(super) fn shared(sim: &SimStorage) -> Arc<dyn Storage> {
    Arc::new(sim.clone())
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

/// A record and where it is.
pub(super) type Record = (Lsn, Vec<u8>);

/// Appends records of these payload lengths, numbered from `first`.
pub(super) fn append_all(log: &Log, first: u64, lens: &[usize]) -> Vec<Record> {
    let numbered = (first..).zip(lens);
    numbered
        .map(|(number, len)| {
            let payload = payload(number, *len);
            (append(log, &payload).unwrap(), payload)
        })
        .collect()
}

/// All records from `from` on, and how the scan ended.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) records: Vec<Record>,
    pub(super) torn: bool,
    pub(super) resume: Resume,
}

/// How a log is scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Records,
    Batches,
    /// A record, a batch, a record, a batch.
    InTurns,
}

impl Way {
    pub(super) const ALL: [Way; 3] = [Way::Records, Way::Batches, Way::InTurns];
}

/// Scans to the end, all ways, which must say the same.
pub(super) fn scan(
    storage: &Arc<dyn Storage>,
    options: &LogOptions,
    from: Lsn,
    attested: Lsn,
) -> Result<Scanned> {
    let [by_records, others @ ..] = Way::ALL.map(|way| scan_by(way, storage, options, from, attested));
    for other in &others {
        match (&by_records, other) {
            (Ok(records), Ok(other)) => {
                assert_eq!(records.records, other.records);
                assert_eq!(format!("{:?}", records.resume), format!("{:?}", other.resume));
                assert_eq!(records.torn, other.torn);
            }
            (Err(records), Err(other)) => assert_eq!(records.to_string(), other.to_string()),
            (records, other) => panic!("one way fails: {:?}, {:?}", records.is_err(), other.is_err()),
        }
    }
    by_records
}

/// Scans to the end, one way.
pub(super) fn scan_by(
    way: Way,
    storage: &Arc<dyn Storage>,
    options: &LogOptions,
    from: Lsn,
    attested: Lsn,
) -> Result<Scanned> {
    scan_all(way, Scanner::open(Arc::clone(storage), options, from, attested)?, from)
}

/// Scans to the scanner's end, one way.
pub(super) fn scan_all(way: Way, scanner: Scanner, from: Lsn) -> Result<Scanned> {
    let mut batch = FrameBatch::default();
    let mut in_batches = way == Way::Batches;
    scan_with(scanner, from, |scanner, visit| {
        in_batches ^= way == Way::InTurns;
        if !in_batches {
            return Ok(scanner.next_frame()?.map(visit).is_some());
        }
        let Some(next) = scanner.next_batch(std::mem::take(&mut batch))? else { return Ok(false) };
        assert_ne!(next.frames().count(), 0, "a batch has records");
        next.frames().for_each(visit);
        batch = next;
        Ok(true)
    })
}

fn scan_with(
    mut scanner: Scanner,
    from: Lsn,
    mut next: impl FnMut(&mut Scanner, &mut dyn FnMut(Frame<'_>)) -> Result<bool>,
) -> Result<Scanned> {
    let mut records = Vec::new();
    let mut behind = from;
    let mut visit = |frame: Frame<'_>| {
        assert_eq!(frame.lsn, behind, "records follow each other without a gap");
        assert!(frame.attested <= frame.lsn);
        behind = frame.end;
        records.push((frame.lsn, frame.payload.to_vec()));
    };
    while next(&mut scanner, &mut visit)? {}
    assert!(scanner.next_frame()?.is_none(), "the end stays the end");
    let end = scanner.end().expect("a finished scan has an end").clone();
    assert_eq!(end.lsn, behind);
    let resume = scanner.resume().expect("a finished scan can be resumed");
    assert_eq!(resume.end, end.lsn);
    Ok(Scanned { records, torn: end.torn, resume })
}

/// Scans a simulated disk from the first record, with nothing sworn.
pub(super) fn scan_sim(sim: &SimStorage) -> Result<Scanned> {
    scan(&shared(sim), &small(), Lsn::FIRST, Lsn::FIRST)
}

/// The machine after a power cut that kept everything: a copy to damage.
pub(super) fn copy(sim: &SimStorage) -> SimStorage {
    sim.crash_image(CrashMode::KeepAll, 0)
}

/// Where a stream position lies: file name and offset.
pub(super) fn place(position: u64) -> (String, u64) {
    let first = position - position % small().segment_bytes;
    (format!("wal/{first:020}.log"), position - first)
}

/// Overwrites stream bytes, across segments.
pub(super) fn overwrite(sim: &SimStorage, position: u64, bytes: &[u8]) {
    let mut at = position;
    let mut rest = bytes;
    while !rest.is_empty() {
        let (name, offset) = place(at);
        let count = rest.len().min((small().segment_bytes - offset) as usize);
        sim.overwrite(&name, offset, &rest[..count]).unwrap();
        rest = &rest[count..];
        at += count as u64;
    }
}

/// Stream bytes as the page cache has them.
pub(super) fn stream_bytes(sim: &SimStorage, from: u64, to: u64) -> Vec<u8> {
    (from..to)
        .step_by(8)
        .flat_map(|at| {
            let (name, offset) = place(at);
            let file = sim.open(&name).unwrap();
            let mut word = [0; 8];
            hamal_storage::read_exact_at(file.as_ref(), &mut word, offset).unwrap();
            word
        })
        .take((to - from) as usize)
        .collect()
}

/// Resumes a simulated log at what a scan found.
pub(super) fn resume_sim(sim: &SimStorage, incarnation: u32, scanned: &Scanned) -> Result<Log> {
    Log::resume(shared(sim), small(), incarnation, Lsn::FIRST, &scanned.resume)
}

/// The text of a `Corrupt` error; panics on anything else.
pub(super) fn corruption<T: std::fmt::Debug>(result: Result<T>) -> String {
    match result {
        Err(error @ hamal_storage::Error::Corrupt { .. }) => error.to_string(),
        other => panic!("expected corruption, got {other:?}"),
    }
}

/// A simulated disk that, once told so, only pretends to sync: what a flush wrote stays at the mercy of the next crash. It counts bytes
/// written past the cache.
#[derive(Clone, Debug)]
pub(super) struct Lazy {
    pub(super) sim: SimStorage,
    stopped: Arc<AtomicBool>,
    direct_bytes: Arc<AtomicU64>,
}

impl Lazy {
    pub(super) fn new(seed: u64) -> Lazy {
        Lazy { sim: SimStorage::new(seed), stopped: Arc::default(), direct_bytes: Arc::default() }
    }

    pub(super) fn stop_syncing(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(super) fn direct_bytes(&self) -> u64 {
        self.direct_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn shared(&self) -> Arc<dyn Storage> {
        Arc::new(self.clone())
    }

    fn file(&self, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(LazyFile { inner, disk: self.clone() })
    }
}

#[derive(Debug)]
struct LazyFile {
    inner: Arc<dyn File>,
    disk: Lazy,
}

impl File for LazyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.inner.write_at(bytes, offset)
    }
    fn write_direct_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        assert!(bytes.as_ptr().addr().is_multiple_of(DIRECT_BLOCK_BYTES));
        assert!(bytes.len().is_multiple_of(DIRECT_BLOCK_BYTES));
        assert!(offset.is_multiple_of(DIRECT_BLOCK_BYTES as u64));
        self.disk.direct_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.inner.write_direct_at(bytes, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.disk.stopped.load(Ordering::Relaxed) { Ok(()) } else { self.inner.sync_data() }
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn identity(&self) -> io::Result<FileId> {
        self.inner.identity()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.allocate(offset, len)
    }
}

impl Storage for Lazy {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.sim.open(name).map(|file| self.file(file))
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.sim.create(name).map(|file| self.file(file))
    }
    fn identity(&self, name: &str) -> io::Result<Option<FileId>> {
        self.sim.identity(name)
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.sim.exists(name)
    }
    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.sim.list(directory)
    }
    fn create_directory(&self, name: &str) -> io::Result<()> {
        self.sim.create_directory(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.sim.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.sim.remove(name)
    }
    fn sync_directory(&self, name: &str) -> io::Result<()> {
        self.sim.sync_directory(name)
    }
    fn lock(&self, name: &str) -> io::Result<Box<dyn Lock>> {
        self.sim.lock(name)
    }
    fn now_micros(&self) -> u64 {
        self.sim.now_micros()
    }
    fn monotonic(&self) -> Duration {
        self.sim.monotonic()
    }
    fn random_u64(&self) -> u64 {
        self.sim.random_u64()
    }
}
