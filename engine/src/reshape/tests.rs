//! Splits and merges against `BTreeMap`, beside views of before, and through crashes.

mod beside;
mod crash;
mod online;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use hamal_storage::Storage;
use hamal_storage::sim::{CrashMode, SimStorage};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{Database, Error, ErrorKind, Maintenance, Options, ReshapeProgress, ReshapeReport, Snapshot};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

fn options() -> Options {
    Options::new()
        .page_bytes(4096)
        .cache_bytes(1 << 20)
        .maintenance(Maintenance::Manual)
        .lock_timeout(Duration::ZERO)
}

fn open(disk: &SimStorage) -> Database {
    options().open_on(Arc::new(disk.clone())).unwrap()
}

fn on(_: ReshapeProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn split(db: &Database, key: &[u8]) -> crate::Result<ReshapeReport> {
    db.split("t", key, &mut on)
}

fn merge(db: &Database, key: &[u8]) -> crate::Result<ReshapeReport> {
    db.merge("t", key, &mut on)
}

fn check(db: &Database) {
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

fn settle(db: &Database) {
    // Errands are flushed a moment later; time stands still otherwise.
    db.flush().unwrap();
    while db.maintain().unwrap() {
        db.flush().unwrap();
    }
}

/// Rows of all leaves that are not their partition's, whatever becomes of them.
fn strays(db: &Database) -> u64 {
    let kept: u64 = db.verify(&mut |_| ControlFlow::Continue(())).unwrap().rows;
    let catalog = db.handle.engine.partition(crate::catalog::CATALOG).unwrap().tree();
    let mut catalog_rows = 0;
    crate::catalog::each_row(&catalog, None, &[], None, &mut |_, _| {
        catalog_rows += 1;
        Ok(())
    })
    .unwrap();
    let pending: u64 = db
        .handle
        .engine
        .open_partitions()
        .iter()
        .map(|handle| {
            let mut runs = 0;
            crate::overflow::pending_runs(&handle.space, &mut |_| {
                runs += 1;
                Ok(())
            })
            .unwrap();
            runs
        })
        .sum();
    let rows: u64 = db.tables().unwrap().iter().map(|table| table.rows).sum();
    kept - catalog_rows - pending - rows
}

/// All rows, both ways, which must agree with each other and the count.
fn rows_of(snapshot: &Snapshot) -> Rows {
    let table = snapshot.open_bytes_table("t").unwrap();
    let forward: Vec<_> = table.iter().unwrap().map(Result::unwrap).collect();
    let mut backward: Vec<_> = table.iter().unwrap().rev().map(Result::unwrap).collect();
    backward.reverse();
    assert_eq!(forward, backward);
    assert!(forward.is_sorted_by(|a, b| a.0 < b.0));
    assert_eq!(table.len().unwrap(), forward.len() as u64);
    for (key, value) in &forward {
        assert_eq!(table.get(key).unwrap().as_ref(), Some(value));
    }
    forward.into_iter().collect()
}

fn rows(db: &Database) -> Rows {
    rows_of(&db.snapshot().unwrap())
}

fn lowers(db: &Database) -> Vec<Vec<u8>> {
    db.partitions().unwrap().into_iter().filter_map(|p| p.lower).collect()
}

/// Partition files, the catalog's aside.
fn files(disk: &SimStorage) -> usize {
    disk.list("part").unwrap().iter().filter(|name| *name != "0.dat").count()
}

fn kind(result: Result<ReshapeReport, Error>) -> ErrorKind {
    result.unwrap_err().kind()
}

fn key(number: u32) -> Vec<u8> {
    format!("k{number:05}").into_bytes()
}

/// A table of this many rows, every 40th of them long.
fn fill(db: &Database, count: u32) -> Rows {
    let rows: Rows = (0..count)
        .map(|number| {
            let bytes = if number % 40 == 7 { 20_000 } else { 60 };
            (key(number), vec![number as u8; bytes])
        })
        .collect();
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        rows.iter().try_for_each(|(key, value)| table.put(key, value))
    })
    .unwrap();
    rows
}

