//! Recovery: how much log a second is replayed, and how many rows a second are rolled back. A crash is a copy of the files while
//! the database is open; they are in the system's page cache, so the engine is measured and not the disk.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails should end, and say where")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use hamal::{Database, Durability, Maintenance, Options};
use hamal_benches::peer::{Hamal, Peer, ROWS};
use hamal_benches::place::fresh_directory;
use hamal_benches::rows::{key, value};
use tempfile::TempDir;

fn options() -> Options {
    Options::new()
        .cache_bytes(1 << 30)
        .max_log_bytes(4 << 30)
        .checkpoint_log_bytes(4 << 30)
        .checkpoint_interval(Duration::from_hours(24))
        .durability(Durability::Relaxed)
        .maintenance(Maintenance::Manual)
}

fn small() -> bool {
    std::env::args().any(|a| a == "--test")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The files of a database as a crash leaves them: `committed` rows inserted since the last checkpoint, and `losers` rows by a
/// transaction that never ended.
fn crashed(committed: u64, losers: u64) -> TempDir {
    let directory = fresh_directory().unwrap();
    let peer = Hamal::open_with(directory.path(), options()).unwrap();
    peer.settle().unwrap();
    for start in (0..committed).step_by(1000) {
        peer.write(&mut (start..start + 1000).map(|n| (key(n), value(n, 0)))).unwrap();
    }
    let loser = peer.database().begin().unwrap();
    {
        let mut table = loser.open_table(ROWS).unwrap();
        for n in committed..committed + losers {
            table.put(&key(n), &value(n, 0)).unwrap();
        }
    }
    peer.database().flush().unwrap();
    let image = fresh_directory().unwrap();
    copy(directory.path(), image.path());
    image
}

fn recover(image: &Path) -> Database {
    options().open(image.join("rows.hamal")).unwrap()
}

fn recovery(c: &mut Criterion) {
    let (committed, losers) = if small() { (2_000, 1_000) } else { (600_000, 100_000) };
    let mut group = c.benchmark_group("recovery");
    group.sample_size(10);

    let image = crashed(committed, 0);
    let scratch = fresh_directory().unwrap();
    let mut turn = 0;
    let mut fresh_copy = |image: &TempDir| {
        turn += 1;
        let home = scratch.path().join(turn.to_string());
        copy(image.path(), &home);
        home
    };
    let first = recover(&fresh_copy(&image));
    let report = first.recovery_report().clone();
    assert!(!report.clean && report.redo.applied > committed, "nothing to replay: {report:?}");
    drop(first);
    println!("replay: {report:?}");
    group.throughput(Throughput::Bytes(report.end_lsn - report.redo_lsn));
    group.bench_function("open and replay", |b| {
        b.iter_custom(|n| {
            (0..n)
                .map(|_| {
                    let home = fresh_copy(&image);
                    let began = Instant::now();
                    let database = recover(&home);
                    let elapsed = began.elapsed();
                    drop(database);
                    fs::remove_dir_all(home).unwrap();
                    elapsed
                })
                .sum()
        });
    });
    group.bench_function("analysis and redo", |b| {
        b.iter_custom(|n| {
            (0..n)
                .map(|_| {
                    let home = fresh_copy(&image);
                    let database = recover(&home);
                    let report = database.recovery_report();
                    let elapsed = report.analysis.elapsed + report.redo.elapsed;
                    drop(database);
                    fs::remove_dir_all(home).unwrap();
                    elapsed
                })
                .sum()
        });
    });

    let image = crashed(1000, losers);
    group.throughput(Throughput::Elements(losers));
    group.bench_function("open, replay and roll one transaction back, per row", |b| {
        b.iter_batched(
            || fresh_copy(&image),
            |home| {
                let database = recover(&home);
                assert_eq!(database.recovery_report().losers, 1);
                database
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, recovery);
criterion_main!(benches);
