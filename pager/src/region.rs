//! The memory of one partition's pages: anonymous maps at fixed addresses, and what belongs to each page.
//!
//! Owns where page p is, and the system calls that make and drop memory; not who may touch it (`state`, `guard`).
//! Chunk 0 holds 4096 pages and each further chunk as many as all before it, so a page's chunk is one
//! `leading_zeros`, a small partition takes little address space, and nothing ever moves.
//!
//! I1. A chunk, once made, stays where it is until the region is dropped; pages are aligned to their size within a
//!     chunk, and chunks to 2 MiB, for transparent huge pages.
//! I2. The memory of an evicted page is all zeros: fresh from the system, or dropped by [`drop_pages`].
//! I3. Nobody makes a chunk by a page number out of a file that has not been compared with the file's length.
//! I4. Huge pages are asked for only while all maps together fit the cache (`AddressSpace`): they are populated 2 MiB at a
//!     time, whatever the frames say, so that is what keeps the memory within the budget.

use std::fmt;
use std::slice;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;

use hamal_storage::{Error, Result};
use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

use crate::PageNo;
use crate::state::StateWord;
use crate::sync::AtomicU64;

/// Pages in chunk 0: 2^12.
const FIRST_CHUNK_PAGES: u32 = 4096;
/// Chunks 0..=20 cover all 2^32 page numbers.
const CHUNKS: usize = 21;
/// Pages whose memory is given back at once when huge pages are given up.
const BATCH_PAGES: usize = 256;
/// Chunks start at multiples of this.
const ALIGN_BYTES: usize = 2 << 20;

/// When to back pages in memory with transparent huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// For the larger maps, as long as everything that is mapped fits the cache: lookups cost fewer TLB misses.
    #[default]
    WhenAllFits,
    /// Never.
    Never,
}

/// How much is mapped by all regions of a cache; locked while a chunk is made.
#[derive(Debug)]
pub(crate) struct AddressSpace {
    pub(crate) huge_pages: HugePages,
    /// What may be mapped with huge pages about: what the frames may hold.
    limit_bytes: u64,
    mapped_bytes: u64,
}

/// Whether a chunk was made, and what that means for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// Nothing to do.
    Fits,
    /// All maps together no longer fit the cache: those with huge pages must give them up.
    Overflows,
}

impl AddressSpace {
    pub(crate) fn new(limit_bytes: u64) -> Self {
        AddressSpace { huge_pages: HugePages::default(), limit_bytes, mapped_bytes: 0 }
    }

    /// A region is gone.
    pub(crate) fn unmap(&mut self, region: &Region) {
        self.mapped_bytes -= region.mapped_bytes();
    }
}

/// Some of a region's pages: one map, and what belongs to each page of it.
pub(crate) struct Chunk {
    map: MmapRaw,
    /// Bytes from the start of the map to the first page.
    skip: usize,
    page_bytes: usize,
    /// State word and `rec_lsn` of each page, side by side: who changes a page needs both.
    words: Box<[[AtomicU64; 2]]>,
    slot: Box<[AtomicU32]>,
}

/// All pages of a partition.
pub(crate) struct Region {
    page_bytes: usize,
    chunks: [OnceLock<Chunk>; CHUNKS],
}

/// One page's place: its memory and its words.
#[derive(Clone, Copy)]
pub(crate) struct PageAt<'r> {
    chunk: &'r Chunk,
    index: usize,
}

/// The chunk of a page, and its index there.
#[inline]
fn place(page: PageNo) -> (usize, usize) {
    let chunk = 20 - (page.0 | (FIRST_CHUNK_PAGES - 1)).leading_zeros();
    let first = if chunk == 0 { 0 } else { FIRST_CHUNK_PAGES << (chunk - 1) };
    (chunk as usize, (page.0 - first) as usize)
}

fn chunk_pages(chunk: usize) -> usize {
    if chunk == 0 { FIRST_CHUNK_PAGES as usize } else { (FIRST_CHUNK_PAGES as usize) << (chunk - 1) }
}

impl Region {
    pub(crate) fn new(page_bytes: usize) -> Self {
        Region { page_bytes, chunks: [const { OnceLock::new() }; CHUNKS] }
    }

