//! Recovery on the simulated disk: every kind of record redone and undone, and crashes inside the passes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hamal_pager::{PageNo, PartitionId};
use hamal_storage::sim::{CrashMode, SimStorage};
use hamal_wal::{Log, Lsn};

use crate::checkpoint::Effort;
use crate::record::Record;
use crate::report::RecoveryPass;
use crate::{Database, Durability, ErrorKind, Maintenance, Options, Transaction, inspect};

mod parallel;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

fn options() -> Options {
    Options::new()
        .maintenance(Maintenance::Manual)
        .page_bytes(4096)
        .cache_bytes(4 << 20)
        .log_buffer_bytes(256 << 10)
        .log_segment_bytes(256 << 10)
        .max_log_bytes(64 << 20)
        .lock_timeout(std::time::Duration::ZERO)
}

fn open(disk: &SimStorage) -> Database {
    options().open_on(Arc::new(disk.clone())).expect("open")
}

fn rows(db: &Database, table: &str) -> Rows {
    let snapshot = db.snapshot().unwrap();
    let table = snapshot.open_bytes_table(table).unwrap();
    let rows: Rows = table.iter().unwrap().map(Result::unwrap).collect();
    assert_eq!(table.len().unwrap(), rows.len() as u64, "the count is exact");
    rows
}

fn assert_sound(db: &Database) {
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(report.findings, [], "verification");
}

fn put(tx: &Transaction, table: &str, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
    tx.open_bytes_table(table).unwrap().put(key.as_ref(), value.as_ref()).unwrap();
}

/// How `inspect` tells the page changes apart.
const CHANGES: [&str; 12] = [
    "= ghost",
    "= value",
    "= overflow",
    "removed by",
    "back by",
    "purge",
    "image",
    "split off",
    "separator",
    "pages allocated",
    "pages freed",
    "overflow data",
];

/// What the records of the live log are and do.
fn kinds(disk: &SimStorage) -> BTreeSet<String> {
    let mut kinds = BTreeSet::new();
    inspect::log(&(Arc::new(disk.clone()) as Arc<_>), 4096, 0, &mut |entry| {
        kinds.insert(entry.kind.clone());
        for page in &entry.pages {
            for what in CHANGES.iter().filter(|what| page.change.contains(**what)) {
                kinds.insert(format!("{}: {what}", entry.kind));
            }
        }
        true
    })
    .unwrap();
    kinds
}

/// Commits, rolls back and leaves open something of every kind, with one checkpoint in the middle.
fn everything(db: &Database, disk: &SimStorage) -> (Transaction, BTreeSet<String>) {
    let long = vec![7; 50_000];
    db.transact(|tx| {
        for i in 0..600_u32 {
            put(tx, "a", i.to_be_bytes(), [i as u8; 100]);
        }
        put(tx, "a", b"long", &long);
        put(tx, "gone", b"k", b"v");
        Ok(())
    })
    .unwrap();
    let tx = db.begin().unwrap();
    for i in 0..600_u32 {
        if i % 3 != 0 {
            tx.open_bytes_table("a").unwrap().remove(&i.to_be_bytes()).unwrap();
        }
    }
    let savepoint = tx.savepoint().unwrap();
    put(&tx, "a", b"long", b"short now");
    put(&tx, "a", b"other", &long);
    tx.open_bytes_table("a").unwrap().delete(&0_u32.to_be_bytes()).unwrap();
    tx.rollback_to(savepoint).unwrap();
    put(&tx, "a", b"kept", b"yes");
    tx.commit().unwrap();
    let seen = kinds(disk);
    db.checkpoint().unwrap();
    while db.maintain().unwrap() {}
    db.transact(|tx| tx.drop_table("gone")).unwrap();
    db.transact(|tx| tx.rename_table("a", "b")).unwrap();
    let tx = db.begin().unwrap();
    put(&tx, "b", b"taken back", &long);
    put(&tx, "never", b"k", b"v");
    tx.rollback().unwrap();
    db.flush().unwrap();
    let loser = db.begin().unwrap();
    for i in 0..60_u32 {
        put(&loser, "b", (3 * i).to_be_bytes(), b"uncommitted");
        put(&loser, "b", (3 * i + 1).to_be_bytes(), [1; 300]);
        loser.open_bytes_table("b").unwrap().delete(&(300 + 3 * i).to_be_bytes()).unwrap();
    }
    put(&loser, "b", b"long", b"uncommitted");
    put(&loser, "b", b"more", &long);
    put(&loser, "made", b"k", b"v");
    loser.drop_table("made").unwrap();
    db.flush().unwrap();
    let seen = seen.union(&kinds(disk)).cloned().collect();
    (loser, seen)
}

