//! What a crash leaves of writes and lengths, and where it may happen.

use super::*;

#[test]
fn a_synced_write_survives_every_crash() {
    let (storage, file) = machine_with(&[1; 3_000]);
    file.write_at(&[2; 2_000], 500).unwrap();
    file.sync_data().unwrap();
    let mut expected = vec![1; 3_000];
    expected[500..2_500].fill(2);
    for mode in [CrashMode::Kill, CrashMode::KeepAll, CrashMode::LoseAll, CrashMode::Subset, CrashMode::Any] {
        for seed in 0..50 {
            let image = storage.crash_image(mode, seed);
            assert_eq!(image.read_file("f").unwrap(), expected, "{mode:?}, seed {seed}");
        }
    }
}

#[test]
fn unsynced_sectors_survive_in_every_combination() {
    let (storage, file) = machine_with(&[1; 4 * SECTOR]);
    file.write_at(&[2; 4 * SECTOR], 0).unwrap();
    let mut seen = BTreeSet::new();
    for content in outcomes(&storage, 600) {
        let mut combination = 0;
        for (index, sector) in content.chunks(SECTOR).enumerate() {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is torn inside");
            assert!(sector[0] == 1 || sector[0] == 2);
            combination |= usize::from(sector[0] == 2) << index;
        }
        seen.insert(combination);
    }
    assert_eq!(seen.len(), 16, "all subsets of 4 sectors: {seen:?}");
}

#[test]
fn writes_reach_the_disk_in_any_order() {
    let (storage, file) = machine_with(&[0; 2 * SECTOR]);
    file.write_at(&[1; SECTOR], 0).unwrap();
    file.write_at(&[2; SECTOR], SECTOR as u64).unwrap();
    let seen: BTreeSet<(u8, u8)> =
        outcomes(&storage, 300).into_iter().map(|bytes| (bytes[0], bytes[SECTOR])).collect();
    assert_eq!(seen, BTreeSet::from([(0, 0), (1, 0), (0, 2), (1, 2)]));
}

#[test]
fn a_sector_may_hold_any_of_its_unsynced_versions() {
    let (storage, file) = machine_with(&[0; SECTOR]);
    for version in 1..=3 {
        file.write_at(&[version; SECTOR], 0).unwrap();
    }
    let seen: BTreeSet<u8> = outcomes(&storage, 400).into_iter().map(|bytes| bytes[0]).collect();
    assert_eq!(seen, BTreeSet::from([0, 1, 2, 3]));
}

#[test]
fn a_sector_may_hold_an_old_version_beside_a_later_write() {
    let (storage, file) = machine_with(&[0; 2 * SECTOR]);
    file.write_at(&[1; SECTOR], 0).unwrap();
    file.write_at(&[2; SECTOR], 0).unwrap();
    file.write_at(&[3; SECTOR], SECTOR as u64).unwrap();
    let seen: BTreeSet<(u8, u8)> =
        outcomes(&storage, 400).into_iter().map(|bytes| (bytes[0], bytes[SECTOR])).collect();
    assert_eq!(seen, BTreeSet::from([(0, 0), (1, 0), (2, 0), (0, 3), (1, 3), (2, 3)]));
}

#[test]
fn a_disk_that_worked_in_order_is_among_the_outcomes() {
    let (storage, file) = machine_with(&[0; 30 * SECTOR]);
    for sector in 0..30 {
        file.write_at(&[1; SECTOR], sector * SECTOR as u64).unwrap();
    }
    let in_order = |bytes: &Vec<u8>| {
        let written: Vec<u8> = bytes.chunks(SECTOR).map(|sector| sector[0]).collect();
        written.is_sorted_by(|one, next| one >= next) && written[0] == 1 && written[29] == 0
    };
    assert!(outcomes(&storage, 300).iter().filter(|bytes| in_order(bytes)).count() > 5);
}

#[test]
fn a_partial_write_makes_the_whole_sector_uncertain_but_no_other() {
    let (storage, file) = machine_with(&[1; 3 * SECTOR]);
    file.write_at(&[2; 10], SECTOR as u64 + 100).unwrap();
    let mut written = vec![1; 3 * SECTOR];
    written[SECTOR + 100..SECTOR + 110].fill(2);
    assert_eq!(outcomes(&storage, 200), BTreeSet::from([vec![1; 3 * SECTOR], written]));
}

