//! What cannot be restored is told by kind, and nothing has changed.

use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_storage::Storage;
use hamal_storage::sim::{Fault, FaultKind, Operation, Repeat, SimStorage, When};

use super::world::{World, check, content, key, options, point_of};
use crate::backup::tests::{no_progress, target_on};
use crate::backup::{BackupOptions, RestoreOptions, RestorePoint, restore_on};
use crate::{ErrorKind, KeyRange, PartitionState, RangeRestoreOptions, RepairOptions};

/// A world with a backup, and the last of its moments.
fn backed_up(seed: u64) -> World {
    let mut world = World::start(seed);
    world.steps(60);
    world.commit().unwrap();
    world.back_up(&BackupOptions::new());
    world.known.clear();
    world.remember();
    world.steps(60);
    world.commit().unwrap();
    world
}

#[track_caller]
fn refused(world: &World, point: RestorePoint, expected: ErrorKind) -> String {
    let error = world.restore(&KeyRange::all(), &RangeRestoreOptions::to(point)).unwrap_err();
    assert_eq!(error.kind(), expected, "{error}");
    assert!(content(&world.db, world.name()) == world.rows, "{error}");
    check(&world.db, &world.disk, &error.to_string());
    error.to_string()
}

#[test]
fn moments_that_are_too_early_too_late_or_no_moments_are_refused() {
    let world = backed_up(11);
    world.db.archive().unwrap();
    let now = world.db.restore_point();
    assert!(refused(&world, RestorePoint::Lsn(4096), ErrorKind::NotFound).contains("so early a moment"));
    assert!(refused(&world, RestorePoint::Micros(1), ErrorKind::NotFound).contains("so early a moment"));
    let late = refused(&world, RestorePoint::Lsn(now.lsn + 100_000), ErrorKind::NotFound);
    assert!(late.contains("does not reach so far"), "{late}");
    let late = refused(&world, RestorePoint::Micros(now.micros + 10_000_000), ErrorKind::NotFound);
    assert!(late.contains("does not reach so far"), "{late}");
    assert!(refused(&world, RestorePoint::End, ErrorKind::InvalidArgument).contains("repair"));
    let reversed = KeyRange::Keys { from: key(2), below: Some(key(1)) };
    let options = RangeRestoreOptions::to(RestorePoint::Lsn(now.lsn));
    assert_eq!(world.restore(&reversed, &options).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let empty = target_on(&SimStorage::new(1));
    let error = world.db.restore_range(world.name(), &KeyRange::all(), &empty, &options, &mut no_progress);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_gap_in_the_archive_is_told() {
    let vault_disk = SimStorage::new(100);
    let vault = target_on(&vault_disk);
    let archived = options().archive(Arc::new(vault.clone())).archive_hold_bytes(Some(256 << 10));
    let db = archived.open_on(Arc::new(SimStorage::new(12))).unwrap();
    let fill = |byte: u8| {
        let rows = |tx: &crate::Transaction| {
            let mut table = tx.open_bytes_table("t")?;
            (0..200).try_for_each(|n| table.put(&key(n), &[byte; 1000]))
        };
        db.transact(rows).unwrap();
    };
    fill(0);
    db.backup(&vault, &BackupOptions::new(), &mut no_progress).unwrap();
    db.archive().unwrap();
    vault_disk.inject(Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Forever).only(&[Operation::Create]));
    for byte in 1..12 {
        fill(byte);
        db.checkpoint().unwrap();
    }
    let point = db.restore_point();
    vault_disk.clear_faults();
    fill(12);
    db.archive().unwrap();
    assert_eq!(db.stats().archive_gaps, 1);
    let options = RangeRestoreOptions::to(RestorePoint::Lsn(point.lsn));
    let error = db.restore_range("t", &KeyRange::all(), &vault, &options, &mut no_progress).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("log is missing"), "{error}");
    assert!(content(&db, "t").values().all(|value| value[0] == 12));
}

