//! `hamal backup`, `backups` and `archive`: copies of a database and of its log.

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use hamal::backup::{
    self, BackupInfo, BackupOptions, BackupVerification, DirectoryTarget, Progress, QuarantinedPartition,
    Stage,
};
use indicatif::ProgressBar;
use serde_json::{Value as Json, json};

use crate::failure::{Failure, Result, Status};
use crate::moment;
use crate::output::{Align, Table};
use crate::session::{DatabaseArg, Session, must_exist, progress_bar};
use crate::text::{self, grouped};

/// Stands for the newest backup.
const LAST: &str = "last";

/// The target a command works on.
#[derive(Clone, Debug, Args)]
pub(crate) struct TargetArg {
    /// Directory of backups and archived log
    #[arg(value_name = "TARGET")]
    target: PathBuf,
}

impl TargetArg {
    /// The target, which may be made.
    pub(crate) fn target(&self) -> DirectoryTarget {
        DirectoryTarget::new(&self.target)
    }

    /// The target, which must be there.
    pub(crate) fn existing(&self) -> Result<DirectoryTarget> {
        if self.target.is_dir() {
            return Ok(self.target());
        }
        Err(Failure::unusable(format!("{}: there is no such directory", self.target.display())))
    }
}

/// Arguments of `backup`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Prints the new backup's name. Restoring an incremental backup takes the one it is based on, too, and all before it.

Partitions that are quarantined (`hamal partitions`) do not keep the others from being backed up: they are named, and quarantined in what is \
restored, where `hamal repair` brings them back from an earlier backup.

Examples:
  hamal backup bank.hamal /mnt/vault/bank
  hamal backup bank.hamal /mnt/vault/bank --since last")]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    database: DatabaseArg,
    #[command(flatten)]
    target: TargetArg,
    /// Copy only what has changed since this backup (`last`: the newest) began
    #[arg(long, value_name = "BACKUP")]
    since: Option<String>,
}

/// Arguments of `backups`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
With --verify, reads the backup, those it is based on and the archived log behind it, and says to which moments it can be restored.

Examples:
  hamal backups /mnt/vault/bank
  hamal backups /mnt/vault/bank --verify last")]
pub(crate) struct BackupsArgs {
    #[command(flatten)]
    target: TargetArg,
    /// Verify this backup (`last`: the newest)
    #[arg(long, value_name = "BACKUP")]
    verify: Option<String>,
    /// Remove this backup
    #[arg(long, value_name = "BACKUP", conflicts_with = "verify")]
    remove: Option<String>,
    /// Remove it even if another backup is based on it, or it is the last with a quarantined partition's pages
    #[arg(long, requires = "remove")]
    force: bool,
}

/// Arguments of `archive`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
For a database that no program has open now. Programs archive the log themselves, while they have it open (Options::archive). A \
command that changes the database, but for `archive`, gives log back when it ends: with --archive it archives it first.

Examples:
  hamal archive bank.hamal /mnt/vault/bank
  hamal put bank.hamal -t accounts alice 100 --archive /mnt/vault/bank")]
pub(crate) struct ArchiveArgs {
    #[command(flatten)]
    database: DatabaseArg,
    #[command(flatten)]
    target: TargetArg,
}

/// Bytes done, and of how many.
pub(crate) struct BytesBar(ProgressBar);

impl BytesBar {
    pub(crate) fn new() -> BytesBar {
        BytesBar(progress_bar(Some(0), "{msg:<6} [{bar:40}] {bytes} of {total_bytes}, {eta} left"))
    }

    pub(crate) fn callback(&self) -> impl FnMut(Progress) -> ControlFlow<()> + '_ {
        |progress| {
            self.0.set_message(match progress.stage {
                Stage::Pages => "pages",
                Stage::Recovery => "redo",
                Stage::Rows => "rows",
                _ => "log",
            });
            self.0.set_length(progress.total_bytes);
            self.0.set_position(progress.done_bytes);
            ControlFlow::Continue(())
        }
    }
}

impl Drop for BytesBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The name of a backup, with `last` for the newest.
pub(crate) fn named(target: &DirectoryTarget, name: &str) -> Result<String> {
    if name != LAST {
        return Ok(name.to_owned());
    }
    let newest = backup::backups(target)?.into_iter().max_by_key(|info| (info.end_micros, info.end_lsn));
    newest
        .map(|info| info.id)
        .ok_or_else(|| Failure::Message(Status::Input, "there is no backup in the target".into()))
}

pub(crate) fn run(args: &BackupArgs, session: &mut Session) -> Result<()> {
    must_exist(&args.database.directory)?;
    let target = args.target.target();
    let options = match &args.since {
        Some(since) => BackupOptions::new().since(named(&target, since)?),
        None => BackupOptions::new(),
    };
    let info = session.with_database(&args.database, |_, db| {
        let bar = BytesBar::new();
        Ok(db.backup(&target, &options, &mut bar.callback())?)
    })?;
    if session.out.is_json() {
        return session.out.json(&info_json(&info));
    }
    session.out.line(format!(
        "{}: {}, {}, to LSN {}, {}",
        info.id,
        text::count(info.pages, "page"),
        text::bytes(info.bytes),
        info.end_lsn,
        moment::show(info.end_micros)
    ))?;
    tell_quarantined(&info.quarantined, "is in the backup as quarantined", session)
}

