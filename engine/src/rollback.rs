//! Undo: walks one chain of a transaction backwards and writes a compensation record for each change. The same code takes back a
//! statement, a savepoint, a transaction, and a loser found by recovery (ARIES section 4, figure 12).
//!
//! I1. A chain's `undo_next_lsn` falls with every step, so undo ends.
//! I2. What is undone is never undone again: a compensation's `undo_next_lsn` jumps over it, after a crash too.
//! I3. No step needs space in a page (hazard H5) nor more log than was promised.
//! I4. A chain in a partition that cannot be used waits for that one's repair: the transaction ends without it ([`crate::quarantine`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hamal_pager::PartitionId;
use hamal_wal::{Log, Lsn};

use crate::active::TxnEntry;
use crate::catalog::CATALOG;
use crate::change::PageChange;
use crate::engine::{Engine, PartitionHandle};
use crate::ids::TxnId;
use crate::journal::{Author, Chain};
use crate::overflow;
use crate::quarantine::twice;
use crate::record::{PagePart, Record, Undo};
use crate::tree::ROOT;
use crate::{Error, ErrorKind, Result};

/// What becomes of the lock on a row whose last change is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    /// The transaction goes on, and keeps it (hazard H21).
    Keep,
    /// The transaction ends.
    Release,
}

/// Undoes a chain's records above `down_to` ([`Lsn::NEVER`]: all), for a transaction that goes on. Returns how many records were
/// undone.
pub(crate) fn undo_chain(engine: &Engine, chain: &Chain, down_to: Lsn) -> Result<u64> {
    let handle = engine.partition(chain.partition)?;
    let mut undone = 0;
    while undo_step(engine, &handle, chain, down_to, Lock::Keep)? {
        undone += 1;
        engine.pause("between steps of an undo");
    }
    forget_what_is_undone(engine, &chain.entry);
    Ok(undone)
}

/// If nothing of a transaction is left to undo, it is as if it had just begun: it keeps no log and no promise.
fn forget_what_is_undone(engine: &Engine, entry: &TxnEntry) {
    let mut state = entry.lock();
    if state.chains.iter().all(|c| c.undo_next_lsn == Lsn::NEVER) {
        // The chains too: a later record must not point back to records that the log need not keep.
        state.chains.clear();
        state.first_lsn = Lsn::NEVER;
        engine.log.release(std::mem::take(&mut state.promised_bytes));
    }
}

/// Undoes the chain's newest record above `down_to`; `false` if there is none.
pub(crate) fn undo_step(
    engine: &Engine,
    handle: &Arc<PartitionHandle>,
    chain: &Chain,
    down_to: Lsn,
    lock: Lock,
) -> Result<bool> {
    // Under the leaf's latch: the row is as it was, and has got this stamp back.
    let restored = |root, key: &[u8], stamp| {
        if chain.partition == CATALOG {
            engine.schema.forget();
        }
        if root == ROOT {
            handle.changes.note(key);
        }
        // Before a table has been opened there are only the losers of a recovery: they have neither versions nor locks to give up.
        if let Some(table) = handle.table()
            && root == ROOT
            && stamp != chain.entry.id
        {
            give_up_row(engine, &chain.entry, table, key, lock);
        }
    };
    let blame = |error| engine.blame_if_unreadable(chain.partition, error);
    let leaves_ghost = |is_ghost: bool| {
        handle.garbage.fetch_add(u64::from(is_ghost), Ordering::Relaxed);
    };
    loop {
        let lsn = chain.entry.lock().undo_next_lsn(chain.partition);
        if lsn <= down_to {
            return Ok(false);
        }
        let payload = engine.chain_record(chain.partition, lsn)?;
        let record = Record::decode(&payload).map_err(|e| e.context(format!("log record {lsn}")))?;
        match record {
            Record::Update { txn, prev_lsn, parts, undo } if txn == chain.entry.id && prev_lsn < lsn => {
                let author = Author::Rollback(chain, prev_lsn);
                match undo {
                    Undo::Row { root, before } => {
                        let PageChange::Row { key, .. } = only_change(lsn, &parts)? else {
                            return Err(unexpected(lsn, "a row change"));
                        };
                        let stamp = before.map_or(TxnId::NONE, |row| row.stamp);
                        let tree = handle.tree_at(root)?;
                        let undo = || {
                            let restored = || restored(root, key, stamp);
                            tree.undo_row(&engine.journal, author, key, before, restored)
                        };
                        twice(undo).map_err(blame)?;
                        leaves_ghost(before.is_none_or(|row| row.ghost));
                    }
                    Undo::Mark { root, stamp, ghost } => {
                        let PageChange::Mark { key, .. } = only_change(lsn, &parts)? else {
                            return Err(unexpected(lsn, "a removal"));
                        };
                        let tree = handle.tree_at(root)?;
                        let undo = || {
                            let restored = || restored(root, key, stamp);
                            tree.undo_mark(&engine.journal, author, key, (stamp, ghost), restored)
                        };
                        twice(undo).map_err(blame)?;
                        leaves_ghost(ghost);
                    }
                    Undo::Extent { first, count } => {
                        let undo =
                            || overflow::undo_extent(&engine.journal, author, &handle.space, first, count);
                        twice(undo).map_err(blame)?;
                    }
                }
                return Ok(true);
            }
            Record::Compensation { txn, undo_next_lsn, .. }
                if txn == chain.entry.id && undo_next_lsn < lsn =>
            {
                chain.entry.lock().chain(chain.partition).undo_next_lsn = undo_next_lsn;
            }
            other => {
                return Err(unexpected(
                    lsn,
                    format!("an update of transaction {}, not {}", chain.entry.id, other.kind_name()),
                ));
            }
        }
    }
}

