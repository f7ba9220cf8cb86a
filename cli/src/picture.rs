//! A recovery as a small picture: the log as a line, the three passes as arrows under it, and the same as JSON.
//!
//! ```text
//!   log       |R......C.............L..............|  1,048,576 to 3,735,552
//!   analysis          >>>>>>>>>>>>>>>>>>>>>>>>>>>>>   4,812 records, 2.1 MiB, 3.1 ms
//!   redo       >>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>   3,120 of 4,400 page changes on 310 pages, 2.6 MiB, 9.0 ms
//!   undo                             <<<<<<<<<<<<<<   2 losers, 351 records, 4.5 ms
//!   R redo starts at 1,048,576   C last checkpoint at 1,572,864   L oldest loser starts at 2,621,440
//! ```

use std::fmt::Write as _;

use hamal::{PassReport, RecoveryReport};
use serde_json::{Value as Json, json};

use crate::text::{self, count, grouped};

/// Columns of the log.
const WIDTH: usize = 48;

/// What the passes did, line by line.
pub(crate) fn lines(report: &RecoveryReport) -> Vec<String> {
    draw(report, &redo(report), &undo(report))
}

/// What they would do, as far as analysis alone can tell.
pub(crate) fn planned(report: &RecoveryReport) -> Vec<String> {
    let dirty_pages: u64 = report.partitions.iter().map(|partition| partition.dirty_pages).sum();
    let redo = format!("{} may need it", count(dirty_pages, "page"));
    draw(report, &redo, &format!("{} to roll back", count(report.losers, "loser")))
}

fn draw(report: &RecoveryReport, redo: &str, undo: &str) -> Vec<String> {
    if report.created {
        return vec!["  a new database: no log to recover from".to_owned()];
    }
    if report.clean {
        return vec![format!(
            "  closed cleanly: the log ends at {}, nothing to redo or undo",
            grouped(report.end_lsn)
        )];
    }
    let scale = Scale::of(report);
    let mut marks = Vec::new();
    if report.redo_lsn != 0 {
        marks.push(('R', report.redo_lsn, "redo starts at"));
    }
    marks.push(('C', report.checkpoint_lsn, "last checkpoint at"));
    if report.losers > 0 {
        marks.push(('L', report.oldest_loser_lsn, "oldest loser starts at"));
    }

    let mut log = vec![b'.'; WIDTH];
    // Where two marks fall on one column, the later one in the list is drawn; the legend has them all.
    for (letter, lsn, _) in &marks {
        log[scale.column(*lsn)] = *letter as u8;
    }
    let log = String::from_utf8_lossy(&log).into_owned();
    let torn = if report.torn_tail { ", a torn record behind it cut off" } else { "" };
    let mut lines = vec![
        format!("  log       |{log}|  {} to {}{torn}", grouped(scale.from), grouped(scale.to)),
        format!(
            "  analysis   {}   {}",
            arrow(&scale, report.checkpoint_lsn, '>'),
            analysis(&report.analysis)
        ),
    ];
    lines.push(if report.redo_lsn == 0 {
        format!("  redo       {}   nothing to redo", " ".repeat(WIDTH))
    } else {
        format!("  redo       {}   {}", arrow(&scale, report.redo_lsn, '>'), redo)
    });
    lines.push(if report.losers == 0 {
        format!("  undo       {}   no losers", " ".repeat(WIDTH))
    } else {
        format!("  undo       {}   {}", arrow(&scale, report.oldest_loser_lsn, '<'), undo)
    });
    let legend: Vec<String> =
        marks.iter().map(|(letter, lsn, what)| format!("{letter} {what} {}", grouped(*lsn))).collect();
    lines.push(format!("  {}", legend.join("   ")));
    lines
}

fn analysis(pass: &PassReport) -> String {
    format!(
        "{}, {}, {}",
        count(pass.records, "record"),
        text::bytes(pass.bytes),
        text::duration(pass.elapsed)
    )
}

fn redo(report: &RecoveryReport) -> String {
    let skipped: u64 = report.partitions.iter().map(|partition| partition.skipped).sum();
    let restored: u64 = report.partitions.iter().map(|partition| partition.restored_pages).sum();
    let pass = &report.redo;
    let mut out = format!(
        "{} of {} on {}, {}, {}",
        grouped(pass.applied),
        count(pass.applied + skipped, "page change"),
        count(pass.pages, "page"),
        text::bytes(pass.bytes),
        text::duration(pass.elapsed)
    );
    if report.first_pass_pages > 0 {
        let _ = write!(out, ", {} of them along with analysis", count(report.first_pass_pages, "page"));
    }
    if restored > 0 {
        let _ = write!(out, ", {} mended from the doublewrite area", count(restored, "torn page"));
    }
    out
}

fn undo(report: &RecoveryReport) -> String {
    format!(
        "{}, {} undone, {}",
        count(report.losers, "loser"),
        count(report.undo.applied, "record"),
        text::duration(report.undo.elapsed)
    )
}

/// From an LSN to the log's end.
fn arrow(scale: &Scale, from: u64, head: char) -> String {
    let column = scale.column(from);
    " ".repeat(column) + &head.to_string().repeat(WIDTH - column)
}

/// Maps the part of the log that recovery looked at onto the picture's columns.
struct Scale {
    from: u64,
    to: u64,
}

impl Scale {
    fn of(report: &RecoveryReport) -> Scale {
        let known = [report.checkpoint_lsn, report.redo_lsn, report.oldest_loser_lsn];
        let from = known.into_iter().filter(|lsn| *lsn != 0).min().unwrap_or(0);
        Scale { from, to: report.end_lsn.max(from) }
    }

