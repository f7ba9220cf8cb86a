//! What writers do while rows are copied.

use std::collections::VecDeque;
use std::thread;

use hamal_pager::PartitionId;
use hamal_storage::sim::Rng;

use super::*;
use crate::Transaction;

/// Keys that are written, and the first of them that moves.
const KEYS: u16 = 600;
const FIRST: u32 = 200;

/// What writers do at one step of a split or a merge.
#[derive(Clone, Debug)]
enum Act {
    Put(u16, u16),
    Delete(u16),
    /// A transaction begins, writes (or removes), and goes on.
    Begin(Vec<(u16, Option<u16>)>),
    /// The oldest of these writes, and takes it back.
    Waver(u16, u16),
    /// It writes once more.
    Again(u16, Option<u16>),
    Commit,
    Rollback,
    Look,
    Maintain,
}

fn acts(count: usize) -> impl Strategy<Value = Vec<Act>> {
    let len = || prop_oneof![8 => 0..400_u16, 2 => 2000..9000_u16];
    let change = move || (0..KEYS, prop_oneof![3 => len().prop_map(Some), 1 => Just(None)]);
    let act = prop_oneof![
        6 => (0..KEYS, len()).prop_map(|(k, v)| Act::Put(k, v)),
        3 => (0..KEYS).prop_map(Act::Delete),
        3 => vec(change(), 1..5).prop_map(Act::Begin),
        1 => (0..KEYS, len()).prop_map(|(k, v)| Act::Waver(k, v)),
        1 => change().prop_map(|(k, v)| Act::Again(k, v)),
        2 => Just(Act::Commit),
        2 => Just(Act::Rollback),
        1 => Just(Act::Look),
        2 => Just(Act::Maintain),
    ];
    vec(act, 0..count)
}

/// A transaction that goes on, and what it has written.
struct Open {
    tx: Transaction,
    writes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Open {
    fn write(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) -> crate::Result<()> {
        let mut table = self.tx.open_bytes_table("t")?;
        match &value {
            Some(value) => table.put(&key, value)?,
            None => table.delete(&key)?,
        }
        self.writes.push((key, value));
        Ok(())
    }
}

/// Whether it was done; not, if somebody was in the way.
fn is_done<T>(result: &crate::Result<T>) -> bool {
    if let Err(error) = result {
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    }
    result.is_ok()
}

/// Writers, and what they have committed.
struct Writers<'d> {
    db: &'d Database,
    model: Rows,
    open: VecDeque<Open>,
    views: Vec<(Snapshot, Rows)>,
    steps: u8,
}

