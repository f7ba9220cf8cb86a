//! Tables against `BTreeMap`, on the simulated disk.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use hamal_storage::sim::{CrashMode, SimStorage};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{Database, Entry, ErrorKind, Maintenance, Options, Result, Table, TableDef};

const NUMBERS: TableDef<u32, u64> = TableDef::new("numbers");
const RENAMED: TableDef<u32, u64> = TableDef::new("renamed");
const NAMES: TableDef<&str, &str> = TableDef::new("names");
const BLOBS: TableDef<&str, &[u8]> = TableDef::new("blobs");

fn options() -> Options {
    Options::new().page_bytes(4096).cache_bytes(1 << 20).maintenance(Maintenance::Manual)
}

fn open(storage: &SimStorage) -> Database {
    options().open_on(Arc::new(storage.clone())).unwrap()
}

fn database() -> Database {
    open(&SimStorage::new(1))
}

fn numbers(table: &mut Table<'_, u32, u64>, rows: impl IntoIterator<Item = u32>) {
    for row in rows {
        table.put(row, u64::from(row) * 10).unwrap();
    }
}

fn keys(rows: impl Iterator<Item = Result<(u32, u64)>>) -> Vec<u32> {
    rows.map(|row| row.unwrap().0).collect()
}

#[test]
fn keys_and_values_go_in_as_literals_references_and_arrays() -> Result<()> {
    const PAIRS: TableDef<(&str, u64), [u8; 2]> = TableDef::new("pairs");
    const SPARSE: TableDef<Option<i8>, ()> = TableDef::new("sparse");
    let db = database();
    let tx = db.begin()?;
    let mut names = tx.open_table(NAMES)?;
    let name = String::from("alice");
    names.insert(&name, "a")?;
    names.insert("bob", &format!("{name}'s friend"))?;
    assert_eq!(names.get(&name)?.as_deref(), Some("a"));
    assert_eq!(names.range("b"..)?.next().unwrap()?, ("bob".to_owned(), "alice's friend".to_owned()));
    let mut blobs = tx.open_table(BLOBS)?;
    blobs.insert("b", b"bytes")?;
    blobs.insert("v", &[1, 2])?;
    assert_eq!(blobs.get("b")?.unwrap(), b"bytes");
    let mut pairs = tx.open_table(PAIRS)?;
    pairs.insert(("x", 1), [1, 2])?;
    pairs.insert((&name, 2), *b"ab")?;
    assert_eq!(pairs.first()?, Some((("alice".to_owned(), 2), *b"ab")));
    assert_eq!(pairs.range(("x", 0)..("x", 9))?.count(), 1);
    let mut sparse = tx.open_table(SPARSE)?;
    sparse.insert(Some(-1), ())?;
    sparse.insert(None, ())?;
    assert_eq!(sparse.keys()?.collect::<Result<Vec<_>>>()?, [None, Some(-1)]);
    let mut dynamic = tx.open_table(TableDef::<u8, u8>::new(&format!("{name}-1")))?;
    assert_eq!(dynamic.insert(1, 2)?, None);
    assert_eq!(dynamic.insert(1, 3)?, Some(2));
    Ok(())
}

#[test]
fn a_snapshot_reads_what_was_committed() -> Result<()> {
    let db = database();
    let tx = db.begin()?;
    numbers(&mut tx.open_table(NUMBERS)?, 0..100);
    tx.commit()?;
    let tx = db.begin()?;
    numbers(&mut tx.open_table(NUMBERS)?, 100..200);
    drop(tx);
    let snapshot = db.snapshot()?;
    let table = snapshot.open_table(NUMBERS)?;
    assert_eq!(table.len()?, 100);
    assert!(!table.is_empty()?);
    assert!(keys(table.iter()?).into_iter().eq(0..100));
    assert_eq!(table.values()?.next_back().unwrap()?, 990);
    assert_eq!(table.last()?, Some((99, 990)));
    assert!(table.contains_key(7)? && !table.contains_key(107)?);
    assert_eq!(snapshot.open_table(NAMES).unwrap_err().kind(), ErrorKind::NotFound);
    Ok(())
}

