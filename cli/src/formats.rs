//! Rows as files hold them, and how a table stores them.
//!
//! | format | a row in the file | key | value |
//! |---|---|---|---|
//! | csv, tsv with header | fields | text of the key column | JSON object: column name to text, all columns in order |
//! | csv, tsv without | fields | the same | JSON array of all texts |
//! | jsonl | a JSON object or array | text of the key field | the line as it stands |
//! | raw | `KEY<TAB>VALUE`, escaped | the bytes | the bytes |
//! | csv, tsv, jsonl, plain | two fields; `{"key":...,"value":...}` | as the table's type has it | the same |
//!
//! I1. A document holds its whole row, key column included, so a dump by the same key column gives back the file that was loaded: same
//!     columns, same order, rows sorted by key. A row that such a load would not give its key is written as key and value.
//! I2. raw is exact for the bytes of every table, whatever its types, which it does not name; it is what a dump uses unless told
//!     otherwise.
//!     Lines `\cut<TAB>KEY` in front of its rows say where the table is cut into partitions, in ascending order. No row begins so, for `\c` is
//!     no escape. A table that a load makes is cut there; the other formats have no cuts.
//! I3. Readers name the line in every complaint and allocate by the row, not by the file.

mod delimited;
mod document;
mod lines;
mod pair;
mod raw;

pub(crate) use self::pair::row_document;

use std::io::{BufRead, Write};
use std::path::Path;

use clap::ValueEnum;

use crate::codec::Codec;
use crate::failure::{Failure, Result};

/// How a file writes rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Comma-separated values.
    Csv,
    /// Tab-separated values.
    Tsv,
    /// JSON Lines: an object or array a line.
    Jsonl,
    /// Key, tab, value; escaped. The bytes of every table, exactly, without the names of its types.
    Raw,
}

impl Format {
    /// The format that a file's name announces.
    pub(crate) fn of_file(file: &Path) -> Option<Format> {
        match file.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" => Some(Format::Csv),
            "tsv" | "tab" => Some(Format::Tsv),
            "jsonl" | "ndjson" => Some(Format::Jsonl),
            "raw" => Some(Format::Raw),
            _ => None,
        }
    }

    /// Whether its rows are documents, so that their table has `str` keys and values.
    pub(crate) fn is_text(self) -> bool {
        self != Format::Raw
    }
}

/// Which column is the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyColumn {
    First,
    /// A name, or else a position counted from 1.
    Chosen(String),
}

impl KeyColumn {
    /// The position among named columns.
    fn find<'n>(&self, mut names: impl Iterator<Item = &'n str>, count: usize) -> Result<usize, String> {
        let KeyColumn::Chosen(chosen) = self else { return Ok(0) };
        match names.position(|name| name == chosen) {
            Some(at) => Ok(at),
            None => self.position(count).ok_or_else(|| format!("there is no column {chosen:?}")),
        }
    }

    /// The position among `count` columns without names.
    fn position(&self, count: usize) -> Option<usize> {
        match self {
            KeyColumn::First => (count > 0).then_some(0),
            KeyColumn::Chosen(chosen) => {
                chosen.parse::<usize>().ok()?.checked_sub(1).filter(|position| *position < count)
            }
        }
    }
}

/// Whether the first row names the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    Present,
    Absent,
}

/// What `"` at the start of a field means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quoting {
    /// The field ends at the next quote; a doubled quote is one.
    Quotes,
    /// Nothing.
    Literal,
}

/// What becomes the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The whole row, as JSON.
    Document,
    /// The other one of two columns, as it stands; of JSON Lines, the `value` beside a `key`.
    Plain,
}

/// How to read a file.
#[derive(Clone, Debug)]
pub(crate) struct ReadOptions {
    pub(crate) format: Format,
    pub(crate) key: KeyColumn,
    pub(crate) header: Header,
    pub(crate) delimiter: Option<u8>,
    pub(crate) quoting: Quoting,
    pub(crate) shape: Shape,
}

impl ReadOptions {
    pub(crate) fn new(format: Format) -> ReadOptions {
        ReadOptions {
            format,
            key: KeyColumn::First,
            header: Header::Present,
            delimiter: None,
            quoting: Quoting::Quotes,
            shape: Shape::Document,
        }
    }
}

/// One row to be stored. Reused from row to row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    /// The line it began on, from 1.
    pub(crate) line: u64,
    /// The key is text that the table's type has to encode; else the bytes to store.
    pub(crate) key_is_text: bool,
    /// The same of the value.
    pub(crate) value_is_text: bool,
}

impl Row {
    fn set_text(&mut self, key: &str, value: &str) {
        self.key.clear();
        self.key.extend_from_slice(key.as_bytes());
        self.value.clear();
        self.value.extend_from_slice(value.as_bytes());
        (self.key_is_text, self.value_is_text) = (true, true);
    }
}

/// Takes rows from a file.
pub(crate) trait ReadRows {
    /// Fills `row` with the next one; `false` at the end.
    fn read(&mut self, row: &mut Row) -> Result<bool>;
    /// Where the file says that the table is cut: known once the first row has been read, or there is none.
    fn cuts(&self) -> &[Vec<u8>] {
        &[]
    }
}

/// A reader of `source`, whose name stands in complaints.
pub(crate) fn reader<'s>(
    options: &ReadOptions,
    source: Box<dyn BufRead + 's>,
    name: &str,
) -> Result<Box<dyn ReadRows + 's>> {
    Ok(match options.format {
        Format::Csv | Format::Tsv => Box::new(delimited::DelimitedReader::new(source, name, options)?),
        Format::Jsonl => Box::new(lines::JsonLinesReader::new(source, name, options)),
        Format::Raw => Box::new(raw::RawReader::new(source, name)),
    })
}

/// Puts rows into a file.
pub(crate) trait WriteRows {
    /// That a partition begins at this key, before the first row; nothing where the format has no place for it.
    fn write_cut(&mut self, _key: &[u8]) -> Result<()> {
        Ok(())
    }
    fn write(&mut self, key: &[u8], value: &[u8]) -> Result<()>;
    /// Whatever is still buffered.
    fn finish(&mut self) -> Result<()>;
}

/// How to write a file.
#[derive(Clone, Debug)]
pub(crate) struct WriteOptions {
    pub(crate) format: Format,
    pub(crate) delimiter: Option<u8>,
    /// The key column of the load that is to read it.
    pub(crate) key: KeyColumn,
}

impl WriteOptions {
    #[cfg(test)]
    pub(crate) fn new(format: Format) -> WriteOptions {
        WriteOptions { format, delimiter: None, key: KeyColumn::First }
    }
}

/// A writer into `target` for a table with these codecs.
pub(crate) fn writer<'t>(
    options: WriteOptions,
    target: &'t mut dyn Write,
    codecs: (Codec, Codec),
) -> Box<dyn WriteRows + 't> {
    match options.format {
        Format::Csv | Format::Tsv => Box::new(delimited::DelimitedWriter::new(target, options, codecs)),
        Format::Jsonl => Box::new(lines::JsonLinesWriter::new(target, codecs, options.key)),
        Format::Raw => Box::new(raw::RawWriter::new(target)),
    }
}

/// A complaint about one line of a file.
fn complain(name: &str, line: u64, what: impl std::fmt::Display) -> Failure {
    Failure::input(format!("{name}, line {line}: {what}"))
}

#[cfg(test)]
mod tests;
