//! Runs of pages: allocated, filled, taken back.

use hamal_pager::space::Geometry;
use hamal_pager::{Attempt, ExclusivePage, PageClass, PageNo, Partition};
use hamal_wal::Lsn;

use super::Tag;
use crate::change::PageChange;
use crate::journal::{Author, Chain, Journal};
use crate::node::Damage;
use crate::record::Undo;
use crate::space::Space;
use crate::{Error, Result};

/// Neighbouring pages under one bitmap, all of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    /// The first page.
    pub(crate) first: PageNo,
    /// How many there are.
    pub(crate) count: u32,
}

/// Longest run in a list, bytes: what is freed in one go.
const MAX_RUN_BYTES: usize = 256 << 10;
/// The last page that is no overflow page for certain: the first leaf of the system tree.
const LAST_FIXED_PAGE: PageNo = PageNo(5);

impl Run {
    /// Encoded, in a reference or an index.
    pub(super) const BYTES: usize = 8;

    pub(super) fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.first.0.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
    }

    /// The pages.
    pub(crate) fn pages(self) -> impl Iterator<Item = PageNo> {
        (self.first.0..self.first.0.saturating_add(self.count)).map(PageNo)
    }

    /// Whether the run can be one: it lies in the file, under one bitmap, and is none of the pages that are never free.
    pub(super) fn check(self, partition: &Partition) -> Result<(), Damage> {
        let end = u64::from(self.first.0) + u64::from(self.count);
        if end > partition.file_pages().into() {
            return Err(Damage { expected: "a run of pages that lies in the file", found: end });
        }
        self.check_bits(Geometry::new(partition.page_bytes()))
    }

    /// The same, but for the file: a crash may have cut off pages that were reserved and never written.
    fn check_bits(self, geometry: Geometry) -> Result<(), Damage> {
        let end = u64::from(self.first.0) + u64::from(self.count);
        if self.count == 0 {
            return Err(Damage { expected: "a run of pages", found: 0 });
        }
        if self.first <= LAST_FIXED_PAGE {
            return Err(Damage { expected: "a run of overflow pages", found: self.first.0.into() });
        }
        let (first_bit, end_bit) =
            (geometry.bit_of(self.first), u64::from(geometry.bit_of(self.first)) + u64::from(self.count));
        // Bit 1 is the bitmap's own.
        if end_bit > geometry.coverage().into() || (first_bit <= 1 && end_bit > 1) {
            return Err(Damage { expected: "a run of pages under one bitmap", found: end });
        }
        Ok(())
    }

    /// Puts `next` behind this run, if they may be one.
    fn extend(&mut self, next: Run, page_bytes: usize) -> bool {
        let geometry = Geometry::new(page_bytes);
        let count = self.count + next.count;
        let joins = self.first.0 + self.count == next.first.0
            && geometry.bitmap_of(self.first) == geometry.bitmap_of(next.first)
            && count as usize <= MAX_RUN_BYTES / page_bytes;
        if joins {
            self.count = count;
        }
        joins
    }
}

/// Appends a run to a list, to the last one of it if possible.
pub(super) fn push(runs: &mut Vec<Run>, next: Run, page_bytes: usize) {
    if !runs.last_mut().is_some_and(|last| last.extend(next, page_bytes)) {
        runs.push(next);
    }
}

/// Allocates `count` neighbouring pages in the transaction's chain. The caller holds no latch.
pub(super) fn allocate(journal: &Journal, chain: &Chain, space: &Space, count: u32) -> Result<(Run, Lsn)> {
    let reservation = space.reserve(journal, count)?;
    let run = Run { first: reservation.first(), count };
    let (author, change) = (Author::Transaction(chain), reservation.set_bits());
    let mut admission = journal.admit(author, 1, change.encoded_bytes(), 0)?;
    let mut bitmap = space.partition().fix_exclusive(reservation.bitmap())?;
    change.check(bitmap.bytes()).map_err(|error| place(error, &bitmap, space))?;
    let undo = Undo::Extent { first: run.first, count };
    let lsn = journal.write(&mut admission, author, &mut [(&mut bitmap, change)], Some(&undo))?;
    Ok((run, lsn))
}

/// Fills one page of a run just allocated. The caller holds no latch.
pub(super) fn fill(journal: &Journal, space: &Space, page: PageNo, tag: Tag, part: &[u8]) -> Result<()> {
    let mut data = Vec::with_capacity(Tag::BYTES + part.len());
    data.extend_from_slice(&tag.encode());
    data.extend_from_slice(part);
    let change = PageChange::Overflow { data: &data };
    let mut admission = journal.admit(Author::System, 1, change.encoded_bytes(), 0)?;
    let mut page = space.partition().fix_new(page, PageClass::Plain)?;
    change.check(page.bytes()).map_err(|error| place(error, &page, space))?;
    journal.write(&mut admission, Author::System, &mut [(&mut page, change)], None)?;
    Ok(())
}

/// Takes an allocation back, by a compensation record.
pub(crate) fn undo_extent(
    journal: &Journal,
    author: Author<'_>,
    space: &Space,
    first: PageNo,
    count: u32,
) -> Result<()> {
    let run = Run { first, count };
    run.check_bits(space.geometry())
        .map_err(|damage| crate::space::damaged(space.partition(), first, damage))?;
    let change = clear_bits(space, run);
    let mut admission = journal.admit(author, 1, change.encoded_bytes(), 0)?;
    let mut bitmap = space.partition().fix_exclusive(space.geometry().bitmap_of(first))?;
    change.check(bitmap.bytes()).map_err(|error| place(error, &bitmap, space))?;
    journal.write(&mut admission, author, &mut [(&mut bitmap, change)], None)?;
    forget(space, run, &bitmap);
    drop(bitmap);
    space.freed(first);
    Ok(())
}

/// The bitmap's change that frees a run.
pub(super) fn clear_bits(space: &Space, run: Run) -> PageChange<'static> {
    PageChange::ClearBits { first: space.geometry().bit_of(run.first), count: run.count }
}

/// Drops the pages of a run just freed from memory, so that they are not written for nothing. As long as their bitmap is latched
/// nobody can get them, so what is dropped is nobody's; a page that somebody has latched (to write it back) just stays.
pub(super) fn forget(space: &Space, run: Run, _bitmap: &ExclusivePage<'_>) {
    for page in run.pages() {
        if let Attempt::Fixed(page) = space.partition().try_exclusive(page) {
            page.discard();
        }
    }
}

/// Says where a change does not fit.
pub(super) fn place(error: Error, page: &ExclusivePage<'_>, space: &Space) -> Error {
    error.context(format_args!("page {} of part/{}.dat", page.page_no(), space.partition().id()))
}
