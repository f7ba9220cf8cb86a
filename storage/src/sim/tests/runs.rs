//! Same seed, same run; and many random runs against a model of what may survive.

use std::time::Duration;

use super::*;

/// A random run with faults, capacity, damage and crashes, in which everything depends on the seed.
fn run(seed: u64, steps: usize) -> (SimStorage, u64) {
    let mut rng = Rng::new(seed);
    let mut storage = SimStorage::new(rng.next_u64());
    let names = ["a", "b", "d/a", "d/b"];
    let mut crashes = 0;
    for _ in 0..steps {
        let (name, other) = (names[rng.index(4)], names[rng.index(4)]);
        let offset = rng.below(20_000);
        let open = || storage.open(name).or_else(|_| storage.create(name));
        // Refusals are part of the run.
        let _ = match rng.below(16) {
            0 => storage.create_directory("d"),
            1 => storage.rename(name, other),
            2 => storage.remove(name),
            3 => storage.sync_directory(""),
            4 => storage.sync_directory("d"),
            5 => open().and_then(|file| file.set_len(offset)),
            6 => open().and_then(|file| file.allocate(offset, 5_000)),
            7 | 8 => open().and_then(|file| file.sync_data()),
            9 => {
                storage
                    .advance(Duration::from_micros(storage.now_micros() % 1_000 + storage.random_u64() % 9));
                Ok(())
            }
            10 => {
                let kinds = [FaultKind::Eio, FaultKind::Enospc, FaultKind::Short, FaultKind::LostWrite];
                storage.inject(Fault::new(kinds[rng.index(4)], When::Nth(1 + rng.below(9)), Repeat::Once));
                Ok(())
            }
            11 if rng.chance(1, 4) => {
                storage = storage.crash(CrashMode::Any, rng.next_u64());
                storage.crash_at(storage.io_count() + 1 + rng.below(200));
                crashes += 1;
                Ok(())
            }
            12 => storage.flip_bit(name, rng.below(100_000)),
            _ => open().and_then(|file| {
                let mut bytes = vec![0; rng.index(3_000)];
                rng.fill(&mut bytes);
                file.write_at(&bytes, offset).map(drop)
            }),
        };
        if storage.is_crashed() {
            storage = storage.crash(CrashMode::Any, rng.next_u64());
            crashes += 1;
        }
    }
    (storage, crashes)
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let mut all = BTreeSet::new();
    let mut crashes = 0;
    for seed in 0..40 {
        let (one, crashed) = run(seed, 400);
        assert_eq!(one.fingerprint(), run(seed, 400).0.fingerprint(), "seed {seed}");
        all.insert(one.fingerprint());
        crashes += crashed;
    }
    assert_eq!(all.len(), 40);
    assert!(crashes > 100, "{crashes}");
}

#[test]
fn the_fingerprint_sees_the_disk_what_is_pending_the_clock_and_the_random_stream() {
    let (storage, file) = machine_with(&[1; 2_000]);
    let mut seen = BTreeSet::from([storage.fingerprint()]);
    let mut changed = |what: &str| assert!(seen.insert(storage.fingerprint()), "{what}");
    file.write_at(&[2], 0).unwrap();
    changed("a write");
    file.sync_data().unwrap();
    changed("a sync");
    storage.flip_bit("f", 3).unwrap();
    changed("damage");
    storage.rename("f", "g").unwrap();
    changed("a rename");
    storage.sync_directory("").unwrap();
    changed("a directory sync");
    storage.random_u64();
    changed("randomness");
    storage.now_micros();
    changed("time");
    storage.advance(Duration::from_millis(1));
    changed("advancing time");
    assert_eq!(storage.fingerprint(), storage.fingerprint());
}

