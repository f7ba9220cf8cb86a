//! Who waits for whom, how waits end, and what is locked (docs/concurrency.md, section 8; hazard H21).

use std::time::Duration;

use super::stage::{Answer, everywhere, patience};
use super::steps::{Step, commit, delete, get, insert, kept, lock, put, remove, roll_back, scan, taken_back};
use crate::ErrorKind;
use crate::Isolation::{Serializable, Snapshot};

#[test]
fn a_deadlock_has_the_younger_as_its_victim_and_the_older_goes_on() {
    for write in [put, insert] {
        everywhere(|stage| {
            stage.begin([1, 2]);
            stage.go(1, put(1, 11)).done();
            stage.go(2, put(2, 22)).done();
            stage.go(1, write(2, 21)).waits();
            stage.go(2, write(1, 12)).conflicts();
            // Rolled back, T2 is out of the way.
            let seen = stage.after_wait(1);
            stage.go(1, commit()).done();
            assert!(matches!(seen, Answer::Saw(_)));
            assert_eq!(stage.db.stats().deadlocks, 1);
            stage.ends_with(&[(1, 11), (2, 21)]);
        });
    }
}

#[test]
fn a_deadlock_that_the_older_closes_ends_the_wait_of_the_younger() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, lock(1)).saw(&[10]);
        stage.go(2, lock(2)).saw(&[20]);
        stage.go(2, lock(1)).waits();
        // It has its answer by the time the stage is at rest: T2 has been rolled back then.
        stage.go(1, lock(2)).saw(&[20]);
        stage.after_wait(2).conflicts();
        stage.go(1, put(2, 21)).done();
        stage.go(1, commit()).done();
        assert_eq!(stage.db.stats().deadlocks, 1);
        stage.ends_with(&[(1, 10), (2, 21)]);
    });
}

#[test]
fn a_deadlock_of_three_has_one_victim() {
    everywhere(|stage| {
        stage.begin([1, 2, 3]);
        stage.go(1, put(1, 11)).done();
        stage.go(2, put(2, 22)).done();
        stage.go(3, put(3, 33)).done();
        stage.go(1, put(2, 21)).waits();
        stage.go(2, put(3, 32)).waits();
        stage.go(3, put(1, 13)).conflicts();
        stage.after_wait(2).done();
        stage.go(2, roll_back()).done();
        stage.after_wait(1).done();
        stage.go(1, commit()).done();
        assert_eq!(stage.db.stats().deadlocks, 1);
        stage.ends_with(&[(1, 11), (2, 21)]);
    });
}

#[test]
fn a_victim_keeps_its_locks_until_it_is_rolled_back() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, put(1, 11)).done();
        stage.go(2, put(2, 22)).done();
        stage.go(1, put(2, 21)).waits();
        stage.go(2, kept(put(1, 12))).conflicts();
        stage.go(2, get(2)).saw(&[22]);
        stage.after_wait(1).waits();
        stage.go(2, roll_back()).done();
        stage.after_wait(1).done();
        stage.go(1, commit()).done();
        stage.ends_with(&[(1, 11), (2, 21)]);
    });
}

#[test]
fn a_wait_that_takes_too_long_fails_the_statement_and_not_the_transaction() {
    for timeout in [Duration::ZERO, Duration::from_millis(1)] {
        everywhere(|stage| {
            stage.begin([1]);
            stage.begin_with(2, patience(timeout));
            stage.go(1, put(1, 11)).done();
            for step in [put(1, 12), insert(1, 12), delete(1), remove(1), lock(1)] {
                stage.go_and_wait(2, kept(step)).conflicts();
            }
            assert_eq!(stage.db.stats().lock_timeouts, 5);
            stage.go(2, put(2, 22)).done();
            stage.go(2, commit()).done();
            stage.go(1, commit()).done();
            stage.ends_with(&[(1, 11), (2, 22)]);
        });
    }
}

