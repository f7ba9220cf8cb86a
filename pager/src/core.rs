//! What the partitions of a cache share: the frame budget, the dirty pages, the doublewrite area, the counters.
//!
//! Locks, each held only for a few instructions but for the first: `batch` (through the I/O of a write-back batch), then
//! any of `space`, `partitions`, `leaving`, the in-flight table, the free slots. None is held while waiting for a latch.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use hamal_storage::{Error, Result, Storage};
use parking_lot::{Condvar, Mutex, RwLock};

use crate::dirty::DirtyPages;
use crate::doublewrite::Doublewrite;
use crate::frames::Frames;
use crate::heal::Healer;
use crate::region::{AddressSpace, Made, Region};
use crate::write_back::Batch;
use crate::{PageNo, Partition, PartitionId, WriteAhead};

/// All open partitions, by id.
pub(crate) type Partitions = BTreeMap<PartitionId, Arc<Partition>>;

/// The shared state of one cache.
pub(crate) struct Core {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) log: Arc<dyn WriteAhead>,
    pub(crate) page_bytes: usize,
    pub(crate) database_id: u64,
    /// Most pages in one write-back or eviction batch.
    pub(crate) batch_pages: usize,
    pub(crate) frames: Frames,
    pub(crate) dirty: DirtyPages,
    pub(crate) doublewrite: Doublewrite,
    pub(crate) batch: Mutex<Batch>,
    pub(crate) leaving: Mutex<Vec<Resident>>,
    pub(crate) loads: Waiters,
    pub(crate) counters: Counters,
    pub(crate) space: Mutex<AddressSpace>,
    /// Replaced as a whole when a partition comes or goes, so that a sweep works on one immutable map.
    partitions: RwLock<Arc<Partitions>>,
    pub(crate) healer: OnceLock<Arc<dyn Healer>>,
    poison: OnceLock<String>,
}

/// A page that is in memory, by name.
#[derive(Clone, Debug)]
pub(crate) struct Resident {
    pub(crate) partition: Arc<Partition>,
    pub(crate) page: PageNo,
}

/// Counters since open.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) misses: AtomicU64,
    pub(crate) evictions: AtomicU64,
    pub(crate) pages_written: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) damaged: AtomicU64,
    pub(crate) healed: AtomicU64,
    pub(crate) unhealed: AtomicU64,
}

/// What `Pager::open` has worked out.
pub(crate) struct Parts {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) log: Arc<dyn WriteAhead>,
    pub(crate) page_bytes: usize,
    pub(crate) database_id: u64,
    pub(crate) batch_pages: usize,
    pub(crate) frames: u32,
    pub(crate) doublewrite: Doublewrite,
}

impl Core {
    pub(crate) fn new(parts: Parts) -> Core {
        Core {
            storage: parts.storage,
            log: parts.log,
            page_bytes: parts.page_bytes,
            database_id: parts.database_id,
            batch_pages: parts.batch_pages,
            frames: Frames::new(parts.frames),
            dirty: DirtyPages::new(parts.frames as usize),
            doublewrite: parts.doublewrite,
            batch: Mutex::new(Batch::new(parts.batch_pages * parts.page_bytes)),
            leaving: Mutex::new(Vec::new()),
            loads: Waiters::default(),
            counters: Counters::default(),
            space: Mutex::new(AddressSpace::new(u64::from(parts.frames) * parts.page_bytes as u64)),
            partitions: RwLock::new(Arc::new(Partitions::new())),
            healer: OnceLock::new(),
            poison: OnceLock::new(),
        }
    }

    /// The open partitions, as of now.
    pub(crate) fn partitions(&self) -> Arc<Partitions> {
        Arc::clone(&self.partitions.read())
    }

    /// Changes the map of open partitions.
    pub(crate) fn change_partitions<R>(&self, change: impl FnOnce(&mut Partitions) -> R) -> R {
        let mut guard = self.partitions.write();
        let mut partitions = Partitions::clone(&guard);
        let result = change(&mut partitions);
        *guard = Arc::new(partitions);
        result
    }

    /// Makes room in memory for the chunk of `region` that holds `page`.
    pub(crate) fn map(&self, region: &Region, page: PageNo) -> Result<()> {
        let made = region.make(page, &mut self.space.lock())?;
        if made == Made::Overflows {
            for partition in self.partitions().values() {
                partition.give_up_huge_pages();
            }
        }
        Ok(())
    }

    /// `Invalid` if a partition of this id is open.
    pub(crate) fn check_closed(&self, id: PartitionId) -> Result<()> {
        if self.partitions.read().contains_key(&id) {
            return Err(Error::Invalid(format!("partition {id} is open already")));
        }
        Ok(())
    }

    /// `Poisoned` once a write or sync of pages has failed.
    pub(crate) fn check_poison(&self) -> Result<()> {
        match self.poison.get() {
            Some(cause) => Err(Error::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    /// The first failure of a write or sync, as text.
    pub(crate) fn poisoned_by(&self) -> Option<String> {
        self.poison.get().cloned()
    }

    /// The first failure of a write or sync: from now on no page is written any more.
    pub(crate) fn poison(&self, cause: &Error) {
        let _ = self.poison.set(cause.to_string());
    }

    /// Adds to a counter.
    pub(crate) fn count(counter: &AtomicU64, by: usize) {
        counter.fetch_add(by as u64, Ordering::Relaxed);
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("storage", &self.storage)
            .field("page_bytes", &self.page_bytes)
            .field("database_id", &self.database_id)
            .field("frames", &self.frames.len())
            .field("partitions", &self.partitions.read().keys().collect::<Vec<_>>())
            .field("poison", &self.poison.get())
            .finish_non_exhaustive()
    }
}

/// Threads that wait for a page to be read in, parked by the page's address.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    lots: [(Mutex<u32>, Condvar); 16],
}

impl Waiters {
    fn lot(&self, key: usize) -> &(Mutex<u32>, Condvar) {
        // Pages are at least 4 KiB.
        &self.lots[(key >> 12) % self.lots.len()]
    }

    /// Waits while `waiting`; whoever ends that calls [`Waiters::wake`] afterwards.
    pub(crate) fn wait_while(&self, key: usize, waiting: impl Fn() -> bool) {
        let (count, condvar) = self.lot(key);
        let mut count = count.lock();
        *count += 1;
        while waiting() {
            condvar.wait(&mut count);
        }
        *count -= 1;
    }

    /// Wakes those who wait for this page.
    pub(crate) fn wake(&self, key: usize) {
        // Under the lock: a waiter has either seen the new state or is counted.
        let (count, condvar) = self.lot(key);
        if *count.lock() > 0 {
            condvar.notify_all();
        }
    }
}
