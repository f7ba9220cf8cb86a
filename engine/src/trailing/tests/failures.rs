//! Undo behind the open that fails, panics, or finds the disk full.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use hamal_storage::Scheduler;

use super::*;
use crate::trailing::STEPS;

#[test]
fn what_cannot_be_undone_poisons_and_is_shown_to_nobody() {
    let crashed = crashed(9);
    let db = crashed.open();
    crashed.disk.inject(
        Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Forever).only(&[Operation::Read]).on("wal/*.log"),
    );
    let get = |slot| db.snapshot().unwrap().open_bytes_table("t").unwrap().get(&key(slot, 1));
    let error = get(1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    crashed.disk.clear_faults();
    for slot in BEHIND {
        let error = get(slot).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
    }
    assert_eq!(get(0).unwrap(), crashed.model.get(&key(0, 1)).cloned(), "the others are shown");
    assert_eq!(db.begin().map(drop).unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(
        db.finish_recovery(&mut |_| ControlFlow::Continue(())).unwrap_err().kind(),
        ErrorKind::Poisoned
    );
    assert_eq!(db.close().unwrap_err().kind(), ErrorKind::Poisoned);
    crashed.assert_sound(&crashed.open());
}

/// Panics when so many records have been undone.
#[derive(Debug)]
struct Panics(AtomicU64);

impl Scheduler for Panics {
    fn pause(&self, place: &'static str) {
        let is_there = place == "between steps of an undo" && self.0.fetch_sub(1, Ordering::Relaxed) == 1;
        assert!(!is_there, "planted");
    }
}

#[test]
fn an_undo_that_panics_poisons_and_the_next_open_goes_on_with_it() {
    for steps in [1, 3, STEPS, STEPS + 7] {
        let crashed = crashed(10);
        let db = crashed.open();
        crashed.disk.set_scheduler(Arc::new(Panics(AtomicU64::new(steps))));
        let get = |slot| db.snapshot().unwrap().open_bytes_table("t").unwrap().get(&key(slot, 1));
        catch_unwind(AssertUnwindSafe(|| get(1))).unwrap_err();
        for slot in BEHIND {
            let error = get(slot).unwrap_err();
            assert!(error.kind() == ErrorKind::Poisoned && error.to_string().contains("panicked"), "{error}");
        }
        assert_eq!(get(0).unwrap(), crashed.model.get(&key(0, 1)).cloned(), "the others are shown");
        assert_eq!((db.stats().trailing_partitions, db.stats().trailing_losers), (2, 1));
        assert_eq!(db.close().unwrap_err().kind(), ErrorKind::Poisoned);
        let crashed = Crashed { disk: crashed.disk.crash(CrashMode::Kill, steps), ..crashed };
        crashed.assert_sound(&crashed.open());
    }
}

#[test]
fn what_trails_is_undone_on_a_disk_that_is_full() {
    for seed in 11..15 {
        let crashed = crashed(seed);
        let db = crashed.open();
        crashed.disk.set_capacity_bytes(Some(crashed.disk.used_bytes()));
        let refused = crashed.disk.create("filler").unwrap().write_at(&[1], 0).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        crashed.disk.remove("filler").unwrap();
        // By whoever comes first, and then the rest.
        let get = |slot| db.snapshot().unwrap().open_bytes_table("t").unwrap().get(&key(slot, 1)).unwrap();
        assert_eq!(get(2), crashed.model.get(&key(2, 1)).cloned());
        finish(&db);
        crashed.assert_sound(&db);
        db.close().unwrap();
        crashed.assert_sound(&crashed.open());
    }
}
