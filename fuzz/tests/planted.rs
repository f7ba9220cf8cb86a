//! The campaign of histories finds each mistake that is planted in the engine.
//!
//! Needs the feature: `cargo test --release -p hamal-fuzz --features planted-bugs --test planted`.

#![cfg(feature = "planted-bugs")]

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use hamal::planted::{PlantedBug, plant};
use hamal_fuzz::checker::Rules;
use hamal_fuzz::histories::{Config, Levels, run_round};

/// Rounds after which a mistake counts as not found.
const ROUNDS: u64 = 60;

/// One mistake at a time: the switch is the process's.
static TURN: Mutex<()> = Mutex::new(());

/// The violation that the first round to find one found.
fn first_violation(bug: PlantedBug, levels: Levels, rounds: u64) -> Option<String> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    plant(bug);
    let found = (0..rounds).find_map(|seed| {
        let config = Config {
            seed,
            transactions: 1000,
            threads: 2 + seed as u32 % 7,
            keys: 16,
            crashes: false,
            levels,
            mixed_durability: false,
            on_disk: false,
            rules: Rules::default(),
        };
        match run_round(&config, &AtomicU64::new(0)).1 {
            Ok(_) => None,
            Err(failure) if failure.is_violation => Some(format!("{bug:?}, seed {seed}: {}", failure.what)),
            Err(failure) => panic!("{bug:?}, seed {seed}: {}", failure.what),
        }
    });
    plant(PlantedBug::None);
    found
}

#[track_caller]
fn is_found(bug: PlantedBug) {
    match first_violation(bug, Levels::Serializable, ROUNDS) {
        Some(violation) => println!("{violation}"),
        None => panic!("{bug:?} was not found in {ROUNDS} rounds"),
    }
}

#[test]
fn commits_that_do_not_validate_are_found() {
    is_found(PlantedBug::NoValidation);
}

#[test]
fn snapshots_that_begin_too_early_are_found() {
    is_found(PlantedBug::EarlySnapshot);
}

#[test]
fn scans_remembered_too_short_are_found() {
    is_found(PlantedBug::ShortInterval);
}

#[test]
fn without_a_mistake_nothing_is_found() {
    assert_eq!(first_violation(PlantedBug::None, Levels::Mixed, 10), None);
}
