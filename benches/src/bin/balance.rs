//! What the balancer makes of loads over time: uniform and steady, Zipfian, and a hot spot that moves. And how long a split and a merge
//! keep the writers of a table out.
//!
//! One table, one thread that reads nine rows for each that it writes, as fast as it can. Once a second the operations of each partition
//! are asked for.

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
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
    #[arg(long, default_value_t = 40_000)]
    hot: u64,
    /// Most partitions.
    #[arg(long, default_value_t = 16)]
    max_partitions: usize,
    /// Neighbours are merged after so many seconds.
    #[arg(long, default_value_t = 15)]
    cold: u64,
    /// Rows that a split and a merge move while nothing else happens, MiB; 0: leaves this out.
    #[arg(long, default_value_t = 100)]
    move_mib: u64,
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
    locked_seconds: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Results {
    rows: u64,
    hot: u64,
    max_partitions: usize,
    samples: Vec<Sample>,
    moved: Vec<Moved>,
}

fn main() -> Outcome<()> {
    let mut args = Arguments::parse();
    if args.smoke {
        (args.rows, args.seconds, args.stay, args.move_mib) = (5000, 3, 1, 1);
    }
    let moved = if args.move_mib > 0 { move_rows(&args)? } else { Vec::new() };
    let samples = watch(&args)?;
    let results =
        Results { rows: args.rows, hot: args.hot, max_partitions: args.max_partitions, samples, moved };
    print(&results);
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string(&results)? + "\n")?;
    }
    if let Some(path) = &args.svg {
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

/// A split and a merge of a table nobody else uses.
fn move_rows(args: &Arguments) -> Outcome<Vec<Moved>> {
    let place = fresh_directory_in(args.dir.as_deref())?;
    let db = options().balancer(None).open(place.path().join("db"))?;
    let rows = (args.move_mib << 20) / (VALUE_BYTES as u64 + 8);
    fill(&db, 2 * rows)?;
    let key = rows.to_be_bytes();
    let mut moved = Vec::new();
    for _ in 0..3 {
        let go_on = &mut |_| ControlFlow::Continue(());
        let split = db.split("rows", &key, go_on)?;
        while db.maintain()? {}
        let merge = loop {
            match db.merge("rows", &key, go_on) {
                Err(error) if error.is_retryable() => db.flush()?,
                other => break other?,
            }
        };
        for (what, report) in [("split", split), ("merge", merge)] {
            let locked_seconds = report.locked.as_secs_f64();
            moved.push(Moved { what, rows: report.rows, bytes: report.bytes, locked_seconds });
        }
        while db.maintain()? {}
    }
    Ok(moved)
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
            let operations = work_a_second(&db, &mut pick)?;
            second += 1;
            samples.push(sample(&db, (second, load, operations), &mut known, &mut counts)?);
        }
    }
    db.close()?;
    Ok(samples)
}

/// Works for a second; returns how many operations that were.
fn work_a_second(db: &Database, pick: &mut dyn FnMut(u64) -> u64) -> Outcome<u64> {
    let (began, value) = (Instant::now(), [8; VALUE_BYTES]);
    let mut done = 0;
    while began.elapsed() < Duration::from_secs(1) {
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
    for what in ["split", "merge"] {
        let of_kind = results.moved.iter().filter(|moved| moved.what == what);
        #[expect(clippy::cast_precision_loss, reason = "bytes of a table")]
        let seconds = of_kind.map(|moved| moved.locked_seconds * f64::from(100 << 20) / moved.bytes as f64);
        if let Some(spread) = Spread::of(seconds) {
            println!("\nA {what} keeps writers out for {spread} s per 100 MiB of rows.");
        }
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
