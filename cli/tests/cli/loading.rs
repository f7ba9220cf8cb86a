//! `load` and `dump`.

use hamal::{Database, TableDef};
use serde_json::json;

use super::support::Place;

const PEOPLE: &str = "email,name,age\na@x.org,Ada,36\nb@x.org,\"Bob, the\",\n";

#[test]
fn a_csv_file_is_loaded_and_dumped_as_it_was() {
    let place = Place::new();
    place.write("people.csv", PEOPLE);
    let loaded = place.hamal(&["load", "db", "people.csv", "--table", "people", "--json"]).json();
    assert_eq!(
        (&loaded["rows"], &loaded["replaced"], &loaded["table"]),
        (&json!(2), &json!(0), &json!("people"))
    );
    assert_eq!(place.hamal(&["dump", "db", "-t", "people", "--format", "csv"]).text(), PEOPLE);
    assert_eq!(
        place.hamal(&["get", "db", "-t", "people", "b@x.org"]).text(),
        "{\"email\":\"b@x.org\",\"name\":\"Bob, the\",\"age\":\"\"}\n"
    );
    let tables = place.hamal(&["tables", "db", "--json"]).json();
    assert_eq!(
        (&tables["key_type"], &tables["value_type"], &tables["rows"]),
        (&json!("str"), &json!("str"), &json!(2))
    );
}

#[test]
fn every_format_goes_through_a_file_and_back() {
    let place = Place::new();
    place.write("people.csv", PEOPLE);
    place.hamal(&["load", "db", "people.csv", "-t", "people", "--key", "name"]).text();
    for extension in ["csv", "tsv", "jsonl", "raw"] {
        let (file, table) = (format!("out.{extension}"), format!("copy-{extension}"));
        let mut dump = vec!["dump", "db", "-t", "people", "-o", &file];
        let mut load = vec!["load", "db", &file, "-t", &table];
        if extension != "raw" {
            dump.extend(["--key", "name"]);
            load.extend(["--key", "name"]);
        }
        place.hamal(&dump).text();
        place.hamal(&load).text();
        assert_eq!(
            place.hamal(&["dump", "db", "-t", &table]).text(),
            place.hamal(&["dump", "db", "-t", "people"]).text(),
            "{extension}"
        );
    }
    assert_eq!(place.read("out.csv").lines().next(), Some("email,name,age"));
    assert_eq!(place.names().iter().filter(|name| name.starts_with('.')).count(), 0, "{:?}", place.names());
}

#[test]
fn standard_input_and_output_are_files_too() {
    let place = Place::new();
    let rows = "{\"id\":\"a\",\"n\":1}\n{\"id\":\"b\",\"n\":[1, 2]}\n";
    place.hamal_fed(&["load", "db", "-", "-t", "t", "--format", "jsonl"], rows.as_bytes()).text();
    assert_eq!(place.hamal(&["dump", "db", "-t", "t", "--json"]).text(), rows);
}

#[test]
fn the_unicode_character_database_loads_with_its_own_delimiter() {
    let place = Place::new();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/UnicodeData.txt");
    let load =
        ["load", "db", file, "-t", "c", "--format", "csv", "--delimiter", ";", "--no-header", "--json"];
    assert_eq!(place.hamal(&load).json()["rows"], 34_924);
    let again = place.hamal(&load).json();
    assert_eq!((&again["rows"], &again["replaced"]), (&json!(34_924), &json!(34_924)));
    let dumped = place.hamal(&["dump", "db", "-t", "c", "--format", "csv", "--delimiter", ";"]).text();
    let mut original: Vec<String> =
        std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect();
    original.sort_by(|a, b| a.split(';').next().cmp(&b.split(';').next()));
    assert!(dumped.lines().eq(original), "the dump is the file, sorted by key");
    let check = place.hamal(&["check", "db", "--json"]).json();
    assert_eq!((&check["sound"], &check["rows"]), (&json!(true), &json!(34_924 + 1)));
}

