//! Rows of the catalog: their bytes, and those that no table can have.

use std::sync::Arc;

use hamal_storage::Storage;
use hamal_storage::sim::SimStorage;

use super::*;
use crate::journal::Author;
use crate::tree::Decision;
use crate::{Database, Maintenance, Options};

fn open(disk: &SimStorage) -> Database {
    Options::new().maintenance(Maintenance::Manual).open_on(Arc::new(disk.clone())).unwrap()
}

#[test]
fn a_row_that_no_table_can_have_is_corrupt() {
    let table = |id, partition| TableRow {
        id,
        partition: PartitionId(partition),
        key_type: "str".to_owned(),
        value_type: "u64".to_owned(),
    };
    let decode =
        |value: &[u8], overflow| TableRow::of(Row { stamp: TxnId(1), ghost: false, overflow, value });
    for (id, partition) in [(1, 1), (7, 9), (u32::MAX - 1, u32::MAX - 1)] {
        assert_eq!(decode(&table(id, partition).encode(), false).unwrap(), table(id, partition));
    }
    let good = table(1, 1).encode();
    let corrupt = |result: Result<TableRow>| {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Corrupt);
    };
    for (id, partition) in [(1, 0), (0, 1), (1, u32::MAX), (u32::MAX, 1)] {
        corrupt(decode(&table(id, partition).encode(), false));
    }
    corrupt(decode(&good, true));
    corrupt(decode(&[&good[..], &[0]].concat(), false));
    corrupt(decode(&good[..good.len() - 1], false));
}

/// Writes a row of the catalog, whatever it says.
fn plant(db: &Database, key: &[u8], value: &[u8]) {
    let engine = &db.handle.engine;
    let catalog = engine.partition(CATALOG).unwrap().tree();
    let row = Row { stamp: TxnId(1), ghost: false, overflow: false, value };
    let write = &mut |_: Option<Row<'_>>| Ok(Decision::Write(row));
    catalog.update(&engine.journal, Author::System, key, value.len(), write).unwrap();
    engine.schema.forget();
}

#[test]
fn two_tables_of_one_partition_are_corrupt() {
    let db = open(&SimStorage::new(1));
    db.transact(|tx| tx.open_bytes_table("a")?.put(b"k", b"v")).unwrap();
    let catalog = db.handle.engine.partition(CATALOG).unwrap().tree();
    let row = find_row(&catalog, b"a");
    for (id, partition) in [(row.id + 1, row.partition), (row.id, PartitionId(row.partition.0 + 1))] {
        plant(&db, b"b", &TableRow { id, partition, ..row.clone() }.encode());
        let error = db.tables().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("row of table \"b\""), "{error}");
    }
    // Opening one of them looks at its row alone, and finds the partition taken.
    plant(&db, b"b", &TableRow { id: row.id + 1, ..row }.encode());
    let snapshot = db.snapshot().unwrap();
    snapshot.open_bytes_table("a").unwrap();
    let error = snapshot.open_bytes_table("b").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("belongs to table 1 and to table 2"), "{error}");
}

#[test]
fn the_bytes_of_a_table_and_its_cuts_are_those_of_the_format() {
    let db = open(&SimStorage::new(1));
    let splits: [&[u8]; 2] = [b"m", b"b\xff"];
    db.transact(|tx| tx.create_bytes_table("t", &splits).map(drop)).unwrap();
    let catalog = db.handle.engine.partition(CATALOG).unwrap().tree();
    let mut rows = Vec::new();
    each_row(&catalog, None, &[], None, &mut |key, row| {
        rows.push((key.to_vec(), row.value.to_vec()));
        Ok(())
    })
    .unwrap();
    let expected: [(&[u8], &[u8]); 3] = [
        (b"t", b"\x01\0\0\0\x01\0\0\0\x05\0bytes\x05\0bytes"),
        (b"\xff\0\0\0\x01b\xff", b"\x02\0\0\0"),
        (b"\xff\0\0\0\x01m", b"\x03\0\0\0"),
    ];
    assert_eq!(rows.len(), expected.len());
    for ((key, value), (expected_key, expected_value)) in rows.iter().zip(expected) {
        assert_eq!((&**key, &**value), (expected_key, expected_value), "{}", key.escape_ascii());
    }
}