impl Writers<'_> {
    fn begin(&self) -> Open {
        Open { tx: self.db.begin().unwrap(), writes: Vec::new() }
    }

    fn commit(&mut self, open: Open) -> bool {
        let done = is_done(&open.tx.commit());
        for (key, value) in open.writes.into_iter().filter(|_| done) {
            match value {
                Some(value) => drop(self.model.insert(key, value)),
                None => drop(self.model.remove(&key)),
            }
        }
        done
    }

    /// A commit of one change; whether it was done.
    fn change(&mut self, number: u32, value: Option<Vec<u8>>) -> bool {
        let mut open = self.begin();
        is_done(&open.write(key(number), value)) && self.commit(open)
    }

    fn value(&mut self, len: u16) -> Vec<u8> {
        self.steps = self.steps.wrapping_add(1);
        vec![self.steps; len.into()]
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Put(number, len) => {
                let value = self.value(*len);
                self.change(u32::from(*number), Some(value));
            }
            Act::Delete(number) => drop(self.change(u32::from(*number), None)),
            Act::Begin(changes) => {
                let mut open = self.begin();
                let mut changes = changes.iter();
                if changes.all(|(number, len)| {
                    let value = len.map(|len| self.value(len));
                    is_done(&open.write(key(u32::from(*number)), value))
                }) {
                    self.open.push_back(open);
                }
            }
            Act::Waver(number, len) => {
                let value = self.value(*len);
                let Some(open) = self.open.front_mut() else { return };
                let (mark, before) = (open.tx.savepoint().unwrap(), open.writes.len());
                is_done(&open.write(key(u32::from(*number)), Some(value)));
                open.tx.rollback_to(mark).unwrap();
                open.writes.truncate(before);
            }
            Act::Again(number, len) => {
                let value = len.map(|len| self.value(len));
                if let Some(open) = self.open.front_mut() {
                    is_done(&open.write(key(u32::from(*number)), value));
                }
            }
            Act::Commit => {
                if let Some(open) = self.open.pop_front() {
                    self.commit(open);
                }
            }
            Act::Rollback => {
                if let Some(open) = self.open.pop_front() {
                    open.tx.rollback().unwrap();
                }
            }
            Act::Look => self.views.push((self.db.snapshot().unwrap(), self.model.clone())),
            Act::Maintain => drop(self.db.maintain().unwrap()),
        }
    }

    /// Splits, or merges, one act at each step. Those who are in the way end, and it is done once more.
    fn beside(&mut self, acts: &[Act], merges: bool) -> ReshapeReport {
        let db = self.db;
        let run = |progress: &mut dyn FnMut(ReshapeProgress) -> ControlFlow<()>| {
            let at = key(FIRST);
            if merges { db.merge("t", &at, progress) } else { db.split("t", &at, progress) }
        };
        let mut acts = acts.iter();
        let done = run(&mut |_| {
            match acts.next() {
                Some(act) => self.act(act),
                None => self.end_one(),
            }
            ControlFlow::Continue(())
        });
        if is_done(&done) {
            assert!(self.open.is_empty());
            return done.unwrap();
        }
        assert!(!self.open.is_empty(), "nobody was in the way: {done:?}");
        assert_eq!(rows(db), self.model);
        while !self.open.is_empty() {
            self.end_one();
        }
        run(&mut on).unwrap()
    }

    fn end_one(&mut self) {
        match self.open.pop_front() {
            Some(open) if open.writes.len() % 2 == 0 => open.tx.rollback().unwrap(),
            Some(open) => drop(self.commit(open)),
            None => {}
        }
    }

    fn check_moved(&self, report: &ReshapeReport) {
        let moved = || self.model.range(key(FIRST)..);
        assert_eq!(report.rows, moved().count() as u64);
        assert_eq!(report.bytes, moved().map(|(key, value)| (key.len() + value.len()) as u64).sum::<u64>());
        assert_eq!(rows(self.db), self.model);
    }

    fn check_views(&mut self) {
        for (view, expected) in self.views.drain(..) {
            assert_eq!(rows_of(&view), expected);
        }
    }
}

/// Rows to begin with: not of all keys, some of them long.
fn begin_with(db: &Database) -> Rows {
    let has_row = |number: &u32| !number.is_multiple_of(3);
    let model: Rows = (0..u32::from(KEYS))
        .filter(has_row)
        .map(|number| (key(number), vec![number as u8; if number % 40 == 7 { 9000 } else { 200 }]))
        .collect();
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        model.iter().try_for_each(|(key, value)| table.put(key, value))
    })
    .unwrap();
    model
}

fn writers(db: &Database, model: Rows) -> Writers<'_> {
    Writers { db, model, open: VecDeque::new(), views: Vec::new(), steps: 0 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_written_while_rows_are_copied_is_moved_as_well(
        first in acts(8),
        beside_split in acts(70),
        between in acts(8),
        beside_merge in acts(70),
        seed in any::<u64>(),
    ) {
        let disk = SimStorage::new(seed);
        let db = open(&disk);
        let model = begin_with(&db);
        let mut writers = writers(&db, model);
        for act in &first {
            writers.act(act);
        }
        let report = writers.beside(&beside_split, false);
        writers.check_moved(&report);
        check(&db);
        writers.check_views();
        settle(&db);
        prop_assert_eq!((rows(&db), strays(&db)), (writers.model.clone(), 0));
        for act in &between {
            writers.act(act);
        }
        // They have views in the way of nothing, as they are younger than the split.
        let report = writers.beside(&beside_merge, true);
        writers.check_moved(&report);
        check(&db);
        let image = disk.crash_image(CrashMode::LoseAll, seed);
        writers.check_views();
        settle(&db);
        prop_assert_eq!((rows(&db), strays(&db), files(&disk)), (writers.model.clone(), 0, 1));
        check(&db);
        let db = open(&image);
        prop_assert_eq!(&rows(&db), &writers.model);
        check(&db);
    }
}

