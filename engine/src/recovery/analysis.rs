//! What analysis knows: from the records since the last checkpoint's BEGIN, which transactions lost, which pages may miss changes, how many
//! rows each table has. [`super::first_pass`] reads them.
//!
//! I1. A transaction's entry is the merge of the checkpoint's copy and the records seen, by largest LSN (hazard H2): the copy was
//!     taken after BEGIN, so records between BEGIN and the copy may be newer or older than it.
//! I2. A page is in the table with a `rec_lsn` at or below the first record its durable copy lacks (hazard H3), and a
//!     `last_lsn` at or above the last record there is of it, seen or not: only a copy with all of them takes it out.
//! I3. A page is taken ([`Takes`]) when it enters the table, or not at all while it is there: then whoever takes it is shown all records from
//!     its `rec_lsn` on, and else redo is.
//! I4. Counts: the checkpoint's, plus the deltas of commits at or after `counts_as_of` (hazard H17).

use std::collections::BTreeMap;

use hamal_pager::space::Geometry;
use hamal_pager::{DirtyPage, PageNo, PartitionId};
use hamal_wal::{Lsn, Resume};
use hashbrown::{HashMap, HashSet};

use super::changes::{Changes, EncodedPart, changes_pages};
use crate::ids::TxnId;
use crate::master::Master;
use crate::record::{ChainImage, Changer, Record, TxnImage};
use crate::report::PassReport;
use crate::{Error, Result};

/// Who redoes pages at once, as analysis meets them.
pub(crate) trait Takes {
    /// Whether it takes this page: from here on it is shown the page's parts.
    fn takes(&mut self, partition: PartitionId, page: PageNo) -> bool;
    /// A part of a page that it has taken.
    fn part(&mut self, at: Place, part: EncodedPart<'_>);
    /// A page that it has taken has left the table: nobody wants what was done to it, unless it takes the page again.
    fn gone(&mut self, partition: PartitionId, page: PageNo);
}

/// Nobody does.
pub(crate) struct Nobody;

impl Takes for Nobody {
    fn takes(&mut self, _: PartitionId, _: PageNo) -> bool {
        false
    }

    fn part(&mut self, _: Place, _: EncodedPart<'_>) {}

    fn gone(&mut self, _: PartitionId, _: PageNo) {}
}

/// Where a part stands in the log: record, and which of its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) lsn: Lsn,
    pub(crate) part: usize,
}

/// Who redoes a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The redo pass.
    Redo,
    /// Whoever has taken it (I3).
    Taker,
    /// It has been redone.
    Done,
}

#[derive(Clone, Copy, Debug)]
struct DirtyEntry {
    rec_lsn: Lsn,
    /// No record that changes the page is newer: the newest seen, or BEGIN for those that analysis does not see.
    last_lsn: Lsn,
    by: By,
}

#[derive(Debug, Default)]
struct Txn {
    first_lsn: Lsn,
    /// Updates seen.
    updates: u64,
    /// What compensation of all it did takes in the log at most, bytes; saturating: it may be unknown.
    undo_bytes: u64,
    /// Partition -> (`last_lsn`, `undo_next_lsn`).
    chains: BTreeMap<PartitionId, (Lsn, Lsn)>,
}

/// Most that the record of a chain's end takes in the log, bytes.
const END_BYTES: u64 = 64;

/// What undo has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct UndoSize {
    /// Records seen: an estimate.
    pub(crate) records: u64,
    /// Log that it takes at most, bytes; [`u64::MAX`]: unknown.
    pub(crate) bytes: u64,
}

/// What analysis found.
#[derive(Debug)]
pub(crate) struct Analysis {
    /// Pages that one bitmap has.
    coverage: u32,
    transactions: BTreeMap<TxnId, Txn>,
    /// Committed or wholly undone since BEGIN: a checkpoint's copy of them is out of date.
    finished: HashSet<TxnId>,
    /// Chains undone since BEGIN, likewise.
    ended: HashSet<(TxnId, PartitionId)>,
    dirty: HashMap<(PartitionId, PageNo), DirtyEntry>,
    /// Pages that have been written back since BEGIN, at these LSNs or later, as far as they are not free.
    written: HashMap<(PartitionId, PageNo), Lsn>,
    /// Partitions that are gone for ever (hazard H11).
    pub(crate) deleted: HashSet<PartitionId>,
    counts: BTreeMap<u32, u64>,
    pending_counts: BTreeMap<u32, u64>,
    counts_as_of: Lsn,
    deltas: Vec<(Lsn, u32, i64)>,
    /// The checkpoint's END has been seen.
    pub(super) complete: bool,
    pub(crate) next_txn: TxnId,
    pub(crate) next_id: u32,
    pub(crate) winners: u64,
    /// Nothing follows the checkpoint.
    pub(crate) quiet: bool,
    pub(crate) torn: bool,
    pub(crate) resume: Resume,
    pub(crate) report: PassReport,
}

