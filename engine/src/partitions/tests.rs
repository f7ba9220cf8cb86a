//! Tables that are cut into partitions, against `BTreeMap`, and through crashes.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use hamal_storage::Storage;
use hamal_storage::sim::{CrashMode, SimStorage};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use crate::catalog::CATALOG;
use crate::{Database, ErrorKind, Maintenance, Options, Table, TableDef, Transaction};

type Bytes<'t> = Table<'t, &'static [u8], &'static [u8]>;
type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

fn open(disk: &SimStorage) -> Database {
    let options = Options::new().page_bytes(4096).cache_bytes(1 << 20).maintenance(Maintenance::Manual);
    options.open_on(Arc::new(disk.clone())).unwrap()
}

fn check(db: &Database) {
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

fn create(db: &Database, name: &str, splits: &[&[u8]]) {
    db.transact(|tx| tx.create_bytes_table(name, splits).map(drop)).unwrap();
}

/// All rows, both ways, which must agree with each other and the count.
fn rows(db: &Database, name: &str) -> Rows {
    let snapshot = db.snapshot().unwrap();
    let table = snapshot.open_bytes_table(name).unwrap();
    let forward: Vec<_> = table.iter().unwrap().map(Result::unwrap).collect();
    let mut backward: Vec<_> = table.iter().unwrap().rev().map(Result::unwrap).collect();
    backward.reverse();
    assert_eq!(forward, backward);
    assert!(forward.is_sorted_by(|a, b| a.0 < b.0));
    assert_eq!(table.len().unwrap(), forward.len() as u64);
    forward.into_iter().collect()
}

/// Partition files, the catalog's aside.
fn files(disk: &SimStorage) -> usize {
    disk.list("part").unwrap().iter().filter(|name| *name != "0.dat").count()
}

/// A chain for each partition that the transaction has written to, the catalog's aside.
fn chains(tx: &Transaction) -> usize {
    tx.chains().iter().filter(|partition| **partition != CATALOG).count()
}

#[derive(Clone, Debug)]
enum Act {
    Put(u8, u16),
    Delete(u8),
    PopFirst,
    PopLast,
    Retain(u8),
    Range(Bound<u8>, Bound<u8>, Vec<bool>),
    RollBackToHere(Vec<(u8, u16)>),
    Commit,
    Crash,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let bound = prop_oneof![
        Just(Bound::Unbounded),
        any::<u8>().prop_map(Bound::Included),
        any::<u8>().prop_map(Bound::Excluded)
    ];
    let act = prop_oneof![
        12 => (any::<u8>(), prop_oneof![9 => 0..200_u16, 1 => 2000..9000_u16]).prop_map(|(k, v)| Act::Put(k, v)),
        4 => any::<u8>().prop_map(Act::Delete),
        1 => Just(Act::PopFirst),
        1 => Just(Act::PopLast),
        1 => (2..5_u8).prop_map(Act::Retain),
        6 => (bound.clone(), bound, vec(any::<bool>(), 0..40)).prop_map(|(l, u, s)| Act::Range(l, u, s)),
        2 => vec((any::<u8>(), 0..300_u16), 0..20).prop_map(Act::RollBackToHere),
        2 => Just(Act::Commit),
        1 => Just(Act::Crash),
    ];
    vec(act, 1..60)
}

fn value(key: u8, len: u16) -> Vec<u8> {
    vec![key; len.into()]
}

fn act(table: &mut Bytes<'_>, model: &mut Rows, act: &Act) {
    let key = |k: u8| vec![k];
    match act {
        Act::Put(k, len) => {
            let old = table.insert(&key(*k), &value(*k, *len)).unwrap();
            assert_eq!(old, model.insert(key(*k), value(*k, *len)));
        }
        Act::Delete(k) => assert_eq!(table.remove(&key(*k)).unwrap(), model.remove(&key(*k))),
        Act::PopFirst => assert_eq!(table.pop_first().unwrap(), model.pop_first()),
        Act::PopLast => assert_eq!(table.pop_last().unwrap(), model.pop_last()),
        Act::Retain(of) => {
            table.retain(|k, _| k[0] % of != 0).unwrap();
            model.retain(|k, _| k[0] % of != 0);
        }
        Act::Range(lower, upper, sides) => {
            let bounds = (lower.map(key), upper.map(key));
            let slices = (bounds.0.as_ref().map(Vec::as_slice), bounds.1.as_ref().map(Vec::as_slice));
            let Ok(mut found) = table.range(slices) else { return };
            // A map does not take bounds that exclude their only key.
            if matches!(&bounds, (Bound::Excluded(lower), Bound::Excluded(upper)) if lower == upper) {
                assert!(found.next().is_none(), "{bounds:?}");
                return;
            }
            let mut expected = model.range(bounds);
            for front in sides {
                let (row, other) = if *front {
                    (found.next(), expected.next())
                } else {
                    (found.next_back(), expected.next_back())
                };
                assert_eq!(row.map(Result::unwrap), other.map(|(k, v)| (k.clone(), v.clone())));
            }
        }
        Act::RollBackToHere(_) | Act::Commit | Act::Crash => unreachable!("the transaction's"),
    }
    assert_eq!(table.len().unwrap(), model.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_table_that_is_cut_does_what_a_map_does(
        splits in btree_set(any::<u8>(), 0..8), acts in acts(), seed in any::<u64>()
    ) {
        let mut disk = SimStorage::new(seed);
        let mut db = open(&disk);
        let splits: Vec<[u8; 1]> = splits.into_iter().map(|split| [split]).collect();
        let splits: Vec<&[u8]> = splits.iter().map(|split| &split[..]).collect();
        create(&db, "t", &splits);
        prop_assert_eq!(db.tables().unwrap()[0].partitions.len(), splits.len() + 1);
        let (mut committed, mut model) = (Rows::new(), Rows::new());
        let mut tx = db.begin().unwrap();
        for step in &acts {
            match step {
                Act::Commit => {
                    tx.commit().unwrap();
                    committed.clone_from(&model);
                    prop_assert_eq!(&rows(&db, "t"), &committed);
                    tx = db.begin().unwrap();
                }
                Act::Crash => {
                    // What the transaction has done must be undone: let it be on the disk.
                    db.checkpoint().unwrap();
                    disk = disk.crash_image(CrashMode::KeepAll, seed);
                    std::mem::forget(tx);
                    db = open(&disk);
                    prop_assert_eq!(&rows(&db, "t"), &committed);
                    check(&db);
                    model.clone_from(&committed);
                    tx = db.begin().unwrap();
                }
                Act::RollBackToHere(writes) => {
                    let savepoint = tx.savepoint().unwrap();
                    let mut table = tx.open_bytes_table("t").unwrap();
                    for (k, len) in writes {
                        if len % 3 == 0 {
                            table.delete(&[*k]).unwrap();
                        } else {
                            table.put(&[*k], &value(*k, *len)).unwrap();
                        }
                    }
                    tx.rollback_to(savepoint).unwrap();
                    prop_assert_eq!(table.len().unwrap(), model.len() as u64);
                }
                step => act(&mut tx.open_bytes_table("t").unwrap(), &mut model, step),
            }
        }
        tx.rollback().unwrap();
        while db.maintain().unwrap() {}
        prop_assert_eq!(&rows(&db, "t"), &committed);
        check(&db);
    }
}

#[test]
fn a_loser_is_undone_in_each_partition_it_has_written_to() {
    for kept in [CrashMode::KeepAll, CrashMode::LoseAll] {
        let disk = SimStorage::new(1);
        let db = open(&disk);
        create(&db, "t", &[b"b", b"c", b"d"]);
        db.transact(|tx| {
            let mut table = tx.open_bytes_table("t")?;
            ["a", "b", "c", "d"].iter().try_for_each(|key| table.put(key.as_bytes(), b"old"))
        })
        .unwrap();
        let expected = rows(&db, "t");
        let tx = db.begin().unwrap();
        let mut table = tx.open_bytes_table("t").unwrap();
        for (key, value) in [("a", "new"), ("c", "new"), ("c1", "new"), ("a", "newer"), ("d", "new")] {
            table.put(key.as_bytes(), value.as_bytes()).unwrap();
        }
        assert_eq!(chains(&tx), 3, "not in the partition from b on");
        db.checkpoint().unwrap();
        table.delete(b"c").unwrap();
        db.flush().unwrap();
        let image = disk.crash_image(kept, 1);
        let after = open(&image);
        let undone: Vec<u64> = after.recovery_report().partitions.iter().map(|p| p.undone).collect();
        assert_eq!(undone.iter().filter(|undone| **undone > 0).count(), 3, "{undone:?}");
        assert_eq!(undone.iter().sum::<u64>(), 6);
        assert_eq!(rows(&after, "t"), expected);
        check(&after);
        // Where it goes on living it is undone in the same way.
        tx.rollback().unwrap();
        assert_eq!(rows(&db, "t"), expected);
        check(&db);
    }
}

#[test]
fn a_scan_finds_its_way_past_partitions_that_are_empty() {
    let db = open(&SimStorage::new(1));
    create(&db, "t", &[b"b", b"c", b"d", b"e", b"f"]);
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        table.put(b"b5", b"1")?;
        table.put(b"e", b"2")
    })
    .unwrap();
    let snapshot = db.snapshot().unwrap();
    let table = snapshot.open_bytes_table("t").unwrap();
    let keys = |lower: Bound<&'static [u8]>, upper: Bound<&'static [u8]>| -> Vec<Vec<u8>> {
        let forward: Vec<_> = table.range((lower, upper)).unwrap().map(|row| row.unwrap().0).collect();
        let mut backward: Vec<_> =
            table.range((lower, upper)).unwrap().rev().map(|row| row.unwrap().0).collect();
        backward.reverse();
        assert_eq!(forward, backward);
        forward
    };
    assert_eq!(keys(Bound::Unbounded, Bound::Unbounded), [b"b5".to_vec(), b"e".to_vec()]);
    assert_eq!(keys(Bound::Included(b"c"), Bound::Included(b"e")), [b"e".to_vec()]);
    assert_eq!(keys(Bound::Included(b"b"), Bound::Excluded(b"e")), [b"b5".to_vec()]);
    assert_eq!(keys(Bound::Excluded(b"b5"), Bound::Excluded(b"e")), Vec::<Vec<u8>>::new());
    assert_eq!(keys(Bound::Excluded(b"e"), Bound::Unbounded), Vec::<Vec<u8>>::new());
    assert_eq!(table.first().unwrap().unwrap().0, b"b5");
    assert_eq!(table.last().unwrap().unwrap().0, b"e");
}

