//! Hamal beside LMDB and redb, in one process, in turns: prints the tables of `docs/benchmarks.md`.
//!
//! In every round each engine makes a fresh database and does the same work on the same rows; who goes first rotates. Ratios are
//! formed within a round, between turns that are seconds apart, so that a machine that changes its speed changes both sides.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use hamal_benches::floor::Floor;
use hamal_benches::peer::{Commit, Engine, Outcome, Peer, Settings, random_keys};
use hamal_benches::place::fresh_directory;
use hamal_benches::rows::{Picks, ROW_BYTES, Seed, key, value};
use hamal_benches::spread::Spread;

/// Measures Hamal, LMDB and redb in turns and prints Markdown.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// Rows of the database.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// Rounds.
    #[arg(long, default_value_t = 5)]
    rounds: u64,
    /// Rows per transaction that writes.
    #[arg(long, default_value_t = 1000)]
    batch: u64,
    /// Cache of Hamal and redb, MiB (LMDB uses the system's page cache).
    #[arg(long, default_value_t = 1024)]
    cache_mib: u64,
    /// Synchronous commits per round; 0 leaves durable writes out.
    #[arg(long, default_value_t = 300)]
    commits: u64,
    /// Measure only these engines (for profiling).
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Engine::ALL)]
    engines: Vec<Engine>,
    /// What is measured.
    #[arg(long, value_enum, default_value_t = Clock::Wall)]
    clock: Clock,
}

/// What a measurement counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Clock {
    /// Time as it passes.
    Wall,
    /// Processor time of the whole process, background threads included: for machines that are busy with something else.
    Processor,
}

impl Clock {
    fn now(self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        match self {
            Clock::Wall => START.elapsed(),
            Clock::Processor => {
                let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
                Duration::try_from(time).unwrap_or_default()
            }
        }
    }

    /// Runs `work` and returns nanoseconds per one of `count`.
    fn time(self, count: u64, work: impl FnOnce() -> Outcome<()>) -> Outcome<f64> {
        let began = self.now();
        work()?;
        #[expect(clippy::cast_precision_loss, reason = "a measurement")]
        Ok(self.now().saturating_sub(began).as_nanos() as f64 / count.max(1) as f64)
    }
}

/// Nanoseconds per operation of each engine, by operation; one entry per round.
#[derive(Debug, Default)]
struct Results {
    operations: Vec<&'static str>,
    samples: BTreeMap<(&'static str, &'static str), Vec<f64>>,
}

impl Results {
    fn add(&mut self, operation: &'static str, engine: &'static str, ns: f64) {
        if !self.operations.contains(&operation) {
            self.operations.push(operation);
        }
        self.samples.entry((operation, engine)).or_default().push(ns);
    }

    fn of(&self, operation: &'static str, engine: &'static str) -> &[f64] {
        self.samples.get(&(operation, engine)).map_or(&[], Vec::as_slice)
    }

    /// How many times as long `engine` takes as Hamal, round by round.
    fn ratio(&self, operation: &'static str, engine: &'static str) -> Option<Spread> {
        let hamal = self.of(operation, "Hamal");
        Spread::of(self.of(operation, engine).iter().zip(hamal).map(|(other, hamal)| other / hamal))
    }

    fn print(&self) {
        let cell = |spread: Option<Spread>| spread.map_or_else(|| "-".to_owned(), |s| s.to_string());
        println!("| operation | Hamal, ns | LMDB, ns | redb, ns | LMDB / Hamal | redb / Hamal |");
        println!("|---|---|---|---|---|---|");
        for &operation in &self.operations {
            let ns = |engine| cell(Spread::of(self.of(operation, engine).iter().copied()));
            println!(
                "| {operation} | {} | {} | {} | {} | {} |",
                ns("Hamal"),
                ns("LMDB"),
                ns("redb"),
                cell(self.ratio(operation, "LMDB")),
                cell(self.ratio(operation, "redb")),
            );
        }
    }
}