pub(super) fn damaged(lsn: Lsn, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::corrupt("the log", lsn.0, expected, found)
}

impl Analysis {
    /// Nothing seen yet.
    pub(crate) fn new(master: &Master) -> Analysis {
        Analysis {
            coverage: Geometry::new(master.page_bytes).coverage(),
            transactions: BTreeMap::new(),
            finished: HashSet::new(),
            ended: HashSet::new(),
            dirty: HashMap::new(),
            written: HashMap::new(),
            deleted: HashSet::new(),
            counts: BTreeMap::new(),
            pending_counts: BTreeMap::new(),
            counts_as_of: Lsn::NEVER,
            deltas: Vec::new(),
            complete: false,
            next_txn: TxnId(1),
            next_id: 1,
            winners: 0,
            quiet: true,
            torn: false,
            resume: Resume {
                end: master.checkpoint_lsn,
                attested: master.attested,
                incarnation: master.incarnation,
            },
            report: PassReport::default(),
        }
    }

    /// Lets the processor fetch what the table has of these pages. They lie all over it, so that each lookup waits for memory; these wait
    /// together.
    pub(crate) fn prefetch(&self, pages: impl Iterator<Item = (PartitionId, PageNo)>) {
        std::hint::black_box(pages.filter(|page| self.dirty.contains_key(page)).count());
    }

    /// A record at or behind BEGIN that changes pages.
    pub(crate) fn see_changes(
        &mut self,
        lsn: Lsn,
        changes: Changes<'_>,
        taker: &mut impl Takes,
    ) -> Result<()> {
        let mut first = None;
        for (index, part) in changes.parts().enumerate() {
            first.get_or_insert(part.partition);
            if self.see_part(lsn, (part.partition, part.page), part.change.cleared_bits(), taker) {
                taker.part(Place { lsn, part: index }, part);
            }
        }
        let (txn, undo_next_lsn) = match changes.changer {
            Changer::Update { txn, .. } => (txn, lsn),
            Changer::Compensation { txn, undo_next_lsn, .. } => (txn, undo_next_lsn),
            Changer::Structure => {
                self.quiet = false;
                return Ok(());
            }
        };
        let Some(partition) = first else {
            return Err(damaged(lsn, "at least one page in a transaction's record", "none"));
        };
        self.next_txn = self.next_txn.max(TxnId(txn.0.saturating_add(1)));
        self.quiet = false;
        // Almost always it is known, and so is its chain.
        let entry = match self.transactions.get_mut(&txn) {
            Some(entry) => entry,
            None => self.transactions.entry(txn).or_default(),
        };
        if entry.first_lsn == Lsn::NEVER {
            entry.first_lsn = lsn;
        }
        if let Changer::Update { .. } = changes.changer {
            entry.updates += 1;
            // The old value for the new one; beside these a compensation has a head that is longer by 8 bytes.
            entry.undo_bytes = entry.undo_bytes.saturating_add(changes.log_bytes() + 8);
        }
        match entry.chains.get_mut(&partition) {
            Some(chain) => *chain = (lsn, undo_next_lsn),
            None => drop(entry.chains.insert(partition, (lsn, undo_next_lsn))),
        }
        Ok(())
    }

    /// A record at or behind BEGIN changes this page, and if that is a bitmap clears these bits: the first, and how many. Whether it is taken.
    pub(crate) fn see_part(
        &mut self,
        lsn: Lsn,
        (partition, page): (PartitionId, PageNo),
        cleared: Option<(u32, u32)>,
        taker: &mut impl Takes,
    ) -> bool {
        self.next_id = self.next_id.max(partition.0.saturating_add(1));
        if self.deleted.contains(&partition) {
            return false;
        }
        if let Some((first, count)) = cleared {
            self.free(partition, page, first, count, taker);
        }
        let entry = self.dirty.entry((partition, page)).or_insert_with(|| {
            let by = if taker.takes(partition, page) { By::Taker } else { By::Redo };
            DirtyEntry { rec_lsn: lsn, last_lsn: lsn, by }
        });
        entry.last_lsn = lsn;
        entry.by == By::Taker
    }

