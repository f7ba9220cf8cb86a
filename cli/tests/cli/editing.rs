//! `get`, `put`, `del`, `rename`, `drop`, and typed tables.

use hamal::{Database, TableDef};
use serde_json::json;

use super::support::Place;

#[test]
fn a_value_is_put_read_replaced_and_removed() {
    let place = Place::new();
    assert_eq!(place.hamal(&["put", "db", "-t", "t", "k", "one"]).text(), "inserted\n");
    assert_eq!(place.hamal(&["put", "db", "-t", "t", "k", "two\nlines"]).text(), "replaced\n");
    assert_eq!(place.hamal(&["get", "db", "-t", "t", "k"]).text(), "two\nlines\n");
    assert_eq!(
        place.hamal(&["get", "db", "-t", "t", "k", "--json"]).json(),
        json!({ "key": "k", "value": "two\nlines" })
    );
    assert_eq!(place.hamal(&["del", "db", "-t", "t", "k"]).text(), "1 row removed\n");
    assert_eq!(place.hamal(&["get", "db", "-t", "t", "k"]).failure(1), "there is no key k in table \"t\"");
}

#[test]
fn removing_is_all_or_nothing() {
    let place = Place::new();
    place.hamal(&["put", "db", "-t", "t", "a", "1"]).text();
    place.hamal(&["put", "db", "-t", "t", "b", "2"]).text();
    let failure = place.hamal(&["del", "db", "-t", "t", "a", "x", "b"]).failure(1);
    assert_eq!(failure, "there is no key x in table \"t\"; nothing was removed");
    assert_eq!(place.hamal(&["scan", "db", "-t", "t"]).text(), "a  1\nb  2\n");
    assert_eq!(place.hamal(&["del", "db", "-t", "t", "a", "b", "--json"]).json(), json!({ "removed": 2 }));
    assert_eq!(place.hamal(&["scan", "db", "-t", "t"]).text(), "");
}

#[test]
fn keys_can_be_given_in_hexadecimal_or_escaped() {
    let place = Place::new();
    place.hamal(&["put", "db", "-t", "t", "--hex", "00ff", "0a"]).text();
    assert_eq!(place.hamal(&["get", "db", "-t", "t", "--escaped", "\\x00\\xff", "--raw"]).bytes(), b"\n");
    assert_eq!(place.hamal(&["scan", "db", "-t", "t"]).text(), "\\x00\\xff  \\n\n");
    assert_eq!(
        place.hamal(&["scan", "db", "-t", "t", "--json"]).json(),
        json!({ "key_hex": "00ff", "value": "\n" })
    );
    assert_eq!(
        place.hamal(&["get", "db", "-t", "t", "--hex", "0"]).failure(2),
        "the key: an odd number of hexadecimal digits"
    );
    assert!(
        place
            .hamal(&["get", "db", "-t", "t", "--escaped", "\\q"])
            .failure(2)
            .starts_with("the key: \\q is no escape")
    );
}

#[test]
fn a_large_value_is_streamed_in_and_out() {
    let place = Place::new();
    let value: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let put = place
        .hamal_fed(&["put", "db", "-t", "t", "big", "--file", "-", "--cache", "2M", "--json"], &value)
        .json();
    assert_eq!(put, json!({ "replaced": false, "value_bytes": 3_000_000 }));
    assert_eq!(place.hamal(&["get", "db", "-t", "t", "big", "--raw", "--cache", "2M"]).bytes(), value);
    assert_eq!(place.hamal(&["check", "db", "--json"]).json()["overflow_values"], 1);
}

#[test]
fn tables_are_renamed_and_dropped() {
    let place = Place::new();
    place.hamal(&["put", "db", "-t", "one", "k", "v"]).text();
    place.hamal(&["put", "db", "-t", "two", "k", "v"]).text();
    assert!(!place.hamal(&["rename", "db", "-t", "one", "--to", "two"]).failure(2).is_empty());
    place.hamal(&["rename", "db", "-t", "one", "--to", "three"]).text();
    assert_eq!(place.hamal(&["drop", "db", "-t", "two"]).text(), "\"two\" dropped, 1 row\n");
    let names: Vec<_> = place.hamal(&["tables", "db", "--json"]).json_lines();
    assert_eq!(names.len(), 1);
    assert_eq!(names[0]["name"], "three");
    assert_eq!(place.hamal(&["drop", "db", "-t", "two"]).failure(2), "there is no table \"two\"");
}

#[test]
fn an_applications_types_are_shown_and_taken() {
    const BALANCES: TableDef<'_, (&str, u32), i64> = TableDef::new("balances");
    let place = Place::new();
    {
        let db = Database::open(place.path("db")).unwrap();
        db.transact(|tx| {
            let mut table = tx.open_table(BALANCES)?;
            table.put(("bob", 2), -5)?;
            table.put(("alice", 1), 7)
        })
        .unwrap();
        db.close().unwrap();
    }
    assert_eq!(
        place.hamal(&["scan", "db", "-t", "balances"]).text(),
        "[\"alice\",1]  7\n[\"bob\",2]    -5\n"
    );
    assert_eq!(place.hamal(&["put", "db", "-t", "balances", "[\"bob\",2]", "11"]).text(), "replaced\n");
    assert_eq!(
        place.hamal(&["get", "db", "-t", "balances", "[\"bob\", 2]", "--json"]).json(),
        json!({ "key": ["bob", 2], "value": 11 })
    );
    assert_eq!(
        place.hamal(&["put", "db", "-t", "balances", "[\"bob\",2]", "x"]).failure(2),
        "the value: \"x\" is no i64"
    );
    place.write("more.csv", "who,cents\n\"[\"\"eve\"\",3]\",9\n");
    place.hamal(&["load", "db", "more.csv", "-t", "balances", "--plain"]).text();
    assert!(place.hamal(&["load", "db", "more.csv", "-t", "balances"]).failure(2).contains("--plain"));
    let db = Database::open(place.path("db")).unwrap();
    let snapshot = db.snapshot().unwrap();
    let table = snapshot.open_table(BALANCES).unwrap();
    assert_eq!(table.get(("eve", 3)).unwrap(), Some(9));
    assert_eq!(table.len().unwrap(), 3);
}
