//! A round of the balancer: looks, decides, and does.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use hamal_pager::PartitionId;
use parking_lot::Mutex;

use super::{
    Advice, BalanceAction, BalanceReason, BalancerOptions, FAILED_ROUNDS, Memory, REST_ROUNDS, Seen,
};
use crate::catalog::Definition;
use crate::database::Handle;
use crate::engine::{Engine, PartitionHandle};
use crate::reshape::{self, ReshapeReport};
use crate::snapshot::Snapshot;
use crate::{ErrorKind, Result};

/// What the balancer of a database remembers.
#[derive(Debug, Default)]
pub(crate) struct Balancer(Mutex<Memory>);

/// Something to be done.
struct Plan {
    table: u32,
    name: String,
    key: Vec<u8>,
    reason: BalanceReason,
    partitions: [PartitionId; 2],
}

/// One round. `is_over`: whether to stop in the middle.
pub(crate) fn round(
    handle: &Arc<Handle>,
    options: &BalancerOptions,
    is_over: &dyn Fn() -> bool,
) -> Result<Vec<BalanceAction>> {
    let engine = &*handle.engine;
    engine.check_poison()?;
    // Let go of before anything is done: it would keep what a split leaves.
    let tables = Snapshot::begin(handle)?.definitions()?;
    let memory = &engine.balancer.0;
    let plans = look(engine, options, &mut memory.lock(), tables)?;
    let mut actions = Vec::new();
    for plan in plans {
        if is_over() {
            break;
        }
        let progress = &mut |_| if is_over() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let patience = Some(options.lock_timeout);
        let began = engine.storage.monotonic();
        let done = match plan.reason {
            BalanceReason::Idle => reshape::merge(handle, &plan.name, &plan.key, patience, progress),
            _ => reshape::split(handle, &plan.name, &plan.key, patience, progress),
        };
        let now = engine.storage.monotonic();
        let took = now.saturating_sub(began);
        let mut memory = memory.lock();
        match done {
            Ok(ReshapeReport { rows, locked, .. }) => {
                memory.rest(options, plan.table, (took, REST_ROUNDS), now);
                memory.forget(plan.partitions);
                let Plan { name: table, key, reason, .. } = plan;
                tracing::info!(table, key = %key.escape_ascii(), ?reason, rows, ?locked, "balanced");
                actions.push(BalanceAction { table, key, reason, rows, locked });
            }
            // Somebody is in the way, the table has changed, or there is no room: another time.
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::Conflict
                        | ErrorKind::Cancelled
                        | ErrorKind::NotFound
                        | ErrorKind::InvalidArgument
                        | ErrorKind::LogFull
                        | ErrorKind::NoSpace
                        | ErrorKind::Limit
                        | ErrorKind::PartitionUnavailable
                ) =>
            {
                tracing::debug!(table = plan.name, error = %e, "not balanced");
                memory.rest(options, plan.table, (took, FAILED_ROUNDS), now);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(actions)
}

/// Looks at all tables; what there is to do.
fn look(
    engine: &Engine,
    options: &BalancerOptions,
    memory: &mut Memory,
    tables: Vec<(String, Definition)>,
) -> Result<Vec<Plan>> {
    let now = engine.storage.monotonic();
    let known: HashSet<PartitionId> = tables.iter().flat_map(|(_, table)| table.partitions()).collect();
    let ids: HashSet<u32> = tables.iter().map(|(_, table)| table.row.id).collect();
    memory.keep(|id| known.contains(&id), |id| ids.contains(&id));
    let mut plans = Vec::new();
    for (name, table) in tables {
        let handles: Vec<_> = table.partitions().map(|id| engine.partition(id)).collect::<Result<_>>()?;
        let mut seen = Vec::with_capacity(handles.len());
        for handle in &handles {
            let id = handle.partition.id();
            let size = size(engine, options, handle, bounds(&table, seen.len()));
            let (used_bytes, appends) = match size.map_err(|error| engine.blame(id, error)) {
                // Nothing is done about it, nor with its neighbours.
                Err(e) if e.kind() == ErrorKind::PartitionUnavailable => (u64::MAX, false),
                size => size?,
            };
            // Of a partition that is behind, the pages tell of rows that were never committed.
            let in_transition =
                handle.strays.are_possible() || handle.partition.is_sealed() || handle.is_behind();
            let operations = handle.load.operations();
            let partition = Seen { id, used_bytes, operations, in_transition, appends };
            let rate = memory.observe(options, &partition, now);
            #[expect(clippy::cast_sign_loss, reason = "a count by a time")]
            handle.load.set_rate(rate as u64);
            seen.push(partition);
        }
        let advice = memory.advise(options, table.row.id, &seen, now);
        let (key, reason, others) = match advice {
            None => continue,
            Some(Advice::Merge(at)) => {
                (Some(bounds(&table, at).0.to_vec()), BalanceReason::Idle, [at - 1, at])
            }
            Some(Advice::Split(at, reason)) => {
                let (lower, upper) = bounds(&table, at);
                let key = match reason {
                    BalanceReason::Load => handles[at].load.middle().map(Vec::from),
                    _ => match cuts(&handles[at], (lower, upper)) {
                        Ok(cuts) => cuts.best(),
                        // Found to be damaged a moment ago.
                        Err(_) if handles[at].partition.is_sealed() => continue,
                        Err(e) => return Err(e),
                    },
                };
                handles[at].load.forget_keys();
                let key = key.filter(|key| **key > *lower && upper.is_none_or(|upper| **key < *upper));
                (key, reason, [at, at])
            }
        };
        match key {
            Some(key) => {
                let partitions = others.map(|at| seen[at].id);
                plans.push(Plan { table: table.row.id, name, key, reason, partitions });
            }
            // There is no key at which that would help.
            None => memory.stick(options, seen[others[0]].id, now),
        }
    }
    Ok(plans)
}

/// Bytes that a partition uses, and whether it grows at its end; that where it may matter, as it takes a look at the tree.
fn size(
    engine: &Engine,
    options: &BalancerOptions,
    handle: &PartitionHandle,
    bounds: (&[u8], Option<&[u8]>),
) -> Result<(u64, bool)> {
    let used_bytes = used_bytes(engine, handle)?;
    Ok((used_bytes, used_bytes > options.split_bytes / 4 * 3 && cuts(handle, bounds)?.appends))
}

/// Bytes of the pages that hold something. O(bitmap pages).
fn used_bytes(engine: &Engine, handle: &PartitionHandle) -> Result<u64> {
    let mut pages = 0;
    for index in 0..handle.space.bitmap_pages()? {
        pages += u64::from(handle.space.geometry().count_set(handle.space.bitmap(index)?.bytes()));
    }
    Ok(pages * engine.page_bytes as u64)
}

/// The bounds of the partition in this place of a table.
fn bounds(table: &Definition, at: usize) -> (&[u8], Option<&[u8]>) {
    let lower = at.checked_sub(1).map_or(&[][..], |at| &*table.cuts[at].lower);
    (lower, table.cuts.get(at).map(|cut| &*cut.lower))
}

/// Where a partition might be cut for its size: keys at which leaves begin.
#[derive(Debug, Default)]
struct Cuts {
    middle: Option<Vec<u8>>,
    last: Option<Vec<u8>>,
    /// Most of what was done of late was behind fifteen of sixteen leaves.
    appends: bool,
}

impl Cuts {
    fn best(self) -> Option<Vec<u8>> {
        if self.appends { self.last } else { self.middle }
    }
}

/// Looks for places to cut. O(leaves), but reads one page for hundreds of them.
fn cuts(handle: &PartitionHandle, (lower, upper): (&[u8], Option<&[u8]>)) -> Result<Cuts> {
    let (tree, mut leaves) = (handle.tree(), 0_usize);
    tree.leaf_starts(lower, upper, &mut |_| leaves += 1)?;
    let (mut at, mut cuts, mut end) = (0, Cuts::default(), None);
    tree.leaf_starts(lower, upper, &mut |start| {
        at += 1;
        if at == leaves.div_ceil(2) {
            cuts.middle = Some(start.to_vec());
        }
        if at == leaves / 16 * 15 {
            end = Some(start.to_vec());
        }
        if at == leaves {
            cuts.last = Some(start.to_vec());
        }
    })?;
    cuts.appends = end.zip(handle.load.newest()).is_some_and(|(end, newest)| *newest >= *end);
    Ok(cuts)
}
