//! Throughput of many writers: Hamal beside its peers, in one process, in turns.
//!
//! For every workload, durability and number of threads each engine loads a fresh database; then in every round each runs for a
//! fixed time, and who goes first rotates. Ratios are formed within a round, between turns that are seconds apart, so that a
//! machine that changes its speed changes both sides. At the end all rows are read and must add up, or the program fails.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use hamal_benches::peer::{Commit, Outcome};
use hamal_benches::place::{fresh_directory, fresh_directory_in};
use hamal_benches::writers::cell::{Window, measure};
use hamal_benches::writers::report::{Cell, Series, data};
use hamal_benches::writers::workload::{Job, Ledger, Workload};
use hamal_benches::writers::{Contender, Setup, Store};
use serde_json::json;

/// Measures how many transactions per second several writers commit, and prints Markdown.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// Engines.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Contender::USUAL.to_vec())]
    engines: Vec<Contender>,
    /// Numbers of threads that write.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16])]
    threads: Vec<usize>,
    /// Workloads.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Workload::ALL.to_vec())]
    workloads: Vec<Workload>,
    /// When commits return.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Commit::Durable, Commit::Lazy])]
    durability: Vec<Commit>,
    /// Seconds measured per engine and round.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Seconds before that, not measured.
    #[arg(long, default_value_t = 0.5)]
    warm_up_seconds: f64,
    /// Rounds.
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// Rows, or accounts, that are there at first.
    #[arg(long, default_value_t = 100_000)]
    rows: u64,
    /// Cache of each engine, MiB (LMDB uses the system's page cache).
    #[arg(long, default_value_t = 256)]
    cache_mib: u64,
    /// Where to keep the databases; a disk, or synchronous commits mean nothing.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Also write every measurement to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Every cell for a few milliseconds with one and two threads: shows that it works, measures nothing.
    #[arg(long)]
    smoke: bool,
}

/// A contender with its database.
struct Entrant {
    contender: Contender,
    store: Box<dyn Store>,
    ledger: Ledger,
}

fn main() -> Outcome<()> {
    let mut arguments = Arguments::parse();
    if arguments.smoke {
        arguments.threads = vec![1, 2];
        arguments.seconds = 0.02;
        arguments.warm_up_seconds = 0.002;
        arguments.rounds = 1;
        arguments.rows = 1000;
        arguments.cache_mib = 16;
    }
    println!(
        "{} rows, cache {} MiB, {} rounds of {} s; rates and ratios: median (least to most) of the rounds; latencies: of all rounds",
        arguments.rows, arguments.cache_mib, arguments.rounds, arguments.seconds
    );
    let mut cells = Vec::new();
    for &workload in &arguments.workloads {
        for &commit in &arguments.durability {
            for &threads in &arguments.threads {
                let cell = run_cell(&arguments, workload, commit, threads)?;
                cell.print()?;
                cells.push(cell);
            }
        }
    }
    if let Some(path) = &arguments.json {
        let document = json!({
            "rows": arguments.rows,
            "cache_mib": arguments.cache_mib,
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "warm_up_seconds": arguments.warm_up_seconds,
            "cells": data(&cells)?,
        });
        std::fs::write(path, serde_json::to_string_pretty(&document)?)?;
    }
    let complaints = cells.iter().flat_map(|cell| &cell.series).filter(|series| series.complaint.is_some());
    match complaints.count() {
        0 => Ok(()),
        count => Err(format!("{count} audits failed; see the tables").into()),
    }
}

fn run_cell(arguments: &Arguments, workload: Workload, commit: Commit, threads: usize) -> Outcome<Cell> {
    let home = match &arguments.dir {
        Some(place) => fresh_directory_in(Some(place))?,
        None => fresh_directory()?,
    };
    let job = Job::new(workload, threads, arguments.rows);
    let setup = Setup { cache_bytes: arguments.cache_mib << 20, commit, writers: threads };
    let window = Window {
        warm_up: Duration::try_from_secs_f64(arguments.warm_up_seconds)?,
        measured: Duration::try_from_secs_f64(arguments.seconds)?,
    };
    let mut entrants = Vec::new();
    let mut series = Vec::new();
    for &contender in &arguments.engines {
        let directory = home.path().join(format!("{contender:?}"));
        std::fs::create_dir(&directory)?;
        let store = contender.open(&directory, setup)?;
        job.load(&mut *store.session()?)?;
        store.settle()?;
        entrants.push(Entrant { contender, store, ledger: Ledger::default() });
        series.push(Series { contender, samples: Vec::new(), complaint: None });
    }
    for round in 0..arguments.rounds {
        let first = usize::try_from(round)?;
        for turn in 0..entrants.len() {
            let at = (first + turn) % entrants.len();
            let Entrant { contender, store, ledger } = &mut entrants[at];
            let sample = measure(&**store, job, round, window)
                .map_err(|error| format!("{} in {}: {error}", contender.name(), workload.name()))?;
            ledger.add(sample.ledger);
            series[at].samples.push(sample);
            store.settle()?;
        }
    }
    for (entrant, series) in entrants.iter().zip(&mut series) {
        series.complaint = job.audit(&*entrant.store, entrant.ledger).err().map(|error| error.to_string());
    }
    Ok(Cell { workload, commit, threads, series })
}
