//! Making, renaming and dropping tables beside transactions that use them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::stage::{LEVELS, Layout, Stage, patience};
use super::steps::{Step, commit, delete, kept, numbers, put, roll_back, scan, taken_back, work};
use crate::ErrorKind;
use crate::Isolation::{Serializable, Snapshot};

fn at_both_levels(schedule: impl Fn(&mut Stage)) {
    for level in LEVELS {
        for layout in [Layout::OneTable, Layout::CutTable] {
            schedule(&mut Stage::new(level, layout));
        }
    }
}

/// Opens the table, and makes it if it is missing.
fn open(name: &'static str) -> Step {
    work(move |tx, _| tx.open_table(numbers(name)).map(|_| vec![]))
}

fn put_in(name: &'static str, key: u64, value: u64) -> Step {
    work(move |tx, _| tx.open_table(numbers(name))?.put(key, value).map(|()| vec![]))
}

fn get_in(name: &'static str, key: u64) -> Step {
    work(move |tx, _| Ok(tx.open_table(numbers(name))?.get(key)?.into_iter().collect()))
}

fn lock_in(name: &'static str, key: u64) -> Step {
    work(move |tx, _| Ok(tx.open_table(numbers(name))?.get_for_update(key)?.into_iter().collect()))
}

fn drop_table(name: &'static str) -> Step {
    work(move |tx, _| tx.drop_table(name).map(|()| vec![]))
}

fn rename(from: &'static str, to: &'static str) -> Step {
    work(move |tx, _| tx.rename_table(from, to).map(|()| vec![]))
}

fn has(name: &'static str) -> Step {
    work(move |tx, _| Ok(vec![u64::from(tx.has_table(name)?)]))
}

/// The rows of each table, by name.
fn list() -> Step {
    work(|tx, _| Ok(tx.tables()?.iter().map(|table| table.rows).collect()))
}

#[track_caller]
fn ends_with_tables(stage: &mut Stage, tables: &[(&str, u64)]) {
    stage.close();
    let found = stage.db.tables().unwrap();
    assert_eq!(found.iter().map(|table| (&*table.name, table.rows)).collect::<Vec<_>>(), tables);
}

#[test]
fn of_two_that_make_the_same_table_the_second_waits_and_conflicts() {
    at_both_levels(|stage| {
        stage.begin([1, 2]);
        stage.go(1, put_in("new", 1, 1)).done();
        stage.go(2, put_in("new", 2, 2)).waits();
        stage.go(1, commit()).done();
        stage.after_wait(2).conflicts();
        stage.begin([3]);
        stage.go(3, put_in("new", 2, 2)).done();
        stage.go(3, commit()).done();
        ends_with_tables(stage, &[("all", 2), ("new", 2)]);
    });
    at_both_levels(|stage| {
        stage.begin([1, 2]);
        stage.go(1, put_in("new", 1, 1)).done();
        stage.go(2, put_in("new", 2, 2)).waits();
        stage.go(1, roll_back()).done();
        stage.after_wait(2).done();
        stage.go(2, commit()).done();
        ends_with_tables(stage, &[("all", 2), ("new", 1)]);
    });
}

#[test]
fn a_table_made_after_a_transaction_has_begun_is_not_there_for_it_and_cannot_be_made_by_it() {
    at_both_levels(|stage| {
        stage.begin([1, 2]);
        stage.go(2, put_in("new", 1, 1)).done();
        stage.go(2, commit()).done();
        stage.go(1, has("new")).saw(&[0]);
        stage.go(1, open("new")).conflicts();
        ends_with_tables(stage, &[("all", 2), ("new", 1)]);
    });
}

#[test]
fn those_who_make_different_tables_do_not_meet() {
    at_both_levels(|stage| {
        stage.begin([1, 2]);
        stage.go(1, put_in("a", 1, 1)).done();
        stage.go(2, put_in("b", 1, 1)).done();
        stage.go(2, commit()).done();
        stage.go(1, commit()).done();
        ends_with_tables(stage, &[("a", 1), ("all", 2), ("b", 1)]);
    });
}

