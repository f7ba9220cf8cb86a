//! The balancer against loads that are made up, and over databases whose clock is turned by hand.

#![expect(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "loads that are made up")]

use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_storage::sim::{Rng, SimStorage};

use super::*;
use crate::{Database, Maintenance, Options};

const SECOND: Duration = Duration::from_secs(1);

fn options() -> BalancerOptions {
    BalancerOptions::new().hot_operations(1000).split_bytes(1 << 20).cold_time(60 * SECOND).max_partitions(16)
}

/// A table whose keys are numbers below 1000, and the load on each.
struct Toy {
    memory: Memory,
    options: BalancerOptions,
    now: Duration,
    /// Id, first key, bytes, operations.
    partitions: Vec<(u32, usize, u64, u64)>,
    next_id: u32,
    /// By round.
    actions: Vec<(u64, Advice)>,
    round: u64,
}

impl Toy {
    fn new(bytes: u64) -> Toy {
        let partitions = vec![(1, 0, bytes, 0)];
        let (memory, options) = (Memory::default(), options());
        Toy { memory, options, now: SECOND, partitions, next_id: 2, actions: Vec::new(), round: 0 }
    }

    /// Seconds of this load, operations per second by key.
    fn run(&mut self, seconds: u64, load: &dyn Fn(u64, usize) -> f64) {
        for _ in 0..seconds {
            self.round += 1;
            self.now += SECOND;
            let ends: Vec<usize> = self.partitions[1..].iter().map(|p| p.1).chain([1000]).collect();
            for (partition, end) in self.partitions.iter_mut().zip(ends) {
                let sum: f64 = (partition.1..end).map(|key| load(self.round, key)).sum();
                partition.3 += sum as u64;
            }
            let seen: Vec<Seen> = self
                .partitions
                .iter()
                .map(|(id, _, bytes, operations)| Seen {
                    id: PartitionId(*id),
                    used_bytes: *bytes,
                    operations: *operations,
                    in_transition: false,
                    appends: false,
                })
                .collect();
            for seen in &seen {
                self.memory.observe(&self.options, seen, self.now);
            }
            let Some(advice) = self.memory.advise(&self.options, 1, &seen, self.now) else { continue };
            let rest = |memory: &mut Memory, now| {
                memory.rest(&options(), 1, (Duration::from_millis(100), REST_ROUNDS), now);
            };
            match advice {
                Advice::Split(at, reason) => {
                    let (id, first, bytes, _) = self.partitions[at];
                    let end = self.partitions.get(at + 1).map_or(1000, |p| p.1);
                    let cut = match reason {
                        BalanceReason::Load => {
                            let total: f64 = (first..end).map(|key| load(self.round, key)).sum();
                            let mut below = 0.0;
                            let cut = (first..end).find(|key| {
                                below += load(self.round, *key);
                                below * 2.0 >= total
                            });
                            cut.unwrap() + 1
                        }
                        _ => usize::midpoint(first, end),
                    };
                    if cut <= first || cut >= end {
                        self.memory.stick(&self.options, PartitionId(id), self.now);
                        continue;
                    }
                    rest(&mut self.memory, self.now);
                    let right = bytes * (end - cut) as u64 / (end - first) as u64;
                    self.partitions[at].2 -= right;
                    self.partitions.insert(at + 1, (self.next_id, cut, right, 0));
                    self.next_id += 1;
                    self.memory.forget([PartitionId(id)]);
                }
                Advice::Merge(at) => {
                    rest(&mut self.memory, self.now);
                    let (_, _, bytes, _) = self.partitions.remove(at);
                    self.partitions[at - 1].2 += bytes;
                    self.memory.forget([PartitionId(self.partitions[at - 1].0)]);
                }
            }
            self.actions.push((self.round, advice));
        }
    }

    /// The load of the busiest partition, against the mean.
    fn imbalance(&self, load: &dyn Fn(u64, usize) -> f64) -> f64 {
        let ends = self.partitions[1..].iter().map(|p| p.1).chain([1000]);
        let loads = self.partitions.iter().zip(ends);
        let loads: Vec<f64> =
            loads.map(|(p, end)| (p.1..end).map(|key| load(self.round, key)).sum()).collect();
        let most = loads.iter().copied().fold(0.0, f64::max);
        most / (loads.iter().sum::<f64>() / loads.len() as f64)
    }
}

#[test]
fn steady_load_causes_nothing() {
    for per_key in [0.0, 0.1, 0.9] {
        let mut toy = Toy::new(900 << 10);
        toy.run(5000, &|_, _| per_key);
        assert_eq!(toy.actions, [], "{per_key} per key");
    }
}

