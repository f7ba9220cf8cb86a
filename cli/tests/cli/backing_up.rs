//! `backup`, `backups`, `archive`, `restore`, `repair`.

use super::support::Place;

fn rows(place: &Place, db: &str) -> String {
    place.hamal(&["scan", db, "-t", "t"]).text()
}

#[test]
fn a_database_is_backed_up_archived_and_restored_to_any_moment() {
    let place = Place::new();
    let put = |key: &str, value: &str| {
        place.hamal(&["put", "db", "-t", "t", key, value, "--archive", "vault"]).text();
    };
    put("a", "1");
    let full = place.hamal(&["backup", "db", "vault", "--archive", "vault", "--json"]).json();
    assert!(full["base"].is_null() && full["pages"].as_u64() > Some(5), "{full}");
    put("b", "2");
    let moment = place.hamal(&["archive", "db", "vault", "--json"]).json();
    assert_eq!(moment["gaps"], 0);
    let increment =
        place.hamal(&["backup", "db", "vault", "--since", "last", "--archive", "vault", "--json"]).json();
    assert_eq!(increment["base"], full["backup"]);
    put("c", "3");

    place.hamal(&["restore", "vault", "all"]).text();
    assert_eq!(rows(&place, "all"), "a  1\nb  2\nc  3\n");
    let lsn = (moment["to_lsn"].as_u64().unwrap() - 1).to_string();
    let restored = place.hamal(&["restore", "vault", "then", "--to-lsn", &lsn, "--json"]).json();
    assert_eq!(restored["backup"], full["backup"], "the second one is of later");
    assert_eq!(rows(&place, "then"), "a  1\nb  2\n");
    let micros = increment["end_micros"].to_string();
    place.hamal(&["restore", "vault", "at", "--to-time", &micros]).text();
    assert_eq!(rows(&place, "at"), "a  1\nb  2\n");

    let verified = place.hamal(&["backups", "vault", "--verify", "last", "--json"]).json();
    assert_eq!((&verified["sound"], &verified["backups"]), (&true.into(), &2.into()));
    assert_eq!(place.hamal(&["backups", "vault", "--json"]).json_lines().len(), 2);
    assert!(place.hamal(&["backups", "vault"]).text().contains(full["backup"].as_str().unwrap()));
    let (full, increment) = (full["backup"].as_str().unwrap(), increment["backup"].as_str().unwrap());
    let refused = place.hamal(&["backups", "vault", "--remove", full]).failure(2);
    assert!(refused.contains(&format!("{increment} is based on it")), "{refused}");
    assert_eq!(place.hamal(&["backups", "vault", "--json"]).json_lines().len(), 2);
    place.hamal(&["backups", "vault", "--remove", increment]).text();
    assert_eq!(place.hamal(&["backups", "vault", "--json"]).json_lines().len(), 1);
    place.hamal(&["backups", "vault", "--remove", full, "--force"]).text();
    assert_eq!(place.hamal(&["backups", "vault", "--json"]).json_lines().len(), 0);
}

#[test]
fn what_cannot_be_restored_is_told_in_a_line() {
    let place = Place::new();
    place.hamal(&["put", "db", "-t", "t", "a", "1"]).text();
    place.hamal(&["backup", "db", "vault"]).text();
    let taken = place.hamal(&["restore", "vault", "db"]).failure(2);
    assert!(taken.contains("there is a database in this directory already"), "{taken}");
    assert_eq!(rows(&place, "db"), "a  1\n");
    let early = place.hamal(&["restore", "vault", "x", "--to-time", "2001-01-01T00:00:00Z"]).failure(2);
    assert!(early.contains("no backup is of so early a moment"), "{early}");
    place.hamal(&["restore", "vault", "x", "--to-time", "yesterday"]).failure(2);
    let no_keys = place.hamal(&["restore", "vault", "x", "--hex"]).failure(2);
    assert!(no_keys.contains("--table"), "{no_keys}");
    place.hamal(&["restore", "nowhere", "x"]).failure(3);
    let log = place.names().iter().any(|name| name == "x");
    assert!(!log, "nothing was made");

    // Damage is named, and has a status of its own.
    let listed = place.hamal(&["backups", "vault", "--json"]).json();
    let object = format!("vault/backup/{}/part-0", listed["backup"].as_str().unwrap());
    let mut bytes = std::fs::read(place.path(&object)).unwrap();
    bytes[5000] ^= 1;
    place.write(&object, &bytes);
    let damage = place.hamal(&["backups", "vault", "--verify", "last"]).failure(4);
    assert!(damage.contains("part-0"), "{damage}");
    let damage = place.hamal(&["restore", "vault", "y"]).failure(4);
    assert!(damage.contains("part-0"), "{damage}");
    let refused = place.hamal(&["tables", "y"]).failure(3);
    assert!(refused.contains("interrupted"), "{refused}");
}

