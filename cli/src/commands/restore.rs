//! `hamal restore`: a database as of any moment since its first backup.

use clap::Args;
use hamal::backup::{self, RestoreOptions, RestorePoint};
use serde_json::json;

use super::backup::{BytesBar, TargetArg, named};
use crate::failure::Result;
use crate::moment;
use crate::output::Table;
use crate::picture;
use crate::session::{DatabaseArg, Session};
use crate::text::{self, grouped};

/// Arguments of `restore`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
The directory must be missing or empty, or hold a restore that was interrupted. Transactions whose commit is at or before the moment are \
restored, all others are not.

Examples:
  hamal restore /mnt/vault/bank bank.restored
  hamal restore /mnt/vault/bank bank.restored --to-time 2026-11-28T16:58:59Z")]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    target: TargetArg,
    #[command(flatten)]
    database: DatabaseArg,
    /// Restore to this position in the log
    #[arg(long, value_name = "LSN", conflicts_with = "to_time")]
    to_lsn: Option<u64>,
    /// Restore to this UTC time, or microseconds since 1970
    #[arg(long, value_name = "TIME", value_parser = moment::parse)]
    to_time: Option<u64>,
    /// Start from this backup [default: the newest before the moment]
    #[arg(long, value_name = "BACKUP")]
    backup: Option<String>,
}

pub(crate) fn run(args: &RestoreArgs, session: &mut Session) -> Result<()> {
    let target = args.target.existing()?;
    let mut options = RestoreOptions::new().to(match (args.to_lsn, args.to_time) {
        (Some(lsn), _) => RestorePoint::Lsn(lsn),
        (None, Some(micros)) => RestorePoint::Micros(micros),
        (None, None) => RestorePoint::End,
    });
    if let Some(name) = &args.backup {
        options = options.backup(named(&target, name)?);
    }
    let bar = BytesBar::new();
    let report = backup::restore(&target, &args.database.directory, &options, &mut bar.callback())?;
    drop(bar);
    // Recovered now rather than at its first use: what can still go wrong is told here.
    session.with_restored(&args.database, |session, db| {
        let recovery = db.recovery_report();
        if session.out.is_json() {
            return session.out.json(&json!({
                "backup": report.backup,
                "backups": report.backups,
                "partitions": report.partitions,
                "pages": report.pages,
                "log_bytes": report.log_bytes,
                "end_lsn": report.end_lsn,
                "last_commit_micros": report.last_commit_micros,
                "recovery": picture::to_json(recovery),
            }));
        }
        let mut about = Table::pairs();
        about.pair("backup", report.backup.clone());
        about.pair("partitions", grouped(report.partitions));
        about.pair("pages", grouped(report.pages));
        about.pair("log", text::bytes(report.log_bytes));
        about.pair("to LSN", report.end_lsn.to_string());
        if report.last_commit_micros > 0 {
            about.pair("last commit", moment::show(report.last_commit_micros));
        }
        session.out.table(&about)?;
        picture::lines(recovery).into_iter().try_for_each(|line| session.out.line(line))
    })
}
