//! What the writers do, and what must be true of the rows afterwards.
//!
//! I1. What a thread does next is a function of the workload, the round and the thread, not of the engine.
//! I2. Every workload leaves a trace by which lost, doubled or half-done transactions show: [`Job::audit`].

use serde::Serialize;

use super::{Failure, Session, Step, Store, Transaction};
use crate::peer::Outcome;
use crate::rows::{KEY_BYTES, Picks, Seed, key, mix};
use crate::zipf::{Popularity, ZipfPicks};

/// Shortest and longest value, bytes.
const VALUE_BYTES: std::ops::RangeInclusive<usize> = 100..=200;
/// The exponent of the popularity of keys.
const THETA: f64 = 0.99;
/// What every account has at first.
const OPENING_CENTS: u64 = 1000;
/// One in so many transactions of [`Workload::Disjoint`] inserts a row.
const INSERT_EVERY: u64 = 4;
/// Rows per transaction while loading.
const LOAD_BATCH_ROWS: u64 = 1000;

/// A kind of transaction and a way to choose its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Each thread writes rows of its own range of keys: three existing rows, then a new one.
    Disjoint,
    /// Blind writes of rows of one shared key space, all as likely.
    Uniform,
    /// Read, then write, one row; Zipfian popularity with exponent 0.99.
    Zipfian,
    /// Transfers between two accounts, all as likely: reads two rows and writes two.
    BankUniform,
    /// The same between accounts of Zipfian popularity.
    BankZipfian,
}

impl Workload {
    /// All of them.
    pub const ALL: &[Workload] = &[
        Workload::Disjoint,
        Workload::Uniform,
        Workload::Zipfian,
        Workload::BankUniform,
        Workload::BankZipfian,
    ];

    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Disjoint => "disjoint",
            Workload::Uniform => "uniform",
            Workload::Zipfian => "zipfian",
            Workload::BankUniform => "bank-uniform",
            Workload::BankZipfian => "bank-zipfian",
        }
    }
}

/// A workload of a certain size.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    workload: Workload,
    threads: u64,
    rows_per_thread: u64,
    popularity: Popularity,
}

impl Job {
    /// Of about `rows` rows, at least two, and `threads` threads.
    pub fn new(workload: Workload, threads: usize, rows: u64) -> Job {
        let threads = threads.max(1) as u64;
        let rows_per_thread = rows.div_ceil(threads).max(2);
        let popularity = Popularity::new(rows_per_thread * threads, THETA);
        Job { workload, threads, rows_per_thread, popularity }
    }

    /// What it is.
    pub fn workload(&self) -> Workload {
        self.workload
    }

    /// How many threads do it.
    pub fn threads(&self) -> u64 {
        self.threads
    }

    fn rows(&self) -> u64 {
        self.threads * self.rows_per_thread
    }

    /// The key of row `n` of those that are loaded.
    fn loaded_key(&self, n: u64) -> [u8; KEY_BYTES] {
        match self.workload {
            Workload::Disjoint => own_key(n / self.rows_per_thread, n % self.rows_per_thread),
            _ => key(n),
        }
    }

