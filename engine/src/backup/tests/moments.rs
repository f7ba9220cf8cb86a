//! Restoring to any moment (must-show line 5 of the issue on partitions and recovery), and what an archive keeps and gives up.

use std::sync::Arc;
use std::time::Duration;

use hamal_storage::sim::{CrashMode, Fault, FaultKind, Operation, Repeat, Rng, SimStorage, When};

use super::workload::{Workload, check, options};
use super::{no_progress, restored, target_on};
use crate::backup::{
    BackupOptions, DirectoryTarget, RestoreOptions, RestorePoint, backups, restore_on, verify,
};
use crate::{ErrorKind, Options};

/// So many moments are restored to.
const MOMENTS: usize = 200;

fn archived(vault: &DirectoryTarget) -> Options {
    options().archive(Arc::new(vault.clone())).archive_interval(Duration::from_millis(2))
}

#[test]
fn every_one_of_200_moments_is_restored_by_lsn_and_by_time() {
    let seed = 2026;
    println!("seed {seed}");
    let vault = target_on(&SimStorage::new(100));
    let disk = SimStorage::new(seed);
    let mut workload = Workload::start(&disk, archived(&vault), seed).unwrap();
    workload.steps(120).unwrap();
    workload.back_up(&vault, &BackupOptions::new(), 120).unwrap();
    workload.remember();
    workload.steps(500).unwrap();
    let full = workload.backups[0].id.clone();
    workload.back_up(&vault, &BackupOptions::new().since(&full), 200).unwrap();
    workload.steps(300).unwrap();
    workload.back_up(&vault, &BackupOptions::new(), 200).unwrap();
    workload.steps(300).unwrap();
    let report = workload.db.archive().unwrap();
    assert!(report.to_lsn >= workload.moments.last().unwrap().0.lsn);
    assert!(workload.db.stats().archive_gaps == 0 && workload.db.stats().archive_lag_bytes == 0);

    let mut rng = Rng::new(seed);
    let mut used = std::collections::BTreeMap::<String, u64>::new();
    for index in 0..MOMENTS {
        let (moment, model) = &workload.moments[rng.index(workload.moments.len())];
        let points = [RestorePoint::Lsn(moment.lsn), RestorePoint::Micros(moment.micros)];
        for point in points {
            let context = format!("moment {index} of seed {seed}: {point:?}");
            let disk = SimStorage::new(7);
            let report = restore_on(
                &vault,
                Arc::new(disk.clone()),
                &RestoreOptions::new().to(point),
                &mut no_progress,
            )
            .unwrap_or_else(|e| panic!("{context}: {e}"));
            *used.entry(report.backup).or_default() += 1;
            let db = options().open_on(Arc::new(disk)).unwrap_or_else(|e| panic!("{context}: {e}"));
            check(&db, model, &context);
        }
    }
    assert_eq!(used.len(), 3, "each backup is of use: {used:?}");
    let (_, db) = restored(&vault, &RestoreOptions::new());
    check(&db, &workload.committed, "to the end");
}

#[test]
fn moments_that_no_backup_or_archive_reaches_are_refused() {
    let vault = target_on(&SimStorage::new(100));
    let mut workload = Workload::start(&SimStorage::new(1), archived(&vault), 1).unwrap();
    workload.steps(50).unwrap();
    workload.back_up(&vault, &BackupOptions::new(), 0).unwrap();
    workload.db.archive().unwrap();
    let later = workload.db.restore_point();
    let refused = |point| {
        let disk = SimStorage::new(2);
        let error =
            restore_on(&vault, Arc::new(disk.clone()), &RestoreOptions::new().to(point), &mut no_progress)
                .unwrap_err();
        (error.kind(), options().mode(crate::OpenMode::Open).open_on(Arc::new(disk)).unwrap_err().kind())
    };
    let nothing = (ErrorKind::NotFound, ErrorKind::NotADatabase);
    assert_eq!(refused(RestorePoint::Lsn(4096)), nothing);
    assert_eq!(refused(RestorePoint::Micros(1)), nothing);
    assert_eq!(refused(RestorePoint::Lsn(later.lsn + 1)), nothing);
    assert_eq!(refused(RestorePoint::Micros(later.micros + 1_000_000)), nothing);
}

