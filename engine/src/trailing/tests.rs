//! Databases that are open while losers are still being undone: what is shown, what waits, and what crashes, closes and damage do to it.

mod crashes;
mod failures;
mod others;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use hamal_storage::Storage;
use hamal_storage::sim::{CrashMode, Fault, FaultKind, Operation, Repeat, Rng, SimStorage, When};

use crate::{Database, ErrorKind, Maintenance, Options, PartitionState, Snapshot, Stats, TransactionOptions};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

const ONLINE: PartitionState = PartitionState::Online;
const RECOVERING: PartitionState = PartitionState::Recovering;

const SLOTS: usize = 4;
/// Partitions in which the big loser has a chain; the others serve at once.
const BEHIND: [usize; 2] = [1, 2];
/// Rows that it changes in each of them.
const CHANGES: u64 = 400;

fn options() -> Options {
    Options::new()
        .page_bytes(4096)
        .cache_bytes(1 << 20)
        .log_buffer_bytes(64 << 10)
        .log_segment_bytes(256 << 10)
        .max_log_bytes(64 << 20)
        .maintenance(Maintenance::Manual)
        .trailing_undo_bytes(0)
}

fn key(slot: usize, number: u64) -> Vec<u8> {
    format!("{}{number:04}", (b'a' + slot as u8) as char).into_bytes()
}

fn splits() -> Vec<Vec<u8>> {
    (1..SLOTS).map(|slot| vec![b'a' + slot as u8]).collect()
}

/// A disk as a crash has left it, with losers, and what the database has to show.
struct Crashed {
    disk: SimStorage,
    model: Model,
}

/// One loser that has changed many rows of two partitions, put some and removed some, with long values among them.
fn crashed(seed: u64) -> Crashed {
    crashed_with(seed, |_| {})
}

/// `before`: what there is to do when half of it is written.
fn crashed_with(seed: u64, before: impl FnOnce(&Database)) -> Crashed {
    let (disk, mut rng, mut model) = (SimStorage::new(seed), Rng::new(seed), Model::new());
    let db = options().open_on(Arc::new(disk.clone())).unwrap();
    let splits = splits();
    let splits: Vec<&[u8]> = splits.iter().map(Vec::as_slice).collect();
    db.transact(|tx| tx.create_bytes_table("t", &splits).map(drop)).unwrap();
    db.transact(|tx| {
        for slot in 0..SLOTS {
            for number in 0..CHANGES / 2 {
                let bytes = if rng.chance(1, 50) { 9000 } else { rng.below(200) };
                let value = vec![number as u8; bytes as usize];
                tx.open_bytes_table("t")?.put(&key(slot, number), &value)?;
                model.insert(key(slot, number), value);
            }
        }
        Ok(())
    })
    .unwrap();
    db.checkpoint().unwrap();
    let tx = db.begin().unwrap();
    let mut before = Some(before);
    for number in 0..CHANGES {
        for slot in BEHIND {
            let mut table = tx.open_bytes_table("t").unwrap();
            match rng.below(4) {
                0 => table.delete(&key(slot, number)).unwrap(),
                1 if rng.chance(1, 10) => table.put(&key(slot, number), &[9; 9000]).unwrap(),
                _ => table.put(&key(slot, number), &[9; 150]).unwrap(),
            }
        }
        if number == CHANGES / 2 {
            before.take().unwrap()(&db);
        }
    }
    db.flush().unwrap();
    let disk = disk.crash(CrashMode::Kill, seed);
    drop(tx);
    Crashed { disk, model }
}

impl Crashed {
    fn open(&self) -> Database {
        self.open_with(options())
    }

    fn open_with(&self, options: Options) -> Database {
        options.open_on(Arc::new(self.disk.clone())).unwrap()
    }

