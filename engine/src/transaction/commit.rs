//! How a transaction ends.
//!
//! A commit: in one step of the timeline, check the reads against what has been published since the view, reserve the commit record, and
//! let everybody see it (hazard H8); where there is much to check, that is done outside, before, and only what came meanwhile in the step. Then wait until the record is durable, if that was promised. A rollback: undo everything, then leave the timeline.

use std::mem;
use std::sync::atomic::Ordering;

use hamal_pager::PartitionId;
use hamal_wal::{Log, Lsn};
use smallvec::SmallVec;

use super::conflict::overtaken;
use super::sets::Pair;
use super::{Transaction, Work};
use crate::catalog::CATALOG;
use crate::engine::Engine;
use crate::graves::Grave;
use crate::ids::TxnId;
use crate::options::{Durability, Isolation};
use crate::planted::{PlantedBug, is_planted};
use crate::record::{Record, put_commit};
use crate::timeline::{Committed, Committing};
use crate::validation::History;
use crate::{Error, ErrorKind, Result, rollback};

/// So few keys, repeats included, are checked against [`FEW_COMMITS`] commits to the same tables, or published, in the commit section at once.
const FEW_KEYS: usize = 16;
/// See [`FEW_KEYS`]. Also: a view that so few have committed beside has kept little.
const FEW_COMMITS: usize = 4;

/// Why a transaction has not committed.
enum Uncommitted {
    Failed(Error),
    /// There is more to check, or to publish, than may be in the commit section.
    MuchToDo,
}

impl From<Error> for Uncommitted {
    fn from(error: Error) -> Self {
        Uncommitted::Failed(error)
    }
}

impl Transaction {
    /// Commits. Durable when it returns, if the durability is `Sync`. `Conflict`: a commit since the transaction's start has changed what
    /// it read. `CommitUnknown`: the record was written but the disk failed; reopening tells. Any error but `CommitUnknown`: the
    /// transaction has been rolled back.
    pub fn commit(self) -> Result<()> {
        self.commit_noting(&mut |_| ())
    }

    /// Commits; tells `note` of the commit's record once it is reserved, if there is one.
    pub(super) fn commit_noting(mut self, note: &mut dyn FnMut(Lsn)) -> Result<()> {
        let mut wrote = false;
        let lsn = self.commit_reserved(&mut |lsn| {
            wrote = true;
            note(lsn);
        })?;
        let engine = self.engine();
        if self.durability == Durability::Sync && lsn != Lsn::NEVER {
            if wrote {
                engine.counters.commits_waited.fetch_add(1, Ordering::Relaxed);
            }
            make_commit_durable(engine, lsn)?;
        }
        self.tidy();
        Ok(())
    }

    /// Commits, but for making it durable: that is so once the record at the LSN is, which an empty transaction has read from (hazard
    /// H10); [`Lsn::NEVER`]: there is nothing to wait for.
    pub(super) fn commit_reserved(&mut self, note: &mut dyn FnMut(Lsn)) -> Result<Lsn> {
        let work = mem::take(self.work.get_mut());
        self.work.get_mut().ended = true;
        let usable = match (&work.failure, self.entry.is_cancelled()) {
            (Some(cause), _) => Err(Error::new(
                ErrorKind::TransactionEnded,
                format!("the transaction had failed and was rolled back: {cause}"),
            )),
            (None, true) => {
                Err(Error::new(ErrorKind::Cancelled, "the transaction was cancelled and rolled back"))
            }
            (None, false) => Ok(()),
        };
        if let Err(e) = usable {
            self.abandon(&work);
            return Err(e);
        }
        if self.entry.lock().chains.is_empty() {
            return Ok(self.end_empty(&work));
        }
        // No commit once pages could not be written, though the log still could (F7).
        let appended = self.engine().check_poison().and_then(|()| self.append_commit(&work));
        let Committed { lsn, since_view, horizon } = match appended {
            Ok(committed) => committed,
            Err(e) => {
                self.abandon(&work);
                return Err(e);
            }
        };
        self.commits_since_view.set(since_view);
        note(lsn);
        let engine = self.engine();
        engine.pause("between a commit and its letting go");
        rollback::give_back_promise(engine, &self.entry);
        if let Some(table) = self.versions.get()
            && engine.versions.retire(self.entry.id, lsn, table, horizon)
            && let Err(error) = engine.merge_versions()
        {
            // They stay in memory.
            tracing::warn!(%error, "before-images could not be moved to a file");
        }
        self.let_go(&work);
        let dropped = work.dropped.iter().flat_map(|t| t.routes.iter().map(|route| (Some(t.id), route.id())));
        let unmade = work.created.iter().filter(|(table, _)| work.unmade.contains(table));
        let unmade = unmade.map(|(table, partition)| (Some(*table), *partition));
        self.dig_graves(dropped.chain(unmade).chain(work.merged.map(|id| (None, id))), lsn);
        self.handle.after_commit(self.durability, lsn);
        Ok(lsn)
    }

