//! What a commit is checked against: whatever else has committed up to the very step in which it does, much or little, whenever it comes.

use std::cell::Cell;
use std::sync::{Arc, OnceLock};

use hamal_storage::Scheduler;
use hamal_storage::sim::SimStorage;

use crate::{Database, Durability, ErrorKind, Isolation, Maintenance, Options, TransactionOptions};

const ROWS: u32 = 100;
/// Read by nobody but one.
const READ_LAST: u32 = 0;
/// Read by nobody at all.
const UNREAD: u32 = ROWS - 1;

thread_local! {
    /// At which visit of this thread's to the place before the commit section, counted from 1, a row is written; visits so far.
    static VISITS: Cell<Option<(u32, u32)>> = const { Cell::new(None) };
}

/// Commits a write of its own just before another one's step.
#[derive(Debug, Default)]
struct Beside(OnceLock<Database>);

impl Scheduler for Beside {
    fn pause(&self, place: &'static str) {
        if place != "before the commit section" {
            return;
        }
        // None meanwhile: its own commit comes here too.
        let Some((when, visits)) = VISITS.take() else { return };
        if visits + 1 == when {
            write(self.0.get().unwrap(), READ_LAST);
        }
        VISITS.set(Some((when, visits + 1)));
    }
}

fn write(db: &Database, row: u32) {
    let options = TransactionOptions::new().isolation(Isolation::Serializable);
    let tx = db.begin_with(options).unwrap();
    tx.open_bytes_table("t").unwrap().put(&row.to_be_bytes(), b"new").unwrap();
    tx.commit().unwrap();
}

fn open() -> Database {
    let storage = SimStorage::new(1);
    let beside = Arc::new(Beside::default());
    storage.set_scheduler(beside.clone());
    let options = Options::new().page_bytes(4096).durability(Durability::Relaxed);
    let db = options.maintenance(Maintenance::Manual).open_on(Arc::new(storage)).unwrap();
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        (0..ROWS).try_for_each(|row| table.put(&row.to_be_bytes(), b"old"))
    })
    .unwrap();
    beside.0.set(db.clone()).unwrap();
    db
}

/// What much was written is put in order before the step in which that is published; also if it was not known before that somebody will ask.
#[test]
fn a_large_commit_is_published_for_those_who_have_come_meanwhile() {
    let db = open();
    for (writes, visits) in [(5, 1), (50, 2)] {
        for reader_first in [true, false] {
            let begin = || db.begin().unwrap();
            let early = reader_first.then(begin);
            let writer = begin();
            let mut table = writer.open_bytes_table("t").unwrap();
            (0..writes).for_each(|row: u32| table.put(&row.to_be_bytes(), b"new").unwrap());
            let reader = early.unwrap_or_else(begin);
            let mut seen = reader.open_bytes_table("t").unwrap();
            seen.get(&(writes - 1).to_be_bytes()).unwrap();
            seen.put(b"own", b"new").unwrap();
            VISITS.set(Some((0, 0)));
            writer.commit().unwrap();
            let expected = if reader_first { 1 } else { visits };
            assert_eq!(VISITS.take(), Some((0, expected)), "{writes} writes, reader first: {reader_first}");
            assert_eq!(reader.commit().unwrap_err().kind(), ErrorKind::Conflict);
        }
    }
}

/// Who has read nothing but where its table is has nothing to check, however many have written to that.
#[test]
fn commits_to_other_tables_than_were_read_are_not_much_to_check() {
    let db = open();
    let tx = db.begin().unwrap();
    tx.open_bytes_table("t").unwrap().put(b"own", b"new").unwrap();
    (0..50).for_each(|_| write(&db, UNREAD));
    VISITS.set(Some((0, 0)));
    tx.commit().unwrap();
    assert_eq!(VISITS.take(), Some((0, 1)));
}

#[test]
fn a_conflict_is_found_however_much_there_is_to_check_and_whenever_it_comes() {
    let db = open();
    let (mut refused, mut committed) = (0, 0);
    for reads in [1, 15, 17, 60] {
        for commits_beside in [0, 1, 4, 5, 20] {
            for conflict_at in 0..=3 {
                let tx = db.begin().unwrap();
                let mut table = tx.open_bytes_table("t").unwrap();
                for row in (READ_LAST..reads).rev() {
                    table.get(&row.to_be_bytes()).unwrap();
                }
                table.put(b"own", b"new").unwrap();
                for _ in 0..commits_beside {
                    write(&db, UNREAD);
                }
                VISITS.set(Some((conflict_at, 0)));
                let result = tx.commit();
                let (_, visits) = VISITS.take().unwrap();
                // A second one only where there was much to check, and something to check it against.
                let is_much = reads > 15 && (commits_beside > 0 || conflict_at == 1) || commits_beside > 4;
                let case = format!("{reads} reads, {commits_beside} commits beside, one at {conflict_at}");
                let is_hit = (1..=visits).contains(&conflict_at);
                // A conflict that is found outside of the section leaves no second visit.
                assert_eq!(visits, 1 + u32::from(is_much && conflict_at != 1), "{case}");
                assert_eq!(
                    result.as_ref().err().map(crate::Error::kind),
                    is_hit.then_some(ErrorKind::Conflict),
                    "{case}"
                );
                if is_hit { refused += 1 } else { committed += 1 }
            }
        }
    }
    assert!(refused > 20 && committed > 20, "{refused} refused, {committed} committed");
}