    /// Where the page is, if its chunk has been made.
    #[inline]
    pub(crate) fn get(&self, page: PageNo) -> Option<PageAt<'_>> {
        let (chunk, index) = place(page);
        Some(PageAt { chunk: self.chunks[chunk].get()?, index })
    }

    /// Makes the page's chunk, if it has none. The caller has compared `page` with the file's length (I3).
    pub(crate) fn make(&self, page: PageNo, space: &mut AddressSpace) -> Result<Made> {
        let (chunk, _) = place(page);
        if self.chunks[chunk].get().is_some() {
            return Ok(Made::Fits);
        }
        let bytes = (chunk_pages(chunk) * self.page_bytes) as u64;
        let fitted = space.mapped_bytes <= space.limit_bytes;
        let fits = space.mapped_bytes + bytes <= space.limit_bytes;
        // The first chunk of a small partition is mostly empty: a huge page would be waste.
        let huge = fits && chunk > 0 && space.huge_pages == HugePages::WhenAllFits;
        let made = Chunk::make(chunk_pages(chunk), self.page_bytes)?;
        if huge {
            // Nothing depends on it: a system without huge pages says no.
            let _ = made.map.advise(Advice::HugePage);
        }
        space.mapped_bytes += bytes;
        let _ = self.chunks[chunk].set(made);
        Ok(if fitted && !fits { Made::Overflows } else { Made::Fits })
    }

    fn mapped_bytes(&self) -> u64 {
        let made = (0..CHUNKS).filter(|&chunk| self.chunks[chunk].get().is_some());
        made.map(|chunk| (chunk_pages(chunk) * self.page_bytes) as u64).sum()
    }

    /// No more huge pages; the memory of pages that are not in the cache, which came with huge ones, goes back.
    /// `wake` is called for each page that somebody may have been waiting for meanwhile.
    pub(crate) fn give_up_huge_pages(&self, wake: impl Fn(usize)) {
        for chunk in self.chunks.iter().skip(1).filter_map(OnceLock::get) {
            let _ = chunk.map.advise(Advice::NoHugePage);
            let mut absent = Vec::with_capacity(BATCH_PAGES);
            for index in 0..chunk.words.len() {
                let at = PageAt { chunk, index };
                if at.state().begin_load() {
                    absent.push(at);
                }
                if absent.len() == BATCH_PAGES || index + 1 == chunk.words.len() {
                    // SAFETY: the pages are LOADING and ours; they were evicted, so no optimistic reader can reach them.
                    unsafe { drop_pages(&mut absent) };
                    for at in absent.drain(..) {
                        at.state().abandon_load();
                        wake(at.key());
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages: usize = (0..CHUNKS).filter(|&k| self.chunks[k].get().is_some()).map(chunk_pages).sum();
        f.debug_struct("Region")
            .field("page_bytes", &self.page_bytes)
            .field("pages", &pages)
            .finish_non_exhaustive()
    }
}

/// What to tell a user whose system has no address space left for us.
fn no_room(bytes: usize, why: impl fmt::Display) -> Error {
    Error::Limit {
        what: format!("address space for {bytes} bytes of pages"),
        why: format!(
            "{why}; raise the limit on the process's address space (ulimit -v, RLIMIT_AS) and, if \
             vm.overcommit_memory is 2, set it to 0 or 1 or raise vm.overcommit_ratio"
        ),
    }
}

impl Chunk {
    fn make(pages: usize, page_bytes: usize) -> Result<Chunk> {
        let bytes = pages * page_bytes;
        let map = MmapOptions::new()
            .len(bytes + ALIGN_BYTES)
            .no_reserve_swap()
            .map_anon()
            .map_err(|e| no_room(bytes, e))?;
        let map = MmapRaw::from(map);
        let skip = (map.as_ptr() as usize).wrapping_neg() % ALIGN_BYTES;
        let out_of_memory = |()| no_room(bytes, "no memory for its state words");
        Ok(Chunk {
            map,
            skip,
            page_bytes,
            words: bytemuck::try_zeroed_slice_box(pages).map_err(out_of_memory)?,
            slot: bytemuck::try_zeroed_slice_box(pages).map_err(out_of_memory)?,
        })
    }

    #[inline]
    fn page_ptr(&self, index: usize) -> *mut u8 {
        debug_assert!(index < self.words.len());
        self.map.as_mut_ptr().wrapping_add(self.skip + index * self.page_bytes)
    }

    /// Gives the memory of a run of pages back to the system; it reads as zeros from then on.
    ///
    /// # Safety
    ///
    /// The caller owns every page of the run (EXCLUSIVE, LOADING or LEAVING), and no optimistic reader can reach one.
    unsafe fn drop_run(&self, first: usize, pages: usize) {
        let (at, bytes) = (self.skip + first * self.page_bytes, pages * self.page_bytes);
        // SAFETY: nobody has a reference into the range, by the caller's contract; it is within the map, as
        // `first + pages` is within the chunk; it is aligned to system pages, as `Pager::open` refuses
        // smaller pages, so memmap2's rounding does not touch a neighbour.
        if unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, at, bytes) }.is_err() {
            // The system kept the memory (locked into RAM, say): I2 must hold all the same.
            // SAFETY: as above, and the range is mapped writable.
            unsafe { self.page_ptr(first).write_bytes(0, bytes) };
        }
    }
}

impl<'r> PageAt<'r> {
    #[inline]
    pub(crate) fn state(self) -> StateWord<'r> {
        StateWord::new(&self.chunk.words[self.index][0])
    }

    #[inline]
    pub(crate) fn rec_lsn(self) -> &'r AtomicU64 {
        &self.chunk.words[self.index][1]
    }

    /// The frame slot that pays for the page while it is in memory.
    #[inline]
    pub(crate) fn slot(self) -> &'r AtomicU32 {
        &self.chunk.slot[self.index]
    }

    /// The page's address: a name for it that is unique in the process while its region lives.
    pub(crate) fn key(self) -> usize {
        self.chunk.page_ptr(self.index) as usize
    }

    /// The page's bytes.
    ///
    /// # Safety
    ///
    /// While the slice lives nobody writes the page: the caller holds its latch, shared or exclusive.
    #[inline]
    pub(crate) unsafe fn bytes(self) -> &'r [u8] {
        // SAFETY: the page is mapped for as long as the region lives (I1) and initialised (zeros from the system, or
        // written); by the caller's contract nobody writes it meanwhile.
        unsafe { slice::from_raw_parts(self.chunk.page_ptr(self.index), self.chunk.page_bytes) }
    }

    /// The page's bytes, to change.
    ///
    /// # Safety
    ///
    /// The caller owns the page (EXCLUSIVE or LOADING), has no other reference into it, and no optimistic reader can reach
    /// it: it is of class plain, or was evicted before.
    #[inline]
    pub(crate) unsafe fn bytes_mut(self) -> &'r mut [u8] {
        // SAFETY: mapped and initialised as in `bytes`; by the caller's contract this is the only reference.
        unsafe { slice::from_raw_parts_mut(self.chunk.page_ptr(self.index), self.chunk.page_bytes) }
    }

    /// The page's aligned words, for relaxed access.
    ///
    /// # Safety
    ///
    /// While the slice lives the page's bytes are written through such words only: the page is of class inner, and the
    /// caller either holds its latch or is pinned to an epoch in which it was.
    #[inline]
    pub(crate) unsafe fn words(self) -> &'r [AtomicU64] {
        let words = self.chunk.page_bytes / size_of::<AtomicU64>();
        #[expect(clippy::cast_ptr_alignment, reason = "pages are aligned to 4096 bytes")]
        let first = self.chunk.page_ptr(self.index).cast::<AtomicU64>();
        // SAFETY: mapped and initialised as in `bytes`; aligned, as pages are aligned to 4096 bytes; by the caller's
        // contract no write that is not atomic races with an access through the slice.
        unsafe { slice::from_raw_parts(first, words) }
    }
}

