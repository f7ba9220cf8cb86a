use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_storage::sim::{CrashMode, Fault, FaultKind, Operation, Repeat, SimStorage, When};

use super::*;
use crate::{Database, Durability, Maintenance, Options, PartitionState};

fn open(disk: &SimStorage) -> Database {
    let options = Options::new().page_bytes(4096).durability(Durability::Relaxed);
    options.maintenance(Maintenance::Manual).open_on(Arc::new(disk.clone())).unwrap()
}

fn put_rows(db: &Database, rows: u32, value: &[u8]) {
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        (0..rows).try_for_each(|row| table.put(&row.to_be_bytes(), value))
    })
    .unwrap();
}

fn clear(db: &Database) {
    db.transact(|tx| tx.open_bytes_table("t")?.clear()).unwrap();
}

fn ghosts(db: &Database) -> u64 {
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    report.ghosts
}

fn maintain_all(db: &Database) {
    while db.maintain().unwrap() {}
}

#[test]
fn ghosts_that_a_view_has_kept_go_once_it_is_gone() {
    let db = open(&SimStorage::new(1));
    put_rows(&db, 1000, b"v");
    let snapshot = db.snapshot().unwrap();
    clear(&db);
    maintain_all(&db);
    assert_eq!(ghosts(&db), 1000);
    // No pass begins only to find them unsettled again.
    let changes = db.stats().structure_changes;
    assert!(!db.maintain().unwrap());
    assert_eq!(db.stats().structure_changes, changes);
    drop(snapshot);
    maintain_all(&db);
    assert_eq!(ghosts(&db), 0);
}

#[test]
fn ghosts_that_a_rollback_has_made_are_vacuumed() {
    let db = open(&SimStorage::new(1));
    put_rows(&db, 1, b"v");
    maintain_all(&db);
    let tx = db.begin().unwrap();
    let savepoint = tx.savepoint().unwrap();
    let mut table = tx.open_bytes_table("t").unwrap();
    for row in 1..1000_u32 {
        table.put(&row.to_be_bytes(), b"v").unwrap();
    }
    tx.rollback_to(savepoint).unwrap();
    drop(tx);
    assert_eq!(ghosts(&db), 999);
    maintain_all(&db);
    assert_eq!(ghosts(&db), 0);
}

#[test]
fn ghosts_of_before_a_close_or_a_crash_are_vacuumed() {
    for is_clean in [true, false] {
        let disk = SimStorage::new(1);
        let db = open(&disk);
        put_rows(&db, 1000, b"v");
        clear(&db);
        let disk = if is_clean {
            db.close().unwrap();
            disk
        } else {
            db.flush().unwrap();
            disk.crash(CrashMode::KeepAll, 1)
        };
        let db = open(&disk);
        assert_eq!(ghosts(&db), 1000);
        maintain_all(&db);
        assert_eq!(ghosts(&db), 0);
    }
}

#[test]
fn after_a_clean_open_a_round_of_maintenance_looks_at_few_pages_and_at_each_once() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    put_rows(&db, 2000, &[1; 900]);
    db.close().unwrap();
    let db = open(&disk);
    let mut misses = vec![db.stats().cache_misses];
    for _ in 0..20 {
        assert!(!db.maintain().unwrap(), "there is nothing to do");
        misses.push(db.stats().cache_misses);
    }
    let read: Vec<u64> = misses.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(read.iter().all(|pages| *pages <= 2 * LOOK_LEAVES as u64), "{read:?}");
    assert!(read.iter().sum::<u64>() >= 500, "all leaves are looked at: {read:?}");
    assert_eq!(read.last(), Some(&0), "{read:?}");
}

#[test]
fn a_pass_that_meets_damage_quarantines_the_partition_and_the_others_have_their_turn() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    put_rows(&db, 2000, &[1; 900]);
    let file = format!("part/{}.dat", db.tables().unwrap()[0].partitions[0]);
    db.close().unwrap();
    let bytes = disk.read_file(&file).unwrap().len() as u64;
    for page in 8..bytes / 4096 {
        disk.overwrite(&file, page * 4096 + 100, &[0xa5; 8]).unwrap();
    }
    let db = open(&disk);
    for _ in 0..50 {
        db.maintain().unwrap();
    }
    let quarantined = db.partitions().unwrap().into_iter().filter(|p| p.state == PartitionState::Quarantined);
    assert_eq!(quarantined.map(|p| p.file).collect::<Vec<_>>(), [file]);
}