#[test]
fn a_bad_line_leaves_no_row_and_no_database() {
    let place = Place::new();
    place.write("bad.csv", "k,v\na,1\nb,2\nc\n");
    let failure = place.hamal(&["load", "db", "bad.csv", "-t", "t"]).failure(2);
    assert_eq!(failure, "bad.csv, line 4: 1 field where the file has 2");
    assert_eq!(place.names(), ["bad.csv"]);

    place.hamal(&["put", "db", "-t", "t", "a", "before"]).text();
    place.hamal(&["load", "db", "bad.csv", "-t", "t"]).failure(2);
    assert_eq!(place.hamal(&["dump", "db", "-t", "t"]).text(), "a\tbefore\n");
}

#[test]
fn batches_that_were_committed_stay() {
    let place = Place::new();
    place.write("bad.csv", "k,v\na,1\nb,2\nc,3\nd\n");
    let failure = place.hamal(&["load", "db", "bad.csv", "-t", "t", "--batch", "2"]).failure(2);
    assert!(failure.ends_with("(the 2 rows before are committed)"), "{failure}");
    assert_eq!(place.hamal(&["scan", "db", "-t", "t", "--keys-only"]).text(), "a\nb\n");

    place.write("good.csv", "k,v\na,1\nb,2\nc,3\nd,4\n");
    let loaded = place.hamal(&["load", "db", "good.csv", "-t", "t", "--batch", "3", "--json"]).json();
    assert_eq!((&loaded["rows"], &loaded["replaced"]), (&json!(4), &json!(2)));
}

#[test]
fn plain_rows_are_keys_and_values() {
    let place = Place::new();
    place.write("pairs.tsv", "key\tvalue\nb\t2\na\t1\n");
    place.hamal(&["load", "db", "pairs.tsv", "-t", "t", "--plain"]).text();
    assert_eq!(place.hamal(&["get", "db", "-t", "t", "a"]).text(), "1\n");
    assert_eq!(place.hamal(&["dump", "db", "-t", "t", "--format", "tsv"]).text(), "key\tvalue\na\t1\nb\t2\n");
}

#[test]
fn a_dump_keeps_every_key_and_goes_back_exactly() {
    let place = Place::new();
    place.hamal(&["put", "db", "-t", "t", "alice", "{\"age\":36}"]).text();
    place.hamal(&["put", "db", "-t", "t", "bob", "{\"name\":\"bob\"}"]).text();
    place.hamal(&["put", "db", "-t", "t", "carol", "{\"key\":\"carol\",\"value\":\"\"}"]).text();
    place.hamal(&["put", "db", "-t", "t", "--hex", "00ff", "7b7d"]).text();
    let dump = place.hamal(&["dump", "db", "-t", "t", "--json"]).text();
    assert_eq!(
        dump.lines().take(3).collect::<Vec<_>>(),
        [
            r#"{"key_hex":"00ff","value":"{}"}"#,
            r#"{"key":"alice","value":"{\"age\":36}"}"#,
            r#"{"name":"bob"}"#
        ]
    );
    place
        .hamal_fed(&["load", "other", "-", "-t", "t", "--format", "jsonl", "--plain"], dump.as_bytes())
        .text();
    assert_eq!(
        place.hamal(&["dump", "other", "-t", "t"]).text(),
        place.hamal(&["dump", "db", "-t", "t"]).text()
    );
}

#[test]
fn typed_rows_go_through_json_lines_and_back() {
    const BALANCES: TableDef<'_, (&str, u32), f64> = TableDef::new("balances");
    let place = Place::new();
    let db = Database::open(place.path("db")).unwrap();
    for table in [BALANCES, TableDef::new("copy")] {
        db.transact(|tx| tx.open_table(table).map(drop)).unwrap();
    }
    db.transact(|tx| {
        let mut table = tx.open_table(BALANCES)?;
        table.put(("a\"b", 1), 0.1)?;
        table.put(("nan", 2), f64::NAN)
    })
    .unwrap();
    db.close().unwrap();
    let dump = place.hamal(&["dump", "db", "-t", "balances", "--json"]).text();
    place
        .hamal_fed(&["load", "db", "-", "-t", "copy", "--format", "jsonl", "--plain"], dump.as_bytes())
        .text();
    assert_eq!(
        place.hamal(&["dump", "db", "-t", "copy"]).text(),
        place.hamal(&["dump", "db", "-t", "balances"]).text()
    );
}