#[test]
fn other_types_are_refused_and_bytes_are_not() -> Result<()> {
    let db = database();
    let tx = db.begin()?;
    numbers(&mut tx.open_table(NUMBERS)?, [1]);
    let other = tx.open_table(TableDef::<u32, i64>::new("numbers"));
    assert_eq!(other.unwrap_err().kind(), ErrorKind::TypeMismatch);
    let other = tx.open_table(TableDef::<[u8; 4], u64>::new("numbers"));
    assert_eq!(other.unwrap_err().kind(), ErrorKind::TypeMismatch);
    let mut bytes = tx.open_bytes_table("numbers")?;
    assert_eq!(bytes.get(&1_u32.to_be_bytes())?.unwrap(), 10_u64.to_be_bytes());
    bytes.put(&[0, 0, 0], b"not a number")?;
    tx.commit()?;
    let snapshot = db.snapshot()?;
    let rows: Vec<_> = snapshot.open_table(NUMBERS)?.iter()?.collect();
    let error = rows[0].as_ref().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("\"numbers\", key 0x000000"), "{error}");
    assert_eq!(rows[1].as_ref().unwrap(), &(1, 10), "what lies behind can still be read");
    assert_eq!(snapshot.open_bytes_table("numbers")?.len()?, 2);
    Ok(())
}

#[test]
fn arguments_that_cannot_work_are_refused() -> Result<()> {
    let db = database();
    let tx = db.begin()?;
    let invalid = |error: crate::Error| {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        error.to_string()
    };
    for name in ["", &"n".repeat(256)] {
        invalid(tx.open_table(TableDef::<u8, u8>::new(name)).unwrap_err());
        invalid(tx.open_bytes_table(name).unwrap_err());
    }
    tx.open_table(TableDef::<u8, u8>::new(&"n".repeat(255)))?;
    let mut names = tx.open_table(NAMES)?;
    let longest = "k".repeat(names.max_key_bytes());
    let longer = "k".repeat(names.max_key_bytes() + 1);
    names.insert(&longest, "v")?;
    for message in [
        invalid(names.insert(&longer, "v").unwrap_err()),
        invalid(names.put(&longer, "v").unwrap_err()),
        invalid(names.insert_from(&longer, &b"v"[..]).unwrap_err()),
        invalid(names.entry(&longer).unwrap_err()),
    ] {
        assert!(message.contains(&format!("at most {} bytes", longest.len())), "{message}");
    }
    // What cannot be stored is not there.
    assert_eq!(names.get(&longer)?, None);
    assert_eq!(names.remove(&longer)?, None);
    names.delete(&longer)?;
    assert_eq!(names.range(longest.as_str()..longer.as_str())?.count(), 1);
    invalid(names.range("b".."a").unwrap_err());
    invalid(names.extract_if("b".."a", |_, _| true).unwrap_err());
    assert_eq!(names.range("b".."b")?.count(), 0);
    assert_eq!(names.range((Bound::Excluded("b"), Bound::Excluded("b")))?.count(), 0);
    assert_eq!(names.len()?, 1);
    Ok(())
}

#[test]
fn a_range_sees_its_own_transactions_writes_ahead_of_it() -> Result<()> {
    let db = database();
    let tx = db.begin()?;
    let mut table = tx.open_table(NUMBERS)?;
    numbers(&mut table, (0..1000).step_by(2));
    let mut seen = Vec::new();
    for row in table.range(..1000)? {
        let (key, value) = row?;
        seen.push(key);
        table.delete(key)?;
        if key % 4 == 0 {
            table.put(key + 1, value)?; // ahead
            table.put(key.saturating_sub(1), value)?; // behind, or the same
        }
    }
    let expected = (0..1000).filter(|key| key % 4 != 3).collect::<Vec<_>>();
    assert_eq!(seen, expected);
    assert_eq!(table.len()?, 250, "those that were written behind");
    let mut both = table.iter()?;
    let (mut front, mut back) = (Vec::new(), Vec::new());
    while let Some(row) = both.next() {
        front.push(row?.0);
        back.extend(both.next_back().map(|row| row.unwrap().0));
    }
    front.extend(back.into_iter().rev());
    assert_eq!(front, keys(table.iter()?));
    assert!(both.next().is_none() && both.next_back().is_none());
    Ok(())
}

