//! Partitions that cannot be used: their files are missing, or something in them is wrong (docs/adr/0014). Everything else goes on.
//!
//! ```text
//!            damage found                     checkpoint: nobody who has             repair: the file is
//!            [Engine::quarantine]             changed it is active                   whole up to there
//!  online ----------------------> open -----------------------------> settled ----------------------> lifted ---> online
//!     ^                            |   [Engine::settle_quarantines]             [crate::repair]          |  losers
//!     +--- a crash: found again ---+                                                                     |  undone
//!                                  ^------------------------ damage found again -------------------------+
//! ```
//!
//! *Open*: known in memory. The log still has all that the partition needs, as checkpoints list its dirty pages and its losers. *Settled*:
//! known on the disk, with its records and losers kept aside: neither checkpoints nor recovery concern themselves with it any more.
//! *Lifted*: an ordinary partition again for checkpoints and recovery, but that the older records of its losers are in the kept log alone.
//!
//! I1. From the moment a partition is open its pages do not change ([`hamal_pager::Pager::seal_partition`]), so there is a last record of it.
//! I2. Nobody pays for this who does not meet it: pages of a sealed partition leave memory, and who asks for one is refused there.
//! I3. A transaction that rolls back leaves its chain in the partition to whoever repairs that: a *deferred* chain. It ends without.
//!     One that commits has committed: its changes are in the log.
//! I4. A checkpoint copies the timeline's transactions first, and then what is here: a chain moves from there to here (hazard H2). Likewise
//!     the dirty pages: first the pager's, then what is here.
//! I5. What the state file says counts once its directory is synced, which is before the next checkpoint begins. It goes only when the
//!     partition's losers are undone, durably, or the partition is gone.
//!
//! The catalog cannot be quarantined.

pub(crate) mod file;
pub(crate) mod kept;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hamal_pager::{DirtyPage, PartitionId};
use hamal_storage::Storage;
use hamal_wal::Lsn;
use parking_lot::Mutex;

use crate::active::{TxnEntry, TxnState};
use crate::catalog::CATALOG;
use crate::engine::Engine;
use crate::ids::TxnId;
use crate::master::Master;
use crate::record::{ChainImage, TxnImage};
use crate::{Error, ErrorKind, Result};
use file::State;
use kept::KeptLog;
pub(crate) use verdict::{is_unreadable, twice};

/// What a transaction has done to a quarantined partition, and is to be undone there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeferredChain {
    pub(crate) txn: TxnId,
    pub(crate) last_lsn: Lsn,
    pub(crate) undo_next_lsn: Lsn,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Open,
    Settled,
    Lifted,
}

/// One partition.
#[derive(Debug)]
struct Case {
    stage: Stage,
    /// Nobody changes its pages any more.
    sealed: bool,
    cause: String,
    since_micros: u64,
    /// Of an open one: what was dirty when it was sealed.
    dirty: Vec<DirtyPage>,
    /// Chains to be undone, each with the first LSN of its transaction.
    chains: Vec<(Lsn, DeferredChain)>,
    /// Losers being undone since it was lifted.
    losers: Vec<Arc<TxnEntry>>,
    /// Its records, if it has been settled.
    kept: Option<Arc<KeptLog>>,
    /// Why it cannot be repaired.
    hopeless: Option<String>,
}

/// What [`crate::repair`] needs to know of a settled partition.
#[derive(Clone, Debug)]
pub(crate) struct Settled {
    pub(crate) cause: String,
    pub(crate) since_micros: u64,
    pub(crate) chains: Vec<DeferredChain>,
    pub(crate) kept: Arc<KeptLog>,
}

/// What a backup has to know of a partition that is not in use.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) id: PartitionId,
    pub(crate) stage: Stage,
    pub(crate) cause: String,
    pub(crate) since_micros: u64,
    /// What it can be repaired with: of a settled one, unless that is lost.
    pub(crate) settled: Option<Settled>,
}

/// All quarantined partitions.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    count: AtomicUsize,
    /// Held by whoever repairs.
    pub(crate) repairing: Mutex<()>,
    cases: Mutex<BTreeMap<PartitionId, Case>>,
}

/// What the state files say, at open.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// Readable or not.
    states: BTreeMap<PartitionId, Result<State>>,
}

