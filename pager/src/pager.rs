//! The page cache of one database: what the engine opens, and asks for partitions, write-back and checkpoints.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hamal_storage::{Error, File, Result, Storage};
use hamal_wal::{Log, Lsn};

use crate::core::{Core, Parts};
use crate::doublewrite::{self, Doublewrite, MIN_SLOTS};
use crate::heal::Healer;
use crate::partition::file_name;
use crate::region::HugePages;
use crate::{PageNo, Partition, PartitionId};

/// Where the partitions' files are.
const DIRECTORY: &str = "part";
/// The least a cache may hold: this many pages and this many bytes.
const MIN_PAGES: u64 = 64;
const MIN_BYTES: u64 = 1 << 20;

/// The one thing the pager asks of the log.
pub trait WriteAhead: Debug + Send + Sync {
    /// Returns when the record at `lsn`, and everything before it, is durable.
    fn make_durable(&self, lsn: Lsn) -> Result<()>;

    /// These pages' files now hold, durably, at least what the page had at the LSN beside it. Called once a batch is in place; the
    /// caller holds no latch. Whoever keeps a log may note it there, to spare redo the pages; nothing depends on it.
    fn pages_written(&self, _pages: &[WrittenPage]) {}
}

/// A page that has just been written back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenPage {
    /// Which partition.
    pub partition: PartitionId,
    /// Which page.
    pub page: PageNo,
    /// The LSN of the copy that was written.
    pub page_lsn: Lsn,
    /// Its `max_txn`.
    pub max_txn: u64,
}

impl WriteAhead for Log {
    fn make_durable(&self, lsn: Lsn) -> Result<()> {
        Log::make_durable(self, lsn)
    }
}

/// How a page cache is laid out and bounded. More fields may come: build it as
/// `PagerOptions { page_bytes, ..Default::default() }`.
#[derive(Clone, Debug)]
pub struct PagerOptions {
    /// Page size, bytes: 4096, 8192, 16384, 32768 or 65536. Default 8192.
    pub page_bytes: usize,
    /// Most bytes of pages kept in memory, over all partitions, copies on their way to the disk included; held to. At
    /// least 1 MiB and 64 pages, which is checked at open. Default 64 MiB.
    pub cache_bytes: u64,
    /// Written into every page and checked on every load. Default 0.
    pub database_id: u64,
    /// Pages per doublewrite batch, at most: 1 to 4096. A small cache makes smaller batches. Default 64.
    pub batch_pages: usize,
}

impl Default for PagerOptions {
    fn default() -> Self {
        PagerOptions { page_bytes: 8192, cache_bytes: 64 << 20, database_id: 0, batch_pages: 64 }
    }
}

impl PagerOptions {
    fn check(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::Invalid(message));
        if !matches!(self.page_bytes, 4096 | 8192 | 16384 | 32768 | 65536) {
            let bytes = self.page_bytes;
            return invalid(format!("a page of {bytes} bytes: it must be 4096, 8192, 16384, 32768 or 65536"));
        }
        let system = rustix::param::page_size();
        if !self.page_bytes.is_multiple_of(system) {
            let bytes = self.page_bytes;
            return invalid(format!(
                "a page of {bytes} bytes is smaller than the system's, which has {system}"
            ));
        }
        if !(1..=doublewrite::MAX_PAGES).contains(&self.batch_pages) {
            let most = doublewrite::MAX_PAGES;
            return invalid(format!("batches of {} pages: it must be 1 to {most}", self.batch_pages));
        }
        let minimum = MIN_BYTES.max(MIN_PAGES * self.page_bytes as u64);
        if self.cache_bytes < minimum {
            return invalid(format!(
                "a cache of {} bytes is too small: with pages of {} bytes it must have at least {minimum}",
                self.cache_bytes, self.page_bytes
            ));
        }
        Ok(())
    }

    /// Makes what the page cache needs on the disk, if it is missing.
    fn prepare(&self, storage: &dyn Storage) -> Result<Doublewrite> {
        let has_directory = storage.exists(DIRECTORY).map_err(|e| Error::io("look for", DIRECTORY, e))?;
        if !has_directory {
            storage.create_directory(DIRECTORY).map_err(|e| Error::io("create", DIRECTORY, e))?;
            storage.sync_directory("").map_err(|e| Error::io("sync", "the database directory", e))?;
        }
        Doublewrite::open(storage, self.area_bytes())
    }

    /// The doublewrite area's size, bytes.
    fn area_bytes(&self) -> usize {
        self.batch_pages.max(MIN_SLOTS) * self.page_bytes
    }

    /// How many pages fit, and how many of a batch's copies: both come out of the budget, the copies at most an eighth.
    fn frames_and_batch_pages(&self) -> (u32, usize) {
        let pages = (self.cache_bytes / self.page_bytes as u64).min(u64::from(u32::MAX)) as u32;
        let batch_pages = self.batch_pages.min(pages as usize / 8);
        (pages - batch_pages as u32, batch_pages)
    }
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

