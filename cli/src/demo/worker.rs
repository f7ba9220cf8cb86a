//! The child process: workers that change the database until they are killed.
//!
//! I1. A worker's random numbers come from the seed; only the moments of kills and how workers interleave differ from run to run.
//! I2. Whatever goes wrong is told to the parent, and ends the process; so does a parent that has gone.

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Args;
use hamal::{Database, OpenMode, Table, Transaction};

use super::model::Model;
use super::protocol::{Change, Event, Reporter, big_value};
use super::random::Random;
use super::setup::{self, Settings};
use super::{ACCOUNT_COUNT, ACCOUNTS, CHARACTERS, LEDGER, account_name, character_key, ledger_key};
use crate::failure::Failure;
use crate::session::pass_name;

/// Between two reports of the engine's counters.
const COUNTERS_INTERVAL: Duration = Duration::from_millis(20);
/// Every how many of them a snapshot is audited.
const AUDIT_EVERY: u64 = 4;
/// New characters go here: a plane for private use.
const PRIVATE_PLANE: u64 = 0xF0000;

/// Arguments of the hidden command that the parent runs.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    directory: PathBuf,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    workers: usize,
    #[arg(long)]
    cache_bytes: u64,
    /// Only recover, then wait for the end
    #[arg(long)]
    recover_only: bool,
}

/// Why a child ends.
enum End {
    /// The parent has gone: nobody to tell.
    Deserted,
    /// Told to the parent.
    Failed(String),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Deserted
    }
}

impl From<hamal::Error> for End {
    fn from(error: hamal::Error) -> End {
        End::Failed(format!("{:?}: {error}", error.kind()))
    }
}

/// Runs until killed, or until something is wrong.
pub(crate) fn run(args: &WorkerArgs) -> ExitCode {
    let reporter = Arc::new(Reporter::new());
    match work(args, &reporter) {
        Ok(()) | Err(End::Deserted) => {}
        Err(End::Failed(what)) => {
            let _ = reporter.tell(&Event::Failed { what });
        }
    }
    ExitCode::FAILURE
}

fn work(args: &WorkerArgs, reporter: &Arc<Reporter>) -> Result<(), End> {
    let settings = Settings { cache_bytes: args.cache_bytes };
    let recovering = Arc::clone(reporter);
    let db = settings
        .options(OpenMode::Open)
        .on_recovery(move |progress| {
            let told = recovering.tell(&Event::Recovering { pass: pass_name(progress.pass).to_owned() });
            if told.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .open(&args.directory)?;
    reporter.tell(&Event::Ready)?;
    if args.recover_only {
        return wait(reporter);
    }
    let code_points = setup::characters()
        .map_err(|failure| match failure {
            Failure::Message(_, what) => End::Failed(what),
            _ => End::Deserted,
        })?
        .keys()
        .filter_map(|key| u64::from_str_radix(key, 16).ok())
        .collect::<Vec<_>>();
    let mut seeds = Random::new(args.seed);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..args.workers)
            .map(|number| {
                let worker = Worker {
                    db: &db,
                    reporter,
                    number,
                    workers: args.workers as u64,
                    code_points: &code_points,
                    random: seeds.fork(),
                };
                scope.spawn(move || end(reporter, worker.run()))
            })
            .collect();
        let audit = watch(&db, reporter, || workers.iter().any(thread::ScopedJoinHandle::is_finished));
        end(reporter, audit.map(|()| unreachable_end()));
    });
    Ok(())
}

/// A worker that ends without an error has panicked.
fn unreachable_end() -> std::convert::Infallible {
    eprintln!("hamal: a worker of the demo panicked");
    std::process::exit(101)
}

/// Tells why, and ends the whole process: the other workers must not go on.
fn end(reporter: &Reporter, result: Result<std::convert::Infallible, End>) {
    let Err(end) = result;
    if let End::Failed(what) = end {
        let _ = reporter.tell(&Event::Failed { what });
    }
    std::process::exit(1);
}

fn wait(reporter: &Reporter) -> Result<(), End> {
    loop {
        thread::sleep(COUNTERS_INTERVAL);
        reporter.tell(&Event::Ready)?;
    }
}

