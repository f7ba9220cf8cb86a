//! What the pager's tests stand on: a storage that calls a hook before every file operation, a log that knows what is
//! durable, and a page content that can be checked.
//!
//! The rig is also the write-ahead monitor: a page that reaches a data file before the log is durable up to its
//! LSN fails the test at once.

use std::fmt;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hamal_storage::{Error, File, FileId, Lock, Result, Storage};
use hamal_wal::Lsn;
use parking_lot::Mutex;

use crate::header::{self, HEADER_BYTES, kind};
use crate::{ExclusivePage, PageClass, PageNo, Pager, PagerOptions, Partition, WriteAhead};

/// A file operation about to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    Write { offset: u64, bytes: usize },
    Sync,
    Allocate,
}

/// Decides the fate of an operation: `Err` makes it fail.
pub(crate) type Hook = Box<dyn FnMut(&str, Op) -> io::Result<()> + Send>;

/// A storage whose operations pass by a hook first.
pub(crate) struct Hooked {
    inner: Arc<dyn Storage>,
    shared: Arc<Shared>,
}

struct Shared {
    hook: Mutex<Option<Hook>>,
    log: Arc<MockLog>,
    page_bytes: usize,
}

struct HookedFile {
    name: String,
    inner: Arc<dyn File>,
    shared: Arc<Shared>,
}

impl Shared {
    fn pass(&self, name: &str, op: Op) -> io::Result<()> {
        // Taken out while it runs: a hook may use the pager.
        let Some(mut hook) = self.hook.lock().take() else { return Ok(()) };
        let result = hook(name, op);
        self.hook.lock().get_or_insert(hook);
        result
    }
}

impl Hooked {
    pub(crate) fn new(inner: Arc<dyn Storage>, log: Arc<MockLog>, page_bytes: usize) -> Arc<Hooked> {
        Arc::new(Hooked { inner, shared: Arc::new(Shared { hook: Mutex::new(None), log, page_bytes }) })
    }

    pub(crate) fn set_hook(&self, hook: impl FnMut(&str, Op) -> io::Result<()> + Send + 'static) {
        *self.shared.hook.lock() = Some(Box::new(hook));
    }

    /// From the `nth` operation that `matches` on (1 is the next), fails with `kind`: `times` of them.
    pub(crate) fn fail(&self, matches: fn(&str, Op) -> bool, nth: usize, times: usize, kind: io::ErrorKind) {
        let mut seen = 0;
        self.set_hook(move |name, op| {
            seen += usize::from(matches(name, op));
            let hit = matches(name, op) && (nth..nth + times).contains(&seen);
            if hit { Err(kind.into()) } else { Ok(()) }
        });
    }

    fn wrap(&self, name: &str, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(HookedFile { name: name.to_owned(), inner, shared: Arc::clone(&self.shared) })
    }
}

impl Storage for Hooked {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(name, self.inner.open(name)?))
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(name, self.inner.create(name)?))
    }
    fn identity(&self, name: &str) -> io::Result<Option<FileId>> {
        self.inner.identity(name)
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.inner.exists(name)
    }
    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.inner.list(directory)
    }
    fn create_directory(&self, name: &str) -> io::Result<()> {
        self.inner.create_directory(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn sync_directory(&self, name: &str) -> io::Result<()> {
        self.inner.sync_directory(name)
    }
    fn lock(&self, name: &str) -> io::Result<Box<dyn Lock>> {
        self.inner.lock(name)
    }
    fn now_micros(&self) -> u64 {
        self.inner.now_micros()
    }
    fn monotonic(&self) -> Duration {
        self.inner.monotonic()
    }
    fn random_u64(&self) -> u64 {
        self.inner.random_u64()
    }
}

impl File for HookedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.shared.pass(&self.name, Op::Read)?;
        self.inner.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        // A write that goes on in the middle of a page has been looked at already.
        if self.name.starts_with("part/") && offset.is_multiple_of(self.shared.page_bytes as u64) {
            for image in bytes.chunks_exact(self.shared.page_bytes) {
                let (lsn, durable) = (header::page_lsn(image), self.shared.log.durable());
                assert!(
                    lsn <= durable,
                    "write-ahead: {} at {offset} has {lsn}, durable {durable}",
                    self.name
                );
            }
        }
        self.shared.pass(&self.name, Op::Write { offset, bytes: bytes.len() })?;
        self.inner.write_at(bytes, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.shared.pass(&self.name, Op::Sync)?;
        self.inner.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn identity(&self) -> io::Result<FileId> {
        self.inner.identity()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.shared.pass(&self.name, Op::Allocate)?;
        self.inner.allocate(offset, len)
    }
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooked").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl fmt::Debug for HookedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HookedFile").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A log of nothing but LSNs.
#[derive(Debug)]
pub(crate) struct MockLog {
    tail: AtomicU64,
    durable: AtomicU64,
    broken: Mutex<Option<String>>,
}

impl MockLog {
    pub(crate) fn new() -> Arc<MockLog> {
        let first = Lsn::FIRST.get();
        Arc::new(MockLog {
            tail: AtomicU64::new(first),
            durable: AtomicU64::new(0),
            broken: Mutex::new(None),
        })
    }

    pub(crate) fn tail(&self) -> Lsn {
        Lsn(self.tail.load(Ordering::Acquire))
    }

    /// Reserves a record.
    pub(crate) fn append(&self) -> Lsn {
        Lsn(self.tail.fetch_add(32, Ordering::AcqRel))
    }

    /// A log that has been durable up to here before.
    pub(crate) fn ending_at(end: Lsn) -> Arc<MockLog> {
        let log = MockLog::new();
        log.tail.store(end.get(), Ordering::Release);
        log.durable.store(end.get(), Ordering::Release);
        log
    }

    /// From now on, and until healed, the log cannot be made durable.
    pub(crate) fn set_broken(&self, cause: Option<&str>) {
        *self.broken.lock() = cause.map(str::to_owned);
    }

    pub(crate) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }
}

