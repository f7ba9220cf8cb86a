//! Background work: checkpoints by log volume and by time, continuous write-back, vacuum, periodic log flushes. One function does
//! a round of it; who calls that is a setting.
//!
//! When a partition is vacuumed:
//!
//! I1. A pass begins once there is garbage enough. Garbage is counted where it is made: removals, undo, freed runs.
//! I2. A pass purges what is settled and remembers the rest, which is garbage again once all of it is settled: what a long-lived view
//!     still needed is not forgotten, and no pass begins only to find it unsettled again.
//! I3. How much garbage there was when the partition was last closed is written nowhere, so the first pass after an open begins for no
//!     reason. It goes slowly, by a few leaves a round for all partitions together, and no round follows at once because of it: a clean open
//!     costs some reads a second until all has been seen once. Where it finds work, or there is garbage enough, it goes as fast as any other.

#[cfg(test)]
mod tests;

use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use hamal_wal::Lsn;
use parking_lot::{Condvar, Mutex};

use crate::balance::{self, BalancerOptions};
use crate::checkpoint::Effort;
use crate::database::Handle;
use crate::engine::{Engine, PartitionHandle};
use crate::options::{Maintenance, Scrub};
use crate::tree::Unsettled;
use crate::{Error, ErrorKind, Result, overflow, scrub};

/// Leaves visited per partition and round.
const VACUUM_LEAVES: usize = 256;
/// Leaves visited per round where nothing says that there is anything to do.
const LOOK_LEAVES: usize = 64;
/// Garbage, in rows, that starts a vacuum of a partition.
const VACUUM_GARBAGE: u64 = 256;
/// Extents freed per partition and round.
const FREE_EXTENTS: usize = 256;
/// Pages written back per round.
const WRITE_BACK_PAGES: usize = 256;
/// Longest sleep of the background threads: what bounds how late a vacuum notices garbage. In tests so long that nothing is found by looking
/// of which a thread should have been told.
const LONGEST_SLEEP: Duration = Duration::from_secs(if cfg!(test) { 3600 } else { 1 });

/// Between the end of a scrub and the next one's beginning, at least.
const SHORTEST_SCRUB: Duration = Duration::from_millis(100);

/// How far the vacuum of a partition is.
#[derive(Debug, Default)]
pub(crate) struct VacuumState {
    /// Where the pass under way goes on; `None`: there is none.
    at: Option<Vec<u8>>,
    /// The pass under way was begun because of garbage, or has met some.
    in_haste: bool,
    /// A pass has ended since the partition was opened.
    pub(crate) has_passed: bool,
    /// What the pass under way had to leave.
    met: Unsettled,
    /// What the last pass had to leave, and is not garbage yet.
    left: Unsettled,
}

impl Engine {
    /// One round: a checkpoint if one is due, else some write-back; some vacuum. Returns whether anything was done.
    pub(crate) fn maintain(&self) -> Result<bool> {
        let done = self.maintain_round();
        // Write-back moves the durable frontier too, and whatever failed may have poisoned the handle.
        self.durable_moved();
        done
    }

    fn maintain_round(&self) -> Result<bool> {
        self.check_poison()?;
        let mut done = self.flush_if_due()?;
        self.log.prepare_ahead();
        if self.checkpoint_due() {
            self.take_checkpoint(Effort::Fuzzy)?;
            done = true;
        } else {
            // What is dirty for longer than a checkpoint's worth of log goes first, so that the next checkpoint finds little to write.
            let tail = self.log.tail();
            let below = tail.0.saturating_sub(self.options.checkpoint_log_bytes / 2);
            done |= self.write_back(hamal_wal::Lsn(below), WRITE_BACK_PAGES)? > 0;
        }
        self.durable_moved();
        if let Err(error) = self.drop_settled_versions() {
            // They stay in memory; what follows does not need them gone, and frees space.
            tracing::warn!(%error, "before-images could not be moved to a file");
        }
        done |= self.bury()?;
        done |= self.archive_by_hand();
        if self.options.maintenance == Maintenance::Manual {
            done |= self.catch_up_some()?;
        }
        let _vacuum = self.lock(&self.vacuum, "a vacuum");
        done |= self.clear_strays()?;
        let mut looks = LOOK_LEAVES;
        for handle in self.open_partitions() {
            self.pause("between partitions of a vacuum");
            if handle.partition.is_sealed() || handle.is_behind() {
                continue;
            }
            let vacuumed = self.free_pending(&handle).and_then(|freed| {
                self.pause("between freeing and a vacuum");
                Ok(freed | self.vacuum_partition(&handle, &mut looks)?)
            });
            // A damaged one is quarantined; the others have their turn.
            match vacuumed.map_err(|e| self.blame(handle.partition.id(), e)) {
                Err(e) if e.kind() == ErrorKind::PartitionUnavailable => {}
                vacuumed => done |= vacuumed?,
            }
        }
        Ok(done)
    }

