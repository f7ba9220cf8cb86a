//! `hamal del`: keys go, all or none.

use clap::Args;
use serde_json::json;

use crate::failure::{Failure, Result};
use crate::session::{DatabaseArg, Session, TableArg, Writing, codecs, no_table};
use crate::text::count;

/// Arguments of `del`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
All keys go in one transaction. If one of them is not there, none goes, and the exit status is 1.

Examples:
  hamal del people.hamal --table people alice@example.org bob@example.org")]
pub(crate) struct DelArgs {
    #[command(flatten)]
    database: DatabaseArg,
    #[command(flatten)]
    table: TableArg,
    /// The keys
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
    #[command(flatten)]
    writing: Writing,
}

pub(crate) fn run(args: &DelArgs, session: &mut Session) -> Result<()> {
    session.with_database(&args.database, |session, db| {
        let name = &args.table.table;
        let tx = db.begin()?;
        if !tx.has_table(name)? {
            return Err(no_table(name));
        }
        let codecs = codecs(&tx.tables()?, name)?;
        let mut table = tx.open_bytes_table(name)?;
        for typed in &args.keys {
            let key = args.writing.bytes(&codecs.0, "key", typed)?;
            if table.remove(&key)?.is_none() {
                return Err(Failure::negative(format!(
                    "there is no key {typed} in table {name:?}; nothing was removed"
                )));
            }
        }
        drop(table);
        tx.commit()?;
        let removed = args.keys.len() as u64;
        if session.out.is_json() {
            return session.out.json(&json!({ "removed": removed }));
        }
        session.out.line(format!("{} removed", count(removed, "row")))
    })
}