#[test]
fn entries_work_like_those_of_a_map() -> Result<()> {
    let db = database();
    let tx = db.begin()?;
    let mut table = tx.open_table(NUMBERS)?;
    assert_eq!(table.entry(1)?.or_insert(5)?, 5);
    assert_eq!(table.entry(1)?.or_insert(6)?, 5);
    assert_eq!(table.entry(1)?.and_modify(|value| *value += 1)?.or_insert(0)?, 6);
    assert_eq!(table.entry(2)?.and_modify(|value| *value += 1)?.or_default()?, 0);
    assert_eq!(table.entry(3)?.or_insert_with(|| 7)?, 7);
    assert_eq!(table.entry(4)?.or_insert_with_key(|key| u64::from(*key) * 2)?, 8);
    assert_eq!(table.entry(4)?.or_insert_with(|| unreachable!("there is a value"))?, 8);
    match table.entry(4)? {
        Entry::Occupied(entry) => {
            assert_eq!((entry.key(), entry.get()), (&4, &8));
            assert_eq!(entry.insert(9)?, 8);
        }
        Entry::Vacant(_) => panic!("it is there"),
    }
    match table.entry(4)? {
        Entry::Occupied(entry) => assert_eq!(entry.remove_entry()?, (4, 9)),
        Entry::Vacant(_) => panic!("it is still there"),
    }
    match table.entry(4)? {
        Entry::Vacant(entry) => {
            assert_eq!(entry.key(), &4);
            entry.insert(1)?;
        }
        Entry::Occupied(_) => panic!("it was removed"),
    }
    assert_eq!(table.entry(9)?.key(), &9);
    let rows: Vec<_> = table.iter()?.collect::<Result<_>>()?;
    assert_eq!(rows, [(1, 6), (2, 0), (3, 7), (4, 1)]);
    Ok(())
}

#[test]
fn extracting_removes_as_far_as_it_is_advanced() -> Result<()> {
    let db = database();
    let tx = db.begin()?;
    let mut table = tx.open_table(NUMBERS)?;
    numbers(&mut table, 0..500);
    let mut odd = table.extract_if(100..400, |key, value| {
        assert_eq!(u64::from(*key) * 10, *value);
        key % 2 == 1
    })?;
    assert_eq!(odd.next().unwrap()?, (101, 1010));
    assert_eq!(odd.next_back().unwrap()?, (399, 3990));
    assert_eq!(odd.next().unwrap()?, (103, 1030));
    drop(odd);
    assert_eq!(table.len()?, 497);
    table.retain(|key, _| key % 5 == 0)?;
    assert_eq!(table.len()?, 100);
    assert_eq!(table.pop_first()?, Some((0, 0)));
    assert_eq!(table.pop_last()?, Some((495, 4950)));
    assert_eq!(table.get_for_update(5)?, Some(50));
    numbers(&mut table, 0..1000);
    table.clear()?;
    assert!(table.is_empty()?);
    assert_eq!(table.pop_first()?, None);
    assert_eq!(table.first()?, None);
    Ok(())
}

fn assert_sound(db: &Database) {
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(report.findings, []);
}

