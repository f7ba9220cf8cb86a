//! Crashes at every I/O of a quarantine and of a repair.

use hamal_storage::sim::CrashMode;

use super::*;

/// A world at rest with one loser in the damaged partition and in another, stopped.
fn stopped(seed: u64, damage: Damage) -> World {
    let mut world = World::new(seed, true);
    world.write(15, |_| true);
    world.settle_down();
    world.back_up();
    world.write(5, |_| true);
    let file = world.file(SLOT);
    let db = world.db().clone();
    let tx = db.begin().unwrap();
    for slot in [SLOT, SLOT + 1] {
        (0..4).for_each(|row| change(&tx, &key(slot, 300 + row), Some(&[1; 300])));
    }
    world.db().flush().unwrap();
    world.db = None;
    let crashed = world.disk.crash(CrashMode::Kill, seed);
    drop((tx, db));
    world.disk = crashed;
    world.damage(&file, damage);
    world
}

#[test]
fn a_crash_at_any_io_of_going_into_quarantine_loses_nothing() {
    for (seed, damage) in [(1, Damage::Deleted), (2, Damage::Noise)] {
        let world = stopped(seed, damage);
        let mut io = 1;
        loop {
            let disk = world.disk.crash_image(CrashMode::Kill, 1);
            disk.crash_at(io);
            let opened = world.options().open_on(Arc::new(disk.clone()));
            let is_done = opened.is_ok();
            if let Ok(db) = opened {
                // And the next checkpoint, which cuts the log.
                let _crashed = db.checkpoint();
                drop(db);
            }
            let was_cut_short = disk.is_crashed();
            let mut next = world.on(disk.crash(CrashMode::Any, seed * 10_000 + io), 1);
            next.open();
            next.check_outage(SLOT);
            if io.is_multiple_of(5) || is_done {
                let report = next.repair(SLOT);
                assert_eq!(report.losers, 1, "seed {seed}, io {io}");
                next.check();
            }
            if !was_cut_short {
                break;
            }
            io += 1;
            assert!(io < 5000, "seed {seed}: it never comes to its end");
        }
        assert!(io > 100, "{io} I/Os");
    }
}

#[test]
fn a_crash_at_any_io_of_a_repair_leaves_the_partition_quarantined_or_repaired() {
    for (seed, damage) in [(3, Damage::Noise), (4, Damage::Deleted), (5, Damage::CutToNothing)] {
        let mut world = stopped(seed, damage);
        world.open();
        world.db().checkpoint().unwrap();
        world.close();
        world.open();
        let id = world.id(SLOT);
        world.close();
        let (mut io, mut repaired, mut quarantined) = (1, 0, 0);
        loop {
            let disk = world.disk.crash_image(CrashMode::Kill, 1);
            let mut cut = world.on(disk.clone(), 1);
            cut.open();
            disk.crash_at(disk.io_count() + io);
            let vault: &dyn crate::backup::Target = &cut.vault;
            let done = cut.db().repair(id, Some(vault), &RepairOptions::new(), &mut no_progress);
            cut.db = None;
            let mut next = world.on(disk.crash(CrashMode::Any, seed * 10_000 + io), 1);
            next.open();
            if next.db().partitions().unwrap().iter().all(|p| p.state == PartitionState::Online) {
                repaired += 1;
            } else {
                quarantined += 1;
                assert!(done.is_err(), "seed {seed}, io {io}: it was said to be repaired");
                next.repair(SLOT);
            }
            next.check();
            if done.is_ok() {
                break;
            }
            io += 1;
            assert!(io < 5000, "seed {seed}: it never comes to its end");
        }
        println!("seed {seed}: {io} I/Os");
        assert!(quarantined > 20 && repaired > 3, "seed {seed}: {quarantined}, {repaired}");
    }
}