#[test]
fn the_modes_of_a_power_cut_keep_all_or_nothing() {
    let (storage, file) = machine_with(&[1; 2_000]);
    file.write_at(&[2; 5_000], 0).unwrap();
    assert_eq!(after(&storage, CrashMode::KeepAll), [2; 5_000]);
    assert_eq!(after(&storage, CrashMode::LoseAll), [1; 2_000]);
}

#[test]
fn a_kill_keeps_the_page_cache_which_a_later_power_cut_may_lose() {
    let (storage, file) = machine_with(&[1; SECTOR]);
    file.write_at(&[2; SECTOR], 0).unwrap();
    let killed = storage.crash(CrashMode::Kill, 0);
    assert_eq!(killed.read_file("f").unwrap(), [2; SECTOR]);
    assert_eq!(after(&killed, CrashMode::LoseAll), [1; SECTOR]);
    assert_eq!(outcomes(&killed, 100).len(), 2);
    killed.open("f").unwrap().sync_data().unwrap();
    assert_eq!(after(&killed, CrashMode::LoseAll), [2; SECTOR]);
}

#[test]
fn any_mode_is_each_of_them_over_the_seeds() {
    let (storage, file) = machine_with(&[1; 64 * SECTOR]);
    file.write_at(&[2; 64 * SECTOR], 0).unwrap();
    let images: Vec<SimStorage> = (0..200).map(|seed| storage.crash_image(CrashMode::Any, seed)).collect();
    let killed = images.iter().filter(|image| image.unsynced() > 0).count();
    let contents: BTreeSet<Vec<u8>> = images.iter().map(|image| image.read_file("f").unwrap()).collect();
    assert!((5..60).contains(&killed), "{killed}");
    assert!(contents.contains(&vec![1; 64 * SECTOR]) && contents.contains(&vec![2; 64 * SECTOR]));
    assert!(contents.len() > 50, "{}", contents.len());
}

#[test]
fn a_file_may_come_back_long_with_zeros_or_short() {
    let (storage, file) = machine_with(&[1; SECTOR]);
    file.write_at(&[2; SECTOR], SECTOR as u64).unwrap();
    let short = vec![1; SECTOR];
    let zeros = [[1; SECTOR], [0; SECTOR]].concat();
    let full = [[1; SECTOR], [2; SECTOR]].concat();
    assert_eq!(outcomes(&storage, 200), BTreeSet::from([short, zeros, full]));
}

#[test]
fn a_cut_survives_or_not_and_takes_earlier_writes_with_it() {
    let (storage, file) = machine_with(&[1; 4 * SECTOR]);
    file.write_at(&[2; SECTOR], 3 * SECTOR as u64).unwrap();
    file.set_len(2 * SECTOR as u64).unwrap();
    file.write_at(&[3; SECTOR], 3 * SECTOR as u64).unwrap();
    let seen: BTreeSet<(usize, Option<u8>, Option<u8>)> = outcomes(&storage, 600)
        .into_iter()
        .map(|bytes| (bytes.len() / SECTOR, bytes.get(2 * SECTOR).copied(), bytes.get(3 * SECTOR).copied()))
        .collect();
    let expected = [
        (2, None, None),       // only the cut
        (4, Some(1), Some(1)), // nothing at all
        (4, Some(1), Some(2)), // the write before the cut alone
        (4, Some(0), Some(0)), // the cut and the length of the write after it
        (4, Some(0), Some(3)), // everything
    ];
    assert_eq!(seen, BTreeSet::from(expected));
}

#[test]
fn a_cut_through_a_sector_leaves_zeros_behind_it_when_the_file_grows_again() {
    let (storage, file) = machine_with(&[1; SECTOR]);
    file.set_len(100).unwrap();
    file.set_len(200).unwrap();
    let mut expected = vec![1; 200];
    expected[100..].fill(0);
    assert_eq!(storage.read_file("f").unwrap(), expected);
    file.sync_data().unwrap();
    assert_eq!(after(&storage, CrashMode::LoseAll), expected);
}

#[test]
fn a_cut_through_an_unsynced_sector_holds_when_everything_is_kept() {
    let (storage, file) = machine_with(&[1; SECTOR]);
    file.write_at(&[2; SECTOR], 0).unwrap();
    file.set_len(100).unwrap();
    file.set_len(200).unwrap();
    assert_eq!(after(&storage, CrashMode::KeepAll), storage.read_file("f").unwrap());
}