impl Loaded {
    /// Reads all state files; changes nothing.
    pub(crate) fn read(storage: &dyn Storage, database_id: u64) -> Result<Loaded> {
        let mut states = BTreeMap::new();
        for name in file::names(storage)? {
            let Some(id) = file::owner_of(&name).filter(|id| format!("{id}") == name && *id != CATALOG)
            else {
                continue;
            };
            let state = State::read(storage, id, database_id);
            match state {
                Err(e) if e.kind() != ErrorKind::Corrupt => return Err(e),
                state => drop(states.insert(id, state)),
            }
        }
        Ok(Loaded { states })
    }

    /// The partitions that recovery has nothing to do with.
    pub(crate) fn settled(&self) -> impl Iterator<Item = PartitionId> + '_ {
        let settled = self.states.iter();
        settled
            .filter(|(_, state)| state.as_ref().map_or(true, |s| s.lifted == Lsn::NEVER))
            .map(|(id, _)| *id)
    }

    /// Whether recovery has nothing to do with the partition.
    pub(crate) fn is_settled(&self, id: PartitionId) -> bool {
        self.states.get(&id).is_some_and(|state| state.as_ref().map_or(true, |s| s.lifted == Lsn::NEVER))
    }

    /// The losers of lifted partitions that a checkpoint at `begin` does not list yet.
    pub(crate) fn losers(&self, begin: Lsn) -> Vec<TxnImage> {
        let lifted = self.states.values().flatten().filter(|s| s.lifted > begin);
        lifted
            .flat_map(|state| state.chains.iter().map(|chain| image(state.lifted, state.partition, *chain)))
            .collect()
    }
}

fn image(first_lsn: Lsn, partition: PartitionId, chain: DeferredChain) -> TxnImage {
    let DeferredChain { txn, last_lsn, undo_next_lsn } = chain;
    let chains = vec![ChainImage { partition, last_lsn, undo_next_lsn }];
    // Its promise went with the transaction.
    TxnImage { txn, first_lsn, undo_bytes: u64::MAX, chains }
}

