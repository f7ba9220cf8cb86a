//! Rounds of `hamal demo`: a real process, killed with SIGKILL at random moments, or with a file lost, on the real file system.
//!
//! `HAMAL_KILL_ROUNDS=200 cargo test -p hamal-cli --test kill` is the campaign; `HAMAL_KILL_SEED` repeats its work (not the moments).

#![expect(clippy::unwrap_used, reason = "a test")]

use std::process::Command;

use serde_json::Value as Json;

fn demo(arguments: &[&str]) -> (Vec<Json>, String, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_hamal")).arg("demo").args(arguments).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let documents = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (documents, String::from_utf8(output.stderr).unwrap(), output.status.code())
}

#[test]
fn a_partition_that_is_lost_costs_its_range_until_it_is_repaired() {
    let (documents, stderr, status) = demo(&["--partitions", "--seed", "1", "--json"]);
    let wrong = documents.iter().find(|document| document["right"] == false);
    assert!(status == Some(0) && wrong.is_none(), "status {status:?}, {stderr}, {wrong:?}");
    let outages = documents.iter().filter(|document| document["type"] == "outage").count();
    assert_eq!((outages, &documents.last().expect("a summary")["rounds"]), (6, &6.into()));
}

#[test]
fn acknowledged_transactions_survive_sigkill_and_the_others_are_whole_or_absent() {
    let rounds = std::env::var("HAMAL_KILL_ROUNDS").unwrap_or_else(|_| "3".to_owned());
    let seed = std::env::var("HAMAL_KILL_SEED").unwrap_or_else(|_| "1".to_owned());
    let (documents, stderr, status) =
        demo(&["--rounds", &rounds, "--seed", &seed, "--kill-within", "600ms", "--json"]);
    let wrong = documents.iter().find(|document| document["right"] == false);
    assert!(status == Some(0) && wrong.is_none(), "seed {seed}: status {status:?}, {stderr}, {wrong:?}");
    let summary = documents.last().expect("a summary");
    assert_eq!(summary["rounds"].to_string(), rounds, "seed {seed}");
    // The paths that the campaign is there for have run.
    let acknowledged = summary["acknowledged"].as_u64().unwrap_or(0);
    assert!(acknowledged > 0, "seed {seed}: {summary}");
    println!("{summary}");
}
