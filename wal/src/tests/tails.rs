//! Torn tails: what a power cut may leave of the last batch is never taken for damage, and never shows half a record.

use hamal_storage::sim::{CrashMode, SimStorage};

use super::support::{
    Lazy, Record, Way, append, append_all, copy, corruption, overwrite, payload, resume_sim, scan_all,
    scan_sim, shared, small, stream_bytes,
};
use crate::{Log, Lsn, Scanner};

/// A log with a durable batch and one that was written and never synced.
fn durable_and_pending(
    seed: u64,
    durable: &[usize],
    pending: &[usize],
) -> (Lazy, Vec<Record>, Vec<Record>, u64) {
    let lazy = Lazy::new(seed);
    let log = Log::create(lazy.shared(), small(), 1).unwrap();
    let durable = append_all(&log, 0, durable);
    log.flush().unwrap();
    lazy.stop_syncing();
    let pending = append_all(&log, 1000, pending);
    log.flush().unwrap();
    let end = log.tail().get();
    (lazy, durable, pending, end)
}

/// Scans a crashed machine, checks that all of `durable` and a prefix of `pending` are there, resumes, appends, scans
/// again. Returns how many pending records survived.
fn survives(sim: &SimStorage, durable: &[Record], pending: &[Record], what: &str) -> usize {
    let scanned = scan_sim(sim).unwrap_or_else(|error| panic!("{what}: {error}"));
    let all: Vec<Record> = durable.iter().chain(pending).cloned().collect();
    let count = scanned.records.len();
    assert!(count >= durable.len(), "{what}: lost durable records");
    assert_eq!(scanned.records, all[..count], "{what}");

    let log = resume_sim(sim, 2, &scanned).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut kept = scanned.records;
    for number in 0..3 {
        let payload = payload(2000 + number, 77);
        kept.push((append(&log, &payload).unwrap(), payload));
    }
    log.flush().unwrap();
    for (lsn, payload) in &kept {
        assert_eq!(log.read(*lsn).unwrap(), *payload, "{what}");
    }
    drop(log);
    let after = scan_sim(&sim.crash_image(CrashMode::LoseAll, 1)).unwrap();
    assert_eq!(after.records, kept, "{what}: after resuming");
    assert_eq!(after.resume.incarnation, 2);
    count - durable.len()
}

#[test]
fn a_tail_cut_at_any_byte_ends_the_log_at_the_last_whole_record() {
    let (lazy, durable, pending, end) = durable_and_pending(1, &[40, 0, 300], &[5, 0, 130, 64]);
    let start = pending[0].0.get();
    let bytes = stream_bytes(&lazy.sim, start, end.next_multiple_of(8));
    for (name, filler) in [("zeros", 0_u8), ("ones", 0xff)] {
        for cut in 0..(end - start) as usize {
            let sim = copy(&lazy.sim);
            overwrite(&sim, start + cut as u64, &vec![filler; bytes.len() - cut]);
            let what = format!("{name} from byte {cut} of the batch");
            let survived = survives(&sim, &durable, &pending, &what);
            // A record survives if the bytes that are left of it, padding aside, are all its bytes.
            let whole = pending.iter().zip(1..).take_while(|((lsn, payload), _)| {
                let record_end = (lsn.get() - start) as usize + 24 + payload.len();
                record_end <= cut || bytes[cut..record_end].iter().all(|byte| *byte == filler)
            });
            assert_eq!(survived, whole.count(), "{what}");
        }
    }
}

