//! Others go on meanwhile.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hamal_storage::OsStorage;

use super::world::{OTHER, World, check, content, key, point_of};
use crate::backup::tests::no_progress;
use crate::backup::{BackupOptions, DirectoryTarget, RestorePoint, Stage};
use crate::{ErrorKind, KeyRange, Options, RangeRestoreOptions};

/// A world whose rows from 0 to 99 and from 100 to 199 are in two partitions, backed up; then the former are spoilt.
fn spoilt(seed: u64) -> World {
    let mut world = World::start(seed);
    let write = |byte: u8, to: u64| {
        let rows = |tx: &crate::Transaction| {
            let mut table = tx.open_bytes_table("accounts")?;
            (0..to).try_for_each(|n| table.put(&key(n), &[byte; 50]))
        };
        world.db.transact(rows).unwrap();
    };
    write(1, 200);
    world.db.split("accounts", &key(100), &mut |_| ControlFlow::Continue(())).unwrap();
    world.db.backup(&world.vault, &BackupOptions::new(), &mut no_progress).unwrap();
    let moment = world.db.restore_point();
    write(2, 100);
    world.rows = content(&world.db, "accounts");
    world.known.push(super::world::Known { moment, rows: world.rows.clone(), cuts: Vec::new() });
    world
}

fn below_100() -> KeyRange {
    KeyRange::Keys { from: Vec::new(), below: Some(key(100)) }
}

