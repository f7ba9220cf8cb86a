//! `hamal create`: an empty table, cut into range partitions.

use clap::Args;
use hamal::TableDef;
use serde_json::json;

use crate::codec::Codec;
use crate::failure::Result;
use crate::session::{DatabaseArg, Session, TableArg, Writing};
use crate::text::count;

/// Arguments of `create`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
The table is one of str and str or, with --hex or --escaped, of bytes and bytes. Its first partition has the keys below the lowest split \
key, each other one those from its own split key on. The database is made if it is missing.

Examples:
  hamal create bank.hamal --table accounts --split h --split p
  hamal create keys.hamal --table hashes --hex --split 40 --split 80 --split c0
  hamal partitions bank.hamal")]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    database: DatabaseArg,
    #[command(flatten)]
    table: TableArg,
    /// A partition begins at this key; may be given many times
    #[arg(long, value_name = "KEY")]
    split: Vec<String>,
    #[command(flatten)]
    writing: Writing,
}

pub(crate) fn run(args: &CreateArgs, session: &mut Session) -> Result<()> {
    let name = &args.table.table;
    session.with_database_made(
        &args.database,
        |options| options,
        |_, db| {
            let tx = db.begin()?;
            if args.writing.is_bytes() {
                let splits = args.split.iter().map(|key| args.writing.bytes(&Codec::Bytes, "split key", key));
                tx.create_bytes_table(name, &splits.collect::<Result<Vec<_>>>()?)?;
            } else {
                tx.create_table(TableDef::<&str, &str>::new(name), args.split.iter().map(String::as_str))?;
            }
            tx.commit()?;
            Ok(())
        },
    )?;
    let partitions = args.split.len() as u64 + 1;
    if session.out.is_json() {
        return session.out.json(&json!({ "table": name, "partitions": partitions }));
    }
    session.out.line(format!("table {name:?}: {}", count(partitions, "partition")))
}
