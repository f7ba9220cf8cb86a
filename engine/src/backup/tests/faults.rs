//! Backups and restores that are cut short at any I/O, fail at any I/O, or find their objects damaged.

use std::sync::Arc;

use hamal_storage::Storage;
use hamal_storage::sim::{CrashMode, Fault, FaultKind, Repeat, Rng, SimStorage, When};

use super::workload::{Model, Workload, check, options};
use super::{no_progress, restored, target_on};
use crate::backup::{BackupOptions, DirectoryTarget, RestoreOptions, backups, restore_on, verify};
use crate::{ErrorKind, OpenMode, Result};

/// A database with transactions open, and its backups in a directory beside it, on one disk.
fn on_one_disk() -> Result<(SimStorage, Workload, DirectoryTarget)> {
    let disk = SimStorage::new(1);
    let mut workload = Workload::start(&disk, options(), 1)?;
    workload.steps(60)?;
    let vault = DirectoryTarget::within(Arc::new(disk.clone()), "vault");
    workload.back_up(&vault, &BackupOptions::new(), 0)?;
    workload.steps(40)?;
    Ok((disk, workload, vault))
}

#[test]
fn a_crash_at_any_io_of_a_backup_leaves_the_database_and_whole_backups() {
    let (disk, mut workload, vault) = on_one_disk().unwrap();
    let from = disk.io_count();
    let base = workload.backups[0].id.clone();
    workload.back_up(&vault, &BackupOptions::new().since(&base), 0).unwrap();
    let to = disk.io_count();
    assert!(to - from > 40, "{from} to {to}: too few I/Os to be worth it");
    drop(workload);
    for at in from + 1..=to {
        let (disk, mut workload, vault) = on_one_disk().unwrap();
        disk.crash_at(at);
        let backup = workload.back_up(&vault, &BackupOptions::new().since(&base), 0);
        assert!(backup.is_err(), "the machine stops at I/O {at}");
        let committed = workload.committed.clone();
        let context = format!("crash at I/O {at} of {from} to {to}");
        let disk = disk.crash(CrashMode::Any, at);
        drop(workload);
        let db = options().open_on(Arc::new(disk.clone())).unwrap_or_else(|e| panic!("{context}: {e}"));
        check(&db, &committed, &context);
        let vault = DirectoryTarget::within(Arc::new(disk.clone()), "vault");
        let there = backups(&vault).unwrap();
        assert!((1..=2).contains(&there.len()), "{context}: {there:?}");
        for backup in &there {
            verify(&vault, &backup.id, &mut no_progress).unwrap_or_else(|e| panic!("{context}: {e}"));
        }
        if there.len() == 2 {
            let (_, db) = restored(&vault, &RestoreOptions::new());
            check(&db, &committed, &context);
        }
        // What was left is in nobody's way.
        if at % 7 == 0 {
            let info = db.backup(&vault, &BackupOptions::new(), &mut no_progress).unwrap();
            let (_, db) = restored(&vault, &RestoreOptions::new().backup(info.id));
            check(&db, &committed, &context);
        }
    }
}

/// A target with a full and an incremental backup and archived log behind them, and what is restored from it.
fn filled_vault() -> (SimStorage, Model) {
    let vault_disk = SimStorage::new(100);
    let vault = target_on(&vault_disk);
    let mut workload =
        Workload::start(&SimStorage::new(1), options().archive(Arc::new(vault.clone())), 2).unwrap();
    workload.steps(60).unwrap();
    workload.back_up(&vault, &BackupOptions::new(), 30).unwrap();
    let base = workload.backups[0].id.clone();
    workload.steps(40).unwrap();
    workload.back_up(&vault, &BackupOptions::new().since(base), 30).unwrap();
    workload.steps(40).unwrap();
    workload.db.archive().unwrap();
    (vault_disk, workload.committed.clone())
}

#[test]
fn a_crash_at_any_io_of_a_restore_leaves_no_database_and_restoring_again_works() {
    let (vault_disk, expected) = filled_vault();
    let vault = target_on(&vault_disk);
    let disk = SimStorage::new(2);
    restore_on(&vault, Arc::new(disk.clone()), &RestoreOptions::new(), &mut no_progress).unwrap();
    let ios = disk.io_count();
    assert!(ios > 60, "{ios} I/Os are too few to be worth it");
    let mut opened = 0;
    for at in 1..=ios {
        let context = format!("crash at I/O {at} of {ios}");
        let disk = SimStorage::new(2);
        disk.crash_at(at);
        let cut = restore_on(&vault, Arc::new(disk.clone()), &RestoreOptions::new(), &mut no_progress);
        assert!(cut.is_err(), "{context}");
        let disk = disk.crash(CrashMode::Any, at);
        // Whoever opens what is there must not get anything else, and above all no new, empty database.
        let is_marked = disk.files().iter().any(|name| name == "RESTORING");
        let mode = if is_marked { OpenMode::OpenOrCreate } else { OpenMode::Open };
        match options().mode(mode).open_on(Arc::new(disk.clone())) {
            Ok(db) => {
                assert!(!is_marked, "{context}");
                check(&db, &expected, &context);
                opened += 1;
                continue;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotADatabase, "{context}: {error}"),
        }
        // And again, interrupted once more.
        disk.crash_at(disk.io_count() + 1 + at / 2);
        let _cut = restore_on(&vault, Arc::new(disk.clone()), &RestoreOptions::new(), &mut no_progress);
        let disk = disk.crash(CrashMode::Any, at + 1000);
        if options().mode(OpenMode::Open).open_on(Arc::new(disk.clone())).is_err() {
            restore_on(&vault, Arc::new(disk.clone()), &RestoreOptions::new(), &mut no_progress)
                .unwrap_or_else(|e| panic!("{context}: {e}"));
        }
        let db = options().mode(OpenMode::Open).open_on(Arc::new(disk)).unwrap();
        check(&db, &expected, &context);
    }
    assert!(opened < 8, "{opened} of {ios} interrupted restores opened");
}

