//! Random lives with crashes at random I/Os, inside recovery too; any seed can be run again by its number.

use hamal_storage::sim::{CrashMode, Rng, SimStorage};
use hamal_storage::{Error, Result};

use super::support::{Record, payload, scan, shared, small};
use crate::{Log, LogOptions, Lsn};

/// What the caller of the log keeps in its master record, and what it remembers to compare with.
struct World {
    sim: SimStorage,
    options: LogOptions,
    rng: Rng,
    incarnation: u32,
    oldest: Lsn,
    sworn: Lsn,
    records: Vec<Record>,
    acked_end: Lsn,
    next_number: u64,
}

/// How often the interesting things happened.
#[derive(Debug, Default)]
struct Tally {
    crashes: u64,
    resumes: u64,
    interrupted_resumes: u64,
    torn: u64,
    log_full: u64,
    recycled: u64,
}

impl World {
    fn run(seed: u64, tally: &mut Tally) {
        let mut world = World {
            sim: SimStorage::new(seed),
            // Every other log is soon full.
            options: LogOptions { max_bytes: [40 << 10, 256 << 10][seed as usize % 2], ..small() },
            rng: Rng::new(seed ^ 0x5eed),
            incarnation: 1,
            oldest: Lsn::FIRST,
            sworn: Lsn::FIRST,
            records: Vec::new(),
            acked_end: Lsn::FIRST,
            next_number: 0,
        };
        let log = Log::create(shared(&world.sim), world.options.clone(), 1).unwrap();
        let mut log = Some(log);
        for _ in 0..6 {
            if let Some(log) = log.take() {
                let within = 1 + world.rng.below(150);
                world.sim.crash_at(world.sim.io_count() + within);
                world.live(&log, tally);
                tally.recycled += log.stats().segments_recycled;
            }
            let mode = [CrashMode::Any, CrashMode::Subset][world.rng.index(2)];
            let crash_seed = world.rng.next_u64();
            world.sim = world.sim.crash(mode, crash_seed);
            tally.crashes += 1;
            log = world.recover(seed, tally);
        }
    }

    /// Works until the machine stops.
    fn live(&mut self, log: &Log, tally: &mut Tally) {
        let mut promised = 0;
        loop {
            match self.step(log, &mut promised) {
                Ok(()) => {}
                Err(Error::LogFull { .. }) => {
                    tally.log_full += 1;
                    log.release(std::mem::take(&mut promised));
                    if log.flush().and_then(|()| self.truncate(log)).is_err() {
                        break;
                    }
                }
                Err(error) => {
                    assert!(self.sim.is_crashed(), "{error}");
                    break;
                }
            }
        }
    }

    fn step(&mut self, log: &Log, promised: &mut u64) -> Result<()> {
        match self.rng.below(20) {
            0..=9 => {
                let lens: Vec<usize> =
                    (0..=self.rng.below(3)).map(|_| self.rng.index(self.rng_limit(log))).collect();
                let bytes = lens.iter().map(|len| Log::framed_bytes(*len)).sum();
                let promise = self.rng.below(3) * 100;
                let mut permit = log.admit(bytes, promise)?;
                *promised += promise;
                self.append(&mut permit, &lens);
            }
            10 if *promised >= 104 => {
                let mut permit = log.admit_promised(104)?;
                self.append(&mut permit, &[76]);
                drop(permit);
                log.release(104);
                *promised -= 104;
            }
            11..=15 => {
                let Some((lsn, _)) = self.records.last() else { return Ok(()) };
                let lsn = *lsn;
                log.make_durable(lsn)?;
                self.acked_end = self.acked_end.max(log.durable());
            }
            16 => self.truncate(log)?,
            _ => {
                if let Some((lsn, payload)) = self.pick() {
                    match log.read(lsn) {
                        Ok(read) => assert_eq!(read, payload, "{lsn}"),
                        Err(error) => assert!(matches!(error, Error::Io { .. }), "{error}"),
                    }
                }
            }
        }
        Ok(())
    }

    fn rng_limit(&self, log: &Log) -> usize {
        if self.next_number.is_multiple_of(5) { log.max_payload_bytes() + 1 } else { 300 }
    }

    fn append(&mut self, permit: &mut crate::Permit<'_>, lens: &[usize]) {
        for len in lens {
            self.next_number += 1;
            let payload = payload(self.next_number, *len);
            self.records.push((permit.append(&payload).unwrap(), payload));
        }
    }

    fn pick(&mut self) -> Option<Record> {
        let count = self.records.len();
        (count > 0).then(|| self.records[self.rng.index(count)].clone())
    }

    /// The caller swears to what is durable, in its master record, and then lets go of the rest.
    fn truncate(&mut self, log: &Log) -> Result<()> {
        self.acked_end = self.acked_end.max(log.durable());
        self.sworn = log.durable();
        let durable = self.records.partition_point(|(lsn, _)| *lsn < self.sworn);
        if durable > 0 {
            let keep = self.rng.index(durable);
            self.oldest = self.records[keep].0;
            self.records.drain(..keep);
        }
        log.truncate(self.oldest)
    }

    /// Scans, compares, resumes; `None` if the machine stopped again.
    fn recover(&mut self, seed: u64, tally: &mut Tally) -> Option<Log> {
        let scanned = scan(&shared(&self.sim), &self.options, self.oldest, self.sworn)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        tally.torn += u64::from(scanned.torn);
        assert!(scanned.resume.end >= self.acked_end, "seed {seed}: lost an acknowledged record");
        let count = scanned.records.len();
        assert_eq!(scanned.records, self.records[..count], "seed {seed}");
        if self.rng.chance(1, 3) {
            let within = 1 + self.rng.below(40);
            self.sim.crash_at(self.sim.io_count() + within);
        }
        self.incarnation += 1;
        let (storage, options) = (shared(&self.sim), self.options.clone());
        match Log::resume(storage, options, self.incarnation, self.oldest, &scanned.resume) {
            Ok(log) => {
                tally.resumes += 1;
                self.records.truncate(count);
                self.acked_end = scanned.resume.end;
                Some(log)
            }
            Err(error) => {
                assert!(self.sim.is_crashed(), "seed {seed}: {error}");
                tally.interrupted_resumes += 1;
                None
            }
        }
    }
}

#[test]
fn random_lives_lose_nothing_acknowledged_and_keep_nothing_half() {
    let mut tally = Tally::default();
    for seed in 0..600 {
        World::run(seed, &mut tally);
    }
    assert!(tally.crashes >= 3600 && tally.resumes > 1000, "{tally:?}");
    assert!(tally.interrupted_resumes > 100 && tally.torn > 100, "{tally:?}");
    assert!(tally.log_full > 10 && tally.recycled > 100, "{tally:?}");
}
