//! Redo: repeats history for every page that may miss changes, losers' changes included. This is the pass of its own, for what was not redone
//! along with analysis ([`eager`], which deals out and redoes by the same means).
//!
//! One thread deals the parts of the log's records out by page, to itself or to workers ([`fan_out`]), who collect many of them and redo those of
//! one page together ([`batch`]). It reads the log too; where some pages are redone already another one does ([`ahead`]):
//!
//! ```text
//!   log --read, check, take apart--> parts of pages --by (partition, page)--> worker 0: collect, sort by page; ask the dirty page
//!        (in log order: partitions are made, files grow)                                table; decode, fix, check, apply
//!                                                                       \--> worker 1: ...
//! ```
//!
//! I1. A change is applied if and only if its page is in the dirty page table with `rec_lsn` at or below the record, and the page's
//!     LSN is below the record's. The table does not change during the pass.
//! I2. Then the page's LSN equals the record's `page_prev_lsn`, or a write was lost (F14): `Corrupt`, never a guess. Blind changes
//!     (images, overflow data) need no predecessor.
//! I3. One page's part is applied without the others of its record, and looks at no other page. So all that counts is the order of
//!     the parts of one page, and that is kept: a page belongs to one worker, whose queue is in log order. Bitmaps, roots and
//!     partition headers are pages like any other. A page that was freed and is used again begins anew with a blind part (analysis
//!     has dropped what came before, hazard H21), which is behind the earlier ones in the same queue.
//! I4. A page that the file does not have yet is less than one bitmap's pages behind its end: whoever took it had a bitmap for it, and
//!     that bitmap's page is in the file, or was redone earlier. A number further out is damage, not a reason to fill the disk.
//! I5. What a part does beyond its page is done by the reader before it hands the part out, and so in log order: a partition's file is
//!     made again (F8: page 0 is formatted by the record that makes the partition), a file grows for a blind part (I4 counts
//!     on it). Removed partitions have no page in the table. Records without parts concern analysis and undo alone.
//! I6. The error that is reported is the first in log order, as with one thread: what is behind a failure is left out, what is before it
//!     is still done, and may fail itself. What was redone beyond it harms nobody: the pass is idempotent by page LSN.
//! I7. A partition is done when the reader is behind the last record there is of it and its parts have been applied ([`Target`]).
//! I8. A partition that is damaged, or whose file is missing or refused, is quarantined, and what is left of it is passed over: the others
//!     are redone. All but the catalog.

pub(crate) mod apply;
mod batch;
pub(crate) mod eager;
mod fan_out;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hamal_pager::{PageNo, Partition, PartitionId};
use hamal_wal::{Frame, LogOptions, Lsn, Scanner};
use hashbrown::HashMap;

use super::analysis::{Analysis, Place};
use super::changes::{Changes, EncodedPart, RecordBatch, decode_other};
use super::{PARALLEL_BYTES, PROGRESS_RECORDS, ahead, partition_report, progress, recovery_workers};
use crate::engine::{Engine, PartitionHandle};
use crate::quarantine::twice;
use crate::report::{PassReport, RecoveryPass, RecoveryReport};
use crate::{Error, Result};
use apply::{Outcome, Step, creates, in_redo, pages_with, redo_part};
use fan_out::{FanOut, Size};

/// Why the pass ends early, and where that is in the log.
#[derive(Debug)]
struct Failure {
    at: Place,
    error: Error,
}

/// Index of a partition in [`Pass::targets`].
type TargetIndex = usize;

/// A partition with pages in the dirty page table.
#[derive(Debug)]
struct Target {
    id: PartitionId,
    /// No record of any of its pages in the table is newer.
    last_lsn: Lsn,
    /// Set when the reader meets its first part.
    handle: OnceLock<Arc<PartitionHandle>>,
    /// When its last part had been redone.
    done_at: OnceLock<Duration>,
    /// It cannot be redone, and is quarantined.
    failed: AtomicBool,
}

/// What was done to one partition.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    redone: u64,
    skipped: u64,
    bytes: u64,
}