#[test]
fn long_values_lie_in_the_partition_of_their_key() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    create(&db, "t", &[b"m"]);
    let long = |byte: u8| vec![byte; 300_000];
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        table.put(b"a", &long(1))?;
        table.put(b"z", &long(2))?;
        table.insert_from(b"y", &long(3)[..]).map(drop)
    })
    .unwrap();
    let before = db.snapshot().unwrap();
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        assert_eq!(table.insert(b"z", &long(4))?.as_deref(), Some(&long(2)[..]));
        assert_eq!(table.get_for_update(b"y")?, Some(long(3)));
        table.delete(b"y")
    })
    .unwrap();
    let table = before.open_bytes_table("t").unwrap();
    assert_eq!(table.get(b"z").unwrap(), Some(long(2)));
    let mut streamed = Vec::new();
    table.reader(b"y").unwrap().unwrap().read_to_end(&mut streamed).unwrap();
    assert_eq!(streamed, long(3));
    drop(before);
    while db.maintain().unwrap() {}
    check(&db);
    let sizes: Vec<u64> = db.partitions().unwrap().iter().map(|p| p.bytes).collect();
    assert!(sizes[1] > 300_000 && sizes[2] > 900_000, "{sizes:?}");
    let db = open(&disk.crash_image(CrashMode::LoseAll, 1));
    assert_eq!(rows(&db, "t"), Rows::from([(b"a".to_vec(), long(1)), (b"z".to_vec(), long(4))]));
    check(&db);
}