#[test]
fn the_log_is_kept_until_it_is_archived_and_across_crashes() {
    let vault_disk = SimStorage::new(100);
    let vault = target_on(&vault_disk);
    let mut disk = SimStorage::new(3);
    let mut workload = Workload::start(&disk, archived(&vault), 3).unwrap();
    workload.back_up(&vault, &BackupOptions::new(), 0).unwrap();
    let mut committed = workload.committed.clone();
    for life in 0..4 {
        // The target is out of order for most of each life.
        vault_disk
            .inject(Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Forever).only(&[Operation::Create]));
        workload.steps(300).unwrap();
        workload.db.checkpoint().unwrap();
        let stats = workload.db.stats();
        assert!(stats.archive_failures > 0 && stats.archive_lag_bytes > 0, "life {life}: {stats:?}");
        assert!(stats.log_used_bytes >= stats.archive_lag_bytes, "life {life}: {stats:?}");
        committed.clone_from(&workload.committed);
        vault_disk.clear_faults();
        if life % 2 == 0 {
            workload.db.archive().unwrap();
            let stats = workload.db.stats();
            assert_eq!((stats.archive_lag_bytes, stats.archive_gaps), (0, 0));
            workload.db.checkpoint().unwrap();
            assert!(workload.db.stats().log_used_bytes < 600 << 10, "it is given back");
        }
        disk = disk.crash(CrashMode::Any, life);
        drop(workload);
        workload = Workload::start(&disk, archived(&vault), 30 + life).unwrap();
        workload.committed.clone_from(&committed);
    }
    workload.db.archive().unwrap();
    let (_, db) = restored(&vault, &RestoreOptions::new());
    check(&db, &committed, "after four lives");
}

#[test]
fn what_an_archive_holds_may_be_bounded_and_the_gap_is_told() {
    let vault_disk = SimStorage::new(100);
    let vault = target_on(&vault_disk);
    let bounded = archived(&vault).archive_hold_bytes(Some(256 << 10));
    let mut workload = Workload::start(&SimStorage::new(4), bounded, 4).unwrap();
    workload.back_up(&vault, &BackupOptions::new(), 0).unwrap();
    workload.db.archive().unwrap();
    vault_disk.inject(Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Forever).only(&[Operation::Create]));
    while workload.db.stats().archive_lag_bytes < 2 << 20 {
        workload.steps(50).unwrap();
    }
    workload.steps(100).unwrap();
    workload.db.checkpoint().unwrap();
    assert!(workload.db.stats().log_used_bytes < 1 << 20, "it is given up");
    vault_disk.clear_faults();
    workload.db.archive().unwrap();
    assert_eq!(workload.db.stats().archive_gaps, 1);
    // The end cannot be reached from the old backup, and it says so.
    let error = restore_on(&vault, Arc::new(SimStorage::new(5)), &RestoreOptions::new(), &mut no_progress);
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let old = backups(&vault).unwrap()[0].id.clone();
    assert!(verify(&vault, &old, &mut no_progress).unwrap().gap_lsn.is_some());
    // A new backup makes it good.
    workload.back_up(&vault, &BackupOptions::new(), 60).unwrap();
    workload.steps(50).unwrap();
    workload.db.archive().unwrap();
    let (_, db) = restored(&vault, &RestoreOptions::new());
    check(&db, &workload.committed, "behind the gap");
}

