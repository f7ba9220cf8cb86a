//! How soon a database answers after a crash that has cut a large transaction off, which has changed one of its partitions: with all
//! of that undone before the open returns, and with undo that trails behind it.
//!
//! Each run has files of its own, copied from the same crash, and a process of its own: it opens, then reads and writes one row of a
//! healthy partition after the other until nothing is left to undo, then reads one of the partition that was changed. Another kind of run asks for that one
//! first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use hamal::{Durability, Options};
use hamal_benches::peer::Outcome;
use hamal_benches::place::{fresh_directory, fresh_directory_in};
use hamal_benches::plot::{Line, Plot};
use hamal_benches::process::in_a_process_of_its_own;
use hamal_benches::rows::{ROW_BYTES, ascending_key, value};
use hamal_benches::spread::Spread;
use serde::{Deserialize, Serialize};

/// Rows per transaction.
const BATCH: u64 = 1000;
const TABLE: &str = "rows";

/// Times first answers, and prints Markdown.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// Rows changed by the transaction that never ends.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, 1_000_000])]
    losers: Vec<u64>,
    /// Partitions of the table; the second is the one that is changed.
    #[arg(long, default_value_t = 16)]
    partitions: u64,
    /// Rows, over all partitions, MiB.
    #[arg(long, default_value_t = 64)]
    data_mib: u64,
    /// Rounds: every kind of run once in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Where to keep the databases.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Also write the results to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also draw them into this file, as SVG.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Little data and one round: shows that it works, measures nothing.
    #[arg(long)]
    smoke: bool,
    /// What to do in a process of its own.
    #[arg(long, hide = true, requires = "home")]
    part: Option<Part>,
    /// With this database.
    #[arg(long, hide = true)]
    home: Option<PathBuf>,
}

/// What a process of its own does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
enum Part {
    /// Makes the database, and dies.
    Build,
    /// Opens it when all is undone.
    Waiting,
    /// Opens it with undo that trails.
    Trailing,
    /// The same, and first asks for a row of the partition that is behind.
    Asking,
}

/// The kinds of run.
const KINDS: [Part; 3] = [Part::Waiting, Part::Trailing, Part::Asking];

/// What one run took from the beginning of the open, seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Run {
    open: f64,
    /// Until a healthy partition has answered.
    first: f64,
    /// Until the partition that was changed has.
    last: f64,
    /// Rows read and written again, and committed, before nothing was left to undo.
    served: f64,
    /// The slowest of these, seconds.
    slowest: f64,
}

/// All runs of one kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cell {
    loser_rows: u64,
    kind: Part,
    runs: Vec<Run>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Results {
    partitions: u64,
    data_mib: u64,
    rounds: usize,
    cells: Vec<Cell>,
}

fn main() -> Outcome<()> {
    let mut arguments = Arguments::parse();
    if arguments.smoke {
        arguments = Arguments { losers: vec![2000], partitions: 4, data_mib: 1, rounds: 1, ..arguments };
    }
    if let (Some(part), Some(home)) = (arguments.part, &arguments.home) {
        match part {
            Part::Build => build(home, &arguments)?,
            kind => println!("{}", serde_json::to_string(&run(home, &arguments, kind)?)?),
        }
        // As a crash: nothing is closed.
        std::process::exit(0);
    }
    let mut cells = Vec::new();
    for &loser_rows in &arguments.losers {
        cells.extend(measure(&arguments, loser_rows)?);
    }
    let Arguments { partitions, data_mib, rounds, .. } = arguments;
    let results = Results { partitions, data_mib, rounds, cells };
    print(&results);
    if let Some(path) = &arguments.json {
        fs::write(path, serde_json::to_string_pretty(&results)? + "\n")?;
    }
    if let Some(path) = &arguments.svg {
        fs::write(path, draw(&results)?)?;
    }
    Ok(())
}

