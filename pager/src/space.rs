//! Free space: where the allocation bitmaps are and how to search one. Pure functions over page bytes; the
//! engine changes bitmaps only inside logged structure changes.

use crate::PageNo;

/// Where the bits of a partition's pages are, for one page size.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    page_bytes: usize,
}

#[expect(unused_variables, reason = "interface")]
impl Geometry {
    /// For this page size, bytes.
    pub const fn new(page_bytes: usize) -> Self {
        Geometry { page_bytes }
    }

    /// Pages one bitmap page covers: (page_bytes - 64) * 8. Bitmap page k is page `1 + k * coverage` (page 0 is the
    /// partition's header) and covers pages `k * coverage .. (k + 1) * coverage`.
    pub const fn coverage(&self) -> u32 {
        ((self.page_bytes - 64) * 8) as u32
    }

    /// The bitmap page that covers `page`.
    pub const fn bitmap_of(&self, page: PageNo) -> PageNo {
        PageNo(1 + page.0 / self.coverage() * self.coverage())
    }

    /// The bit of `page` in its bitmap page.
    pub const fn bit_of(&self, page: PageNo) -> u32 {
        page.0 % self.coverage()
    }

    /// Whether this page is a bitmap.
    pub const fn is_bitmap(&self, page: PageNo) -> bool {
        page.0 % self.coverage() == 1
    }

    /// First run of `count` clear bits at or after bit `from` within a bitmap page, wrapping around once.
    pub fn find_clear(&self, bitmap: &[u8], from: u32, count: u32) -> Option<u32> {
        unimplemented!()
    }

    /// Whether a page's bit is set.
    pub fn is_set(&self, bitmap: &[u8], bit: u32) -> bool {
        unimplemented!()
    }

    /// Sets (`true`) or clears `count` bits from `first`. `false`, changing nothing, if any had that value already or
    /// the range leaves the page.
    pub fn assign(&self, bitmap: &mut [u8], first: u32, count: u32, value: bool) -> bool {
        unimplemented!()
    }

    /// Number of set bits.
    pub fn count_set(&self, bitmap: &[u8]) -> u32 {
        unimplemented!()
    }
}
