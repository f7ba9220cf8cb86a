//! `hamal scrub`: every page on the disk looked at, and rebuilt where it is bad.

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use hamal::{Finding, ScrubReport};
use serde_json::{Value as Json, json};

use super::check::finding_line;
use crate::failure::{Failure, Result, answer};
use crate::output::Table;
use crate::session::{DatabaseArg, Session, progress_bar};
use crate::text::{self, grouped};

/// Arguments of `scrub`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Pages that are damaged, misplaced, missing or stale are rebuilt from older copies and the log, and with --heal-from from backups. A line for each \
bad page; exit status 1 if one could not be rebuilt. `check` proves more: how the pages fit together.

Examples:
  hamal scrub bank.hamal
  hamal scrub bank.hamal --heal-from /mnt/vault/bank")]
pub(crate) struct ScrubArgs {
    #[command(flatten)]
    database: DatabaseArg,
    /// Directory of backups and archived log to rebuild pages from
    #[arg(long, value_name = "TARGET")]
    heal_from: Option<PathBuf>,
}

pub(crate) fn run(args: &ScrubArgs, session: &mut Session) -> Result<()> {
    if let Some(target) = args.heal_from.as_ref().filter(|target| !target.is_dir()) {
        return Err(Failure::unusable(format!("{}: there is no such directory", target.display())));
    }
    session.heal_from.clone_from(&args.heal_from);
    let report = session.with_database(&args.database, |_, db| {
        let bar = progress_bar(Some(0), "[{bar:40}] {human_pos} of {human_len} pages, {eta} left");
        let report = db.scrub(&mut |progress| {
            bar.set_length(progress.pages_total);
            bar.set_position(progress.pages_done);
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        Ok(report?)
    })?;
    answer(tell(&report, session), report.damaged.is_empty())
}

fn tell(report: &ScrubReport, session: &mut Session) -> Result<()> {
    if session.out.is_json() {
        return session.out.json(&json!({
            "sound": report.damaged.is_empty(),
            "partitions": report.partitions,
            "pages": report.pages,
            "bytes": report.bytes,
            "healed": report.healed.iter().map(finding_json).collect::<Vec<_>>(),
            "damaged": report.damaged.iter().map(finding_json).collect::<Vec<_>>(),
        }));
    }
    for (word, findings) in [("healed", &report.healed), ("DAMAGED", &report.damaged)] {
        for finding in findings {
            session.out.line(format!("{word}: {}", finding_line(finding)))?;
        }
    }
    let mut about = Table::pairs();
    about.pair("partitions", grouped(report.partitions));
    about.pair("pages", format!("{}, {}", grouped(report.pages), text::bytes(report.bytes)));
    about.pair("healed", grouped(report.healed.len() as u64));
    session.out.table(&about)?;
    session.out.line(if report.damaged.is_empty() {
        "sound".to_owned()
    } else {
        format!("DAMAGED: {}", text::count(report.damaged.len() as u64, "page"))
    })
}

fn finding_json(finding: &Finding) -> Json {
    json!({ "file": finding.file, "page": finding.page, "what": finding.what })
}
