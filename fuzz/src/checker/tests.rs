//! Histories written by hand: each anomaly is found and named, and what looks like one and is none passes.

use super::*;

/// `r0=1,2` reads, `a0+3` appends, `w1=4` writes, `len=2` counts all keys, `back0` takes back from operation 0 on.
fn op(word: &str, keys: u32) -> Op {
    let number = |text: &str| text.parse::<u64>().unwrap();
    let pair = |text: &str, by: char| {
        let (key, rest) = text.split_once(by).unwrap();
        (key.parse::<u32>().unwrap(), rest.to_owned())
    };
    if let Some(count) = word.strip_prefix("len=") {
        return Op::Len { keys: 0..keys, count: number(count) };
    }
    if let Some(to) = word.strip_prefix("back") {
        return Op::RollBack { to: to.parse().unwrap() };
    }
    match word.split_at(1) {
        ("r", rest) => {
            let (key, found) = pair(rest, '=');
            Op::Read { key, found: found.split(',').filter(|e| !e.is_empty()).map(number).collect() }
        }
        ("a", rest) => {
            let (key, element) = pair(rest, '+');
            Op::Append { key, element: number(&element) }
        }
        (_, rest) => {
            let (key, element) = pair(rest, '=');
            Op::Write { key, element: number(&element) }
        }
    }
}

/// Lines of `session level outcome begin..end: operations`, with `final` lines for the final values (`-`: nothing). Keys are
/// lists (`L`) and registers (`R`).
fn history(kinds: &str, lines: &[&str], last: &[&str]) -> History {
    let keys: Vec<KeyKind> =
        kinds.chars().map(|kind| if kind == 'L' { KeyKind::List } else { KeyKind::Register }).collect();
    let transactions = lines.iter().map(|line| {
        let (head, ops) = line.split_once(':').unwrap();
        let head: Vec<&str> = head.split_whitespace().collect();
        let (begin, end) = head[3].split_once("..").unwrap();
        Transaction {
            session: head[0].parse().unwrap(),
            level: match head[1] {
                "ser" => Level::Serializable,
                "si" => Level::Snapshot,
                _ => Level::ReadOnly,
            },
            outcome: match head[2] {
                "ok" => Outcome::Committed,
                "abort" => Outcome::Aborted,
                _ => Outcome::Unknown,
            },
            begin: begin.parse().unwrap(),
            end: end.parse().unwrap(),
            ops: ops.split_whitespace().map(|word| op(word, kinds.len() as u32)).collect(),
        }
    });
    let value = |text: &&str| {
        text.split(',').filter(|e| !e.is_empty() && *e != "-").map(|e| e.parse().unwrap()).collect()
    };
    History { keys, transactions: transactions.collect(), final_state: last.iter().map(value).collect() }
}

#[track_caller]
fn clean(history: &History) -> Summary {
    check(history, Rules::default()).unwrap_or_else(|violation| panic!("{violation}"))
}

#[track_caller]
fn finds(anomaly: Anomaly, in_real_time: bool, history: &History) -> String {
    let violation = check(history, Rules::default()).unwrap_err();
    assert_eq!((violation.anomaly, violation.in_real_time), (anomaly, in_real_time), "{violation}");
    violation.to_string()
}

#[test]
fn an_empty_history_is_clean() {
    let summary = clean(&history("", &[], &[]));
    assert_eq!((summary.transactions, summary.effective), (0, 0));
}

#[test]
fn transactions_one_after_the_other_are_clean() {
    let one = history(
        "LR",
        &[
            "0 ser ok 1..2: r0= a0+1 r0=1 w1=7 r1=7 len=2",
            "1 ser ok 3..4: r0=1 a0+2 r1=7 w1=8",
            "0 ro ok 5..6: r0=1,2 r1=8 len=2",
            "1 si ok 7..8: r0=1,2 a0+3",
            "1 ser abort 9..10: a0+4 w1=9 r1=9",
        ],
        &["1,2,3", "8"],
    );
    let summary = clean(&one);
    assert_eq!((summary.transactions, summary.effective), (5, 4));
}

#[test]
fn a_transaction_must_see_its_own_writes_and_repeat_its_reads() {
    for ops in [
        "a0+1 r0=",
        "r0= r0=9",
        "w1=1 r1=",
        "w1=1 w1=2 r1=1",
        "r1= r1=5",
        "a0+1 back0 r0=1",
        "w1=1 back0 r1=1",
    ] {
        let line = format!("0 ser abort 5..6: {ops}");
        finds(Anomaly::Internal, false, &history("LR", &["1 ser ok 1..2: a0+9 w1=5", &line], &["9", "5"]));
    }
}

