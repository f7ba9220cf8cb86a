//! What the hot paths and the checks cost. Measured on demand, never asserted.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use hamal_wal::Lsn;

use super::LARGE;
use crate::validation::*;

/// Costs, for whoever changes the hot path: `cargo test --release -p hamal --lib validation -- --ignored --nocapture`.
#[test]
#[ignore = "measures, and asserts nothing"]
fn what_reading_writing_and_checking_cost() {
    const KEYS: usize = 1_000_000;
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let keys: Vec<[u8; 24]> = (0..KEYS)
        .map(|_| {
            let mut key = [b'k'; 24];
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            key[16..].copy_from_slice(&seed.to_be_bytes());
            key
        })
        .collect();
    let each = |what: &str, count: usize, start: Instant| {
        println!("{what}: {:.1} ns", start.elapsed().as_secs_f64() * 1e9 / f64::from(count as u32));
    };

    // The median of short stretches: on a busy machine a long one measures its neighbours too.
    let median = |what: &str, run: &mut dyn FnMut(&[[u8; 24]])| {
        const STRETCH: usize = 1000;
        let mut times: Vec<_> = keys
            .chunks(STRETCH)
            .map(|stretch| {
                let start = Instant::now();
                stretch.chunks(100).for_each(&mut *run);
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        println!("{what}: {:.1} ns", times[times.len() / 2].as_secs_f64() * 1e9 / f64::from(STRETCH as u32));
    };

    let (mut reads, mut writes) = (ReadSet::new(16 << 20), WriteSet::new(16 << 20));
    median("point(), transactions of 100", &mut |transaction| {
        reads.clear();
        for key in transaction {
            reads.point(1, key);
        }
    });
    median("add(), transactions of 100", &mut |transaction| {
        writes.clear();
        for key in transaction {
            writes.add(1, key);
        }
    });
    median("range() and narrow(), transactions of 100", &mut |transaction| {
        reads.clear();
        for key in transaction {
            let id = reads.range(1, Bound::Included(key), Bound::Unbounded);
            reads.narrow(id, Some(Bound::Included(key)), None);
        }
    });
    let start = Instant::now();
    for transaction in keys.chunks(4) {
        writes.clear();
        for key in transaction {
            writes.add(1, key);
        }
        std::hint::black_box(Arc::new(writes.publish([1].into_iter())));
    }
    each("add() 4 and publish(), a transaction", KEYS / 4, start);
    let mut reads = ReadSet::new(64 << 20);
    let start = Instant::now();
    for key in &keys {
        reads.point(1, key);
    }
    each("point(), one transaction of 1000000", KEYS, start);
    let start = Instant::now();
    let prepared = reads.prepare();
    each("prepare() after 1000000 points, a point", KEYS, start);
    let other = |n: usize| {
        let mut key = keys[n * 7919 % KEYS];
        key[0] = b'j' + (n % 3) as u8;
        key[23] ^= 0x55;
        key
    };
    for count in [1, 10, 1000, 100_000] {
        let mut writes = WriteSet::new(64 << 20);
        (0..count).for_each(|n| writes.add(1, &other(n)));
        let published = writes.publish([].into_iter());
        let start = Instant::now();
        let rounds = 100_000_usize.div_ceil(count).min(1000);
        for _ in 0..rounds {
            std::hint::black_box(conflict(&prepared, &published));
        }
        each(&format!("conflict(), 1000000 reads, {count} writes, a check"), rounds, start);
    }
    let mut coarse = ReadSet::new(1 << 20);
    let start = Instant::now();
    for key in &keys {
        coarse.point(1, key);
    }
    each("point() in random order, limit 1 MiB, coarsening again and again", KEYS, start);
    println!("bytes: {} exact, {} of 1 MiB coarse", reads.bytes(), coarse.bytes());

    let mut history = History::new(1 << 30);
    for n in 0..10_000 {
        writes.clear();
        keys[n * 4..n * 4 + 4].iter().for_each(|key| writes.add(1, key));
        history.push(Lsn(n as u64 + 1), Arc::new(writes.publish([1].into_iter())));
    }
    let mut small = ReadSet::new(LARGE);
    (0..10).for_each(|n| small.point(1, &other(n)));
    let prepared = small.prepare();
    let start = Instant::now();
    let later = history.after(&prepared, Lsn::NEVER);
    each("after(), a commit", 10_000, start);
    let start = Instant::now();
    let verdict = later.and_then(|later| later.check(&prepared));
    each("check(), 10 reads, commits of 4 writes, a commit", 10_000, start);
    println!("{verdict:?}; {} bytes a commit of 4 keys", history.bytes() / 10_000);
}
