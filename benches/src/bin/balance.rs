//! What the balancer makes of loads over time: uniform and steady, Zipfian, and a hot spot that moves. And how long a split and a merge
//! keep the writers of a table out: alone, and beside one that writes rows all over the table, a transaction each.
//!
//! One table, one thread that reads nine rows for each that it writes, so many a second. Once a second the operations of each partition
//! are asked for.

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use hamal::{BalancerOptions, Database, Durability, Options, TableDef};
use hamal_benches::peer::Outcome;
use hamal_benches::place::fresh_directory_in;
use hamal_benches::plot::{Line, Plot};
use hamal_benches::rows::{Picks, Seed};
use hamal_benches::spread::Spread;
use hamal_benches::zipf::{Popularity, ZipfPicks};
use serde::Serialize;

const TABLE: TableDef<u64, &[u8]> = TableDef::new("rows");
const VALUE_BYTES: usize = 150;
/// Operations between two looks at the clock.
const BATCH: u64 = 500;

/// Watches the balancer, and prints Markdown.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// Rows of the table.
    #[arg(long, default_value_t = 200_000)]
    rows: u64,
    /// Seconds of each load.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The hot spot moves after so many seconds.
    #[arg(long, default_value_t = 20)]
    stay: u64,
    /// From how many operations per second on a partition is hot.
    #[arg(long, default_value_t = 20_000)]
    hot: u64,
    /// Operations per second, of all loads; 0: as many as possible.
    #[arg(long, default_value_t = 100_000)]
    rate: u64,
    /// Most partitions.
    #[arg(long, default_value_t = 16)]
    max_partitions: usize,
    /// Neighbours are merged after so many seconds.
    #[arg(long, default_value_t = 15)]
    cold: u64,
    /// Rows that a split and a merge move while nothing else happens, MiB; 0: leaves this out.
    #[arg(long, default_value_t = 100)]
    move_mib: u64,
    /// Rows per second that are written beside a split and a merge; 0: as many as possible.
    #[arg(long, default_value_t = 0)]
    write_rate: u64,
    /// Only moves rows.
    #[arg(long)]
    only_move: bool,
    /// Where to keep the databases.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Also write the results to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also draw them into this file, as SVG.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Short and small: shows that it works, measures nothing.
    #[arg(long)]
    smoke: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Load {
    Uniform,
    Zipfian,
    Moving,
    /// Uniform again: what the others have left is not undone in haste.
    UniformAgain,
}

impl Load {
    const ALL: [Load; 4] = [Load::Uniform, Load::Zipfian, Load::Moving, Load::UniformAgain];

    fn name(self) -> &'static str {
        match self {
            Load::Uniform => "uniform",
            Load::Zipfian => "Zipfian",
            Load::Moving => "moving hot spot",
            Load::UniformAgain => "uniform again",
        }
    }
}

/// One second.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    second: u64,
    load: Load,
    operations: u64,
    /// Of each partition, from the lowest keys on.
    by_partition: Vec<u64>,
    /// Bounds that have come, and gone, in this second.
    splits: u64,
    merges: u64,
}

impl Sample {
    /// The busiest partition's part of all operations, percent.
    #[expect(clippy::cast_precision_loss, reason = "counts of seconds")]
    fn busiest_percent(&self) -> f64 {
        let all: u64 = self.by_partition.iter().sum();
        let most = self.by_partition.iter().max().copied().unwrap_or(0);
        100.0 * most as f64 / all.max(1) as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "few partitions")]
    fn mean_percent(&self) -> f64 {
        100.0 / self.by_partition.len().max(1) as f64
    }
}

/// What it takes to move rows.
#[derive(Clone, Debug, Serialize)]
struct Moved {
    what: &'static str,
    rows: u64,
    bytes: u64,
    seconds: f64,
    locked_seconds: f64,
    passes: u32,
    late_rows: u64,
    /// What a writer did meanwhile, if there was one.
    beside: Option<Waits>,
}

/// How it went for a writer.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Waits {
    /// Rows written, per second.
    rate: f64,
    /// The longest that one took.
    longest_seconds: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Results {
    rows: u64,
    hot: u64,
    max_partitions: usize,
    samples: Vec<Sample>,
    moved: Vec<Moved>,
    /// The writer, while nothing was moved.
    undisturbed: Option<Waits>,
}

