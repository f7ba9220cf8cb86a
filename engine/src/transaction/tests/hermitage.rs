//! The Hermitage schedules (Kleppmann, after Adya): each anomaly that has a name, as two or three transactions whose steps interleave so
//! that it would occur. What is asserted is exactly what each level does; docs/isolation.md has it as a table.
//!
//! The driver is `stage`, the steps are `steps`; each schedule runs at both levels, with its keys in one table, in one that is cut, and in
//! two. Where a snapshot could show the anomaly too, it runs again with snapshots taken before, between and after the commits.

mod locks;
mod ranges;
mod reads;
mod rings;
mod stage;
mod steps;
mod tables;
mod writes;

use stage::{Stage, everywhere, everywhere_and_watched};
use steps::{Step, add_to_all, commit, delete_where, get, insert, put, roll_back, scan, scan_back};

use crate::Isolation::{Serializable, Snapshot};

/// The rows as they are at first.
const OLD: [(u64, u64); 2] = [(1, 10), (2, 20)];

#[test]
fn g0_dirty_writes_do_not_interleave() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, put(1, 11)).done();
        stage.go(2, put(1, 12)).waits();
        stage.go(1, put(2, 21)).done();
        stage.go(1, commit()).done();
        match stage.level {
            // A blind write depends on nothing, so T2 simply comes second.
            Serializable => {
                stage.after_wait(2).done();
                stage.go(2, put(2, 22)).done();
                stage.go(2, commit()).done();
                stage.ends_with(&[(1, 12), (2, 22)]);
            }
            Snapshot => {
                stage.after_wait(2).conflicts();
                stage.ends_with(&[(1, 11), (2, 21)]);
            }
        }
    });
}

#[test]
fn g1a_what_is_rolled_back_is_never_read() {
    everywhere_and_watched(|stage| {
        stage.begin([1, 2]);
        stage.snapshot_sees(&OLD);
        stage.go(1, put(1, 101)).done();
        stage.snapshot_sees(&OLD);
        stage.go(2, get(1)).saw(&[10]);
        stage.go(1, roll_back()).done();
        stage.snapshot_sees(&OLD);
        stage.go(2, get(1)).saw(&[10]);
        stage.go(2, commit()).done();
        stage.ends_with(&OLD);
    });
}

#[test]
fn g1b_a_value_on_the_way_to_another_is_never_read() {
    everywhere_and_watched(|stage| {
        stage.begin([1, 2]);
        stage.snapshot_sees(&OLD);
        stage.go(1, put(1, 101)).done();
        stage.snapshot_sees(&OLD);
        stage.go(2, get(1)).saw(&[10]);
        stage.go(1, put(1, 11)).done();
        stage.snapshot_sees(&OLD);
        stage.go(1, commit()).done();
        stage.snapshot_sees(&[(1, 11), (2, 20)]);
        stage.go(2, get(1)).saw(&[10]);
        stage.go(2, commit()).done();
        stage.ends_with(&[(1, 11), (2, 20)]);
    });
}

#[test]
fn g1c_no_two_transactions_see_each_others_writes() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, put(1, 11)).done();
        stage.go(2, put(2, 22)).done();
        stage.go(1, get(2)).saw(&[20]);
        stage.go(2, get(1)).saw(&[10]);
        stage.go(1, commit()).done();
        // Neither saw the other: no G1c, but a write skew, which only one level forbids.
        stage.go(2, commit()).conflicts_if_serializable(stage.level);
        stage.ends_with(&[(1, 11), (2, if stage.level == Serializable { 20 } else { 22 })]);
    });
}

#[test]
fn otv_an_observed_transaction_does_not_vanish() {
    // T3 sees T1 whole or, if it has begun before T1's commit, not at all.
    for (seen, begins_early) in [([10, 20], true), ([11, 19], false)] {
        everywhere_and_watched(|stage| {
            stage.begin([1, 2]);
            if begins_early {
                stage.begin([3]);
            }
            stage.snapshot_sees(&OLD);
            stage.go(1, put(1, 11)).done();
            stage.snapshot_sees(&OLD);
            stage.go(1, put(2, 19)).done();
            stage.go(2, put(1, 12)).waits();
            stage.snapshot_sees(&OLD);
            stage.go(1, commit()).done();
            // T1 whole, and of T2, which has written the first row by now, nothing.
            let first_only = [(1, 11), (2, 19)];
            stage.snapshot_sees(&first_only);
            if !begins_early {
                stage.begin([3]);
            }
            stage.go(3, get(1)).saw(&seen[..1]);
            let second_is_done = stage.level == Serializable;
            if second_is_done {
                stage.after_wait(2).done();
                stage.go(2, put(2, 18)).done();
            } else {
                stage.after_wait(2).conflicts();
            }
            stage.snapshot_sees(&first_only);
            stage.go(3, get(2)).saw(&seen[1..]);
            if second_is_done {
                stage.go(2, commit()).done();
            }
            let rows = if second_is_done { [(1, 12), (2, 18)] } else { first_only };
            stage.snapshot_sees(&rows);
            stage.go(3, get(2)).saw(&seen[1..]);
            stage.go(3, get(1)).saw(&seen[..1]);
            stage.go(3, commit()).done();
            stage.ends_with(&rows);
        });
    }
}

