//! Whether a transaction far larger than memory keeps to it: one that overwrites ten times the cache, and so leaves ten times the
//! budget of before-images to a snapshot that needs all of them, commits; another rolls back. The old snapshot must go on seeing the
//! old rows, and a new one the committed rows.
//!
//! What is held against the bounds is exact: the allocator's own peak, and the process's as the kernel keeps it. The peaks of single
//! phases are the kernel's, forgotten between phases, and for heap and before-images those of a look each millisecond.

use std::alloc::System;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cap::Cap;
use clap::Parser;
use hamal::{Database, Options, Snapshot};
use hamal_benches::memory::{forget_peak, peak_resident, with_one_arena};
use hamal_benches::peer::{Hamal, Outcome, Peer, ROWS};
use hamal_benches::place::{fresh_directory, fresh_directory_in};
use hamal_benches::rows::{Picks, ROW_BYTES, Seed, ascending_key, value};

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// What the log's buffer takes, bytes.
const LOG_BUFFER_BYTES: u64 = 8 << 20;
/// Rows per transaction while loading.
const BATCH: u64 = 1000;
/// Rows that are compared one by one, at random.
const SAMPLE: u64 = 1000;
/// A prime above every number of rows: its multiples, modulo that number, are all the rows, none of them near the one before.
const STRIDE: u64 = 0x9E37_79B1;
/// What the log may take: more than anything here, bytes.
const MAX_LOG_BYTES: u64 = 1 << 40;

/// Commits and rolls back transactions far larger than the cache and the budget of before-images, and checks that memory stays bounded.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// Cache, MiB.
    #[arg(long, default_value_t = 16)]
    cache_mib: u64,
    /// Memory of before-images, MiB.
    #[arg(long, default_value_t = 16)]
    version_mib: u64,
    /// How many times the larger of the two each transaction writes.
    #[arg(long, default_value_t = 10)]
    times: u64,
    /// Write the rows in the order of their keys; otherwise scattered, so that each before-image is far from the one before.
    #[arg(long)]
    in_key_order: bool,
    /// Keep the first snapshot until the end: the second transaction finds the budget taken by what the first has left.
    #[arg(long)]
    keep_old_snapshot: bool,
    /// What may be taken beyond cache, twice the before-images' budget, the log's buffer and a hundredth of the rows, MiB.
    #[arg(long, default_value_t = 16)]
    allowance_mib: u64,
    /// Where to keep the database.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The least cache and as little of before-images, in key order: shows that it holds, not what it takes.
    #[arg(long)]
    smoke: bool,
}

impl Arguments {
    fn cache_bytes(&self) -> u64 {
        self.cache_mib << 20
    }

    fn version_bytes(&self) -> u64 {
        self.version_mib << 20
    }

    /// Rows of the database, all of which each transaction writes.
    fn rows(&self) -> u64 {
        (self.times * self.cache_bytes().max(self.version_bytes())).div_ceil(ROW_BYTES as u64)
    }

    /// The most heap that passes, bytes. Before-images twice: their buffers double as they grow, which is counted once it has happened,
    /// and they are sorted before they go to a file. A hundredth of the rows: what is known of each block of such a file, and of each page.
    fn heap_bound(&self) -> u64 {
        let rows_bytes = self.rows() * ROW_BYTES as u64;
        2 * self.version_bytes() + rows_bytes / 100 + LOG_BUFFER_BYTES + (self.allowance_mib << 20)
    }
}

/// The peaks of what is looked at now and then.
#[derive(Debug, Default)]
struct Looks {
    heap: AtomicU64,
    versions: AtomicU64,
    done: AtomicBool,
}

impl Looks {
    fn look(&self, database: &Database) {
        self.heap.fetch_max(HEAP.allocated() as u64, Ordering::Relaxed);
        self.versions.fetch_max(database.stats().version_bytes, Ordering::Relaxed);
    }

