//! A slice of every campaign, small enough for each change. The binaries run the whole of them.

use std::sync::atomic::AtomicU64;

use hamal_fuzz::checker::Rules;
use hamal_fuzz::crash::{RunOptions, run_seed};
use hamal_fuzz::histories::{Config, Levels, Outcomes, run_round};
use hamal_fuzz::rot;
use hamal_fuzz::sweep::{Script, crashes, faults};
use hamal_fuzz::tally::Tally;
use hamal_fuzz::targets;

fn run(seeds: std::ops::Range<u64>, page_bytes: usize) -> Tally {
    let options = RunOptions { page_bytes: Some(page_bytes), trace: false };
    let mut total = Tally::default();
    for seed in seeds {
        match run_seed(seed, options) {
            Ok(report) => total += report.tally,
            Err(what) => panic!("seed {seed}, pages of {page_bytes} bytes: {what}"),
        }
    }
    total
}

/// Fails if a campaign has stopped reaching what it is there for.
fn assert_paths_ran(total: &Tally) {
    let entries = total.entries();
    let needed = [
        "crashes inside open or recovery",
        "pages stolen",
        "compensation records",
        "losers",
        "losers undone behind the open",
        "opens followed by work with something left to undo",
        "records undone by recovery",
        "page changes redone",
        "commits in doubt, gone",
        "relaxed commits taken back by a crash",
        "rollbacks to a savepoint",
        "overflow values written",
        "table changes",
        "log full",
        "log segments recycled",
        "page images checked by the monitor",
    ];
    for name in needed {
        let count = entries.iter().find(|(label, _)| *label == name).map(|(_, count)| *count);
        assert!(count.is_some_and(|count| count > 0), "{name}: {count:?} in\n{total}");
    }
}

#[test]
fn no_seed_loses_what_was_acknowledged_with_pages_of_4_kib() {
    assert_paths_ran(&run(400_000..400_100, 4096));
}

#[test]
fn no_seed_loses_what_was_acknowledged_with_pages_of_16_kib() {
    assert_paths_ran(&run(200_000..200_100, 16384));
}

#[test]
fn the_same_seed_does_the_same_twice() {
    for seed in [1, 2, 3, 4, 5] {
        let options = RunOptions::default();
        assert_eq!(run_seed(seed, options), run_seed(seed, options), "seed {seed}");
    }
}

#[test]
fn a_crash_at_any_io_of_the_script_and_of_its_recovery_is_survived() {
    let stride = crashes::Stride { script: 23, recovery: 11, offset: 0 };
    let tally =
        crashes::sweep(&Script::fixed(4096), stride, &mut |_, _| {}).unwrap_or_else(|what| panic!("{what}"));
    assert!(tally.crashes_in_recovery > 20, "{tally}");
}

#[test]
fn any_io_may_fail_in_any_way_and_the_answer_is_the_right_error() {
    let answers =
        faults::sweep(&Script::fixed(4096), 29, 3, &mut |_, _| {}).unwrap_or_else(|what| panic!("{what}"));
    assert!(answers.tally.faults > 30, "{answers:?}");
}

#[test]
fn the_fuzz_targets_take_their_own_corpora() {
    let (log, page, operations) =
        (targets::log_corpus(), targets::page_corpus(), targets::operations_corpus());
    assert!(log.len() > 10 && page.len() > 10 && operations.len() > 10);
    log.iter().step_by(8).for_each(|input| targets::log_bytes(input));
    page.iter().step_by(8).for_each(|input| targets::page_bytes(input));
    operations.iter().take(8).for_each(|input| targets::operations(input));
}

/// Rounds of a few hundred transactions, all of whose histories must have an order.
fn histories(seeds: std::ops::Range<u64>, crashes: bool) -> Outcomes {
    let mut total = Outcomes::default();
    for seed in seeds {
        let config = Config {
            seed,
            transactions: 300,
            threads: 2 + seed as u32 % 7,
            keys: 20,
            crashes,
            levels: Levels::Mixed,
            mixed_durability: !crashes,
            on_disk: false,
            rules: Rules::default(),
        };
        let (outcomes, result) = run_round(&config, &AtomicU64::new(0));
        if let Err(failure) = result {
            panic!("seed {seed}, {config:?}: {}", failure.what);
        }
        total += outcomes;
    }
    total
}

#[test]
fn some_order_explains_what_clients_saw() {
    let outcomes = histories(0..8, false);
    assert!(outcomes.committed > 1500 && outcomes.aborted > 30, "{outcomes:?}");
}

#[test]
fn some_order_explains_what_clients_saw_across_crashes() {
    let outcomes = histories(100..106, true);
    assert!(outcomes.crashes > 8 && outcomes.crashes_in_recovery > 0, "{outcomes:?}");
    assert!(outcomes.unknown > 0, "{outcomes:?}");
}

#[test]
fn pages_that_rot_are_healed_or_reported_and_nobody_is_misled() {
    let mut total = rot::Outcomes::default();
    for (seed, sources) in [(1, rot::Sources::Chance), (2, rot::Sources::Backup), (3, rot::Sources::Chance)] {
        total.merge(rot::run_seed(seed, sources, 120).unwrap_or_else(|what| panic!("{what}")));
    }
    for way in ["flips", "zeros", "misplaced", "foreign", "stale"] {
        let healed =
            |(name, count): (&String, &u64)| name.starts_with(way) && name.contains("healed") && *count > 0;
        assert!(total.seen.iter().any(healed), "{way}: {total:?}");
    }
    assert!(total.total("by a scrub") > 0, "{total:?}");
}