#[test]
fn what_nobody_wrote_there_is_garbage() {
    finds(Anomaly::Garbage, false, &history("L", &["0 ro ok 1..2: r0=4"], &["-"]));
    finds(
        Anomaly::Garbage,
        false,
        &history("LL", &["0 ser ok 1..2: a0+4", "0 ro ok 3..4: r1=4"], &["4", "-"]),
    );
    finds(Anomaly::Garbage, false, &history("R", &[], &["4"]));
}

#[test]
fn an_element_is_in_its_list_once() {
    finds(Anomaly::Duplicate, false, &history("L", &["0 ser ok 1..2: a0+4"], &["4,4"]));
}

#[test]
fn g1a_a_read_of_what_was_rolled_back() {
    let lines = ["0 ser abort 1..4: a0+1", "1 ser ok 2..3: r0=1"];
    finds(Anomaly::G1a, false, &history("L", &lines, &["-"]));
    let lines = ["0 ser abort 1..4: w0=1", "1 ser ok 2..3: r0=1"];
    finds(Anomaly::G1a, false, &history("R", &lines, &["-"]));
    let lines = ["0 ser ok 1..4: w0=1 back0 w0=2", "1 ser ok 2..3: r0=1"];
    finds(Anomaly::G1a, false, &history("R", &lines, &["2"]));
    finds(Anomaly::G1a, false, &history("L", &["0 ser abort 1..4: a0+1"], &["1"]));
}

#[test]
fn g1b_a_read_in_the_midst() {
    let lines = ["0 ser ok 1..4: a0+1 a0+2", "1 ser ok 2..3: r0=1"];
    finds(Anomaly::G1b, false, &history("L", &lines, &["1,2"]));
    let lines = ["0 ser ok 1..4: w0=1 w0=2", "1 ser ok 2..3: r0=1"];
    finds(Anomaly::G1b, false, &history("R", &lines, &["2"]));
}

#[test]
fn a_list_begins_as_the_final_one() {
    let lines = ["0 ser ok 1..3: a0+1", "1 ser ok 2..4: a0+2", "2 ro ok 5..6: r0=2"];
    finds(Anomaly::NotAPrefix, false, &history("L", &lines, &["1,2"]));
}

#[test]
fn an_acknowledged_append_is_there_whole() {
    finds(Anomaly::Lost, false, &history("L", &["0 ser ok 1..2: a0+1"], &["-"]));
    finds(Anomaly::Half, false, &history("LL", &["0 ser ok 1..2: a0+1 a1+2"], &["1", "-"]));
    finds(Anomaly::Half, false, &history("LL", &["0 ser unknown 1..2: a0+1 a1+2"], &["-", "2"]));
}

#[test]
fn an_unknown_outcome_is_all_or_nothing_and_either_is_fine() {
    let unknown = "0 ser unknown 1..4: a0+1 a1+2";
    assert_eq!(clean(&history("LL", &[unknown], &["1", "2"])).unknown_kept, 1);
    assert_eq!(clean(&history("LL", &[unknown], &["-", "-"])).unknown_lost, 1);
    // Before it was settled anybody may be before it; nobody after.
    clean(&history("LL", &[unknown, "1 ro ok 2..3: r0="], &["1", "2"]));
    let late = [unknown, "1 ro ok 5..6: r0="];
    finds(Anomaly::GSingle, true, &history("LL", &late, &["1", "2"]));
}

#[test]
fn only_those_who_did_not_commit_may_have_read_what_a_crash_took() {
    let unknown = "0 ser unknown 1..9: a0+1";
    for (reader, fine) in [
        ("1 ser abort 2..3: r0=1", true),
        ("1 ser unknown 2..9: r0=1 a0+2", true),
        ("1 ser ok 2..3: r0=1", false),
        ("1 ro ok 2..3: r0=1", false),
    ] {
        let history = history("L", &[unknown, reader], &["-"]);
        if fine {
            clean(&history);
        } else {
            finds(Anomaly::TakenBack, false, &history);
        }
    }
}

#[test]
fn g0_two_that_write_two_lists_in_two_orders() {
    let lines = ["0 ser ok 1..3: a0+1 a1+2", "1 ser ok 2..4: a0+3 a1+4"];
    for level in ["ser", "si"] {
        let lines = lines.map(|line| line.replace("ser", level));
        finds(Anomaly::G0, false, &history("LL", &[&lines[0], &lines[1]], &["1,3", "4,2"]));
    }
    clean(&history("LL", &lines, &["1,3", "2,4"]));
}

#[test]
fn g1c_each_sees_the_others_write() {
    for level in ["ser", "si"] {
        let lines = ["0 ser ok 1..3: a0+1 r1=2", "1 ser ok 2..4: a1+2 r0=1"];
        let lines = lines.map(|line| line.replace("ser", level));
        finds(Anomaly::G1c, false, &history("LL", &[&lines[0], &lines[1]], &["1", "2"]));
    }
}

