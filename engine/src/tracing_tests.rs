//! Whether the spans and events of `docs/observability.md` are told.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use hamal_storage::sim::{CrashMode, SimStorage};
use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Metadata, Subscriber, dispatcher};

use crate::{Database, Error, ErrorKind, Maintenance, Options, Result};

/// Remembers the names of spans and the messages of events.
#[derive(Clone, Debug, Default)]
struct Told {
    names: Arc<Mutex<BTreeSet<String>>>,
    spans: Arc<AtomicU64>,
}

impl Subscriber for Told {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("hamal")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.names.lock().insert(span.metadata().name().to_owned());
        Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Message(&self.names));
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Message<'m>(&'m Mutex<BTreeSet<String>>);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0.lock().insert(format!("{value:?}"));
        }
    }
}

fn options() -> Options {
    Options::new().page_bytes(4096).cache_bytes(4 << 20).version_bytes(0).maintenance(Maintenance::Manual)
}

fn write(db: &Database, rows: u32, value: &[u8]) {
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        (0..rows).try_for_each(|n| table.put(&n.to_be_bytes(), value))
    })
    .unwrap();
}

/// A crash with a loser, and the open after it.
fn recover() {
    let disk = SimStorage::new(1);
    let db = options().open_on(Arc::new(disk.clone())).unwrap();
    write(&db, 1, b"v");
    let loser = db.begin().unwrap();
    loser.open_bytes_table("t").unwrap().put(b"k", b"v").unwrap();
    db.flush().unwrap();
    let image = disk.crash_image(CrashMode::KeepAll, 1);
    drop(options().open_on(Arc::new(image)).unwrap());
}

/// Transactions that wait for each other's row.
fn deadlock(db: &Database, dispatch: &Dispatch) {
    let both_locked = Barrier::new(2);
    let run = |first: &[u8], second: &[u8]| -> Result<()> {
        let tx = db.begin()?;
        let mut table = tx.open_bytes_table("t")?;
        table.put(first, b"v")?;
        both_locked.wait();
        table.put(second, b"v")?;
        drop(table);
        tx.commit()
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| dispatcher::with_default(dispatch, || run(b"b", b"a")));
        let failed = [run(b"a", b"b"), other.join().unwrap()].into_iter().filter_map(Result::err);
        assert_eq!(failed.map(|error| error.kind()).collect::<Vec<_>>(), [ErrorKind::Conflict]);
    });
}

#[test]
fn what_the_docs_list_is_told() {
    let told = Told::default();
    let dispatch = Dispatch::new(told.clone());
    // Where there is but one, a place that another test's thread comes to first is switched off for all threads.
    let _second = Dispatch::new(Told::default());
    dispatcher::with_default(&dispatch, || {
        recover();
        let db = options().open_on(Arc::new(SimStorage::new(2))).unwrap();
        write(&db, 1000, &[1; 200]);
        let snapshot = db.snapshot().unwrap();
        write(&db, 1000, &[2; 2000]);
        drop(snapshot);
        deadlock(&db, &dispatch);
        let mut attempts = 0;
        db.transact(|_| {
            attempts += 1;
            if attempts == 1 { Err(Error::new(ErrorKind::Conflict, "not yet")) } else { Ok(()) }
        })
        .unwrap();
        db.transact(|tx| tx.open_bytes_table("t")?.clear()).unwrap();
        while db.maintain().unwrap() {}
        db.checkpoint().unwrap();
        let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(report.findings, []);
    });
    let docs = include_str!("../../docs/observability.md");
    let names = told.names.lock();
    for name in [
        "recovery",
        "analysis",
        "redo",
        "undo",
        "recovered",
        "checkpoint",
        "vacuum",
        "vacuumed",
        "before-images spilled",
        "overflow runs freed",
        "lock wait",
        "deadlock broken",
        "a transaction is tried again",
        "verification",
        "verified",
    ] {
        assert!(names.contains(name), "{name}: {names:?}");
    }
    for name in &*names {
        assert!(docs.contains(&format!("| `{name}` |")), "docs/observability.md does not have {name}");
    }
}
