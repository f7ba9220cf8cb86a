//! Splits, merges, drops, backups, checkpoints, damage and repairs beside an undo that trails.

use std::sync::mpsc;

use super::*;
use crate::backup::{self, BackupOptions, DirectoryTarget, RestoreOptions};
use crate::{RepairOptions, ReshapeProgress};

fn no_progress(_: ReshapeProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn go_on(_: backup::Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn nothing_else_is_held_back_by_what_trails() {
    let crashed = crashed(29);
    let db = crashed.open();
    let engine = &db.handle.engine;
    // Neither before-images, nor ghosts, nor the horizon.
    for n in 0..300_u32 {
        db.transact(|tx| {
            let mut table = tx.open_bytes_table("t")?;
            table.put(&key(3, 600), &n.to_le_bytes())?;
            table.put(&key(0, 600 + u64::from(n)), b"x")
        })
        .unwrap();
    }
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        table.delete(&key(3, 600))?;
        (0..300).try_for_each(|n| table.delete(&key(0, 600 + n)))
    })
    .unwrap();
    db.flush().unwrap();
    assert_eq!(engine.journal.horizon(), engine.timeline.next_id());
    let ghosts = |slot: usize| {
        let handle = engine.partition(hamal_pager::PartitionId(id_of(&db, slot))).unwrap();
        let mut ghosts = 0;
        let mut at = None;
        let mut leaf = crate::tree::LeafCopy::default();
        loop {
            handle.tree().leaf_at(at.as_deref(), None, &mut leaf).unwrap();
            ghosts += (0..leaf.len()).filter(|index| leaf.row(*index).ghost).count();
            match leaf.upper_fence() {
                Some(fence) => at = Some(fence.to_vec()),
                None => return ghosts,
            }
        }
    };
    let (healthy, behind) = (ghosts(0), ghosts(1));
    assert!(healthy >= 300 && behind > 0, "{healthy}, {behind}");
    // A round of maintenance by hand but for its undo.
    engine.drop_settled_versions().unwrap();
    assert_eq!(engine.versions.writers(), 0);
    let trailing = db.stats().trailing_partitions;
    db.maintain().unwrap();
    assert_eq!(db.stats().trailing_partitions, trailing);
    assert_eq!(ghosts(0), 0);
    // What undo has to put back is still there: the loser's removals, as far as they are not undone.
    assert!(ghosts(1) > 0 && ghosts(2) > 0);
    crashed.assert_sound(&db);
}

#[test]
fn splits_and_merges_undo_what_they_would_copy() {
    let crashed = crashed(21);
    let db = crashed.open();
    db.split("t", &key(1, 60), &mut no_progress).unwrap();
    assert_eq!(db.stats().trailing_partitions, 1);
    db.split("t", &key(0, 60), &mut no_progress).unwrap();
    assert_eq!(db.stats().trailing_partitions, 1, "the other was not needed");
    db.merge("t", b"d", &mut no_progress).unwrap();
    assert_eq!(db.stats().trailing_partitions, 0);
    assert_eq!(scan(&db.snapshot().unwrap()), crashed.model);
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);

    // Who does not wait is told, and nothing has changed.
    let crashed = super::crashed(21);
    let db = crashed.open_with(options().lock_timeout(Duration::ZERO));
    let error = db.split("t", &key(1, 60), &mut no_progress).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert_eq!(states(&db).len(), SLOTS);
    db.finish_recovery(&mut |_| ControlFlow::Continue(())).unwrap();
    crashed.assert_sound(&db);
}

#[test]
fn a_table_that_is_dropped_keeps_its_files_until_they_are_undone() {
    for closes in [false, true] {
        let crashed = crashed(22);
        let db = crashed.open();
        let files = || crashed.disk.list("part").unwrap().len();
        db.transact(|tx| tx.drop_table("t")).unwrap();
        while db.handle.engine.bury().unwrap() {}
        assert_eq!(files(), 1 + BEHIND.len(), "undo needs them, and the catalog's is there");
        db.handle.engine.catch_up_some().unwrap();
        if closes {
            db.close().unwrap();
            assert_eq!(files(), 1 + BEHIND.len(), "undo needs them, and the catalog's is there");
            let db = crashed.open();
            assert_eq!(db.recovery_report().losers, 1);
            assert_eq!(db.stats().trailing_losers, 0, "they were in the way of their removal");
            let report = db.recovery_report();
            assert_eq!((report.trailing_losers, report.undo.records), (0, undone(&db)), "{report:?}");
            assert!(report.partitions.iter().all(|partition| partition.ready.is_some()), "{report:?}");
            assert_eq!(files(), 1, "the catalog's is left");
            assert_eq!(db.stats().quarantines, 0);
        } else {
            while db.maintain().unwrap() {}
            assert_eq!(files(), 1, "the catalog's is left");
        }
    }
}