#[test]
fn time_is_made_of_the_seed_and_never_stands_still() {
    let (one, two) = (SimStorage::new(5), SimStorage::new(5));
    let first = one.now_micros();
    assert_eq!(first, two.now_micros());
    let second = one.now_micros();
    assert!(second > first && second < first + 100);
    let start = one.monotonic();
    one.advance(Duration::from_mins(1));
    let passed = one.monotonic().checked_sub(start).unwrap();
    assert!(passed >= Duration::from_mins(1) && passed < Duration::from_secs(61));
    let before = one.now_micros();
    assert!(one.crash(CrashMode::LoseAll, 0).now_micros() > before, "time goes on after a crash");
}

#[test]
fn random_bits_are_made_of_the_seed_and_differ_after_a_crash() {
    let (one, two) = (SimStorage::new(5), SimStorage::new(5));
    assert_eq!(one.random_u64(), two.random_u64());
    assert_ne!(one.random_u64(), SimStorage::new(6).random_u64());
    assert_ne!(
        one.crash_image(CrashMode::Kill, 1).random_u64(),
        one.crash_image(CrashMode::Kill, 2).random_u64()
    );
}

#[test]
fn an_io_is_counted_whether_it_succeeds_or_not_and_looking_on_is_none() {
    let (storage, file) = machine_with(&[1; 10]);
    let before = (storage.io_count(), storage.operation_count(Operation::Open));
    storage.open("f").unwrap();
    storage.open("g").unwrap_err();
    assert_eq!((storage.io_count(), storage.operation_count(Operation::Open)), (before.0 + 2, before.1 + 2));
    file.len().unwrap();
    storage.exists("f").unwrap();
    storage.now_micros();
    storage.read_file("f").unwrap();
    assert_eq!(storage.io_count(), before.0 + 2);
}

/// What a sector of the model may be after a crash.
#[derive(Clone, Debug)]
struct Possible {
    durable: u64,
    pending: Vec<u64>,
}

/// One file of fixed length, writes of whole and part sectors tagged by number, syncs, crashes; every sector must come
/// back as one of the versions the model allows, over several crashes.
#[test]
fn whatever_survives_was_written_and_not_overwritten_by_something_synced() {
    const SECTORS: usize = 40;
    let tag = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let (mut storage, mut file) = machine_with(&[0; SECTORS * SECTOR]);
        let mut model = vec![Possible { durable: 0, pending: vec![] }; SECTORS];
        for step in 1..400_u64 {
            match rng.below(20) {
                0 => {
                    file.sync_data().unwrap();
                    for sector in &mut model {
                        sector.durable = *sector.pending.last().unwrap_or(&sector.durable);
                        sector.pending.clear();
                    }
                }
                1 if rng.chance(1, 3) => {
                    storage = storage.crash(CrashMode::Subset, rng.next_u64());
                    file = storage.open("f").unwrap();
                    let bytes = storage.read_file("f").unwrap();
                    for (sector, bytes) in model.iter_mut().zip(bytes.chunks(SECTOR)) {
                        let found = tag(bytes);
                        assert!(
                            found == sector.durable || sector.pending.contains(&found),
                            "seed {seed}, step {step}: {found} is not of {sector:?}"
                        );
                        lost += usize::from(sector.pending.last().is_some_and(|last| *last != found));
                        kept += usize::from(sector.pending.last() == Some(&found));
                        *sector = Possible { durable: found, pending: vec![] };
                    }
                }
                _ => {
                    let (first, count) = (rng.index(SECTORS), 1 + rng.index(12));
                    let end = (first + count).min(SECTORS);
                    let bytes: Vec<u8> = step.to_le_bytes().repeat((end - first) * SECTOR / 8);
                    let cut = if rng.chance(1, 2) { rng.index(SECTOR - 8) } else { 0 };
                    let offset = (first * SECTOR) as u64;
                    file.write_at(&bytes[..bytes.len() - cut], offset).unwrap();
                    model[first..end].iter_mut().for_each(|sector| sector.pending.push(step));
                }
            }
        }
    }
    assert!(lost > 1_000 && kept > 1_000, "{lost} lost, {kept} kept");
}
