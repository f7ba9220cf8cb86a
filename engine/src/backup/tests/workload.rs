//! A random workload with a model beside it, and moments that are remembered.
//!
//! One thread, several transactions open at once (each with keys of its own, so that none waits for another), savepoints, rollbacks, values
//! of all lengths, tables dropped and made anew. Whatever a backup tells of its progress is answered with more of the same.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_storage::sim::{Rng, SimStorage};

use crate::backup::{BackupInfo, BackupOptions, Moment, Target};
use crate::{Database, Maintenance, Options, Result, Transaction};

/// All rows, by table and key.
pub(crate) type Model = BTreeMap<(String, Vec<u8>), Vec<u8>>;

/// Tables that are always there.
const TABLES: [&str; 3] = ["accounts", "blobs", "log"];
/// One that comes and goes.
const COMING_AND_GOING: &str = "temporary";
/// Transactions at once.
const SLOTS: usize = 3;

pub(crate) fn options() -> Options {
    Options::new()
        .page_bytes(4096)
        .cache_bytes(1 << 20)
        .log_buffer_bytes(64 << 10)
        .log_segment_bytes(256 << 10)
        .max_log_bytes(64 << 20)
        .checkpoint_log_bytes(512 << 10)
        .maintenance(Maintenance::Manual)
}

/// A transaction under way and what it would leave.
struct Open {
    tx: Transaction,
    changes: BTreeMap<(String, Vec<u8>), Option<Vec<u8>>>,
}

/// See the module.
pub(crate) struct Workload {
    pub(crate) db: Database,
    rng: Rng,
    open: [Option<Open>; SLOTS],
    pub(crate) committed: Model,
    pub(crate) moments: Vec<(Moment, Model)>,
    pub(crate) backups: Vec<BackupInfo>,
    remembers: bool,
}

impl Workload {
    pub(crate) fn start(disk: &SimStorage, options: Options, seed: u64) -> Result<Workload> {
        let db = options.open_on(Arc::new(disk.clone()))?;
        db.transact(|tx| TABLES.iter().try_for_each(|name| tx.open_bytes_table(name).map(drop)))?;
        Ok(Workload {
            db,
            rng: Rng::new(seed),
            open: [const { None }; SLOTS],
            committed: Model::new(),
            moments: Vec::new(),
            backups: Vec::new(),
            remembers: false,
        })
    }

    /// From now on moments are remembered.
    pub(crate) fn remember(&mut self) {
        self.remembers = true;
    }

    pub(crate) fn steps(&mut self, steps: usize) -> Result<()> {
        (0..steps).try_for_each(|_| self.step())
    }

    fn step(&mut self) -> Result<()> {
        let slot = self.rng.index(SLOTS);
        match self.rng.below(100) {
            0..60 => self.write(slot),
            60..68 => self.try_and_take_back(slot),
            68..84 => self.commit(slot),
            84..90 => self.open[slot].take().map_or(Ok(()), |open| open.tx.rollback()),
            90..92 if self.open.iter().all(Option::is_none) => self.come_or_go(),
            92..94 => self.db.checkpoint().map(drop),
            _ => self.db.maintain().map(drop),
        }?;
        if self.remembers {
            self.moments.push((self.db.restore_point(), self.committed.clone()));
        }
        Ok(())
    }

    fn write(&mut self, slot: usize) -> Result<()> {
        let (rng, open) = (&mut self.rng, &mut self.open[slot]);
        let open = match open {
            Some(open) => open,
            None => open.insert(Open { tx: self.db.begin()?, changes: BTreeMap::new() }),
        };
        for _ in 0..=rng.below(3) {
            let (table, key) = (TABLES[rng.index(TABLES.len())], key(rng, slot));
            if rng.chance(1, 4) {
                open.tx.open_bytes_table(table)?.delete(&key)?;
                open.changes.insert((table.to_owned(), key), None);
            } else {
                let value = value(rng);
                open.tx.open_bytes_table(table)?.put(&key, &value)?;
                open.changes.insert((table.to_owned(), key), Some(value));
            }
        }
        Ok(())
    }

