//! Fuzzy checkpoints (ARIES section 5.4): nobody stops for them.
//!
//! 1. Write back the pages that were dirty at the previous checkpoint already, so that redo spans about two intervals at most.
//! 2. Reserve BEGIN. Then, and only then, copy the transaction table (entering each transaction's section once, hazard H2), the
//!    dirty page table (arrays first, in-flight batches second, hazard H3) and the row counts with the LSN they are exact for
//!    (hazard H17).
//! 3. Append the tables and END; make END durable; write both master copies; recycle the log below what anybody needs.
//!
//! I1. The master record names a checkpoint only when its END, and so all of its tables, are durable.
//! I2. Log is given back only below the oldest of: BEGIN, every `rec_lsn`, the first record of every active transaction, and what others
//!     hold ([`crate::retention`]).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hamal_pager::{PageNo, PartitionId};
use hamal_wal::Lsn;

use crate::engine::Engine;
use crate::master::{Master, MasterFiles};
use crate::record::Record;
use crate::report::CheckpointReport;
use crate::{Error, ErrorKind, Result};

/// Entries per record of a checkpoint's tables: keeps every record far below a log buffer.
const CHUNK: usize = 512;
/// Pages per write-back call: between two calls, others get at the doublewrite area.
const WRITE_BACK_PAGES: usize = 256;

/// How much is written back before a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// What the previous checkpoint knew as dirty.
    Fuzzy,
    /// Everything dirty when the checkpoint starts.
    Full,
}

/// What the checkpointer remembers from one checkpoint to the next.
#[derive(Debug)]
pub(crate) struct CheckpointState {
    pub(crate) master: MasterFiles,
    /// BEGIN of the last checkpoint.
    pub(crate) last_begin: Lsn,
    /// The oldest LSN that recovery from it needs.
    pub(crate) needed_from: Lsn,
    /// The log's tail behind its END.
    pub(crate) last_end: Lsn,
    /// When it was taken, monotonic.
    pub(crate) last_at: Duration,
}

/// Log room that is always promised to the next checkpoint, to commits, aborts, ends and recovery (hazard H20), bytes.
pub(crate) fn standing_promise(options: &crate::Options, page_bytes: usize) -> u64 {
    let dirty_table = options.cache_bytes / page_bytes as u64 * 16;
    (dirty_table + (64 << 10)).min(options.max_log_bytes / 4)
}

/// Why there is no checkpoint.
struct Failure {
    error: Error,
    /// It leaves unknown what is on the disk.
    poisons: bool,
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { error: error.into(), poisons: false }
    }
}

impl Engine {
    /// Takes a checkpoint. The caller holds nothing.
    pub(crate) fn take_checkpoint(&self, effort: Effort) -> Result<CheckpointReport> {
        self.give_up_trailing_undo_offline()?;
        let mut state = self.lock(&self.checkpoint, "a checkpoint");
        let span = tracing::debug_span!("checkpoint", ?effort).entered();
        let taken = self.take_checkpoint_locked(&mut state, effort);
        drop((state, span));
        // It has made the log durable, or it has failed and perhaps poisoned: both concern tickets.
        match &taken {
            Err(Failure { error, poisons: true }) => self.poison(error),
            _ => self.durable_moved(),
        }
        taken.map_err(|failure| failure.error)
    }

    /// The log is full: gives back what nobody needs. Losers whose undo trails keep theirs, so that comes first, for as long as the timeout.
    /// The caller holds nothing.
    pub(crate) fn make_log_room(&self, timeout: Duration) -> Result<()> {
        match self.catch_up_all_within(timeout) {
            // A checkpoint alone may do.
            Err(e) if e.kind() == ErrorKind::Conflict => {}
            other => other?,
        }
        self.take_checkpoint(Effort::Full)?;
        Ok(())
    }

