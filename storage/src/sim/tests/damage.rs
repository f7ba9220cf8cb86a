//! Bit flips, lost and misdirected writes, and who is told of what.

use parking_lot::Mutex;

use super::*;

#[test]
fn a_flipped_bit_is_flipped_for_readers_and_for_the_disk() {
    let (storage, file) = machine_with(&[0; 1_000]);
    storage.flip_bit("f", 8 * 700 + 3).unwrap();
    let mut expected = vec![0; 1_000];
    expected[700] = 8;
    assert_eq!(storage.read_file("f").unwrap(), expected);
    assert_eq!(after(&storage, CrashMode::LoseAll), expected);
    file.sync_data().unwrap();
    storage.flip_bit("f", 8 * 700 + 3).unwrap();
    assert_eq!(after(&storage, CrashMode::LoseAll), [0; 1_000]);
    assert_eq!(storage.flip_bit("f", 8_000).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(storage.flip_bit("g", 0).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn damage_to_unsynced_bytes_stays_whatever_survives() {
    let (storage, file) = machine_with(&[1; 2 * SECTOR]);
    file.write_at(&[2; 2 * SECTOR], 0).unwrap();
    storage.overwrite("f", 10, &[9; 4]).unwrap();
    for bytes in outcomes(&storage, 50) {
        assert_eq!(bytes[10..14], [9; 4]);
        assert!(bytes[9] == bytes[14] && bytes[9] != 9);
    }
    file.sync_data().unwrap();
    assert_eq!(after(&storage, CrashMode::LoseAll)[10..14], [9; 4]);
    assert_eq!(storage.overwrite("f", 1_020, &[0; 5]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(storage.overwrite("f", u64::MAX, &[0; 5]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_lost_write_is_acknowledged_and_never_happens() {
    let (storage, file) = machine_with(&[1; 1_000]);
    storage.inject(Fault::new(FaultKind::LostWrite, When::Nth(2), Repeat::Once).on("f"));
    file.write_at(&[2; 10], 0).unwrap();
    assert_eq!(file.write_at(&[3; 10], 10).unwrap(), 10);
    file.write_at(&[4; 10], 20).unwrap();
    file.sync_data().unwrap();
    let bytes = after(&storage, CrashMode::KeepAll);
    assert_eq!(bytes[..30], [[2; 10], [1; 10], [4; 10]].concat());
}

#[test]
fn a_misdirected_write_lands_elsewhere_in_the_file() {
    let (storage, file) = machine_with(&[1; 1_000]);
    let misdirected = |by_bytes| Fault::new(FaultKind::Misdirected { by_bytes }, When::Nth(1), Repeat::Once);
    storage.inject(misdirected(500));
    assert_eq!(file.write_at(&[2; 10], 100).unwrap(), 10);
    storage.inject(misdirected(-1_000));
    assert_eq!(file.write_at(&[3; 10], 100).unwrap(), 10);
    file.sync_data().unwrap();
    let mut expected = vec![1; 1_000];
    expected[600..610].fill(2);
    expected[..10].fill(3);
    assert_eq!(after(&storage, CrashMode::LoseAll), expected);
}

#[derive(Debug, Default)]
struct Diary(Mutex<Vec<String>>);

impl Observer for Diary {
    fn write(&self, file: &str, offset: u64, bytes: &[u8]) {
        self.0.lock().push(format!("write {file} {offset} {}", bytes.len()));
    }
    fn synced(&self, file: &str) {
        self.0.lock().push(format!("synced {file}"));
    }
    fn resized(&self, file: &str, len: u64) {
        self.0.lock().push(format!("resized {file} {len}"));
    }
    fn created(&self, file: &str) {
        self.0.lock().push(format!("created {file}"));
    }
    fn renamed(&self, from: &str, to: &str) {
        self.0.lock().push(format!("renamed {from} {to}"));
    }
    fn removed(&self, file: &str) {
        self.0.lock().push(format!("removed {file}"));
    }
    fn directory_synced(&self, directory: &str) {
        self.0.lock().push(format!("directory synced {directory}"));
    }
}

#[test]
fn an_observer_hears_of_every_change_in_order_and_of_no_failure() {
    let storage = SimStorage::new(0);
    let diary = Arc::new(Diary::default());
    storage.set_observer(diary.clone());
    storage.create_directory("d/e").unwrap();
    storage.create_directory("d/e").unwrap();
    let file = storage.create("d/f").unwrap();
    storage.create("d/f").unwrap_err();
    file.write_at(&[1; 10], 5).unwrap();
    file.read_at(&mut [0; 4], 0).unwrap();
    file.sync_data().unwrap();
    storage.rename("d/f", "g").unwrap();
    storage.rename("d/f", "g").unwrap_err();
    file.set_len(3).unwrap();
    file.allocate(0, 2).unwrap();
    file.allocate(0, 20).unwrap();
    storage.inject(Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Once).only(&[Operation::Sync]));
    file.sync_data().unwrap_err();
    storage.inject(Fault::new(FaultKind::LostWrite, When::Nth(1), Repeat::Once));
    file.write_at(&[1; 7], 1).unwrap();
    storage.sync_directory("d").unwrap();
    storage.remove("g").unwrap();
    storage.remove("g").unwrap_err();
    drop(storage.lock("LOCK").unwrap());
    drop(storage.lock("LOCK").unwrap());
    let expected = [
        "created d",
        "created d/e",
        "created d/f",
        "write d/f 5 10",
        "synced d/f",
        "renamed d/f g",
        "resized g 3",
        "resized g 20",
        "write g 1 7",
        "directory synced d",
        "removed g",
        "created LOCK",
    ];
    assert_eq!(*diary.0.lock(), expected);
}

#[test]
fn an_observer_hears_only_of_the_bytes_that_are_written() {
    let storage = SimStorage::new(0);
    let diary = Arc::new(Diary::default());
    let file = storage.create("f").unwrap();
    storage.set_observer(diary.clone());
    storage.inject(Fault::new(FaultKind::Short, When::Nth(1), Repeat::Once));
    let short = file.write_at(&[1; 100], 0).unwrap();
    storage.set_capacity_bytes(Some(8_192));
    let fits = file.write_at(&[1; 10_000], 0).unwrap();
    assert!(short < 100 && fits == 8_192);
    assert_eq!(*diary.0.lock(), [format!("write f 0 {short}"), format!("write f 0 {fits}")]);
}
