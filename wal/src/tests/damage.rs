//! Damage below what is attested as durable is found and named; missing files; bytes that nobody wrote.

use hamal_storage::Storage as _;
use hamal_storage::sim::{CrashMode, SimStorage};
use proptest::prelude::*;

use super::support::{
    Record, Way, append_all, copy, corruption, overwrite, place, resume_sim, scan, scan_by, scan_sim, shared,
    small, stream_bytes,
};
use crate::frame::{HEADER_BYTES, Header, padded};
use crate::{Log, LogOptions, Lsn, Scanner};

/// A log of several flushes.
fn flushed(seed: u64, batches: usize) -> (SimStorage, Vec<Record>, Lsn) {
    let sim = SimStorage::new(seed);
    let log = Log::create(shared(&sim), small(), 1).unwrap();
    let mut records = Vec::new();
    for batch in 0..batches {
        records.extend(append_all(&log, batch as u64 * 100, &[33, 0, 120 + batch % 50, 7, 250]));
        log.flush().unwrap();
    }
    let end = log.durable();
    (sim, records, end)
}

#[test]
fn every_flipped_bit_below_an_attested_frontier_is_reported_with_file_and_lsn() {
    let (sim, records, _) = flushed(1, 3);
    for (index, (lsn, payload)) in records[..10].iter().enumerate() {
        let next = records[index + 1].0.get();
        for bit in 0..(next - lsn.get()) * 8 {
            let damaged = copy(&sim);
            let (name, offset) = place(lsn.get());
            damaged.flip_bit(&name, offset * 8 + bit).unwrap();
            let result = scan_sim(&damaged);
            let in_padding = bit / 8 >= HEADER_BYTES as u64 + payload.len() as u64;
            if in_padding {
                assert_eq!(result.unwrap().records, records, "padding carries nothing");
                continue;
            }
            let text = corruption(result);
            let place = format!("{name} is damaged at byte {offset}");
            assert!(text.contains(&place) && text.contains(&format!("LSN {lsn} ")), "bit {bit}: {text}");
            assert!(text.contains("attests that everything below"), "{text}");
        }
    }
}

#[test]
fn the_last_batch_is_protected_by_what_the_caller_swears() {
    let (sim, records, end) = flushed(2, 3);
    let (lsn, _) = records.last().unwrap();
    let (name, offset) = place(lsn.get() + 30);
    sim.flip_bit(&name, offset * 8).unwrap();
    let text = corruption(scan(&shared(&sim), &small(), Lsn::FIRST, end));
    assert!(text.contains(&format!("LSN {lsn} ")), "{text}");
    // One byte less sworn than the record's start: it may be torn.
    let scanned = scan(&shared(&sim), &small(), Lsn::FIRST, *lsn).unwrap();
    assert_eq!((scanned.resume.end, scanned.torn), (*lsn, true));
    assert_eq!(scanned.records, records[..records.len() - 1]);
}

#[test]
fn damage_of_any_size_is_found_by_a_record_beyond_it() {
    let (sim, records, end) = flushed(3, 200);
    let from = records[20].0.get();
    for bytes in [8, 600, 5000, 20_000, 60_000] {
        let damaged = copy(&sim);
        assert!(from + bytes + 2000 < end.get());
        overwrite(&damaged, from, &vec![0; bytes as usize]);
        let text = corruption(scan_sim(&damaged));
        assert!(text.contains(&format!("LSN {from} ")), "{text}");
    }
}

