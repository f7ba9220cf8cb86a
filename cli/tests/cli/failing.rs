//! Bad input: one line, the right status, nothing changed.

use std::process::Stdio;

use super::support::Place;

#[test]
fn commands_that_read_do_not_make_a_database() {
    let place = Place::new();
    for command in [
        &["dump", "db", "-t", "t"][..],
        &["get", "db", "-t", "t", "k"],
        &["del", "db", "-t", "t", "k"],
        &["scan", "db", "-t", "t"],
        &["tables", "db"],
        &["rename", "db", "-t", "t", "--to", "u"],
        &["drop", "db", "-t", "t"],
        &["stat", "db"],
        &["check", "db"],
        &["log", "db"],
        &["page", "db", "0", "0"],
        &["recover", "db"],
        &["recover", "db", "--dry-run"],
    ] {
        assert_eq!(place.hamal(command).failure(3), "db: there is no database", "{command:?}");
    }
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn a_directory_that_is_no_database_is_left_alone() {
    let place = Place::new();
    std::fs::create_dir(place.path("photos")).unwrap();
    place.write("photos/cat.png", "meow");
    for command in [
        &["tables", "photos"][..],
        &["check", "photos"],
        &["log", "photos"],
        &["recover", "photos", "--dry-run"],
        &["put", "photos", "-t", "t", "k", "v"],
    ] {
        place.hamal(command).failure(3);
    }
    place.write("file", "x");
    assert_eq!(place.hamal(&["tables", "file"]).failure(3), "file: not a directory, so no database");
    let names: Vec<_> =
        std::fs::read_dir(place.path("photos")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["cat.png"]);
}

#[test]
fn a_wrong_command_line_is_one_line_and_status_2() {
    let place = Place::new();
    for command in [
        &["nonsense"][..],
        &["get", "db", "-t", "t"],
        &["get", "db", "k"],
        &["scan", "db", "-t", "t", "--limit", "many"],
        &["load", "db", "f.csv", "-t", "t", "--delimiter", "ab"],
        &["load", "db", "f.csv", "-t", "t", "--delimiter", "\""],
        &["load", "db", "f.csv", "-t", "t", "--delimiter", "\n"],
        &["dump", "db", "-t", "t", "--delimiter", ";"],
        &["dump", "db", "-t", "t", "--format", "jsonl", "--delimiter", ";"],
        &["dump", "db", "-t", "t", "--format", "raw", "--key", "k"],
        &["dump", "db", "-t", "t", "--format", "csv", "--json"],
        &["dump", "db", "-t", "t", "--format", "raw", "--json"],
        &["put", "db", "-t", "t", "--escaped", "k", "\\x  "],
        &["load", "db", "f.csv", "-t", "t", "--batch", "0"],
        &["put", "db", "-t", "t", "k"],
        &["put", "db", "-t", "t", "k", "v", "--hex", "--escaped"],
        &["tables", "db", "--cache", "lots"],
        &["demo", "--rounds", "0"],
    ] {
        assert!(!place.hamal(command).failure(2).is_empty(), "{command:?}");
    }
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn a_file_that_cannot_be_loaded_makes_no_database() {
    let place = Place::new();
    place.write("data.txt", "a,b\n");
    place.write("latin.csv", b"k,v\na,\xe9\n");
    place.write("empty.jsonl", "");
    place.write("torn.csv", "id,note\n1,\"oops\n2,b\n3,c\n");
    std::fs::create_dir(place.path("dir.csv")).unwrap();
    let before = place.names();
    for (file, extra, message) in [
        ("missing.csv", &[][..], "cannot read missing.csv"),
        ("dir.csv", &[], "cannot read dir.csv: it is a directory"),
        ("data.txt", &[], "the name data.txt does not tell the format"),
        ("latin.csv", &[], "latin.csv, line 2: \"\\xe9\" is not UTF-8"),
        ("torn.csv", &[], "torn.csv, line 2: the quote that begins here is never closed"),
        ("latin.csv", &["--key", "id"], "latin.csv, line 1: there is no column \"id\""),
        ("data.txt", &["--format", "raw"], "data.txt, line 1: there is no tab between key and value"),
        ("data.txt", &["--format", "jsonl", "--no-header"], "--header, --no-header"),
    ] {
        let mut arguments = vec!["load", "db", file, "-t", "t"];
        arguments.extend(extra);
        let failure = place.hamal(&arguments).failure(2);
        assert!(failure.starts_with(message), "{failure}");
    }
    assert_eq!(place.names(), before);
    assert_eq!(place.hamal(&["load", "db", "empty.jsonl", "-t", "t", "--json"]).json()["rows"], 0);
    assert_eq!(place.hamal(&["scan", "db", "-t", "t"]).text(), "");
}

#[test]
fn a_missing_table_is_named() {
    let place = Place::new();
    place.hamal(&["put", "db", "-t", "t", "k", "v"]).text();
    for command in [
        &["dump", "db", "-t", "u"][..],
        &["get", "db", "-t", "u", "k"],
        &["del", "db", "-t", "u", "k"],
        &["scan", "db", "-t", "u"],
        &["drop", "db", "-t", "u"],
    ] {
        assert_eq!(place.hamal(command).failure(2), "there is no table \"u\"", "{command:?}");
    }
    assert_eq!(place.hamal(&["tables", "db", "--json"]).json_lines().len(), 1);
}

#[test]
fn a_key_too_long_is_refused_and_changes_nothing() {
    let place = Place::new();
    let key = "k".repeat(10_000);
    assert!(!place.hamal(&["put", "db", "-t", "t", &key, "v"]).failure(2).is_empty());
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn a_file_that_cannot_be_read_is_bad_input_for_put_as_for_load() {
    // It opens, and its first page cannot be read.
    let file = "/proc/self/mem";
    if !std::path::Path::new(file).exists() {
        return;
    }
    let place = Place::new();
    for command in [
        &["put", "db", "-t", "t", "k", "--file", file][..],
        &["load", "db", file, "-t", "t", "--format", "csv"],
    ] {
        assert!(place.hamal(command).failure(2).starts_with("cannot read /proc/self/mem: "), "{command:?}");
    }
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn of_those_that_make_a_database_at_once_none_removes_anothers() {
    for round in 0..8 {
        let place = Place::new();
        // The last one fails after it has made the database, if it comes to that.
        let too_long = "k".repeat(10_000);
        let keys = ["a", "b", "c", "d", "e", "f", "g", &too_long];
        let children = keys.map(|key| {
            let mut command = place.command(&["put", "db", "-t", "t", key, "1"]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        });
        let statuses = children.map(|mut child| child.wait().unwrap().code());
        for (key, status) in keys.iter().zip(statuses) {
            if status == Some(0) {
                assert_eq!(place.hamal(&["get", "db", "-t", "t", key]).text(), "1\n", "round {round}");
            } else {
                assert!(matches!(status, Some(2 | 3)), "round {round}: {status:?}");
            }
        }
        assert!(place.names().iter().all(|name| name == "db"), "round {round}: {:?}", place.names());
    }
}

#[test]
fn a_link_to_nowhere_is_left_alone() {
    let place = Place::new();
    std::os::unix::fs::symlink(place.path("unmounted/db"), place.path("db")).unwrap();
    place.hamal(&["put", "db", "-t", "t", "k", "v"]).failure(3);
    assert_eq!(place.names(), ["db"]);
}

#[test]
fn an_image_goes_into_a_free_directory_only() {
    let place = Place::new();
    std::fs::create_dir(place.path("home")).unwrap();
    place.write("home/thesis", "precious");
    place.write("file", "precious");
    for (arguments, message) in [
        (&["--save-image", "home"][..], "home is not an empty directory"),
        (&["--save-image", "file"], "file is not an empty directory"),
        (
            &["--dir", "new", "--save-image", "new/image"],
            "new/image is inside the database's directory, or around it",
        ),
        (
            &["--dir", "new", "--save-image", "./new"],
            "./new is inside the database's directory, or around it",
        ),
        (&["--dir", "new/db", "--save-image", "new"], "new is inside the database's directory, or around it"),
    ] {
        let mut demo = vec!["demo", "--rounds", "1"];
        demo.extend(arguments);
        assert_eq!(place.hamal(&demo).failure(2), message);
    }
    assert_eq!(place.names(), ["file", "home"]);
    assert_eq!(place.read("home/thesis"), "precious");
}

#[test]
fn a_failed_dump_leaves_the_old_file() {
    let place = Place::new();
    place.hamal(&["put", "db", "-t", "t", "a", "{\"x\":\"a\"}"]).text();
    place.hamal(&["put", "db", "-t", "t", "b", "{\"y\":\"b\"}"]).text();
    place.write("out.csv", "precious");
    assert!(
        place
            .hamal(&["dump", "db", "-t", "t", "-o", "out.csv"])
            .failure(2)
            .starts_with("row b has other columns")
    );
    assert_eq!(place.read("out.csv"), "precious");
    assert_eq!(place.names(), ["db", "out.csv"]);
}

#[test]
fn a_database_in_use_is_status_3() {
    let place = Place::new();
    let db = hamal::Database::open(place.path("db")).unwrap();
    assert!(!place.hamal(&["tables", "db"]).failure(3).is_empty());
    db.close().unwrap();
    assert_eq!(place.hamal(&["tables", "db", "--json"]).text(), "");
}

#[test]
fn help_has_examples_and_the_exit_statuses() {
    let place = Place::new();
    let help = place.hamal(&["--help"]).text();
    assert!(help.contains("Exit status:") && !help.contains("demo-worker"), "{help}");
    for command in [
        "load", "dump", "get", "put", "del", "scan", "tables", "rename", "drop", "stat", "check", "log",
        "page", "recover", "repair", "restore", "demo",
    ] {
        let help = place.hamal(&[command, "--help"]).text();
        assert!(help.contains("Examples:\n  hamal"), "{help}");
    }
}
