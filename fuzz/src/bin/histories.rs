//! Runs clients at once and checks what they saw: rounds of random transactions, some with crashes.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use hamal_fuzz::checker::{Rules, Summary};
use hamal_fuzz::choice::mix;
use hamal_fuzz::histories::{Config, Failure, Levels, Outcomes, run_round};
use indicatif::{ProgressBar, ProgressStyle};

/// Runs random transactions of several threads on Hamal databases, and looks for an answer that no order of them explains.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Transactions to run, over all rounds
    #[arg(long, default_value_t = 50_000)]
    transactions: u64,
    /// Transactions per round
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u64).range(1..))]
    round: u64,
    /// Clients: a number, a list (2,4,8) or a range (2..=16); the rounds go through them in turn
    #[arg(long, default_value = "2..=16", value_parser = parse_threads)]
    threads: Threads,
    /// Seed of the first round
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keys per round
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=99_999))]
    keys: u32,
    /// Stop the simulated machine at random I/Os, and go on after recovery
    #[arg(long, conflicts_with_all = ["directory", "durability"])]
    crash: bool,
    /// Isolation of read-write transactions
    #[arg(long, value_enum, default_value_t = Isolation::Mixed)]
    isolation: Isolation,
    /// Durability of commits
    #[arg(long, value_enum, default_value_t = Durability::Sync)]
    durability: Durability,
    /// Use a temporary directory instead of the simulated disk
    #[arg(long)]
    directory: bool,
    /// Let aborted transactions have read anything
    #[arg(long)]
    committed_only: bool,
    /// Write the history of a failure here
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
    /// Make this mistake in the engine, and succeed only if it is found (needs the feature planted-bugs)
    #[arg(long, value_enum)]
    plant: Option<Plant>,
}