#[test]
fn a_partition_that_has_lost_its_file_is_shown_and_repaired() {
    let place = Place::new();
    place.hamal(&["create", "db", "-t", "t", "--split", "m"]).text();
    let put = |key: &str, value: &str| {
        place.hamal(&["put", "db", "-t", "t", key, value, "--archive", "vault"]).text();
    };
    put("a", "1");
    place.hamal(&["backup", "db", "vault", "--archive", "vault"]).text();
    put("z", "2");
    let partitions = place.hamal(&["partitions", "db", "--table", "t", "--json"]).json_lines();
    let (id, file) = (partitions[1]["id"].to_string(), partitions[1]["file"].as_str().unwrap().to_owned());
    std::fs::remove_file(place.path("db").join(file)).unwrap();

    assert_eq!(place.hamal(&["get", "db", "-t", "t", "a"]).text(), "1\n");
    let refused = place.hamal(&["get", "db", "-t", "t", "z"]).failure(4);
    assert!(refused.contains("is quarantined") && refused.contains("table \"t\""), "{refused}");
    let shown = place.hamal(&["partitions", "db"]).text();
    assert!(shown.contains(&format!("partition {id} is quarantined: ")), "{shown}");
    let partitions = place.hamal(&["partitions", "db", "--table", "t", "--json"]).json_lines();
    assert_eq!((&partitions[0]["state"], &partitions[1]["state"]), (&"online".into(), &"quarantined".into()));
    assert!(partitions[0].get("cause").is_none() && partitions[1]["cause"].is_string());

    // A backup goes on without it, and says so; so does what is restored, until it is repaired there.
    let full = place.hamal(&["backups", "vault", "--json"]).json()["backup"].as_str().unwrap().to_owned();
    put("b", "3");
    let told = place.hamal(&["backup", "db", "vault", "--archive", "vault"]).text();
    assert!(
        told.contains(&format!("partition {id} of table \"t\" is in the backup as quarantined: ")),
        "{told}"
    );
    let since = ["backup", "db", "vault", "--since", "last", "--archive", "vault", "--json"];
    let partial = place.hamal(&since).json();
    let [quarantined] = &partial["quarantined"].as_array().unwrap()[..] else { panic!("{partial}") };
    assert_eq!(quarantined["partition"].to_string(), id);
    assert_eq!((&quarantined["table"], &quarantined["repairable"]), (&"t".into(), &true.into()));
    assert!(quarantined["cause"].as_str().unwrap().contains("no file"), "{quarantined}");
    assert!(quarantined["quarantined_micros"].as_u64() > Some(0), "{quarantined}");
    let listed = place.hamal(&["backups", "vault"]).text();
    let marked: Vec<bool> = listed.lines().skip(1).map(|line| line.ends_with(&format!(" {id}"))).collect();
    assert_eq!(marked, [false, true, true], "{listed}");
    let verified = place.hamal(&["backups", "vault", "--verify", "last"]).text();
    assert!(
        verified.contains(&format!("partition {id} of table \"t\" is in it as quarantined: ")),
        "{verified}"
    );
    let verified = place.hamal(&["backups", "vault", "--verify", "last", "--json"]).json();
    assert_eq!(verified["quarantined"], partial["quarantined"]);
    let restored = place.hamal(&["restore", "vault", "again"]).text();
    assert!(restored.contains(&format!("partition {id} of table \"t\" is quarantined (see")), "{restored}");
    assert_eq!(place.hamal(&["get", "again", "-t", "t", "b"]).text(), "3\n");
    place.hamal(&["get", "again", "-t", "t", "z"]).failure(4);
    let repaired = place.hamal(&["repair", "again", "--backups", "vault", "--json"]).json();
    assert_eq!((&repaired["base"], &repaired["backup"]), (&"backup".into(), &full.clone().into()));
    assert_eq!(rows(&place, "again"), "a  1\nb  3\nz  2\n");
    let whole = place.hamal(&["restore", "vault", "whole", "--whole", "--json"]).json();
    assert_eq!((&whole["backup"], &whole["quarantined"]), (&full.clone().into(), &serde_json::json!([])));
    assert_eq!(rows(&place, "whole"), "a  1\nb  3\nz  2\n");

    let hopeless = place.hamal(&["repair", "db", &id]).failure(4);
    assert!(hopeless.contains("cannot be repaired"), "{hopeless}");
    place.hamal(&["repair", "db", "99", "--backups", "vault"]).failure(2);
    place.hamal(&["repair", "db", "--backups", "nowhere"]).failure(3);
    let without = place.hamal(&["repair", "db", "--backups", "vault", "--backup", "last"]).failure(2);
    assert!(without.contains("was quarantined when it was taken"), "{without}");
    let repaired = place.hamal(&["repair", "db", "--backups", "vault", "--backup", &full, "--json"]).json();
    assert_eq!((&repaired["base"], &repaired["rows"]), (&"backup".into(), &1.into()));
    assert_eq!(rows(&place, "db"), "a  1\nb  3\nz  2\n");
    place.hamal(&["check", "db"]).text();
    assert_eq!(place.hamal(&["repair", "db"]).text(), "no partition is quarantined\n");
}

