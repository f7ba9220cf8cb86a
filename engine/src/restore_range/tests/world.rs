//! A table that is written to, split, merged and renamed at random, with a model beside it; and a table that nobody is to touch.
//!
//! One thread. One transaction may be open from step to step, so that most moments have a loser.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_storage::sim::{Rng, SimStorage};

use crate::backup::tests::{no_progress, target_on};
use crate::backup::{BackupOptions, DirectoryTarget, Moment, RestorePoint};
use crate::{
    Database, KeyRange, Maintenance, Options, RangeRestoreOptions, RangeRestoreReport, Result, Transaction,
};

pub(super) type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// The table's two names.
const NAMES: [&str; 2] = ["accounts", "konten"];
/// The table that nobody touches while a range is restored.
pub(super) const OTHER: &str = "other";
/// Keys there can be.
const KEYS: u64 = 300;

/// One moment and the rows as of it.
pub(super) struct Known {
    pub(super) moment: Moment,
    pub(super) rows: Rows,
    /// Lower bounds of the partitions but the first.
    pub(super) cuts: Vec<Vec<u8>>,
}

struct Open {
    tx: Transaction,
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

pub(super) struct World {
    pub(super) db: Database,
    pub(super) disk: SimStorage,
    pub(super) vault_disk: SimStorage,
    pub(super) vault: DirectoryTarget,
    rng: Rng,
    name: usize,
    open: Option<Open>,
    pub(super) rows: Rows,
    pub(super) known: Vec<Known>,
}

pub(super) fn options() -> Options {
    Options::new()
        .page_bytes(4096)
        .cache_bytes(1 << 20)
        .log_buffer_bytes(64 << 10)
        .log_segment_bytes(256 << 10)
        .max_log_bytes(64 << 20)
        .checkpoint_log_bytes(512 << 10)
        .lock_timeout(std::time::Duration::ZERO)
        .balancer(None)
        .maintenance(Maintenance::Manual)
}

pub(super) fn key(number: u64) -> Vec<u8> {
    format!("{number:06}").into_bytes()
}

/// All rows of a table.
pub(super) fn content(db: &Database, table: &str) -> Rows {
    let snapshot = db.snapshot().unwrap();
    snapshot.open_bytes_table(table).unwrap().iter().unwrap().map(Result::unwrap).collect()
}

/// Panics unless the database is sound and no file of a restore is left.
#[track_caller]
pub(super) fn check(db: &Database, disk: &SimStorage, context: &str) {
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.findings.is_empty(), "{context}: {:?}", report.findings);
    let left: Vec<_> = disk.files().into_iter().filter(|name| name.starts_with("scratch/")).collect();
    assert!(left.is_empty(), "{context}: {left:?}");
}

pub(super) fn is_in(key: &[u8], from: &[u8], below: Option<&[u8]>) -> bool {
    key >= from && below.is_none_or(|below| key < below)
}

/// What a table has when a range of `now` has been brought back to `then`.
pub(super) fn mixed(now: &Rows, then: &Rows, from: &[u8], below: Option<&[u8]>) -> Rows {
    let mut rows = now.clone();
    rows.retain(|key, _| !is_in(key, from, below));
    rows.extend(then.iter().filter(|(key, _)| is_in(key, from, below)).map(|(k, v)| (k.clone(), v.clone())));
    rows
}

/// Put back, replaced, removed, unchanged.
pub(super) fn expected_counts(now: &Rows, then: &Rows, from: &[u8], below: Option<&[u8]>) -> [u64; 4] {
    let mut counts = [0; 4];
    for (key, value) in then.iter().filter(|(key, _)| is_in(key, from, below)) {
        counts[match now.get(key) {
            None => 0,
            Some(known) if known != value => 1,
            Some(_) => 3,
        }] += 1;
    }
    let is_extra = |key: &&Vec<u8>| is_in(key, from, below) && !then.contains_key(*key);
    counts[2] = now.keys().filter(is_extra).count() as u64;
    counts
}

pub(super) fn counts(report: &RangeRestoreReport) -> [u64; 4] {
    [report.put_back, report.replaced, report.removed, report.unchanged]
}