    fn try_and_take_back(&mut self, slot: usize) -> Result<()> {
        let (rng, Some(open)) = (&mut self.rng, &mut self.open[slot]) else { return Ok(()) };
        let savepoint = open.tx.savepoint()?;
        for _ in 0..=rng.below(4) {
            let mut table = open.tx.open_bytes_table(TABLES[rng.index(TABLES.len())])?;
            let key = key(rng, slot);
            if rng.chance(1, 3) { table.delete(&key)? } else { table.put(&key, &value(rng))? }
        }
        open.tx.rollback_to(savepoint)
    }

    fn commit(&mut self, slot: usize) -> Result<()> {
        let Some(open) = self.open[slot].take() else { return Ok(()) };
        open.tx.commit()?;
        for (row, value) in open.changes {
            match value {
                Some(value) => self.committed.insert(row, value),
                None => self.committed.remove(&row),
            };
        }
        Ok(())
    }

    fn come_or_go(&mut self) -> Result<()> {
        let tx = self.db.begin()?;
        if tx.has_table(COMING_AND_GOING)? {
            tx.drop_table(COMING_AND_GOING)?;
            tx.commit()?;
            self.committed.retain(|(table, _), _| table != COMING_AND_GOING);
            return Ok(());
        }
        let mut rows = Vec::new();
        for _ in 0..self.rng.below(40) {
            let (key, value) = (key(&mut self.rng, 0), value(&mut self.rng));
            tx.open_bytes_table(COMING_AND_GOING)?.put(&key, &value)?;
            rows.push(((COMING_AND_GOING.to_owned(), key), value));
        }
        tx.commit()?;
        self.committed.extend(rows);
        Ok(())
    }

    /// Takes a backup; between its steps the workload goes on, until so many steps are done. The last model is that of the backup's end.
    pub(crate) fn back_up(
        &mut self,
        target: &dyn Target,
        options: &BackupOptions,
        steps: usize,
    ) -> Result<()> {
        let db = self.db.clone();
        let mut left = steps;
        let mut failure = None;
        let backup = db.backup(target, options, &mut |_| {
            let now = left.min(6);
            left -= now;
            match self.steps(now) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        match failure {
            Some(error) => Err(error),
            None => backup.map(|info| self.backups.push(info)),
        }
    }
}

fn key(rng: &mut Rng, slot: usize) -> Vec<u8> {
    let number = rng.below(120) as usize * SLOTS + slot;
    format!("{number:06}").into_bytes()
}

fn value(rng: &mut Rng) -> Vec<u8> {
    let len = match rng.below(20) {
        0 => 5_000 + rng.below(30_000),
        1..4 => rng.below(900),
        _ => rng.below(60),
    };
    let mut value = vec![0; len as usize];
    rng.fill(&mut value);
    value
}

/// All rows there are.
pub(crate) fn content(db: &Database) -> Model {
    let snapshot = db.snapshot().unwrap();
    let mut model = Model::new();
    for table in snapshot.tables().unwrap() {
        for row in snapshot.open_bytes_table(&table.name).unwrap().iter().unwrap() {
            let (key, value) = row.unwrap();
            model.insert((table.name.clone(), key), value);
        }
    }
    model
}

/// Panics unless the database is sound and has these rows.
#[track_caller]
pub(crate) fn check(db: &Database, expected: &Model, context: &str) {
    let found = content(db);
    assert!(found == *expected, "{context}: {}", difference(&found, expected));
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.findings.is_empty(), "{context}: {:?}", report.findings);
}

fn difference(found: &Model, expected: &Model) -> String {
    let rows = |a: &Model, b: &Model| {
        a.iter()
            .filter(|(row, value)| b.get(*row) != Some(value))
            .map(|((table, key), value)| format!("{table}/{} ({} bytes)", key.escape_ascii(), value.len()))
            .take(5)
            .collect::<Vec<_>>()
    };
    format!(
        "found and not expected {:?}; expected and not found {:?}",
        rows(found, expected),
        rows(expected, found)
    )
}
