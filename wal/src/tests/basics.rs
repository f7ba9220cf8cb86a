//! Create, append, flush, read, scan, resume, truncate on the real file system.

use std::sync::Arc;

use hamal_storage::{Error, OsStorage, Storage};

use super::support::{Lazy, append, append_all, payload, scan, small};
use crate::{Log, LogOptions, Lsn};

fn directory() -> (tempfile::TempDir, Arc<dyn Storage>) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let storage: Arc<dyn Storage> = Arc::new(OsStorage::new(directory.path()));
    (directory, storage)
}

#[test]
fn a_new_log_is_empty_and_starts_at_the_first_lsn() {
    let (_directory, storage) = directory();
    let log = Log::create(Arc::clone(&storage), small(), 1).unwrap();
    assert_eq!((log.oldest(), log.durable(), log.tail()), (Lsn::FIRST, Lsn::FIRST, Lsn::FIRST));
    assert_eq!((log.used_bytes(), log.promised_bytes(), log.flushes()), (0, 0, 0));
    let scanned = scan(&storage, &small(), Lsn::FIRST, Lsn::FIRST).unwrap();
    assert!(scanned.records.is_empty() && !scanned.torn);
}

#[test]
fn what_is_flushed_is_scanned_back_in_order() {
    let (_directory, storage) = directory();
    let log = Log::create(Arc::clone(&storage), small(), 1).unwrap();
    let mut written = Vec::new();
    for number in 0..400 {
        let payload = payload(number, (number as usize * 7) % 500);
        let lsn = append(&log, &payload).unwrap();
        assert_eq!(log.read(lsn).unwrap(), payload, "from the buffer");
        written.push((lsn, payload));
    }
    log.flush().unwrap();
    assert_eq!(log.durable(), log.tail());
    for (lsn, payload) in &written {
        assert_eq!(log.read(*lsn).unwrap(), *payload, "from the file");
    }
    let scanned = scan(&storage, &small(), Lsn::FIRST, log.durable()).unwrap();
    assert_eq!(scanned.records, written);
    assert_eq!(scanned.resume.incarnation, 1);
    assert_eq!(scanned.resume.attested, log.durable());
    // From the middle as well.
    let scanned = scan(&storage, &small(), written[200].0, log.durable()).unwrap();
    assert_eq!(scanned.records, written[200..]);
}

#[test]
fn what_is_not_flushed_is_not_in_the_files() {
    let (_directory, storage) = directory();
    let log = Log::create(Arc::clone(&storage), small(), 1).unwrap();
    let first = append(&log, b"first").unwrap();
    let second = append(&log, b"second").unwrap();
    log.make_durable(first).unwrap();
    assert!(log.durable() > second, "a flush takes everything published");
    append(&log, b"third").unwrap();
    let scanned = scan(&storage, &small(), Lsn::FIRST, Lsn::FIRST).unwrap();
    assert_eq!(scanned.records.len(), 2);
    assert_eq!(log.flushes(), 1);
    log.make_durable(second).unwrap();
    assert_eq!(log.flushes(), 1, "what is durable is not flushed again");
}

#[test]
fn small_flushes_pass_the_cache_and_large_ones_do_not_in_any_part() {
    let disk = Lazy::new(1);
    let options =
        LogOptions { segment_bytes: 128 << 10, buffer_bytes: 512 << 10, max_bytes: 4 << 20, ..small() };
    let log = Log::create(disk.shared(), options, 1).unwrap();
    let mut expected = 0;
    // Of the large ones, some cross segments and end in a piece that is small.
    let rounds = [
        (1, 100),
        (1, 5000),
        (2, 100_000),
        (1, 100),
        (1, 60_000),
        (7, 20_000),
        (2, 20_000),
        (3, 100_000),
        (1, 24),
    ];
    for (round, (count, len)) in (0..).zip(rounds) {
        let written = log.stats().written_bytes;
        append_all(&log, round, &vec![len; count]);
        log.flush().unwrap();
        let written = log.stats().written_bytes - written;
        if written <= 64 << 10 {
            expected += written;
        }
        assert_eq!(disk.direct_bytes(), expected, "{written} bytes written for {count} records of {len}");
    }
    assert!(expected > 100_000);
}

#[test]
fn a_log_goes_on_where_it_was_resumed() {
    let (_directory, storage) = directory();
    let mut written = Vec::new();
    let mut log = Log::create(Arc::clone(&storage), small(), 1).unwrap();
    for incarnation in 2..12 {
        for number in 0..37 {
            let payload = payload(number + 1000 * u64::from(incarnation), 301);
            written.push((append(&log, &payload).unwrap(), payload));
        }
        log.flush().unwrap();
        append(&log, b"never flushed").unwrap();
        drop(log);
        let scanned = scan(&storage, &small(), Lsn::FIRST, Lsn::FIRST).unwrap();
        assert_eq!(scanned.records, written);
        assert_eq!(scanned.resume.incarnation, incarnation - 1);
        let refused =
            Log::resume(Arc::clone(&storage), small(), incarnation - 1, Lsn::FIRST, &scanned.resume);
        assert!(matches!(refused, Err(Error::Invalid(_))), "an incarnation is used once");
        log = Log::resume(Arc::clone(&storage), small(), incarnation, Lsn::FIRST, &scanned.resume).unwrap();
        assert_eq!(log.tail(), scanned.resume.end);
        for (lsn, payload) in &written {
            assert_eq!(log.read(*lsn).unwrap(), *payload);
        }
    }
}

