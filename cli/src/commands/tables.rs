//! `hamal tables`: what tables there are.

use clap::Args;
use serde_json::json;

use crate::failure::Result;
use crate::output::{Align, Table};
use crate::session::{DatabaseArg, Session};
use crate::text;

/// Arguments of `tables`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hamal tables bank.hamal
  hamal tables bank.hamal --json | jq -r .name")]
pub(crate) struct TablesArgs {
    #[command(flatten)]
    database: DatabaseArg,
}

pub(crate) fn run(args: &TablesArgs, session: &mut Session) -> Result<()> {
    session.with_database(&args.database, |session, db| {
        let tables = db.tables()?;
        if session.out.is_json() {
            return tables.iter().try_for_each(|table| session.out.json(&table_json(table)));
        }
        session.out.table(&listing(&tables))
    })
}

/// One table, with stable names.
pub(crate) fn table_json(table: &hamal::TableInfo) -> serde_json::Value {
    json!({
        "name": table.name,
        "id": table.id,
        "key_type": table.key_type,
        "value_type": table.value_type,
        "rows": table.rows,
        "partitions": table.partitions,
        "file_bytes": table.file_bytes,
    })
}

/// All tables, for people.
pub(crate) fn listing(tables: &[hamal::TableInfo]) -> Table {
    let mut listing = Table::new(&[
        ("TABLE", Align::Left),
        ("KEY", Align::Left),
        ("VALUE", Align::Left),
        ("ROWS", Align::Right),
        ("PARTITIONS", Align::Right),
        ("FILES", Align::Right),
    ]);
    for table in tables {
        listing.row([
            text::escape(table.name.as_bytes()),
            text::escape(table.key_type.as_bytes()),
            text::escape(table.value_type.as_bytes()),
            text::grouped(table.rows),
            text::grouped(table.partitions.len() as u64),
            text::bytes(table.file_bytes),
        ]);
    }
    listing
}
