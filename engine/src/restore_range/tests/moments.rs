//! To random moments, across splits, merges and renames.

use std::ops::ControlFlow;

use hamal_storage::sim::Rng;

use super::world::{OTHER, World, check, content, counts, expected_counts, key, mixed, options, point_of};
use crate::backup::tests::no_progress;
use crate::backup::{BackupOptions, RestorePoint, Stage};
use crate::{KeyRange, RangeRestoreOptions};

/// Restores for each seed.
const RESTORES: usize = 40;

#[test]
fn a_range_restored_to_random_moments_is_as_it_was_and_all_else_is_as_it_is() {
    for seed in [1, 2, 3, 4] {
        println!("seed {seed}");
        let mut world = World::start(seed);
        world.steps(60);
        world.known.clear();
        let full = world.back_up(&BackupOptions::new());
        world.remember();
        world.steps(150);
        world.back_up(&BackupOptions::new().since(full));
        world.steps(150);
        world.back_up(&BackupOptions::new());
        world.steps(80);
        world.commit().unwrap();
        let other = content(&world.db, OTHER);
        let mut rng = Rng::new(seed);
        let (mut changed, mut merged_since) = (0, 0);
        for index in 0..RESTORES {
            let known = &world.known[rng.index(world.known.len())];
            let (moment, then, cuts) = (known.moment, known.rows.clone(), known.cuts.clone());
            let point = point_of(&moment, rng.chance(1, 2));
            let (range, from, below) = if rng.chance(1, 2) {
                let at = key(rng.below(300));
                let lower = cuts.iter().filter(|cut| **cut <= at).max();
                let upper = cuts.iter().filter(|cut| **cut > at).min();
                (KeyRange::PartitionOf(at), lower.cloned().unwrap_or_default(), upper.cloned())
            } else {
                let (one, other) = (rng.below(300), rng.below(300));
                let below = rng.chance(4, 5).then(|| key(one.max(other)));
                let from = if rng.chance(1, 5) { Vec::new() } else { key(one.min(other)) };
                (KeyRange::Keys { from: from.clone(), below: below.clone() }, from, below)
            };
            let context = format!("seed {seed}, restore {index}: {range:?} to {point:?}");
            let expected = expected_counts(&world.rows, &then, &from, below.as_deref());
            let options = RangeRestoreOptions::to(point);
            if index % 3 == 0 {
                let report = world
                    .restore(&range, &options.clone().dry_run())
                    .unwrap_or_else(|e| panic!("{context}: {e}"));
                assert_eq!(
                    (counts(&report), report.dry_run, report.attempts),
                    (expected, true, 0),
                    "{context}"
                );
                assert!(
                    content(&world.db, world.name()) == world.rows,
                    "{context}: a dry run changes nothing"
                );
            }
            let report = world.restore(&range, &options).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert_eq!((&report.from, &report.below), (&from, &below), "{context}");
            assert_eq!(counts(&report), expected, "{context}");
            assert_eq!((report.attempts, report.table.as_str()), (1, world.name()), "{context}");
            if let RestorePoint::Lsn(lsn) = point {
                assert!(
                    report.source.end_lsn > 4096 && report.source.end_lsn <= lsn + 1,
                    "{context}: {report:?}"
                );
            }
            changed += report.put_back + report.replaced + report.removed;
            merged_since += u64::from(report.source.partitions < 2);
            world.rows = mixed(&world.rows, &then, &from, below.as_deref());
            assert!(content(&world.db, world.name()) == world.rows, "{context}");
            // A restore is a moment like any other: it can be taken back.
            world.remember();
            if index % 10 == 9 {
                check(&world.db, &world.disk, &context);
                world.steps(10);
                world.commit().unwrap();
            }
        }
        assert!(changed > 500, "{changed} rows are too few to be worth it");
        println!("{merged_since} restores found no file of the range in the backup");
        assert!(content(&world.db, OTHER) == other);
        check(&world.db, &world.disk, "at the end");
        world.db.close().unwrap();
    }
}

#[test]
fn only_the_partitions_of_the_range_are_copied() {
    let mut world = World::start(5);
    world
        .db
        .transact(|tx| {
            let mut table = tx.open_bytes_table(world.name())?;
            (0..300).try_for_each(|n| table.put(&key(n), &[1; 1500]))
        })
        .unwrap();
    for at in [100, 200] {
        world.db.split(world.name(), &key(at), &mut |_| ControlFlow::Continue(())).unwrap();
    }
    // What the splits have left where the rows were goes.
    while world.db.maintain().unwrap() {}
    world.rows = content(&world.db, world.name());
    let all = world.db.backup(&world.vault, &BackupOptions::new(), &mut no_progress).unwrap();
    world.remember();
    let deleted = |n: &u64| (110..190).contains(n);
    world
        .db
        .transact(|tx| {
            let mut table = tx.open_bytes_table("accounts")?;
            (0..300).filter(deleted).try_for_each(|n| table.delete(&key(n)))
        })
        .unwrap();
    let point = point_of(&world.known[0].moment, true);
    let report = world.restore(&KeyRange::PartitionOf(key(150)), &RangeRestoreOptions::to(point)).unwrap();
    assert_eq!(counts(&report), [80, 0, 0, 20]);
    assert_eq!((report.from, report.below), (key(100), Some(key(200))));
    assert_eq!(report.source.partitions, 2, "the catalog and the one that was asked for");
    assert!(report.source.pages * 2 < all.pages, "{:?} of {all:?}", report.source);
    assert_eq!(report.bytes, 80 * 1506);
    assert!(content(&world.db, "accounts") == world.rows);
}

