//! `hamal get`: the value of one key.

use std::io;

use clap::Args;
use serde_json::{Map, Value as Json};

use crate::codec::Datum;
use crate::failure::{Failure, Result, Status};
use crate::session::{DatabaseArg, Session, TableArg, Writing, codecs};
use crate::text;

/// Arguments of `get`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit status 1 if the key is not there.

Examples:
  hamal get people.hamal --table people alice@example.org
  hamal get pictures.hamal --table pictures --raw cat.png > cat.png")]
pub(crate) struct GetArgs {
    #[command(flatten)]
    database: DatabaseArg,
    #[command(flatten)]
    table: TableArg,
    /// The key
    key: String,
    #[command(flatten)]
    writing: Writing,
    /// Write the value's bytes as they are, and nothing else
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

pub(crate) fn run(args: &GetArgs, session: &mut Session) -> Result<()> {
    session.with_database(&args.database, |session, db| {
        let snapshot = db.snapshot()?;
        let codecs = codecs(&snapshot.tables()?, &args.table.table)?;
        let key = args.writing.bytes(&codecs.0, "key", &args.key)?;
        let table = snapshot.open_bytes_table(&args.table.table)?;
        if args.raw {
            // Streamed: the value may be larger than memory.
            let mut value = table.reader(&key)?.ok_or_else(|| absent(args))?;
            io::copy(&mut value, session.out.writer())?;
            return Ok(());
        }
        let value = table.get(&key)?.ok_or_else(|| absent(args))?;
        let value = codecs.1.decode(&value);
        if session.out.is_json() {
            let mut row = Map::new();
            codecs.0.decode(&key).put_into(&mut row, "key");
            value.put_into(&mut row, "value");
            return session.out.json(&Json::Object(row));
        }
        match value {
            Datum::Text(text) if !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') => {
                session.out.line(text)
            }
            Datum::Text(text) => session.out.line(text::escape(text.as_bytes())),
            other => session.out.line(other.shown()),
        }
    })
}

fn absent(args: &GetArgs) -> Failure {
    Failure::Message(
        Status::Negative,
        format!("there is no key {} in table {:?}", args.key, args.table.table),
    )
}