#[test]
fn that_a_table_is_missing_and_which_there_are_are_reads() {
    let looks: [(fn() -> Step, u64); 2] = [(|| has("new"), 0), (list, 2)];
    for (look, seen) in looks {
        at_both_levels(|stage| {
            stage.begin([1, 2]);
            stage.go(1, look()).saw(&[seen]);
            stage.go(2, open("new")).done();
            stage.go(2, commit()).done();
            stage.go(1, put(1, 11)).done();
            stage.go(1, commit()).conflicts_if_serializable(stage.level);
            ends_with_tables(stage, &[("all", 2), ("new", 0)]);
        });
    }
}

#[test]
fn a_list_of_tables_reads_the_row_counts() {
    for (key, changes_the_count) in [(1, false), (3, true)] {
        at_both_levels(|stage| {
            stage.begin([1, 2]);
            stage.go(1, list()).saw(&[2]);
            stage.go(2, put(key, 0)).done();
            stage.go(2, commit()).done();
            stage.go(1, put(2, 22)).done();
            let committed = stage.go(1, commit());
            if changes_the_count {
                committed.conflicts_if_serializable(stage.level);
            } else {
                committed.done();
            }
            stage.close();
        });
    }
}

#[test]
fn a_list_of_tables_counts_rows_that_were_written_over_unseen() {
    let mut stage = Stage::new(Serializable, Layout::OneTable);
    stage.begin([1, 2]);
    stage.go(2, put(3, 30)).done();
    stage.go(2, delete(1)).done();
    stage.go(2, put(4, 40)).done();
    stage.go(2, commit()).done();
    // Blind, over a row that T1 does not see.
    stage.go(1, put(3, 31)).done();
    stage.go(1, list()).saw(&[3]);
    stage.go(1, scan(|_| true)).saw(&[20, 31, 40]);
    stage.go(1, commit()).done();
    ends_with_tables(&mut stage, &[("all", 3)]);
}

