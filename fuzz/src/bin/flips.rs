//! Changes single bytes of a closed database's files and sees that nobody is misled.
//!
//! The allocator has a limit, so an allocation sized by damage ends the process instead of the machine.

use std::alloc::System;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use cap::Cap;
use clap::Parser;
use hamal_fuzz::flips::{Consequences, Victim};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// More than this per thread, over what the databases themselves take, is running away.
const ALLOWANCE_BYTES: usize = 256 << 20;
/// A flip that takes this long hangs.
const HANG: Duration = Duration::from_mins(1);

/// Changes single bytes of a closed database's files: every answer must be right, or an error that names the place.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Flips to try, for each page size
    #[arg(long, default_value_t = 10_000)]
    count: u64,
    /// What they are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Page size instead of both 4096 and 16384
    #[arg(long, value_name = "BYTES")]
    page_bytes: Option<usize>,
    /// Threads; the machine's cores by default
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let sizes = arguments.page_bytes.map_or(vec![4096, 16384], |bytes| vec![bytes]);
    let clean =
        sizes.into_iter().map(|page_bytes| run(&arguments, page_bytes)).fold(true, |all, one| all & one);
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(arguments: &Arguments, page_bytes: usize) -> bool {
    let threads =
        arguments.threads.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let victim = match Victim::make(page_bytes) {
        Ok(victim) => victim,
        Err(what) => {
            println!("pages of {page_bytes} bytes: {what}");
            return false;
        }
    };
    println!("pages of {page_bytes} bytes: a database of {} bytes", victim.bytes());
    let _ = ALLOCATOR.set_limit(ALLOCATOR.allocated() + threads * ALLOWANCE_BYTES);
    let running: Mutex<BTreeMap<usize, (String, Instant)>> = Mutex::default();
    let lock = || running.lock().unwrap_or_else(PoisonError::into_inner);
    let share = |index: usize| {
        let (count, threads) = (arguments.count, threads as u64);
        count / threads + u64::from((index as u64) < count % threads)
    };
    let campaign = |index: usize| {
        let result = victim.campaign(arguments.seed + index as u64, share(index), &mut |flip| {
            lock().insert(index, (flip.to_string(), Instant::now()));
        });
        lock().remove(&index);
        result
    };
    let campaign = &campaign;
    let results = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|index| scope.spawn(move || campaign(index))).collect();
        while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(50));
            if let Some((flip, _)) = lock().values().find(|(_, since)| since.elapsed() > HANG) {
                println!("failed: {flip} still goes on after {} s", HANG.as_secs());
                std::process::exit(1);
            }
        }
        let join = |worker: thread::ScopedJoinHandle<'_, _>| {
            worker.join().unwrap_or_else(|_| Err("the campaign itself panicked".to_owned()))
        };
        workers.into_iter().map(join).collect::<Vec<Result<Consequences, String>>>()
    });
    let mut total = Consequences::default();
    let mut clean = true;
    for result in results {
        match result {
            Ok(part) => total.merge(part),
            Err(what) => {
                println!("failed: {what}");
                clean = false;
            }
        }
    }
    for (what, count) in &total.seen {
        println!("{count:>8}  {what}");
    }
    println!("memory: at most {} MiB at once", ALLOCATOR.max_allocated() >> 20);
    clean
}
