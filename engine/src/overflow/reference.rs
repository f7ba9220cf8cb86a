//! The reference a row has in its value's place, and the list of runs behind it.

use hamal_pager::{PageNo, Partition};
use hamal_wal::Lsn;

use super::run::{Run, push};
use super::{MAX_VALUE_BYTES, Tag, data_pages, index_runs, part_bytes};
use crate::change::overflow_data;
use crate::codec::{take_u8, take_u32, take_u64};
use crate::node::Damage;
use crate::space::damaged;
use crate::{Error, ErrorKind, Result};

/// Runs a reference lists itself; more go to an index.
pub(super) const MAX_INLINE_RUNS: usize = 10;
/// In the place of the number of runs: there is an index.
const INDEX: u8 = 255;

/// Where the list of runs is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum List {
    /// Here.
    Inline(Vec<Run>),
    /// In a chain of index pages.
    Index(PageNo),
}

/// What a row has in its value's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) total_bytes: u64,
    /// The value's identity.
    pub(super) value: Lsn,
    pub(super) list: List,
}

impl Reference {
    /// Length of a reference that lists this many runs itself, bytes.
    pub(super) const fn inline_bytes(runs: usize) -> usize {
        17 + runs * Run::BYTES
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Reference::inline_bytes(MAX_INLINE_RUNS));
        out.extend_from_slice(&self.total_bytes.to_le_bytes());
        out.extend_from_slice(&self.value.0.to_le_bytes());
        match &self.list {
            List::Inline(runs) => {
                debug_assert!(runs.len() <= MAX_INLINE_RUNS, "the writer moves longer lists to an index");
                out.push(runs.len() as u8);
                for run in runs {
                    run.encode(&mut out);
                }
            }
            List::Index(first) => {
                out.push(INDEX);
                out.extend_from_slice(&first.0.to_le_bytes());
            }
        }
        out
    }

    /// Decodes a reference of this partition: what it says is possible, if not yet true.
    pub(super) fn decode(partition: &Partition, bytes: &[u8]) -> Result<Reference> {
        let input = &mut &*bytes;
        let total_bytes = take_u64(input, "an overflow reference")?;
        let value = Lsn(take_u64(input, "an overflow reference")?);
        let pages = data_pages(total_bytes.min(MAX_VALUE_BYTES), partition.page_bytes());
        if total_bytes > MAX_VALUE_BYTES || pages > partition.file_pages() {
            return Err(bad(partition, "a value no longer than its file", total_bytes));
        }
        let list = match take_u8(input, "an overflow reference")? {
            INDEX => List::Index(PageNo(take_u32(input, "an overflow reference")?)),
            count if usize::from(count) <= MAX_INLINE_RUNS => {
                let mut runs = Vec::with_capacity(count.into());
                for _ in 0..count {
                    runs.push(take_run(input)?);
                }
                List::Inline(runs)
            }
            count => return Err(bad(partition, "at most 10 runs in an overflow reference", count.into())),
        };
        if !input.is_empty() {
            return Err(bad(partition, "the end of an overflow reference", input.len() as u64));
        }
        Ok(Reference { total_bytes, value, list })
    }
}

fn take_run(input: &mut &[u8]) -> Result<Run> {
    Ok(Run {
        first: PageNo(take_u32(input, "a run of overflow pages")?),
        count: take_u32(input, "a run of overflow pages")?,
    })
}

/// Damage in a reference: which row has it, the caller may know.
fn bad(partition: &Partition, expected: &str, found: u64) -> Error {
    let file = partition.id();
    Error::new(
        ErrorKind::Corrupt,
        format!("part/{file}.dat holds a damaged overflow reference: expected {expected}, found {found}"),
    )
}

/// The list of runs, a piece at a time: the reference's own, or one index page's. It holds one piece in memory and is checked as it
/// is read: runs are possible ones, and add up to the value's pages. A piece that fails its checks leaves the one before in place,
/// and the next try finds it again.
#[derive(Clone, Debug)]
pub(super) struct Runs {
    reference: Reference,
    /// The pages of the value.
    pages: u32,
    /// The piece at hand.
    pub(super) piece: Vec<Run>,
    /// Parts of the value before the piece.
    pub(super) parts_before: u32,
    /// Parts in the piece.
    pub(super) parts: u32,
    /// The next index page.
    next: Option<PageNo>,
    /// Index pages read.
    index_pages: u32,
}

impl Runs {
    pub(super) fn new(partition: &Partition, reference: Reference) -> Result<Runs> {
        let pages = data_pages(reference.total_bytes, partition.page_bytes());
        let mut runs = Runs {
            reference,
            pages,
            piece: Vec::new(),
            parts_before: 0,
            parts: 0,
            next: None,
            index_pages: 0,
        };
        runs.rewind(partition)?;
        Ok(runs)
    }

