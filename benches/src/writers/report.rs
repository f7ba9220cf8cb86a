//! The measurements as tables for people and as data.

use serde::Serialize;

use super::Contender;
use super::cell::{Sample, latency_histogram};
use super::workload::Workload;
use crate::peer::{Commit, Outcome};
use crate::spread::Spread;

/// The rounds of one engine with one number of threads.
#[derive(Debug)]
pub struct Series {
    /// Whose.
    pub contender: Contender,
    /// By how many threads.
    pub threads: u64,
    /// One entry per round.
    pub samples: Vec<Sample>,
    /// What the audit of the rows found wrong.
    pub complaint: Option<String>,
}

/// One workload with one durability: all engines, all numbers of threads.
#[derive(Debug)]
pub struct Field {
    /// What was done.
    pub workload: Workload,
    /// When commits returned.
    pub commit: Commit,
    /// Numbers of threads; others are compared to the first.
    pub threads: Vec<usize>,
    /// Engine by engine, and for each its numbers of threads.
    pub series: Vec<Series>,
    /// What the machine gave to threads that only compute: by round, by number of threads.
    pub machine: Vec<Vec<f64>>,
}

/// A series as numbers.
#[derive(Debug, Serialize)]
struct Row {
    workload: Workload,
    durability: Commit,
    threads: u64,
    engine: &'static str,
    commits_per_second: Option<Spread>,
    /// To Hamal's rate in the same round.
    ratio_to_hamal: Option<Spread>,
    /// To the same engine's rate with the first number of threads in the same round.
    ratio_to_first: Option<Spread>,
    /// The same of threads that only compute.
    machine_ratio_to_first: Option<Spread>,
    p50_ns: u64,
    p99_ns: u64,
    max_ns: u64,
    conflicts_per_commit: f64,
    abandoned: u64,
    log_flushes_per_commit: Option<Spread>,
    audit: Option<String>,
    rounds: Vec<Round>,
}

/// One measurement as numbers.
#[derive(Debug, Serialize)]
struct Round {
    seconds: f64,
    commits: u64,
    conflicts: u64,
    abandoned: u64,
    p50_ns: u64,
    p99_ns: u64,
    max_ns: u64,
    log_flushes_per_commit: Option<f64>,
}

impl Round {
    fn of(sample: &Sample) -> Round {
        Round {
            seconds: sample.elapsed.as_secs_f64(),
            commits: sample.commits,
            conflicts: sample.conflicts,
            abandoned: sample.abandoned,
            p50_ns: sample.latency_ns.value_at_quantile(0.5),
            p99_ns: sample.latency_ns.value_at_quantile(0.99),
            max_ns: sample.latency_ns.max(),
            log_flushes_per_commit: sample.flushes_per_commit,
        }
    }
}

impl Field {
    /// How many audits found something wrong.
    pub fn complaints(&self) -> usize {
        self.series.iter().filter(|series| series.complaint.is_some()).count()
    }

    fn rates(&self, contender: Contender, threads: u64) -> impl Iterator<Item = f64> {
        let series = self.series.iter().filter(move |s| s.contender == contender && s.threads == threads);
        series.flat_map(|series| series.samples.iter().map(Sample::commits_per_second))
    }

    fn rows(&self) -> Outcome<Vec<Row>> {
        self.series.iter().map(|series| self.row(series)).collect()
    }

    fn row(&self, series: &Series) -> Outcome<Row> {
        let mut latency_ns = latency_histogram()?;
        for sample in &series.samples {
            latency_ns.add(&sample.latency_ns)?;
        }
        let rates = || self.rates(series.contender, series.threads);
        let hamal = self.rates(Contender::Hamal, series.threads);
        let first_threads = self.threads.first().map_or(0, |first| *first as u64);
        let first = self.rates(series.contender, first_threads);
        let place = self.threads.iter().position(|threads| *threads as u64 == series.threads);
        let machine = self.machine.iter().filter_map(|rates| Some((*rates.get(place?)?, *rates.first()?)));
        let total = |count: fn(&Sample) -> u64| series.samples.iter().map(count).sum::<u64>();
        #[expect(clippy::cast_precision_loss, reason = "a measurement")]
        let conflicts_per_commit =
            total(|sample| sample.conflicts) as f64 / total(|sample| sample.commits).max(1) as f64;
        Ok(Row {
            workload: self.workload,
            durability: self.commit,
            threads: series.threads,
            engine: series.contender.name(),
            commits_per_second: Spread::of(rates()),
            ratio_to_hamal: ratios(rates().zip(hamal)),
            ratio_to_first: ratios(rates().zip(first)),
            machine_ratio_to_first: ratios(machine),
            p50_ns: latency_ns.value_at_quantile(0.5),
            p99_ns: latency_ns.value_at_quantile(0.99),
            max_ns: latency_ns.max(),
            conflicts_per_commit,
            abandoned: total(|sample| sample.abandoned),
            log_flushes_per_commit: Spread::of(
                series.samples.iter().filter_map(|sample| sample.flushes_per_commit),
            ),
            audit: series.complaint.clone(),
            rounds: series.samples.iter().map(Round::of).collect(),
        })
    }

    /// Markdown: a table for each number of threads, one line per engine.
    pub fn print(&self) -> Outcome<()> {
        let rows = self.rows()?;
        for &threads in &self.threads {
            println!("\n### {}, {} commits, {threads} threads\n", self.workload.name(), self.commit.name());
            println!(
                "| engine | commits/s | times Hamal's | times {} threads' | p50, µs | p99, µs | max, µs | conflicts/commit | log flushes/commit |",
                self.threads[0]
            );
            println!("|---|---|---|---|---|---|---|---|---|");
            let of_these = || rows.iter().filter(|row| row.threads == threads as u64);
            for row in of_these() {
                row.print();
            }
            if let Some(row) = of_these().next() {
                println!("| arithmetic | | | {} | | | | | |", text(row.machine_ratio_to_first));
            }
            for row in of_these() {
                if let Some(complaint) = &row.audit {
                    println!("\n**{}: {complaint}**\n", row.engine);
                }
            }
        }
        Ok(())
    }
}

impl Row {
    fn print(&self) {
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {:.3}{} | {} |",
            self.engine,
            text(self.commits_per_second),
            text(self.ratio_to_hamal),
            text(self.ratio_to_first),
            microseconds(self.p50_ns),
            microseconds(self.p99_ns),
            microseconds(self.max_ns),
            self.conflicts_per_commit,
            if self.abandoned > 0 { format!(" ({} given up)", self.abandoned) } else { String::new() },
            text(self.log_flushes_per_commit),
        );
    }
}

fn text(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| spread.to_string())
}

/// Of pairs measured in the same round.
fn ratios(pairs: impl Iterator<Item = (f64, f64)>) -> Option<Spread> {
    Spread::of(pairs.filter(|(_, base)| *base > 0.0).map(|(rate, base)| rate / base))
}

/// Nanoseconds as microseconds, with a digit below ten.
pub fn microseconds(ns: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let us = ns as f64 / 1000.0;
    if us < 10.0 { format!("{us:.1}") } else { format!("{us:.0}") }
}

/// Everything as data: one object per field, number of threads and engine, with its rounds.
pub fn data(fields: &[Field]) -> Outcome<serde_json::Value> {
    let rows: Vec<Vec<Row>> = fields.iter().map(Field::rows).collect::<Outcome<_>>()?;
    Ok(serde_json::to_value(rows.into_iter().flatten().collect::<Vec<_>>())?)
}
