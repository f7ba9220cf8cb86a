//! The first pass over the log: analysis ([`super::analysis`]), and redo of as many pages as fit in memory ([`super::redo::eager`]).
//!
//! ```text
//!           oldest rec_lsn           BEGIN       END                              end of the log
//!  log  --------|----------------------|----------|------------------------------------|
//!   1.                                 |--------->|                                      the checkpoint: what it lists is the table now
//!   2.          |-------------------------------->|                                      redo of the pages in the table
//!   3.                                            |----------------------------------->| analysis and redo
//! ```
//!
//! I1. Nothing on the disk changes. Where the log ends, and whether it is sound, is known only when the pass has ended; until then what has been
//!     redone is in memory, and goes with it if the open is refused.
//! I2. Analysis comes to the same as if nothing were redone.
//! I3. The records of one page are handed out in the order of the log: the second step ends where the third begins.
//! I4. What keeps a page from being redone here keeps nobody from opening the database: the redo pass comes to the page, and tells.

use std::sync::Arc;

use hamal_storage::Storage;
use hamal_wal::{Frame, Lsn, Scanner};

use super::analysis::{Analysis, Nobody, Takes, damaged};
use super::changes::{Changes, Parts, RecordBatch, decode_other};
use super::redo::eager::{Dealer, Eager, Redone};
use super::{PARALLEL_BYTES, PROGRESS_RECORDS, ahead, log_options, progress, recovery_workers};
use crate::master::Master;
use crate::record::Record;
use crate::report::RecoveryPass;
use crate::{ErrorKind, Options, Result};

/// Runs the pass, with nobody to redo pages. `Corrupt` for damage, for a checkpoint that is not there or not whole, and for the log of another
/// database.
pub(super) fn analyse(storage: &Arc<dyn Storage>, options: &Options, master: &Master) -> Result<Analysis> {
    run(storage, options, master, None).map(|(analysis, _)| analysis)
}

/// The same; and redoes what it can.
pub(super) fn run(
    storage: &Arc<dyn Storage>,
    options: &Options,
    master: &Master,
    eager: Option<&Eager>,
) -> Result<(Analysis, Redone)> {
    let begin = master.checkpoint_lsn;
    let _span = tracing::info_span!("analysis", from = begin.0).entered();
    let started = storage.monotonic();
    let log_options = log_options(options, master.log_segment_bytes);
    let mut scanner = Scanner::open(storage.clone(), &log_options, begin, master.attested)?;
    let mut pass = Pass::new(options, master);
    let workers = recovery_workers(&**storage, options);
    // How long the log is, nobody knows before its end.
    let alone_bytes = (workers > 1).then(|| options.recovery_workers.map_or(PARALLEL_BYTES, |_| 0));
    let mut parts = Parts::default();
    while !pass.analysis.complete
        && let Some(frame) = scanner.next_frame()?
    {
        pass.see(&frame, parts.of(frame.payload), &mut Nobody)?;
    }
    let mut redone = Redone::default();
    match eager.filter(|_| pass.analysis.complete) {
        None => ahead::try_each(&mut scanner, alone_bytes, |batch| pass.see_all(batch, &mut Nobody))?,
        Some(eager) => {
            let before = (pass.records, pass.bytes);
            let read = |dealer: &mut Dealer<'_, '_, '_>| {
                pass.redo_listed(storage, dealer, alone_bytes)?;
                let from = pass.end;
                ahead::try_each(&mut scanner, alone_bytes, |batch| {
                    dealer.start_threads_if(alone_bytes.is_some_and(|bytes| pass.end.0 - from.0 >= bytes));
                    pass.see_all(batch, dealer)
                })
            };
            redone = eager.run(workers, options.cache_bytes, read)?;
            (redone.records, redone.bytes) = (pass.records - before.0, pass.bytes - before.1);
            eager.settle(&mut pass.analysis);
        }
    }
    if let (Some(end), Some(resume)) = (scanner.end(), scanner.resume()) {
        pass.analysis.torn = end.torn;
        pass.analysis.resume = resume;
    }
    let mut analysis = pass.finish()?;
    analysis.report.elapsed = storage.monotonic().saturating_sub(started);
    Ok((analysis, redone))
}

