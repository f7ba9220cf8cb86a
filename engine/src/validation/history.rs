//! What recent commits wrote, in bounded memory.
//!
//! I1. LSNs rise from commit to commit.
//! I2. Every commit that was pushed, and that [`History::prune`] has not been told is no longer asked for, is in `commits`, or is covered
//!     by a low-water LSN of each table it wrote to (hazard H12). The commits that were forgotten are older than those that are kept.
//! I3. A low-water LSN is that of the newest forgotten commit that wrote to the table. Who has not seen that commit and has read the
//!     table conflicts, for nobody knows any more what was written.
//! I4. Beyond [`LOW_WATER_TABLES`] the low-water LSNs collapse into one for all tables.

use std::collections::{BTreeMap, VecDeque};
use std::mem::offset_of;
use std::sync::Arc;

use hamal_wal::Lsn;
use smallvec::SmallVec;

use crate::catalog::CATALOG;
use crate::validation::{Overlap, Part, PreparedReads, Published, conflict};

/// Tables with a low-water LSN of their own, at most; tables whose counts were changed count apart.
const LOW_WATER_TABLES: usize = 4096;
/// Of a commit beside what it published: the entry, and the two counters of the `Arc`.
const ENTRY_BYTES: usize = size_of::<Commit>() + 2 * size_of::<usize>();

/// What is to be dropped.
pub(crate) type Garbage = SmallVec<[Arc<Published>; 4]>;

/// One commit, and what can be said of it without looking at what another thread has written down.
#[derive(Debug)]
struct Commit {
    lsn: Lsn,
    /// The least and the greatest table it wrote to.
    tables: (u32, u32),
    /// What it takes up here.
    bytes: usize,
    writes: Arc<Published>,
}

impl Commit {
    /// Whether it wrote to none of the tables in a range.
    fn is_elsewhere(&self, tables: (u32, u32)) -> bool {
        self.tables.1 < tables.0 || tables.1 < self.tables.0
    }
}

/// What recent commits wrote. First what every commit changes: one cache line. The rest is behind it.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct History {
    commits: VecDeque<Commit>,
    bytes: usize,
    newest: Lsn,
    /// The newest commit that was pruned.
    pruned: Lsn,
    /// The newest commit that wrote to the catalog.
    newest_in_catalog: Lsn,
    /// Elsewhere, for it is looked at by all and mostly changed by none.
    forgotten: Box<LowWater>,
    limit_bytes: usize,
}

const _: () = assert!(offset_of!(History, forgotten) <= 64, "what every commit changes is one cache line");

impl History {
    /// Of no commits; it will use about this many bytes at most.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        History {
            limit_bytes,
            bytes: 0,
            commits: VecDeque::new(),
            newest: Lsn::NEVER,
            pruned: Lsn::NEVER,
            newest_in_catalog: Lsn::NEVER,
            forgotten: Box::default(),
        }
    }

    /// The newest commit. Who has seen it has nothing to check.
    pub(crate) fn newest(&self) -> Lsn {
        self.newest
    }

    /// Bytes it uses for commits, never above its limit.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a commit, and forgets the oldest ones beyond the limit.
    pub(crate) fn push(&mut self, lsn: Lsn, writes: Arc<Published>) {
        debug_assert!(lsn > self.newest, "I1");
        self.newest = self.newest.max(lsn);
        if writes.is_empty() {
            return;
        }
        let bytes = ENTRY_BYTES + writes.bytes();
        self.bytes += bytes;
        let tables = writes.table_range();
        if tables.0 == CATALOG.0 {
            self.newest_in_catalog = lsn;
        }
        self.commits.push_back(Commit { lsn, tables, bytes, writes });
        while self.bytes > self.limit_bytes
            && let Some(commit) = self.pop()
        {
            self.forgotten.add(commit.lsn, &commit.writes);
        }
    }

    /// The commits after `since` to be checked; an overlap if one of those that were forgotten may have written what was read.
    pub(crate) fn after(&self, reads: &PreparedReads<'_>, since: Lsn) -> Result<Later, Overlap> {
        self.check_forgotten(reads, since)?;
        let commits = self.unseen(reads, since).map(|commit| commit.writes.clone()).collect();
        Ok(Later { seen_up_to: self.newest.max(since), commits })
    }

    /// The commits after `since` that wrote to tables like those that were read, the newest first: who looks back from there to the first
    /// that is seen asks for no other memory than that of what is not.
    fn unseen(&self, reads: &PreparedReads<'_>, since: Lsn) -> impl Iterator<Item = &Commit> {
        let tables = reads.table_range();
        // Every transaction has read in the catalog, and many nowhere else: mostly they need not even look at the newest.
        let may_concern = tables.1 > CATALOG.0 || self.newest_in_catalog > since;
        let commits = may_concern.then(|| self.commits.iter().rev()).into_iter().flatten();
        let after = commits.take_while(move |commit| commit.lsn > since);
        after.filter(move |commit| !commit.is_elsewhere(tables))
    }

    /// Whether there are more than so many commits after `since` whose writes [`History::check`] would look at.
    pub(crate) fn has_more_after(&self, reads: &PreparedReads<'_>, since: Lsn, commits: usize) -> bool {
        self.unseen(reads, since).nth(commits).is_some()
    }

    /// Takes out the commits that nobody will ask for again: all at or below `oldest`, the least snapshot there is. What they wrote goes to
    /// `garbage`, to be dropped where that holds up nobody.
    pub(crate) fn prune(&mut self, oldest: Lsn, garbage: &mut Garbage) {
        while self.commits.front().is_some_and(|commit| commit.lsn <= oldest) {
            if let Some(commit) = self.pop() {
                self.pruned = commit.lsn;
                garbage.push(commit.writes);
            }
        }
        self.forgotten.prune(oldest);
    }

    /// Checks all commits after `since`.
    pub(crate) fn check(&self, reads: &PreparedReads<'_>, since: Lsn) -> Result<(), Overlap> {
        self.check_forgotten(reads, since)?;
        self.unseen(reads, since).find_map(|commit| conflict(reads, &commit.writes)).map_or(Ok(()), Err)
    }

    fn check_forgotten(&self, reads: &PreparedReads<'_>, since: Lsn) -> Result<(), Overlap> {
        if let Some(overlap) = self.forgotten.overlap(reads, since) {
            return Err(overlap);
        }
        // The caller of `prune` has broken its promise. Not to know is to assume the worst here too.
        if since < self.pruned && !reads.is_empty() {
            return Err(Overlap { table: None, part: Part::Something, exact: false });
        }
        Ok(())
    }

    fn pop(&mut self) -> Option<Commit> {
        let commit = self.commits.pop_front()?;
        self.bytes -= commit.bytes;
        Some(commit)
    }

    /// Number of tables with a low-water LSN of their own, rows and counts.
    #[cfg(test)]
    pub(super) fn low_water_tables(&self) -> usize {
        self.forgotten.len()
    }
}

