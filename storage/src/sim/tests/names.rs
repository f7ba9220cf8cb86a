//! What a crash leaves of creations, renames and removals.

use super::*;

/// All sets of files that power cuts leave.
fn trees(storage: &SimStorage, seeds: u64) -> BTreeSet<Vec<String>> {
    (0..seeds).map(|seed| storage.crash_image(CrashMode::Subset, seed).files()).collect()
}

fn sets<const N: usize>(sets: [&[&str]; N]) -> BTreeSet<Vec<String>> {
    sets.iter().map(|set| set.iter().map(|name| (*name).to_owned()).collect()).collect()
}

#[test]
fn a_creation_may_be_lost_until_its_directory_is_synced_even_if_the_file_is() {
    let storage = SimStorage::new(0);
    let file = storage.create("f").unwrap();
    write_all_at(&*file, b"content", 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(trees(&storage, 50), sets([&[], &["f"]]));
    let kept = (0..50).map(|seed| storage.crash_image(CrashMode::Subset, seed));
    for image in kept.filter(|image| image.exists("f").unwrap()) {
        assert_eq!(image.read_file("f").unwrap(), b"content", "a synced file is whole if it is there");
    }
    storage.sync_directory("").unwrap();
    assert_eq!(trees(&storage, 50), sets([&["f"]]));
}

#[test]
fn a_rename_happens_whole_or_not_at_all() {
    let (storage, _file) = machine_with(b"new");
    storage.create("g").unwrap();
    storage.sync_directory("").unwrap();
    storage.rename("f", "g").unwrap();
    assert_eq!(storage.files(), ["g"]);
    let mut seen = BTreeSet::new();
    for seed in 0..50 {
        let image = storage.crash_image(CrashMode::Subset, seed);
        seen.insert((image.files(), image.read_file("g").unwrap()));
    }
    let before = (vec!["f".to_owned(), "g".to_owned()], Vec::new());
    let renamed = (vec!["g".to_owned()], b"new".to_vec());
    assert_eq!(seen, BTreeSet::from([before, renamed]));
    storage.sync_directory("").unwrap();
    assert_eq!(trees(&storage, 50), sets([&["g"]]));
}

#[test]
fn a_removal_may_come_undone_with_the_content_that_was_durable() {
    let (storage, file) = machine_with(b"durable");
    drop(file);
    storage.remove("f").unwrap();
    assert!(!storage.exists("f").unwrap());
    assert_eq!(trees(&storage, 50), sets([&[], &["f"]]));
    assert_eq!(after(&storage, CrashMode::LoseAll), b"durable");
    storage.sync_directory("").unwrap();
    assert_eq!(trees(&storage, 50), sets([&[]]));
}

#[test]
fn changes_of_one_name_survive_in_order_and_others_independently() {
    let storage = SimStorage::new(0);
    storage.create("a").unwrap();
    storage.rename("a", "b").unwrap();
    storage.create("c").unwrap();
    // Never "b" without the creation of "a" before it; "c" with or without either.
    assert_eq!(trees(&storage, 300), sets([&[], &["a"], &["b"], &["c"], &["a", "c"], &["b", "c"]]));
}

#[test]
fn a_file_renamed_twice_is_under_one_of_its_names() {
    let (storage, _file) = machine_with(b"content");
    storage.rename("f", "g").unwrap();
    storage.rename("g", "h").unwrap();
    assert_eq!(trees(&storage, 200), sets([&["f"], &["g"], &["h"]]));
}

#[test]
fn the_change_of_names_at_the_crash_happens_or_not() {
    let mut seen = BTreeSet::new();
    for seed in 0..30 {
        let storage = SimStorage::new(seed);
        storage.create("f").unwrap();
        storage.crash_at(2);
        assert!(is_simulated_crash(&storage.rename("f", "g").unwrap_err()));
        seen.insert(storage.crash(CrashMode::Kill, 0).files());
    }
    assert_eq!(seen, sets([&["f"], &["g"]]));
}

#[test]
fn directories_are_synced_one_by_one() {
    let storage = SimStorage::new(0);
    storage.create_directory("d").unwrap();
    storage.create_directory("e").unwrap();
    storage.sync_directory("").unwrap();
    storage.create("d/one").unwrap();
    storage.create("e/two").unwrap();
    storage.sync_directory("d").unwrap();
    assert_eq!(trees(&storage, 50), sets([&["d/one"], &["d/one", "e/two"]]));
}

#[test]
fn a_lost_directory_takes_everything_below_with_it() {
    let storage = SimStorage::new(0);
    storage.create_directory("d/e").unwrap();
    storage.create("d/e/f").unwrap();
    storage.sync_directory("d/e").unwrap();
    storage.sync_directory("d").unwrap();
    assert_eq!(trees(&storage, 50), sets([&[], &["d/e/f"]]));
    storage.sync_directory("").unwrap();
    assert_eq!(trees(&storage, 50), sets([&["d/e/f"]]));
}

#[test]
fn a_move_between_directories_is_durable_once_both_are_synced() {
    for (first, second) in [("d", "e"), ("e", "d")] {
        let storage = SimStorage::new(0);
        storage.create_directory("d").unwrap();
        storage.create_directory("e").unwrap();
        storage.create("d/f").unwrap();
        storage.sync_directory("").unwrap();
        storage.sync_directory("d").unwrap();
        storage.rename("d/f", "e/g").unwrap();
        assert_eq!(trees(&storage, 50), sets([&["d/f"], &["e/g"]]));
        storage.sync_directory(first).unwrap();
        assert_eq!(trees(&storage, 50), sets([&["d/f"], &["e/g"]]));
        storage.sync_directory(second).unwrap();
        assert_eq!(trees(&storage, 50), sets([&["e/g"]]));
    }
}

#[test]
fn a_change_that_is_synced_takes_those_it_builds_on_with_it() {
    let storage = SimStorage::new(0);
    storage.create_directory("d").unwrap();
    storage.create_directory("e").unwrap();
    storage.create("d/f").unwrap();
    storage.sync_directory("").unwrap();
    storage.sync_directory("d").unwrap();
    storage.rename("d/f", "e/g").unwrap();
    storage.rename("e/g", "e/h").unwrap();
    storage.sync_directory("e").unwrap();
    assert_eq!(trees(&storage, 50), sets([&["e/h"]]), "never under two names, never gone");
}

#[test]
fn an_open_file_outlives_its_name_and_is_written_under_its_new_one() {
    let (storage, file) = machine_with(b"old");
    storage.rename("f", "g").unwrap();
    write_all_at(&*file, b"new", 0).unwrap();
    assert_eq!(storage.read_file("g").unwrap(), b"new");
    storage.remove("g").unwrap();
    storage.sync_directory("").unwrap();
    write_all_at(&*file, b"ghost", 0).unwrap();
    let mut bytes = [0; 5];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 5);
    assert_eq!(&bytes, b"ghost");
    assert!(storage.files().is_empty());
}

