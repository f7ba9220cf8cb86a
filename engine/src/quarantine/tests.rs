//! Partitions that go offline, everything else that goes on, and their repair.

mod backups;
mod crashes;
mod losers;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_storage::Storage;
use hamal_storage::sim::{Fault, FaultKind, Operation, Repeat, Rng, SimStorage, When};

use crate::backup::{BackupOptions, DirectoryTarget, Progress};
use crate::{
    Database, ErrorKind, Maintenance, Options, PartitionState, RepairBase, RepairOptions, RepairReport,
    Transaction,
};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

const PARTITIONS: usize = 8;
/// The partition that is damaged: neither the first nor the last.
const SLOT: usize = 3;

fn no_progress(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Pages that heal themselves would leave little to do.
fn options() -> Options {
    Options::new()
        .self_repair(false)
        .page_bytes(4096)
        .cache_bytes(1 << 20)
        .log_buffer_bytes(64 << 10)
        .log_segment_bytes(256 << 10)
        .max_log_bytes(64 << 20)
        .maintenance(Maintenance::Manual)
        .lock_timeout(std::time::Duration::ZERO)
}

fn splits() -> Vec<Vec<u8>> {
    (1..PARTITIONS).map(|slot| vec![b'a' + slot as u8]).collect()
}

fn key(slot: usize, number: u64) -> Vec<u8> {
    format!("{}{number:04}", (b'a' + slot as u8) as char).into_bytes()
}

fn value(rng: &mut Rng) -> Vec<u8> {
    // Some long enough for pages of their own.
    let len = if rng.chance(1, 12) { 3000 + rng.below(6000) } else { rng.below(900) };
    let mut bytes = vec![0; len as usize];
    rng.fill(&mut bytes);
    bytes
}

/// A database of eight partitions, what it should hold, and where its backups and its archive go.
struct World {
    disk: SimStorage,
    vault_disk: SimStorage,
    vault: DirectoryTarget,
    db: Option<Database>,
    model: Model,
    rng: Rng,
    archives: bool,
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Deleted,
    CutToNothing,
    CutInTheMiddle,
    Noise,
}

const DAMAGES: [Damage; 4] = [Damage::Deleted, Damage::CutToNothing, Damage::CutInTheMiddle, Damage::Noise];

impl World {
    /// The name of a quarantined partition's kept log.
    fn kept_log(&self) -> String {
        let is_log = |name: &String| {
            name.starts_with("quarantine/")
                && std::path::Path::new(name).extension().is_some_and(|e| e == "log")
        };
        self.disk.files().into_iter().find(is_log).unwrap()
    }

    fn new(seed: u64, archives: bool) -> World {
        let vault_disk = SimStorage::new(seed + 1000);
        let vault = DirectoryTarget::within(Arc::new(vault_disk.clone()), "");
        let (disk, rng) = (SimStorage::new(seed), Rng::new(seed));
        let mut world = World { disk, vault_disk, vault, db: None, model: Model::new(), rng, archives };
        world.open();
        let splits = splits();
        let splits: Vec<&[u8]> = splits.iter().map(Vec::as_slice).collect();
        world.db().transact(|tx| tx.create_bytes_table("t", &splits).map(drop)).unwrap();
        world
    }

    /// The same world on another disk, not open.
    fn on(&self, disk: SimStorage, seed: u64) -> World {
        World {
            disk,
            vault_disk: self.vault_disk.clone(),
            vault: self.vault.clone(),
            db: None,
            model: self.model.clone(),
            rng: Rng::new(seed),
            archives: self.archives,
        }
    }

    /// Gives back the log, so that the making of the partitions is in it no more.
    fn settle_down(&self) {
        self.db().checkpoint().unwrap();
    }

    fn options(&self) -> Options {
        let options = options();
        if self.archives { options.archive(Arc::new(self.vault.clone())) } else { options }
    }

    fn open(&mut self) {
        let options = self.options();
        self.db = None;
        self.db = Some(options.open_on(Arc::new(self.disk.clone())).unwrap());
    }

    fn db(&self) -> &Database {
        self.db.as_ref().unwrap()
    }

    fn close(&mut self) {
        self.db.take().unwrap().close().unwrap();
    }

    /// The id of a partition.
    fn id(&self, slot: usize) -> u32 {
        let partitions = self.db().partitions().unwrap();
        partitions.iter().filter(|p| p.table.is_some()).nth(slot).unwrap().id
    }

    fn file(&self, slot: usize) -> String {
        format!("part/{}.dat", self.id(slot))
    }

    /// Commits changes in partitions that are `wanted`.
    fn write(&mut self, commits: usize, wanted: impl Fn(usize) -> bool) {
        for _ in 0..commits {
            let tx = self.db.as_ref().unwrap().begin().unwrap();
            let mut changes = Vec::new();
            for _ in 0..=self.rng.below(6) {
                let slot = self.rng.index(PARTITIONS);
                if !wanted(slot) {
                    continue;
                }
                let key = key(slot, self.rng.below(120));
                let value = (!self.rng.chance(1, 5)).then(|| value(&mut self.rng));
                change(&tx, &key, value.as_deref());
                changes.push((key, value));
            }
            tx.commit().unwrap();
            for (key, value) in changes {
                match value {
                    Some(value) => drop(self.model.insert(key, value)),
                    None => drop(self.model.remove(&key)),
                }
            }
        }
    }

    fn back_up(&self) -> String {
        self.db().backup(&self.vault, &BackupOptions::new(), &mut no_progress).unwrap().id
    }

    fn damage(&self, file: &str, damage: Damage) {
        let storage: &dyn Storage = &self.disk;
        let len = storage.open(file).unwrap().len().unwrap();
        match damage {
            Damage::Deleted => {
                storage.remove(file).unwrap();
                storage.sync_directory("part").unwrap();
            }
            Damage::CutToNothing => storage.open(file).unwrap().set_len(0).unwrap(),
            Damage::CutInTheMiddle => storage.open(file).unwrap().set_len(3 * 4096 + 100).unwrap(),
            Damage::Noise => {
                let mut noise = vec![0; len as usize];
                Rng::new(7).fill(&mut noise);
                self.disk.overwrite(file, 0, &noise).unwrap();
            }
        }
    }

    /// Every other partition holds what it should, and takes writes; this one answers with its error, whatever is asked.
    fn check_outage(&mut self, slot: usize) {
        let id = self.id(slot);
        self.write(3, |other| other != slot);
        let snapshot = self.db().snapshot().unwrap();
        let table = snapshot.open_bytes_table("t").unwrap();
        for (key, value) in &self.model {
            let found = table.get(key);
            if key[0] == b'a' + slot as u8 {
                let error = found.map(drop).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::PartitionUnavailable, "{error}");
                let what = error.unavailable_partition().unwrap();
                assert_eq!((what.id, what.table.as_deref()), (id, Some("t")));
                let bound = |slot: usize| Some(vec![b'a' + slot as u8]);
                assert_eq!((&what.lower, &what.upper), (&bound(slot), &bound(slot + 1)));
                assert_eq!(what.file, format!("part/{id}.dat"));
                assert!(!what.cause.is_empty() && error.to_string().contains(&what.cause), "{error}");
            } else {
                assert!(found.unwrap().as_ref() == Some(value), "what was committed");
            }
        }
        // A scan goes on to where it begins, from either side.
        let below = self.model.range(..key(slot, 0)).count();
        let mut rows = table.iter().unwrap();
        assert_eq!(rows.by_ref().take(below).filter_map(Result::ok).count(), below);
        assert_eq!(rows.next().unwrap().map(drop).unwrap_err().kind(), ErrorKind::PartitionUnavailable);
        let above = self.model.range(key(slot + 1, 0)..).count();
        let mut rows = table.iter().unwrap().rev();
        assert_eq!(rows.by_ref().take(above).filter_map(Result::ok).count(), above);
        assert_eq!(rows.next().unwrap().map(drop).unwrap_err().kind(), ErrorKind::PartitionUnavailable);
        assert_eq!(table.len().unwrap(), self.model.len() as u64, "the log knows how many rows there are");
        // A transaction that meets it can go on elsewhere.
        let tx = self.db().begin().unwrap();
        let refused = tx.open_bytes_table("t").unwrap().put(&key(slot, 1), b"no").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PartitionUnavailable);
        let refused = tx.open_bytes_table("t").unwrap().remove(&key(slot, 1)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PartitionUnavailable);
        let other = key((slot + 1) % PARTITIONS, 7);
        change(&tx, &other, Some(b"yes"));
        tx.commit().unwrap();
        self.model.insert(other, b"yes".to_vec());
        let infos = self.db().partitions().unwrap();
        for info in infos {
            let is_bad = info.id == id;
            assert_eq!(info.state == PartitionState::Quarantined, is_bad, "{info:?}");
            assert_eq!((info.cause.is_some(), info.quarantined_micros.is_some()), (is_bad, is_bad));
        }
        let report = self.db().verify(&mut |_| ControlFlow::Continue(())).unwrap();
        let files: Vec<String> = report.findings.into_iter().map(|finding| finding.file).collect();
        assert_eq!(files, [format!("part/{id}.dat")], "nothing else is damaged");
        // A backup goes on without it, and says so.
        let info = self.db().backup(&self.vault, &BackupOptions::new(), &mut no_progress).unwrap();
        let quarantined: Vec<u32> =
            info.quarantined.iter().map(|quarantined| quarantined.partition).collect();
        assert_eq!(quarantined, [id]);
        crate::backup::remove(&self.vault, &info.id).unwrap();
    }

    /// Restarts, checkpoints and more log than is kept.
    fn live_on(&mut self, slot: usize) {
        for round in 0..3 {
            self.write(30, |other| other != slot);
            self.db().checkpoint().unwrap();
            while self.db().maintain().unwrap() {}
            if round == 1 {
                self.close();
            }
            self.open();
            self.check_outage(slot);
        }
    }

    fn repair(&self, slot: usize) -> RepairReport {
        let vault: &dyn crate::backup::Target = &self.vault;
        self.db().repair(self.id(slot), Some(vault), &RepairOptions::new(), &mut no_progress).unwrap()
    }

    /// All is as it should be, and nothing is left.
    #[track_caller]
    fn check(&self) {
        let snapshot = self.db().snapshot().unwrap();
        let rows: Model =
            snapshot.open_bytes_table("t").unwrap().iter().unwrap().map(Result::unwrap).collect();
        assert!(rows == self.model, "the rows are those that were committed");
        let report = self.db().verify(&mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(report.findings, []);
        assert!(self.db().partitions().unwrap().iter().all(|p| p.state == PartitionState::Online));
        let left: Vec<String> =
            self.disk.files().into_iter().filter(|name| name.starts_with("quarantine/")).collect();
        assert_eq!(left, Vec::<String>::new());
        assert_eq!(self.db().handle.engine.retention.is_held(), self.archives, "no log is held");
    }

    /// The database goes on as if nothing had been.
    fn check_for_good(&mut self) {
        self.check();
        self.write(20, |_| true);
        self.check();
        self.db().checkpoint().unwrap();
        self.back_up();
        self.close();
        self.open();
        self.check();
        self.write(20, |_| true);
        // And recovers.
        self.open_after_crash(5);
        self.check();
    }

    fn open_after_crash(&mut self, seed: u64) {
        let crashed = self.disk.crash(hamal_storage::sim::CrashMode::Any, seed);
        self.db = None;
        self.disk = crashed;
        self.open();
    }
}

