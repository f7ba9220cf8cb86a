//! Every single I/O of a life of appending, flushing, switching and recycling segments fails, once or from then on.

use hamal_storage::sim::{CrashMode, Fault, FaultKind, Operation, Repeat, SimStorage, When};
use hamal_storage::{Error, Result};

use super::support::{Record, payload, scan, shared, small};
use crate::{Log, Lsn};

/// What a run has been told.
#[derive(Debug, Default)]
struct World {
    records: Vec<Record>,
    acked_end: Lsn,
    oldest: Lsn,
    clean_failures: u32,
}

/// A fixed life: batches of records, each flushed, with truncation. A failed admission or truncation is tried once
/// more, as these promise to leave the log as it was; a failed flush ends it.
fn live(log: &Log, world: &mut World) -> Result<()> {
    let again = |world: &mut World, operation: &mut dyn FnMut() -> Result<()>| {
        operation().or_else(|error| {
            assert!(matches!(error, Error::Io { .. }), "{error}");
            world.clean_failures += 1;
            operation()
        })
    };
    for batch in 0..30_u64 {
        for number in 0..3 {
            let payload = payload(batch * 10 + number, 300 + (batch * 97 + number * 331) as usize % 900);
            let mut lsn = Lsn::NEVER;
            again(world, &mut || {
                lsn = log.admit(Log::framed_bytes(payload.len()), 0)?.append(&payload)?;
                Ok(())
            })?;
            world.records.push((lsn, payload));
        }
        let end = log.tail();
        log.flush()?;
        world.acked_end = end;
        if batch % 7 == 6 {
            // The master record says so first.
            world.oldest = world.records[world.records.len() - 5].0;
            let oldest = world.oldest;
            again(world, &mut || log.truncate(oldest))?;
        }
    }
    Ok(())
}

fn check(sim: &SimStorage, world: &World, what: &str) {
    let result = scan(&shared(sim), &small(), world.oldest, world.acked_end);
    let scanned = result.unwrap_or_else(|error| panic!("{what}: {error}"));
    let live: Vec<&Record> = world.records.iter().filter(|(lsn, _)| *lsn >= world.oldest).collect();
    assert!(scanned.resume.end >= world.acked_end, "{what}: acknowledged records are gone");
    assert!(scanned.records.iter().eq(live.into_iter().take(scanned.records.len())), "{what}");
    let log = Log::resume(shared(sim), small(), 2, world.oldest, &scanned.resume)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut after = World { oldest: world.oldest, ..World::default() };
    live_again(&log, &mut after);
    let rescanned = scan(&shared(sim), &small(), scanned.resume.end, after.acked_end).unwrap();
    assert_eq!(rescanned.records, after.records, "{what}");
}

fn live_again(log: &Log, world: &mut World) {
    for number in 0..8 {
        let payload = payload(number, 1500);
        let lsn = log.admit(Log::framed_bytes(1500), 0).unwrap().append(&payload).unwrap();
        world.records.push((lsn, payload));
        log.flush().unwrap();
        world.acked_end = log.durable();
    }
}

/// Runs the life with one fault; returns whether it struck.
fn run(fault: &Fault, io: u64, what: &str) -> (bool, World) {
    let sim = SimStorage::new(io);
    sim.inject(fault.clone());
    let mut world = World { oldest: Lsn::FIRST, acked_end: Lsn::FIRST, ..World::default() };
    let log = Log::create(shared(&sim), small(), 1);
    match &log {
        Err(error) => {
            assert!(matches!(error, Error::Io { .. }), "{what}: {error}");
            sim.clear_faults();
            // A creation that failed can be tried again.
            let log = Log::create(shared(&sim), small(), 1).unwrap();
            live(&log, &mut world).unwrap();
        }
        Ok(log) => match live(log, &mut world) {
            Ok(()) => assert!(log.poison().is_none(), "{what}"),
            Err(error) => after_failure(&sim, log, &world, &error, what),
        },
    }
    drop(log);
    let struck = !sim.fired().is_empty();
    sim.clear_faults();
    for (mode, seed) in [(CrashMode::Kill, 1), (CrashMode::LoseAll, 2), (CrashMode::Subset, io)] {
        check(&sim.crash_image(mode, seed), &world, &format!("{what}, {mode:?}"));
    }
    sim.drop_clean_cache();
    check(&sim, &world, &format!("{what}, cache dropped"));
    (struck, world)
}