/// Gives the memory of pages back to the system, neighbours together: a run of 64 costs a seventh of 64 calls.
/// Sorts `pages` by address.
///
/// # Safety
///
/// The caller owns every page (EXCLUSIVE, LOADING or LEAVING), and no optimistic reader can reach one.
pub(crate) unsafe fn drop_pages(pages: &mut [PageAt<'_>]) {
    pages.sort_unstable_by_key(|at| at.key());
    for run in pages.chunk_by(|a, b| std::ptr::eq(a.chunk, b.chunk) && a.index + 1 == b.index) {
        // SAFETY: the run is of pages that the caller owns and nobody else can reach, by the caller's contract.
        unsafe { run[0].chunk.drop_run(run[0].index, run.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_page_numbers_without_gap_or_overlap() {
        let mut first = 0u64;
        for chunk in 0..CHUNKS {
            let last = first + chunk_pages(chunk) as u64 - 1;
            assert_eq!(place(PageNo(first as u32)), (chunk, 0));
            assert_eq!(place(PageNo(last as u32)), (chunk, chunk_pages(chunk) - 1));
            first = last + 1;
        }
        assert_eq!(first, 1 << 32);
    }

    #[test]
    fn pages_are_aligned_for_huge_pages() {
        let region = Region::new(4096);
        let mut space = AddressSpace::new(1 << 40);
        for page in [0, 4095, 4096, 8191, 8192] {
            region.make(PageNo(page), &mut space).unwrap();
            let at = region.get(PageNo(page)).unwrap();
            assert_eq!(at.key() % 4096, 0);
            assert_eq!((at.key() - at.index * 4096) % ALIGN_BYTES, 0);
        }
        assert_eq!(space.mapped_bytes, 16384 * 4096);
        space.unmap(&region);
        assert_eq!(space.mapped_bytes, 0);
    }

    #[test]
    fn a_region_beyond_the_address_space_is_refused_with_what_to_change() {
        let region = Region::new(65536);
        let mut space = AddressSpace::new(1 << 20);
        // 128 TiB: more than a process can have, so that no limit needs to be set.
        let error = region.make(PageNo(u32::MAX), &mut space).unwrap_err();
        assert!(matches!(error, Error::Limit { .. }));
        assert!(
            error.to_string().contains("ulimit -v") && error.to_string().contains("overcommit"),
            "{error}"
        );
        assert!(region.get(PageNo(u32::MAX)).is_none());
        region.make(PageNo(0), &mut space).unwrap();
        assert!(region.get(PageNo(1)).is_some());
    }
}