fn change(tx: &Transaction, key: &[u8], value: Option<&[u8]>) {
    let mut table = tx.open_bytes_table("t").unwrap();
    match value {
        Some(value) => table.put(key, value).unwrap(),
        None => table.delete(key).unwrap(),
    }
}

#[test]
fn a_partition_damaged_while_closed_is_confined_and_repaired_to_the_last_commit() {
    for (seed, damage) in DAMAGES.into_iter().enumerate() {
        println!("seed {seed}: {damage:?}");
        let mut world = World::new(seed as u64, true);
        world.write(120, |_| true);
        world.settle_down();
        world.back_up();
        world.write(120, |_| true);
        let file = world.file(SLOT);
        if seed % 2 == 0 {
            world.close();
        } else {
            world.open_after_crash(seed as u64);
            world.close();
        }
        world.damage(&file, damage);
        world.open();
        if let Damage::CutInTheMiddle = damage {
            // Its first page is right: what is missing is found when it is asked for.
            let snapshot = world.db().snapshot().unwrap();
            let rows = snapshot.open_bytes_table("t").unwrap().iter().unwrap().collect::<Result<Model, _>>();
            assert_eq!(rows.map(drop).unwrap_err().kind(), ErrorKind::PartitionUnavailable);
        }
        world.check_outage(SLOT);
        world.live_on(SLOT);
        let report = world.repair(SLOT);
        assert!(matches!(report.base, RepairBase::Backup(_)) && report.redone > 0, "{report:?}");
        world.check_for_good();
    }
}