#[test]
fn rows_of_a_database_come_back_as_of_a_moment_and_a_dry_run_says_which() {
    let place = Place::new();
    let put = |key: &str, value: &str| {
        place.hamal(&["put", "db", "-t", "t", key, value, "--archive", "vault"]).text();
    };
    for (key, value) in [("a", "1"), ("k", "2"), ("m", "3"), ("x", "4")] {
        put(key, value);
    }
    place.hamal(&["split", "db", "-t", "t", "k", "--archive", "vault"]).text();
    place.hamal(&["backup", "db", "vault", "--archive", "vault"]).text();
    let moment = place.hamal(&["archive", "db", "vault", "--json"]).json();
    let lsn = (moment["to_lsn"].as_u64().unwrap() - 1).to_string();
    put("a", "spoilt");
    put("k", "spoilt");
    place.hamal(&["del", "db", "-t", "t", "m", "--archive", "vault"]).text();
    put("n", "new");
    put("x", "spoilt");
    place.hamal(&["split", "db", "-t", "t", "m", "--archive", "vault"]).text();
    place.hamal(&["rename", "db", "-t", "t", "--to", "renamed", "--archive", "vault"]).text();
    let spoilt = "a  spoilt\nk  spoilt\nn  new\nx  spoilt\n";
    let rows = || place.hamal(&["scan", "db", "-t", "renamed"]).text();
    let restore = |more: &[&str]| {
        let fixed = ["restore", "vault", "db", "-t", "renamed", "--to-lsn", &lsn, "--archive", "vault"];
        place.hamal(&[&fixed, more].concat())
    };

    let dry = restore(&["--from", "k", "--below", "x", "--dry-run"]).text();
    assert!(
        dry.contains("1 row would be put back, 1 would be replaced, 1 would be removed, 0 as they"),
        "{dry}"
    );
    assert!(dry.contains("then called"), "{dry}");
    assert_eq!(rows(), spoilt);
    let report = restore(&["--from", "k", "--below", "x", "--json"]).json();
    let counts = ["put_back", "replaced", "removed", "unchanged"].map(|name| report[name].as_u64().unwrap());
    assert_eq!(counts, [1, 1, 1, 0], "{report}");
    assert_eq!((&report["from"], &report["below"]), (&"k".into(), &"x".into()));
    assert_eq!(rows(), "a  spoilt\nk  2\nm  3\nx  spoilt\n");
    let report = restore(&["--partition-of", "z", "--json"]).json();
    assert_eq!((&report["from"], &report["below"]), (&"k".into(), &serde_json::Value::Null));
    assert_eq!(rows(), "a  spoilt\nk  2\nm  3\nx  4\n");
    let all = restore(&[]).text();
    assert!(all.contains("0 rows put back, 1 replaced, 0 removed, 3 as they were"), "{all}");
    assert_eq!(rows(), "a  1\nk  2\nm  3\nx  4\n");
    place.hamal(&["check", "db"]).text();

    let fixed = ["restore", "vault", "db", "-t", "renamed"];
    let no_moment = place.hamal(&fixed).failure(2);
    assert!(no_moment.contains("--to-lsn or --to-time"), "{no_moment}");
    place.hamal(&[&fixed[..], &["--to-time", "2001-01-01T00:00:00Z"]].concat()).failure(2);
    place.hamal(&["restore", "vault", "db", "-t", "t", "--to-lsn", &lsn]).failure(2);
    place.hamal(&["restore", "vault", "db", "--from", "k", "--to-lsn", &lsn]).failure(2);
    place.hamal(&["restore", "vault", "missing", "-t", "t", "--to-lsn", &lsn]).failure(3);
    restore(&["--partition-of", "z", "--from", "a"]).failure(2);
    assert_eq!(rows(), "a  1\nk  2\nm  3\nx  4\n");
}