#[derive(Clone, Debug)]
enum Act {
    Put(u8, u16),
    Delete(u8),
    Split(u8),
    Merge(usize),
    /// A view of now, kept for later.
    Look,
    /// The oldest of these is looked through, and let go of.
    Forget,
    Maintain,
    Crash,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        12 => (any::<u8>(), prop_oneof![9 => 0..300_u16, 1 => 2000..9000_u16]).prop_map(|(k, v)| Act::Put(k, v)),
        4 => any::<u8>().prop_map(Act::Delete),
        3 => any::<u8>().prop_map(Act::Split),
        3 => any::<usize>().prop_map(Act::Merge),
        2 => Just(Act::Look),
        2 => Just(Act::Forget),
        3 => Just(Act::Maintain),
        1 => Just(Act::Crash),
    ];
    vec(act, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_table_that_is_split_and_merged_does_what_a_map_does(acts in acts(), seed in any::<u64>()) {
        let mut disk = SimStorage::new(seed);
        let mut db = open(&disk);
        db.transact(|tx| tx.create_bytes_table("t", &[b"\x80"]).map(drop)).unwrap();
        let (mut model, mut views) = (Rows::new(), Vec::new());
        let mut cuts = vec![vec![0x80]];
        for act in &acts {
            match act {
                Act::Put(k, len) => {
                    let value = vec![*k ^ *len as u8; usize::from(*len)];
                    db.transact(|tx| tx.open_bytes_table("t")?.put(&[*k], &value)).unwrap();
                    model.insert(vec![*k], value);
                }
                Act::Delete(k) => {
                    let old = db.transact(|tx| tx.open_bytes_table("t")?.remove(&[*k])).unwrap();
                    prop_assert_eq!(old, model.remove(&vec![*k]));
                }
                Act::Split(k) => match split(&db, &[*k]) {
                    Ok(report) => {
                        let upper = cuts.iter().filter(|cut| ***cut > [*k][..]).min().cloned();
                        let moved = model
                            .range(vec![*k]..)
                            .take_while(|row| upper.as_ref().is_none_or(|upper| row.0 < upper))
                            .count();
                        prop_assert_eq!(report.rows, moved as u64);
                        cuts.push(vec![*k]);
                        cuts.sort();
                    }
                    Err(error) => {
                        prop_assert_eq!(error.kind(), ErrorKind::InvalidArgument);
                        prop_assert!(cuts.contains(&vec![*k]));
                    }
                },
                Act::Merge(at) if cuts.is_empty() => {
                    prop_assert_eq!(kind(merge(&db, &[*at as u8])), ErrorKind::NotFound);
                }
                Act::Merge(at) => match merge(&db, &cuts[at % cuts.len()]) {
                    Ok(_) => {
                        cuts.remove(at % cuts.len());
                    }
                    // Somebody may still look there as before a split.
                    Err(error) => {
                        prop_assert_eq!(error.kind(), ErrorKind::Conflict);
                        prop_assert!(!views.is_empty(), "{}", error);
                    }
                },
                Act::Look => views.push((db.snapshot().unwrap(), model.clone())),
                Act::Forget => {
                    if !views.is_empty() {
                        let (view, expected) = views.remove(0);
                        prop_assert_eq!(rows_of(&view), expected);
                    }
                }
                Act::Maintain => settle(&db),
                Act::Crash => {
                    for (view, expected) in views.drain(..) {
                        prop_assert_eq!(rows_of(&view), expected);
                    }
                    disk = disk.crash_image(CrashMode::LoseAll, seed);
                    db = open(&disk);
                    check(&db);
                }
            }
            prop_assert_eq!(&rows(&db), &model);
            prop_assert_eq!(&lowers(&db), &cuts);
        }
        for (view, expected) in views {
            prop_assert_eq!(rows_of(&view), expected);
        }
        settle(&db);
        check(&db);
        prop_assert_eq!(strays(&db), 0);
        prop_assert_eq!(files(&disk), cuts.len() + 1);
        prop_assert_eq!(&rows(&db), &model);
    }
}