    /// How long until the log is to be flushed for a `Periodic` commit.
    fn until_flush(&self) -> Option<Duration> {
        let by = self.flush_by.load(Ordering::Relaxed);
        (by != u64::MAX).then(|| Duration::from_nanos(by).saturating_sub(self.storage.monotonic()))
    }

    /// Flushes the log if a `Periodic` commit has waited long enough.
    fn flush_if_due(&self) -> Result<bool> {
        if self.until_flush().is_none_or(|left| !left.is_zero()) {
            return Ok(false);
        }
        // A commit has its record before it says by when (pairs with the release): what is taken here, this flush makes durable.
        self.flush_by.swap(u64::MAX, Ordering::AcqRel);
        let flushed = self.log.flush();
        self.durable_moved();
        flushed?;
        Ok(true)
    }

    fn checkpoint_due(&self) -> bool {
        let Some(state) = self.checkpoint.try_lock() else { return false };
        let age = self.storage.monotonic().saturating_sub(state.last_at);
        // A checkpoint's own records are not worth another one.
        let tail = self.log.tail();
        self.has_log_for_checkpoint(tail)
            || (age >= self.options.checkpoint_interval && self.new_log_bytes(tail) > 4096)
    }

    /// Whether so much of the log's buffer waits to be written that whoever appends would soon wait too. `tail`, here and below: where the log
    /// ends, or a record near its end that the caller knows of anyway: what the log has of its end is in the cache of whoever appended last.
    fn buffer_is_half_full(&self, tail: Lsn) -> bool {
        let waiting_bytes = tail.0.saturating_sub(self.log.durable().0);
        waiting_bytes > self.options.log_buffer_bytes as u64 / 2
    }

    /// Log since the newest checkpoint's beginning, bytes.
    fn new_log_bytes(&self, tail: Lsn) -> u64 {
        tail.0.saturating_sub(self.checkpointed_to.load(Ordering::Relaxed))
    }

    /// Whether there is so much log that a checkpoint is due.
    fn has_log_for_checkpoint(&self, tail: Lsn) -> bool {
        let log_bytes = self.new_log_bytes(tail);
        log_bytes >= self.options.checkpoint_log_bytes
            || tail.0.saturating_sub(self.log.oldest().0) > self.options.max_log_bytes / 2
                && log_bytes > self.options.max_log_bytes / 8
    }

    /// Frees overflow runs that nobody can read any more.
    fn free_pending(&self, handle: &PartitionHandle) -> Result<bool> {
        if !handle.pending.swap(false, Ordering::Relaxed) {
            return Ok(false);
        }
        let freed = match overflow::free_pending(&self.journal, &handle.space, FREE_EXTENTS) {
            Ok(freed) => freed,
            Err(e) => {
                handle.pending.store(true, Ordering::Relaxed);
                // Tidying up can wait until there is log again.
                return if e.kind() == ErrorKind::LogFull { Ok(false) } else { Err(e) };
            }
        };
        if freed.runs > 0 {
            tracing::debug!(partition = handle.partition.id().0, runs = freed.runs, "overflow runs freed");
        }
        handle.pending.fetch_or(freed.is_more, Ordering::Relaxed);
        handle.garbage.fetch_add(freed.runs as u64, Ordering::Relaxed);
        Ok(freed.runs > 0)
    }

