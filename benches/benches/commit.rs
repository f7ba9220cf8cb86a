//! A synchronous commit of one changed row: Hamal, its peers, and the bare loop that no commit can beat.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails should end, and say where")]

use criterion::{Criterion, criterion_group, criterion_main};
use hamal_benches::floor::Floor;
use hamal_benches::peer::{Commit, Engine, Settings};
use hamal_benches::place::fresh_directory;
use hamal_benches::rows::{Picks, Seed, key, value};

const ROWS: u64 = 10_000;

fn commit(c: &mut Criterion) {
    let directory = fresh_directory().unwrap();
    let mut group = c.benchmark_group("synchronous commit");
    group.sample_size(50);
    let mut floor = Floor::create(directory.path(), 64 << 20, 4096).unwrap();
    group.bench_function("pwrite + fdatasync of 4 KiB", |b| b.iter(|| floor.commit_cached().unwrap()));
    group.bench_function("the same past the cache (floor)", |b| b.iter(|| floor.commit().unwrap()));
    for engine in Engine::ALL {
        let home = directory.path().join(format!("{engine:?}"));
        std::fs::create_dir(&home).unwrap();
        let settings = Settings { cache_bytes: 64 << 20, commit: Commit::Durable };
        let peer = engine.open(&home, settings).unwrap();
        peer.write(&mut (0..ROWS).map(|n| (key(n), value(n, 0)))).unwrap();
        peer.settle().unwrap();
        let mut picks = Picks::new(Seed(1), ROWS);
        let mut version = 0;
        group.bench_function(peer.name(), |b| {
            b.iter(|| {
                version += 1;
                let row = picks.pick();
                peer.write(&mut std::iter::once((key(row), value(row, version)))).unwrap();
            });
        });
    }
}

criterion_group!(benches, commit);
criterion_main!(benches);