/// A load beside a split: how many rows there are, and what is written at a step.
fn split_beside(act: impl Fn(&mut Writers<'_>, u32)) -> ReshapeReport {
    let db = open(&SimStorage::new(1));
    let model: Rows = (0..6000).map(|number| (key(number), vec![number as u8; 100])).collect();
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        model.iter().try_for_each(|(key, value)| table.put(key, value))
    })
    .unwrap();
    let (mut writers, mut step) = (writers(&db, model), 0);
    let split = |writers: &mut Writers<'_>, step: &mut u32| {
        let mut progress = |_: ReshapeProgress| {
            act(writers, *step);
            *step += 1;
            ControlFlow::Continue(())
        };
        db.split("t", &key(FIRST), &mut progress).unwrap()
    };
    let report = split(&mut writers, &mut step);
    writers.check_moved(&report);
    settle(&db);
    check(&db);
    assert_eq!(rows(&db), writers.model);
    report
}

#[test]
fn a_table_that_nobody_writes_to_is_copied_in_one_pass() {
    let report = split_beside(|_, _| {});
    assert_eq!((report.passes, report.late_rows, report.rows), (1, 0, 5800));
}

#[test]
fn writers_wait_only_for_what_was_written_during_a_short_pass() {
    // Anywhere, at every fourth leaf.
    let report = split_beside(|writers, step| {
        let number = FIRST + step.wrapping_mul(2_654_435_761) % 5000;
        if step.is_multiple_of(4) {
            let value = writers.value(50);
            writers.change(number, Some(value).filter(|_| !step.is_multiple_of(3)));
        }
    });
    assert!(report.passes > 1, "{report:?}");
    assert!(report.late_rows < 20, "{report:?}");
    // At the end, where rows keep coming.
    let report = split_beside(|writers, step| {
        for number in 0..10 {
            let value = writers.value(50);
            writers.change(10_000 + step * 10 + number, Some(value));
        }
    });
    assert!(report.passes > 1, "{report:?}");
    assert!(report.late_rows < 400, "{report:?}");
}

#[test]
fn passes_end_though_writers_are_faster_than_the_copy() {
    let report = split_beside(|writers, step| {
        for number in 0..8 {
            let value = writers.value(80);
            writers.change(FIRST + (step * 8 + number).wrapping_mul(2_654_435_761) % 5000, Some(value));
        }
    });
    assert!((2..=8).contains(&report.passes), "{report:?}");
    assert!(report.late_rows > 50, "{report:?}");
}

#[test]
fn a_long_value_that_is_taken_back_under_the_copy_is_not_read() {
    for at in 1..40 {
        let db = open(&SimStorage::new(at));
        let model = begin_with(&db);
        let mut writers = writers(&db, model);
        let mut loser = writers.begin();
        for number in (FIRST..600).step_by(7) {
            loser.write(key(number), Some(vec![0xee; 6000])).unwrap();
        }
        let (mut loser, mut step) = (Some(loser), 0);
        let mut progress = |_: ReshapeProgress| {
            step += 1;
            // A leaf has just been read in which its rows were.
            if step == at {
                loser.take().unwrap().tx.rollback().unwrap();
                // Its pages are somebody else's.
                for number in 700..720 {
                    assert!(writers.change(number, Some(vec![0x11; 6000])));
                }
            }
            ControlFlow::Continue(())
        };
        let report = db.split("t", &key(FIRST), &mut progress).unwrap();
        assert!(step > at, "{step} steps");
        writers.check_moved(&report);
        assert!(report.late_rows + u64::from(report.passes) > 1);
        check(&db);
        settle(&db);
        check(&db);
    }
}

