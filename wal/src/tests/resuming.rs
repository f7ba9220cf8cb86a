//! Resuming: what it rewrites and tidies, and crashes inside it.

use hamal_storage::sim::{CrashMode, Fault, FaultKind, Operation, Repeat, SimStorage, When};

use super::support::{
    Lazy, Record, Scanned, append, append_all, payload, resume_sim, scan, scan_sim, shared, small,
};
use crate::segments::parse_segment_name;
use crate::{Log, Lsn};

/// A log that has wrapped, was truncated, and lost power with a batch in flight.
struct Wreck {
    sim: SimStorage,
    oldest: Lsn,
    /// From `oldest` on; those below `acked_end` are durable.
    records: Vec<Record>,
    acked_end: Lsn,
}

impl Wreck {
    fn new(seed: u64) -> Wreck {
        let lazy = Lazy::new(seed);
        let log = Log::create(lazy.shared(), small(), 1).unwrap();
        let mut records = Vec::new();
        for batch in 0..40 + seed {
            records.extend(append_all(&log, batch * 10, &[500, 90, 700]));
            log.flush().unwrap();
            if batch % 10 == 9 {
                log.truncate(records[records.len() - 12].0).unwrap();
            }
        }
        let oldest = log.oldest();
        records.retain(|(lsn, _)| *lsn >= oldest);
        let acked_end = log.durable();
        lazy.stop_syncing();
        records.extend(append_all(&log, 9000, &[900, 300, 20, 800, 1500, 60]));
        log.flush().unwrap();
        Wreck { sim: lazy.sim, oldest, records, acked_end }
    }

    fn scan(&self, sim: &SimStorage, what: &str) -> Scanned {
        let scanned = scan(&shared(sim), &small(), self.oldest, self.acked_end)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(scanned.resume.end >= self.acked_end, "{what}");
        assert_eq!(scanned.records, self.records[..scanned.records.len()], "{what}");
        scanned
    }

    fn resume(&self, sim: &SimStorage, incarnation: u32, scanned: &Scanned) -> hamal_storage::Result<Log> {
        Log::resume(shared(sim), small(), incarnation, self.oldest, &scanned.resume)
    }

    /// Resumes for good: the log works, and holds the same after a power cut that loses all it may.
    fn finish(&self, sim: &SimStorage, incarnation: u32, what: &str) {
        let scanned = self.scan(sim, what);
        let log = self.resume(sim, incarnation, &scanned).unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut kept = scanned.records;
        kept.extend(append_all(&log, 7777, &[10, 1200, 30]));
        log.flush().unwrap();
        let after = sim.crash_image(CrashMode::LoseAll, 0);
        let again = scan(&shared(&after), &small(), self.oldest, log.durable())
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(again.records, kept, "{what}");
    }
}

#[test]
fn a_crash_at_any_io_of_resuming_and_of_resuming_that_changes_no_record() {
    let mut crashes = 0;
    for seed in 0..3 {
        let wreck = Wreck::new(seed);
        for (first_mode, second_mode) in [
            (CrashMode::Kill, CrashMode::Subset),
            (CrashMode::Subset, CrashMode::Subset),
            (CrashMode::Subset, CrashMode::LoseAll),
        ] {
            let base = wreck.sim.crash_image(first_mode, seed);
            for first in 1.. {
                let sim = base.crash_image(CrashMode::Kill, 0);
                let what = format!("seed {seed}, {first_mode:?}, {second_mode:?}, I/O {first}");
                let scanned = wreck.scan(&sim, &what);
                sim.crash_at(sim.io_count() + first);
                if wreck.resume(&sim, 2, &scanned).is_ok() {
                    break;
                }
                crashes += 1;
                let base = sim.crash(second_mode, seed * 1000 + first);
                for second in (1 + first % 3..).step_by(3) {
                    let sim = base.crash_image(CrashMode::Kill, 0);
                    let what = format!("{what}, then I/O {second}");
                    let scanned = wreck.scan(&sim, &what);
                    sim.crash_at(sim.io_count() + second);
                    if wreck.resume(&sim, 3, &scanned).is_ok() {
                        break;
                    }
                    crashes += 1;
                    wreck.finish(&sim.crash(second_mode, second), 4, &what);
                }
                wreck.finish(&base, 3, &what);
            }
        }
    }
    assert!(crashes > 300, "{crashes}");
}

#[test]
fn any_failed_io_of_resuming_fails_it_and_the_next_attempt_works() {
    for (kind, repeat) in [
        (FaultKind::Eio, Repeat::Once),
        (FaultKind::Enospc, Repeat::Once),
        (FaultKind::Short, Repeat::Forever),
        (FaultKind::Interrupted, Repeat::Once),
    ] {
        let wreck = Wreck::new(11);
        let base = wreck.sim.crash_image(CrashMode::Subset, 5);
        let mut failures = 0;
        for io in 1.. {
            let sim = base.crash_image(CrashMode::Kill, 0);
            let what = format!("{kind:?} at I/O {io}");
            let scanned = wreck.scan(&sim, &what);
            sim.inject(Fault::new(kind, When::Io(sim.io_count() + io), repeat));
            let result = wreck.resume(&sim, 2, &scanned);
            let struck = !sim.fired().is_empty();
            sim.clear_faults();
            if let Err(error) = &result {
                failures += 1;
                assert!(matches!(error, hamal_storage::Error::Io { .. }), "{what}: {error}");
                assert!(matches!(kind, FaultKind::Eio | FaultKind::Enospc), "{what}: {error}");
            }
            drop(result);
            // A failed sync has left pages that the cache calls clean and the disk does not have.
            wreck.finish(&sim.crash_image(CrashMode::Kill, 0), 3, &what);
            wreck.finish(&sim.crash_image(CrashMode::Subset, io), 3, &what);
            sim.drop_clean_cache();
            wreck.finish(&sim, 3, &what);
            if !struck {
                break;
            }
        }
        assert_eq!(failures > 0, matches!(kind, FaultKind::Eio | FaultKind::Enospc));
    }
}

