//! `scan`, `tables`, `stat`, `check`, `log`, `page`, `recover`.

use hamal::{Database, TableDef};
use serde_json::json;

use super::support::Place;

const LETTERS: TableDef<'_, &str, &str> = TableDef::new("letters");

fn letters() -> Place {
    let place = Place::new();
    let rows = ('a'..='z').map(|c| format!("{c}{c},{c}")).collect::<Vec<_>>().join("\n");
    place
        .hamal_fed(
            &["load", "db", "-", "-t", "t", "--format", "csv", "--no-header", "--plain"],
            rows.as_bytes(),
        )
        .text();
    place
}

#[test]
fn a_scan_has_bounds_a_direction_and_a_limit() {
    let place = letters();
    let scan = |extra: &[&str]| {
        let mut arguments = vec!["scan", "db", "-t", "t", "--keys-only"];
        arguments.extend(extra);
        place.hamal(&arguments).text().lines().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(scan(&[]).len(), 26 * 3 - 1);
    assert_eq!(scan(&["--from", "x"]), "xx yy zz");
    assert_eq!(scan(&["--from", "x", "--to", "zz"]), "xx yy");
    assert_eq!(scan(&["--from", "x", "--to", "zz", "--reverse"]), "yy xx");
    assert_eq!(scan(&["--reverse", "--limit", "2"]), "zz yy");
    assert_eq!(scan(&["--limit", "0"]), "");
    assert_eq!(scan(&["--prefix", "m"]), "mm");
    assert_eq!(scan(&["--prefix", "m", "--from", "n"]), "");
    assert_eq!(scan(&["--prefix", ""]).len(), 26 * 3 - 1);
    assert_eq!(
        place.hamal(&["scan", "db", "-t", "t", "--from", "z", "--to", "a"]).failure(2),
        "--from is behind --to; keys go upwards, with --reverse too"
    );
    let rows = place.hamal(&["scan", "db", "-t", "t", "--limit", "2", "--json"]).json_lines();
    assert_eq!(rows, [json!({ "key": "aa", "value": "a" }), json!({ "key": "bb", "value": "b" })]);
    let keys = place.hamal(&["scan", "db", "-t", "t", "--limit", "1", "--json", "--keys-only"]).json();
    assert_eq!(keys, json!({ "key": "aa" }));
}

#[test]
fn numbers_of_the_database_agree_with_each_other() {
    let place = letters();
    let stat = place.hamal(&["stat", "db", "--json"]).json();
    assert_eq!(stat["tables"][0]["rows"], 26);
    assert_eq!(stat["recovery"]["clean"], true);
    assert_eq!(stat["partitions"], 2);
    let check = place.hamal(&["check", "db", "--json"]).json();
    // The catalog has a row for the table.
    assert_eq!(
        (&check["sound"], &check["tables"], &check["rows"]),
        (&json!(true), &json!(1), &json!(26 + 1))
    );
    for command in [&["tables", "db"][..], &["stat", "db"], &["check", "db"]] {
        assert!(!place.hamal(command).text().is_empty());
    }
    assert!(place.hamal(&["check", "db"]).text().ends_with("sound\n"));
}

/// The files of a database as a crash would leave them: two committed transactions, and one that is not but whose records are in
/// the log.
fn crashed() -> Place {
    let place = Place::new();
    let db = Database::open(place.path("db")).unwrap();
    for key in ["a", "b"] {
        db.transact(|tx| tx.open_table(LETTERS)?.put(key, "committed")).unwrap();
    }
    let tx = db.begin().unwrap();
    for key in ["a", "c"] {
        tx.open_table(LETTERS).unwrap().put(key, "in flight").unwrap();
    }
    db.flush().unwrap();
    place.copy("db", "crashed");
    tx.rollback().unwrap();
    db.close().unwrap();
    place
}

#[test]
fn the_log_is_listed_whole_in_part_and_by_kind() {
    let place = crashed();
    let log = |extra: &[&str]| {
        let mut arguments = vec!["log", "crashed", "--json"];
        arguments.extend(extra);
        place.hamal(&arguments).json_lines()
    };
    let all = log(&["--all"]);
    assert!(all.windows(2).all(|pair| pair[0]["end_lsn"].as_u64() <= pair[1]["lsn"].as_u64()), "in order");
    let commits = log(&["--all", "--kind", "commit"]);
    assert!(commits.len() >= 2 && commits.iter().all(|record| record["kind"] == "commit"), "{commits:?}");
    let last = commits.last().unwrap();
    let of_one = log(&["--all", "--txn", &last["txn"].to_string()]);
    assert!(of_one.len() >= 2 && of_one.iter().all(|record| record["txn"] == last["txn"]), "{of_one:?}");
    assert_eq!(of_one.last(), Some(last));
    let from = last["lsn"].to_string();
    let rest = log(&["--from", &from]);
    assert_eq!(rest[0], *last);
    assert!(rest.len() >= 3, "the records of the one in flight: {rest:?}");
    assert_eq!(log(&["--all", "--to", &from]).len() + rest.len(), all.len());
    assert_eq!(log(&["--all", "--last", "2"]), all[all.len() - 2..]);
    assert_eq!(log(&["--all", "--limit", "2"]), all[..2]);
    let text = place.hamal(&["log", "crashed", "--all", "--kind", "commit"]).text();
    assert_eq!(text.lines().count(), 1 + commits.len(), "{text}");
}

#[test]
fn recovery_is_foretold_done_and_done_with() {
    let place = crashed();
    let before = place.image("crashed");
    let foretold = place.hamal(&["recover", "crashed", "--dry-run", "--json"]).json();
    assert_eq!((&foretold["dry_run"], &foretold["recovery"]["losers"]), (&json!(true), &json!(1)));
    assert!(place.hamal(&["recover", "crashed", "--dry-run"]).text().contains("1 loser to roll back"));
    assert!(place.image("crashed") == before, "a file has changed");

    let done = place.hamal(&["recover", "crashed", "--json"]);
    assert_eq!(done.status(), Some(0), "{done:?}");
    assert!(done.stderr().starts_with("hamal: note: crashed was not closed; recovered in"), "{done:?}");
    let done: serde_json::Value = serde_json::from_str(&done.stdout()).unwrap();
    assert_eq!((&done["recovery"]["losers"], &done["recovery"]["undo"]["applied"]), (&json!(1), &json!(2)));

    assert_eq!(place.hamal(&["scan", "crashed", "-t", "letters"]).text(), "a  committed\nb  committed\n");
    assert!(place.hamal(&["recover", "crashed"]).text().contains("closed cleanly"));
}

#[test]
fn a_table_is_cut_where_it_is_told_to_be() {
    let place = Place::new();
    let made = place.hamal(&["create", "db", "-t", "t", "--split", "p", "--split", "h"]);
    assert_eq!(made.text(), "table \"t\": 3 partitions\n");
    for key in ["a", "h", "o", "p", "z"] {
        place.hamal(&["put", "db", "-t", "t", key, "value"]).text();
    }
    assert_eq!(place.hamal(&["scan", "db", "-t", "t", "--keys-only"]).text(), "a\nh\no\np\nz\n");
    let reversed = place.hamal(&["scan", "db", "-t", "t", "--keys-only", "--reverse", "--limit", "3"]).text();
    assert_eq!(reversed, "z\np\no\n");
    let partitions = place.hamal(&["partitions", "db", "-t", "t", "--json"]).json_lines();
    let bounds: Vec<_> = partitions.iter().map(|p| (p["from"].as_str(), p["below"].as_str())).collect();
    assert_eq!(bounds, [(None, Some("h")), (Some("h"), Some("p")), (Some("p"), None)]);
    for partition in &partitions {
        assert_eq!((&partition["table"], &partition["state"]), (&json!("t"), &json!("online")));
        let file = place.path(&format!("db/{}", partition["file"].as_str().unwrap()));
        assert_eq!(std::fs::metadata(file).unwrap().len(), partition["bytes"].as_u64().unwrap());
    }
    let listed = place.hamal(&["partitions", "db"]).text();
    assert_eq!(listed.lines().count(), 1 + 1 + 3, "{listed}");
    assert!(listed.lines().nth(1).unwrap().contains("(catalog)"), "{listed}");
    assert_eq!(place.hamal(&["tables", "db", "--json"]).json()["partitions"], json!([1, 2, 3]));
    assert!(place.hamal(&["check", "db"]).text().contains("sound"));

    assert_eq!(place.hamal(&["partitions", "db", "-t", "none"]).failure(2), "there is no table \"none\"");
    assert_eq!(place.hamal(&["create", "db", "-t", "t"]).failure(2), "there is a table \"t\" already");
    place.hamal(&["create", "db", "-t", "hashes", "--hex", "--split", "80ff"]).text();
    let cut = place.hamal(&["partitions", "db", "-t", "hashes", "--json"]).json_lines();
    assert_eq!((&cut[0]["below_hex"], &cut[1]["from_hex"]), (&json!("80ff"), &json!("80ff")));
    assert_eq!(place.hamal(&["create", "db", "-t", "u", "--split", ""]).status(), Some(2));
    assert_eq!(place.hamal(&["tables", "db", "--json"]).json_lines().len(), 2);
}

#[test]
fn partitions_are_split_and_merged() {
    let place = Place::new();
    place.hamal(&["create", "db", "-t", "t"]).text();
    for key in ["a", "h", "o", "p", "z"] {
        place.hamal(&["put", "db", "-t", "t", key, "value"]).text();
    }
    let split = place.hamal(&["split", "db", "-t", "t", "m", "--json"]).json();
    assert_eq!((&split["table"], &split["key"]), (&json!("t"), &json!("m")));
    assert_eq!((&split["left"], &split["right"], &split["rows"]), (&json!(1), &json!(2), &json!(3)));
    assert!(split["locked_micros"].is_u64());
    assert_eq!(
        place.hamal(&["split", "db", "-t", "t", "p"]).text(),
        "partition 3 split off 2: 2 rows moved, 12 B\n"
    );
    let bounds = || -> Vec<_> {
        let partitions = place.hamal(&["partitions", "db", "-t", "t", "--json"]).json_lines();
        partitions.iter().map(|p| (p["from"].clone(), p["below"].clone())).collect()
    };
    assert_eq!(bounds().len(), 3);
    let again = place.hamal(&["split", "db", "-t", "t", "m"]).failure(2);
    assert!(again.contains("a partition begins at"), "{again}");
    assert_eq!(
        place.hamal(&["merge", "db", "-t", "t", "m"]).text(),
        "partition 2 merged into 1: 1 row moved, 6 B\n"
    );
    assert_eq!(bounds()[0].1, json!("p"));
    let missing = place.hamal(&["merge", "db", "-t", "t", "m"]).failure(2);
    assert!(missing.contains("no partition begins at"), "{missing}");
    place.hamal(&["split", "db", "-t", "none", "m"]).failure(2);
    place.hamal(&["split", "db", "-t", "t", "--hex", "6x"]).failure(2);
    assert_eq!(place.hamal(&["scan", "db", "-t", "t", "--keys-only"]).text(), "a\nh\no\np\nz\n");
    assert!(place.hamal(&["check", "db"]).text().contains("sound"));
}

#[test]
fn a_page_is_decoded_and_a_damaged_one_says_so() {
    let place = letters();
    let info = place.hamal(&["tables", "db", "--json"]).json();
    let partition = info["partitions"][0].to_string();
    let pages: Vec<_> = (0..8)
        .map(|page| place.hamal(&["page", "db", &partition, &page.to_string(), "--json"]))
        .filter(|answer| answer.status() == Some(0))
        .map(|answer| answer.json())
        .collect();
    let leaf = pages.iter().find(|page| page["kind"] == "leaf").expect("a leaf among the first pages");
    assert_eq!(leaf["entries"].as_array().unwrap().len(), 26);
    assert_eq!(leaf["entries"][0]["key"], "aa");
    assert_eq!(leaf["damage"], json!(null));

    let number = leaf["page"].as_u64().unwrap();
    let page_bytes = place.hamal(&["stat", "db", "--json"]).json()["page_bytes"].as_u64().unwrap();
    let file = place.path(&format!("db/part/{partition}.dat"));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[(number * page_bytes + page_bytes / 2) as usize] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let page = place.hamal(&["page", "db", &partition, &number.to_string(), "--json"]);
    assert_eq!((page.status(), page.stderr().as_str()), (Some(1), ""), "{page:?}");
    let check = place.hamal(&["check", "db"]);
    assert_eq!((check.status(), check.stderr().as_str()), (Some(1), ""), "{check:?}");
    assert!(check.stdout().contains(&format!("part/{partition}.dat")), "{check:?}");
    assert_eq!(place.hamal(&["check", "db", "--json"]).status(), Some(1));
    assert!(place.hamal(&["dump", "db", "-t", "t"]).failure(4).contains(&format!("part/{partition}.dat")));
}

#[test]
fn a_dry_run_of_recovery_changes_nothing() {
    let place = letters();
    let before = place.image("db");
    let dry = place.hamal(&["recover", "db", "--dry-run", "--json"]).json();
    assert_eq!((&dry["dry_run"], &dry["recovery"]["losers"]), (&json!(true), &json!(0)));
    place.hamal(&["log", "db", "--all"]).text();
    place.hamal(&["page", "db", "0", "0"]).text();
    assert!(place.image("db") == before, "a file has changed");
    assert!(place.hamal(&["recover", "db"]).text().contains("closed cleanly"));
}
