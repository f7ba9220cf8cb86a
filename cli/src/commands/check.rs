//! `hamal check`: every invariant of every page.

use std::ops::ControlFlow;

use clap::Args;
use hamal::{ErrorKind, Finding, VerifyReport};
use serde_json::{Value as Json, json};

use crate::failure::{Failure, Result, Status, answer};
use crate::output::Table;
use crate::session::{DatabaseArg, Session, progress_bar};
use crate::text::{self, grouped};

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Reads every page of every table. Rows and pages are counted with the catalog's own. A line for each thing that is wrong, naming file and page; exit status 1 if there is one.

Examples:
  hamal check bank.hamal && echo sound")]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    database: DatabaseArg,
}

pub(crate) fn run(args: &CheckArgs, session: &mut Session) -> Result<()> {
    let result = session.with_database(&args.database, |_, db| {
        let bar = progress_bar(Some(0), "[{bar:40}] {human_pos} of {human_len} pages, {eta} left");
        let report = db.verify(&mut |progress| {
            bar.set_length(progress.pages_total);
            bar.set_position(progress.pages_done);
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        match report {
            Ok(report) => Ok(report),
            // What stops a verification altogether is a finding, too.
            Err(error) if error.kind() == ErrorKind::Corrupt => Err(Failure::from(error)),
            Err(error) => Err(error.into()),
        }
    });
    match result {
        Ok(report) => answer(tell(&report, session), report.findings.is_empty()),
        // Too damaged to be opened, or to be read to the end: the one finding there is.
        Err(Failure::Message(Status::Damaged, what)) => {
            let said = if session.out.is_json() {
                let finding = json!({ "file": null, "page": null, "what": what });
                session.out.json(&json!({ "sound": false, "findings": [finding] }))
            } else {
                session.out.line(what)
            };
            answer(said, false)
        }
        Err(failure) => Err(failure),
    }
}

fn tell(report: &VerifyReport, session: &mut Session) -> Result<()> {
    let sound = report.findings.is_empty();
    if session.out.is_json() {
        return session.out.json(&json!({
            "sound": sound,
            "tables": report.tables,
            "partitions": report.partitions,
            "pages": report.pages,
            "free_pages": report.free_pages,
            "rows": report.rows,
            "ghosts": report.ghosts,
            "overflow_values": report.overflow_values,
            "height": report.height,
            "findings": report.findings.iter().map(finding_json).collect::<Vec<_>>(),
        }));
    }
    for finding in &report.findings {
        session.out.line(finding_line(finding))?;
    }
    let mut about = Table::pairs();
    about.pair("tables", grouped(report.tables));
    about.pair("rows, catalog's too", grouped(report.rows));
    about.pair("ghosts", grouped(report.ghosts));
    about.pair("overflow values", grouped(report.overflow_values));
    about.pair("pages", format!("{} and {} free", grouped(report.pages), grouped(report.free_pages)));
    about.pair("height", grouped(report.height));
    session.out.table(&about)?;
    session.out.line(if sound {
        "sound".to_owned()
    } else {
        format!("DAMAGED: {}", text::count(report.findings.len() as u64, "finding"))
    })
}

/// What is wrong and where, in a line.
pub(crate) fn finding_line(finding: &Finding) -> String {
    let place = match finding.page {
        Some(page) => format!("{} page {page}", finding.file),
        None => finding.file.clone(),
    };
    text::printable(&format!("{place}: {}", finding.what))
}

fn finding_json(finding: &Finding) -> Json {
    json!({ "file": finding.file, "page": finding.page, "what": finding.what })
}