fn expected() -> Rows {
    let mut rows: Rows =
        (0..600_u32).step_by(3).map(|i| (i.to_be_bytes().to_vec(), vec![i as u8; 100])).collect();
    rows.insert(b"long".to_vec(), vec![7; 50_000]);
    rows.insert(b"kept".to_vec(), b"yes".to_vec());
    rows
}

#[test]
fn every_kind_of_record_is_written_redone_and_undone() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    let (loser, seen) = everything(&db, &disk);
    for kind in [
        "update: = value",
        "update: = overflow",
        "update: removed by",
        "update: pages allocated",
        "compensation: = ghost",
        "compensation: = overflow",
        "compensation: back by",
        "compensation: pages freed",
        "structure: purge",
        "structure: image",
        "structure: split off",
        "structure: separator",
        "structure: pages allocated",
        "structure: pages freed",
        "structure: overflow data",
        "commit",
        "abort",
        "end",
        "begin-checkpoint",
        "checkpoint-counts",
        "end-checkpoint",
        "partition-deleted",
    ] {
        assert!(seen.contains(kind), "{kind:?} is not among {seen:?}");
    }
    for (mode, seed) in [(CrashMode::Kill, 1), (CrashMode::LoseAll, 2), (CrashMode::Subset, 3)] {
        let image = disk.crash_image(mode, seed);
        let db = open(&image);
        let report = db.recovery_report().clone();
        assert!(!report.clean);
        assert_eq!(report.losers, 1, "{report:?}");
        assert!(report.redo.applied > 0 && report.undo.applied > 60, "{report:?}");
        assert_eq!(rows(&db, "b"), expected());
        assert_eq!(db.tables().unwrap().len(), 1, "{:?}", db.tables());
        assert_sound(&db);
        db.close().unwrap();
        let db = open(&image);
        assert!(db.recovery_report().clean, "{:?}", db.recovery_report());
        assert_eq!(rows(&db, "b"), expected());
    }
    // Once more with a checkpoint under the loser's feet: its pages are stolen, and noted as clean.
    db.checkpoint().unwrap();
    assert!(db.stats().pages_stolen > 0);
    put(&loser, "b", b"kept", b"uncommitted");
    db.flush().unwrap();
    assert!(kinds(&disk).contains("pages-clean"));
    let image = disk.crash(CrashMode::Kill, 4);
    drop(loser);
    drop(db);
    assert_eq!(rows(&open(&image), "b"), expected());
}

#[test]
fn a_crash_after_every_compensation_record_and_again_after_every_one_that_follows() {
    let disk = SimStorage::new(2);
    let db = open(&disk);
    db.transact(|tx| {
        for i in 0..20_u32 {
            put(tx, "t", i.to_be_bytes(), b"before");
        }
        put(tx, "t", b"long", vec![3; 20_000]);
        Ok(())
    })
    .unwrap();
    let before = rows(&db, "t");
    let loser = db.begin().unwrap();
    for i in 0..6_u32 {
        put(&loser, "t", i.to_be_bytes(), b"uncommitted, and longer than before");
        loser.open_bytes_table("t").unwrap().delete(&(10 + i).to_be_bytes()).unwrap();
    }
    put(&loser, "t", b"long", vec![4; 9_000]);
    put(&loser, "u", b"k", b"v");
    db.flush().unwrap();
    let crashed = disk.crash(CrashMode::LoseAll, 1);
    drop(loser);
    drop(db);

    let total = stop_after(&crashed, u64::MAX).1;
    assert!(total > 15, "{total} records undone");
    for first in 0..=total {
        let (once, done) = stop_after(&crashed, first);
        assert!(done >= first.min(total));
        for second in [0, 1, (total - first) / 2, total - first] {
            let (twice, _) = stop_after(&once, second);
            let db = open(&twice);
            assert_eq!(rows(&db, "t"), before, "crash after {first}, then after {second} of {total}");
            assert!(
                db.recovery_report().undo.applied <= total - first,
                "what was undone is not undone again"
            );
            assert_eq!(db.tables().unwrap().len(), 1);
            assert_sound(&db);
        }
    }
}

