//! Runs the crash simulator over many seeds, or one seed with a trace, or the exhaustive sweeps.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use hamal_fuzz::concurrent;
use hamal_fuzz::crash::{self, Report, RunOptions};
use hamal_fuzz::flips::panic_text;
use hamal_fuzz::sweep::{Script, crashes, faults};
use hamal_fuzz::tally::Tally;

/// Crashes Hamal databases on a simulated disk at random I/Os, opens them again, and compares them with a model.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Seeds to run, the last one excluded: 0..10000
    #[arg(long, value_name = "A..B", value_parser = parse_range, default_value = "0..1000")]
    seeds: (u64, u64),
    /// Run seeds from the first one on for this long instead
    #[arg(long, value_name = "MINUTES", conflicts_with = "seed")]
    minutes: Option<f64>,
    /// Run this seed alone
    #[arg(long, value_name = "SEED", conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Tell every operation on standard error (with --seed)
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Several clients at once, whose threads take turns as the seed has it
    #[arg(long, conflicts_with = "sweep")]
    concurrent: bool,
    /// Run one seed in so many twice, and fail if it does not do the same; 0: none
    #[arg(long, value_name = "N", default_value_t = 50, conflicts_with = "seed")]
    twice: u64,
    /// Threads; the machine's cores by default
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// Page size instead of the one that each seed draws from 4096 and 16384
    #[arg(long, value_name = "BYTES", value_parser = parse_page_bytes)]
    page_bytes: Option<usize>,
    /// Exhaustive: crash one fixed piece of work at every I/O, and its recovery too; fail every I/O
    #[arg(long, conflicts_with_all = ["seeds", "minutes", "seed"])]
    sweep: bool,
    /// With --sweep: only one I/O in so many
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), requires = "sweep")]
    stride: u64,
    /// Stop after so many failures
    #[arg(long, default_value_t = 10)]
    failures: usize,
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (first, end) = text.split_once("..").ok_or("two numbers with .. between them")?;
    let number = |text: &str| text.trim().parse::<u64>().map_err(|e| format!("{text:?}: {e}"));
    let (first, end) = (number(first)?, number(end)?);
    if first < end { Ok((first, end)) } else { Err("the first seed must be below the end".to_owned()) }
}

fn parse_page_bytes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes @ (4096 | 8192 | 16384 | 32768 | 65536)) => Ok(bytes),
        _ => Err("one of 4096, 8192, 16384, 32768 and 65536".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let threads =
        arguments.threads.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let clean = if arguments.sweep {
        sweep(&arguments, threads)
    } else if let Some(seed) = arguments.seed {
        run_one(seed, &arguments)
    } else {
        campaign(&arguments, threads)
    };
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a seed; a panic is a failure like any other. On a thread of its own: what earlier runs have left in a thread's buffers would make a
/// run more than a function of its seed.
fn guarded(seed: u64, arguments: &Arguments, trace: bool) -> Result<Report, String> {
    let options = RunOptions { page_bytes: arguments.page_bytes, trace };
    let run = if arguments.concurrent { concurrent::run_seed } else { crash::run_seed };
    let ran = thread::scope(|scope| scope.spawn(|| run(seed, options)).join());
    ran.unwrap_or_else(|panic| Err(format!("panic: {}", panic_text(&*panic))))
}

fn run_one(seed: u64, arguments: &Arguments) -> bool {
    match guarded(seed, arguments, arguments.trace) {
        Ok(report) => {
            print!("{}", report.tally);
            println!("fingerprint {:016x}", report.fingerprint);
            true
        }
        Err(what) => {
            println!("seed {seed} failed: {what}");
            false
        }
    }
}

/// What all threads of a campaign share.
struct Campaign<'a> {
    arguments: &'a Arguments,
    started: Instant,
    next: AtomicU64,
    stop: AtomicBool,
    total: Mutex<Tally>,
    failures: Mutex<BTreeMap<u64, String>>,
    running: Mutex<BTreeMap<u64, Instant>>,
}

/// A seed that takes this long hangs.
const HANG: Duration = Duration::from_mins(2);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn campaign(arguments: &Arguments, threads: usize) -> bool {
    let campaign = Campaign {
        arguments,
        started: Instant::now(),
        next: AtomicU64::new(arguments.seeds.0),
        stop: AtomicBool::new(false),
        total: Mutex::default(),
        failures: Mutex::default(),
        running: Mutex::default(),
    };
    // A panic is told with its seed, once, at the end of that seed.
    std::panic::set_hook(Box::new(|_| {}));
    let hung = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| campaign.work())).collect();
        loop {
            thread::sleep(Duration::from_millis(200));
            campaign.show_progress();
            if let Some(seed) = campaign.hung() {
                // Its thread will not come back, so the process has to go.
                campaign.fail(seed, format!("still running after {} s", HANG.as_secs()));
                campaign.summary();
                std::process::exit(1);
            }
            if workers.iter().all(thread::ScopedJoinHandle::is_finished) {
                return false;
            }
        }
    });
    campaign.summary() && !hung
}

