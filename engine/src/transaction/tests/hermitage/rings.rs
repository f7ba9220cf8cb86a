//! Deadlocks of many: a ring in which each waits for the next is broken in one place, and then all of it goes through.

use std::collections::BTreeSet;

use super::stage::{Layout, Stage, everywhere};
use super::steps::{Step, commit, lock, put};
use crate::Isolation::Serializable;

/// How the rows are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// By a lock, and left as they are.
    Locked,
    /// By a blind write.
    Written,
}

/// Transactions from 1, each of which takes its own row, then the next one's; the last closes the ring.
#[derive(Clone, Copy, Debug)]
struct Ring {
    parties: u32,
    /// Who begins last, is refused, and begins again at once.
    youngest: u32,
    taken: Taken,
}

impl Ring {
    fn next(self, number: u32) -> u32 {
        number % self.parties + 1
    }

    fn before(self, number: u32) -> u32 {
        (number + self.parties - 2) % self.parties + 1
    }

    /// The youngest, when it has begun again.
    fn again(self) -> u32 {
        self.parties + 1
    }

    fn take(self, number: u32, row: u32) -> Step {
        match self.taken {
            Taken::Locked => lock(row.into()),
            Taken::Written => put(row.into(), written(row, number)),
        }
    }

    /// What is seen by who takes a row.
    fn seen(self, row: u32) -> Vec<u64> {
        match self.taken {
            Taken::Locked => vec![old(row)],
            Taken::Written => vec![],
        }
    }

    /// All wait but one; then that one closes the ring. In the end the youngest has begun again, and waits; who was before it does not.
    fn close(self, stage: &mut Stage) {
        for number in (1..=self.parties).filter(|number| *number != self.youngest).chain([self.youngest]) {
            stage.begin([number]);
        }
        for number in 1..=self.parties {
            stage.go(number, self.take(number, number)).saw(&self.seen(number));
        }
        for number in 1..self.parties {
            stage.go(number, self.take(number, self.next(number))).waits();
        }
        let closes = stage.go(self.parties, self.take(self.parties, 1));
        let (first, seen) = (self.before(self.youngest), self.seen(self.youngest));
        // Who closes it is the one refused, or gets what that one had, or waits.
        if self.youngest == self.parties {
            closes.conflicts();
            stage.after_wait(first).saw(&seen);
        } else if first == self.parties {
            stage.after_wait(self.youngest).conflicts();
            closes.saw(&seen);
        } else {
            closes.waits();
            stage.after_wait(self.youngest).conflicts();
            stage.after_wait(first).saw(&seen);
        }
        stage.begin([self.again()]);
        stage.go(self.again(), self.take(self.again(), self.youngest)).waits();
    }

    /// Back along the ring, each goes on when the one it waits for has committed, and at last the one that has begun again.
    fn unwind(self, stage: &mut Stage) {
        let (first, last) = (self.before(self.youngest), self.next(self.youngest));
        end(stage, first);
        stage.after_wait(self.again()).saw(&self.seen(self.youngest));
        let then = stage.go(self.again(), self.take(self.again(), last));
        if first == last {
            then.saw(&self.seen(last));
        } else {
            then.waits();
            let mut number = first;
            while number != last {
                number = self.before(number);
                stage.after_wait(number).saw(&self.seen(self.next(number)));
                end(stage, number);
            }
            stage.after_wait(self.again()).saw(&self.seen(last));
        }
        end(stage, self.again());
    }

    /// The rows in the end: each as the one before its owner has left it, who came later than the owner; but the one that began again
    /// came last.
    fn rows(self) -> Vec<(u64, u64)> {
        let row = |row: u32| {
            let last = if row == self.youngest || row == self.next(self.youngest) {
                self.again()
            } else {
                self.before(row)
            };
            (u64::from(row), if self.taken == Taken::Written { written(row, last) } else { old(row) })
        };
        let ends = (1..=self.again()).filter(|number| *number != self.youngest);
        (1..=self.parties).map(row).chain(ends.map(mark)).collect()
    }
}

/// The value that a row has at first.
fn old(row: u32) -> u64 {
    10 * u64::from(row)
}

/// The value that a transaction gives to a row.
fn written(row: u32, number: u32) -> u64 {
    u64::from(100 * number + row)
}

/// The row that shows that a transaction has committed.
fn mark(number: u32) -> (u64, u64) {
    (u64::from(20 + number), u64::from(number))
}

/// Commits, and leaves that row.
fn end(stage: &mut Stage, number: u32) {
    let (key, value) = mark(number);
    stage.go(number, put(key, value)).done();
    stage.go(number, commit()).done();
}

fn break_ring(stage: &mut Stage, ring: Ring) {
    println!("{ring:?}");
    stage.begin([0]);
    for row in 1..=ring.parties {
        stage.go(0, put(row.into(), old(row))).done();
    }
    stage.go(0, commit()).done();
    ring.close(stage);
    assert_eq!(stage.db.stats().deadlocks, 1);
    ring.unwind(stage);
    let stats = stage.db.stats();
    assert_eq!((stats.deadlocks, stats.lock_timeouts), (1, 0));
    stage.ends_with(&ring.rows());
}

/// Rings of two to eight; the youngest is the one that waits first, one in the middle, or the one that closes the ring.
fn rings(taken: Taken) -> impl Iterator<Item = Ring> {
    let ring = move |(parties, youngest)| Ring { parties, youngest, taken };
    (2..=8)
        .flat_map(|parties| {
            BTreeSet::from([1, parties / 2 + 1, parties]).into_iter().map(move |at| (parties, at))
        })
        .map(ring)
}

#[test]
fn a_deadlock_of_two_to_eight_refuses_the_youngest_and_all_commit_in_the_end() {
    for ring in rings(Taken::Locked) {
        everywhere(|stage| break_ring(stage, ring));
    }
}

#[test]
fn a_deadlock_of_two_to_eight_who_write_refuses_the_youngest_and_all_commit_in_the_end_if_serializable() {
    // Under snapshot isolation all but the first find their second row changed.
    for ring in rings(Taken::Written) {
        for layout in Layout::ALL {
            break_ring(&mut Stage::new(Serializable, layout), ring);
        }
    }
}
