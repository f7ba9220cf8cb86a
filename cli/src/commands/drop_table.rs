//! `hamal drop`: a table and its rows go.

use clap::Args;
use serde_json::json;

use crate::failure::Result;
use crate::session::{DatabaseArg, Session, TableArg, no_table};
use crate::text::count;

/// Arguments of `drop`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hamal drop bank.hamal --table old_accounts")]
pub(crate) struct DropArgs {
    #[command(flatten)]
    database: DatabaseArg,
    #[command(flatten)]
    table: TableArg,
}

pub(crate) fn run(args: &DropArgs, session: &mut Session) -> Result<()> {
    session.with_database(&args.database, |session, db| {
        let name = &args.table.table;
        let tx = db.begin()?;
        let rows = tx.tables()?.iter().find(|table| &table.name == name).map(|table| table.rows);
        let rows = rows.ok_or_else(|| no_table(name))?;
        tx.drop_table(name)?;
        tx.commit()?;
        if session.out.is_json() {
            return session.out.json(&json!({ "dropped": name, "rows": rows }));
        }
        session.out.line(format!("{name:?} dropped, {}", count(rows, "row")))
    })
}