#[test]
fn who_writes_elsewhere_meanwhile_is_in_nobodys_way() {
    let world = spoilt(21);
    let options = RangeRestoreOptions::to(point_of(&world.known[0].moment, true));
    let mut written = 0_u64;
    let report = world
        .db
        .restore_range("accounts", &below_100(), &world.vault, &options, &mut |_| {
            written += 1;
            world
                .db
                .transact(|tx| {
                    tx.open_bytes_table("accounts")?
                        .put(&key(100 + written % 100), &written.to_be_bytes())?;
                    tx.open_bytes_table(OTHER)?.put(&key(written % 300), &written.to_be_bytes())
                })
                .unwrap();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((report.replaced, report.attempts), (100, 1));
    assert!(written > 8, "{written}");
    let rows = content(&world.db, "accounts");
    assert!((0..100).all(|n| rows[&key(n)] == [1; 50]));
    assert_eq!(rows[&key(100 + written % 100)], written.to_be_bytes());
    assert_eq!(content(&world.db, OTHER)[&key(written % 300)], written.to_be_bytes());
    check(&world.db, &world.disk, "beside");
}

#[test]
fn who_changes_the_range_meanwhile_makes_it_begin_anew_and_comes_before_it() {
    let world = spoilt(22);
    let options = RangeRestoreOptions::to(point_of(&world.known[0].moment, true));
    // A row that is there already, and one that is new: neither survives.
    for (number, value) in [(5, vec![9; 10]), (1_000, vec![9; 20])] {
        // One that had nothing to write would come before whoever adds a row.
        world.db.transact(|tx| tx.open_bytes_table("accounts")?.put(&key(7), b"spoilt again")).unwrap();
        let mut is_written = false;
        let report = world
            .db
            .restore_range("accounts", &KeyRange::all(), &world.vault, &options, &mut |progress| {
                if progress.stage == Stage::Rows && !is_written {
                    is_written = true;
                    // Its lock is not waited for: the restore has not come so far, or is behind it.
                    let _conflict = world.db.transact_with(
                        crate::TransactionOptions::new(),
                        crate::RetryOptions::new().attempts(1),
                        |tx| tx.open_bytes_table("accounts")?.put(&key(number), &value),
                    );
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        assert!(is_written);
        let rows = content(&world.db, "accounts");
        assert!(rows.len() == 200 && rows.values().all(|value| *value == [1; 50]), "{report:?}");
        if number == 1_000 {
            assert_eq!(report.attempts, 2);
        }
    }
}

#[test]
fn who_changes_the_range_every_time_is_told_of_and_nothing_is_put_back() {
    let world = spoilt(23);
    let options = RangeRestoreOptions::to(point_of(&world.known[0].moment, true)).attempts(3);
    let mut number = 1_000;
    let error = world
        .db
        .restore_range("accounts", &KeyRange::all(), &world.vault, &options, &mut |progress| {
            if progress.stage == Stage::Rows {
                number += 1;
                world.db.transact(|tx| tx.open_bytes_table("accounts")?.put(&key(number), b"new")).unwrap();
            }
            ControlFlow::Continue(())
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(error.to_string().contains("after 3 attempts"), "{error}");
    let rows = content(&world.db, "accounts");
    assert!((0..100).all(|n| rows[&key(n)] == [2; 50]), "nothing is half restored");
    assert!(rows.contains_key(&key(number)));
    check(&world.db, &world.disk, "conflicts");
}

#[test]
fn more_commits_than_the_database_remembers_are_no_conflict_where_they_are_elsewhere() {
    let mut world = World::start(25);
    let put = |value: &'static [u8]| {
        let rows = |tx: &crate::Transaction| {
            let mut table = tx.open_bytes_table("accounts")?;
            (0..2_500).try_for_each(|n| table.put(&key(n), value))
        };
        world.db.transact(rows).unwrap();
    };
    put(b"old");
    world.db.backup(&world.vault, &BackupOptions::new(), &mut no_progress).unwrap();
    let moment = world.db.restore_point();
    put(b"spoilt");
    let range = KeyRange::Keys { from: Vec::new(), below: Some(key(900_000)) };
    let options = RangeRestoreOptions::to(RestorePoint::Lsn(moment.lsn)).attempts(1);
    // Long keys of the same table: what is remembered of these commits is what they wrote.
    let long_keys: Vec<Vec<u8>> = (900_000..900_200).map(|n| [key(n), vec![b'x'; 900]].concat()).collect();
    let mut commits = 0_u64;
    let report = world
        .db
        .restore_range("accounts", &range, &world.vault, &options, &mut |progress| {
            if progress.stage == Stage::Rows {
                commits += 1;
                world
                    .db
                    .transact(|tx| {
                        let mut table = tx.open_bytes_table("accounts")?;
                        long_keys.iter().try_for_each(|key| table.put(key, &commits.to_be_bytes()))
                    })
                    .unwrap();
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(report.replaced, 2_500);
    assert!(commits * 200 * 906 > 24 << 20, "{commits} commits");
    world.rows = content(&world.db, "accounts");
    assert!((0..2_500).all(|n| world.rows[&key(n)] == b"old"));
    assert!(long_keys.iter().all(|key| world.rows[key] == commits.to_be_bytes()));
    check(&world.db, &world.disk, "many commits");
}

#[test]
fn readers_see_all_of_a_restore_or_nothing() {
    let world = spoilt(24);
    let options = RangeRestoreOptions::to(point_of(&world.known[0].moment, true));
    let before = world.db.snapshot().unwrap();
    let mut looks = 0;
    world
        .db
        .restore_range("accounts", &below_100(), &world.vault, &options, &mut |_| {
            looks += 1;
            assert!(content(&world.db, "accounts") == world.rows);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(looks > 8);
    let seen: Vec<_> = before.open_bytes_table("accounts").unwrap().iter().unwrap().collect();
    assert_eq!(seen.into_iter().map(Result::unwrap).collect::<super::world::Rows>(), world.rows);
    assert!((0..100).all(|n| content(&world.db, "accounts")[&key(n)] == [1; 50]));
}

#[test]
fn threads_that_write_to_the_range_come_wholly_before_a_restore_or_wholly_behind_it() {
    let directory = tempfile::tempdir().unwrap();
    let vault = DirectoryTarget::new(directory.path().join("vault"));
    let storage = Arc::new(OsStorage::new(directory.path().join("db")));
    let db = Options::new()
        .cache_bytes(4 << 20)
        .durability(crate::Durability::Relaxed)
        .archive(Arc::new(vault.clone()))
        .open_on(storage.clone())
        .unwrap();
    let splits: [&[u8]; 1] = [b"000100"];
    db.transact(|tx| {
        let mut table = tx.create_bytes_table("t", &splits)?;
        (0..200).try_for_each(|n| table.put(&key(n), &0_u64.to_be_bytes()))
    })
    .unwrap();
    db.backup(&vault, &BackupOptions::new(), &mut no_progress).unwrap();
    let moment = db.restore_point();
    db.transact(|tx| (0..100).try_for_each(|n| tx.open_bytes_table("t")?.put(&key(n), b"spoilt"))).unwrap();
    let stop = AtomicBool::new(false);
    let (elsewhere, in_range) = std::thread::scope(|scope| {
        let elsewhere = scope.spawn(|| {
            let mut written = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let next = (written + 1).to_be_bytes();
                db.transact(|tx| tx.open_bytes_table("t")?.put(&key(150), &next)).unwrap();
                written += 1;
            }
            written
        });
        // Two rows, always the same value: whoever comes between would part them.
        let in_range = scope.spawn(|| {
            let mut written = 0_u64;
            for number in 1..=40_u64 {
                let value = number.to_be_bytes();
                db.transact(|tx| {
                    let mut table = tx.open_bytes_table("t")?;
                    table.put(&key(3), &value)?;
                    table.put(&key(97), &value)
                })
                .unwrap();
                written = number;
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                std::thread::yield_now();
            }
            written
        });
        let options = RangeRestoreOptions::to(RestorePoint::Lsn(moment.lsn)).attempts(10_000);
        let range = KeyRange::Keys { from: Vec::new(), below: Some(key(100)) };
        let report = db.restore_range("t", &range, &vault, &options, &mut no_progress).unwrap();
        assert!(report.replaced >= 98, "{report:?}");
        stop.store(true, Ordering::Relaxed);
        (elsewhere.join().unwrap(), in_range.join().unwrap())
    });
    let rows = content(&db, "t");
    assert_eq!(rows[&key(150)], elsewhere.to_be_bytes(), "nothing of it is lost");
    assert_eq!(rows[&key(3)], rows[&key(97)], "of {in_range}");
    let is_old = |n: &u64| rows[&key(*n)] == 0_u64.to_be_bytes();
    assert!((0..100).filter(|n| ![3, 97].contains(n)).all(|n| is_old(&n)));
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    db.close().unwrap();
}
