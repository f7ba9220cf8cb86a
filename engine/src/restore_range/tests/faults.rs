//! A crash at any I/O, a failing disk, damaged backups.

use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_storage::Storage;
use hamal_storage::sim::{CrashMode, Fault, FaultKind, Repeat, SimStorage, When};

use super::world::{Rows, World, check, content, key, mixed, options, point_of};
use crate::backup::tests::{no_progress, target_on};
use crate::backup::{BackupOptions, RestorePoint, Stage};
use crate::{Database, ErrorKind, KeyRange, RangeRestoreOptions};

/// A closed database, what to restore in it, and what it has before and after.
struct Case {
    base: SimStorage,
    vault_disk: SimStorage,
    name: &'static str,
    range: KeyRange,
    point: RestorePoint,
    old: Rows,
    new: Rows,
}

fn case(seed: u64) -> Case {
    let mut world = World::start(seed);
    world.steps(50);
    world.back_up(&BackupOptions::new());
    world.steps(25);
    let then = world.known.len() - 1;
    world.steps(60);
    world.commit().unwrap();
    world.db.archive().unwrap();
    let (moment, rows) = (world.known[then].moment, &world.known[then].rows);
    let (from, below) = (key(60), key(220));
    let new = mixed(&world.rows, rows, &from, Some(&below));
    assert!(new != world.rows);
    let (disk, name, old) = (world.disk.clone(), world.name(), world.rows.clone());
    let (vault_disk, point) = (world.vault_disk.clone(), point_of(&moment, true));
    world.db.close().unwrap();
    let range = KeyRange::Keys { from, below: Some(below) };
    Case { base: disk.crash_image(CrashMode::KeepAll, 1), vault_disk, name, range, point, old, new }
}

/// The target has all that is needed: nothing is archived here, for the many lives of one database would not mix.
fn open(disk: &SimStorage) -> Database {
    options().open_on(Arc::new(disk.clone())).unwrap_or_else(|e| panic!("{e}"))
}

impl Case {
    fn restore(&self, db: &Database) -> crate::Result<()> {
        let vault = target_on(&self.vault_disk);
        let options = RangeRestoreOptions::to(self.point);
        db.restore_range(self.name, &self.range, &vault, &options, &mut no_progress).map(drop)
    }
}

#[test]
fn a_crash_at_any_io_leaves_the_range_wholly_old_or_wholly_new_and_no_file() {
    let case = case(31);
    let disk = case.base.crash_image(CrashMode::KeepAll, 2);
    let db = open(&disk);
    let before = disk.io_count();
    case.restore(&db).unwrap();
    let ios = disk.io_count() - before;
    assert!(content(&db, case.name) == case.new);
    assert!(ios > 100, "{ios} I/Os are too few to be worth it");
    drop(db);
    let (mut old, mut new) = (0, 0);
    for at in 1..=ios {
        let context = format!("crash at I/O {at} of {ios}");
        let disk = case.base.crash_image(CrashMode::KeepAll, 2);
        let db = open(&disk);
        disk.crash_at(disk.io_count() + at);
        let cut = case.restore(&db);
        let disk = disk.crash(CrashMode::Any, at);
        drop(db);
        let db = open(&disk);
        let found = content(&db, case.name);
        if found == case.new {
            new += 1;
        } else {
            assert!(found == case.old, "{context}");
            assert!(cut.is_err(), "{context}: acknowledged and lost");
            old += 1;
        }
        check(&db, &disk, &context);
        // And it goes on from there.
        if at % 16 == 0 {
            case.restore(&db).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert!(content(&db, case.name) == case.new, "{context}");
        }
    }
    println!("{old} old, {new} new");
    assert!(old > 50 && new > 0, "{old} old, {new} new");
}

#[test]
fn an_io_that_fails_fails_the_restore_and_nothing_has_changed() {
    let case = case(32);
    let disk = case.base.crash_image(CrashMode::KeepAll, 2);
    let db = open(&disk);
    let before = disk.io_count();
    case.restore(&db).unwrap();
    let ios = disk.io_count() - before;
    drop(db);
    for kind in [FaultKind::Eio, FaultKind::Enospc] {
        for at in (1..=ios).step_by(3) {
            let context = format!("{kind:?} at I/O {at} of {ios}");
            let disk = case.base.crash_image(CrashMode::KeepAll, 2);
            let db = open(&disk);
            disk.inject(Fault::new(kind, When::Nth(at), Repeat::Once));
            let result = case.restore(&db);
            disk.clear_faults();
            let found = content(&db, case.name);
            match result {
                Ok(()) => assert!(found == case.new, "{context}"),
                Err(e) if e.kind() == ErrorKind::CommitUnknown => {}
                Err(e) => assert!(found == case.old, "{context}: {e}"),
            }
            // The database itself may be poisoned, where it was its own log that failed: whoever reopens it finds it whole.
            drop(db);
            let db = open(&disk);
            let found = content(&db, case.name);
            assert!(found == case.old || found == case.new, "{context}");
            check(&db, &disk, &context);
        }
    }
}

