//! Copies of the log: reading its bytes, taking records out of them, and making files of them again.

use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_storage::sim::{CrashMode, SimStorage};
use hamal_storage::{Error, Storage};

use super::support::{Record, append_all, scan, shared, small};
use crate::{FrameStream, Log, LogBuilder, LogOptions, Lsn};

/// A log of several segments, its bytes from `from` on, and its records.
fn copied(lens: &[usize]) -> (Log, Vec<Record>, Vec<u8>) {
    let sim = SimStorage::new(1);
    let options = LogOptions { max_bytes: 16 << 20, ..small() };
    let log = Log::create(shared(&sim), options, 3).unwrap();
    let records = append_all(&log, 0, lens);
    log.flush().unwrap();
    let mut bytes = vec![0; (log.durable().0 - Lsn::FIRST.0) as usize];
    log.read_durable(Lsn::FIRST, &mut bytes).unwrap();
    (log, records, bytes)
}

fn lens() -> Vec<usize> {
    (0..300).map(|n| (n * 37) % 700).collect()
}

#[test]
fn records_come_out_of_bytes_in_pieces_of_any_size() {
    let (_log, records, bytes) = copied(&lens());
    for piece in [1, 7, 24, 1000, bytes.len()] {
        let mut stream = FrameStream::new(Lsn::FIRST);
        let (mut found, mut raw_bytes) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            stream.push(piece);
            while let Some((frame, raw)) = stream.next_frame("copy").unwrap() {
                found.push((frame.lsn, frame.payload.to_vec()));
                raw_bytes.extend_from_slice(raw);
            }
        }
        assert_eq!(found, records, "in pieces of {piece}");
        assert_eq!(raw_bytes, bytes);
        assert_eq!((stream.rest_bytes(), stream.incarnation()), (0, 3));
    }
}

#[test]
fn a_live_log_is_read_in_pieces_from_any_record_to_any_other_until_it_is_enough() {
    // More than one piece.
    let lens: Vec<usize> = (0..1500).map(|n| (n * 37) % 700).collect();
    let (log, records, bytes) = copied(&lens);
    assert!(bytes.len() > 2 * (256 << 10), "{}", bytes.len());
    let durable = log.durable();
    let read = |from: Lsn, to: Lsn, most: usize| {
        let mut found = Vec::new();
        let result = log.each_durable(from, to, &mut |frame| -> Result<_, Error> {
            found.push((frame.lsn, frame.payload.to_vec()));
            Ok(if found.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        result.map(|()| found)
    };
    for (first, last) in [(0, 1500), (700, 1500), (3, 1400), (9, 10), (5, 5)] {
        let to = records.get(last).map_or(durable, |(lsn, _)| *lsn);
        assert_eq!(
            read(records[first].0, to, usize::MAX).unwrap(),
            records[first..last],
            "{first} to {last}"
        );
    }
    assert_eq!(read(records[100].0, durable, 7).unwrap(), records[100..107]);
    // In the middle of a record none starts; behind the durable end nothing is read.
    let amid = read(Lsn(records[8].0.0 + 8), durable, usize::MAX).unwrap_err();
    assert!(matches!(amid, Error::Corrupt { .. }), "{amid}");
    let beyond = read(records[0].0, Lsn(durable.0 + 8), usize::MAX).unwrap_err();
    assert!(matches!(beyond, Error::Invalid(_)), "{beyond}");
    let mut seen = 0;
    let stopped = log.each_durable(records[0].0, durable, &mut |_| {
        seen += 1;
        if seen < 3 { Ok(ControlFlow::Continue(())) } else { Err(Error::Invalid("enough".into())) }
    });
    assert_eq!((stopped.unwrap_err().to_string().contains("enough"), seen), (true, 3));
}

#[test]
fn a_changed_byte_among_the_records_is_damage_with_its_place() {
    let (_log, _, bytes) = copied(&[100, 200, 300]);
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        let mut stream = FrameStream::new(Lsn::FIRST);
        stream.push(&bad);
        let mut records = 0;
        let error = loop {
            match stream.next_frame("copy") {
                Ok(Some(_)) => records += 1,
                // A length that is longer than all there is, or padding, which nothing depends on.
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        match error {
            Some(Error::Corrupt { file, .. }) => assert_eq!(file, "copy"),
            Some(other) => panic!("{other}"),
            None => assert!(records < 3 || bytes[at] == 0, "byte {at}"),
        }
    }
}

#[test]
fn a_log_made_of_a_copy_is_scanned_like_the_original_and_goes_on() {
    let (_log, records, bytes) = copied(&lens());
    for (first, last) in [(0, records.len()), (150, records.len()), (0, 100), (120, 121), (0, 0)] {
        let from = records[first].0;
        let end = records.get(last).map_or(Lsn(Lsn::FIRST.0 + bytes.len() as u64), |(lsn, _)| *lsn);
        let part = &bytes[(from.0 - Lsn::FIRST.0) as usize..(end.0 - Lsn::FIRST.0) as usize];
        let sim = SimStorage::new(2);
        let mut builder = LogBuilder::new(shared(&sim), small().segment_bytes, from).unwrap();
        part.chunks(1000).for_each(|piece| builder.append(piece).unwrap());
        builder.finish().unwrap();
        sim.sync_directory("").unwrap();
        let storage: Arc<dyn Storage> = Arc::new(sim.crash(CrashMode::LoseAll, 3));
        let scanned = scan(&storage, &small(), from, end).unwrap();
        assert_eq!(scanned.records, records[first..last], "{first} to {last}");
        assert!(!scanned.torn);
        let log = Log::resume(Arc::clone(&storage), small(), 4, from, &scanned.resume).unwrap();
        let more = append_all(&log, 1000, &[50, 60]);
        log.flush().unwrap();
        let again = scan(&storage, &small(), from, end).unwrap();
        assert_eq!(again.records, [&records[first..last], &more[..]].concat());
    }
}

#[test]
fn only_what_is_durable_and_still_there_is_read() {
    let (log, _, bytes) = copied(&lens());
    let mut one = [0; 8];
    let refused = |from: Lsn, out: &mut [u8]| matches!(log.read_durable(from, out), Err(Error::Invalid(_)));
    assert!(refused(log.durable(), &mut one));
    assert!(refused(Lsn(0), &mut one));
    log.truncate(Lsn(64 << 10)).unwrap();
    assert!(refused(Lsn::FIRST, &mut one));
    log.read_durable(Lsn(64 << 10), &mut one).unwrap();
    assert_eq!(one[..], bytes[(64 << 10) - 4096..][..8]);
}