/// Recovers a copy of the disk, stops after so many undone records, and pulls the plug. Returns what is left and how many were
/// undone.
fn stop_after(disk: &SimStorage, records: u64) -> (SimStorage, u64) {
    let image = disk.crash_image(CrashMode::LoseAll, 7);
    let undone = Arc::new(AtomicU64::new(0));
    let count = undone.clone();
    let opened = options()
        .on_recovery(move |progress| {
            if progress.pass == RecoveryPass::Undo {
                count.store(progress.done, Ordering::Relaxed);
                if progress.done >= records {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })
        .open_on(Arc::new(image.clone()));
    match opened {
        Ok(db) => drop(db),
        Err(e) => assert_eq!(e.kind(), ErrorKind::Cancelled, "{e}"),
    }
    (image.crash(CrashMode::LoseAll, 8), undone.load(Ordering::Relaxed))
}

#[test]
fn relaxed_commits_are_lost_newest_first_and_never_in_half() {
    let disk = SimStorage::new(3);
    let db = options().durability(Durability::Relaxed).open_on(Arc::new(disk.clone())).unwrap();
    for i in 0..200_u32 {
        db.transact(|tx| {
            put(tx, "t", i.to_be_bytes(), b"x");
            put(tx, "t", (1000 + i).to_be_bytes(), b"x");
            Ok(())
        })
        .unwrap();
        if i == 50 {
            db.flush().unwrap();
        }
    }
    for seed in 0..20 {
        let db = open(&disk.crash_image(CrashMode::Subset, seed));
        let rows = rows(&db, "t");
        let kept = rows.len() as u32 / 2;
        assert!(kept > 50, "seed {seed}: what was flushed is there");
        let expected: Vec<Vec<u8>> =
            (0..kept).chain(1000..1000 + kept).map(|i| i.to_be_bytes().to_vec()).collect();
        assert_eq!(rows.into_keys().collect::<Vec<_>>(), expected, "seed {seed}: a prefix of whole commits");
    }
}

#[test]
fn files_of_another_database_and_damaged_masters_are_refused_untouched() {
    let (one, two) = (SimStorage::new(4), SimStorage::new(5));
    for disk in [&one, &two] {
        let db = open(disk);
        db.transact(|tx| {
            put(tx, "t", b"k", b"v");
            Ok(())
        })
        .unwrap();
        db.close().unwrap();
    }
    let refused = |disk: &SimStorage| {
        let before = disk.fingerprint_of_files();
        let error = options().open_on(Arc::new(disk.clone())).expect_err("refused");
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotADatabase), "{error}");
        assert_eq!(disk.fingerprint_of_files(), before, "untouched");
    };
    // Both masters bad.
    let image = one.crash_image(CrashMode::KeepAll, 1);
    for name in ["MASTER-A", "MASTER-B"] {
        image.flip_bit(name, 8 * 20).unwrap();
    }
    refused(&image);
    // Another database's log.
    let image = one.crash_image(CrashMode::KeepAll, 1);
    for name in two.files().iter().filter(|n| n.starts_with("wal/")) {
        let bytes = two.read_file(name).unwrap();
        image.overwrite(name, 0, &bytes).unwrap();
    }
    refused(&image);
    // One bad master is not enough to stop anything.
    let image = one.crash_image(CrashMode::KeepAll, 1);
    image.flip_bit("MASTER-A", 8 * 20).unwrap();
    assert_eq!(rows(&open(&image), "t").len(), 1);
}