    /// Writes the rows that are there before anything is measured.
    pub fn load(&self, session: &mut dyn Session) -> Outcome<()> {
        let first_word = match self.workload {
            Workload::BankUniform | Workload::BankZipfian => OPENING_CENTS,
            Workload::Disjoint | Workload::Uniform | Workload::Zipfian => 0,
        };
        let mut start = 0;
        while start < self.rows() {
            let end = (start + LOAD_BATCH_ROWS).min(self.rows());
            let done = session.run(&mut |tx| {
                (start..end)
                    .try_for_each(|n| tx.write(&self.loaded_key(n), Value::new(n, first_word).bytes()))
            });
            match done {
                Ok(()) => start = end,
                Err(Failure::Conflict) => return Err("a conflict without anybody to conflict with".into()),
                Err(Failure::Fatal(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Checks all rows of a database after the transactions of `ledger`.
    pub fn audit(&self, store: &dyn Store, ledger: Ledger) -> Outcome<()> {
        let (mut rows, mut sum) = (0_u64, 0_u64);
        store.scan(&mut |_, value| {
            rows += 1;
            sum = sum.wrapping_add(first_word(value).unwrap_or(u64::MAX));
        })?;
        let must = |what: &str, found: u64, expected: u64| {
            if found == expected {
                return Ok(());
            }
            Err(format!("{what}: found {found}, expected {expected}"))
        };
        must("rows", rows, self.rows() + ledger.inserts)?;
        match self.workload {
            Workload::Disjoint | Workload::Uniform => {}
            Workload::Zipfian => must("increments", sum, ledger.commits)?,
            Workload::BankUniform | Workload::BankZipfian => must("money", sum, rows * OPENING_CENTS)?,
        }
        Ok(())
    }
}

/// What was committed to a database since it was loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ledger {
    /// Transactions.
    pub commits: u64,
    /// Those that inserted a row.
    pub inserts: u64,
}

impl Ledger {
    /// Adds another thread's, or round's.
    pub fn add(&mut self, other: Ledger) {
        self.commits += other.commits;
        self.inserts += other.inserts;
    }
}

/// The key of row `n` of the range that belongs to a thread.
fn own_key(thread: u64, n: u64) -> [u8; KEY_BYTES] {
    let mut key = key(n);
    key.copy_within(..8, 8);
    key[..8].copy_from_slice(&thread.to_be_bytes());
    key
}

/// A value: its first word means something, the rest is noise.
#[derive(Clone, Copy, Debug)]
struct Value {
    bytes: [u8; *VALUE_BYTES.end()],
    len: usize,
}

impl Value {
    fn new(noise: u64, first_word: u64) -> Self {
        let mut bytes = [0; *VALUE_BYTES.end()];
        let mut word = mix(noise);
        let len =
            VALUE_BYTES.start() + (word % (VALUE_BYTES.end() - VALUE_BYTES.start() + 1) as u64) as usize;
        for chunk in bytes[..len].chunks_mut(8) {
            word = mix(word);
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
        bytes[..8].copy_from_slice(&first_word.to_le_bytes());
        Value { bytes, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn first_word(value: &[u8]) -> Option<u64> {
    value.first_chunk().map(|word| u64::from_le_bytes(*word))
}

/// One transaction, decided but not yet run.
#[derive(Clone, Copy, Debug)]
pub struct Action {
    kind: Kind,
    noise: u64,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Put { key: [u8; KEY_BYTES], inserts: bool },
    Increment { key: [u8; KEY_BYTES] },
    Transfer { from: [u8; KEY_BYTES], to: [u8; KEY_BYTES], cents: u64 },
}

fn word_to_write(tx: &mut dyn Transaction, key: &[u8]) -> Step<u64> {
    let mut word = None;
    tx.read_to_write(key, &mut |value| word = first_word(value))?;
    word.ok_or_else(|| super::fatal("a row is missing or has no first word"))
}

impl Action {
    /// Its statements.
    pub fn run(&self, tx: &mut dyn Transaction) -> Step<()> {
        let value = |first_word| Value::new(self.noise, first_word);
        match &self.kind {
            Kind::Put { key, .. } => tx.write(key, value(0).bytes()),
            Kind::Increment { key } => {
                let count = word_to_write(tx, key)?;
                tx.write(key, value(count + 1).bytes())
            }
            Kind::Transfer { from, to, cents } => {
                let (payer, payee) = (word_to_write(tx, from)?, word_to_write(tx, to)?);
                let moved = payer.min(*cents);
                tx.write(from, value(payer - moved).bytes())?;
                tx.write(to, value(payee + moved).bytes())
            }
        }
    }

    /// What a commit of it adds to the ledger.
    pub fn entry(&self) -> Ledger {
        let inserts = matches!(self.kind, Kind::Put { inserts: true, .. });
        Ledger { commits: 1, inserts: u64::from(inserts) }
    }
}

/// The endless sequence of one thread's transactions in one round.
#[derive(Clone, Debug)]
pub struct Script {
    job: Job,
    thread: u64,
    uniform: Picks,
    popular: ZipfPicks,
    next: u64,
}

impl Script {
    /// Of thread `thread` in `round`.
    pub fn new(job: Job, round: u64, thread: u64) -> Self {
        let part = round << 32 | thread << 16;
        let picked_rows = if job.workload == Workload::Disjoint { job.rows_per_thread } else { job.rows() };
        Script {
            job,
            thread,
            uniform: Picks::new(Seed(mix(part)), picked_rows),
            popular: ZipfPicks::new(Seed(mix(!part)), job.popularity),
            // New rows have numbers of their own round, above those that were loaded.
            next: (round + 1) << 40,
        }
    }

    /// Two different rows.
    fn pair(&mut self, mut pick: impl FnMut(&mut Self) -> u64) -> (u64, u64) {
        let first = pick(self);
        loop {
            let second = pick(self);
            if second != first {
                return (first, second);
            }
        }
    }

    /// The next transaction.
    pub fn next_action(&mut self) -> Action {
        self.next += 1;
        let noise = mix(self.next ^ self.thread << 56);
        let transfer = |(from, to)| Kind::Transfer { from: key(from), to: key(to), cents: noise % 100 + 1 };
        let kind = match self.job.workload {
            Workload::Disjoint => {
                let inserts = self.next.is_multiple_of(INSERT_EVERY);
                let row = if inserts { self.next } else { self.uniform.pick() };
                Kind::Put { key: own_key(self.thread, row), inserts }
            }
            Workload::Uniform => Kind::Put { key: key(self.uniform.pick()), inserts: false },
            Workload::Zipfian => Kind::Increment { key: key(self.popular.pick()) },
            Workload::BankUniform => transfer(self.pair(|script| script.uniform.pick())),
            Workload::BankZipfian => transfer(self.pair(|script| script.popular.pick())),
        };
        Action { kind, noise }
    }
}
