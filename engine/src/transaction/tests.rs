//! Transactions beside each other: what each sees, what is refused, and that nothing is lost.

mod counted;
mod hermitage;
mod reentry;
mod validation;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hamal_storage::sim::{Fault, FaultKind, Operation, Repeat, SimStorage, When};

use crate::{
    Database, Durability, ErrorKind, Isolation, Maintenance, Options, Transaction, TransactionOptions,
};

fn open() -> Database {
    let options = Options::new().page_bytes(4096).durability(Durability::Relaxed);
    options.maintenance(Maintenance::Manual).open_on(Arc::new(SimStorage::new(1))).unwrap()
}

fn begin(db: &Database, isolation: Isolation) -> Transaction {
    db.begin_with(TransactionOptions::new().isolation(isolation)).unwrap()
}

fn put(tx: &Transaction, key: &[u8], value: &[u8]) {
    tx.open_bytes_table("t").unwrap().put(key, value).unwrap();
}

fn get(tx: &Transaction, key: &[u8]) -> Option<Vec<u8>> {
    tx.open_bytes_table("t").unwrap().get(key).unwrap()
}

fn read(db: &Database, key: &[u8]) -> Option<Vec<u8>> {
    db.snapshot().unwrap().open_bytes_table("t").unwrap().get(key).unwrap()
}

fn with_rows(rows: &[(&[u8], &[u8])]) -> Database {
    let db = open();
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        rows.iter().try_for_each(|(key, value)| table.put(key, value))
    })
    .unwrap();
    db
}

#[test]
fn a_view_sees_what_was_committed_before_it_and_nothing_later() {
    let db = with_rows(&[(b"updated", b"1"), (b"removed", b"1"), (b"removed and back", b"1")]);
    let before = db.snapshot().unwrap();
    let beside = begin(&db, Isolation::Serializable);
    let writer = begin(&db, Isolation::Serializable);
    let seen = |get: &dyn Fn(&[u8]) -> Option<Vec<u8>>| {
        assert_eq!(get(b"updated"), Some(b"1".to_vec()));
        assert_eq!(get(b"removed"), Some(b"1".to_vec()));
        assert_eq!(get(b"removed and back"), Some(b"1".to_vec()));
        assert_eq!(get(b"inserted"), None);
        assert_eq!(get(b"came and went"), None);
    };
    let all = || {
        let table = before.open_bytes_table("t").unwrap();
        seen(&|key| table.get(key).unwrap());
        assert_eq!(table.len().unwrap(), 3);
        assert_eq!(table.iter().unwrap().count(), 3);
        assert_eq!(table.iter().unwrap().rev().count(), 3);
        let table = beside.open_bytes_table("t").unwrap();
        seen(&|key| table.get(key).unwrap());
        assert_eq!(table.len().unwrap(), 3);
        let values = table.iter().unwrap().map(|row| row.unwrap().1).collect::<Vec<_>>();
        assert_eq!(values, vec![b"1".to_vec(); 3]);
    };
    all();
    {
        let mut table = writer.open_bytes_table("t").unwrap();
        table.put(b"updated", b"2").unwrap();
        table.put(b"updated", b"3").unwrap();
        table.delete(b"removed").unwrap();
        table.put(b"inserted", b"2").unwrap();
        table.put(b"came and went", b"2").unwrap();
        table.delete(b"came and went").unwrap();
        table.delete(b"removed and back").unwrap();
        table.put(b"removed and back", b"2").unwrap();
    }
    all();
    writer.commit().unwrap();
    all();
    for round in 0..3_u8 {
        let writer = begin(&db, Isolation::Serializable);
        put(&writer, b"updated", &[round]);
        put(&writer, b"removed", &[round]);
        put(&writer, b"came and went", &[round]);
        writer.open_bytes_table("t").unwrap().delete(b"removed and back").unwrap();
        all();
        writer.commit().unwrap();
        db.maintain().unwrap();
        all();
    }
    assert!(db.stats().version_bytes > 0);
    drop((before, beside));
    db.maintain().unwrap();
    assert_eq!(read(&db, b"updated"), Some(vec![2]));
    assert_eq!(db.stats().version_bytes, 0, "nobody needs them any more");
    assert_eq!(db.stats().views, 0);
}

