//! How long a database takes to open after a crash: by log since the last checkpoint, number of partitions (tables, that is), and
//! number of threads that recover; beside the floor, which reads the log and the touched pages once and does nothing with them.
//!
//! Every open is of the same files and in a process of its own, which ends as a crash does: no destructor runs. What an open has
//! changed is put back before the next one: the master records, the doublewrite area, the newest log segments. That it
//! has left everything else as it was is checked. So the log is written once for each number of partitions, and the runs of one
//! round lie seconds apart.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use hamal::{Database, Durability, Maintenance, Options, TableDef};
use hamal_benches::peer::Outcome;
use hamal_benches::place::{fresh_directory, fresh_directory_in};
use hamal_benches::plot::{Line, Plot};
use hamal_benches::process::in_a_process_of_its_own;
use hamal_benches::rows::{Picks, ROW_BYTES, Seed, key, value};
use hamal_benches::spread::Spread;
use serde::{Deserialize, Serialize};

/// Rows per transaction.
const BATCH: u64 = 1000;
/// Log segments, from the newest on, that an open may change.
const CHANGED_SEGMENTS: usize = 3;

/// Times recoveries, and prints Markdown.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// Log since the last checkpoint, MiB.
    #[arg(long, default_value_t = 1024)]
    log_mib: u64,
    /// Rows, over all partitions, MiB.
    #[arg(long, default_value_t = 160)]
    data_mib: u64,
    /// Numbers of partitions.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16])]
    partitions: Vec<u64>,
    /// Numbers of threads that recover.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    workers: Vec<usize>,
    /// Rounds: every number of threads, and the floor, once in each.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Rows changed by a transaction that never ends.
    #[arg(long, default_value_t = 0)]
    loser_rows: u64,
    /// Page cache of the database, when it is made and when it is opened, MiB.
    #[arg(long, default_value_t = 4096)]
    cache_mib: u64,
    /// Let the system forget the files before each run.
    #[arg(long)]
    cold: bool,
    /// Where to keep the databases.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Also write the results to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also draw them into this file, as SVG.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Measure nothing: print and draw what these files of earlier runs hold.
    #[arg(long, value_delimiter = ',')]
    from: Vec<PathBuf>,
    /// Little log and one round: shows that it works, measures nothing.
    #[arg(long)]
    smoke: bool,
    /// What a run is to do, in a process of its own: open this database, or, with 0 workers, read its files.
    #[arg(long, hide = true, requires = "threads")]
    run: Option<PathBuf>,
    /// With how many threads.
    #[arg(long, hide = true)]
    threads: Option<usize>,
    /// Or: make this database, and die.
    #[arg(long, hide = true)]
    build: Option<PathBuf>,
}

/// What one run took, seconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Run {
    open: f64,
    /// Processor time of all threads: what the work is, whoever else is on the machine.
    processor: f64,
    analysis: f64,
    redo: f64,
    undo: f64,
    /// Pages redone in the first pass over the log, whose time is `analysis`.
    #[serde(default)]
    first_pass_pages: u64,
    /// Until the first, and the last, table's partition had nothing left to redo or undo.
    first_ready: f64,
    last_ready: f64,
    log_bytes: u64,
    changes: u64,
    pages: u64,
}

/// All runs of one number of partitions with one number of threads; 0: the floor.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cell {
    partitions: u64,
    workers: usize,
    runs: Vec<Run>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Results {
    log_mib: u64,
    data_mib: u64,
    loser_rows: u64,
    rounds: usize,
    cold: bool,
    cells: Vec<Cell>,
}

fn main() -> Outcome<()> {
    let mut arguments = Arguments::parse();
    if let (Some(home), Some(threads)) = (&arguments.run, arguments.threads) {
        let run = if threads == 0 { read_files(home)? } else { open(home, threads, arguments.cache_mib)? };
        println!("{}", serde_json::to_string(&run)?);
        std::process::exit(0);
    }
    if let Some(home) = &arguments.build {
        build(home, &arguments, arguments.partitions[0])?;
        // As a crash: nothing is closed.
        std::process::exit(0);
    }
    if arguments.smoke {
        arguments = Arguments {
            log_mib: 2,
            data_mib: 1,
            partitions: vec![1, 3],
            rounds: 1,
            loser_rows: 100,
            ..arguments
        };
    }
    let results = if arguments.from.is_empty() {
        let mut cells = Vec::new();
        for &partitions in &arguments.partitions {
            cells.extend(measure(&arguments, partitions)?);
        }
        Results {
            log_mib: arguments.log_mib,
            data_mib: arguments.data_mib,
            loser_rows: arguments.loser_rows,
            rounds: arguments.rounds,
            cold: arguments.cold,
            cells,
        }
    } else {
        put_together(&arguments.from)?
    };
    print(&results, &arguments.workers);
    if let Some(path) = &arguments.json {
        fs::write(path, serde_json::to_string_pretty(&results)? + "\n")?;
    }
    if let Some(path) = &arguments.svg {
        fs::write(path, draw(&results, &arguments.workers)?)?;
    }
    Ok(())
}

