//! The demo of partitions: one of eight loses its file, or what is in it, while threads read and write all of them; the seven others go on;
//! the eighth is repaired while they do.
//!
//! Each partition has a writer and a reader. A row holds a version number, which its writer alone changes, upwards, and tells once the
//! commit has returned: so a reader knows between which versions an answer must lie, and the end is compared with the newest ones.
//!
//! I1. A row that was acknowledged before a snapshot was taken is in it with that version or a newer one.
//! I2. Anything but a right answer or `PartitionUnavailable`, from the damaged partition, is wrong.

use std::fs;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hamal::backup::{BackupOptions, DirectoryTarget};
use hamal::{Database, ErrorKind, OpenMode, Options, PartitionState, RepairOptions, RepairReport};
use serde_json::{Value as Json, json};

use super::random::Random;
use crate::commands::repair;
use crate::failure::{Failure, Result};
use crate::text::{self, count, grouped};

/// Partitions of the table.
pub(crate) const PARTITIONS: usize = 8;
/// Rows of each.
const ROWS: u64 = 4000;
/// What a row holds beside its version, bytes: all rows together are larger than the cache.
const PADDING: usize = 300;
/// How long the others are watched before the repair.
const OUTAGE: Duration = Duration::from_millis(700);
/// How long pages filled with noise are read before it is believed that they heal themselves.
const HEALING: Duration = Duration::from_secs(3);
/// How long a damage may stay unnoticed while everything is read.
const PATIENCE: Duration = Duration::from_mins(1);

/// So many things that are wrong are told of a round.
const MOST_WRONG: usize = 20;

/// What happens to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    Deleted,
    Truncated,
    Noise,
}

impl Damage {
    pub(crate) const ALL: [Damage; 3] = [Damage::Deleted, Damage::Truncated, Damage::Noise];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Damage::Deleted => "deleted",
            Damage::Truncated => "truncated",
            Damage::Noise => "filled with noise",
        }
    }
}

/// What happened in one round.
#[derive(Clone, Debug)]
pub(crate) struct Outage {
    pub(crate) damage: Damage,
    pub(crate) was_running: bool,
    pub(crate) partition: u32,
    /// From the first error to the repair's end.
    pub(crate) lasted: Duration,
    pub(crate) repair_took: Duration,
    /// `None`: it was not needed, for every page healed itself when it was read.
    pub(crate) report: Option<RepairReport>,
    /// What the seven others did meanwhile.
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    /// The least that one of them did.
    pub(crate) least_reads: u64,
    pub(crate) least_writes: u64,
    /// Typed errors of the eighth.
    pub(crate) refused: u64,
    pub(crate) cause: String,
    /// What was not as it must be.
    pub(crate) wrong: Vec<String>,
}

/// What the threads of one partition tell.
#[derive(Debug, Default)]
struct Lane {
    reads: AtomicU64,
    writes: AtomicU64,
    refused: AtomicU64,
    /// Newest acknowledged version of each row.
    acknowledged: Vec<AtomicU64>,
}

/// The database of the demo, and what it must hold.
pub(crate) struct Scene {
    directory: PathBuf,
    vault: DirectoryTarget,
    cache_bytes: u64,
    lanes: Vec<Lane>,
    random: Random,
    wrong: Mutex<Vec<String>>,
}

fn key(partition: usize, row: u64) -> Vec<u8> {
    format!("{partition}-{row:05}").into_bytes()
}

fn value(version: u64) -> Vec<u8> {
    let mut value = version.to_le_bytes().to_vec();
    // Other bytes in each version: a mixture of two is noticed.
    value.resize(8 + PADDING, version as u8);
    value
}

/// The version that a value is; `None` if it is none.
fn version_of(bytes: &[u8]) -> Option<u64> {
    let version = u64::from_le_bytes(*bytes.first_chunk()?);
    (bytes == value(version)).then_some(version)
}

impl Outage {
    /// Whether everything was as it must be: the others served, nothing was wrong. Whether the eighth refused has been waited for.
    pub(crate) fn is_right(&self) -> bool {
        self.wrong.is_empty() && self.least_reads > 0 && self.least_writes > 0
    }

