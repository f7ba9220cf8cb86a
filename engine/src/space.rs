//! Which pages of a partition are in use: finding free ones, and giving them back.
//!
//! Owns nothing on disk that other modules could not rebuild: the bitmaps change only as part of logged records, and what is
//! kept here beside them (pages promised to structure changes under way, where to search next) starts empty at every open.
//!
//! I1. A page is promised to one [`Reservation`] at most, and only while its bit is clear. The reservation outlives the
//!     bitmap's exclusive latch under which its bit is set.
//! I2. A reserved page has room in the file before anything refers to it: a full disk fails the reservation, and nothing else.
//! I3. A bitmap page is formatted, its own bit set, and counted in the partition header, in a record of its own before any of
//!     its bits is used.
//! I4. Nothing here waits with a latch held. `state` is locked for a few instructions, under a bitmap's latch at most.
//!
//! Partition header (page 0), normative in docs/file-format.md section 3: 40 magic `HAMALPRT` (8), 48 format version (4), 52
//! page size (4), 56 partition (4), 60 number of bitmap pages (4), 64 database id (8).

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hamal_pager::space::Geometry;
use hamal_pager::{Attempt, PageClass, PageNo, Partition, SharedPage, header};
use parking_lot::Mutex;

use crate::change::{BitmapCount, Image, PageChange};
use crate::ids::TxnId;
use crate::journal::{Author, Journal};
use crate::node::Damage;
use crate::tree::Patience;
use crate::{Error, ErrorKind, Result};

const MAGIC: &[u8; 8] = b"HAMALPRT";
const FORMAT_VERSION: u32 = 1;
/// The partition header's page.
pub(crate) const HEADER_PAGE: PageNo = PageNo(0);

/// The free space of one partition, shared by its trees.
#[derive(Debug)]
pub(crate) struct Space {
    partition: Arc<Partition>,
    geometry: Geometry,
    state: Mutex<State>,
    /// Held while the partition gets another bitmap page.
    extending: Mutex<()>,
    /// Page splits since open.
    pub(crate) splits: AtomicU64,
    /// Page merges since open.
    pub(crate) merges: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    reserved: Vec<Run>,
    /// Below this page all are in use, or reserved, as far as is known here.
    first_free: u32,
}

/// Neighbouring pages under one bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u32,
    count: u32,
}

impl Run {
    const fn end(self) -> u32 {
        self.first + self.count
    }
}

/// Free pages that nobody else will get until it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation<'s> {
    space: &'s Space,
    run: Run,
}

impl Reservation<'_> {
    /// The first page.
    pub(crate) fn first(&self) -> PageNo {
        PageNo(self.run.first)
    }

    /// The bitmap page that has their bits.
    pub(crate) fn bitmap(&self) -> PageNo {
        self.space.geometry.bitmap_of(self.first())
    }

    /// The bitmap's change that takes them.
    pub(crate) fn set_bits(&self) -> PageChange<'static> {
        PageChange::SetBits { first: self.space.geometry.bit_of(self.first()), count: self.run.count }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut state = self.space.state.lock();
        state.reserved.retain(|run| *run != self.run);
        state.first_free = state.first_free.min(self.run.first);
    }
}

impl Space {
    /// The free space of a partition; reads nothing yet.
    pub(crate) fn new(partition: Arc<Partition>) -> Arc<Space> {
        Arc::new(Space {
            geometry: Geometry::new(partition.page_bytes()),
            partition,
            state: Mutex::default(),
            extending: Mutex::new(()),
            splits: AtomicU64::new(0),
            merges: AtomicU64::new(0),
        })
    }