#[test]
fn tables_that_are_not_there_or_were_not_there_are_told_apart() {
    let world = backed_up(13);
    let before = RestorePoint::Lsn(world.known[0].moment.lsn);
    let made = |name: &str| {
        world.db.transact(|tx| tx.open_bytes_table(name)?.put(b"k", b"v")).unwrap();
    };
    let refused = |name: &str, point| {
        let options = RangeRestoreOptions::to(point);
        let range = KeyRange::all();
        let error =
            world.db.restore_range(name, &range, &world.vault, &options, &mut no_progress).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        error.to_string()
    };
    made("young");
    assert!(refused("young", before).contains("did not exist at that moment"));
    assert!(refused("never", before).contains("there is no table"));
    let with_young = RestorePoint::Lsn(world.db.restore_point().lsn);
    world.db.transact(|tx| tx.drop_table("young")).unwrap();
    assert!(refused("young", with_young).contains("there is no table"));
    made("young");
    assert!(refused("young", with_young).contains("today's is another one"));
    check(&world.db, &world.disk, "tables");
}

#[test]
fn backups_of_other_databases_are_refused_and_passed_over() {
    let (world, other) = (backed_up(14), backed_up(15));
    let options = RangeRestoreOptions::to(RestorePoint::Lsn(world.known[0].moment.lsn));
    let range = KeyRange::all();
    let error =
        world.db.restore_range(world.name(), &range, &other.vault, &options, &mut no_progress).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.to_string().contains("of another database"), "{error}");
    // One that was restored is another database, too, though its id is the same.
    let disk = SimStorage::new(16);
    restore_on(&world.vault, Arc::new(disk.clone()), &RestoreOptions::new(), &mut no_progress).unwrap();
    let fork = super::world::options().open_on(Arc::new(disk)).unwrap();
    let error =
        fork.restore_range(world.name(), &range, &world.vault, &options, &mut no_progress).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    // Beside its own backups others' do no harm.
    other.db.backup(&world.vault, &BackupOptions::new(), &mut no_progress).unwrap();
    world.restore(&range, &options).unwrap();
    assert!(content(&world.db, world.name()) == world.known[0].rows);
}

#[test]
fn a_quarantined_partition_is_repaired_first_and_the_others_are_restored() {
    let mut world = World::start(17);
    world
        .db
        .transact(|tx| {
            let mut table = tx.open_bytes_table("accounts")?;
            (0..300).try_for_each(|n| table.put(&key(n), &[1; 300]))
        })
        .unwrap();
    world.db.split("accounts", &key(100), &mut |_| ControlFlow::Continue(())).unwrap();
    world.rows = content(&world.db, "accounts");
    world.back_up(&BackupOptions::new());
    world.remember();
    world
        .db
        .transact(|tx| {
            let mut table = tx.open_bytes_table("accounts")?;
            [50, 150].into_iter().try_for_each(|n| table.put(&key(n), b"spoilt"))
        })
        .unwrap();
    world.db.checkpoint().unwrap();
    let partitions = world.db.partitions().unwrap();
    let lower = partitions.iter().find(|p| p.upper == Some(key(100))).unwrap();
    world.disk.remove(&lower.file).unwrap();
    world.db.checkpoint().unwrap();
    world.db.checkpoint().unwrap();
    let state = |id| world.db.partitions().unwrap().into_iter().find(|p| p.id == id).unwrap().state;
    assert_eq!(state(lower.id), PartitionState::Quarantined);
    let options = RangeRestoreOptions::to(point_of(&world.known[0].moment, true));
    for range in [KeyRange::PartitionOf(key(1)), KeyRange::all()] {
        let error = world.restore(&range, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PartitionUnavailable, "{error}");
        assert!(error.to_string().starts_with("repair it first"), "{error}");
        assert_eq!(error.unavailable_partition().unwrap().id, lower.id);
    }
    let report = world.restore(&KeyRange::PartitionOf(key(200)), &options).unwrap();
    assert_eq!(report.replaced, 1);
    world.db.repair(lower.id, Some(&world.vault), &RepairOptions::new(), &mut no_progress).unwrap();
    let report = world.restore(&KeyRange::PartitionOf(key(1)), &options).unwrap();
    assert_eq!((report.replaced, report.unchanged), (1, 99));
    assert!(content(&world.db, "accounts") == world.rows);
    check(&world.db, &world.disk, "repaired");
}