#[test]
fn a_round_goes_on_where_before_images_cannot_be_moved_to_a_file() {
    let disk = SimStorage::new(1);
    let options = Options::new().page_bytes(4096).durability(Durability::Relaxed).version_bytes(1);
    let db = options.maintenance(Maintenance::Manual).open_on(Arc::new(disk.clone())).unwrap();
    put_rows(&db, 1000, b"v");
    clear(&db);
    db.transact(|tx| tx.open_bytes_table("u")?.put(b"k", b"1")).unwrap();
    let broken = Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Forever);
    disk.inject(broken.only(&[Operation::Create]));
    let snapshot = db.snapshot().unwrap();
    db.transact(|tx| tx.open_bytes_table("u")?.put(b"k", b"2")).unwrap();
    assert!(db.stats().version_bytes > 0);
    maintain_all(&db);
    assert!(!disk.fired().is_empty());
    assert_eq!(ghosts(&db), 0);
    drop(snapshot);
}

#[test]
fn no_interval_or_timeout_is_too_long() {
    let db = open(&SimStorage::new(1));
    let never = crate::TransactionOptions::new().durability(Durability::Periodic(Duration::MAX));
    let tx = db.begin_with(never.lock_timeout(Duration::MAX)).unwrap();
    tx.open_bytes_table("t").unwrap().put(b"k", b"v").unwrap();
    tx.commit().unwrap();
    // As long as the clock can say is never.
    assert!(db.handle.engine.until_flush().is_none_or(|left| left > LONGEST_SLEEP));
    let soon = crate::TransactionOptions::new().durability(Durability::Periodic(Duration::from_secs(5)));
    let tx = db.begin_with(soon).unwrap();
    tx.open_bytes_table("t").unwrap().put(b"k", b"w").unwrap();
    tx.commit().unwrap();
    assert!(db.handle.engine.until_flush().is_some_and(|left| left <= Duration::from_secs(5)));
}

/// Commits one row.
fn commit_periodic(db: &Database, key: &[u8], within: Duration) {
    let tx =
        db.begin_with(crate::TransactionOptions::new().durability(Durability::Periodic(within))).unwrap();
    tx.open_bytes_table("t").unwrap().put(key, b"v").unwrap();
    tx.commit().unwrap();
}

#[test]
fn a_periodic_commit_is_flushed_when_its_interval_is_over_and_not_before() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    put_rows(&db, 1, b"v");
    db.flush().unwrap();
    let survive = || {
        let db = open(&disk.crash_image(CrashMode::LoseAll, 1));
        let snapshot = db.snapshot().unwrap();
        let table = snapshot.open_bytes_table("t").unwrap();
        [&b"early"[..], b"late", b"hurried"].map(|key| table.get(key).unwrap().is_some())
    };
    let ms = Duration::from_millis;
    commit_periodic(&db, b"early", ms(10));
    disk.advance(ms(5));
    // It may wait as long as the one before, from now on; the flush that is due then takes both.
    commit_periodic(&db, b"late", ms(10));
    db.maintain().unwrap();
    assert_eq!(survive(), [false, false, false]);
    disk.advance(ms(5));
    db.maintain().unwrap();
    assert_eq!(survive(), [true, true, false]);
    // A shorter interval is due first.
    commit_periodic(&db, b"late", ms(1000));
    commit_periodic(&db, b"hurried", ms(1));
    disk.advance(ms(1));
    db.maintain().unwrap();
    assert_eq!(survive(), [true, true, true]);
}

#[test]
fn a_periodic_commit_is_flushed_in_the_background_though_nothing_else_happens() {
    let directory = tempfile::tempdir().unwrap();
    let db = Options::new().page_bytes(4096).open(directory.path().join("db")).unwrap();
    for round in 0_u64..50 {
        commit_periodic(&db, &round.to_be_bytes(), Duration::from_millis(round % 3));
        let tail = db.stats().log_tail;
        while db.stats().log_durable < tail {
            std::thread::yield_now();
        }
    }
    assert_eq!(db.stats().commits_waited, 0);
}