#[test]
fn a_missing_newest_segment_is_the_end_of_the_log() {
    let (sim, mut records, end) = flushed(4, 60);
    // Spares are there; take them away one by one, down to the segment that holds the end.
    let newest_needed = place(end.get()).0;
    loop {
        let newest = sim.files().into_iter().rfind(|name| name.starts_with("wal/")).unwrap();
        let scanned = scan(&shared(&sim), &small(), Lsn::FIRST, end).unwrap();
        assert_eq!(scanned.records, records);
        if newest == newest_needed {
            break;
        }
        sim.remove(&newest).unwrap();
    }
    // And one more: whatever was only in there was not durable, as far as anybody knows.
    sim.remove(&newest_needed).unwrap();
    let sworn = end.get() - end.get() % small().segment_bytes;
    let cut = records.iter().position(|(lsn, _)| lsn.get() >= sworn).unwrap() - 1;
    let straddling = records[cut].0;
    let scanned = scan(&shared(&sim), &small(), Lsn::FIRST, straddling).unwrap();
    records.truncate(cut);
    assert_eq!(scanned.records, records);
    assert!(scanned.torn, "a record runs into the missing segment");
    let text = corruption(scan(&shared(&sim), &small(), Lsn::FIRST, Lsn(straddling.get() + 8)));
    assert!(text.contains(&format!("LSN {straddling} ")), "{text}");

    let log = resume_sim(&sim, 2, &scanned).unwrap();
    records.extend(append_all(&log, 7, &[100; 300]));
    log.flush().unwrap();
    let sim = sim.crash(CrashMode::LoseAll, 0);
    assert_eq!(scan(&shared(&sim), &small(), Lsn::FIRST, records[400].0).unwrap().records, records);
}

#[test]
fn a_log_that_ends_with_its_last_segment_goes_on_in_a_new_one() {
    let sim = SimStorage::new(5);
    let log = Log::create(shared(&sim), small(), 1).unwrap();
    // Exactly to the end of segment 0.
    let mut records = append_all(&log, 1, &[1024 - 24; 12]);
    assert_eq!(log.tail().get(), small().segment_bytes);
    log.flush().unwrap();
    drop(log);
    for name in sim.files().iter().filter(|name| name.starts_with("wal/") && !name.contains("000000.log")) {
        sim.remove(name).unwrap();
    }
    for name in sim.files().iter().filter(|name| **name == place(small().segment_bytes).0) {
        sim.remove(name).unwrap();
    }
    let scanned = scan(&shared(&sim), &small(), Lsn::FIRST, Lsn(small().segment_bytes)).unwrap();
    assert_eq!((&scanned.records, scanned.torn), (&records, false));
    let log = resume_sim(&sim, 2, &scanned).unwrap();
    records.extend(append_all(&log, 100, &[10, 20]));
    log.flush().unwrap();
    let sim = sim.crash(CrashMode::LoseAll, 0);
    assert_eq!(scan_sim(&sim).unwrap().records, records);
}

#[test]
fn a_missing_segment_in_the_middle_is_damage() {
    let (sim, records, _) = flushed(6, 150);
    let (missing, _) = place(small().segment_bytes * 2);
    sim.remove(&missing).unwrap();
    let text = corruption(scan_sim(&sim));
    assert!(text.contains("was made durable"), "{text}");
    // The segment that the scan starts in is missing.
    let from = records.iter().find(|(lsn, _)| place(lsn.get()).0 == missing).unwrap().0;
    let text = corruption(scan(&shared(&sim), &small(), from, Lsn::FIRST));
    assert!(text.contains(&missing) && text.contains("no such file"), "{text}");
    assert!(text.contains(&format!("LSN {from} ")), "{text}");
}

#[test]
fn a_foreign_identification_is_refused() {
    let (sim, ..) = flushed(7, 1);
    for (offset, bytes) in [(0, b"HAMALOGG".as_slice()), (8, &[2]), (16, &[1]), (24, &[0; 4])] {
        let damaged = copy(&sim);
        overwrite(&damaged, offset, bytes);
        let text = corruption(scan_sim(&damaged));
        assert!(text.contains("wal/00000000000000000000.log"), "{text}");
    }
    let other = LogOptions { segment_bytes: 8 << 10, ..small() };
    let text = format!("{:?}", Scanner::open(shared(&sim), &other, Lsn::FIRST, Lsn::FIRST));
    assert!(text.contains("segments of 16384 bytes"), "{text}");
    // A name that cannot be a segment's.
    sim.create("wal/00000000000000000013.log").unwrap();
    assert!(corruption(scan_sim(&sim)).contains("00000000000000000013.log"));
}