    /// Nothing was written. Returns the commit to wait for.
    fn end_empty(&mut self, work: &Work) -> Lsn {
        let engine = &self.handle.engine;
        let as_of = self.live.get_mut().view.as_of;
        if self.durability != Durability::Sync {
            engine.timeline.acknowledge(as_of);
        }
        self.finish();
        // It may have kept some for writes that it has taken back.
        if self.versions.get().is_some() {
            engine.versions.forget(self.entry.id);
        }
        self.let_go(work);
        self.dig_graves(work.made(), Lsn::NEVER);
        as_of
    }

    /// The commit section: everything that is decided about a commit, in one step (hazards H2, H8, H17).
    fn append_commit(&mut self, work: &Work) -> Result<Committed> {
        let engine = &self.handle.engine;
        let counts: SmallVec<[(u32, i64); 4]> = work
            .tables
            .iter()
            .map(|t| (t.meta.id, t.delta.load(Ordering::Relaxed)))
            .filter(|(table, delta)| *delta != 0 && *table != CATALOG.0)
            .collect();
        let mut payload = Vec::with_capacity(64);
        put_commit(&mut payload, self.entry.id, engine.storage.now_micros(), &counts);
        let live = self.live.get_mut();
        let Pair { reads, writes, publication } = self.sets.get_mut().get();
        let validates = self.isolation == Isolation::Serializable
            && !reads.is_empty()
            && !is_planted(PlantedBug::NoValidation);
        let refused = |overlap| {
            engine.note_overtaken();
            overtaken(&overlap)
        };
        // Outside of the section, if it is likely to be needed there; and if there is much of it, outside in any case.
        let mut check_first = validates && live.in_company && reads.len() > FEW_KEYS;
        if validates && live.in_company {
            let _sorted = reads.prepare();
        }
        let has_few_writes = writes.len() <= FEW_KEYS;
        let counted: SmallVec<[u32; 4]> = counts.iter().map(|(table, _)| *table).collect();
        if live.in_company {
            publication.prepare(writes, &counted);
        }
        let mut seen_up_to = live.view.as_of;
        loop {
            let is_nearly_checked = check_first;
            if check_first {
                let reads = reads.prepare();
                let later = engine.timeline.with_history(|history| history.after(&reads, seen_up_to));
                let later = later.map_err(refused)?;
                later.check(&reads).map_err(refused)?;
                seen_up_to = later.seen_up_to;
            }
            engine.pause("before the commit section");
            let mut permit = engine.log.admit_promised(Log::framed_bytes(payload.len()))?;
            let may_publish = has_few_writes || publication.is_ready();
            let check = |history: &History, in_company: bool| {
                if in_company && !may_publish {
                    return Err(Uncommitted::MuchToDo);
                }
                if !validates || history.newest() <= seen_up_to {
                    return Ok(());
                }
                // Not even sorted here if they are many.
                if !is_nearly_checked && reads.len() > FEW_KEYS {
                    return Err(Uncommitted::MuchToDo);
                }
                let reads = reads.prepare();
                if !is_nearly_checked && history.has_more_after(&reads, seen_up_to, FEW_COMMITS) {
                    return Err(Uncommitted::MuchToDo);
                }
                history.check(&reads, seen_up_to).map_err(|overlap| refused(overlap).into())
            };
            let mut placed = None;
            let reserve = || {
                let lsn = placed.insert(permit.place(&payload)?).lsn();
                for gate in work.dropping.iter().filter(|gate| work.has_dropped(gate.table)) {
                    gate.dropped.store(true, Ordering::SeqCst);
                }
                if let Some(gate) = &work.reshaped {
                    gate.reshaper.store(self.entry.id.0, Ordering::SeqCst);
                }
                Ok(lsn)
            };
            let mut what = Committing {
                counts: &counts,
                publish: &mut |history, lsn| publication.leave(writes, &counted, history, lsn),
                exposed: self.durability != Durability::Sync,
            };
            let committed = engine.timeline.commit(&self.entry, live, check, reserve, &mut what);
            // Written with the section left: nobody waits for that but who wants it durable.
            drop(placed);
            match committed {
                Ok(committed) => return Ok(committed),
                Err(Uncommitted::Failed(error)) => return Err(error),
                Err(Uncommitted::MuchToDo) => {}
            }
            drop(permit);
            publication.prepare(writes, &counted);
            check_first = validates;
        }
    }

