//! What is seen: misses, row counts, and snapshots beside transactions.

use super::stage::{LEVELS, Layout, Stage, everywhere};
use super::steps::{Step, commit, delete, get, insert, numbers, put, remove, work};
use crate::Isolation::{Serializable, Snapshot};

fn len() -> Step {
    work(|tx, _| Ok(vec![tx.open_table(numbers("all"))?.len()?]))
}

#[test]
fn a_miss_is_a_read() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, get(3)).done();
        stage.go(2, insert(3, 30)).done();
        stage.go(2, commit()).done();
        stage.go(1, get(3)).done();
        stage.go(1, put(1, 11)).done();
        stage.go(1, commit()).conflicts_if_serializable(stage.level);
        stage.ends_with(&[(1, if stage.level == Serializable { 10 } else { 11 }), (2, 20), (3, 30)]);
    });
}

#[test]
fn two_that_miss_the_same_key_do_not_both_make_it() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, get(3)).done();
        stage.go(2, get(3)).done();
        stage.go(1, put(3, 31)).done();
        stage.go(2, put(3, 32)).waits();
        stage.go(1, commit()).done();
        if stage.level == Serializable {
            stage.after_wait(2).done();
            stage.go(2, commit()).conflicts();
        } else {
            stage.after_wait(2).conflicts();
        }
        stage.ends_with(&[(1, 10), (2, 20), (3, 31)]);
    });
}

#[test]
fn a_transaction_that_only_reads_commits_whatever_has_changed() {
    everywhere(|stage| {
        stage.begin([1, 2]);
        stage.go(1, get(1)).saw(&[10]);
        stage.go(2, put(1, 12)).done();
        stage.go(2, remove(2)).saw(&[20]);
        stage.go(2, commit()).done();
        stage.go(1, get(2)).saw(&[20]);
        stage.go(1, commit()).done();
        stage.ends_with(&[(1, 12)]);
    });
}

#[test]
fn a_row_that_has_come_and_gone_since_is_changed_all_the_same() {
    everywhere(|stage| {
        stage.begin([1, 2, 3]);
        stage.go(1, get(3)).done();
        stage.go(2, insert(3, 30)).done();
        stage.go(2, commit()).done();
        // T3 has read nothing, so its view may move; under snapshot isolation it has begun too early.
        if stage.level == Serializable {
            stage.go(3, remove(3)).saw(&[30]);
            stage.go(3, commit()).done();
        } else {
            stage.go(3, remove(3)).conflicts();
            stage.begin([4]);
            stage.go(4, remove(3)).saw(&[30]);
            stage.go(4, commit()).done();
        }
        stage.go(1, get(3)).done();
        // Commits have written it since, which is enough: that they cancel out is not looked at.
        stage.go(1, insert(3, 31)).conflicts();
        stage.ends_with(&[(1, 10), (2, 20)]);
    });
}

#[test]
fn len_is_that_of_the_view_and_of_its_own_writes() {
    for level in LEVELS {
        let mut stage = Stage::new(level, Layout::OneTable);
        stage.begin([1, 2]);
        stage.go(1, len()).saw(&[2]);
        stage.go(2, put(3, 30)).done();
        stage.go(2, len()).saw(&[3]);
        stage.go(1, len()).saw(&[2]);
        stage.go(2, commit()).done();
        stage.go(1, len()).saw(&[2]);
        stage.go(1, put(5, 50)).done();
        stage.go(1, len()).saw(&[3]);
        stage.go(1, delete(1)).done();
        stage.go(1, delete(2)).done();
        stage.go(1, len()).saw(&[1]);
        stage.go(1, commit()).conflicts_if_serializable(level);
        let all = [(1, 10), (2, 20), (3, 30)];
        stage.ends_with(if level == Serializable { &all } else { &[(3, 30), (5, 50)] });
    }
}

#[test]
fn len_after_a_blind_write_over_a_row_that_a_commit_has_removed_is_that_of_the_order_of_commits() {
    // T2 has removed one row and made another, so the count is as it was; T1 puts the row back and counts.
    let mut stage = Stage::new(Serializable, Layout::OneTable);
    stage.begin([1, 2]);
    stage.go(2, delete(1)).done();
    stage.go(2, put(3, 30)).done();
    stage.go(2, commit()).done();
    stage.go(1, len()).saw(&[2]);
    stage.go(1, put(1, 11)).done();
    stage.go(1, len()).saw(&[3]);
    stage.go(1, commit()).done();
    stage.ends_with(&[(1, 11), (2, 20), (3, 30)]);
    // T2 has changed the count, and T1 has read nothing yet: its view moves forward past T2.
    let mut stage = Stage::new(Serializable, Layout::OneTable);
    stage.begin([1, 2]);
    stage.go(2, delete(1)).done();
    stage.go(2, commit()).done();
    stage.go(1, put(1, 11)).done();
    stage.go(1, len()).saw(&[2]);
    stage.go(1, commit()).done();
    stage.ends_with(&[(1, 11), (2, 20)]);
    // T1 has counted before: the view cannot move, and what would be counted is not.
    let mut stage = Stage::new(Serializable, Layout::OneTable);
    stage.begin([1, 2]);
    stage.go(1, len()).saw(&[2]);
    stage.go(2, delete(1)).done();
    stage.go(2, commit()).done();
    stage.go(1, put(1, 11)).done();
    stage.go(1, len()).conflicts();
    stage.ends_with(&[(2, 20)]);
}

#[test]
fn snapshots_beside_writers_wait_for_nobody_and_never_change() {
    everywhere(|stage| {
        let old = [(1, 10), (2, 20)];
        let before = stage.snapshot();
        stage.begin([1, 2]);
        stage.go(1, put(1, 11)).done();
        stage.go(1, remove(2)).saw(&[20]);
        stage.go(1, insert(3, 30)).done();
        stage.go(2, put(1, 12)).waits();
        let beside = stage.snapshot();
        assert_eq!((stage.rows_in(&before), stage.rows_in(&beside)), (old.to_vec(), old.to_vec()));
        stage.go(1, commit()).done();
        let after = stage.snapshot();
        let new = vec![(1, 11), (3, 30)];
        if stage.level == Snapshot {
            stage.after_wait(2).conflicts();
        } else {
            stage.after_wait(2).done();
            stage.go(2, commit()).done();
        }
        for round in 0..3 {
            let rows = [&before, &beside, &after].map(|snapshot| stage.rows_in(snapshot));
            assert_eq!(rows, [old.to_vec(), old.to_vec(), new.clone()], "round {round}");
            stage.begin([10 + round]);
            stage.go(10 + round, put(2, 200)).done();
            stage.go(10 + round, delete(3)).done();
            stage.go(10 + round, commit()).done();
            stage.db.maintain().unwrap();
        }
        drop((before, beside, after));
        stage.db.maintain().unwrap();
        let first = if stage.level == Snapshot { 11 } else { 12 };
        stage.ends_with(&[(1, first), (2, 200)]);
        assert_eq!(stage.db.stats().version_bytes, 0);
    });
}