    /// The rows of a partition.
    fn rows_of(&self, slot: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let rows = self.model.range(key(slot, 0)..key(slot, 9999));
        rows.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn assert_sound(&self, db: &Database) {
        assert_eq!(scan(&db.snapshot().unwrap()), self.model);
        let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        assert_eq!(states(db), [ONLINE; SLOTS]);
        let engine = &db.handle.engine;
        assert_eq!((db.stats().trailing_partitions, db.stats().trailing_losers), (0, 0));
        assert_eq!(engine.timeline.active(), 0);
        // What was promised has been given back: what is left is what any database promises.
        let standing = crate::checkpoint::standing_promise(&engine.options, engine.page_bytes);
        assert_eq!(engine.log.promised_bytes(), standing);
    }
}

/// All rows, both ways, which have to agree.
fn scan(snapshot: &Snapshot) -> Model {
    let table = snapshot.open_bytes_table("t").unwrap();
    let forward: Vec<_> = table.iter().unwrap().map(Result::unwrap).collect();
    let mut backward: Vec<_> = table.iter().unwrap().rev().map(Result::unwrap).collect();
    backward.reverse();
    assert_eq!(forward, backward);
    assert_eq!(table.len().unwrap(), forward.len() as u64);
    forward.into_iter().collect()
}

/// The states of the table's partitions.
fn states(db: &Database) -> Vec<PartitionState> {
    db.partitions().unwrap().iter().skip(1).map(|partition| partition.state).collect()
}

fn finish(db: &Database) {
    db.finish_recovery(&mut |_| ControlFlow::Continue(())).unwrap();
}

fn undone(db: &Database) -> u64 {
    let Stats { compensation_records, .. } = db.stats();
    compensation_records
}

#[test]
fn the_other_partitions_serve_before_anything_is_undone() {
    let mut crashed = crashed(1);
    let db = crashed.open();
    let report = db.recovery_report();
    assert_eq!((report.losers, report.trailing_losers, report.undo.records), (1, 1, 0), "{report:?}");
    let not_ready = report.partitions.iter().filter(|partition| partition.ready.is_none()).count();
    assert_eq!(not_ready, BEHIND.len(), "{report:?}");
    assert_eq!(states(&db), [ONLINE, RECOVERING, RECOVERING, ONLINE]);
    assert_eq!((db.stats().trailing_partitions, db.stats().trailing_losers), (2, 1));
    for slot in [0, 3] {
        let snapshot = db.snapshot().unwrap();
        let table = snapshot.open_bytes_table("t").unwrap();
        let rows: Vec<_> =
            table.range(&*key(slot, 0)..&*key(slot, 9999)).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows, crashed.rows_of(slot));
        db.transact(|tx| tx.open_bytes_table("t")?.put(&key(slot, 7), b"new")).unwrap();
        crashed.model.insert(key(slot, 7), b"new".to_vec());
    }
    // The count of rows is in no partition.
    let snapshot = db.snapshot().unwrap();
    assert_eq!(snapshot.open_bytes_table("t").unwrap().len().unwrap(), crashed.model.len() as u64);
    assert_eq!(undone(&db), 0);
    assert_eq!(states(&db), [ONLINE, RECOVERING, RECOVERING, ONLINE]);

    // The first to come undoes the one, and no more than that.
    let table = snapshot.open_bytes_table("t").unwrap();
    assert_eq!(table.get(&key(1, 3)).unwrap(), crashed.model.get(&key(1, 3)).cloned());
    assert_eq!(states(&db), [ONLINE, ONLINE, RECOVERING, ONLINE]);
    assert_eq!((db.stats().trailing_partitions, db.stats().trailing_losers), (1, 1));
    let in_the_one = undone(&db);
    assert!(in_the_one >= CHANGES / 2, "{in_the_one}");
    db.transact(|tx| tx.open_bytes_table("t")?.put(&key(2, 5), b"new")).unwrap();
    crashed.model.insert(key(2, 5), b"new".to_vec());
    assert_eq!(states(&db), [ONLINE; 4]);
    assert!(undone(&db) > in_the_one);
    crashed.assert_sound(&db);
}

#[test]
fn whoever_reads_across_is_shown_what_is_committed_in_every_order() {
    for seed in 1..5 {
        let crashed = crashed(seed);
        let db = crashed.open();
        // Taken before anything is undone, and used behind that too.
        let before = db.snapshot().unwrap();
        let table = before.open_bytes_table("t").unwrap();
        let mut rows = table.iter().unwrap();
        let mut seen = Vec::new();
        loop {
            // From both ends in turns.
            let (next, last) = (rows.next(), rows.next_back());
            if next.is_none() && last.is_none() {
                break;
            }
            seen.extend(next.into_iter().chain(last).map(Result::unwrap));
        }
        seen.sort();
        assert_eq!(seen, crashed.model.clone().into_iter().collect::<Vec<_>>());
        assert_eq!(scan(&before), crashed.model);
        crashed.assert_sound(&db);
    }
}

