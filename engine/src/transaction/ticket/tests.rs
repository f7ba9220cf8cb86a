use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use hamal_storage::sim::{Fault, FaultKind, Operation, Repeat, SimStorage, When};
use hamal_wal::Lsn;
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::{CommitTicket, Database, Durability, ErrorKind, Maintenance, Options};

fn open(disk: &SimStorage) -> Database {
    let options = Options::new().page_bytes(4096).durability(Durability::Relaxed);
    options.maintenance(Maintenance::Manual).open_on(Arc::new(disk.clone())).unwrap()
}

fn ticket(db: &Database, table: &str) -> CommitTicket {
    let tx = db.begin().unwrap();
    tx.open_bytes_table(table).unwrap().put(b"k", b"v").unwrap();
    tx.commit_ticket().unwrap()
}

/// Counts how often it was woken.
#[derive(Default)]
struct Bell(AtomicU64);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether `act` wakes who awaits a ticket, and what the ticket says then.
fn woken_by(db: &Database, act: impl FnOnce()) -> Poll<crate::Result<()>> {
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(bell.clone());
    let mut context = Context::from_waker(&waker);
    let mut ticket = pin!(ticket(db, "t"));
    assert!(ticket.as_mut().poll(&mut context).is_pending());
    assert_eq!(bell.0.load(Ordering::Relaxed), 0);
    act();
    assert_eq!(bell.0.load(Ordering::Relaxed), 1, "it sleeps on");
    ticket.poll(&mut context)
}

#[test]
fn whatever_makes_a_commit_durable_wakes_who_awaits_it() {
    type Act = fn(&Database);
    let acts: [Act; 5] = [
        |db| db.flush().unwrap(),
        |db| assert!(db.checkpoint().is_ok()),
        |db| assert!(db.maintain().is_ok()),
        // The file of a table that is dropped goes once the drop is durable.
        |db| db.transact(|tx| tx.drop_table("gone")).unwrap(),
        |db| {
            let tx = db.begin_with(crate::TransactionOptions::new().durability(Durability::Sync)).unwrap();
            tx.open_bytes_table("other").unwrap().put(b"k", b"v").unwrap();
            tx.commit().unwrap();
        },
    ];
    for (number, act) in acts.into_iter().enumerate() {
        let db = open(&SimStorage::new(1));
        drop(ticket(&db, "gone"));
        let said = woken_by(&db, || act(&db));
        assert!(matches!(said, Poll::Ready(Ok(()))), "{number}: {said:?}");
    }
}

#[test]
fn whatever_poisons_the_handle_wakes_who_awaits_a_commit() {
    type Act = fn(&Database);
    let acts: [Act; 4] = [
        |db| drop(db.flush().unwrap_err()),
        |db| drop(db.checkpoint().unwrap_err()),
        |db| drop(db.maintain().unwrap_err()),
        |db| db.handle.engine.poison(&crate::Error::invalid("a reason")),
    ];
    for (number, act) in acts.into_iter().enumerate() {
        let disk = SimStorage::new(1);
        let db = open(&disk);
        let said = woken_by(&db, || {
            let broken = Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Forever);
            disk.inject(broken.only(&[Operation::Write, Operation::Sync]));
            act(&db);
        });
        let Poll::Ready(Err(error)) = said else { panic!("{number}: {said:?}") };
        assert_eq!(error.kind(), ErrorKind::CommitUnknown, "{error}");
    }
}

#[test]
fn a_handle_that_was_poisoned_unseen_wakes_at_the_next_round_of_maintenance() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    let said = woken_by(&db, || {
        let broken = Fault::new(FaultKind::Eio, When::Nth(1), Repeat::Forever);
        disk.inject(broken.only(&[Operation::Write, Operation::Sync]));
        // As an eviction would that has to make the log durable first.
        db.handle.engine.log.flush().unwrap_err();
        assert_eq!(db.maintain().unwrap_err().kind(), ErrorKind::Poisoned);
    });
    assert!(matches!(said, Poll::Ready(Err(_))), "{said:?}");
}

/// Asks, when it goes, whether wakers can be left and taken back.
struct Looks {
    db: Database,
    gone: Arc<AtomicU64>,
}

