//! `hamal partitions`: what range partitions there are.

use clap::Args;
use hamal::{PartitionInfo, TableInfo};
use serde_json::json;

use crate::codec::Codec;
use crate::failure::Result;
use crate::output::{Align, Table};
use crate::session::{DatabaseArg, Session};
use crate::text;

/// Arguments of `partitions`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
A partition has the keys from FROM up to BELOW, which is in the next one. The first line is the catalog's.

Examples:
  hamal partitions bank.hamal
  hamal partitions bank.hamal --table accounts
  hamal partitions bank.hamal --json | jq -r .file")]
pub(crate) struct PartitionsArgs {
    #[command(flatten)]
    database: DatabaseArg,
    /// Those of this table only
    #[arg(long, short, value_name = "TABLE")]
    table: Option<String>,
}

pub(crate) fn run(args: &PartitionsArgs, session: &mut Session) -> Result<()> {
    session.with_database(&args.database, |session, db| {
        let tables = db.tables()?;
        let mut partitions = db.partitions()?;
        if let Some(name) = &args.table {
            if !tables.iter().any(|table| table.name == *name) {
                return Err(crate::session::no_table(name));
            }
            partitions.retain(|partition| partition.table.as_ref() == Some(name));
        }
        if session.out.is_json() {
            return partitions
                .iter()
                .try_for_each(|partition| session.out.json(&to_json(partition, &tables)));
        }
        session.out.table(&listing(&partitions, &tables))?;
        for partition in &partitions {
            if let Some(cause) = &partition.cause {
                session.out.line(format!(
                    "partition {} is quarantined: {}",
                    partition.id,
                    text::printable(cause)
                ))?;
            }
        }
        Ok(())
    })
}

/// How the keys of a partition are shown.
fn codec(partition: &PartitionInfo, tables: &[TableInfo]) -> Codec {
    let table = tables.iter().find(|table| partition.table.as_ref() == Some(&table.name));
    table.map_or(Codec::Bytes, |table| Codec::of(&table.key_type))
}

/// One partition, with stable names. A bound that is no text is in hexadecimal, as `from_hex` or `below_hex`; where there is none, its
/// name is left out.
fn to_json(partition: &PartitionInfo, tables: &[TableInfo]) -> serde_json::Value {
    let codec = codec(partition, tables);
    let mut object = serde_json::Map::new();
    object.insert("id".to_owned(), json!(partition.id));
    object.insert("table".to_owned(), json!(partition.table));
    for (name, bound) in [("from", &partition.lower), ("below", &partition.upper)] {
        if let Some(key) = bound {
            codec.decode(key).put_into(&mut object, name);
        }
    }
    object.insert("state".to_owned(), json!(partition.state.to_string()));
    if let Some(cause) = &partition.cause {
        object.insert("cause".to_owned(), json!(cause));
        object.insert("quarantined_micros".to_owned(), json!(partition.quarantined_micros));
    }
    object.insert("rows".to_owned(), json!(partition.rows));
    object.insert("pages".to_owned(), json!(partition.pages));
    object.insert("bytes".to_owned(), json!(partition.bytes));
    object.insert("operations".to_owned(), json!(partition.operations));
    object.insert("operations_per_second".to_owned(), json!(partition.operations_per_second));
    object.insert("file".to_owned(), json!(partition.file));
    serde_json::Value::Object(object)
}

/// All partitions, for people.
fn listing(partitions: &[PartitionInfo], tables: &[TableInfo]) -> Table {
    let mut listing = Table::new(&[
        ("ID", Align::Right),
        ("TABLE", Align::Left),
        ("FROM", Align::Left),
        ("BELOW", Align::Left),
        ("STATE", Align::Left),
        ("ROWS", Align::Right),
        ("PAGES", Align::Right),
        ("BYTES", Align::Right),
        ("FILE", Align::Left),
    ]);
    for partition in partitions {
        let codec = codec(partition, tables);
        let bound = |bound: &Option<Vec<u8>>| {
            bound.as_ref().map_or_else(|| "-".to_owned(), |key| codec.decode(key).shown())
        };
        listing.row([
            partition.id.to_string(),
            partition
                .table
                .as_ref()
                .map_or_else(|| "(catalog)".to_owned(), |name| text::escape(name.as_bytes())),
            bound(&partition.lower),
            bound(&partition.upper),
            partition.state.to_string(),
            partition.rows.map_or_else(|| "-".to_owned(), text::grouped),
            text::grouped(partition.pages.into()),
            text::bytes(partition.bytes),
            partition.file.clone(),
        ]);
    }
    listing
}