/// The results of several runs that differ in their numbers of partitions alone.
fn put_together(files: &[PathBuf]) -> Outcome<Results> {
    let mut all: Option<Results> = None;
    for path in files {
        let results: Results = serde_json::from_slice(&fs::read(path)?)?;
        match &mut all {
            None => all = Some(results),
            Some(known)
                if (known.log_mib, known.data_mib, known.loser_rows, known.cold)
                    == (results.log_mib, results.data_mib, results.loser_rows, results.cold) =>
            {
                known.cells.extend(results.cells);
            }
            Some(_) => return Err(format!("{} is of another measurement", path.display()).into()),
        }
    }
    all.ok_or_else(|| "no files".into())
}

fn options(cache_mib: u64) -> Options {
    Options::new()
        .cache_bytes(cache_mib << 20)
        .max_log_bytes(1 << 40)
        .checkpoint_log_bytes(1 << 40)
        .checkpoint_interval(Duration::from_hours(24))
        .durability(Durability::Relaxed)
        .maintenance(Maintenance::Manual)
        // All of it is to be measured.
        .trailing_undo_bytes(u64::MAX)
}

/// The files of a database as a crash leaves them.
fn build(home: &Path, arguments: &Arguments, partitions: u64) -> Outcome<()> {
    let database = options(arguments.cache_mib).open(home)?;
    let names: Vec<String> = (0..partitions).map(|n| format!("rows {n}")).collect();
    let tables: Vec<TableDef<'_, &[u8], &[u8]>> = names.iter().map(|name| TableDef::new(name)).collect();
    let rows = (arguments.data_mib << 20) / ROW_BYTES as u64;
    let write = |tx: &hamal::Transaction, numbers: &mut dyn Iterator<Item = u64>, version| -> Outcome<()> {
        let mut open = tables.iter().map(|table| tx.open_table(*table)).collect::<hamal::Result<Vec<_>>>()?;
        for n in numbers {
            open[(n % partitions) as usize].put(&key(n), &value(n, version))?;
        }
        Ok(())
    };
    for start in (0..rows).step_by(BATCH as usize) {
        let tx = database.begin()?;
        write(&tx, &mut (start..rows.min(start + BATCH)), 0)?;
        tx.commit()?;
    }
    let begin = database.checkpoint()?.begin_lsn;
    let mut picks = Picks::new(Seed(partitions), rows);
    let mut version = 0;
    while database.stats().log_tail - begin < arguments.log_mib << 20 {
        version += 1;
        let tx = database.begin()?;
        write(&tx, &mut (0..BATCH).map(|_| picks.pick()), version)?;
        tx.commit()?;
    }
    let loser = database.begin()?;
    write(&loser, &mut (rows..rows + arguments.loser_rows), 0)?;
    database.flush()?;
    std::mem::forget((loser, database));
    Ok(())
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

/// What this process has used so far.
fn processor_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap_or_default().as_secs_f64()
}

/// Opens the database with so many threads.
fn open(home: &Path, workers: usize, cache_mib: u64) -> Outcome<Run> {
    let began = Instant::now();
    let database: Database = options(cache_mib).recovery_workers(workers).open(home)?;
    let elapsed = began.elapsed();
    let processor = processor_seconds();
    let report = database.recovery_report().clone();
    std::mem::forget(database);
    if report.clean || report.redo.applied == 0 || report.redo_workers != workers as u64 {
        return Err(format!("nothing was recovered, or not as asked: {report:?}").into());
    }
    let ready = report.partitions.iter().filter(|p| p.partition != 0).filter_map(|p| p.ready.map(seconds));
    Ok(Run {
        open: seconds(elapsed),
        processor,
        analysis: seconds(report.analysis.elapsed),
        redo: seconds(report.redo.elapsed),
        undo: seconds(report.undo.elapsed),
        first_pass_pages: report.first_pass_pages,
        first_ready: ready.clone().fold(f64::INFINITY, f64::min),
        last_ready: ready.fold(0.0, f64::max),
        log_bytes: report.end_lsn - report.redo_lsn,
        changes: report.redo.applied,
        pages: report.redo.pages,
    })
}