#[test]
fn what_is_stopped_while_writers_wait_lets_them_go_on() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    let model = begin_with(&db);
    let mut writers = writers(&db, model);
    for merges in [false, true] {
        let mut stop = |_: ReshapeProgress| {
            let value = writers.value(300);
            // The gate is shut once it is refused.
            if writers.change(FIRST + 1, Some(value)) {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        let done = if merges {
            db.merge("t", &key(FIRST), &mut stop)
        } else {
            db.split("t", &key(FIRST), &mut stop)
        };
        assert_eq!(kind(done), ErrorKind::Cancelled);
        assert_eq!(rows(&db), writers.model);
        assert!(writers.change(FIRST + 2, None));
        settle(&db);
        assert_eq!((rows(&db), strays(&db)), (writers.model.clone(), 0));
        assert_eq!(files(&disk), 1 + usize::from(merges));
        check(&db);
        if !merges {
            split(&db, &key(FIRST)).unwrap();
            settle(&db);
        }
    }
}

#[test]
fn a_quarantined_partition_is_neither_split_nor_merged() {
    let db = open(&SimStorage::new(1));
    begin_with(&db);
    for number in [100, 300, 500] {
        split(&db, &key(number)).unwrap();
    }
    settle(&db);
    let ids = db.tables().unwrap()[0].partitions.clone();
    let quarantine = |id: u32| db.handle.engine.quarantine(PartitionId(id), "a test");
    let refused = |result: crate::Result<ReshapeReport>, id: u32| {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PartitionUnavailable, "{error}");
        assert_eq!(error.unavailable_partition().unwrap().id, id);
    };
    quarantine(ids[1]);
    refused(split(&db, &key(200)), ids[1]);
    refused(merge(&db, &key(100)), ids[1]);
    refused(merge(&db, &key(300)), ids[1]);
    // While it is split, too.
    let mut step = 0;
    let mut progress = |_: ReshapeProgress| {
        step += 1;
        if step == 3 {
            quarantine(ids[2]);
        }
        ControlFlow::Continue(())
    };
    refused(db.split("t", &key(400), &mut progress), ids[2]);
    // The others go on, and are split.
    assert_eq!(split(&db, &key(50)).unwrap().left, ids[0]);
    db.transact(|tx| tx.open_bytes_table("t")?.put(&key(60), b"there")).unwrap();
    assert_eq!(lowers(&db), [key(50), key(100), key(300), key(500)]);
    let snapshot = db.snapshot().unwrap();
    let table = snapshot.open_bytes_table("t").unwrap();
    assert_eq!(table.get(&key(60)).unwrap().unwrap(), b"there");
    assert_eq!(table.get(&key(200)).unwrap_err().kind(), ErrorKind::PartitionUnavailable);
}

#[test]
fn threads_that_commit_and_roll_back_while_rows_move_find_what_they_have_committed() {
    let options = Options::new().page_bytes(4096).cache_bytes(4 << 20).lock_timeout(Duration::from_mins(1));
    let db = options.open_on(Arc::new(SimStorage::new(1))).unwrap();
    let mut expected = begin_with(&db);
    let by_threads = thread::scope(|scope| {
        let writers: Vec<_> = (0..3_u32)
            .map(|writer| {
                let db = &db;
                scope.spawn(move || {
                    let mut rng = Rng::new(writer.into());
                    let mut model = Rows::new();
                    for round in 0..300_u32 {
                        let commits = rng.below(4) > 0;
                        let numbers: Vec<u32> = (0..=rng.below(4)).map(|_| rng.below(200) as u32).collect();
                        let len = if rng.chance(1, 8) { 5000 } else { 100 };
                        let is_removal = rng.chance(1, 4);
                        let write = |tx: &Transaction| {
                            let mut table = tx.open_bytes_table("t")?;
                            for number in &numbers {
                                let key = key(1000 + number * 3 + writer);
                                if is_removal {
                                    table.delete(&key)?;
                                } else {
                                    table.put(&key, &vec![round as u8; len])?;
                                }
                            }
                            Ok(())
                        };
                        if !commits {
                            let tx = db.begin().unwrap();
                            is_done(&write(&tx));
                            tx.rollback().unwrap();
                            continue;
                        }
                        db.transact(write).unwrap();
                        for number in &numbers {
                            let key = key(1000 + number * 3 + writer);
                            if is_removal {
                                model.remove(&key);
                            } else {
                                model.insert(key, vec![round as u8; len]);
                            }
                        }
                    }
                    model
                })
            })
            .collect();
        let mut round = 0;
        while writers.iter().any(|writer| !writer.is_finished()) {
            let at = key([1100, 1400, 1250][round % 3]);
            round += 1;
            let result = if lowers(&db).contains(&at) { merge(&db, &at) } else { split(&db, &at) };
            is_done(&result);
        }
        writers.into_iter().map(|writer| writer.join().unwrap()).collect::<Vec<Rows>>()
    });
    expected.extend(by_threads.into_iter().flatten());
    assert_eq!(rows(&db), expected);
    while db.maintain().unwrap() {}
    check(&db);
    assert_eq!(strays(&db), 0);
}