#[test]
fn bytes_survive_a_raw_dump() {
    let place = Place::new();
    let value: Vec<u8> = (0..=255).collect();
    place.write("value", &value);
    place.hamal(&["put", "db", "-t", "t", "--hex", "00ff0a", "--file", "value"]).text();
    let dump = place.hamal(&["dump", "db", "-t", "t"]).text();
    assert_eq!(dump.lines().count(), 1);
    place.hamal_fed(&["load", "other", "-", "-t", "t", "--format", "raw"], dump.as_bytes()).text();
    assert_eq!(place.hamal(&["get", "other", "-t", "t", "--hex", "00ff0a", "--raw"]).bytes(), value);
    let jsonl = place.hamal(&["dump", "db", "-t", "t", "--json"]).json();
    assert_eq!(jsonl["key_hex"], "00ff0a");
}

#[test]
fn a_reader_that_goes_away_ends_a_dump_quietly() {
    use std::io::Read;
    use std::process::Stdio;

    let place = Place::new();
    let rows = (0..20_000).map(|n| format!("{n:08},{}", "x".repeat(50))).collect::<Vec<_>>().join("\n");
    place
        .hamal_fed(&["load", "db", "-", "-t", "t", "--format", "csv", "--no-header"], rows.as_bytes())
        .text();
    for arguments in [&["dump", "db", "-t", "t"][..], &["scan", "db", "-t", "t", "--json"]] {
        let mut child =
            place.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut first = [0; 16];
        stdout.read_exact(&mut first).unwrap();
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{arguments:?}");
    }
}

#[test]
fn a_raw_dump_keeps_the_partitions_of_a_table_and_dumps_without_them_are_read_as_ever() {
    let place = Place::new();
    let old = "a\t1\nm\\tx\t2\nz\t3\n";
    place.hamal_fed(&["load", "db", "-", "-t", "t", "--format", "raw"], old.as_bytes()).text();
    assert_eq!(place.hamal(&["dump", "db", "-t", "t"]).text(), old, "one partition: as it was");
    for at in ["m\\tx", "\\xff\\x00"] {
        place.hamal(&["split", "db", "-t", "t", "--escaped", at]).text();
    }
    let dump = place.hamal(&["dump", "db", "-t", "t"]).text();
    assert_eq!(dump, format!("\\cut\tm\\tx\n\\cut\t\\xff\\x00\n{old}"));
    place.hamal_fed(&["load", "other", "-", "-t", "t", "--format", "raw"], dump.as_bytes()).text();
    assert_eq!(place.hamal(&["dump", "other", "-t", "t"]).text(), dump);
    // A table that is there keeps its partitions.
    place.hamal_fed(&["load", "third", "-", "-t", "t", "--format", "raw"], old.as_bytes()).text();
    place.hamal_fed(&["load", "third", "-", "-t", "t", "--format", "raw"], dump.as_bytes()).text();
    assert_eq!(place.hamal(&["dump", "third", "-t", "t"]).text(), old);
    // An empty table has its partitions too; and nothing else is a cut.
    let empty = "\\cut\tk\n";
    place.hamal_fed(&["load", "empty", "-", "-t", "t", "--format", "raw"], empty.as_bytes()).text();
    assert_eq!(place.hamal(&["dump", "empty", "-t", "t"]).text(), empty);
    for (bad, what) in [
        ("a\t1\n\\cut\tk\n", "line 2: a cut stands behind a row"),
        ("\\cut\tk\n\\cut\tk\n", "line 2: the keys of cuts do not ascend"),
        ("\\cut\t\n", "line 1: the keys of cuts do not ascend"),
        ("\\cut\n", "line 1: there is no tab"),
        ("\\cute\tk\n", "no escape"),
    ] {
        let refused = place.hamal_fed(&["load", "bad", "-", "-t", "t", "--format", "raw"], bad.as_bytes());
        let refused = refused.failure(2);
        assert!(refused.contains(what), "{bad:?}: {refused}");
        assert!(!place.names().iter().any(|name| name == "bad"), "{bad:?}");
    }
}