#[test]
fn a_partition_damaged_while_it_is_in_use_is_confined_and_repaired_to_the_last_commit() {
    for (seed, damage) in DAMAGES.into_iter().enumerate() {
        println!("seed {seed}: {damage:?}");
        let mut world = World::new(seed as u64, true);
        world.write(400, |_| true);
        world.back_up();
        world.write(150, |_| true);
        world.damage(&world.file(SLOT), damage);
        // Nobody notices yet; what is written goes on being acknowledged.
        world.write(2, |slot| slot != SLOT);
        world.db().checkpoint().unwrap();
        // Whatever the checkpoint has not seen is found by reading.
        for pass in 0..3 {
            let snapshot = world.db().snapshot().unwrap();
            for (key, value) in &world.model {
                match snapshot.open_bytes_table("t").unwrap().get(key) {
                    Ok(found) => assert!(found.as_ref() == Some(value), "pass {pass}: no wrong answer"),
                    Err(e) => assert_eq!(e.kind(), ErrorKind::PartitionUnavailable, "{e}"),
                }
            }
        }
        world.check_outage(SLOT);
        let stats = world.db().stats();
        assert_eq!((stats.quarantined_partitions, stats.quarantines), (1, 1));
        world.live_on(SLOT);
        let report = world.repair(SLOT);
        assert!(matches!(report.base, RepairBase::Backup(_)), "{report:?}");
        assert_eq!(world.db().stats().quarantined_partitions, 0);
        world.check_for_good();
    }
}