#[test]
fn a_commit_of_writes_that_were_all_taken_back_keeps_no_before_images() {
    let db = with_rows(&[(b"k", b"1")]);
    let snapshot = db.snapshot().unwrap();
    let tx = begin(&db, Isolation::Serializable);
    let savepoint = tx.savepoint().unwrap();
    put(&tx, b"k", b"2");
    assert_eq!(db.stats().version_writers, 1);
    tx.rollback_to(savepoint).unwrap();
    tx.commit().unwrap();
    assert_eq!(db.stats().version_writers, 0);
    assert_eq!(snapshot.open_bytes_table("t").unwrap().get(b"k").unwrap(), Some(b"1".to_vec()));
}

#[test]
fn a_snapshot_may_be_dropped_while_a_verification_tells_how_far_it_is() {
    let db = with_rows(&[(b"k", b"1")]);
    let mut snapshot = db.snapshot().ok();
    db.transact(|tx| tx.drop_table("t")).unwrap();
    assert_eq!(db.stats().partitions, 2, "the snapshot sees the table");
    let verified = db.verify(&mut |_| {
        snapshot = None;
        // Or dropping it would have waited for this verification.
        assert!(db.handle.engine.try_lock_files().is_none());
        std::ops::ControlFlow::Continue(())
    });
    assert!(verified.unwrap().findings.is_empty());
    db.maintain().unwrap();
    assert_eq!(db.stats().partitions, 1, "its file goes afterwards");
}

#[test]
fn a_transaction_that_is_cancelled_or_has_failed_reads_nothing() {
    type Read = fn(&Transaction, &crate::Table<'_, &'static [u8], &'static [u8]>) -> crate::Result<()>;
    let reads: [Read; 8] = [
        |_, table| table.get(b"a").map(|_| ()),
        |_, table| table.contains_key(b"missing").map(|_| ()),
        |_, table| table.reader(b"a").map(|_| ()),
        |_, table| table.first().map(|_| ()),
        |_, table| table.last().map(|_| ()),
        |_, table| table.len().map(|_| ()),
        |tx, _| tx.has_table("t").map(|_| ()),
        |tx, _| tx.tables().map(|_| ()),
    ];
    for expected in [ErrorKind::Cancelled, ErrorKind::TransactionEnded] {
        let db = with_rows(&[(b"a", b"1"), (b"b", b"2")]);
        let tx = begin(&db, Isolation::Serializable);
        let table = tx.open_bytes_table("t").unwrap();
        let mut rows = table.iter().unwrap();
        assert!(rows.next().is_some());
        if expected == ErrorKind::Cancelled {
            tx.canceller().cancel();
        } else {
            tx.fail(&crate::Error::invalid("as by a rollback to a savepoint that has failed"));
        }
        let row = rows.next().expect("it does not end as if that were all");
        assert_eq!(row.unwrap_err().kind(), expected);
        for (number, read) in reads.into_iter().enumerate() {
            assert_eq!(read(&tx, &table).unwrap_err().kind(), expected, "{number}");
        }
        assert_eq!(tx.open_bytes_table("t").unwrap_err().kind(), expected);
    }
}

#[test]
fn write_skew_is_possible_under_snapshot_isolation_and_impossible_when_serializable() {
    for (isolation, both) in [(Isolation::Snapshot, true), (Isolation::Serializable, false)] {
        let db = with_rows(&[(b"x", b"1"), (b"y", b"1")]);
        let (one, two) = (begin(&db, isolation), begin(&db, isolation));
        for tx in [&one, &two] {
            assert_eq!((get(tx, b"x"), get(tx, b"y")), (Some(b"1".to_vec()), Some(b"1".to_vec())));
        }
        put(&one, b"x", b"0");
        put(&two, b"y", b"0");
        one.commit().unwrap();
        let second = two.commit();
        assert_eq!(second.is_ok(), both, "{isolation:?}: {second:?}");
        if let Err(error) = second {
            assert_eq!(error.kind(), ErrorKind::Conflict);
            assert!(error.is_retryable());
        }
        assert_eq!(read(&db, b"y"), Some(if both { b"0" } else { b"1" }.to_vec()));
    }
}

#[test]
fn nothing_is_written_to_a_table_that_a_commit_has_dropped() {
    for isolation in [Isolation::Serializable, Isolation::Snapshot] {
        let db = with_rows(&[(b"k", b"1")]);
        let late = begin(&db, isolation);
        db.transact(|tx| tx.drop_table("t")).unwrap();
        let mut table = late.open_bytes_table("t").unwrap();
        assert_eq!(table.put(b"k", b"2").unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(table.get(b"k").unwrap(), Some(b"1".to_vec()), "it still sees the table");
    }
}

#[test]
fn nobody_waits_for_a_transaction_that_could_not_be_rolled_back() {
    let disk = SimStorage::new(1);
    let options = Options::new().page_bytes(4096).maintenance(Maintenance::Manual);
    let db = options.open_on(Arc::new(disk.clone())).unwrap();
    db.transact(|tx| tx.open_bytes_table("t")?.put(b"k", b"1")).unwrap();
    let (stuck, other) = (db.begin().unwrap(), db.begin().unwrap());
    put(&stuck, b"k", b"2");
    db.flush().unwrap();
    // What is to be undone has to be read.
    let broken = Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Forever);
    disk.inject(broken.only(&[Operation::Read]));
    assert_eq!(stuck.rollback().unwrap_err().kind(), ErrorKind::Poisoned);
    let refused = other.open_bytes_table("t").unwrap().put(b"k", b"3").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Poisoned, "{refused}");
}