#[test]
fn a_split_moves_the_upper_rows_and_a_merge_brings_them_back() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    let model = fill(&db, 1000);
    let report = split(&db, &key(600)).unwrap();
    assert_eq!((report.left, report.right, report.rows), (1, 2, 400));
    assert_eq!(report.bytes, model.range(key(600)..).map(|(k, v)| (k.len() + v.len()) as u64).sum::<u64>());
    assert_eq!(lowers(&db), [key(600)]);
    assert_eq!((rows(&db), strays(&db)), (model.clone(), 400));
    check(&db);
    settle(&db);
    assert_eq!((rows(&db), strays(&db)), (model.clone(), 0));
    check(&db);
    // What has moved away has given its pages back.
    let free = |db: &Database| db.verify(&mut |_| ControlFlow::Continue(())).unwrap().free_pages;
    assert!(free(&db) > 60, "{}", free(&db));
    let report = merge(&db, &key(600)).unwrap();
    assert_eq!((report.left, report.right, report.rows), (1, 2, 400));
    assert_eq!((lowers(&db).len(), rows(&db)), (0, model.clone()));
    settle(&db);
    assert_eq!((files(&disk), strays(&db)), (1, 0));
    check(&db);
    let db = open(&disk.crash_image(CrashMode::LoseAll, 1));
    assert_eq!(rows(&db), model);
    check(&db);
}

#[test]
fn keys_at_which_nothing_can_be_split_or_merged_are_refused() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    let model = fill(&db, 50);
    assert_eq!(kind(db.split("u", b"k", &mut on)), ErrorKind::NotFound);
    assert_eq!(kind(db.merge("u", b"k", &mut on)), ErrorKind::NotFound);
    assert_eq!(kind(split(&db, b"")), ErrorKind::InvalidArgument);
    assert_eq!(kind(split(&db, &vec![b'x'; 4096 / 4])), ErrorKind::InvalidArgument);
    assert_eq!(kind(db.split("", b"k", &mut on)), ErrorKind::InvalidArgument);
    assert_eq!(kind(merge(&db, b"k")), ErrorKind::NotFound);
    split(&db, &key(20)).unwrap();
    assert_eq!(kind(split(&db, &key(20))), ErrorKind::InvalidArgument);
    assert_eq!(kind(merge(&db, &key(21))), ErrorKind::NotFound);
    // On either side of all keys.
    split(&db, b"a").unwrap();
    split(&db, b"z").unwrap();
    assert_eq!((files(&disk), rows(&db)), (4, model.clone()));
    settle(&db);
    for key in [key(20), b"z".to_vec(), b"a".to_vec()] {
        merge(&db, &key).unwrap();
    }
    settle(&db);
    assert_eq!((files(&disk), rows(&db)), (1, model));
    check(&db);
}

#[test]
fn typed_tables_are_split_at_typed_keys() {
    const NUMBERS: crate::TableDef<u64, u64> = crate::TableDef::new("numbers");
    const OTHERS: crate::TableDef<&str, u64> = crate::TableDef::new("numbers");
    let db = open(&SimStorage::new(1));
    db.transact(|tx| {
        let mut table = tx.open_table(NUMBERS)?;
        (0..100).try_for_each(|number| table.put(number, number))
    })
    .unwrap();
    assert_eq!(kind(db.split_table(OTHERS, &"50", &mut on)), ErrorKind::TypeMismatch);
    assert_eq!(db.split_table(NUMBERS, &50, &mut on).unwrap().rows, 50);
    assert_eq!(lowers(&db), [50_u64.to_be_bytes().to_vec()]);
    settle(&db);
    assert_eq!(kind(db.merge_table(NUMBERS, &51, &mut on)), ErrorKind::NotFound);
    assert_eq!(db.merge_table(NUMBERS, &50, &mut on).unwrap().rows, 50);
    settle(&db);
    check(&db);
}

