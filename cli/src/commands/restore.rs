//! `hamal restore`: a database as of any moment since its first backup; or a range of a table's keys, in the database that is there.

use clap::Args;
use hamal::backup::{self, RestoreOptions, RestorePoint, RestoreReport};
use hamal::{KeyRange, RangeRestoreOptions, RangeRestoreReport};
use serde_json::{Map, Value as Json, json};

use super::backup::{BytesBar, TargetArg, named, quarantined_json, tell_quarantined};
use crate::codec::Codec;
use crate::failure::{Failure, Result};
use crate::moment;
use crate::output::Table;
use crate::picture;
use crate::session::{DatabaseArg, Session, Writing, codecs};
use crate::text::{self, count, grouped};

/// Arguments of `restore`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
The directory must be missing or empty, or hold a restore that was interrupted. Transactions whose commit is at or before the moment are \
restored, all others are not.

Partitions that were quarantined when the backup was taken are so in what is restored: `hamal repair` brings them back from an earlier backup and \
the archived log. With --whole, an earlier backup is restored from at once, which may take much longer.

With --table, rows of the database that is there are brought back to what they were at the moment: all of the table, the keys from --from to \
below --below, or those of the partition that had a key then. All else stays as it is. One transaction does it: all of it comes back, or \
nothing. --dry-run says what would change. What is not archived yet is not known to TARGET: give --archive too if the database has one.

Examples:
  hamal restore /mnt/vault/bank bank.restored
  hamal restore /mnt/vault/bank bank.restored --to-time 2026-11-28T16:58:59Z
  hamal restore /mnt/vault/bank bank.hamal --table accounts --from k --below t --to-time 2026-11-28T16:58:59Z --dry-run
  hamal restore /mnt/vault/bank bank.hamal --table accounts --partition-of k --to-lsn 81920")]
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
    /// Start from the newest backup before the moment that has all partitions
    #[arg(long, conflicts_with_all = ["backup", "table"])]
    whole: bool,
    /// Restore rows of this table only, in the database that is there
    #[arg(long, short = 't', value_name = "NAME")]
    table: Option<String>,
    /// Only keys from this one on
    #[arg(long, value_name = "KEY", requires = "table")]
    from: Option<String>,
    /// Only keys below this one
    #[arg(long, value_name = "KEY", requires = "table")]
    below: Option<String>,
    /// Only keys of the partition that had this one at the moment
    #[arg(long, value_name = "KEY", requires = "table", conflicts_with_all = ["from", "below"])]
    partition_of: Option<String>,
    /// Only say what would change
    #[arg(long, requires = "table")]
    dry_run: bool,
    #[command(flatten)]
    writing: Writing,
}

pub(crate) fn run(args: &RestoreArgs, session: &mut Session) -> Result<()> {
    let point = match (args.to_lsn, args.to_time) {
        (Some(lsn), _) => RestorePoint::Lsn(lsn),
        (None, Some(micros)) => RestorePoint::Micros(micros),
        (None, None) => RestorePoint::End,
    };
    match &args.table {
        Some(table) => restore_rows(args, table, point, session),
        None if args.writing.is_bytes() => Err(Failure::input(
            "--hex and --escaped say how keys are written: there are none without --table",
        )),
        None => restore_all(args, point, session),
    }
}

fn restore_all(args: &RestoreArgs, point: RestorePoint, session: &mut Session) -> Result<()> {
    let target = args.target.existing()?;
    let mut options = RestoreOptions::new().to(point);
    if let Some(name) = &args.backup {
        options = options.backup(named(&target, name)?);
    }
    if args.whole {
        options = options.whole();
    }
    let bar = BytesBar::new();
    let report = backup::restore(&target, &args.database.directory, &options, &mut bar.callback())?;
    drop(bar);
    // Recovered now rather than at its first use: what can still go wrong is told here.
    session.with_restored(&args.database, |session, db| {
        let recovery = db.recovery_report();
        if session.out.is_json() {
            let mut object = source_json(&report);
            object.insert("recovery".to_owned(), picture::to_json(recovery));
            return session.out.json(&Json::Object(object));
        }
        let mut about = Table::pairs();
        tell_source(&report, &mut about);
        session.out.table(&about)?;
        picture::lines(recovery).into_iter().try_for_each(|line| session.out.line(line))?;
        tell_quarantined(&report.quarantined, "is quarantined (see `hamal repair --help`)", session)
    })
}