impl Wake for Looks {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Looks {
    fn drop(&mut self) {
        assert!(self.db.handle.engine.wakers.waiting.try_lock().is_some());
        self.gone.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn wakers_go_with_nothing_in_hand() {
    let db = open(&SimStorage::new(1));
    let gone = Arc::new(AtomicU64::new(0));
    let waker = || Waker::from(Arc::new(Looks { db: db.clone(), gone: gone.clone() }));
    let poll = |ticket: &mut CommitTicket| pin!(ticket).poll(&mut Context::from_waker(&waker()));
    // Replaced by another, taken back, woken.
    let mut first = ticket(&db, "t");
    assert!(poll(&mut first).is_pending());
    assert!(poll(&mut first).is_pending());
    assert_eq!(gone.load(Ordering::Relaxed), 1);
    drop(first);
    assert_eq!(gone.load(Ordering::Relaxed), 2);
    let mut second = ticket(&db, "t");
    assert!(poll(&mut second).is_pending());
    db.flush().unwrap();
    assert_eq!(gone.load(Ordering::Relaxed), 3);
}

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// As an executor of one thread does it; never returns if nobody wakes it.
fn block_on(ticket: CommitTicket) -> crate::Result<()> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut ticket = pin!(ticket);
    loop {
        match ticket.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(said) => return said,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn who_awaits_is_woken_by_the_background_thread_however_the_two_meet() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options::new().page_bytes(4096).durability(Durability::Relaxed);
    let db = options.open(directory.path().join("db")).unwrap();
    // Nobody else flushes, and the background looks by itself once in an hour, in tests.
    for _ in 0..500 {
        let ticket = ticket(&db, "t");
        let lsn = ticket.lsn;
        block_on(ticket).unwrap();
        assert!(db.handle.engine.log.durable() > lsn);
    }
    assert!(db.handle.engine.wakers.waiting.lock().is_empty());
    assert_eq!(db.stats().commits_waited, 0, "a ticket that is awaited leaves the flush to the background");
    db.close().unwrap();
}

#[test]
fn a_ticket_keeps_the_database_open() {
    let db = open(&SimStorage::new(1));
    let ticket = ticket(&db, "t");
    assert_eq!(db.close().unwrap_err().kind(), ErrorKind::InvalidArgument);
    ticket.wait().unwrap();
}

/// A task that owns a ticket, and is over when it is woken.
struct Task(Mutex<Option<CommitTicket>>);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let ticket = self.0.lock().take();
        drop(ticket);
    }
}

/// Opens the database, once whoever closes it has; what it had is all there, with nothing to recover.
fn open_when_closed(directory: &TempDir) -> Database {
    loop {
        let options = Options::new().page_bytes(4096).durability(Durability::Relaxed);
        match options.open(directory.path().join("db")) {
            Err(error) if error.kind() == ErrorKind::Locked => thread::yield_now(),
            opened => {
                let db = opened.unwrap();
                let report = db.recovery_report();
                assert!(report.clean || report.created, "{report:?}");
                return db;
            }
        }
    }
}

/// A task that has the database and closes it when it is woken, and what it was told then.
struct Closer(Mutex<Option<Database>>, Mutex<Option<crate::Error>>);

impl Wake for Closer {
    fn wake(self: Arc<Self>) {
        let db = self.0.lock().take();
        *self.1.lock() = db.and_then(|db| db.close().err());
    }
}

#[test]
fn a_thread_of_the_database_s_own_is_told_that_another_one_closes_it() {
    let directory = tempfile::tempdir().unwrap();
    let db = open_when_closed(&directory);
    db.transact(|tx| tx.open_bytes_table("t")?.put(b"k", b"v")).unwrap();
    let handle = db.handle.clone();
    let closer = Arc::new(Closer(Mutex::new(None), Mutex::new(None)));
    let last = Lsn(handle.engine.log.tail().0 - 1);
    handle.engine.wakers.leave(u64::MAX, last, &Waker::from(closer.clone()));
    // The thread that flushes wakes it, and finds the database once nobody else has it.
    let mut has = closer.0.lock();
    handle.flush_soon();
    drop(handle);
    *has = Some(db);
    drop(has);
    let told = loop {
        let told = closer.1.lock().take();
        let Some(told) = told else {
            thread::yield_now();
            continue;
        };
        break told;
    };
    assert_eq!(told.kind(), ErrorKind::InvalidArgument);
    assert!(told.to_string().contains("background thread"), "{told}");
    drop(open_when_closed(&directory));
}

#[test]
fn a_database_whose_last_ticket_goes_in_its_own_thread_is_closed_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let mut met = 0;
    while met < 10 {
        let db = open_when_closed(&directory);
        let mut awaited = ticket(&db, "t");
        let task = Arc::new(Task(Mutex::new(None)));
        let waker = Waker::from(task.clone());
        let pending = pin!(&mut awaited).poll(&mut Context::from_waker(&waker)).is_pending();
        drop(db);
        // From here on the thread that flushes may drop it; if that has been faster, this one does.
        let is_early = pending && !awaited.is_durable();
        *task.0.lock() = Some(awaited);
        if is_early && task.0.lock().as_ref().is_none_or(|ticket| !ticket.is_durable()) {
            met += 1;
        } else {
            let left = task.0.lock().take();
            drop(left);
        }
    }
}