    /// Goes on with a pass, or begins one. Whether there may be more to do at once. `looks`: leaves that slow passes may still
    /// visit in this round.
    fn vacuum_partition(&self, handle: &PartitionHandle, looks: &mut usize) -> Result<bool> {
        let state = &mut *handle.vacuum.lock();
        if state.left.newest < self.journal.horizon() {
            handle.garbage.fetch_add(mem::take(&mut state.left).ghosts, Ordering::Relaxed);
        }
        let is_due = handle.garbage.load(Ordering::Relaxed) >= VACUUM_GARBAGE;
        let begins = state.at.is_none();
        if begins {
            state.in_haste = false;
        }
        state.in_haste |= is_due;
        if !state.in_haste && (begins && state.has_passed || *looks == 0) {
            return Ok(false);
        }
        let leaves = if state.in_haste { VACUUM_LEAVES } else { *looks };
        let garbage = if begins { handle.garbage.swap(0, Ordering::Relaxed) } else { 0 };
        let _span = tracing::debug_span!("vacuum", partition = handle.partition.id().0).entered();
        let work = || {
            let list = handle.system_tree().vacuum(&self.journal, None, leaves)?;
            Ok::<_, Error>((list, handle.tree().vacuum(&self.journal, state.at.as_deref(), leaves)?))
        };
        match work() {
            Ok((list, rows)) => {
                if !state.in_haste {
                    *looks = looks.saturating_sub(rows.leaves);
                }
                if begins {
                    state.met = list.unsettled;
                }
                state.met.add(rows.unsettled);
                state.at = rows.next;
                tracing::debug!(to_the_end = state.at.is_none(), "vacuumed");
                if state.at.is_none() {
                    state.has_passed = true;
                    state.left = mem::take(&mut state.met);
                }
                Ok(state.in_haste || list.found_work || rows.found_work)
            }
            // Tidying up can wait until there is log again.
            Err(e) if e.kind() == ErrorKind::LogFull => {
                handle.garbage.fetch_add(garbage, Ordering::Relaxed);
                Ok(false)
            }
            // Damage is told once for a pass, not in every round: the other partitions have their turn too.
            Err(e) => {
                *state = VacuumState { has_passed: true, ..VacuumState::default() };
                Err(e)
            }
        }
    }

    /// Everything written back, a last checkpoint, and all log archived: the next open has nothing to do, but to undo what trails still.
    pub(crate) fn close(&self) -> Result<()> {
        self.settle()?;
        self.archive_at_close();
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        // Nobody is left: all graves are due once all commits are durable.
        self.log.flush()?;
        self.timeline.expose(self.log.durable());
        self.bury()?;
        let quiet = {
            let state = self.lock(&self.checkpoint, "a checkpoint");
            self.pager.oldest_rec_lsn().is_none()
                && !self.quarantine.has_open()
                && self.timeline.active() == 0
                && self.log.durable() == self.log.tail()
                && state.last_end == self.log.tail()
        };
        if quiet {
            return Ok(());
        }
        self.log.flush()?;
        self.take_checkpoint(Effort::Full)?;
        Ok(())
    }
}

/// What the threads share with whoever wakes and stops them.
#[derive(Debug, Default)]
struct Signal {
    state: Mutex<SignalState>,
    wake: Condvar,
    flush: Condvar,
    archive: Condvar,
    balancer: Condvar,
    scrub: Condvar,
}

#[derive(Debug, Default)]
struct SignalState {
    stop: bool,
    due: bool,
}