#[test]
fn a_backup_that_is_taken_meanwhile_has_what_was_committed() {
    let crashed = crashed_with(23, |db| assert!(db.checkpoint().is_ok()));
    let db = crashed.open();
    db.handle.engine.catch_up_some().unwrap();
    let vault = DirectoryTarget::within(Arc::new(SimStorage::new(1)), "");
    db.backup(&vault, &BackupOptions::new(), &mut go_on).unwrap();
    assert_eq!(db.stats().trailing_losers, 1, "a backup does not wait for it");
    let fresh = SimStorage::new(2);
    let storage: Arc<dyn Storage> = Arc::new(fresh.clone());
    backup::restore_on(&vault, storage, &RestoreOptions::new(), &mut go_on).unwrap();
    let restored = Crashed { disk: fresh, model: crashed.model.clone() };
    restored.assert_sound(&restored.open());
    crashed.assert_sound(&db);
}

#[test]
fn checkpoints_keep_the_log_that_undo_needs() {
    let crashed = crashed(24);
    let db = crashed.open();
    let first = db.recovery_report().oldest_loser_lsn;
    for round in 0..6 {
        db.transact(|tx| {
            (0..100).try_for_each(|n| tx.open_bytes_table("t")?.put(&key(0, n), &[round; 3000]))
        })
        .unwrap();
        let report = db.checkpoint().unwrap();
        assert_eq!(report.active_transactions, 1, "{report:?}");
        assert!(db.handle.engine.log.oldest().0 <= first);
    }
    db.finish_recovery(&mut |_| ControlFlow::Continue(())).unwrap();
    db.checkpoint().unwrap();
    assert!(db.handle.engine.log.oldest().0 > first);
}

#[test]
fn a_partition_that_is_lost_while_it_is_behind_is_repaired_to_what_was_committed() {
    for is_undone_before in [false, true] {
        let vault_disk = SimStorage::new(7);
        let vault = DirectoryTarget::within(Arc::new(vault_disk.clone()), "");
        let crashed = crashed_with(25, |db| {
            db.backup(
                &DirectoryTarget::within(Arc::new(vault_disk.clone()), ""),
                &BackupOptions::new(),
                &mut go_on,
            )
            .map(drop)
            .unwrap();
        });
        let db = crashed.open_with(options().self_repair(false));
        assert_eq!(db.stats().trailing_losers, 1);
        let id = id_of(&db, 1);
        if is_undone_before {
            db.handle.engine.catch_up_some().unwrap();
        }
        db.handle.engine.quarantine(hamal_pager::PartitionId(id), "a test says so");
        let get = |slot| db.snapshot().unwrap().open_bytes_table("t").unwrap().get(&key(slot, 1));
        let error = get(1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PartitionUnavailable, "{error}");
        assert_eq!(get(2).unwrap(), crashed.model.get(&key(2, 1)).cloned());
        assert_eq!(db.stats().trailing_losers, 0, "what is left is the repair's");
        // Restarts do not undo it either, and keep what that needs.
        db.close().unwrap();
        let db = crashed.open_with(options().self_repair(false));
        assert_eq!(states(&db)[1], PartitionState::Quarantined);
        let report = db.repair(id, Some(&vault), &RepairOptions::new(), &mut go_on).unwrap();
        assert_eq!(report.losers, 1, "{report:?}");
        crashed.assert_sound(&db);
    }
}

#[test]
fn a_repair_does_not_wait_for_an_undo_that_is_its_own() {
    let vault_disk = SimStorage::new(7);
    let target = || DirectoryTarget::within(Arc::new(vault_disk.clone()), "");
    let crashed = crashed_with(26, |db| {
        db.backup(&target(), &BackupOptions::new(), &mut go_on).map(drop).unwrap();
    });
    let db = crashed.open_with(options().self_repair(false));
    let id = id_of(&db, 2);
    db.handle.engine.quarantine(hamal_pager::PartitionId(id), "a test says so");
    let report = db.repair(id, Some(&target()), &RepairOptions::new(), &mut go_on).unwrap();
    assert_eq!(report.losers, 1, "{report:?}");
    crashed.assert_sound(&db);
}

