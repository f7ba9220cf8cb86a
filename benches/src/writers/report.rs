//! The measurements as tables for people and as data.

use serde::Serialize;

use super::Contender;
use super::cell::{Sample, latency_histogram};
use super::workload::Workload;
use crate::peer::{Commit, Outcome};
use crate::spread::Spread;

/// The rounds of one engine in one cell.
#[derive(Debug)]
pub struct Series {
    /// Whose.
    pub contender: Contender,
    /// One entry per round.
    pub samples: Vec<Sample>,
    /// What the audit of the rows found wrong.
    pub complaint: Option<String>,
}

/// One workload with one durability and number of threads, all engines.
#[derive(Debug)]
pub struct Cell {
    /// What was done.
    pub workload: Workload,
    /// When commits returned.
    pub commit: Commit,
    /// By how many threads.
    pub threads: usize,
    /// Engine by engine.
    pub series: Vec<Series>,
}

/// A series as numbers.
#[derive(Debug, Serialize)]
struct Row {
    workload: Workload,
    durability: Commit,
    threads: usize,
    engine: &'static str,
    commits_per_second: Option<Spread>,
    /// To Hamal's rate in the same round.
    ratio_to_hamal: Option<Spread>,
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

impl Cell {
    fn rates(&self, contender: Contender) -> impl Iterator<Item = f64> {
        let series = self.series.iter().filter(move |series| series.contender == contender);
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
        let rates = self.rates(series.contender);
        let hamal = self.rates(Contender::Hamal);
        let total = |count: fn(&Sample) -> u64| series.samples.iter().map(count).sum::<u64>();
        #[expect(clippy::cast_precision_loss, reason = "a measurement")]
        let conflicts_per_commit =
            total(|sample| sample.conflicts) as f64 / total(|sample| sample.commits).max(1) as f64;
        Ok(Row {
            workload: self.workload,
            durability: self.commit,
            threads: self.threads,
            engine: series.contender.name(),
            commits_per_second: Spread::of(self.rates(series.contender)),
            ratio_to_hamal: Spread::of(rates.zip(hamal).filter(|(_, h)| *h > 0.0).map(|(rate, h)| rate / h)),
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

    /// Markdown: one line per engine.
    pub fn print(&self) -> Outcome<()> {
        println!(
            "\n### {}, {} commits, {} threads\n",
            self.workload.name(),
            self.commit.name(),
            self.threads
        );
        println!(
            "| engine | commits/s | times Hamal's | p50, µs | p99, µs | max, µs | conflicts/commit | log flushes/commit |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        for row in self.rows()? {
            let spread = |spread: Option<Spread>| spread.map_or_else(|| "-".to_owned(), |s| s.to_string());
            let Row { engine, conflicts_per_commit, .. } = row;
            println!(
                "| {engine} | {} | {} | {} | {} | {} | {conflicts_per_commit:.3}{} | {} |",
                spread(row.commits_per_second),
                spread(row.ratio_to_hamal),
                microseconds(row.p50_ns),
                microseconds(row.p99_ns),
                microseconds(row.max_ns),
                if row.abandoned > 0 { format!(" ({} given up)", row.abandoned) } else { String::new() },
                spread(row.log_flushes_per_commit),
            );
            if let Some(complaint) = row.audit {
                println!("\n**{engine}: {complaint}**\n");
            }
        }
        Ok(())
    }
}

/// Nanoseconds as microseconds, with a digit below ten.
pub fn microseconds(ns: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let us = ns as f64 / 1000.0;
    if us < 10.0 { format!("{us:.1}") } else { format!("{us:.0}") }
}

/// Everything as data: one object per cell and engine, with its rounds.
pub fn data(cells: &[Cell]) -> Outcome<serde_json::Value> {
    let rows: Vec<Vec<Row>> = cells.iter().map(Cell::rows).collect::<Outcome<_>>()?;
    Ok(serde_json::to_value(rows.into_iter().flatten().collect::<Vec<_>>())?)
}