/// What was restored from, with stable names.
fn source_json(report: &RestoreReport) -> Map<String, Json> {
    let mut object = Map::new();
    object.insert("backup".to_owned(), json!(report.backup));
    for (name, number) in [
        ("backups", report.backups),
        ("partitions", report.partitions),
        ("pages", report.pages),
        ("log_bytes", report.log_bytes),
        ("end_lsn", report.end_lsn),
        ("last_commit_micros", report.last_commit_micros),
    ] {
        object.insert(name.to_owned(), json!(number));
    }
    object.insert("quarantined".to_owned(), quarantined_json(&report.quarantined));
    object
}

fn tell_source(report: &RestoreReport, about: &mut Table) {
    about.pair("backup", report.backup.clone());
    about.pair("partitions", grouped(report.partitions));
    about.pair("pages", grouped(report.pages));
    about.pair("log", text::bytes(report.log_bytes));
    about.pair("to LSN", report.end_lsn.to_string());
    if report.last_commit_micros > 0 {
        about.pair("last commit", moment::show(report.last_commit_micros));
    }
}

fn restore_rows(args: &RestoreArgs, table: &str, point: RestorePoint, session: &mut Session) -> Result<()> {
    let target = args.target.existing()?;
    if point == RestorePoint::End {
        return Err(Failure::input("rows are restored to a moment: give --to-lsn or --to-time"));
    }
    let mut options = RangeRestoreOptions::to(point);
    if let Some(name) = &args.backup {
        options = options.backup(named(&target, name)?);
    }
    if args.dry_run {
        options = options.dry_run();
    }
    session.with_database(&args.database, |session, db| {
        let codec = codecs(&db.tables()?, table)?.0;
        let key = |what: &str, typed: &Option<String>| {
            typed.as_ref().map(|typed| args.writing.bytes(&codec, what, typed)).transpose()
        };
        let range = match key("key of --partition-of", &args.partition_of)? {
            Some(key) => KeyRange::PartitionOf(key),
            None => KeyRange::Keys {
                from: key("key of --from", &args.from)?.unwrap_or_default(),
                below: key("key of --below", &args.below)?,
            },
        };
        let bar = BytesBar::new();
        let report = db.restore_range(table, &range, &target, &options, &mut bar.callback())?;
        drop(bar);
        if session.out.is_json() {
            return session.out.json(&range_json(&report, &codec));
        }
        tell_range(&report, &codec, session)
    })
}

/// The report, with stable names.
fn range_json(report: &RangeRestoreReport, codec: &Codec) -> Json {
    let mut object = Map::new();
    object.insert("table".to_owned(), json!(report.table));
    object.insert("table_then".to_owned(), json!(report.table_then));
    if !report.from.is_empty() {
        codec.decode(&report.from).put_into(&mut object, "from");
    }
    if let Some(below) = &report.below {
        codec.decode(below).put_into(&mut object, "below");
    }
    object.insert("dry_run".to_owned(), json!(report.dry_run));
    for (name, number) in [
        ("put_back", report.put_back),
        ("replaced", report.replaced),
        ("removed", report.removed),
        ("unchanged", report.unchanged),
        ("bytes", report.bytes),
        ("attempts", u64::from(report.attempts)),
    ] {
        object.insert(name.to_owned(), json!(number));
    }
    object.insert("source".to_owned(), Json::Object(source_json(&report.source)));
    Json::Object(object)
}

fn tell_range(report: &RangeRestoreReport, codec: &Codec, session: &mut Session) -> Result<()> {
    let mut about = Table::pairs();
    about.pair("table", report.table.clone());
    if report.table_then != report.table {
        about.pair("then called", report.table_then.clone());
    }
    if !report.from.is_empty() {
        about.pair("from", codec.decode(&report.from).shown());
    }
    if let Some(below) = &report.below {
        about.pair("below", codec.decode(below).shown());
    }
    tell_source(&report.source, &mut about);
    session.out.table(&about)?;
    let would = if report.dry_run { "would be " } else { "" };
    session.out.line(format!(
        "{} {would}put back, {} {would}replaced, {} {would}removed, {} as they were; {}",
        count(report.put_back, "row"),
        grouped(report.replaced),
        grouped(report.removed),
        grouped(report.unchanged),
        text::bytes(report.bytes),
    ))
}
