//! What backups are for: getting everything back.

mod faults;
mod moments;
mod threads;
mod workload;

use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_storage::sim::SimStorage;

use self::workload::{Workload, check, options};
use super::{
    BackupOptions, DirectoryTarget, Progress, RestoreOptions, backups, force_remove, remove, restore_on,
    verify,
};
use crate::master::{self, Found, Master, MasterFiles};
use crate::{Database, ErrorKind, OpenMode, PartitionState};

/// A table of bytes.
type Bytes<'t> = crate::Table<'t, &'static [u8], &'static [u8]>;

pub(crate) fn no_progress(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub(crate) fn target_on(disk: &SimStorage) -> DirectoryTarget {
    DirectoryTarget::within(Arc::new(disk.clone()), "")
}

/// Restores into a new disk.
fn restored_files(target: &DirectoryTarget, options: &RestoreOptions) -> SimStorage {
    let disk = SimStorage::new(99);
    restore_on(target, Arc::new(disk.clone()), options, &mut no_progress).unwrap();
    disk
}

/// The same, and opens what is there.
#[track_caller]
pub(crate) fn restored(target: &DirectoryTarget, options_: &RestoreOptions) -> (SimStorage, Database) {
    let disk = restored_files(target, options_);
    let db = options().mode(OpenMode::Open).open_on(Arc::new(disk.clone())).unwrap();
    assert_eq!(db.stats().pages_damaged, 0, "what is restored is whole");
    let report = db.recovery_report();
    assert!(
        report.redo.pages == 0 || report.first_pass_pages > 0,
        "all that is redone is redone late: {report:?}"
    );
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
        // The same by a redo pass of its own.
        let disk = restored_files(&vault, &RestoreOptions::new());
        hamal_storage::Storage::remove(&disk, "doublewrite").unwrap();
        let db = options().mode(OpenMode::Open).open_on(Arc::new(disk)).unwrap();
        assert_eq!(db.recovery_report().first_pass_pages, 0);
        check(&db, &expected, &context);
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
    assert!(!workload.db.handle.engine.retention.is_held());
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

/// A full backup, and an incremental one based on it.
fn two_backups(vault: &DirectoryTarget) -> (String, String) {
    let mut workload = Workload::start(&SimStorage::new(1), options(), 5).unwrap();
    workload.steps(50).unwrap();
    workload.back_up(vault, &BackupOptions::new(), 0).unwrap();
    let full = workload.backups[0].id.clone();
    workload.steps(20).unwrap();
    workload.back_up(vault, &BackupOptions::new().since(&full), 0).unwrap();
    (full, workload.backups[1].id.clone())
}

#[test]
fn a_backup_that_another_is_based_on_goes_only_by_force() {
    let vault = target_on(&SimStorage::new(100));
    let (full, increment) = two_backups(&vault);
    let refused = remove(&vault, &full).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    assert!(refused.to_string().contains(&format!("{increment} is based on it")), "{refused}");
    verify(&vault, &increment, &mut no_progress).unwrap();
    force_remove(&vault, &full).unwrap();
    assert_eq!(verify(&vault, &increment, &mut no_progress).unwrap_err().kind(), ErrorKind::Corrupt);
    remove(&vault, &increment).unwrap();
    assert!(backups(&vault).unwrap().is_empty());
}

#[test]
fn a_backup_with_a_damaged_manifest_can_be_removed_and_needs_nothing() {
    let disk = SimStorage::new(100);
    let vault = target_on(&disk);
    let (full, increment) = two_backups(&vault);
    let storage: &dyn hamal_storage::Storage = &disk;
    let name = disk.files().into_iter().find(|name| name.contains(&increment) && name.contains("manifest"));
    let file = storage.open(&name.unwrap()).unwrap();
    hamal_storage::write_all_at(&*file, &[0xaa; 8], 100).unwrap();
    assert_eq!(backups(&vault).unwrap_err().kind(), ErrorKind::Corrupt);
    // Nor does somebody else's file matter.
    storage.create("backup/.DS_Store").unwrap();
    remove(&vault, &full).unwrap();
    remove(&vault, &increment).unwrap();
    assert_eq!(disk.files(), ["backup/.DS_Store"]);
    assert!(backups(&vault).unwrap().is_empty());
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
fn a_free_page_that_the_checkpoint_lists_as_dirty_is_copied_too() {
    let vault = target_on(&SimStorage::new(100));
    let db = options().open_on(Arc::new(SimStorage::new(1))).unwrap();
    let rows = |change: fn(&mut Bytes<'_>, &[u8]) -> crate::Result<()>| {
        db.transact(|tx| {
            let mut table = tx.open_bytes_table("t")?;
            (0..2000_u32).try_for_each(|n| change(&mut table, &n.to_be_bytes()))
        })
        .unwrap();
    };
    rows(|table, key| table.put(key, &[1; 100]));
    // Their pages are in the file before they are freed.
    db.checkpoint().unwrap();
    rows(|table, key| table.delete(key));
    while db.maintain().unwrap() {}
    db.checkpoint().unwrap();
    let full = db.backup(&vault, &BackupOptions::new(), &mut no_progress).unwrap();
    // What a page is that was freed while it was on its way to the disk: free, and dirty.
    let engine = &db.handle.engine;
    let handle = engine.partition(hamal_pager::PartitionId(db.tables().unwrap()[0].partitions[0])).unwrap();
    let bitmap = handle.space.bitmap(0).unwrap().bytes().to_vec();
    let is_free = |page: &u32| !handle.space.geometry().is_set(&bitmap, *page);
    let was_used = |page: &u32| handle.partition.load(hamal_pager::PageNo(*page)).is_ok();
    let page = (6..handle.partition.file_pages()).filter(is_free).find(was_used).unwrap();
    let mut fixed = handle.partition.fix_exclusive(hamal_pager::PageNo(page)).unwrap();
    fixed.mark_dirty(|| engine.log.tail());
    drop(fixed);
    let since = BackupOptions::new().since(&full.id);
    let increment = db.backup(&vault, &since, &mut no_progress).unwrap();
    for (backup, is_in) in [(&full.id, false), (&increment.id, true)] {
        let manifest = super::manifest::must_read(&vault, backup).unwrap();
        let entry = manifest.partitions.iter().find(|p| p.id == handle.partition.id()).unwrap();
        let mut copied = Vec::new();
        let mut visit = |first: hamal_pager::PageNo, images: &[u8]| {
            copied.extend((first.0..).take(images.len() / 4096));
            Ok(())
        };
        super::pages::read(&vault, backup, &manifest, entry, &mut visit, &mut |_| Ok(())).unwrap();
        assert_eq!(copied.contains(&page), is_in, "page {page} of {backup}: {copied:?}");
    }
    let (_, db) = restored(&vault, &RestoreOptions::new());
    check(&db, &workload::Model::new(), "nothing is left of the rows");
}

#[test]
fn without_the_lsn_restored_to_the_log_would_be_believed_about_other_files() {
    let mut misled = 0;
    for seed in 1..=12 {
        let vault = target_on(&SimStorage::new(100 + seed));
        let mut workload = Workload::start(&SimStorage::new(seed), options(), seed).unwrap();
        workload.steps(150).unwrap();
        workload.back_up(&vault, &BackupOptions::new(), 400).unwrap();
        let disk = restored_files(&vault, &RestoreOptions::new());
        let Found::Database(master) = master::find(&disk).unwrap() else { panic!("no database") };
        assert!(master.restored_to == master.attested && master.history != 0, "{master:?}");
        let forgetful = Master { restored_to: hamal_wal::Lsn::NEVER, ..master.clone() };
        MasterFiles::open(&disk, master).unwrap().write(forgetful).unwrap();
        // By the redo pass: along with analysis a page that is changed again is right all the same.
        hamal_storage::Storage::remove(&disk, "doublewrite").unwrap();
        let is_right = options().self_repair(false).open_on(Arc::new(disk)).is_ok_and(|db| {
            db.partitions().is_ok_and(|all| all.iter().all(|p| p.state == PartitionState::Online))
                && workload::content(&db) == workload.committed
                && db
                    .verify(&mut |_| ControlFlow::Continue(()))
                    .is_ok_and(|report| report.findings.is_empty())
        });
        misled += usize::from(!is_right);
    }
    assert!(misled > 0, "the test above would not notice");
}