#[test]
fn a_wait_is_cancelled_from_another_thread_and_the_transaction_can_only_be_rolled_back() {
    everywhere(|stage| {
        stage.begin([1, 2, 3]);
        stage.go(1, put(1, 11)).done();
        stage.go(2, put(2, 22)).done();
        stage.go(2, lock(1)).waits();
        stage.go(3, lock(2)).waits();
        stage.cancel(2);
        stage.after_wait(2).refused(ErrorKind::Cancelled);
        for step in [get(1), scan(|_| true), put(2, 23), lock(1)] {
            stage.go(2, step).refused(ErrorKind::Cancelled);
        }
        stage.after_wait(3).waits();
        stage.go(2, commit()).refused(ErrorKind::Cancelled);
        stage.after_wait(3).saw(&[20]);
        stage.go(3, commit()).done();
        stage.go(1, commit()).done();
        stage.ends_with(&[(1, 11), (2, 20)]);
    });
}

#[test]
fn a_cancellation_between_two_steps_refuses_the_next_one() {
    everywhere(|stage| {
        stage.begin([1]);
        stage.go(1, put(1, 11)).done();
        stage.cancel(1);
        stage.go(1, get(1)).refused(ErrorKind::Cancelled);
        stage.go(1, roll_back()).done();
        stage.cancel(1);
        stage.ends_with(&[(1, 10), (2, 20)]);
    });
}

#[test]
fn those_who_wait_for_a_row_get_it_in_order_of_arrival() {
    everywhere(|stage| {
        stage.begin([1, 2, 3, 4]);
        stage.go(1, lock(1)).saw(&[10]);
        stage.go(4, lock(1)).waits();
        stage.go(2, lock(1)).waits();
        stage.go(3, lock(1)).waits();
        for (holder, next) in [(1, 4), (4, 2), (2, 3)] {
            stage.go(holder, roll_back()).done();
            stage.after_wait(next).saw(&[10]);
        }
        stage.go(3, put(1, 13)).done();
        stage.go(3, commit()).done();
        stage.ends_with(&[(1, 13), (2, 20)]);
    });
}

/// What locks a row, or a key without one: as a step, and what it sees.
type Locking = (&'static str, fn() -> Step, &'static [u64]);

/// T1 locks `key`, without changing it in the end; T2 waits for it, and goes on when T1 has ended, however it has.
fn keeps_others_waiting(locking: &[Locking], key: u64, old: &[u64]) {
    for (name, step, seen) in locking {
        for end in [commit, roll_back] {
            everywhere(|stage| {
                println!("{name}");
                stage.begin([1, 2, 3]);
                stage.go(1, step()).saw(seen);
                stage.go(2, get(key)).saw(old);
                stage.go(2, insert(key, 99)).waits();
                stage.go(3, kept(lock(key))).waits();
                stage.go(1, end()).done();
                stage.after_wait(2).saw(old);
                stage.go(2, commit()).done();
                if stage.level == Serializable {
                    stage.after_wait(3).saw(&[99]);
                } else {
                    stage.after_wait(3).conflicts();
                }
                stage.go(3, roll_back()).done();
                assert!(stage.rows().contains(&(key, 99)));
                stage.close();
            });
        }
    }
}

#[test]
fn a_savepoint_rolled_back_keeps_the_locks() {
    let rows: &[Locking] = &[
        ("put", || taken_back(put(1, 11)), &[]),
        ("insert", || taken_back(insert(1, 11)), &[10]),
        ("delete", || taken_back(delete(1)), &[]),
        ("remove", || taken_back(remove(1)), &[10]),
        ("get_for_update", || taken_back(lock(1)), &[10]),
        ("twice", || taken_back(taken_back(put(1, 11))), &[]),
    ];
    keeps_others_waiting(rows, 1, &[10]);
    let absent: &[Locking] = &[
        ("put", || taken_back(put(3, 33)), &[]),
        ("insert", || taken_back(insert(3, 33)), &[]),
        ("get_for_update", || taken_back(lock(3)), &[]),
    ];
    keeps_others_waiting(absent, 3, &[]);
}

