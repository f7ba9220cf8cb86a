//! Exactly what a read of a range protects: what it has walked, from the end it was walked from, and no more.

use super::stage::{LEVELS, Layout, Stage};
use super::steps::{Step, commit, delete, numbers, put, roll_back, work};
use crate::Isolation::Serializable;
use crate::{Result, Table};

const ROWS: [(u64, u64); 4] = [(10, 1), (20, 2), (30, 3), (40, 4)];

/// What another transaction writes beside the read: the key, and a value, or none to delete it.
type Change = (u64, Option<u64>);

const fn set(key: u64) -> Change {
    (key, Some(0))
}

const fn gone(key: u64) -> Change {
    (key, None)
}

fn change((key, value): Change) -> Step {
    value.map_or_else(|| delete(key), |value| put(key, value))
}

struct Case {
    name: &'static str,
    read: fn(&mut Table<'_, u64, u64>) -> Result<()>,
    overtaken_by: &'static [Change],
    not_by: &'static [Change],
}

fn walk<T>(mut rows: impl Iterator<Item = Result<T>>) -> Result<()> {
    rows.try_for_each(|row| row.map(drop))
}

const CASES: &[Case] = &[
    Case {
        name: "get",
        read: |table| table.get(20).map(drop),
        overtaken_by: &[set(20), gone(20)],
        not_by: &[set(10), set(15), gone(30)],
    },
    Case {
        name: "get of a missing key",
        read: |table| table.get(25).map(drop),
        overtaken_by: &[set(25)],
        not_by: &[set(20), set(24), gone(25)],
    },
    Case {
        name: "contains_key",
        read: |table| table.contains_key(25).map(drop),
        overtaken_by: &[set(25)],
        not_by: &[set(26)],
    },
    Case {
        name: "reader",
        read: |table| table.reader(20).map(drop),
        overtaken_by: &[set(20)],
        not_by: &[set(30)],
    },
    Case {
        name: "range",
        read: |table| walk(table.range(10..30)?),
        overtaken_by: &[set(10), set(15), set(25), gone(20)],
        not_by: &[set(5), set(30), set(35)],
    },
    Case {
        name: "range backward",
        read: |table| walk(table.range(10..30)?.rev()),
        overtaken_by: &[set(10), set(15), set(25), gone(20)],
        not_by: &[set(5), set(30), set(35)],
    },
    Case {
        name: "range with its upper bound",
        read: |table| walk(table.range(15..=30)?),
        overtaken_by: &[set(15), set(30), gone(30)],
        not_by: &[set(10), set(31)],
    },
    Case {
        name: "empty range",
        read: |table| walk(table.range(21..29)?),
        overtaken_by: &[set(25), set(21)],
        not_by: &[set(20), set(29)],
    },
    Case {
        name: "range that is opened only",
        read: |table| table.range(10..30).map(drop),
        overtaken_by: &[],
        not_by: &[set(10), set(15), gone(20)],
    },
    Case {
        name: "one row of a range",
        read: |table| walk(table.range(5..)?.take(1)),
        overtaken_by: &[set(5), set(10), gone(10)],
        not_by: &[set(4), set(11), gone(20)],
    },
    Case {
        name: "one row of a range backward",
        read: |table| walk(table.range(..45)?.rev().take(1)),
        overtaken_by: &[set(44), set(40), gone(40)],
        not_by: &[set(45), set(39), gone(30)],
    },
    Case {
        name: "one row from either end",
        read: |table| {
            let mut rows = table.iter()?;
            walk(rows.next().into_iter())?;
            walk(rows.next_back().into_iter())
        },
        overtaken_by: &[set(5), set(10), set(40), set(45)],
        not_by: &[set(15), set(20), gone(30), set(35)],
    },
    Case {
        name: "from both ends until they meet",
        read: |table| {
            let mut rows = table.iter()?;
            while rows.next().transpose()?.is_some() && rows.next_back().transpose()?.is_some() {}
            Ok(())
        },
        overtaken_by: &[set(5), set(15), set(25), gone(30), set(45)],
        not_by: &[],
    },
    Case {
        name: "keys",
        read: |table| walk(table.keys()?.take(2)),
        overtaken_by: &[set(5), set(15), set(20)],
        not_by: &[set(25)],
    },
    Case {
        name: "values backward",
        read: |table| walk(table.values()?.rev().take(2)),
        overtaken_by: &[set(45), set(35), set(30)],
        not_by: &[set(25)],
    },
    Case {
        name: "first",
        read: |table| table.first().map(drop),
        overtaken_by: &[set(5), set(10), gone(10)],
        not_by: &[set(15), gone(20)],
    },
    Case {
        name: "last",
        read: |table| table.last().map(drop),
        overtaken_by: &[set(45), set(40), gone(40)],
        not_by: &[set(35), gone(30)],
    },
    Case {
        name: "pop_first",
        read: |table| table.pop_first().map(drop),
        overtaken_by: &[set(5)],
        not_by: &[set(15), gone(20)],
    },
    Case {
        name: "pop_last",
        read: |table| table.pop_last().map(drop),
        overtaken_by: &[set(45)],
        not_by: &[set(35), gone(30)],
    },
    Case {
        name: "extract_if, one row",
        read: |table| walk(table.extract_if(15.., |key, _| *key == 30)?.take(1)),
        overtaken_by: &[set(15), set(20), set(25)],
        not_by: &[set(10), set(35), set(40)],
    },
    Case {
        name: "len",
        read: |table| table.len().map(drop),
        overtaken_by: &[set(25), gone(40)],
        not_by: &[set(10), gone(25)],
    },
    Case {
        name: "is_empty",
        read: |table| table.is_empty().map(drop),
        overtaken_by: &[set(25), gone(40)],
        not_by: &[set(10)],
    },
    Case {
        name: "put, which reads nothing",
        read: |table| table.put(50, 0),
        overtaken_by: &[],
        not_by: &[set(10), set(45), gone(20)],
    },
    Case {
        name: "insert, which locks what it reads",
        read: |table| table.insert(20, 0).map(drop),
        overtaken_by: &[],
        not_by: &[set(10), set(25)],
    },
    Case {
        name: "get_for_update, which locks what it reads",
        read: |table| table.get_for_update(25).map(drop),
        overtaken_by: &[],
        not_by: &[set(20), set(30)],
    },
    Case {
        name: "entry of a missing key that is then made",
        read: |table| table.entry(25)?.or_insert(0).map(drop),
        overtaken_by: &[],
        not_by: &[set(20), set(30)],
    },
];

#[test]
fn a_read_is_overtaken_by_a_write_of_what_it_has_walked_and_by_no_other() {
    for level in LEVELS {
        let mut stage = Stage::with_rows(level, Layout::OneTable, &[]);
        for case in CASES {
            let writes = case.overtaken_by.iter().map(|change| (change, true));
            for (write, overlaps) in writes.chain(case.not_by.iter().map(|change| (change, false))) {
                println!("{}, beside {write:?}", case.name);
                stage
                    .db
                    .transact(|tx| {
                        let mut table = tx.open_table(numbers("all"))?;
                        table.clear()?;
                        ROWS.into_iter().try_for_each(|(key, value)| table.put(key, value))
                    })
                    .unwrap();
                stage.begin([1, 2]);
                let read = case.read;
                stage
                    .go(1, work(move |tx, _| read(&mut tx.open_table(numbers("all"))?).map(|()| vec![])))
                    .done();
                stage.go(2, change(*write)).done();
                stage.go(2, commit()).done();
                stage.go(1, put(99, 0)).done();
                let committed = stage.go(1, commit());
                if level == Serializable && overlaps {
                    committed.conflicts();
                } else {
                    committed.done();
                }
                stage.close();
            }
        }
    }
}

#[test]
fn a_read_of_one_table_is_not_overtaken_by_the_same_key_of_another() {
    for level in LEVELS {
        let mut stage = Stage::new(level, Layout::TwoTables);
        stage.begin([1, 2]);
        let all_of_odd = |tx: &crate::Transaction, _| {
            let odd = tx.open_table(numbers("odd"))?;
            walk(odd.iter()?)?;
            Ok(vec![odd.len()?])
        };
        stage.go(1, work(all_of_odd)).saw(&[1]);
        stage.go(2, put(2, 22)).done();
        stage.go(2, put(4, 40)).done();
        stage.go(2, commit()).done();
        stage.go(1, put(1, 11)).done();
        stage.go(1, commit()).done();
        stage.ends_with(&[(1, 11), (2, 22), (4, 40)]);
    }
}

fn pop_first() -> Step {
    work(|tx, _| Ok(tx.open_table(numbers("all"))?.pop_first()?.into_iter().map(|row| row.0).collect()))
}

fn pop_last() -> Step {
    work(|tx, _| Ok(tx.open_table(numbers("all"))?.pop_last()?.into_iter().map(|row| row.0).collect()))
}

#[test]
fn no_row_is_popped_twice() {
    type Pop = (fn() -> Step, u64, u64);
    let pops: [Pop; 2] = [(pop_first, 10, 20), (pop_last, 40, 30)];
    for level in LEVELS {
        for (pop, end, next) in pops {
            // The first commits: the second has read what is gone.
            let mut stage = Stage::with_rows(level, Layout::OneTable, &ROWS);
            stage.begin([1, 2]);
            stage.go(1, pop()).saw(&[end]);
            stage.go(2, pop()).waits();
            stage.go(1, commit()).done();
            stage.after_wait(2).conflicts();
            stage.begin([3]);
            stage.go(3, pop()).saw(&[next]);
            stage.go(3, commit()).done();
            assert_eq!(stage.rows().len(), 2);
            stage.close();
            // The first is rolled back: the second gets its row.
            let mut stage = Stage::with_rows(level, Layout::OneTable, &ROWS);
            stage.begin([1, 2]);
            stage.go(1, pop()).saw(&[end]);
            stage.go(2, pop()).waits();
            stage.go(1, roll_back()).done();
            stage.after_wait(2).saw(&[end]);
            stage.go(2, commit()).done();
            assert_eq!(stage.rows().len(), 3);
            stage.close();
        }
    }
}

#[test]
fn those_who_pop_from_different_ends_do_not_meet() {
    for level in LEVELS {
        let mut stage = Stage::with_rows(level, Layout::OneTable, &ROWS);
        stage.begin([1, 2]);
        stage.go(1, pop_first()).saw(&[10]);
        stage.go(2, pop_last()).saw(&[40]);
        stage.go(1, commit()).done();
        stage.go(2, commit()).done();
        stage.ends_with(&ROWS[1..3]);
    }
}

#[test]
fn an_iterator_goes_on_in_the_state_it_was_opened_in_whatever_is_committed_meanwhile() {
    let rows: Vec<(u64, u64)> = (0..2000).map(|key| (key * 2, key)).collect();
    for level in LEVELS {
        for forward in [true, false] {
            let mut stage = Stage::with_rows(level, Layout::OneTable, &rows);
            let tx = stage.db.begin().unwrap();
            let table = tx.open_table(numbers("all")).unwrap();
            let mut iter = table.iter().unwrap();
            let mut step = || if forward { iter.next() } else { iter.next_back() }.transpose().unwrap();
            let mut seen = vec![step().unwrap()];
            // Rows are changed, removed and put between, behind and ahead of the iterator; leaves split and merge.
            for round in 0..3_u64 {
                stage
                    .db
                    .transact(|tx| {
                        let mut table = tx.open_table(numbers("all"))?;
                        for key in (round..4000).step_by(3) {
                            if key % 4 == 0 { table.delete(key)? } else { table.put(key, 7)? }
                        }
                        Ok(())
                    })
                    .unwrap();
                stage.db.maintain().unwrap();
                seen.extend((0..400).filter_map(|_| step()));
            }
            while let Some(row) = step() {
                seen.push(row);
            }
            if !forward {
                seen.reverse();
            }
            assert!(seen == rows, "{level:?}, forward: {forward}");
            drop((iter, table));
            tx.commit().unwrap();
            stage.close();
        }
    }
}

#[test]
fn an_open_iterator_keeps_the_view_from_moving_past_a_change_of_its_range_and_from_nothing_else() {
    for changes_its_table in [true, false] {
        let mut stage = Stage::new(Serializable, Layout::TwoTables);
        let tx = stage.db.begin().unwrap();
        let odd = tx.open_table(numbers("odd")).unwrap();
        let mut iter = odd.iter().unwrap();
        assert_eq!(iter.next().unwrap().unwrap(), (1, 10));
        stage.begin([2]);
        stage.go(2, put(2, 22)).done();
        if changes_its_table {
            stage.go(2, put(3, 30)).done();
        }
        stage.go(2, commit()).done();
        let moved = tx.open_table(numbers("even")).unwrap().insert(2, 23);
        if changes_its_table {
            // It has not come to the new row yet, but may.
            assert_eq!(moved.unwrap_err().kind(), crate::ErrorKind::Conflict);
            drop((iter, odd));
            drop(tx);
            stage.ends_with(&[(1, 10), (2, 22), (3, 30)]);
        } else {
            assert_eq!(moved.unwrap(), Some(22));
            assert!(iter.next().is_none());
            drop((iter, odd));
            tx.commit().unwrap();
            stage.ends_with(&[(1, 10), (2, 23)]);
        }
    }
}