/// A line for each partition that is quarantined in a backup.
pub(crate) fn tell_quarantined(
    quarantined: &[QuarantinedPartition],
    how: &str,
    session: &mut Session,
) -> Result<()> {
    quarantined.iter().try_for_each(|partition| {
        let table = partition.table.as_ref().map_or_else(String::new, |table| format!(" of table {table:?}"));
        let cause = text::printable(&partition.cause);
        let lost = if partition.is_repairable { "" } else { "; it cannot be repaired" };
        session.out.line(format!("partition {}{table} {how}: {cause}{lost}", partition.partition))
    })
}

/// The same, with stable names.
pub(crate) fn quarantined_json(quarantined: &[QuarantinedPartition]) -> Json {
    let json = |partition: &QuarantinedPartition| {
        json!({
            "partition": partition.partition,
            "table": partition.table,
            "cause": partition.cause,
            "quarantined_micros": partition.since_micros,
            "repairable": partition.is_repairable,
        })
    };
    quarantined.iter().map(json).collect()
}

/// Their numbers; a dash if there is none.
fn numbers(quarantined: &[QuarantinedPartition]) -> String {
    let numbers: Vec<String> = quarantined.iter().map(|partition| partition.partition.to_string()).collect();
    if numbers.is_empty() { "-".to_owned() } else { numbers.join(", ") }
}

pub(crate) fn run_list(args: &BackupsArgs, session: &mut Session) -> Result<()> {
    let target = args.target.existing()?;
    if let Some(name) = &args.verify {
        let bar = BytesBar::new();
        let report = backup::verify(&target, &named(&target, name)?, &mut bar.callback())?;
        drop(bar);
        return tell_verified(&report, session);
    }
    if let Some(name) = &args.remove {
        let remove = if args.force { backup::force_remove } else { backup::remove };
        return Ok(remove(&target, name)?);
    }
    let backups = backup::backups(&target)?;
    if session.out.is_json() {
        return backups.iter().try_for_each(|info| session.out.json(&info_json(info)));
    }
    let mut table = Table::new(&[
        ("BACKUP", Align::Left),
        ("BASED ON", Align::Left),
        ("PAGES", Align::Right),
        ("SIZE", Align::Right),
        ("RESTORES FROM LSN", Align::Right),
        ("AND TIME", Align::Left),
        ("QUARANTINED", Align::Left),
    ]);
    for info in &backups {
        table.row([
            info.id.clone(),
            info.base.clone().unwrap_or_else(|| "-".to_owned()),
            grouped(info.pages),
            text::bytes(info.bytes),
            info.end_lsn.to_string(),
            moment::show(info.end_micros),
            numbers(&info.quarantined),
        ]);
    }
    session.out.table(&table)
}

pub(crate) fn run_archive(args: &ArchiveArgs, session: &mut Session) -> Result<()> {
    session.archive = Some(args.target.target.clone());
    let (report, gaps) =
        session.with_database(&args.database, |_, db| Ok((db.archive()?, db.stats().archive_gaps)))?;
    if session.out.is_json() {
        return session.out.json(&json!({
            "to_lsn": report.to_lsn,
            "bytes": report.bytes,
            "objects": report.objects,
            "gaps": gaps,
        }));
    }
    if gaps > 0 {
        eprintln!(
            "hamal: note: log is missing from the archive, given back before it was archived: take a new backup"
        );
    }
    session.out.line(format!("{} archived, to LSN {}", text::bytes(report.bytes), report.to_lsn))
}

fn tell_verified(report: &BackupVerification, session: &mut Session) -> Result<()> {
    if session.out.is_json() {
        return session.out.json(&json!({
            "backup": report.backup,
            "sound": true,
            "backups": report.backups,
            "pages": report.pages,
            "records": report.records,
            "from_lsn": report.from_lsn,
            "to_lsn": report.to_lsn,
            "to_micros": report.to_micros,
            "gap_lsn": report.gap_lsn,
            "quarantined": quarantined_json(&report.quarantined),
        }));
    }
    let mut about = Table::pairs();
    about.pair("backup", report.backup.clone());
    about.pair("with those it is based on", grouped(report.backups));
    about.pair("pages", grouped(report.pages));
    about.pair("log records", grouped(report.records));
    about.pair("restores from LSN", report.from_lsn.to_string());
    about.pair("to LSN", format!("{}, {}", report.to_lsn, moment::show(report.to_micros)));
    if let Some(gap) = report.gap_lsn {
        about.pair("archive misses log from", gap.to_string());
    }
    session.out.table(&about)?;
    tell_quarantined(&report.quarantined, "is in it as quarantined", session)?;
    session.out.line("sound")
}

fn info_json(info: &BackupInfo) -> Json {
    json!({
        "backup": info.id,
        "base": info.base,
        "database_id": format!("{:016x}", info.database_id),
        "partitions": info.partitions,
        "pages": info.pages,
        "bytes": info.bytes,
        "checkpoint_lsn": info.checkpoint_lsn,
        "end_lsn": info.end_lsn,
        "started_micros": info.started_micros,
        "end_micros": info.end_micros,
        "quarantined": quarantined_json(&info.quarantined),
    })
}