/// What the pass has come to.
struct Pass<'p> {
    options: &'p Options,
    master: &'p Master,
    analysis: Analysis,
    /// Where the last record ends.
    end: Lsn,
    /// Read in all three steps.
    records: u64,
    bytes: u64,
}

impl<'p> Pass<'p> {
    fn new(options: &'p Options, master: &'p Master) -> Pass<'p> {
        let end = master.checkpoint_lsn;
        let analysis = Analysis::new(master);
        Pass { options, master, analysis, end, records: 0, bytes: 0 }
    }

    /// Records of the third step.
    fn see_all(&mut self, batch: &RecordBatch, taker: &mut impl Takes) -> Result<()> {
        self.analysis.prefetch(batch.pages());
        batch.records().try_for_each(|(frame, changes)| self.see(&frame, changes, taker))
    }

    /// A record of the first or the third step.
    fn see(&mut self, frame: &Frame<'_>, changes: Option<Changes<'_>>, taker: &mut impl Takes) -> Result<()> {
        let (lsn, begin, master) = (frame.lsn, self.master.checkpoint_lsn, self.master);
        if frame.incarnation > master.incarnation {
            let expected = format!("incarnation at most {}", master.incarnation);
            return Err(damaged(lsn, expected, frame.incarnation));
        }
        let not_begin = |found| damaged(lsn, "the checkpoint that the master record names", found);
        match changes {
            Some(_) if lsn == begin => return Err(not_begin("a change of pages")),
            Some(changes) => self.analysis.see_changes(lsn, changes, taker)?,
            None => {
                let record = decode_other(frame)?;
                if lsn == begin
                    && !matches!(record, Record::BeginCheckpoint { database_id } if database_id == master.database_id)
                {
                    return Err(not_begin(record.kind_name()));
                }
                self.analysis.see(lsn, begin, master, &record, taker)?;
            }
        }
        self.end = frame.end;
        self.analysis.report.records += 1;
        self.analysis.report.bytes = frame.end.0 - begin.0;
        self.note_read(frame)
    }

    /// The second step: offers what the checkpoint has listed, and reads what these pages may miss of the log up to here.
    fn redo_listed(
        &mut self,
        storage: &Arc<dyn Storage>,
        dealer: &mut Dealer<'_, '_, '_>,
        alone_bytes: Option<u64>,
    ) -> Result<()> {
        let Some(from) = self.analysis.offer(dealer).filter(|from| *from < self.end) else { return Ok(()) };
        dealer.start_threads_if(alone_bytes.is_some_and(|bytes| self.end.0 - from.0 >= bytes));
        let log_options = log_options(self.options, self.master.log_segment_bytes);
        let mut read = || -> Result<()> {
            let mut scanner = Scanner::open_between(storage.clone(), &log_options, from, self.end)?;
            ahead::try_each(&mut scanner, alone_bytes, |batch| {
                self.analysis.prefetch(batch.pages());
                batch.records().try_for_each(|(frame, changes)| {
                    match changes {
                        Some(changes) => self.analysis.see_again(frame.lsn, changes, dealer),
                        None => drop(decode_other(&frame)?),
                    }
                    self.note_read(&frame)
                })
            })
        };
        match read() {
            // Neither is said of the log: the caller wants no more of it, or a thread has panicked.
            Err(error) if !matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::Poisoned) => {
                dealer.give_up(&error); // I4
                Ok(())
            }
            other => other,
        }
    }

    fn note_read(&mut self, frame: &Frame<'_>) -> Result<()> {
        self.records += 1;
        self.bytes += frame.end.0 - frame.lsn.0;
        if self.records.is_multiple_of(PROGRESS_RECORDS) {
            progress(self.options, RecoveryPass::Analysis, self.bytes, 0)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Analysis> {
        let Pass { mut analysis, .. } = self;
        if !analysis.complete {
            return Err(damaged(self.master.checkpoint_lsn, "a whole checkpoint", "one that never ended"));
        }
        analysis.report.pages = analysis.dirty_pages();
        analysis.report.applied = analysis.report.records;
        progress(self.options, RecoveryPass::Analysis, self.bytes, self.bytes)?;
        Ok(analysis)
    }
}
