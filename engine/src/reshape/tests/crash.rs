//! A split or a merge that is cut short at any I/O, or whose I/O fails, and the recovery behind it that is cut short too.

use hamal_storage::sim::{Fault, FaultKind, Repeat, Rng, When};

use super::*;
use crate::Transaction;

const MODES: [CrashMode; 3] = [CrashMode::LoseAll, CrashMode::Subset, CrashMode::Kill];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Split,
    Merge,
    /// The removal of what a split has left.
    Clear,
}

/// A log buffer so small that the log is written many times while rows move.
fn options() -> Options {
    super::options().log_buffer_bytes(64 << 10).log_segment_bytes(128 << 10)
}

fn open(disk: &SimStorage) -> Database {
    options().open_on(Arc::new(disk.clone())).unwrap()
}

/// A database in which the work is the next thing to do, with pages of it on the disk and in memory.
fn prepared(work: Work) -> (SimStorage, Database, Rows) {
    let disk = SimStorage::new(3);
    let db = open(&disk);
    let mut model: Rows = (0..260)
        .map(|number| (key(number), vec![number as u8; if number % 40 == 7 { 20_000 } else { 700 }]))
        .collect();
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        model.iter().try_for_each(|(key, value)| table.put(key, value))
    })
    .unwrap();
    db.checkpoint().unwrap();
    if work != Work::Split {
        split(&db, &key(130)).unwrap();
    }
    if work == Work::Merge {
        settle(&db);
    }
    for number in (0..260).step_by(9) {
        db.transact(|tx| tx.open_bytes_table("t")?.put(&key(number), b"changed")).unwrap();
        model.insert(key(number), b"changed".to_vec());
    }
    db.transact(|tx| tx.open_bytes_table("t")?.remove(&key(200)).map(drop)).unwrap();
    model.remove(&key(200));
    (disk, db, model)
}

/// What the rows can be: what is known to be committed, and what has been if the last commit's outcome is not known.
#[derive(Clone, Debug)]
struct Known {
    sure: Rows,
    maybe: Option<Rows>,
}

impl Known {
    fn may_be(&self, rows: &Rows) -> bool {
        *rows == self.sure || self.maybe.as_ref() == Some(rows)
    }
}

/// Writers that go on beside a split or a merge: every so many steps one of them does something, in each of the passes.
struct Beside<'d> {
    db: &'d Database,
    known: Known,
    step: usize,
    script: std::vec::IntoIter<(u32, Option<usize>)>,
    /// Has written before rows are copied, and rolls back while they are.
    loser: Option<Transaction>,
}

/// Steps between two writes; until all of the script has been written.
const STRIDE: usize = 4;
/// Keys, and the lengths of their new values: short and long ones, over short and long ones, over what is not there.
const SCRIPT: [(u32, Option<usize>); 9] = [
    (131, Some(300)),
    (140, None),
    (131, Some(6000)),
    (167, Some(10)),
    (131, None),
    (160, Some(9000)),
    (207, None),
    (1300, Some(5000)),
    (132, Some(20)),
];

