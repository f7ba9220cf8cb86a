//! `hamal repair`: quarantined partitions come back.

use std::path::PathBuf;

use clap::Args;
use hamal::backup::Target;
use hamal::{PartitionInfo, PartitionState, RepairBase, RepairOptions, RepairReport};
use serde_json::{Value as Json, json};

use super::backup::{BytesBar, named};
use crate::failure::{Failure, Result};
use crate::output::Table;
use crate::session::{DatabaseArg, Session};
use crate::text::grouped;

/// Arguments of `repair`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
A partition whose file is missing or damaged is quarantined: `hamal partitions` shows it and why. Repair builds its file again, from the \
newest backup that can be used and the log archived since, or from the file itself if that is readable again, with what was kept of the log \
in the database; and undoes there what had not committed. Without PARTITION, all that are quarantined. The damaged file goes only when its \
partition is whole again; if a repair is not possible, nothing changes.

For a database that no program has open now: programs repair while they use it (Database::repair).

Examples:
  hamal repair bank.hamal --backups /mnt/vault/bank
  hamal repair bank.hamal 5 --backups /mnt/vault/bank --backup last")]
pub(crate) struct RepairArgs {
    #[command(flatten)]
    database: DatabaseArg,
    /// Number of the partition [default: all that are quarantined]
    #[arg(value_name = "PARTITION")]
    partition: Option<u32>,
    /// Directory of backups and archived log [default: that of --archive, if given]
    #[arg(long, value_name = "TARGET")]
    backups: Option<PathBuf>,
    /// Start from this backup (`last`: the newest), rather than from the newest that can be used
    #[arg(long, value_name = "BACKUP")]
    backup: Option<String>,
}

pub(crate) fn run(args: &RepairArgs, session: &mut Session) -> Result<()> {
    let target = match args.backups.as_ref().or(session.archive.as_ref()) {
        None => None,
        Some(directory) if directory.is_dir() => Some(hamal::backup::DirectoryTarget::new(directory)),
        Some(directory) => {
            return Err(Failure::unusable(format!("{}: there is no such directory", directory.display())));
        }
    };
    let mut options = RepairOptions::new();
    if let Some(name) = &args.backup {
        let target = target.as_ref().ok_or_else(|| Failure::input("--backup needs --backups"))?;
        options = options.backup(named(target, name)?);
    }
    session.with_database(&args.database, |session, db| {
        let partitions = db.partitions()?;
        let is_wanted = |p: &&PartitionInfo| match args.partition {
            Some(id) => p.id == id,
            None => p.state == PartitionState::Quarantined,
        };
        let wanted: Vec<u32> = partitions.iter().filter(is_wanted).map(|p| p.id).collect();
        if let (Some(id), true) = (args.partition, wanted.is_empty()) {
            return Err(Failure::input(format!("there is no partition {id}")));
        }
        for id in &wanted {
            let bar = BytesBar::new();
            let target = target.as_ref().map(|target| target as &dyn Target);
            let report = db.repair(*id, target, &options, &mut bar.callback())?;
            drop(bar);
            tell(&report, session)?;
        }
        if wanted.is_empty() && !session.out.is_json() {
            session.out.line("no partition is quarantined")?;
        }
        Ok(())
    })
}

/// What it was built from, for people.
pub(crate) fn base(base: &RepairBase) -> String {
    match base {
        RepairBase::Backup(id) => format!("backup {id}"),
        RepairBase::File => "its own file".to_owned(),
        _ => "the log alone".to_owned(),
    }
}

/// A report, with stable names.
pub(crate) fn to_json(report: &RepairReport) -> Json {
    let (kind, backup) = match &report.base {
        RepairBase::Backup(id) => ("backup", Some(id)),
        RepairBase::File => ("file", None),
        _ => ("log", None),
    };
    json!({
        "partition": report.partition,
        "cause": report.cause,
        "quarantined_micros": report.quarantined_micros,
        "base": kind,
        "backup": backup,
        "pages": report.pages,
        "redone": report.redone,
        "losers": report.losers,
        "undone": report.undone,
        "rows": report.rows,
    })
}

fn tell(report: &RepairReport, session: &mut Session) -> Result<()> {
    if session.out.is_json() {
        return session.out.json(&to_json(report));
    }
    let mut about = Table::pairs();
    about.pair("repaired partition", report.partition.to_string());
    about.pair("was quarantined", report.cause.clone());
    about.pair("built from", base(&report.base));
    about.pair("pages copied", grouped(report.pages));
    about.pair("changes redone", grouped(report.redone));
    about.pair("transactions undone", grouped(report.losers));
    about.pair("rows", grouped(report.rows));
    session.out.table(&about)
}