/// The background threads of one database.
#[derive(Debug)]
pub(crate) struct Threads {
    signal: Arc<Signal>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(crate) fn start(engine: &Arc<Engine>) -> Result<Threads> {
        let signal = Arc::new(Signal::default());
        let mut threads = Threads { signal: signal.clone(), threads: Vec::new() };
        let (e, s) = (engine.clone(), signal.clone());
        let mut started =
            threads.spawn("hamal-maintenance", move || maintain_until_stopped(&e, &s)).and_then(|()| {
                let (e, s) = (engine.clone(), signal.clone());
                threads.spawn("hamal-flush", move || flush_until_stopped(&e, &s))
            });
        if started.is_ok() && engine.archive.is_some() {
            let (e, s) = (engine.clone(), signal.clone());
            started = threads.spawn("hamal-archive", move || archive_until_stopped(&e, &s));
        }
        if started.is_ok() && !engine.trailing.partitions().is_empty() {
            let (e, s) = (engine.clone(), signal.clone());
            started = threads.spawn("hamal-undo", move || undo_until_stopped(&e, &s));
        }
        if started.is_ok()
            && let Some(options) = engine.options.balancer
        {
            let (e, s) = (engine.clone(), signal.clone());
            started = threads.spawn("hamal-balancer", move || balance_until_stopped(&e, &options, &s));
        }
        if started.is_ok()
            && let Scrub::Every(period) = engine.options.scrub
        {
            let (e, s) = (engine.clone(), signal);
            started = threads.spawn("hamal-scrub", move || scrub_until_stopped(&e, &s, period));
        }
        match started {
            Ok(()) => Ok(threads),
            Err(error) => {
                // One that runs would keep the database, and its lock.
                threads.stop();
                Err(error)
            }
        }
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = start_thread(name, work)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Wakes the maintenance thread if the log has grown enough for a checkpoint, to `tail`.
    pub(crate) fn notify_if_due(&self, engine: &Engine, tail: Lsn) {
        if engine.until_flush().is_some_and(|left| left < LONGEST_SLEEP)
            || (engine.buffer_is_half_full(tail) && engine.flush_within(Duration::ZERO))
        {
            self.notify_flush();
        }
        if engine.has_log_for_checkpoint(tail) {
            let mut state = self.signal.state.lock();
            if !state.due {
                state.due = true;
                self.signal.wake.notify_all();
            }
        }
    }

    /// Wakes the flushing thread: a flush may be due earlier than it knew.
    pub(crate) fn notify_flush(&self) {
        // Under the lock: the thread may be between its look at the time and its wait.
        let _state = self.signal.state.lock();
        self.signal.flush.notify_all();
    }

    /// Whether the calling thread is one of them.
    pub(crate) fn are_running_this(&self) -> bool {
        let this = std::thread::current().id();
        self.threads.iter().any(|thread| thread.thread().id() == this)
    }

    /// Stops the threads and waits for them. Not for one of them to call.
    pub(crate) fn stop(mut self) {
        self.tell_to_stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a background thread panicked");
            }
        }
    }

    /// They end soon.
    pub(crate) fn tell_to_stop(&self) {
        self.signal.state.lock().stop = true;
        self.signal.wake.notify_all();
        self.signal.flush.notify_all();
        self.signal.archive.notify_all();
        self.signal.balancer.notify_all();
        self.signal.scrub.notify_all();
    }
}

/// A thread of a database's own. `Limit` if the system has no more.
pub(crate) fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|e| Error::new(ErrorKind::Limit, format!("the thread {name} could not be started: {e}")))
}

fn maintain_until_stopped(engine: &Engine, signal: &Signal) {
    loop {
        {
            let mut state = signal.state.lock();
            if !state.stop && !state.due {
                signal.wake.wait_for(&mut state, LONGEST_SLEEP.min(engine.options.checkpoint_interval));
            }
            if state.stop {
                return;
            }
            state.due = false;
        }
        // As long as a round finds something to do there may be more.
        loop {
            match engine.maintain() {
                Ok(true) if !signal.state.lock().stop => {}
                Ok(_) => break,
                Err(e) if e.kind() == ErrorKind::Poisoned => return,
                Err(e) => {
                    tracing::warn!(error = %e, "background maintenance failed; it is tried again");
                    break;
                }
            }
        }
    }
}

/// Keeps the promise of [`crate::Durability::Periodic`].
fn flush_until_stopped(engine: &Engine, signal: &Signal) {
    loop {
        {
            let mut state = signal.state.lock();
            if !state.stop {
                // Nobody wakes it for a flush that is due later than that.
                let sleep = engine.until_flush().map_or(LONGEST_SLEEP, |left| left.min(LONGEST_SLEEP));
                signal.flush.wait_for(&mut state, sleep);
            }
            if state.stop {
                return;
            }
        }
        if let Err(e) = engine.flush_if_due() {
            engine.poison(&e);
            return;
        }
    }
}