/// The commits after an LSN.
#[derive(Debug)]
pub(crate) struct Later {
    /// No commit up to this LSN is missing: where to go on from.
    pub(crate) seen_up_to: Lsn,
    commits: Vec<Arc<Published>>,
}

impl Later {
    /// Checks them all.
    pub(crate) fn check(&self, reads: &PreparedReads<'_>) -> Result<(), Overlap> {
        self.commits.iter().find_map(|writes| conflict(reads, writes)).map_or(Ok(()), Err)
    }
}

/// What is remembered of forgotten commits.
#[derive(Debug, Default)]
struct LowWater {
    /// Of all tables.
    all: Lsn,
    rows: BTreeMap<u32, Lsn>,
    counts: BTreeMap<u32, Lsn>,
    /// The newest of all low-water LSNs: who has seen it need not look further.
    newest: Lsn,
    /// None is older.
    oldest: Lsn,
}

impl LowWater {
    fn len(&self) -> usize {
        self.rows.len() + self.counts.len()
    }

    /// Forgets a commit, newer than those before it.
    fn add(&mut self, lsn: Lsn, writes: &Published) {
        if self.newest == Lsn::NEVER {
            self.oldest = lsn;
        }
        self.newest = lsn;
        if writes.keys().is_everything() {
            self.collapse();
            return;
        }
        for table in writes.keys().tables() {
            self.rows.insert(table, lsn);
            if self.len() > LOW_WATER_TABLES {
                self.collapse();
                return;
            }
        }
        for &table in writes.counts() {
            self.counts.insert(table, lsn);
            if self.len() > LOW_WATER_TABLES {
                self.collapse();
                return;
            }
        }
    }

    fn collapse(&mut self) {
        *self =
            LowWater { all: self.newest, newest: self.newest, oldest: self.newest, ..LowWater::default() };
    }

    /// What was read and a forgotten commit after `since` may have written.
    fn overlap(&self, reads: &PreparedReads<'_>, since: Lsn) -> Option<Overlap> {
        if since >= self.newest || reads.is_empty() {
            return None;
        }
        let unseen = |lsn: Option<&Lsn>| lsn.is_some_and(|lsn| *lsn > since);
        if self.all > since || reads.keys().is_everything() {
            return Some(Overlap { table: None, part: Part::Something, exact: false });
        }
        let rows = reads.keys().tables().find(|table| unseen(self.rows.get(table)));
        if let Some(table) = rows {
            return Some(Overlap { table: Some(table), part: Part::Something, exact: false });
        }
        let table = reads.counts().iter().find(|table| unseen(self.counts.get(table)))?;
        Some(Overlap { table: Some(*table), part: Part::Count, exact: true })
    }

    fn prune(&mut self, oldest: Lsn) {
        if self.newest == Lsn::NEVER {
            // Nothing was forgotten: so nothing is written either, for others have it in their caches.
        } else if self.newest <= oldest {
            *self = LowWater::default();
        } else if self.oldest <= oldest {
            self.rows.retain(|_, lsn| *lsn > oldest);
            self.counts.retain(|_, lsn| *lsn > oldest);
            if self.all <= oldest {
                self.all = Lsn::NEVER;
            }
            let each = self.rows.values().chain(self.counts.values()).copied();
            let all = (self.all > Lsn::NEVER).then_some(self.all);
            self.oldest = each.chain(all).min().unwrap_or(self.newest);
        }
    }
}