#[test]
fn truncated_segments_are_recycled_over_many_laps() {
    let (_directory, storage) = directory();
    let log = Log::create(Arc::clone(&storage), small(), 1).unwrap();
    let mut written = Vec::new();
    for number in 0..5000 {
        let payload = payload(number, 100 + (number as usize * 13) % 900);
        written.push((append(&log, &payload).unwrap(), payload));
        if number % 10 == 9 {
            log.flush().unwrap();
        }
        if number % 50 == 49 {
            let keep = written.len() - 20;
            log.truncate(written[keep].0).unwrap();
            written.drain(..keep);
            assert_eq!(log.oldest(), written[0].0);
        }
    }
    log.flush().unwrap();
    let stats = log.stats();
    assert!(stats.segments_recycled > 100, "{stats:?}");
    assert!(stats.segments_made < 10, "in the steady state nothing is made: {stats:?}");
    for (lsn, payload) in &written {
        assert_eq!(log.read(*lsn).unwrap(), *payload);
    }
    let scanned = scan(&storage, &small(), written[0].0, log.durable()).unwrap();
    assert_eq!(scanned.records, written);
    // Resumed from there, with stale segments around.
    let log = Log::resume(Arc::clone(&storage), small(), 2, written[0].0, &scanned.resume).unwrap();
    written.push((append(&log, b"after").unwrap(), b"after".to_vec()));
    log.flush().unwrap();
    let scanned = scan(&storage, &small(), written[0].0, log.durable()).unwrap();
    assert_eq!(scanned.records, written);
}

#[test]
fn reading_where_no_record_starts_is_corrupt() {
    let (_directory, storage) = directory();
    let log = Log::create(Arc::clone(&storage), small(), 1).unwrap();
    let lsn = append(&log, &payload(1, 200)).unwrap();
    for round in 0..2 {
        for at in [0, 8, lsn.get() + 8, lsn.get() + 1, lsn.get() + 224, 1 << 40, u64::MAX] {
            let result = log.read(Lsn(at));
            assert!(matches!(result, Err(Error::Corrupt { .. })), "round {round}, {at}: {result:?}");
        }
        log.flush().unwrap();
    }
}

#[test]
fn many_threads_append_and_commit_while_others_read() {
    let (_directory, storage) = directory();
    let options = crate::LogOptions { max_bytes: 64 << 20, ..small() };
    let log = Log::create(Arc::clone(&storage), options.clone(), 1).unwrap();
    let written = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4_u64)
            .map(|thread| {
                let log = &log;
                scope.spawn(move || {
                    let mut written = Vec::new();
                    for number in 0..500 {
                        let payload = payload(thread << 32 | number, 8 + (number as usize * 11) % 700);
                        let lsn = append(log, &payload).unwrap();
                        if number % 8 == thread {
                            log.make_durable(lsn).unwrap();
                            assert!(log.durable() > lsn);
                        }
                        assert_eq!(log.read(lsn).unwrap(), payload);
                        written.push((lsn, payload));
                    }
                    written
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect::<Vec<_>>()
    });
    log.flush().unwrap();
    for own in &written {
        assert!(own.is_sorted_by_key(|(lsn, _)| *lsn), "a thread's records keep their order");
    }
    let mut all: Vec<_> = written.into_iter().flatten().collect();
    all.sort();
    assert_eq!(scan(&storage, &options, Lsn::FIRST, log.durable()).unwrap().records, all);
    assert!(log.stats().room_waits > 0, "the buffer was full at times: {:?}", log.stats());
}

/// The reader catches records in every state: in the buffer, being written, being zeroed there, in the file.
#[test]
fn a_record_can_be_read_at_any_moment_of_its_flush() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    let sim = hamal_storage::sim::SimStorage::new(1);
    let log = Log::create(super::support::shared(&sim), small(), 1).unwrap();
    let (latest, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=20_000 {
                let lsn = append(&log, &payload(number, 1900)).unwrap();
                latest.store(lsn.get(), Ordering::Release);
                log.flush().unwrap();
                if number % 40 == 0 {
                    log.truncate(Lsn(lsn.get() - 20 * Log::framed_bytes(1900))).unwrap();
                }
            }
            done.store(true, Ordering::Release);
        });
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let at = latest.load(Ordering::Acquire);
                if at != 0 {
                    let number = (at - Lsn::FIRST.get()) / Log::framed_bytes(1900) + 1;
                    match log.read(Lsn(at)) {
                        Ok(read) => assert_eq!(read, payload(number, 1900), "{at}"),
                        Err(error) => assert!(log.oldest().get() > at, "{error}"),
                    }
                }
            }
        });
    });
}
