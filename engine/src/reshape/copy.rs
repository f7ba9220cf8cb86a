//! Copying the rows of a range of keys from one partition into another: most of them while writers go on, the rest once there are none.
//!
//! A *pass* goes through the ranges that have a mark ([`super::changes`]), takes each mark away, and makes the copy of the range what the
//! source is: it walks over both, adds what is missing, writes over what differs, removes what is gone. All ranges begin with a mark and
//! no copy, so the first pass copies everything, later ones what has changed. Passes beside writers end when the last one was short, or
//! hardly shorter than the one before; what is left then is what was written during one short pass, however large the partition is.
//! The last pass has the source to itself.
//!
//! I1. Nobody reads the copies before the split or merge commits: they are in a partition that nobody knows, or above the upper bound of one.
//!     So a copy needs no undo: a row is one redo-only record, and what a crash leaves of it is an orphan file, or strays. Nobody else
//!     writes there either: what a walk has read of the copies is what they are.
//! I2. A long value's runs must never be nobody's: they and the row that has them are an errand, which is done or taken back as one. A
//!     row that is written over, or removed, lets go of its long value in an errand of its own, before: so no errand needs a cell's
//!     capacity back (hazard H5), which a purge may take from a copy, whose stamp is settled.
//! I3. Rows keep their stamps. Those who may read the copies see the split or merge, so they see all that committed before it: they
//!     need no ghosts, no older images, and no cell's capacity (hazard H5) from before.
//! I4. No latch is held between two rows, and no log room from one to the next (hazard H16). A full log is emptied by a checkpoint.
//! I5. Behind the last pass each row is as its last committed writer left it. What an active transaction has written may be copied too: if
//!     it is taken back, or changed again, the range gets a mark; and the last pass begins when all who had written have ended.
//! I6. No long value is read that might be freed meanwhile. One whose writer is active, or was taken back (then the range has its mark
//!     again), is left to a later pass. Any other can only be let go of by a transaction that the view of the split or merge does not
//!     see, for that is older than the walk's look at the leaf; and pages are freed behind the horizon, which is not behind a view.
//! I7. Key and stamp of a row whose writer has ended tell its value: a transaction leaves one of each key, and who takes a change back
//!     restores what was there. So a long value with the source's stamp need not be read again to be known as the same.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::changes::{Ranges, Watch};
use super::errand::Errand;
use super::walk::Walk;
use super::{OnProgress, tell};
use crate::change::Row;
use crate::engine::{Engine, PartitionHandle};
use crate::ids::TxnId;
use crate::journal::Author;
use crate::tree::{Decision, Tree};
use crate::{Error, ErrorKind, Result, overflow};

/// Bytes of a long value copied at a time.
const READ_BYTES: usize = 64 << 10;
/// Passes beside writers, at most.
const MOST_PASSES: u32 = 8;
/// A pass of so little effort is short: there is no point in another one beside writers. Less in tests, whose partitions are small.
const SHORT_EFFORT_BYTES: u64 = if cfg!(test) { 64 << 10 } else { 1 << 20 };
/// Leaves between two moves of the view.
const LEAVES_PER_VIEW: u64 = 64;

/// A copy in the making, from one partition to another.
pub(super) struct Copy<'c> {
    engine: &'c Engine,
    from: &'c Arc<PartitionHandle>,
    to: &'c Arc<PartitionHandle>,
    watch: Watch<'c>,
    /// Bytes of pages that are going to be read, and have been, long values included.
    total_bytes: u64,
    done_bytes: u64,
    /// What it took, as if it were bytes copied.
    effort_bytes: u64,
    copied: Copied,
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    /// Rows that there are in the copy.
    pub(super) rows: u64,
    /// Their keys and values.
    pub(super) bytes: u64,
    /// Passes beside writers.
    pub(super) passes: u32,
    /// Rows that were copied, or removed, behind them.
    pub(super) late_rows: u64,
    written_rows: u64,
}

