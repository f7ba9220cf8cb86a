//! The engine, through its public interface: get, insert, replace, remove and scan, with everything in the cache and with eight
//! times as much data as cache. Commits are relaxed, so that the tree is measured and not the disk's flush.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails should end, and say where")]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hamal::{Durability, Options};
use hamal_benches::peer::{Hamal, Peer, random_keys};
use hamal_benches::place::fresh_directory;
use hamal_benches::rows::{Picks, ROW_BYTES, Seed, key, value};

/// Rows of the databases; `HAMAL_BENCH_ROWS` overrides.
const ROWS: u64 = 400_000;
/// Rows per transaction of the write benchmarks.
const BATCH: u64 = 1000;

fn rows() -> u64 {
    // `--test` runs every benchmark once, to see that it works: a small database does.
    if std::env::args().any(|a| a == "--test") {
        return 20_000;
    }
    std::env::var("HAMAL_BENCH_ROWS").ok().and_then(|n| n.parse().ok()).unwrap_or(ROWS)
}

fn fill(peer: &Hamal, rows: u64) {
    let mut next = 0;
    while next < rows {
        let end = (next + BATCH).min(rows);
        peer.write(&mut (next..end).map(|n| (key(n), value(n, 0)))).unwrap();
        next = end;
    }
    peer.settle().unwrap();
}

fn tree(c: &mut Criterion) {
    let rows = rows();
    // A row takes about 1.6 times its bytes in a tree filled in random order.
    let data_bytes = rows * ROW_BYTES as u64 * 16 / 10;
    for (place, cache_bytes) in [("in cache", 4 * data_bytes), ("8 times the cache", data_bytes / 8)] {
        let directory = fresh_directory().unwrap();
        let options = Options::new().cache_bytes(cache_bytes.max(1 << 20)).durability(Durability::Relaxed);
        let peer = Hamal::open_with(directory.path(), options).unwrap();
        fill(&peer, rows);

        let mut group = c.benchmark_group("tree");
        group.sample_size(20).throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("get", place), |b| {
            b.iter_custom(|n| {
                let picks = Picks::new(Seed(n), rows);
                timed(|| assert!(peer.read(&mut random_keys(picks, n)).is_ok()))
            });
        });
        group.bench_function(BenchmarkId::new("replace", place), |b| {
            let mut picks = Picks::new(Seed(1), rows);
            b.iter_custom(|n| {
                in_batches(n, |count| {
                    let mut batch = (0..count).map(|_| {
                        let row = picks.pick();
                        (key(row), value(row, n))
                    });
                    peer.write(&mut batch).unwrap();
                })
            });
        });
        for length in [10, 100] {
            group.bench_function(BenchmarkId::new(format!("scan of {length}"), place), |b| {
                b.iter_custom(|n| {
                    let picks = Picks::new(Seed(n), rows);
                    timed(|| assert!(peer.scan(&mut random_keys(picks, n), length).is_ok()))
                });
            });
        }
        // Rows above `rows` come and go, so that the database keeps its size.
        let mut end = rows;
        let mut start = rows;
        group.bench_function(BenchmarkId::new("insert", place), |b| {
            b.iter_custom(|n| {
                in_batches(n, |count| {
                    let from = end;
                    end += count;
                    peer.write(&mut (from..end).map(|n| (key(n), value(n, 0)))).unwrap();
                })
            });
        });
        group.bench_function(BenchmarkId::new("remove", place), |b| {
            b.iter_custom(|n| {
                while end - start < n {
                    let from = end;
                    end += BATCH;
                    peer.write(&mut (from..end).map(|n| (key(n), value(n, 0)))).unwrap();
                }
                in_batches(n, |count| {
                    let from = start;
                    start += count;
                    peer.remove(&mut (from..start).map(key)).unwrap();
                })
            });
        });
        group.finish();
        assert_eq!(peer.len().unwrap(), rows + end - start, "rows were lost or doubled");
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

/// Times `work` on `n` rows, cut into transactions.
fn in_batches(n: u64, mut work: impl FnMut(u64)) -> Duration {
    timed(|| {
        let mut left = n;
        while left > 0 {
            let count = left.min(BATCH);
            work(count);
            left -= count;
        }
    })
}

criterion_group!(benches, tree);
criterion_main!(benches);