    fn look_until_done(&self, database: &Database) {
        while !self.done.load(Ordering::Relaxed) {
            self.look(database);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What one phase took, bytes: peaks, but for what was written.
#[derive(Debug)]
struct Phase {
    name: &'static str,
    log: u64,
    spilled: u64,
    versions: u64,
    heap: u64,
    resident: u64,
    elapsed: Duration,
}

/// Runs one phase and notes what it took.
fn phase(
    database: &Database,
    name: &'static str,
    phases: &mut Vec<Phase>,
    run: impl FnOnce() -> Outcome<()>,
) -> Outcome<()> {
    forget_peak();
    let (before, began, looks) = (database.stats(), Instant::now(), Looks::default());
    let result = thread::scope(|scope| {
        scope.spawn(|| looks.look_until_done(database));
        let result = run();
        looks.done.store(true, Ordering::Relaxed);
        result
    });
    looks.look(database);
    let after = database.stats();
    phases.push(Phase {
        name,
        log: after.log_tail - before.log_tail,
        spilled: after.version_spilled_bytes - before.version_spilled_bytes,
        versions: looks.versions.into_inner(),
        heap: looks.heap.into_inner(),
        resident: peak_resident()?,
        elapsed: began.elapsed(),
    });
    result.map_err(|error| format!("{name}: {error}").into())
}

/// The rows in the order in which a transaction writes them.
fn order(arguments: &Arguments) -> impl Iterator<Item = u64> {
    let (rows, stride) = (arguments.rows(), if arguments.in_key_order { 1 } else { STRIDE });
    (0..rows).map(move |n| n * stride % rows)
}

/// Whether a snapshot sees every row in `version`, one by one.
fn check_all(snapshot: &Snapshot, rows: u64, version: u64) -> Outcome<()> {
    let table = snapshot.open_table(ROWS)?;
    let mut next = 0;
    for row in table.iter()? {
        let (key, found) = row?;
        if key != ascending_key(next) || found != value(next, version) {
            return Err(format!("row {next} is not as it was in version {version}").into());
        }
        next += 1;
    }
    if next != rows || table.len()? != rows {
        return Err(format!("{next} rows, {} by their count, expected {rows}", table.len()?).into());
    }
    Ok(())
}

/// Whether a snapshot sees rows picked at random in `version`.
fn check_some(snapshot: &Snapshot, rows: u64, version: u64) -> Outcome<()> {
    let table = snapshot.open_table(ROWS)?;
    let mut picks = Picks::new(Seed(version), rows);
    for _ in 0..SAMPLE {
        let n = picks.pick();
        if table.get(&ascending_key(n))?.as_deref() != Some(&value(n, version)[..]) {
            return Err(format!("row {n} is not as it was in version {version}").into());
        }
    }
    Ok(())
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Commit,
    Rollback,
}

/// One transaction that writes every row in `version`.
fn overwrite(database: &Database, arguments: &Arguments, version: u64, end: End) -> Outcome<()> {
    let tx = database.begin()?;
    let mut table = tx.open_table(ROWS)?;
    for n in order(arguments) {
        table.put(&ascending_key(n), &value(n, version))?;
    }
    drop(table);
    match end {
        End::Commit => tx.commit()?,
        End::Rollback => tx.rollback()?,
    }
    Ok(())
}

fn run(peer: &Hamal, arguments: &Arguments, phases: &mut Vec<Phase>) -> Outcome<()> {
    let (database, rows) = (peer.database(), arguments.rows());
    phase(database, "load", phases, || {
        let mut next = 0;
        while next < rows {
            let end = (next + BATCH).min(rows);
            peer.write(&mut (next..end).map(|n| (ascending_key(n), value(n, 0))))?;
            next = end;
        }
        Ok(())
    })?;
    let old = database.snapshot()?;
    phase(database, "commit", phases, || overwrite(database, arguments, 1, End::Commit))?;
    phase(database, "old snapshot: sample", phases, || check_some(&old, rows, 0))?;
    phase(database, "old snapshot: scan", phases, || check_all(&old, rows, 0))?;
    phase(database, "new snapshot: scan", phases, || check_all(&database.snapshot()?, rows, 1))?;
    // Otherwise it goes here, and with it what the first transaction left.
    let old = arguments.keep_old_snapshot.then_some(old);
    if old.is_none() {
        check_forgotten(database)?;
    }
    let new = database.snapshot()?;
    phase(database, "rollback", phases, || overwrite(database, arguments, 2, End::Rollback))?;
    phase(database, "old snapshot: scan", phases, || check_all(&new, rows, 1))?;
    phase(database, "new snapshot: scan", phases, || check_all(&database.snapshot()?, rows, 1))?;
    if let Some(old) = &old {
        check_some(old, rows, 0)?;
    }
    drop((old, new));
    check_forgotten(database)
}

/// Nobody needs a before-image any more: whether none are left. The last few are given back by a round of maintenance.
fn check_forgotten(database: &Database) -> Outcome<()> {
    database.maintain()?;
    let left = database.stats();
    if (left.version_bytes, left.version_writers) != (0, 0) {
        return Err(format!(
            "{} bytes of before-images of {} writers are left, and nobody needs them",
            left.version_bytes, left.version_writers
        )
        .into());
    }
    Ok(())
}

fn print(phases: &[Phase], elsewhere: &Phase) {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "| phase | log, MiB | spilled, MiB | before-images in memory, MiB | heap, MiB | resident, MiB | time, s |"
    );
    println!("|---|---|---|---|---|---|---|");
    for Phase { name, log, spilled, versions, heap, resident, elapsed } in
        [elsewhere].into_iter().chain(phases)
    {
        println!(
            "| {name} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
            mib(*log),
            mib(*spilled),
            mib(*versions),
            mib(*heap),
            mib(*resident),
            elapsed.as_secs_f64()
        );
    }
}

fn main() -> Outcome<()> {
    let mut arguments = Arguments::parse();
    if arguments.smoke {
        (arguments.cache_mib, arguments.version_mib, arguments.in_key_order) = (1, 1, true);
    }
    with_one_arena()?;
    let home = match &arguments.dir {
        Some(place) => fresh_directory_in(Some(place))?,
        None => fresh_directory()?,
    };
    // Before the database: the program itself.
    let baseline = Phase {
        name: "before opening",
        log: 0,
        spilled: 0,
        versions: 0,
        heap: HEAP.allocated() as u64,
        resident: peak_resident()?,
        elapsed: Duration::ZERO,
    };
    let options = Options::new()
        .cache_bytes(arguments.cache_bytes())
        .version_bytes(arguments.version_bytes())
        .max_log_bytes(MAX_LOG_BYTES);
    let peer = Hamal::open_with(home.path(), options)?;
    println!(
        "{} rows, {} MiB; cache {} MiB, before-images {} MiB\n",
        arguments.rows(),
        (arguments.rows() * ROW_BYTES as u64) >> 20,
        arguments.cache_mib,
        arguments.version_mib
    );
    let mut phases = Vec::new();
    let result = run(&peer, &arguments, &mut phases);
    print(&phases, &baseline);
    result?;

    let heap_bound = arguments.heap_bound();
    let resident_bound = baseline.resident + arguments.cache_bytes() + heap_bound;
    let heap = HEAP.max_allocated() as u64;
    let resident = phases.iter().map(|phase| phase.resident).max().unwrap_or(0);
    println!(
        "\nheap {} of {} KiB, resident {} of {} KiB",
        heap >> 10,
        heap_bound >> 10,
        resident >> 10,
        resident_bound >> 10
    );
    if heap > heap_bound || resident > resident_bound {
        return Err("memory is above its bound".into());
    }
    Ok(())
}