impl Campaign<'_> {
    fn work(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if self.is_over(seed) {
                return;
            }
            lock(&self.running).insert(seed, Instant::now());
            let result = self.run(seed);
            lock(&self.running).remove(&seed);
            match result {
                Ok(report) => *lock(&self.total) += report.tally,
                Err(what) => self.fail(seed, what),
            }
        }
    }

    fn run(&self, seed: u64) -> Result<Report, String> {
        let report = guarded(seed, self.arguments, false)?;
        if self.arguments.twice > 0 && seed.is_multiple_of(self.arguments.twice) {
            let again = guarded(seed, self.arguments, false)?;
            if again != report {
                let (first, second) = (report.fingerprint, again.fingerprint);
                return Err(format!("two runs have the fingerprints {first:016x} and {second:016x}"));
            }
        }
        Ok(report)
    }

    fn is_over(&self, seed: u64) -> bool {
        match self.arguments.minutes {
            Some(minutes) => self.started.elapsed().as_secs_f64() > minutes * 60.0,
            None => seed >= self.arguments.seeds.1,
        }
    }

    fn fail(&self, seed: u64, what: String) {
        let page = self.arguments.page_bytes.map_or(String::new(), |bytes| format!(" --page-bytes {bytes}"));
        let concurrent = if self.arguments.concurrent { " --concurrent" } else { "" };
        println!("\nseed {seed} failed: {what}");
        println!(
            "  replay: cargo run --release -p hamal-fuzz --bin simulate -- --seed {seed} --trace{concurrent}{page}"
        );
        let mut failures = lock(&self.failures);
        failures.insert(seed, what);
        if failures.len() >= self.arguments.failures {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn hung(&self) -> Option<u64> {
        let running = lock(&self.running);
        running.iter().find(|(_, since)| since.elapsed() > HANG).map(|(seed, _)| *seed)
    }

    fn show_progress(&self) {
        if io::stderr().is_terminal() {
            let total = lock(&self.total);
            let seconds = self.started.elapsed().as_secs_f64();
            eprint!(
                "\r{} seeds, {} crashes ({} inside recovery), {} failures, {:.0} s ",
                total.runs,
                total.crashes,
                total.crashes_in_recovery,
                lock(&self.failures).len(),
                seconds
            );
            let _ = io::stderr().flush();
        }
    }

    /// Prints what was done. Returns whether nothing failed.
    fn summary(&self) -> bool {
        let (total, failures) = (lock(&self.total), lock(&self.failures));
        let seconds = self.started.elapsed().as_secs_f64();
        println!("\n{total}");
        println!("{} seeds in {seconds:.1} s", total.runs);
        if failures.is_empty() {
            println!("no failure");
        } else {
            println!("{} failures: seeds {:?}", failures.len(), failures.keys().collect::<Vec<_>>());
        }
        failures.is_empty()
    }
}

fn sweep(arguments: &Arguments, threads: usize) -> bool {
    let sizes = arguments.page_bytes.map_or(vec![4096, 16384], |bytes| vec![bytes]);
    sizes.into_iter().all(|page_bytes| sweep_page_size(arguments, page_bytes, threads as u64))
}

fn sweep_page_size(arguments: &Arguments, page_bytes: usize, threads: u64) -> bool {
    let script = Script::fixed(page_bytes);
    let started = Instant::now();
    match script.ios() {
        Ok((ios, tally)) => println!("pages of {page_bytes} bytes: a script of {ios} I/Os\n{tally}"),
        Err(what) => {
            println!("pages of {page_bytes} bytes: {what}");
            return false;
        }
    }
    let stride = arguments.stride * threads;
    let progress = |what: &'static str| {
        move |io: u64, ios: u64| {
            if io::stderr().is_terminal() {
                eprint!("\r{what}: I/O {io} of {ios} ");
            }
        }
    };
    let crashed = each_thread(threads, |thread| {
        let stride = crashes::Stride { script: stride, recovery: 1, offset: thread * arguments.stride };
        crashes::sweep(&script, stride, &mut progress("crashes"))
    });
    let struck = each_thread(threads, |thread| {
        faults::sweep(&script, stride, thread * arguments.stride, &mut progress("faults"))
    });
    let mut clean = true;
    let mut failed = |what: String| {
        println!("\nfailed: {what}");
        clean = false;
    };
    let (mut tally, mut seen) = (Tally::default(), BTreeMap::new());
    for result in crashed {
        result.map_or_else(&mut failed, |part| tally += part);
    }
    for result in struck {
        result.map_or_else(&mut failed, |part| {
            tally += part.tally;
            part.seen.into_iter().for_each(|(what, count)| *seen.entry(what).or_insert(0) += count);
        });
    }
    println!("\n{tally}");
    for (what, count) in &seen {
        println!("{count:>12}  {what}");
    }
    println!("pages of {page_bytes} bytes: {:.1} s", started.elapsed().as_secs_f64());
    clean
}

/// Runs a part of a sweep on each thread; a panic is a failure like any other.
fn each_thread<T: Send>(
    threads: u64,
    part: impl Fn(u64) -> Result<T, String> + Sync,
) -> Vec<Result<T, String>> {
    let part = &part;
    thread::scope(|scope| {
        let parts: Vec<_> = (0..threads).map(|thread| scope.spawn(move || part(thread))).collect();
        let join = |handle: thread::ScopedJoinHandle<'_, Result<T, String>>| {
            handle.join().unwrap_or_else(|panic| Err(format!("panic: {}", panic_text(&*panic))))
        };
        parts.into_iter().map(join).collect()
    })
}
