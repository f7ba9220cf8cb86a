//! `hamal put`: one key and its value.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use hamal::TableDef;
use serde_json::json;

use crate::failure::{Failure, Result, read_failure};
use crate::session::{DatabaseArg, Session, TableArg, Writing, codecs};

/// Arguments of `put`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
The database and the table are made if they are missing: a table of str and str or, with --hex, --escaped or --file, of bytes and bytes.

Examples:
  hamal put bank.hamal --table accounts alice 100
  hamal put pictures.hamal --table pictures cat.png --file cat.png
  date | hamal put notes.hamal --table notes today --file -")]
pub(crate) struct PutArgs {
    #[command(flatten)]
    database: DatabaseArg,
    #[command(flatten)]
    table: TableArg,
    /// The key
    key: String,
    /// The value
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    value: Option<String>,
    /// Take the value's bytes from this file; `-` for standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    writing: Writing,
}

pub(crate) fn run(args: &PutArgs, session: &mut Session) -> Result<()> {
    let mut source = args.file.as_deref().map(Source::open).transpose()?;
    let (replaced, value_bytes) = session.with_database_made(
        &args.database,
        |options| options,
        |_, db| {
            let tx = db.begin()?;
            let name = &args.table.table;
            if !tx.has_table(name)? && !args.writing.is_bytes() && args.file.is_none() {
                tx.open_table(TableDef::<&str, &str>::new(name))?;
            }
            let mut table = tx.open_bytes_table(name)?;
            let codecs = codecs(&tx.tables()?, name)?;
            let key = args.writing.bytes(&codecs.0, "key", &args.key)?;
            let replaced = table.contains_key(&key)?;
            let value_bytes = match (&mut source, &args.value) {
                (Some(source), _) => {
                    let inserted = table.insert_from(&key, &mut *source);
                    source.failure.take().map_or(Ok(()), Err)?;
                    inserted?
                }
                (None, value) => {
                    let value =
                        args.writing.bytes(&codecs.1, "value", value.as_deref().unwrap_or_default())?;
                    table.put(&key, &value)?;
                    value.len() as u64
                }
            };
            drop(table);
            tx.commit()?;
            Ok((replaced, value_bytes))
        },
    )?;
    if session.out.is_json() {
        return session.out.json(&json!({ "replaced": replaced, "value_bytes": value_bytes }));
    }
    session.out.line(if replaced { "replaced" } else { "inserted" })
}

/// The file that the value comes from. The engine reads it: what goes wrong is kept here, as a failure of the input.
struct Source {
    reader: Box<dyn Read>,
    name: String,
    failure: Option<Failure>,
}

impl Source {
    fn open(file: &Path) -> Result<Source> {
        if file.as_os_str() == "-" {
            let name = "standard input".to_owned();
            return Ok(Source { reader: Box::new(io::stdin()), name, failure: None });
        }
        let name = file.display().to_string();
        let source = File::open(file).map_err(|error| read_failure(&name, &error))?;
        if source.metadata().map_err(|error| read_failure(&name, &error))?.is_dir() {
            return Err(Failure::input(format!("cannot read {name}: it is a directory")));
        }
        Ok(Source { reader: Box::new(source), name, failure: None })
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.failure = Some(read_failure(&self.name, error));
            }
        })
    }
}