/// Reports the counters, and audits snapshots beside the workers, until a worker has ended.
fn watch(db: &Database, reporter: &Reporter, ended: impl Fn() -> bool) -> Result<(), End> {
    let mut turn = 0_u64;
    while !ended() {
        turn += 1;
        if turn.is_multiple_of(AUDIT_EVERY) {
            audit(db)?;
            reporter.tell(&Event::Audited)?;
        }
        let stats = db.stats();
        reporter.tell(&Event::Counters {
            pages_stolen: stats.pages_stolen,
            checkpoints: stats.checkpoints,
            structure_changes: stats.structure_changes,
            evictions: stats.evictions,
        })?;
        thread::sleep(COUNTERS_INTERVAL);
    }
    Ok(())
}

/// Whatever the workers are at, a snapshot's balances add up and its counts are right.
fn audit(db: &Database) -> Result<(), End> {
    let snapshot = db.snapshot()?;
    let accounts = snapshot.open_table(ACCOUNTS)?;
    let mut total = 0;
    for cents in accounts.values()? {
        total += i128::from(cents?);
    }
    if total != Model::total() {
        return Err(End::Failed(format!("a snapshot's balances add up to {total}, not {}", Model::total())));
    }
    let (len, rows) = (accounts.len()?, accounts.iter()?.count() as u64);
    if len != rows {
        return Err(End::Failed(format!("a snapshot of accounts has {rows} rows, but its count is {len}")));
    }
    Ok(())
}

/// What a transaction is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A few transfers.
    Transfers,
    /// A few characters.
    Edit,
    /// One character with a value larger than a page.
    Big,
    /// Many characters all over the table.
    Scattered,
    /// Many neighbouring characters.
    Run,
}

impl Kind {
    fn choose(random: &mut Random) -> Kind {
        match random.below(100) {
            0..60 => Kind::Transfers,
            60..88 => Kind::Edit,
            88..92 => Kind::Big,
            92..96 => Kind::Scattered,
            _ => Kind::Run,
        }
    }

    fn is_long(self) -> bool {
        matches!(self, Kind::Scattered | Kind::Run)
    }
}

/// How a transaction ended.
enum Outcome {
    Committed,
    RolledBack,
    /// It could not be serialized with others.
    Refused,
}

struct Worker<'w> {
    db: &'w Database,
    reporter: &'w Reporter,
    number: usize,
    workers: u64,
    code_points: &'w [u64],
    random: Random,
}

type Characters<'t> = Table<'t, &'static str, &'static str>;

