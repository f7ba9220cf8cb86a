//! Recovery by several threads does what recovery by one does.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use hamal_storage::sim::Rng;
use hamal_storage::{File, FileId, Lock, Storage};

use super::*;
use crate::PartitionReport;
use crate::engine::Engine;
use crate::master::{self, Found, Master};
use crate::recovery::{Analysed, analyse, redo};
use crate::report::{RecoveryProgress, RecoveryReport};

const TABLES: [&str; 4] = ["a", "b", "c", "d"];

/// What a random history leaves when the machine stops: several tables, committed and rolled back work, losers, stolen pages, a table
/// made and one dropped. And the rows that must be there afterwards.
struct Crashed {
    image: SimStorage,
    rows: BTreeMap<&'static str, Rows>,
    cache_bytes: u64,
    may_be_torn: bool,
}

fn history(seed: u64) -> Crashed {
    let rng = &mut Rng::new(seed);
    let disk = SimStorage::new(seed);
    let cache_bytes = if rng.chance(1, 2) { 1 << 20 } else { 4 << 20 };
    let db = options().cache_bytes(cache_bytes).open_on(Arc::new(disk.clone())).unwrap();
    let mut model: BTreeMap<&'static str, Rows> = TABLES.iter().map(|t| (*t, Rows::new())).collect();
    db.transact(|tx| TABLES.iter().try_for_each(|table| tx.open_bytes_table(table).map(drop))).unwrap();
    let transactions = 20 + rng.below(40);
    let mut losers = Vec::new();
    for number in 0..transactions {
        let tx = db.begin().unwrap();
        let mut mine = model.clone();
        // Losers keep to keys of their own: they hold their locks to the end.
        let loses = number > transactions / 3 && rng.chance(1, 8);
        for _ in 0..=rng.below(60) {
            let most = if rng.chance(1, 3) { TABLES.len() } else { 2 };
            let table = TABLES[rng.index(most)];
            let mut key = rng.below(400).to_be_bytes().to_vec();
            if loses {
                key.push(losers.len() as u8);
            }
            let mut rows = tx.open_bytes_table(table).unwrap();
            if rng.chance(1, 4) {
                rows.delete(&key).unwrap();
                mine.get_mut(table).unwrap().remove(&key);
            } else {
                let bytes = if rng.chance(1, 25) { 20_000 } else { rng.below(300) } as usize;
                let value = vec![rng.below(256) as u8; bytes];
                rows.put(&key, &value).unwrap();
                mine.get_mut(table).unwrap().insert(key, value);
            }
        }
        if rng.chance(1, 6) {
            let savepoint = tx.savepoint().unwrap();
            put(&tx, "a", if loses { vec![9, losers.len() as u8] } else { vec![7] }, vec![1; 9_000]);
            tx.rollback_to(savepoint).unwrap();
        }
        if loses {
            put(&tx, &format!("made {number}"), b"k", b"v");
            losers.push(tx);
        } else if rng.chance(1, 6) {
            tx.rollback().unwrap();
        } else {
            tx.commit().unwrap();
            model = mine;
        }
        match rng.below(12) {
            0 => drop(db.handle.engine.take_checkpoint(Effort::Fuzzy).unwrap()),
            1 => drop(db.maintain().unwrap()),
            2 => {
                let name = format!("dropped {number}");
                db.transact(|tx| tx.open_bytes_table(&name)?.put(b"k", &[1; 6_000])).unwrap();
                db.transact(|tx| tx.drop_table(&name)).unwrap();
            }
            _ => {}
        }
    }
    db.flush().unwrap();
    let mode = [CrashMode::Kill, CrashMode::LoseAll, CrashMode::Subset][rng.index(3)];
    let image = disk.crash(mode, seed);
    drop(losers);
    Crashed { image, rows: model, cache_bytes, may_be_torn: matches!(mode, CrashMode::Subset) }
}

impl Crashed {
    /// The same disk once more.
    fn disk(&self) -> SimStorage {
        self.image.crash_image(CrashMode::KeepAll, 1)
    }

