//! Long values in a whole database that crashes at every so many I/Os, in recovery too: each commit is wholly there or wholly
//! not, and no page is lost or shared.

use std::collections::BTreeMap;
use std::sync::Arc;

use hamal_storage::sim::{CrashMode, SimStorage};

use super::{check, patterned};
use crate::catalog::CATALOG;
use crate::tree::LeafCopy;
use crate::{Database, Maintenance, Options, Result, TableDef};

const BLOBS: TableDef<u8, &[u8]> = TableDef::new("blobs");

/// Values by key: seed and length.
type Model = BTreeMap<u8, (u64, usize)>;

fn open(storage: &SimStorage) -> Result<Database> {
    Options::new()
        .page_bytes(4096)
        .cache_bytes(1 << 20)
        .log_buffer_bytes(64 << 10)
        .log_segment_bytes(1 << 20)
        .max_log_bytes(16 << 20)
        .maintenance(Maintenance::Manual)
        .open_on(Arc::new(storage.clone()))
}

/// Five transactions on long values: after each, `done` hears what is committed; before its commit, `trying`.
fn work(db: &Database, states: &mut States) -> Result<()> {
    for round in 0..5_u64 {
        let mut model = states.committed.clone();
        let tx = db.begin()?;
        let mut table = tx.open_table(BLOBS)?;
        for key in 0..4_u8 {
            let (seed, len) = (
                round * 10 + u64::from(key),
                (round as usize * 70_001 + usize::from(key) * 33_333) % 190_000,
            );
            table.put(key, &patterned(seed, len))?;
            model.insert(key, (seed, len));
        }
        let savepoint = tx.savepoint()?;
        table.put(0, &patterned(99, 150_000))?;
        table.delete(1)?;
        table.put(9, &patterned(98, 100_000))?;
        if round % 2 == 0 {
            tx.rollback_to(savepoint)?;
        } else {
            model.insert(0, (99, 150_000));
            model.remove(&1);
            model.insert(9, (98, 100_000));
        }
        if round == 3 {
            drop(tx);
        } else {
            states.trying = Some(model);
            tx.commit()?;
            states.committed = states.trying.take().unwrap_or_default();
        }
        while db.maintain()? {}
        if round == 2 {
            db.checkpoint()?;
        }
    }
    Ok(())
}

#[derive(Clone, Debug, Default)]
struct States {
    committed: Model,
    /// In doubt.
    trying: Option<Model>,
}

/// The rows are those of one of the states, and the pages add up.
fn examine(db: &Database, states: &States, context: &str) {
    let snapshot = db.snapshot().unwrap();
    let mut found = BTreeMap::new();
    if snapshot.has_table("blobs").unwrap() {
        for row in snapshot.open_table(BLOBS).unwrap().iter().unwrap() {
            let (key, value) = row.unwrap();
            found.insert(key, value);
        }
    }
    let is = |model: &Model| {
        found.len() == model.len()
            && model.iter().all(|(key, (seed, len))| found.get(key) == Some(&patterned(*seed, *len)))
    };
    assert!(is(&states.committed) || states.trying.as_ref().is_some_and(is), "{context}: {states:?}");
    drop(snapshot);
    let engine = &db.handle.engine;
    for info in db.tables().unwrap() {
        let handle = engine.partition(hamal_pager::PartitionId(info.partitions[0])).unwrap();
        assert_ne!(handle.partition.id(), CATALOG);
        let (mut leaf, mut references) = (LeafCopy::default(), Vec::new());
        handle.tree().leaf_at(None, None, &mut leaf).unwrap();
        for row in (0..leaf.len()).map(|index| leaf.row(index)) {
            if row.overflow && !row.ghost {
                references.push(row.value.to_vec());
            }
        }
        assert_eq!(leaf.upper_fence(), None, "a few rows are one leaf");
        check(&handle.space, &references.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }
}

#[test]
fn no_page_is_lost_or_shared_whenever_the_machine_stops() {
    let storage = SimStorage::new(1);
    let mut states = States::default();
    let db = open(&storage).unwrap();
    work(&db, &mut states).unwrap();
    let ios = storage.io_count();
    examine(&db, &states, "without a crash");
    drop(db);
    assert!(ios > 100, "{ios} I/Os are too few to be worth it");

    for at in (1..ios).step_by(11) {
        let storage = SimStorage::new(1);
        storage.crash_at(at);
        let mut states = States::default();
        let result = open(&storage).and_then(|db| work(&db, &mut states));
        assert!(result.is_err(), "the machine stops at {at} of {ios} I/Os");
        // And twice more while it recovers.
        let mut storage = storage.crash(CrashMode::Any, at);
        for again in [40, 90] {
            storage.crash_at(again + at % 37);
            let reopened = open(&storage).and_then(|db| db.maintain().map(|_| ()));
            drop(reopened);
            storage = storage.crash(CrashMode::Any, at + again);
        }
        let db = open(&storage).unwrap_or_else(|error| panic!("crash at I/O {at}: {error}"));
        examine(&db, &states, &format!("crash at I/O {at}"));
        while db.maintain().unwrap() {}
        examine(&db, &states, &format!("crash at I/O {at}, tidied up"));
        work(&db, &mut states).unwrap();
        examine(&db, &states, &format!("crash at I/O {at}, worked on"));
    }
}
