//! `hamal dump`: a table as a file that `hamal load` reads.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use hamal::{Database, PartitionInfo};
use serde_json::json;

use crate::commands::load::{key_column, parse_delimiter};
use crate::failure::{Failure, Result};
use crate::formats::{self, Format, WriteOptions};
use crate::session::{DatabaseArg, Session, TableArg, codecs, progress_bar};
use crate::text::count;

/// Arguments of `dump`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Formats:
  raw    key, tab, value, with escapes: the bytes of every table, exactly (the default), and where it is cut into partitions; types are not named and become bytes
  jsonl  a document that has its row's key in its first field, or --key's, as it is; any other row as {\"key\":...,\"value\":...}, \
with key_hex and value_hex for what is no text
  csv    the fields of such documents, all with the same columns; else two columns, key and value
  tsv    the same with tabs

To get documents back as they were loaded, give the --key that `hamal load` was given. `hamal load --plain` takes rows of key and \
value back, and from jsonl the documents among them, too.

Examples:
  hamal dump people.hamal --table people --key email --output people.csv
  hamal dump people.hamal --table people --key email --format jsonl | jq .name
  hamal dump bank.hamal --table accounts --json | hamal load new.hamal - --table accounts --format jsonl --plain
  hamal dump old.hamal --table t | hamal load new.hamal - --table t --format raw")]
pub(crate) struct DumpArgs {
    #[command(flatten)]
    database: DatabaseArg,
    #[command(flatten)]
    table: TableArg,
    /// Format to write [default: by the extension of --output, else raw; with --json, jsonl]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// csv, tsv, jsonl: column or field that must be the key in a document; its name, or its position from 1 [default: the first]
    #[arg(long, value_name = "COLUMN")]
    key: Option<String>,
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
    let options = write_options(args, format)?;
    if session.out.is_json() && args.output.is_none() && format != Format::Jsonl {
        return Err(Failure::input(
            "--json prints JSON; --format csv, tsv or raw goes with it into --output only",
        ));
    }
    session.with_database(&args.database, |session, db| {
        let Some(file) = &args.output else {
            dump(db, args, options, session.out.writer())?;
            return Ok(());
        };
        let rows = to_file(file, |target| dump(db, args, options, target))?;
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

fn write_options(args: &DumpArgs, format: Format) -> Result<WriteOptions> {
    if args.delimiter.is_some() && !matches!(format, Format::Csv | Format::Tsv) {
        return Err(Failure::input("--delimiter is for csv and tsv"));
    }
    Ok(WriteOptions { format, delimiter: args.delimiter, key: key_column(args.key.as_deref(), format)? })
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

fn dump(db: &Database, args: &DumpArgs, options: WriteOptions, target: &mut dyn Write) -> Result<u64> {
    let snapshot = db.snapshot()?;
    let codecs = codecs(&snapshot.tables()?, &args.table.table)?;
    let table = snapshot.open_bytes_table(&args.table.table)?;
    let total = table.len()?;
    let bar = match args.output {
        Some(_) => progress_bar(Some(total), "[{bar:40}] {human_pos} of {human_len} rows, {eta} left"),
        None => indicatif::ProgressBar::hidden(),
    };
    let mut writer = formats::writer(options, target, codecs);
    let of_table = |partition: &PartitionInfo| partition.table.as_ref() == Some(&args.table.table);
    for cut in db.partitions()?.into_iter().filter(of_table).filter_map(|partition| partition.lower) {
        writer.write_cut(&cut)?;
    }
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