    /// The same without the doublewrite area, which no page needs: nothing is redone before the area has been made again, so that all is
    /// left to the redo pass. `None` if a page may need it.
    fn disk_for_the_redo_pass(&self) -> Option<SimStorage> {
        let disk = self.disk();
        Storage::remove(&disk, "doublewrite").unwrap();
        (!self.may_be_torn).then_some(disk)
    }

    fn options(&self, workers: usize) -> Options {
        options().cache_bytes(self.cache_bytes).recovery_workers(workers)
    }

    fn assert_recovered(&self, db: &Database) {
        for (table, expected) in &self.rows {
            assert!(rows(db, table) == *expected, "table {table}");
        }
        assert_eq!(db.tables().unwrap().len(), TABLES.len(), "what losers made is gone");
        assert_sound(db);
    }
}

/// The report without what depends on who was faster.
fn timeless(report: &RecoveryReport) -> RecoveryReport {
    let mut report = report.clone();
    for pass in [&mut report.analysis, &mut report.redo, &mut report.undo] {
        pass.elapsed = Duration::ZERO;
    }
    report.elapsed = Duration::ZERO;
    (report.redo_workers, report.undo_workers) = (0, 0);
    report.partitions.iter_mut().for_each(|partition| partition.ready = None);
    report
}

/// Does analysis and redo with so many threads, and writes every page back. Returns the report and the partitions' files.
fn redo_alone(
    crashed: &Crashed,
    disk: &SimStorage,
    workers: usize,
) -> (RecoveryReport, Vec<(String, Vec<u8>)>) {
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    let Found::Database(master) = master::find(&*storage).unwrap() else { panic!("a database") };
    let lock = storage.lock("LOCK").unwrap();
    let Analysed { engine, log_options, analysis, mut report } =
        analyse(storage, crashed.options(workers), lock, &master, Duration::ZERO).unwrap();
    redo::run(&engine, &log_options, &analysis, &mut report, Duration::ZERO).unwrap();
    report.partitions.sort_by_key(|p| p.partition);
    write_all_back(&engine);
    let parts = disk.files().into_iter().filter(|name| name.starts_with("part/"));
    (report, parts.map(|name| (name.clone(), disk.read_file(&name).unwrap())).collect())
}

fn assert_same_files(files: &[(String, Vec<u8>)], same: &[(String, Vec<u8>)], what: &str) {
    for ((name, bytes), (same_name, same_bytes)) in files.iter().zip(same) {
        assert_eq!(name, same_name, "{what}");
        let differs = bytes.chunks(4096).zip(same_bytes.chunks(4096)).position(|(one, many)| one != many);
        assert_eq!(differs, None, "{what}: a page of {name}");
        assert_eq!(bytes.len(), same_bytes.len(), "{what}: {name}");
    }
    assert_eq!(files.len(), same.len(), "{what}");
}

#[test]
fn redo_by_one_two_and_four_threads_leaves_the_same_bytes_and_the_same_report() {
    let (mut redone, mut skipped, mut partitions) = (0, 0, 0);
    for seed in 0..40 {
        let crashed = history(seed);
        let (expected, files) = redo_alone(&crashed, &crashed.disk(), 1);
        redone += expected.redo.applied;
        skipped += expected.partitions.iter().map(|p| p.skipped).sum::<u64>();
        partitions = partitions.max(expected.partitions.len());
        for workers in [2, 4] {
            let (report, same) = redo_alone(&crashed, &crashed.disk(), workers);
            assert_eq!(report.redo_workers, workers as u64);
            assert_eq!(timeless(&report), timeless(&expected), "seed {seed}, {workers} threads");
            assert_same_files(&files, &same, &format!("seed {seed}, {workers} threads"));
        }
    }
    assert!(redone > 10_000 && skipped > 0 && partitions > 4, "{redone}, {skipped}, {partitions}");
}

