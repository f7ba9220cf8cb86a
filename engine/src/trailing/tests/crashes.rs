//! Restarts in the middle of an undo that trails.

use super::*;
use crate::checkpoint::Effort;

/// Undoes some, and returns how many records that were.
fn undo_some(db: &Database) -> u64 {
    let before = undone(db);
    db.handle.engine.catch_up_some().unwrap();
    undone(db) - before
}

#[test]
fn closes_midway_lose_nothing_of_what_is_undone_and_undo_nothing_twice() {
    let whole = {
        let crashed = crashed(11);
        let db = crashed.open();
        db.finish_recovery(&mut |_| ControlFlow::Continue(())).unwrap();
        undone(&db)
    };
    let crashed = crashed(11);
    let (mut sum, mut opens) = (0, 0);
    loop {
        let db = crashed.open();
        opens += 1;
        if db.stats().trailing_losers == 0 {
            break crashed.assert_sound(&db);
        }
        sum += undo_some(&db);
        assert!(db.recovery_report().trailing_losers == 1 && !db.recovery_report().clean);
        db.close().unwrap();
    }
    assert_eq!(sum, whole);
    assert!(opens > 10, "{opens}");
}

#[test]
fn crashes_midway_beside_writers_and_checkpoints_are_consistent() {
    for seed in 1..8 {
        let mut crashed = crashed(seed);
        let mut rng = Rng::new(seed);
        let mut restarts = 0;
        loop {
            let db = crashed.open();
            if db.stats().trailing_losers == 0 {
                crashed.assert_sound(&db);
                break;
            }
            for _ in 0..rng.below(5) {
                match rng.below(5) {
                    0 => drop(undo_some(&db)),
                    1 => assert!(db.checkpoint().is_ok()),
                    2 => assert!(db.handle.engine.take_checkpoint(Effort::Fuzzy).is_ok()),
                    _ => {
                        // In a partition that serves, and once in a while in one that has to be undone first.
                        let slot = if rng.chance(1, 12) { 1 } else { 3 };
                        let (key, value) = (key(slot, rng.below(CHANGES)), vec![8; rng.below(500) as usize]);
                        db.transact(|tx| tx.open_bytes_table("t")?.put(&key, &value)).unwrap();
                        crashed.model.insert(key, value);
                    }
                }
            }
            restarts += 1;
            assert!(restarts < 500, "seed {seed}: it never comes to its end");
            crashed.disk = crashed.disk.crash(CrashMode::Any, rng.next_u64());
            drop(db);
        }
        println!("seed {seed}: {restarts} restarts");
        assert!(restarts > 3, "seed {seed}: {restarts}");
    }
}

#[test]
fn a_crash_at_any_io_leaves_what_was_committed() {
    let crashed = crashed_with(12, |db| assert!(db.checkpoint().is_ok()));
    let (mut io, mut behind) = (1, 0);
    loop {
        let disk = crashed.disk.crash_image(CrashMode::Kill, 1);
        let db = options().open_on(Arc::new(disk.clone())).unwrap();
        assert_eq!(db.stats().trailing_losers, 1);
        disk.crash_at(disk.io_count() + io);
        let mut model = crashed.model.clone();
        let mut unsure = None;
        let mut work = |number: u64| -> crate::Result<()> {
            db.handle.engine.catch_up_some()?;
            let (key, value) = (key(3, number), vec![number as u8; 40]);
            unsure = Some((key.clone(), value.clone()));
            db.transact(|tx| tx.open_bytes_table("t")?.put(&key, &value))?;
            model.insert(key, value);
            unsure = None;
            if number.is_multiple_of(4) {
                db.checkpoint()?;
            }
            Ok(())
        };
        let done = (0..8)
            .try_for_each(&mut work)
            .and_then(|()| db.finish_recovery(&mut |_| ControlFlow::Continue(())));
        drop(db);
        let disk = disk.crash(CrashMode::Any, 1000 + io);
        let mut next = Crashed { disk, model };
        let db = next.open();
        behind += u64::from(db.stats().trailing_losers > 0);
        let snapshot = db.snapshot().unwrap();
        if let Some((key, value)) = unsure
            && snapshot.open_bytes_table("t").unwrap().get(&key).unwrap().as_ref() == Some(&value)
        {
            next.model.insert(key, value);
        }
        drop(snapshot);
        next.assert_sound(&db);
        if done.is_ok() {
            break;
        }
        io += 1;
        assert!(io < 5000, "it never comes to its end");
    }
    println!("{io} I/Os, {behind} of them with something left to undo");
    assert!(io > 20 && behind > 10, "{io}, {behind}");
}