impl World {
    /// A database that archives, with an empty table and one of some rows.
    pub(super) fn start(seed: u64) -> World {
        let (disk, vault_disk) = (SimStorage::new(seed), SimStorage::new(seed + 1000));
        let vault = target_on(&vault_disk);
        let db = options().archive(Arc::new(vault.clone())).open_on(Arc::new(disk.clone())).unwrap();
        db.transact(|tx| {
            tx.open_bytes_table(NAMES[0])?;
            let mut other = tx.create_bytes_table(OTHER, &[b"000100", b"000200"])?;
            (0..KEYS).try_for_each(|n| other.put(&key(n), &[7; 200]))
        })
        .unwrap();
        World {
            db,
            disk,
            vault_disk,
            vault,
            rng: Rng::new(seed),
            name: 0,
            open: None,
            rows: Rows::new(),
            known: Vec::new(),
        }
    }

    /// The table's name now.
    pub(super) fn name(&self) -> &'static str {
        NAMES[self.name]
    }

    pub(super) fn steps(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step().unwrap();
            self.remember();
        }
    }

    pub(super) fn remember(&mut self) {
        let partitions = self.db.partitions().unwrap();
        let of_table = partitions.into_iter().filter(|p| p.table.as_deref() == Some(self.name()));
        let cuts = of_table.filter_map(|p| p.lower).collect();
        self.known.push(Known { moment: self.db.restore_point(), rows: self.rows.clone(), cuts });
    }

    fn step(&mut self) -> Result<()> {
        match self.rng.below(100) {
            0..60 => self.write(),
            60..76 => self.commit(),
            76..80 => self.open.take().map_or(Ok(()), |open| open.tx.rollback()),
            80..92 => self.reshape(),
            92..95 => self.db.checkpoint().map(drop),
            _ => self.db.maintain().map(drop),
        }
    }

    fn write(&mut self) -> Result<()> {
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(Open { tx: self.db.begin()?, changes: BTreeMap::new() }),
        };
        for _ in 0..=self.rng.below(12) {
            let key = key(self.rng.below(KEYS));
            let mut table = open.tx.open_bytes_table(NAMES[self.name])?;
            if self.rng.chance(1, 4) {
                table.delete(&key)?;
                open.changes.insert(key, None);
            } else {
                let mut value = vec![0; self.rng.below(60) as usize];
                match self.rng.below(20) {
                    0 => value.resize(5_000 + self.rng.below(30_000) as usize, 0),
                    1..4 => value.resize(self.rng.below(900) as usize, 0),
                    _ => {}
                }
                self.rng.fill(&mut value);
                table.put(&key, &value)?;
                open.changes.insert(key, Some(value));
            }
        }
        Ok(())
    }

    pub(super) fn commit(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        open.tx.commit()?;
        for (key, value) in open.changes {
            match value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
        Ok(())
    }

    /// Splits, merges, renames.
    fn reshape(&mut self) -> Result<()> {
        self.commit()?;
        let go_on = &mut |_| ControlFlow::Continue(());
        match self.rng.below(8) {
            0..5 => {
                let at = key(self.rng.below(KEYS));
                // There may be one already.
                let _split = self.db.split(self.name(), &at, go_on);
            }
            5..7 => {
                let lowers: Vec<_> = self
                    .db
                    .partitions()?
                    .into_iter()
                    .filter_map(|p| p.lower.filter(|_| p.table.as_deref() == Some(self.name())))
                    .collect();
                if !lowers.is_empty() {
                    // A bound that is too new cannot go yet.
                    let _merged = self.db.merge(self.name(), &lowers[self.rng.index(lowers.len())], go_on);
                }
            }
            _ => {
                let tx = self.db.begin()?;
                tx.rename_table(NAMES[self.name], NAMES[1 - self.name])?;
                tx.commit()?;
                self.name = 1 - self.name;
            }
        }
        Ok(())
    }

    pub(super) fn back_up(&mut self, options: &BackupOptions) -> String {
        self.db.backup(&self.vault, options, &mut no_progress).unwrap().id
    }

    pub(super) fn restore(
        &self,
        range: &KeyRange,
        options: &RangeRestoreOptions,
    ) -> Result<RangeRestoreReport> {
        self.db.restore_range(self.name(), range, &self.vault, options, &mut no_progress)
    }
}

/// A moment, by one of its two names.
pub(super) fn point_of(moment: &Moment, by_lsn: bool) -> RestorePoint {
    if by_lsn { RestorePoint::Lsn(moment.lsn) } else { RestorePoint::Micros(moment.micros) }
}
