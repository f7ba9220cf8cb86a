//! What goes on beside a split or a merge.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hamal_storage::sim::SimStorage;

use super::*;
use crate::backup::tests::{no_progress, restored, target_on};
use crate::backup::{BackupOptions, RestoreOptions, RestorePoint};

fn put(db: &Database, table: &str, number: u32, value: &[u8]) {
    db.transact(|tx| tx.open_bytes_table(table)?.put(&key(number), value)).unwrap();
}

#[test]
fn a_split_waits_for_those_who_have_written_and_gives_up_in_time() {
    let db = open(&SimStorage::new(1));
    let mut model = fill(&db, 100);
    let tx = db.begin().unwrap();
    let mut table = tx.open_bytes_table("t").unwrap();
    table.put(&key(60), b"new").unwrap();
    // It keeps its chain, and its locks, in the one partition that there is.
    assert_eq!(kind(split(&db, &key(50))), ErrorKind::Conflict);
    table.put(&key(70), b"newer").unwrap();
    tx.commit().unwrap();
    model.insert(key(60), b"new".to_vec());
    model.insert(key(70), b"newer".to_vec());
    split(&db, &key(50)).unwrap();
    settle(&db);
    let tx = db.begin().unwrap();
    tx.open_bytes_table("t").unwrap().get_for_update(&key(99)).unwrap();
    assert_eq!(kind(merge(&db, &key(50))), ErrorKind::Conflict);
    tx.rollback().unwrap();
    merge(&db, &key(50)).unwrap();
    settle(&db);
    assert_eq!(rows(&db), model);
    check(&db);
}

#[test]
fn who_began_before_a_split_reads_on_and_may_not_write() {
    for merged in [false, true] {
        let db = open(&SimStorage::new(1));
        let model = fill(&db, 100);
        if merged {
            split(&db, &key(50)).unwrap();
            settle(&db);
        }
        let tx = db.begin().unwrap();
        let mut table = tx.open_bytes_table("t").unwrap();
        let late = db.begin().unwrap();
        assert_eq!(table.get(&key(70)).unwrap().unwrap(), model[&key(70)]);
        if merged {
            merge(&db, &key(50)).unwrap()
        } else {
            split(&db, &key(50)).unwrap()
        };
        settle(&db);
        put(&db, "t", 70, b"behind");
        let seen: Rows = table.iter().unwrap().map(Result::unwrap).collect();
        assert_eq!(seen, model);
        assert_eq!(table.put(&key(80), b"lost").unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(table.get_for_update(&key(1)).unwrap_err().kind(), ErrorKind::Conflict);
        // Opened only now, but as of before.
        let mut table = late.open_bytes_table("t").unwrap();
        assert_eq!(table.get(&key(80)).unwrap().unwrap(), model[&key(80)]);
        assert_eq!(table.remove(&key(80)).unwrap_err().kind(), ErrorKind::Conflict);
        tx.rollback().unwrap();
        late.commit().unwrap();
        settle(&db);
        // Who comes later writes.
        put(&db, "t", 80, b"found");
        assert_eq!(rows(&db)[&key(80)], b"found");
        check(&db);
    }
}

#[test]
fn a_transaction_is_run_again_past_a_split() {
    let db = open(&SimStorage::new(1));
    fill(&db, 100);
    let mut runs = 0;
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        let old = table.get(&key(70))?.unwrap();
        runs += 1;
        if runs == 1 {
            split(&db, &key(50)).unwrap();
        }
        table.put(&key(70), &[&old[..], b"+"].concat())
    })
    .unwrap();
    assert_eq!(runs, 2);
    assert_eq!(rows(&db)[&key(70)].last(), Some(&b'+'));
    settle(&db);
    check(&db);
}

