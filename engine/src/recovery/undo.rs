//! The undo pass: rolls losers back, chain by chain, before anybody else can begin: what they wrote is locked by their stamps. Those with
//! much to undo are left to be rolled back behind the open ([`crate::trailing`]), where that can be.
//!
//! A chain is what one transaction did in one partition. Chains are dealt out, those of the newest transaction first, to the opening
//! thread alone or to several.
//!
//! I1. Chains need no order among themselves: a row that one loser has changed is locked against all others, and a chain's records are
//!     of its own partition. Each step is an ordinary change by key, under latches, logged by a compensation record; its place in the
//!     transaction's chain is changed in the transaction's section.
//! I2. A transaction's chain in the catalog comes after its others (hazard H11): whoever ends the last of these goes on with it. So the
//!     undo of a creation meets a partition whose rows are undone.
//! I3. With one thread the order is: newest transaction first, its chains by partition, the catalog's last.
//! I4. A failure or a cancellation stops all threads between two steps. What is undone stays undone: compensation records say so.
//! I5. The progress callback is called by one thread at a time, once for each record undone.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use hamal_pager::PartitionId;
use parking_lot::Mutex;

use super::analysis::{Analysis, UndoSize};
use super::{partition_report, progress, recovery_workers};
use crate::active::TxnEntry;
use crate::catalog::CATALOG;
use crate::engine::Engine;
use crate::report::{RecoveryPass, RecoveryReport};
use crate::{Error, ErrorKind, Result, rollback};

/// Records to undo that are worth starting threads for, unless their number is given.
const PARALLEL_RECORDS: u64 = 1024;

/// A transaction to be rolled back.
struct Loser {
    entry: Arc<TxnEntry>,
    /// Its chains outside of the catalog that are not undone; at least 1 until somebody has been told to end it.
    open: AtomicUsize,
    /// It has a chain in the catalog.
    in_catalog: bool,
}

impl Loser {
    fn new(entry: Arc<TxnEntry>) -> Loser {
        let chains = entry.lock().chains.clone();
        let in_catalog = chains.iter().any(|chain| chain.partition == CATALOG);
        let others = chains.len() - usize::from(in_catalog);
        Loser { entry, open: AtomicUsize::new(others.max(1)), in_catalog }
    }

    /// The partitions of its chains outside of the catalog.
    fn partitions(&self) -> Vec<PartitionId> {
        let state = self.entry.lock();
        state.chains.iter().map(|chain| chain.partition).filter(|partition| *partition != CATALOG).collect()
    }
}

/// One thing to do: a chain outside of the catalog, or, for a loser that has none, what comes after these.
struct Job<'l> {
    loser: &'l Loser,
    chain: Option<PartitionId>,
}

/// What the threads tell.
struct Told<'r> {
    report: &'r mut RecoveryReport,
    done: u64,
    /// Of several failures that of the job that one thread alone would have come to first.
    failure: Option<(usize, Error)>,
}

struct Pass<'p, 'r> {
    engine: &'p Engine,
    began: Duration,
    /// Records that there seem to be.
    total: u64,
    /// Chains that are not undone, by partition.
    chains: BTreeMap<PartitionId, AtomicUsize>,
    next_job: AtomicUsize,
    stop: AtomicBool,
    told: Mutex<Told<'r>>,
}

/// Decides who trails.
struct Trailing<'e> {
    engine: &'e Engine,
    /// Log that they may be promised, all of them: something is to be left for others.
    room_bytes: u64,
}

