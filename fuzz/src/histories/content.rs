//! What the tables of a round hold: keys that are checked, and rows between them that only take up room.
//!
//! The first half of the keys is in one table, the second in another, and both are cut into partitions, so that transactions span them. A row of a key is
//! named `kNNNNN`, a row behind it `kNNNNN.NNN`. A list is its elements, 8 bytes each; a register is its element and bytes that
//! follow from it.

use std::collections::BTreeSet;
use std::ops::Range;

use hamal::{Database, ReadTable, Table, Transaction};

use crate::checker::{Element, Key, KeyKind, Op};
use crate::choice::{Choices, mix};

/// Any table.
pub(super) type Bytes<'t> = ReadTable<'t, &'static [u8], &'static [u8]>;
/// A table of a read-write transaction.
pub(super) type BytesMut<'t> = Table<'t, &'static [u8], &'static [u8]>;

/// The names of the tables.
pub(super) const TABLES: [&str; 2] = ["left", "right"];

/// How keys, tables and rows belong together.
#[derive(Debug)]
pub(super) struct Layout {
    keys: u32,
    /// Partitions of each table.
    partitions: u32,
    /// Rows behind each key that nobody ever changes.
    rows_between: u32,
    row_bytes: usize,
    /// A register is padded to less than this, bytes.
    padding_bytes: u64,
}

impl Layout {
    pub(super) fn draw(choices: &mut Choices, keys: u32) -> Layout {
        // Now and then more than the cache holds.
        let (rows_between, row_bytes) =
            *choices.pick(&[(0, 0), (0, 0), (2, 100), (1500_u32.div_ceil(keys.max(2)), 1000)]);
        let padding_bytes = *choices.pick(&[1, 100, 1500]);
        Layout { keys, partitions: *choices.pick(&[1, 2, 3, 8]), rows_between, row_bytes, padding_bytes }
    }

    /// Three keys in five are lists, the others are registers.
    pub(super) fn kind(key: Key) -> KeyKind {
        if key % 5 < 3 { KeyKind::List } else { KeyKind::Register }
    }

    /// The table of a key.
    pub(super) fn table_of(&self, key: Key) -> usize {
        usize::from(key >= self.keys / 2)
    }

    /// The keys of a table.
    pub(super) fn keys_of(&self, table: usize) -> Range<Key> {
        if table == 0 { 0..self.keys / 2 } else { self.keys / 2..self.keys }
    }

    pub(super) fn name(key: Key) -> Vec<u8> {
        format!("k{key:05}").into_bytes()
    }

    fn filler_name(key: Key, row: u32) -> Vec<u8> {
        format!("k{key:05}.{row:03}").into_bytes()
    }

    /// Rows between the keys of a table.
    pub(super) fn rows_between(&self, table: usize) -> u64 {
        self.keys_of(table).len() as u64 * u64::from(self.rows_between)
    }

    /// Where a table is cut: its keys are spread evenly.
    fn splits(&self, table: usize) -> Vec<Vec<u8>> {
        let keys = self.keys_of(table);
        let at = |part: u32| {
            keys.start + (keys.len() as u64 * u64::from(part) / u64::from(self.partitions)) as u32
        };
        let cuts: BTreeSet<Key> = (1..self.partitions).map(at).collect();
        cuts.into_iter().map(Self::name).collect()
    }

    /// Makes the tables.
    pub(super) fn fill(&self, db: &Database) -> hamal::Result<()> {
        for (table, name) in TABLES.iter().enumerate() {
            db.transact(|tx| tx.create_bytes_table(name, &self.splits(table)).map(drop))?;
            for key in self.keys_of(table) {
                db.transact(|tx| self.fill_behind(tx, name, key))?;
            }
        }
        Ok(())
    }

    fn fill_behind(&self, tx: &Transaction, table: &str, key: Key) -> hamal::Result<()> {
        let mut table = tx.open_bytes_table(table)?;
        (0..self.rows_between)
            .try_for_each(|row| table.put(&Self::filler_name(key, row), &vec![0x66; self.row_bytes]))
    }

    /// The bytes of a register.
    pub(super) fn register(&self, element: Element) -> Vec<u8> {
        let mut bytes = element.to_le_bytes().to_vec();
        let len = mix(element) % self.padding_bytes;
        bytes.extend((0..len).map(|at| mix(element ^ at) as u8));
        bytes
    }

