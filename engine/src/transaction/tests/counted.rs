//! What `Stats` counts of transactions: how they end, and what they wait for.

use std::sync::{Arc, Barrier};
use std::thread;

use hamal_storage::sim::SimStorage;

use super::{begin, get, open, put, with_rows};
use crate::{
    Database, Durability, ErrorKind, Isolation, Maintenance, Options, Transaction, TransactionOptions,
};

fn writer(db: &Database, durability: Durability) -> Transaction {
    let tx = db.begin_with(TransactionOptions::new().durability(durability)).unwrap();
    put(&tx, b"k", b"v");
    tx
}

#[test]
fn only_commits_that_are_not_done_before_the_log_is_on_the_disk_have_waited() {
    let db = open();
    let counted = || (db.stats().commits, db.stats().commits_waited);
    writer(&db, Durability::Relaxed).commit().unwrap();
    assert_eq!(counted(), (1, 0));
    // What was read is made durable, but nothing has been committed.
    let empty = db.begin_with(TransactionOptions::new().durability(Durability::Sync)).unwrap();
    assert!(get(&empty, b"k").is_some());
    empty.commit().unwrap();
    assert_eq!(counted(), (1, 0));
    assert_eq!(db.stats().log_durable, db.stats().log_tail);
    writer(&db, Durability::Sync).commit().unwrap();
    assert_eq!(counted(), (2, 1));
    writer(&db, Durability::Sync).commit_ticket().unwrap().wait().unwrap();
    assert_eq!(counted(), (3, 2));
    let durable_before = writer(&db, Durability::Sync).commit_ticket().unwrap();
    drop(writer(&db, Durability::Sync).commit_ticket().unwrap());
    db.flush().unwrap();
    durable_before.wait().unwrap();
    assert_eq!(counted(), (5, 2));
    assert_eq!(db.stats().largest_group, 1);
}

/// Threads that commit at once share flushes sooner or later; that they do is what the largest group says, and it is no more than they are.
#[test]
fn the_largest_group_is_no_larger_than_there_are_threads() {
    const THREADS: u64 = 4;
    let directory = tempfile::tempdir().unwrap();
    // By hand: no other thread waits for a flush.
    let db = Options::new().maintenance(Maintenance::Manual).open(directory.path().join("db")).unwrap();
    db.transact(|tx| tx.open_bytes_table("t").map(drop)).unwrap();
    let start = Barrier::new(usize::try_from(THREADS).unwrap());
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (db, start) = (&db, &start);
            scope.spawn(move || {
                start.wait();
                // At least so many; then until some have met.
                for n in 0_u64.. {
                    if n >= 20 && db.stats().largest_group > 1 {
                        break;
                    }
                    db.transact(|tx| tx.open_bytes_table("t")?.put(&thread.to_be_bytes(), &n.to_be_bytes()))
                        .unwrap();
                }
            });
        }
    });
    assert!((2..=THREADS).contains(&db.stats().largest_group), "{:?}", db.stats());
}

#[test]
fn a_cancelled_transaction_is_counted_once_it_ends_and_no_other_is() {
    let db = with_rows(&[(b"k", b"v")]);
    let cancelled = begin(&db, Isolation::Serializable);
    put(&cancelled, b"k", b"w");
    cancelled.canceller().cancel();
    assert_eq!(db.stats().cancelled, 0);
    assert_eq!(cancelled.commit().unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(db.stats().cancelled, 1);
    let read_only = begin(&db, Isolation::Serializable);
    read_only.canceller().cancel();
    drop(read_only);
    assert_eq!(db.stats().cancelled, 2);
    begin(&db, Isolation::Serializable).rollback().unwrap();
    let committed = begin(&db, Isolation::Serializable);
    let late = committed.canceller();
    committed.commit().unwrap();
    late.cancel();
    assert_eq!((db.stats().cancelled, db.stats().rollbacks), (2, 1));
}

#[test]
fn a_write_to_a_table_that_was_dropped_since_is_counted_as_overtaken() {
    for isolation in [Isolation::Serializable, Isolation::Snapshot] {
        let db = with_rows(&[(b"k", b"v")]);
        let tx = begin(&db, isolation);
        let mut table = tx.open_bytes_table("t").unwrap();
        db.transact(|tx| tx.drop_table("t")).unwrap();
        assert_eq!(table.put(b"k", b"w").unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(db.stats().overtaken, 1, "{isolation:?}");
    }
}

#[test]
fn a_statement_that_the_log_has_no_room_for_is_counted_once_and_the_others_go_on() {
    let small =
        Options::new().page_bytes(4096).durability(Durability::Relaxed).maintenance(Maintenance::Manual);
    let small = small.log_segment_bytes(64 << 10).log_buffer_bytes(64 << 10).max_log_bytes(512 << 10);
    let db = small.open_on(Arc::new(SimStorage::new(1))).unwrap();
    let tx = begin(&db, Isolation::Serializable);
    let mut table = tx.open_bytes_table("t").unwrap();
    // The transaction's own log cannot be given back.
    let full = (0_u32..).find_map(|row| table.put(&row.to_be_bytes(), &[1; 1000]).err()).unwrap();
    assert_eq!(full.kind(), ErrorKind::LogFull, "{full}");
    assert_eq!(db.stats().log_full, 1);
    // Until there is no room for anything.
    let rest = (0_u32..).find_map(|row| table.put(&row.to_le_bytes(), b"").err()).unwrap();
    assert_eq!((rest.kind(), db.stats().log_full), (ErrorKind::LogFull, 2));
    // A statement of several rows, of the catalog, is one.
    assert_eq!(tx.rename_table("t", "u").unwrap_err().kind(), ErrorKind::LogFull);
    assert_eq!(db.stats().log_full, 3);
    tx.rollback().unwrap();
    writer(&db, Durability::Sync).commit().unwrap();
    assert_eq!(db.stats().log_full, 3);
}