#[test]
fn all_files_of_a_table_go_with_it_and_a_snapshot_keeps_them() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    create(&db, "t", &[b"b", b"c"]);
    create(&db, "u", &[b"m"]);
    db.transact(|tx| {
        let mut table = tx.open_bytes_table("t")?;
        table.put(b"a", b"1")?;
        table.put(b"c", b"2")
    })
    .unwrap();
    let before = db.snapshot().unwrap();
    assert_eq!(files(&disk), 5);
    // Taken back, nothing goes.
    let tx = db.begin().unwrap();
    let savepoint = tx.savepoint().unwrap();
    tx.drop_table("t").unwrap();
    tx.rollback_to(savepoint).unwrap();
    tx.open_bytes_table("t").unwrap().put(b"b", b"3").unwrap();
    tx.commit().unwrap();
    db.transact(|tx| tx.drop_table("t")).unwrap();
    assert_eq!(db.snapshot().unwrap().open_bytes_table("t").unwrap_err().kind(), ErrorKind::NotFound);
    // Opened only now, with all rows of the catalog gone from the view of others.
    let table = before.open_bytes_table("t").unwrap();
    let seen: Vec<_> = table.iter().unwrap().map(|row| row.unwrap().0).collect();
    assert_eq!(seen, [b"a".to_vec(), b"c".to_vec()]);
    assert_eq!(files(&disk), 5);
    // A crash here leaves the same.
    let image = disk.crash_image(CrashMode::KeepAll, 1);
    let after = open(&image);
    assert_eq!((files(&image), after.tables().unwrap().len()), (2, 1));
    assert_eq!(after.handle.engine.timeline.newest_counts(|| hamal_wal::Lsn::NEVER).0, []);
    drop(before);
    while db.maintain().unwrap() {}
    assert_eq!(files(&disk), 2);
    assert_eq!(db.handle.engine.timeline.newest_counts(|| hamal_wal::Lsn::NEVER).0, []);
    check(&db);
}

