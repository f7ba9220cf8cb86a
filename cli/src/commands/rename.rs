//! `hamal rename`: a table gets another name.

use clap::Args;
use serde_json::json;

use crate::failure::Result;
use crate::session::{DatabaseArg, Session, TableArg};

/// Arguments of `rename`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hamal rename bank.hamal --table accounts --to old_accounts")]
pub(crate) struct RenameArgs {
    #[command(flatten)]
    database: DatabaseArg,
    #[command(flatten)]
    table: TableArg,
    /// Its new name
    #[arg(long, value_name = "NAME")]
    to: String,
}

pub(crate) fn run(args: &RenameArgs, session: &mut Session) -> Result<()> {
    session.with_database(&args.database, |session, db| {
        let tx = db.begin()?;
        tx.rename_table(&args.table.table, &args.to)?;
        tx.commit()?;
        if session.out.is_json() {
            return session.out.json(&json!({ "from": args.table.table, "to": args.to }));
        }
        session.out.line(format!("{:?} is now {:?}", args.table.table, args.to))
    })
}
