//! Writes of one row by two transactions: blind ones, ones that read, and locks taken before.

use super::stage::{Layout, Stage, at, everywhere};
use super::steps::{Step, commit, delete, get, insert, lock, put, remove, roll_back};
use crate::Isolation::{Serializable, Snapshot};

/// A write of row 1: its name, how to make it, what it sees of a row with the value given, and what it leaves.
type Write = (&'static str, fn() -> Step, fn(u64) -> Vec<u64>, Option<u64>);

const WRITES: [Write; 4] = [
    ("put", || put(1, 12), |_| vec![], Some(12)),
    ("insert", || insert(1, 12), |old| vec![old], Some(12)),
    ("delete", || delete(1), |_| vec![], None),
    ("remove", || remove(1), |old| vec![old], None),
];

fn rows(first: Option<u64>) -> Vec<(u64, u64)> {
    first.map(|value| (1, value)).into_iter().chain([(2, 20)]).collect()
}

#[test]
fn a_write_behind_one_that_is_rolled_back_goes_on_at_either_level() {
    for (name, write, seen, left) in WRITES {
        everywhere(|stage| {
            println!("{name}");
            stage.begin([1, 2]);
            stage.go(1, put(1, 11)).done();
            stage.go(2, write()).waits();
            stage.go(1, roll_back()).done();
            stage.after_wait(2).saw(&seen(10));
            stage.go(2, commit()).done();
            stage.ends_with(&rows(left));
        });
    }
}

#[test]
fn a_write_behind_one_that_commits_goes_on_if_serializable_and_nothing_it_read_has_changed() {
    for (name, write, seen, left) in WRITES {
        everywhere(|stage| {
            println!("{name}");
            stage.begin([1, 2]);
            stage.go(1, put(1, 11)).done();
            stage.go(2, write()).waits();
            stage.go(1, commit()).done();
            if stage.level == Serializable {
                stage.after_wait(2).saw(&seen(11));
                stage.go(2, commit()).done();
                stage.ends_with(&rows(left));
            } else {
                stage.after_wait(2).conflicts();
                stage.ends_with(&rows(Some(11)));
            }
        });
    }
}

#[test]
fn a_write_of_what_a_commit_has_changed_needs_no_wait_to_be_treated_the_same() {
    for (name, write, seen, left) in WRITES {
        everywhere(|stage| {
            println!("{name}");
            stage.begin([1, 2]);
            stage.go(1, put(1, 11)).done();
            stage.go(1, commit()).done();
            if stage.level == Serializable {
                stage.go(2, write()).saw(&seen(11));
                stage.go(2, commit()).done();
                stage.ends_with(&rows(left));
            } else {
                stage.go(2, write()).conflicts();
                stage.ends_with(&rows(Some(11)));
            }
        });
    }
}

#[test]
fn a_write_after_a_read_that_has_been_overtaken_conflicts_at_once_if_it_reads_and_at_the_commit_if_it_is_blind()
 {
    for (name, write, seen, _) in WRITES {
        everywhere(|stage| {
            println!("{name}");
            stage.begin([1, 2]);
            stage.go(2, get(2)).saw(&[20]);
            stage.go(1, put(1, 11)).done();
            stage.go(1, put(2, 21)).done();
            stage.go(2, write()).waits();
            stage.go(1, commit()).done();
            if stage.level == Serializable && seen(11).is_empty() {
                stage.after_wait(2).done();
                stage.go(2, commit()).conflicts();
            } else {
                stage.after_wait(2).conflicts();
            }
            stage.ends_with(&[(1, 11), (2, 21)]);
        });
    }
}

#[test]
fn the_removal_of_a_row_that_a_commit_has_removed_is_a_read_of_its_absence() {
    for remove in [delete, remove] {
        everywhere(|stage| {
            stage.begin([1, 2, 3]);
            stage.go(2, get(1)).saw(&[10]);
            stage.go(1, delete(1)).done();
            // T2 has read the row and conflicts; T3 has not, and finds nothing to do.
            stage.go(2, remove(1)).waits();
            stage.go(1, commit()).done();
            stage.after_wait(2).conflicts();
            if stage.level == Serializable {
                stage.go(3, remove(1)).done();
                stage.go(3, commit()).done();
            } else {
                stage.go(3, remove(1)).conflicts();
            }
            stage.ends_with(&[(2, 20)]);
        });
    }
}

#[test]
fn a_removal_that_finds_nothing_is_a_read() {
    for remove in [delete, remove] {
        everywhere(|stage| {
            stage.begin([1, 2]);
            stage.go(1, remove(3)).done();
            // Nothing is locked by it.
            stage.go(2, put(3, 30)).done();
            stage.go(2, commit()).done();
            stage.go(1, put(1, 11)).done();
            stage.go(1, commit()).conflicts_if_serializable(stage.level);
            stage.ends_with(&[(1, if stage.level == Serializable { 10 } else { 11 }), (2, 20), (3, 30)]);
        });
    }
}

#[test]
fn a_removal_that_waits_and_then_finds_nothing_lets_the_next_one_go_on() {
    everywhere(|stage| {
        stage.begin([1, 2, 3]);
        stage.go(1, insert(3, 30)).done();
        stage.go(2, delete(3)).waits();
        stage.go(3, insert(3, 33)).waits();
        stage.go(1, roll_back()).done();
        stage.after_wait(2).done();
        stage.after_wait(3).done();
        stage.go(3, commit()).done();
        stage.go(2, put(1, 11)).done();
        stage.go(2, commit()).conflicts_if_serializable(stage.level);
        stage.ends_with(&[(1, if stage.level == Serializable { 10 } else { 11 }), (2, 20), (3, 33)]);
    });
}

#[test]
fn a_reading_write_that_moves_the_view_shows_the_newer_state_from_then_on() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(2, get(2)).saw(&[20]);
        stage.go(1, put(1, 11)).done();
        stage.go(1, insert(3, 30)).done();
        stage.go(1, commit()).done();
        if stage.level == Serializable {
            stage.go(2, insert(1, 12)).saw(&[11]);
            stage.go(2, get(3)).saw(&[30]);
            stage.go(2, commit()).done();
            stage.ends_with(&[(1, 12), (2, 20), (3, 30)]);
        } else {
            stage.go(2, insert(1, 12)).conflicts();
            stage.ends_with(&[(1, 11), (2, 20), (3, 30)]);
        }
    });
}

