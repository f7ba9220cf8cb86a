//! `hamal dump`: a table as a file that `hamal load` reads.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use hamal::Database;
use serde_json::json;

use crate::commands::load::parse_delimiter;
use crate::failure::{Failure, Result};
use crate::formats::{self, Format};
use crate::session::{DatabaseArg, Session, TableArg, codecs, progress_bar};
use crate::text::count;

/// Arguments of `dump`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Formats:
  raw    key, tab, value, with escapes: exact for every table (the default)
  jsonl  rows loaded from documents as they were; others as {\"key\":...,\"value\":...}
  csv    rows loaded from csv as they were; others as two columns, key and value (`hamal load --plain` takes them back)
  tsv    the same with tabs

Examples:
  hamal dump people.hamal --table people --output people.csv
  hamal dump people.hamal --table people --format jsonl | jq .name
  hamal dump old.hamal --table t | hamal load new.hamal - --table t --format raw")]
pub(crate) struct DumpArgs {
    #[command(flatten)]
    database: DatabaseArg,
    #[command(flatten)]
    table: TableArg,
    /// Format to write [default: by the extension of --output, else raw; with --json, jsonl]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// csv, tsv: what separates fields, one character
    #[arg(long, value_name = "CHAR", value_parser = parse_delimiter)]
    delimiter: Option<u8>,
    /// File to write, whole or not at all [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &DumpArgs, session: &mut Session) -> Result<()> {
    let format = args
        .format
        .or_else(|| args.output.as_deref().and_then(Format::of_file))
        .unwrap_or(if session.out.is_json() { Format::Jsonl } else { Format::Raw });
    session.with_database(&args.database, |session, db| {
        let Some(file) = &args.output else {
            dump(db, args, format, session.out.writer())?;
            return Ok(());
        };
        let rows = to_file(file, |target| dump(db, args, format, target))?;
        if session.out.is_json() {
            session
                .out
                .json(&json!({ "table": args.table.table, "rows": rows, "file": file.display().to_string() }))
        } else {
            session.out.line(format!(
                "{} of {:?} into {}",
                count(rows, "row"),
                args.table.table,
                file.display()
            ))
        }
    })
}

/// Writes beside the file, then takes its name: nobody sees half a dump.
fn to_file<T>(file: &Path, work: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<T> {
    let fail = |error: io::Error| Failure::unusable(format!("cannot write {}: {error}", file.display()));
    // A pipe or device is written to as it is.
    if file.exists() && !file.is_file() {
        let target = OpenOptions::new().write(true).open(file).map_err(fail)?;
        return work(&mut BufWriter::new(target));
    }
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".hamal-dump-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let temporary = builder.tempfile_in(directory).map_err(fail)?;
    let mut target = BufWriter::with_capacity(256 << 10, temporary);
    let result = work(&mut target)?;
    let temporary = target.into_inner().map_err(|error| fail(error.into_error()))?;
    temporary.as_file().sync_all().map_err(fail)?;
    temporary.persist(file).map_err(|error| fail(error.error))?;
    Ok(result)
}

fn dump(db: &Database, args: &DumpArgs, format: Format, target: &mut dyn Write) -> Result<u64> {
    let snapshot = db.snapshot()?;
    let codecs = codecs(&snapshot.tables()?, &args.table.table)?;
    let table = snapshot.open_bytes_table(&args.table.table)?;
    let total = table.len()?;
    let bar = match args.output {
        Some(_) => progress_bar(Some(total), "[{bar:40}] {human_pos} of {human_len} rows, {eta} left"),
        None => indicatif::ProgressBar::hidden(),
    };
    let mut writer = formats::writer(format, args.delimiter, target, codecs);
    let mut rows = 0;
    for row in table.iter()? {
        let (key, value) = row?;
        writer.write(&key, &value)?;
        rows += 1;
        if rows % 1024 == 0 {
            bar.set_position(rows);
        }
    }
    writer.finish()?;
    bar.finish_and_clear();
    Ok(rows)
}
