//! Transactions that did not commit, with changes in healthy partitions and in a quarantined one.

use super::*;

/// Leaves a transaction with changes in three partitions unfinished, durably, and the machine stopped.
fn leave_losers(world: &mut World, count: u64) {
    let db = world.db().clone();
    let mut open = Vec::new();
    for number in 0..count {
        let tx = db.begin().unwrap();
        for slot in [SLOT - 1, SLOT, SLOT + 2] {
            // Rows of its own, new and old, long and short.
            for row in 0..6 {
                let key = key(slot, number * 20 + row);
                let value = value(&mut world.rng);
                change(&tx, &key, (row % 3 != 2).then_some(&value[..]));
            }
        }
        open.push(tx);
    }
    world.write_elsewhere(count * 20);
    world.db().flush().unwrap();
    world.db = None;
    let crashed = world.disk.crash(hamal_storage::sim::CrashMode::Any, count);
    drop((open, db));
    world.disk = crashed;
}

impl World {
    /// Commits something that no loser has locked.
    fn write_elsewhere(&mut self, from: u64) {
        let tx = self.db().begin().unwrap();
        for slot in 0..PARTITIONS {
            change(&tx, &key(slot, 1000 + from), Some(b"committed"));
        }
        tx.commit().unwrap();
        for slot in 0..PARTITIONS {
            self.model.insert(key(slot, 1000 + from), b"committed".to_vec());
        }
    }
}

#[test]
fn losers_in_healthy_and_quarantined_partitions_are_consistent_through_ten_restarts_and_a_repair() {
    for (seed, damage) in DAMAGES.into_iter().enumerate() {
        println!("seed {seed}: {damage:?}");
        let mut world = World::new(seed as u64, true);
        world.write(150, |_| true);
        world.settle_down();
        let file = world.file(SLOT);
        let losers = if seed % 2 == 0 {
            world.back_up();
            leave_losers(&mut world, 3);
            3
        } else {
            // Its pages have been written with their changes, and the backup has these too.
            let db = world.db().clone();
            let tx = db.begin().unwrap();
            for slot in [SLOT, SLOT + 1] {
                (0..30).for_each(|row| change(&tx, &key(slot, 2000 + row), Some(&[7; 500])));
            }
            world.db().checkpoint().unwrap();
            world.back_up();
            world.write_elsewhere(2000);
            world.db().flush().unwrap();
            world.db = None;
            let crashed = world.disk.crash(hamal_storage::sim::CrashMode::Any, 8);
            drop((tx, db));
            world.disk = crashed;
            1
        };
        world.damage(&file, damage);
        world.open();
        if world.db().partitions().unwrap().iter().all(|p| p.state == PartitionState::Online) {
            // What is left of it was enough for recovery, but not for a reader.
            let snapshot = world.db().snapshot().unwrap();
            let rows = snapshot.open_bytes_table("t").unwrap().iter().unwrap().collect::<Result<Model, _>>();
            assert_eq!(rows.map(drop).unwrap_err().kind(), ErrorKind::PartitionUnavailable);
        }
        for restart in 0..10 {
            world.check_outage(SLOT);
            world.write(10, |slot| slot != SLOT);
            match restart % 4 {
                0 => drop(world.db().checkpoint().unwrap()),
                1 => world.close(),
                2 => {
                    world.db().checkpoint().unwrap();
                    world.open_after_crash(restart);
                }
                _ => world.open_after_crash(restart),
            }
            world.open();
            let report = world.db().recovery_report();
            assert_eq!(report.losers, 0, "restart {restart}: they wait for the repair, and for nothing else");
        }
        world.check_outage(SLOT);
        let report = world.repair(SLOT);
        assert!(report.losers <= losers, "{report:?}");
        world.check_for_good();
    }
}

#[test]
fn a_rollback_at_run_time_leaves_its_chain_to_the_repair() {
    for seed in 0..4 {
        let mut world = World::new(seed, true);
        world.write(150, |_| true);
        world.settle_down();
        world.back_up();
        let db = world.db().clone();
        let tx = db.begin().unwrap();
        for slot in [SLOT - 1, SLOT] {
            (0..10).for_each(|row| change(&tx, &key(slot, row), Some(&[seed as u8; 700])));
        }
        let savepoint = tx.savepoint().unwrap();
        (10..20).for_each(|row| change(&tx, &key(SLOT, row), None));
        if seed % 2 == 0 {
            // With the changes in the file.
            world.db().checkpoint().unwrap();
        }
        world.damage(&world.file(SLOT), Damage::Deleted);
        world.db().checkpoint().unwrap();
        if seed < 2 {
            let error = tx.rollback_to(savepoint).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PartitionUnavailable);
            let error = tx.commit().unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::TransactionEnded,
                "half rolled back it cannot commit: {error}"
            );
        } else {
            tx.rollback().unwrap();
        }
        drop(db);
        world.check_outage(SLOT);
        world.live_on(SLOT);
        let report = world.repair(SLOT);
        assert_eq!((report.losers, report.undone > 0), (1, true), "{report:?}");
        world.check_for_good();
    }
}

#[test]
fn a_table_made_by_a_loser_goes_though_its_partition_is_damaged() {
    let mut world = World::new(2, true);
    world.write(20, |_| true);
    let db = world.db().clone();
    let tx = db.begin().unwrap();
    tx.create_bytes_table("new", &[b"m"]).unwrap().put(b"k", b"v").unwrap();
    change(&tx, &key(0, 5), Some(b"no"));
    world.db().checkpoint().unwrap();
    world.db = None;
    let crashed = world.disk.crash(hamal_storage::sim::CrashMode::Kill, 8);
    drop((tx, db));
    world.disk = crashed;
    let files = world.disk.files();
    let newest =
        files.iter().filter_map(|f| f.strip_prefix("part/")?.strip_suffix(".dat")?.parse::<u32>().ok());
    let newest = newest.max().unwrap();
    world.damage(&format!("part/{newest}.dat"), Damage::Noise);
    world.damage(&format!("part/{}.dat", newest - 1), Damage::Deleted);
    world.open();
    assert!(!world.db().snapshot().unwrap().has_table("new").unwrap());
    assert!(world.disk.files().iter().all(|file| *file != format!("part/{newest}.dat")));
    world.check_for_good();
}

#[test]
fn a_chain_of_two_quarantined_partitions_is_undone_in_each() {
    let mut world = World::new(1, true);
    world.write(120, |_| true);
    world.settle_down();
    world.back_up();
    leave_losers(&mut world, 2);
    world.open();
    world.close();
    world.open();
    let (one, other) = (world.file(SLOT), world.file(SLOT + 2));
    leave_losers(&mut world, 4);
    world.damage(&one, Damage::Noise);
    world.damage(&other, Damage::Deleted);
    world.open();
    for restart in 0..3 {
        world.write(5, |slot| slot != SLOT && slot != SLOT + 2);
        world.db().checkpoint().unwrap();
        world.open_after_crash(restart);
    }
    let report = world.repair(SLOT + 2);
    assert_eq!(report.losers, 4, "{report:?}");
    world.check_outage(SLOT);
    world.open_after_crash(9);
    world.check_outage(SLOT);
    assert_eq!(world.repair(SLOT).losers, 4);
    world.check_for_good();
}
