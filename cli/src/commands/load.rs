//! `hamal load`: rows from a file into a table.
//!
//! I1. One transaction for the whole file, unless `--batch` says otherwise: a bad line leaves the table as it was.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use hamal::{Database, ErrorKind, Table, TableDef, Transaction};
use indicatif::ProgressBar;
use serde_json::json;

use crate::codec::Codec;
use crate::failure::{Failure, Result, read_failure};
use crate::formats::{self, Format, Header, KeyColumn, Quoting, ReadOptions, ReadRows, Row, Shape};
use crate::session::{DatabaseArg, Session, TableArg, codecs, progress_bar};
use crate::text::{self, count};

/// Buffer for the file.
const READ_BYTES: usize = 256 << 10;

/// Arguments of `load`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
#[command(after_long_help = "\
Rows of CSV, TSV and JSON Lines files are stored whole, as one JSON document each, under the text of their key column; the table's \
types are then str and str. Files in the raw format (as `hamal dump` writes it) are stored byte by byte; they do not name the table's \
types, so that a table they make is one of bytes and bytes, but they say where it was cut into partitions: a table they make is cut there too.

With --plain, a row is a key and its value: two columns or, in JSON Lines, {\"key\":...,\"value\":...}. There, key_hex and value_hex \
give bytes, a value that is no string is stored as its JSON, and rows with other fields are documents as ever.

The file is one transaction: a bad line, and nothing has changed. A file whose log would exceed the limit (1 GiB) needs --batch.

Examples:
  hamal load people.hamal people.csv --table people --key email
  hamal load chars.hamal UnicodeData.txt --table characters --format csv --delimiter ';' --no-header
  curl -s https://example.org/events.jsonl | hamal load log.hamal - --table events --format jsonl --key id")]
pub(crate) struct LoadArgs {
    #[command(flatten)]
    database: DatabaseArg,
    /// File to load; `-` for standard input
    file: PathBuf,
    #[command(flatten)]
    table: TableArg,
    /// Format of the file [default: by its extension]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Key column or field: its name, or its position from 1 [default: the first]
    #[arg(long, value_name = "COLUMN")]
    key: Option<String>,
    /// csv, tsv: the first row names the columns (this is the default)
    #[arg(long, overrides_with = "no_header")]
    header: bool,
    /// csv, tsv: the first row is a row like the others
    #[arg(long, overrides_with = "header")]
    no_header: bool,
    /// csv, tsv: what separates fields, one character
    #[arg(long, value_name = "CHAR", value_parser = parse_delimiter)]
    delimiter: Option<u8>,
    /// csv, tsv: a quote is a character like the others
    #[arg(long)]
    no_quoting: bool,
    /// csv, tsv, jsonl: store the other one of two columns as it stands, not as a document; for tables of other types, too
    #[arg(long)]
    plain: bool,
    /// Commit every this many rows: all-or-nothing no more, but any size of file
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    batch: Option<u64>,
    /// Page size, bytes, if the database is made: 4K to 64K
    #[arg(long, value_name = "BYTES", value_parser = text::parse_bytes)]
    page_bytes: Option<u64>,
}

pub(crate) fn parse_delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"\"" | b"\n" | b"\r" => Err("a quote or a line end cannot be the delimiter".into()),
        [byte] if byte.is_ascii() => Ok(*byte),
        b"\\t" => Ok(b'\t'),
        _ => Err("a delimiter is one ASCII character".into()),
    }
}

/// What a load did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loaded {
    pub(crate) rows: u64,
    pub(crate) replaced: u64,
}

