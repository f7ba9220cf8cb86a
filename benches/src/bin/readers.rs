//! What a reader's `get` in a snapshot takes: when nothing else goes on, on rows that an open transaction has changed, during
//! checkpoints, and beside a transaction of a gigabyte. Every value read is compared with the committed one.
//!
//! The reader asks again as soon as it has its answer, so the histograms show what a get takes once it was asked, not queueing.
//! Where snapshots wait for writers, the wait runs into the lock timeout and the case says so; a call that does not even return
//! ends the program.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use hamal::{Database, Durability, Options};
use hamal_benches::peer::{Hamal, Outcome, Peer, ROWS};
use hamal_benches::place::{fresh_directory, fresh_directory_in};
use hamal_benches::rows::{Picks, ROW_BYTES, Seed, key, value};
use hamal_benches::writers::cell::{latency_histogram, ns_since};
use hamal_benches::writers::report::microseconds;
use hdrhistogram::Histogram;
use serde::Serialize;

/// Measures a snapshot reader beside different writers, and prints Markdown.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// What goes on meanwhile.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Case::ALL)]
    cases: Vec<Case>,
    /// Rows of the database.
    #[arg(long, default_value_t = 200_000)]
    rows: u64,
    /// Rows that the open transaction has changed.
    #[arg(long, default_value_t = 5000)]
    locked_rows: u64,
    /// Rows changed between two checkpoints.
    #[arg(long, default_value_t = 1000)]
    checkpoint_rows: u64,
    /// Size of the large transaction, MiB.
    #[arg(long, default_value_t = 1024)]
    transaction_mib: u64,
    /// Seconds per case; the large transaction is read beside until it is written.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Gets per snapshot.
    #[arg(long, default_value_t = 100)]
    gets_per_snapshot: u64,
    /// Cache, MiB.
    #[arg(long, default_value_t = 256)]
    cache_mib: u64,
    /// Longest wait for a lock, seconds.
    #[arg(long, default_value_t = 10.0)]
    timeout_seconds: f64,
    /// Where to keep the databases.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Also write the results to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Small and short: shows that it works, measures nothing.
    #[arg(long)]
    smoke: bool,
}

impl Arguments {
    fn timeout(&self) -> Outcome<Duration> {
        Ok(Duration::try_from_secs_f64(self.timeout_seconds)?)
    }
}

/// What goes on while the reader reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Case {
    /// Nothing.
    Idle,
    /// A transaction has changed just the rows that are read, and stays open.
    LockedRows,
    /// One checkpoint after another, with changed rows to write back.
    Checkpoints,
    /// A transaction writes on and on: new rows, and every eighth time one that is read.
    LargeTransaction,
}

impl Case {
    const ALL: [Case; 4] = [Case::Idle, Case::LockedRows, Case::Checkpoints, Case::LargeTransaction];

    fn name(self) -> &'static str {
        match self {
            Case::Idle => "idle",
            Case::LockedRows => "locked rows",
            Case::Checkpoints => "checkpoints",
            Case::LargeTransaction => "large transaction",
        }
    }
}

/// How the reader and its rival hear of each other. Relaxed: no data is passed by these.
#[derive(Debug, Default)]
struct Signals {
    /// The reader has ended.
    reader_done: AtomicBool,
    /// The rival has no more to do than to hold what it has.
    rival_done: AtomicBool,
    /// Grow with every few calls of the engine that return.
    reader_beats: AtomicU64,
    rival_beats: AtomicU64,
}