/// What [`Pager::restore_torn_pages`] does for a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mending {
    /// Nothing: its file is left alone.
    None,
    /// What it can. A file that the system refuses to open or to read, twice, is left as it is: whoever uses it will meet that too.
    IfReadable,
    /// Everything, or it fails.
    Must,
}

/// What [`Pager::restore_torn_pages`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TornPages {
    /// Pages put back.
    pub restored: Vec<RestoredPage>,
    /// Pages with a copy in the area that are damaged in place and were not put back: to be read in, so that they are rebuilt while that
    /// copy is there.
    pub damaged: Vec<(PartitionId, PageNo)>,
}

/// Counters since open.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct PagerStats {
    /// Pages in memory, or on their way in or out, bytes.
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
    /// Pages found damaged, stale, misplaced or missing.
    pub damaged: u64,
    /// Of these, rebuilt and written again.
    pub healed: u64,
    /// Attempts to rebuild a page that failed.
    pub unhealed: u64,
}

/// The page cache of one database: regions of all partitions, the frame budget, the doublewrite area.
#[derive(Debug)]
pub struct Pager {
    pub(crate) core: Arc<Core>,
}

impl Pager {
    /// Opens the cache over a database directory; makes `doublewrite` and `part/` if missing (and syncs the
    /// directories). Refuses (`Invalid`) a `cache_bytes` too small, naming the minimum.
    #[expect(clippy::needless_pass_by_value, reason = "options are given, not lent")]
    pub fn open(
        storage: Arc<dyn Storage>,
        log: Arc<dyn WriteAhead>,
        options: PagerOptions,
    ) -> Result<Arc<Pager>> {
        options.check()?;
        let doublewrite = options.prepare(&*storage)?;
        let (frames, batch_pages) = options.frames_and_batch_pages();
        let (page_bytes, database_id) = (options.page_bytes, options.database_id);
        let core =
            Core::new(Parts { storage, log, page_bytes, database_id, batch_pages, frames, doublewrite });
        Ok(Arc::new(Pager { core: Arc::new(core) }))
    }

    /// Makes what [`Pager::open`] would make, durable.
    pub fn prepare(storage: &dyn Storage, options: &PagerOptions) -> Result<()> {
        options.prepare(storage).map(|_| ())
    }

    /// Whether [`Pager::open`] would find all that it needs, and so change nothing on the disk.
    pub fn is_prepared(storage: &dyn Storage, options: &PagerOptions) -> Result<bool> {
        let has_directory = storage.exists(DIRECTORY).map_err(|e| Error::io("look for", DIRECTORY, e))?;
        Ok(has_directory && Doublewrite::is_prepared(storage, options.area_bytes())?)
    }

    /// Page size, bytes.
    pub fn page_bytes(&self) -> usize {
        self.core.page_bytes
    }

    /// How many pages there is memory for.
    pub fn capacity_pages(&self) -> usize {
        self.core.frames.len()
    }

    /// When to use transparent huge pages; counts for what is mapped from now on, so call it right after `open`.
    pub fn set_huge_pages(&self, huge_pages: HugePages) {
        self.core.space.lock().huge_pages = huge_pages;
    }