#[test]
fn transfers_of_many_threads_conserve_the_money() {
    const ACCOUNTS: u64 = 20;
    let db = open();
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        (0..ACCOUNTS).try_for_each(|account| table.put(&account.to_be_bytes(), &100_u64.to_le_bytes()))
    })
    .unwrap();
    let balance = |value: Option<Vec<u8>>| u64::from_le_bytes(value.unwrap().try_into().unwrap());
    let transfers = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (db, transfers) = (&db, &transfers);
            scope.spawn(move || {
                for step in 0..500_u64 {
                    let from = (thread * 7 + step * 3) % ACCOUNTS;
                    let to = (from + 1 + step % (ACCOUNTS - 1)) % ACCOUNTS;
                    let locked = step % 2 == 0;
                    let options = crate::RetryOptions::new().attempts(10_000);
                    db.transact_with(TransactionOptions::new(), options, |tx| {
                        let mut table = tx.open_bytes_table("t")?;
                        let mut get = |account: u64| {
                            let key = account.to_be_bytes();
                            if locked { table.get_for_update(&key) } else { table.get(&key) }
                        };
                        let (a, b) = (balance(get(from)?), balance(get(to)?));
                        if a > 0 {
                            table.put(&from.to_be_bytes(), &(a - 1).to_le_bytes())?;
                            table.put(&to.to_be_bytes(), &(b + 1).to_le_bytes())?;
                        }
                        Ok(())
                    })
                    .unwrap();
                    transfers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..2 {
            let (db, transfers) = (&db, &transfers);
            scope.spawn(move || {
                while transfers.load(Ordering::Relaxed) < 2000 {
                    let snapshot = db.snapshot().unwrap();
                    let table = snapshot.open_bytes_table("t").unwrap();
                    let total: u64 = table.values().unwrap().map(|value| balance(Some(value.unwrap()))).sum();
                    assert_eq!(total, ACCOUNTS * 100);
                    db.maintain().unwrap();
                }
            });
        }
    });
    assert_eq!(transfers.into_inner(), 2000);
    let snapshot = db.snapshot().unwrap();
    let table = snapshot.open_bytes_table("t").unwrap();
    let total: u64 = table.values().unwrap().map(|value| balance(Some(value.unwrap()))).sum();
    assert_eq!(total, ACCOUNTS * 100);
    println!("{:?}", db.stats());
}

#[test]
fn while_a_verification_runs_no_transaction_begins_and_snapshots_go_on() {
    let db = with_rows(&[(b"k", b"v")]);
    let mut looks = 0;
    db.verify(&mut |_| {
        looks += 1;
        let at_once = TransactionOptions::new().lock_timeout(Duration::ZERO);
        assert_eq!(db.begin_with(at_once).unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(read(&db, b"k"), Some(b"v".to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(looks > 0);
    begin(&db, Isolation::Serializable).commit().unwrap();
}