/// A frame with a right checksum whatever its fields say.
fn sealed(length: u32, lsn: u64, incarnation: u32, delta: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header::sealed(crc32c::crc32c(payload), length, lsn, incarnation, delta);
    let mut bytes: Vec<u8> = header.words().iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// Bytes worth putting where a frame should be.
fn hostile() -> impl Strategy<Value = Vec<(u64, Vec<u8>)>> {
    let position = (0..3_u64 << 11).prop_map(|word| 4096 + word * 8);
    let bytes =
        (position, any::<u32>(), any::<u32>(), 0..400_usize, 0..6_u8).prop_map(|(at, a, b, len, kind)| {
            let payload: Vec<u8> = (0..len as u32).map(|i| (a ^ i.wrapping_mul(b)) as u8).collect();
            let length = (HEADER_BYTES + len) as u32;
            let bytes = match kind {
                0 => payload,
                1 => sealed(length, at, b % 4, 0, &payload),
                2 => sealed(length, at, b % 4, a % 8192, &payload),
                3 => sealed(a, at, b, a % 64, &payload),
                4 => sealed(length, at ^ u64::from(a), b, 0, &payload),
                _ => sealed(u32::MAX - a % 16, at, u32::MAX, b, &payload),
            };
            (at, bytes)
        });
    prop::collection::vec(bytes, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn hostile_bytes_give_records_or_corruption_and_never_more(
        patches in hostile(),
        sworn in prop::option::of(4096..60_000_u64),
        cut in prop::option::of(0..16_384_u64),
    ) {
        let (sim, ..) = flushed(8, 20);
        let existing: Vec<String> = sim.files();
        for (at, bytes) in &patches {
            if existing.contains(&place(at + bytes.len() as u64).0) {
                overwrite(&sim, *at, bytes);
            }
        }
        if let Some(cut) = cut {
            sim.open(existing.last().unwrap()).unwrap().set_len(cut).unwrap();
        }
        match scan(&shared(&sim), &small(), Lsn::FIRST, Lsn(sworn.unwrap_or(4096))) {
            Ok(scanned) => {
                let total: usize = scanned.records.iter().map(|(_, payload)| payload.len()).sum();
                prop_assert!(total < 64 << 10, "more than the files hold");
                let resumed = resume_sim(&sim, u32::MAX, &scanned);
                if scanned.resume.incarnation < u32::MAX {
                    let log = resumed.unwrap();
                    let added = append_all(&log, 5, &[10, 500]);
                    log.flush().unwrap();
                    let again = scan(&shared(&sim), &small(), Lsn::FIRST, log.durable()).unwrap();
                    prop_assert_eq!(&again.records[..scanned.records.len()], &scanned.records[..]);
                    prop_assert_eq!(&again.records[scanned.records.len()..], &added[..]);
                }
            }
            Err(error) => prop_assert!(
                matches!(error, hamal_storage::Error::Corrupt { .. }), "{}", error
            ),
        }
    }

    #[test]
    fn a_frame_reads_back_as_it_was_written(
        payload in prop::collection::vec(any::<u8>(), 0..600),
        lsn in 0..u64::MAX / 8,
        incarnation in any::<u32>(),
        delta in any::<u32>(),
    ) {
        let length = (HEADER_BYTES + payload.len()) as u32;
        let (lsn, delta) = (lsn.max(u64::from(delta)) / 8 * 8 + 8, delta);
        let bytes = sealed(length, lsn, incarnation, delta, &payload);
        prop_assert_eq!(bytes.len() as u64, padded(length));
        prop_assert_eq!(bytes.len() as u64, Log::framed_bytes(payload.len()));
        let header = Header::decode(bytes.first_chunk().unwrap());
        prop_assert_eq!(header.plausible(lsn), Ok(()));
        prop_assert_eq!(header.verify(&bytes), Ok(()));
        prop_assert_eq!(
            (header.length, header.lsn, header.incarnation, header.attested()),
            (length, lsn, incarnation, lsn - u64::from(delta))
        );
        prop_assert!(header.words()[0] != 0);
        // And no flipped bit goes unseen.
        let bit = (lsn as usize ^ delta as usize) % (length as usize * 8);
        let mut flipped = bytes;
        flipped[bit / 8] ^= 1 << (bit % 8);
        let header = Header::decode(flipped.first_chunk().unwrap());
        prop_assert!(header.plausible(lsn).is_err() || header.verify(&flipped).is_err());
    }
}

/// Every eight bytes a header that claims to be a witness with a long payload: quadratic if each were checked.
#[test]
fn claims_without_end_are_not_all_checked() {
    let options =
        LogOptions { segment_bytes: 4 << 20, buffer_bytes: 8 << 10, max_bytes: 64 << 20, shelves: 16 };
    let sim = SimStorage::new(9);
    let log = Log::create(shared(&sim), options.clone(), 1).unwrap();
    log.flush().unwrap();
    drop(log);
    // LSN field and the rest of a header overlap with the neighbours', so one every 24 bytes.
    let mut bytes = Vec::new();
    for at in (4096 + 24..(4 << 20) - 24_u64).step_by(24) {
        let header = Header { crc: 1, length: 2 << 20, lsn: at, incarnation: 1, frontier_delta: 8 };
        bytes.extend(header.words().iter().flat_map(|word| word.to_le_bytes()));
    }
    sim.overwrite("wal/00000000000000000000.log", 4096 + 24, &bytes).unwrap();
    let text = corruption(scan(&shared(&sim), &options, Lsn::FIRST, Lsn::FIRST));
    assert!(text.contains("too many damaged records"), "{text}");
}

#[test]
fn nothing_is_read_for_a_record_longer_than_the_files() {
    let (sim, records, end) = flushed(10, 4);
    let header = Header { crc: 1, length: 60 << 20, lsn: end.get(), incarnation: 1, frontier_delta: 8 };
    let bytes: Vec<u8> = header.words().iter().flat_map(|word| word.to_le_bytes()).collect();
    overwrite(&sim, end.get(), &bytes);
    let scanned = scan_sim(&sim).unwrap();
    assert_eq!((scanned.records, scanned.torn), (records, true));
    assert_eq!(stream_bytes(&sim, end.get(), end.get() + 24), bytes, "the scan changes nothing");
}

/// A log of one durable record, and what a test puts beyond it.
fn handmade(segment_bytes: u64, segments: u64) -> (SimStorage, LogOptions, u64) {
    let options = LogOptions { segment_bytes, buffer_bytes: 8 << 10, max_bytes: 256 << 20, shelves: 16 };
    let sim = SimStorage::new(12);
    for index in 0..segments {
        let name = format!("wal/{:020}.log", index * segment_bytes);
        sim.create_directory("wal").unwrap();
        sim.create(&name).unwrap().set_len(segment_bytes).unwrap();
    }
    let first = "wal/00000000000000000000.log";
    sim.overwrite(first, 0, &crate::segments::identification::encode(segment_bytes)).unwrap();
    sim.overwrite(first, 4096, &sealed(32, 4096, 5, 0, &[1; 8])).unwrap();
    (sim, options, 4096 + 32)
}

/// The cases of the scanner's table that hang on what lies beyond X.
#[test]
fn the_decision_table_case_by_case() {
    let put = overwrite;
    let scan = |sim: &SimStorage, sworn: u64| scan(&shared(sim), &small(), Lsn::FIRST, Lsn(sworn));
    let (sim, _, x) = handmade(small().segment_bytes, 2);
    let beyond = x + 400;

    // R5, R2: zeros at X.
    let scanned = scan(&sim, x).unwrap();
    assert_eq!((scanned.resume.end, scanned.torn, scanned.records.len()), (Lsn(x), false, 1));
    corruption(scan(&sim, x + 1));
    // R5, R3: a record beyond that knows of X, or just not, or is of an earlier incarnation, or is no record.
    for (incarnation, delta, damage) in [(5, 392, 0), (6, 8, 0), (5, 400, 0), (4, 8, 0), (5, 8, 1)] {
        let sim = copy(&sim);
        let mut frame = sealed(64, beyond, incarnation, delta, &[3; 40]);
        frame[30] ^= damage;
        put(&sim, beyond, &frame);
        let witness = incarnation >= 5 && delta < 400 && damage == 0;
        if witness {
            let text = corruption(scan(&sim, x));
            assert!(text.contains(&format!("LSN {beyond} attests")), "{text}");
        } else {
            assert_eq!(scan(&sim, x).unwrap().resume.end, Lsn(x));
        }
    }
    // R4: a valid record of an earlier incarnation.
    put(&sim, x, &sealed(32, x, 4, 0, &[2; 8]));
    let scanned = scan(&sim, x).unwrap();
    assert_eq!((scanned.resume.end, scanned.torn, scanned.resume.incarnation), (Lsn(x), true, 5));
    corruption(scan(&sim, x + 8));
    // R1: of the same.
    put(&sim, x, &sealed(32, x, 5, 0, &[2; 8]));
    assert_eq!(scan(&sim, x + 8).unwrap().records.len(), 2);
    // R6: of the same, and torn.
    put(&sim, x + 24, &[9]);
    let scanned = scan(&sim, x).unwrap();
    assert_eq!((scanned.resume.end, scanned.torn), (Lsn(x), true));
    // R8: into a segment that is not there. R7: up to it.
    let last = small().segment_bytes - 32;
    put(&sim, x, &sealed((last - x) as u32, x, 5, 0, &vec![2; (last - x) as usize - 24]));
    put(&sim, last, &sealed(40, last, 5, 0, &[4; 16]));
    sim.remove(&place(small().segment_bytes).0).unwrap();
    let scanned = scan(&sim, last).unwrap();
    assert_eq!((scanned.resume.end, scanned.torn), (Lsn(last), true));
    put(&sim, last, &sealed(32, last, 5, 0, &[4; 8]));
    let scanned = scan(&sim, last + 32).unwrap();
    assert_eq!((scanned.resume.end, scanned.torn), (Lsn(last + 32), false));
    corruption(scan(&sim, last + 40));
}

#[test]
fn a_witness_is_found_two_buffers_away_and_at_the_start_of_any_later_segment() {
    let segment_bytes = 4 << 20;
    let (sim, options, x) = handmade(segment_bytes, 6);
    // The piece-wise search must not miss a header that lies across its pieces.
    let across = x + 8 + (1 << 20) - 8;
    for at in [x + 24, across, 3 << 20, 15 << 20, (20 << 20) + (64 << 10)] {
        let sim = copy(&sim);
        let (first, frame) = (at - at % segment_bytes, sealed(64, at, 5, 8, &[3; 40]));
        sim.overwrite(&format!("wal/{first:020}.log"), at - first, &frame).unwrap();
        let text = corruption(scan(&shared(&sim), &options, Lsn::FIRST, Lsn(x)));
        assert!(text.contains(&format!("LSN {at} attests")), "{text}");
    }
    assert_eq!(scan(&shared(&sim), &options, Lsn::FIRST, Lsn(x)).unwrap().resume.end, Lsn(x));
}

/// F10: a read error fails the scan and decides nothing; the next scan finds everything.
#[test]
fn a_read_error_is_not_the_end_of_the_log() {
    use hamal_storage::sim::{Fault, FaultKind, Repeat, When};
    let (sim, records, end) = flushed(11, 60);
    for way in Way::ALL {
        for io in 1.. {
            let sim = copy(&sim);
            sim.inject(Fault::new(FaultKind::Eio, When::Io(io), Repeat::Once));
            let result = scan_by(way, &shared(&sim), &small(), Lsn::FIRST, end);
            if sim.fired().is_empty() {
                assert!(io > 5);
                break;
            }
            assert!(matches!(result, Err(hamal_storage::Error::Io { .. })), "I/O {io}, {way:?}: {result:?}");
            assert_eq!(scan(&shared(&sim), &small(), Lsn::FIRST, end).unwrap().records, records);
        }
    }
}