#[derive(Clone, Debug)]
struct Threads(Vec<u32>);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Isolation {
    Serializable,
    Snapshot,
    Mixed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Durability {
    Sync,
    Mixed,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Plant {
    NoValidation,
    EarlySnapshot,
    ShortInterval,
}

fn parse_threads(text: &str) -> Result<Threads, String> {
    let number = |text: &str| match text.trim().parse::<u32>() {
        Ok(number @ 1..=64) => Ok(number),
        _ => Err(format!("{text:?} is not a number from 1 to 64")),
    };
    let threads: Vec<u32> = match text.split_once("..=") {
        Some((first, last)) => (number(first)?..=number(last)?).collect(),
        None => text.split(',').map(number).collect::<Result<_, _>>()?,
    };
    if threads.is_empty() { Err("the range is empty".to_owned()) } else { Ok(Threads(threads)) }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(bug) = arguments.plant
        && !planted(bug)
    {
        eprintln!("built without the feature planted-bugs");
        return ExitCode::FAILURE;
    }
    let failure = campaign(&arguments);
    let good = match (arguments.plant, &failure) {
        (None, failure) => failure.is_none(),
        (Some(bug), Some(failure)) if failure.is_violation => {
            println!("{bug:?} was found");
            true
        }
        (Some(bug), _) => {
            println!("{bug:?} was not found");
            false
        }
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plants a mistake. Returns whether this build can.
#[cfg(feature = "planted-bugs")]
fn planted(bug: Plant) -> bool {
    use hamal::planted::{PlantedBug, plant};
    plant(match bug {
        Plant::NoValidation => PlantedBug::NoValidation,
        Plant::EarlySnapshot => PlantedBug::EarlySnapshot,
        Plant::ShortInterval => PlantedBug::ShortInterval,
    });
    true
}

#[cfg(not(feature = "planted-bugs"))]
fn planted(_: Plant) -> bool {
    false
}

/// A round in which nothing ends for this long hangs.
const HANG: Duration = Duration::from_mins(2);

/// Runs rounds until there are enough transactions, or one fails.
fn campaign(arguments: &Arguments) -> Option<Box<Failure>> {
    let bar = ProgressBar::new(arguments.transactions);
    let style = ProgressStyle::with_template("{elapsed} {wide_bar} {pos} of {len} transactions {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let (progress, over, seed) = (AtomicU64::new(0), AtomicBool::new(false), AtomicU64::new(0));
    let (mut outcomes, mut summary, mut rounds) = (Outcomes::default(), Summary::default(), 0_u64);
    let failure = thread::scope(|scope| {
        scope.spawn(|| watch(&bar, &progress, &over, &seed));
        let mut failure = None;
        while failure.is_none() && progress.load(Ordering::Relaxed) < arguments.transactions {
            let config = round(arguments, rounds);
            seed.store(config.seed, Ordering::Relaxed);
            let (of_round, result) = run_round(&config, &progress);
            rounds += 1;
            outcomes += of_round;
            match result {
                Ok(of_round) => summary += of_round,
                Err(found) => {
                    tell(arguments, &config, &found);
                    failure = Some(found);
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        failure
    });
    bar.finish_and_clear();
    table(rounds, &outcomes, &summary);
    println!("{}", if failure.is_none() { "no failure" } else { "failed" });
    failure
}

/// The settings of a round: its own seed, and the next number of clients.
fn round(arguments: &Arguments, number: u64) -> Config {
    let threads = &arguments.threads.0;
    Config {
        // The first round has the seed that was given, so that a failure can be told by one number.
        seed: if number == 0 { arguments.seed } else { mix(arguments.seed ^ mix(number)) >> 16 },
        transactions: arguments.round,
        threads: threads[number as usize % threads.len()],
        keys: arguments.keys,
        crashes: arguments.crash,
        levels: match arguments.isolation {
            Isolation::Serializable => Levels::Serializable,
            Isolation::Snapshot => Levels::Snapshot,
            Isolation::Mixed => Levels::Mixed,
        },
        mixed_durability: arguments.durability == Durability::Mixed,
        on_disk: arguments.directory,
        rules: Rules { aborted: !arguments.committed_only },
    }
}

/// Shows progress, and ends the process when there is none.
fn watch(bar: &ProgressBar, progress: &AtomicU64, over: &AtomicBool, seed: &AtomicU64) {
    let (mut last, mut since) = (0, Instant::now());
    while !over.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(100));
        let now = progress.load(Ordering::Relaxed);
        bar.set_position(now);
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() > HANG {
            // Its threads will not come back, so the process has to go.
            println!(
                "seed {} hangs: nothing has ended for {} s",
                seed.load(Ordering::Relaxed),
                HANG.as_secs()
            );
            std::process::exit(1);
        }
    }
}

fn tell(arguments: &Arguments, config: &Config, failure: &Failure) {
    println!("\nseed {}, {} threads: {}", config.seed, config.threads, failure.what);
    println!(
        "  run it again, though threads may go another way: --seed {} --threads {}",
        config.seed, config.threads
    );
    if let Some(path) = &arguments.dump {
        let written = fs::File::create(path).and_then(|mut file| {
            writeln!(file, "{config:?}\n{}\n", failure.what)?;
            write!(file, "{:#}", failure.history)
        });
        match written {
            Ok(()) => println!("  the history is in {}", path.display()),
            Err(error) => println!("  the history could not be written to {}: {error}", path.display()),
        }
    }
}

fn table(rounds: u64, outcomes: &Outcomes, summary: &Summary) {
    let rate = |count: u64, nanos: u64| u128::from(count) * 1_000_000_000 / u128::from(nanos.max(1));
    let rows = [
        (rounds, "rounds"),
        (summary.transactions, "transactions checked"),
        (outcomes.committed, "committed, snapshots included"),
        (outcomes.conflicts, "conflicts"),
        (outcomes.aborted, "rolled back"),
        (outcomes.unknown, "of unknown outcome"),
        (summary.unknown_kept, "of unknown outcome, there afterwards"),
        (outcomes.log_full, "that met a full log"),
        (outcomes.crashes, "crashes"),
        (outcomes.crashes_in_recovery, "crashes inside recovery"),
        (outcomes.verifications, "verifications"),
        (outcomes.evictions, "pages evicted"),
        (summary.reads, "reads checked"),
        (summary.edges, "edges"),
        (summary.inferred, "edges inferred"),
    ];
    for (count, what) in rows {
        println!("{count:>12}  {what}");
    }
    println!("{:>12}  transactions run a second", rate(summary.transactions, outcomes.run_nanos));
    println!("{:>12}  transactions checked a second", rate(summary.transactions, outcomes.check_nanos));
}