impl Quarantine {
    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        // Relaxed: who must know is ordered by what it has met.
        self.count.load(Ordering::Relaxed) == 0
    }

    fn change<R>(&self, change: impl FnOnce(&mut BTreeMap<PartitionId, Case>) -> R) -> R {
        let mut cases = self.cases.lock();
        let result = change(&mut cases);
        self.count.store(cases.len(), Ordering::Relaxed);
        result
    }

    /// Takes over what was found at open. Returns the partitions that are offline.
    pub(crate) fn load(&self, storage: &dyn Storage, loaded: Loaded) -> Result<Vec<PartitionId>> {
        let mut offline = Vec::new();
        for (id, state) in loaded.states {
            let kept = match &state {
                Ok(state) if state.is_lost => {
                    let what =
                        "it was lost already when the backup was taken that this database was restored from";
                    Err(Error::new(ErrorKind::Corrupt, what))
                }
                Ok(state) => KeptLog::open(storage, state),
                Err(e) => Err(Error::new(ErrorKind::Corrupt, e.to_string())),
            };
            let (kept, hopeless) = match kept {
                Ok(kept) => (Some(Arc::new(kept)), None),
                Err(e) if e.kind() == ErrorKind::Corrupt => (None, Some(e.to_string())),
                Err(e) => return Err(e),
            };
            let case = match state {
                Ok(state) => {
                    let stage = if state.lifted == Lsn::NEVER { Stage::Settled } else { Stage::Lifted };
                    // Those of a lifted one are the timeline's by the time that somebody asks.
                    let chains = state.chains.into_iter().filter(|_| stage == Stage::Settled);
                    let chains = chains.map(|chain| (state.end, chain)).collect();
                    let (cause, since_micros) = (state.cause, state.since_micros);
                    Case { stage, chains, kept, hopeless, ..Case::new(cause, since_micros) }
                }
                Err(e) => Case { stage: Stage::Settled, hopeless, ..Case::new(e.to_string(), 0) },
            };
            if case.stage == Stage::Settled {
                offline.push(id);
            }
            self.change(|cases| cases.insert(id, case));
        }
        Ok(offline)
    }

    /// The stage of a partition; `None`: it is in use.
    pub(crate) fn stage(&self, id: PartitionId) -> Option<Stage> {
        if self.is_empty() { None } else { self.cases.lock().get(&id).map(|case| case.stage) }
    }

    /// Partitions of this stage.
    fn of_stage(&self, stage: Stage) -> Vec<PartitionId> {
        if self.is_empty() {
            return Vec::new();
        }
        self.cases.lock().iter().filter(|(_, case)| case.stage == stage).map(|(id, _)| *id).collect()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<PartitionId> {
        self.cases.lock().keys().copied().collect()
    }

    /// How many partitions cannot be used.
    pub(crate) fn offline(&self) -> u64 {
        if self.is_empty() {
            return 0;
        }
        self.cases.lock().values().filter(|case| case.stage != Stage::Lifted).count() as u64
    }

    /// Whether a checkpoint has something to settle.
    pub(crate) fn has_open(&self) -> bool {
        !self.of_stage(Stage::Open).is_empty()
    }

    /// Why a partition cannot be used, and since when; `None`: it can, but for what is being undone.
    pub(crate) fn cause(&self, id: PartitionId) -> Option<(String, u64)> {
        if self.is_empty() {
            return None;
        }
        self.cases.lock().get(&id).map(|case| (case.cause.clone(), case.since_micros))
    }

    /// All of them, as they are at one moment.
    pub(crate) fn held(&self) -> Vec<Held> {
        if self.is_empty() {
            return Vec::new();
        }
        let cases = self.cases.lock();
        let held = |(id, case): (&PartitionId, &Case)| Held {
            id: *id,
            stage: case.stage,
            cause: case.cause.clone(),
            since_micros: case.since_micros,
            settled: case.settled(),
        };
        cases.iter().map(held).collect()
    }

    /// The first partition that is not in use.
    pub(crate) fn first(&self) -> Option<PartitionId> {
        if self.is_empty() { None } else { self.cases.lock().keys().next().copied() }
    }

    /// Losers that the timeline does not have, for a checkpoint's table, which has copied that already (I4).
    pub(crate) fn images(&self) -> Vec<TxnImage> {
        if self.is_empty() {
            return Vec::new();
        }
        // In this order: a chain moves from the loser to the case, within the loser's section.
        let losers: Vec<_> = self.cases.lock().values().flat_map(|case| case.losers.clone()).collect();
        // What they take is promised to nobody.
        let unknown = |image| TxnImage { undo_bytes: u64::MAX, ..image };
        let mut images: Vec<TxnImage> =
            losers.iter().filter_map(|entry| entry.image()).map(unknown).collect();
        for (id, case) in self.cases.lock().iter().filter(|(_, case)| case.stage == Stage::Open) {
            images.extend(case.chains.iter().map(|(first, chain)| image(*first, *id, *chain)));
        }
        images
    }

    /// Makes the pager's dirty page table that of a checkpoint (I4).
    pub(crate) fn amend(&self, dirty: &mut Vec<DirtyPage>) {
        if self.is_empty() {
            return;
        }
        let cases = self.cases.lock();
        dirty.retain(|page| cases.get(&page.partition).is_none_or(|case| case.stage != Stage::Settled));
        for case in cases.values().filter(|case| case.stage == Stage::Open) {
            dirty.extend_from_slice(&case.dirty);
        }
        dirty.sort_unstable_by_key(|page| (page.partition, page.page, page.rec_lsn));
        dirty.dedup_by_key(|page| (page.partition, page.page));
    }

    /// Adds to what an open partition, which is sealed, may miss.
    pub(crate) fn add_dirty(&self, id: PartitionId, pages: impl Iterator<Item = DirtyPage>) {
        self.change(|cases| {
            if let Some(case) = cases.get_mut(&id).filter(|case| case.stage == Stage::Open) {
                case.dirty.extend(pages);
                case.sealed = true;
            }
        });
    }

    /// What is to be undone in a partition before it can be used.
    fn chains(&self, id: PartitionId) -> Vec<DeferredChain> {
        let (mut chains, losers) = self.change(|cases| {
            cases.get(&id).map_or_else(Default::default, |case| {
                let chains: Vec<DeferredChain> = case.chains.iter().map(|(_, chain)| *chain).collect();
                (chains, case.losers.clone())
            })
        });
        for image in losers.iter().filter_map(|entry| entry.image()) {
            if chains.iter().all(|chain| chain.txn != image.txn) {
                chains.extend(image.chains.iter().map(|c| DeferredChain {
                    txn: image.txn,
                    last_lsn: c.last_lsn,
                    undo_next_lsn: c.undo_next_lsn,
                }));
            }
        }
        chains
    }

    /// What is there to repair a settled partition with.
    pub(crate) fn settled(&self, id: PartitionId) -> Option<Result<Settled>> {
        let cases = self.cases.lock();
        let case = cases.get(&id).filter(|case| case.stage == Stage::Settled)?;
        Some(case.settled().ok_or_else(|| {
            let why = case.hopeless.clone().unwrap_or_default();
            let what = format!("partition {id} cannot be repaired, for what was kept of it is lost: {why}");
            Error::new(ErrorKind::Corrupt, what)
        }))
    }

    /// A settled partition's file is whole again: these are to be undone.
    pub(crate) fn lift(&self, id: PartitionId, losers: Vec<Arc<TxnEntry>>) {
        self.change(|cases| {
            if let Some(case) = cases.get_mut(&id) {
                case.stage = Stage::Lifted;
                case.chains.clear();
                case.losers = losers;
            }
        });
    }

    /// Forgets a partition: it is in use again, or gone.
    pub(crate) fn forget(&self, id: PartitionId) {
        self.change(|cases| cases.remove(&id));
    }

    /// The records kept of a partition.
    fn kept(&self, id: PartitionId) -> Option<Arc<KeptLog>> {
        if self.is_empty() { None } else { self.cases.lock().get(&id)?.kept.clone() }
    }
}