    /// Any other record at or behind BEGIN. `Corrupt` if it does not belong there.
    pub(crate) fn see(
        &mut self,
        lsn: Lsn,
        begin: Lsn,
        master: &Master,
        record: &Record<'_>,
        taker: &mut impl Takes,
    ) -> Result<()> {
        self.next_txn = self.next_txn.max(TxnId(record.txn().0.saturating_add(1)));
        match record {
            // Others see to it that there is none.
            Record::Update { .. } | Record::Compensation { .. } | Record::Structure { .. } => {
                return Err(changes_pages(lsn, record));
            }
            Record::Abort { .. } => self.quiet = false,
            Record::Commit { txn, counts, .. } => {
                self.quiet = false;
                self.transactions.remove(txn);
                self.finished.insert(*txn);
                self.winners += 1;
                self.deltas.extend(counts.iter().map(|(table, delta)| (lsn, *table, *delta)));
            }
            Record::End { txn, partition } => {
                self.quiet = false;
                self.ended.insert((*txn, *partition));
                if let Some(t) = self.transactions.get_mut(txn) {
                    t.chains.remove(partition);
                    if t.chains.is_empty() {
                        self.transactions.remove(txn);
                    }
                }
            }
            // Said of the files that a backup was taken of, when these here were copied already.
            Record::PagesClean { .. } if lsn < master.restored_to => {}
            Record::PagesClean { pages } => {
                for (partition, page, clean_lsn) in pages {
                    self.clean(*partition, *page, *clean_lsn, taker);
                }
            }
            Record::BeginCheckpoint { database_id } => {
                if *database_id != master.database_id {
                    return Err(damaged(
                        lsn,
                        format!("database {:#x}", master.database_id),
                        format!("{database_id:#x}"),
                    ));
                }
                self.pending_counts.clear();
                self.quiet &= lsn == begin;
            }
            Record::CheckpointPages { partition, pages } => {
                self.next_id = self.next_id.max(partition.0.saturating_add(1));
                for (page, rec_lsn) in pages {
                    if self.deleted.contains(partition) {
                        continue;
                    }
                    // Between `rec_lsn` and BEGIN there may be any number of records that change it.
                    let entry = DirtyEntry { rec_lsn: *rec_lsn, last_lsn: begin.max(*rec_lsn), by: By::Redo };
                    let known = self.dirty.entry((*partition, *page)).or_insert(entry);
                    known.rec_lsn = known.rec_lsn.min(*rec_lsn);
                }
            }
            Record::CheckpointTransactions { transactions } => {
                for image in transactions {
                    self.merge(image);
                }
            }
            Record::CheckpointCounts { counts } => self.pending_counts.extend(counts.iter().copied()),
            Record::EndCheckpoint { begin_lsn, counts_as_of, next_txn, next_id } => {
                self.complete |= *begin_lsn == begin;
                self.counts = std::mem::take(&mut self.pending_counts);
                self.counts_as_of = *counts_as_of;
                self.next_txn = self.next_txn.max(*next_txn);
                self.next_id = self.next_id.max(*next_id);
            }
            Record::PartitionDeleted { partition } => {
                self.quiet = false;
                self.next_id = self.next_id.max(partition.0.saturating_add(1));
                self.deleted.insert(*partition);
                self.dirty.retain(|(p, _), _| p != partition);
                self.written.retain(|(p, _), _| p != partition);
            }
        }
        Ok(())
    }

    /// A checkpoint's copy of a transaction (I1).
    fn merge(&mut self, image: &TxnImage) {
        self.next_txn = self.next_txn.max(TxnId(image.txn.0.saturating_add(1)));
        if self.finished.contains(&image.txn) {
            return;
        }
        let chains: Vec<&ChainImage> =
            image.chains.iter().filter(|c| !self.ended.contains(&(image.txn, c.partition))).collect();
        if chains.is_empty() {
            return;
        }
        let entry = self.transactions.entry(image.txn).or_default();
        if entry.first_lsn == Lsn::NEVER || image.first_lsn < entry.first_lsn {
            entry.first_lsn = image.first_lsn;
        }
        // Between BEGIN and the copy there may be updates that both tell of.
        entry.undo_bytes = entry.undo_bytes.saturating_add(image.undo_bytes);
        for c in chains {
            let known = entry.chains.entry(c.partition).or_default();
            if known.0 < c.last_lsn {
                *known = (c.last_lsn, c.undo_next_lsn);
            }
        }
    }

