//! A partition with a log on the simulated disk, for tests of trees.

use std::collections::BTreeMap;
use std::sync::Arc;

use hamal_pager::{Pager, PagerOptions, PartitionId};
use hamal_storage::sim::SimStorage;
use hamal_wal::{Log, LogOptions};

use super::{Decision, PageSet, ROOT, SYSTEM_ROOT, Tree, TreeReport};
use crate::change::Row;
use crate::ids::TxnId;
use crate::journal::{Author, Chain, Journal};
use crate::space::Space;
use crate::timeline::{Hints, Timeline};
use crate::tree::Updated;

pub(crate) const PARTITION: PartitionId = PartitionId(7);
pub(crate) const LOG: LogOptions =
    LogOptions { segment_bytes: 4 << 20, buffer_bytes: 2 << 20, max_bytes: 4 << 30, shelves: 1 };

pub(crate) struct Fixture {
    pub(crate) storage: SimStorage,
    pub(crate) pager: Arc<Pager>,
    pub(crate) journal: Journal,
    pub(crate) timeline: Timeline,
    pub(crate) space: Arc<Space>,
    pub(crate) tree: Tree,
}

impl Fixture {
    /// A new partition in a cache of 1 MiB, or as much as 64 pages need.
    pub(crate) fn new(page_bytes: usize) -> Fixture {
        Fixture::with_cache(page_bytes, (64 * page_bytes as u64).max(1 << 20))
    }

    pub(crate) fn with_cache(page_bytes: usize, cache_bytes: u64) -> Fixture {
        let storage = SimStorage::new(1);
        let log = Arc::new(Log::create(Arc::new(storage.clone()), LOG, 1).unwrap());
        let options = PagerOptions { page_bytes, cache_bytes, database_id: 0xda7a, batch_pages: 16 };
        let pager = Pager::open(Arc::new(storage.clone()), Arc::clone(&log) as _, options).unwrap();
        let hints = Arc::new(Hints::default());
        let timeline = Timeline::new(TxnId(1), BTreeMap::new(), Arc::clone(&hints));
        let journal = Journal::new(log, hints);
        let partition = pager.create_partition(PARTITION).unwrap();
        Tree::format_partition(&journal, &partition).unwrap();
        let space = Space::new(partition);
        space.check_header().unwrap();
        let tree = Tree::new(&space, ROOT);
        Fixture { storage, pager, journal, timeline, space, tree }
    }

    /// Begins a transaction.
    pub(crate) fn begin(&self) -> Chain {
        Chain { entry: self.timeline.begin_unseeing(), partition: PARTITION }
    }

    /// Ends one: its rows are settled as soon as all older ones have ended.
    pub(crate) fn end(&self, chain: &Chain) {
        let promised = chain.entry.lock().promised_bytes;
        self.journal.log.release(promised);
        self.timeline.end(&chain.entry, None);
    }

    pub(crate) fn put(&self, chain: &Chain, key: &[u8], value: &[u8]) {
        let row = Row { stamp: chain.txn(), ghost: false, overflow: false, value };
        let written = self
            .tree
            .update(&self.journal, Author::Transaction(chain), key, value.len(), &mut |_: Option<Row<'_>>| {
                Ok(Decision::Write(row))
            })
            .unwrap();
        assert_eq!(written, Updated::Written);
    }

    /// Whether there was a row to remove.
    pub(crate) fn remove(&self, chain: &Chain, key: &[u8]) -> bool {
        let decide = &mut |row: Option<Row<'_>>| {
            Ok(if row.is_some_and(|row| !row.ghost) { Decision::Remove(chain.txn()) } else { Decision::Keep })
        };
        self.tree.update(&self.journal, Author::Transaction(chain), key, 0, decide).unwrap()
            == Updated::Written
    }

    /// The value, unless it is missing or a ghost.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.tree.get(key, |row| (!row.ghost).then(|| row.value.to_vec())).unwrap().flatten()
    }

    /// Vacuums the whole tree once.
    pub(crate) fn vacuum(&self) {
        let mut at = None;
        loop {
            at = self.tree.vacuum(&self.journal, at.as_deref(), 10).unwrap().next;
            if at.is_none() {
                return;
            }
        }
    }

    /// Proves both trees and the bitmaps sound.
    pub(crate) fn verify(&self) -> TreeReport {
        let mut pages = PageSet::default();
        let report = self.tree.verify(&mut pages, &mut |_, _| Ok(())).unwrap();
        Tree::new(&self.space, SYSTEM_ROOT).verify(&mut pages, &mut |_, _| Ok(())).unwrap();
        self.space
            .check_bitmaps(&|page| pages.contains(page), &mut |fault| {
                Err(fault.into_error(self.space.partition()))
            })
            .unwrap();
        report
    }
}
