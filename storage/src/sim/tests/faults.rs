//! Faults by schedule, failed syncs, and the full disk.

use super::*;
use crate::read_exact_at;

fn fault(kind: FaultKind) -> Fault {
    Fault::new(kind, When::Nth(1), Repeat::Once)
}

fn kind_of<T>(result: io::Result<T>) -> io::ErrorKind {
    result.map(drop).unwrap_err().kind()
}

#[test]
fn an_injected_error_strikes_its_operation_and_file_once() {
    let (storage, file) = machine_with(&[1; 100]);
    let other = storage.create("g").unwrap();
    storage.inject(fault(FaultKind::Eio).only(&[Operation::Read]).on("f"));
    other.read_at(&mut [0; 4], 0).unwrap();
    file.write_at(&[2], 0).unwrap();
    let error = file.read_at(&mut [0; 4], 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5));
    assert!(!is_simulated_crash(&error));
    file.read_at(&mut [0; 4], 0).unwrap();
    let fired = storage.fired();
    assert_eq!(fired.len(), 1);
    assert_eq!((fired[0].operation, fired[0].file.as_str()), (Operation::Read, "f"));
    assert_eq!(fired[0].io, storage.io_count() - 1);
}

#[test]
fn every_kind_of_call_can_fail() {
    let (storage, file) = machine_with(&[1; 100]);
    storage.create_directory("d").unwrap();
    storage.inject(Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Forever));
    let before = storage.files();
    let failures = [
        (Operation::Open, storage.open("f").map(drop)),
        (Operation::Read, file.read_at(&mut [0; 4], 0).map(drop)),
        (Operation::Write, file.write_at(&[2], 0).map(drop)),
        (Operation::Sync, file.sync_data()),
        (Operation::SetLen, file.set_len(3)),
        (Operation::Allocate, file.allocate(0, 1_000)),
        (Operation::Create, storage.create("g").map(drop)),
        (Operation::CreateDirectory, storage.create_directory("e")),
        (Operation::Rename, storage.rename("f", "g")),
        (Operation::Remove, storage.remove("f")),
        (Operation::List, storage.list("").map(drop)),
        (Operation::SyncDirectory, storage.sync_directory("")),
        (Operation::Lock, storage.lock("LOCK").map(drop)),
    ];
    for (operation, result) in failures {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(5), "{operation:?}");
    }
    storage.clear_faults();
    assert_eq!(storage.files(), before);
    assert_eq!(file.len().unwrap(), 100);
    assert_eq!(storage.fired().len(), 13);
}

#[test]
fn a_fault_by_io_number_strikes_at_it_or_at_the_first_call_after_that_can_have_it() {
    let (storage, file) = machine_with(&[1; 100]);
    let now = storage.io_count();
    storage.inject(Fault::new(FaultKind::Enospc, When::Io(now + 2), Repeat::Once));
    file.write_at(&[2], 0).unwrap();
    file.read_at(&mut [0; 4], 0).unwrap();
    assert_eq!(kind_of(file.write_at(&[3], 0)), io::ErrorKind::StorageFull);
    file.write_at(&[4], 0).unwrap();
    assert_eq!(storage.fired()[0].io, now + 3);
}

#[test]
fn short_transfers_move_at_least_a_byte_and_loops_get_through() {
    let (storage, file) = machine_with(&[0; 3_000]);
    storage.inject(Fault::new(FaultKind::Short, When::Nth(1), Repeat::Forever));
    let bytes: Vec<u8> = (0..3_000_u32).map(|index| index as u8).collect();
    let first = file.write_at(&bytes, 0).unwrap();
    assert!((1..3_000).contains(&first), "{first}");
    write_all_at(&*file, &bytes, 0).unwrap();
    let mut read = vec![0; 3_000];
    let first = file.read_at(&mut read, 0).unwrap();
    assert!((1..3_000).contains(&first), "{first}");
    read_exact_at(&*file, &mut read, 0).unwrap();
    assert_eq!(read, bytes);
    assert_eq!(file.write_at(&[9], 0).unwrap(), 1);
    file.sync_data().unwrap();
}

#[test]
fn an_interrupted_call_moves_nothing_and_loops_get_through() {
    let (storage, file) = machine_with(&[1; 100]);
    storage.inject(fault(FaultKind::Interrupted).only(&[Operation::Write]));
    assert_eq!(kind_of(file.write_at(&[2; 100], 0)), io::ErrorKind::Interrupted);
    assert_eq!(storage.read_file("f").unwrap(), [1; 100]);
    storage.inject(fault(FaultKind::Interrupted).only(&[Operation::Write]));
    storage.inject(fault(FaultKind::Interrupted).only(&[Operation::Read]));
    write_all_at(&*file, &[3; 100], 0).unwrap();
    let mut read = [0; 100];
    read_exact_at(&*file, &mut read, 0).unwrap();
    assert_eq!(read, [3; 100]);
    assert_eq!(storage.fired().len(), 3);
}