/// F6: a sync failed, the process went on living or was killed; the page cache shows records that the disk lacks.
#[test]
fn what_the_scan_relied_on_is_rewritten_because_the_disk_may_lack_it() {
    for seed in 0..50 {
        let sim = SimStorage::new(seed);
        let log = Log::create(shared(&sim), small(), 1).unwrap();
        append_all(&log, 0, &[100; 3]);
        log.flush().unwrap();
        sim.inject(
            Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Once).only(&[Operation::Sync]).on("wal/*.log"),
        );
        // Several blocks: the last is rewritten in any case, when the tail is cut.
        append_all(&log, 10, &[1250; 6]);
        log.flush().unwrap_err();
        assert!(log.poison().is_some());
        drop(log);
        let scanned = scan_sim(&sim).unwrap();
        assert_eq!(scanned.records.len(), 9, "the page cache has them all");
        let log = resume_sim(&sim, 2, &scanned).unwrap();
        drop(log);
        sim.drop_clean_cache();
        assert_eq!(scan_sim(&sim).unwrap().records, scanned.records, "seed {seed}");
        let lost = sim.crash(CrashMode::LoseAll, seed);
        assert_eq!(scan_sim(&lost).unwrap().records, scanned.records, "seed {seed}");
    }
}

#[test]
fn leftovers_are_tidied_and_spares_kept() {
    let wreck = Wreck::new(3);
    let sim = wreck.sim.crash_image(CrashMode::KeepAll, 0);
    let storage = shared(&sim);
    let segment_bytes = small().segment_bytes;
    // Half a segment under a temporary name, an old segment whose removal was lost, a stranger, and segments beyond a
    // gap: near enough to be of use, far away, and of the wrong length.
    storage.create("wal/00000000000000999424.tmp").unwrap();
    let end_first = sim.files().iter().filter_map(|name| parse_segment_name(name.get(4..)?)).max().unwrap();
    for (first, len) in [
        (segment_bytes, segment_bytes),
        (end_first + 2 * segment_bytes, segment_bytes),
        (end_first + 3 * segment_bytes, 100),
        (segment_bytes * 600, segment_bytes),
    ] {
        let file = storage.create(&format!("wal/{first:020}.log")).unwrap();
        hamal_storage::write_all_at(file.as_ref(), &vec![7; len as usize], 0).unwrap();
    }
    storage.create("wal/README").unwrap();
    wreck.finish(&sim, 2, "leftovers");
    let names: Vec<String> = sim.files().into_iter().filter(|name| name.starts_with("wal/")).collect();
    assert!(names.contains(&"wal/README".to_owned()), "what is not the log's is left alone");
    assert!(!names.iter().any(|name| name.contains("tmp")), "{names:?}");
    let firsts: Vec<u64> = names.iter().filter_map(|name| parse_segment_name(&name[4..])).collect();
    let oldest_first = wreck.oldest.get() / segment_bytes * segment_bytes;
    let expected: Vec<u64> =
        (0..firsts.len() as u64).map(|index| oldest_first + index * segment_bytes).collect();
    assert_eq!(firsts, expected, "contiguous from the oldest needed");
    for name in names.iter().filter(|name| name.contains(".log")) {
        assert_eq!(sim.read_file(name).unwrap().len() as u64, segment_bytes, "{name}");
    }
}

#[test]
fn a_resumed_log_reads_and_truncates_what_was_before() {
    let wreck = Wreck::new(4);
    let sim = wreck.sim.crash_image(CrashMode::LoseAll, 0);
    let scanned = wreck.scan(&sim, "");
    let log = wreck.resume(&sim, 2, &scanned).unwrap();
    for (lsn, payload) in &scanned.records {
        assert_eq!(log.read(*lsn).unwrap(), *payload);
    }
    assert_eq!((log.oldest(), log.durable()), (wreck.oldest, scanned.resume.end));
    log.truncate(log.durable()).unwrap();
    assert_eq!(log.used_bytes(), 0);
    let lsn = append(&log, &payload(1, 10)).unwrap();
    log.make_durable(lsn).unwrap();
    drop(log);
    let again = scan(&shared(&sim), &small(), scanned.resume.end, Lsn(lsn.get() + 8)).unwrap();
    assert_eq!(again.records, [(lsn, payload(1, 10))]);
}

/// The process died between renaming a recycled segment and syncing the directory: the name is visible, so resuming
/// counts on it, and must make it durable before a record goes in.
#[test]
fn a_spare_whose_name_was_never_synced_is_not_lost_with_what_it_holds() {
    let sim = SimStorage::new(1);
    let log = Log::create(shared(&sim), small(), 1).unwrap();
    let records = append_all(&log, 0, &[1000; 60]);
    log.flush().unwrap();
    let oldest = records[50].0;
    sim.inject(Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Once).only(&[Operation::SyncDirectory]));
    log.truncate(oldest).unwrap_err();
    drop(log);
    let scanned = scan(&shared(&sim), &small(), oldest, oldest).unwrap();
    let log = Log::resume(shared(&sim), small(), 2, oldest, &scanned.resume).unwrap();
    let mut records = scanned.records;
    records.extend(append_all(&log, 100, &[1000; 40]));
    log.flush().unwrap();
    let sim = sim.crash(CrashMode::LoseAll, 0);
    assert_eq!(scan(&shared(&sim), &small(), oldest, log.durable()).unwrap().records, records);
}