/// Keeps the archive up to date. In a thread of its own: a target may be slow, and nothing else waits for it.
fn archive_until_stopped(engine: &Engine, signal: &Signal) {
    loop {
        {
            let mut state = signal.state.lock();
            if !state.stop {
                signal.archive.wait_for(&mut state, LONGEST_SLEEP.min(engine.options.archive_interval));
            }
            if state.stop {
                return;
            }
        }
        if let Err(error) = engine.archive_if_due() {
            tracing::warn!(%error, "the log could not be archived; it is kept, and tried again");
        }
    }
}

/// Undoes what trails behind the open, then ends.
fn undo_until_stopped(engine: &Engine, signal: &Signal) {
    loop {
        if signal.state.lock().stop {
            return;
        }
        // Nobody waits for this thread: it does not fill the log's buffer up for those who commit. If that fails undo fails, and tells.
        if engine.buffer_is_half_full(engine.log.tail()) {
            let _undo_tells = engine.log.flush();
            engine.durable_moved();
        }
        match engine.catch_up_some() {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::error!(%error, "what open has left to be undone cannot be undone");
                return;
            }
        }
    }
}

/// Splits and merges partitions. In a thread of its own: moving rows may take a while.
fn balance_until_stopped(engine: &Arc<Engine>, options: &BalancerOptions, signal: &Signal) {
    let handle = Handle::of_thread(engine);
    let is_over = || signal.state.lock().stop;
    loop {
        {
            let mut state = signal.state.lock();
            if !state.stop {
                signal.balancer.wait_for(&mut state, options.interval);
            }
            if state.stop {
                return;
            }
        }
        match balance::round(&handle, options, &is_over) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Poisoned => return,
            Err(error) => tracing::warn!(%error, "partitions could not be balanced; it is tried again"),
        }
    }
}

/// Looks at all pages, spread over `period`, again and again. In a thread of its own: it sleeps most of the time.
fn scrub_until_stopped(engine: &Engine, signal: &Signal, period: Duration) {
    let opened = engine.storage.monotonic();
    // Whoever opens a database has other things to do at first.
    if wait_for_stop(signal, || {
        (period / 1000).saturating_sub(engine.storage.monotonic().saturating_sub(opened))
    }) {
        return;
    }
    loop {
        let began = engine.storage.monotonic();
        let done = scrub::run(engine, &mut |progress| {
            let due = scrub_due(period, progress.pages_done, progress.pages_total);
            let wait = || due.saturating_sub(engine.storage.monotonic().saturating_sub(began));
            if wait_for_stop(signal, wait) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match done {
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::Cancelled | ErrorKind::Poisoned) => return,
            Err(error) => {
                tracing::warn!(%error, "a scrub failed; the next one begins when it would have ended");
            }
        }
        let wait = || period.saturating_sub(engine.storage.monotonic().saturating_sub(began));
        // A period of nothing at all is not a reason to do nothing else.
        if wait_for_stop(signal, wait) || wait_for_stop_once(signal, SHORTEST_SCRUB) {
            return;
        }
    }
}

/// How long after a scrub's beginning it should have got so far.
fn scrub_due(period: Duration, pages_done: u64, pages_total: u64) -> Duration {
    let nanos = period.as_nanos() * u128::from(pages_done) / u128::from(pages_total.max(1));
    u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos)
}

/// Waits until `wait` says that nothing is left to wait for; whether the threads are to stop.
fn wait_for_stop(signal: &Signal, wait: impl Fn() -> Duration) -> bool {
    loop {
        let left = wait();
        if left.is_zero() {
            return signal.state.lock().stop;
        }
        if wait_for_stop_once(signal, left.min(LONGEST_SLEEP)) {
            return true;
        }
    }
}

fn wait_for_stop_once(signal: &Signal, wait: Duration) -> bool {
    let mut state = signal.state.lock();
    if !state.stop {
        signal.scrub.wait_for(&mut state, wait);
    }
    state.stop
}