fn in_batches(
    rows: std::ops::Range<u64>,
    batch: u64,
    mut work: impl FnMut(std::ops::Range<u64>) -> Outcome<()>,
) -> Outcome<()> {
    let mut start = rows.start;
    while start < rows.end {
        let end = (start + batch).min(rows.end);
        work(start..end)?;
        start = end;
    }
    Ok(())
}

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    let mut results = Results::default();
    let mut floors = Vec::new();
    for round in 0..arguments.rounds {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
        lazy_round(&arguments, round, &mut results)?;
        if arguments.commits > 0 {
            floors.push(durable_round(&arguments, round, &mut results)?);
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let data_mib = (arguments.rows * ROW_BYTES as u64) as f64 / f64::from(1 << 20);
    println!(
        "{} rows of {ROW_BYTES} bytes ({data_mib:.0} MiB), cache {} MiB, {} rounds, {:?} time; median (least to most)\n",
        arguments.rows, arguments.cache_mib, arguments.rounds, arguments.clock
    );
    results.print();
    if let Some(floor) = Spread::of(floors.iter().copied()) {
        println!("\nBare `pwrite` past the cache + `fdatasync` of 4 KiB: {floor} ns.");
        for engine in ["Hamal", "LMDB", "redb"] {
            let ratios = results.of(COMMIT, engine).iter().zip(&floors).map(|(ns, floor)| ns / floor);
            if let Some(ratio) = Spread::of(ratios) {
                println!("A synchronous commit of {engine} takes {ratio} times as long.");
            }
        }
    }
    Ok(())
}

const COMMIT: &str = "synchronous commit of one row";

/// All engines, opened in fresh directories, in this round's order.
fn open_all(engines: &[Engine], home: &Path, round: u64, settings: Settings) -> Outcome<Vec<Box<dyn Peer>>> {
    let mut engines = engines.to_vec();
    let first = usize::try_from(round)? % engines.len();
    engines.rotate_left(first);
    let mut peers = Vec::new();
    for engine in engines {
        let directory = home.join(format!("{engine:?}"));
        std::fs::create_dir_all(&directory)?;
        peers.push(engine.open(&directory, settings)?);
    }
    Ok(peers)
}

/// Everything that is not about the disk's flush: commits return at once.
fn lazy_round(arguments: &Arguments, round: u64, results: &mut Results) -> Outcome<()> {
    let &Arguments { rows, batch, clock, .. } = arguments;
    let home = fresh_directory()?;
    let settings = Settings { cache_bytes: arguments.cache_mib << 20, commit: Commit::Lazy };
    let peers = open_all(&arguments.engines, home.path(), round, settings)?;
    for peer in &peers {
        let insert = clock.time(rows, || {
            in_batches(0..rows, batch, |part| peer.write(&mut part.map(|n| (key(n), value(n, 0)))))
        })?;
        let settle = clock.time(rows, || peer.settle())?;
        results.add("insert, random keys", peer.name(), insert);
        results.add("insert, and everything on the disk", peer.name(), insert + settle);
    }
    let reads = (rows / 2).max(1);
    for attempt in 0..2 {
        let mut digests = Vec::new();
        for peer in &peers {
            let picks = Picks::new(Seed(round * 2 + attempt), rows);
            let ns = clock.time(reads, || {
                digests.push(peer.read(&mut random_keys(picks, reads))?);
                Ok(())
            })?;
            // The first attempt warms caches and maps.
            if attempt > 0 {
                results.add("get, random keys", peer.name(), ns);
            }
        }
        agree(&digests)?;
    }
    for (name, length, scans) in
        [("scan of 10 rows", 10, rows / 20), ("scan of 1000 rows, per row", 1000, rows / 1000)]
    {
        let mut digests = Vec::new();
        for peer in &peers {
            let picks = Picks::new(Seed(round), rows);
            let per = if length == 10 { scans } else { scans * length as u64 };
            let ns = clock.time(per, || {
                digests.push(peer.scan(&mut random_keys(picks, scans), length)?);
                Ok(())
            })?;
            results.add(name, peer.name(), ns);
        }
        agree(&digests)?;
    }
    let changes = (rows / 4).max(1);
    for peer in &peers {
        let mut picks = Picks::new(Seed(round), rows);
        let ns = clock.time(changes, || {
            in_batches(0..changes, batch, |part| {
                peer.write(&mut part.map(|n| {
                    let row = picks.pick();
                    (key(row), value(row, n))
                }))
            })
        })?;
        peer.settle()?;
        results.add("replace, random keys", peer.name(), ns);
    }
    for peer in &peers {
        let ns =
            clock.time(changes, || in_batches(0..changes, batch, |part| peer.remove(&mut part.map(key))))?;
        peer.settle()?;
        results.add("remove, random keys", peer.name(), ns);
        if peer.len()? != rows - changes {
            return Err(
                format!("{} has {} rows, expected {}", peer.name(), peer.len()?, rows - changes).into()
            );
        }
    }
    Ok(())
}

/// Durable commits: batches, and one row each in turns with the floor. Returns the floor's nanoseconds.
fn durable_round(arguments: &Arguments, round: u64, results: &mut Results) -> Outcome<f64> {
    let &Arguments { rows, batch, commits, clock, .. } = arguments;
    let home = fresh_directory()?;
    let settings = Settings { cache_bytes: arguments.cache_mib << 20, commit: Commit::Durable };
    let peers = open_all(&arguments.engines, home.path(), round, settings)?;
    let rows = (rows / 4).max(1);
    for peer in &peers {
        let ns = clock.time(rows, || {
            in_batches(0..rows, batch, |part| peer.write(&mut part.map(|n| (key(n), value(n, 0)))))
        })?;
        peer.settle()?;
        results.add("insert, random keys, durable batches", peer.name(), ns);
    }
    let mut floor = Floor::create(home.path(), 64 << 20, 4096)?;
    // Turns of a few commits, so that drift of the disk hits everybody alike.
    let turns = 10;
    let per_turn = commits.div_ceil(turns);
    let mut floor_ns = 0.0;
    let mut totals = vec![0.0; peers.len()];
    let mut picks = Picks::new(Seed(round), rows);
    for turn in 0..turns {
        floor_ns += Clock::Wall.time(per_turn, || (0..per_turn).try_for_each(|_| Ok(floor.commit()?)))?;
        for (peer, total) in peers.iter().zip(&mut totals) {
            *total += Clock::Wall.time(per_turn, || {
                (0..per_turn).try_for_each(|_| {
                    let row = picks.pick();
                    peer.write(&mut std::iter::once((key(row), value(row, turn + 1))))
                })
            })?;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a measurement")]
    let turns = turns as f64;
    for (peer, total) in peers.iter().zip(totals) {
        results.add(COMMIT, peer.name(), total / turns);
    }
    Ok(floor_ns / turns)
}

/// All engines must have read the same rows.
fn agree(digests: &[u64]) -> Outcome<()> {
    if digests.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err("the engines do not agree on what they read".into());
    }
    Ok(())
}