    /// Leaves the timeline without a commit.
    fn finish(&self) {
        let engine = self.engine();
        rollback::give_back_promise(engine, &self.entry);
        let since_view = engine.timeline.end(&self.entry, Some(&*self.live.borrow()));
        self.commits_since_view.set(since_view);
    }

    /// It is over, and out of the timeline: whoever waits for it goes on.
    fn let_go(&self, work: &Work) {
        let engine = self.engine();
        let locked = mem::take(&mut self.entry.lock().locked);
        engine.row_locks.release(self.entry.id, &locked);
        for gate in &work.dropping {
            // Whoever comes now asks whether the table is still there. Another may be dropping it already: that one stays.
            let _other = gate.dropper.compare_exchange(
                self.entry.id.0,
                TxnId::NONE.0,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
        }
        engine.waits.ended(self.entry.id);
    }

    /// These partitions, each with its table if that goes too, are to go, once the commit is durable that says so.
    fn dig_graves(&self, gone: impl Iterator<Item = (Option<u32>, PartitionId)>, lsn: Lsn) {
        let dropper = self.entry.id;
        self.engine().graves.dig(gone.map(|(table, partition)| Grave { table, partition, dropper, lsn }));
    }

    /// Lets go of what nobody needs any more, after a commit.
    pub(super) fn tidy(&self) {
        let engine = self.engine();
        if self.commits_since_view.get() > FEW_COMMITS as u64 {
            engine.tidy();
        } else {
            // Its view has kept little, and what is kept of itself goes with the next commit of its thread, or round of maintenance.
            engine.pause("before tidying");
            engine.bury_due();
        }
    }

    /// Rolls back, and says whether that worked (dropping does the same silently).
    pub fn rollback(mut self) -> Result<()> {
        let work = mem::take(self.work.get_mut());
        self.work.get_mut().ended = true;
        self.abandon(&work);
        self.engine().check_poison()
    }

    /// Undoes everything. What cannot be undone now is left to recovery: the handle is poisoned (I3).
    pub(super) fn abandon(&mut self, work: &Work) {
        let engine = &self.handle.engine;
        if self.entry.is_cancelled() {
            engine.counters.cancelled.fetch_add(1, Ordering::Relaxed);
        }
        let mut pausing = |_| {
            engine.pause("between steps of a rollback");
            Ok(())
        };
        let undone = if self.entry.lock().chains.is_empty() {
            Ok(())
        } else {
            engine
                .journal
                .append(&Record::Abort { txn: self.entry.id })
                .and_then(|_| rollback::roll_back(engine, &self.entry, &mut pausing).map(|_| ()))
        };
        let failed = |e: Error| e.context(format!("transaction {} could not be rolled back", self.entry.id));
        if let Err(e) = undone {
            // It stays in the timeline: what it wrote stays locked, and nobody sees it.
            engine.leave_unresolved(&failed(e));
        } else {
            self.finish();
            engine.pause("between a rollback and its letting go");
            engine.versions.forget(self.entry.id);
            self.dig_graves(work.made(), Lsn::NEVER);
        }
        self.let_go(work);
        engine.tidy();
    }
}

/// Waits until the commit at `lsn` is durable.
pub(super) fn make_commit_durable(engine: &Engine, lsn: Lsn) -> Result<()> {
    engine.pause("before a commit is durable");
    let done = engine.log.make_durable(lsn).map_err(|e| {
        let e = Error::from(e);
        engine.poison(&e);
        unknown(&e)
    });
    engine.pause("after a commit is durable");
    engine.durable_moved();
    done
}

/// The error of a commit whose record is in the log, but cannot be made durable.
pub(super) fn unknown(cause: &Error) -> Error {
    Error::new(
        ErrorKind::CommitUnknown,
        format!("the commit may or may not survive; reopen the database to learn which: {cause}"),
    )
}
