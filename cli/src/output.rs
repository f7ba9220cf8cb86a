//! What commands print, and where: lines, aligned tables, JSON documents.
//!
//! I1. Everything goes through one buffered writer whose errors are values: a closed pipe ends a command, never panics it.
//! I2. With `--json` standard output holds JSON only, one document a line.

use std::io::{self, BufWriter, IsTerminal, Write};

use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use crate::failure::Result;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Text and aligned tables.
    Human,
    /// One JSON document a line.
    Json,
}

/// Standard output.
pub(crate) struct Output {
    writer: Box<dyn Write>,
    style: Style,
    terminal: bool,
}

impl Output {
    pub(crate) fn stdout(style: Style) -> Output {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Output { writer: Box::new(BufWriter::with_capacity(64 << 10, stdout.lock())), style, terminal }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.style == Style::Json
    }

    /// Whether people watch: long values are cut, and results are shown as they come.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Bytes as they are.
    pub(crate) fn writer(&mut self) -> &mut dyn Write {
        &mut self.writer
    }

    pub(crate) fn line(&mut self, line: impl AsRef<str>) -> Result<()> {
        self.writer.write_all(line.as_ref().as_bytes())?;
        self.writer.write_all(b"\n")?;
        if self.terminal {
            self.writer.flush()?;
        }
        Ok(())
    }

    /// One JSON document.
    pub(crate) fn json(&mut self, document: &Value) -> Result<()> {
        self.line(document.to_string())
    }

    pub(crate) fn table(&mut self, table: &Table) -> Result<()> {
        for line in table.lines() {
            self.line(line)?;
        }
        Ok(())
    }

    /// Whatever is buffered goes out; the last thing a command does.
    pub(crate) fn flush(&mut self) -> Result<()> {
        Ok(self.writer.flush()?)
    }
}

/// Which side of its column a cell keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows under headings, aligned.
#[derive(Debug)]
pub(crate) struct Table {
    aligns: Vec<Align>,
    rows: Vec<Vec<String>>,
    indent: usize,
}

impl Table {
    pub(crate) fn new(columns: &[(&str, Align)]) -> Table {
        Table {
            aligns: columns.iter().map(|(_, align)| *align).collect(),
            rows: vec![columns.iter().map(|(name, _)| (*name).to_owned()).collect()],
            indent: 0,
        }
    }

    /// A table without headings: names at the left, values at the right of them.
    pub(crate) fn pairs() -> Table {
        Table { aligns: vec![Align::Left, Align::Left], rows: Vec::new(), indent: 0 }
    }

    #[must_use]
    pub(crate) fn indent(mut self, columns: usize) -> Table {
        self.indent = columns;
        self
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.aligns.len(), "as many cells as columns");
        self.rows.push(cells.into());
    }

    pub(crate) fn pair(&mut self, name: &str, value: impl Into<String>) {
        self.row([name.to_owned(), value.into()]);
    }

    /// The finished lines; nothing trails.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut widths = vec![0; self.aligns.len()];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        let line = |row: &Vec<String>| {
            let mut line = " ".repeat(self.indent);
            for ((cell, width), align) in row.iter().zip(&widths).zip(&self.aligns) {
                let gap = " ".repeat(width - cell.width());
                match align {
                    Align::Left => line.extend([cell.as_str(), &gap]),
                    Align::Right => line.extend([&gap, cell.as_str()]),
                }
                line.push_str("  ");
            }
            line.truncate(line.trim_end().len());
            line
        };
        self.rows.iter().map(line).collect()
    }
}

/// At most `width` columns of the text; three dots say that there is more.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 3;
    for c in text.chars() {
        used += unicode_width::UnicodeWidthChar::width(c).unwrap_or(0);
        if used > width {
            break;
        }
        out.push(c);
    }
    out + "..."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let mut table = Table::new(&[("NAME", Align::Left), ("ROWS", Align::Right), ("TYPE", Align::Left)]);
        table.row(["漢字".into(), "7".into(), "str".into()]);
        table.row(["accounts".into(), "1,000".into(), String::new()]);
        assert_eq!(table.lines(), ["NAME       ROWS  TYPE", "漢字          7  str", "accounts  1,000"]);
    }

    #[test]
    fn long_text_is_cut_to_its_width() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abc...");
        assert_eq!(cut("漢字漢字", 6), "漢...");
    }
}