impl<'c> Copy<'c> {
    /// Will copy the rows from `lower` on, up to `upper` (`None`: to the end). From here on changes of them are watched.
    pub(super) fn begin(
        engine: &'c Engine,
        (from, to): (&'c Arc<PartitionHandle>, &'c Arc<PartitionHandle>),
        lower: &'c [u8],
        upper: Option<&'c [u8]>,
    ) -> Result<Copy<'c>> {
        let watch = Watch::begin(from, lower, upper);
        let watch = watch.map_err(|error| engine.blame(from.partition.id(), error))?;
        let copied = Copied::default();
        Ok(Copy { engine, from, to, watch, total_bytes: 0, done_bytes: 0, effort_bytes: 0, copied })
    }

    /// Passes beside writers. `move_view` makes the view of the split or merge that of now: others need not keep what nobody reads. `Cancelled` if
    /// the caller stops it.
    pub(super) fn run(
        &mut self,
        move_view: &dyn Fn() -> Result<()>,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<()> {
        let mut last_effort = u64::MAX;
        while self.copied.passes < MOST_PASSES {
            let before = self.effort_bytes;
            self.pass(move_view, on_progress)?;
            self.copied.passes += 1;
            let effort = self.effort_bytes - before;
            let left = self.watch.cut_anew().map_err(|error| self.in_source(error))?;
            if left == 0 || effort <= SHORT_EFFORT_BYTES || effort > last_effort / 2 {
                break;
            }
            last_effort = effort;
        }
        Ok(())
    }

    /// The last pass: nobody who has written to the source, or will, is active.
    pub(super) fn finish(mut self, on_progress: &mut OnProgress<'_>) -> Result<Copied> {
        // What is in the source of one that has ended may be for the source's repair to take back.
        for handle in [self.from, self.to] {
            self.engine.check_online(handle)?;
        }
        let before = self.copied.written_rows;
        self.pass(&|| Ok(()), on_progress)?;
        if self.watch.ranges().marked() > 0 {
            return Err(Error::new(ErrorKind::Conflict, "rows of the partition are still being written"));
        }
        self.copied.late_rows = self.copied.written_rows - before;
        tell(on_progress, self.done_bytes, self.done_bytes)?;
        Ok(self.copied)
    }

    /// Makes the copy of each marked range what the source is.
    fn pass(&mut self, move_view: &dyn Fn() -> Result<()>, on_progress: &mut OnProgress<'_>) -> Result<()> {
        let ranges = self.watch.ranges();
        let pages = ranges.marked_leaves() as u64;
        self.total_bytes = self.total_bytes.max(self.done_bytes + pages * self.engine.page_bytes as u64);
        let (mut source, mut copies) = (Walk::over(self.from.tree()), Walk::over(self.to.tree()));
        let mut view_of = 0;
        for range in 0..ranges.len() {
            if !ranges.take(range) {
                continue;
            }
            if source.leaves() - view_of >= LEAVES_PER_VIEW {
                view_of = source.leaves();
                move_view()?;
            }
            self.copy_range(&ranges, range, (&mut source, &mut copies), on_progress)?;
        }
        move_view()
    }

    fn copy_range(
        &mut self,
        ranges: &Ranges,
        range: usize,
        (source, copies): (&mut Walk, &mut Walk),
        on_progress: &mut OnProgress<'_>,
    ) -> Result<()> {
        let (lower, upper) = ranges.bounds(range);
        source.begin(lower, upper);
        copies.begin(lower, upper);
        self.next_of_source(source, on_progress)?;
        copies.step().map_err(|error| self.in_copy(error))?;
        // I6. Asked behind the look at the row's leaf: who has ended by then has marked what it took back.
        let timeline = &self.engine.timeline;
        let is_settled = |writer: TxnId| !timeline.is_active(writer) && !ranges.is_marked(range);
        loop {
            let (row, copy) = (source.here(), copies.here());
            let (is_copied, is_wanted) = match (row, copy) {
                (None, None) => return Ok(()),
                (Some((key, _)), Some((other, _))) => (other <= key, key <= other),
                (row, copy) => (copy.is_some(), row.is_some()),
            };
            let (row, copy) = (row.filter(|_| is_wanted), copy.filter(|_| is_copied));
            match (row, copy) {
                (Some((_, row)), Some((_, copy))) if is_same(row, copy) => {}
                (Some((_, row)), _) if row.overflow && !is_settled(row.stamp) => ranges.mark(range),
                (Some((key, row)), copy) => {
                    self.put(key, row, copy.map(|copy| copy.1), on_progress)?;
                    self.note_written();
                }
                (None, Some((key, copy))) => {
                    self.remove(key, copy)?;
                    self.note_written();
                }
                (None, None) => {}
            }
            if is_wanted {
                self.next_of_source(source, on_progress)?;
            }
            if is_copied {
                copies.step().map_err(|error| self.in_copy(error))?;
            }
        }
    }

    /// Goes on to the source's next row, and tells of each leaf.
    fn next_of_source(&mut self, source: &mut Walk, on_progress: &mut OnProgress<'_>) -> Result<()> {
        let before = source.leaves();
        source.step().map_err(|error| self.in_source(error))?;
        let bytes = (source.leaves() - before) * self.engine.page_bytes as u64;
        if bytes > 0 {
            self.engine.pause("between leaves of a copy");
            tell(on_progress, self.done_bytes, self.total_bytes)?;
            self.done_bytes += bytes;
            self.effort_bytes += bytes;
        }
        Ok(())
    }

    /// Writes a row, in place of its old copy if there is one.
    fn put(
        &mut self,
        key: &[u8],
        row: Row<'_>,
        old: Option<Row<'_>>,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<()> {
        if let Some(old) = old {
            if row.overflow || old.overflow {
                self.remove(key, old)?;
            } else {
                self.forget(key, old.value.len() as u64);
            }
        }
        let engine = self.engine;
        let value_bytes = if row.overflow {
            let before = self.done_bytes;
            let value_bytes = with_log(engine, || {
                // What is done again counts once.
                self.done_bytes = before;
                self.copy_long(key, row, on_progress)
            })?;
            self.effort_bytes += value_bytes;
            value_bytes
        } else {
            let tree = self.to.tree();
            with_log(engine, || {
                let write = &mut |_: Option<Row<'_>>| Ok(Decision::Write(row));
                tree.update(&engine.journal, Author::System, key, row.value.len(), write)
                    .map_err(|error| self.in_copy(error))
            })?;
            row.value.len() as u64
        };
        self.copied.rows += 1;
        self.copied.bytes += key.len() as u64 + value_bytes;
        Ok(())
    }

    /// Removes a copy: its row has gone, or is to be written anew.
    fn remove(&mut self, key: &[u8], copy: Row<'_>) -> Result<()> {
        let engine = self.engine;
        let value_bytes = if copy.overflow {
            let value = overflow::Reader::open(&self.to.partition, copy.value);
            let value_bytes = value.map_err(|error| self.in_copy(error))?.len();
            with_log(engine, || {
                let errand = self.errand()?;
                errand.remove_long(self.to, key, copy.value).map_err(|error| self.in_copy(error))?;
                errand.commit()
            })?;
            value_bytes
        } else {
            let tree = self.to.tree();
            with_log(engine, || {
                let remove = &mut |_: Option<Row<'_>>| Ok(Decision::Remove(TxnId::NONE));
                tree.update(&engine.journal, Author::System, key, 0, remove)
                    .map_err(|error| self.in_copy(error))
            })?;
            copy.value.len() as u64
        };
        self.to.garbage.fetch_add(1, Ordering::Relaxed);
        self.forget(key, value_bytes);
        Ok(())
    }

    /// A copy does not count any more.
    fn forget(&mut self, key: &[u8], value_bytes: u64) {
        self.copied.rows -= 1;
        self.copied.bytes -= key.len() as u64 + value_bytes;
    }

    /// A row was written: that takes about as long as a look at a quarter of a leaf.
    fn note_written(&mut self) {
        self.copied.written_rows += 1;
        self.effort_bytes += self.engine.page_bytes as u64 / 4;
    }

    /// Copies a long value and its row (I2); returns the value's length. There is no copy of the key.
    fn copy_long(&mut self, key: &[u8], row: Row<'_>, on_progress: &mut OnProgress<'_>) -> Result<u64> {
        let engine = self.engine;
        let errand = self.errand()?;
        let [from, to] = [self.from, self.to].map(|handle| handle.partition.id());
        let in_source = |error| engine.blame(from, error);
        let in_copy = |error| engine.blame(to, error);
        let mut reader = overflow::Reader::open(&self.from.partition, row.value).map_err(in_source)?;
        let mut writer = overflow::Writer::new(&engine.journal, &errand.chain, &self.to.space);
        let value_bytes = reader.len();
        let mut buffer = vec![0; READ_BYTES.min(value_bytes.try_into().unwrap_or(READ_BYTES))];
        loop {
            let count = reader.read(&mut buffer).map_err(in_source)?;
            if count == 0 {
                break;
            }
            writer.write(&buffer[..count]).map_err(in_copy)?;
            self.done_bytes += count as u64;
            tell(on_progress, self.done_bytes, self.total_bytes)?;
        }
        let longest = Tree::max_inline_bytes(engine.page_bytes, key.len());
        let reference = writer.finish(longest).map_err(in_copy)?;
        let copy = Row { value: &reference, ..row };
        let write = &mut |_: Option<Row<'_>>| Ok(Decision::WriteAnew(copy));
        let author = Author::Transaction(&errand.chain);
        self.to.tree().update(&engine.journal, author, key, reference.len(), write).map_err(in_copy)?;
        errand.commit()?;
        Ok(value_bytes)
    }

    fn errand(&self) -> Result<Errand<'c>> {
        let closed = || Error::new(ErrorKind::Conflict, "a verification runs");
        Errand::begin(self.engine, self.to.partition.id()).ok_or_else(closed)
    }

    fn in_source(&self, error: Error) -> Error {
        self.engine.blame(self.from.partition.id(), error)
    }

    fn in_copy(&self, error: Error) -> Error {
        self.engine.blame(self.to.partition.id(), error)
    }
}

/// Whether a copy is what its row is (I7): for long values, which are in different places.
fn is_same(row: Row<'_>, copy: Row<'_>) -> bool {
    row.stamp == copy.stamp && row.overflow == copy.overflow && (row.overflow || row.value == copy.value)
}

/// Runs something that has no effect if it fails; once more after a checkpoint, if it was the log that was full.
pub(super) fn with_log<T>(engine: &Engine, mut run: impl FnMut() -> Result<T>) -> Result<T> {
    match run() {
        Err(e) if e.kind() == ErrorKind::LogFull => {
            engine.make_log_room(engine.options.lock_timeout)?;
            run()
        }
        other => other,
    }
}
