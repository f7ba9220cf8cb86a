//! Errors on the way to the disk: what is poisoned, what is tried again, what goes on (faults.md F7, F9, F11).

use std::sync::Arc;

use hamal_storage::Error;
use hamal_storage::sim::{Fault, FaultKind, Operation, Repeat, SimStorage, When};

use super::rig::{MockLog, Rig, read, small};
use crate::{PageClass, PageNo, Partition, PartitionId};

const P1: PartitionId = PartitionId(1);

/// Eight pages changed since they were clean, and eight that were not; all in memory.
fn half_dirty() -> (SimStorage, Rig, Arc<Partition>) {
    let sim = SimStorage::new(1);
    let rig = Rig::new(Arc::new(sim.clone()), small());
    let partition = rig.pager.create_partition(P1).unwrap();
    rig.format_all(&partition, 16, 4);
    rig.clean();
    for page in 0..8 {
        rig.change(&mut partition.fix_exclusive(PageNo(page)).unwrap(), 100);
    }
    (sim, rig, partition)
}

fn strike(sim: &SimStorage, kind: FaultKind, operation: Operation, file: &str) {
    sim.inject(Fault::new(kind, When::Nth(1), Repeat::Once).only(&[operation]).on(file));
}

#[test]
fn a_failed_write_or_sync_of_pages_poisons_for_ever_and_reading_goes_on() {
    let cases = [
        (FaultKind::Eio, Operation::Write, "doublewrite"),
        (FaultKind::Eio, Operation::Sync, "doublewrite"),
        (FaultKind::Enospc, Operation::Sync, "doublewrite"),
        (FaultKind::Eio, Operation::Write, "part/1.dat"),
        (FaultKind::Eio, Operation::Sync, "part/1.dat"),
        (FaultKind::Enospc, Operation::Sync, "part/1.dat"),
    ];
    for (kind, operation, file) in cases {
        let (sim, rig, partition) = half_dirty();
        let before = rig.pager.dirty_pages();
        strike(&sim, kind, operation, file);
        let error = rig.write_back().unwrap_err();
        assert!(matches!(&error, Error::Io { file: f, .. } if f == file), "{operation:?} {file}: {error}");
        assert_eq!(rig.pager.dirty_pages(), before, "nothing became clean");
        let io_count = sim.io_count();
        for _ in 0..3 {
            let again = rig.write_back().unwrap_err();
            assert!(matches!(&again, Error::Poisoned { cause } if *cause == error.to_string()), "{again}");
        }
        assert_eq!(sim.io_count(), io_count, "never tried again");
        assert_eq!(read(&partition, 3), 100);
        // New pages push the clean ones out; the dirty ones stay, and what is clean can be read.
        partition.ensure_file_pages(1000).unwrap();
        for page in 16..700 {
            drop(partition.fix_new(PageNo(page), PageClass::Plain).unwrap());
        }
        for page in 0..16 {
            assert_eq!(read(&partition, page), if page < 8 { 100 } else { u64::from(page) });
        }
        assert_eq!(rig.pager.dirty_pages(), before);
    }
}

#[test]
fn when_everything_is_dirty_and_poisoned_a_miss_says_so() {
    let sim = SimStorage::new(1);
    let rig = Rig::new(Arc::new(sim.clone()), small());
    let partition = rig.pager.create_partition(P1).unwrap();
    rig.format_all(&partition, 300, 7);
    rig.clean();
    strike(&sim, FaultKind::Eio, Operation::Sync, "doublewrite");
    let mut dirtied = 0;
    let error = loop {
        match partition.fix_exclusive(PageNo(dirtied)) {
            Ok(mut page) => _ = rig.change(&mut page, 100),
            Err(e) => break e,
        }
        dirtied += 1;
    };
    assert!(matches!(error, Error::Io { .. } | Error::Poisoned { .. }), "{error}");
    assert!(matches!(partition.load(PageNo(dirtied)), Err(Error::Poisoned { .. })));
    assert_eq!(rig.pager.stats().dirty_pages, u64::from(dirtied));
    assert_eq!(rig.pager.stats().resident_bytes, (256 - 8) * 4096);
    assert_eq!(read(&partition, dirtied - 1), 100);
}

#[test]
fn a_full_disk_holds_write_back_up_but_does_not_end_it() {
    for file in ["doublewrite", "part/1.dat"] {
        let (sim, rig, partition) = half_dirty();
        let before = rig.pager.dirty_pages();
        strike(&sim, FaultKind::Enospc, Operation::Write, file);
        assert!(rig.write_back().unwrap_err().is_no_space());
        assert_eq!(rig.pager.dirty_pages(), before);
        // A page changed while its batch is held up is not clean when that is done.
        rig.change(&mut partition.fix_exclusive(PageNo(2)).unwrap(), 200);
        let writes = sim.operation_count(Operation::Write);
        let clean = rig.write_back().unwrap();
        assert_eq!(clean, 8);
        // The batch held up goes first, from the copies it has; then page 2 once more.
        let expected = if file == "doublewrite" { 2 } else { 3 };
        assert_eq!(sim.operation_count(Operation::Write), writes + expected);
        assert_eq!(rig.pager.stats().dirty_pages, 0);
        drop((partition, rig));
        let rig = Rig::new(Arc::new(sim), small());
        let partition = rig.pager.open_partition(P1).unwrap();
        for page in 0..16 {
            let expected = if page == 2 {
                200
            } else if page < 8 {
                100
            } else {
                u64::from(page)
            };
            assert_eq!(read(&partition, page), expected);
        }
    }
}