#[test]
fn what_was_committed_before_the_file_was_missed_is_not_lost() {
    // The log since the last checkpoint is all there is of it: the checkpoint that would give it back looks for the file first.
    let mut world = World::new(3, true);
    world.write(50, |_| true);
    world.back_up();
    let file = world.file(SLOT);
    world.damage(&file, Damage::Deleted);
    world.write(80, |_| true);
    while world.db().maintain().unwrap() {}
    world.close();
    world.open();
    world.check_outage(SLOT);
    world.repair(SLOT);
    world.check_for_good();
}

#[test]
fn a_file_that_comes_back_needs_no_backup() {
    for seed in 0..6 {
        let mut world = World::new(seed, false);
        world.write(150, |_| true);
        world.settle_down();
        world.write(40, |_| true);
        let file = world.file(SLOT);
        if seed < 3 {
            world.open_after_crash(seed);
        }
        world.db = None;
        let storage: &dyn Storage = &world.disk;
        storage.rename(&file, "elsewhere").unwrap();
        world.open();
        world.check_outage(SLOT);
        world.live_on(SLOT);
        let refused = world.db().repair(world.id(SLOT), None, &RepairOptions::new(), &mut no_progress);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Corrupt, "there is nothing to repair it from");
        world.check_outage(SLOT);
        (&world.disk as &dyn Storage).rename("elsewhere", &file).unwrap();
        let report =
            world.db().repair(world.id(SLOT), None, &RepairOptions::new(), &mut no_progress).unwrap();
        assert_eq!(report.base, RepairBase::File, "seed {seed}");
        world.check_for_good();
    }
}

#[test]
fn a_partition_whose_making_is_in_the_log_is_built_from_that() {
    let mut world = World::new(9, false);
    world.write(60, |_| true);
    world.damage(&world.file(SLOT), Damage::Deleted);
    world.db().checkpoint().unwrap();
    world.check_outage(SLOT);
    world.live_on(SLOT);
    let report = world.db().repair(world.id(SLOT), None, &RepairOptions::new(), &mut no_progress).unwrap();
    assert_eq!((report.base, report.pages), (RepairBase::Log, 0));
    world.check_for_good();
}

#[test]
fn a_repair_without_all_of_the_log_is_refused_and_changes_nothing() {
    let mut world = World::new(4, false);
    world.write(60, |_| true);
    world.back_up();
    for _ in 0..3 {
        world.write(150, |_| true);
        world.db().checkpoint().unwrap();
    }
    world.damage(&world.file(SLOT), Damage::Noise);
    world.close();
    world.open();
    world.check_outage(SLOT);
    let before = world.disk.files();
    let vault: &dyn crate::backup::Target = &world.vault;
    let refused = world.db().repair(world.id(SLOT), Some(vault), &RepairOptions::new(), &mut no_progress);
    let refused = refused.unwrap_err();
    assert!(
        refused.kind() == ErrorKind::Corrupt && refused.to_string().contains("log is missing"),
        "{refused}"
    );
    assert_eq!(world.disk.files(), before);
    world.check_outage(SLOT);
    // Its table can still be dropped.
    let tx = world.db().begin().unwrap();
    tx.drop_table("t").unwrap();
    tx.commit().unwrap();
    while world.db().maintain().unwrap() {}
    world.model.clear();
    let tx = world.db().begin().unwrap();
    tx.open_bytes_table("t").unwrap();
    tx.commit().unwrap();
    world.check_for_good();
}

