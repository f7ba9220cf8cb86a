//! Permits, promises, a full log, a full disk.

use hamal_storage::Error;
use hamal_storage::sim::SimStorage;

use super::support::{append, append_all, payload, scan, shared, small, stream_bytes};
use crate::{Log, LogOptions, Lsn};

fn log() -> (SimStorage, Log) {
    let sim = SimStorage::new(1);
    let log = Log::create(shared(&sim), small(), 1).unwrap();
    (sim, log)
}

/// Room the log has for ordinary admissions, found by asking.
fn room(log: &Log) -> u64 {
    match log.promise(u64::MAX) {
        Err(Error::LogFull { available_bytes, .. }) => available_bytes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn framed_bytes_are_what_a_record_takes() {
    let (_sim, log) = log();
    for len in [0, 1, 7, 8, 9, 1000, log.max_payload_bytes()] {
        let before = log.tail().get();
        append(&log, &payload(1, len)).unwrap();
        assert_eq!(log.tail().get() - before, Log::framed_bytes(len));
    }
    assert!(log.max_payload_bytes() >= small().buffer_bytes / 8);
}

#[test]
fn a_permit_gives_back_what_it_did_not_use() {
    let (_sim, log) = log();
    let full = room(&log);
    assert_eq!(full, small().max_bytes);
    let mut permit = log.admit(1000, 300).unwrap();
    assert_eq!((room(&log), log.promised_bytes()), (full - 1300, 300));
    permit.append(&payload(1, 100)).unwrap();
    assert_eq!(permit.remaining_bytes(), 1000 - Log::framed_bytes(100));
    assert_eq!(room(&log), full - 1300, "appending moves room, it does not take more");
    drop(permit);
    assert_eq!(room(&log), full - 300 - Log::framed_bytes(100));
    log.release(300);
    assert_eq!((room(&log), log.promised_bytes()), (full - Log::framed_bytes(100), 0));
    assert_eq!(log.used_bytes(), Log::framed_bytes(100));
}

#[test]
fn a_permit_too_small_reserves_nothing() {
    let (_sim, log) = log();
    let mut permit = log.admit(104, 0).unwrap();
    assert!(matches!(permit.append(&payload(1, 100)), Err(Error::Invalid(_))));
    assert_eq!(log.tail(), Lsn::FIRST);
    permit.append(&payload(1, 76)).unwrap(); // 100 bytes, padded
    assert!(matches!(permit.append(&[]), Err(Error::Invalid(_))));
    drop(permit);
    let too_long = log.max_payload_bytes() + 1;
    let mut permit = log.admit(Log::framed_bytes(too_long), 0).unwrap();
    assert!(matches!(permit.append(&payload(1, too_long)), Err(Error::Invalid(_))));
    assert!(matches!(log.admit(small().buffer_bytes as u64 + 1, 0), Err(Error::Invalid(_))));
}

#[test]
fn promised_room_is_there_when_the_log_is_full_and_truncation_brings_room_back() {
    let (sim, log) = log();
    log.promise(2000).unwrap();
    let mut records = Vec::new();
    let full = loop {
        match append(&log, &payload(records.len() as u64, 500)) {
            Ok(lsn) => records.push((lsn, payload(records.len() as u64, 500))),
            Err(error) => break error,
        }
    };
    let Error::LogFull { needed_bytes, available_bytes } = full else { panic!("{full}") };
    assert_eq!(needed_bytes, Log::framed_bytes(500));
    assert!(available_bytes < needed_bytes);
    assert_eq!(available_bytes, small().max_bytes - log.used_bytes() - 2000);
    assert!(matches!(log.promise(available_bytes + 1), Err(Error::LogFull { .. })));
    // Compensation fits, and what was promised for it is given back then.
    for number in 0..5 {
        let mut permit = log.admit_promised(400).unwrap();
        let lsn = permit.append(&payload(900 + number, 376)).unwrap();
        records.push((lsn, payload(900 + number, 376)));
        log.release(400);
    }
    assert_eq!(log.promised_bytes(), 0);
    assert!(log.used_bytes() <= small().max_bytes);
    log.flush().unwrap();
    // Room comes back by truncation, to the byte.
    let keep = records.len() / 2;
    log.truncate(records[keep].0).unwrap();
    assert_eq!(room(&log), small().max_bytes - log.used_bytes());
    for _ in 0..20 {
        append(&log, &payload(5, 500)).unwrap();
    }
    log.flush().unwrap();
    let scanned = scan(&shared(&sim), &small(), records[keep].0, log.durable()).unwrap();
    assert_eq!(scanned.records[..records.len() - keep], records[keep..]);
    assert!(matches!(log.truncate(Lsn(log.durable().get() + 8)), Err(Error::Invalid(_))));
}

/// F9: a full disk refuses admissions cleanly, promised records still find room, and work resumes with space.
#[test]
fn a_full_disk_refuses_new_work_and_keeps_its_promises() {
    let (sim, log) = log();
    sim.set_capacity_bytes(Some(sim.used_bytes() + 3 * small().segment_bytes));
    log.promise(3000).unwrap();
    let mut appended = 0;
    let refused = loop {
        match append(&log, &payload(appended, 700)) {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
    };
    assert!(refused.is_no_space(), "{refused}");
    assert!(log.poison().is_none());
    assert!(log.used_bytes() > 2 * small().segment_bytes, "{}", log.used_bytes());
    assert!(append(&log, &payload(1, 700)).is_err_and(|e| e.is_no_space()), "refused again");
    assert!(!sim.files().iter().any(|name| name.contains("tmp")), "nothing half made is left");
    for _ in 0..3 {
        log.admit_promised(1000).unwrap().append(&payload(2, 976)).unwrap();
        log.release(1000);
    }
    log.flush().unwrap();
    assert!(append(&log, &payload(1, 700)).is_err_and(|e| e.is_no_space()));
    sim.set_capacity_bytes(None);
    append_all(&log, 1, &[700; 40]);
    log.flush().unwrap();
    let scanned = scan(&shared(&sim), &small(), Lsn::FIRST, log.durable()).unwrap();
    assert_eq!(scanned.records.len() as u64, appended + 3 + 40);
}

#[test]
fn a_commit_touches_no_metadata() {
    use hamal_storage::sim::Operation;
    let (sim, log) = log();
    let count = || {
        [Operation::Write, Operation::Sync, Operation::SetLen, Operation::Create]
            .map(|o| sim.operation_count(o))
    };
    append(&log, &payload(1, 100)).unwrap();
    log.flush().unwrap();
    let before = (sim.io_count(), count());
    let lsn = append(&log, &payload(1, 100)).unwrap();
    log.make_durable(lsn).unwrap();
    let after = (sim.io_count(), count());
    assert_eq!(after.0 - before.0, 2, "one write, one sync");
    assert_eq!((after.1[0] - before.1[0], after.1[1] - before.1[1]), (1, 1));
}

#[test]
fn what_follows_the_tail_in_its_block_is_zeros() {
    let (sim, log) = log();
    for number in 0..100 {
        append(&log, &payload(number, (number as usize * 37) % 900)).unwrap();
        log.flush().unwrap();
        let tail = log.tail().get();
        let rest = stream_bytes(&sim, tail, tail.next_multiple_of(4096));
        assert!(rest.iter().all(|byte| *byte == 0), "after record {number}");
    }
}

#[test]
fn a_waiter_for_room_gets_it_from_a_permit_that_ends() {
    let (_sim, log) = log();
    for round in 0..200 {
        log.flush().unwrap();
        let permit = log.admit(small().buffer_bytes as u64, 0).unwrap();
        let waits = log.stats().room_waits;
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| append(&log, &payload(round, 50)));
            // Half of the time the permit ends only when the waiter has found the buffer full.
            while round % 2 == 0 && log.stats().room_waits == waits {
                std::thread::yield_now();
            }
            drop(permit);
            waiter.join().unwrap().unwrap();
        });
    }
    assert!(log.stats().room_waits >= 100);
}

