//! One partition's pages and the guards on them (interface).

use hamal_storage::Result;
use hamal_wal::Lsn;

use crate::{PageNo, PartitionId};

/// Keeps inner pages that are being read optimistically from being reused or evicted.
#[derive(Debug)]
pub struct EpochGuard {}

/// Pins the current thread's epoch. Hold it only for one descent; never across a wait or I/O (hazard H16).
pub fn pin_epoch() -> EpochGuard {
    unimplemented!()
}

/// How a page's bytes may be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageClass {
    /// Inner nodes: read optimistically, so every write is a relaxed store of aligned words.
    Inner,
    /// Everything else: read and written under its latch.
    Plain,
}

/// The answer of an operation that neither waits nor does I/O.
#[derive(Debug)]
pub enum Attempt<G> {
    /// It worked.
    Fixed(G),
    /// Somebody holds the latch.
    Busy,
    /// The page is not in memory: let go of everything, call [`Partition::load`], start again.
    Absent,
}

/// One partition: its file and the region its pages live in.
#[derive(Debug)]
pub struct Partition {}

/// A page under a shared latch.
#[derive(Debug)]
pub struct SharedPage<'p> {
    _partition: &'p Partition,
}

/// A page under the exclusive latch. Dropping it bumps the page's version and unlatches.
#[derive(Debug)]
pub struct ExclusivePage<'p> {
    _partition: &'p Partition,
}

/// An inner page read without a latch: everything it returns is noise until [`OptimisticPage::validate`] says so.
#[derive(Debug)]
pub struct OptimisticPage<'p> {
    _partition: &'p Partition,
}

#[expect(unused_variables, reason = "interface")]
impl Partition {
    /// Which partition this is.
    pub fn id(&self) -> PartitionId {
        unimplemented!()
    }

    /// Page size, bytes.
    pub fn page_bytes(&self) -> usize {
        unimplemented!()
    }

    /// Pages the file has room for on disk now.
    pub fn file_pages(&self) -> u32 {
        unimplemented!()
    }

    /// Grows the file (in larger steps) so that pages below `pages` have disk space, `StorageFull` if the disk has
    /// none. Before any structure change that would use them.
    pub fn ensure_file_pages(&self, pages: u32) -> Result<()> {
        unimplemented!()
    }

    /// Shared latch; waits, and reads the page in if it must. The caller holds no latch and no epoch guard.
    /// `Corrupt` if the page fails its checks (checksum, page number, partition, database id, never written).
    pub fn fix_shared(&self, page: PageNo) -> Result<SharedPage<'_>> {
        unimplemented!()
    }

    /// Exclusive latch; waits, and reads the page in if it must. The caller holds no latch and no epoch guard.
    pub fn fix_exclusive(&self, page: PageNo) -> Result<ExclusivePage<'_>> {
        unimplemented!()
    }

    /// Shared latch without waiting or I/O.
    pub fn try_shared(&self, page: PageNo) -> Attempt<SharedPage<'_>> {
        unimplemented!()
    }

    /// Exclusive latch without waiting or I/O.
    pub fn try_exclusive(&self, page: PageNo) -> Attempt<ExclusivePage<'_>> {
        unimplemented!()
    }

    /// Latched exclusively, all zeros apart from the header's identity fields, without reading the file: for a page
    /// about to be formatted. May wait for a frame: the caller holds no latch. If the page was an inner page and its memory is
    /// still visible to optimistic readers, waits for the epoch.
    pub fn fix_new(&self, page: PageNo, class: PageClass) -> Result<ExclusivePage<'_>> {
        unimplemented!()
    }

    /// Starts an optimistic read. `Absent` if not in memory; `Busy` if latched exclusively or not an inner page.
    pub fn optimistic<'p>(&'p self, page: PageNo, epoch: &'p EpochGuard) -> Attempt<OptimisticPage<'p>> {
        unimplemented!()
    }

    /// Brings a page into memory (it may be gone again at once). The caller holds no latch and no epoch guard.
    pub fn load(&self, page: PageNo) -> Result<()> {
        unimplemented!()
    }
}

#[expect(unused_variables, reason = "interface")]
impl SharedPage<'_> {
    /// Which page.
    pub fn page_no(&self) -> PageNo {
        unimplemented!()
    }

    /// The page's bytes.
    pub fn bytes(&self) -> &[u8] {
        unimplemented!()
    }
}

#[expect(unused_variables, reason = "interface")]
impl ExclusivePage<'_> {
    /// Which page.
    pub fn page_no(&self) -> PageNo {
        unimplemented!()
    }

    /// The page's bytes.
    pub fn bytes(&self) -> &[u8] {
        unimplemented!()
    }

    /// Changes the page. `Plain`: in place. `Inner`: on a copy, whose changed words are then stored one by one. A
    /// panic inside aborts the process.
    pub fn edit<R>(&mut self, change: impl FnOnce(&mut [u8]) -> R) -> R {
        unimplemented!()
    }

    /// Marks the page dirty: `rec_lsn` becomes `tail` unless it is set already. Must be called under this latch with the log's
    /// tail, *before* the record is appended (hazard H2).
    pub fn mark_dirty(&mut self, tail: Lsn) {
        unimplemented!()
    }

    /// The page has been freed (in a logged change, already applied): it leaves the cache unwritten and clean. An
    /// inner page's memory goes once no optimistic reader can see it.
    pub fn discard(self) {
        unimplemented!()
    }
}

#[expect(unused_variables, reason = "interface")]
impl<'p> OptimisticPage<'p> {
    /// Which page.
    pub fn page_no(&self) -> PageNo {
        unimplemented!()
    }

    /// Number of 8-byte words.
    pub fn words(&self) -> usize {
        unimplemented!()
    }

    /// One aligned word, little-endian, by a relaxed load; 0 if `index` is out of range.
    pub fn word(&self, index: usize) -> u64 {
        unimplemented!()
    }

    /// Whether nothing has changed since the read began, so that all words read so far were one consistent page.
    pub fn validate(&self) -> bool {
        unimplemented!()
    }

    /// The shared latch, if the page is still at the version that was read (compare-and-swap, never check-then-lock).
    pub fn upgrade_shared(self) -> Option<SharedPage<'p>> {
        unimplemented!()
    }

    /// The exclusive latch, if the page is still at the version that was read.
    pub fn upgrade_exclusive(self) -> Option<ExclusivePage<'p>> {
        unimplemented!()
    }
}