fn main() -> Outcome<()> {
    let mut args = Arguments::parse();
    if args.smoke {
        (args.rows, args.seconds, args.stay, args.move_mib) = (5000, 3, 1, 1);
    }
    let (mut moved, mut undisturbed) = (Vec::new(), None);
    if args.move_mib > 0 {
        (moved, undisturbed) = move_rows(&args)?;
    }
    let samples = if args.only_move { Vec::new() } else { watch(&args)? };
    let (rows, hot, max_partitions) = (args.rows, args.hot, args.max_partitions);
    let results = Results { rows, hot, max_partitions, samples, moved, undisturbed };
    print(&results);
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string(&results)? + "\n")?;
    }
    if let Some(path) = args.svg.as_ref().filter(|_| !args.only_move) {
        fs::write(path, plot(&results.samples).to_svg()?)?;
    }
    Ok(())
}

fn fill(db: &Database, rows: u64) -> Outcome<()> {
    let value = [7; VALUE_BYTES];
    for first in (0..rows).step_by(2000) {
        db.transact(|tx| {
            let mut table = tx.open_table(TABLE)?;
            (first..rows.min(first + 2000)).try_for_each(|row| table.put(row, &value[..]))
        })?;
    }
    Ok(())
}

fn options() -> Options {
    Options::new().durability(Durability::Relaxed).cache_bytes(1 << 30)
}

/// Waits until the next one is due after `done` operations since `began`, at so many per second; 0: it is due.
fn wait_until_due(began: Instant, done: u64, rate: u64) {
    let due = Duration::from_nanos((done * 1_000_000_000).checked_div(rate).unwrap_or(0));
    if let Some(early) = due.checked_sub(began.elapsed()) {
        thread::sleep(early);
    }
}

/// Writes rows all over a table, a transaction each, until it is told to stop.
fn write_rows(db: &Database, rows: u64, rate: u64, stop: &AtomicBool) -> hamal::Result<Waits> {
    let (mut picks, value) = (Picks::new(Seed(5), rows), [9; VALUE_BYTES]);
    let (began, mut done, mut longest) = (Instant::now(), 0_u64, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        wait_until_due(began, done, rate);
        let row = picks.pick();
        let begun = Instant::now();
        db.transact(|tx| tx.open_table(TABLE)?.put(row, &value[..]))?;
        longest = longest.max(begun.elapsed());
        done += 1;
    }
    #[expect(clippy::cast_precision_loss, reason = "rows of a minute")]
    let rate = done as f64 / began.elapsed().as_secs_f64();
    Ok(Waits { rate, longest_seconds: longest.as_secs_f64() })
}

/// Does something, beside a writer if there is to be one.
fn beside<T>(
    db: &Database,
    (rows, rate): (u64, Option<u64>),
    work: impl FnOnce() -> Outcome<T>,
) -> Outcome<(T, Option<Waits>)> {
    let Some(rate) = rate else { return Ok((work()?, None)) };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write_rows(db, rows, rate, &stop));
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let waits = writer.join().map_err(|_| "the writer panicked")??;
        Ok((done?, Some(waits)))
    })
}

/// Splits and merges, of a table that nobody else uses and beside a writer; and the writer alone.
fn move_rows(args: &Arguments) -> Outcome<(Vec<Moved>, Option<Waits>)> {
    let place = fresh_directory_in(args.dir.as_deref())?;
    let db = options().balancer(None).open(place.path().join("db"))?;
    let rows = (args.move_mib << 20) / (VALUE_BYTES as u64 + 8);
    fill(&db, 2 * rows)?;
    let key = rows.to_be_bytes();
    let mut moved = Vec::new();
    for rate in [None, None, None, Some(args.write_rate), Some(args.write_rate), Some(args.write_rate)] {
        for what in ["split", "merge"] {
            let began = Instant::now();
            let (report, waits) = beside(&db, (2 * rows, rate), || {
                let go_on = &mut |_| ControlFlow::Continue(());
                loop {
                    let done = if what == "split" {
                        db.split("rows", &key, go_on)
                    } else {
                        db.merge("rows", &key, go_on)
                    };
                    match done {
                        Err(error) if error.is_retryable() => db.flush()?,
                        other => break Ok(other?),
                    }
                }
            })?;
            moved.push(Moved {
                what,
                rows: report.rows,
                bytes: report.bytes,
                seconds: began.elapsed().as_secs_f64(),
                locked_seconds: report.locked.as_secs_f64(),
                passes: report.passes,
                late_rows: report.late_rows,
                beside: waits,
            });
            while db.maintain()? {}
        }
    }
    let ((), undisturbed) = beside(&db, (2 * rows, Some(args.write_rate)), || {
        thread::sleep(Duration::from_secs(if args.smoke { 1 } else { 5 }));
        Ok(())
    })?;
    Ok((moved, undisturbed))
}