/// The files that recovery has to read.
fn inputs(home: &Path) -> Outcome<Vec<PathBuf>> {
    let mut files = Vec::new();
    for directory in ["wal", "part"] {
        for entry in fs::read_dir(home.join(directory))? {
            files.push(entry?.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Reads the log and the pages, and looks at nothing.
fn read_files(home: &Path) -> Outcome<Run> {
    let mut buffer = vec![0; 1 << 20];
    let began = Instant::now();
    for path in inputs(home)? {
        let mut file = File::open(path)?;
        while file.read(&mut buffer)? > 0 {}
    }
    Ok(Run { open: seconds(began.elapsed()), processor: processor_seconds(), ..Run::default() })
}

/// What an open changes, and the state of everything else.
struct Image {
    home: PathBuf,
    saved: BTreeMap<PathBuf, Vec<u8>>,
    untouched: BTreeMap<PathBuf, State>,
}

/// What tells whether a file has changed.
#[derive(PartialEq)]
struct State {
    bytes: u64,
    sum: u64,
}

impl State {
    fn of(path: &Path) -> Outcome<State> {
        let bytes = fs::read(path)?;
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        Ok(State { bytes: bytes.len() as u64, sum: hasher.finish() })
    }
}

impl Image {
    fn of(home: &Path) -> Outcome<Image> {
        let (mut saved, mut untouched) = (BTreeMap::new(), BTreeMap::new());
        let mut segments: Vec<PathBuf> = Vec::new();
        for path in inputs(home)? {
            if path.parent().is_some_and(|directory| directory.ends_with("wal")) {
                segments.push(path);
            } else {
                untouched.insert(path.clone(), State::of(&path)?);
            }
        }
        let newest = segments.split_off(segments.len().saturating_sub(CHANGED_SEGMENTS));
        for path in segments {
            untouched.insert(path.clone(), State::of(&path)?);
        }
        for path in
            newest.into_iter().chain(["MASTER-A", "MASTER-B", "doublewrite"].map(|name| home.join(name)))
        {
            saved.insert(path.clone(), fs::read(path)?);
        }
        Ok(Image { home: home.to_owned(), saved, untouched })
    }

    /// Puts back what an open has changed.
    fn put_back(&self) -> Outcome<()> {
        for path in inputs(&self.home)? {
            if let Some(state) = self.untouched.get(&path) {
                if *state != State::of(&path)? {
                    return Err(format!("{} was changed by an open", path.display()).into());
                }
            } else if !self.saved.contains_key(&path) {
                fs::remove_file(path)?;
            }
        }
        for (path, bytes) in &self.saved {
            fs::write(path, bytes)?;
            File::open(path)?.sync_all()?;
        }
        Ok(())
    }

    /// Lets the system forget what it knows of the files, or makes sure that it knows them.
    fn settle(&self, cold: bool) -> Outcome<()> {
        for path in self.saved.keys().chain(self.untouched.keys()) {
            let mut file = File::open(path)?;
            if cold {
                file.sync_all()?;
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            } else {
                std::io::copy(&mut file, &mut std::io::sink())?;
            }
        }
        Ok(())
    }
}

/// All runs of one number of partitions.
fn measure(arguments: &Arguments, partitions: u64) -> Outcome<Vec<Cell>> {
    let place = match &arguments.dir {
        Some(dir) => fresh_directory_in(Some(dir))?,
        None => fresh_directory()?,
    };
    let home = place.path().join("recovered.hamal");
    let Arguments { log_mib, data_mib, loser_rows, cache_mib, .. } = *arguments;
    let sizes = [log_mib, data_mib, loser_rows, cache_mib, partitions].map(|n| n.to_string());
    let names = ["--log-mib", "--data-mib", "--loser-rows", "--cache-mib", "--partitions"];
    let sizes = names.iter().zip(&sizes).flat_map(|(name, size)| [*name, size.as_str()]);
    in_a_process_of_its_own(Command::new(std::env::current_exe()?).arg("--build").arg(&home).args(sizes))?;
    let image = Image::of(&home)?;
    let mut cells: Vec<Cell> = [0]
        .iter()
        .chain(&arguments.workers)
        .map(|&workers| Cell { partitions, workers, runs: Vec::new() })
        .collect();
    for round in 0..arguments.rounds {
        let count = cells.len();
        for turn in 0..count {
            let cell = &mut cells[(round + turn) % count];
            image.put_back()?;
            image.settle(arguments.cold)?;
            let threads = cell.workers.to_string();
            let mut command = Command::new(std::env::current_exe()?);
            let cache_mib = arguments.cache_mib.to_string();
            let how = ["--threads", &threads, "--cache-mib", &cache_mib];
            let run = in_a_process_of_its_own(command.arg("--run").arg(&home).args(how))?;
            cell.runs.push(serde_json::from_slice(&run)?);
        }
    }
    Ok(cells)
}

impl Results {
    fn cell(&self, partitions: u64, workers: usize) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.partitions == partitions && cell.workers == workers)
    }

    fn partitions(&self) -> Vec<u64> {
        let mut partitions: Vec<u64> = self.cells.iter().map(|cell| cell.partitions).collect();
        partitions.dedup();
        partitions
    }
}

impl Cell {
    fn spread(&self, of: impl Fn(&Run) -> f64) -> Option<Spread> {
        Spread::of(self.runs.iter().map(of))
    }

    /// Round by round.
    fn times(&self, other: &Cell, of: impl Fn(&Run) -> f64) -> Option<Spread> {
        Spread::of(self.runs.iter().zip(&other.runs).map(|(this, other)| of(this) / of(other)))
    }
}

fn tell(spread: Option<Spread>) -> String {
    spread.map_or_else(String::new, |s| format!("{:.2} ({:.2} to {:.2})", s.median, s.min, s.max))
}

fn print(results: &Results, workers: &[usize]) {
    println!(
        "| partitions | threads | open, s | processor, s | analysis, s | redo, s | undo, s | first ready, s | last ready, s | \
         times the floor | one thread / this: open | one thread / this: analysis and redo |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for partitions in results.partitions() {
        let Some(floor) = results.cell(partitions, 0) else { continue };
        let (open, processor) = (floor.spread(|run| run.open), floor.spread(|run| run.processor));
        println!("| {partitions} | floor | {} | {} | | | | | | | | |", tell(open), tell(processor));
        let one = results.cell(partitions, 1);
        for cell in workers.iter().filter_map(|workers| results.cell(partitions, *workers)) {
            let columns = [
                cell.spread(|run| run.open),
                cell.spread(|run| run.processor),
                cell.spread(|run| run.analysis),
                cell.spread(|run| run.redo),
                cell.spread(|run| run.undo),
                cell.spread(|run| run.first_ready),
                cell.spread(|run| run.last_ready),
                cell.times(floor, |run| run.open),
                one.and_then(|one| one.times(cell, |run| run.open)),
                one.and_then(|one| one.times(cell, |run| run.analysis + run.redo)),
            ];
            println!("| {partitions} | {} | {} |", cell.workers, columns.map(tell).join(" | "));
        }
    }
    if let Some(run) =
        results.cells.iter().rev().find_map(|cell| cell.runs.iter().find(|run| run.changes > 0))
    {
        println!(
            "\nOf the last: {} bytes of log, {} page changes redone, {} pages, {} of them along with analysis.",
            run.log_bytes, run.changes, run.pages, run.first_pass_pages
        );
    }
}

fn draw(results: &Results, workers: &[usize]) -> Outcome<String> {
    let partitions = results.partitions();
    let line = |name: String, workers: usize, of: fn(&Run) -> f64| Line {
        name,
        points: partitions
            .iter()
            .filter_map(|n| Some((n.to_string(), results.cell(*n, workers)?.spread(of)?)))
            .collect(),
    };
    let mut lines = Vec::new();
    for &workers in workers {
        let by = if workers == 1 { "1 thread".to_owned() } else { format!("{workers} threads") };
        lines.push(line(format!("open, {by}"), workers, |run| run.open));
        lines.push(line(format!("first partition ready, {by}"), workers, |run| run.first_ready));
    }
    lines.push(line("read log and pages once".to_owned(), 0, |run| run.open));
    Plot {
        title: format!(
            "Recovery of {} MiB of log, {} page cache",
            results.log_mib,
            if results.cold { "cold" } else { "warm" }
        ),
        x: "partitions".to_owned(),
        y: "seconds (median, least, most)".to_owned(),
        lines,
    }
    .to_svg()
}
