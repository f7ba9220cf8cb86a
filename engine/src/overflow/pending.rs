//! Runs that a row has let go of, until nobody can read them any more.

use std::sync::Arc;

use hamal_pager::{Attempt, PageNo, header};

use super::reference::runs_of;
use super::run::{Run, clear_bits, forget, place};
use crate::change::{PageChange, Row};
use crate::ids::TxnId;
use crate::journal::{Author, Chain, Journal};
use crate::node::{Node, Target};
use crate::space::{Space, damaged};
use crate::tree::{Decision, LeafCopy, Patience, SYSTEM_ROOT, Tree};
use crate::{Error, ErrorKind, Result};

const KEY_BYTES: usize = 8;

fn encode_key(run: Run) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..4].copy_from_slice(&run.first.0.to_be_bytes());
    key[4..].copy_from_slice(&run.count.to_be_bytes());
    key
}

fn decode_key(space: &Space, key: &[u8]) -> Result<Run> {
    let partition = space.partition();
    let (first, count) = key
        .split_first_chunk::<4>()
        .and_then(|(first, rest)| {
            Some((u32::from_be_bytes(*first), u32::from_be_bytes(rest.try_into().ok()?)))
        })
        .ok_or_else(|| bad_entry(space, format_args!("a key of 8 bytes, found {}", key.len())))?;
    let run = Run { first: PageNo(first), count };
    run.check(partition)
        .map_err(|damage| bad_entry(space, format_args!("{}, found {}", damage.expected, damage.found)))?;
    Ok(run)
}

fn bad_entry(space: &Space, expected: std::fmt::Arguments<'_>) -> Error {
    let file = space.partition().id();
    Error::new(
        ErrorKind::Corrupt,
        format!("part/{file}.dat has a damaged list of pending runs: expected {expected}"),
    )
}

/// Lists all runs of a value for freeing, in the transaction's chain: whoever had the reference has it no longer, once the
/// transaction commits. The caller holds no latch.
pub(crate) fn unlink(journal: &Journal, chain: &Chain, space: &Arc<Space>, reference: &[u8]) -> Result<()> {
    let tree = Tree::new(space, SYSTEM_ROOT);
    let entry = Row { stamp: chain.txn(), ghost: false, overflow: false, value: &[] };
    runs_of(space.partition(), reference, &mut |run| {
        tree.update(journal, Author::Transaction(chain), &encode_key(run), 0, &mut |old: Option<
            Row<'_>,
        >| match old {
            Some(old) if !old.ghost => {
                let found = format_args!("a run let go of once, found run {} let go of twice", run.first);
                Err(bad_entry(space, found))
            }
            _ => Ok(Decision::Write(entry)),
        })?;
        Ok(())
    })
}

/// What [`free_pending`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Freed {
    /// Runs freed.
    pub(crate) runs: usize,
    /// Runs are left that are not due yet, or were too many for this time.
    pub(crate) is_more: bool,
}

/// Frees up to `max_runs` runs that were let go of by transactions below the horizon. The caller holds no latch.
pub(crate) fn free_pending(journal: &Journal, space: &Arc<Space>, max_runs: usize) -> Result<Freed> {
    let tree = Tree::new(space, SYSTEM_ROOT);
    let horizon = journal.horizon();
    let mut due = Vec::new();
    let mut is_more = false;
    visit(&tree, &mut |run, stamp| {
        if stamp < horizon && due.len() < max_runs {
            due.push(run);
        } else {
            is_more = true;
        }
        Ok(due.len() < max_runs || !is_more)
    })?;
    for run in &due {
        free(journal, &tree, *run, horizon)?;
    }
    Ok(Freed { runs: due.len(), is_more })
}

/// Calls `read` with each pending run of a partition: pages that are in use, though no row refers to them.
pub(crate) fn pending_runs(space: &Arc<Space>, read: &mut dyn FnMut(Run) -> Result<()>) -> Result<()> {
    visit(&Tree::new(space, SYSTEM_ROOT), &mut |run, _| read(run).map(|()| true))
}

/// Walks the list from its beginning for as long as `read` says `true`.
fn visit(tree: &Tree, read: &mut dyn FnMut(Run, TxnId) -> Result<bool>) -> Result<()> {
    let (mut leaf, mut key) = (LeafCopy::default(), Vec::new());
    let mut from: Option<Vec<u8>> = None;
    loop {
        tree.leaf_at(from.as_deref(), None, &mut leaf)?;
        for index in 0..leaf.len() {
            let row = leaf.row(index);
            if row.ghost {
                continue;
            }
            key.clear();
            leaf.key_into(index, &mut key);
            if !read(decode_key(&tree.space, &key)?, row.stamp)? {
                return Ok(());
            }
        }
        // Fences rise from leaf to leaf (`leaf_at` sees to that), so this ends.
        match leaf.upper_fence() {
            Some(fence) => from = Some(fence.to_vec()),
            None => return Ok(()),
        }
    }
}

/// Frees one run: its bits and its entry go in one record (I4).
fn free(journal: &Journal, tree: &Tree, run: Run, horizon: TxnId) -> Result<()> {
    let (space, partition) = (&*tree.space, &tree.partition);
    let key = encode_key(run);
    let clear = clear_bits(space, run);
    let gone = PageChange::Mark { key: &key, stamp: TxnId::NONE, ghost: true };
    let bytes = clear.encoded_bytes() + gone.encoded_bytes();
    let bitmap_no = space.geometry().bitmap_of(run.first);
    let mut admission = journal.admit(Author::System, 2, bytes, 0)?;
    let mut patience = Patience::default();
    loop {
        let mut leaf = tree.leaf_exclusive(Target::At(&key))?;
        let entry = Node::leaf(leaf.bytes()).and_then(|node| match node.search(&key)? {
            Ok(slot) => node.cell(slot).map(|cell| Some((cell.row.stamp, cell.row.ghost))),
            Err(_) => Ok(None),
        });
        let entry = entry.map_err(|damage| damaged(partition, leaf.page_no(), damage))?;
        if !entry.is_some_and(|(stamp, ghost)| !ghost && stamp < horizon) {
            return Ok(()); // somebody else has freed it meanwhile
        }
        let Attempt::Fixed(mut bitmap) = partition.try_exclusive(bitmap_no) else {
            drop(leaf);
            drop(partition.fix_shared(bitmap_no)?);
            patience.loaded(partition)?;
            continue;
        };
        debug_assert_eq!(header::kind(leaf.bytes()), header::kind::LEAF, "the entry is in a leaf");
        gone.check(leaf.bytes()).map_err(|error| place(error, &leaf, space))?;
        clear.check(bitmap.bytes()).map_err(|error| place(error, &bitmap, space))?;
        let edits = &mut [(&mut leaf, gone.clone()), (&mut bitmap, clear.clone())];
        journal.write(&mut admission, Author::System, edits, None)?;
        drop(leaf);
        forget(space, run, &bitmap);
        drop(bitmap);
        space.freed(run.first);
        return Ok(());
    }
}