fn watch(args: &Arguments) -> Outcome<Vec<Sample>> {
    let place = fresh_directory_in(args.dir.as_deref())?;
    let balancer = BalancerOptions::new()
        .interval(Duration::from_millis(500))
        .hot_operations(args.hot)
        .cold_time(Duration::from_secs(args.cold))
        .max_partitions(args.max_partitions);
    let db = options().balancer(Some(balancer)).open(place.path().join("db"))?;
    fill(&db, args.rows)?;
    let mut uniform = Picks::new(Seed(1), args.rows);
    let mut zipf = ZipfPicks::new(Seed(2), Popularity::new(args.rows, 0.99));
    let window = (args.rows / 100).max(1);
    let mut in_window = Picks::new(Seed(3), window);
    let mut places = Picks::new(Seed(4), args.rows - window);
    let (mut samples, mut known, mut counts) = (Vec::new(), Bounds::default(), Vec::new());
    let mut second = 0;
    for load in Load::ALL {
        let mut at = places.pick();
        for step in 0..args.seconds {
            if step % args.stay == 0 {
                at = places.pick();
            }
            let mut pick = |number: u64| match load {
                Load::Uniform | Load::UniformAgain => uniform.pick(),
                Load::Zipfian => zipf.pick(),
                // One in ten is anywhere.
                Load::Moving if number.is_multiple_of(10) => uniform.pick(),
                Load::Moving => at + in_window.pick(),
            };
            let operations = work_a_second(&db, args.rate, &mut pick)?;
            second += 1;
            samples.push(sample(&db, (second, load, operations), &mut known, &mut counts)?);
        }
    }
    db.close()?;
    Ok(samples)
}

/// Works for a second; returns how many operations that were.
fn work_a_second(db: &Database, rate: u64, pick: &mut dyn FnMut(u64) -> u64) -> Outcome<u64> {
    let (began, value) = (Instant::now(), [8; VALUE_BYTES]);
    let mut done = 0;
    while began.elapsed() < Duration::from_secs(1) {
        wait_until_due(began, done, rate);
        db.transact(|tx| {
            let mut table = tx.open_table(TABLE)?;
            for number in done..done + BATCH {
                let row = pick(number);
                if number % 10 == 9 {
                    table.put(row, &value[..])?;
                } else {
                    table.get(row)?;
                }
            }
            Ok(())
        })?;
        done += BATCH;
    }
    Ok(done)
}

/// Bounds of partitions.
#[derive(Debug, Default)]
struct Bounds(BTreeSet<Vec<u8>>);

fn sample(
    db: &Database,
    (second, load, operations): (u64, Load, u64),
    known: &mut Bounds,
    counts: &mut Vec<(u32, u64)>,
) -> Outcome<Sample> {
    let partitions: Vec<_> = db.partitions()?.into_iter().filter(|p| p.table.is_some()).collect();
    let before = |id: u32| counts.iter().find(|(known, _)| *known == id).map_or(0, |(_, count)| *count);
    let by_partition = partitions.iter().map(|p| p.operations - before(p.id).min(p.operations)).collect();
    *counts = partitions.iter().map(|p| (p.id, p.operations)).collect();
    let bounds: BTreeSet<Vec<u8>> = partitions.into_iter().filter_map(|p| p.lower).collect();
    let splits = bounds.difference(&known.0).count() as u64;
    let merges = known.0.difference(&bounds).count() as u64;
    known.0 = bounds;
    Ok(Sample { second, load, operations, by_partition, splits, merges })
}