/// What the tests compare to see that nothing changed.
trait Files {
    fn fingerprint_of_files(&self) -> Vec<(String, u32)>;
}

impl Files for SimStorage {
    fn fingerprint_of_files(&self) -> Vec<(String, u32)> {
        let mut files: Vec<_> = self
            .files()
            .into_iter()
            .filter(|name| name != "LOCK")
            .map(|name| {
                let sum = crc32c::crc32c(&self.read_file(&name).unwrap());
                (name, sum)
            })
            .collect();
        files.sort();
        files
    }
}

#[test]
fn a_statement_that_failed_before_its_first_record_does_not_spoil_the_next_checkpoint() {
    let disk = SimStorage::new(6);
    let db = open(&disk);
    db.transact(|tx| {
        put(tx, "t", b"k", b"v");
        Ok(())
    })
    .unwrap();
    let tx = db.begin().unwrap();
    let mut table = tx.open_bytes_table("t").unwrap();
    // Long enough for an overflow value, and gone before there is enough of it to be written.
    let breaks = std::io::Read::chain(&[0_u8; 5_000][..], Broken);
    assert_eq!(table.insert_from(b"long", breaks).expect_err("the source breaks").kind(), ErrorKind::Io);
    drop(table);
    db.checkpoint().unwrap();
    db.checkpoint().unwrap();
    let image = disk.crash_image(CrashMode::LoseAll, 1);
    let recovered = open(&image);
    assert_eq!(rows(&recovered, "t").len(), 1);
    assert_sound(&recovered);
    tx.rollback().unwrap();
}

/// A source that cannot be read.
struct Broken;

impl std::io::Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::ConnectionReset.into())
    }
}

/// Two disks of one database with rows `a` and `b`: one that a crash left, and what another crash leaves when `after` has gone on
/// from it, with pages in place that are as new as `b` and no newer, and the log's word for that. So it is when pages are
/// written back while they change, or by a recovery that a crash cuts short.
fn pages_in_place_as_of(after: impl Fn(&Database)) -> SimStorage {
    let disk = SimStorage::new(7);
    let db = open(&disk);
    db.checkpoint().unwrap();
    for key in [b"a", b"b"] {
        db.transact(|tx| {
            put(tx, "t", key, b"1");
            Ok(())
        })
        .unwrap();
    }
    let written = disk.crash_image(CrashMode::KeepAll, 1);
    open(&written).checkpoint().unwrap();

    after(&db);
    let mut pages = Vec::new();
    let parts = written.files().into_iter().filter(|name| name.starts_with("part/"));
    let files: Vec<_> = parts.map(|name| (written.read_file(&name).unwrap(), name)).collect();
    for (bytes, name) in &files {
        let id = name.trim_start_matches("part/").trim_end_matches(".dat").parse().unwrap();
        for (page, image) in bytes.chunks_exact(4096).enumerate() {
            let lsn = hamal_pager::header::page_lsn(image);
            if lsn > Lsn::NEVER {
                pages.push((PartitionId(id), PageNo(page as u32), lsn));
            }
        }
    }
    db.handle.engine.journal.append(&Record::PagesClean { pages }).unwrap();
    db.flush().unwrap();
    let image = disk.crash_image(CrashMode::KeepAll, 1);
    for (bytes, name) in &files {
        image.overwrite(name, 0, bytes).unwrap();
    }
    image
}

