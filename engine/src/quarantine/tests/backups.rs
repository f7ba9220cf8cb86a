//! Backups of a database with a partition that is quarantined, and what is restored from them.

use hamal_storage::sim::CrashMode;

use super::*;
use crate::backup::{
    BackupInfo, Moment, QuarantinedPartition, RestoreOptions, RestorePoint, RestoreReport, backups,
    force_remove, remove, restore_on, verify,
};

impl World {
    fn back_up_since(&self, base: &str) -> BackupInfo {
        self.db().backup(&self.vault, &BackupOptions::new().since(base), &mut no_progress).unwrap()
    }

    /// Takes a backup, which has one partition as quarantined, and says so wherever it is asked.
    #[track_caller]
    fn back_up_without(&self, slot: usize, options: &BackupOptions) -> BackupInfo {
        let info = self.db().backup(&self.vault, options, &mut no_progress).unwrap();
        let known = self.db().partitions().unwrap().into_iter().find(|p| p.id == self.id(slot)).unwrap();
        let [quarantined] = &info.quarantined[..] else { panic!("{info:?}") };
        let QuarantinedPartition { partition, table, cause, since_micros, is_repairable: true } = quarantined
        else {
            panic!("{quarantined:?}")
        };
        assert_eq!((*partition, table.as_deref()), (known.id, Some("t")));
        assert_eq!((Some(cause), Some(*since_micros)), (known.cause.as_ref(), known.quarantined_micros));
        // The catalog is one, too.
        assert_eq!(info.partitions, PARTITIONS as u64);
        assert_eq!(backups(&self.vault).unwrap().iter().find(|listed| listed.id == info.id), Some(&info));
        let verified = verify(&self.vault, &info.id, &mut no_progress).unwrap();
        assert_eq!(verified.quarantined, info.quarantined);
        info
    }

    /// What is restored, with the rows that this world has now, and the same backups.
    #[track_caller]
    fn restored(&self, options: &RestoreOptions) -> (World, RestoreReport) {
        let disk = SimStorage::new(77);
        let report = restore_on(&self.vault, Arc::new(disk.clone()), options, &mut no_progress).unwrap();
        let mut world = self.on(disk, 5);
        world.open();
        (world, report)
    }

    fn is_online(&self) -> bool {
        self.db().partitions().unwrap().iter().all(|p| p.state == PartitionState::Online)
    }

    fn try_repair(&self, slot: usize, options: &RepairOptions) -> crate::Result<RepairReport> {
        let vault: &dyn crate::backup::Target = &self.vault;
        self.db().repair(self.id(slot), Some(vault), options, &mut no_progress)
    }

    fn archive(&self) {
        if self.archives {
            self.db().archive().unwrap();
        }
    }
}

/// A world with a backup, and changes since, one partition of which has been damaged while it was closed. Returns the backup.
fn damaged(seed: u64, damage: Damage) -> (World, String) {
    let mut world = World::new(seed, true);
    world.write(60, |_| true);
    world.settle_down();
    let full = world.back_up();
    world.write(40, |_| true);
    let file = world.file(SLOT);
    world.open_after_crash(seed);
    world.close();
    world.damage(&file, damage);
    world.open();
    if world.is_online() {
        let snapshot = world.db().snapshot().unwrap();
        let rows = snapshot.open_bytes_table("t").unwrap().iter().unwrap().collect::<Result<Model, _>>();
        assert_eq!(rows.map(drop).unwrap_err().kind(), ErrorKind::PartitionUnavailable);
    }
    (world, full)
}

#[test]
fn a_backup_goes_on_without_a_quarantined_partition_and_what_is_restored_can_be_repaired() {
    for (seed, damage) in DAMAGES.into_iter().enumerate() {
        println!("seed {seed}: {damage:?}");
        let (mut world, full) = damaged(seed as u64, damage);
        world.write(20, |slot| slot != SLOT);
        let info = world.back_up_without(SLOT, &BackupOptions::new());
        // Restored by itself, and with what the archive has behind it.
        let at_end = world.model.clone();
        world.write(20, |slot| slot != SLOT);
        world.archive();
        for (to, model) in
            [(RestorePoint::Lsn(info.end_lsn - 1), at_end), (RestorePoint::End, world.model.clone())]
        {
            let (mut again, report) = world.restored(&RestoreOptions::new().backup(&info.id).to(to));
            again.model = model;
            assert_eq!(report.quarantined, info.quarantined);
            let known =
                again.db().partitions().unwrap().into_iter().find(|p| p.id == again.id(SLOT)).unwrap();
            assert_eq!(known.cause.as_ref(), Some(&info.quarantined[0].cause));
            assert_eq!(known.quarantined_micros, Some(info.quarantined[0].since_micros));
            again.check_outage(SLOT);
            again.live_on(SLOT);
            let repaired = again.repair(SLOT);
            assert_eq!(repaired.base, RepairBase::Backup(full.clone()));
            again.check_for_good();
        }
        // The database itself is none the worse for it.
        world.check_outage(SLOT);
        assert_eq!(world.repair(SLOT).base, RepairBase::Backup(full));
        world.check_for_good();
    }
}

