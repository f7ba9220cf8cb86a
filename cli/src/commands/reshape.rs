//! `hamal split` and `hamal merge`: a table's range partitions are cut anew.

use std::ops::ControlFlow;

use clap::Args;
use hamal::{Database, ReshapeProgress, ReshapeReport};
use indicatif::ProgressBar;
use serde_json::{Map, Value as Json, json};

use crate::failure::Result;
use crate::session::{DatabaseArg, Session, TableArg, Writing, codecs, progress_bar};
use crate::text::{self, count};

/// Arguments of `split` and `merge`.
#[derive(Debug, Args)]
pub(crate) struct ReshapeArgs {
    #[command(flatten)]
    database: DatabaseArg,
    #[command(flatten)]
    table: TableArg,
    /// The key at which the right one of the two partitions begins
    key: String,
    #[command(flatten)]
    writing: Writing,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reshape {
    /// One partition becomes two.
    Split,
    /// Two become one.
    Merge,
}

pub(crate) const SPLIT_HELP: &str = "\
The partition that has the key keeps the keys below it; a new partition gets those from it on. The key need not be there.

Examples:
  hamal split bank.hamal --table accounts m
  hamal split keys.hamal --table hashes --hex 80
  hamal partitions bank.hamal";

pub(crate) const MERGE_HELP: &str = "\
The partition that begins at the key goes, and the one before it gets its keys. `hamal partitions` says where partitions begin.

Examples:
  hamal merge bank.hamal --table accounts m";

/// Bytes done, and of how many.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Bar {
        Bar(progress_bar(Some(0), "[{bar:40}] {bytes} of {total_bytes}, {eta} left"))
    }

    fn callback(&self) -> impl FnMut(ReshapeProgress) -> ControlFlow<()> + '_ {
        |progress| {
            self.0.set_length(progress.total_bytes);
            self.0.set_position(progress.done_bytes);
            ControlFlow::Continue(())
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

pub(crate) fn run(args: &ReshapeArgs, what: Reshape, session: &mut Session) -> Result<()> {
    session.with_database(&args.database, |session, db| {
        let codecs = codecs(&db.tables()?, &args.table.table)?;
        let key = args.writing.bytes(&codecs.0, "key", &args.key)?;
        let report = reshape(db, &args.table.table, &key, what)?;
        // What has moved is taken out of where it was now rather than whenever the database is open next.
        while db.maintain()? {}
        if session.out.is_json() {
            let mut object = Map::new();
            object.insert("table".to_owned(), json!(args.table.table));
            codecs.0.decode(&key).put_into(&mut object, "key");
            for (name, number) in [
                ("left", u64::from(report.left)),
                ("right", u64::from(report.right)),
                ("rows", report.rows),
                ("bytes", report.bytes),
                ("locked_micros", report.locked.as_micros().try_into().unwrap_or(u64::MAX)),
                ("passes", u64::from(report.passes)),
                ("late_rows", report.late_rows),
            ] {
                object.insert(name.to_owned(), json!(number));
            }
            return session.out.json(&Json::Object(object));
        }
        let moved = format!("{} moved, {}", count(report.rows, "row"), text::bytes(report.bytes));
        session.out.line(match what {
            Reshape::Split => format!("partition {} split off {}: {moved}", report.right, report.left),
            Reshape::Merge => format!("partition {} merged into {}: {moved}", report.right, report.left),
        })
    })
}

fn reshape(db: &Database, table: &str, key: &[u8], what: Reshape) -> Result<ReshapeReport> {
    let bar = Bar::new();
    Ok(match what {
        Reshape::Split => db.split(table, key, &mut bar.callback())?,
        Reshape::Merge => db.merge(table, key, &mut bar.callback())?,
    })
}