impl Worker<'_> {
    fn run(mut self) -> Result<std::convert::Infallible, End> {
        let mut last = {
            let snapshot = self.db.snapshot()?;
            let ledger = snapshot.open_table(LEDGER)?;
            ledger.get(&ledger_key(self.number))?.unwrap_or(0)
        };
        loop {
            match self.transaction(last + 1) {
                Ok(Outcome::Committed) => last += 1,
                Ok(Outcome::RolledBack | Outcome::Refused) => {}
                Err(end) => return Err(end),
            }
        }
    }

    fn transaction(&mut self, sequence: u64) -> Result<Outcome, End> {
        let kind = Kind::choose(&mut self.random);
        let tx = self.db.begin()?;
        let mut changes = Vec::new();
        match self.change(&tx, kind, sequence, &mut changes) {
            Ok(()) => {}
            Err(error) if error.is_retryable() => return Ok(Outcome::Refused),
            Err(error) => return Err(error.into()),
        }
        if self.random.percent(if kind.is_long() { 50 } else { 15 }) {
            tx.rollback()?;
            self.reporter.tell(&Event::RolledBack { changes: changes.len() as u64 })?;
            return Ok(Outcome::RolledBack);
        }
        self.reporter.tell(&Event::Commit { worker: self.number, sequence, changes })?;
        match tx.commit() {
            Ok(()) => {
                self.reporter.tell(&Event::Acknowledged { worker: self.number, sequence })?;
                Ok(Outcome::Committed)
            }
            Err(error) if error.is_retryable() => {
                self.reporter.tell(&Event::Refused { worker: self.number, sequence })?;
                Ok(Outcome::Refused)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn change(
        &mut self,
        tx: &Transaction,
        kind: Kind,
        sequence: u64,
        changes: &mut Vec<Change>,
    ) -> hamal::Result<()> {
        tx.open_table(LEDGER)?.put(&ledger_key(self.number), sequence)?;
        let mut characters = tx.open_table(CHARACTERS)?;
        match kind {
            Kind::Transfers => {
                for _ in 0..self.random.between(1, 5) {
                    self.transfer(tx, changes)?;
                }
            }
            Kind::Edit => {
                for _ in 0..self.random.between(1, 20) {
                    let code_point = self.any_code_point();
                    self.edit(&mut characters, code_point, sequence, changes)?;
                }
                if self.random.percent(25) {
                    self.change_of_mind(tx, &mut characters, sequence)?;
                }
                if self.random.percent(50) {
                    self.transfer(tx, changes)?;
                }
            }
            Kind::Big => {
                let key = character_key(self.any_code_point());
                let (bytes, seed) = (self.random.between(10_000, 200_000), self.random.next());
                characters.put(&key, &big_value(bytes, seed))?;
                changes.push(Change::PutBig { key, bytes, seed });
            }
            Kind::Scattered => {
                for _ in 0..self.random.between(200, 1500) {
                    let code_point = self.any_code_point();
                    self.edit(&mut characters, code_point, sequence, changes)?;
                }
            }
            Kind::Run => self.run_of(&mut characters, sequence, changes)?,
        }
        Ok(())
    }

    /// Neighbours: all gone, or all there.
    fn run_of(
        &mut self,
        characters: &mut Characters<'_>,
        sequence: u64,
        changes: &mut Vec<Change>,
    ) -> hamal::Result<()> {
        let length = self.random.between(300, 2500) as usize;
        let start = self.random.below(self.code_points.len() as u64) as usize;
        let removing = self.random.percent(50);
        let own = self.number as u64;
        let run = self.code_points.iter().skip(start).filter(|code_point| **code_point % self.workers == own);
        for code_point in run.copied().take(length).collect::<Vec<_>>() {
            if removing {
                let key = character_key(code_point);
                characters.delete(&key)?;
                changes.push(Change::Delete { key });
            } else {
                self.put(characters, code_point, sequence, changes)?;
            }
        }
        Ok(())
    }

    /// Work up to a savepoint stays, work behind it is taken back: none of it is announced.
    fn change_of_mind(
        &mut self,
        tx: &Transaction,
        characters: &mut Characters<'_>,
        sequence: u64,
    ) -> hamal::Result<()> {
        let savepoint = tx.savepoint()?;
        let mut taken_back = Vec::new();
        for _ in 0..self.random.between(1, 20) {
            let code_point = self.any_code_point();
            self.edit(characters, code_point, sequence, &mut taken_back)?;
        }
        self.transfer(tx, &mut taken_back)?;
        tx.rollback_to(savepoint)
    }

    /// A row that is there is changed or removed; one that is not is put back.
    fn edit(
        &mut self,
        characters: &mut Characters<'_>,
        code_point: u64,
        sequence: u64,
        changes: &mut Vec<Change>,
    ) -> hamal::Result<()> {
        let key = character_key(code_point);
        if self.random.percent(25) && characters.remove(&key)?.is_some() {
            changes.push(Change::Delete { key });
            return Ok(());
        }
        self.put(characters, code_point, sequence, changes)
    }

    fn put(
        &mut self,
        characters: &mut Characters<'_>,
        code_point: u64,
        sequence: u64,
        changes: &mut Vec<Change>,
    ) -> hamal::Result<()> {
        let key = character_key(code_point);
        let padding = "*".repeat(self.random.below(160) as usize);
        let value = format!(
            r#"["{key}","CHANGED BY WORKER {} IN ITS TRANSACTION {sequence}","{padding}"]"#,
            self.number
        );
        characters.put(&key, &value)?;
        changes.push(Change::Put { key, value });
        Ok(())
    }

    fn transfer(&mut self, tx: &Transaction, changes: &mut Vec<Change>) -> hamal::Result<()> {
        let from = self.random.below(ACCOUNT_COUNT);
        let to = (from + self.random.between(1, ACCOUNT_COUNT - 1)) % ACCOUNT_COUNT;
        let (from, to) = (account_name(from), account_name(to));
        let mut accounts = tx.open_table(ACCOUNTS)?;
        let from_cents = accounts.get(&from)?.unwrap_or(0);
        let to_cents = accounts.get(&to)?.unwrap_or(0);
        let cents = self.random.between(1, 100).min(from_cents);
        accounts.put(&from, from_cents - cents)?;
        accounts.put(&to, to_cents + cents)?;
        changes.push(Change::Transfer { from, to, cents });
        Ok(())
    }

    /// A character of this worker's: no other worker touches it.
    fn any_code_point(&mut self) -> u64 {
        let any = if self.random.percent(15) {
            PRIVATE_PLANE + self.random.below(8192)
        } else {
            self.code_points[self.random.below(self.code_points.len() as u64) as usize]
        };
        any - any % self.workers + self.number as u64
    }
}