#[test]
fn g_single_a_view_of_half_a_commit() {
    for level in ["ser", "si", "ro"] {
        let reader = format!("1 {level} ok 2..4: r0= r1=2");
        let lines = ["0 ser ok 1..3: a0+1 a1+2", &reader];
        let told = finds(Anomaly::GSingle, false, &history("LL", &lines, &["1", "2"]));
        assert!(told.contains("T1 did not see what T0 wrote under key 0"), "{told}");
        assert!(told.contains("T0 wrote what T1 read under key 1"), "{told}");
        // With registers: nothing was there before.
        let lines = ["0 ser ok 1..3: w0=1 w1=2", &reader];
        finds(Anomaly::GSingle, false, &history("RR", &lines, &["1", "2"]));
    }
}

#[test]
fn g_single_a_lost_update() {
    for level in ["ser", "si"] {
        let lines = ["0 ser ok 1..3: r0= a0+1", "1 ser ok 2..4: r0= a0+2"].map(|l| l.replace("ser", level));
        finds(Anomaly::GSingle, false, &history("L", &[&lines[0], &lines[1]], &["1,2"]));
        let lines = ["0 ser ok 1..3: r0= w0=1", "1 ser ok 2..4: r0= w0=2"].map(|l| l.replace("ser", level));
        finds(Anomaly::GSingle, false, &history("R", &[&lines[0], &lines[1]], &["2"]));
    }
}

#[test]
fn write_skew_is_g2_and_allowed_to_snapshot_isolation_alone() {
    for kinds in ["LL", "RR"] {
        let write = if kinds == "LL" { ["a0+1", "a1+2"] } else { ["w0=1", "w1=2"] };
        for (levels, fine) in
            [(["ser", "ser"], false), (["si", "si"], true), (["si", "ser"], true), (["ser", "si"], true)]
        {
            let lines = [
                format!("0 {} ok 1..3: r0= r1= {}", levels[0], write[0]),
                format!("1 {} ok 2..4: r0= r1= {}", levels[1], write[1]),
            ];
            let one = history(kinds, &[&lines[0], &lines[1]], &["1", "2"]);
            if fine {
                clean(&one);
            } else {
                finds(Anomaly::G2, false, &one);
            }
        }
    }
}

