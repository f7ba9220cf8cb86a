//! Before-images of rows, for views that do not see the row's last writer (after Umbra: Freitag, Kemper, Neumann, VLDB 2022).
//!
//! Owns the images; the rows are the tree's, who sees what is [`View`]'s. Images are kept by writer: a reader that does not see a row's
//! stamp asks that writer's table what it found there, then that image's stamp, and so on down.
//!
//! I1. A row's stamp and its writer's table change in one exclusive section of the leaf's latch, the table first; a reader
//!     resolves a row before it unlatches, but for the I/O of a spilled image, which is a fact whatever becomes of the row. Order: leaf
//!     latch, then a table's mutex (hazard H7).
//! I2. What a table says of a key is what was there before its writer's *first* write to it. No word of a key whose row has the
//!     writer's stamp means: a ghost's row was there with the same bytes, settled; a row was not there (or only a settled ghost).
//!     So inserts and removals of settled rows, which are most of them, keep nothing.
//! I3. A table goes when every view, live or to come, sees its writer.
//! I4. Writers whose commits no view stands between may share one table, with the oldest image of each key ([`Versions::merge`]): who
//!     does not see one of them sees none.
//! I5. A writer's table is in the shard that goes with its id, which is mostly that of its thread. There it stays after the commit until
//!     somebody finds it settled: mostly the same thread, at its next commit.
//! I6. Memory beyond the budget is a passing state: a writer spills its table before its next statement, a committed one's is merged
//!     and spilled by a later commit (one in [`LOOK_EVERY`]), the end of a view, or a round of maintenance.
//! I7. Tables are dropped, and their files with them, when no shard is locked: readers ask for tables with a page latched. Order: leaf latch,
//!     then a shard, then a table's mutex.
//! I8. A table that is out of use is emptied, and used again, only once nobody else has it: a reader that has found it may still search it.

mod images;
pub(crate) mod run;
mod search;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use hamal_storage::Storage;
use hamal_wal::Lsn;
use hashbrown::{HashMap, HashSet};
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;

use self::images::{Before, Images};
use self::run::{Run, Spilled};
use self::search::Word;
pub(crate) use self::search::{Found, OwnedRow, Search, Seen};
use crate::Result;
use crate::change::Row;
use crate::ids::TxnId;
use crate::shard::Shards;
use crate::view::View;

/// A table of an active writer may be this far from what is counted of it, bytes: so short transactions, whose images go as soon as
/// they commit, do not all write to one counter.
const UNCOUNTED_BYTES: u64 = 8 << 10;
/// Tables that a shard keeps for writers to come, at most.
const KEPT: usize = 16;
/// Larger ones are not kept, bytes.
const KEPT_BYTES: u64 = 4 << 10;
/// Once in so many commits of a shard it is asked whether merging is worth it.
const LOOK_EVERY: u64 = 64;
/// A table below this is not worth a file, bytes.
const SPILL_BYTES: u64 = 64 << 10;
/// And so much more for each file that it has already.
const SPILL_STEP_BYTES: u64 = 32 << 10;

/// The images of a writer, or of several (I4).
#[derive(Debug)]
pub(crate) struct VersionTable {
    content: Mutex<Content>,
    /// What the tables of its shard take together, and what is counted there of this one.
    total_bytes: Arc<CachePadded<AtomicU64>>,
    counted_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Content {
    images: Images,
    /// Images on their way to a file.
    frozen: Option<Arc<Images>>,
    /// In the order in which they were written.
    runs: Vec<Arc<Run>>,
}

impl Content {
    fn find(&self, table: u32, key: &[u8]) -> Option<Before<'_>> {
        self.images.find(table, key).or_else(|| self.frozen.as_ref()?.find(table, key))
    }

    /// Whether it is in memory, and takes little there.
    fn is_small(&self) -> bool {
        self.runs.is_empty() && self.frozen.is_none() && self.images.memory_bytes() <= KEPT_BYTES
    }

    fn memory_bytes(&self) -> u64 {
        let runs: u64 = self.runs.iter().map(|run| run.memory_bytes()).sum();
        self.images.memory_bytes() + self.frozen.as_ref().map_or(0, |frozen| frozen.memory_bytes()) + runs
    }
}