    pub(crate) fn to_json(&self, number: u64) -> Json {
        json!({
            "type": "outage",
            "round": number,
            "right": self.is_right(),
            "damage": self.damage.name(),
            "while": self.place(),
            "partition": self.partition,
            "cause": self.cause,
            "outage_ms": text::millis(self.lasted),
            "others_reads": self.reads,
            "others_writes": self.writes,
            "least_reads": self.least_reads,
            "least_writes": self.least_writes,
            "refused": self.refused,
            "repair_ms": text::millis(self.repair_took),
            "repair": self.report.as_ref().map(repair::to_json),
            "wrong": self.wrong,
        })
    }

    fn place(&self) -> &'static str {
        if self.was_running { "running" } else { "closed" }
    }

    pub(crate) fn lines(&self, number: u64, of: u64) -> Vec<String> {
        let verdict = if self.is_right() { "right" } else { "WRONG" };
        let (damage, place) = (self.damage.name(), self.place());
        let mut lines = vec![
            format!("Round {number} of {of}: partition {} {damage} while {place}: {verdict}", self.partition),
            format!(
                "  in {} the seven others served {} and {} (at least {} and {} each); it refused {}",
                text::duration(self.lasted),
                count(self.reads, "read"),
                count(self.writes, "commit"),
                grouped(self.least_reads),
                grouped(self.least_writes),
                count(self.refused, "request"),
            ),
        ];
        lines.push(match &self.report {
            Some(report) => format!(
                "  it said: {}; repaired in {} from {}: {}, {}, {}",
                self.cause,
                text::duration(self.repair_took),
                repair::base(&report.base),
                count(report.pages, "page"),
                count(report.redone, "change"),
                count(report.losers, "open transaction"),
            ),
            None => "  its pages healed themselves as they were read".to_owned(),
        });
        lines.extend(self.wrong.iter().map(|what| format!("  wrong: {what}")));
        lines
    }
}

impl Scene {
    /// Makes the database, fills it and takes a backup.
    pub(crate) fn make(directory: &Path, vault: &Path, cache_bytes: u64, seed: u64) -> Result<Scene> {
        let lane =
            || Lane { acknowledged: (0..ROWS).map(|_| AtomicU64::new(0)).collect(), ..Lane::default() };
        let scene = Scene {
            directory: directory.to_owned(),
            vault: DirectoryTarget::new(vault),
            cache_bytes,
            lanes: (0..PARTITIONS).map(|_| lane()).collect(),
            random: Random::new(seed),
            wrong: Mutex::default(),
        };
        let db = scene.open(OpenMode::Create)?;
        let splits: Vec<Vec<u8>> =
            (1..PARTITIONS).map(|partition| partition.to_string().into_bytes()).collect();
        let splits: Vec<&[u8]> = splits.iter().map(Vec::as_slice).collect();
        db.transact(|tx| tx.create_bytes_table("rows", &splits).map(drop))?;
        for partition in 0..PARTITIONS {
            db.transact(|tx| {
                let mut table = tx.open_bytes_table("rows")?;
                (0..ROWS).try_for_each(|row| table.put(&key(partition, row), &value(0)))
            })?;
        }
        db.backup(&scene.vault, &BackupOptions::new(), &mut |_| ControlFlow::Continue(()))?;
        db.close()?;
        Ok(scene)
    }

    fn open(&self, mode: OpenMode) -> Result<Database> {
        let options = Options::new()
            .mode(mode)
            .cache_bytes(self.cache_bytes)
            .log_segment_bytes(4 << 20)
            .checkpoint_interval(Duration::from_secs(1))
            .checkpoint_log_bytes(4 << 20)
            .archive(Arc::new(self.vault.clone()))
            .archive_interval(Duration::from_millis(200));
        Ok(options.open(&self.directory)?)
    }

    /// Damages a partition, watches the others, repairs it, compares everything.
    pub(crate) fn round(&mut self, damage: Damage, was_running: bool) -> Result<Outage> {
        let slot = self.random.below(PARTITIONS as u64) as usize;
        let mut random = self.random.fork();
        let mut db = self.open(OpenMode::Open)?;
        let partition = db
            .partitions()?
            .into_iter()
            .filter(|p| p.table.is_some())
            .nth(slot)
            .ok_or_else(|| Failure::unusable("the table has lost partitions"))?;
        let file = self.directory.join(&partition.file);
        if !was_running {
            db.close()?;
            inflict(damage, &file, &mut random)?;
            db = self.open(OpenMode::Open)?;
        }
        let stop = AtomicBool::new(false);
        let outage = thread::scope(|scope| {
            for lane in 0..PARTITIONS {
                let (this, db, stop, is_damaged) = (&*self, &db, &stop, lane == slot);
                let (mut writer, mut reader) = (random.fork(), random.fork());
                scope.spawn(move || this.write_until(db, stop, lane, is_damaged, &mut writer));
                scope.spawn(move || this.read_until(db, stop, lane, is_damaged, &mut reader));
            }
            let outage = self.watch(&db, slot, damage, was_running, &file, &mut random);
            stop.store(true, Ordering::Relaxed);
            outage
        });
        let mut outage = outage?;
        outage.partition = partition.id;
        self.compare(&db)?;
        db.close()?;
        outage.wrong = self.noted();
        Ok(outage)
    }