#[test]
fn a_savepoint_rolled_back_keeps_the_reads() {
    type Read = (fn() -> Step, &'static [u64]);
    let reads: [Read; 4] = [
        (|| get(1), &[10]),
        (|| scan(|value| value == 10), &[10]),
        (|| insert(2, 22), &[20]),
        (|| delete(3), &[]),
    ];
    for (at, (read, seen)) in reads.into_iter().enumerate() {
        everywhere(|stage| {
            stage.begin([1, 2]);
            stage.go(1, taken_back(read())).saw(seen);
            // Of these, the insert has locked what it read.
            let locks = at == 2;
            let overwrites = match at {
                2 => put(2, 21),
                3 => put(3, 30),
                _ => put(1, 11),
            };
            let overwritten = stage.go(2, overwrites);
            if locks {
                overwritten.waits();
                stage.go(1, put(4, 40)).done();
                stage.go(1, commit()).done();
                stage.after_wait(2).done();
                stage.go(2, commit()).done();
            } else {
                overwritten.done();
                stage.go(2, commit()).done();
                stage.go(1, put(4, 40)).done();
                stage.go(1, commit()).conflicts_if_serializable(stage.level);
            }
            let commits = locks || stage.level == Snapshot;
            assert_eq!(stage.rows().contains(&(4, 40)), commits);
            stage.close();
        });
    }
}

#[test]
fn a_read_of_its_own_write_that_is_taken_back_does_not_hide_the_reads_after() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, put(1, 11)).done();
        stage.go(1, commit()).done();
        // A blind write over what T2's view does not see; then that is gone, and the view's own row is read.
        if stage.level == Serializable {
            stage.go(2, taken_back(put(1, 12))).done();
            stage.go(2, get(1)).saw(&[10]);
            stage.go(2, put(2, 22)).done();
            stage.go(2, commit()).conflicts();
        } else {
            stage.go(2, put(1, 12)).conflicts();
        }
        stage.ends_with(&[(1, 11), (2, 20)]);
    });
}

#[test]
fn get_for_update_of_a_missing_key_keeps_others_from_inserting_it() {
    let absent: &[Locking] = &[("get_for_update", || lock(3), &[])];
    keeps_others_waiting(absent, 3, &[]);
    // A key whose row has been removed, with its ghost still there.
    everywhere(|stage| {
        stage.begin([3]);
        stage.go(3, remove(1)).saw(&[10]);
        stage.go(3, commit()).done();
        stage.begin([1, 2]);
        stage.go(1, lock(1)).done();
        stage.go(2, insert(1, 12)).waits();
        stage.go(1, insert(1, 11)).done();
        stage.go(1, roll_back()).done();
        stage.after_wait(2).done();
        stage.go(2, commit()).done();
        stage.ends_with(&[(1, 12), (2, 20)]);
    });
}

#[test]
fn get_for_update_of_a_missing_key_then_made_conflicts_under_snapshot_isolation() {
    for write in [put, insert] {
        everywhere(|stage| {
            stage.begin([1, 2]);
            stage.go(1, lock(3)).done();
            stage.go(2, write(3, 32)).waits();
            stage.go(1, put(3, 31)).done();
            stage.go(1, commit()).done();
            let second = stage.after_wait(2);
            if stage.level == Serializable {
                assert!(matches!(second, Answer::Saw(_)));
                stage.go(2, commit()).done();
                stage.ends_with(&[(1, 10), (2, 20), (3, 32)]);
            } else {
                second.conflicts();
                stage.ends_with(&[(1, 10), (2, 20), (3, 31)]);
            }
        });
    }
}

#[test]
fn get_for_update_locks_a_key_and_not_its_neighbours_and_no_reader() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, lock(3)).done();
        stage.go(1, lock(1)).saw(&[10]);
        stage.go(2, insert(4, 40)).done();
        stage.go(2, insert(5, 50)).done();
        stage.go(2, scan(|value| value < 40)).saw(&[10, 20]);
        assert_eq!(stage.rows(), [(1, 10), (2, 20)]);
        stage.go(2, commit()).done();
        stage.go(1, commit()).done();
        stage.ends_with(&[(1, 10), (2, 20), (4, 40), (5, 50)]);
    });
}

#[test]
fn what_was_locked_before_it_was_read_needs_no_validation() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, lock(1)).saw(&[10]);
        stage.go(2, put(1, 12)).waits();
        stage.go(1, put(2, 21)).done();
        stage.go(1, commit()).done();
        stage.after_wait(2).done();
        stage.go(2, commit()).done();
        stage.ends_with(&[(1, 12), (2, 21)]);
    });
}
