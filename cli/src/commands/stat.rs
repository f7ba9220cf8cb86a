//! `hamal stat`: the database in numbers.

use clap::Args;
use hamal::inspect::{self, MasterInfo};
use hamal::{RecoveryReport, Stats, TableInfo};
use serde_json::{Value as Json, json};

use crate::commands::tables::{listing, table_json};
use crate::failure::Result;
use crate::output::Table;
use crate::picture;
use crate::session::{DatabaseArg, Session, files, open_failure};
use crate::text::{self, grouped};

/// Arguments of `stat`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Counters (reads, evictions, commits, ...) are those of this one opening of the database.

Examples:
  hamal stat bank.hamal
  hamal stat bank.hamal --json | jq .log.used_bytes")]
pub(crate) struct StatArgs {
    #[command(flatten)]
    database: DatabaseArg,
}

pub(crate) fn run(args: &StatArgs, session: &mut Session) -> Result<()> {
    // Before it is opened: what the last user of the database left.
    let master = inspect::master(&files(&args.database)?)
        .map_err(|error| open_failure(&args.database.directory, error))?;
    session.with_database(&args.database, |session, db| {
        let tables = db.tables()?;
        let (stats, recovery) = (db.stats(), db.recovery_report());
        if session.out.is_json() {
            return session.out.json(&to_json(&master, &stats, recovery, &tables));
        }
        let mut about = Table::pairs();
        about.pair("database", format!("{:016x}", master.database_id));
        about.pair("page size", text::bytes(stats.page_bytes));
        about.pair("partitions", grouped(stats.partitions));
        about.pair("files of tables", text::bytes(tables.iter().map(|table| table.file_bytes).sum()));
        about.pair("rows", grouped(tables.iter().map(|table| table.rows).sum()));
        about.pair(
            "cache",
            format!("{} of {}", text::bytes(stats.resident_bytes), text::bytes(stats.cache_bytes)),
        );
        about.pair(
            "log ends at",
            format!("{} (durable to {})", grouped(stats.log_tail), grouped(stats.log_durable)),
        );
        about.pair("log in use", text::bytes(stats.log_used_bytes));
        about.pair("incarnation", recovery.incarnation.to_string());
        session.out.table(&about)?;
        session.out.line("opening")?;
        for line in picture::lines(recovery) {
            session.out.line(line)?;
        }
        session.out.line("tables")?;
        session.out.table(&listing(&tables).indent(2))
    })
}

fn to_json(master: &MasterInfo, stats: &Stats, recovery: &RecoveryReport, tables: &[TableInfo]) -> Json {
    json!({
        "database_id": format!("{:016x}", master.database_id),
        "page_bytes": stats.page_bytes,
        "partitions": stats.partitions,
        "cache": {
            "budget_bytes": stats.cache_bytes,
            "resident_bytes": stats.resident_bytes,
            "misses": stats.cache_misses,
            "evictions": stats.evictions,
            "dirty_pages": stats.dirty_pages,
            "pages_written": stats.pages_written,
            "pages_stolen": stats.pages_stolen,
        },
        "log": {
            "tail_lsn": stats.log_tail,
            "durable_lsn": stats.log_durable,
            "used_bytes": stats.log_used_bytes,
            "flushes": stats.log_flushes,
            "checkpoints": stats.checkpoints,
            "checkpoint_lsn_before": master.checkpoint_lsn,
            "oldest_lsn_before": master.oldest_lsn,
            "incarnation": recovery.incarnation,
        },
        "transactions": {
            "active": stats.active_transactions,
            "commits": stats.commits,
            "rollbacks": stats.rollbacks,
            "compensation_records": stats.compensation_records,
        },
        "structure_changes": stats.structure_changes,
        "recovery": picture::to_json(recovery),
        "tables": tables.iter().map(table_json).collect::<Vec<_>>(),
    })
}