#[test]
fn a_name_taken_again_is_another_file() {
    let (storage, old) = machine_with(b"old");
    storage.remove("f").unwrap();
    let new = storage.create("f").unwrap();
    write_all_at(&*new, b"new", 0).unwrap();
    new.sync_data().unwrap();
    write_all_at(&*old, b"xxx", 0).unwrap();
    assert_eq!(storage.read_file("f").unwrap(), b"new");
    let seen: BTreeSet<Option<Vec<u8>>> =
        (0..100).map(|seed| storage.crash_image(CrashMode::Subset, seed).read_file("f").ok()).collect();
    assert!(seen.contains(&Some(b"new".to_vec())) && seen.contains(&None));
    assert!(seen.contains(&Some(b"old".to_vec())), "neither change survived");
}

#[test]
fn renaming_a_directory_renames_what_is_in_it() {
    let storage = SimStorage::new(0);
    storage.create_directory("d/e").unwrap();
    let file = storage.create("d/e/f").unwrap();
    storage.rename("d", "g").unwrap();
    assert_eq!(storage.files(), ["g/e/f"]);
    let failed = Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Once).on("g/e/f");
    storage.inject(failed);
    assert!(file.write_at(&[1], 0).is_err(), "the file goes by its new name");
    assert_eq!(storage.rename("g", "g/e/h").unwrap_err().kind(), io::ErrorKind::InvalidInput);
}