    pub(super) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Back to the first piece; an index is not read yet, and the piece is empty.
    pub(super) fn rewind(&mut self, partition: &Partition) -> Result<()> {
        (self.parts_before, self.parts, self.index_pages, self.next) = (0, 0, 0, None);
        self.piece.clear();
        match &self.reference.list {
            List::Inline(runs) => {
                self.parts = self
                    .check_piece(partition, runs, 0, false)
                    .map_err(|damage| bad(partition, damage.expected, damage.found))?;
                self.piece.extend_from_slice(runs);
                Ok(())
            }
            List::Index(first) => {
                self.next = Some(*first);
                Ok(())
            }
        }
    }

    /// Goes on to the next piece, an index page, and gives its page; `None` at the end.
    pub(super) fn advance(&mut self, partition: &Partition) -> Result<Option<PageNo>> {
        let Some(page) = self.next else { return Ok(None) };
        Run { first: page, count: 1 }
            .check(partition)
            .map_err(|damage| bad(partition, damage.expected, damage.found))?;
        let tag = Tag { value: self.reference.value.0, part: Tag::FIRST_INDEX_PART + self.index_pages };
        read_page(partition, page, tag, |list| {
            let input = &mut &*list;
            let next = take_u32(input, "an overflow index page")?;
            let mut piece = Vec::with_capacity(input.len() / Run::BYTES);
            while !input.is_empty() {
                piece.push(take_run(input)?);
            }
            let parts_before = self.parts_before + self.parts;
            let parts = self
                .check_piece(partition, &piece, parts_before, next != 0)
                .map_err(|damage| damaged(partition, page, damage))?;
            (self.parts_before, self.parts, self.piece) = (parts_before, parts, piece);
            self.next = (next != 0).then_some(PageNo(next));
            self.index_pages += 1;
            Ok(())
        })?;
        Ok(Some(page))
    }

    /// Checks the runs of a piece and adds them up. Every index page has a run, so a chain that runs in circles adds up to too much.
    fn check_piece(
        &self,
        partition: &Partition,
        piece: &[Run],
        parts_before: u32,
        is_more: bool,
    ) -> Result<u32, Damage> {
        let parts: u64 = piece.iter().map(|run| u64::from(run.count)).sum();
        let total = u64::from(parts_before) + parts;
        let whole = if is_more { parts > 0 && total < self.pages.into() } else { total == self.pages.into() };
        if !whole {
            return Err(Damage { expected: "runs that add up to the value's length", found: total });
        }
        piece.iter().try_for_each(|run| run.check(partition))?;
        Ok(parts as u32)
    }
}

/// Reads the part of a value that a page holds, under its shared latch, if it is the one that is expected.
pub(super) fn read_page<R>(
    partition: &Partition,
    page_no: PageNo,
    tag: Tag,
    read: impl FnOnce(&[u8]) -> Result<R>,
) -> Result<R> {
    let page = partition.fix_shared(page_no)?;
    let data = overflow_data(page.bytes()).map_err(|damage| damaged(partition, page_no, damage))?;
    match data.split_first_chunk() {
        Some((found, part)) if *found == tag.encode() => {
            if part.len() > part_bytes(partition.page_bytes()) {
                let found = part.len() as u64;
                return Err(damaged(
                    partition,
                    page_no,
                    Damage { expected: "a part that fits a page", found },
                ));
            }
            read(part)
        }
        _ => {
            let expected = format!("part {} of the value allocated at LSN {}", tag.part, tag.value);
            let offset = u64::from(page_no.0) * partition.page_bytes() as u64;
            let file = format!("part/{}.dat (page {page_no})", partition.id());
            Err(Error::corrupt(file, offset, expected, "another, or none"))
        }
    }
}

/// Calls `visit` with each run that a reference holds, those of its index included.
pub(crate) fn runs_of(
    partition: &Partition,
    reference: &[u8],
    visit: &mut dyn FnMut(Run) -> Result<()>,
) -> Result<()> {
    let mut runs = Runs::new(partition, Reference::decode(partition, reference)?)?;
    let mut index = Vec::new();
    loop {
        runs.piece.iter().try_for_each(|run| visit(*run))?;
        match runs.advance(partition)? {
            Some(page) => push(&mut index, Run { first: page, count: 1 }, partition.page_bytes()),
            None => break,
        }
    }
    index.into_iter().try_for_each(visit)
}

/// The index pages for a list of runs, last one first: each needs the number of the one behind it.
pub(super) fn index_page(runs: &[Run], next: Option<PageNo>) -> Vec<u8> {
    let mut part = Vec::with_capacity(4 + runs.len() * Run::BYTES);
    part.extend_from_slice(&next.unwrap_or(PageNo(0)).0.to_le_bytes());
    for run in runs {
        run.encode(&mut part);
    }
    part
}

/// How many index pages a list of runs takes.
pub(super) fn index_pages(runs: &[Run], page_bytes: usize) -> u32 {
    runs.len().div_ceil(index_runs(page_bytes)) as u32
}
