//! One partition: its file, the region its pages live in, and the ways to fix one of them.
//!
//! A page is *fixed* while a guard holds it in memory at its address. Absent pages are read in by whoever turns EVICTED into
//! LOADING; everybody else waits for that one.
//!
//! I1. The caller of a `fix_` method, of `load` and of `fix_new` holds no latch and no epoch guard, for these wait for latches,
//!     frames and I/O. `try_` methods and `optimistic` wait for nothing.
//! I2. A page that could not be read leaves nothing behind: no memory, no frame, no state.
//! I3. Once a partition is sealed ([`crate::Pager::seal_partition`]) no page of it is read in or made any more. Whoever reads one in names
//!     the page in its frame and looks at the seal then; whoever seals looks at the frames afterwards: one of the two sees the other.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use crossbeam::utils::Backoff;
use hamal_storage::{Error, File, FileId, Result, is_refused, read_exact_at};
use hamal_wal::Lsn;
use parking_lot::Mutex;

use crate::core::Core;
use crate::dirty::{is_clean, note_left, take_left};
use crate::epoch::{self, EpochGuard};
use crate::frames::Slot;
use crate::guard::{Attempt, ExclusivePage, OptimisticPage, SharedPage};
use crate::header::{self, Identity};
use crate::region::{PageAt, Region, drop_pages};
use crate::state::{Absence, Latch, Loaded, PageClass};
use crate::{PageNo, PartitionId};

/// The file grows by at least this many pages.
const GROWTH_PAGES: u32 = 64;

/// One partition: its file and the region its pages live in.
pub struct Partition {
    id: PartitionId,
    name: String,
    file: Arc<dyn File>,
    file_pages: AtomicU32,
    growing: Mutex<()>,
    region: Region,
    sealed: AtomicBool,
    core: Arc<Core>,
}

/// The name of a partition's file.
pub(crate) fn file_name(id: PartitionId) -> String {
    format!("part/{id}.dat")
}

impl Partition {
    pub(crate) fn new(id: PartitionId, file: Arc<dyn File>, core: Arc<Core>) -> Result<Arc<Partition>> {
        let name = file_name(id);
        let bytes = file.len().map_err(|e| Error::io("read the length of", &name, e))?;
        let file_pages = u32::try_from(bytes / core.page_bytes as u64).unwrap_or(u32::MAX);
        Ok(Arc::new(Partition {
            id,
            name,
            file,
            file_pages: AtomicU32::new(file_pages),
            growing: Mutex::new(()),
            region: Region::new(core.page_bytes),
            sealed: AtomicBool::new(false),
            core,
        }))
    }

    /// A partition without a file, sealed from the start.
    pub(crate) fn offline(id: PartitionId, core: Arc<Core>) -> Result<Arc<Partition>> {
        let partition = Partition::new(id, Arc::new(NoFile), core)?;
        partition.seal();
        Ok(partition)
    }

    /// From here on no page is read in or made (I3).
    pub(crate) fn seal(&self) {
        self.sealed.store(true, Ordering::SeqCst);
        // Pairs with the fence in `take_frame`.
        fence(Ordering::SeqCst);
    }

    /// Whether the partition is not used any more. Who has latched one of its pages exclusively and finds it unsealed can change the page:
    /// whoever seals waits for the latch.
    #[inline]
    pub fn is_sealed(&self) -> bool {
        // Relaxed: ordered by the latches of its pages, or by the fence in `take_frame`.
        self.sealed.load(Ordering::Relaxed)
    }

    /// `Offline` once the partition is sealed.
    pub(crate) fn check_unsealed(&self) -> Result<()> {
        if self.is_sealed() { Err(Error::Offline { file: self.name.clone() }) } else { Ok(()) }
    }

    /// What has become of its file since it was opened, if it is not there any more as it should be: gone, replaced, or shorter.
    pub(crate) fn misplacement(&self) -> Result<Option<&'static str>> {
        // The number of pages before the length: the file only grows, and that before the number does.
        let pages = u64::from(self.file_pages());
        let look = || Ok((self.file.identity()?, self.core.storage.identity(&self.name)?, self.file.len()?));
        Ok(match look() {
            Ok((_, None, _)) => Some("the file is gone"),
            Ok((here, Some(there), _)) if there != here => Some("another file has taken its place"),
            Ok((.., len)) if len < pages * self.core.page_bytes as u64 => Some("the file has been cut short"),
            Ok(_) => None,
            Err(e) if is_refused(&e) => Some("the system does not let the file be looked at"),
            Err(e) => return Err(Error::io("look at", &self.name, e)),
        })
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    pub(crate) fn file(&self) -> &dyn File {
        &*self.file
    }