/// A row has lost the transaction's stamp: nothing need be kept of what it found there, and the stamp no longer locks it.
fn give_up_row(engine: &Engine, entry: &TxnEntry, table: u32, key: &[u8], lock: Lock) {
    if let Some(versions) = engine.versions.of(entry.id) {
        versions.undone(table, key);
    }
    if lock == Lock::Keep
        && let Some(lock) = engine.row_locks.take(entry.id, table, key)
    {
        entry.lock().locked.push(lock);
    }
}

fn only_change<'r, 'a>(lsn: Lsn, parts: &'r [PagePart<'a>]) -> Result<&'r PageChange<'a>> {
    match parts {
        [part] => Ok(&part.change),
        _ => Err(unexpected(lsn, "one page part")),
    }
}

fn unexpected(lsn: Lsn, expected: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("log record {lsn} does not belong in an undo chain: expected {expected}"),
    )
}

/// Undoes a whole transaction: its chains, the catalog's last (hazard H11), with an end record for each. What is left is to take it
/// out of the timeline. Returns how many records were undone.
pub(crate) fn roll_back(
    engine: &Engine,
    entry: &Arc<TxnEntry>,
    step: &mut dyn FnMut(PartitionId) -> Result<()>,
) -> Result<u64> {
    let mut partitions: Vec<PartitionId> = entry.lock().chains.iter().map(|c| c.partition).collect();
    partitions.sort_by_key(|p| *p == CATALOG);
    let mut undone = 0;
    for partition in partitions {
        undone += roll_back_chain(engine, entry, partition, step)?;
    }
    note_rolled_back(engine);
    Ok(undone)
}

/// Undoes one chain of a transaction that ends, and logs that. Returns how many records were undone; `step` hears of each, and can stop it.
/// What is left of it in a partition that cannot be used waits for that one's repair (I4).
pub(crate) fn roll_back_chain(
    engine: &Engine,
    entry: &Arc<TxnEntry>,
    partition: PartitionId,
    step: &mut dyn FnMut(PartitionId) -> Result<()>,
) -> Result<u64> {
    let mut undone = 0;
    let mut count = |partition| {
        undone += 1;
        step(partition)
    };
    let rolled_back =
        engine.partition(partition).and_then(|handle| roll_back_chain_in(engine, &handle, entry, &mut count));
    or_defer(engine, entry, partition, rolled_back)?;
    Ok(undone)
}

/// What came of going on with a rollback.
pub(crate) struct Rolled {
    /// Records undone.
    pub(crate) undone: u64,
    /// The chain is at its end, or left to a repair.
    pub(crate) is_over: bool,
}

/// As [`roll_back_chain`], but goes on with it for `steps` records at most.
pub(crate) fn roll_back_some(
    engine: &Engine,
    entry: &Arc<TxnEntry>,
    partition: PartitionId,
    steps: u64,
) -> Result<Rolled> {
    let mut undone = 0;
    let roll_back = |handle| {
        let chain = Chain { entry: entry.clone(), partition };
        while undone < steps {
            if !undo_step(engine, &handle, &chain, Lsn::NEVER, Lock::Release)? {
                end_chain(engine, &chain)?;
                return Ok(true);
            }
            undone += 1;
            engine.pause("between steps of an undo");
        }
        Ok(false)
    };
    let rolled_back = engine.partition(partition).and_then(roll_back);
    let is_over = or_defer(engine, entry, partition, rolled_back)?.unwrap_or(true);
    Ok(Rolled { undone, is_over })
}

/// A chain's undo in a partition that cannot be used waits for that one's repair (I4): then `None`.
fn or_defer<T>(
    engine: &Engine,
    entry: &TxnEntry,
    partition: PartitionId,
    rolled_back: Result<T>,
) -> Result<Option<T>> {
    match rolled_back {
        Err(e) if e.kind() == ErrorKind::PartitionUnavailable => {
            engine.defer_chain(entry, partition);
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// As [`roll_back_chain`], in this handle's partition, whatever state that is in.
pub(crate) fn roll_back_chain_in(
    engine: &Engine,
    handle: &Arc<PartitionHandle>,
    entry: &Arc<TxnEntry>,
    step: &mut dyn FnMut(PartitionId) -> Result<()>,
) -> Result<()> {
    let partition = handle.partition.id();
    let chain = Chain { entry: entry.clone(), partition };
    while undo_step(engine, handle, &chain, Lsn::NEVER, Lock::Release)? {
        step(partition)?;
    }
    end_chain(engine, &chain)
}

/// A transaction's last chain has been undone.
pub(crate) fn note_rolled_back(engine: &Engine) {
    engine.counters.rollbacks.fetch_add(1, Ordering::Relaxed);
}

/// Logs that a chain is undone to its start, in the transaction's critical section (hazard H2). The last one ends the transaction.
fn end_chain(engine: &Engine, chain: &Chain) -> Result<()> {
    let mut payload = Vec::new();
    Record::End { txn: chain.entry.id, partition: chain.partition }.encode(&mut payload);
    let mut permit = engine.log.admit_promised(Log::framed_bytes(payload.len()))?;
    let mut state = chain.entry.lock();
    permit.append(&payload)?;
    state.chains.retain(|c| c.partition != chain.partition);
    state.ended |= state.chains.is_empty();
    Ok(())
}

/// Gives back what an ended transaction was promised.
pub(crate) fn give_back_promise(engine: &Engine, entry: &TxnEntry) {
    let promised = std::mem::take(&mut entry.lock().promised_bytes);
    if promised > 0 {
        engine.log.release(promised);
    }
}
