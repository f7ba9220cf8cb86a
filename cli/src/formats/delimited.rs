//! CSV and TSV.

use std::borrow::Cow;
use std::io::{BufRead, Chain, Read, Write};

use csv::{ByteRecord, QuoteStyle, ReaderBuilder, WriterBuilder};

use super::document::{Document, document_text, push_string, scalar_text};
use super::{
    Format, Header, KeyColumn, Quoting, ReadOptions, ReadRows, Row, Shape, WriteOptions, WriteRows, complain,
};
use crate::codec::{Codec, Datum};
use crate::failure::{Failure, Result, read_failure};
use crate::text;

/// A record behind the last one, which no file in UTF-8 can hold: a parser that is inside a quoted field there takes it for a part of
/// the field.
const END: &[u8] = b"\xff\xfe\xff";
/// The record and the line end in front of it.
const END_LINE: &[u8] = b"\n\xff\xfe\xff";

impl Format {
    fn delimiter(self) -> u8 {
        if self == Format::Tsv { b'\t' } else { b',' }
    }
}

/// Reads fields between delimiters.
pub(super) struct DelimitedReader<'s> {
    csv: csv::Reader<Chain<Box<dyn BufRead + 's>, &'static [u8]>>,
    name: String,
    record: ByteRecord,
    header: Option<Vec<String>>,
    key: KeyColumn,
    key_at: Option<usize>,
    columns: Option<usize>,
    shape: Shape,
}

impl<'s> DelimitedReader<'s> {
    pub(super) fn new(source: Box<dyn BufRead + 's>, name: &str, options: &ReadOptions) -> Result<Self> {
        let csv = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(options.delimiter.unwrap_or(options.format.delimiter()))
            .quoting(options.quoting == Quoting::Quotes)
            .from_reader(source.chain(END_LINE));
        let mut reader = DelimitedReader {
            csv,
            name: name.to_owned(),
            record: ByteRecord::new(),
            header: None,
            key: options.key.clone(),
            key_at: None,
            columns: None,
            shape: options.shape,
        };
        if options.header == Header::Present && reader.next_record()? {
            reader.take_header()?;
        }
        Ok(reader)
    }

    /// Reads a record into `self.record`; `false` at the end.
    fn next_record(&mut self) -> Result<bool> {
        if !self.read_record()? {
            return Ok(false);
        }
        let Some(last) = self.record.iter().next_back().filter(|last| last.ends_with(END)) else {
            return Ok(true);
        };
        let lines = self.csv.position().line();
        let quoted_from = lines.saturating_sub(line_ends(last));
        let is_end = self.record.as_slice() == END;
        if self.read_record()? {
            // The file itself has these bytes.
            return Err(complain(&self.name, quoted_from, "not UTF-8"));
        }
        if is_end {
            return Ok(false);
        }
        Err(complain(&self.name, quoted_from, "the quote that begins here is never closed"))
    }

    fn read_record(&mut self) -> Result<bool> {
        self.csv.read_byte_record(&mut self.record).map_err(|error| match error.kind() {
            csv::ErrorKind::Io(error) => read_failure(&self.name, error),
            _ => complain(&self.name, self.line(), &error),
        })
    }

    /// The line the current record began on. Its own position counts from before the blank lines in front of it, the reader's
    /// from behind it: the later one is right.
    fn line(&self) -> u64 {
        let from = self.record.position().map_or(1, csv::Position::line);
        from.max(self.csv.position().line().saturating_sub(1 + line_ends(self.record.as_slice())))
    }

    fn take_header(&mut self) -> Result<()> {
        let line = self.line();
        let mut names: Vec<String> = Vec::with_capacity(self.record.len());
        for field in &self.record {
            let name = utf8(field).map_err(|what| complain(&self.name, line, what))?;
            if names.iter().any(|known| known == name) {
                return Err(complain(&self.name, line, format!("the header has two columns {name:?}")));
            }
            names.push(name.to_owned());
        }
        let at = self.key.find(names.iter().map(String::as_str), names.len());
        self.key_at = Some(at.map_err(|what| complain(&self.name, line, what))?);
        self.columns = Some(names.len());
        self.header = Some(names);
        Ok(())
    }

    fn fill(&mut self, row: &mut Row) -> Result<(), String> {
        let count = self.record.len();
        let expected = *self.columns.get_or_insert(count);
        if count != expected {
            return Err(format!("{} where the file has {expected}", text::count(count as u64, "field")));
        }
        let key_at = if let Some(at) = self.key_at {
            at
        } else {
            let at = self.key.position(count).ok_or_else(|| match &self.key {
                KeyColumn::Chosen(chosen) => {
                    format!("there is no column {chosen:?} among {count} without names")
                }
                KeyColumn::First => "a row without fields".to_owned(),
            })?;
            *self.key_at.insert(at)
        };
        let key = utf8(&self.record[key_at])?;
        if self.shape == Shape::Plain {
            if count != 2 {
                return Err(format!("--plain wants two columns; here are {count}"));
            }
            row.set_text(key, utf8(&self.record[1 - key_at])?);
            return Ok(());
        }
        row.set_text(key, "");
        row.value.push(if self.header.is_some() { b'{' } else { b'[' });
        for (i, field) in self.record.iter().enumerate() {
            if i > 0 {
                row.value.push(b',');
            }
            if let Some(names) = &self.header {
                push_string(&mut row.value, &names[i]);
                row.value.push(b':');
            }
            push_string(&mut row.value, utf8(field)?);
        }
        row.value.push(if self.header.is_some() { b'}' } else { b']' });
        Ok(())
    }
}