impl WriteAhead for MockLog {
    fn make_durable(&self, lsn: Lsn) -> Result<()> {
        if let Some(cause) = self.broken.lock().clone() {
            return Err(Error::Poisoned { cause });
        }
        assert!(lsn < self.tail(), "asked to make durable what was never written");
        self.durable.fetch_max(lsn.get(), Ordering::AcqRel);
        Ok(())
    }
}

/// A pager over a hooked storage and a mock log.
pub(crate) struct Rig {
    pub(crate) storage: Arc<Hooked>,
    pub(crate) log: Arc<MockLog>,
    pub(crate) pager: Arc<Pager>,
}

impl Rig {
    pub(crate) fn new(inner: Arc<dyn Storage>, options: PagerOptions) -> Rig {
        Rig::with_log(inner, MockLog::new(), options)
    }

    pub(crate) fn with_log(inner: Arc<dyn Storage>, log: Arc<MockLog>, options: PagerOptions) -> Rig {
        let storage = Hooked::new(inner, Arc::clone(&log), options.page_bytes);
        let shared = Arc::clone(&storage);
        let pager = Pager::open(shared, Arc::clone(&log) as Arc<dyn WriteAhead>, options).unwrap();
        Rig { storage, log, pager }
    }

    /// Writes `value` all over a page, logged.
    pub(crate) fn change(&self, page: &mut ExclusivePage<'_>, value: u64) -> Lsn {
        page.mark_dirty(|| self.log.tail());
        let lsn = self.log.append();
        page.edit(|bytes| {
            header::set_page_lsn(bytes, lsn);
            bytes[HEADER_BYTES..]
                .chunks_exact_mut(8)
                .for_each(|word| word.copy_from_slice(&value.to_le_bytes()));
        });
        lsn
    }

    /// Fixes a page and writes `value` all over it.
    pub(crate) fn rewrite(&self, partition: &Partition, page: u32, value: u64) {
        self.change(&mut partition.fix_exclusive(PageNo(page)).unwrap(), value);
    }

    /// Makes a page that holds `value`.
    pub(crate) fn format(&self, partition: &Partition, page: PageNo, class: PageClass, value: u64) -> Lsn {
        partition.ensure_file_pages(page.0 + 1).unwrap();
        let mut fixed = partition.fix_new(page, class).unwrap();
        let kind = if class == PageClass::Inner { kind::INNER } else { kind::LEAF };
        fixed.edit(|bytes| header::set_kind(bytes, kind));
        self.change(&mut fixed, value)
    }

    /// Makes pages `0..pages`, of class plain but for every `inner`th; page p holds p.
    pub(crate) fn format_all(&self, partition: &Partition, pages: u32, inner: u32) {
        for page in 0..pages {
            let class = if page % inner == inner - 1 { PageClass::Inner } else { PageClass::Plain };
            self.format(partition, PageNo(page), class, u64::from(page));
        }
    }

    /// Writes back everything; the first error.
    pub(crate) fn write_back(&self) -> Result<usize> {
        self.pager.write_back(Lsn(u64::MAX >> 2), usize::MAX)
    }

    /// Writes back everything.
    pub(crate) fn clean(&self) {
        self.write_back().unwrap();
        assert_eq!(self.pager.stats().dirty_pages, 0);
    }
}

/// Options of a small cache with small batches.
pub(crate) fn small() -> PagerOptions {
    PagerOptions { page_bytes: 4096, cache_bytes: 1 << 20, database_id: 7, batch_pages: 8 }
}

/// Fixes a page and says what it holds.
pub(crate) fn read(partition: &Partition, page: u32) -> u64 {
    value(partition.fix_shared(PageNo(page)).unwrap().bytes())
}

/// What a page holds; it must be the same value everywhere.
pub(crate) fn value(page: &[u8]) -> u64 {
    let mut words = page[HEADER_BYTES..].chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap()));
    let first = words.next().unwrap();
    assert!(words.all(|word| word == first), "page {:?} is torn", header::Identity::of(page));
    first
}

/// How many of the pages `0..pages` the system keeps in memory, by its own account. Pages of 4096 bytes.
pub(crate) fn resident_pages(partition: &Partition, pages: u32) -> u64 {
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    let mut entry = [0; 8];
    let present = (0..pages).filter_map(|page| partition.place(PageNo(page))).filter(|at| {
        pagemap.read_exact_at(&mut entry, at.key() as u64 / 4096 * 8).unwrap();
        u64::from_le_bytes(entry) >> 63 == 1
    });
    present.count() as u64
}