    fn take_checkpoint_locked(
        &self,
        state: &mut CheckpointState,
        effort: Effort,
    ) -> std::result::Result<CheckpointReport, Failure> {
        self.check_poison()?;
        // What is written to a file that is gone is lost: its log stays.
        self.look_for_files()?;
        let below = match effort {
            Effort::Fuzzy => state.last_begin,
            Effort::Full => self.log.tail(),
        };
        let mut report = CheckpointReport::default();
        loop {
            let written = self.write_back(below, WRITE_BACK_PAGES)?;
            report.pages_written += written as u64;
            self.pause("between batches of a checkpoint");
            if written == 0 {
                break;
            }
        }

        self.settle_quarantines(state.master.current())?;
        let database_id = state.master.current().database_id;
        let begin = self.journal.append(&Record::BeginCheckpoint { database_id })?;
        self.pause("after BEGIN of a checkpoint");
        let mut transactions = self.timeline.images();
        transactions.extend(self.quarantine.images());
        self.pause("after the transaction table of a checkpoint");
        let mut dirty = self.pager.dirty_pages();
        self.quarantine.amend(&mut dirty);
        self.pause("after the dirty page table of a checkpoint");
        let (counts, counts_as_of) = self.timeline.newest_counts(|| self.log.tail());

        let redo_lsn = dirty.iter().map(|d| d.rec_lsn).fold(begin, Lsn::min);
        let oldest = transactions.iter().map(|t| t.first_lsn).fold(redo_lsn, Lsn::min);
        report.begin_lsn = begin.0;
        report.redo_lsn = redo_lsn.0;
        report.dirty_pages = dirty.len() as u64;
        report.active_transactions = transactions.len() as u64;

        for chunk in transactions.chunks(CHUNK) {
            self.journal.append(&Record::CheckpointTransactions { transactions: chunk.to_vec() })?;
        }
        let mut tables: BTreeMap<PartitionId, Vec<(PageNo, Lsn)>> = BTreeMap::new();
        for d in dirty {
            tables.entry(d.partition).or_default().push((d.page, d.rec_lsn));
        }
        for (partition, mut pages) in tables {
            pages.sort_unstable();
            for chunk in pages.chunks(CHUNK) {
                self.journal.append(&Record::CheckpointPages { partition, pages: chunk.to_vec() })?;
            }
        }
        for chunk in counts.chunks(CHUNK) {
            self.journal.append(&Record::CheckpointCounts { counts: chunk.to_vec() })?;
        }
        let end = self.journal.append(&Record::EndCheckpoint {
            begin_lsn: begin,
            counts_as_of,
            next_txn: self.timeline.next_id(),
            next_id: self.next_id.load(Ordering::Relaxed),
        })?;
        let tail = self.log.tail();
        report.end_lsn = end.0;
        self.pause("after END of a checkpoint");
        self.log.make_durable(end)?;

        // A batch that failed since has put its pages back, but what the disk holds of them is unknown (F7).
        self.check_poison()?;
        if self.look_for_files()? > 0 {
            // What was written back in vain is in the log still. Each partition makes this happen once.
            return self.take_checkpoint_locked(state, effort);
        }
        let used = self.log.used_bytes();
        if let Some(archive) = &self.archive {
            archive.give_up(self.options.archive_hold_bytes, oldest, tail);
        }
        let kept = self.retention.cut_at(oldest, Lsn(tail.0.saturating_sub(self.options.kept_log_bytes())));
        let next = Master {
            checkpoint_lsn: begin,
            attested: self.log.durable(),
            oldest_lsn: kept,
            ..state.master.current().clone()
        };
        state.master.write(next).map_err(|error| Failure { error, poisons: true })?;
        state.last_begin = begin;
        state.needed_from = oldest;
        self.checkpointed_to.store(begin.0, Ordering::Relaxed);
        state.last_end = tail;
        state.last_at = self.storage.monotonic();
        self.pause("before the log is cut");
        self.log.truncate(kept)?;
        report.log_freed_bytes = used.saturating_sub(self.log.used_bytes());
        self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(?report, "checkpoint");
        Ok(report)
    }

    /// Writes back dirty pages; a failure poisons (F7: what the disk holds is unknown).
    pub(crate) fn write_back(&self, below: Lsn, max_pages: usize) -> Result<usize> {
        Ok(self.pager.write_back(below, max_pages)?)
    }
}
