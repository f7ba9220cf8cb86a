//! The demo's database, as it starts.

use std::collections::BTreeMap;
use std::path::Path;

use hamal::{Database, OpenMode, Options};

use super::model::Model;
use super::{ACCOUNT_COUNT, ACCOUNTS, CHARACTERS, FIRST_BALANCE, LEDGER, account_name, ledger_key};
use crate::commands::load::{Loaded, Plan, load};
use crate::failure::Result;
use crate::formats::{self, Format, Header, ReadOptions, Row};

/// The Unicode character database, as Debian ships it.
const UNICODE_DATA: &str = include_str!("../../../data/UnicodeData.txt");

/// The engine's settings in all of the demo's processes: a cache smaller than the tables and a checkpoint every few megabytes of log,
/// so that a kill finds pages of transactions that had not ended already written to the files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) cache_bytes: u64,
}

impl Settings {
    pub(super) fn options(self, mode: OpenMode) -> Options {
        Options::new()
            .mode(mode)
            .cache_bytes(self.cache_bytes)
            .log_buffer_bytes(1 << 20)
            .log_segment_bytes(4 << 20)
            .max_log_bytes(256 << 20)
            .checkpoint_log_bytes(4 << 20)
    }
}

fn read_options() -> ReadOptions {
    ReadOptions { header: Header::Absent, delimiter: Some(b';'), ..ReadOptions::new(Format::Csv) }
}

/// Makes the database and fills it; what it holds, and what was loaded.
pub(super) fn make(directory: &Path, settings: Settings, workers: usize) -> Result<(Model, Loaded)> {
    let db = settings.options(OpenMode::Create).open(directory)?;
    let options = read_options();
    let mut rows = formats::reader(&options, Box::new(UNICODE_DATA.as_bytes()), "UnicodeData.txt")?;
    let plan =
        Plan { table: CHARACTERS.name(), batch: None, options: &options, file: "UnicodeData.txt", cuts: &[] };
    let loaded = load(&db, &plan, rows.as_mut())?;
    fill_accounts(&db, workers)?;
    db.close()?;
    Ok((Model::new(characters()?, workers), loaded))
}

fn fill_accounts(db: &Database, workers: usize) -> Result<()> {
    let tx = db.begin()?;
    {
        let mut accounts = tx.open_table(ACCOUNTS)?;
        for number in 0..ACCOUNT_COUNT {
            accounts.put(&account_name(number), FIRST_BALANCE)?;
        }
        let mut ledger = tx.open_table(LEDGER)?;
        for worker in 0..workers {
            ledger.put(&ledger_key(worker), 0)?;
        }
    }
    Ok(tx.commit()?)
}

/// The rows of the file, as the table stores them.
pub(super) fn characters() -> Result<BTreeMap<String, String>> {
    let mut rows = formats::reader(&read_options(), Box::new(UNICODE_DATA.as_bytes()), "UnicodeData.txt")?;
    let mut row = Row::default();
    let mut characters = BTreeMap::new();
    while rows.read(&mut row)? {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        characters.insert(text(&row.key), text(&row.value));
    }
    Ok(characters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_character_database_is_read_whole() {
        let characters = characters().unwrap();
        assert_eq!(characters.len(), 34_924);
        assert_eq!(
            characters["0041"],
            r#"["0041","LATIN CAPITAL LETTER A","Lu","0","L","","","","","N","","","","0061",""]"#
        );
    }
}
