//! The log alone: append, synchronous commit on one and on several threads, scan.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails should end, and say where")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use hamal_benches::floor::Floor;
use hamal_benches::place::fresh_directory;
use hamal_storage::{OsStorage, Storage};
use hamal_wal::{Log, LogOptions, Lsn, Scanner};

/// Payload of an update of a 24-byte key and a 150-byte value, about.
const PAYLOAD_BYTES: usize = 240;
/// The log is cut once it holds this much, so that a long run needs little disk.
const CUT_BYTES: u64 = 512 << 20;

fn append_one(log: &Log, payload: &[u8]) -> Lsn {
    let mut permit = log.admit(Log::framed_bytes(payload.len()), 0).unwrap();
    let lsn = permit.append(payload).unwrap();
    drop(permit);
    if log.used_bytes() > CUT_BYTES {
        log.flush().unwrap();
        log.truncate(log.durable()).unwrap();
    }
    lsn
}

fn append(c: &mut Criterion) {
    let directory = fresh_directory().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(OsStorage::new(directory.path()));
    let log = Log::create(storage, LogOptions::default(), 1).unwrap();
    let mut group = c.benchmark_group("log append");
    for payload_bytes in [64, PAYLOAD_BYTES, 1000, 8000] {
        let payload = vec![7; payload_bytes];
        group.throughput(Throughput::Bytes(Log::framed_bytes(payload_bytes)));
        group.bench_function(format!("{payload_bytes} bytes"), |b| b.iter(|| append_one(&log, &payload)));
    }
    // The other thread appends for as long as this one measures.
    group.throughput(Throughput::Bytes(Log::framed_bytes(PAYLOAD_BYTES)));
    group.bench_function(format!("{PAYLOAD_BYTES} bytes, beside another thread"), |b| {
        let payload = [7; PAYLOAD_BYTES];
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    append_one(&log, &payload);
                }
            });
            b.iter(|| append_one(&log, &payload));
            stop.store(true, Ordering::Relaxed);
        });
    });
}

fn commit(c: &mut Criterion) {
    let directory = fresh_directory().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(OsStorage::new(directory.path()));
    let log = Log::create(storage, LogOptions::default(), 1).unwrap();
    let mut floor = Floor::create(directory.path(), 64 << 20, 4096).unwrap();
    let payload = [7; PAYLOAD_BYTES];
    let mut group = c.benchmark_group("log commit");
    group.bench_function("pwrite + fdatasync of 4 KiB", |b| b.iter(|| floor.commit_cached().unwrap()));
    group.bench_function("the same past the cache (floor)", |b| b.iter(|| floor.commit().unwrap()));
    group.bench_function("append + make durable", |b| {
        b.iter(|| log.make_durable(append_one(&log, &payload)).unwrap());
    });
    for others in [1, 3, 7] {
        group.bench_function(format!("append + make durable, beside {others} threads"), |b| {
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                for _ in 0..others {
                    scope.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            log.make_durable(append_one(&log, &payload)).unwrap();
                        }
                    });
                }
                b.iter(|| log.make_durable(append_one(&log, &payload)).unwrap());
                stop.store(true, Ordering::Relaxed);
            });
        });
    }
}

/// A rollback beside many who commit: what it reads back was written by small flushes.
fn walk_back(c: &mut Criterion) {
    const FLUSHES: usize = 64;
    const RECORDS: usize = 200;
    let directory = fresh_directory().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(OsStorage::new(directory.path()));
    let log = Log::create(storage, LogOptions::default(), 1).unwrap();
    let mut group = c.benchmark_group("log walk back");
    group.sample_size(10).throughput(Throughput::Elements((FLUSHES * RECORDS) as u64));
    group.bench_function("records of 240 bytes, after flushes of 200", |b| {
        let write = || {
            let mut written = Vec::with_capacity(FLUSHES * RECORDS);
            for _ in 0..FLUSHES {
                written.extend((0..RECORDS).map(|_| append_one(&log, &[7; PAYLOAD_BYTES])));
                log.flush().unwrap();
            }
            log.truncate(written[0]).unwrap();
            written
        };
        let read = |written: Vec<Lsn>| {
            for lsn in written.into_iter().rev() {
                black_box(log.read(lsn).unwrap());
            }
        };
        b.iter_batched(write, read, BatchSize::PerIteration);
    });
}

fn scan(c: &mut Criterion) {
    const RECORDS: u64 = 100_000;
    let directory = fresh_directory().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(OsStorage::new(directory.path()));
    let log = Log::create(Arc::clone(&storage), LogOptions::default(), 1).unwrap();
    for _ in 0..RECORDS {
        append_one(&log, &[7; PAYLOAD_BYTES]);
    }
    log.flush().unwrap();
    let end = log.tail();
    drop(log);
    let mut group = c.benchmark_group("log scan");
    group.sample_size(20).throughput(Throughput::Bytes(end.get() - Lsn::FIRST.get()));
    group.bench_function("records of 240 bytes", |b| {
        b.iter(|| {
            let mut scanner =
                Scanner::open(Arc::clone(&storage), &LogOptions::default(), Lsn::FIRST, end).unwrap();
            let mut records = 0;
            while let Some(frame) = scanner.next_frame().unwrap() {
                black_box(frame.payload);
                records += 1;
            }
            assert_eq!(records, RECORDS);
        });
    });
}

criterion_group!(benches, append, commit, walk_back, scan);
criterion_main!(benches);