#[test]
fn a_cut_after_a_kill_takes_writes_before_the_kill_with_it() {
    let (storage, file) = machine_with(&[1; SECTOR]);
    for _ in 0..20 {
        file.write_at(&[2; SECTOR], 0).unwrap();
    }
    let killed = storage.crash(CrashMode::Kill, 0);
    let file = killed.open("f").unwrap();
    file.set_len(0).unwrap();
    file.set_len(SECTOR as u64).unwrap();
    assert_eq!(after(&killed, CrashMode::KeepAll), [0; SECTOR]);
}

#[test]
fn a_file_that_came_back_short_grows_with_zeros() {
    let (storage, file) = machine_with(&[1; 100]);
    file.write_at(&[2; 3_000], 0).unwrap();
    let mut short = 0;
    for seed in 0..50 {
        let image = storage.crash_image(CrashMode::Subset, seed);
        let file = image.open("f").unwrap();
        if file.len().unwrap() == 100 {
            file.set_len(3_000).unwrap();
            assert_eq!(image.read_file("f").unwrap()[100..], [0; 2_900], "seed {seed}");
            short += 1;
        }
    }
    assert!(short > 5, "{short}");
}

#[test]
fn a_synced_cut_does_not_bring_old_bytes_back() {
    let (storage, file) = machine_with(&[1; 10_000]);
    file.set_len(0).unwrap();
    file.sync_data().unwrap();
    file.set_len(10_000).unwrap();
    file.sync_data().unwrap();
    for seed in 0..20 {
        assert_eq!(storage.crash_image(CrashMode::Any, seed).read_file("f").unwrap(), [0; 10_000]);
    }
}

#[test]
fn many_versions_of_one_block_are_bounded_but_the_newest_and_the_durable_stay_possible() {
    let (storage, file) = machine_with(&[0; 4_096]);
    for version in 1..=200_u8 {
        let sector = u64::from(version) % 8;
        file.write_at(&[version; SECTOR], sector * SECTOR as u64).unwrap();
    }
    let newest: Vec<u8> = storage.read_file("f").unwrap();
    assert_eq!(after(&storage, CrashMode::KeepAll), newest);
    assert_eq!(after(&storage, CrashMode::LoseAll), [0; 4_096]);
    file.sync_data().unwrap();
    assert_eq!(after(&storage, CrashMode::LoseAll), newest);
}

#[test]
fn a_sector_written_once_among_many_writes_of_its_neighbour_is_not_forgotten() {
    for before in 0..20 {
        let (storage, file) = machine_with(&[0; 4_096]);
        for index in 0..60 {
            let sector = if index == before { SECTOR as u64 } else { 0 };
            file.write_at(&[index + 1; SECTOR], sector).unwrap();
        }
        assert_eq!(after(&storage, CrashMode::KeepAll), storage.read_file("f").unwrap(), "{before} before");
    }
}

#[test]
fn many_lengths_are_bounded_but_the_newest_stays() {
    let (storage, file) = machine_with(&[1]);
    for len in 2..500 {
        file.write_at(&[1], len - 1).unwrap();
    }
    assert_eq!(after(&storage, CrashMode::KeepAll), [1; 499]);
    assert_eq!(after(&storage, CrashMode::LoseAll), [1]);
    assert!(outcomes(&storage, 100).len() > 10);
}