fn options(kind: Part) -> Options {
    Options::new()
        .cache_bytes(2 << 30)
        .max_log_bytes(8 << 30)
        .checkpoint_log_bytes(4 << 30)
        .checkpoint_interval(Duration::from_hours(24))
        .balancer(None)
        .trailing_undo_bytes(if kind == Part::Waiting { u64::MAX } else { 0 })
}

/// Rows of each partition at first.
fn rows_of_each(arguments: &Arguments) -> u64 {
    (arguments.data_mib << 20) / ROW_BYTES as u64 / arguments.partitions
}

/// Row `n` of a partition.
fn key(partition: u64, n: u64) -> [u8; 24] {
    ascending_key(partition << 32 | n)
}

/// The files of a database as a crash leaves them.
fn build(home: &Path, arguments: &Arguments) -> Outcome<()> {
    let database = options(Part::Build).open(home)?;
    let splits: Vec<[u8; 24]> = (1..arguments.partitions).map(|n| key(n, 0)).collect();
    let splits: Vec<[u8; 8]> = splits.iter().filter_map(|split| split[..8].try_into().ok()).collect();
    database.transact(|tx| tx.create_bytes_table(TABLE, &splits).map(drop))?;
    let rows = rows_of_each(arguments);
    for partition in 0..arguments.partitions {
        for start in (0..rows).step_by(BATCH as usize) {
            database.transact(|tx| {
                let mut table = tx.open_bytes_table(TABLE)?;
                (start..rows.min(start + BATCH)).try_for_each(|n| table.put(&key(partition, n), &value(n, 0)))
            })?;
        }
    }
    database.checkpoint()?;
    let loser = database.begin()?;
    let mut table = loser.open_bytes_table(TABLE)?;
    // Over those that are there, and behind them.
    for n in 0..arguments.losers[0] {
        table.put(&key(1, n), &value(n, 1))?;
    }
    drop(table);
    database.flush()?;
    std::mem::forget((loser, database));
    Ok(())
}

fn run(home: &Path, arguments: &Arguments, kind: Part) -> Outcome<Run> {
    let began = Instant::now();
    let since = || began.elapsed().as_secs_f64();
    let database = options(kind).open(home)?;
    let open = since();
    let report = database.recovery_report();
    if report.losers != 1 || report.trailing_losers != u64::from(kind != Part::Waiting) {
        return Err(format!("not as asked: {report:?}").into());
    }
    let get = |partition, n| -> Outcome<()> {
        let found = database.snapshot()?.open_bytes_table(TABLE)?.get(&key(partition, n))?;
        if found.as_deref() != Some(&value(n, 0)[..]) {
            return Err(format!("partition {partition}, row {n}: {found:?}").into());
        }
        Ok(())
    };
    if kind == Part::Asking {
        get(1, 7)?;
        let last = since();
        return Ok(Run { open, first: open, last, served: 0.0, slowest: 0.0 });
    }
    get(2, 7)?;
    let first = since();
    let rows = rows_of_each(arguments);
    let (mut served, mut slowest) = (0_u32, 0.0);
    while database.stats().trailing_partitions > 0 {
        let start = Instant::now();
        // All but the one that is behind.
        let turn = u64::from(served);
        let (partition, n) = (2 + turn % (arguments.partitions - 2), turn % rows);
        get(partition, n)?;
        let options = hamal::TransactionOptions::new().durability(Durability::Relaxed);
        let tx = database.begin_with(options)?;
        tx.open_bytes_table(TABLE)?.put(&key(partition, n), &value(n, 0))?;
        tx.commit()?;
        served += 1;
        slowest = f64::max(slowest, start.elapsed().as_secs_f64());
    }
    get(1, 7)?;
    Ok(Run { open, first, last: since(), served: f64::from(served), slowest })
}

/// Copies a directory of files and directories.
fn copy(from: &Path, to: &Path) -> Outcome<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), &to)?;
            // What is still to be written would be in the way of what is measured.
            fs::File::open(&to)?.sync_all()?;
        }
    }
    Ok(())
}