#[test]
fn steady_load_that_is_hot_is_split_until_nothing_is_and_then_left_alone() {
    let mut toy = Toy::new(900 << 10);
    let load = |_, _| 5.0;
    toy.run(300, &load);
    // 5000 operations a second, and no partition above 1000.
    assert_eq!(toy.partitions.len(), 8, "{:?}", toy.actions);
    let done = toy.actions.len();
    assert_eq!(done, 7);
    toy.run(5000, &load);
    assert_eq!(toy.actions.len(), done);
    // It wavers by a fifth, and by half for a moment: also nothing.
    toy.run(2000, &|round, _| 4.0 + (round % 7) as f64 / 4.0);
    toy.run(2000, &|round, _| if round % 40 == 0 { 7.5 } else { 5.0 });
    assert_eq!(toy.actions.len(), done, "{:?}", toy.actions);
}

#[test]
fn a_skewed_load_is_spread_over_partitions() {
    let zipfian = |_, key: usize| 2000.0 / (key + 1) as f64;
    let mut toy = Toy::new(900 << 10);
    toy.run(600, &zipfian);
    assert!(toy.partitions.len() > 8, "{:?}", toy.partitions);
    // The hottest key alone is above what a partition should have: it is alone in its partition, and left so.
    assert_eq!(toy.partitions[1].1, 1, "{:?}", toy.partitions);
    let ends = toy.partitions[1..].iter().map(|p| p.1).chain([1000]);
    let loads =
        toy.partitions.iter().zip(ends).map(|(p, end)| (p.1..end).map(|k| zipfian(0, k)).sum::<f64>());
    assert!(loads.skip(1).all(|load| load <= 1500.0));
    let changes = toy.actions.len();
    toy.run(3000, &zipfian);
    assert_eq!(toy.actions.len(), changes, "{:?}", toy.actions);
}

#[test]
fn a_hot_spot_that_moves_leaves_no_trail() {
    // A hundred keys wide, and somewhere else every five minutes.
    let moving = |round: u64, key: usize| {
        let at = (round / 300 * 370 % 900) as usize;
        if (at..at + 100).contains(&key) { 40.0 } else { 0.01 }
    };
    let mut toy = Toy::new(400 << 10);
    for _ in 0..12 {
        toy.run(299, &moving);
        assert!(toy.partitions.len() <= 16, "{:?}", toy.partitions);
        let ends = toy.partitions[1..].iter().map(|p| p.1).chain([1000]);
        let loads = toy.partitions.iter().zip(ends);
        let most =
            loads.map(|(p, end)| (p.1..end).map(|k| moving(toy.round, k)).sum::<f64>()).fold(0.0, f64::max);
        assert!(most <= 1100.0, "{most} on one partition in round {}", toy.round);
        toy.run(1, &moving);
    }
    // About as many merges as splits, and few of both for the time.
    let merges = toy.actions.iter().filter(|(_, advice)| matches!(advice, Advice::Merge(_))).count();
    assert!(merges > 10 && toy.actions.len() < 200, "{merges} of {}", toy.actions.len());
    toy.run(2000, &|_, _| 0.0);
    assert_eq!(toy.partitions.len(), 1);
    assert!(toy.imbalance(&|_, _| 1.0) < 1.1);
}

#[test]
fn what_grows_is_split_and_what_shrinks_is_merged_late() {
    let mut toy = Toy::new(100 << 10);
    for _ in 0..80 {
        for partition in &mut toy.partitions {
            partition.2 += (100 << 10) / 4;
        }
        toy.run(10, &|_, _| 0.0);
    }
    assert!(toy.partitions.len() > 2);
    assert!(toy.partitions.iter().all(|p| p.2 <= (1 << 20) + (200 << 10)), "{:?}", toy.partitions);
    assert!(toy.actions.iter().all(|(_, advice)| matches!(advice, Advice::Split(_, BalanceReason::Size))));
    let grown = toy.actions.len();
    for partition in &mut toy.partitions {
        partition.2 = 10 << 10;
    }
    toy.run(55, &|_, _| 0.0);
    assert_eq!(toy.actions.len(), grown, "not at once");
    toy.run(2000, &|_, _| 0.0);
    assert_eq!(toy.partitions.len(), 1);
}

fn open(disk: &SimStorage, balancer: BalancerOptions) -> Database {
    let options = Options::new().page_bytes(4096).cache_bytes(4 << 20).maintenance(Maintenance::Manual);
    options.balancer(Some(balancer)).open_on(Arc::new(disk.clone())).unwrap()
}

fn key(number: u64) -> Vec<u8> {
    format!("k{number:05}").into_bytes()
}