    /// From the damage to the end of the repair, while the threads work.
    fn watch(
        &self,
        db: &Database,
        slot: usize,
        damage: Damage,
        was_running: bool,
        file: &Path,
        random: &mut Random,
    ) -> Result<Outage> {
        let refused_before = self.lanes[slot].refused.load(Ordering::Relaxed);
        if was_running {
            // Under way, all of them.
            self.wait(|| self.lanes.iter().all(|lane| lane.writes.load(Ordering::Relaxed) > 0))?;
            inflict(damage, file, random)?;
        }
        let refused = || self.lanes[slot].refused.load(Ordering::Relaxed) - refused_before;
        // Of a file that is there, page after page may heal itself.
        if damage == Damage::Noise {
            let began = Instant::now();
            self.wait(|| refused() > 0 || began.elapsed() > HEALING)?;
        } else {
            self.wait(|| refused() > 0)?;
        }
        let began = Instant::now();
        let count = |of: fn(&Lane) -> &AtomicU64| -> Vec<u64> {
            self.lanes.iter().map(|lane| of(lane).load(Ordering::Relaxed)).collect()
        };
        let (reads, writes) = (count(|lane| &lane.reads), count(|lane| &lane.writes));
        thread::sleep(OUTAGE);
        let info = db.partitions()?.into_iter().find(|p| p.state == PartitionState::Quarantined);
        if info.is_none() && refused() > 0 {
            return Err(Failure::unusable("a partition refuses, and none is quarantined"));
        }
        let repairing = Instant::now();
        let report = loop {
            let Some(info) = &info else { break None };
            let repaired = db.repair(info.id, Some(&self.vault), &RepairOptions::new(), &mut |_| {
                ControlFlow::Continue(())
            });
            match repaired {
                // Its writer has not yet heard that its transaction is to end.
                Err(e) if e.kind() == ErrorKind::Conflict && repairing.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(1));
                }
                other => break Some(other?),
            }
        };
        let (lasted, repair_took) = (began.elapsed(), repairing.elapsed());
        let done = |before: Vec<u64>, after: Vec<u64>| -> Vec<u64> {
            let lanes = before.iter().zip(after).enumerate();
            lanes.filter(|(lane, _)| *lane != slot).map(|(_, (before, after))| after - before).collect()
        };
        let reads = done(reads, count(|lane| &lane.reads));
        let writes = done(writes, count(|lane| &lane.writes));
        let refused = refused();
        // It serves again.
        let written = self.lanes[slot].writes.load(Ordering::Relaxed);
        self.wait(|| self.lanes[slot].writes.load(Ordering::Relaxed) > written + 3)?;
        Ok(Outage {
            damage,
            was_running,
            partition: 0,
            lasted,
            repair_took,
            report,
            reads: reads.iter().sum(),
            writes: writes.iter().sum(),
            least_reads: reads.into_iter().min().unwrap_or(0),
            least_writes: writes.into_iter().min().unwrap_or(0),
            refused,
            cause: info.and_then(|info| info.cause).unwrap_or_default(),
            wrong: Vec::new(),
        })
    }

    fn wait(&self, until: impl Fn() -> bool) -> Result<()> {
        let began = Instant::now();
        while !until() {
            if began.elapsed() > PATIENCE {
                let wrong = self.noted().join("; ");
                return Err(Failure::unusable(format!("nothing came of it in {PATIENCE:?}: {wrong}")));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn noted(&self) -> Vec<String> {
        std::mem::take(&mut *self.wrong.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, what: String) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if wrong.len() < MOST_WRONG {
            wrong.push(what);
        }
    }

    /// An error is right only if it is the damaged partition's.
    fn refuse(&self, lane: usize, is_damaged: bool, error: &hamal::Error) {
        if is_damaged && error.kind() == ErrorKind::PartitionUnavailable {
            self.lanes[lane].refused.fetch_add(1, Ordering::Relaxed);
            // It need not be asked all the time.
            thread::sleep(Duration::from_millis(1));
        } else {
            self.note(format!("partition {lane} of the table: {error}"));
        }
    }

    fn write_until(
        &self,
        db: &Database,
        stop: &AtomicBool,
        lane: usize,
        is_damaged: bool,
        random: &mut Random,
    ) {
        let acknowledged = &self.lanes[lane].acknowledged;
        while !stop.load(Ordering::Relaxed) {
            let rows: Vec<u64> = (0..random.between(1, 4)).map(|_| random.below(ROWS)).collect();
            let next = |row: u64| acknowledged[row as usize].load(Ordering::Relaxed) + 1;
            let written = db.begin().and_then(|tx| {
                {
                    let mut table = tx.open_bytes_table("rows")?;
                    rows.iter().try_for_each(|row| table.put(&key(lane, *row), &value(next(*row))))?;
                }
                tx.commit()
            });
            match written {
                Ok(()) => {
                    let mut rows = rows;
                    rows.sort_unstable();
                    rows.dedup();
                    for row in rows {
                        // Release: whoever reads the version takes its snapshot after the commit.
                        acknowledged[row as usize].fetch_add(1, Ordering::Release);
                    }
                    self.lanes[lane].writes.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => self.refuse(lane, is_damaged, &error),
            }
        }
    }

    fn read_until(
        &self,
        db: &Database,
        stop: &AtomicBool,
        lane: usize,
        is_damaged: bool,
        random: &mut Random,
    ) {
        let acknowledged = &self.lanes[lane].acknowledged;
        while !stop.load(Ordering::Relaxed) {
            let row = random.below(ROWS);
            let least = acknowledged[row as usize].load(Ordering::Acquire);
            let read =
                db.snapshot().and_then(|snapshot| snapshot.open_bytes_table("rows")?.get(&key(lane, row)));
            match read {
                Ok(found) => {
                    let version = found.as_deref().and_then(version_of);
                    // The writer may be one ahead of what it has told, twice: by now.
                    let most = acknowledged[row as usize].load(Ordering::Acquire) + 1;
                    if version.is_none_or(|version| version < least || version > most) {
                        self.note(format!(
                            "row {row} of partition {lane}: {version:?} is not from {least} to {most}"
                        ));
                    }
                    self.lanes[lane].reads.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => self.refuse(lane, is_damaged, &error),
            }
        }
    }

    /// Every row against the newest acknowledged version, and every page.
    fn compare(&self, db: &Database) -> Result<()> {
        let snapshot = db.snapshot()?;
        let table = snapshot.open_bytes_table("rows")?;
        for (partition, lane) in self.lanes.iter().enumerate() {
            for (row, acknowledged) in lane.acknowledged.iter().enumerate() {
                let expected = acknowledged.load(Ordering::Relaxed);
                let found = table.get(&key(partition, row as u64))?;
                if found.as_deref().and_then(version_of) != Some(expected) {
                    self.note(format!(
                        "row {row} of partition {partition} is not what was acknowledged last"
                    ));
                }
            }
        }
        if table.len()? != PARTITIONS as u64 * ROWS {
            self.note(format!("{} rows are counted", table.len()?));
        }
        for finding in db.verify(&mut |_| ControlFlow::Continue(()))?.findings {
            self.note(format!("{}: {}", finding.file, finding.what));
        }
        Ok(())
    }
}

/// Does to the file what is to be done.
fn inflict(damage: Damage, file: &Path, random: &mut Random) -> Result<()> {
    let done = match damage {
        Damage::Deleted => fs::remove_file(file),
        Damage::Truncated => fs::OpenOptions::new().write(true).open(file).and_then(|file| file.set_len(0)),
        Damage::Noise => fs::metadata(file).and_then(|metadata| {
            let words = metadata.len() / 8;
            let noise: Vec<u8> = (0..words).flat_map(|_| random.next().to_le_bytes()).collect();
            fs::OpenOptions::new().write(true).open(file)?.write_all(&noise)
        }),
    };
    done.map_err(|error| Failure::unusable(format!("cannot damage {}: {error}", file.display())))
}