#[test]
fn redo_along_with_analysis_and_in_a_pass_of_its_own_leave_the_same_bytes() {
    let (mut early, mut late, mut compared) = (0, 0, 0);
    for seed in 40..100 {
        let crashed = history(seed);
        let (report, files) = redo_alone(&crashed, &crashed.disk(), 2);
        early += report.first_pass_pages;
        late += report.redo.pages - report.first_pass_pages;
        for workers in [1, 3] {
            let Some(disk) = crashed.disk_for_the_redo_pass() else { continue };
            let (report, same) = redo_alone(&crashed, &disk, workers);
            assert_eq!(report.first_pass_pages, 0, "seed {seed}");
            assert_same_files(&files, &same, &format!("seed {seed}, {workers} threads"));
            compared += 1;
        }
    }
    println!("{early} pages early, {late} late, {compared} compared");
    assert!(early > 2_000 && late > 200 && compared > 40, "{early}, {late}, {compared}");
}

/// One transaction for each of these rows.
fn change(db: &Database, value: u8, keys: impl IntoIterator<Item = u32>) {
    for i in keys {
        db.transact(|tx| tx.open_bytes_table("a")?.put(&i.to_be_bytes(), &[value; 300])).unwrap();
    }
}

fn write_all_back(engine: &Engine) {
    while engine.write_back(Lsn(u64::MAX), 64).unwrap() > 0 {}
}

#[test]
fn pages_that_are_written_and_changed_again_and_again_are_taken_once() {
    let disk = SimStorage::new(3);
    let db = open(&disk);
    change(&db, 1, 0..4000);
    db.checkpoint().unwrap();
    for round in 2..12 {
        change(&db, round, (0..4000).step_by(20));
        write_all_back(&db.handle.engine);
    }
    change(&db, 99, (0..4000).step_by(40));
    db.flush().unwrap();
    let image = disk.crash(CrashMode::Kill, 1);
    let db = open(&image);
    let report = db.recovery_report();
    assert!(report.redo.pages > 90 && report.first_pass_pages == report.redo.pages, "{report:?}");
    assert_eq!(rows(&db, "a").len(), 4000);
}

#[test]
fn where_too_many_pages_have_been_written_since_no_more_are_taken() {
    let disk = SimStorage::new(4);
    let db = open(&disk);
    change(&db, 1, 0..8000);
    db.checkpoint().unwrap();
    // Each page is changed once, and written.
    for part in 0..16 {
        change(&db, 2, part * 500..(part + 1) * 500);
        write_all_back(&db.handle.engine);
    }
    change(&db, 3, 0..500);
    db.flush().unwrap();
    let image = disk.crash(CrashMode::Kill, 1);
    let db = open(&image);
    let report = db.recovery_report();
    assert!(report.redo.pages > 30 && report.first_pass_pages < report.redo.pages, "{report:?}");
    // It has given up in the middle of some six hundred pages.
    let misses = db.stats().cache_misses;
    assert!(misses < 500, "{misses}: {report:?}");
    assert_eq!(rows(&db, "a").len(), 8000);
}

#[test]
fn which_pages_are_redone_along_with_analysis_depends_on_nothing_but_the_files() {
    let disk = SimStorage::new(3);
    let db = open(&disk);
    for value in 0..2 {
        change(&db, value, 0..6000);
    }
    db.handle.engine.take_checkpoint(Effort::Fuzzy).unwrap();
    db.flush().unwrap();
    let image = disk.crash(CrashMode::Kill, 1);
    let runs: BTreeSet<(u64, u64)> = (0..4)
        .map(|_| {
            let disk = image.crash_image(CrashMode::KeepAll, 1);
            let db = options().cache_bytes(1 << 20).open_on(Arc::new(disk.clone())).unwrap();
            let report = db.recovery_report();
            // The checkpoint lists more than there is room for.
            assert!(
                report.first_pass_pages > 100 && report.first_pass_pages < report.redo.pages,
                "{report:?}"
            );
            (disk.io_count(), disk.fingerprint())
        })
        .collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
}

fn checkpoint_of(disk: &SimStorage) -> Master {
    match master::find(disk).unwrap() {
        Found::Database(master) => master,
        Found::Nothing => panic!("a database"),
    }
}