#[test]
fn pmp_a_predicate_read_again_finds_no_new_row() {
    for scan in [scan, scan_back] {
        everywhere_and_watched(|stage| {
            let rows = [(1, 10), (2, 20), (3, 30)];
            stage.begin([1, 2]);
            stage.snapshot_sees(&OLD);
            stage.go(1, scan(|value| value == 30)).done();
            stage.go(2, insert(3, 30)).done();
            stage.snapshot_sees(&OLD);
            stage.go(2, commit()).done();
            stage.snapshot_sees(&rows);
            stage.go(1, scan(|value| value % 3 == 0)).done();
            stage.go(1, commit()).done();
            stage.ends_with(&rows);
        });
    }
}

#[test]
fn pmp_write_a_predicate_is_not_deleted_by_what_has_changed() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, add_to_all(10)).done();
        stage.go(2, delete_where(20)).waits();
        stage.go(1, commit()).done();
        if stage.level == Serializable {
            // The deletion is blind; that the row was chosen by its old value is found at the commit.
            stage.after_wait(2).done();
            stage.go(2, commit()).conflicts();
        } else {
            stage.after_wait(2).conflicts();
        }
        stage.ends_with(&[(1, 20), (2, 30)]);
    });
}

#[test]
fn p4_an_update_is_not_lost() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, get(1)).saw(&[10]);
        stage.go(2, get(1)).saw(&[10]);
        stage.go(1, put(1, 11)).done();
        stage.go(2, put(1, 11)).waits();
        stage.go(1, commit()).done();
        if stage.level == Serializable {
            stage.after_wait(2).done();
            stage.go(2, commit()).conflicts();
        } else {
            stage.after_wait(2).conflicts();
        }
        stage.ends_with(&[(1, 11), (2, 20)]);
    });
}

/// T2 reads both rows and changes both, beside T1, which has read the first.
fn read_skew(stage: &mut Stage) {
    stage.begin([1, 2]);
    stage.snapshot_sees(&OLD);
    stage.go(1, get(1)).saw(&[10]);
    stage.go(2, get(1)).saw(&[10]);
    stage.go(2, get(2)).saw(&[20]);
    stage.go(2, put(1, 12)).done();
    stage.snapshot_sees(&OLD);
    stage.go(2, put(2, 18)).done();
    stage.snapshot_sees(&OLD);
    stage.go(2, commit()).done();
    stage.snapshot_sees(&[(1, 12), (2, 18)]);
}

#[test]
fn g_single_two_reads_are_of_one_state() {
    everywhere_and_watched(|stage| {
        read_skew(stage);
        stage.go(1, get(2)).saw(&[20]);
        stage.go(1, commit()).done();
        stage.ends_with(&[(1, 12), (2, 18)]);
    });
}

#[test]
fn g_single_predicates_two_scans_are_of_one_state() {
    for scan in [scan, scan_back] {
        everywhere_and_watched(|stage| {
            stage.begin([1, 2]);
            stage.snapshot_sees(&OLD);
            stage.go(1, scan(|value| value % 5 == 0)).saw(&[10, 20]);
            stage.go(2, put(1, 12)).done();
            stage.snapshot_sees(&OLD);
            stage.go(2, commit()).done();
            stage.snapshot_sees(&[(1, 12), (2, 20)]);
            stage.go(1, scan(|value| value % 3 == 0)).done();
            stage.go(1, commit()).done();
            stage.ends_with(&[(1, 12), (2, 20)]);
        });
    }
}

#[test]
fn g_single_write_nothing_is_deleted_by_what_it_was() {
    everywhere_and_watched(|stage| {
        read_skew(stage);
        if stage.level == Serializable {
            stage.go(1, delete_where(20)).done();
            stage.go(1, commit()).conflicts();
        } else {
            stage.go(1, delete_where(20)).conflicts();
        }
        stage.ends_with(&[(1, 12), (2, 18)]);
    });
}