impl Signals {
    fn hold_until_read(&self) {
        while !self.reader_done.load(Ordering::Relaxed) {
            self.rival_beats.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What the reader measured.
struct Reads {
    get_ns: Histogram<u64>,
    /// Taking the snapshot and opening the table.
    snapshot_ns: Histogram<u64>,
    /// It gave up waiting.
    timeout: Option<String>,
}

/// What the rival did, for people.
type Deeds = String;

const PUTS_PER_BEAT: u64 = 64;
/// Bytes of a new row's value in the large transaction.
const LARGE_VALUE_BYTES: usize = 1000;

/// Does what `case` says, until the reader has ended. Says over `ready` when the reader may begin.
fn disturb(
    case: Case,
    arguments: &Arguments,
    database: &Database,
    signals: &Signals,
    ready: &mpsc::Sender<()>,
) -> Outcome<Deeds> {
    match case {
        Case::Idle => {
            ready.send(())?;
            Ok(String::new())
        }
        Case::LockedRows => {
            let tx = database.begin()?;
            {
                let mut table = tx.open_table(ROWS)?;
                for row in 0..arguments.locked_rows {
                    table.put(&key(row), &value(row, 1))?;
                }
            }
            ready.send(())?;
            signals.hold_until_read();
            tx.rollback()?;
            Ok(format!("{} rows changed, then rolled back", arguments.locked_rows))
        }
        Case::Checkpoints => {
            let mut picks = Picks::new(Seed(1), arguments.rows);
            let (mut checkpoints, mut pages) = (0_u64, 0);
            while !signals.reader_done.load(Ordering::Relaxed) {
                // The same bytes again: the pages are changed, what is read is not.
                let changed = database.transact(|tx| {
                    let mut table = tx.open_table(ROWS)?;
                    (0..arguments.checkpoint_rows).try_for_each(|_| {
                        let row = picks.pick();
                        table.put(&key(row), &value(row, 0))
                    })
                });
                match changed {
                    // It has waited for the reader's snapshots: the checkpoint has less to do.
                    Err(error) if error.is_retryable() => {}
                    other => other?,
                }
                let before = database.stats().pages_written;
                database.checkpoint()?;
                pages += database.stats().pages_written - before;
                checkpoints += 1;
                signals.rival_beats.fetch_add(1, Ordering::Relaxed);
                // Once there is something to read beside.
                let _ = ready.send(());
            }
            Ok(format!("{checkpoints} checkpoints, {pages} pages written"))
        }
        Case::LargeTransaction => {
            let large = [0x5a; LARGE_VALUE_BYTES];
            let (began, mut written, mut puts) = (Instant::now(), 0, 0);
            let tx = database.begin()?;
            {
                let mut table = tx.open_table(ROWS)?;
                while written < arguments.transaction_mib << 20 {
                    if puts % 8 == 7 {
                        let row = puts % arguments.rows;
                        table.put(&key(row), &value(row, 1))?;
                        written += ROW_BYTES as u64;
                    } else {
                        table.put(&key(arguments.rows + puts), &large)?;
                        written += (key(0).len() + LARGE_VALUE_BYTES) as u64;
                    }
                    puts += 1;
                    if puts == PUTS_PER_BEAT {
                        ready.send(())?;
                    }
                    if puts.is_multiple_of(PUTS_PER_BEAT) {
                        signals.rival_beats.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            let seconds = began.elapsed().as_secs_f64();
            signals.rival_done.store(true, Ordering::Relaxed);
            signals.hold_until_read();
            tx.commit()?;
            Ok(format!("{} MiB in {puts} rows, written in {seconds:.1} s", written >> 20))
        }
    }
}

/// Reads until the time is over or, beside the large transaction, until that is written.
fn read(case: Case, arguments: &Arguments, database: &Database, signals: &Signals) -> Outcome<Reads> {
    let mut reads = Reads { get_ns: latency_histogram()?, snapshot_ns: latency_histogram()?, timeout: None };
    let rows = if case == Case::LockedRows { arguments.locked_rows } else { arguments.rows };
    let mut picks = Picks::new(Seed(2), rows);
    let (began, time) = (Instant::now(), Duration::try_from_secs_f64(arguments.seconds)?);
    let over = || match case {
        Case::LargeTransaction => signals.rival_done.load(Ordering::Relaxed),
        _ => began.elapsed() >= time,
    };
    while !over() {
        signals.reader_beats.fetch_add(1, Ordering::Relaxed);
        let asked = Instant::now();
        let snapshot = match database.snapshot() {
            Err(error) if error.is_retryable() => {
                reads.timeout = Some(error.to_string());
                break;
            }
            other => other?,
        };
        let table = snapshot.open_table(ROWS)?;
        reads.snapshot_ns.saturating_record(ns_since(asked));
        for _ in 0..arguments.gets_per_snapshot {
            let row = picks.pick();
            let key = key(row);
            let asked = Instant::now();
            let found = table.get(&key)?;
            reads.get_ns.saturating_record(ns_since(asked));
            if found.as_deref() != Some(&value(row, 0)[..]) {
                return Err(format!("{}: row {row} is not what was committed", case.name()).into());
            }
        }
    }
    Ok(reads)
}

/// Waits for a thread, and ends the program if `beats` stand still for much longer than any lock may take.
fn join<T>(
    thread: ScopedJoinHandle<'_, Outcome<T>>,
    who: &str,
    beats: &AtomicU64,
    limit: Duration,
) -> Outcome<T> {
    let (mut last, mut since) = (beats.load(Ordering::Relaxed), Instant::now());
    while !thread.is_finished() {
        thread::sleep(Duration::from_millis(1));
        let now = beats.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() > limit {
            eprintln!("{who} has been inside one call for {} s: it hangs", limit.as_secs());
            std::process::exit(2);
        }
    }
    thread.join().map_err(|_| format!("{who} panicked"))?
}

fn run(case: Case, arguments: &Arguments) -> Outcome<(Reads, Deeds)> {
    let home = match &arguments.dir {
        Some(place) => fresh_directory_in(Some(place))?,
        None => fresh_directory()?,
    };
    let options = Options::new()
        .cache_bytes(arguments.cache_mib << 20)
        .durability(Durability::Relaxed)
        .lock_timeout(arguments.timeout()?)
        // The log of a transaction stays until it ends.
        .max_log_bytes((1 << 30) + 4 * (arguments.transaction_mib << 20));
    let hamal = Hamal::open_with(home.path(), options)?;
    let mut start = 0;
    while start < arguments.rows {
        let end = (start + 1000).min(arguments.rows);
        hamal.write(&mut (start..end).map(|row| (key(row), value(row, 0))))?;
        start = end;
    }
    hamal.settle()?;
    let database = hamal.database();
    // Twice, as a call may wait for a lock and then for what has it; and a checkpoint, or a commit, for the disk.
    let limit = 2 * arguments.timeout()? + Duration::from_mins(1);
    let signals = &Signals::default();
    let (ready, begin) = mpsc::channel();
    thread::scope(|scope| {
        let rival = scope.spawn(move || {
            let deeds = disturb(case, arguments, database, signals, &ready);
            // If it has failed, nobody should wait for it.
            signals.rival_done.store(true, Ordering::Relaxed);
            deeds
        });
        // An error is the rival's, and `join` tells.
        let reads = begin.recv().is_ok().then(|| {
            let reader = scope.spawn(move || read(case, arguments, database, signals));
            join(reader, "the reader", &signals.reader_beats, limit)
        });
        signals.reader_done.store(true, Ordering::Relaxed);
        let deeds = join(rival, "the writer", &signals.rival_beats, limit)?;
        Ok((reads.ok_or("the writer ended before the reader began")??, deeds))
    })
}

/// One case as numbers.
#[derive(Debug, Serialize)]
struct Report {
    case: Case,
    deeds: Deeds,
    timeout: Option<String>,
    get: Latencies,
    snapshot: Latencies,
}

#[derive(Debug, Serialize)]
struct Latencies {
    count: u64,
    p50_ns: u64,
    p90_ns: u64,
    p99_ns: u64,
    p99_9_ns: u64,
    p99_99_ns: u64,
    max_ns: u64,
}

impl Latencies {
    fn of(ns: &Histogram<u64>) -> Self {
        let at = |quantile| ns.value_at_quantile(quantile);
        Latencies {
            count: ns.len(),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p99_9_ns: at(0.999),
            p99_99_ns: at(0.9999),
            max_ns: ns.max(),
        }
    }

    fn cell(&self, ns: fn(&Latencies) -> u64) -> String {
        if self.count == 0 { "-".to_owned() } else { microseconds(ns(self)) }
    }
}

/// A line of the table: its title, and how to fill a column.
type Line = (&'static str, fn(&Report) -> String);

const LINES: [Line; 11] = [
    ("gets", |report| report.get.count.to_string()),
    ("get: p50", |report| report.get.cell(|l| l.p50_ns)),
    ("get: p90", |report| report.get.cell(|l| l.p90_ns)),
    ("get: p99", |report| report.get.cell(|l| l.p99_ns)),
    ("get: p99.9", |report| report.get.cell(|l| l.p99_9_ns)),
    ("get: p99.99", |report| report.get.cell(|l| l.p99_99_ns)),
    ("get: max", |report| report.get.cell(|l| l.max_ns)),
    ("snapshots", |report| report.snapshot.count.to_string()),
    ("snapshot and open table: p50", |report| report.snapshot.cell(|l| l.p50_ns)),
    ("snapshot and open table: p99.9", |report| report.snapshot.cell(|l| l.p99_9_ns)),
    ("snapshot and open table: max", |report| report.snapshot.cell(|l| l.max_ns)),
];

fn print(reports: &[Report]) -> Outcome<()> {
    let mut table = String::from("| µs |");
    for report in reports {
        write!(table, " {} |", report.case.name())?;
    }
    writeln!(table, "\n|---|{}", "---|".repeat(reports.len()))?;
    for (title, fill) in LINES {
        write!(table, "| {title} |")?;
        for report in reports {
            write!(table, " {} |", fill(report))?;
        }
        writeln!(table)?;
    }
    for Report { case, deeds, timeout, .. } in reports {
        if !deeds.is_empty() {
            writeln!(table, "\n{}: {deeds}.", case.name())?;
        }
        if let Some(timeout) = timeout {
            writeln!(table, "\n**{}: timed out: {timeout}.**", case.name())?;
        }
    }
    print!("{table}");
    Ok(())
}

fn main() -> Outcome<()> {
    let mut arguments = Arguments::parse();
    if arguments.smoke {
        arguments.rows = 5000;
        arguments.locked_rows = 2000;
        arguments.transaction_mib = 8;
        arguments.seconds = 0.2;
        arguments.cache_mib = 16;
        arguments.timeout_seconds = 0.5;
    }
    println!(
        "{} rows, cache {} MiB, {} gets per snapshot\n",
        arguments.rows, arguments.cache_mib, arguments.gets_per_snapshot
    );
    let mut reports = Vec::new();
    for &case in &arguments.cases {
        let (reads, deeds) = run(case, &arguments)?;
        reports.push(Report {
            case,
            deeds,
            timeout: reads.timeout,
            get: Latencies::of(&reads.get_ns),
            snapshot: Latencies::of(&reads.snapshot_ns),
        });
    }
    print(&reports)?;
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&reports)?)?;
    }
    let timeouts = reports.iter().filter(|report| report.timeout.is_some()).count();
    if timeouts > 0 {
        return Err(format!("in {timeouts} cases the reader waited for a writer").into());
    }
    Ok(())
}