impl ReadRows for DelimitedReader<'_> {
    fn read(&mut self, row: &mut Row) -> Result<bool> {
        if !self.next_record()? {
            return Ok(false);
        }
        row.line = self.line();
        self.fill(row).map_err(|what| complain(&self.name, row.line, what))?;
        Ok(true)
    }
}

fn line_ends(bytes: &[u8]) -> u64 {
    bytes.split(|byte| *byte == b'\n').skip(1).count() as u64
}

fn utf8(field: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(field).map_err(|_| format!("\"{}\" is not UTF-8", text::escape(field)))
}

/// What the first row decides for all.
enum Columns {
    /// Objects with these members.
    Named(Vec<String>),
    /// Arrays of this many elements.
    Counted(usize),
    /// Anything else: key and value.
    Pair,
}

/// Writes fields between delimiters.
pub(super) struct DelimitedWriter<'t> {
    csv: csv::Writer<&'t mut dyn Write>,
    codecs: (Codec, Codec),
    key: KeyColumn,
    columns: Option<Columns>,
}

impl<'t> DelimitedWriter<'t> {
    pub(super) fn new(target: &'t mut dyn Write, options: WriteOptions, codecs: (Codec, Codec)) -> Self {
        let csv = WriterBuilder::new()
            .delimiter(options.delimiter.unwrap_or(options.format.delimiter()))
            .quote_style(QuoteStyle::Necessary)
            .flexible(true)
            .from_writer(target);
        DelimitedWriter { csv, codecs, key: options.key, columns: None }
    }

    fn record<'f>(&mut self, fields: impl IntoIterator<Item = Cow<'f, [u8]>>) -> Result<()> {
        for field in fields {
            self.csv.write_field(&*field).map_err(write_failure)?;
        }
        self.csv.write_record(None::<&[u8]>).map_err(write_failure)
    }

    fn pair(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let key = pair_field(&self.codecs.0, key)?;
        let value = pair_field(&self.codecs.1, value)?;
        self.record([Cow::Owned(key), Cow::Owned(value)])
    }

    /// The first row decides what columns there are, and writes the header if they have names.
    fn start(&mut self, document: Option<&Document<'_>>) -> Result<()> {
        let (columns, header) = match document {
            Some(Document::Object(members)) if !members.is_empty() => {
                let names: Vec<String> = members.iter().map(|(name, _)| name.clone().into_owned()).collect();
                (Columns::Named(names.clone()), names)
            }
            Some(Document::Array(elements)) if !elements.is_empty() => {
                (Columns::Counted(elements.len()), Vec::new())
            }
            _ => (Columns::Pair, vec!["key".to_owned(), "value".to_owned()]),
        };
        self.columns = Some(columns);
        if header.is_empty() {
            return Ok(());
        }
        self.record(header.into_iter().map(|name| Cow::Owned(name.into_bytes())))
    }
}

impl WriteRows for DelimitedWriter<'_> {
    fn write(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let document = document_text(&self.codecs.1, value)
            .and_then(|text| Document::parse(text).ok())
            .filter(|document| document.is_keyed(&self.key, &self.codecs.0, key));
        if self.columns.is_none() {
            self.start(document.as_ref())?;
        }
        let values = match (&self.columns, document) {
            (Some(Columns::Named(names)), Some(Document::Object(members)))
                if names.iter().eq(members.iter().map(|(name, _)| name.as_ref())) =>
            {
                members.into_iter().map(|(_, value)| value).collect()
            }
            (Some(Columns::Counted(count)), Some(Document::Array(elements))) if elements.len() == *count => {
                elements
            }
            (Some(Columns::Pair), _) => return self.pair(key, value),
            _ => {
                let key = self.codecs.0.decode(key).shown();
                let what =
                    format!("row {key} has other columns than the rows before it, or another key column");
                return Err(Failure::input(what).hint("--format jsonl or raw takes any rows"));
            }
        };
        let fields = values.into_iter().map(|value| match scalar_text(value) {
            Some(Cow::Borrowed(text)) => Cow::Borrowed(text.as_bytes()),
            Some(Cow::Owned(text)) => Cow::Owned(text.into_bytes()),
            None => Cow::Borrowed(&b""[..]),
        });
        self.record(fields)
    }

    fn finish(&mut self) -> Result<()> {
        Ok(self.csv.flush()?)
    }
}

/// A key or value that is a field of its own.
fn pair_field(codec: &Codec, bytes: &[u8]) -> Result<Vec<u8>> {
    match codec.decode(bytes) {
        Datum::Text(text) => Ok(text.into_bytes()),
        Datum::Json(json) => Ok(json.to_string().into_bytes()),
        Datum::Bytes(bytes) => Err(Failure::input(format!("\"{}\" is not text", text::escape(&bytes)))
            .hint("--format raw or jsonl takes any bytes")),
    }
}

fn write_failure(error: csv::Error) -> Failure {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error.into(),
        other => Failure::unusable(format!("cannot write the output: {other:?}")),
    }
}
