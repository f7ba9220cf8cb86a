//! The page cache of one database (interface).

use std::fmt::Debug;
use std::sync::Arc;

use hamal_storage::{Result, Storage};
use hamal_wal::{Log, Lsn};

use crate::{PageNo, Partition, PartitionId};

/// The one thing the pager asks of the log.
pub trait WriteAhead: Debug + Send + Sync {
    /// Returns when the record at `lsn`, and everything before it, is durable.
    fn make_durable(&self, lsn: Lsn) -> Result<()>;
}

impl WriteAhead for Log {
    fn make_durable(&self, lsn: Lsn) -> Result<()> {
        Log::make_durable(self, lsn)
    }
}

/// How a page cache is laid out and bounded.
#[derive(Clone, Debug)]
pub struct PagerOptions {
    /// Page size, bytes: 4096, 8192, 16384, 32768 or 65536.
    pub page_bytes: usize,
    /// Most bytes of pages kept in memory, over all partitions; held to. At least 1 MiB... checked at open.
    pub cache_bytes: u64,
    /// Written into every page and checked on every load.
    pub database_id: u64,
    /// Pages per doublewrite batch, at most.
    pub batch_pages: usize,
}

/// A page whose newest bytes are not durable in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyPage {
    /// Which partition.
    pub partition: PartitionId,
    /// Which page.
    pub page: PageNo,
    /// No record below this LSN is missing from the page's durable copy.
    pub rec_lsn: Lsn,
}

/// A page that [`Pager::restore_torn_pages`] put back from the doublewrite area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoredPage {
    /// Which partition.
    pub partition: PartitionId,
    /// Which page.
    pub page: PageNo,
    /// The copy's page LSN: redo of this page must start here (hazard H13).
    pub page_lsn: Lsn,
}

/// Counters since open.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct PagerStats {
    /// Frames in use, bytes.
    pub resident_bytes: u64,
    /// Fixes that had to read the file.
    pub misses: u64,
    /// Pages evicted.
    pub evictions: u64,
    /// Dirty pages written back.
    pub pages_written: u64,
    /// Doublewrite batches.
    pub batches: u64,
    /// Dirty pages now.
    pub dirty_pages: u64,
}

/// The page cache of one database: regions of all partitions, the frame budget, the doublewrite area.
#[derive(Debug)]
pub struct Pager {}

#[expect(unused_variables, clippy::needless_pass_by_value, reason = "interface")]
impl Pager {
    /// Opens the cache over a database directory; makes `doublewrite` and `part/` if missing (and syncs the
    /// directories). Refuses (`Invalid`) a `cache_bytes` too small, naming the minimum.
    pub fn open(
        storage: Arc<dyn Storage>,
        log: Arc<dyn WriteAhead>,
        options: PagerOptions,
    ) -> Result<Arc<Pager>> {
        unimplemented!()
    }

    /// Page size, bytes.
    pub fn page_bytes(&self) -> usize {
        unimplemented!()
    }

    /// Makes a new partition's file (empty, durable name). An orphan file of that name is replaced.
    pub fn create_partition(self: &Arc<Self>, id: PartitionId) -> Result<Arc<Partition>> {
        unimplemented!()
    }

    /// Opens a partition's existing file. `Io` with `NotFound` if there is none.
    pub fn open_partition(self: &Arc<Self>, id: PartitionId) -> Result<Arc<Partition>> {
        unimplemented!()
    }

    /// Forgets a partition: its pages leave the cache unwritten, its dirty entries vanish. The caller guarantees that
    /// nobody uses it any more. `remove_file` also unlinks the file and syncs the directory.
    pub fn close_partition(&self, id: PartitionId, remove_file: bool) -> Result<()> {
        unimplemented!()
    }

    /// Before redo: puts back from the doublewrite area the pages whose copy in place is torn. A copy counts if
    /// it is valid, of this database, the latest valid one for its page, and its page LSN is at least `oldest_lsn`
    /// and below `end_lsn`. Written in place and synced before this returns.
    pub fn restore_torn_pages(&self, oldest_lsn: Lsn, end_lsn: Lsn) -> Result<Vec<RestoredPage>> {
        unimplemented!()
    }

    /// The dirty page table for a checkpoint: the `rec_lsn` arrays first, the in-flight batches second, the minimum of
    /// both (hazard H3). The caller has reserved its BEGIN record before.
    pub fn dirty_pages(&self) -> Vec<DirtyPage> {
        unimplemented!()
    }

    /// Writes back up to `max_pages` dirty pages whose `rec_lsn` is below `below`, oldest first, in doublewrite
    /// batches. Returns how many became clean. The caller holds no latch.
    pub fn write_back(&self, below: Lsn, max_pages: usize) -> Result<usize> {
        unimplemented!()
    }

    /// The smallest `rec_lsn` of all dirty pages, if any. O(dirty pages).
    pub fn oldest_rec_lsn(&self) -> Option<Lsn> {
        unimplemented!()
    }

    /// Counters since open.
    pub fn stats(&self) -> PagerStats {
        unimplemented!()
    }
}