    pub(crate) fn file_name(&self) -> &str {
        &self.name
    }

    /// Where a page is, if its memory has ever been asked for.
    pub(crate) fn place(&self, page: PageNo) -> Option<PageAt<'_>> {
        self.region.get(page)
    }

    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// Where the page starts in the file.
    pub(crate) fn offset(&self, page: PageNo) -> u64 {
        u64::from(page.0) * self.core.page_bytes as u64
    }

    pub(crate) fn identity(&self, page: PageNo) -> Identity {
        Identity { partition: self.id, page, database_id: self.core.database_id }
    }

    /// Which partition this is.
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// Page size, bytes.
    pub fn page_bytes(&self) -> usize {
        self.core.page_bytes
    }

    /// Pages the file has room for on disk now.
    pub fn file_pages(&self) -> u32 {
        self.file_pages.load(Ordering::Acquire)
    }

    /// Grows the file (in larger steps) so that pages below `pages` have disk space, `StorageFull` if the disk has
    /// none. Before any structure change that would use them.
    pub fn ensure_file_pages(&self, pages: u32) -> Result<()> {
        if pages <= self.file_pages() {
            return Ok(());
        }
        self.check_unsealed()?;
        let _one_grower = self.growing.lock();
        let have = self.file_pages();
        if pages <= have {
            return Ok(());
        }
        let generous = pages.max(have.saturating_add(GROWTH_PAGES.max(have / 8)));
        // A disk with room for what is needed, if not for more, is not full yet.
        let grown = match self.allocate(have, generous) {
            Err(e) if e.is_no_space() && pages < generous => self.allocate(have, pages).map(|()| pages),
            other => other.map(|()| generous),
        }?;
        self.file_pages.store(grown, Ordering::Release);
        Ok(())
    }

    /// The file may have been made longer by other means than [`Partition::ensure_file_pages`].
    pub fn measure(&self) -> Result<()> {
        let _one_grower = self.growing.lock();
        let bytes = self.file.len().map_err(|e| Error::io("read the length of", &self.name, e))?;
        let pages = u32::try_from(bytes / self.core.page_bytes as u64).unwrap_or(u32::MAX);
        self.file_pages.fetch_max(pages, Ordering::AcqRel);
        Ok(())
    }

    /// Takes pages out of memory, unwritten, whatever they are there; then their files say what they are. For recovery, before anybody else
    /// uses the cache. The caller holds no latch.
    pub fn forget(&self, pages: impl IntoIterator<Item = PageNo>) {
        for page in pages {
            if let Attempt::Fixed(fixed) = self.try_exclusive(page) {
                fixed.discard();
            }
        }
        self.core.finish_leaving();
    }

    fn allocate(&self, have: u32, pages: u32) -> Result<()> {
        let (from, to) = (self.offset(PageNo(have)), self.offset(PageNo(pages)));
        self.file.allocate(from, to - from).map_err(|e| Error::io("reserve space for", &self.name, e))
    }

    /// Shared latch; waits, and reads the page in if it must. The caller holds no latch and no epoch guard.
    /// `Corrupt` if the page fails its checks (checksum, page number, partition, database id, never written).
    #[inline]
    pub fn fix_shared(&self, page: PageNo) -> Result<SharedPage<'_>> {
        if let Some(at) = self.region.get(page)
            && at.state().try_shared() == Latch::Taken
        {
            return Ok(SharedPage::latched(at, page));
        }
        let at = self.fix(page, Loaded::Shared, |at| at.state().try_shared())?;
        Ok(SharedPage::latched(at, page))
    }

    /// Exclusive latch; waits, and reads the page in if it must. The caller holds no latch and no epoch guard.
    #[inline]
    pub fn fix_exclusive(&self, page: PageNo) -> Result<ExclusivePage<'_>> {
        if let Some(at) = self.region.get(page)
            && at.state().try_exclusive() == Latch::Taken
        {
            return Ok(ExclusivePage::latched(at, page, self));
        }
        let at = self.fix(page, Loaded::Exclusive, |at| at.state().try_exclusive())?;
        Ok(ExclusivePage::latched(at, page, self))
    }

    /// Shared latch without waiting or I/O.
    #[inline]
    pub fn try_shared(&self, page: PageNo) -> Attempt<SharedPage<'_>> {
        let Some(at) = self.region.get(page) else { return Attempt::Absent };
        match at.state().try_shared() {
            Latch::Taken => Attempt::Fixed(SharedPage::latched(at, page)),
            Latch::Busy => Attempt::Busy,
            Latch::Absent(_) => Attempt::Absent,
        }
    }

    /// Exclusive latch without waiting or I/O.
    #[inline]
    pub fn try_exclusive(&self, page: PageNo) -> Attempt<ExclusivePage<'_>> {
        let Some(at) = self.region.get(page) else { return Attempt::Absent };
        match at.state().try_exclusive() {
            Latch::Taken => Attempt::Fixed(ExclusivePage::latched(at, page, self)),
            Latch::Busy => Attempt::Busy,
            Latch::Absent(_) => Attempt::Absent,
        }
    }

    /// Latched exclusively, all zeros apart from the header's identity fields, without reading the file: for a page
    /// about to be formatted. May wait for a frame: the caller holds no latch. If the page was an inner page and its memory is
    /// still visible to optimistic readers, waits for the epoch.
    ///
    /// `Invalid` if the file has no room for the page: [`Partition::ensure_file_pages`] comes first.
    pub fn fix_new(&self, page: PageNo, class: PageClass) -> Result<ExclusivePage<'_>> {
        self.check_unsealed()?;
        if page.0 >= self.file_pages() {
            let (name, room) = (&self.name, self.file_pages());
            return Err(Error::Invalid(format!(
                "page {page} of {name} is new, but the file has room for {room}"
            )));
        }
        let at = self.wait_for(page, |at| match at.state().try_exclusive() {
            Latch::Absent(Absence::Evicted) => Ok(at.state().begin_load()),
            // Dirty with what it was before it was freed. It leaves: filled with zeros it would be written with the old
            // `rec_lsn`, though no record says so yet.
            Latch::Taken if !is_clean(at.rec_lsn()) => {
                self.core.discard(self, page, at);
                Ok(false)
            }
            Latch::Taken => Ok(true),
            other => self.step_aside(at, other).map(|()| false),
        })?;
        if at.state().is_loading() {
            let slot = self.take_frame(at, page)?;
            take_left(at.rec_lsn());
            at.slot().store(slot.0, Ordering::Relaxed);
            at.state().finish_load(class, Loaded::Exclusive);
            self.core.loads.wake(at.key());
        } else if at.state().class() == PageClass::Inner && class == PageClass::Plain {
            epoch::wait_for_readers();
            at.state().set_class(class);
        } else {
            at.state().set_class(class);
        }
        let mut fixed = ExclusivePage::latched(at, page, self);
        fixed.edit(|bytes| {
            bytes.fill(0);
            self.identity(page).write(bytes);
        });
        Ok(fixed)
    }

    /// Starts an optimistic read. `Absent` if not in memory; `Busy` if latched exclusively or not an inner page.
    #[inline]
    pub fn optimistic<'p>(&'p self, page: PageNo, epoch: &'p EpochGuard) -> Attempt<OptimisticPage<'p>> {
        let Some(at) = self.region.get(page) else { return Attempt::Absent };
        match at.state().begin_read() {
            Ok(seen) => Attempt::Fixed(OptimisticPage::begun(at, page, self, seen, epoch)),
            Err(Latch::Absent(_)) => Attempt::Absent,
            Err(_) => Attempt::Busy,
        }
    }

    /// `Poisoned` once a write or sync of pages has failed: what is dirty then never leaves memory again.
    pub fn check_poison(&self) -> Result<()> {
        self.core().check_poison()
    }

    /// Brings a page into memory (it may be gone again at once). The caller holds no latch and no epoch guard.
    pub fn load(&self, page: PageNo) -> Result<()> {
        self.fix(page, Loaded::Unlocked, |at| match at.state().presence() {
            Latch::Busy => Latch::Taken,
            other => other,
        })?;
        Ok(())
    }

    /// Tries until `attempt` succeeds, reading the page in if it is not in memory.
    fn fix(&self, page: PageNo, into: Loaded, attempt: impl Fn(PageAt<'_>) -> Latch) -> Result<PageAt<'_>> {
        self.check_unsealed()?;
        if page.0 >= self.file_pages() {
            let expected = format!("page {page}, a page never written");
            let found = format!("a file of {} pages", self.file_pages());
            return Err(Error::Corrupt {
                file: self.name.clone(),
                offset: self.offset(page),
                expected,
                found,
            });
        }
        self.wait_for(page, |at| match attempt(at) {
            Latch::Taken => Ok(true),
            Latch::Absent(Absence::Evicted) if at.state().begin_load() => {
                self.read_in(at, page, into).map(|()| true)
            }
            other => self.step_aside(at, other).map(|()| false),
        })
    }

    /// Repeats `step` until it says that it is done.
    fn wait_for(&self, page: PageNo, mut step: impl FnMut(PageAt<'_>) -> Result<bool>) -> Result<PageAt<'_>> {
        debug_assert!(!epoch::is_pinned(), "a pinned thread must not wait (H16)");
        let at = self.place_or_map(page)?;
        let backoff = Backoff::new();
        while !step(at)? {
            backoff.snooze();
        }
        Ok(at)
    }

    /// Writes back some of the dirty pages of the cache, whichever partition's, so that they can leave memory. `false`: none became clean. The
    /// error says why they cannot be written: `StorageFull`, for example.
    pub fn make_room(&self) -> Result<bool> {
        Ok(self.core.write_back(Lsn(u64::MAX), self.core.batch_pages)? > 0)
    }

    /// Where a page is. The caller has compared its number with the file's length.
    #[inline]
    pub(crate) fn place_or_map(&self, page: PageNo) -> Result<PageAt<'_>> {
        match self.region.get(page) {
            Some(at) => Ok(at),
            None => self.map(page),
        }
    }

    #[cold]
    fn map(&self, page: PageNo) -> Result<PageAt<'_>> {
        self.core.map(&self.region, page)?;
        self.region.get(page).ok_or_else(|| unreachable!("its chunk has just been made"))
    }

    /// See [`Region::give_up_huge_pages`].
    pub(crate) fn give_up_huge_pages(&self) {
        self.region.give_up_huge_pages(|key| self.core.loads.wake(key));
    }

    /// What to do while a page cannot be latched.
    fn step_aside(&self, at: PageAt<'_>, why: Latch) -> Result<()> {
        match why {
            Latch::Absent(Absence::Loading) => {
                self.core.loads.wait_while(at.key(), || at.state().is_loading());
                Ok(())
            }
            Latch::Absent(Absence::Leaving) => self.core.hurry_leaving(),
            _ => Ok(()),
        }
    }

    /// A frame for a page that the caller is loading; on failure the page is as it was.
    fn take_frame(&self, at: PageAt<'_>, page: PageNo) -> Result<Slot> {
        match self.core.take_frame() {
            Ok(slot) => {
                self.core.frames.occupy(slot, self.id, page);
                // Pairs with the fence in `seal` (I3).
                fence(Ordering::SeqCst);
                self.check_unsealed().map(|()| slot).inspect_err(|_| {
                    self.core.frames.give_back(&[slot]);
                    at.state().abandon_load();
                    self.core.loads.wake(at.key());
                })
            }
            Err(e) => {
                at.state().abandon_load();
                self.core.loads.wake(at.key());
                Err(e)
            }
        }
    }

    /// Reads a page that the caller is loading.
    fn read_in(&self, at: PageAt<'_>, page: PageNo, into: Loaded) -> Result<()> {
        let slot = self.take_frame(at, page)?;
        at.slot().store(slot.0, Ordering::Relaxed);
        // SAFETY: the page is LOADING and ours; it was evicted, so no optimistic reader can reach it.
        let bytes = unsafe { at.bytes_mut() };
        let known_lsn = take_left(at.rec_lsn());
        let read = self.read_checked(page, bytes).and_then(|()| self.check_age(page, bytes, known_lsn));
        match read.or_else(|fault| self.heal(page, known_lsn, bytes, fault)) {
            Ok(()) => {
                let class = header::class(bytes);
                self.core.counters.misses.fetch_add(1, Ordering::Relaxed);
                at.state().finish_load(class, into);
                self.core.loads.wake(at.key());
                Ok(())
            }
            Err(e) => {
                // SAFETY: the page is LOADING and ours, and `bytes` is not used again.
                unsafe { drop_pages(&mut [at]) };
                note_left(at.rec_lsn(), known_lsn);
                self.core.frames.give_back(&[slot]);
                at.state().abandon_load();
                self.core.loads.wake(at.key());
                Err(e)
            }
        }
    }

    fn read_checked(&self, page: PageNo, bytes: &mut [u8]) -> Result<()> {
        let offset = self.offset(page);
        read_exact_at(self.file(), bytes, offset).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::Corrupt {
                file: self.name.clone(),
                offset,
                expected: format!("page {page}"),
                found: "the end of the file".into(),
            },
            _ => Error::io("read", &self.name, e),
        })?;
        self.identity(page).check(bytes, &self.name, offset)
    }
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partition")
            .field("id", &self.id)
            .field("file", &self.file)
            .field("file_pages", &self.file_pages())
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// The file of a partition that has none.
#[derive(Debug)]
struct NoFile;

impl NoFile {
    fn none<T>() -> io::Result<T> {
        Err(io::ErrorKind::NotFound.into())
    }
}

impl File for NoFile {
    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        NoFile::none()
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        NoFile::none()
    }

    fn sync_data(&self) -> io::Result<()> {
        NoFile::none()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn identity(&self) -> io::Result<FileId> {
        NoFile::none()
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        NoFile::none()
    }

    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        NoFile::none()
    }
}