impl<'e> Trailing<'e> {
    fn new(engine: &'e Engine) -> Trailing<'e> {
        Trailing { engine, room_bytes: engine.log.free_bytes() / 4 * 3 }
    }

    /// Whether a loser is left to be rolled back behind the open; then the log has promised what that takes.
    fn takes(&mut self, entry: &TxnEntry, size: UndoSize) -> Result<bool> {
        let engine = self.engine;
        let UndoSize { bytes, .. } = size;
        if bytes < engine.options.trailing_undo_bytes || bytes > self.room_bytes {
            return Ok(false);
        }
        let chains = entry.lock().chains.clone();
        if engine.options.only.is_some() || chains.is_empty() {
            return Ok(false);
        }
        for chain in chains {
            if chain.partition == CATALOG {
                return Ok(false);
            }
            // Finds out whether it can be opened.
            engine.partition(chain.partition)?;
            if engine.quarantine.stage(chain.partition).is_some() {
                return Ok(false);
            }
        }
        match engine.log.promise(bytes).map_err(Error::from) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::LogFull | ErrorKind::NoSpace) => {
                tracing::debug!(%error, "no room to undo a transaction later");
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        self.room_bytes -= bytes;
        entry.lock().promised_bytes = bytes;
        Ok(true)
    }
}

/// Runs the pass. `began`: when the open began, on the storage's clock.
pub(super) fn run(
    engine: &Engine,
    analysis: &Analysis,
    report: &mut RecoveryReport,
    began: Duration,
) -> Result<()> {
    let _span = tracing::info_span!("undo", losers = report.losers).entered();
    let started = engine.storage.monotonic();
    let (mut losers, mut records) = (Vec::new(), 0);
    let mut trailing = Trailing::new(engine);
    for image in analysis.losers() {
        let entry = engine.timeline.restore(&image);
        entry.lock().chains.retain(|c| !analysis.deleted.contains(&c.partition));
        let size = analysis.undo_size(image.txn);
        if trailing.takes(&entry, size)? {
            engine.let_trail(entry, size.records)?;
        } else {
            losers.push(Loser::new(entry));
            records += size.records;
        }
    }
    let (mut jobs, mut chains) = (Vec::new(), BTreeMap::<PartitionId, AtomicUsize>::new());
    for loser in losers.iter().rev() {
        let partitions = loser.partitions();
        jobs.extend(partitions.iter().map(|partition| Job { loser, chain: Some(*partition) }));
        if partitions.is_empty() {
            jobs.push(Job { loser, chain: None });
        }
        for partition in partitions.iter().chain(loser.in_catalog.then_some(&CATALOG)) {
            *chains.entry(*partition).or_default().get_mut() += 1;
        }
    }
    let workers = match engine.options.recovery_workers {
        None if records < PARALLEL_RECORDS => 1,
        _ => recovery_workers(&*engine.storage, &engine.options).min(jobs.len()),
    };
    report.undo_workers = if jobs.is_empty() { 0 } else { workers as u64 };
    let pass = Pass {
        engine,
        began,
        total: records,
        chains,
        next_job: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        told: Mutex::new(Told { report, done: 0, failure: None }),
    };
    if workers > 1 {
        thread::scope(|scope| {
            for number in 1..workers {
                let work = || pass.work_and_catch(&jobs);
                let name = format!("hamal-undo-{number}");
                if let Err(error) = thread::Builder::new().name(name).spawn_scoped(scope, work) {
                    // Those that have started do its part too.
                    tracing::warn!(%error, "an undo thread could not be started");
                    break;
                }
            }
            pass.work_and_catch(&jobs);
        });
    } else {
        pass.work(&jobs);
    }
    let told = pass.told.into_inner();
    if let Some((_, error)) = told.failure {
        return Err(error);
    }
    let done = told.done;
    report.undo.records = done;
    report.undo.applied = done;
    report.undo.elapsed = engine.storage.monotonic().saturating_sub(started);
    for partition in engine.trailing.partitions() {
        partition_report(report, partition).ready = None;
    }
    progress(&engine.options, RecoveryPass::Undo, done, done)
}

impl Pass<'_, '_> {
    /// Does jobs until there are none.
    fn work(&self, jobs: &[Job<'_>]) {
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next_job.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(number) else { break };
            if let Err(error) = self.run(job) {
                self.fail(number, error);
            }
        }
    }

    /// The same, one of several threads: a panic is a failure.
    fn work_and_catch(&self, jobs: &[Job<'_>]) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work(jobs))) {
            let text = super::panic_text(&*panic);
            self.fail(jobs.len(), Error::new(ErrorKind::Poisoned, format!("undo panicked: {text}")));
        }
    }

    fn fail(&self, job: usize, error: Error) {
        let mut told = self.told.lock();
        let replaces = match &told.failure {
            None => true,
            // Who was only told to stop has nothing to say.
            Some((known, _)) => job < *known && error.kind() != ErrorKind::Cancelled,
        };
        if replaces {
            told.failure = Some((job, error));
        }
        // Now that there is a reason.
        self.stop.store(true, Ordering::Relaxed);
    }

    fn run(&self, job: &Job<'_>) -> Result<()> {
        let Job { loser, chain } = job;
        if let Some(partition) = chain {
            self.undo(loser, *partition)?;
        }
        // Acquire and release: the other chains' last records are in the log before the catalog's first.
        if loser.open.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        if loser.in_catalog {
            self.undo(loser, CATALOG)?;
        }
        rollback::note_rolled_back(self.engine);
        self.engine.timeline.end(&loser.entry, None);
        Ok(())
    }

    /// Undoes one chain.
    fn undo(&self, loser: &Loser, partition: PartitionId) -> Result<()> {
        rollback::roll_back_chain(self.engine, &loser.entry, partition, &mut |partition| {
            self.note_step(partition)?;
            if self.stop.load(Ordering::Relaxed) {
                // Somebody else has failed, and says why.
                return Err(Error::new(ErrorKind::Cancelled, "another thread's undo has failed"));
            }
            Ok(())
        })?;
        if self.chains.get(&partition).is_some_and(|open| open.fetch_sub(1, Ordering::AcqRel) == 1) {
            let ready = self.engine.storage.monotonic().saturating_sub(self.began);
            partition_report(self.told.lock().report, partition).ready = Some(ready);
        }
        Ok(())
    }

    /// A record has been undone.
    fn note_step(&self, partition: PartitionId) -> Result<()> {
        let mut told = self.told.lock();
        told.done += 1;
        partition_report(told.report, partition).undone += 1;
        // What is undone stays undone, also if the caller stops here: its compensation records are made durable.
        progress(&self.engine.options, RecoveryPass::Undo, told.done, self.total.max(told.done)).inspect_err(
            |_| {
                let _next_time_then = self.engine.log.flush();
            },
        )
    }
}