impl Drop for VersionTable {
    fn drop(&mut self) {
        self.total_bytes.fetch_sub(self.counted_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// The tables of some writers.
#[derive(Debug, Default)]
struct Shard {
    state: RwLock<ShardState>,
    /// Memory that they take.
    bytes: Arc<CachePadded<AtomicU64>>,
}

#[derive(Debug, Default)]
struct ShardState {
    tables: HashMap<TxnId, Arc<VersionTable>>,
    /// Those that have committed, in the order in which that became known here.
    retired: VecDeque<(Lsn, TxnId)>,
    /// How many there have been.
    retired_ever: u64,
    /// Tables that are out of use, for writers to come (I8).
    spare: Vec<Arc<VersionTable>>,
}

impl Shard {
    /// Takes out those that every view sees: all before the first that some view does not. Returns what is to be dropped.
    fn settle(&self, state: &mut ShardState, horizon: TxnId) -> SmallVec<[Arc<VersionTable>; 4]> {
        let mut gone = SmallVec::new();
        while let Some((_, writer)) = state.retired.pop_front_if(|(_, writer)| *writer < horizon) {
            gone.extend(self.remove(state, writer));
        }
        gone
    }

    /// Takes out a writer's table, and returns it if it is to be dropped.
    fn remove(&self, state: &mut ShardState, writer: TxnId) -> Option<Arc<VersionTable>> {
        let mut table = state.tables.remove(&writer)?;
        let is_kept = state.spare.len() < KEPT
            // One that is counted elsewhere was merged with another shard's.
            && Arc::ptr_eq(&table.total_bytes, &self.bytes)
            && match Arc::get_mut(&mut table) {
                Some(table) => table.empty(),
                // Its writer may still have it, for a moment; what is counted of it must be taken off by who drops it.
                None => table.counted_bytes.load(Ordering::Relaxed) == 0 && table.content.lock().is_small(),
            };
        if is_kept {
            state.spare.push(table);
            return None;
        }
        Some(table)
    }

    /// One that was kept and that nobody has any more, as new.
    fn reuse(state: &mut ShardState) -> Option<Arc<VersionTable>> {
        let is_free = |table: &mut Arc<VersionTable>| Arc::get_mut(table).is_some_and(VersionTable::empty);
        let at = state.spare.iter_mut().rposition(is_free)?;
        Some(state.spare.swap_remove(at))
    }
}

/// All before-images.
#[derive(Debug)]
pub(crate) struct Versions {
    shards: Shards<Shard>,
    storage: Arc<dyn Storage>,
    budget_bytes: u64,
    /// What was left by the last merge, bytes: the next one waits until there is twice as much.
    merged_bytes: AtomicU64,
    next_run: AtomicU64,
    spilled_bytes: AtomicU64,
}

impl Versions {
    /// No images. Beyond `budget_bytes` of memory they go to files.
    pub(crate) fn new(storage: Arc<dyn Storage>, budget_bytes: u64) -> Versions {
        Versions {
            shards: Shards::default(),
            storage,
            budget_bytes,
            merged_bytes: AtomicU64::new(0),
            next_run: AtomicU64::new(0),
            spilled_bytes: AtomicU64::new(0),
        }
    }

    /// A table for a writer that is about to keep its first image.
    pub(crate) fn open(&self, writer: TxnId) -> Arc<VersionTable> {
        let shard = self.shards.at(writer.0);
        let mut state = shard.state.write();
        let table =
            Shard::reuse(&mut state).unwrap_or_else(|| Arc::new(VersionTable::new(shard, Images::default())));
        state.tables.insert(writer, table.clone());
        table
    }

    /// The table of a writer, if it has kept anything.
    pub(crate) fn of(&self, writer: TxnId) -> Option<Arc<VersionTable>> {
        self.shards.at(writer.0).state.read().tables.get(&writer).cloned()
    }

    /// What a view sees of a row, which the caller has under its leaf's latch. `older` is filled where it is an older one.
    pub(crate) fn resolve(
        &self,
        view: &View,
        (table, key): (u32, &[u8]),
        row: Row<'_>,
        older: &mut OwnedRow,
    ) -> Found {
        if view.sees(row.stamp) {
            return Found::Seen(if row.ghost { Seen::Absent } else { Seen::Current });
        }
        let search = Search { writer: row.stamp, ghost: row.ghost, seen: Seen::Revived };
        self.search(view, (table, key), search, older)
    }

    /// Searches as far as memory goes.
    fn search(
        &self,
        view: &View,
        (table, key): (u32, &[u8]),
        mut search: Search,
        older: &mut OwnedRow,
    ) -> Found {
        loop {
            let mut word = Word::Nothing;
            if let Some(versions) = self.of(search.writer) {
                let content = versions.content.lock();
                match content.find(table, key) {
                    Some(Before::Absent) => word = Word::Absent,
                    Some(Before::Row(row)) => {
                        older.set(row);
                        word = Word::Row;
                    }
                    None if content.runs.is_empty() => {}
                    None => return Found::Spilled(search, content.runs.clone()),
                }
            }
            if let Some(seen) = search.step(word, view, older) {
                return Found::Seen(seen);
            }
        }
    }

    /// Goes on with a search that has come to a file. The caller holds no latch.
    pub(crate) fn finish(
        &self,
        view: &View,
        (table, key): (u32, &[u8]),
        (mut search, mut runs): (Search, Vec<Arc<Run>>),
        older: &mut OwnedRow,
    ) -> Result<Seen> {
        loop {
            let word = match find_spilled(&runs, table, key)? {
                None => Word::Nothing,
                Some(Spilled::Absent) => Word::Absent,
                Some(Spilled::Row(row)) => {
                    *older = row;
                    Word::Row
                }
            };
            if let Some(seen) = search.step(word, view, older) {
                return Ok(seen);
            }
            match self.search(view, (table, key), search, older) {
                Found::Seen(seen) => return Ok(seen),
                Found::Spilled(next, in_runs) => (search, runs) = (next, in_runs),
            }
        }
    }

    /// Drops what is kept of a writer that has rolled back: no row has its stamp.
    pub(crate) fn forget(&self, writer: TxnId) {
        let shard = self.shards.at(writer.0);
        let mut state = shard.state.write();
        let gone = shard.remove(&mut state, writer);
        drop(state);
        drop(gone);
    }

    /// A writer has committed. Drops what is kept of it if every view sees it, and what else its shard has of that kind. Says whether it
    /// is time to see if merging is worth it.
    pub(crate) fn retire(&self, writer: TxnId, lsn: Lsn, table: &VersionTable, horizon: TxnId) -> bool {
        let is_settled = writer < horizon;
        if !is_settled {
            table.count_all();
        }
        let shard = self.shards.at(writer.0);
        let mut state = shard.state.write();
        let mut gone = shard.settle(&mut state, horizon);
        let is_time = if is_settled {
            gone.extend(shard.remove(&mut state, writer));
            false
        } else {
            state.retired.push_back((lsn, writer));
            state.retired_ever += 1;
            state.retired_ever.is_multiple_of(LOOK_EVERY)
                || table.counted_bytes.load(Ordering::Relaxed) > SPILL_BYTES
        };
        drop(state);
        drop(gone);
        is_time
    }

    /// Drops what is kept of committed writers that every view sees.
    pub(crate) fn drop_settled(&self, horizon: TxnId) {
        for shard in self.shards.iter() {
            let mut state = shard.state.write();
            let gone = shard.settle(&mut state, horizon);
            drop(state);
            drop(gone);
        }
    }

    /// The committed writers of which something is kept, in order of commit.
    pub(crate) fn retired(&self) -> Vec<(Lsn, TxnId)> {
        let mut retired: Vec<(Lsn, TxnId)> = Vec::new();
        for shard in self.shards.iter() {
            retired.extend(&shard.state.read().retired);
        }
        retired.sort_unstable();
        retired
    }

    /// Memory that images take, bytes, but for a little of each active writer's.
    pub(crate) fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes.load(Ordering::Relaxed)).sum()
    }

    /// Written to files since the database was opened, bytes.
    pub(crate) fn spilled_bytes(&self) -> u64 {
        self.spilled_bytes.load(Ordering::Relaxed)
    }

    /// Writers whose images are kept.
    pub(crate) fn writers(&self) -> usize {
        self.shards.iter().map(|shard| shard.state.read().tables.len()).sum()
    }

    /// Whether there is so much that merging may be worth it.
    pub(crate) fn may_merge(&self) -> bool {
        let bytes = self.bytes();
        bytes > self.budget_bytes / 4 && bytes > 2 * self.merged_bytes.load(Ordering::Relaxed)
    }

    /// Merges the tables of each group of writers, which are given in order of commit and have no view between them (I4), and spills the
    /// largest if there is still too much.
    pub(crate) fn merge(&self, groups: &[Vec<TxnId>]) -> Result<()> {
        // Those that are not shown to readers yet can be merged once they are: then it is worth another look.
        if groups.is_empty() {
            return Ok(());
        }
        let mut merged = Vec::new();
        for group in groups {
            let parts: Vec<_> = group.iter().filter_map(|id| Some((*id, self.of(*id)?))).collect();
            // Not across one that is in a file: what is known of a key is a chain through all of them.
            for parts in parts.split(|(_, table)| !table.is_in_memory()) {
                merged.extend(self.merge_group(parts));
            }
            // What a large writer had left in memory at its commit.
            merged.extend(parts.into_iter().map(|(_, table)| table).filter(|table| !table.is_in_memory()));
        }
        merged.sort_by_key(|table: &Arc<VersionTable>| table.counted_bytes.load(Ordering::Relaxed));
        while self.bytes() > self.budget_bytes / 2
            && let Some(table) = merged.pop()
        {
            self.spill(&table)?;
        }
        self.merged_bytes.store(self.bytes(), Ordering::Relaxed);
        Ok(())
    }

    /// Merges tables that are in memory; returns the one they have now, if there was anything to merge or spill.
    fn merge_group(&self, parts: &[(TxnId, Arc<VersionTable>)]) -> Option<Arc<VersionTable>> {
        let mut images = Images::default();
        let mut members = HashSet::new();
        let mut last: Option<&Arc<VersionTable>> = None;
        let mut tables = 0;
        for (id, table) in parts {
            members.insert(*id);
            // Members of an earlier merge share one table, and come one after the other.
            if last.is_some_and(|last| Arc::ptr_eq(last, table)) {
                continue;
            }
            for (number, key, before) in table.content.lock().images.iter() {
                if images.find(number, key).is_none() {
                    images.add(number, key, explained(before, &members));
                }
            }
            last = Some(table);
            tables += 1;
        }
        if tables <= 1 {
            return last.cloned();
        }
        let first = parts.first()?.0;
        let merged = Arc::new(VersionTable::new(self.shards.at(first.0), images));
        merged.count_all();
        // One after the other: who does not see one of them sees none, and finds the same in the old table and in the new.
        for (id, _) in parts {
            // One that has gone meanwhile is of no use to anybody.
            let mut state = self.shards.at(id.0).state.write();
            let replaced = state.tables.get_mut(id).map(|old| std::mem::replace(old, merged.clone()));
            drop((state, replaced));
        }
        Some(merged)
    }

    /// Whether a table should be spilled before it grows further: there is too much, and what this one has in memory is worth a file. The
    /// more files it has, the larger the next one must be: their number grows with the root of what is spilled.
    pub(crate) fn must_spill(&self, table: &VersionTable) -> bool {
        if table.counted_bytes.load(Ordering::Relaxed) < SPILL_BYTES || self.bytes() <= self.budget_bytes {
            return false;
        }
        let content = table.content.lock();
        content.images.memory_bytes() >= SPILL_BYTES + SPILL_STEP_BYTES * content.runs.len() as u64
    }

    /// Moves a table's images to a file. Only its writer, while it does nothing else; or anybody, once it has committed.
    pub(crate) fn spill(&self, table: &VersionTable) -> Result<()> {
        let frozen = {
            let mut content = table.content.lock();
            if content.frozen.is_some() || content.images.is_empty() {
                return Ok(());
            }
            let frozen = Arc::new(std::mem::take(&mut content.images));
            content.frozen = Some(frozen.clone());
            frozen
        };
        let number = self.next_run.fetch_add(1, Ordering::Relaxed);
        let written = Run::write(&self.storage, number, &frozen);
        let mut content = table.content.lock();
        content.frozen = None;
        let done = match written {
            Ok(run) => {
                self.spilled_bytes.fetch_add(run.file_bytes(), Ordering::Relaxed);
                tracing::debug!(images = frozen.len(), bytes = run.file_bytes(), "before-images spilled");
                content.runs.push(Arc::new(run));
                Ok(())
            }
            Err(error) => {
                if let Ok(images) = Arc::try_unwrap(frozen) {
                    content.images = images;
                }
                Err(error.context("moving before-images to a file"))
            }
        };
        table.count(&content);
        done
    }
}

/// What was there before the members of a group, of which one found this: if it is another's doing, of which that one kept nothing, its
/// stamp says what was there before that (I2).
fn explained<'i>(before: Before<'i>, members: &HashSet<TxnId>) -> Before<'i> {
    match before {
        Before::Row(row) if members.contains(&row.stamp) => {
            if row.ghost {
                Before::Row(Row { stamp: TxnId::NONE, ghost: false, ..row })
            } else {
                Before::Absent
            }
        }
        other => other,
    }
}