#[test]
fn handles_that_outlive_a_rollback_to_a_savepoint_count_right() -> Result<()> {
    let db = database();
    let tx = db.begin()?;
    numbers(&mut tx.open_table(NUMBERS)?, 0..10);
    tx.commit()?;

    // Dropped, and back again.
    let tx = db.begin()?;
    let mut table = tx.open_table(NUMBERS)?;
    numbers(&mut table, 10..12);
    let savepoint = tx.savepoint()?;
    table.delete(0)?;
    tx.drop_table("numbers")?;
    for result in [table.put(1, 1), table.delete(1), table.insert(1, 1).map(|_| ())] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::NotFound, "it would be lost");
    }
    // Another table of that name, which goes again.
    let mut other = tx.open_table(NUMBERS)?;
    other.put(1, 1)?;
    tx.rollback_to(savepoint)?;
    assert_eq!(other.put(2, 2).unwrap_err().kind(), ErrorKind::NotFound);
    numbers(&mut table, 12..14);
    assert_eq!(table.len()?, 14);
    let mut again = tx.open_table(NUMBERS)?;
    numbers(&mut again, 14..15);
    assert_eq!((table.len()?, again.len()?), (15, 15));
    tx.rollback_to(savepoint)?;
    numbers(&mut again, 20..21);
    tx.commit()?;
    assert_eq!(db.snapshot()?.open_table(NUMBERS)?.len()?, 13);
    assert_sound(&db);

    // Renamed, and back again; and the other way about.
    let tx = db.begin()?;
    let mut table = tx.open_table(NUMBERS)?;
    let savepoint = tx.savepoint()?;
    tx.rename_table("numbers", "renamed")?;
    numbers(&mut table, 30..32);
    numbers(&mut tx.open_table(RENAMED)?, 32..34);
    assert_eq!(table.len()?, 17);
    tx.rollback_to(savepoint)?;
    numbers(&mut table, 40..41);
    numbers(&mut tx.open_table(NUMBERS)?, 41..42);
    tx.rename_table("numbers", "renamed")?;
    numbers(&mut table, 42..43);
    assert_eq!(tx.open_table(RENAMED)?.len()?, 16);
    tx.commit()?;
    assert_eq!(db.snapshot()?.open_table(RENAMED)?.len()?, 16);
    assert_sound(&db);

    // Opened for the first time after the savepoint, and dropped.
    let tx = db.begin()?;
    let savepoint = tx.savepoint()?;
    let mut table = tx.open_table(RENAMED)?;
    table.delete(1)?;
    tx.drop_table("renamed")?;
    tx.rollback_to(savepoint)?;
    numbers(&mut table, 50..51);
    tx.commit()?;
    assert_eq!(db.snapshot()?.open_table(RENAMED)?.len()?, 17);
    assert_sound(&db);
    Ok(())
}

#[test]
fn a_table_made_and_taken_back_leaves_no_file() -> Result<()> {
    let storage = SimStorage::new(6);
    let db = open(&storage);
    let files = storage.files().len();
    let tx = db.begin()?;
    let savepoint = tx.savepoint()?;
    numbers(&mut tx.open_table(NUMBERS)?, 0..10);
    assert!(storage.files().len() > files);
    tx.rollback_to(savepoint)?;
    tx.commit()?;
    assert_eq!(storage.files().len(), files);
    assert_sound(&db);
    Ok(())
}

#[test]
fn a_row_that_cannot_be_decoded_is_neither_replaced_nor_removed() -> Result<()> {
    let db = database();
    let tx = db.begin()?;
    numbers(&mut tx.open_table(NUMBERS)?, [1, 3]);
    let long = vec![9; 10_000];
    let mut bytes = tx.open_bytes_table("numbers")?;
    bytes.put(&2_u32.to_be_bytes(), b"bad")?;
    bytes.put(&4_u32.to_be_bytes(), &long)?;
    let mut table = tx.open_table(NUMBERS)?;
    for key in [2, 4] {
        assert_eq!(table.remove(key).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(table.insert(key, 7).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(table.len()?, 4);
    }
    tx.commit()?;
    let snapshot = db.snapshot()?;
    let bytes = snapshot.open_bytes_table("numbers")?;
    assert_eq!(bytes.get(&2_u32.to_be_bytes())?.unwrap(), b"bad");
    assert_eq!(bytes.get(&4_u32.to_be_bytes())?.unwrap(), long);
    assert_eq!(bytes.len()?, 4);
    drop(snapshot);
    assert_sound(&db);
    let tx = db.begin()?;
    let mut table = tx.open_table(NUMBERS)?;
    table.put(2, 5)?;
    table.delete(4)?;
    assert_eq!(table.remove(2)?, Some(5));
    tx.commit()?;
    assert_sound(&db);
    Ok(())
}

/// A source that fails behind so many bytes.
struct Failing(u64);

impl io::Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::Error::other("the source is gone"));
        }
        let read = io::repeat(7).take(self.0).read(buffer)?;
        self.0 -= read as u64;
        Ok(read)
    }
}