    /// Makes a new partition's file (empty, durable name). An orphan file of that name is replaced.
    pub fn create_partition(self: &Arc<Self>, id: PartitionId) -> Result<Arc<Partition>> {
        self.core.check_closed(id)?;
        let (name, storage) = (file_name(id), &self.core.storage);
        if storage.exists(&name).map_err(|e| Error::io("look for", &name, e))? {
            storage.remove(&name).map_err(|e| Error::io("remove", &name, e))?;
        }
        let file = storage.create(&name).map_err(|e| Error::io("create", &name, e))?;
        self.sync_directory()?;
        self.register(id, file)
    }

    /// Opens a partition's existing file. `Io` with `NotFound` if there is none.
    pub fn open_partition(self: &Arc<Self>, id: PartitionId) -> Result<Arc<Partition>> {
        self.core.check_closed(id)?;
        let name = file_name(id);
        let file = self.core.storage.open(&name).map_err(|e| Error::io("open", &name, e))?;
        self.register(id, file)
    }

    /// Opens a partition whose file is not yet under its name.
    pub fn adopt_partition(self: &Arc<Self>, id: PartitionId, file: Arc<dyn File>) -> Result<Arc<Partition>> {
        self.register(id, file)
    }

    /// A partition that stands for one that cannot be used: whatever is asked of its pages answers `Offline`. It is not open, and another
    /// of its id can be.
    pub fn offline_partition(&self, id: PartitionId) -> Result<Arc<Partition>> {
        Partition::offline(id, Arc::clone(&self.core))
    }

    /// Ends the use of an open partition, whoever is using it: when this returns nobody changes its pages any more, and none is read in.
    /// Those in memory can still be read; until [`Pager::remove_sealed`] they are written back. Returns its dirty pages. The caller holds
    /// no latch and no epoch guard.
    pub fn seal_partition(&self, id: PartitionId) -> Vec<DirtyPage> {
        let Some(partition) = self.core.partitions().get(&id).cloned() else { return Vec::new() };
        partition.seal();
        self.core.wait_for_latches(&partition);
        let mut dirty = self.dirty_pages();
        dirty.retain(|page| page.partition == id);
        dirty
    }

    /// Forgets a partition that is sealed: its pages leave the cache unwritten. Others may still have it, and get `Offline` from it.
    pub fn remove_sealed(&self, id: PartitionId) {
        let sealed = self.core.change_partitions(|open| match open.entry(id) {
            Entry::Occupied(entry) if entry.get().is_sealed() => Some(entry.remove()),
            _ => None,
        });
        if let Some(partition) = sealed {
            self.core.empty_partition(&partition);
        }
    }

    /// The open partitions whose files are not there any more as they were opened, or written to since, and what is wrong. O(partitions).
    pub fn misplaced_files(&self) -> Result<Vec<(PartitionId, &'static str)>> {
        let mut misplaced = Vec::new();
        for (id, partition) in self.core.partitions().iter().filter(|(_, partition)| !partition.is_sealed()) {
            misplaced.extend(partition.misplacement()?.map(|what| (*id, what)));
        }
        Ok(misplaced)
    }

    /// Writes back every dirty page of one partition, which nobody changes meanwhile.
    pub fn write_back_partition(&self, id: PartitionId) -> Result<()> {
        self.core.write_back_partition(id)
    }

    fn register(&self, id: PartitionId, file: Arc<dyn File>) -> Result<Arc<Partition>> {
        if id.0 == u32::MAX {
            return Err(Error::Invalid(format!("{id} is no partition id")));
        }
        let partition = Partition::new(id, file, Arc::clone(&self.core))?;
        self.core.change_partitions(|open| match open.entry(id) {
            Entry::Vacant(free) => Ok(Arc::clone(free.insert(partition))),
            Entry::Occupied(_) => Err(Error::Invalid(format!("partition {id} is open already"))),
        })
    }