#[test]
fn a_partition_closed_while_its_batch_is_held_up_takes_nothing_with_it() {
    let (sim, rig, partition) = half_dirty();
    let other = rig.pager.create_partition(PartitionId(2)).unwrap();
    rig.format_all(&other, 3, 3);
    // Of the batch of 8, pages 0..5 of partition 1 and all of partition 2: by rec_lsn, oldest first.
    rig.pager.write_back(rig.pager.oldest_rec_lsn().unwrap(), 1).unwrap();
    let oldest = rig.pager.dirty_pages();
    rig.pager.write_back(oldest[3].rec_lsn, 3).unwrap();
    strike(&sim, FaultKind::Enospc, Operation::Write, "part/1.dat");
    assert!(rig.write_back().unwrap_err().is_no_space());
    assert_eq!(rig.pager.dirty_pages().len(), 8);
    rig.pager.close_partition(P1, true).unwrap();
    drop(partition);
    assert_eq!(rig.pager.dirty_pages().len(), 3);
    assert_eq!(rig.pager.stats().dirty_pages, 3);
    rig.write_back().unwrap();
    assert_eq!(rig.pager.stats().dirty_pages, 0);
    drop((other, rig));
    let rig = Rig::new(Arc::new(sim), small());
    let other = rig.pager.open_partition(PartitionId(2)).unwrap();
    assert_eq!((read(&other, 0), read(&other, 1), read(&other, 2)), (0, 1, 2));
}

#[test]
fn a_log_that_fails_stops_the_page_and_not_the_pager() {
    let (sim, rig, _partition) = half_dirty();
    let before = rig.pager.dirty_pages();
    let writes = sim.operation_count(Operation::Write);
    rig.log.set_broken(Some("the log's disk is gone"));
    let error = rig.write_back().unwrap_err();
    assert!(error.to_string().contains("the log's disk is gone"));
    assert_eq!(rig.pager.dirty_pages(), before);
    assert_eq!(sim.operation_count(Operation::Write), writes, "no page was written");
    rig.log.set_broken(None);
    assert_eq!(rig.write_back().unwrap(), 8);
}

#[test]
fn short_and_interrupted_transfers_are_looped_over() {
    for kind in [FaultKind::Short, FaultKind::Interrupted] {
        let sim = SimStorage::new(3);
        // Every other transfer: a scheduled fault that lasts would leave an endless EINTR.
        for nth in (1..400).step_by(2) {
            sim.inject(
                Fault::new(kind, When::Nth(nth), Repeat::Once).only(&[Operation::Read, Operation::Write]),
            );
        }
        let rig = Rig::new(Arc::new(sim.clone()), small());
        let partition = rig.pager.create_partition(P1).unwrap();
        rig.format_all(&partition, 300, 9);
        rig.clean();
        for page in 0..300 {
            assert_eq!(read(&partition, page), u64::from(page));
        }
        assert!(sim.fired().len() >= 100, "{} faults", sim.fired().len());
    }
}

#[test]
fn growing_on_a_full_disk_fails_cleanly_and_takes_what_is_left() {
    let sim = SimStorage::new(1);
    let rig = Rig::new(Arc::new(sim.clone()), small());
    let partition = rig.pager.create_partition(P1).unwrap();
    sim.set_capacity_bytes(Some(sim.used_bytes() + 10 * 4096));
    partition.ensure_file_pages(4).unwrap();
    assert_eq!(partition.file_pages(), 4, "a larger step had no room");
    assert!(partition.ensure_file_pages(20).unwrap_err().is_no_space());
    assert_eq!(partition.file_pages(), 4);
    sim.set_capacity_bytes(None);
    partition.ensure_file_pages(20).unwrap();
    assert_eq!(partition.file_pages(), 68, "at least 64 pages at once");
    let error = partition.fix_new(PageNo(68), PageClass::Plain).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
}

#[test]
fn the_same_calls_make_the_same_io() {
    let run = || {
        let sim = SimStorage::new(5);
        let rig = Rig::with_log(Arc::new(sim.clone()), MockLog::new(), small());
        let partition = rig.pager.create_partition(P1).unwrap();
        rig.format_all(&partition, 900, 3);
        let mut random = hamal_storage::sim::Rng::new(9);
        for _ in 0..6000 {
            let page = PageNo(random.below(900) as u32);
            match random.below(20) {
                0 => drop(rig.pager.write_back(rig.log.tail(), 5)),
                1..8 => rig.rewrite(&partition, page.0, 1),
                8 => {
                    partition.fix_exclusive(page).unwrap().discard();
                    rig.format(&partition, page, PageClass::Plain, 2);
                }
                _ => drop(partition.fix_shared(page).unwrap()),
            }
        }
        (sim.fingerprint(), sim.io_count())
    };
    assert_eq!(run(), run());
}