/// What the oldest run that knows a key says of it.
fn find_spilled(runs: &[Arc<Run>], table: u32, key: &[u8]) -> Result<Option<Spilled>> {
    for run in runs {
        if let Some(spilled) = run.find(table, key)? {
            return Ok(Some(spilled));
        }
    }
    Ok(None)
}

/// What a writer does to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Writes a value.
    Put,
    /// Makes it a ghost; its bytes stay.
    Remove,
}

/// Whether a writer must keep what it is about to change (I2), if nothing is kept of the key yet. `horizon`: stamps below are settled; asked
/// only where that matters, for it changes with almost every commit, and is in another processor's cache then.
pub(crate) fn must_keep(writer: TxnId, old: Row<'_>, write: Write, horizon: impl FnOnce() -> TxnId) -> bool {
    if old.stamp == writer {
        // Its own insert is removed, or its own ghost written over: then the stamp no longer explains itself.
        return old.ghost == (write == Write::Put);
    }
    (write == Write::Put && !old.ghost) || old.stamp >= horizon()
}

impl VersionTable {
    fn new(shard: &Shard, images: Images) -> VersionTable {
        let content = Mutex::new(Content { images, ..Content::default() });
        VersionTable { content, total_bytes: shard.bytes.clone(), counted_bytes: AtomicU64::new(0) }
    }