/// Leaves a transaction open that has changed the partition and another, across the partition's loss, and rolls it back then.
fn with_a_deferred_chain(seed: u64) -> (World, String) {
    let mut world = World::new(seed, true);
    world.write(60, |_| true);
    world.settle_down();
    let full = world.back_up();
    world.write(20, |_| true);
    let db = world.db().clone();
    let tx = db.begin().unwrap();
    for slot in [SLOT, SLOT + 1] {
        (0..5).for_each(|row| change(&tx, &key(slot, row), Some(&[seed as u8; 400])));
    }
    world.damage(&world.file(SLOT), Damage::Deleted);
    let early = world.db().backup(&world.vault, &BackupOptions::new(), &mut no_progress).unwrap_err();
    assert_eq!(early.kind(), ErrorKind::Conflict, "a transaction is open that has changed it: {early}");
    assert_eq!(backups(&world.vault).unwrap().len(), 1);
    tx.rollback().unwrap();
    (world, full)
}

#[test]
fn what_a_transaction_has_left_to_the_repair_is_undone_by_that_of_what_was_restored() {
    let (mut world, full) = with_a_deferred_chain(1);
    let info = world.back_up_without(SLOT, &BackupOptions::new());
    let (mut again, _) = world.restored(&RestoreOptions::new());
    again.check_outage(SLOT);
    // And that of what was restored from a backup of what was restored.
    let second = again.back_up_without(SLOT, &BackupOptions::new());
    let (mut third, _) = again.restored(&RestoreOptions::new().backup(&second.id));
    third.check_outage(SLOT);
    for mut restored in [again, third] {
        let report = restored.repair(SLOT);
        assert_eq!((report.losers, &report.base), (1, &RepairBase::Backup(full.clone())));
        assert!(report.undone > 0, "{report:?}");
        restored.check_for_good();
    }
    assert_eq!(world.repair(SLOT).losers, 1);
    world.write(10, |_| true);
    // A backup of another history, or without the partition, is refused by name.
    world.damage(&world.file(SLOT), Damage::Deleted);
    world.db().checkpoint().unwrap();
    for (id, why) in [(second.id, "restored"), (info.id, "quarantined")] {
        let refused = world.try_repair(SLOT, &RepairOptions::new().backup(id)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
        assert!(refused.to_string().contains(why), "{refused}");
    }
    assert_eq!(world.repair(SLOT).base, RepairBase::Backup(full));
    world.check_for_good();
}

#[test]
fn every_moment_behind_such_a_backup_is_restored_and_repaired_to_that_moment() {
    for seed in 1..=2 {
        let (mut world, full) = with_a_deferred_chain(seed);
        let info = world.back_up_without(SLOT, &BackupOptions::new());
        let mut moments: Vec<(Moment, Model)> = Vec::new();
        let remember = |world: &World, moments: &mut Vec<(Moment, Model)>| {
            moments.push((world.db().restore_point(), world.model.clone()));
        };
        world.write(5, |slot| slot != SLOT);
        remember(&world, &mut moments);
        // While it is repaired: its losers are undone one record after the other.
        let db = world.db().clone();
        let (id, vault): (_, &dyn crate::backup::Target) = (world.id(SLOT), &world.vault);
        let model = world.model.clone();
        let report = db.repair(id, Some(vault), &RepairOptions::new(), &mut |_| {
            moments.push((db.restore_point(), model.clone()));
            ControlFlow::Continue(())
        });
        assert_eq!(report.unwrap().losers, 1);
        // And when it is in use again: with a transaction open, commits, a rollback, and a second outage.
        remember(&world, &mut moments);
        world.write(6, |_| true);
        remember(&world, &mut moments);
        let tx = db.begin().unwrap();
        (200..204).for_each(|row| change(&tx, &key(SLOT, row), Some(&[9; 300])));
        world.write(3, |_| true);
        remember(&world, &mut moments);
        tx.rollback().unwrap();
        world.write(2, |_| true);
        remember(&world, &mut moments);
        let tx = db.begin().unwrap();
        (210..214).for_each(|row| change(&tx, &key(SLOT, row), Some(&[8; 300])));
        world.damage(&world.file(SLOT), Damage::Deleted);
        world.db().checkpoint().unwrap();
        remember(&world, &mut moments);
        tx.rollback().unwrap();
        drop(db);
        world.check_outage(SLOT);
        remember(&world, &mut moments);
        world.repair(SLOT);
        world.write(3, |_| true);
        remember(&world, &mut moments);
        world.archive();
        moments.dedup_by_key(|(moment, _)| moment.lsn);
        println!("seed {seed}: {} moments", moments.len());
        assert!(moments.len() > 12, "{}", moments.len());
        for (moment, model) in &moments {
            let to = RestorePoint::Lsn(moment.lsn);
            // From the backup without it: it is quarantined, whatever has become of it since.
            let (mut again, report) = world.restored(&RestoreOptions::new().backup(&info.id).to(to));
            assert_eq!(report.quarantined, info.quarantined);
            again.model = model.clone();
            again.check_outage(SLOT);
            let repaired = again.repair(SLOT);
            assert_eq!(repaired.base, RepairBase::Backup(full.clone()), "{moment:?}");
            again.check();
            // From the one before: it is as whole as all else.
            let (mut again, report) = world.restored(&RestoreOptions::new().whole().to(to));
            assert_eq!((report.backup, report.quarantined), (full.clone(), Vec::new()));
            again.model = model.clone();
            again.check();
        }
        world.check_for_good();
    }
}

#[test]
fn an_incremental_backup_behind_a_repair_has_all_of_the_partition() {
    let (mut world, full) = damaged(3, Damage::Noise);
    let mut known: Vec<(BackupInfo, Model)> = Vec::new();
    world.write(10, |slot| slot != SLOT);
    let without = world.back_up_without(SLOT, &BackupOptions::new().since(&full));
    known.push((without.clone(), world.model.clone()));
    world.write(10, |slot| slot != SLOT);
    let still = world.back_up_without(SLOT, &BackupOptions::new().since(&without.id));
    known.push((still.clone(), world.model.clone()));
    assert_eq!(world.repair(SLOT).base, RepairBase::Backup(full.clone()));
    world.write(10, |_| true);
    let whole = world.back_up_since(&still.id);
    known.push((whole.clone(), world.model.clone()));
    world.write(10, |_| true);
    let next = world.back_up_since(&whole.id);
    known.push((next.clone(), world.model.clone()));
    let id = hamal_pager::PartitionId(world.id(SLOT));
    let pages = |backup: &str| {
        let manifest = crate::backup::manifest::must_read(&world.vault, backup).unwrap();
        (manifest.entry(id).map(|entry| entry.pages), manifest.partitions.len())
    };
    assert_eq!(pages(&still.id).0, None);
    let (all, few) = (pages(&whole.id).0.unwrap(), pages(&next.id).0.unwrap());
    assert!(all >= pages(&full).0.unwrap() && few < all, "{few} of {all} pages");
    let others = whole.pages - u64::from(all);
    assert!(
        others < 7 * u64::from(all) / 2,
        "{others} pages of the others have changed, {all} are the partition's"
    );
    world.archive();
    for (info, model) in &known {
        let verified = verify(&world.vault, &info.id, &mut no_progress).unwrap();
        assert_eq!(verified.quarantined, info.quarantined);
        let to = RestorePoint::Lsn(info.end_lsn - 1);
        let (mut again, report) = world.restored(&RestoreOptions::new().backup(&info.id).to(to));
        again.model = model.clone();
        assert_eq!(report.quarantined, info.quarantined);
        if !info.quarantined.is_empty() {
            again.check_outage(SLOT);
            assert_eq!(again.repair(SLOT).base, RepairBase::Backup(full.clone()));
        }
        again.check_for_good();
    }
    // A second outage: it is built from whichever has it, never from one that has it not, nor across one.
    world.write(10, |_| true);
    world.damage(&world.file(SLOT), Damage::CutToNothing);
    world.db().checkpoint().unwrap();
    world.check_outage(SLOT);
    let refused = world.try_repair(SLOT, &RepairOptions::new().backup(&still.id)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    let report = world.repair(SLOT);
    assert_eq!((report.base, report.pages), (RepairBase::Backup(next.id.clone()), u64::from(all + few)));
    world.check();
    for gone in [&next.id, &whole.id] {
        remove(&world.vault, gone).unwrap();
    }
    world.write(5, |_| true);
    world.damage(&world.file(SLOT), Damage::CutToNothing);
    world.db().checkpoint().unwrap();
    assert_eq!(world.repair(SLOT).base, RepairBase::Backup(full));
    world.check_for_good();
}

#[test]
fn the_last_backup_with_a_quarantined_partitions_pages_goes_only_once_a_newer_one_has_them() {
    let (mut world, full) = damaged(3, Damage::Noise);
    world.write(10, |slot| slot != SLOT);
    let without = world.back_up_without(SLOT, &BackupOptions::new());
    let refused = remove(&world.vault, &full).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    let what = format!("partition {}, which is quarantined in {}", world.id(SLOT), without.id);
    assert!(refused.to_string().contains(&what), "{refused}");
    // It is still all there.
    assert_eq!(world.repair(SLOT).base, RepairBase::Backup(full.clone()));
    assert_eq!(remove(&world.vault, &full).unwrap_err().kind(), ErrorKind::InvalidArgument);
    world.write(10, |_| true);
    let whole = world.db().backup(&world.vault, &BackupOptions::new(), &mut no_progress).unwrap();
    remove(&world.vault, &full).unwrap();
    remove(&world.vault, &whole.id).unwrap();
    remove(&world.vault, &without.id).unwrap();
}

#[test]
fn a_backup_that_has_lost_its_base_replaces_none() {
    let (mut world, full) = damaged(3, Damage::Noise);
    let without = world.back_up_without(SLOT, &BackupOptions::new());
    world.repair(SLOT);
    world.write(10, |_| true);
    let base = world.back_up();
    let newer = world.back_up_since(&base);
    force_remove(&world.vault, &base).unwrap();
    let refused = remove(&world.vault, &full).unwrap_err();
    let what = format!("partition {}, which is quarantined in {}", world.id(SLOT), without.id);
    assert!(refused.to_string().contains(&what), "{refused}");
    remove(&world.vault, &newer.id).unwrap();
    let whole = world.back_up();
    world.back_up_since(&whole);
    remove(&world.vault, &full).unwrap();
}

#[test]
fn a_partition_made_behind_the_last_backup_needs_it_all_the_same() {
    let mut world = World::new(5, true);
    world.write(20, |_| true);
    let full = world.back_up();
    let db = world.db().clone();
    db.transact(|tx| tx.open_bytes_table("u")?.put(b"k", b"v")).unwrap();
    let made = db.partitions().unwrap().into_iter().find(|p| p.table.as_deref() == Some("u")).unwrap().id;
    world.settle_down();
    world.damage(&format!("part/{made}.dat"), Damage::Deleted);
    world.settle_down();
    let without = db.backup(&world.vault, &BackupOptions::new(), &mut no_progress).unwrap();
    assert_eq!(without.quarantined.iter().map(|q| q.partition).collect::<Vec<_>>(), [made]);
    let refused = remove(&world.vault, &full).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    assert!(refused.to_string().contains(&format!("partition {made}, ")), "{refused}");
    // Once its table is gone, and that is backed up, nobody needs it.
    db.transact(|tx| tx.drop_table("u")).unwrap();
    while db.maintain().unwrap() {}
    assert_eq!(remove(&world.vault, &full).unwrap_err().kind(), ErrorKind::InvalidArgument);
    world.back_up();
    remove(&world.vault, &full).unwrap();
}

#[test]
fn what_was_restored_needs_the_backups_of_before_that_and_no_others() {
    let (mut world, full) = damaged(3, Damage::Noise);
    let without = world.back_up_without(SLOT, &BackupOptions::new());
    let (again, _) = world.restored(&RestoreOptions::new().backup(&without.id));
    // It is repaired and backed up here, and not there.
    assert_eq!(world.repair(SLOT).base, RepairBase::Backup(full.clone()));
    world.write(10, |_| true);
    world.back_up();
    let there = again.back_up_without(SLOT, &BackupOptions::new());
    let refused = remove(&world.vault, &full).unwrap_err();
    assert!(refused.to_string().contains(&format!("is quarantined in {}", there.id)), "{refused}");
    remove(&world.vault, &there.id).unwrap();
    remove(&world.vault, &full).unwrap();
}

#[test]
fn what_was_lost_of_a_quarantine_is_lost_in_its_backup_too_and_that_is_said() {
    for what in ["state", "log", "record"] {
        let (mut world, _) = damaged(8, Damage::Noise);
        world.check_outage(SLOT);
        let id = world.id(SLOT);
        world.close();
        let log = world.kept_log();
        match what {
            "state" => world.disk.flip_bit(&format!("quarantine/{id}"), 300).unwrap(),
            "log" => (&world.disk as &dyn Storage).remove(&log).unwrap(),
            _ => world.disk.flip_bit(&log, 8 * 200).unwrap(),
        }
        world.open();
        let info = world.db().backup(&world.vault, &BackupOptions::new(), &mut no_progress).unwrap();
        let [quarantined] = &info.quarantined[..] else { panic!("{info:?}") };
        assert_eq!((quarantined.partition, quarantined.is_repairable), (id, false), "{what}");
        assert_eq!(verify(&world.vault, &info.id, &mut no_progress).unwrap().quarantined, info.quarantined);
        world.write(5, |slot| slot != SLOT);
        world.archive();
        let (mut again, report) = world.restored(&RestoreOptions::new());
        assert_eq!(report.quarantined, info.quarantined);
        for _ in 0..2 {
            let refused = again.try_repair(SLOT, &RepairOptions::new()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Corrupt, "{what}: {refused}");
            let second = again.db().backup(&again.vault, &BackupOptions::new(), &mut no_progress).unwrap();
            assert_eq!(second.quarantined, info.quarantined, "{what}");
            again.db().checkpoint().unwrap();
            again.close();
            again.open();
        }
        again.db().transact(|tx| tx.drop_table("t")).unwrap();
        while again.db().maintain().unwrap() {}
        let left = again.disk.files();
        assert!(left.iter().all(|name| !name.starts_with("quarantine/")), "{left:?}");
        // An older backup has all of it, up to this moment too.
        let (again, report) = world.restored(&RestoreOptions::new().whole());
        assert_eq!(report.quarantined, []);
        again.check();
    }
}

#[test]
fn a_table_dropped_behind_such_a_backup_is_dropped_in_what_is_restored() {
    let (world, _) = damaged(2, Damage::Deleted);
    world.back_up_without(SLOT, &BackupOptions::new());
    world.db().transact(|tx| tx.drop_table("t")).unwrap();
    while world.db().maintain().unwrap() {}
    world.archive();
    let (again, _) = world.restored(&RestoreOptions::new());
    assert!(!again.db().snapshot().unwrap().has_table("t").unwrap());
    let left = again.disk.files();
    assert!(left.iter().all(|name| !name.starts_with("quarantine/")), "{left:?}");
    let info = again.db().backup(&again.vault, &BackupOptions::new(), &mut no_progress).unwrap();
    assert_eq!(info.quarantined, []);
}

#[test]
fn a_partition_that_goes_or_comes_back_while_a_backup_is_taken_is_told_of() {
    let (mut world, _) = with_a_deferred_chain(4);
    world.write(5, |slot| slot != SLOT);
    // Lifted, its losers being undone: neither in use nor as it was kept.
    let db = world.db().clone();
    let (id, vault): (_, &dyn crate::backup::Target) = (world.id(SLOT), &world.vault);
    let (mut conflicts, mut taken) = (0, 0);
    let repair = |taken: &mut u64, conflicts: &mut u64| {
        db.repair(id, Some(vault), &RepairOptions::new(), &mut |_| {
            match db.backup(vault, &BackupOptions::new(), &mut no_progress) {
                Ok(info) => {
                    *taken += 1;
                    assert_eq!(info.quarantined.len(), 1, "{info:?}");
                }
                Err(e) => {
                    *conflicts += 1;
                    assert!(
                        e.kind() == ErrorKind::Conflict && e.to_string().contains("being repaired"),
                        "{e}"
                    );
                }
            }
            ControlFlow::Continue(())
        })
    };
    assert_eq!(repair(&mut taken, &mut conflicts).unwrap().losers, 1);
    assert!(taken > 0 && conflicts > 0, "{taken} taken, {conflicts} refused");
    world.check();
    world.damage(&world.file(SLOT), Damage::Deleted);
    let info = world.back_up_without(SLOT, &BackupOptions::new());
    // Repaired while its backup is under way: it was quarantined when that began, and is in what is restored from it.
    let mut is_repaired = false;
    let again = db.backup(vault, &BackupOptions::new().since(&info.id), &mut |_| {
        if !std::mem::replace(&mut is_repaired, true) {
            db.repair(id, Some(vault), &RepairOptions::new(), &mut no_progress).unwrap();
            let tx = db.begin().unwrap();
            change(&tx, &key(SLOT, 7), Some(b"since"));
            tx.commit().unwrap();
        }
        ControlFlow::Continue(())
    });
    let again = again.unwrap();
    assert_eq!(again.quarantined, info.quarantined);
    drop(db);
    world.model.insert(key(SLOT, 7), b"since".to_vec());
    world.check();
    let (mut restored, _) = world.restored(&RestoreOptions::new().backup(&again.id));
    restored.check_outage(SLOT);
    restored.repair(SLOT);
    restored.check_for_good();
    let next = world.back_up_since(&again.id);
    assert_eq!(next.quarantined, []);
    let (mut restored, _) = world.restored(&RestoreOptions::new().backup(&next.id));
    restored.check_for_good();
}

#[test]
fn a_partition_lost_at_any_moment_of_a_backup_is_in_it_whole_or_quarantined() {
    let (mut without, mut whole, mut at) = (0, 0, 0);
    loop {
        let mut world = World::new(20 + at, true);
        world.write(40, |_| true);
        world.settle_down();
        let full = world.back_up();
        world.write(30, |_| true);
        let (db, file) = (world.db().clone(), world.file(SLOT));
        let mut calls = 0;
        let mut tx = None;
        let info = db.backup(&world.vault, &BackupOptions::new().since(&full), &mut |_| {
            if calls == at {
                // With changes that are in memory alone, and some that are to be undone.
                let begun = db.begin().unwrap();
                (0..4).for_each(|row| change(&begun, &key(SLOT, 300 + row), Some(&[3; 300])));
                change(&begun, &key(SLOT + 1, 300), Some(b"no"));
                world.damage(&file, Damage::Deleted);
                db.checkpoint().unwrap();
                if at % 2 == 0 {
                    begun.rollback().unwrap();
                } else {
                    tx = Some(begun);
                }
            }
            calls += 1;
            ControlFlow::Continue(())
        });
        let is_done = calls <= at;
        let info = match info {
            Ok(info) => info,
            Err(e) => {
                assert!(tx.is_some() && e.kind() == ErrorKind::Conflict, "call {at}: {e}");
                tx.take().unwrap().rollback().unwrap();
                world.back_up_without(SLOT, &BackupOptions::new().since(&full))
            }
        };
        if let Some(tx) = tx {
            tx.rollback().unwrap();
        }
        drop(db);
        assert_eq!(verify(&world.vault, &info.id, &mut no_progress).unwrap().quarantined, info.quarantined);
        let (mut again, _) = world.restored(&RestoreOptions::new().backup(&info.id));
        if info.quarantined.is_empty() {
            whole += 1;
        } else {
            without += 1;
            again.check_outage(SLOT);
            assert_eq!(again.repair(SLOT).base, RepairBase::Backup(full), "call {at}");
        }
        again.check();
        if is_done {
            break;
        }
        at += 1;
        assert!(at < 500, "it never comes to its end");
    }
    println!("lost at {at} moments: {without} times quarantined, {whole} times whole");
    assert!(without > 4 && whole > 4, "{without}, {whole}");
}

#[test]
fn a_page_is_never_healed_from_across_a_backup_without_its_partition() {
    let (mut world, full) = damaged(13, Damage::Deleted);
    let alone = world.back_up_without(SLOT, &BackupOptions::new());
    let without = world.back_up_without(SLOT, &BackupOptions::new().since(&full));
    world.repair(SLOT);
    world.write(30, |_| true);
    world.settle_down();
    let whole = world.back_up_since(&without.id);
    world.write(5, |_| true);
    for _ in 0..2 {
        world.settle_down();
    }
    let file = world.file(SLOT);
    world.close();
    // With the archive, or from backups alone: then none but the newest reaches to the log that is left.
    for (removed, heals) in [(vec![], true), (vec![&whole.id], true), (vec![&full, &without.id], false)] {
        for id in &removed {
            force_remove(&world.vault, id).unwrap();
        }
        let disk = world.disk.crash_image(CrashMode::Kill, 1);
        let pages = (&disk as &dyn Storage).open(&file).unwrap().len().unwrap() / 4096;
        // All of its leaves but the bitmap and the header.
        (2..pages).for_each(|page| disk.flip_bit(&file, (page * 4096 + 77) * 8).unwrap());
        let mut hurt = world.on(disk, 3);
        let options = options().self_repair(true).archive(Arc::new(hurt.vault.clone()));
        hurt.db = Some(options.open_on(Arc::new(hurt.disk.clone())).unwrap());
        if heals {
            hurt.check();
            assert!(hurt.db().stats().pages_healed > 2, "{removed:?}");
        } else {
            // Only one without it is left.
            assert_eq!(backups(&world.vault).unwrap()[0], alone);
            let snapshot = hurt.db().snapshot().unwrap();
            let rows = snapshot.open_bytes_table("t").unwrap().iter().unwrap().collect::<Result<Model, _>>();
            let error = rows.map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PartitionUnavailable);
            assert!(error.to_string().contains("was quarantined when it was taken"), "{error}");
        }
    }
}

#[test]
fn rows_of_a_range_come_back_from_the_newest_backup_that_has_their_partition() {
    let (mut world, full) = damaged(14, Damage::Noise);
    world.write(10, |slot| slot != SLOT);
    let without = world.back_up_without(SLOT, &BackupOptions::new());
    world.repair(SLOT);
    world.write(10, |_| true);
    let (moment, then) = (world.db().restore_point(), world.model.clone());
    world.write(30, |_| true);
    let options = crate::RangeRestoreOptions::to(RestorePoint::Lsn(moment.lsn));
    for (slot, from) in [(SLOT, &full), (SLOT + 1, &without.id)] {
        let range = crate::KeyRange::PartitionOf(key(slot, 0));
        let restore = |options: &crate::RangeRestoreOptions| {
            world.db().restore_range("t", &range, &world.vault, options, &mut no_progress)
        };
        if slot == SLOT {
            let refused = restore(&options.clone().backup(&without.id)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
        }
        let report = restore(&options).unwrap();
        assert_eq!(&report.source.backup, from, "partition {slot}");
        let bounds = key(slot, 0)..key(slot + 1, 0);
        world.model.retain(|key, _| !bounds.contains(key));
        world.model.extend(then.range(bounds).map(|(key, value)| (key.clone(), value.clone())));
        world.check();
    }
    let left: Vec<_> = world.disk.files().into_iter().filter(|name| name.starts_with("scratch/")).collect();
    assert!(left.is_empty(), "{left:?}");
    force_remove(&world.vault, &full).unwrap();
    let range = crate::KeyRange::PartitionOf(key(SLOT, 0));
    let refused = world.db().restore_range("t", &range, &world.vault, &options, &mut no_progress);
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    assert!(refused.to_string().contains("was quarantined when it was taken"), "{refused}");
    let disk = SimStorage::new(3);
    let whole = RestoreOptions::new().whole();
    let refused = restore_on(&world.vault, Arc::new(disk), &whole, &mut no_progress).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
}

#[test]
fn a_changed_or_missing_object_of_a_quarantined_partition_is_found_and_named() {
    let (world, _) = damaged(5, Damage::Noise);
    let info = world.back_up_without(SLOT, &BackupOptions::new());
    let name = format!("backup/{}/quarantine-{}", info.id, world.id(SLOT));
    let vault_disk = &world.vault_disk;
    let len = vault_disk.read_file(&name).unwrap().len() as u64;
    let (mut rng, mut places) = (Rng::new(11), (0..80).collect::<Vec<u64>>());
    places.extend((0..60).map(|_| rng.below(len)));
    let check = |what: &str| {
        let error = verify(&world.vault, &info.id, &mut no_progress).expect_err(what);
        assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains(&name), "{what}: {error}");
        let disk = SimStorage::new(6);
        let options = RestoreOptions::new().backup(&info.id);
        let refused = restore_on(&world.vault, Arc::new(disk.clone()), &options, &mut no_progress);
        assert_eq!(refused.expect_err(what).kind(), ErrorKind::Corrupt, "{what}");
        assert!(world.options().open_on(Arc::new(disk)).is_err(), "{what}");
    };
    for at in places {
        let bit = at * 8 + rng.below(8);
        vault_disk.flip_bit(&name, bit).unwrap();
        check(&format!("bit {bit}"));
        vault_disk.flip_bit(&name, bit).unwrap();
    }
    verify(&world.vault, &info.id, &mut no_progress).unwrap();
    let storage: &dyn Storage = vault_disk;
    storage.open(&name).unwrap().set_len(len - 1).unwrap();
    check("cut by a byte");
    storage.remove(&name).unwrap();
    check("missing");
}

#[test]
fn a_crash_at_any_io_of_such_a_backup_leaves_the_database_and_whole_backups() {
    let mut world = with_a_deferred_chain(6).0;
    world.close();
    world.archives = false;
    let on_image = |seed| {
        let disk = world.disk.crash_image(CrashMode::Kill, seed);
        let vault = DirectoryTarget::within(Arc::new(disk.clone()), "vault");
        let db = options().open_on(Arc::new(disk.clone())).unwrap();
        (disk, vault, db)
    };
    let (mut at, mut whole) = (1, 0);
    loop {
        let (disk, vault, db) = on_image(1);
        disk.crash_at(disk.io_count() + at);
        let taken = db.backup(&vault, &BackupOptions::new(), &mut no_progress);
        drop(db);
        let mut next = world.on(disk.crash(CrashMode::Any, at), at);
        next.open();
        let inside = DirectoryTarget::within(Arc::new(next.disk.clone()), "vault");
        let there = backups(&inside).unwrap();
        assert!(there.len() <= 1 && (taken.is_err() || there.len() == 1), "I/O {at}: {there:?}");
        for info in &there {
            let verified = verify(&inside, &info.id, &mut no_progress).unwrap();
            assert_eq!(verified.quarantined.len(), 1, "I/O {at}");
            let disk = SimStorage::new(9);
            restore_on(&inside, Arc::new(disk.clone()), &RestoreOptions::new(), &mut no_progress).unwrap();
            let mut again = next.on(disk, 1);
            again.open();
            again.check_outage(SLOT);
            assert_eq!(again.repair(SLOT).losers, 1, "I/O {at}");
            again.check();
            whole += 1;
        }
        if at % 9 == 0 {
            next.check_outage(SLOT);
            assert_eq!(next.repair(SLOT).losers, 1);
            next.check();
        }
        if taken.is_ok() {
            break;
        }
        at += 1;
        assert!(at < 5000, "it never comes to its end");
    }
    println!("{at} I/Os, {whole} whole backups");
    assert!(at > 60 && whole >= 1, "{at}, {whole}");
}

#[test]
fn a_crash_at_any_io_of_a_restore_with_a_quarantine_leaves_no_database_or_all_of_it() {
    let (mut world, full) = with_a_deferred_chain(7);
    world.back_up_without(SLOT, &BackupOptions::new());
    // So that there is more of the partition than was kept.
    world.repair(SLOT);
    world.write(4, |_| true);
    world.archive();
    let newest = backups(&world.vault).unwrap().pop().unwrap();
    assert_eq!(newest.quarantined.len(), 1);
    let restore = |disk: &SimStorage| {
        restore_on(&world.vault, Arc::new(disk.clone()), &RestoreOptions::new(), &mut no_progress)
    };
    let (mut at, mut opened) = (1, 0);
    loop {
        let disk = SimStorage::new(2);
        disk.crash_at(at);
        let done = restore(&disk);
        let disk = disk.crash(CrashMode::Any, at);
        let is_marked = disk.files().iter().any(|name| name == "RESTORING");
        let mode = if is_marked { crate::OpenMode::OpenOrCreate } else { crate::OpenMode::Open };
        match options().mode(mode).open_on(Arc::new(disk.clone())) {
            Ok(db) => {
                assert!(!is_marked, "I/O {at}");
                drop(db);
                opened += 1;
            }
            Err(error) => {
                assert!(done.is_err(), "I/O {at}: {error}");
                assert_eq!(error.kind(), ErrorKind::NotADatabase, "I/O {at}: {error}");
                // And again, interrupted once more.
                disk.crash_at(disk.io_count() + 1 + at / 2);
                let _cut = restore(&disk);
                let disk = disk.crash(CrashMode::Any, at + 1000);
                if options().mode(crate::OpenMode::Open).open_on(Arc::new(disk.clone())).is_err() {
                    restore(&disk).unwrap_or_else(|e| panic!("I/O {at}: {e}"));
                }
                check_restored(&world, disk, &full, at);
                at += 1;
                continue;
            }
        }
        check_restored(&world, disk, &full, at);
        if done.is_ok() {
            break;
        }
        at += 1;
        assert!(at < 5000, "it never comes to its end");
    }
    println!("{at} I/Os, {opened} opened");
    assert!(at > 80 && opened < 10, "{at} I/Os, {opened} opened");
}

#[track_caller]
fn check_restored(world: &World, disk: SimStorage, full: &str, at: u64) {
    let mut again = world.on(disk, at);
    again.archives = false;
    again.open();
    if at.is_multiple_of(4) {
        again.check_outage(SLOT);
        assert_eq!(again.repair(SLOT).base, RepairBase::Backup(full.to_owned()), "I/O {at}");
        again.check();
    } else {
        assert!(!again.is_online(), "I/O {at}");
    }
}

#[test]
fn a_partition_lost_again_in_the_midst_of_its_repair_is_still_repaired_from_before_the_restore() {
    let (world, full) = with_a_deferred_chain(8);
    world.back_up_without(SLOT, &BackupOptions::new());
    let (mut restored, _) = world.restored(&RestoreOptions::new());
    restored.archives = false;
    restored.open();
    let id = restored.id(SLOT);
    let file = restored.file(SLOT);
    restored.close();
    let (mut at, mut lifted) = (1, 0);
    loop {
        let disk = restored.disk.crash_image(CrashMode::Kill, 1);
        let db = restored.options().open_on(Arc::new(disk.clone())).unwrap();
        disk.crash_at(disk.io_count() + at);
        let vault: &dyn crate::backup::Target = &restored.vault;
        let done = db.repair(id, Some(vault), &RepairOptions::new(), &mut no_progress);
        drop(db);
        let mut next = restored.on(disk.crash(CrashMode::Any, at), at);
        let state = next.disk.read_file(&format!("quarantine/{id}"));
        // The stage, in the state file: docs/file-format.md section 11.
        let is_lifted = state.is_ok_and(|bytes| bytes[32] == 2);
        if is_lifted {
            lifted += 1;
            next.damage(&file, Damage::Noise);
            next.open();
            next.check_outage(SLOT);
            assert_eq!(next.repair(SLOT).base, RepairBase::Backup(full.clone()), "I/O {at}");
            next.check();
        }
        if done.is_ok() {
            break;
        }
        at += 1;
        assert!(at < 5000, "it never comes to its end");
    }
    println!("{at} I/Os, {lifted} with its losers being undone");
    assert!(lifted > 2, "{lifted} of {at}");
}