    pub(crate) fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Reserves `count` neighbouring free pages, the lowest there are. `NoSpace` if the disk has no room for them. The
    /// caller holds no latch and no admission.
    pub(crate) fn reserve(&self, journal: &Journal, count: u32) -> Result<Reservation<'_>> {
        // A run stays below one bitmap, which may hold a header and a bitmap page.
        if count == 0 || count > self.geometry.coverage() - 2 {
            return Err(Error::invalid(format!("a run of {count} pages cannot be allocated")));
        }
        let reservation = loop {
            let bitmaps = self.bitmap_pages()?;
            if let Some(reservation) = self.reserve_below(bitmaps, count)? {
                break reservation;
            }
            self.add_bitmap(journal, bitmaps)?;
        };
        self.partition.ensure_file_pages(reservation.run.end())?;
        Ok(reservation)
    }

    fn reserve_below(&self, bitmaps: u32, count: u32) -> Result<Option<Reservation<'_>>> {
        let first_free = self.state.lock().first_free;
        for index in first_free / self.geometry.coverage()..bitmaps {
            let bitmap = self.bitmap(index)?;
            let mut state = self.state.lock();
            let base = index * self.geometry.coverage();
            let from = state.first_free.max(base);
            if let Some(run) = self.search(bitmap.bytes(), Run { first: from, count }, &state.reserved) {
                state.reserved.push(run);
                if run.first == from || count == 1 {
                    state.first_free = run.end();
                }
                return Ok(Some(Reservation { space: self, run }));
            }
        }
        Ok(None)
    }

    /// The first run of `wanted.count` pages, at or after `wanted.first`, that are free and not reserved.
    fn search(&self, bitmap: &[u8], wanted: Run, reserved: &[Run]) -> Option<Run> {
        let base = wanted.first - self.geometry.bit_of(PageNo(wanted.first));
        let mut from = wanted.first;
        loop {
            let bit = from - base;
            if bit + wanted.count > self.geometry.coverage() {
                return None;
            }
            let first = base + self.geometry.find_clear(bitmap, bit, wanted.count)?;
            if first < from {
                return None; // the search has wrapped around
            }
            let run = Run { first, count: wanted.count };
            match reserved.iter().find(|other| other.first < run.end() && run.first < other.end()) {
                None => return Some(run),
                Some(other) => from = other.end(),
            }
        }
    }

    /// Takes pages back whose bits have been cleared.
    pub(crate) fn freed(&self, page: PageNo) {
        let mut state = self.state.lock();
        state.first_free = state.first_free.min(page.0);
    }

    /// Number of bitmap pages, as the partition header says.
    pub(crate) fn bitmap_pages(&self) -> Result<u32> {
        let page = self.partition.fix_shared(HEADER_PAGE)?;
        let bytes = page.bytes();
        if header::kind(bytes) != header::kind::PARTITION_HEADER {
            let found = header::kind(bytes).into();
            return Err(self.damaged(HEADER_PAGE, Damage { expected: "a partition header (1)", found }));
        }
        let BitmapCount(count) = BitmapCount::of(bytes);
        // Each has been written, so the file has room for it.
        let most = self.partition.file_pages().div_ceil(self.geometry.coverage());
        if count == 0 || count > most {
            let damage =
                Damage { expected: "as many bitmap pages as the file has room for", found: count.into() };
            return Err(self.damaged(HEADER_PAGE, damage));
        }
        Ok(count)
    }

    /// Bitmap page number `index` under a shared latch.
    pub(crate) fn bitmap(&self, index: u32) -> Result<SharedPage<'_>> {
        let page = PageNo(index * self.geometry.coverage() + 1);
        let bitmap = self.partition.fix_shared(page)?;
        match header::kind(bitmap.bytes()) {
            header::kind::BITMAP => Ok(bitmap),
            found => Err(self.damaged(page, Damage { expected: "a bitmap (2)", found: found.into() })),
        }
    }

    /// Formats bitmap page number `index`, unless somebody else has.
    fn add_bitmap(&self, journal: &Journal, index: u32) -> Result<()> {
        let _one = self.extending.lock();
        if self.bitmap_pages()? > index {
            return Ok(());
        }
        let page = index.checked_mul(self.geometry.coverage()).and_then(|base| base.checked_add(1));
        // The pages that a bitmap covers must have numbers, all of them.
        let Some(page) = page.filter(|page| page.checked_add(self.geometry.coverage()).is_some()) else {
            return Err(Error::new(ErrorKind::Limit, "the partition has all the pages it can have"));
        };
        let page = PageNo(page);
        self.partition.ensure_file_pages(page.0 + 1)?;
        let mut image = vec![0; self.partition.page_bytes()];
        format_bitmap(&mut image, self.geometry, 1, 1);
        let changes = [
            PageChange::BitmapPages { count: BitmapCount(index + 1) },
            PageChange::Image(Image::of(&image, TxnId::NONE)),
        ];
        let bytes = changes.iter().map(PageChange::encoded_bytes).sum();
        let mut admission = journal.admit(Author::System, 2, bytes, 0)?;
        let [count, image] = changes;
        let mut patience = Patience::default();
        loop {
            let mut bitmap = self.partition.fix_new(page, PageClass::Plain)?;
            if let Attempt::Fixed(mut header) = self.partition.try_exclusive(HEADER_PAGE) {
                count.check(header.bytes()).map_err(|e| self.place(HEADER_PAGE, e))?;
                let edits = &mut [(&mut header, count), (&mut bitmap, image)];
                journal.write(&mut admission, Author::System, edits, None)?;
                return Ok(());
            }
            bitmap.discard();
            drop(self.partition.fix_shared(HEADER_PAGE)?);
            patience.loaded(&self.partition)?;
        }
    }

    /// Whether page 0 is the header of this partition.
    pub(crate) fn check_header(&self) -> Result<()> {
        let page = self.partition.fix_shared(HEADER_PAGE)?;
        let bytes = page.bytes();
        let found = |at: usize| {
            let mut number = [0; 4];
            number.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(number)
        };
        let damage =
            |expected, found: u32| Err(self.damaged(HEADER_PAGE, Damage { expected, found: found.into() }));
        if header::kind(bytes) != header::kind::PARTITION_HEADER || &bytes[40..48] != MAGIC {
            return damage("a partition header that begins with HAMALPRT", found(40));
        }
        if found(48) != FORMAT_VERSION {
            return damage("partition format 1", found(48));
        }
        if found(52) as usize != self.partition.page_bytes() {
            return damage("the database's page size", found(52));
        }
        if found(56) != self.partition.id().0 {
            return damage("the partition's own id", found(56));
        }
        if bytes[64..72] != bytes[16..24] {
            return damage("the database's id", found(64));
        }
        drop(page);
        self.bitmap_pages().map(|_| ())
    }

    /// Compares the bitmaps with what is in use: `in_use` says of each page whether something refers to it (header and
    /// bitmaps apart), and names only pages that the file has. Hands each difference to `found`; returns the number of
    /// free pages that the file has.
    pub(crate) fn check_bitmaps(
        &self,
        in_use: &dyn Fn(PageNo) -> bool,
        found: &mut dyn FnMut(Fault) -> Result<()>,
    ) -> Result<u64> {
        let (coverage, file_pages) = (self.geometry.coverage(), self.partition.file_pages());
        let mut free = 0;
        for index in 0..self.bitmap_pages()? {
            let bitmap = self.bitmap(index)?.bytes().to_vec();
            // Most of a small file's bitmap is about pages that the file does not have yet.
            let first_page = index * coverage;
            let pages = file_pages.saturating_sub(first_page).max(self.geometry.bits_to_last_set(&bitmap));
            let within = pages.min(coverage);
            for bit in 0..within {
                let page = PageNo(first_page + bit);
                let expected = page == HEADER_PAGE || self.geometry.is_bitmap(page) || in_use(page);
                match (expected, self.geometry.is_set(&bitmap, bit)) {
                    (true, false) => {
                        found(Fault::new(page, &"its bit set, for it is in use", &"a free page"))?;
                    }
                    (false, true) => {
                        found(Fault::new(page, &"something that refers to it", &"a leaked page"))?;
                    }
                    (false, false) if page.0 < file_pages => free += 1,
                    _ => {}
                }
            }
        }
        Ok(free)
    }

    /// `Corrupt`, with the page's place.
    pub(crate) fn damaged(&self, page: PageNo, damage: Damage) -> Error {
        damaged(&self.partition, page, damage)
    }

    fn place(&self, page: PageNo, error: Error) -> Error {
        error.context(format!("page {page} of part/{}.dat", self.partition.id()))
    }

    /// Counts a split.
    pub(crate) fn count_split(&self) {
        self.splits.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a merge.
    pub(crate) fn count_merge(&self) {
        self.merges.fetch_add(1, Ordering::Relaxed);
    }
}