    /// Keeps a row that `writer` is about to change, unless something is kept of the key already. The leaf is latched exclusively, and
    /// [`must_keep`] said so.
    pub(crate) fn keep(&self, writer: TxnId, table: u32, key: &[u8], old: Row<'_>) {
        let mut content = self.content.lock();
        if content.find(table, key).is_some() {
            return;
        }
        let before = match (old.stamp == writer, old.ghost) {
            (false, _) => Before::Row(old),
            // Its first write removed a settled row.
            (true, true) => Before::Row(Row { stamp: TxnId::NONE, ghost: false, ..old }),
            // Its first write was an insert.
            (true, false) => Before::Absent,
        };
        content.images.add(table, key, before);
        self.count(&content);
    }

    /// The key's row has got back a stamp that is not the writer's: nothing need be kept of it. (A file may go on saying what is true
    /// all the same: the writer keeps its lock, so it will find the same there again.) The leaf is latched exclusively.
    pub(crate) fn undone(&self, table: u32, key: &[u8]) {
        let mut content = self.content.lock();
        content.images.remove(table, key);
        self.count(&content);
    }

    /// Forgets everything, and says whether it is then worth keeping.
    fn empty(&mut self) -> bool {
        let content = self.content.get_mut();
        if !content.is_small() {
            return false;
        }
        content.images.clear();
        if *self.counted_bytes.get_mut() != 0 {
            self.set_counted(0);
        }
        true
    }

    fn is_in_memory(&self) -> bool {
        let content = self.content.lock();
        content.runs.is_empty() && content.frozen.is_none()
    }

    /// Whether only files can tell if something is kept of the key.
    pub(crate) fn is_unknown(&self, table: u32, key: &[u8]) -> bool {
        let content = self.content.lock();
        !content.runs.is_empty() && content.find(table, key).is_none()
    }

    /// Whether a file has something of the key. The caller holds no latch.
    pub(crate) fn is_spilled(&self, table: u32, key: &[u8]) -> Result<bool> {
        let runs = self.content.lock().runs.clone();
        Ok(find_spilled(&runs, table, key)?.is_some())
    }

    /// Accounts for what it has grown or shrunk by, if that is much.
    fn count(&self, content: &Content) {
        let now = content.memory_bytes();
        if now.abs_diff(self.counted_bytes.load(Ordering::Relaxed)) > UNCOUNTED_BYTES {
            self.set_counted(now);
        }
    }

    /// Accounts for all of it.
    fn count_all(&self) {
        self.set_counted(self.content.lock().memory_bytes());
    }

    fn set_counted(&self, now: u64) {
        let before = self.counted_bytes.swap(now, Ordering::Relaxed);
        self.total_bytes.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }
}
