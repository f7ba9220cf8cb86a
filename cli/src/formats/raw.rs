//! `KEY<TAB>VALUE`, both escaped: any bytes, one row a line.

use std::io::{BufRead, Write};

use super::{ReadRows, Row, WriteRows, complain};
use crate::failure::{Result, read_failure};
use crate::text;

/// Reads escaped rows.
pub(super) struct RawReader<'s> {
    source: Box<dyn BufRead + 's>,
    name: String,
    line: u64,
    buffer: Vec<u8>,
}

impl<'s> RawReader<'s> {
    pub(super) fn new(source: Box<dyn BufRead + 's>, name: &str) -> Self {
        RawReader { source, name: name.to_owned(), line: 0, buffer: Vec::new() }
    }

    fn fill(&self, row: &mut Row) -> Result<(), String> {
        let line = std::str::from_utf8(&self.buffer).map_err(|_| "not UTF-8 (bytes are written as \\xNN)")?;
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let (key, value) = line.split_once('\t').ok_or("there is no tab between key and value")?;
        row.key = text::unescape(key)?;
        row.value = text::unescape(value)?;
        (row.key_is_text, row.value_is_text) = (false, false);
        Ok(())
    }
}

impl ReadRows for RawReader<'_> {
    fn read(&mut self, row: &mut Row) -> Result<bool> {
        self.buffer.clear();
        let bytes = self
            .source
            .read_until(b'\n', &mut self.buffer)
            .map_err(|error| read_failure(&self.name, &error))?;
        if bytes == 0 {
            return Ok(false);
        }
        self.line += 1;
        row.line = self.line;
        self.fill(row).map_err(|what| complain(&self.name, row.line, what))?;
        Ok(true)
    }
}

/// Writes escaped rows.
pub(super) struct RawWriter<'t> {
    target: &'t mut dyn Write,
}

impl<'t> RawWriter<'t> {
    pub(super) fn new(target: &'t mut dyn Write) -> Self {
        RawWriter { target }
    }
}

impl WriteRows for RawWriter<'_> {
    fn write(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.target.write_all(text::escape(key).as_bytes())?;
        self.target.write_all(b"\t")?;
        self.target.write_all(text::escape(value).as_bytes())?;
        self.target.write_all(b"\n")?;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(self.target.flush()?)
    }
}