#[test]
fn what_is_read_after_the_view_has_moved_is_validated_too() {
    everywhere(|stage| {
        if stage.level == Snapshot {
            return stage.close();
        }
        stage.begin([1, 2, 3]);
        stage.go(1, put(1, 11)).done();
        stage.go(1, commit()).done();
        stage.go(2, insert(1, 12)).saw(&[11]);
        stage.go(2, get(2)).saw(&[20]);
        stage.go(3, put(2, 21)).done();
        stage.go(3, commit()).done();
        stage.go(2, commit()).conflicts();
        stage.ends_with(&[(1, 11), (2, 21)]);
    });
}

#[test]
fn p4_with_reading_writes_a_counter_loses_no_increment() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, get(1)).saw(&[10]);
        stage.go(2, get(1)).saw(&[10]);
        stage.go(1, insert(1, 11)).saw(&[10]);
        stage.go(2, insert(1, 11)).waits();
        stage.go(1, commit()).done();
        stage.after_wait(2).conflicts();
        // The second attempt.
        stage.begin([3]);
        stage.go(3, get(1)).saw(&[11]);
        stage.go(3, insert(1, 12)).saw(&[11]);
        stage.go(3, commit()).done();
        stage.ends_with(&[(1, 12), (2, 20)]);
    });
}

#[test]
fn p4_with_locks_a_counter_needs_no_second_attempt_if_serializable() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, lock(1)).saw(&[10]);
        stage.go(2, lock(1)).waits();
        stage.go(1, put(1, 11)).done();
        stage.go(1, commit()).done();
        let second = if stage.level == Serializable {
            stage.after_wait(2).saw(&[11]);
            2
        } else {
            stage.after_wait(2).conflicts();
            stage.begin([3]);
            stage.go(3, lock(1)).saw(&[11]);
            3
        };
        stage.go(second, put(1, 12)).done();
        stage.go(second, commit()).done();
        stage.ends_with(&[(1, 12), (2, 20)]);
    });
}

