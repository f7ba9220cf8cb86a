//! Many threads on one tree, with vacuum, write-back and eviction running.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use hamal_storage::sim::Rng;
use hamal_wal::Lsn;

use super::super::testing::Fixture;
use super::super::*;
use super::scan;
use crate::journal::Author;

const WRITERS: u64 = 4;

/// A writer's own keys lie between those of all others, in every leaf.
fn key(rng: &mut Rng, shape: Shape, writer: u64) -> Vec<u8> {
    let number = rng.below(1500) * WRITERS + writer;
    match shape {
        Shape::Short if number.is_multiple_of(3) => format!("k{number:012}").into_bytes(),
        Shape::Short => number.to_be_bytes().to_vec(),
        Shape::Long => [&number.to_le_bytes()[..1], &[b'x'; 400], &number.to_be_bytes()].concat(),
    }
}

/// What keys look like.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Short,
    /// Long separators: few fit a page, so the tree is high, and its inner nodes split and merge all the time.
    Long,
}

/// Inserts, replaces, removes, takes back, reads: and knows what each of its keys holds.
fn write(f: &Fixture, shape: Shape, writer: u64, seed: u64) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut rng = Rng::new(seed * 100 + writer);
    let mut model = BTreeMap::new();
    let mut txn = f.begin();
    for step in 0..3000_u64 {
        let key = key(&mut rng, shape, writer);
        // Times of growth and times of shrinking, so that pages split and merge.
        let grow = if step / 500 % 2 == 0 { 6 } else { 1 };
        match rng.below(10) {
            insert if insert < grow => {
                let value = vec![step as u8; rng.below(500) as usize];
                f.put(&txn, &key, &value);
                model.insert(key, value);
            }
            0..8 => {
                let key = model.range(key.clone()..).next().map_or(key, |(key, _)| key.clone());
                assert_eq!(f.remove(&txn, &key), model.remove(&key).is_some(), "seed {seed}");
            }
            8 => {
                // Under the latch: a settled ghost may be purged at any other time.
                let mut before = None;
                let row = Row { stamp: txn.txn(), ghost: false, overflow: false, value: &[3; 150] };
                let decide = &mut |old: Option<Row<'_>>| {
                    before = old.map(|row| (row.stamp, row.ghost, row.value.to_vec()));
                    Ok(Decision::Write(row))
                };
                f.tree.update(&f.journal, Author::Transaction(&txn), &key, 150, decide).unwrap();
                let before = before.as_ref();
                let before = before.map(|(stamp, ghost, value)| Row {
                    stamp: *stamp,
                    ghost: *ghost,
                    overflow: false,
                    value,
                });
                f.tree.undo_row(&f.journal, Author::Rollback(&txn, Lsn::NEVER), &key, before, || ()).unwrap();
            }
            _ => assert_eq!(f.get(&key).as_ref(), model.get(&key), "seed {seed}"),
        }
        if step % 50 == 49 {
            f.tree.vacuum(&f.journal, Some(&self::key(&mut rng, shape, writer)), 10).unwrap();
            f.end(&txn);
            txn = f.begin();
        }
    }
    f.end(&txn);
    model
}

/// Scans see keys in order, and each leaf go on where the one before ended.
fn read(f: &Fixture, shape: Shape, done: &AtomicBool, seed: u64) {
    let mut rng = Rng::new(seed);
    let (mut copy, mut last, mut next) = (LeafCopy::default(), Vec::new(), Vec::new());
    while !done.load(Ordering::Relaxed) {
        let mut from = key(&mut rng, shape, 0);
        last.clear();
        for _ in 0..5 {
            f.tree.leaf_at(Some(&from), None, &mut copy).unwrap();
            for index in copy.lower_bound(&from)..copy.len() {
                next.clear();
                copy.key_into(index, &mut next);
                assert!(last.is_empty() || last < next, "seed {seed}");
                (last, next) = (next, last);
            }
            let Some(fence) = copy.upper_fence() else { break };
            from = fence.to_vec();
        }
        let mut below = key(&mut rng, shape, 1);
        for _ in 0..5 {
            f.tree.leaf_before(Some(&below), None, &mut copy).unwrap();
            let Some(fence) = copy.lower_fence() else { break };
            assert!(fence < &below[..], "seed {seed}");
            below = fence.to_vec();
        }
    }
}

/// Ends the others' work when the last writer is done, or has failed.
struct LastOneOut<'a> {
    writing: &'a AtomicU32,
    done: &'a AtomicBool,
}

impl Drop for LastOneOut<'_> {
    fn drop(&mut self) {
        if self.writing.fetch_sub(1, Ordering::Relaxed) == 1 || thread::panicking() {
            self.done.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn writers_readers_vacuum_and_eviction_leave_a_sound_tree() {
    for (seed, page_bytes, shape) in
        [(1, 4096, Shape::Short), (2, 4096, Shape::Long), (3, 8192, Shape::Short), (4, 4096, Shape::Long)]
    {
        let f = Fixture::new(page_bytes);
        let done = AtomicBool::new(false);
        let writing = AtomicU32::new(WRITERS as u32);
        let mut model = BTreeMap::new();
        thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (f, done, writing) = (&f, &done, &writing);
                    scope.spawn(move || {
                        let _last = LastOneOut { writing, done };
                        write(f, shape, writer, seed)
                    })
                })
                .collect();
            let (f, done) = (&f, &done);
            for reader in 0..2 {
                scope.spawn(move || read(f, shape, done, seed * 10 + reader));
            }
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    f.vacuum();
                }
            });
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    f.pager.write_back(Lsn(u64::MAX), 40).unwrap();
                }
            });
            for writer in writers {
                model.append(&mut writer.join().unwrap());
            }
        });
        let report = f.verify();
        assert_eq!(report.rows, model.len() as u64, "seed {seed}");
        assert_eq!(scan(&f.tree), model, "seed {seed}");
        let (splits, merges) =
            (f.space.splits.load(Ordering::Relaxed), f.space.merges.load(Ordering::Relaxed));
        assert!(splits > 20 && merges > 10, "seed {seed}: {splits} splits, {merges} merges");
        assert!(f.pager.stats().evictions > 0, "seed {seed}: {:?}", f.pager.stats());
    }
}

/// All want the same leaf, and make it split again and again.
#[test]
fn ascending_writers_at_one_leaf_all_get_their_turn() {
    let f = Fixture::new(4096);
    thread::scope(|scope| {
        for writer in 0..6_u64 {
            let f = &f;
            scope.spawn(move || {
                let txn = f.begin();
                for number in 0..1500_u64 {
                    f.put(&txn, &(number * 6 + writer).to_be_bytes(), &[writer as u8; 60]);
                }
                f.end(&txn);
            });
        }
    });
    assert_eq!(f.verify().rows, 9000);
    assert!((0..9000_u64).all(|number| f.get(&number.to_be_bytes()) == Some(vec![(number % 6) as u8; 60])));
}
