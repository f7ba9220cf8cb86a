//! Throughput of many writers: Hamal beside its peers, in one process, in turns.
//!
//! For every workload and durability, each engine loads a fresh database for every number of threads; then in every round each of
//! them runs for a moment, an engine's numbers of threads one after another, and who goes first rotates. Ratios, between engines and
//! between numbers of threads, are formed within a round, so that a machine that changes its speed changes both sides. Beside them,
//! threads that only compute say how much the machine itself had to give. At the end all rows are read and must add up, or the program
//! fails.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use hamal_benches::peer::{Commit, Outcome};
use hamal_benches::place::{fresh_directory, fresh_directory_in};
use hamal_benches::writers::cell::{Sample, Window, measure};
use hamal_benches::writers::machine::compute;
use hamal_benches::writers::report::{Field, Series, data};
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
    /// Seconds measured per engine, number of threads and round.
    #[arg(long, default_value_t = 0.2)]
    seconds: f64,
    /// Seconds before that, not measured.
    #[arg(long, default_value_t = 0.05)]
    warm_up_seconds: f64,
    /// Rounds.
    #[arg(long, default_value_t = 15)]
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

/// A contender with its database for some number of threads.
struct Entrant {
    contender: Contender,
    job: Job,
    store: Box<dyn Store>,
    ledger: Ledger,
    samples: Vec<Sample>,
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
    let mut fields = Vec::new();
    for &workload in &arguments.workloads {
        for &commit in &arguments.durability {
            let field = run_field(&arguments, workload, commit)?;
            field.print()?;
            fields.push(field);
        }
    }
    if let Some(path) = &arguments.json {
        let document = json!({
            "rows": arguments.rows,
            "cache_mib": arguments.cache_mib,
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "warm_up_seconds": arguments.warm_up_seconds,
            "cells": data(&fields)?,
        });
        std::fs::write(path, serde_json::to_string_pretty(&document)?)?;
    }
    match fields.iter().map(Field::complaints).sum::<usize>() {
        0 => Ok(()),
        count => Err(format!("{count} audits failed; see the tables").into()),
    }
}

fn run_field(arguments: &Arguments, workload: Workload, commit: Commit) -> Outcome<Field> {
    let home = match &arguments.dir {
        Some(place) => fresh_directory_in(Some(place))?,
        None => fresh_directory()?,
    };
    let window = Window {
        warm_up: Duration::try_from_secs_f64(arguments.warm_up_seconds)?,
        measured: Duration::try_from_secs_f64(arguments.seconds)?,
    };
    let mut entrants = Vec::new();
    for &contender in &arguments.engines {
        for &threads in &arguments.threads {
            let directory = home.path().join(format!("{contender:?}-{threads}"));
            std::fs::create_dir(&directory)?;
            let setup = Setup { cache_bytes: arguments.cache_mib << 20, commit, writers: threads };
            let store = contender.open(&directory, setup)?;
            let job = Job::new(workload, threads, arguments.rows);
            job.load(&mut *store.session()?)?;
            store.settle()?;
            entrants.push(Entrant { contender, job, store, ledger: Ledger::default(), samples: Vec::new() });
        }
    }
    let mut machine = Vec::new();
    for round in 0..arguments.rounds {
        let first = usize::try_from(round)?;
        let rates = arguments.threads.iter().map(|threads| compute(*threads, window.measured));
        machine.push(rates.collect::<Outcome<Vec<f64>>>()?);
        for turn in 0..entrants.len() {
            let at = (first + turn) % entrants.len();
            let Entrant { contender, job, store, ledger, samples } = &mut entrants[at];
            let sample = measure(&**store, *job, round, window)
                .map_err(|error| format!("{} in {}: {error}", contender.name(), workload.name()))?;
            ledger.add(sample.ledger);
            samples.push(sample);
            store.settle()?;
        }
    }
    let series = entrants.into_iter().map(|entrant| {
        let Entrant { contender, job, store, ledger, samples } = entrant;
        let complaint = job.audit(&*store, ledger).err().map(|error| error.to_string());
        Series { contender, threads: job.threads(), samples, complaint }
    });
    Ok(Field { workload, commit, threads: arguments.threads.clone(), series: series.collect(), machine })
}
