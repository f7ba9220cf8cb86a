//! A small transaction of the engine's own: a few changes of one partition that are done or taken back as one. It reads nothing, waits for
//! nobody, and is visible to readers once the log has been flushed: its commit promises nothing.
//!
//! Its rows need no locks: it changes only what nobody else may (rows outside of their partition, see [`super::strays`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hamal_pager::PartitionId;
use hamal_wal::Log;

use crate::active::TxnEntry;
use crate::change::Row;
use crate::engine::{Engine, PartitionHandle};
use crate::journal::{Author, Chain};
use crate::record::{Record, put_commit};
use crate::timeline::{Birth, Committing, LiveView};
use crate::tree::Decision;
use crate::{Error, Result, overflow, rollback};

/// By when errands are durable.
const FLUSH_INTERVAL: Duration = Duration::from_millis(10);

/// Rolls back when it is dropped and not committed.
#[derive(Debug)]
pub(super) struct Errand<'e> {
    engine: &'e Engine,
    pub(super) chain: Chain,
    live: LiveView,
    committed: bool,
}

impl<'e> Errand<'e> {
    /// `None` while a verification keeps everybody out: it may wait for what the caller holds.
    pub(super) fn begin(engine: &'e Engine, partition: PartitionId) -> Option<Errand<'e>> {
        let begun = engine.timeline.begin(Birth::default(), engine.storage.monotonic(), Duration::ZERO);
        let (entry, live) = begun?;
        Some(Errand { engine, chain: Chain { entry, partition }, live, committed: false })
    }

    fn entry(&self) -> &Arc<TxnEntry> {
        &self.chain.entry
    }

    /// Removes a row of its partition that nobody else may change, and gives up its long value.
    pub(super) fn remove_long(&self, handle: &PartitionHandle, key: &[u8], reference: &[u8]) -> Result<()> {
        let (journal, chain) = (&self.engine.journal, &self.chain);
        overflow::unlink(journal, chain, &handle.space, reference)?;
        let remove = &mut |_: Option<Row<'_>>| Ok(Decision::Remove(chain.txn()));
        handle.tree().update(journal, Author::Transaction(chain), key, 0, remove)?;
        // Looked at once the errand is settled; before that, in vain.
        handle.pending.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Commits. The commit is durable when a later one is.
    pub(super) fn commit(mut self) -> Result<()> {
        let engine = self.engine;
        if self.entry().lock().chains.is_empty() {
            return Ok(());
        }
        engine.check_poison()?;
        let mut payload = Vec::new();
        put_commit(&mut payload, self.entry().id, engine.storage.now_micros(), &[]);
        let mut permit = engine.log.admit_promised(Log::framed_bytes(payload.len()))?;
        let mut placed = None;
        let reserve = || Ok(placed.insert(permit.place(&payload)?).lsn());
        let mut what = Committing { counts: &[], publish: &mut |_, _| (), exposed: false };
        let committed = engine.timeline.commit(
            &self.chain.entry,
            &self.live,
            |_, _| Ok::<_, Error>(()),
            reserve,
            &mut what,
        );
        // Written with the section left, as every commit.
        drop(placed);
        committed?;
        self.committed = true;
        rollback::give_back_promise(engine, self.entry());
        // Until it is durable it holds the horizon back, and nobody waits for it.
        engine.flush_within(FLUSH_INTERVAL);
        Ok(())
    }
}

impl Drop for Errand<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        let (engine, entry) = (self.engine, self.entry());
        let undone = if entry.lock().chains.is_empty() {
            Ok(0)
        } else {
            let abort = engine.journal.append(&Record::Abort { txn: entry.id });
            abort.and_then(|_| rollback::roll_back(engine, entry, &mut |_| Ok(())))
        };
        match undone {
            Ok(_) => {
                rollback::give_back_promise(engine, entry);
                engine.timeline.end(entry, Some(&self.live));
            }
            // It stays in the timeline; recovery takes it back.
            Err(error) => {
                engine.leave_unresolved(&error.context("an errand of the engine could not be rolled back"));
            }
        }
    }
}