#[test]
fn a_write_that_fails_may_have_happened_in_part() {
    let mut done = BTreeSet::new();
    for seed in 0..60 {
        let storage = SimStorage::new(seed);
        let file = storage.create("f").unwrap();
        file.set_len(3 * SECTOR as u64).unwrap();
        storage.inject(fault(FaultKind::Eio));
        file.write_at(&[1; 3 * SECTOR], 0).unwrap_err();
        let bytes = storage.read_file("f").unwrap();
        done.insert(bytes.chunks(SECTOR).filter(|sector| sector[0] == 1).count());
    }
    assert_eq!(done, BTreeSet::from([0, 1, 2, 3]));
}

/// A file whose 64 sectors were 1 durably, are 2 in the page cache, and whose sync failed.
fn failed_sync(seed: u64) -> (SimStorage, Arc<dyn File>) {
    let storage = SimStorage::new(seed);
    let file = storage.create("f").unwrap();
    write_all_at(&*file, &[1; 64 * SECTOR], 0).unwrap();
    file.sync_data().unwrap();
    storage.sync_directory("").unwrap();
    write_all_at(&*file, &[2; 64 * SECTOR], 0).unwrap();
    storage.inject(fault(FaultKind::Eio).only(&[Operation::Sync]));
    file.sync_data().unwrap_err();
    (storage, file)
}

#[test]
fn after_a_failed_sync_a_successful_one_does_not_bring_the_bytes_to_the_disk() {
    let mut written = BTreeSet::new();
    for seed in 0..40 {
        let (storage, file) = failed_sync(seed);
        assert_eq!(storage.read_file("f").unwrap(), [2; 64 * SECTOR], "the page cache has them still");
        assert_eq!(storage.unsynced(), 0, "and calls them clean");
        file.sync_data().unwrap();
        let bytes = after(&storage, CrashMode::KeepAll);
        written.insert(bytes.chunks(SECTOR).filter(|sector| sector[0] == 2).count());
        assert_eq!(after(&storage, CrashMode::LoseAll), bytes);
        // A process that is killed still sees the page cache, and is deceived.
        assert_eq!(after(&storage, CrashMode::Kill), [2; 64 * SECTOR]);
    }
    assert!(written.contains(&0) && written.contains(&64), "{written:?}");
    assert!(written.iter().any(|count| (1..64).contains(count)), "{written:?}");
}

#[test]
fn after_a_failed_sync_writing_again_and_syncing_does() {
    for seed in 0..20 {
        let (storage, file) = failed_sync(seed);
        let before = after(&storage, CrashMode::LoseAll);
        write_all_at(&*file, &[2; 8 * SECTOR], 0).unwrap();
        file.write_at(&[3], 8 * SECTOR as u64).unwrap();
        file.sync_data().unwrap();
        let bytes = after(&storage, CrashMode::LoseAll);
        assert_eq!(bytes[..8 * SECTOR], [2; 8 * SECTOR], "seed {seed}");
        assert_eq!(bytes[8 * SECTOR..9 * SECTOR], [&[3][..], &[2; SECTOR - 1]].concat(), "seed {seed}");
        assert_eq!(bytes[9 * SECTOR..], before[9 * SECTOR..], "seed {seed}: the neighbours stay lost");
    }
}

#[test]
fn after_a_failed_sync_the_page_cache_may_forget() {
    let (storage, file) = (0..100)
        .map(failed_sync)
        .find(|(storage, _)| after(storage, CrashMode::KeepAll).contains(&1))
        .unwrap();
    file.write_at(&[3; SECTOR], 0).unwrap();
    let mut on_disk = after(&storage, CrashMode::LoseAll);
    storage.drop_clean_cache();
    on_disk[..SECTOR].fill(3);
    assert_eq!(
        storage.read_file("f").unwrap(),
        on_disk,
        "dirty sectors stay, clean ones are read from the disk"
    );
    file.sync_data().unwrap();
    assert_eq!(after(&storage, CrashMode::LoseAll), on_disk);
}

#[test]
fn what_was_cut_off_stays_away_when_the_page_cache_forgets() {
    for seed in 0..10 {
        let (storage, file) = failed_sync(seed);
        file.set_len(1_000).unwrap();
        file.set_len(4_000).unwrap();
        let before = storage.read_file("f").unwrap();
        assert!(before[1_000..].iter().all(|byte| *byte == 0));
        storage.drop_clean_cache();
        let bytes = storage.read_file("f").unwrap();
        assert!(bytes[1_000..].iter().all(|byte| *byte == 0), "seed {seed}");
        assert!(bytes[..512].iter().all(|byte| *byte == 1 || *byte == 2), "seed {seed}");
    }
}

