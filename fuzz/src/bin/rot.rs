//! Damages pages of databases that run, and sees that each is healed or reported, and that nobody is misled.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use clap::Parser;
use hamal_fuzz::rot::{Outcomes, Sources, run_seed};

/// Damages pages of databases that run: every page must be healed or reported, and every answer right.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Pages to damage, in all
    #[arg(long, default_value_t = 10_000)]
    count: u64,
    /// Pages to damage in one database
    #[arg(long, default_value_t = 250)]
    each: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads; the machine's cores by default
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let threads =
        arguments.threads.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let (next, wounds) = (AtomicU64::new(arguments.seed), AtomicU64::new(0));
    let total: Mutex<(Outcomes, Vec<String>)> = Mutex::default();
    let work = || {
        while wounds.load(Ordering::Relaxed) < arguments.count {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            // Every other database has a backup.
            let sources = if seed.is_multiple_of(2) { Sources::Backup } else { Sources::Chance };
            let ran = run_seed(seed, sources, arguments.each);
            let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match ran {
                Ok(outcomes) => {
                    let all = wounds.fetch_add(outcomes.wounds, Ordering::Relaxed) + outcomes.wounds;
                    let (of_these, healed) =
                        (outcomes.wounds, outcomes.total("as it was") + outcomes.total("newer changes"));
                    eprintln!(
                        "seed {seed}, {sources:?}: {of_these} pages, {healed} healed; {all} pages so far"
                    );
                    total.0.merge(outcomes);
                }
                Err(what) => {
                    println!("failed: {what}");
                    total.1.push(what);
                    // Enough is known.
                    wounds.fetch_add(arguments.each, Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let (outcomes, failures) = total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (what, count) in &outcomes.seen {
        println!("{count:>8}  {what}");
    }
    let reported = outcomes.total("by a scrub") + outcomes.total("by an error");
    println!(
        "{} pages damaged: {} healed, {reported} reported, {} free; {} failures",
        outcomes.wounds,
        outcomes.total("as it was") + outcomes.total("newer changes"),
        outcomes.total(": free"),
        failures.len()
    );
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