    /// The page's file holds everything up to `clean_lsn`.
    fn clean(&mut self, partition: PartitionId, page: PageNo, clean_lsn: Lsn, taker: &mut impl Takes) {
        let written = self.written.entry((partition, page)).or_insert(clean_lsn);
        *written = clean_lsn.max(*written);
        if let Some(entry) = self.dirty.get_mut(&(partition, page)) {
            if entry.last_lsn <= clean_lsn {
                self.remove(partition, page, taker);
            } else {
                // Where redo starts must be a record, and the page has that one.
                entry.rec_lsn = entry.rec_lsn.max(clean_lsn);
            }
        }
    }

    /// Pages were freed: nobody wants what they miss, and whoever uses them next begins with a blind record (hazard H21). A checkpoint
    /// does not list them either, from the moment they are freed.
    fn free(
        &mut self,
        partition: PartitionId,
        bitmap: PageNo,
        first: u32,
        count: u32,
        taker: &mut impl Takes,
    ) {
        let base = bitmap.0.saturating_sub(1);
        for bit in first..first.saturating_add(count).min(self.coverage) {
            let page = PageNo(base.saturating_add(bit));
            self.remove(partition, page, taker);
            self.written.remove(&(partition, page));
        }
    }

    fn remove(&mut self, partition: PartitionId, page: PageNo, taker: &mut impl Takes) {
        let removed = self.dirty.remove(&(partition, page));
        if removed.is_some_and(|entry| entry.by == By::Taker) {
            taker.gone(partition, page);
        }
    }

    /// A page was put back from a copy with this page LSN: it is replayed from there (hazard H13). `false` if its partition is gone.
    pub(crate) fn restore(&mut self, partition: PartitionId, page: PageNo, page_lsn: Lsn) -> bool {
        if self.deleted.contains(&partition) {
            return false;
        }
        // The page may have been clean, and its records be anywhere in the log.
        let entry = DirtyEntry { rec_lsn: page_lsn, last_lsn: self.resume.end, by: By::Redo };
        let known = self.dirty.entry((partition, page)).or_insert(entry);
        known.rec_lsn = known.rec_lsn.min(page_lsn);
        true
    }