#[test]
fn log_that_only_redo_along_with_analysis_would_read_may_be_damaged() {
    let disk = SimStorage::new(3);
    let db = open(&disk);
    change(&db, 1, 0..1500);
    db.checkpoint().unwrap();
    let before = checkpoint_of(&disk);
    change(&db, 2, 0..1500);
    db.handle.engine.take_checkpoint(Effort::Fuzzy).unwrap();
    // All that the checkpoint lists is changed and written behind it, and so needs nothing of before.
    change(&db, 3, 0..1500);
    write_all_back(&db.handle.engine);
    change(&db, 4, (0..1500).step_by(40));
    db.flush().unwrap();
    let at = before.checkpoint_lsn.0.midpoint(checkpoint_of(&disk).checkpoint_lsn.0);
    let image = disk.crash(CrashMode::Kill, 1);
    for (workers, is_damaged) in [(1, false), (2, false), (1, true), (2, true)] {
        let disk = image.crash_image(CrashMode::KeepAll, 1);
        if is_damaged {
            let in_segment = at % before.log_segment_bytes;
            let segment = disk.open(&format!("wal/{:020}.log", at - in_segment)).unwrap();
            segment.write_at(&[0xff; 64], in_segment).unwrap();
        }
        let db = options().recovery_workers(workers).open_on(Arc::new(disk)).unwrap();
        let report = db.recovery_report();
        assert!(report.redo.pages > 20, "{report:?}");
        let early = if is_damaged { 0 } else { report.redo.pages };
        assert_eq!(report.first_pass_pages, early, "{report:?}");
        let rows = rows(&db, "a");
        assert_eq!(rows.len(), 1500);
        assert!(rows.values().enumerate().all(|(i, value)| value[0] == 3 + u8::from(i % 40 == 0)));
    }
}

/// All files, but for the lock.
fn contents(disk: &SimStorage) -> BTreeMap<String, Vec<u8>> {
    let files = disk.files().into_iter().filter(|name| name != "LOCK");
    files.map(|name| (name.clone(), disk.read_file(&name).unwrap())).collect()
}

