//! Whether the cache keeps to its budget: loads a database many times the cache (in key order: at random, every row would cost a
//! disk's flush), reads and changes it at random, and watches the memory that the page regions really take (their resident set,
//! as the kernel counts it).

use std::time::Instant;

use clap::Parser;
use hamal::{Durability, Options};
use hamal_benches::memory::{resident, with_one_arena};
use hamal_benches::peer::{Hamal, Outcome, Peer};
use hamal_benches::place::fresh_directory;
use hamal_benches::rows::{Picks, ROW_BYTES, Seed, ascending_key, value};

/// Loads a database far larger than its cache and checks that the cache keeps to its budget.
#[derive(Clone, Copy, Debug, Parser)]
struct Arguments {
    /// Cache budget, KiB.
    #[arg(long, default_value_t = 1024)]
    cache_kib: u64,
    /// Bytes of rows to load, MiB.
    #[arg(long, default_value_t = 1024)]
    data_mib: u64,
    /// Random reads, and as many random changes, after loading.
    #[arg(long, default_value_t = 20_000)]
    operations: u64,
    /// Rows per transaction.
    #[arg(long, default_value_t = 1000)]
    batch: u64,
    /// Largest overrun that passes, per cent.
    #[arg(long, default_value_t = 5.0)]
    allowed_percent: f64,
}

/// The largest values seen, bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Peak {
    /// What the engine says its pages take.
    counted: u64,
    /// What the kernel says the page regions take.
    regions: u64,
    /// The whole process.
    process: u64,
}

impl Peak {
    fn watch(&mut self, peer: &Hamal) -> Outcome<()> {
        self.counted = self.counted.max(peer.database().stats().resident_bytes);
        let (regions, process) = resident()?;
        self.regions = self.regions.max(regions);
        self.process = self.process.max(process);
        Ok(())
    }
}

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    with_one_arena()?;
    let home = fresh_directory()?;
    let budget = arguments.cache_kib << 10;
    let (_, before) = resident()?;
    let options = Options::new().cache_bytes(budget).durability(Durability::Relaxed);
    let peer = Hamal::open_with(home.path(), options)?;
    let (_, opened) = resident()?;
    let rows = ((arguments.data_mib << 20) / ROW_BYTES as u64).max(1);
    let mut peak = Peak::default();

    let began = Instant::now();
    let mut next = 0;
    while next < rows {
        let end = (next + arguments.batch).min(rows);
        peer.write(&mut (next..end).map(|n| (ascending_key(n), value(n, 0))))?;
        if (next / arguments.batch).is_multiple_of(16) {
            peak.watch(&peer)?;
        }
        next = end;
    }
    peak.watch(&peer)?;
    println!("loaded {rows} rows in {:.1} s", began.elapsed().as_secs_f64());

    let began = Instant::now();
    let mut picks = Picks::new(Seed(1), rows);
    let mut done = 0;
    while done < arguments.operations {
        let count = arguments.batch.min(arguments.operations - done);
        let mut reads = Picks::new(Seed(done + 2), rows);
        peer.read(&mut (0..count).map(|_| ascending_key(reads.pick())))?;
        peer.write(&mut (0..count).map(|n| {
            let row = picks.pick();
            (ascending_key(row), value(row, n + 1))
        }))?;
        peak.watch(&peer)?;
        done += count;
    }
    println!("{done} reads and as many changes in {:.1} s", began.elapsed().as_secs_f64());
    if peer.len()? != rows {
        return Err(format!("{} rows, expected {rows}", peer.len()?).into());
    }

    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let percent = |bytes: u64| 100.0 * (bytes as f64 / budget as f64 - 1.0);
    let stats = peer.database().stats();
    println!("cache budget                {:>8} KiB", budget >> 10);
    println!("pages, counted, at most     {:>8} KiB  {:+.1} %", peak.counted >> 10, percent(peak.counted));
    println!("page regions, at most       {:>8} KiB  {:+.1} %", peak.regions >> 10, percent(peak.regions));
    println!(
        "process before and after open, and at most: {}, {}, {} KiB",
        before >> 10,
        opened >> 10,
        peak.process >> 10
    );
    println!("{} evictions, {} pages written back", stats.evictions, stats.pages_written);
    let overrun = percent(peak.counted.max(peak.regions));
    if overrun > arguments.allowed_percent {
        return Err(format!("the cache overran its budget by {overrun:.1} %").into());
    }
    Ok(())
}