impl Tally {
    fn count(&mut self, outcome: Outcome, bytes: u64) {
        match outcome {
            Outcome::Redone => self.redone += 1,
            Outcome::Skipped => self.skipped += 1,
            Outcome::Left => return,
        }
        self.bytes += bytes;
    }

    fn add(&mut self, other: Tally) {
        self.redone += other.redone;
        self.skipped += other.skipped;
        self.bytes += other.bytes;
    }
}

/// What parts are redone on: asked by all threads that redo.
trait Work: Sync {
    /// How many partitions there are.
    fn targets(&self) -> usize;
    /// The partition, if it is open.
    fn partition(&self, target: TargetIndex) -> Option<&Partition>;
    /// Where redo of the page begins; `None`: its parts are left out.
    fn rec_lsn(&self, target: TargetIndex, page: PageNo) -> Option<Lsn>;
    /// Redoes what the reader has handed out.
    fn redo(&self, at: Place, target: TargetIndex, step: Step<'_>) -> Result<Outcome, Failure>;
    /// All parts of the partition have been redone.
    fn note_done(&self, target: TargetIndex);
}

/// What one redo pass works on: read by all of its threads.
struct Pass<'e> {
    engine: &'e Engine,
    analysis: &'e Analysis,
    targets: Vec<Target>,
    by_id: HashMap<PartitionId, TargetIndex>,
    /// Pages have been redone already, and their parts need not be handed out.
    is_rest: bool,
}

/// Runs the pass. `began`: when the open began, on the storage's clock.
pub(super) fn run(
    engine: &Engine,
    log_options: &LogOptions,
    analysis: &Analysis,
    report: &mut RecoveryReport,
    began: Duration,
) -> Result<()> {
    let from = analysis.redo_lsn().map(|lsn| lsn.0);
    let _span = tracing::info_span!("redo", from, end = analysis.resume.end.0).entered();
    let started = engine.storage.monotonic();
    let end = analysis.resume.end;
    if let Some(from) = analysis.redo_lsn() {
        // Pages that leave memory meanwhile are noted in the log.
        let mut scanner = Scanner::open_between(engine.storage.clone(), log_options, from, end)?;
        let pass = Pass::new(engine, analysis);
        let is_long = end.0 - from.0 >= PARALLEL_BYTES || engine.options.recovery_workers.is_some();
        let size = Size {
            workers: if is_long { recovery_workers(&*engine.storage, &engine.options) } else { 1 },
            pages: analysis.left_pages(),
            cache_bytes: engine.options.cache_bytes,
        };
        let ((), done) = fan_out::run(&pass, size, |fan_out| {
            fan_out.start_threads();
            if let Err(failure) = pass.read(&mut scanner, from, fan_out, &mut report.redo) {
                fan_out.fail(failure);
            }
        });
        if let Some(failure) = done.failure {
            return Err(failure.error);
        }
        pass.note_failed();
        report.redo_workers = report.redo_workers.max(done.workers as u64);
        for (target, tally) in pass.targets.iter().zip(done.tallies) {
            note_tally(report, target.id, tally);
            let ready = target.done_at.get().map(|at| at.saturating_sub(began));
            partition_report(report, target.id).ready = ready;
        }
    }
    report.redo.pages = analysis.dirty_pages();
    report.redo.elapsed = engine.storage.monotonic().saturating_sub(started);
    progress(&engine.options, RecoveryPass::Redo, report.redo.bytes, report.redo.bytes)
}

/// Adds what was done to a partition to the report.
fn note_tally(report: &mut RecoveryReport, partition: PartitionId, tally: Tally) {
    report.redo.applied += tally.redone;
    let partition = partition_report(report, partition);
    partition.redone += tally.redone;
    partition.skipped += tally.skipped;
    partition.redo_bytes += tally.bytes;
}

