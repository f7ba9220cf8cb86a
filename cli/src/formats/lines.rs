//! JSON Lines.

use std::io::{BufRead, Write};

use super::document::{Document, document_text};
use super::pair::{Pair, row_document};
use super::{KeyColumn, ReadOptions, ReadRows, Row, Shape, WriteRows, complain};
use crate::codec::Codec;
use crate::failure::{Result, read_failure};

/// Reads a document a line.
pub(super) struct JsonLinesReader<'s> {
    source: Box<dyn BufRead + 's>,
    name: String,
    key: KeyColumn,
    shape: Shape,
    line: u64,
    buffer: Vec<u8>,
}

impl<'s> JsonLinesReader<'s> {
    pub(super) fn new(source: Box<dyn BufRead + 's>, name: &str, options: &ReadOptions) -> Self {
        JsonLinesReader {
            source,
            name: name.to_owned(),
            key: options.key.clone(),
            shape: options.shape,
            line: 0,
            buffer: Vec::new(),
        }
    }

    fn fill(&self, row: &mut Row) -> Result<(), String> {
        let bytes = if self.line == 1 {
            self.buffer.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.buffer)
        } else {
            &self.buffer
        };
        let line = std::str::from_utf8(bytes).map_err(|_| "not UTF-8")?.trim();
        let document = Document::parse(line).map_err(|error| {
            let what = error.to_string();
            format!("not a JSON object or array: {}", what.split(" at line").next().unwrap_or(&what))
        })?;
        if self.shape == Shape::Plain
            && let Some(pair) = Pair::of(&document)
        {
            return pair.fill(row);
        }
        row.set_text(&document.key(&self.key)?, line);
        Ok(())
    }
}

impl ReadRows for JsonLinesReader<'_> {
    fn read(&mut self, row: &mut Row) -> Result<bool> {
        loop {
            self.buffer.clear();
            let bytes = self
                .source
                .read_until(b'\n', &mut self.buffer)
                .map_err(|error| read_failure(&self.name, &error))?;
            if bytes == 0 {
                return Ok(false);
            }
            self.line += 1;
            if self.buffer.iter().any(|byte| !byte.is_ascii_whitespace()) {
                break;
            }
        }
        row.line = self.line;
        self.fill(row).map_err(|what| complain(&self.name, row.line, what))?;
        Ok(true)
    }
}

/// Writes a document a line: the row's own if reading it gives the row back, else `{"key":...,"value":...}`.
pub(super) struct JsonLinesWriter<'t> {
    target: &'t mut dyn Write,
    codecs: (Codec, Codec),
    key: KeyColumn,
}

impl<'t> JsonLinesWriter<'t> {
    pub(super) fn new(target: &'t mut dyn Write, codecs: (Codec, Codec), key: KeyColumn) -> Self {
        JsonLinesWriter { target, codecs, key }
    }

    /// The line that a reader stores as this row. None may look like a key and its value: `--plain` would take it apart.
    fn own_line<'v>(&self, key: &[u8], value: &'v [u8]) -> Option<&'v str> {
        let text = document_text(&self.codecs.1, value)?;
        if text.contains('\n') || text.trim() != text {
            return None;
        }
        let document = Document::parse(text).ok()?;
        let is_own = Pair::of(&document).is_none() && document.is_keyed(&self.key, &self.codecs.0, key);
        is_own.then_some(text)
    }
}

impl WriteRows for JsonLinesWriter<'_> {
    fn write(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match self.own_line(key, value) {
            Some(line) => self.target.write_all(line.as_bytes())?,
            None => self.target.write_all(row_document(&self.codecs, key, value).to_string().as_bytes())?,
        }
        self.target.write_all(b"\n")?;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(self.target.flush()?)
    }
}