#[test]
fn p4_with_a_lock_after_the_read_conflicts_at_the_lock() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(2, get(1)).saw(&[10]);
        stage.go(1, put(1, 11)).done();
        stage.go(2, lock(1)).waits();
        stage.go(1, commit()).done();
        stage.after_wait(2).conflicts();
        stage.ends_with(&[(1, 11), (2, 20)]);
    });
}

#[test]
fn g0_with_locks_and_reading_writes() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, lock(1)).saw(&[10]);
        stage.go(1, insert(1, 11)).saw(&[10]);
        stage.go(2, lock(1)).waits();
        stage.go(1, insert(2, 21)).saw(&[20]);
        stage.go(1, commit()).done();
        if stage.level == Serializable {
            stage.after_wait(2).saw(&[11]);
            stage.go(2, insert(1, 12)).saw(&[11]);
            stage.go(2, insert(2, 22)).saw(&[21]);
            stage.go(2, commit()).done();
            stage.ends_with(&[(1, 12), (2, 22)]);
        } else {
            stage.after_wait(2).conflicts();
            stage.ends_with(&[(1, 11), (2, 21)]);
        }
    });
}

#[test]
fn g1_with_locks_readers_neither_wait_nor_see_what_is_not_committed() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, lock(1)).saw(&[10]);
        stage.go(2, get(1)).saw(&[10]);
        stage.go(1, put(1, 101)).done();
        stage.go(2, get(1)).saw(&[10]);
        stage.go(1, roll_back()).done();
        stage.go(2, lock(1)).saw(&[10]);
        stage.go(2, commit()).done();
        stage.ends_with(&[(1, 10), (2, 20)]);
    });
}

#[test]
fn g_single_with_a_lock_conflicts_instead_of_showing_two_states() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, get(1)).saw(&[10]);
        stage.go(2, put(1, 12)).done();
        stage.go(2, put(2, 18)).done();
        stage.go(2, commit()).done();
        stage.go(1, lock(2)).conflicts();
        stage.ends_with(&[(1, 12), (2, 18)]);
    });
}

#[test]
fn g2_item_with_locks_of_all_that_is_read_is_impossible_at_either_level() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, lock(1)).saw(&[10]);
        stage.go(1, lock(2)).saw(&[20]);
        // What T1 does not write is free, and as it was, once T1 has ended.
        stage.go(2, lock(2)).waits();
        stage.go(1, put(1, 11)).done();
        stage.go(1, commit()).done();
        stage.after_wait(2).saw(&[20]);
        if stage.level == Serializable {
            stage.go(2, lock(1)).saw(&[11]);
            stage.go(2, put(2, 21)).done();
            stage.go(2, commit()).done();
            stage.ends_with(&[(1, 11), (2, 21)]);
        } else {
            stage.go(2, lock(1)).conflicts();
            stage.ends_with(&[(1, 11), (2, 20)]);
        }
    });
}

#[test]
fn g2_between_the_levels_the_serializable_one_is_protected_if_it_commits_last() {
    for (levels, second_commits) in [([Snapshot, Serializable], false), ([Serializable, Snapshot], true)] {
        for layout in [Layout::OneTable, Layout::TwoTables] {
            let mut stage = Stage::new(Snapshot, layout);
            for (number, level) in [1, 2].into_iter().zip(levels) {
                stage.begin_with(number, at(level));
                stage.go(number, get(1)).saw(&[10]);
                stage.go(number, get(2)).saw(&[20]);
            }
            stage.go(1, put(1, 11)).done();
            stage.go(2, put(2, 21)).done();
            stage.go(1, commit()).done();
            let second = stage.go(2, commit());
            if second_commits {
                second.done();
            } else {
                second.conflicts();
            }
            stage.ends_with(&[(1, 11), (2, if second_commits { 21 } else { 20 })]);
        }
    }
}
