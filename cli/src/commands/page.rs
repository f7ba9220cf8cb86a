//! `hamal page`: one page, decoded.

use clap::Args;
use hamal::inspect::{self, PageInfo};
use serde_json::{Map, Value as Json, json};

use crate::failure::{Result, answer};
use crate::output::{Table, cut};
use crate::session::{DatabaseArg, Session, files, open_failure};
use crate::text;

/// Widest key or description of an entry, for people.
const ENTRY_WIDTH: usize = 80;

/// Arguments of `page`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Reads the file without opening the database. Partition 0 is the catalog; `hamal tables` has the others. Exit status 1 if the page is \
damaged.

Examples:
  hamal page bank.hamal 0 0
  hamal page bank.hamal 1 17 --json")]
pub(crate) struct PageArgs {
    #[command(flatten)]
    database: DatabaseArg,
    /// Number of the partition
    partition: u32,
    /// Number of the page
    page: u32,
}

pub(crate) fn run(args: &PageArgs, session: &mut Session) -> Result<()> {
    let page = inspect::page(&files(&args.database)?, args.partition, args.page)
        .map_err(|error| open_failure(&args.database.directory, error))?;
    let said = if session.out.is_json() {
        session.out.json(&to_json(args, &page))
    } else {
        show(args, &page, session)
    };
    answer(said, page.damage.is_none())
}

fn show(args: &PageArgs, page: &PageInfo, session: &mut Session) -> Result<()> {
    let mut about = Table::pairs();
    about.pair("page", format!("{} of partition {}", args.page, args.partition));
    about.pair("kind", text::printable(&page.kind));
    if let Some(damage) = &page.damage {
        about.pair("DAMAGE", text::printable(damage));
    }
    about.pair("page LSN", text::grouped(page.page_lsn));
    about.pair("max txn", text::grouped(page.max_txn));
    about.pair("level", page.level.to_string());
    for (name, value) in &page.fields {
        about.pair(&text::printable(name), text::printable(value));
    }
    session.out.table(&about)?;
    if page.entries.is_empty() {
        return Ok(());
    }
    session.out.line(text::count(page.entries.len() as u64, "entry"))?;
    let mut entries = Table::pairs().indent(2);
    for (key, what) in &page.entries {
        let key = cut(&text::escape(key), ENTRY_WIDTH);
        entries.row([key, cut(&text::printable(what), ENTRY_WIDTH)]);
    }
    session.out.table(&entries)
}

fn to_json(args: &PageArgs, page: &PageInfo) -> Json {
    let fields: Map<String, Json> =
        page.fields.iter().map(|(name, value)| (name.clone(), Json::String(value.clone()))).collect();
    let entries: Vec<Json> = page
        .entries
        .iter()
        .map(|(key, what)| match std::str::from_utf8(key) {
            Ok(key) => json!({ "key": key, "what": what }),
            Err(_) => json!({ "key_hex": text::hex(key), "what": what }),
        })
        .collect();
    json!({
        "partition": args.partition,
        "page": args.page,
        "kind": page.kind,
        "damage": page.damage,
        "page_lsn": page.page_lsn,
        "max_txn": page.max_txn,
        "level": page.level,
        "fields": fields,
        "entries": entries,
    })
}