#[test]
fn any_failing_io_of_the_target_fails_the_backup_alone() {
    for kind in [FaultKind::Eio, FaultKind::Enospc, FaultKind::Short, FaultKind::Interrupted] {
        let vault_disk = SimStorage::new(100);
        let vault = target_on(&vault_disk);
        let mut workload = Workload::start(&SimStorage::new(1), options(), 3).unwrap();
        workload.steps(60).unwrap();
        workload.back_up(&vault, &BackupOptions::new(), 0).unwrap();
        let ios = vault_disk.io_count();
        let mut failed = 0;
        for at in 1..=ios {
            vault_disk.inject(Fault::new(kind, When::Nth(at), Repeat::Once));
            if let Err(error) = workload.back_up(&vault, &BackupOptions::new(), 4) {
                failed += 1;
                assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::NoSpace), "{error}");
                assert!(kind == FaultKind::Eio || error.kind() == ErrorKind::NoSpace, "{error}");
            }
            vault_disk.clear_faults();
            workload.steps(1).unwrap();
        }
        match kind {
            FaultKind::Eio | FaultKind::Enospc => assert!(failed > ios / 2, "{failed} of {ios}"),
            _ => assert_eq!(failed, 0, "{kind:?} is no failure"),
        }
        workload.back_up(&vault, &BackupOptions::new(), 0).unwrap();
        let newest = workload.backups.last().unwrap().id.clone();
        let (_, db) = restored(&vault, &RestoreOptions::new().backup(newest));
        check(&db, &workload.committed, "after all the failures");
    }
}

/// Every file of a target.
fn objects(disk: &SimStorage) -> Vec<(String, Vec<u8>)> {
    disk.files().into_iter().map(|name| (name.clone(), disk.read_file(&name).unwrap())).collect()
}

/// The target as it was, but for one file, which is another or gone.
fn with_changed(objects: &[(String, Vec<u8>)], name: &str, bytes: Option<&[u8]>) -> DirectoryTarget {
    let disk = SimStorage::new(5);
    let storage: &dyn Storage = &disk;
    for (file, original) in objects {
        let content = if file == name { bytes } else { Some(&original[..]) };
        if let Some(content) = content {
            storage.create_directory(file.rsplit_once('/').unwrap().0).unwrap();
            let file = storage.create(file).unwrap();
            hamal_storage::write_all_at(&*file, content, 0).unwrap();
        }
    }
    target_on(&disk)
}

#[test]
fn a_changed_cut_or_missing_object_is_found_and_named() {
    let (disk, _) = filled_vault();
    let objects = objects(&disk);
    let all = backups(&target_on(&disk)).unwrap();
    let (full, newest) = (&all[0].id, &all[1].id);
    assert!(objects.len() > 10, "{objects:?}");
    let mut rng = Rng::new(11);
    for (name, original) in &objects {
        // Of the full backup the incremental one needs the pages, not the log.
        let of = if *name == format!("backup/{full}/log") { full } else { newest };
        for round in 0..12 {
            let mut bytes = original.clone();
            let at = if round < 4 { rng.index(80.min(bytes.len())) } else { rng.index(bytes.len()) };
            let what = match round % 4 {
                0..3 => {
                    bytes[at] ^= 1 << rng.index(8);
                    format!("{name}: a bit of byte {at}")
                }
                _ if round == 7 => {
                    bytes.push(0);
                    format!("{name}: a byte more")
                }
                _ => {
                    bytes.truncate(at);
                    format!("{name}: cut to {at}")
                }
            };
            let target = with_changed(&objects, name, Some(&bytes));
            let error = verify(&target, of, &mut no_progress).expect_err(&what);
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
            assert!(error.to_string().contains(name.as_str()), "{what}: {error}");
            let disk = SimStorage::new(6);
            let refused = restore_on(
                &target,
                Arc::new(disk.clone()),
                &RestoreOptions::new().backup(of),
                &mut no_progress,
            );
            assert_eq!(refused.expect_err(&what).kind(), ErrorKind::Corrupt, "{what}");
            assert!(options().open_on(Arc::new(disk)).is_err() || what.contains("manifest"), "{what}");
        }
        let target = with_changed(&objects, name, None);
        match verify(&target, of, &mut no_progress) {
            // Without its manifest it is no backup; a piece of the archive may be the last that was written.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                assert!(name.ends_with("manifest"), "{error}");
            }
            Err(error) => assert!(error.to_string().contains(name.as_str()), "{name}: {error}"),
            Ok(report) => assert!(name.starts_with("log/"), "{name}: {report:?}"),
        }
    }
}

#[test]
fn objects_of_another_backup_are_not_taken_for_this_ones() {
    let (disk, _) = filled_vault();
    let objects = objects(&disk);
    let all = backups(&target_on(&disk)).unwrap();
    let (full, newest) = (&all[0].id, &all[1].id);
    let mut swapped = 0;
    for (name, _) in
        objects.iter().filter(|(name, _)| name.contains(newest.as_str()) && !name.ends_with("manifest"))
    {
        let other = name.replace(newest.as_str(), full);
        let Some((_, bytes)) = objects.iter().find(|(name, _)| *name == other) else { continue };
        let target = with_changed(&objects, name, Some(bytes));
        let error = verify(&target, newest, &mut no_progress).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
        swapped += 1;
    }
    assert!(swapped > 3, "{swapped}");
}