#[test]
fn any_subset_of_the_sectors_of_the_last_batch_may_survive() {
    // Nine sectors: the batch shares its first with durable records and straddles a block.
    let (lazy, durable, pending, end) =
        durable_and_pending(2, &[200, 31], &[700, 20, 900, 16, 8, 1000, 400, 350]);
    let start = pending[0].0.get();
    let first_sector = start / 512;
    let sectors = end.div_ceil(512) - first_sector;
    assert!((8..=10).contains(&sectors), "{sectors}");
    let new = stream_bytes(&lazy.sim, first_sector * 512, (first_sector + sectors) * 512);
    let lost = lazy.sim.crash_image(CrashMode::LoseAll, 0);
    let mut survived_counts = std::collections::BTreeSet::new();
    for subset in 0..1_u32 << sectors {
        let sim = copy(&lost);
        for sector in (0..sectors).filter(|sector| subset & 1 << sector != 0) {
            let bytes = &new[(sector * 512) as usize..][..512];
            overwrite(&sim, (first_sector + sector) * 512, bytes);
        }
        survived_counts.insert(survives(&sim, &durable, &pending, &format!("sectors {subset:#b}")));
    }
    // Not 3 and 6: records 3 and 4 lie in one sector, 6 and 7 do.
    assert!(
        survived_counts.into_iter().eq([0, 1, 2, 4, 5, 7, 8]),
        "every prefix that sectors can make occurs"
    );
}

#[test]
fn any_power_cut_leaves_a_prefix_also_across_segments() {
    let durable: Vec<usize> = (0..30).map(|n| n * 11).collect();
    let pending: Vec<usize> = (0..24).map(|n| 20 + n * 37 % 600).collect();
    let mut cuts_inside = 0;
    for start in [0, 9000, 11_000, 16_000] {
        for seed in 0..150 {
            let lazy = Lazy::new(seed);
            let log = Log::create(lazy.shared(), small(), 1).unwrap();
            let mut durable_records = append_all(&log, 0, &durable);
            while log.tail().get() < start {
                durable_records.extend(append_all(&log, 500, &[400]));
            }
            log.flush().unwrap();
            lazy.stop_syncing();
            let pending_records = append_all(&log, 1000, &pending);
            log.flush().unwrap();
            for mode in [CrashMode::Kill, CrashMode::KeepAll, CrashMode::LoseAll, CrashMode::Subset] {
                let sim = lazy.sim.crash_image(mode, seed);
                let what = format!("start {start}, {mode:?}, seed {seed}");
                let survived = survives(&sim, &durable_records, &pending_records, &what);
                match mode {
                    CrashMode::LoseAll => assert_eq!(survived, 0, "{what}"),
                    CrashMode::Subset => cuts_inside += usize::from((1..24).contains(&survived)),
                    _ => assert_eq!(survived, pending.len(), "{what}"),
                }
            }
        }
    }
    assert!(cuts_inside > 50, "{cuts_inside}");
}

/// The first schedule of hazard H1: A and B unsynced, A's sectors are lost, B's survive. Not corruption.
#[test]
fn a_lost_record_before_a_surviving_one_of_the_same_batch_is_a_torn_tail() {
    // A starts and ends on a sector boundary: 1000 bytes of payload and 24 of header.
    let lazy = Lazy::new(3);
    let log = Log::create(lazy.shared(), small(), 1).unwrap();
    let durable = append_all(&log, 0, &[488]);
    log.flush().unwrap();
    lazy.stop_syncing();
    let a = append(&log, &payload(1, 1000)).unwrap();
    let b = append(&log, &payload(2, 76)).unwrap();
    assert_eq!((a.get() % 512, b.get() - a.get()), (0, 1024));
    log.flush().unwrap();
    let sim = copy(&lazy.sim);
    overwrite(&sim, a.get(), &[0; 1024]);
    let scanned = scan_sim(&sim).unwrap();
    assert_eq!(scanned.records, durable);
    assert_eq!(scanned.resume.end, a);
    assert_eq!(survives(&sim, &durable, &[], "A lost, B there"), 0);
}