/// What a log must be like after an operation has failed for good.
fn after_failure(sim: &SimStorage, log: &Log, world: &World, error: &Error, what: &str) {
    let fired = sim.fired();
    let last = fired.last().expect("it failed because something struck");
    let in_flush = match last.operation {
        Operation::Write | Operation::Sync => !last.file.contains(".tmp"),
        _ => false,
    };
    assert!(matches!(error, Error::Io { .. }), "{what}: the one whose flush failed gets the cause: {error}");
    assert_eq!(log.poison().is_some(), in_flush, "{what}: {error}");
    if !in_flush {
        assert_eq!(error.is_no_space(), last.kind == FaultKind::Enospc, "{what}: {error}");
        return;
    }
    let cause = log.poison().unwrap();
    assert_eq!(cause, error.to_string(), "{what}");
    let (ios, flushes) = (sim.io_count(), log.flushes());
    let poisoned = |result: Result<()>| match result {
        Err(Error::Poisoned { cause: told }) => assert_eq!(told, cause, "{what}"),
        other => panic!("{what}: {other:?}"),
    };
    poisoned(log.flush());
    poisoned(log.make_durable(world.records.last().unwrap().0));
    poisoned(log.admit(100, 0).map(drop));
    poisoned(log.admit_promised(100).map(drop));
    poisoned(log.promise(1));
    assert_eq!((sim.io_count(), log.flushes()), (ios, flushes), "{what}: nothing is tried again");
    if world.acked_end > world.oldest {
        log.make_durable(world.oldest).unwrap(); // It is already.
    }
    sim.clear_faults();
    for (lsn, payload) in world.records.iter().filter(|(lsn, _)| *lsn >= world.oldest) {
        assert_eq!(log.read(*lsn).unwrap(), *payload, "{what}: reads go on");
    }
}

#[test]
fn every_single_io_may_fail_once_or_for_ever() {
    let mut clean_failures = 0;
    for (kind, repeat) in [
        (FaultKind::Eio, Repeat::Once),
        (FaultKind::Eio, Repeat::Forever),
        (FaultKind::Enospc, Repeat::Once),
        (FaultKind::Enospc, Repeat::Forever),
        (FaultKind::Short, Repeat::Once),
        (FaultKind::Interrupted, Repeat::Once),
    ] {
        for io in 1.. {
            let what = format!("{kind:?} {repeat:?} from I/O {io}");
            let (struck, world) = run(&Fault::new(kind, When::Io(io), repeat), io, &what);
            clean_failures += world.clean_failures;
            if !struck {
                assert!(io > 60, "the life has many I/Os: {io}");
                break;
            }
        }
    }
    assert!(clean_failures > 20, "{clean_failures}");
}

#[test]
fn short_transfers_and_interruptions_are_no_errors() {
    for kind in [FaultKind::Short, FaultKind::Interrupted] {
        let sim = SimStorage::new(1);
        for nth in (1..2000).step_by(2) {
            sim.inject(Fault::new(kind, When::Nth(nth), Repeat::Once));
        }
        let log = Log::create(shared(&sim), small(), 1).unwrap();
        let mut world = World { oldest: Lsn::FIRST, acked_end: Lsn::FIRST, ..World::default() };
        live(&log, &mut world).unwrap();
        assert!(sim.fired().len() > 20, "{}", sim.fired().len());
        assert_eq!(world.clean_failures, 0);
        drop(log);
        check(&sim, &world, &format!("{kind:?}"));
    }
}

/// All who wait for a flush that fails are told, each in its own thread.
#[test]
fn a_failed_flush_reaches_everybody_who_joined_it() {
    for round in 0..20 {
        let sim = SimStorage::new(round);
        let log = Log::create(shared(&sim), small(), 1).unwrap();
        sim.inject(
            Fault::new(FaultKind::Eio, When::Nth(1 + round % 3), Repeat::Forever)
                .only(&[Operation::Sync])
                .on("wal/*.log"),
        );
        let results: Vec<_> = std::thread::scope(|scope| {
            let committers: Vec<_> = (0..4)
                .map(|thread| {
                    let log = &log;
                    scope.spawn(move || {
                        (0..50).find_map(|number| {
                            let payload = payload(thread * 100 + number, 200);
                            let commit = || {
                                let lsn = log.admit(224, 0)?.append(&payload)?;
                                log.make_durable(lsn)
                            };
                            commit().err()
                        })
                    })
                })
                .collect();
            committers.into_iter().map(|committer| committer.join().unwrap()).collect()
        });
        let mut causes = 0;
        for error in results {
            match error.expect("nobody commits fifty times") {
                Error::Io { .. } => causes += 1,
                Error::Poisoned { cause } => assert_eq!(Some(cause), log.poison()),
                other => panic!("{other}"),
            }
        }
        assert_eq!(causes, 1, "round {round}: one led, the others were told");
    }
}