#[test]
fn a_creation_that_is_taken_back_leaves_no_file() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    let tx = db.begin().unwrap();
    let savepoint = tx.savepoint().unwrap();
    let mut table = tx.create_bytes_table("t", &[b"m"]).unwrap();
    table.put(b"z", b"1").unwrap();
    tx.rollback_to(savepoint).unwrap();
    assert_eq!(table.put(b"a", b"1").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!tx.has_table("t").unwrap());
    tx.create_bytes_table("t", &[b"c", b"x"]).unwrap().put(b"z", b"1").unwrap();
    db.flush().unwrap();
    let image = disk.crash_image(CrashMode::KeepAll, 1);
    open(&image).close().unwrap();
    assert_eq!(files(&image), 0);
    tx.commit().unwrap();
    while db.maintain().unwrap() {}
    assert_eq!(files(&disk), 3);
    assert_eq!(rows(&db, "t").len(), 1);
    check(&db);
}

#[test]
fn split_keys_that_cannot_be_are_refused_and_leave_nothing() {
    const NUMBERS: TableDef<u64, u64> = TableDef::new("numbers");
    let disk = SimStorage::new(1);
    let db = open(&disk);
    let long = vec![b'x'; 4096 / 4 - 64 - 4];
    let refused: [&[&[u8]]; 3] = [&[b""], &[b"a", b"b", b"a"], &[&long]];
    for splits in refused {
        let error = db.transact(|tx| tx.create_bytes_table("t", splits).map(drop)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    assert_eq!((files(&disk), db.tables().unwrap().len()), (0, 0));
    let longest = &long[1..];
    db.transact(|tx| tx.create_bytes_table("t", &[longest]).map(drop)).unwrap();
    let again = db.transact(|tx| tx.create_bytes_table("t", &[b"m"]).map(drop)).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    // In any order, and typed.
    db.transact(|tx| {
        let mut table = tx.create_table(NUMBERS, [300, 5])?;
        [1, 5, 299, 300].iter().try_for_each(|key| table.put(*key, *key))
    })
    .unwrap();
    let lowers: Vec<_> = db.partitions().unwrap().into_iter().skip(1).map(|p| p.lower).collect();
    assert_eq!(lowers[..3], [None, Some(5_u64.to_be_bytes().to_vec()), Some(300_u64.to_be_bytes().to_vec())]);
    check(&db);
}

#[test]
fn partitions_are_listed_with_their_bounds() {
    let db = open(&SimStorage::new(1));
    create(&db, "b", &[b"m", b"t"]);
    create(&db, "a", &[]);
    db.transact(|tx| tx.open_bytes_table("a")?.put(b"k", b"v")).unwrap();
    let partitions = db.partitions().unwrap();
    let told: Vec<_> = partitions
        .iter()
        .map(|p| (p.id, p.table.as_deref(), p.lower.as_deref(), p.upper.as_deref(), p.rows))
        .collect();
    let m: Option<&[u8]> = Some(b"m");
    let t: Option<&[u8]> = Some(b"t");
    assert_eq!(
        told,
        [
            (0, None, None, None, None),
            (4, Some("a"), None, None, Some(1)),
            (1, Some("b"), None, m, None),
            (2, Some("b"), m, t, None),
            (3, Some("b"), t, None, None),
        ]
    );
    for p in partitions {
        assert_eq!(p.file, format!("part/{}.dat", p.id));
        assert_eq!(p.bytes, u64::from(p.pages) * 4096);
        assert!(p.pages > 0);
        assert_eq!(p.state.to_string(), "online");
    }
}

#[test]
fn verification_finds_a_key_in_the_wrong_partition() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    create(&db, "t", &[b"m"]);
    db.transact(|tx| tx.open_bytes_table("t")?.put(b"a", b"1")).unwrap();
    check(&db);
    // The second partition is said to begin below the first one's only key.
    let engine = &db.handle.engine;
    let catalog = engine.partition(CATALOG).unwrap().tree();
    for (key, ghost) in [(&b"\xff\0\0\0\x01m"[..], true), (b"\xff\0\0\0\x01A", false)] {
        let row =
            crate::change::Row { stamp: crate::ids::TxnId(1), ghost, overflow: false, value: &[2, 0, 0, 0] };
        let write = &mut |_: Option<crate::change::Row<'_>>| Ok(crate::tree::Decision::Write(row));
        catalog.update(&engine.journal, crate::journal::Author::System, key, 4, write).unwrap();
    }
    let report = db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
    let [finding] = &report.findings[..] else { panic!("{:?}", report.findings) };
    assert_eq!(finding.file, "part/1.dat");
    assert!(
        finding.what.contains("from \"\" up to \"A\"") && finding.what.contains("\"a\""),
        "{}",
        finding.what
    );
}