/// The second schedule of hazard H1: recovery truncates at A, C fills A's place exactly, crash: the scan must not run
/// from C into the old B.
#[test]
fn a_scan_does_not_run_from_a_new_record_into_an_old_one() {
    let lazy = Lazy::new(4);
    let log = Log::create(lazy.shared(), small(), 1).unwrap();
    let mut kept = append_all(&log, 0, &[488]);
    log.flush().unwrap();
    lazy.stop_syncing();
    let a = append(&log, &payload(1, 1000)).unwrap();
    let b = append(&log, &payload(2, 76)).unwrap();
    log.flush().unwrap();
    let old_b = stream_bytes(&lazy.sim, b.get(), b.get() + 104);
    let sim = copy(&lazy.sim);
    overwrite(&sim, a.get(), &[0; 1024]);

    let scanned = scan_sim(&sim).unwrap();
    let log = resume_sim(&sim, 2, &scanned).unwrap();
    assert_eq!(stream_bytes(&sim, b.get(), b.get() + 104), [0; 104], "resuming zeroes what follows");
    let c = append(&log, &payload(3, 1000)).unwrap();
    assert_eq!(c, a);
    kept.push((c, payload(3, 1000)));
    log.flush().unwrap();
    drop(log);
    // Even if the zeros had not been written (a larger buffer of an earlier run), the incarnation tells.
    overwrite(&sim, b.get(), &old_b);
    let scanned = scan_sim(&sim).unwrap();
    assert_eq!(scanned.records, kept);
    assert_eq!((scanned.resume.end, scanned.torn), (b, true));
}

#[test]
fn a_record_of_a_later_incarnation_may_follow_and_one_of_an_earlier_ends_the_log() {
    let lazy = Lazy::new(5);
    let mut kept = Vec::new();
    for incarnation in [3, 4, 9] {
        let log = if incarnation == 3 {
            Log::create(lazy.shared(), small(), incarnation).unwrap()
        } else {
            let scanned = scan_sim(&lazy.sim).unwrap();
            resume_sim(&lazy.sim, incarnation, &scanned).unwrap()
        };
        kept.extend(append_all(&log, u64::from(incarnation), &[50, 60]));
        log.flush().unwrap();
        assert_eq!(scan_sim(&lazy.sim).unwrap().records, kept);
    }
    let mut scanner = Scanner::open(shared(&lazy.sim), &small(), Lsn::FIRST, Lsn::FIRST).unwrap();
    let mut incarnations = Vec::new();
    while let Some(frame) = scanner.next_frame().unwrap() {
        incarnations.push(frame.incarnation);
    }
    assert_eq!(incarnations, [3, 3, 4, 4, 9, 9]);
    assert_eq!(scanner.resume().unwrap().incarnation, 9);
}

/// Who reads what is there already, while the log goes on, may read the end before a flush and what is behind it after the next.
#[test]
fn a_part_of_a_log_that_goes_on_is_read_without_a_look_at_what_is_behind_it() {
    let sim = SimStorage::new(6);
    let log = Log::create(shared(&sim), small(), 1).unwrap();
    let records = append_all(&log, 0, &[50, 1900, 60, 1000, 9, 2000]);
    log.flush().unwrap();
    let tail = log.tail();
    append_all(&log, 100, &[500]);
    log.flush().unwrap();
    append_all(&log, 200, &[500]);
    log.flush().unwrap();
    let seen = copy(&sim);
    overwrite(&seen, tail.get(), &[0; 528]);
    let error = corruption(scan_sim(&seen));
    assert!(error.contains("attests"), "{error}");
    let ends = records.iter().skip(1).map(|(lsn, _)| *lsn).chain([tail]);
    for (count, to) in (1..).zip(ends) {
        for way in Way::ALL {
            let scanner = Scanner::open_between(shared(&seen), &small(), Lsn::FIRST, to).unwrap();
            let scanned = scan_all(way, scanner, Lsn::FIRST).unwrap();
            assert_eq!(scanned.records, records[..count], "to {to} by {way:?}");
            assert_eq!((scanned.resume.end, scanned.torn), (to, false));
        }
    }
    // What is missing before is damage.
    overwrite(&seen, records[3].0.get(), &[0; 100]);
    let scanner = Scanner::open_between(shared(&seen), &small(), Lsn::FIRST, tail).unwrap();
    let error = corruption(scan_all(Way::Batches, scanner, Lsn::FIRST));
    assert!(error.contains("made durable"), "{error}");
}