#[test]
fn a_long_fork_is_g2_and_not_allowed_to_snapshot_isolation() {
    for level in ["ser", "si", "ro"] {
        let lines = [
            "0 si ok 1..8: a0+1".to_owned(),
            "1 si ok 2..7: a1+2".to_owned(),
            format!("2 {level} ok 3..6: r0=1 r1="),
            format!("3 {level} ok 4..5: r0= r1=2"),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        finds(Anomaly::G2, false, &history("LL", &lines, &["1", "2"]));
    }
}

#[test]
fn a_read_only_transaction_may_not_make_snapshot_isolation_look_serializable() {
    // Fekete, O'Neil and O'Neil: each pair is fine, the three are not.
    let lines = ["0 LEVEL ok 1..8: r0= r1= a0+1", "1 LEVEL ok 2..3: r1= a1+2", "2 ro ok 4..5: r0= r1=2"];
    let at = |level: &str| {
        let lines = lines.map(|line| line.replace("LEVEL", level));
        history("LL", &[&lines[0], &lines[1], &lines[2]], &["1", "2"])
    };
    clean(&at("si"));
    assert!(check(&at("ser"), Rules::default()).is_err());
}

#[test]
fn a_phantom_is_a_miss_in_a_scan() {
    let lines = ["0 ser ok 1..3: r0= r1= r2= a0+1", "1 ser ok 2..4: r0= r1= r2= a1+2"];
    finds(Anomaly::G2, false, &history("LLL", &lines, &["1", "2", "-"]));
}

#[test]
fn a_stale_read_is_seen_in_real_time_or_within_its_session() {
    let stale = |session: u32, level: &str, kinds: &str| {
        let write = if kinds == "L" { "a0+1" } else { "w0=1" };
        let lines = [format!("0 ser ok 1..2: {write}"), format!("{session} {level} ok 3..4: r0=")];
        history(kinds, &[&lines[0], &lines[1]], &["1"])
    };
    for level in ["ser", "si", "ro"] {
        for kinds in ["L", "R"] {
            let told = finds(Anomaly::GSingle, true, &stale(0, level, kinds));
            assert!(told.contains("within sessions"), "{told}");
            let told = finds(Anomaly::GSingle, true, &stale(1, level, kinds));
            assert!(told.contains("in real time"), "{told}");
        }
    }
}

#[test]
fn a_snapshot_may_lag_behind_what_is_not_acknowledged() {
    let lines = ["0 ser ok 1..8: a0+1", "1 ser ok 2..7: r0=1 a1+2", "2 ro ok 3..4: r0= r1="];
    clean(&history("LL", &lines, &["1", "2"]));
    // An aborted transaction may have seen what a snapshot after it does not.
    let lines = ["0 ser ok 1..8: a0+1", "1 ser abort 2..3: r0=1", "1 ro ok 4..5: r0="];
    clean(&history("L", &lines, &["1"]));
    // One that committed has made all that it saw visible.
    let lines = ["0 ser ok 1..8: a0+1", "1 ser ok 2..3: r0=1", "2 ro ok 4..5: r0="];
    finds(Anomaly::GSingle, true, &history("L", &lines, &["1"]));
}

#[test]
fn an_aborted_transaction_must_have_read_one_state_unless_that_is_not_asked() {
    let lines = ["0 ser ok 1..3: a0+1 a1+2", "1 ser abort 2..4: r0= r1=2"];
    let one = history("LL", &lines, &["1", "2"]);
    finds(Anomaly::GSingle, false, &one);
    assert!(check(&one, Rules { aborted: false }).is_ok());
}

#[test]
fn the_order_of_blind_writes_is_inferred_from_who_saw_what() {
    // 2 was written after 1 had been, in real time; T3 saw 2 and T4, later, sees 1 again.
    let lines = ["0 ser ok 1..2: w0=1", "1 ser ok 3..4: w0=2", "3 ser ok 5..6: r0=2", "2 ser ok 7..8: r0=1"];
    finds(Anomaly::GSingle, true, &history("R", &lines, &["2"]));
    // Concurrent blind writes: either order, but one.
    let writes = ["0 ser ok 1..10: w0=1", "1 ser ok 2..11: w0=2"];
    for (first, second, fine) in [(1, 2, true), (2, 2, true), (2, 1, false)] {
        let readers = [format!("2 ser ok 12..13: r0={first}"), format!("2 ser ok 14..15: r0={second}")];
        let one = history("R", &[writes[0], writes[1], &readers[0], &readers[1]], &["2"]);
        if fine && first == second {
            clean(&one);
        } else {
            assert!(check(&one, Rules::default()).is_err(), "{first} {second}");
        }
    }
    let mixed = ["2 ser ok 3..4: r0=1", "3 ser ok 5..6: r0=2"];
    clean(&history("R", &[writes[0], writes[1], mixed[0], mixed[1]], &["2"]));
    let told = check(&history("R", &[writes[0], writes[1], mixed[0], mixed[1]], &["1"]), Rules::default());
    assert!(told.is_err());
}

#[test]
fn overlapping_blind_writes_and_updates_are_clean() {
    let lines = [
        "0 ser ok 1..6: w0=1",
        "1 ser ok 2..7: w0=2",
        "2 ser ok 3..8: r0=1 w0=3",
        "3 ro ok 4..5: r0=",
        "3 ser ok 9..10: r0=2",
    ];
    clean(&history("R", &lines, &["2"]));
}

#[test]
fn a_count_is_within_what_an_order_explains() {
    let create = "0 ser ok 1..2: a0+1";
    for (count, fine) in [(0, false), (1, true), (2, true), (3, false)] {
        // Key 1 may be there or not; key 2 was never.
        let reader = format!("2 ser ok 4..5: len={count}");
        let one = history("LLL", &[create, "1 ser ok 3..6: a1+2", &reader], &["1", "2", "-"]);
        if fine {
            clean(&one);
        } else {
            finds(Anomaly::Count, false, &one);
        }
    }
    // Its own keys count, and those it knows.
    clean(&history("LL", &["0 ser ok 1..2: len=0 a0+1 len=1 a1+2 len=2 back2 len=1"], &["1", "-"]));
    finds(Anomaly::Count, false, &history("LL", &["0 ser ok 1..2: a0+1 len=0"], &["1", "-"]));
}

#[test]
fn what_is_rolled_back_to_a_savepoint_is_as_if_it_had_not_been() {
    let lines = ["0 ser ok 1..2: r0= a0+1 w1=2 back1 r0= r1= a0+3 r0=3", "1 ro ok 3..4: r0=3 r1="];
    clean(&history("LR", &lines, &["3", "-"]));
}

#[test]
fn a_recorder_that_contradicts_itself_is_told_so() {
    for lines in [
        ["0 ser ok 2..1: a0+1", "1 ser ok 3..4: a0+2"],
        ["0 ser ok 1..3: a0+1", "0 ser ok 2..4: a0+2"],
        ["0 ser ok 1..2: a0+1", "1 ser ok 3..4: a0+1"],
        ["0 ser ok 1..2: a0+1", "1 ro ok 3..4: a0+2"],
        ["0 ser ok 1..2: a0+1", "1 ser ok 3..4: w0=2"],
    ] {
        finds(Anomaly::Malformed, false, &history("L", &lines, &["1,2"]));
    }
}
