//! What recent commits wrote, in bounded memory.
//!
//! I1. LSNs rise from commit to commit.
//! I2. Every commit that was pushed, and that [`History::prune`] has not been told is no longer asked for, is in `commits`, or is covered
//!     by a low-water LSN of each table it wrote to (hazard H12). The commits that were forgotten are older than those that are kept.
//! I3. A low-water LSN is that of the newest forgotten commit that wrote to the table. Who has not seen that commit and has read the
//!     table conflicts, for nobody knows any more what was written.
//! I4. Beyond [`LOW_WATER_TABLES`] the low-water LSNs collapse into one for all tables.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::Arc;

use hamal_wal::Lsn;
use smallvec::SmallVec;

use crate::catalog::CATALOG;
use crate::validation::brief::Brief;
use crate::validation::{Overlap, Part, PreparedReads, Published, Writes, conflict};

/// Tables with a low-water LSN of their own, at most; tables whose counts were changed count apart.
const LOW_WATER_TABLES: usize = 4096;
/// Of each commit: the history may have room for twice as many.
const ENTRY_BYTES: usize = 2 * size_of::<Commit>();
/// Of an `Arc`: its two counters.
const COUNTER_BYTES: usize = 2 * size_of::<usize>();

/// So many commits may be passed by in the commit section; and room for so many is kept while there are none.
const LOOKED_AT: usize = 64;

/// What is to be dropped.
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    published: SmallVec<[Arc<Published>; 4]>,
    commits: VecDeque<Commit>,
}

/// One commit: a cache line.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Commit {
    lsn: Lsn,
    left: Left,
}

const _: () = assert!(size_of::<Commit>() == 64, "a commit is one cache line");

/// What a commit has left here. Of one that is elsewhere, what can be said of it without looking there.
#[derive(Clone, Debug)]
enum Left {
    Brief(Brief),
    Full {
        /// The least and the greatest table it wrote to.
        tables: (u32, u32),
        /// What it takes up elsewhere.
        bytes: usize,
        writes: Arc<Published>,
    },
}

impl Commit {
    const EMPTY: Commit = Commit { lsn: Lsn::NEVER, left: Left::Brief(Brief::EMPTY) };

    /// What it takes up.
    fn bytes(&self) -> usize {
        let elsewhere = match &self.left {
            Left::Brief(_) => 0,
            Left::Full { bytes, .. } => COUNTER_BYTES + bytes,
        };
        ENTRY_BYTES + elsewhere
    }

    /// The least and the greatest table it wrote to.
    fn tables(&self) -> (u32, u32) {
        match &self.left {
            Left::Brief(brief) => (brief.table(), brief.table()),
            Left::Full { tables, .. } => *tables,
        }
    }

    /// Whether it wrote to none of the tables in a range.
    fn is_elsewhere(&self, tables: (u32, u32)) -> bool {
        let own = self.tables();
        own.1 < tables.0 || tables.1 < own.0
    }

    /// Something that was read and that it wrote, if there is any.
    fn conflict(&self, reads: &PreparedReads<'_>) -> Option<Overlap> {
        match &self.left {
            Left::Brief(brief) => conflict(reads, brief),
            Left::Full { writes, .. } => conflict(reads, &**writes),
        }
    }
}

/// What recent commits wrote: what every commit changes, which is no more than a cache line.
#[derive(Debug)]
pub(crate) struct History {
    commits: VecDeque<Commit>,
    bytes: usize,
    newest: Lsn,
    /// The newest commit that was pruned.
    pruned: Lsn,
    rarely: Box<Rarely>,
}

/// What is looked at by all and mostly changed by none: elsewhere, so that it stays in everybody's cache.
#[derive(Debug)]
struct Rarely {
    forgotten: LowWater,
    /// The newest commit that wrote to the catalog.
    newest_in_catalog: Lsn,
    limit_bytes: usize,
}

const _: () = assert!(size_of::<History>() <= 64, "what every commit changes is no more than a cache line");