#[test]
fn a_transaction_commits_what_it_did_before_and_repair_brings_it_back() {
    let mut world = World::new(5, true);
    world.write(60, |_| true);
    world.back_up();
    let db = world.db().clone();
    let tx = db.begin().unwrap();
    for slot in [SLOT, SLOT + 1] {
        change(&tx, &key(slot, 500), Some(b"before"));
        world.model.insert(key(slot, 500), b"before".to_vec());
    }
    world.damage(&world.file(SLOT), Damage::Deleted);
    world.db().checkpoint().unwrap();
    let refused = world.db().repair(world.id(SLOT), None, &RepairOptions::new(), &mut no_progress);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict, "its outcome is not known yet");
    let refused = tx.open_bytes_table("t").unwrap().put(&key(SLOT, 501), b"no").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PartitionUnavailable);
    tx.commit().unwrap();
    drop(db);
    world.check_outage(SLOT);
    world.repair(SLOT);
    world.check_for_good();
}

#[test]
fn a_repair_that_is_stopped_changes_nothing_and_works_the_next_time() {
    let mut world = World::new(6, true);
    world.write(80, |_| true);
    world.back_up();
    world.write(40, |_| true);
    world.damage(&world.file(SLOT), Damage::CutToNothing);
    world.db().checkpoint().unwrap();
    world.check_outage(SLOT);
    let before = world.disk.files();
    let mut stopped = 0;
    loop {
        let mut calls = 0;
        let vault: &dyn crate::backup::Target = &world.vault;
        let result = world.db().repair(world.id(SLOT), Some(vault), &RepairOptions::new(), &mut |_| {
            calls += 1;
            if calls > stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let Err(e) = result else { break };
        assert_eq!(e.kind(), ErrorKind::Cancelled, "{e}");
        let files: Vec<String> =
            world.disk.files().into_iter().filter(|f| f.contains("quarantine")).collect();
        assert!(files.iter().all(|file| before.contains(file)), "{files:?}");
        world.check_outage(SLOT);
        stopped += 1;
    }
    assert!(stopped > 2, "{stopped}");
    let bad = [0, world.id(0), 99];
    for id in bad {
        let refused = world.db().repair(id, None, &RepairOptions::new(), &mut no_progress).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{id}");
    }
    world.check_for_good();
}

#[test]
fn what_is_kept_of_a_quarantine_and_damaged_itself_harms_nobody_else() {
    for damaged in ["state", "log"] {
        let mut world = World::new(8, true);
        world.write(60, |_| true);
        world.settle_down();
        world.back_up();
        world.write(20, |_| true);
        world.damage(&world.file(SLOT), Damage::Noise);
        world.close();
        world.open();
        world.check_outage(SLOT);
        let id = world.id(SLOT);
        world.close();
        let name = match damaged {
            "state" => format!("quarantine/{id}"),
            _ => world.kept_log(),
        };
        if damaged == "state" {
            world.disk.flip_bit(&name, 300).unwrap();
        } else {
            (&world.disk as &dyn Storage).remove(&name).unwrap();
        }
        for _ in 0..2 {
            world.open();
            world.check_outage(SLOT);
            let vault: &dyn crate::backup::Target = &world.vault;
            let refused = world.db().repair(id, Some(vault), &RepairOptions::new(), &mut no_progress);
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Corrupt, "{damaged}");
            world.db().checkpoint().unwrap();
            world.close();
        }
        world.open();
        world.db().transact(|tx| tx.drop_table("t")).unwrap();
        while world.db().maintain().unwrap() {}
        world.close();
        world.open();
        let left = world.disk.files();
        assert!(left.iter().all(|name| !name.starts_with("quarantine/")), "{left:?}");
    }
}

#[test]
fn a_file_that_the_system_refuses_is_quarantined_and_one_refusal_is_none() {
    for (repeat, is_quarantined) in [(Repeat::Once, false), (Repeat::Forever, true)] {
        for operation in [Operation::Open, Operation::Read] {
            let mut world = World::new(8, false);
            world.write(60, |_| true);
            world.settle_down();
            world.write(20, |_| true);
            let file = world.file(SLOT);
            world.open_after_crash(4);
            world.close();
            let fault = Fault::new(FaultKind::Eio, When::Nth(1), repeat);
            world.disk.inject(fault.only(&[operation]).on(file));
            world.open();
            world.disk.clear_faults();
            let states = world.db().partitions().unwrap();
            let quarantined = states.iter().filter(|p| p.state == PartitionState::Quarantined).count();
            assert_eq!(quarantined, usize::from(is_quarantined), "{operation:?}");
            if is_quarantined {
                world.check_outage(SLOT);
                let report = world.db().repair(world.id(SLOT), None, &RepairOptions::new(), &mut no_progress);
                assert_eq!(report.unwrap().base, RepairBase::File);
            }
            world.check_for_good();
        }
    }
}
