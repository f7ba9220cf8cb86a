//! `hamal scan`: rows in key order, from either end.

use std::ops::Bound;

use clap::Args;
use serde_json::{Map, Value as Json};
use unicode_width::UnicodeWidthStr;

use crate::codec::Codec;
use crate::failure::{Failure, Result};
use crate::formats::row_document;
use crate::output::{Output, cut};
use crate::session::{DatabaseArg, Session, TableArg, Writing, codecs};

/// Rows that decide how wide the key column is.
const ALIGNED_ROWS: usize = 200;
/// Keys wider than this are not aligned with.
const KEY_WIDTH: usize = 48;
/// On a terminal, values are cut to this.
const VALUE_WIDTH: usize = 160;

/// Arguments of `scan`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Bytes that are no text are shown as \\xNN. On a terminal long values are cut; elsewhere, and with --json, nothing is.

Examples:
  hamal scan chars.hamal --table characters --from 0041 --limit 26
  hamal scan people.hamal --table people --prefix a --keys-only
  hamal scan log.hamal --table events --reverse --limit 10 --json")]
pub(crate) struct ScanArgs {
    #[command(flatten)]
    database: DatabaseArg,
    #[command(flatten)]
    table: TableArg,
    /// Start at this key
    #[arg(long, value_name = "KEY")]
    from: Option<String>,
    /// Stop before this key
    #[arg(long, value_name = "KEY")]
    to: Option<String>,
    /// Only keys that start with this
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// From the last row to the first
    #[arg(long)]
    reverse: bool,
    /// At most this many rows
    #[arg(long, value_name = "ROWS")]
    limit: Option<u64>,
    /// Keys only
    #[arg(long)]
    keys_only: bool,
    #[command(flatten)]
    writing: Writing,
}

pub(crate) fn run(args: &ScanArgs, session: &mut Session) -> Result<()> {
    session.with_database(&args.database, |session, db| {
        let snapshot = db.snapshot()?;
        let codecs = codecs(&snapshot.tables()?, &args.table.table)?;
        let bounds = bounds(args, &codecs.0)?;
        let table = snapshot.open_bytes_table(&args.table.table)?;
        let Some((from, to)) = bounds else { return Ok(()) };
        let mut range = table.range((from.as_ref().map(Vec::as_slice), to.as_ref().map(Vec::as_slice)))?;
        let next = || if args.reverse { range.next_back() } else { range.next() };
        let mut printer =
            Printer { args, codecs: &codecs, out: &mut session.out, held: Vec::new(), width: None };
        let limit = usize::try_from(args.limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        for row in std::iter::from_fn(next).take(limit) {
            let (key, value) = row?;
            printer.row(&key, &value)?;
        }
        printer.release()
    })
}

type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// The range asked for; `None` if no key can be in it.
fn bounds(args: &ScanArgs, codec: &Codec) -> Result<Option<Bounds>> {
    let key = |what: &str, typed: &Option<String>| {
        typed.as_ref().map(|typed| args.writing.bytes(codec, what, typed)).transpose()
    };
    let mut from = key("key of --from", &args.from)?;
    let mut to = key("key of --to", &args.to)?;
    if let (Some(from), Some(to)) = (&from, &to)
        && from > to
    {
        return Err(Failure::input("--from is behind --to; keys go upwards, with --reverse too"));
    }
    if args.prefix.is_some() {
        if !matches!(codec, Codec::Str | Codec::Bytes) && !args.writing.is_bytes() {
            let what = format!("keys of type {} have no prefixes as text", codec.name());
            return Err(Failure::input(what).hint("--hex takes a prefix of their bytes"));
        }
        let prefix = key("prefix", &args.prefix)?.unwrap_or_default();
        to = match (to, after_prefix(&prefix)) {
            (Some(to), Some(end)) => Some(to.min(end)),
            (to, end) => to.or(end),
        };
        from = Some(from.map_or(prefix.clone(), |from| from.max(prefix)));
    }
    if let (Some(from), Some(to)) = (&from, &to)
        && from >= to
    {
        return Ok(None);
    }
    Ok(Some((from.map_or(Bound::Unbounded, Bound::Included), to.map_or(Bound::Unbounded, Bound::Excluded))))
}

/// The first key behind all that start with `prefix`; `None` if there is none.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// Prints rows in two columns; the first rows decide the width of the keys.
struct Printer<'p> {
    args: &'p ScanArgs,
    codecs: &'p (Codec, Codec),
    out: &'p mut Output,
    held: Vec<(String, String)>,
    width: Option<usize>,
}

impl Printer<'_> {
    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if self.out.is_json() {
            if !self.args.keys_only {
                return self.out.json(&row_document(self.codecs, key, value));
            }
            let mut row = Map::new();
            self.codecs.0.decode(key).put_into(&mut row, "key");
            return self.out.json(&Json::Object(row));
        }
        let key = self.codecs.0.decode(key).shown();
        if self.args.keys_only {
            return self.out.line(key);
        }
        let mut value = self.codecs.1.decode(value).shown();
        if self.out.is_terminal() {
            value = cut(&value, VALUE_WIDTH);
        }
        if self.width.is_some() {
            return self.print(&key, &value);
        }
        self.held.push((key, value));
        if self.held.len() == ALIGNED_ROWS { self.release() } else { Ok(()) }
    }

    /// Prints what is held.
    fn release(&mut self) -> Result<()> {
        let held = std::mem::take(&mut self.held);
        let widest = held.iter().map(|(key, _)| key.width()).filter(|width| *width <= KEY_WIDTH).max();
        self.width.get_or_insert(widest.unwrap_or(0));
        held.iter().try_for_each(|(key, value)| self.print(key, value))
    }

    fn print(&mut self, key: &str, value: &str) -> Result<()> {
        let gap = self.width.unwrap_or(0).saturating_sub(key.width());
        let out = self.out.writer();
        Ok(writeln!(out, "{key}{:gap$}  {value}", "")?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_the_next_one_starts() {
        assert_eq!(after_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(after_prefix(b"\xff"), None);
        assert_eq!(after_prefix(b""), None);
    }
}