#[test]
fn every_way_into_a_partition_waits_for_its_undo() {
    type Way = (&'static str, fn(&Database) -> crate::Result<()>);
    let ways: [Way; 9] = [
        ("get", |db| db.snapshot()?.open_bytes_table("t")?.get(&key(1, 1)).map(drop)),
        ("contains", |db| db.snapshot()?.open_bytes_table("t")?.contains_key(&key(1, 1)).map(drop)),
        ("range", |db| {
            let snapshot = db.snapshot()?;
            snapshot.open_bytes_table("t")?.range(&*key(1, 1)..)?.next().transpose().map(drop)
        }),
        ("range, backwards", |db| {
            let snapshot = db.snapshot()?;
            snapshot.open_bytes_table("t")?.range(..&*key(1, 1))?.next_back().transpose().map(drop)
        }),
        ("reader", |db| db.snapshot()?.open_bytes_table("t")?.reader(&key(1, 1)).map(drop)),
        ("put", |db| db.transact(|tx| tx.open_bytes_table("t")?.put(&key(1, 1), b"x"))),
        ("delete", |db| db.transact(|tx| tx.open_bytes_table("t")?.delete(&key(1, 1)).map(drop))),
        ("get_for_update", |db| {
            db.transact(|tx| tx.open_bytes_table("t")?.get_for_update(&key(1, 1)).map(drop))
        }),
        ("insert_from", |db| {
            db.transact(|tx| tx.open_bytes_table("t")?.insert_from(&key(1, 1), &*vec![5; 20_000]).map(drop))
        }),
    ];
    let crashed = crashed(3);
    for (name, way) in ways {
        let disk = crashed.disk.crash_image(CrashMode::KeepAll, 1);
        let db = options().open_on(Arc::new(disk)).unwrap();
        let handle = &db.handle.engine.partition(hamal_pager::PartitionId(id_of(&db, 1))).unwrap();
        assert!(handle.is_behind(), "{name}");
        way(&db).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!handle.is_behind(), "{name}");
        assert!(states(&db)[2] == PartitionState::Recovering, "{name}: nobody has come to the other");
    }
}

fn id_of(db: &Database, slot: usize) -> u32 {
    db.partitions().unwrap()[slot + 1].id
}