#[test]
fn differences_larger_than_the_cache_are_put_back_in_bounded_memory() {
    let mut world = World::start(6);
    let long = |n: u64| vec![n as u8; if n.is_multiple_of(50) { 700_000 } else { 20_000 }];
    let write = |value: &dyn Fn(u64) -> Vec<u8>| {
        let rows = |tx: &crate::Transaction| {
            let mut table = tx.open_bytes_table("accounts")?;
            (0..200).try_for_each(|n| table.put(&key(n), &value(n)))
        };
        world.db.transact(rows).unwrap();
    };
    write(&long);
    world.db.backup(&world.vault, &BackupOptions::new(), &mut no_progress).unwrap();
    world.rows = content(&world.db, "accounts");
    world.remember();
    // Of the long values one differs in its last byte alone.
    let spoilt = |n: u64| {
        let mut value = if n.is_multiple_of(3) && n != 0 { vec![9; 30] } else { long(n) };
        if n == 0 {
            *value.last_mut().unwrap() = 255;
        }
        value
    };
    let rows = |tx: &crate::Transaction| {
        let mut table = tx.open_bytes_table("accounts")?;
        (0..200).try_for_each(|n| table.put(&key(n), &spoilt(n)))
    };
    world.db.transact(rows).unwrap();
    let options = RangeRestoreOptions::to(point_of(&world.known[0].moment, true));
    let report = world.restore(&KeyRange::all(), &options).unwrap();
    assert_eq!(counts(&report), [0, 67, 0, 133]);
    let values: u64 = (0..200).filter(|n| n % 3 == 0).map(|n| long(n).len() as u64 + 6).sum();
    assert!(report.bytes == values && values > 2 << 20, "{report:?}, {values}");
    assert!(world.db.stats().resident_bytes <= 1 << 20);
    assert!(content(&world.db, "accounts") == world.rows);
    check(&world.db, &world.disk, "long values");
}

#[test]
fn progress_is_told_in_all_stages_and_can_stop_each_and_nothing_has_changed() {
    let mut world = World::start(7);
    world.steps(80);
    world.back_up(&BackupOptions::new());
    world.remember();
    let then = world.known.len() - 1;
    world.steps(120);
    world.commit().unwrap();
    let options = RangeRestoreOptions::to(point_of(&world.known[then].moment, true));
    let range = KeyRange::Keys { from: key(20), below: Some(key(280)) };
    let mut seen = Vec::new();
    for stop_at in 0.. {
        let mut calls = 0;
        let result = world.db.restore_range(world.name(), &range, &world.vault, &options, &mut |progress| {
            assert!(progress.done_bytes <= progress.total_bytes, "{progress:?}");
            if seen.last() != Some(&progress.stage) {
                seen.push(progress.stage);
            }
            calls += 1;
            if calls > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match result {
            Ok(_) => break,
            Err(error) => assert_eq!(error.kind(), crate::ErrorKind::Cancelled, "{error}"),
        }
        assert!(content(&world.db, world.name()) == world.rows, "stopped at {stop_at}");
        check(&world.db, &world.disk, &format!("stopped at {stop_at}"));
    }
    for stage in [Stage::Pages, Stage::Log, Stage::Recovery, Stage::Rows] {
        assert!(seen.contains(&stage), "{stage:?} is missing in {seen:?}");
    }
    let rows = mixed(&world.rows, &world.known[then].rows, &key(20), Some(&key(280)));
    assert!(content(&world.db, world.name()) == rows);
}

#[test]
fn a_progress_callback_that_panics_leaves_nothing_behind_and_the_next_restore_works() {
    let mut world = World::start(9);
    world.steps(80);
    world.commit().unwrap();
    world.back_up(&BackupOptions::new());
    world.remember();
    let then = world.known.len() - 1;
    world.steps(80);
    world.commit().unwrap();
    let options = RangeRestoreOptions::to(point_of(&world.known[then].moment, true));
    for panic_at in [Stage::Pages, Stage::Log, Stage::Recovery, Stage::Rows] {
        let restore = || {
            world.db.restore_range(world.name(), &KeyRange::all(), &world.vault, &options, &mut |progress| {
                assert!(progress.stage != panic_at, "the callback panics");
                ControlFlow::Continue(())
            })
        };
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(restore));
        assert!(panicked.is_err(), "{panic_at:?}");
        assert!(content(&world.db, world.name()) == world.rows, "{panic_at:?}");
        check(&world.db, &world.disk, &format!("{panic_at:?}"));
    }
    world.restore(&KeyRange::all(), &options).unwrap();
    assert!(content(&world.db, world.name()) == world.known[then].rows);
}

#[test]
fn a_restore_is_taken_back_by_another_and_survives_crashes_and_restarts() {
    let mut world = World::start(8);
    world.steps(60);
    world.commit().unwrap();
    world.back_up(&BackupOptions::new());
    world.remember();
    let before = world.known.len() - 1;
    world.steps(60);
    world.commit().unwrap();
    world.remember();
    let after = world.known.len() - 1;
    let back = RangeRestoreOptions::to(point_of(&world.known[before].moment, true));
    world.restore(&KeyRange::all(), &back).unwrap();
    assert!(content(&world.db, world.name()) == world.known[before].rows);
    let disk = world.disk.crash(hamal_storage::sim::CrashMode::LoseAll, 1);
    let archive = std::sync::Arc::new(world.vault.clone());
    world.db = options().archive(archive).open_on(std::sync::Arc::new(disk.clone())).unwrap();
    world.disk = disk;
    assert!(content(&world.db, world.name()) == world.known[before].rows);
    let forward = RangeRestoreOptions::to(RestorePoint::Lsn(world.known[after].moment.lsn));
    world.restore(&KeyRange::all(), &forward).unwrap();
    assert!(content(&world.db, world.name()) == world.known[after].rows);
    check(&world.db, &world.disk, "and back");
}