#[test]
fn an_open_that_is_refused_or_stopped_while_the_log_is_read_has_redone_pages_and_changed_nothing() {
    let crashed = history(225);
    for workers in [1, 2] {
        for stop_after in 1.. {
            let disk = crashed.disk();
            let before = contents(&disk);
            let mut calls = 0;
            let stopping = Mutex::new(move |progress: &RecoveryProgress| {
                calls += u64::from(progress.pass == RecoveryPass::Analysis);
                if calls < stop_after { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            let opened = crashed
                .options(workers)
                .on_recovery(move |progress| (*stopping.lock().unwrap())(progress))
                .open_on(Arc::new(disk.clone()));
            match opened {
                Ok(db) => {
                    assert!(stop_after > 5, "{stop_after}");
                    assert!(db.recovery_report().first_pass_pages > 20, "{:?}", db.recovery_report());
                    break;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}"),
            }
            assert!(contents(&disk) == before, "stopped by call {stop_after}");
            crashed.assert_recovered(&crashed.options(2).open_on(Arc::new(disk)).unwrap());
        }
        // A record in the middle is damaged: a later one attests it.
        let sound = crashed.options(1).open_on(Arc::new(crashed.disk())).unwrap();
        let report = sound.recovery_report();
        let (at, segment_bytes) = (report.checkpoint_lsn.midpoint(report.end_lsn), 256 << 10);
        let disk = crashed.disk();
        let segment = disk.open(&format!("wal/{:020}.log", at - at % segment_bytes)).unwrap();
        segment.write_at(&[0xff; 64], at % segment_bytes).unwrap();
        let before = contents(&disk);
        let error = crashed.options(workers).open_on(Arc::new(disk.clone())).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(contents(&disk) == before, "{error}");
    }
}

#[test]
fn recovery_by_many_threads_undoes_the_same_records_and_leaves_the_same_rows() {
    let mut losers = 0;
    for seed in 100..130 {
        let crashed = history(seed);
        let mut expected = None;
        for workers in [1, 2, 4] {
            let disk = crashed.disk();
            let db = crashed.options(workers).open_on(Arc::new(disk.clone())).unwrap();
            let report = timeless(db.recovery_report());
            losers += report.losers;
            assert!(report.undo.applied > 0 || report.losers == 0, "seed {seed}: {report:?}");
            assert_eq!(*expected.get_or_insert(report.clone()), report, "seed {seed}, {workers} threads");
            crashed.assert_recovered(&db);
            drop(db);
            let again = open(&disk);
            assert!(again.recovery_report().clean, "seed {seed}");
            crashed.assert_recovered(&again);
        }
    }
    assert!(losers > 60, "{losers}");
}

#[test]
fn a_crash_at_any_io_of_a_recovery_by_several_threads_is_survived() {
    for (seed, stride) in [(200, 7), (201, 11), (202, 13), (203, 17)] {
        let crashed = history(seed);
        for at in (1..).step_by(stride) {
            let disk = crashed.disk();
            disk.crash_at(at);
            // Which call it hits depends on the threads; what must follow does not.
            let opened = crashed.options(3).open_on(Arc::new(disk.clone())).map(drop);
            let crashed_in_time = disk.is_crashed();
            assert!(opened.is_ok() || crashed_in_time, "seed {seed}, I/O {at}: {opened:?}");
            // Once more in the recovery of that recovery.
            let twice = disk.crash(CrashMode::Subset, at);
            twice.crash_at(1 + at / 2);
            let _crashed = crashed.options(2).open_on(Arc::new(twice.clone())).map(drop);
            let image = twice.crash(CrashMode::Subset, at);
            for workers in [1, 4] {
                let image = image.crash_image(CrashMode::KeepAll, 1);
                let db = crashed.options(workers).open_on(Arc::new(image)).unwrap();
                crashed.assert_recovered(&db);
            }
            if !crashed_in_time {
                break;
            }
        }
    }
}

#[test]
fn whatever_io_fails_in_a_recovery_by_several_threads_the_next_open_recovers() {
    use hamal_storage::sim::{Fault, FaultKind, Repeat, When};
    let crashed = history(210);
    for kind in [FaultKind::Eio, FaultKind::Enospc] {
        for at in (1..).step_by(19) {
            let disk = crashed.disk();
            disk.inject(Fault::new(kind, When::Io(at), Repeat::Once));
            if let Err(error) = crashed.options(3).open_on(Arc::new(disk.clone())).map(drop) {
                let expected = [ErrorKind::Io, ErrorKind::NoSpace, ErrorKind::Poisoned];
                assert!(expected.contains(&error.kind()), "I/O {at}: {error}");
            }
            let over = disk.fired().is_empty();
            disk.clear_faults();
            crashed.assert_recovered(&crashed.options(2).open_on(Arc::new(disk)).unwrap());
            if over {
                break;
            }
        }
    }
}

/// A database whose pages have all gone back to what they were before their last changes reached the disk.
fn with_lost_writes() -> SimStorage {
    let disk = SimStorage::new(3);
    let db = open(&disk);
    let change_all = |value: &[u8]| {
        for table in TABLES {
            db.transact(|tx| {
                (0..400_u32).rev().for_each(|i| put(tx, table, i.to_be_bytes(), value));
                Ok(())
            })
            .unwrap();
        }
        db.flush().unwrap();
    };
    let parts = |disk: &SimStorage| -> Vec<_> {
        let parts = disk.files().into_iter().filter(|name| name.starts_with("part/"));
        parts.map(|name| (disk.read_file(&name).unwrap(), name)).collect()
    };
    change_all(&[1; 60]);
    db.checkpoint().unwrap();
    let stale = parts(&disk);
    change_all(&[2; 60]);
    db.checkpoint().unwrap();
    change_all(&[3; 60]);
    let image = disk.crash(CrashMode::KeepAll, 1);
    for (bytes, name) in stale {
        image.overwrite(&name, 0, &bytes).unwrap();
    }
    image
}

#[test]
fn of_many_failures_each_partition_with_one_is_quarantined_by_any_number_of_threads() {
    let image = with_lost_writes();
    let quarantined = |workers| {
        let disk = image.crash_image(CrashMode::KeepAll, 1);
        let db = options().self_repair(false).recovery_workers(workers).open_on(Arc::new(disk)).unwrap();
        let partitions = db.partitions().unwrap();
        assert!(
            partitions
                .iter()
                .filter_map(|p| p.cause.as_ref())
                .all(|cause| cause.contains("a write has been lost"))
        );
        partitions.into_iter().filter(|p| p.cause.is_some()).map(|p| p.id).collect::<Vec<_>>()
    };
    let expected = quarantined(1);
    assert_eq!(expected.len(), TABLES.len());
    for _ in 0..20 {
        for workers in [2, 3, 8] {
            assert_eq!(quarantined(workers), expected);
        }
    }
}

#[test]
fn a_redo_that_is_stopped_says_so_and_the_next_open_starts_again() {
    let crashed = history(220);
    for workers in [1, 2, 4] {
        for stop_after in 1.. {
            let disk = crashed.disk_for_the_redo_pass().unwrap();
            let seen = Arc::new(Mutex::new(Vec::new()));
            let calls = seen.clone();
            let opened = crashed
                .options(workers)
                .on_recovery(move |progress| {
                    if progress.pass != RecoveryPass::Redo {
                        return ControlFlow::Continue(());
                    }
                    let mut calls = calls.lock().unwrap();
                    calls.push((progress.done, progress.total));
                    if calls.len() < stop_after { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })
                .open_on(Arc::new(disk.clone()));
            let seen = seen.lock().unwrap();
            assert!(seen.is_sorted_by_key(|(done, _)| *done), "{seen:?}");
            assert!(seen.iter().all(|(done, total)| done <= total), "{seen:?}");
            match opened {
                Ok(db) => {
                    let report = db.recovery_report();
                    assert_eq!(seen.last(), Some(&(report.redo.bytes, report.redo.bytes)));
                    assert!(stop_after > 5, "{seen:?}");
                    break;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}"),
            }
            crashed.assert_recovered(&crashed.options(2).open_on(Arc::new(disk)).unwrap());
        }
    }
}

#[test]
fn an_undo_by_several_threads_that_is_stopped_is_gone_on_with() {
    let crashed = history(230);
    let total = {
        let db = crashed.options(1).open_on(Arc::new(crashed.disk())).unwrap();
        db.recovery_report().undo.applied
    };
    assert!(total > 50, "{total}");
    for stop_after in (1..total).step_by(9) {
        let disk = crashed.disk();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = calls.clone();
        let opened = crashed
            .options(4)
            .on_recovery(move |progress| {
                if progress.pass == RecoveryPass::Undo {
                    seen.lock().unwrap().push(progress.done);
                    if progress.done >= stop_after {
                        return ControlFlow::Break(());
                    }
                }
                ControlFlow::Continue(())
            })
            .open_on(Arc::new(disk.clone()));
        assert_eq!(opened.map(drop).unwrap_err().kind(), ErrorKind::Cancelled);
        let calls = calls.lock().unwrap();
        assert!(calls.iter().copied().eq(1..=calls.len() as u64), "one after the other: {calls:?}");
        let db = crashed.options(4).open_on(Arc::new(disk.crash(CrashMode::LoseAll, stop_after))).unwrap();
        assert!(
            db.recovery_report().undo.applied <= total - stop_after,
            "what is undone is not undone again"
        );
        crashed.assert_recovered(&db);
    }
}

#[test]
fn a_partition_is_ready_when_the_last_of_its_records_is_dealt_with() {
    let disk = SimStorage::new(4);
    let db = open(&disk);
    db.transact(|tx| TABLES.iter().try_for_each(|table| tx.open_bytes_table(table).map(drop))).unwrap();
    db.checkpoint().unwrap();
    let loser = db.begin().unwrap();
    put(&loser, "a", b"loser", b"v");
    for table in ["b", "c"] {
        (0..300_u32).for_each(|i| {
            db.transact(|tx| tx.open_bytes_table(table)?.put(&i.to_be_bytes(), &[1; 50])).unwrap();
        });
    }
    let ids: Vec<u32> = TABLES
        .iter()
        .map(|name| db.tables().unwrap().iter().find(|t| t.name == *name).unwrap().partitions[0])
        .collect();
    db.flush().unwrap();
    let image = disk.crash(CrashMode::LoseAll, 1);
    drop(loser);
    for (workers, is_early) in [1, 2, 4].into_iter().flat_map(|workers| [(workers, false), (workers, true)]) {
        let image = image.crash_image(CrashMode::KeepAll, 1);
        if !is_early {
            // As above: all is left to the redo pass.
            Storage::remove(&image, "doublewrite").unwrap();
        }
        let db = options().recovery_workers(workers).open_on(Arc::new(image)).unwrap();
        let report = db.recovery_report();
        let of = |id: u32| report.partitions.iter().find(|p| p.partition == id).copied();
        let [a, b, c] = [0, 1, 2].map(|n| of(ids[n]).unwrap());
        assert!(report.partitions.is_sorted_by_key(|p| p.partition), "{report:?}");
        assert_eq!(of(ids[3]), None, "nothing was to be done");
        if is_early {
            assert!(
                b.ready > Some(Duration::ZERO) && b.ready == c.ready,
                "one pass over the log: {report:?}"
            );
        } else {
            assert!(b.ready > Some(Duration::ZERO) && b.ready < c.ready, "{report:?}");
        }
        assert!(a.ready > c.ready && a.undone > 0, "its loser is undone last: {report:?}");
        assert!(
            report.partitions.iter().all(|p: &PartitionReport| p.ready < Some(report.elapsed)),
            "{report:?}"
        );
        assert_eq!(report.partitions.iter().map(|p| p.redone).sum::<u64>(), report.redo.applied);
        assert!(b.redo_bytes > 300 * 50, "{report:?}");
    }
}

/// A disk that makes whoever reads a page in a thread of this name panic.
#[derive(Debug)]
struct Panicking {
    disk: SimStorage,
    thread: &'static str,
}

#[derive(Debug)]
struct PanickingFile {
    file: Arc<dyn File>,
    thread: Option<&'static str>,
}

impl Panicking {
    fn wrap(&self, name: &str, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(PanickingFile { file, thread: name.starts_with("part/").then_some(self.thread) })
    }
}

impl Storage for Panicking {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(name, self.disk.open(name)?))
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(name, self.disk.create(name)?))
    }
    fn identity(&self, name: &str) -> io::Result<Option<FileId>> {
        self.disk.identity(name)
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.disk.exists(name)
    }
    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.disk.list(directory)
    }
    fn create_directory(&self, name: &str) -> io::Result<()> {
        self.disk.create_directory(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_directory(&self, name: &str) -> io::Result<()> {
        self.disk.sync_directory(name)
    }
    fn lock(&self, name: &str) -> io::Result<Box<dyn Lock>> {
        self.disk.lock(name)
    }
    fn now_micros(&self) -> u64 {
        self.disk.now_micros()
    }
    fn monotonic(&self) -> Duration {
        self.disk.monotonic()
    }
    fn random_u64(&self) -> u64 {
        self.disk.random_u64()
    }
}

impl File for PanickingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let name = std::thread::current().name().map(str::to_owned);
        let is_doomed = self.thread.is_some_and(|thread| name.as_deref() == Some(thread));
        assert!(!is_doomed, "a disk that panics");
        self.file.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(bytes, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn identity(&self) -> io::Result<FileId> {
        self.file.identity()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }
}

#[test]
fn a_panic_in_a_worker_is_an_error_and_stops_the_others() {
    // Nothing is in memory yet, so that every worker has pages to read.
    let disk = SimStorage::new(5);
    let db = open(&disk);
    for value in [[1; 60], [2; 60]] {
        db.transact(|tx| {
            (0..2_000_u32).for_each(|i| put(tx, "t", i.to_be_bytes(), value));
            Ok(())
        })
        .unwrap();
        if value[0] == 1 {
            db.checkpoint().unwrap();
        }
    }
    let image = disk.crash(CrashMode::LoseAll, 1);
    for thread in ["hamal-redo-0", "hamal-redo-2"] {
        let disk = image.crash_image(CrashMode::KeepAll, 1);
        let storage = Panicking { disk: disk.clone(), thread };
        let error = options().recovery_workers(3).open_on(Arc::new(storage)).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
        assert!(error.to_string().contains("a disk that panics"), "{error}");
        assert_eq!(rows(&open(&disk), "t").len(), 2_000);
    }
}