    /// Pages that were on the disk, durably, at these LSNs or later: of partitions that are there.
    pub(crate) fn written(&self) -> impl Iterator<Item = (PartitionId, PageNo, Lsn)> + '_ {
        self.written.iter().map(|((partition, page), lsn)| (*partition, *page, *lsn))
    }

    /// Leaves a partition out: recovery has nothing to do with it.
    pub(crate) fn leave_out(&mut self, partition: PartitionId) {
        self.keep_only(&|p| p != partition);
    }

    /// Leaves all other partitions out.
    pub(crate) fn keep_only(&mut self, is_kept: &dyn Fn(PartitionId) -> bool) {
        self.dirty.retain(|(p, _), _| is_kept(*p));
        self.written.retain(|(p, _), _| is_kept(*p));
        for txn in self.transactions.values_mut() {
            txn.chains.retain(|p, _| is_kept(*p));
        }
        self.transactions.retain(|_, txn| !txn.chains.is_empty());
    }

    /// Adds losers that the checkpoint could not list.
    pub(crate) fn add_losers(&mut self, images: &[TxnImage]) {
        for image in images {
            self.merge(image);
        }
    }

    /// The pages of a partition that may miss changes.
    pub(crate) fn dirty_pages_of(&self, partition: PartitionId) -> impl Iterator<Item = DirtyPage> + '_ {
        let pages = self.dirty.iter().filter(move |((p, _), _)| *p == partition);
        pages.map(|((partition, page), entry)| DirtyPage {
            partition: *partition,
            page: *page,
            rec_lsn: entry.rec_lsn,
        })
    }

    /// Offers all pages in the table, each with what is behind its `rec_lsn`; those that have missed changes the longest first. Returns where
    /// the first record is that whoever takes them has to be shown; `None`: none is taken.
    pub(crate) fn offer(&mut self, taker: &mut impl Takes) -> Option<Lsn> {
        let mut pages: Vec<_> =
            self.dirty.iter_mut().map(|(page, entry)| (entry.rec_lsn, *page, entry)).collect();
        // Not as they happen to lie in the table: a run is a function of its seed.
        pages.sort_unstable_by_key(|(rec_lsn, page, _)| (*rec_lsn, *page));
        let mut first = None;
        for (rec_lsn, (partition, page), entry) in pages {
            if taker.takes(partition, page) {
                entry.by = By::Taker;
                first.get_or_insert(rec_lsn);
            }
        }
        first
    }

    /// What was written before the pages were offered.
    pub(crate) fn see_again(&self, lsn: Lsn, changes: Changes<'_>, taker: &mut impl Takes) {
        for (index, part) in changes.parts().enumerate() {
            let entry = self.dirty.get(&(part.partition, part.page));
            if entry.is_some_and(|entry| entry.by == By::Taker && entry.rec_lsn <= lsn) {
                taker.part(Place { lsn, part: index }, part);
            }
        }
    }

    /// Whoever has taken pages tells which it has redone; those that it has not are redo's.
    pub(crate) fn settle_taken(&mut self, is_redone: impl Fn(PartitionId, PageNo) -> bool) {
        for ((partition, page), entry) in self.dirty.iter_mut().filter(|(_, entry)| entry.by == By::Taker) {
            entry.by = if is_redone(*partition, *page) { By::Done } else { By::Redo };
        }
    }

    /// Whether whoever had taken the page has redone it.
    pub(crate) fn is_redone(&self, partition: PartitionId, page: PageNo) -> bool {
        self.dirty.get(&(partition, page)).is_some_and(|entry| entry.by == By::Done)
    }

    /// The oldest record that a page may miss; `None` if no page can miss anything.
    pub(crate) fn oldest_rec_lsn(&self) -> Option<Lsn> {
        self.dirty.values().map(|d| d.rec_lsn).min()
    }

    /// The pages that are not redone yet.
    fn left(&self) -> impl Iterator<Item = (&(PartitionId, PageNo), &DirtyEntry)> {
        self.dirty.iter().filter(|(_, entry)| entry.by != By::Done)
    }

    /// Where redo starts; `None` if there is nothing to redo.
    pub(crate) fn redo_lsn(&self) -> Option<Lsn> {
        self.left().map(|(_, entry)| entry.rec_lsn).min()
    }

    /// The page's `rec_lsn`, if redo has to mind it.
    pub(crate) fn rec_lsn(&self, partition: PartitionId, page: PageNo) -> Option<Lsn> {
        let entry = self.dirty.get(&(partition, page)).filter(|entry| entry.by != By::Done);
        entry.map(|entry| entry.rec_lsn)
    }

    /// How many pages may have missed changes, those included that are redone.
    pub(crate) fn dirty_pages(&self) -> u64 {
        self.dirty.len() as u64
    }

    /// How many pages are left to redo.
    pub(crate) fn left_pages(&self) -> u64 {
        self.left().count() as u64
    }

    /// The partitions of the pages left to redo, each with an LSN behind which there is no record of any of these pages.
    pub(crate) fn last_lsns(&self) -> BTreeMap<PartitionId, Lsn> {
        let mut partitions = BTreeMap::new();
        for ((partition, _), entry) in self.left() {
            let last = partitions.entry(*partition).or_insert(entry.last_lsn);
            *last = entry.last_lsn.max(*last);
        }
        partitions
    }

    /// The partition of every page that may miss changes.
    pub(crate) fn dirty_partitions(&self) -> impl Iterator<Item = PartitionId> + '_ {
        self.dirty.keys().map(|(partition, _)| *partition)
    }

    /// Updates seen of transactions that have to be rolled back: an estimate of what undo has to do.
    pub(crate) fn loser_records(&self) -> u64 {
        self.transactions.values().map(|txn| txn.updates).sum()
    }

    /// What there is to undo of a transaction.
    pub(crate) fn undo_size(&self, id: TxnId) -> UndoSize {
        let Some(txn) = self.transactions.get(&id) else { return UndoSize::default() };
        // Each chain has a record of its end.
        let ends = txn.chains.len() as u64 * END_BYTES;
        UndoSize { records: txn.updates, bytes: txn.undo_bytes.saturating_add(ends) }
    }

    /// Transactions to roll back, oldest first.
    pub(crate) fn losers(&self) -> Vec<TxnImage> {
        self.transactions
            .iter()
            .map(|(txn, t)| TxnImage {
                txn: *txn,
                first_lsn: t.first_lsn,
                undo_bytes: t.undo_bytes,
                chains: t
                    .chains
                    .iter()
                    .map(|(partition, (last_lsn, undo_next_lsn))| ChainImage {
                        partition: *partition,
                        last_lsn: *last_lsn,
                        undo_next_lsn: *undo_next_lsn,
                    })
                    .collect(),
            })
            .collect()
    }

    /// Rows of each table, every commit included (I4); also of tables that are no more, which only the catalog tells.
    pub(crate) fn row_counts(&self) -> BTreeMap<u32, u64> {
        let mut counts = self.counts.clone();
        for (lsn, table, delta) in &self.deltas {
            if *lsn >= self.counts_as_of {
                let count = counts.entry(*table).or_default();
                *count = count.saturating_add_signed(*delta);
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests;