    fn column(&self, lsn: u64) -> usize {
        let span = u128::from(self.to - self.from).max(1);
        let along = u128::from(lsn.clamp(self.from, self.to) - self.from);
        ((along * WIDTH as u128 / span) as usize).min(WIDTH - 1)
    }
}

/// The whole report, with stable names.
pub(crate) fn to_json(report: &RecoveryReport) -> Json {
    let pass = |pass: &PassReport| {
        json!({
            "records": pass.records,
            "applied": pass.applied,
            "pages": pass.pages,
            "bytes": pass.bytes,
            "elapsed_ms": text::millis(pass.elapsed),
        })
    };
    let partitions: Vec<Json> = report
        .partitions
        .iter()
        .map(|partition| {
            json!({
                "partition": partition.partition,
                "dirty_pages": partition.dirty_pages,
                "redone": partition.redone,
                "skipped": partition.skipped,
                "redo_bytes": partition.redo_bytes,
                "undone": partition.undone,
                "restored_pages": partition.restored_pages,
                "ready_ms": partition.ready.map(text::millis),
            })
        })
        .collect();
    json!({
        "clean": report.clean,
        "created": report.created,
        "checkpoint_lsn": report.checkpoint_lsn,
        "redo_lsn": report.redo_lsn,
        "end_lsn": report.end_lsn,
        "torn_tail": report.torn_tail,
        "losers": report.losers,
        "trailing_losers": report.trailing_losers,
        "oldest_loser_lsn": report.oldest_loser_lsn,
        "winners": report.winners,
        "analysis": pass(&report.analysis),
        "redo": pass(&report.redo),
        "first_pass_pages": report.first_pass_pages,
        "redo_workers": report.redo_workers,
        "undo": pass(&report.undo),
        "undo_workers": report.undo_workers,
        "partitions": partitions,
        "incarnation": report.incarnation,
        "elapsed_ms": text::millis(report.elapsed),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pass(records: u64, applied: u64, pages: u64, bytes: u64, micros: u64) -> PassReport {
        let mut pass = PassReport::default();
        pass.records = records;
        pass.applied = applied;
        pass.pages = pages;
        pass.bytes = bytes;
        pass.elapsed = Duration::from_micros(micros);
        pass
    }

    fn crashed() -> RecoveryReport {
        let mut report = RecoveryReport::default();
        report.checkpoint_lsn = 2_000_000;
        report.redo_lsn = 1_000_000;
        report.oldest_loser_lsn = 3_000_000;
        report.end_lsn = 5_000_000;
        report.losers = 2;
        report.torn_tail = true;
        report.analysis = pass(4812, 0, 0, 3_000_000, 3100);
        report.redo = pass(9000, 3120, 310, 4_000_000, 9000);
        report.undo = pass(351, 351, 40, 0, 4500);
        report
    }

    #[test]
    fn the_picture_shows_where_each_pass_went() {
        let expected = "  log       |R...........C...........L.......................|  1,000,000 to 5,000,000, a torn record behind it cut off
  analysis               >>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>   4,812 records, 2.9 MiB, 3.1 ms
  redo       >>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>>   3,120 of 3,120 page changes on 310 pages, 3.8 MiB, 9.0 ms
  undo                               <<<<<<<<<<<<<<<<<<<<<<<<   2 losers, 351 records undone, 4.5 ms
  R redo starts at 1,000,000   C last checkpoint at 2,000,000   L oldest loser starts at 3,000,000";
        assert_eq!(lines(&crashed()).join("\n"), expected);
    }

    #[test]
    fn a_plan_tells_what_analysis_knows() {
        let mut report = crashed();
        let mut partition = hamal::PartitionReport::default();
        partition.dirty_pages = 17;
        report.partitions.push(partition);
        let lines = planned(&report);
        assert!(lines[2].ends_with("17 pages may need it"), "{lines:?}");
        assert!(lines[3].ends_with("2 losers to roll back"), "{lines:?}");
    }

    #[test]
    fn passes_that_had_nothing_to_do_say_so() {
        let mut report = crashed();
        report.redo_lsn = 0;
        report.losers = 0;
        report.oldest_loser_lsn = 0;
        let lines = lines(&report);
        assert!(lines[2].ends_with("nothing to redo"), "{lines:?}");
        assert!(lines[3].ends_with("no losers"), "{lines:?}");
        assert_eq!(lines[4], "  C last checkpoint at 2,000,000");
    }

    #[test]
    fn a_clean_close_and_a_new_database_need_one_line() {
        let mut report = RecoveryReport::default();
        report.clean = true;
        report.end_lsn = 1234;
        assert_eq!(lines(&report), ["  closed cleanly: the log ends at 1,234, nothing to redo or undo"]);
        report.created = true;
        assert_eq!(lines(&report).len(), 1);
    }

    #[test]
    fn any_numbers_give_a_picture() {
        let mut report = crashed();
        for (checkpoint, redo, loser, end) in
            [(u64::MAX, 1, u64::MAX, 0), (0, 0, 0, 0), (7, 7, 7, 7), (1, u64::MAX, 5, u64::MAX)]
        {
            report.checkpoint_lsn = checkpoint;
            report.redo_lsn = redo;
            report.oldest_loser_lsn = loser;
            report.end_lsn = end;
            assert_eq!(lines(&report).len(), 5);
        }
    }
}