/// Something wrong with a page: what verification finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) page: PageNo,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl Fault {
    pub(crate) fn new(page: PageNo, expected: &dyn fmt::Display, found: &dyn fmt::Display) -> Fault {
        Fault { page, expected: expected.to_string(), found: found.to_string() }
    }

    /// `Corrupt`, with the page's place.
    pub(crate) fn into_error(self, partition: &Partition) -> Error {
        let offset = u64::from(self.page.0) * partition.page_bytes() as u64;
        let file = format!("part/{}.dat (page {})", partition.id(), self.page);
        Error::corrupt(file, offset, self.expected, self.found)
    }
}

/// `Corrupt`, with the page's place.
pub(crate) fn damaged(partition: &Partition, page: PageNo, damage: Damage) -> Error {
    Fault::new(page, &damage.expected, &damage.found).into_error(partition)
}

/// Makes `page` a partition header with one bitmap page. Its identity is there already.
pub(crate) fn format_header(page: &mut [u8]) {
    header::set_kind(page, header::kind::PARTITION_HEADER);
    let (partition, database_id) = ([page[12], page[13], page[14], page[15]], u64_bytes(page, 16));
    page[40..48].copy_from_slice(MAGIC);
    page[48..52].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    let page_bytes = page.len() as u32;
    page[52..56].copy_from_slice(&page_bytes.to_le_bytes());
    page[56..60].copy_from_slice(&partition);
    page[60..64].copy_from_slice(&1_u32.to_le_bytes());
    page[64..72].copy_from_slice(&database_id);
}

fn u64_bytes(page: &[u8], at: usize) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&page[at..at + 8]);
    bytes
}

/// Makes `page`, which is zeros, a bitmap with `count` bits set from `first`.
pub(crate) fn format_bitmap(page: &mut [u8], geometry: Geometry, first: u32, count: u32) {
    header::set_kind(page, header::kind::BITMAP);
    let assigned = geometry.assign(page, first, count, true);
    debug_assert!(assigned, "a new bitmap has no bits set");
}