#[test]
fn a_restored_database_archives_a_history_of_its_own() {
    let vault = target_on(&SimStorage::new(100));
    let mut workload = Workload::start(&SimStorage::new(1), archived(&vault), 8).unwrap();
    workload.back_up(&vault, &BackupOptions::new(), 40).unwrap();
    workload.steps(60).unwrap();
    workload.db.archive().unwrap();
    let expected = workload.committed.clone();
    let (disk, db) = restored(&vault, &RestoreOptions::new());
    drop(db);
    let mut fork = Workload::start(&disk, archived(&vault), 9).unwrap();
    fork.committed.clone_from(&expected);
    fork.steps(100).unwrap();
    fork.db.archive().unwrap();
    workload.steps(100).unwrap();
    workload.db.archive().unwrap();
    // Two databases go on from one backup, and the old backup still leads to the old one.
    let (_, db) = restored(&vault, &RestoreOptions::new());
    check(&db, &workload.committed, "the first");
    let base = workload.backups[0].id.clone();
    let error = fork.back_up(&vault, &BackupOptions::new().since(&base), 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    fork.back_up(&vault, &BackupOptions::new(), 30).unwrap();
    fork.steps(50).unwrap();
    fork.db.archive().unwrap();
    let newest = fork.backups[0].id.clone();
    let (_, db) = restored(&vault, &RestoreOptions::new().backup(newest));
    check(&db, &fork.committed, "the second");
}

#[test]
fn two_copies_of_a_database_do_not_mix_their_logs() {
    let vault = target_on(&SimStorage::new(100));
    let disk = SimStorage::new(1);
    let mut workload = Workload::start(&disk, archived(&vault), 8).unwrap();
    workload.steps(60).unwrap();
    workload.db.archive().unwrap();
    let copy = disk.crash_image(CrashMode::KeepAll, 2);
    workload.steps(80).unwrap();
    workload.db.archive().unwrap();
    let mut other = Workload::start(&copy, archived(&vault), 9).unwrap();
    other.steps(200).unwrap();
    let error = other.db.archive().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
}

#[test]
fn tables_dropped_and_made_during_and_after_a_backup_are_as_of_the_moment() {
    let vault = target_on(&SimStorage::new(100));
    let disk = SimStorage::new(1);
    let db = archived(&vault).open_on(Arc::new(disk.clone())).unwrap();
    let fill = |name: &str| {
        db.transact(|tx| {
            let mut table = tx.open_bytes_table(name)?;
            (0..400_u32).try_for_each(|n| table.put(&n.to_be_bytes(), &[7; 100]))
        })
        .unwrap();
    };
    let tidy = || while db.maintain().unwrap() {};
    fill("old");
    fill("kept");
    let old_file =
        format!("part/{}.dat", db.tables().unwrap().iter().find(|t| t.name == "old").unwrap().partitions[0]);
    let mut calls = 0;
    db.backup(&vault, &BackupOptions::new(), &mut |_| {
        calls += 1;
        if calls == 1 {
            db.transact(|tx| tx.drop_table("old")).unwrap();
            fill("new");
            tidy();
            assert!(disk.files().contains(&old_file), "it is kept while it may be copied");
        }
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert!(calls > 3);
    tidy();
    assert!(!disk.files().contains(&old_file), "and goes then");
    let with_new = db.restore_point();
    db.transact(|tx| tx.drop_table("new")).unwrap();
    tidy();
    db.archive().unwrap();
    let names = |to| {
        let (_, db) = restored(&vault, &RestoreOptions::new().to(to));
        assert!(db.verify(&mut |_| std::ops::ControlFlow::Continue(())).unwrap().findings.is_empty());
        db.tables().unwrap().into_iter().map(|t| (t.name, t.rows)).collect::<Vec<_>>()
    };
    let row = |name: &str| (name.to_owned(), 400);
    assert_eq!(names(RestorePoint::Lsn(with_new.lsn)), [row("kept"), row("new")]);
    assert_eq!(names(RestorePoint::End), [row("kept")]);
}