#[test]
fn options_that_cannot_work_are_refused() {
    for options in [
        LogOptions { segment_bytes: 0, ..small() },
        LogOptions { segment_bytes: 5000, ..small() },
        LogOptions { buffer_bytes: 5000, ..small() },
        LogOptions { buffer_bytes: 512 << 20, ..small() },
        LogOptions { max_bytes: 4096, ..small() },
    ] {
        let sim = SimStorage::new(1);
        let result = Log::create(shared(&sim), options.clone(), 1);
        assert!(matches!(result, Err(Error::Invalid(_))), "{options:?}");
        assert!(sim.files().is_empty(), "nothing was touched");
    }
}

#[test]
fn a_promise_is_backed_by_segments_on_the_disk() {
    let (sim, log) = log();
    log.promise(100 << 10).unwrap();
    let segments = sim.files().iter().filter(|name| name.ends_with("log")).count() as u64;
    assert!(segments * small().segment_bytes >= log.tail().get() + (100 << 10));
    log.release(100 << 10);
    let permit = log.admit(1000, 150 << 10).unwrap();
    let segments = sim.files().iter().filter(|name| name.ends_with("log")).count() as u64;
    assert!(segments * small().segment_bytes >= log.tail().get() + 1000 + (150 << 10));
    drop(permit);
    log.release(150 << 10);
}

