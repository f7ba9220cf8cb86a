//! `KEY<TAB>VALUE`, both escaped: any bytes, one row a line. In front of them, `\cut<TAB>KEY` for each key at which a partition begins.

use std::io::{BufRead, Write};

use super::{ReadRows, Row, WriteRows, complain};
use crate::failure::{Result, read_failure};
use crate::text;

/// What a line begins with that is no row: no escape.
const CUT: &str = "\\cut";

/// Reads escaped rows.
pub(super) struct RawReader<'s> {
    source: Box<dyn BufRead + 's>,
    name: String,
    line: u64,
    buffer: Vec<u8>,
    cuts: Vec<Vec<u8>>,
    has_rows: bool,
}

impl<'s> RawReader<'s> {
    pub(super) fn new(source: Box<dyn BufRead + 's>, name: &str) -> Self {
        RawReader {
            source,
            name: name.to_owned(),
            line: 0,
            buffer: Vec::new(),
            cuts: Vec::new(),
            has_rows: false,
        }
    }

    /// Takes the line that has been read; whether it is a row.
    fn take(&mut self, row: &mut Row) -> Result<bool, String> {
        let line = std::str::from_utf8(&self.buffer).map_err(|_| "not UTF-8 (bytes are written as \\xNN)")?;
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let (key, value) = line.split_once('\t').ok_or("there is no tab between key and value")?;
        if key == CUT {
            let cut = text::unescape(value)?;
            if self.has_rows {
                return Err("a cut stands behind a row".to_owned());
            }
            if self.cuts.last().map_or(cut.is_empty(), |last| *last >= cut) {
                return Err("the keys of cuts do not ascend".to_owned());
            }
            self.cuts.push(cut);
            return Ok(false);
        }
        row.key = text::unescape(key)?;
        row.value = text::unescape(value)?;
        (row.key_is_text, row.value_is_text) = (false, false);
        self.has_rows = true;
        Ok(true)
    }
}

impl ReadRows for RawReader<'_> {
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
            row.line = self.line;
            if self.take(row).map_err(|what| complain(&self.name, self.line, what))? {
                return Ok(true);
            }
        }
    }

    fn cuts(&self) -> &[Vec<u8>] {
        &self.cuts
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
    fn write_cut(&mut self, key: &[u8]) -> Result<()> {
        Ok(writeln!(self.target, "{CUT}\t{}", text::escape(key))?)
    }

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