impl<'d> Beside<'d> {
    fn begin(db: &'d Database, sure: Rows) -> Beside<'d> {
        let begun = db.begin().and_then(|tx| {
            let mut table = tx.open_bytes_table("t")?;
            table.put(&key(150), &[0xee; 7000])?;
            table.put(&key(1301), &[0xee; 50])?;
            table.remove(&key(247))?;
            Ok(tx)
        });
        let known = Known { sure, maybe: None };
        Beside { db, known, step: 0, script: SCRIPT.to_vec().into_iter(), loser: begun.ok() }
    }

    fn step(&mut self) {
        self.step += 1;
        if self.step == 20 {
            drop(self.loser.take());
        }
        // It has failed, as everything will.
        let stride = if self.script.len() > 0 { STRIDE } else { 2 };
        if !self.step.is_multiple_of(stride) || self.known.maybe.is_some() {
            return;
        }
        // To the end, where they are refused.
        let (number, len) = self.script.next().unwrap_or((133, Some(30)));
        let (key, value) = (key(number), len.map(|len| vec![self.step as u8; len]));
        let mut rows = self.known.sure.clone();
        match &value {
            Some(value) => drop(rows.insert(key.clone(), value.clone())),
            None => drop(rows.remove(&key)),
        }
        let Ok(tx) = self.db.begin() else { return };
        let written = tx.open_bytes_table("t").and_then(|mut table| match &value {
            Some(value) => table.put(&key, value),
            None => table.remove(&key).map(drop),
        });
        match written.and_then(|()| tx.commit()) {
            Ok(()) => self.known.sure = rows,
            // The gate is shut.
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(_) => self.known.maybe = Some(rows),
        }
    }
}

/// Does the work with writers beside it; says what the rows are then.
fn perform(db: &Database, work: Work, rows: Rows) -> (crate::Result<Option<ReshapeReport>>, Known) {
    if work == Work::Clear {
        return (clear(db).map(|()| None), Known { sure: rows, maybe: None });
    }
    let mut beside = Beside::begin(db, rows);
    let mut progress = |_: ReshapeProgress| {
        beside.step();
        ControlFlow::Continue(())
    };
    let done = if work == Work::Split {
        db.split("t", &key(130), &mut progress)
    } else {
        db.merge("t", &key(130), &mut progress)
    };
    drop(beside.loser.take());
    (done.map(Some), beside.known)
}

fn clear(db: &Database) -> crate::Result<()> {
    while db.maintain()? {
        db.flush()?;
    }
    db.checkpoint().map(drop)
}

/// All is there, sound, and comes to rest.
fn judge(disk: &SimStorage, known: &Known, context: &str) {
    let db = options().open_on(Arc::new(disk.clone())).unwrap_or_else(|e| panic!("{context}: {e}"));
    let model = &rows(&db);
    if !known.may_be(model) {
        assert_eq!(model, &known.sure, "{context}");
    }
    check(&db);
    let cuts = lowers(&db).len();
    assert_eq!(files(disk), cuts + 1, "{context}");
    settle(&db);
    assert_eq!(&rows(&db), model, "{context}");
    assert_eq!(strays(&db), 0, "{context}");
    check(&db);
    // And can be done, or undone.
    let again = if cuts == 0 { split(&db, &key(130)) } else { merge(&db, &key(130)) };
    again.unwrap_or_else(|e| panic!("{context}: {e}"));
    db.transact(|tx| tx.open_bytes_table("t")?.put(&key(141), b"later")).unwrap();
    settle(&db);
    check(&db);
    assert_eq!(rows(&db).len(), model.len(), "{context}");
}

/// Crashes the work at each I/O, in each mode, or in one after the other; and the recovery behind it at one in so many of its own.
fn crash_everywhere(work: Work, in_all_modes: bool, recovery_stride: u64) {
    let (disk, db, model) = prepared(work);
    let from = disk.io_count();
    let (report, _) = perform(&db, work, model);
    if let Some(report) = report.unwrap() {
        assert!(report.passes > 1 && report.late_rows > 0, "all passes have something to do: {report:?}");
    }
    let to = disk.io_count();
    assert!(to - from > 8, "{from} to {to}: too few I/Os to be worth it");
    drop(db);
    let mut kept = 0;
    for at in from + 1..=to + 1 {
        let (disk, db, model) = prepared(work);
        disk.crash_at(at);
        let (done, known) = perform(&db, work, model);
        // What is tidied up behind a merge's commit nobody need hear of.
        assert!(done.is_err() || work != Work::Split || at > to, "the machine stops at I/O {at}");
        kept += u32::from(done.is_ok());
        for (number, mode) in (0..).zip(MODES) {
            if !in_all_modes && at % 3 != number {
                continue;
            }
            let context = format!("{work:?}, {mode:?} at I/O {at} of {from} to {to}");
            let image = || disk.crash_image(mode, at * 8 + number);
            judge(&image(), &known, &context);
            // And once more, while that is recovered from.
            let ios = {
                let image = image();
                let before = image.io_count();
                drop(open(&image));
                image.io_count() - before
            };
            let mut again = 1 + at % recovery_stride;
            while again <= ios {
                let image = image();
                image.crash_at(image.io_count() + again);
                let opened = options().open_on(Arc::new(image.clone()));
                let mode = MODES[(again % 3) as usize];
                let twice = image.crash_image(mode, again);
                drop(opened);
                judge(&twice, &known, &format!("{context}, then {mode:?} at I/O {again} of the recovery"));
                again += recovery_stride;
            }
        }
        drop(db);
    }
    assert!(kept > 0);
}

#[test]
fn a_crash_at_any_io_of_a_split_leaves_all_rows_once() {
    crash_everywhere(Work::Split, true, 61);
}

#[test]
fn a_crash_at_any_io_of_a_merge_leaves_all_rows_once() {
    crash_everywhere(Work::Merge, true, 61);
}

#[test]
fn a_crash_at_any_io_of_the_removal_of_strays_leaves_all_rows_once() {
    crash_everywhere(Work::Clear, false, 61);
}

/// In the middle of the copies too, which need no I/O: pages of them are forced out, or the log is, as a busy database would.
#[test]
fn a_crash_between_any_two_rows_that_move_leaves_all_rows_once() {
    for work in [Work::Split, Work::Merge] {
        let mut step = 0;
        loop {
            step += 1;
            let (disk, db, model) = prepared(work);
            let mut left = step;
            let mut images = Vec::new();
            let mut rng = Rng::new(step);
            let mut beside = Beside::begin(&db, model);
            let mut stop = |_: ReshapeProgress| {
                beside.step();
                left -= 1;
                if left > 0 {
                    return ControlFlow::Continue(());
                }
                match rng.index(3) {
                    0 => db.flush().unwrap(),
                    1 => drop(db.checkpoint().unwrap()),
                    _ => {}
                }
                for (number, mode) in MODES.into_iter().enumerate() {
                    let image = disk.crash_image(mode, step * 8 + number as u64);
                    images.push((mode, image, beside.known.clone()));
                }
                ControlFlow::Break(())
            };
            let done = match work {
                Work::Split => db.split("t", &key(130), &mut stop),
                _ => db.merge("t", &key(130), &mut stop),
            };
            drop(beside.loser.take());
            for (mode, image, known) in &images {
                judge(image, known, &format!("{work:?}, {mode:?} at step {step}"));
            }
            // The one that was stopped goes on living.
            if done.is_ok() {
                assert!(step > 8, "{step} steps");
                break;
            }
            judge(
                &disk.crash_image(CrashMode::KeepAll, step),
                &beside.known,
                &format!("{work:?} stopped at {step}"),
            );
        }
    }
}

#[test]
fn a_fault_at_any_io_of_a_split_or_a_merge_loses_nothing() {
    for work in [Work::Split, Work::Merge, Work::Clear] {
        let (disk, db, model) = prepared(work);
        let from = disk.io_count();
        perform(&db, work, model).0.unwrap();
        let to = disk.io_count();
        for at in from + 1..=to {
            let faults = [
                (FaultKind::Eio, Repeat::Once),
                (FaultKind::Enospc, Repeat::Once),
                (FaultKind::Eio, Repeat::Forever),
                (FaultKind::Enospc, Repeat::Forever),
                (FaultKind::Short, Repeat::Once),
            ];
            // Two of them at each I/O, other ones at the next.
            for place in [at, at + 2] {
                let (kind, repeat) = faults[(place % 5) as usize];
                let (disk, db, model) = prepared(work);
                let context = format!("{work:?}: {kind:?} {repeat:?} at I/O {at} of {from} to {to}");
                disk.inject(Fault::new(kind, When::Io(at), repeat));
                let (done, known) = perform(&db, work, model);
                disk.clear_faults();
                if let Err(error) = &done {
                    assert!(
                        !matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::InvalidArgument),
                        "{context}: {error}"
                    );
                }
                // Whoever can still read reads the right rows.
                if let Ok(snapshot) = db.snapshot() {
                    assert!(known.may_be(&rows_of(&snapshot)), "{context}");
                }
                drop(db);
                judge(&disk, &known, &context);
            }
        }
    }
}