/// So large that threads keep some room in stock.
fn roomy() -> LogOptions {
    LogOptions { segment_bytes: 64 << 10, buffer_bytes: 64 << 10, max_bytes: 1 << 20, shelves: 16 }
}

/// Some threads append a record each, and leave what they keep in stock.
fn leave_stock(log: &Log) {
    for number in 0..6 {
        std::thread::scope(|scope| {
            scope.spawn(|| append(log, &payload(number, 100)).unwrap()).join().unwrap()
        });
    }
}

#[test]
fn what_other_threads_keep_in_stock_is_room_for_who_needs_it() {
    let log = Log::create(shared(&SimStorage::new(2)), roomy(), 1).unwrap();
    leave_stock(&log);
    let spoken_for = log.budget.spoken_for();
    assert!(spoken_for > log.tail().get() + 1000, "nothing is in stock: {spoken_for}");
    assert_eq!(room(&log), roomy().max_bytes - log.used_bytes());
    assert_eq!(log.budget.spoken_for(), log.tail().get(), "asking for all there is clears the shelves");
    // To the byte, though the others have some again.
    leave_stock(&log);
    let left = roomy().max_bytes - log.used_bytes();
    log.promise(left).unwrap();
    assert!(matches!(log.promise(1), Err(Error::LogFull { available_bytes: 0, .. })));
    log.release(left);
    assert_eq!(log.promised_bytes(), 0);
    assert_eq!(room(&log), left);
}

#[test]
fn who_waits_for_the_buffer_gets_what_others_keep_in_stock() {
    let log = Log::create(shared(&SimStorage::new(3)), roomy(), 1).unwrap();
    leave_stock(&log);
    log.flush().unwrap();
    assert!(log.ring.claimed() > log.tail().get(), "nothing is in stock");
    let all = roomy().buffer_bytes as u64;
    let permit = log.admit(all, 0).unwrap();
    assert_eq!((permit.remaining_bytes(), log.stats().room_waits), (all, 1));
    assert!(log.try_admit(8).is_none());
    drop(permit);
    assert!(log.try_admit(8).is_some());
}

#[test]
fn what_one_thread_promised_another_may_release() {
    let log = Log::create(shared(&SimStorage::new(4)), roomy(), 1).unwrap();
    for _ in 0..100 {
        std::thread::scope(|scope| {
            scope.spawn(|| drop(log.admit(200, 300).unwrap())).join().unwrap();
            scope.spawn(|| log.release(300)).join().unwrap();
        });
    }
    assert_eq!(log.promised_bytes(), 0);
    assert_eq!(room(&log), roomy().max_bytes);
}
