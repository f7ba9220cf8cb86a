//! JSON Lines.

use std::io::{BufRead, Write};

use serde_json::{Map, Value as Json};

use super::document::{Document, is_compound, on_one_line, scalar_text};
use super::{KeyColumn, ReadRows, Row, WriteRows, complain};
use crate::codec::Codec;
use crate::failure::{Result, read_failure};

/// Reads a document a line.
pub(super) struct JsonLinesReader<'s> {
    source: Box<dyn BufRead + 's>,
    name: String,
    key: KeyColumn,
    line: u64,
    buffer: Vec<u8>,
}

impl<'s> JsonLinesReader<'s> {
    pub(super) fn new(source: Box<dyn BufRead + 's>, name: &str, key: KeyColumn) -> Self {
        JsonLinesReader { source, name: name.to_owned(), key, line: 0, buffer: Vec::new() }
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
        let value = match &document {
            Document::Object(members) => {
                let at = self.key.find(members.iter().map(|(name, _)| name.as_ref()), members.len())?;
                members.get(at).map(|(_, value)| *value)
            }
            Document::Array(elements) => self.key.position(elements.len()).map(|at| elements[at]),
        };
        let value = value.ok_or("there is no field for the key")?;
        let key = scalar_text(value).filter(|_| !is_compound(value));
        let key =
            key.ok_or_else(|| format!("the key is {}; it must be text, a number or a boolean", value.get()))?;
        row.key.clear();
        row.key.extend_from_slice(key.as_bytes());
        row.value.clear();
        row.value.extend_from_slice(line.as_bytes());
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

/// Writes a document a line: the row's own where it is one, else `{"key":...,"value":...}`.
pub(super) struct JsonLinesWriter<'t> {
    target: &'t mut dyn Write,
    codecs: (Codec, Codec),
}

impl<'t> JsonLinesWriter<'t> {
    pub(super) fn new(target: &'t mut dyn Write, codecs: (Codec, Codec)) -> Self {
        JsonLinesWriter { target, codecs }
    }
}

impl WriteRows for JsonLinesWriter<'_> {
    fn write(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let text = match &self.codecs.1 {
            Codec::Bytes | Codec::Str => std::str::from_utf8(value).ok(),
            _ => None,
        };
        if let Some(text) = text.filter(|text| Document::parse(text).is_ok()) {
            self.target.write_all(on_one_line(text).as_bytes())?;
        } else {
            let row = row_document(&self.codecs, key, value);
            self.target.write_all(row.to_string().as_bytes())?;
        }
        self.target.write_all(b"\n")?;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(self.target.flush()?)
    }
}

/// `{"key":...,"value":...}`; `key_hex` and `value_hex` for what is no text.
pub(crate) fn row_document(codecs: &(Codec, Codec), key: &[u8], value: &[u8]) -> Json {
    let mut row = Map::new();
    codecs.0.decode(key).put_into(&mut row, "key");
    codecs.1.decode(value).put_into(&mut row, "value");
    Json::Object(row)
}
