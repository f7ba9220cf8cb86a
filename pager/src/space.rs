//! Free space: where the allocation bitmaps are and how to search one. Pure functions over page bytes; the
//! engine changes bitmaps only inside logged structure changes.

use crate::PageNo;

/// Where the bits start in a bitmap page.
const BITS_FROM: usize = 64;

/// Where the bits of a partition's pages are, for one page size.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    page_bytes: usize,
}

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
        let end = self.coverage();
        if count == 0 || count > end {
            return None;
        }
        let from = if from < end { from } else { 0 };
        // The second search may run past `from`: a run may lie across it.
        let again = from.saturating_add(count - 1).min(end);
        Self::find_in(bitmap, from, end, count).or_else(|| Self::find_in(bitmap, 0, again, count))
    }

    /// First run of `count` clear bits that lies in `from..end`.
    fn find_in(bitmap: &[u8], from: u32, end: u32, count: u32) -> Option<u32> {
        let (mut start, mut bit) = (from, from);
        while bit < end {
            let (skip, ones) = Self::look_at(bitmap, bit);
            if ones {
                bit = bit.saturating_add(skip);
                start = bit;
            } else {
                bit = bit.saturating_add(skip).min(end);
                if bit - start >= count {
                    return Some(start);
                }
            }
        }
        None
    }

    /// How many bits from `bit` to the end of its word have the same value, and whether that is 1.
    fn look_at(bitmap: &[u8], bit: u32) -> (u32, bool) {
        let at = BITS_FROM + bit as usize / 64 * 8;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&bitmap[at..at + 8]);
        let (word, left) = (u64::from_le_bytes(bytes) >> (bit % 64), 64 - bit % 64);
        let ones = word & 1 == 1;
        let same = if ones { word.trailing_ones() } else { word.trailing_zeros() };
        (same.min(left), ones)
    }

    /// Whether a page's bit is set. `false` beyond the page.
    pub fn is_set(&self, bitmap: &[u8], bit: u32) -> bool {
        bit < self.coverage() && bitmap[BITS_FROM + bit as usize / 8] & (1 << (bit % 8)) != 0
    }

    /// How many bits there are up to the last that is set, rounded up to a multiple of eight; 0: none is.
    pub fn bits_to_last_set(&self, bitmap: &[u8]) -> u32 {
        let bits = &bitmap[BITS_FROM..][..self.coverage().div_ceil(8) as usize];
        bits.iter().rposition(|byte| *byte != 0).map_or(0, |last| 8 * (last as u32 + 1))
    }

    /// Sets (`true`) or clears `count` bits from `first`. `false`, changing nothing, if any had that value already or
    /// the range leaves the page.
    pub fn assign(&self, bitmap: &mut [u8], first: u32, count: u32, value: bool) -> bool {
        let range = match first.checked_add(count) {
            Some(end) if end <= self.coverage() => first..end,
            _ => return false,
        };
        if range.clone().any(|bit| self.is_set(bitmap, bit) == value) {
            return false;
        }
        for bit in range {
            bitmap[BITS_FROM + bit as usize / 8] ^= 1 << (bit % 8);
        }
        true
    }

    /// Number of set bits.
    pub fn count_set(&self, bitmap: &[u8]) -> u32 {
        bitmap[BITS_FROM..self.page_bytes].iter().map(|byte| byte.count_ones()).sum()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry::new(4096);

    /// What `find_clear` must answer, bit by bit.
    fn find_slowly(bitmap: &[u8], from: u32, count: u32) -> Option<u32> {
        let end = GEOMETRY.coverage();
        let from = if from < end { from } else { 0 };
        let fits =
            |start: u32| start + count <= end && (start..start + count).all(|b| !GEOMETRY.is_set(bitmap, b));
        (from..end).chain(0..from).find(|&start| fits(start))
    }

    #[test]
    fn a_run_of_clear_bits_is_found_where_a_search_bit_by_bit_finds_it() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move |below: u32| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % u64::from(below)) as u32
        };
        for round in 0..60 {
            let mut bitmap = vec![0; 4096];
            for _ in 0..next(400) {
                let (first, count) = (next(GEOMETRY.coverage()), 1 + next(200));
                GEOMETRY.assign(&mut bitmap, first, count, true);
            }
            for _ in 0..20 {
                let (from, count) =
                    (next(GEOMETRY.coverage() + 100), 1 + next(if round % 2 == 0 { 4 } else { 900 }));
                let found = GEOMETRY.find_clear(&bitmap, from, count);
                assert_eq!(
                    found,
                    find_slowly(&bitmap, from, count),
                    "round {round}, from {from}, count {count}"
                );
            }
        }
    }

    #[test]
    fn a_full_bitmap_has_no_room_and_an_empty_one_has_all() {
        let (all, mut bitmap) = (GEOMETRY.coverage(), vec![0; 4096]);
        assert_eq!(GEOMETRY.find_clear(&bitmap, 7, all), Some(0));
        assert_eq!(GEOMETRY.find_clear(&bitmap, 0, all + 1), None);
        assert!(GEOMETRY.assign(&mut bitmap, 0, all, true));
        assert_eq!(GEOMETRY.count_set(&bitmap), all);
        assert_eq!(GEOMETRY.find_clear(&bitmap, 0, 1), None);
        assert!(bitmap[..BITS_FROM].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn assigning_what_is_assigned_already_changes_nothing() {
        let mut bitmap = vec![0; 4096];
        assert!(GEOMETRY.assign(&mut bitmap, 10, 5, true));
        let before = bitmap.clone();
        assert!(!GEOMETRY.assign(&mut bitmap, 5, 10, true));
        assert!(!GEOMETRY.assign(&mut bitmap, 14, 2, false));
        assert!(!GEOMETRY.assign(&mut bitmap, GEOMETRY.coverage() - 1, 2, true));
        assert!(!GEOMETRY.assign(&mut bitmap, u32::MAX, 2, true));
        assert_eq!(bitmap, before);
        assert!(GEOMETRY.assign(&mut bitmap, 10, 5, false));
        assert_eq!(GEOMETRY.count_set(&bitmap), 0);
    }
}