#[test]
fn reserved_space_reads_as_zeros_and_comes_with_the_length() {
    let (storage, file) = machine_with(&[1; 10]);
    file.allocate(5, 10_000).unwrap();
    assert_eq!(file.len().unwrap(), 10_005);
    let lengths: BTreeSet<usize> = outcomes(&storage, 100).iter().map(Vec::len).collect();
    assert_eq!(lengths, BTreeSet::from([10, 10_005]));
    file.sync_data().unwrap();
    let image = storage.crash_image(CrashMode::LoseAll, 0);
    assert_eq!(image.read_file("f").unwrap()[..11], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
    assert_eq!(image.used_bytes(), 12_288);
}

#[test]
fn the_machine_stops_at_the_io_it_was_told_and_stays_stopped() {
    for number in 1..=6 {
        let storage = SimStorage::new(number);
        storage.crash_at(number);
        let mut results = Vec::new();
        let file = storage.create("f");
        results.push(file.as_ref().map(drop).map_err(io::Error::to_string));
        let Ok(file) = file else {
            assert_eq!(number, 1);
            assert_eq!(results, [Err(SIMULATED_CRASH.to_owned())]);
            continue;
        };
        results.push(file.write_at(&[1; 10], 0).map(drop).map_err(|e| e.to_string()));
        results.push(file.sync_data().map_err(|e| e.to_string()));
        results.push(storage.sync_directory("").map_err(|e| e.to_string()));
        results.push(file.read_at(&mut [0; 4], 0).map(drop).map_err(|e| e.to_string()));
        results.push(storage.list("").map(drop).map_err(|e| e.to_string()));
        let first_failure = results.iter().position(Result::is_err).unwrap();
        assert_eq!(first_failure + 1, number as usize);
        assert!(results[first_failure..].iter().all(|result| *result == Err(SIMULATED_CRASH.to_owned())));
        assert_eq!(storage.io_count(), number, "calls on a stopped machine are no I/Os");
        assert!(storage.is_crashed());
    }
}

#[test]
fn every_call_on_a_stopped_machine_fails_and_has_no_effect() {
    let (storage, file) = machine_with(&[1; 10]);
    let held = storage.lock("LOCK").unwrap();
    let image = storage.crash(CrashMode::LoseAll, 3);
    let before = image.fingerprint();
    let failures = [
        storage.open("f").map(drop),
        storage.create("g").map(drop),
        storage.exists("f").map(drop),
        storage.list("").map(drop),
        storage.create_directory("d"),
        storage.rename("f", "g"),
        storage.remove("f"),
        storage.sync_directory(""),
        storage.lock("LOCK").map(drop),
        file.read_at(&mut [0; 4], 0).map(drop),
        file.write_at(&[2], 0).map(drop),
        file.sync_data(),
        file.len().map(drop),
        file.set_len(1),
        file.allocate(0, 100),
    ];
    for (index, failure) in failures.into_iter().enumerate() {
        assert!(is_simulated_crash(&failure.unwrap_err()), "call {index}");
    }
    assert_eq!(image.fingerprint(), before);
    drop(held);
    let _held = image.lock("LOCK").unwrap();
}

#[test]
fn a_lock_held_at_the_crash_is_free_afterwards() {
    let storage = SimStorage::new(0);
    let _held = storage.lock("LOCK").unwrap();
    storage.sync_directory("").unwrap();
    assert_eq!(storage.lock("LOCK").unwrap_err().kind(), io::ErrorKind::WouldBlock);
    for mode in [CrashMode::Kill, CrashMode::LoseAll] {
        drop(storage.crash_image(mode, 0).lock("LOCK").unwrap());
    }
}

#[test]
fn the_write_at_the_crash_is_done_in_part() {
    let mut done = BTreeSet::new();
    for seed in 0..60 {
        let storage = SimStorage::new(seed);
        let file = storage.create("f").unwrap();
        file.set_len(4 * SECTOR as u64).unwrap();
        storage.crash_at(3);
        assert!(is_simulated_crash(&file.write_at(&[1; 4 * SECTOR - 100], 100).unwrap_err()));
        let bytes = storage.crash_image(CrashMode::Kill, seed).read_file("f").unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(100, |last| last + 1);
        assert!(bytes[100..end].iter().all(|byte| *byte == 1), "seed {seed}");
        done.insert(end);
    }
    assert_eq!(done, BTreeSet::from([100, 512, 1_024, 1_536, 2_048]));
}

#[test]
fn the_sync_at_the_crash_may_have_done_anything_in_between() {
    let (storage, file) = machine_with(&[1; 8 * SECTOR]);
    file.write_at(&[2; 8 * SECTOR], 0).unwrap();
    storage.crash_at(storage.io_count() + 1);
    assert!(is_simulated_crash(&file.sync_data().unwrap_err()));
    assert!(outcomes(&storage, 300).len() > 50);
}

#[test]
fn a_crash_in_the_past_comes_at_the_next_io() {
    let (storage, file) = machine_with(&[1]);
    storage.crash_at(1);
    assert!(!storage.is_crashed());
    assert!(is_simulated_crash(&file.sync_data().unwrap_err()));
}

#[test]
fn an_image_and_its_origin_do_not_share_what_they_write() {
    let (storage, file) = machine_with(&[1; 8_192]);
    let image = storage.crash_image(CrashMode::KeepAll, 0);
    file.write_at(&[2; 100], 0).unwrap();
    image.open("f").unwrap().write_at(&[3; 100], 4_096).unwrap();
    assert_eq!(storage.read_file("f").unwrap()[4_096], 1);
    assert_eq!(image.read_file("f").unwrap()[0], 1);
}