#[test]
fn a_damaged_object_in_the_target_is_told_and_nothing_has_changed() {
    let case = case(33);
    let disk = case.base.crash_image(CrashMode::KeepAll, 2);
    let db = open(&disk);
    let (mut told, mut unneeded) = (0, 0);
    for name in case.vault_disk.files() {
        let bytes = case.vault_disk.read_file(&name).unwrap().len() as u64;
        for part in 0..4 {
            let bit = (bytes * 8 - 1) * part / 3;
            let context = format!("{name}, bit {bit}");
            case.vault_disk.flip_bit(&name, bit).unwrap();
            match case.restore(&db) {
                Ok(()) => {
                    // Of another partition, or of later.
                    unneeded += 1;
                    assert!(content(&db, case.name) == case.new, "{context}");
                    let (old, table) = (case.old.clone(), case.name);
                    db.transact(|tx| {
                        let mut table = tx.open_bytes_table(table)?;
                        table.retain(|_, _| false)?;
                        old.iter().try_for_each(|(key, value)| table.put(key, value))
                    })
                    .unwrap();
                }
                Err(error) => {
                    told += 1;
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{context}: {error}");
                    assert!(content(&db, case.name) == case.old, "{context}: {error}");
                }
            }
            case.vault_disk.flip_bit(&name, bit).unwrap();
            let left = disk.files().into_iter().filter(|name| name.starts_with("scratch/")).count();
            assert_eq!(left, 0, "{context}");
        }
    }
    assert!(told > 10 && unneeded > 3, "{told} told, {unneeded} unneeded");
    case.restore(&db).unwrap();
    assert!(content(&db, case.name) == case.new);
    check(&db, &disk, "all is well again");
}

/// Whoever asks for a row of then is told what is wrong with it, a long value included, which is read as a stream.
#[test]
fn damage_to_what_was_restored_is_told_as_damage_while_it_is_put_back() {
    let mut world = World::start(35);
    let write = |value: &[u8]| {
        let rows = |tx: &crate::Transaction| {
            let mut table = tx.open_bytes_table("accounts")?;
            (0..40).try_for_each(|n| table.put(&key(n), value))
        };
        world.db.transact(rows).unwrap();
    };
    write(&vec![1; 60_000]);
    world.db.backup(&world.vault, &BackupOptions::new(), &mut no_progress).unwrap();
    let then = world.db.restore_point();
    write(&[2; 30]);
    world.remember();
    let now = content(&world.db, "accounts");
    let options = RangeRestoreOptions::to(point_of(&then, true)).cache_bytes(0);
    let (disk, mut is_damaged) = (world.disk.clone(), false);
    let result =
        world.db.restore_range("accounts", &KeyRange::all(), &world.vault, &options, &mut |progress| {
            if progress.stage == Stage::Rows && !is_damaged {
                is_damaged = true;
                for name in disk.files().iter().filter(|name| name.starts_with("scratch/part/")) {
                    let pages = disk.read_file(name).unwrap().len() as u64 / 4096;
                    (1..pages).for_each(|page| disk.flip_bit(name, (page * 4096 + 2000) * 8).unwrap());
                }
            }
            ControlFlow::Continue(())
        });
    let error = result.unwrap_err();
    assert!(is_damaged && error.kind() == ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("what was restored"), "{error}");
    assert!(content(&world.db, "accounts") == now);
    check(&world.db, &world.disk, "damage beside the database");
}

#[test]
fn what_a_crash_has_left_goes_at_the_next_open_and_what_is_not_of_a_restore_stays() {
    let case = case(34);
    let made = |names: &[&str]| {
        let disk = case.base.crash_image(CrashMode::KeepAll, 2);
        disk.create_directory("scratch/part").unwrap();
        for name in names {
            disk.create(name).unwrap();
        }
        disk
    };
    let disk = made(&["scratch/SCRATCH", "scratch/MASTER-A", "scratch/part/7.dat"]);
    let db = open(&disk);
    check(&db, &disk, "opened");
    case.restore(&db).unwrap();
    assert!(content(&db, case.name) == case.new);
    let disk = made(&["scratch/SCRATCH", "scratch/MASTER-A", "scratch/part/7.dat"]);
    disk.inject(Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Forever).on("scratch/*"));
    let db = open(&disk);
    assert!(content(&db, case.name) == case.old, "the database does not need what cannot be removed");
    assert_eq!(case.restore(&db).unwrap_err().kind(), ErrorKind::Io);
    disk.clear_faults();
    case.restore(&db).unwrap();
    check(&db, &disk, "cleared by a restore");
    drop(db);
    for names in [&["scratch/precious"][..], &["scratch/part/precious"]] {
        let disk = made(names);
        let db = open(&disk);
        let error = case.restore(&db).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        assert!(disk.exists(names[0]).unwrap());
        assert!(content(&db, case.name) == case.old);
    }
}