impl Case {
    fn new(cause: String, since_micros: u64) -> Case {
        Case {
            stage: Stage::Open,
            sealed: false,
            cause,
            since_micros,
            dirty: Vec::new(),
            chains: Vec::new(),
            losers: Vec::new(),
            kept: None,
            hopeless: None,
        }
    }

    /// What a settled one can be repaired with.
    fn settled(&self) -> Option<Settled> {
        let kept = self.kept.clone().filter(|_| self.stage == Stage::Settled)?;
        Some(Settled {
            cause: self.cause.clone(),
            since_micros: self.since_micros,
            chains: self.chains.iter().map(|(_, chain)| *chain).collect(),
            kept,
        })
    }

    /// What was lifted is not whole after all.
    fn reopen(&mut self, cause: String, since_micros: u64) {
        self.stage = Stage::Open;
        self.sealed = false;
        self.cause = cause;
        self.since_micros = since_micros;
    }
}

impl Engine {
    /// A transaction's chain in a quarantined partition is left to whoever repairs that (I3).
    pub(crate) fn defer_chain(&self, entry: &TxnEntry, id: PartitionId) {
        let mut state = entry.lock();
        let Some(at) = state.chains.iter().position(|chain| chain.partition == id) else { return };
        let chain = state.chains.remove(at);
        let deferred =
            DeferredChain { txn: entry.id, last_lsn: chain.last_lsn, undo_next_lsn: chain.undo_next_lsn };
        tracing::warn!(txn = entry.id.0, partition = id.0, "an undo waits for the partition's repair");
        // Within the transaction's section: a checkpoint finds it there or here (I4).
        self.quarantine.change(|cases| {
            if let Some(case) = cases.get_mut(&id) {
                debug_assert_ne!(case.stage, Stage::Settled, "settled with a chain open");
                case.losers.retain(|loser| loser.id != entry.id);
                case.chains.retain(|(_, known)| known.txn != entry.id);
                case.chains.push((state.first_lsn, deferred));
            }
        });
        state.ended |= state.chains.is_empty();
    }

    /// A record of a chain in a partition, which may be in the kept log alone.
    pub(crate) fn chain_record(&self, id: PartitionId, lsn: Lsn) -> Result<Vec<u8>> {
        match self.quarantine.kept(id) {
            Some(kept) if lsn < kept.end => kept.read(lsn).map_err(|e| self.blame_if_unreadable(id, e)),
            None if lsn < self.log.oldest() && self.quarantine.stage(id).is_some() => {
                self.quarantine(id, "what was kept of its log is lost");
                Err(self.unavailable(id))
            }
            _ => Ok(self.log.read(lsn)?),
        }
    }