#[test]
fn a_database_is_balanced_while_it_is_used() {
    let disk = SimStorage::new(1);
    let db = open(&disk, options().split_bytes(40 << 20).max_partitions(8));
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        (0..3000).try_for_each(|number| table.put(&key(number), &[7; 100]))
    })
    .unwrap();
    let mut rng = Rng::new(1);
    let mut second = |low: u64, width: u64, operations: u64| {
        let snapshot = db.snapshot().unwrap();
        let table = snapshot.open_bytes_table("t").unwrap();
        for _ in 0..operations {
            assert!(table.get(&key(low + rng.below(width))).unwrap().is_some());
        }
        drop(table);
        drop(snapshot);
        db.transact(|tx| tx.open_bytes_table("t")?.put(&key(low), &[8; 100])).unwrap();
        disk.advance(SECOND);
        let actions = db.balance().unwrap();
        while db.maintain().unwrap() {}
        actions
    };
    let mut actions = Vec::new();
    // Cold, then hot in one tenth of its keys.
    for _ in 0..20 {
        actions.extend(second(0, 3000, 300));
    }
    assert_eq!(actions, []);
    for _ in 0..60 {
        actions.extend(second(1000, 300, 4000));
    }
    assert!(actions.len() >= 2, "{actions:?}");
    assert!(actions.iter().all(|action| action.reason == BalanceReason::Load));
    assert!(actions.iter().all(|action| (key(1000)..key(1300)).contains(&action.key)), "{actions:?}");
    let partitions = db.partitions().unwrap();
    let most = partitions.iter().map(|p| p.operations_per_second).max().unwrap();
    let total: u64 = partitions.iter().map(|p| p.operations_per_second).sum();
    assert!((3000..5000).contains(&total) && most * 2 < total, "{most} of {total}");
    let split = actions.len();
    // And quiet again.
    for _ in 0..200 {
        actions.extend(second(0, 3000, 10));
    }
    assert!(actions[split..].iter().all(|action| action.reason == BalanceReason::Idle), "{actions:?}");
    assert_eq!(db.partitions().unwrap().len(), 2, "the catalog's and one");
    let snapshot = db.snapshot().unwrap();
    assert_eq!(snapshot.open_bytes_table("t").unwrap().iter().unwrap().count(), 3000);
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[test]
fn a_partition_that_grows_is_split_in_the_middle() {
    let disk = SimStorage::new(1);
    let db = open(&disk, options().split_bytes(200 << 10).hot_operations(u64::MAX / 8));
    for number in 0..3000 {
        // All over the keys.
        let number = number * 1777 % 3000;
        db.transact(|tx| tx.open_bytes_table("t")?.put(&key(number), &[7; 200])).unwrap();
        if number % 20 == 0 {
            disk.advance(SECOND);
            db.balance().unwrap();
            while db.maintain().unwrap() {}
        }
    }
    let partitions = db.partitions().unwrap();
    // About 1 MiB, as rows that come in no order leave leaves a third empty; each partition has 100 to 200 KiB of it. And the catalog.
    assert!((5..=13).contains(&partitions.len()), "{partitions:?}");
    let snapshot = db.snapshot().unwrap();
    assert_eq!(snapshot.open_bytes_table("t").unwrap().iter().unwrap().count(), 3000);
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[test]
fn a_partition_that_grows_at_its_end_is_split_there_and_little_moves() {
    let disk = SimStorage::new(1);
    let db = open(&disk, options().split_bytes(6 << 20).hot_operations(u64::MAX / 8));
    let mut actions = Vec::new();
    for batch in 0..500_u64 {
        db.transact(|tx| {
            let mut table = tx.open_bytes_table("t")?;
            (batch * 100..batch * 100 + 100)
                .try_for_each(|number| table.put(&number.to_be_bytes(), &[7; 200]))
        })
        .unwrap();
        disk.advance(SECOND);
        actions.extend(db.balance().unwrap());
        while db.maintain().unwrap() {}
    }
    // Eleven MiB.
    assert!((2..=4).contains(&actions.len()), "{actions:?}");
    let moved: u64 = actions.iter().map(|action| action.rows).sum();
    assert!(moved < 500, "{moved} of 50,000 rows: {actions:?}");
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[test]
fn the_balancer_waits_for_nobody_for_long_and_can_be_off() {
    let disk = SimStorage::new(1);
    let db = open(&disk, options().split_bytes(1 << 10).lock_timeout(Duration::ZERO));
    db.transact(|tx| tx.open_bytes_table("t")?.put(b"a", b"1")).unwrap();
    let put = |tx: &crate::Transaction| {
        (0..100).try_for_each(|number| tx.open_bytes_table("t")?.put(&key(number), &[1; 500]))
    };
    db.transact(put).unwrap();
    let tx = db.begin().unwrap();
    tx.open_bytes_table("t").unwrap().put(b"b", b"2").unwrap();
    for _ in 0..30 {
        disk.advance(SECOND);
        assert_eq!(db.balance().unwrap(), []);
    }
    tx.commit().unwrap();
    let mut done = 0;
    for _ in 0..30 {
        disk.advance(SECOND);
        done += db.balance().unwrap().len();
    }
    assert!(done > 0);
    db.close().unwrap();
    let off = Options::new().page_bytes(4096).maintenance(Maintenance::Manual).balancer(None);
    let db = off.open_on(Arc::new(disk)).unwrap();
    assert_eq!(db.balance().unwrap_err().kind(), crate::ErrorKind::InvalidArgument);
}
