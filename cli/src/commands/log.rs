//! `hamal log`: the records of the log.

use std::collections::VecDeque;

use clap::Args;
use hamal::inspect::{self, LogEntry};
use serde_json::{Value as Json, json};

use crate::failure::{Failure, Result};
use crate::session::{DatabaseArg, Session, files, open_failure};
use crate::text;

/// Arguments of `log`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Reads the files without opening the database: a crashed one shows what its recovery will find.

Examples:
  hamal log bank.hamal --last 20
  hamal log bank.hamal --txn 7
  hamal log bank.hamal --kind commit --json | jq .lsn")]
pub(crate) struct LogArgs {
    #[command(flatten)]
    database: DatabaseArg,
    /// Start at this LSN, or the next record behind it [default: the last checkpoint]
    #[arg(long, value_name = "LSN", default_value_t = 0, hide_default_value = true)]
    from: u64,
    /// Stop before this LSN [default: the end of the log]
    #[arg(long, value_name = "LSN", default_value_t = 0, hide_default_value = true)]
    to: u64,
    /// Start at the oldest record that the log must still have
    #[arg(long, conflicts_with = "from")]
    all: bool,
    /// At most this many records
    #[arg(long, value_name = "RECORDS")]
    limit: Option<u64>,
    /// The last this many records
    #[arg(long, value_name = "RECORDS", conflicts_with = "limit")]
    last: Option<usize>,
    /// Records of this transaction only
    #[arg(long, value_name = "ID")]
    txn: Option<u64>,
    /// Records of this kind only (update, compensation, commit, ...); may be repeated
    #[arg(long)]
    kind: Vec<String>,
}

pub(crate) fn run(args: &LogArgs, session: &mut Session) -> Result<()> {
    let storage = files(&args.database)?;
    let fail = |error| open_failure(&args.database.directory, error);
    let from = if args.all { inspect::master(&storage).map_err(fail)?.oldest_lsn } else { args.from };
    if args.to != 0 && from > args.to {
        return Err(Failure::input("--from is behind --to"));
    }
    let mut show = Show { session, started: false };
    let mut shown = 0;
    let mut last = VecDeque::new();
    let mut failure = None;
    inspect::log(&storage, from, args.to, &mut |entry| {
        if !args.wants(entry) {
            return true;
        }
        if let Some(keep) = args.last {
            last.push_back(entry.clone());
            if last.len() > keep {
                last.pop_front();
            }
            return true;
        }
        if args.limit.is_some_and(|limit| shown >= limit) {
            return false;
        }
        shown += 1;
        match show.entry(entry) {
            Ok(()) => args.limit.is_none_or(|limit| shown < limit),
            Err(error) => {
                failure = Some(error);
                false
            }
        }
    })
    .map_err(fail)?;
    match failure {
        Some(failure) => Err(failure),
        None => last.iter().try_for_each(|entry| show.entry(entry)),
    }
}

impl LogArgs {
    fn wants(&self, entry: &LogEntry) -> bool {
        self.txn.is_none_or(|txn| entry.txn == txn)
            && (self.kind.is_empty() || self.kind.contains(&entry.kind))
    }
}

struct Show<'s> {
    session: &'s mut Session,
    started: bool,
}

impl Show<'_> {
    fn entry(&mut self, entry: &LogEntry) -> Result<()> {
        let out = &mut self.session.out;
        if out.is_json() {
            return out.json(&to_json(entry));
        }
        if !std::mem::replace(&mut self.started, true) {
            out.line(format!(
                "{:>14}  {:>6}  {:<18} {:>8} {:>14}  WHAT",
                "LSN", "BYTES", "KIND", "TXN", "PREV"
            ))?;
        }
        lines(entry).into_iter().try_for_each(|line| out.line(line))
    }
}

/// One record, for people: a line, and one more for each page.
fn lines(entry: &LogEntry) -> Vec<String> {
    let number_or_dash = |number: u64| if number == 0 { "-".to_owned() } else { number.to_string() };
    let mut what = text::printable(&entry.detail);
    if let Some(next) = entry.undo_next_lsn {
        what = format!("then undo {}; {what}", number_or_dash(next));
    }
    let head = format!(
        "{:>14}  {:>6}  {:<18} {:>8} {:>14}  {what}",
        entry.lsn,
        entry.end_lsn.saturating_sub(entry.lsn),
        text::printable(&entry.kind),
        number_or_dash(entry.txn),
        number_or_dash(entry.prev_lsn),
    );
    let mut lines = vec![head.trim_end().to_owned()];
    for page in &entry.pages {
        lines.push(format!(
            "{:>16}partition {} page {} (was {}): {}",
            "",
            page.partition,
            page.page,
            number_or_dash(page.page_prev_lsn),
            text::printable(&page.change),
        ));
    }
    lines
}

fn to_json(entry: &LogEntry) -> Json {
    let pages: Vec<Json> = entry
        .pages
        .iter()
        .map(|page| {
            json!({
                "partition": page.partition,
                "page": page.page,
                "page_prev_lsn": page.page_prev_lsn,
                "change": page.change,
            })
        })
        .collect();
    json!({
        "lsn": entry.lsn,
        "end_lsn": entry.end_lsn,
        "incarnation": entry.incarnation,
        "kind": entry.kind,
        "txn": entry.txn,
        "prev_lsn": entry.prev_lsn,
        "undo_next_lsn": entry.undo_next_lsn,
        "pages": pages,
        "detail": entry.detail,
    })
}