    fn sync_directory(&self) -> Result<()> {
        self.core.storage.sync_directory(DIRECTORY).map_err(|e| Error::io("sync", DIRECTORY, e))
    }

    /// Forgets a partition: its pages leave the cache unwritten, its dirty entries vanish. The caller guarantees that
    /// nobody uses it any more. `remove_file` also unlinks the file (fine if there is none) and syncs the directory.
    pub fn close_partition(&self, id: PartitionId, remove_file: bool) -> Result<()> {
        if let Some(partition) = self.core.change_partitions(|open| open.remove(&id)) {
            self.core.empty_partition(&partition);
        }
        if remove_file {
            let name = file_name(id);
            match self.core.storage.remove(&name) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", name, e)),
                _ => self.sync_directory()?,
            }
        }
        Ok(())
    }

    /// Who rebuilds pages that are damaged, stale or missing when they are read in. Once.
    pub fn set_healer(&self, healer: Arc<dyn Healer>) {
        let _first = self.core.healer.set(healer);
    }

    /// Before redo: puts back from the doublewrite area the pages whose copy in place is torn. A copy counts if
    /// it is valid, of this database, the latest valid one for its page, and its page LSN is at least `oldest_lsn`
    /// and below `end_lsn`. Written in place and synced before this returns. `mending` says how much that matters to each
    /// partition. Only where redo replays the page from the copy's LSN on, as `replays` tells: the others are named, and left as they
    /// are.
    pub fn restore_torn_pages(
        &self,
        oldest_lsn: Lsn,
        end_lsn: Lsn,
        mending: &dyn Fn(PartitionId) -> Mending,
        replays: &dyn Fn(PartitionId, PageNo, Lsn) -> bool,
    ) -> Result<TornPages> {
        self.core.restore_torn_pages(oldest_lsn, end_lsn, mending, replays)
    }

    /// The dirty page table for a checkpoint: the `rec_lsn` arrays first, the in-flight batches second, the minimum of
    /// both (hazard H3). The caller has reserved its BEGIN record before.
    pub fn dirty_pages(&self) -> Vec<DirtyPage> {
        let pages = self.core.dirty.scan(|| {
            let in_slots = self.core.dirty_in_slots(|_| true).into_iter();
            in_slots.map(|(lsn, resident)| ((resident.partition.id(), resident.page), lsn))
        });
        let table = pages.into_iter();
        table.map(|((partition, page), rec_lsn)| DirtyPage { partition, page, rec_lsn }).collect()
    }

    /// Writes back up to `max_pages` dirty pages whose `rec_lsn` is below `below`, oldest first, in doublewrite
    /// batches. Returns how many became clean. The caller holds no latch.
    pub fn write_back(&self, below: Lsn, max_pages: usize) -> Result<usize> {
        self.core.write_back(below, max_pages)
    }

    /// The smallest `rec_lsn` of all dirty pages, if any. O(dirty pages).
    pub fn oldest_rec_lsn(&self) -> Option<Lsn> {
        self.dirty_pages().iter().map(|dirty| dirty.rec_lsn).min()
    }

    /// The cause, once a write or sync of pages has failed.
    pub fn poison(&self) -> Option<String> {
        self.core.poisoned_by()
    }

    /// Counters since open.
    pub fn stats(&self) -> PagerStats {
        let counters = &self.core.counters;
        PagerStats {
            resident_bytes: (self.core.frames.used() * self.core.page_bytes) as u64,
            misses: counters.misses.load(Ordering::Relaxed),
            evictions: counters.evictions.load(Ordering::Relaxed),
            pages_written: counters.pages_written.load(Ordering::Relaxed),
            batches: counters.batches.load(Ordering::Relaxed),
            dirty_pages: self.core.dirty.count(),
            damaged: counters.damaged.load(Ordering::Relaxed),
            healed: counters.healed.load(Ordering::Relaxed),
            unhealed: counters.unhealed.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        // The core and its partitions hold each other.
        self.core.change_partitions(BTreeMap::clear);
        self.core.leaving.lock().clear();
        self.core.batch.lock().clear();
    }
}