    /// What the bytes of a key say.
    pub(super) fn elements(&self, key: Key, bytes: Option<&[u8]>) -> Result<Vec<Element>, String> {
        let Some(bytes) = bytes else { return Ok(Vec::new()) };
        let (numbers, rest) = bytes.as_chunks::<8>();
        match (Self::kind(key), numbers) {
            (KeyKind::List, [_, ..]) if rest.is_empty() => {
                Ok(numbers.iter().map(|number| Element::from_le_bytes(*number)).collect())
            }
            (KeyKind::Register, [number, ..]) if self.register(Element::from_le_bytes(*number)) == bytes => {
                Ok(vec![Element::from_le_bytes(*number)])
            }
            (kind, _) => Err(format!("key {key}, a {kind:?}, holds {} bytes of nobody's", bytes.len())),
        }
    }

    /// What a row is: a key, or nothing that counts.
    fn row(&self, name: &[u8], bytes: &[u8]) -> Result<(Key, bool), String> {
        let text = std::str::from_utf8(name).ok().and_then(|name| name.strip_prefix('k'));
        let (key, filler) = match text.map(|text| text.split_once('.').unwrap_or((text, ""))) {
            Some((key, row)) => (key.parse().ok(), row),
            None => (None, ""),
        };
        match key.filter(|key| *key < self.keys) {
            None => Err(format!("there is a row {}", name.escape_ascii())),
            Some(_) if !filler.is_empty() && bytes != vec![0x66; self.row_bytes] => {
                Err(format!("the row {} has changed", name.escape_ascii()))
            }
            Some(key) => Ok((key, filler.is_empty())),
        }
    }

    /// Scans keys of one table, at most `limit` rows, and appends to `ops` a read of each key that the scan passed.
    pub(super) fn scan(
        &self,
        table: &Bytes<'_>,
        keys: Range<Key>,
        backward: bool,
        limit: usize,
        ops: &mut Vec<Op>,
    ) -> Result<(), Broken> {
        let (first, end) = (Self::name(keys.start), Self::name(keys.end));
        let mut rows = table.range(&first[..]..&end[..])?;
        // The next key that has not been passed, from either end.
        let mut left = keys;
        for _ in 0..limit {
            let row = if backward { rows.next_back() } else { rows.next() };
            let Some(row) = row.transpose()? else {
                let missed = |key| Op::Read { key, found: Vec::new() };
                ops.extend(left.map(missed));
                return Ok(());
            };
            self.pass(&row, backward, &mut left, ops)?;
        }
        Ok(())
    }

    /// Reads of the keys up to a row from one end of `left`, which loses them.
    pub(super) fn pass(
        &self,
        (name, bytes): &(Vec<u8>, Vec<u8>),
        backward: bool,
        left: &mut Range<Key>,
        ops: &mut Vec<Op>,
    ) -> Result<(), Broken> {
        let (key, counts) = self.row(name, bytes)?;
        // A row behind its key comes after it; from the back, before it.
        let missed = match (backward, counts) {
            (false, true) => left.start..key,
            (false, false) => left.start..key + 1,
            (true, _) => key + 1..left.end,
        };
        if !missed.is_empty() {
            if backward {
                left.end = missed.start;
            } else {
                left.start = missed.end;
            }
            ops.extend(missed.map(|key| Op::Read { key, found: Vec::new() }));
        }
        if counts {
            if !left.contains(&key) {
                return Err(Broken::Wrong(format!("a scan came to key {key} out of order")));
            }
            if backward {
                left.end = key;
            } else {
                left.start = key + 1;
            }
            ops.push(Op::Read { key, found: self.elements(key, Some(bytes))? });
        }
        Ok(())
    }

    /// Reads of all keys by one snapshot.
    pub(super) fn read_all(&self, db: &Database) -> Result<Vec<Op>, String> {
        let mut ops = Vec::new();
        let mut read = || -> Result<(), Broken> {
            let snapshot = db.snapshot()?;
            for (table, name) in TABLES.iter().enumerate() {
                let rows = snapshot.open_bytes_table(name)?;
                self.scan(&rows, self.keys_of(table), false, usize::MAX, &mut ops)?;
            }
            Ok(())
        };
        read().map_err(|broken| format!("reading everything: {broken}"))?;
        Ok(ops)
    }
}

/// Why an operation came to nothing.
#[derive(Debug)]
pub(super) enum Broken {
    /// The database said so.
    Engine(hamal::Error),
    /// It gave an answer that cannot be.
    Wrong(String),
}

impl From<hamal::Error> for Broken {
    fn from(error: hamal::Error) -> Self {
        Broken::Engine(error)
    }
}

impl From<String> for Broken {
    fn from(what: String) -> Self {
        Broken::Wrong(what)
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::Engine(error) => write!(f, "{:?}: {error}", error.kind()),
            Broken::Wrong(what) => f.write_str(what),
        }
    }
}