#[test]
fn a_view_does_not_move_past_a_split_of_a_table_it_reads() {
    let db = open(&SimStorage::new(1));
    let model = fill(&db, 100);
    put(&db, "u", 1, b"old");
    let [reader, other] = [(); 2].map(|()| db.begin().unwrap());
    let table = reader.open_bytes_table("t").unwrap();
    assert_eq!(table.get(&key(70)).unwrap().unwrap(), model[&key(70)]);
    let mut untouched = other.open_bytes_table("u").unwrap();
    split(&db, &key(50)).unwrap();
    put(&db, "u", 1, b"new");
    put(&db, "t", 71, b"new");
    // It would have to see the new row of one table, and so the split of the other.
    let error = reader.open_bytes_table("u").unwrap().get_for_update(&key(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert_eq!(table.get(&key(71)).unwrap().unwrap(), model[&key(71)]);
    // Who has not opened the table that was split goes on, and finds the rows where they are now.
    assert_eq!(untouched.get_for_update(&key(1)).unwrap().unwrap(), b"new");
    let mut table = other.open_bytes_table("t").unwrap();
    assert_eq!(table.get(&key(71)).unwrap().unwrap(), b"new");
    table.put(&key(72), b"written").unwrap();
    untouched.put(&key(2), b"written").unwrap();
    other.commit().unwrap();
    assert_eq!(rows(&db)[&key(72)], b"written");
    drop(reader);
    settle(&db);
    check(&db);
}

#[test]
fn scans_that_are_open_go_on_over_the_bound_both_ways() {
    let db = open(&SimStorage::new(1));
    let model = fill(&db, 400);
    let expected: Vec<Vec<u8>> = model.keys().cloned().collect();
    let snapshot = db.snapshot().unwrap();
    let tx = db.begin().unwrap();
    let in_snapshot = snapshot.open_bytes_table("t").unwrap();
    let in_transaction = tx.open_bytes_table("t").unwrap();
    let mut forward = in_snapshot.iter().unwrap().map(|row| row.unwrap().0);
    let mut backward = in_transaction.iter().unwrap().rev().map(|row| row.unwrap().0);
    let mut both = in_snapshot.iter().unwrap().map(|row| row.unwrap().0);
    let (mut seen, mut seen_back, mut ends) = (Vec::new(), Vec::new(), (Vec::new(), Vec::new()));
    for step in 0..400 {
        seen.extend(forward.next());
        seen_back.extend(backward.next());
        if step % 2 == 0 {
            ends.0.extend(both.next());
        } else {
            ends.1.extend(both.next_back());
        }
        match step {
            20 => drop(split(&db, &key(200)).unwrap()),
            30 => drop(split(&db, &key(100)).unwrap()),
            100 | 190 => settle(&db),
            180 => db.transact(|tx| tx.open_bytes_table("t")?.clear()).unwrap(),
            _ => {}
        }
    }
    assert_eq!((forward.next(), backward.next(), both.next()), (None, None, None));
    seen_back.reverse();
    ends.1.reverse();
    assert_eq!(seen, expected);
    assert_eq!(seen_back, expected);
    assert_eq!([ends.0, ends.1].concat(), expected);
    drop((forward, backward, both));
    drop((snapshot, tx));
    settle(&db);
    assert_eq!((rows(&db).len(), strays(&db)), (0, 0));
    check(&db);
}

#[test]
fn old_values_of_moved_rows_stay_with_those_who_need_them() {
    let db = open(&SimStorage::new(1));
    fill(&db, 100);
    let long = |byte: u8| vec![byte; 50_000];
    let mut views = Vec::new();
    for round in 0..6_u8 {
        put(&db, "t", 80, &long(round));
        db.transact(|tx| tx.open_bytes_table("t")?.remove(&key(90)).map(drop)).unwrap();
        views.push((db.snapshot().unwrap(), rows(&db)));
        // Every other time somebody still sees how it was before the split, and it is not merged.
        match round % 3 {
            0 => drop(split(&db, &key(50)).unwrap()),
            1 => {
                settle(&db);
                let is_read = views.len() > 1;
                assert_eq!(merge(&db, &key(50)).is_err(), is_read);
                for (view, expected) in views.drain(..) {
                    assert_eq!(rows_of(&view), expected);
                }
                settle(&db);
                merge(&db, &key(50)).unwrap();
            }
            _ => settle(&db),
        }
        put(&db, "t", 90, &long(round + 100));
        for (view, expected) in &views {
            assert_eq!(rows_of(view), *expected);
        }
    }
    views.clear();
    settle(&db);
    assert_eq!(strays(&db), 0);
    check(&db);
}

#[test]
fn a_table_is_dropped_behind_and_before_a_split() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    fill(&db, 100);
    let view = db.snapshot().unwrap();
    let model = rows(&db);
    split(&db, &key(50)).unwrap();
    let tx = db.begin().unwrap();
    tx.drop_table("t").unwrap();
    assert_eq!(kind(split(&db, &key(20))), ErrorKind::Conflict);
    assert_eq!(kind(merge(&db, &key(50))), ErrorKind::Conflict);
    tx.rollback().unwrap();
    split(&db, &key(20)).unwrap();
    db.transact(|tx| tx.drop_table("t")).unwrap();
    assert_eq!(kind(split(&db, &key(30))), ErrorKind::NotFound);
    assert_eq!(rows_of(&view), model);
    drop(view);
    settle(&db);
    assert_eq!(files(&disk), 0);
    check(&db);
}

#[test]
fn a_drop_by_somebody_who_does_not_know_all_cuts_is_refused() {
    for merged in [false, true] {
        let disk = SimStorage::new(1);
        let db = open(&disk);
        fill(&db, 100);
        if merged {
            split(&db, &key(50)).unwrap();
            settle(&db);
        }
        let [one, other] = [(); 2].map(|()| db.begin().unwrap());
        let table = one.open_bytes_table("t").unwrap();
        if merged {
            merge(&db, &key(50)).unwrap()
        } else {
            split(&db, &key(50)).unwrap()
        };
        assert_eq!(one.drop_table("t").unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(other.drop_table("t").unwrap_err().kind(), ErrorKind::Conflict);
        // It had no effect.
        assert_eq!(table.len().unwrap(), 100);
        one.commit().unwrap();
        other.commit().unwrap();
        assert_eq!(db.tables().unwrap().len(), 1);
        db.transact(|tx| tx.drop_table("t")).unwrap();
        settle(&db);
        assert_eq!((files(&disk), db.partitions().unwrap().len()), (0, 1));
        check(&db);
    }
}

#[test]
fn row_counts_outlive_a_split_that_is_taken_back_and_a_merge() {
    let db = open(&SimStorage::new(1));
    fill(&db, 100);
    let stop = &mut |_: ReshapeProgress| ControlFlow::Break(());
    assert_eq!(kind(db.split("t", &key(50), stop)), ErrorKind::Cancelled);
    settle(&db);
    assert_eq!(db.tables().unwrap()[0].rows, 100);
    split(&db, &key(50)).unwrap();
    settle(&db);
    merge(&db, &key(50)).unwrap();
    settle(&db);
    assert_eq!(db.tables().unwrap()[0].rows, 100);
    put(&db, "t", 1000, b"v");
    assert_eq!(db.tables().unwrap()[0].rows, 101);
    check(&db);
}

#[test]
fn moments_around_a_split_and_a_merge_are_restored() {
    let vault_disk = SimStorage::new(100);
    let vault = target_on(&vault_disk);
    let archived = || options().archive(Arc::new(vault.clone()));
    let db = archived().open_on(Arc::new(SimStorage::new(1))).unwrap();
    fill(&db, 200);
    let mut moments = Vec::new();
    let mut note = |db: &Database| {
        put(db, "t", 1, format!("{}", moments.len()).as_bytes());
        put(db, "t", 150, &vec![moments.len() as u8; 9000]);
        moments.push((db.restore_point(), rows(db), lowers(db)));
    };
    db.backup(&vault, &BackupOptions::new(), &mut no_progress).unwrap();
    note(&db);
    // While a backup copies: the split is behind its beginning, and before its end.
    let mut steps = 0;
    let mut in_the_middle = |_: crate::backup::Progress| {
        steps += 1;
        if steps == 2 {
            split(&db, &key(100)).unwrap();
            put(&db, "t", 151, b"in the middle");
        }
        ControlFlow::Continue(())
    };
    db.backup(&vault, &BackupOptions::new(), &mut in_the_middle).unwrap();
    assert!(steps > 2);
    note(&db);
    settle(&db);
    note(&db);
    let mut steps = 0;
    let mut in_the_middle = |_: crate::backup::Progress| {
        steps += 1;
        if steps == 2 {
            merge(&db, &key(100)).unwrap();
            put(&db, "t", 152, b"in the middle");
            db.maintain().unwrap();
        }
        ControlFlow::Continue(())
    };
    db.backup(&vault, &BackupOptions::new(), &mut in_the_middle).unwrap();
    note(&db);
    settle(&db);
    db.archive().unwrap();
    for (moment, expected, cuts) in &moments {
        let options = RestoreOptions::new().to(RestorePoint::Lsn(moment.lsn));
        let (_, db) = restored(&vault, &options);
        assert_eq!((&rows(&db), &lowers(&db)), (expected, cuts));
        check(&db);
        settle(&db);
        assert_eq!((&rows(&db), strays(&db)), (expected, 0));
        check(&db);
    }
}

#[test]
fn a_vacuum_that_puts_leaves_together_makes_nobody_copy_a_row_twice() {
    let db = open(&SimStorage::new(1));
    let mut model = fill(&db, 1500);
    // Leaves of a few rows each, which the vacuum is about to put together, with long values among them.
    let few = |number: u32| number % 20 == 7;
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        (0..1500).filter(|number| !few(*number)).try_for_each(|number| table.delete(&key(number)))
    })
    .unwrap();
    model.retain(|at, _| few(String::from_utf8_lossy(&at[1..]).parse().unwrap()));
    let merges = || -> u64 {
        let handles = db.handle.engine.open_partitions();
        handles.iter().map(|h| h.space.merges.load(std::sync::atomic::Ordering::Relaxed)).sum()
    };
    let before = merges();
    let mut and_vacuum = |_: ReshapeProgress| {
        db.maintain().unwrap();
        ControlFlow::Continue(())
    };
    let report = db.split("t", &key(500), &mut and_vacuum).unwrap();
    assert!(merges() > before, "the vacuum was at work");
    assert_eq!(report.rows, model.range(key(500)..).count() as u64);
    check(&db);
    settle(&db);
    check(&db);
    let report = db.merge("t", &key(500), &mut and_vacuum).unwrap();
    assert_eq!(report.rows, model.range(key(500)..).count() as u64);
    settle(&db);
    assert_eq!((rows(&db), strays(&db)), (model, 0));
    check(&db);
}