impl<'e> Pass<'e> {
    fn new(engine: &'e Engine, analysis: &'e Analysis) -> Pass<'e> {
        let is_rest = analysis.left_pages() < analysis.dirty_pages();
        let mut pass = Pass { engine, analysis, targets: Vec::new(), by_id: HashMap::new(), is_rest };
        for (id, last_lsn) in analysis.last_lsns() {
            pass.by_id.insert(id, pass.targets.len());
            pass.targets.push(Target {
                id,
                last_lsn,
                handle: OnceLock::new(),
                done_at: OnceLock::new(),
                failed: AtomicBool::new(false),
            });
        }
        pass
    }

    /// Reads the log and hands the parts out.
    fn read(
        &self,
        scanner: &mut Scanner,
        from: Lsn,
        fan_out: &mut FanOut<'_, '_>,
        report: &mut PassReport,
    ) -> Result<(), Failure> {
        let mut ending: Vec<TargetIndex> = (0..self.targets.len()).collect();
        // The one that ends first is the last.
        ending.sort_by_key(|&target| std::cmp::Reverse((self.targets[target].last_lsn, target)));
        // Where most records concern nobody, reading them is most of the work.
        let alone_bytes = (self.is_rest && fan_out.has_threads()).then_some(0);
        let mut deal =
            Deal { pass: self, from, position: from, bytes_before: report.bytes, ending, known: None };
        let broken = ahead::each(scanner, alone_bytes, |batch| deal.see(batch, fan_out, report))
            .map_err(|error| deal.failed(error))?;
        broken.unwrap_or(Ok(()))?;
        while let Some(target) = deal.ending.pop() {
            fan_out.end_of(target);
        }
        Ok(())
    }

    /// The partition of a part, if any of its pages is in the table. `known`: that of the part before.
    fn target(
        &self,
        partition: PartitionId,
        known: &mut Option<(PartitionId, Option<TargetIndex>)>,
    ) -> Option<TargetIndex> {
        match *known {
            Some((id, target)) if id == partition => target,
            _ => known.insert((partition, self.by_id.get(&partition).copied())).1,
        }
    }

    /// Whether to hand the part out: its partition can be redone, and the page may miss it. If all that is needed is there already, the table
    /// is left to whoever redoes it.
    fn is_wanted(&self, target: TargetIndex, lsn: Lsn, part: EncodedPart<'_>) -> Result<bool> {
        if self.has_failed(target) {
            return Ok(false);
        }
        let is_ready = !part.change.is_blind() && self.targets[target].handle.get().is_some();
        if is_ready && !self.is_rest {
            return Ok(true);
        }
        let may_miss = self.analysis.rec_lsn(part.partition, part.page).is_some_and(|rec_lsn| lsn >= rec_lsn);
        Ok(may_miss && self.prepare(target, part)?)
    }

    /// Does what a part needs besides its page (I5). `false`: its partition cannot be redone (I8).
    fn prepare(&self, target: TargetIndex, part: EncodedPart<'_>) -> Result<bool> {
        let target = &self.targets[target];
        let open = || {
            let handle = if let Some(handle) = target.handle.get() {
                handle
            } else {
                let handle = match twice(|| self.engine.open_partition(part.partition)) {
                    Err(e) if creates(part, &e) => self.engine.create_partition(part.partition)?,
                    other => other?,
                };
                target.handle.get_or_init(|| handle)
            };
            if part.change.is_blind() {
                let partition = &handle.partition;
                partition.ensure_file_pages(pages_with(self.engine, partition, part.page)?)?;
            }
            Ok(())
        };
        match open() {
            Err(e) if self.gives_up(target, &e) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Whether the error concerns one partition alone, which is quarantined (I8).
    fn gives_up(&self, target: &Target, error: &Error) -> bool {
        let gives_up = self.engine.convict(target.id, error);
        if gives_up {
            target.failed.store(true, Ordering::Release);
        }
        gives_up
    }

    fn has_failed(&self, target: TargetIndex) -> bool {
        self.targets[target].failed.load(Ordering::Acquire)
    }

    /// What quarantined partitions may miss is what analysis says of them.
    fn note_failed(&self) {
        for target in self.targets.iter().filter(|target| target.failed.load(Ordering::Acquire)) {
            self.engine.quarantine.add_dirty(target.id, self.analysis.dirty_pages_of(target.id));
        }
    }
}

/// How far the records have been dealt out.
struct Deal<'p, 'e> {
    pass: &'p Pass<'e>,
    from: Lsn,
    position: Lsn,
    /// Of the report, when the pass began.
    bytes_before: u64,
    /// The partitions of which records are still to come, the one whose last record is the first behind all others.
    ending: Vec<TargetIndex>,
    /// The partition of the part before.
    known: Option<(PartitionId, Option<TargetIndex>)>,
}

impl Deal<'_, '_> {
    fn failed(&self, error: impl Into<Error>) -> Failure {
        Failure { at: Place { lsn: self.position, part: 0 }, error: error.into() }
    }

    /// Hands out records' parts. Breaks at a failure.
    fn see(
        &mut self,
        batch: &RecordBatch,
        fan_out: &mut FanOut<'_, '_>,
        report: &mut PassReport,
    ) -> ControlFlow<Result<(), Failure>> {
        self.pass.analysis.prefetch(batch.pages());
        for (frame, changes) in batch.records() {
            if fan_out.has_failed() {
                return ControlFlow::Break(Ok(()));
            }
            if let Err(failure) = self.deal(&frame, changes, fan_out, report) {
                return ControlFlow::Break(Err(failure));
            }
        }
        ControlFlow::Continue(())
    }

    fn deal(
        &mut self,
        frame: &Frame<'_>,
        changes: Option<Changes<'_>>,
        fan_out: &mut FanOut<'_, '_>,
        report: &mut PassReport,
    ) -> Result<(), Failure> {
        let (pass, lsn, end) = (self.pass, frame.lsn, self.pass.analysis.resume.end);
        if changes.is_none() {
            decode_other(frame).map_err(|e| self.failed(e))?;
        }
        while let Some(target) = self.ending.pop_if(|target| pass.targets[*target].last_lsn < lsn) {
            fan_out.end_of(target);
        }
        for (index, part) in changes.into_iter().flat_map(Changes::parts).enumerate() {
            let Some(target) = pass.target(part.partition, &mut self.known) else { continue };
            let at = Place { lsn, part: index };
            match pass.is_wanted(target, lsn, part) {
                Ok(true) => fan_out.part(at, target, part),
                Ok(false) => {}
                Err(error) => {
                    let error = in_redo(error, lsn, part.partition, part.page);
                    return Err(Failure { at, error });
                }
            }
        }
        self.position = frame.end;
        report.records += 1;
        report.bytes = self.bytes_before + (frame.end.0 - self.from.0);
        if report.records.is_multiple_of(PROGRESS_RECORDS) {
            let done = self.bytes_before + (fan_out.done_to(frame.end).0 - self.from.0);
            let total = self.bytes_before + (end.0 - self.from.0);
            progress(&pass.engine.options, RecoveryPass::Redo, done, total).map_err(|e| self.failed(e))?;
        }
        Ok(())
    }
}

impl Work for Pass<'_> {
    fn targets(&self) -> usize {
        self.targets.len()
    }

    fn partition(&self, target: TargetIndex) -> Option<&Partition> {
        self.targets[target].handle.get().map(|handle| &*handle.partition)
    }

    fn rec_lsn(&self, target: TargetIndex, page: PageNo) -> Option<Lsn> {
        self.analysis.rec_lsn(self.targets[target].id, page)
    }

    fn redo(&self, at: Place, target: TargetIndex, step: Step<'_>) -> Result<Outcome, Failure> {
        if self.has_failed(target) {
            return Ok(Outcome::Skipped);
        }
        let target = &self.targets[target];
        let redone = match target.handle.get() {
            Some(handle) => twice(|| redo_part(&handle.partition, step)),
            None => Err(Error::corrupt("the log", at.lsn.0, "a partition that is open", target.id)),
        };
        match redone.map_err(|error| in_redo(error, at.lsn, target.id, step.page)) {
            Err(e) if self.gives_up(target, &e) => Ok(Outcome::Skipped),
            other => other.map_err(|error| Failure { at, error }),
        }
    }

    fn note_done(&self, target: TargetIndex) {
        self.targets[target].done_at.get_or_init(|| self.engine.storage.monotonic());
    }
}