/// How T2 writes the second row, and what it sees of it.
type Write = (fn(u64, u64) -> Step, &'static [u64]);

const WRITES: [Write; 2] = [(put, &[]), (insert, &[20])];

/// T2 has read both rows and changed the first; T1 deletes the second by its value, and there T2 waits for it.
fn write_of_what_is_being_deleted(stage: &mut Stage, write: fn(u64, u64) -> Step) {
    stage.begin([1, 2]);
    stage.snapshot_sees(&OLD);
    stage.go(1, get(1)).saw(&[10]);
    stage.go(2, scan(|_| true)).saw(&[10, 20]);
    stage.go(2, put(1, 12)).done();
    stage.go(1, delete_where(20)).done();
    stage.go(2, scan(|_| true)).saw(&[12, 20]);
    stage.go(2, write(2, 18)).waits();
    stage.go(1, scan(|_| true)).saw(&[10]);
    stage.snapshot_sees(&OLD);
}

#[test]
fn g_single_write_2_a_write_behind_a_deletion_that_is_rolled_back_goes_on() {
    for (write, seen) in WRITES {
        everywhere_and_watched(|stage| {
            write_of_what_is_being_deleted(stage, write);
            stage.go(1, roll_back()).done();
            stage.snapshot_sees(&OLD);
            stage.after_wait(2).saw(seen);
            stage.go(2, scan(|_| true)).saw(&[12, 18]);
            stage.go(2, commit()).done();
            stage.ends_with(&[(1, 12), (2, 18)]);
        });
    }
}

#[test]
fn g_single_write_2_a_write_behind_a_deletion_that_commits_conflicts() {
    for (write, seen) in WRITES {
        everywhere_and_watched(|stage| {
            write_of_what_is_being_deleted(stage, write);
            stage.go(1, commit()).done();
            stage.snapshot_sees(&OLD[..1]);
            let is_blind = seen.is_empty();
            if stage.level == Serializable && is_blind {
                stage.after_wait(2).done();
                stage.go(2, scan(|_| true)).saw(&[12, 18]);
                stage.go(2, commit()).conflicts();
            } else {
                stage.after_wait(2).conflicts();
            }
            stage.ends_with(&OLD[..1]);
        });
    }
}

#[test]
fn g_single_write_2_a_deletion_behind_the_write_conflicts() {
    everywhere_and_watched(|stage| {
        stage.begin([1, 2]);
        stage.go(1, get(1)).saw(&[10]);
        stage.go(2, scan(|_| true)).saw(&[10, 20]);
        stage.go(2, put(1, 12)).done();
        stage.go(2, put(2, 18)).done();
        // T1 still sees the old value, and so has something to delete.
        stage.go(1, delete_where(20)).waits();
        stage.snapshot_sees(&OLD);
        stage.go(2, commit()).done();
        stage.snapshot_sees(&[(1, 12), (2, 18)]);
        if stage.level == Serializable {
            stage.after_wait(1).done();
            stage.go(1, scan(|_| true)).saw(&[10]);
            stage.go(1, commit()).conflicts();
        } else {
            stage.after_wait(1).conflicts();
        }
        stage.ends_with(&[(1, 12), (2, 18)]);
    });
}

#[test]
fn g2_item_write_skew_occurs_under_snapshot_isolation_only() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        for transaction in [1, 2] {
            stage.go(transaction, get(1)).saw(&[10]);
            stage.go(transaction, get(2)).saw(&[20]);
        }
        stage.go(1, put(1, 11)).done();
        stage.go(2, put(2, 21)).done();
        stage.go(1, commit()).done();
        stage.go(2, commit()).conflicts_if_serializable(stage.level);
        stage.ends_with(&[(1, 11), (2, if stage.level == Serializable { 20 } else { 21 })]);
    });
}

#[test]
fn g2_phantoms_of_each_other_occur_under_snapshot_isolation_only() {
    for scan in [scan, scan_back] {
        everywhere(|stage| {
            stage.begin([1, 2]);
            stage.go(1, scan(|value| value % 3 == 0)).done();
            stage.go(2, scan(|value| value % 3 == 0)).done();
            stage.go(1, insert(3, 30)).done();
            stage.go(2, insert(4, 42)).done();
            stage.go(1, commit()).done();
            stage.go(2, commit()).conflicts_if_serializable(stage.level);
            let all = [(1, 10), (2, 20), (3, 30), (4, 42)];
            stage.ends_with(if stage.level == Serializable { &all[..3] } else { &all });
        });
    }
}

#[test]
fn g2_fekete_a_reader_makes_two_writers_unserializable_under_snapshot_isolation_only() {
    // Whether the reader is a transaction or a snapshot makes no difference.
    for reader_is_snapshot in [false, true] {
        everywhere(|stage| {
            stage.begin([1, 2]);
            stage.go(1, scan(|_| true)).saw(&[10, 20]);
            stage.go(2, put(2, 25)).done();
            stage.go(2, commit()).done();
            if reader_is_snapshot {
                assert_eq!(stage.rows(), [(1, 10), (2, 25)]);
            } else {
                stage.begin([3]);
                stage.go(3, scan(|_| true)).saw(&[10, 25]);
                stage.go(3, commit()).done();
            }
            stage.go(1, put(1, 0)).done();
            stage.go(1, commit()).conflicts_if_serializable(stage.level);
            stage.ends_with(&[(1, if stage.level == Serializable { 10 } else { 0 }), (2, 25)]);
        });
    }
}
