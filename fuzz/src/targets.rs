//! What the libFuzzer targets do with their input. None of it may panic, hang, or allocate by what the input says.
//!
//! T1. Checksums are repaired after mutation, else no fuzzer gets past them.
//! T2. A target's panic is its finding: each panics where the library would have to answer `Corrupt` and does not.

mod log;
mod page;

use std::ops::ControlFlow;
use std::sync::Arc;

use hamal::{Database, ErrorKind, OpenMode, inspect};
use hamal_storage::Storage;
use hamal_storage::sim::{CrashMode, SimStorage};

use crate::crash::run_bytes;
use crate::plan::{NAMES, Plan};
use crate::sweep::Script;

pub use log::{log_bytes, log_corpus};
pub use page::{page_bytes, page_corpus};

/// Operations, crashes and reopenings against the model, spelled out by bytes.
///
/// # Panics
///
/// Where the database fails: that is the target's finding.
pub fn operations(input: &[u8]) {
    if let Err(what) = run_bytes(input) {
        panic!("{what}");
    }
}

/// Inputs for [`operations`] to start from: streams of decisions of several lengths.
pub fn operations_corpus() -> Vec<Vec<u8>> {
    let stream = |seed: u64, len: usize| {
        let mut choices = crate::choice::Choices::seeded(seed);
        (0..len).map(|_| choices.below(256) as u8).collect()
    };
    (0..24).map(|seed| stream(seed, 64 << (seed % 6))).collect()
}

/// A small database to be damaged.
struct Small {
    disk: SimStorage,
    plan: Plan,
}

impl Small {
    /// Makes one; `closed`, or left in the middle of a transaction.
    fn make(closed: bool) -> Small {
        let mut script = Script::fixed(4096);
        (script.plan.preload_rows, script.plan.key_space, script.plan.value_bytes) = (80, 80, 200);
        script.steps = 6;
        let mut on = script.performance();
        let db = on.disk.open(&script.plan, OpenMode::OpenOrCreate).expect("a healthy disk");
        script.work(&db, &mut on).expect("a healthy disk");
        let disk = if closed {
            db.close().expect("a healthy disk");
            on.disk.sim().crash_image(CrashMode::KeepAll, 0)
        } else {
            let tx = db.begin().expect("a healthy disk");
            on.session(&db, &script.plan).scribble(&tx).expect("a healthy disk");
            db.flush().expect("a healthy disk");
            on.disk.sim().crash_image(CrashMode::KeepAll, 0)
        };
        Small { disk, plan: script.plan }
    }

    /// A copy of its disk, to be changed.
    fn copy(&self) -> SimStorage {
        self.disk.crash_image(CrashMode::KeepAll, 1)
    }

    /// Opens what has become of it and uses everything there is.
    fn exercise(&self, disk: &SimStorage) {
        let storage = || -> Arc<dyn Storage> { Arc::new(disk.clone()) };
        allow(inspect::master(&storage()));
        allow(inspect::analyze(&storage()));
        allow(inspect::log(&storage(), 0, 0, &mut |_| true));
        let Some(db) = allow(self.plan.options(OpenMode::Open).open_on(storage())) else { return };
        self.read(&db);
        allow(db.verify(&mut |_| ControlFlow::Continue(())));
        for name in NAMES {
            allow(db.transact(|tx| {
                let mut table = tx.open_bytes_table(name)?;
                for index in 0..self.plan.key_space {
                    let key = self.plan.key(name, index);
                    match index % 3 {
                        0 => table.delete(&key)?,
                        1 => table.put(&key, &[7; 300])?,
                        _ => drop(table.insert(&key, &[8; 6000])?),
                    }
                }
                Ok(())
            }));
        }
        self.read(&db);
        allow(db.checkpoint());
        allow(db.maintain());
        allow(db.close());
    }

    fn read(&self, db: &Database) {
        let Some(snapshot) = allow(db.snapshot()) else { return };
        let tables = allow(snapshot.tables()).unwrap_or_default();
        for info in tables {
            let Some(table) = allow(snapshot.open_bytes_table(&info.name)) else { continue };
            let forward =
                table.iter().and_then(|rows| rows.take(5000).try_fold(0, |n, row| row.map(|_| n + 1)));
            let backward =
                table.iter().and_then(|rows| rows.rev().take(5000).try_fold(0, |n, row| row.map(|_| n + 1)));
            allow::<u64>(forward);
            allow::<u64>(backward);
            allow(table.len());
            for index in 0..self.plan.key_space {
                let key = self.plan.key(&info.name, index);
                allow(table.get(&key));
                if let Some(Some(mut reader)) = allow(table.reader(&key)) {
                    let _ = std::io::copy(&mut reader, &mut std::io::sink());
                }
            }
        }
    }
}

/// The answer, or `None` if damage was reported as it should be. Panics at any other error.
fn allow<T>(result: hamal::Result<T>) -> Option<T> {
    use ErrorKind as Kind;
    match result {
        Ok(value) => Some(value),
        Err(error) => match error.kind() {
            Kind::Corrupt
            | Kind::PartitionUnavailable
            | Kind::NotADatabase
            | Kind::Poisoned
            | Kind::TransactionEnded => None,
            kind => panic!("damage gave {kind:?}: {error}"),
        },
    }
}