pub(crate) fn run(args: &LoadArgs, session: &mut Session) -> Result<()> {
    let is_stdin = args.file.as_os_str() == "-";
    let name = if is_stdin { "standard input".to_owned() } else { args.file.display().to_string() };
    let options = read_options(args)?;

    let started = Instant::now();
    let (bar, source) = open_source(&args.file, is_stdin, &name)?;
    // The first row is read before the database is touched, or made.
    let mut rows = formats::reader(&options, source, &name)?;
    let mut first = Row::default();
    let mut pending = rows.read(&mut first)?.then_some(first);

    let cuts = rows.cuts().to_vec();
    let page_bytes = args.page_bytes;
    let loaded = session.with_database_made(
        &args.database,
        |made| match page_bytes {
            Some(bytes) => made.page_bytes(usize::try_from(bytes).unwrap_or(usize::MAX)),
            None => made,
        },
        |_, db| {
            let table = &args.table.table;
            let plan = Plan { table, batch: args.batch, options: &options, file: &name, cuts: &cuts };
            load(db, &plan, &mut Pending { first: &mut pending, rest: rows.as_mut() })
        },
    )?;
    bar.finish_and_clear();

    let elapsed = started.elapsed();
    if session.out.is_json() {
        return session.out.json(&json!({
            "table": args.table.table,
            "rows": loaded.rows,
            "replaced": loaded.replaced,
            "elapsed_ms": text::millis(elapsed),
        }));
    }
    session.out.line(format!(
        "{} into {:?}, {} of them replacing others, in {}",
        count(loaded.rows, "row"),
        args.table.table,
        text::grouped(loaded.replaced),
        text::duration(elapsed)
    ))
}

fn read_options(args: &LoadArgs) -> Result<ReadOptions> {
    let format = args.format.or_else(|| Format::of_file(&args.file)).ok_or_else(|| {
        Failure::input(format!("the name {} does not tell the format", args.file.display()))
            .hint("give --format csv, tsv, jsonl or raw")
    })?;
    let delimited = matches!(format, Format::Csv | Format::Tsv);
    if !delimited && (args.header || args.no_header || args.delimiter.is_some() || args.no_quoting) {
        return Err(Failure::input(
            "--header, --no-header, --delimiter and --no-quoting are for csv and tsv",
        ));
    }
    if format == Format::Raw && args.plain {
        return Err(Failure::input("--plain is for csv, tsv and jsonl: raw rows are plain"));
    }
    Ok(ReadOptions {
        key: key_column(args.key.as_deref(), format)?,
        header: if args.no_header { Header::Absent } else { Header::Present },
        delimiter: args.delimiter,
        quoting: if args.no_quoting { Quoting::Literal } else { Quoting::Quotes },
        shape: if args.plain { Shape::Plain } else { Shape::Document },
        ..ReadOptions::new(format)
    })
}

/// Which column --key names.
pub(crate) fn key_column(key: Option<&str>, format: Format) -> Result<KeyColumn> {
    match key {
        Some(_) if format == Format::Raw => {
            Err(Failure::input("--key makes no sense with --format raw: the key is in front of the tab"))
        }
        Some(key) => Ok(KeyColumn::Chosen(key.to_owned())),
        None => Ok(KeyColumn::First),
    }
}

/// The file, with a bar that moves as it is read.
fn open_source(file: &Path, is_stdin: bool, name: &str) -> Result<(ProgressBar, Box<dyn BufRead>)> {
    if is_stdin {
        let bar = progress_bar(None, "{spinner} {bytes} read, {bytes_per_sec}");
        let source = bar.wrap_read(io::stdin());
        return Ok((bar, Box::new(BufReader::with_capacity(READ_BYTES, source))));
    }
    let fail = |error: io::Error| read_failure(name, &error);
    let source = File::open(file).map_err(fail)?;
    let about = source.metadata().map_err(fail)?;
    if about.is_dir() {
        return Err(Failure::input(format!("cannot read {name}: it is a directory")));
    }
    let bar =
        progress_bar(Some(about.len()), "[{bar:40}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
    let source: Box<dyn Read> = Box::new(bar.wrap_read(source));
    Ok((bar, Box::new(BufReader::with_capacity(READ_BYTES, source))))
}

/// One row that was read ahead, then the others.
struct Pending<'r, 's> {
    first: &'r mut Option<Row>,
    rest: &'r mut (dyn ReadRows + 's),
}

impl ReadRows for Pending<'_, '_> {
    fn read(&mut self, row: &mut Row) -> Result<bool> {
        match self.first.take() {
            Some(first) => {
                *row = first;
                Ok(true)
            }
            None => self.rest.read(row),
        }
    }
}

/// Where rows go and how.
pub(crate) struct Plan<'p> {
    pub(crate) table: &'p str,
    pub(crate) batch: Option<u64>,
    pub(crate) options: &'p ReadOptions,
    /// What the input is called in complaints.
    pub(crate) file: &'p str,
    /// Where the table is cut into partitions, if it is made.
    pub(crate) cuts: &'p [Vec<u8>],
}

