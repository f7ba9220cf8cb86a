//! `hamal recover`: what recovery would do, or did.

use clap::Args;
use hamal::{RecoveryReport, inspect};
use serde_json::json;

use crate::failure::Result;
use crate::output::{Align, Table};
use crate::picture;
use crate::session::{DatabaseArg, Session, files, open_failure};
use crate::text::grouped;

/// Arguments of `recover`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Every command that opens a database recovers it; this one does nothing else, and shows what it did.

Examples:
  hamal recover bank.hamal --dry-run
  hamal recover bank.hamal")]
pub(crate) struct RecoverArgs {
    #[command(flatten)]
    database: DatabaseArg,
    /// Run the analysis pass only: what recovery will find. Changes nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(args: &RecoverArgs, session: &mut Session) -> Result<()> {
    if args.dry_run {
        let report = inspect::analyze(&files(&args.database)?)
            .map_err(|error| open_failure(&args.database.directory, error))?;
        return tell(&report, session, args);
    }
    session.with_database(&args.database, |session, db| tell(db.recovery_report(), session, args))
}

fn tell(report: &RecoveryReport, session: &mut Session, args: &RecoverArgs) -> Result<()> {
    let out = &mut session.out;
    if out.is_json() {
        return out.json(&json!({ "dry_run": args.dry_run, "recovery": picture::to_json(report) }));
    }
    let lines = if args.dry_run { picture::planned(report) } else { picture::lines(report) };
    for line in lines {
        out.line(line)?;
    }
    if report.clean || report.partitions.is_empty() {
        return Ok(());
    }
    out.table(&if args.dry_run { dirty(report) } else { done(report) })
}

/// What a dry run knows of the partitions.
fn dirty(report: &RecoveryReport) -> Table {
    let mut table = Table::new(&[("PARTITION", Align::Right), ("DIRTY PAGES", Align::Right)]).indent(2);
    for partition in &report.partitions {
        table.row([partition.partition.to_string(), grouped(partition.dirty_pages)]);
    }
    table
}

/// What was done to the partitions.
fn done(report: &RecoveryReport) -> Table {
    let mut table = Table::new(&[
        ("PARTITION", Align::Right),
        ("DIRTY PAGES", Align::Right),
        ("REDONE", Align::Right),
        ("SKIPPED", Align::Right),
        ("UNDONE", Align::Right),
        ("RESTORED", Align::Right),
    ])
    .indent(2);
    for partition in &report.partitions {
        table.row([
            partition.partition.to_string(),
            grouped(partition.dirty_pages),
            grouped(partition.redone),
            grouped(partition.skipped),
            grouped(partition.undone),
            grouped(partition.restored_pages),
        ]);
    }
    table
}
