//! Flushes of many pieces: of a ring that is full to the byte and wraps anywhere, and one whose disk fails in the middle.

use hamal_storage::sim::{CrashMode, Fault, FaultKind, Operations, Repeat, SimStorage, When};

use super::support::{Record, append, payload, scan, shared};
use crate::{Log, LogOptions, Lsn};

fn options() -> LogOptions {
    LogOptions { segment_bytes: 68 << 10, buffer_bytes: 512 << 10, max_bytes: 64 << 20, shelves: 16 }
}

/// Appends until the ring holds all that it can, down to a record's least length; returns whether it is full to the byte.
fn fill(log: &Log, records: &mut Vec<Record>, lens: &[usize]) -> bool {
    let capacity = options().buffer_bytes as u64;
    let mut lens = lens.iter().copied().cycle();
    loop {
        let room = capacity - (log.tail().0 - log.durable().0);
        if room < Log::framed_bytes(0) {
            return room == 0;
        }
        let wanted = lens.next().unwrap();
        // The last one takes the rest.
        let fits = Log::framed_bytes(wanted) + Log::framed_bytes(0) <= room;
        let most = (room - Log::framed_bytes(0)) as usize;
        let payload = payload(records.len() as u64, if fits { wanted } else { most });
        records.push((append(log, &payload).unwrap(), payload));
    }
}

#[test]
fn a_full_ring_is_flushed_piece_by_piece_wherever_it_wraps() {
    let sim = SimStorage::new(1);
    let log = Log::create(shared(&sim), options(), 1).unwrap();
    let mut records = Vec::new();
    // Short ones, of about a block, of about a piece, as long as there can be; with lengths that drift against blocks and pieces.
    let laps: [&[usize]; 5] = [
        &[100, 37, 1],
        &[4072, 4073, 4090, 1],
        &[130_000, 7],
        &[131_048, 131_040, 3],
        &[60_001, 999, 50_000],
    ];
    for lens in laps.into_iter().cycle().take(15) {
        let start = log.durable();
        assert!(fill(&log, &mut records, lens), "it is full to the byte");
        assert_eq!(log.durable(), start, "nobody has flushed meanwhile");
        // Read from the ring before, from the segments after.
        let (lsn, payload) = &records[records.len() - 2];
        assert_eq!(log.read(*lsn).unwrap(), *payload);
        log.flush().unwrap();
        assert_eq!(log.durable(), log.tail());
        assert_eq!(log.read(*lsn).unwrap(), *payload);
        // So the next lap begins elsewhere.
        for len in [5000, 77] {
            let payload = super::support::payload(records.len() as u64, len);
            records.push((append(&log, &payload).unwrap(), payload));
        }
        log.flush().unwrap();
    }
    let end = log.durable();
    drop(log);
    let scanned =
        scan(&shared(&sim.crash_image(CrashMode::LoseAll, 1)), &options(), Lsn::FIRST, end).unwrap();
    assert_eq!((scanned.records.len(), scanned.resume.end), (records.len(), end));
    assert!(scanned.records == records, "what was appended is what is in the segments");
}

#[test]
fn a_flush_that_fails_at_any_of_its_pieces_has_made_nothing_durable() {
    let (mut struck, mut nth) = (0, 0);
    loop {
        nth += 1;
        let sim = SimStorage::new(nth);
        let log = Log::create(shared(&sim), options(), 1).unwrap();
        let mut records = vec![];
        let first = payload(0, 100);
        records.push((append(&log, &first).unwrap(), first));
        log.flush().unwrap();
        let durable = log.durable();
        fill(&log, &mut records, &[3000, 501]);
        // Room for all of it, so that what fails is the flush.
        let fault = Fault {
            only: Operations::of(&[
                hamal_storage::sim::Operation::Write,
                hamal_storage::sim::Operation::Sync,
            ]),
            file: Some("wal/*.log".to_owned()),
            ..Fault::new(FaultKind::Eio, When::Nth(nth), Repeat::Once)
        };
        sim.inject(fault);
        let flushed = log.flush();
        if sim.fired().is_empty() {
            flushed.unwrap();
            assert_eq!(log.durable(), log.tail());
            break;
        }
        struck += 1;
        assert!(flushed.is_err() && log.poison().is_some(), "write or sync {nth}");
        assert_eq!(log.durable(), durable, "write or sync {nth}: nothing of it is promised");
        sim.clear_faults();
        for (lsn, payload) in &records {
            assert_eq!(log.read(*lsn).unwrap(), *payload, "write or sync {nth}: reads go on");
        }
        drop(log);
        for mode in [CrashMode::Kill, CrashMode::LoseAll, CrashMode::Subset] {
            let image = shared(&sim.crash_image(mode, nth));
            let scanned = scan(&image, &options(), Lsn::FIRST, durable).unwrap();
            assert!(scanned.resume.end >= durable);
            assert!(scanned.records.iter().eq(records.iter().take(scanned.records.len())), "{nth}, {mode:?}");
        }
    }
    assert!(struck > 8, "only {struck} writes and syncs");
}