/// Puts all rows into the table, which is made if it is missing.
pub(crate) fn load(db: &Database, plan: &Plan<'_>, rows: &mut dyn ReadRows) -> Result<Loaded> {
    let mut loaded = Loaded::default();
    let mut row = Row::default();
    loop {
        let before = loaded.rows;
        match load_batch(db, plan, rows, &mut row, &mut loaded) {
            Ok(More::Rows) => {}
            Ok(More::Nothing) => return Ok(loaded),
            Err(failure) if before > 0 => {
                return Err(failure.hint(format!("the {} before are committed", count(before, "row"))));
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Whether the input goes on.
enum More {
    Rows,
    Nothing,
}

fn load_batch(
    db: &Database,
    plan: &Plan<'_>,
    rows: &mut dyn ReadRows,
    row: &mut Row,
    loaded: &mut Loaded,
) -> Result<More> {
    let tx = db.begin()?;
    let sink = Sink::open(&tx, plan)?;
    let limit = plan.batch.unwrap_or(u64::MAX);
    let more = sink.take(rows, row, limit, loaded)?;
    tx.commit().map_err(|error| Failure::from(error).context("committing"))?;
    Ok(more)
}

/// A table that rows go into, and how they are encoded for it.
struct Sink<'t, 'p> {
    table: Table<'t, &'static [u8], &'static [u8]>,
    key: Codec,
    value: Codec,
    plan: &'p Plan<'p>,
}

impl<'t, 'p> Sink<'t, 'p> {
    fn open(tx: &'t Transaction, plan: &'p Plan<'p>) -> Result<Self> {
        if plan.options.format.is_text() && !tx.has_table(plan.table)? {
            tx.open_table(TableDef::<&str, &str>::new(plan.table))?;
        }
        if !plan.cuts.is_empty() && !tx.has_table(plan.table)? {
            let cuts: Vec<&[u8]> = plan.cuts.iter().map(Vec::as_slice).collect();
            tx.create_bytes_table(plan.table, &cuts)?;
        }
        let table = tx.open_bytes_table(plan.table)?;
        let (key, value) = codecs(&tx.tables()?, plan.table)?;
        let is_document = plan.options.format.is_text() && plan.options.shape == Shape::Document;
        if is_document && !matches!(value, Codec::Str | Codec::Bytes) {
            return Err(Failure::input(format!(
                "table {:?} has values of type {}, not documents",
                plan.table,
                value.name()
            ))
            .hint("--plain loads keys and values, --format raw anything"));
        }
        Ok(Sink { table, key, value, plan })
    }

    fn take(
        mut self,
        rows: &mut dyn ReadRows,
        row: &mut Row,
        limit: u64,
        loaded: &mut Loaded,
    ) -> Result<More> {
        for _ in 0..limit {
            if !rows.read(row)? {
                return Ok(More::Nothing);
            }
            self.encode(row).map_err(|what| self.complain(row.line, &what))?;
            let old = self.table.insert(&row.key, &row.value).map_err(|error| {
                let is_full = error.kind() == ErrorKind::LogFull;
                let failure = Failure::from(error).context(format!("{}, line {}", self.plan.file, row.line));
                if is_full { failure.hint("--batch 10000 commits as it goes") } else { failure }
            })?;
            loaded.rows += 1;
            loaded.replaced += u64::from(old.is_some());
        }
        Ok(More::Rows)
    }

    /// Text of the file becomes what the table's types encode it to.
    fn encode(&self, row: &mut Row) -> Result<(), String> {
        let key = (&self.key, &mut row.key, row.key_is_text);
        let value = (&self.value, &mut row.value, row.value_is_text);
        for (codec, bytes, is_text) in [key, value] {
            if is_text && !matches!(codec, Codec::Str | Codec::Bytes) {
                *bytes = codec.parse(&String::from_utf8_lossy(bytes))?;
            }
        }
        Ok(())
    }

    fn complain(&self, line: u64, what: &str) -> Failure {
        Failure::input(format!("{}, line {line}: {what}", self.plan.file))
    }
}