impl History {
    /// Of no commits; it will use about this many bytes at most.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        History {
            bytes: 0,
            commits: VecDeque::new(),
            newest: Lsn::NEVER,
            pruned: Lsn::NEVER,
            rarely: Box::new(Rarely {
                forgotten: LowWater::default(),
                newest_in_catalog: Lsn::NEVER,
                limit_bytes,
            }),
        }
    }

    /// The newest commit. Who has seen it has nothing to check.
    pub(crate) fn newest(&self) -> Lsn {
        self.newest
    }

    /// Number of commits in it.
    pub(crate) fn len(&self) -> usize {
        self.commits.len()
    }

    /// Bytes it uses for commits, never above its limit.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a commit that has written little, and forgets the oldest ones beyond the limit.
    pub(super) fn push_brief(&mut self, lsn: Lsn, brief: &Brief) {
        self.announce(lsn, brief.table(), ENTRY_BYTES);
        // In place: what is moved waits for memory.
        self.commits.push_back(Commit::EMPTY);
        if let Some(Commit { lsn: own_lsn, left: Left::Brief(left) }) = self.commits.back_mut() {
            *own_lsn = lsn;
            left.set(brief);
        }
        self.forget_for(0);
    }

    /// Appends a commit, and forgets the oldest ones beyond the limit.
    pub(super) fn push(&mut self, lsn: Lsn, writes: Arc<Published>) {
        if writes.is_empty() {
            self.newest = lsn;
            return;
        }
        let left = Left::Full { tables: writes.table_range(), bytes: writes.bytes(), writes };
        let commit = Commit { lsn, left };
        self.announce(lsn, commit.tables().0, commit.bytes());
        self.commits.push_back(commit);
        self.forget_for(0);
    }

    /// A commit is about to be pushed: the least table it wrote to, and what it takes up.
    fn announce(&mut self, lsn: Lsn, table: u32, bytes: usize) {
        debug_assert!(lsn > self.newest, "I1");
        self.forget_for(bytes);
        self.newest = lsn;
        self.bytes += bytes;
        if table == CATALOG.0 {
            self.rarely.newest_in_catalog = lsn;
        }
    }

    /// Forgets the oldest commits until there is room for so much.
    fn forget_for(&mut self, bytes: usize) {
        while self.bytes + bytes > self.rarely.limit_bytes
            && let Some(commit) = self.pop()
        {
            let forgotten = &mut self.rarely.forgotten;
            match &commit.left {
                Left::Brief(brief) => forgotten.add(commit.lsn, [brief.table()], brief.counts()),
                Left::Full { writes, .. } if writes.is_everything() => forgotten.add_all(commit.lsn),
                Left::Full { writes, .. } => {
                    forgotten.add(commit.lsn, writes.keys().tables(), writes.counts());
                }
            }
        }
    }

    /// The commits after `since` to be checked; an overlap if one of those that were forgotten may have written what was read.
    pub(crate) fn after(&self, reads: &PreparedReads<'_>, since: Lsn) -> Result<Later, Overlap> {
        self.check_forgotten(reads, since)?;
        let commits = self.unseen(reads, since).cloned().collect();
        Ok(Later { seen_up_to: self.newest.max(since), commits })
    }

    /// The commits after `since` that wrote to tables like those that were read, the newest first: who looks back from there to the first
    /// that is seen asks for no other memory than that of what is not.
    fn unseen(&self, reads: &PreparedReads<'_>, since: Lsn) -> impl Iterator<Item = &Commit> {
        let tables = reads.table_range();
        // Every transaction has read in the catalog, and many nowhere else: mostly they need not even look at the newest.
        let may_concern = tables.1 > CATALOG.0 || self.rarely.newest_in_catalog > since;
        let commits = may_concern.then(|| self.commits.iter().rev()).into_iter().flatten();
        let after = commits.take_while(move |commit| commit.lsn > since);
        after.filter(move |commit| !commit.is_elsewhere(tables))
    }

    /// Whether there are more than so many commits after `since` whose writes [`History::check`] would look at, or many that it would pass by.
    pub(crate) fn has_more_after(&self, reads: &PreparedReads<'_>, since: Lsn, commits: usize) -> bool {
        let is_unseen = |commit: &Commit| commit.lsn > since;
        self.commits.iter().rev().nth(LOOKED_AT).is_some_and(is_unseen)
            || self.unseen(reads, since).nth(commits).is_some()
    }

    /// Takes out the commits that nobody will ask for again: all at or below `oldest`, the least snapshot there is. What they wrote goes to
    /// `garbage`, to be dropped where that holds up nobody.
    pub(crate) fn prune(&mut self, oldest: Lsn, garbage: &mut Garbage) {
        while self.commits.front().is_some_and(|commit| commit.lsn <= oldest) {
            if let Some(commit) = self.pop() {
                self.pruned = commit.lsn;
                if let Left::Full { writes, .. } = commit.left {
                    garbage.published.push(writes);
                }
            }
        }
        if self.commits.is_empty() && self.commits.capacity() > LOOKED_AT {
            garbage.commits = mem::take(&mut self.commits);
        }
        self.rarely.forgotten.prune(oldest);
    }

    /// Checks all commits after `since`.
    pub(crate) fn check(&self, reads: &PreparedReads<'_>, since: Lsn) -> Result<(), Overlap> {
        self.check_forgotten(reads, since)?;
        self.unseen(reads, since).find_map(|commit| commit.conflict(reads)).map_or(Ok(()), Err)
    }

    fn check_forgotten(&self, reads: &PreparedReads<'_>, since: Lsn) -> Result<(), Overlap> {
        if let Some(overlap) = self.rarely.forgotten.overlap(reads, since) {
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
        self.bytes -= commit.bytes();
        Some(commit)
    }

    /// Number of tables with a low-water LSN of their own, rows and counts.
    #[cfg(test)]
    pub(super) fn low_water_tables(&self) -> usize {
        self.rarely.forgotten.len()
    }
}

/// The commits after an LSN.
#[derive(Debug)]
pub(crate) struct Later {
    /// No commit up to this LSN is missing: where to go on from.
    pub(crate) seen_up_to: Lsn,
    commits: Vec<Commit>,
}

impl Later {
    /// Checks them all.
    pub(crate) fn check(&self, reads: &PreparedReads<'_>) -> Result<(), Overlap> {
        self.commits.iter().find_map(|commit| commit.conflict(reads)).map_or(Ok(()), Err)
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

    /// Forgets a commit that may have written anything, newer than those before it.
    fn add_all(&mut self, lsn: Lsn) {
        self.begin_or_go_on(lsn);
        self.collapse();
    }

    /// Forgets a commit, newer than those before it: the tables of its keys, and those whose number of rows it changed.
    fn add(&mut self, lsn: Lsn, tables: impl IntoIterator<Item = u32>, counts: &[u32]) {
        self.begin_or_go_on(lsn);
        for table in tables {
            self.rows.insert(table, lsn);
            if self.len() > LOW_WATER_TABLES {
                self.collapse();
                return;
            }
        }
        for &table in counts {
            self.counts.insert(table, lsn);
            if self.len() > LOW_WATER_TABLES {
                self.collapse();
                return;
            }
        }
    }

    fn begin_or_go_on(&mut self, lsn: Lsn) {
        if self.newest == Lsn::NEVER {
            self.oldest = lsn;
        }
        self.newest = lsn;
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