fn print(results: &Results) {
    if results.samples.is_empty() {
        return print_moved(results);
    }
    println!(
        "| load | operations/s, median | partitions at its end | splits | merges | in its last third | busiest partition, % of operations, median of its last third | were all alike, % |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for load in Load::ALL {
        let of_load: Vec<&Sample> = results.samples.iter().filter(|sample| sample.load == load).collect();
        let last = &of_load[of_load.len() * 2 / 3..];
        let median = |values: &mut dyn Iterator<Item = f64>| Spread::of(values).map_or(0.0, |s| s.median);
        #[expect(clippy::cast_precision_loss, reason = "operations of a second")]
        let operations = median(&mut of_load.iter().map(|s| s.operations as f64));
        let busiest = median(&mut last.iter().map(|s| s.busiest_percent()));
        let mean = median(&mut last.iter().map(|s| s.mean_percent()));
        println!(
            "| {} | {operations:.0} | {} | {} | {} | {} | {busiest:.0} | {mean:.0} |",
            load.name(),
            last.last().map_or(0, |sample| sample.by_partition.len()),
            of_load.iter().map(|s| s.splits).sum::<u64>(),
            of_load.iter().map(|s| s.merges).sum::<u64>(),
            last.iter().map(|s| s.splits + s.merges).sum::<u64>(),
        );
    }
    print_moved(results);
}

fn print_moved(results: &Results) {
    for what in ["split", "merge"] {
        let of_kind = || results.moved.iter().filter(|moved| moved.what == what);
        let alone = || of_kind().filter(|moved| moved.beside.is_none());
        let beside = || of_kind().filter(|moved| moved.beside.is_some());
        #[expect(clippy::cast_precision_loss, reason = "bytes of a table")]
        let of_100_mib = |seconds: f64, moved: &Moved| seconds * f64::from(100 << 20) / moved.bytes as f64;
        let seconds = Spread::of(alone().map(|moved| of_100_mib(moved.seconds, moved)));
        let locked = Spread::of(alone().map(|moved| moved.locked_seconds * 1e3));
        if let Some((seconds, locked)) = seconds.zip(locked) {
            println!(
                "\nA {what} takes {seconds} s per 100 MiB of rows, and keeps writers out for {locked} ms."
            );
        }
        let longest = Spread::of(beside().filter_map(|moved| Some(moved.beside?.longest_seconds * 1e3)));
        let rate = Spread::of(beside().filter_map(|moved| Some(moved.beside?.rate)));
        let seconds = Spread::of(beside().map(|moved| of_100_mib(moved.seconds, moved)));
        let passes = Spread::of(beside().map(|moved| f64::from(moved.passes)));
        #[expect(clippy::cast_precision_loss, reason = "rows of a table")]
        let late = Spread::of(beside().map(|moved| moved.late_rows as f64));
        if let (Some(longest), Some(rate), Some(seconds), Some(passes), Some(late)) =
            (longest, rate, seconds, passes, late)
        {
            println!(
                "Beside {rate} writes/s: {seconds} s per 100 MiB, {passes} passes, {late} rows behind the gate; the longest write took {longest} ms."
            );
        }
    }
    if let Some(Waits { rate, longest_seconds }) = results.undisturbed {
        println!("\nUndisturbed: {rate:.0} writes/s, the longest took {:.1} ms.", longest_seconds * 1e3);
    }
}

fn plot(samples: &[Sample]) -> Plot {
    let line = |name: &str, value: &dyn Fn(&Sample) -> f64| Line {
        name: name.to_owned(),
        points: samples
            .iter()
            .map(|sample| {
                let value = value(sample);
                let label = format!("{} s, {}", sample.second, sample.load.name());
                (label, Spread { min: value, median: value, max: value })
            })
            .collect(),
    };
    Plot {
        title: "Load per partition over time: uniform, Zipfian, a hot spot that moves, uniform again"
            .to_owned(),
        x: "second, load".to_owned(),
        y: "percent of all operations".to_owned(),
        lines: vec![
            line("busiest partition", &Sample::busiest_percent),
            line("if all were alike", &Sample::mean_percent),
        ],
    }
}