#[test]
fn a_new_length_survives_a_failed_sync_as_unsynced() {
    for seed in 0..20 {
        let storage = SimStorage::new(seed);
        let file = storage.create("f").unwrap();
        storage.sync_directory("").unwrap();
        file.write_at(&[1; 2_000], 0).unwrap();
        storage.inject(fault(FaultKind::Eio).only(&[Operation::Sync]));
        file.sync_data().unwrap_err();
        assert_eq!(after(&storage, CrashMode::LoseAll), []);
        file.write_at(&[1; 2_000], 0).unwrap();
        file.sync_data().unwrap();
        assert_eq!(after(&storage, CrashMode::LoseAll), [1; 2_000], "seed {seed}");
    }
}

#[test]
fn a_failed_directory_sync_leaves_the_names_unsynced() {
    let storage = SimStorage::new(0);
    storage.create("f").unwrap();
    storage.inject(fault(FaultKind::Eio).only(&[Operation::SyncDirectory]));
    storage.sync_directory("").unwrap_err();
    let files = |mode| storage.crash_image(mode, 0).files().len();
    assert_eq!((files(CrashMode::LoseAll), files(CrashMode::KeepAll)), (0, 1));
    storage.sync_directory("").unwrap();
    assert_eq!(files(CrashMode::LoseAll), 1);
}

#[test]
fn a_full_disk_takes_what_fits_and_goes_on_when_it_grows() {
    let storage = SimStorage::new(0);
    let file = storage.create("f").unwrap();
    storage.set_capacity_bytes(Some(3 * 4_096 + 100));
    assert_eq!(file.write_at(&[1; 20_000], 0).unwrap(), 3 * 4_096);
    assert_eq!(storage.used_bytes(), 3 * 4_096);
    assert_eq!(kind_of(file.write_at(&[1], 3 * 4_096)), io::ErrorKind::StorageFull);
    assert_eq!(file.write_at(&[2; 5_000], 100).unwrap(), 5_000, "overwriting takes no space");
    assert_eq!(kind_of(write_all_at(&*file, &[1; 20_000], 0)), io::ErrorKind::StorageFull);
    file.sync_data().unwrap();
    storage.set_capacity_bytes(Some(5 * 4_096));
    write_all_at(&*file, &[1; 5 * 4_096], 0).unwrap();
    assert_eq!(kind_of(file.write_at(&[1], 5 * 4_096)), io::ErrorKind::StorageFull);
    let image = storage.crash_image(CrashMode::Kill, 0);
    let there = image.open("f").unwrap();
    assert_eq!(
        kind_of(there.write_at(&[1], 5 * 4_096)),
        io::ErrorKind::StorageFull,
        "a crash frees no space"
    );
    storage.set_capacity_bytes(None);
    file.write_at(&[1], 5 * 4_096).unwrap();
}

#[test]
fn holes_cost_nothing_until_they_are_reserved_and_then_can_be_written() {
    let storage = SimStorage::new(0);
    let file = storage.create("f").unwrap();
    storage.set_capacity_bytes(Some(4 * 4_096));
    file.set_len(1 << 30).unwrap();
    assert_eq!(storage.used_bytes(), 0);
    assert_eq!(kind_of(file.allocate(0, 5 * 4_096)), io::ErrorKind::StorageFull);
    assert_eq!(storage.used_bytes(), 0, "a refused reservation takes nothing");
    file.allocate(0, 4 * 4_096).unwrap();
    assert_eq!(kind_of(file.write_at(&[1], 4 * 4_096)), io::ErrorKind::StorageFull);
    write_all_at(&*file, &[1; 4 * 4_096], 0).unwrap();
}

#[test]
fn space_comes_back_when_files_are_cut_or_removed_and_closed() {
    let storage = SimStorage::new(0);
    let file = storage.create("f").unwrap();
    write_all_at(&*file, &[1; 5 * 4_096], 0).unwrap();
    file.set_len(4_097).unwrap();
    assert_eq!(storage.used_bytes(), 2 * 4_096);
    storage.remove("f").unwrap();
    assert_eq!(storage.used_bytes(), 2 * 4_096, "still open");
    drop(file);
    assert_eq!(storage.used_bytes(), 0);
}

#[test]
fn transfers_beyond_any_possible_file_are_refused() {
    let (storage, file) = machine_with(&[1]);
    assert_eq!(kind_of(file.write_at(&[1], u64::MAX)), io::ErrorKind::FileTooLarge);
    assert_eq!(kind_of(file.set_len(1 << 60)), io::ErrorKind::FileTooLarge);
    assert_eq!(kind_of(file.allocate(u64::MAX, u64::MAX)), io::ErrorKind::FileTooLarge);
    assert_eq!(storage.read_file("f").unwrap(), [1]);
}