#[test]
fn a_repair_and_the_undo_of_the_same_loser_elsewhere_do_not_disturb_each_other() {
    for (reports, seed) in (40..48).enumerate() {
        let vault_disk = SimStorage::new(seed);
        let target = || DirectoryTarget::within(Arc::new(vault_disk.clone()), "");
        let crashed = crashed_with(seed, |db| {
            db.backup(&target(), &BackupOptions::new(), &mut go_on).map(drop).unwrap();
        });
        let db = crashed.open_with(options().self_repair(false));
        let id = id_of(&db, 2);
        db.handle.engine.quarantine(hamal_pager::PartitionId(id), "a test says so");
        let (said, heard) = mpsc::channel();
        std::thread::scope(|scope| {
            let db = &db;
            let repair = scope.spawn(move || {
                db.repair(id, Some(&target()), &RepairOptions::new(), &mut |_| {
                    // Nobody listens any more once the undo has begun.
                    let _late = said.send(());
                    ControlFlow::Continue(())
                })
            });
            // So far into the repair.
            assert_eq!(heard.iter().take(reports).count(), reports, "the repair has ended");
            assert_eq!(states(db)[1], RECOVERING, "seed {seed}");
            while db.handle.engine.catch_up_some().unwrap() {}
            let report = repair.join().unwrap().unwrap();
            assert_eq!(report.losers, 1, "seed {seed}: {report:?}");
        });
        crashed.assert_sound(&db);
        db.close().unwrap();
        crashed.assert_sound(&crashed.open());
    }
}

#[test]
fn a_loser_that_has_changed_a_lost_partition_does_not_trail() {
    let crashed = crashed(27);
    let file = {
        let db = options().open_on(Arc::new(crashed.disk.crash_image(CrashMode::KeepAll, 1))).unwrap();
        db.partitions().unwrap()[2].file.clone()
    };
    let disk = crashed.disk.crash_image(CrashMode::KeepAll, 1);
    Storage::remove(&disk, &file).unwrap();
    let db = options().self_repair(false).open_on(Arc::new(disk)).unwrap();
    assert_eq!(states(&db), [ONLINE, PartitionState::Quarantined, ONLINE, ONLINE]);
    assert_eq!((db.recovery_report().losers, db.recovery_report().trailing_losers), (1, 0));
    let snapshot = db.snapshot().unwrap();
    let found = snapshot.open_bytes_table("t").unwrap().get(&key(2, 1)).unwrap();
    assert_eq!(found, crashed.model.get(&key(2, 1)).cloned());
}

#[test]
fn a_backup_does_not_ask_for_the_end_of_a_transaction_that_nobody_has() {
    let vault_disk = SimStorage::new(7);
    let target = || DirectoryTarget::within(Arc::new(vault_disk.clone()), "");
    let crashed = crashed_with(28, |db| {
        db.backup(&target(), &BackupOptions::new(), &mut go_on).map(drop).unwrap();
    });
    let db = crashed.open_with(options().self_repair(false));
    let id = id_of(&db, 2);
    db.handle.engine.quarantine(hamal_pager::PartitionId(id), "a test says so");
    let info = db.backup(&target(), &BackupOptions::new(), &mut go_on).unwrap();
    assert_eq!(info.quarantined.iter().map(|q| q.partition).collect::<Vec<_>>(), [id]);
    assert_eq!(db.stats().trailing_losers, 1, "the rest of it trails");
    db.repair(id, Some(&target()), &RepairOptions::new(), &mut go_on).unwrap();
    crashed.assert_sound(&db);
}

#[test]
fn of_a_chain_that_was_left_to_a_repair_nobody_knows_what_its_undo_takes() {
    let crashed = crashed(30);
    let db = crashed.open_with(options().self_repair(false));
    let id = hamal_pager::PartitionId(id_of(&db, 2));
    // Lost for a moment, and its case not settled by the checkpoint: another transaction has changed it.
    db.transact(|tx| tx.open_bytes_table("t")?.put(&key(2, 0), b"x")).unwrap();
    let tx = db.begin().unwrap();
    tx.open_bytes_table("t").unwrap().put(&key(2, 1), b"y").unwrap();
    let engine = &db.handle.engine;
    db.finish_recovery(&mut |_| ControlFlow::Continue(())).unwrap();
    engine.quarantine(id, "a test says so");
    tx.rollback().unwrap();
    let images = engine.quarantine.images();
    assert!(!images.is_empty() && images.iter().all(|image| image.undo_bytes == u64::MAX), "{images:?}");
}