#[test]
fn who_has_waited_long_enough_is_told_and_what_he_has_undone_stays_undone() {
    let crashed = crashed(4);
    let db = crashed.open_with(options().lock_timeout(Duration::ZERO));
    let get = || db.begin().unwrap().open_bytes_table("t").unwrap().get(&key(1, 1));
    let error = get().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    let text = error.to_string();
    assert!(text.contains("partition") && text.contains("undone"), "{text}");
    let mut tries = 1;
    let mut before = undone(&db);
    while get().is_err() {
        tries += 1;
        let now = undone(&db);
        assert!(now > before, "each of them helps");
        before = now;
    }
    assert!(tries > 2, "{tries}");

    // A transaction has a timeout of its own, and can be cancelled.
    let patient = TransactionOptions::new().lock_timeout(Duration::from_hours(1));
    let tx = db.begin_with(patient).unwrap();
    tx.canceller().cancel();
    let error = tx.open_bytes_table("t").and_then(|table| table.get(&key(2, 1))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    drop(tx);
    // A snapshot is not refused.
    let before = undone(&db);
    assert_eq!(states(&db), [ONLINE, ONLINE, RECOVERING, ONLINE]);
    assert_eq!(scan(&db.snapshot().unwrap()), crashed.model);
    assert!(undone(&db) > before);
    let tx = db.begin_with(patient).unwrap();
    assert_eq!(
        tx.open_bytes_table("t").unwrap().get(&key(2, 1)).unwrap(),
        crashed.model.get(&key(2, 1)).cloned()
    );
    drop(tx);
    crashed.assert_sound(&db);
}

#[test]
fn maintenance_by_hand_undoes_all_of_it_bit_by_bit() {
    let crashed = crashed(5);
    let db = crashed.open();
    let mut rounds = 0;
    while db.stats().trailing_losers > 0 {
        let before = undone(&db);
        assert!(db.maintain().unwrap());
        assert!(undone(&db) <= before + super::STEPS);
        rounds += 1;
    }
    assert!(rounds > 8, "{rounds}");
    crashed.assert_sound(&db);
    assert_eq!(db.stats().rollbacks, 1);
}

#[test]
fn finish_recovery_and_verification_leave_nothing_behind() {
    let crashed = crashed(6);
    let db = crashed.open();
    let mut heard = Vec::new();
    let error = db.finish_recovery(&mut |progress| {
        assert_eq!(progress.pass, crate::RecoveryPass::Undo);
        heard.push((progress.done, progress.total));
        if heard.len() < 4 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(heard.is_sorted() && heard[3].0 > 0 && heard[3].0 == undone(&db), "{heard:?}");
    assert!(heard.iter().all(|(done, total)| *total > CHANGES && done <= total), "{heard:?}");
    finish(&db);
    assert_eq!(states(&db), [ONLINE; SLOTS]);
    crashed.assert_sound(&db);
    let crashed = super::tests::crashed(6);
    let db = crashed.open();
    // It can be stopped while it waits for that.
    let error = db.verify(&mut |_| ControlFlow::Break(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(undone(&db) < CHANGES);
    crashed.assert_sound(&db);
}

#[test]
fn little_losers_and_those_that_cannot_wait_are_undone_by_open() {
    let crashed = crashed(7);
    let all = crashed.open_with(options().trailing_undo_bytes(u64::MAX));
    let report = all.recovery_report();
    assert_eq!((report.trailing_losers, report.undo.records), (0, undone(&all)), "{report:?}");
    assert!(report.undo.records > CHANGES);
    assert!(report.partitions.iter().all(|partition| partition.ready.is_some()), "{report:?}");
    crashed.assert_sound(&all);

    // What it takes decides.
    let disk = crashed.disk.clone();
    drop(all);
    let db = options().open_on(Arc::new(disk.clone())).unwrap();
    let tx = db.begin().unwrap();
    (0..20).for_each(|n| tx.open_bytes_table("t").unwrap().put(&key(0, n), &[3; 100]).unwrap());
    let other = db.begin().unwrap();
    other.open_bytes_table("t").unwrap().put(&key(1, 1), &[3; 100]).unwrap();
    // One that has made a table.
    let maker = db.begin().unwrap();
    (0..50).for_each(|n| maker.open_bytes_table("t").unwrap().put(&key(2, n), &[4; 200]).unwrap());
    maker.open_bytes_table("new").unwrap().put(b"k", b"v").unwrap();
    db.flush().unwrap();
    let disk = disk.crash(CrashMode::Kill, 1);
    drop((tx, other, maker));
    let db = options().trailing_undo_bytes(1500).open_on(Arc::new(disk)).unwrap();
    let report = db.recovery_report();
    assert_eq!((report.losers, report.trailing_losers), (3, 1), "{report:?}");
    assert_eq!(states(&db)[0], PartitionState::Recovering);
    assert_eq!(undone(&db), report.undo.records);
    crashed.assert_sound(&db);
}

/// What it has promised beside what any database does.
fn promised(db: &Database) -> u64 {
    let engine = &db.handle.engine;
    engine.log.promised_bytes() - crate::checkpoint::standing_promise(&engine.options, engine.page_bytes)
}

#[test]
fn the_log_has_room_for_what_trails_however_full_others_make_it() {
    // Seen since the checkpoint, told by it, or both.
    for checkpoints in [false, true] {
        let crashed = crashed_with(8, |db| assert!(!checkpoints || db.checkpoint().is_ok()));
        let db = crashed.open_with(options().max_log_bytes(2 << 20));
        let engine = &db.handle.engine;
        let (before, tail) = (promised(&db), engine.log.tail());
        // Others take all that is left of the log, and of the disk.
        while engine.log.promise(512).is_ok() {}
        crashed.disk.set_capacity_bytes(Some(crashed.disk.used_bytes()));
        finish(&db);
        let took = engine.log.tail().0 - tail.0;
        assert!(took <= before && took > before / 3, "{took} of {before}");
        assert_eq!(states(&db), [ONLINE; SLOTS]);
    }
}

/// A crash that has cut off a transaction which has put many rows of next to nothing into a set. `before`: what there is to do when half of
/// them are there.
fn crashed_set(before: impl FnOnce(&Database)) -> SimStorage {
    let set: crate::TableDef<'_, u64, ()> = crate::TableDef::new("set");
    let disk = SimStorage::new(1);
    let db = options().open_on(Arc::new(disk.clone())).unwrap();
    db.transact(|tx| tx.open_table(set).map(drop)).unwrap();
    db.checkpoint().unwrap();
    let tx = db.begin().unwrap();
    (0..1000).for_each(|n| tx.open_table(set).unwrap().put(n, ()).unwrap());
    before(&db);
    (1000..2000).for_each(|n| tx.open_table(set).unwrap().put(n, ()).unwrap());
    db.flush().unwrap();
    let disk = disk.crash(CrashMode::Kill, 1);
    drop(tx);
    disk
}

#[test]
fn what_is_promised_is_enough_for_rows_of_next_to_nothing() {
    for checkpoints in [false, true] {
        let disk = crashed_set(|db| assert!(!checkpoints || db.checkpoint().is_ok()));
        let db = options().open_on(Arc::new(disk)).unwrap();
        let (before, tail) = (promised(&db), db.handle.engine.log.tail());
        finish(&db);
        assert_eq!(undone(&db), 2000);
        let took = db.handle.engine.log.tail().0 - tail.0;
        assert!(took <= before && took > before / 2, "{took} of {before}");
    }
}

#[test]
fn nothing_trails_that_would_leave_others_too_little_of_the_log() {
    let disk = crashed_set(|_| ());
    for (max_log_bytes, trailing) in [(64 << 20, 1), (1 << 20, 1), (256 << 10, 0)] {
        let disk = disk.crash_image(CrashMode::KeepAll, 1);
        let db = options().max_log_bytes(max_log_bytes).open_on(Arc::new(disk)).unwrap();
        let report = db.recovery_report();
        assert_eq!((report.losers, report.trailing_losers), (1, trailing), "{max_log_bytes}: {report:?}");
        finish(&db);
        assert_eq!(undone(&db), 2000);
        assert!(db.verify(&mut |_| ControlFlow::Continue(())).unwrap().findings.is_empty());
    }
}

#[test]
fn what_is_undone_gives_its_promise_back_and_others_the_room() {
    let crashed = crashed(8);
    let db = crashed.open();
    let log = &db.handle.engine.log;
    let (free, first) = (log.free_bytes(), promised(&db));
    let mut last = first;
    while db.handle.engine.catch_up_some().unwrap() && db.stats().trailing_losers > 0 {
        assert!(promised(&db) < last);
        last = promised(&db);
        // But for what threads have in stock.
        assert!(log.free_bytes() + (64 << 10) > free, "{} of {free}", log.free_bytes());
    }
    // It is promised as if each old value were as long as the new one too.
    assert!(last < first * 3 / 4, "{last} of {first}");
    crashed.assert_sound(&db);
}

#[test]
fn who_meets_a_full_log_undoes_what_keeps_it_full() {
    let mut crashed = crashed(8);
    let db = crashed.open_with(options().max_log_bytes(1 << 20).durability(crate::Durability::Relaxed));
    assert_eq!(db.stats().trailing_losers, 1);
    for n in 0..4000_u32 {
        let (key, value) = (key(0, u64::from(n % 50)), vec![n as u8; 500]);
        db.transact(|tx| tx.open_bytes_table("t")?.put(&key, &value)).unwrap();
        crashed.model.insert(key, value);
    }
    assert_eq!(db.stats().trailing_losers, 0);
    crashed.assert_sound(&db);
}

#[test]
fn several_losers_in_one_partition_are_all_undone_before_it_is_shown() {
    let disk = SimStorage::new(31);
    let db = options().open_on(Arc::new(disk.clone())).unwrap();
    let splits = splits();
    db.transact(|tx| tx.create_bytes_table("t", &splits).map(drop)).unwrap();
    let mut model = Model::new();
    db.transact(|tx| {
        for slot in 0..SLOTS {
            for number in 0..CHANGES {
                tx.open_bytes_table("t")?.put(&key(slot, number), b"old")?;
                model.insert(key(slot, number), b"old".to_vec());
            }
        }
        Ok(())
    })
    .unwrap();
    db.checkpoint().unwrap();
    // Two large ones that meet in a partition, and a small one that has changed it and another.
    let losers: Vec<_> = (0..3).map(|_| db.begin().unwrap()).collect();
    for number in 0..CHANGES {
        let which = (number % 3) as usize;
        let slots: &[usize] = match which {
            0 => &[1],
            1 => &[1, 2],
            _ if number < 6 => &[1, 3],
            _ => &[],
        };
        for slot in slots {
            losers[which].open_bytes_table("t").unwrap().put(&key(*slot, number), &[7; 200]).unwrap();
        }
    }
    db.flush().unwrap();
    let disk = disk.crash(CrashMode::Kill, 1);
    drop(losers);
    let crashed = Crashed { disk, model };
    let db = crashed.open_with(options().trailing_undo_bytes(10_000));
    let report = db.recovery_report();
    assert_eq!((report.losers, report.trailing_losers), (3, 2), "{report:?}");
    assert_eq!(states(&db), [ONLINE, RECOVERING, RECOVERING, ONLINE]);
    assert_eq!((db.stats().trailing_partitions, db.stats().trailing_losers), (2, 2));
    let snapshot = db.snapshot().unwrap();
    let table = snapshot.open_bytes_table("t").unwrap();
    assert_eq!(table.get(&key(1, 0)).unwrap().as_deref(), Some(&b"old"[..]));
    assert_eq!(states(&db), [ONLINE, ONLINE, RECOVERING, ONLINE]);
    assert_eq!((db.stats().trailing_partitions, db.stats().trailing_losers), (1, 1), "one is done with");
    drop(snapshot);
    crashed.assert_sound(&db);
}

#[test]
fn a_background_thread_undoes_it_beside_readers_and_writers_of_all_partitions() {
    for seed in 1..4 {
        let mut crashed = crashed(seed);
        let db = crashed.open_with(options().maintenance(Maintenance::Background).cache_bytes(2 << 20));
        assert_eq!(db.recovery_report().trailing_losers, 1);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (db, crashed) = (&db, &crashed);
                scope.spawn(move || {
                    let mut rng = Rng::new(seed * 100 + thread);
                    for n in 0..300_u32 {
                        let slot = rng.index(SLOTS);
                        let at = rng.below(CHANGES / 2);
                        let expected = crashed.model.get(&key(slot, at)).cloned();
                        let found = db.snapshot().unwrap().open_bytes_table("t").unwrap().get(&key(slot, at));
                        assert_eq!(found.unwrap(), expected, "seed {seed}");
                        let own = [key(slot, at), vec![b'+', thread as u8]].concat();
                        db.transact(|tx| tx.open_bytes_table("t")?.put(&own, &[n as u8; 30])).unwrap();
                        db.transact(|tx| tx.open_bytes_table("t")?.delete(&own).map(drop)).unwrap();
                    }
                });
            }
        });
        finish(&db);
        assert_eq!(states(&db), [ONLINE; SLOTS]);
        db.transact(|tx| tx.open_bytes_table("t")?.put(&key(1, 1), b"end")).unwrap();
        crashed.model.insert(key(1, 1), b"end".to_vec());
        assert_eq!(scan(&db.snapshot().unwrap()), crashed.model);
        let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        db.close().unwrap();
    }
}

#[test]
fn a_close_stops_the_background_thread_between_two_steps() {
    let crashed = crashed(2);
    let background = || options().maintenance(Maintenance::Background);
    for _ in 0..20 {
        crashed.open_with(background()).close().unwrap();
    }
    let db = crashed.open_with(background());
    finish(&db);
    assert_eq!(scan(&db.snapshot().unwrap()), crashed.model);
    db.close().unwrap();
    let db = crashed.open();
    assert!(db.recovery_report().clean, "{:?}", db.recovery_report());
    crashed.assert_sound(&db);
}