fn put_one_more(db: &Database, key: &[u8]) {
    db.transact(|tx| {
        put(tx, "t", key, b"1");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_page_cleaned_to_before_the_checkpoint_keeps_its_later_changes() {
    // Analysis starts behind `c`: all it knows of the page is the checkpoint's table.
    let image = pages_in_place_as_of(|db| {
        put_one_more(db, b"c");
        db.handle.engine.take_checkpoint(Effort::Fuzzy).unwrap();
    });
    let db = open(&image);
    assert_eq!(rows(&db, "t").len(), 3, "rows a, b, c");
    assert_sound(&db);
}

#[test]
fn redo_may_start_at_a_page_that_was_cleaned_and_changed_again() {
    let image = pages_in_place_as_of(|db| put_one_more(db, b"c"));
    let db = open(&image);
    assert_eq!(rows(&db, "t").len(), 3, "rows a, b, c");
    assert_sound(&db);
}

#[test]
fn a_dropped_table_is_not_listed_by_a_checkpoint_behind_the_record_that_says_so() {
    let disk = SimStorage::new(8);
    let db = open(&disk);
    put_one_more(&db, b"k");
    let deleted = || {
        let mut found = false;
        inspect::log(&(Arc::new(disk.clone()) as Arc<_>), 4096, 0, &mut |entry| {
            found |= entry.kind == "partition-deleted";
            true
        })
        .unwrap();
        found
    };
    let engine = &db.handle.engine;
    let checkpoint = engine.checkpoint.lock();
    // Whoever drops the table leaves its file to others then.
    db.transact(|tx| tx.drop_table("t")).unwrap();
    assert!(!deleted());
    std::thread::scope(|scope| {
        scope.spawn(|| engine.bury().unwrap());
        // As long as a checkpoint is under way, the record must not come. (A wrong order would not always be caught here.)
        (0..2_000).for_each(|_| std::thread::yield_now());
        assert!(!deleted());
        drop(checkpoint);
    });
    assert!(deleted());
    db.handle.engine.take_checkpoint(Effort::Fuzzy).unwrap();
    let recovered = open(&disk.crash_image(CrashMode::KeepAll, 1));
    assert_sound(&recovered);
    assert_eq!(
        recovered.handle.engine.timeline.newest_counts(|| Lsn::NEVER).0.len(),
        0,
        "nor is it counted any more"
    );
}

#[test]
fn a_statement_that_is_taken_back_whole_keeps_no_log_and_no_promise() {
    let disk = SimStorage::new(9);
    let db = open(&disk);
    put_one_more(&db, b"k");
    let engine = &db.handle.engine;
    let before = engine.log.promised_bytes();
    let tx = db.begin().unwrap();
    let mut table = tx.open_bytes_table("t").unwrap();
    let long = vec![0; 100_000];
    let breaks = std::io::Read::chain(&long[..], Broken);
    table.insert_from(b"long", breaks).expect_err("the source breaks");
    assert_eq!(engine.log.promised_bytes(), before);
    assert!(engine.timeline.images().is_empty(), "a checkpoint has nothing to keep log for");
    table.put(b"after", b"1").unwrap();
    drop(table);
    let savepoint = tx.savepoint().unwrap();
    put(&tx, "t", b"gone", b"1");
    tx.rollback_to(savepoint).unwrap();
    tx.commit().unwrap();
    let recovered = open(&disk.crash_image(CrashMode::KeepAll, 1));
    assert_eq!(rows(&recovered, "t").len(), 2);
    assert_sound(&recovered);
}

#[test]
fn a_record_that_does_not_decode_is_named_whoever_reads_the_log() {
    // The kinds of an update and of a commit, and nothing behind them. To the log itself they are sound.
    for kind in [1, 4] {
        let disk = SimStorage::new(31);
        let db = open(&disk);
        put_one_more(&db, b"a");
        let log = &db.handle.engine.log;
        let at = log.tail();
        log.admit(Log::framed_bytes(1), 0).unwrap().append(&[kind]).unwrap();
        put_one_more(&db, b"b");
        db.flush().unwrap();
        let errors = [1, 2].map(|workers| {
            let image = Arc::new(disk.crash_image(CrashMode::KeepAll, 1));
            let error = options().recovery_workers(workers).open_on(image).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            error.to_string()
        });
        assert_eq!(errors[0], errors[1]);
        assert!(errors[0].contains(&format!("log record {at}")), "{}", errors[0]);
    }
}