#[test]
fn a_drop_waits_for_those_who_have_written_and_keeps_new_writers_waiting() {
    type Write = (fn() -> Step, &'static [u64]);
    let writes: [Write; 2] = [(|| put_in("all", 3, 30), &[]), (|| lock_in("all", 1), &[10])];
    for (write, seen) in writes {
        for end in [commit, roll_back] {
            at_both_levels(|stage| {
                stage.begin([1, 2, 3, 4]);
                stage.go(1, write()).saw(seen);
                stage.go(2, drop_table("all")).waits();
                // Who has written may go on to write; who reads waits for nobody.
                stage.go(1, put_in("all", 4, 40)).done();
                stage.go(3, put_in("all", 5, 50)).waits();
                stage.go(4, get_in("all", 1)).saw(&[10]);
                stage.go(1, end()).done();
                stage.after_wait(2).done();
                stage.after_wait(3).waits();
                stage.go(2, commit()).done();
                stage.after_wait(3).conflicts();
                stage.go(4, get_in("all", 2)).saw(&[20]);
                stage.go(4, commit()).done();
                ends_with_tables(stage, &[]);
            });
        }
    }
}

#[test]
fn a_drop_that_is_rolled_back_lets_the_writers_go_on() {
    for (number, end) in [roll_back, commit].into_iter().enumerate() {
        at_both_levels(|stage| {
            stage.begin([1, 2, 3]);
            // Rolled back as a whole, or to a savepoint: that keeps the lock.
            let dropping = drop_table("all");
            stage.go(1, if number == 0 { dropping } else { taken_back(dropping) }).done();
            stage.go(2, put_in("all", 3, 30)).waits();
            stage.go(1, end()).done();
            stage.after_wait(2).done();
            stage.go(3, drop_table("all")).waits();
            stage.go(2, commit()).done();
            stage.after_wait(3).done();
            stage.go(3, roll_back()).done();
            ends_with_tables(stage, &[("all", 3)]);
        });
    }
}

#[test]
fn a_writer_that_takes_its_claim_back_for_a_drop_is_no_deadlock() {
    at_both_levels(|stage| {
        let id = stage.db.tables().unwrap()[0].id;
        stage.begin([1, 2]);
        // As between a first write's claim and its look at who drops the table.
        let claim = work(move |tx, _| {
            tx.entry.lock().writes_to.push(id);
            Ok(vec![])
        });
        stage.go(2, claim).done();
        stage.go(1, drop_table("all")).waits();
        stage.go(2, put_in("all", 3, 30)).waits();
        stage.after_wait(1).done();
        stage.go(1, roll_back()).done();
        stage.after_wait(2).done();
        stage.go(2, commit()).done();
        assert_eq!(stage.db.stats().deadlocks, 0);
        ends_with_tables(stage, &[("all", 3)]);
    });
}

#[test]
fn those_who_have_waited_for_a_drop_do_not_wait_for_each_other() {
    for end in [roll_back, commit] {
        at_both_levels(|stage| {
            stage.begin([1, 2, 3, 4]);
            stage.go(1, drop_table("all")).done();
            for number in [2, 3, 4] {
                stage.go(number, kept(put_in("all", number.into(), 0))).waits();
            }
            stage.go(1, end()).done();
            let is_there = stage.snapshot().has_table("all").unwrap();
            // All of them at once, though none has ended.
            for number in [2, 3, 4] {
                let went = stage.after_wait(number);
                if is_there { went.done() } else { went.conflicts() }
            }
            for number in [4, 3, 2] {
                stage.go(number, roll_back()).done();
            }
            ends_with_tables(stage, if is_there { &[("all", 2)] } else { &[] });
        });
    }
}

#[test]
fn of_two_that_drop_a_table_the_second_waits_and_conflicts() {
    at_both_levels(|stage| {
        stage.begin([1, 2]);
        stage.go(1, drop_table("all")).done();
        stage.go(2, drop_table("all")).waits();
        stage.go(1, commit()).done();
        stage.after_wait(2).conflicts();
        stage.begin([3]);
        stage.go(3, drop_table("all")).refused(ErrorKind::NotFound);
        stage.go(3, roll_back()).done();
        ends_with_tables(stage, &[]);
    });
}

#[test]
fn a_writer_whose_view_is_older_than_a_drop_conflicts_at_its_first_write() {
    // Nobody waits here, so it is the table that says so, not the wait. Opened before the drop or after it, or made anew since.
    for opens_early in [true, false] {
        for is_made_anew in [true, false] {
            at_both_levels(|stage| {
                stage.begin([1, 2]);
                if opens_early {
                    stage.go(1, open("all")).done();
                }
                stage.go(2, drop_table("all")).done();
                if is_made_anew {
                    stage.go(2, put_in("all", 7, 70)).done();
                }
                stage.go(2, commit()).done();
                stage.go(1, get_in("all", 1)).saw(&[10]);
                stage.go(1, kept(lock_in("all", 1))).conflicts();
                stage.go(1, put_in("all", 3, 30)).conflicts();
                ends_with_tables(stage, if is_made_anew { &[("all", 1)] } else { &[] });
            });
        }
    }
}

#[test]
fn a_reader_whose_view_is_older_than_a_drop_reads_on() {
    at_both_levels(|stage| {
        stage.begin([1, 2]);
        let snapshot = stage.snapshot();
        let partitions = stage.db.partitions().unwrap().len() as u64;
        stage.go(2, drop_table("all")).done();
        stage.go(2, commit()).done();
        stage.db.maintain().unwrap();
        stage.go(1, get_in("all", 1)).saw(&[10]);
        stage.go(1, put_in("other", 1, 1)).done();
        // The table's name is a read like any other.
        stage.go(1, commit()).conflicts_if_serializable(stage.level);
        assert!(snapshot.has_table("all").unwrap());
        assert_eq!(stage.rows_in(&snapshot), [(1, 10), (2, 20)]);
        assert_eq!(stage.db.stats().partitions, partitions + 1);
        assert!(!stage.snapshot().has_table("all").unwrap());
        drop(snapshot);
        stage.db.maintain().unwrap();
        // The files of tables that are gone go with the last who sees them: the catalog's stays.
        let tables = stage.db.tables().unwrap().len() as u64;
        assert_eq!(stage.db.stats().partitions, 1 + tables);
        let other = [("other", 1)];
        ends_with_tables(stage, if stage.level == Serializable { &[] } else { &other });
    });
}

#[test]
fn two_that_drop_what_the_other_has_written_are_a_deadlock() {
    for level in LEVELS {
        let mut stage = Stage::new(level, Layout::TwoTables);
        stage.begin([1, 2]);
        stage.go(1, put_in("odd", 1, 11)).done();
        stage.go(2, put_in("even", 2, 22)).done();
        stage.go(1, drop_table("even")).waits();
        stage.go(2, drop_table("odd")).conflicts();
        stage.after_wait(1).done();
        stage.go(1, commit()).done();
        assert_eq!(stage.db.stats().deadlocks, 1);
        ends_with_tables(&mut stage, &[("odd", 1)]);
    }
}

#[test]
fn a_drop_that_has_waited_too_long_keeps_its_locks_until_the_end() {
    at_both_levels(|stage| {
        stage.begin([1, 3]);
        stage.begin_with(2, patience(Duration::ZERO));
        stage.go(1, put_in("all", 3, 30)).done();
        stage.go(2, kept(drop_table("all"))).conflicts();
        stage.go(2, has("all")).saw(&[1]);
        stage.go(3, put_in("all", 4, 40)).waits();
        stage.go(1, commit()).done();
        stage.after_wait(3).waits();
        stage.go(2, commit()).done();
        stage.after_wait(3).done();
        stage.go(3, commit()).done();
        ends_with_tables(stage, &[("all", 4)]);
    });
}

#[test]
fn the_waits_of_one_statement_have_one_timeout() {
    const PATIENCE: Duration = Duration::from_secs(1000);
    at_both_levels(|stage| {
        stage.begin([1, 2]);
        stage.begin_with(3, patience(PATIENCE));
        stage.go(1, put_in("all", 3, 30)).done();
        stage.go(2, put_in("all", 4, 40)).done();
        stage.go(3, kept(drop_table("all"))).waits();
        stage.disk.advance(PATIENCE);
        stage.go(1, commit()).done();
        // It had to wait for T1 and has no time left to wait for T2.
        stage.after_wait(3).conflicts();
        // The next statement has its own.
        stage.go(3, drop_table("all")).waits();
        stage.go(2, roll_back()).done();
        stage.after_wait(3).done();
        stage.go(3, commit()).done();
        ends_with_tables(stage, &[]);
    });
}

#[test]
fn a_table_is_renamed_beside_those_who_write_to_it() {
    at_both_levels(|stage| {
        stage.begin([1, 2, 3]);
        stage.go(1, put_in("all", 3, 30)).done();
        stage.go(2, rename("all", "every")).done();
        stage.go(3, put_in("all", 4, 40)).done();
        // Before the rename in the order of commits, and behind it.
        stage.go(1, commit()).done();
        stage.go(2, commit()).done();
        stage.go(3, commit()).conflicts_if_serializable(stage.level);
        ends_with_tables(stage, &[("every", if stage.level == Snapshot { 4 } else { 3 })]);
    });
}

#[test]
fn a_name_is_locked_by_a_rename_from_it_and_to_it() {
    let others: [fn() -> Step; 5] = [
        || open("every"),
        || rename("all", "whole"),
        || rename("all", "every"),
        || rename("more", "every"),
        || drop_table("all"),
    ];
    for other in others {
        for end in [commit, roll_back] {
            at_both_levels(|stage| {
                stage.begin([9]);
                stage.go(9, open("more")).done();
                stage.go(9, commit()).done();
                stage.begin([1, 2]);
                stage.go(1, rename("all", "every")).done();
                stage.go(2, other()).waits();
                stage.go(1, end()).done();
                let second = stage.after_wait(2);
                if stage.db.snapshot().unwrap().has_table("every").unwrap() {
                    second.conflicts();
                } else {
                    second.done();
                    stage.go(2, commit()).done();
                }
                stage.close();
            });
        }
    }
}

#[test]
fn a_table_that_the_next_one_has_locked_to_drop_it_is_not_unlocked_by_the_last() {
    let mut stage = Stage::new(Serializable, Layout::OneTable);
    let tx = stage.db.begin().unwrap();
    let gate = tx.open_raw("all", None, false).unwrap().1.gate().clone();
    tx.drop_table("all").unwrap();
    // As by one that comes when this transaction is out of the timeline, but has not let go of everything yet.
    let next = tx.id().0 + 1;
    gate.dropper.store(next, Ordering::SeqCst);
    tx.rollback().unwrap();
    assert_eq!(gate.dropper.swap(0, Ordering::SeqCst), next);
    ends_with_tables(&mut stage, &[("all", 2)]);
}
