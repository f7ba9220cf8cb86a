//! The redo pass: repeats history for every page that may miss changes, losers' changes included.
//!
//! I1. A change is applied if and only if its page is in the dirty page table with `rec_lsn` at or below the record, and the page's
//!     LSN is below the record's.
//! I2. Then the page's LSN equals the record's `page_prev_lsn`, or a write was lost (F14): `Corrupt`, never a guess. Blind changes
//!     need no predecessor.
//! I3. One page's part is applied without the others of its record.
//! I4. A page that the file does not have yet is less than one bitmap's pages behind its end: whoever took it had a bitmap for it, and
//!     that bitmap's page is in the file, or was redone earlier. A number further out is damage, not a reason to fill the disk.

use hamal_pager::space::Geometry;
use hamal_pager::{Attempt, PageNo, Partition, header};
use hamal_wal::{LogOptions, Lsn};

use super::analysis::Analysis;
use super::{partition_report, progress, scanner};
use crate::engine::Engine;
use crate::record::{PagePart, Record};
use crate::report::{RecoveryPass, RecoveryReport};
use crate::{Error, ErrorKind, Result};

/// What became of one page's part.
enum Outcome {
    Redone,
    /// The page has it already.
    Skipped,
}

pub(super) fn run(
    engine: &Engine,
    log_options: &LogOptions,
    analysis: &Analysis,
    report: &mut RecoveryReport,
) -> Result<()> {
    let from = analysis.redo_lsn().map(|lsn| lsn.0);
    let _span = tracing::info_span!("redo", from, end = analysis.resume.end.0).entered();
    let started = engine.storage.monotonic();
    let end = analysis.resume.end;
    if let Some(from) = analysis.redo_lsn() {
        let mut scanner = scanner(&engine.storage, log_options, from, end)?;
        while let Some(frame) = scanner.next_frame()? {
            if frame.lsn >= end {
                break;
            }
            let lsn = frame.lsn;
            let record = Record::decode(frame.payload).map_err(|e| e.context(format!("log record {lsn}")))?;
            for part in record.parts() {
                if analysis.rec_lsn(part.partition, part.page).is_none_or(|rec_lsn| lsn < rec_lsn) {
                    continue;
                }
                let outcome = redo_part(engine, lsn, part).map_err(|e| {
                    e.context(format!(
                        "redo of log record {lsn} on page {} of part/{}.dat",
                        part.page, part.partition
                    ))
                })?;
                let partition = partition_report(report, part.partition);
                match outcome {
                    Outcome::Redone => {
                        partition.redone += 1;
                        report.redo.applied += 1;
                    }
                    Outcome::Skipped => partition.skipped += 1,
                }
            }
            report.redo.records += 1;
            report.redo.bytes = frame.end.0 - from.0;
            if report.redo.records.is_multiple_of(65_536) {
                progress(&engine.options, RecoveryPass::Redo, report.redo.bytes, end.0 - from.0)?;
            }
        }
    }
    report.redo.pages = report.analysis.pages;
    report.redo.elapsed = engine.storage.monotonic().saturating_sub(started);
    progress(&engine.options, RecoveryPass::Redo, report.redo.bytes, report.redo.bytes)
}

/// How many pages a file must have so that `page` is one of them (I4).
fn pages_with(engine: &Engine, partition: &Partition, page: PageNo) -> Result<u32> {
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

fn redo_part(engine: &Engine, lsn: Lsn, part: &PagePart<'_>) -> Result<Outcome> {
    // Page 0 is formatted by the record that makes the partition: the file itself may never have become durable (F8).
    let creates = part.page == PageNo(0) && part.change.is_blind();
    let handle = match engine.partition(part.partition) {
        Err(e) if creates && e.kind() == ErrorKind::Corrupt => engine.create_partition(part.partition)?,
        other => other?,
    };
    let partition = &handle.partition;
    let mut page = if part.change.is_blind() {
        partition.ensure_file_pages(pages_with(engine, partition, part.page)?)?;
        match partition.try_exclusive(part.page) {
            Attempt::Fixed(page) if header::page_lsn(page.bytes()) >= lsn => return Ok(Outcome::Skipped),
            // Whatever the page was before goes first: it may have been of the other class.
            Attempt::Fixed(page) => page.discard(),
            Attempt::Busy | Attempt::Absent => {}
        }
        partition.fix_new(part.page, part.change.class())?
    } else {
        partition.fix_exclusive(part.page)?
    };
    let page_lsn = header::page_lsn(page.bytes());
    if page_lsn >= lsn {
        return Ok(Outcome::Skipped);
    }
    if !part.change.is_blind() {
        if page_lsn != part.page_prev_lsn {
            return Err(Error::corrupt(
                format!("part/{}.dat", part.partition),
                u64::from(part.page.0) * engine.page_bytes as u64,
                format!("page LSN {} (a write has been lost)", part.page_prev_lsn),
                page_lsn,
            ));
        }
        part.change.check(page.bytes())?;
    }
    page.mark_dirty(|| lsn);
    page.edit(|bytes| {
        part.change.apply(bytes);
        header::set_page_lsn(bytes, lsn);
    });
    Ok(Outcome::Redone)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hamal_pager::PartitionId;
    use hamal_storage::sim::{CrashMode, SimStorage};

    use super::*;
    use crate::change::PageChange;
    use crate::{Maintenance, Options};

    #[test]
    fn a_page_number_far_behind_the_file_is_corrupt_and_takes_no_disk_space() {
        let options = || Options::new().page_bytes(4096).maintenance(Maintenance::Manual);
        for page in [1 << 20, 1 << 31, u32::MAX] {
            let disk = SimStorage::new(1);
            let db = options().open_on(Arc::new(disk.clone())).unwrap();
            db.transact(|tx| tx.open_bytes_table("t")?.put(b"k", b"v")).unwrap();
            let partition = PartitionId(db.tables().unwrap()[0].partitions[0]);
            let change = PageChange::Overflow { data: &[1, 2, 3] };
            let part = PagePart { partition, page: PageNo(page), page_prev_lsn: Lsn::NEVER, change };
            db.handle.engine.journal.append(&Record::Structure { parts: vec![part] }).unwrap();
            db.flush().unwrap();
            let image = disk.crash_image(CrashMode::KeepAll, 1);
            let used = image.used_bytes();
            let error = options().open_on(Arc::new(image.clone())).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(image.used_bytes() < used + (4 << 20), "page {page}: {}", image.used_bytes());
        }
    }
}