#[test]
fn a_partition_is_named_by_the_rows_of_a_table_that_is_being_made() {
    let db = open(&SimStorage::new(1));
    db.transact(|tx| tx.open_bytes_table("t").map(drop)).unwrap();
    let catalog = db.handle.engine.partition(CATALOG).unwrap().tree();
    plant(&db, &Cut::key(7, b"m"), &[9, 0, 0, 0]);
    assert!(db.tables().is_err(), "the cut comes before its table");
    let named = |id| is_named(&catalog, PartitionId(id)).unwrap();
    assert!(named(0) && named(1) && named(9) && !named(7) && !named(8));
}

#[test]
fn a_cut_that_no_table_can_have_is_corrupt() {
    let good = [2, 0, 0, 0];
    let cases: [(&[u8], &[u8], &str); 7] = [
        (b"\xff\0\0\0\x07m", &[9, 0, 0, 0], "belongs to table 7, which is not there"),
        (b"\xff\0\0\0\x01z", &good, "partition 2 is there twice"),
        (b"\xff\0\0\0\x01z", &[1, 0, 0, 0], "partition 1 is there twice"),
        (b"\xff\0\0\0\x01", &[9, 0, 0, 0], "begins at \"\""),
        (b"\xff\0\0\0\x01z", &[0, 0, 0, 0], "no partition 0 begins"),
        (b"\xff\0\0\0\x01z", &[9, 0, 0, 0, 0], "1 bytes follow the partition"),
        (b"\xff\0\0\0", &good, "neither a name nor a lower bound"),
    ];
    for (key, value, what) in cases {
        let db = open(&SimStorage::new(1));
        db.transact(|tx| tx.create_bytes_table("t", &[b"m"]).map(drop)).unwrap();
        plant(&db, key, value);
        let error = db.tables().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains(what), "expected {what:?} in {error}");
    }
}

#[test]
fn a_table_need_not_have_the_number_of_its_first_partition() {
    let disk = SimStorage::new(1);
    let db = open(&disk);
    db.transact(|tx| tx.open_bytes_table("t")?.put(b"k", b"v")).unwrap();
    db.transact(|tx| tx.open_bytes_table("u")?.put(b"k", b"w")).unwrap();
    let catalog = db.handle.engine.partition(CATALOG).unwrap().tree();
    // The two exchange their files: the numbers of the tables stay.
    let (t, u) = (find_row(&catalog, b"t"), find_row(&catalog, b"u"));
    plant(&db, b"t", &TableRow { partition: u.partition, ..t.clone() }.encode());
    plant(&db, b"u", &TableRow { partition: t.partition, ..u }.encode());
    db.close().unwrap();
    let db = open(&disk);
    let value = |name: &str| db.snapshot().unwrap().open_bytes_table(name).unwrap().get(b"k").unwrap();
    assert_eq!((value("t").unwrap(), value("u").unwrap()), (b"w".to_vec(), b"v".to_vec()));
    db.transact(|tx| tx.open_bytes_table("t")?.put(b"l", b"x")).unwrap();
    db.transact(|tx| tx.drop_table("u")).unwrap();
    db.maintain().unwrap();
    let report = db.verify(&mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    db.close().unwrap();
    let db = open(&disk);
    assert_eq!(db.tables().unwrap().iter().map(|t| t.rows).collect::<Vec<_>>(), [2]);
    assert!(!disk.exists(&format!("part/{}.dat", t.partition)).unwrap(), "the file that table u had");
}

fn find_row(catalog: &crate::tree::Tree, name: &[u8]) -> TableRow {
    catalog.get(name, TableRow::of).unwrap().unwrap().unwrap()
}

#[test]
fn only_our_own_spelling_of_a_number_names_a_partition() {
    for (name, id) in [("7.dat", Some(7)), ("0.dat", Some(0)), ("4294967294.dat", Some(u32::MAX - 1))] {
        assert_eq!(partition_of(name), id.map(PartitionId), "{name}");
    }
    let others = ["+7.dat", "007.dat", "4294967295.dat", "4294967296.dat", ".dat", "7", "7.tmp", "-0.dat"];
    for name in others {
        assert_eq!(partition_of(name), None, "{name}");
    }
    // A stranger's file stays, and is nobody's.
    let disk = SimStorage::new(2);
    open(&disk).close().unwrap();
    for name in others {
        disk.create(&format!("part/{name}")).unwrap();
    }
    let db = open(&disk);
    db.transact(|tx| tx.open_bytes_table("a")?.put(b"k", b"v")).unwrap();
    db.close().unwrap();
    assert_eq!(open(&disk).tables().unwrap().len(), 1);
    assert!(others.iter().all(|name| disk.exists(&format!("part/{name}")).unwrap()));
}