#[test]
fn long_values_are_streamed_replaced_and_rolled_back() -> Result<()> {
    const LEN: u64 = 5 << 20;
    let storage = SimStorage::new(3);
    let db = open(&storage);
    let tx = db.begin()?;
    let mut table = tx.open_table(BLOBS)?;
    assert_eq!(table.insert_from("a", io::repeat(1).take(LEN))?, LEN);
    assert_eq!(table.insert_from("b", &b"short"[..])?, 5);
    assert_eq!(table.insert_from("c", io::empty())?, 0);
    tx.commit()?;

    let tx = db.begin()?;
    let mut table = tx.open_table(BLOBS)?;
    let error = table.insert_from("a", Failing(1 << 20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert_eq!(table.reader("a")?.unwrap().len(), LEN, "the row is as it was");
    let savepoint = tx.savepoint()?;
    assert_eq!(table.insert("a", &vec![2; 100_000])?.unwrap().len() as u64, LEN);
    assert_eq!(table.get("a")?.unwrap(), vec![2; 100_000]);
    tx.rollback_to(savepoint)?;
    let mut reader = table.reader("a")?.unwrap();
    reader.seek(SeekFrom::End(-3)).unwrap();
    let mut end = Vec::new();
    reader.read_to_end(&mut end).unwrap();
    assert_eq!(end, [1; 3]);
    assert_eq!(table.remove("a")?.unwrap().len() as u64, LEN);
    assert!(table.reader("a")?.is_none());
    drop(tx);

    let db = open(&{
        drop(db);
        storage.crash(CrashMode::Any, 9)
    });
    let snapshot = db.snapshot()?;
    let table = snapshot.open_table(BLOBS)?;
    let mut sum = 0;
    for byte in io::BufReader::new(table.reader("a")?.unwrap()).bytes() {
        sum += u64::from(byte.unwrap());
    }
    assert_eq!(sum, LEN);
    assert_eq!(table.get("b")?.unwrap(), b"short");
    assert_eq!(table.get("c")?.unwrap(), b"");
    Ok(())
}

#[test]
fn freed_long_values_make_room_for_new_ones() -> Result<()> {
    let storage = SimStorage::new(4);
    let db = open(&storage);
    let file_bytes = || db.tables().unwrap()[0].file_bytes;
    let mut first = 0;
    for round in 0..12 {
        let tx = db.begin()?;
        tx.open_table(BLOBS)?.put("a", &vec![round; 3 << 20])?;
        tx.commit()?;
        while db.maintain()? {}
        first = if round == 1 { file_bytes() } else { first };
    }
    assert!(file_bytes() < first * 2, "{first} bytes after two rounds, {} after twelve", file_bytes());
    Ok(())
}

/// What can be done to a table and to a map alike.
#[derive(Clone, Debug)]
enum Step {
    Insert(u32, u64),
    Put(u32, u64),
    Remove(u32),
    Delete(u32),
    Get(u32),
    PopFirst,
    PopLast,
    Range(Bound<u32>, Bound<u32>),
    Retain(u64),
    Extract(u32, u32, u64),
    Modify(u32, u64),
    Commit,
    RollBack,
    SavepointAndBack(Vec<(u32, u64)>),
    Reopen,
}

fn bound() -> impl Strategy<Value = Bound<u32>> {
    prop_oneof![
        (0..300u32).prop_map(Bound::Included),
        (0..300u32).prop_map(Bound::Excluded),
        Just(Bound::Unbounded)
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..300u32;
    prop_oneof![
        6 => (key(), any::<u64>()).prop_map(|(k, v)| Step::Insert(k, v)),
        6 => (key(), any::<u64>()).prop_map(|(k, v)| Step::Put(k, v)),
        2 => key().prop_map(Step::Remove),
        2 => key().prop_map(Step::Delete),
        2 => key().prop_map(Step::Get),
        1 => Just(Step::PopFirst),
        1 => Just(Step::PopLast),
        3 => (bound(), bound()).prop_map(|(a, b)| Step::Range(a, b)),
        1 => (2..9u64).prop_map(Step::Retain),
        1 => (key(), key(), 2..9u64).prop_map(|(a, b, m)| Step::Extract(a.min(b), a.max(b), m)),
        2 => (key(), any::<u64>()).prop_map(|(k, v)| Step::Modify(k, v)),
        2 => Just(Step::Commit),
        1 => Just(Step::RollBack),
        1 => vec((key(), any::<u64>()), 0..9).prop_map(Step::SavepointAndBack),
        1 => Just(Step::Reopen),
    ]
}

/// Where `BTreeMap::range` panics, a table's range is empty or refused.
fn is_range(lower: Bound<u32>, upper: Bound<u32>) -> bool {
    match (lower, upper) {
        (Bound::Excluded(a), Bound::Excluded(b)) => a < b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => a <= b,
        _ => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_table_does_what_a_map_does(steps in vec(step(), 1..150)) {
        let mut storage = SimStorage::new(5);
        let mut db = open(&storage);
        let mut committed = BTreeMap::new();
        let mut map = BTreeMap::new();
        let mut tx = db.begin().unwrap();
        for step in steps {
            let mut table = tx.open_table(NUMBERS).unwrap();
            match step {
                Step::Insert(k, v) => prop_assert_eq!(table.insert(k, v).unwrap(), map.insert(k, v)),
                Step::Put(k, v) => {
                    table.put(k, v).unwrap();
                    map.insert(k, v);
                }
                Step::Remove(k) => prop_assert_eq!(table.remove(k).unwrap(), map.remove(&k)),
                Step::Delete(k) => {
                    table.delete(k).unwrap();
                    map.remove(&k);
                }
                Step::Get(k) => prop_assert_eq!(table.get(k).unwrap(), map.get(&k).copied()),
                Step::PopFirst => prop_assert_eq!(table.pop_first().unwrap(), map.pop_first()),
                Step::PopLast => prop_assert_eq!(table.pop_last().unwrap(), map.pop_last()),
                Step::Range(lower, upper) if is_range(lower, upper) => {
                    let expected: Vec<_> = map.range((lower, upper)).map(|(k, v)| (*k, *v)).collect();
                    let rows = table.range((lower, upper)).unwrap();
                    prop_assert_eq!(rows.collect::<Result<Vec<_>>>().unwrap(), expected.clone());
                    let rows = table.range((lower, upper)).unwrap().rev();
                    prop_assert!(rows.map(Result::unwrap).eq(expected.into_iter().rev()));
                }
                Step::Range(lower, upper) => match table.range((lower, upper)) {
                    Ok(mut rows) => prop_assert!(rows.next().is_none()),
                    Err(error) => prop_assert_eq!(error.kind(), ErrorKind::InvalidArgument),
                },
                Step::Retain(m) => {
                    table.retain(|_, v| v % m != 0).unwrap();
                    map.retain(|_, v| *v % m != 0);
                }
                Step::Extract(from, to, m) => {
                    let rows = table.extract_if(from..to, |_, v| v % m == 0).unwrap();
                    let rows = rows.collect::<Result<Vec<_>>>().unwrap();
                    let expected: Vec<_> = map.extract_if(from..to, |_, v| *v % m == 0).collect();
                    prop_assert_eq!(rows, expected);
                }
                Step::Modify(k, v) => {
                    let now = table.entry(k).unwrap().and_modify(|old| *old ^= v).unwrap().or_insert(v).unwrap();
                    prop_assert_eq!(now, *map.entry(k).and_modify(|old| *old ^= v).or_insert(v));
                }
                Step::SavepointAndBack(writes) => {
                    let savepoint = tx.savepoint().unwrap();
                    for (k, v) in writes {
                        if v % 3 == 0 { table.delete(k).unwrap() } else { table.put(k, v).unwrap() }
                    }
                    tx.rollback_to(savepoint).unwrap();
                }
                Step::Commit => {
                    tx.commit().unwrap();
                    committed.clone_from(&map);
                    tx = db.begin().unwrap();
                }
                Step::RollBack => {
                    drop(tx);
                    map.clone_from(&committed);
                    tx = db.begin().unwrap();
                }
                Step::Reopen => {
                    // A crash under an open transaction, and recovery.
                    let image = storage.crash(CrashMode::Any, 6);
                    drop(tx);
                    drop(db);
                    storage = image;
                    map.clone_from(&committed);
                    db = open(&storage);
                    tx = db.begin().unwrap();
                }
            }
            let table = tx.open_table(NUMBERS).unwrap();
            prop_assert_eq!(table.len().unwrap(), map.len() as u64);
        }
        let table = tx.open_table(NUMBERS).unwrap();
        let rows = table.iter().unwrap().collect::<Result<Vec<_>>>().unwrap();
        prop_assert!(rows.into_iter().eq(map));
    }
}