fn do_part(arguments: &Arguments, loser_rows: u64, part: Part, home: &Path) -> Outcome<Vec<u8>> {
    let part = clap::ValueEnum::to_possible_value(&part).ok_or("a part without a name")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--part").arg(part.get_name()).arg("--home").arg(home);
    let sizes = [loser_rows, arguments.partitions, arguments.data_mib].map(|n| n.to_string());
    command.args(
        ["--losers", "--partitions", "--data-mib"].iter().zip(&sizes).flat_map(|(n, s)| [*n, s.as_str()]),
    );
    in_a_process_of_its_own(&mut command)
}

/// All runs with a loser of one size.
fn measure(arguments: &Arguments, loser_rows: u64) -> Outcome<Vec<Cell>> {
    let place = match &arguments.dir {
        Some(dir) => fresh_directory_in(Some(dir))?,
        None => fresh_directory()?,
    };
    let (crashed, home) = (place.path().join("crashed.hamal"), place.path().join("opened.hamal"));
    do_part(arguments, loser_rows, Part::Build, &crashed)?;
    let mut cells = KINDS.map(|kind| Cell { loser_rows, kind, runs: Vec::new() });
    for round in 0..arguments.rounds {
        for turn in 0..cells.len() {
            let cell = &mut cells[(round + turn) % KINDS.len()];
            copy(&crashed, &home)?;
            let run = do_part(arguments, loser_rows, cell.kind, &home)?;
            cell.runs.push(serde_json::from_slice(&run)?);
            fs::remove_dir_all(&home)?;
        }
    }
    Ok(cells.into())
}

impl Cell {
    fn spread(&self, of: impl Fn(&Run) -> f64) -> Option<Spread> {
        Spread::of(self.runs.iter().map(of))
    }
}

fn tell(spread: Option<Spread>, unit: f64) -> String {
    spread.map_or_else(String::new, |s| {
        format!("{:.2} ({:.2} to {:.2})", s.median * unit, s.min * unit, s.max * unit)
    })
}

fn print(results: &Results) {
    println!(
        "| rows of the loser | undo | open, s | first partition answers, s | last partition answers, s | served meanwhile | a second | slowest, ms |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for cell in &results.cells {
        let undo = match cell.kind {
            Part::Trailing => "trails",
            Part::Asking => "trails, and is asked for at once",
            Part::Waiting | Part::Build => "before the open",
        };
        let served = Spread::of(cell.runs.iter().map(|run| run.served)).map_or(0.0, |s| s.median);
        let rate = cell.spread(|run| run.served / (run.last - run.first).max(f64::EPSILON));
        let [open, first, last] =
            [cell.spread(|run| run.open), cell.spread(|run| run.first), cell.spread(|run| run.last)]
                .map(|spread| tell(spread, 1.0));
        let slowest = tell(cell.spread(|run| run.slowest), 1e3);
        let rate = rate.map_or(0.0, |s| s.median);
        println!(
            "| {} | {undo} | {open} | {first} | {last} | {served:.0} | {rate:.0} | {slowest} |",
            cell.loser_rows
        );
    }
}

fn draw(results: &Results) -> Outcome<String> {
    let line = |name: &str, kind: Part, of: fn(&Run) -> f64| Line {
        name: name.to_owned(),
        points: results
            .cells
            .iter()
            .filter(|cell| cell.kind == kind)
            .filter_map(|cell| Some((cell.loser_rows.to_string(), cell.spread(of)?)))
            .collect(),
    };
    Plot {
        title: format!(
            "First answers after a crash, {} partitions, one of them changed by a large loser",
            results.partitions
        ),
        x: "rows of the loser".to_owned(),
        y: "seconds from the beginning of the open (median, least, most)".to_owned(),
        lines: vec![
            line("all undone first: every partition", Part::Waiting, |run| run.last),
            line("undo trails: first partition", Part::Trailing, |run| run.first),
            line("undo trails: last partition, others busy", Part::Trailing, |run| run.last),
            line("undo trails: last partition, asked for at once", Part::Asking, |run| run.last),
        ],
    }
    .to_svg()
}