#[test]
fn a_small_log_is_enough() {
    let log = options().log_segment_bytes(64 << 10).log_buffer_bytes(64 << 10).max_log_bytes(1 << 20);
    let db = log.open_on(Arc::new(SimStorage::new(1))).unwrap();
    let mut model = Rows::new();
    for number in 0..3000 {
        let bytes = if number % 100 == 0 { 60_000 } else { 500 };
        put(&db, "t", number, &vec![number as u8; bytes]);
        model.insert(key(number), vec![number as u8; bytes]);
        db.maintain().unwrap();
    }
    split(&db, &key(500)).unwrap();
    settle(&db);
    assert_eq!((rows(&db), strays(&db)), (model.clone(), 0));
    check(&db);
    merge(&db, &key(500)).unwrap();
    settle(&db);
    assert_eq!((rows(&db), strays(&db)), (model, 0));
    check(&db);
}

#[test]
fn writers_readers_and_splits_by_many_threads_lose_nothing() {
    let options = Options::new().page_bytes(4096).cache_bytes(4 << 20).lock_timeout(Duration::from_mins(1));
    let db = options.open_on(Arc::new(SimStorage::new(1))).unwrap();
    db.transact(|tx| tx.create_bytes_table::<&[u8]>("t", &[]).map(drop)).unwrap();
    // Each adds to its own rows, all over the keys, and keeps a sum equal over two of them.
    thread::scope(|scope| {
        for writer in 0..3_u32 {
            let db = &db;
            scope.spawn(move || {
                for round in 1..=150_u32 {
                    db.transact(|tx| {
                        let mut table = tx.open_bytes_table("t")?;
                        for place in 0..4 {
                            let key = key(place * 1000 + writer * 100 + round % 50);
                            let long = if round % 30 == 0 { 10_000 } else { 40 };
                            let old = table.get(&key)?.map_or(0, |value| value[0]);
                            table.put(&key, &vec![old.wrapping_add(1); long])?;
                        }
                        Ok(())
                    })
                    .unwrap();
                }
            });
        }
        let db = &db;
        scope.spawn(move || {
            for _ in 0..60 {
                let snapshot = db.snapshot().unwrap();
                let rows = rows_of(&snapshot);
                for (at, value) in &rows {
                    let place: u32 = String::from_utf8_lossy(&at[1..]).parse().unwrap();
                    for other in 0..4 {
                        assert_eq!(rows[&key(other * 1000 + place % 1000)][0], value[0]);
                    }
                }
            }
        });
        for round in 0..12 {
            let at = key([1000, 2000, 3000, 1500][round % 4]);
            let done = if lowers(db).contains(&at) { merge(db, &at) } else { split(db, &at) };
            if let Err(error) = done {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
            }
        }
    });
    let found = rows(&db);
    assert_eq!(found.len(), 600);
    assert!(found.values().all(|value| value[0] == 3));
    while db.maintain().unwrap() {}
    check(&db);
    assert_eq!(strays(&db), 0);
}
