//! Code of the caller that runs inside a statement.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::with_rows;
use crate::{Database, ErrorKind, Savepoint, Transaction};

const LONG: usize = 300_000;

/// A source that calls `act` once, when the value's beginning has been written already.
struct Acting<F> {
    left: usize,
    act: Option<F>,
}

impl<F: FnOnce()> Read for Acting<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left < LONG / 2
            && let Some(act) = self.act.take()
        {
            act();
        }
        let bytes = buffer.len().min(self.left);
        buffer[..bytes].fill(7);
        self.left -= bytes;
        Ok(bytes)
    }
}

fn acting<F: FnOnce()>(act: F) -> Acting<F> {
    Acting { left: LONG, act: Some(act) }
}

fn is_sound(db: &Database) {
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[test]
fn a_source_may_read_in_its_transaction_but_neither_write_nor_take_back() {
    type Act = fn(&Transaction, Savepoint) -> crate::Result<()>;
    let acts: [Act; 8] = [
        |tx, savepoint| tx.rollback_to(savepoint),
        |tx, _| tx.savepoint().map(|_| ()),
        |tx, _| tx.open_bytes_table("t")?.put(b"other", b"2"),
        |tx, _| tx.open_bytes_table("t")?.delete(b"short"),
        |tx, _| tx.open_bytes_table("t")?.get_for_update(b"short").map(|_| ()),
        |tx, _| tx.open_bytes_table("new").map(|_| ()),
        |tx, _| tx.rename_table("t", "u"),
        |tx, _| tx.drop_table("t"),
    ];
    for act in acts {
        let db = with_rows(&[(b"short", b"1"), (b"long", &vec![1; LONG])]);
        let tx = db.begin().unwrap();
        let savepoint = tx.savepoint().unwrap();
        let mut table = tx.open_bytes_table("t").unwrap();
        let mut refused = None;
        let source = acting(|| {
            assert_eq!(tx.open_bytes_table("t").unwrap().get(b"short").unwrap(), Some(b"1".to_vec()));
            refused = act(&tx, savepoint).err();
        });
        assert_eq!(table.insert_from(b"long", source).unwrap(), LONG as u64);
        assert_eq!(refused.expect("it is refused").kind(), ErrorKind::InvalidArgument);
        assert_eq!(table.get(b"long").unwrap(), Some(vec![7; LONG]));
        // Between statements everything is as always.
        table.put(b"other", b"2").unwrap();
        tx.rollback_to(savepoint).unwrap();
        assert_eq!(table.get(b"long").unwrap(), Some(vec![1; LONG]));
        tx.commit().unwrap();
        is_sound(&db);
    }
}

#[test]
fn a_value_is_copied_from_a_reader_of_the_same_transaction() {
    let db = with_rows(&[(b"long", &vec![1; LONG])]);
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        let source = table.reader(b"long")?.expect("it is there");
        table.insert_from(b"copy", source).map(|_| ())
    })
    .unwrap();
    assert_eq!(super::read(&db, b"copy"), Some(vec![1; LONG]));
    is_sound(&db);
}

#[test]
fn what_a_panic_has_left_half_done_is_not_committed() {
    let db = with_rows(&[(b"long", b"1")]);
    let tx = db.begin().unwrap();
    let mut table = tx.open_bytes_table("t").unwrap();
    table.put(b"other", b"2").unwrap();
    let source = acting(|| std::panic::resume_unwind(Box::new("a source that panics")));
    catch_unwind(AssertUnwindSafe(|| table.insert_from(b"long", source))).unwrap_err();
    assert_eq!(table.put(b"more", b"3").unwrap_err().kind(), ErrorKind::TransactionEnded);
    assert_eq!(tx.commit().unwrap_err().kind(), ErrorKind::TransactionEnded);
    assert_eq!(super::read(&db, b"long"), Some(b"1".to_vec()));
    assert_eq!(super::read(&db, b"other"), None);
    is_sound(&db);
}
