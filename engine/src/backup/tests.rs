//! What backups are for: getting everything back.

mod faults;
mod moments;
mod threads;
mod workload;

use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_storage::sim::SimStorage;

use self::workload::{Workload, check, options};
use super::{BackupOptions, DirectoryTarget, Progress, RestoreOptions, backups, remove, restore_on, verify};
use crate::master::{self, Found, Master, MasterFiles};
use crate::{Database, ErrorKind, OpenMode};

fn no_progress(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn target_on(disk: &SimStorage) -> DirectoryTarget {
    DirectoryTarget::within(Arc::new(disk.clone()), "")
}

/// Restores into a new disk and opens what is there.
#[track_caller]
fn restored(target: &DirectoryTarget, options_: &RestoreOptions) -> (SimStorage, Database) {
    let disk = SimStorage::new(99);
    restore_on(target, Arc::new(disk.clone()), options_, &mut no_progress).unwrap();
    let db = options().mode(OpenMode::Open).open_on(Arc::new(disk.clone())).unwrap();
    (disk, db)
}

#[test]
fn a_backup_under_a_running_workload_restores_to_its_end() {
    for seed in 1..=12 {
        let vault = target_on(&SimStorage::new(100 + seed));
        let disk = SimStorage::new(seed);
        let mut workload = Workload::start(&disk, options(), seed).unwrap();
        workload.steps(150).unwrap();
        workload.back_up(&vault, &BackupOptions::new(), 400).unwrap();
        let expected = workload.committed.clone();
        // What comes after is not in it.
        workload.steps(60).unwrap();
        let context = format!("seed {seed}");
        let id = backups(&vault).unwrap()[0].id.clone();
        let verified = verify(&vault, &id, &mut no_progress).unwrap();
        assert!(verified.pages > 20 && verified.records > 100, "{context}: {verified:?}");
        let (_, db) = restored(&vault, &RestoreOptions::new());
        check(&db, &expected, &context);
        db.close().unwrap();
    }
}

#[test]
fn a_restored_database_goes_on_and_survives_crashes() {
    let vault = target_on(&SimStorage::new(100));
    let mut workload = Workload::start(&SimStorage::new(1), options(), 5).unwrap();
    workload.steps(200).unwrap();
    workload.back_up(&vault, &BackupOptions::new(), 200).unwrap();
    let (disk, db) = restored(&vault, &RestoreOptions::new());
    drop(db);
    let mut again = Workload::start(&disk, options(), 6).unwrap();
    again.committed = workload.committed.clone();
    again.steps(300).unwrap();
    let expected = again.committed.clone();
    let disk = disk.crash(hamal_storage::sim::CrashMode::Any, 7);
    let db = options().open_on(Arc::new(disk)).unwrap();
    check(&db, &expected, "after a crash");
}

#[test]
fn a_backup_that_is_stopped_leaves_nothing_and_holds_nothing() {
    let vault_disk = SimStorage::new(100);
    let vault = target_on(&vault_disk);
    let mut workload = Workload::start(&SimStorage::new(1), options(), 5).unwrap();
    workload.steps(100).unwrap();
    for stop_at in [0, 1, 3, 6] {
        let mut calls = 0;
        let error = workload
            .db
            .backup(&vault, &BackupOptions::new(), &mut |_| {
                calls += 1;
                if calls > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(vault_disk.files(), Vec::<String>::new(), "stopped at {stop_at}");
    }
    assert_eq!(workload.db.handle.engine.retention.floor(), None);
    assert!(backups(&vault).unwrap().is_empty());
    let error = restore_on(&vault, Arc::new(SimStorage::new(3)), &RestoreOptions::new(), &mut no_progress);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_restore_refuses_what_is_there_already_untouched() {
    let vault = target_on(&SimStorage::new(100));
    let mut workload = Workload::start(&SimStorage::new(1), options(), 5).unwrap();
    workload.steps(50).unwrap();
    workload.back_up(&vault, &BackupOptions::new(), 0).unwrap();
    let (disk, db) = restored(&vault, &RestoreOptions::new());
    drop(db);
    let foreign = SimStorage::new(8);
    let storage: &dyn hamal_storage::Storage = &foreign;
    storage.create("letter.txt").unwrap();
    for disk in [disk, foreign] {
        let before = disk.files();
        let refused = restore_on(&vault, Arc::new(disk.clone()), &RestoreOptions::new(), &mut no_progress);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(disk.files(), before);
    }
}

#[test]
fn a_removed_backup_is_gone() {
    let disk = SimStorage::new(100);
    let vault = target_on(&disk);
    let mut workload = Workload::start(&SimStorage::new(1), options(), 5).unwrap();
    workload.steps(50).unwrap();
    workload.back_up(&vault, &BackupOptions::new(), 0).unwrap();
    let id = workload.backups[0].id.clone();
    remove(&vault, &id).unwrap();
    assert!(disk.files().is_empty());
    assert_eq!(remove(&vault, &id).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(verify(&vault, &id, &mut no_progress).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn without_the_lsn_restored_to_the_log_would_be_believed_about_other_files() {
    let mut misled = 0;
    for seed in 1..=12 {
        let vault = target_on(&SimStorage::new(100 + seed));
        let mut workload = Workload::start(&SimStorage::new(seed), options(), seed).unwrap();
        workload.steps(150).unwrap();
        workload.back_up(&vault, &BackupOptions::new(), 400).unwrap();
        let disk = SimStorage::new(99);
        restore_on(&vault, Arc::new(disk.clone()), &RestoreOptions::new(), &mut no_progress).unwrap();
        let Found::Database(master) = master::find(&disk).unwrap() else { panic!("no database") };
        assert!(master.restored_to == master.attested && master.history != 0, "{master:?}");
        let forgetful = Master { restored_to: hamal_wal::Lsn::NEVER, ..master.clone() };
        MasterFiles::open(&disk, master).unwrap().write(forgetful).unwrap();
        let is_right = options().open_on(Arc::new(disk)).is_ok_and(|db| {
            workload::content(&db) == workload.committed
                && db
                    .verify(&mut |_| ControlFlow::Continue(()))
                    .is_ok_and(|report| report.findings.is_empty())
        });
        misled += usize::from(!is_right);
    }
    assert!(misled > 0, "the test above would not notice");
}
