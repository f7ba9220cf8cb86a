//! Redo of one page's part of a record: what decides, and what is checked first. The same for one thread and for many.

use hamal_pager::space::Geometry;
use hamal_pager::{Attempt, ExclusivePage, PageNo, Partition, header};
use hamal_wal::Lsn;

use crate::change::PageChange;
use crate::engine::Engine;
use crate::record::PagePart;
use crate::recovery::changes::EncodedPart;
use crate::{Error, ErrorKind, Result};

/// One page's part of a record, for whoever redoes it. The change stays where it was decoded: to move what has just been put together from
/// small fields, a processor waits for all that it has yet to store, and redo has always just changed a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<'s> {
    /// The record.
    pub(crate) lsn: Lsn,
    pub(crate) page: PageNo,
    pub(crate) page_prev_lsn: Lsn,
    pub(crate) change: &'s PageChange<'s>,
}

impl<'s> Step<'s> {
    pub(crate) fn of(lsn: Lsn, part: &'s PagePart<'s>) -> Step<'s> {
        Step { lsn, page: part.page, page_prev_lsn: part.page_prev_lsn, change: &part.change }
    }
}

/// What became of one page's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Redone,
    /// The page has it already.
    Skipped,
    /// The page is left to the redo pass.
    Left,
}

/// How many pages a file must have so that `page` is one of them (I4 of the pass).
pub(crate) fn pages_with(engine: &Engine, partition: &Partition, page: PageNo) -> Result<u32> {
    let most = partition.file_pages().saturating_add(Geometry::new(engine.page_bytes).coverage());
    page.0.checked_add(1).filter(|pages| *pages <= most).ok_or_else(|| {
        Error::corrupt(
            format!("part/{}.dat", partition.id()),
            u64::from(page.0) * engine.page_bytes as u64,
            format!("a page below {most}, as the file and its next bitmap have"),
            page,
        )
    })
}

/// Adds to an error which record was being redone, and where.
pub(crate) fn in_redo(error: Error, lsn: Lsn, partition: impl std::fmt::Display, page: PageNo) -> Error {
    error.context(format!("redo of log record {lsn} on page {page} of part/{partition}.dat"))
}

/// Redoes a part whose partition is open and, if the change is blind, has room for the page.
pub(crate) fn redo_part(partition: &Partition, step: Step<'_>) -> Result<Outcome> {
    let Some(page) = fix_for(partition, step)? else { return Ok(Outcome::Skipped) };
    let page_lsn = header::page_lsn(page.bytes());
    if continues(page_lsn, step) {
        return apply(page, step);
    }
    if page_lsn < step.page_prev_lsn {
        // F14: what is on the disk is older than what had been written there.
        page.discard();
        partition.read_anew(step.page, step.page_prev_lsn)?;
        let healed = header::page_lsn(partition.fix_shared(step.page)?.bytes());
        return if healed >= step.lsn { Ok(Outcome::Skipped) } else { redo_part(partition, step) };
    }
    Err(Error::corrupt(
        format!("part/{}.dat", partition.id()),
        u64::from(step.page.0) * partition.page_bytes() as u64,
        format!("page LSN {} (a write has been lost)", step.page_prev_lsn),
        page_lsn,
    ))
}

/// The same, but that nothing is done to a page that is not what the part says that it was: it is left to whoever knows more.
pub(super) fn redo_or_leave(partition: &Partition, step: Step<'_>) -> Result<Outcome> {
    let Some(page) = fix_for(partition, step)? else { return Ok(Outcome::Skipped) };
    if continues(header::page_lsn(page.bytes()), step) { apply(page, step) } else { Ok(Outcome::Left) }
}

/// The part's page; `None` if it has the part already.
fn fix_for<'p>(partition: &'p Partition, step: Step<'_>) -> Result<Option<ExclusivePage<'p>>> {
    let page = if step.change.is_blind() {
        match partition.try_exclusive(step.page) {
            Attempt::Fixed(page) if header::page_lsn(page.bytes()) >= step.lsn => return Ok(None),
            // Whatever the page was before goes first: it may have been of the other class.
            Attempt::Fixed(page) => page.discard(),
            Attempt::Busy | Attempt::Absent => {}
        }
        partition.fix_new(step.page, step.change.class())?
    } else {
        partition.fix_exclusive(step.page)?
    };
    Ok((header::page_lsn(page.bytes()) < step.lsn).then_some(page))
}

/// Whether a page with this LSN is the one that the part was done to (I2 of the pass).
fn continues(page_lsn: Lsn, step: Step<'_>) -> bool {
    step.change.is_blind() || page_lsn == step.page_prev_lsn
}

fn apply(mut page: ExclusivePage<'_>, step: Step<'_>) -> Result<Outcome> {
    page.mark_dirty(|| step.lsn);
    page.edit(|bytes| {
        step.change.check_and_apply(bytes)?;
        header::set_page_lsn(bytes, step.lsn);
        Ok(Outcome::Redone)
    })
}

/// Whether the part may make its partition's file: page 0 is formatted by the record that makes the partition, and the file itself
/// may never have become durable (F8).
pub(super) fn creates(part: EncodedPart<'_>, error: &Error) -> bool {
    part.page == PageNo(0) && part.change.is_blind() && error.kind() == ErrorKind::Corrupt
}

/// The encoding's length, bytes: what a part counts for in the report.
pub(super) fn part_bytes(change: &PageChange<'_>) -> u64 {
    (crate::record::PART_BYTES + change.encoded_bytes()) as u64
}