#[test]
fn what_is_stopped_leaves_everything_as_it_was() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    let model = fill(&db, 600);
    let stop_after = |steps: u32| {
        let mut left = steps;
        move |_: ReshapeProgress| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    };
    for steps in [1, 2, 5, 9] {
        assert_eq!(kind(db.split("t", &key(300), &mut stop_after(steps))), ErrorKind::Cancelled);
        settle(&db);
        assert_eq!((files(&disk), rows(&db), lowers(&db).len()), (1, model.clone(), 0));
        check(&db);
    }
    split(&db, &key(300)).unwrap();
    settle(&db);
    for steps in [1, 2, 5, 9] {
        assert_eq!(kind(db.merge("t", &key(300), &mut stop_after(steps))), ErrorKind::Cancelled);
        assert_eq!((files(&disk), rows(&db)), (2, model.clone()));
        check(&db);
        if steps == 5 {
            assert!(strays(&db) > 0, "the copies of the merge that was stopped");
            settle(&db);
            assert_eq!(strays(&db), 0);
        }
    }
    // Also with the strays of the one before.
    merge(&db, &key(300)).unwrap();
    settle(&db);
    assert_eq!((files(&disk), rows(&db), strays(&db)), (1, model, 0));
    check(&db);
}

#[test]
fn progress_ends_where_it_said_it_would() {
    let db = open(&SimStorage::new(1));
    fill(&db, 1000);
    let mut told = Vec::new();
    let mut hear = |progress: ReshapeProgress| {
        told.push((progress.done_bytes, progress.total_bytes));
        ControlFlow::Continue(())
    };
    db.split("t", &key(500), &mut hear).unwrap();
    assert!(told.len() > 10);
    assert!(told.is_sorted(), "{told:?}");
    assert!(told.iter().all(|(done, total)| done <= total));
    let (done, total) = told.last().unwrap();
    assert_eq!(done, total);
    assert!(*done > 12 * 20_000, "long values count: {done}");
}

#[test]
fn strays_that_a_restart_finds_go_without_a_word() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    let model = fill(&db, 800);
    split(&db, &key(200)).unwrap();
    db.flush().unwrap();
    let mut image = disk.crash_image(CrashMode::KeepAll, 1);
    for round in 0..20 {
        // A bit further each time, for the maintenance is cut short.
        let db = open(&image);
        assert_eq!(rows(&db), model);
        let before = strays(&db);
        if before == 0 {
            check(&db);
            assert!(round > 0);
            return;
        }
        db.maintain().unwrap();
        assert!(strays(&db) < before);
        check(&db);
        db.flush().unwrap();
        image = image.crash_image(CrashMode::KeepAll, round);
    }
    panic!("strays are left");
}

#[test]
fn a_partition_is_split_again_and_again() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    let model = fill(&db, 1000);
    let view = db.snapshot().unwrap();
    for number in [500, 250, 125, 750, 625, 875] {
        split(&db, &key(number)).unwrap();
        assert_eq!(rows(&db), model);
    }
    // Nobody merges what a view of before the split still reads as one.
    assert_eq!(kind(merge(&db, &key(625))), ErrorKind::Conflict);
    settle(&db);
    assert!(strays(&db) > 0, "the view needs them");
    assert_eq!(rows_of(&view), model);
    drop(view);
    settle(&db);
    assert_eq!((strays(&db), files(&disk)), (0, 7));
    for number in [250, 875, 500, 125, 750, 625] {
        merge(&db, &key(number)).unwrap();
        assert_eq!(rows(&db), model);
        check(&db);
    }
    settle(&db);
    assert_eq!((strays(&db), files(&disk)), (0, 1));
    check(&db);
}
