//! Backups and moments while threads write, on the system's files, with the database's own background work.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::no_progress;
use crate::backup::{
    BackupOptions, DirectoryTarget, Moment, RestoreOptions, RestorePoint, backups, restore, verify,
};
use crate::{Database, Durability, Options, TableDef};

const ACCOUNTS: TableDef<u64, i64> = TableDef::new("accounts");
const PROGRESS: TableDef<u64, u64> = TableDef::new("progress");
const NOTES: TableDef<u64, &[u8]> = TableDef::new("notes");

const WRITERS: u64 = 3;
const ROWS: u64 = 300;

fn options() -> Options {
    Options::new()
        .page_bytes(4096)
        .cache_bytes(1 << 20)
        .log_buffer_bytes(64 << 10)
        .log_segment_bytes(256 << 10)
        .max_log_bytes(256 << 20)
        .checkpoint_log_bytes(256 << 10)
        .durability(Durability::Periodic(Duration::from_millis(20)))
}

/// What each writer has begun, and been told is committed.
#[derive(Default)]
struct Writer {
    begun: AtomicU64,
    acknowledged: AtomicU64,
}

/// Moves money about: the sum stays 0, and the writer's number is that of its last transaction.
fn write(db: &Database, writer: &Writer, index: u64, stop: &AtomicBool) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        writer.begun.store(number, Ordering::SeqCst);
        db.transact(|tx| {
            let mut accounts = tx.open_table(ACCOUNTS)?;
            let (from, to) = (number * 7 % ROWS * WRITERS + index, number * 13 % ROWS * WRITERS + index);
            for (account, by) in [(from, -1), (to, 1)] {
                let balance = accounts.get(account)?.unwrap_or(0);
                accounts.put(account, balance + by)?;
            }
            if number % 10 == 0 {
                tx.open_table(NOTES)?.put(index, &vec![number as u8; 6_000 + number as usize % 5_000])?;
            }
            tx.open_table(PROGRESS)?.put(index, number)
        })
        .unwrap();
        writer.acknowledged.store(number, Ordering::SeqCst);
    }
}

/// A moment, and what each writer must have and can have by then.
struct Remembered {
    moment: Moment,
    at_least: Vec<u64>,
    at_most: Vec<u64>,
}

fn remember(db: &Database, writers: &[Writer]) -> Remembered {
    let load = |counter: fn(&Writer) -> &AtomicU64| {
        writers.iter().map(|writer| counter(writer).load(Ordering::SeqCst)).collect::<Vec<_>>()
    };
    let at_least = load(|writer| &writer.acknowledged);
    let moment = db.restore_point();
    Remembered { moment, at_least, at_most: load(|writer| &writer.begun) }
}

fn check(db: &Database, remembered: Option<&Remembered>, context: &str) {
    let snapshot = db.snapshot().unwrap();
    let accounts = snapshot.open_table(ACCOUNTS).unwrap();
    let sum: i64 = accounts.iter().unwrap().map(|row| row.unwrap().1).sum();
    assert_eq!(sum, 0, "{context}");
    let progress = snapshot.open_table(PROGRESS).unwrap();
    if let Some(Remembered { at_least, at_most, .. }) = remembered {
        for (writer, (least, most)) in at_least.iter().zip(at_most).enumerate() {
            let found = progress.get(writer as u64).unwrap().unwrap_or(0);
            assert!((*least..=*most).contains(&found), "{context}: {least} <= {found} <= {most}");
        }
    }
    drop((accounts, progress));
    drop(snapshot);
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.findings.is_empty(), "{context}: {:?}", report.findings);
}

#[test]
fn backups_and_moments_under_many_threads_keep_what_was_acknowledged() {
    let home = tempfile::tempdir().unwrap();
    let vault = Arc::new(DirectoryTarget::new(home.path().join("vault")));
    let archived = options().archive(vault.clone()).archive_interval(Duration::from_millis(5));
    let db = archived.open(home.path().join("db")).unwrap();
    db.transact(|tx| {
        tx.open_table(ACCOUNTS)?;
        tx.open_table(NOTES)?;
        tx.open_table(PROGRESS).map(drop)
    })
    .unwrap();
    let writers: Vec<Writer> = (0..WRITERS).map(|_| Writer::default()).collect();
    let stop = AtomicBool::new(false);
    let mut remembered = Vec::new();
    std::thread::scope(|scope| {
        for (index, writer) in writers.iter().enumerate() {
            let (db, stop) = (&db, &stop);
            scope.spawn(move || write(db, writer, index as u64, stop));
        }
        let done = || writers.iter().map(|w| w.acknowledged.load(Ordering::SeqCst)).sum::<u64>();
        let wait_for_more = |more: u64| {
            let from = done();
            while done() < from + more {
                std::thread::yield_now();
            }
        };
        let mut base = None;
        for _ in 0..4 {
            wait_for_more(300);
            let options =
                base.take().map_or_else(BackupOptions::new, |id: String| BackupOptions::new().since(id));
            base = Some(db.backup(&*vault, &options, &mut no_progress).unwrap().id);
            for _ in 0..2 {
                remembered.push(remember(&db, &writers));
                wait_for_more(50);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    db.archive().unwrap();
    db.close().unwrap();

    for info in backups(&*vault).unwrap() {
        verify(&*vault, &info.id, &mut no_progress).unwrap();
    }
    for (index, there) in remembered.iter().enumerate() {
        for (way, point) in [
            ("lsn", RestorePoint::Lsn(there.moment.lsn)),
            ("time", RestorePoint::Micros(there.moment.micros)),
        ] {
            let path = home.path().join(format!("{way}-{index}"));
            restore(&*vault, &path, &RestoreOptions::new().to(point), &mut no_progress).unwrap();
            let db = options().open(&path).unwrap();
            check(&db, Some(there), &format!("moment {index} by {way}"));
        }
    }
    let path = home.path().join("end");
    restore(&*vault, &path, &RestoreOptions::new(), &mut no_progress).unwrap();
    let all = |counter: fn(&Writer) -> &AtomicU64| {
        writers.iter().map(|w| counter(w).load(Ordering::SeqCst)).collect::<Vec<_>>()
    };
    let end = Remembered {
        moment: Moment { lsn: 0, micros: 0 },
        at_least: all(|w| &w.acknowledged),
        at_most: all(|w| &w.acknowledged),
    };
    check(&options().open(&path).unwrap(), Some(&end), "the end");
}