    /// Makes durable what is known of open partitions, as far as nobody is active who has changed them. The caller has the checkpoint's
    /// lock.
    pub(crate) fn settle_quarantines(&self, master: &Master) -> Result<()> {
        for id in self.quarantine.of_stage(Stage::Open) {
            if !self.quarantine.change(|cases| cases.get(&id).is_some_and(|case| case.sealed)) {
                continue;
            }
            let has_chain = |state: &TxnState| !state.ended && state.chains.iter().any(|c| c.partition == id);
            if self.timeline.others(TxnId::NONE, has_chain).is_some() {
                continue;
            }
            self.log.flush()?;
            let end = self.log.durable();
            file::make_directory(&*self.storage)?;
            let older = self.quarantine.kept(id);
            let kept =
                KeptLog::extract(&*self.storage, &self.log, id, (master.oldest_lsn, end), older.as_deref())?;
            let Some((cause, since_micros)) = self.quarantine.cause(id) else { continue };
            let chains = self.quarantine.chains(id);
            let state = State {
                database_id: master.database_id,
                partition: id,
                since_micros,
                from: kept.from,
                end,
                lifted: Lsn::NEVER,
                kept_bytes: kept.bytes(),
                cause,
                chains: chains.clone(),
                origin: kept.origin,
                is_lost: false,
            };
            state.write(&self.storage)?;
            if let Some(older) = older.filter(|older| older.end != end) {
                self.remove_leftover(&file::log_name(id, older.end));
            }
            tracing::warn!(partition = id.0, kept_bytes = kept.bytes(), "a quarantine is settled");
            self.quarantine.change(|cases| {
                if let Some(case) = cases.get_mut(&id) {
                    case.stage = Stage::Settled;
                    case.dirty = Vec::new();
                    case.losers = Vec::new();
                    case.chains = chains.into_iter().map(|chain| (end, chain)).collect();
                    case.kept = Some(Arc::new(kept));
                }
            });
        }
        Ok(())
    }

    /// Removes what nobody needs any more; if that fails it is done at the next open.
    pub(crate) fn remove_leftover(&self, name: &str) {
        if let Err(error) = file::remove(&*self.storage, name) {
            tracing::warn!(%error, "a file that is not needed any more could not be removed");
        }
    }

    /// The partition is in use again, or gone: removes its files here, its state first, durably.
    pub(crate) fn end_quarantine(&self, id: PartitionId) -> Result<()> {
        let mut names: Vec<String> = file::names(&*self.storage)?;
        names.retain(|name| file::owner_of(name) == Some(id));
        if names.is_empty() {
            return Ok(());
        }
        file::remove(&*self.storage, &file::state_name(id))?;
        file::sync_directory(&*self.storage)?;
        for name in &names {
            self.remove_leftover(&format!("{}/{name}", file::DIRECTORY));
        }
        Ok(())
    }

    /// At the end of recovery: the losers of lifted partitions are undone. What else nobody needs any more goes too.
    pub(crate) fn end_lifted_quarantines(&self) -> Result<()> {
        let lifted = self.quarantine.of_stage(Stage::Lifted);
        if !lifted.is_empty() {
            self.log.flush()?;
        }
        for id in lifted {
            self.end_quarantine(id)?;
            self.quarantine.forget(id);
        }
        // Of a settling or a repair that was cut short.
        for name in file::names(&*self.storage)? {
            let Some(id) = file::owner_of(&name) else { continue };
            let path = format!("{}/{name}", file::DIRECTORY);
            let used = self.quarantine.cases.lock().get(&id).is_some_and(|case| {
                path == file::state_name(id)
                    || path == file::damaged_name(id)
                    || case.kept.as_ref().is_some_and(|kept| path == file::log_name(id, kept.end))
                    // What an unreadable state file may have named.
                    || case.hopeless.is_some()
            });
            if !used {
                self.remove_leftover(&path);
            }
        }
        Ok(())
    }
}
