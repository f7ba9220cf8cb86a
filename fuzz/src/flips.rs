//! Damage: any byte of any file of a closed database changed.
//!
//! F1. Opening, scanning, verifying, dumping and writing give right answers, or `Corrupt` (`NotADatabase` from opening) with
//!     a message that names a file. Never a wrong answer, another error, or a panic.
//! F2. Where a scan finds damage, verification finds some too.
//!
//! Hangs and allocations are watched from outside: by whoever runs this, with a clock and a counting allocator.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use hamal::{Database, ErrorKind, OpenMode, Snapshot, inspect};
use hamal_storage::Storage;
use hamal_storage::sim::{CrashMode, SimStorage};

use crate::choice::Choices;
use crate::model::{Hex, Rows, State};
use crate::plan::{NAMES, Plan};
use crate::sweep::Script;
use crate::tally::Tally;
use crate::value::Value;
use crate::workload::{Stop, verify};

/// A closed database to be damaged, and what it holds.
#[derive(Debug)]
pub struct Victim {
    disk: SimStorage,
    plan: Plan,
    state: State,
    files: Vec<(String, Vec<u8>)>,
}

/// One changed byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flip {
    /// In which file.
    pub file: String,
    /// Where.
    pub offset: u64,
    /// What the byte is combined with by exclusive or; not 0.
    pub mask: u8,
}

impl fmt::Display for Flip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} byte {} ^ {:#04x}", self.file, self.offset, self.mask)
    }
}

/// What damage led to.
#[derive(Clone, Debug, Default)]
pub struct Consequences {
    /// By name of the file's kind and what was seen.
    pub seen: BTreeMap<String, u64>,
}

impl Consequences {
    fn note(&mut self, flip: &Flip, what: &str) {
        let class = flip.file.split('/').next().unwrap_or_default();
        *self.seen.entry(format!("{class}: {what}")).or_default() += 1;
    }

    /// Adds those of another run.
    pub fn merge(&mut self, other: Consequences) {
        for (what, count) in other.seen {
            *self.seen.entry(what).or_default() += count;
        }
    }
}

type Checked<T = ()> = Result<T, String>;

impl Victim {
    /// Makes a database with some of everything and closes it.
    pub fn make(page_bytes: usize) -> Checked<Victim> {
        let mut script = Script::fixed(page_bytes);
        script.plan.preload_rows = 200;
        script.plan.value_bytes = 400;
        let mut performance = script.performance();
        script.perform(&mut performance).map_err(|stop| format!("making the database: {stop}"))?;
        let disk = performance.disk.sim().crash_image(CrashMode::KeepAll, 0);
        let read = |name: String| disk.read_file(&name).map(|bytes| (name, bytes));
        let files =
            disk.files().into_iter().map(read).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        Ok(Victim { disk, plan: script.plan, state: performance.model.working().clone(), files })
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Draws a flip: half of them in any file, so that small ones get their share; most of them in bytes that are not zero.
    pub fn draw(&self, choices: &mut Choices) -> Flip {
        let filled: Vec<_> = self.files.iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
        let (file, bytes) = if choices.once_in(2) {
            *choices.pick(&filled)
        } else {
            let mut at = choices.below(self.bytes());
            let holds = |(_, bytes): &&&(String, Vec<u8>)| {
                let found = at < bytes.len() as u64;
                at = at.saturating_sub(bytes.len() as u64);
                found
            };
            filled.iter().find(holds).copied().unwrap_or(filled[0])
        };
        let mut offset = choices.below(bytes.len() as u64);
        for _ in 0..*choices.pick(&[0, 8, 64]) {
            if bytes[offset as usize] != 0 {
                break;
            }
            offset = choices.below(bytes.len() as u64);
        }
        let bit = 1 << choices.below(8);
        let mask = if choices.once_in(2) { bit } else { 1 + choices.below(255) as u8 };
        Flip { file: file.clone(), offset, mask }
    }

    /// Draws `count` flips from a seed and tries them all. The error names the flip.
    pub fn campaign(&self, seed: u64, count: u64, progress: &mut dyn FnMut(&Flip)) -> Checked<Consequences> {
        let mut choices = Choices::seeded(seed);
        let mut consequences = Consequences::default();
        for number in 0..count {
            let flip = self.draw(&mut choices);
            progress(&flip);
            let tried = catch_unwind(AssertUnwindSafe(|| self.endure(&flip, &mut consequences)));
            let tried = tried.unwrap_or_else(|panic| Err(format!("panic: {}", panic_text(&*panic))));
            tried.map_err(|what| format!("seed {seed}, flip {number} ({flip}): {what}"))?;
        }
        Ok(consequences)
    }

    /// Makes one flip on a copy of the disk and does everything with it.
    pub fn endure(&self, flip: &Flip, consequences: &mut Consequences) -> Checked {
        let disk = self.disk.crash_image(CrashMode::KeepAll, 1);
        let bytes = self.files.iter().find(|(name, _)| *name == flip.file).map(|(_, bytes)| bytes);
        let byte = bytes.and_then(|bytes| bytes.get(flip.offset as usize)).ok_or("no such byte")?;
        disk.overwrite(&flip.file, flip.offset, &[byte ^ flip.mask]).map_err(|e| e.to_string())?;
        self.inspect(&disk, flip)?;
        let storage: Arc<dyn Storage> = Arc::new(disk);
        let db = match self.plan.options(OpenMode::Open).open_on(storage) {
            Ok(db) => db,
            Err(error) if error.kind() == ErrorKind::NotADatabase => {
                consequences.note(flip, "not a database");
                return Ok(());
            }
            Err(error) => {
                check_error("open", &error)?;
                consequences.note(flip, "refused to open");
                return Ok(());
            }
        };
        let damaged = self.scan(&db)?;
        let found = verify_damaged(&db)?;
        if damaged && !found {
            return Err("a scan is corrupt, but verification finds nothing".to_owned());
        }
        self.write(&db)?;
        consequences.note(
            flip,
            match (damaged, found) {
                (true, _) => "rows behind damage",
                (false, true) => "found by verification alone",
                (false, false) => "no consequence",
            },
        );
        // Closing writes a checkpoint, which may meet the damage.
        db.close().or_else(|error| check_error("close", &error))
    }

    /// Looks at everything without opening the database.
    fn inspect(&self, disk: &SimStorage, flip: &Flip) -> Checked {
        let storage = || -> Arc<dyn Storage> { Arc::new(disk.crash_image(CrashMode::KeepAll, 2)) };
        let allow = |what: &str, result: hamal::Result<()>| match result {
            Err(error) if error.kind() == ErrorKind::NotADatabase => Ok(()),
            Err(error) => check_error(what, &error),
            Ok(()) => Ok(()),
        };
        allow("inspect::master", inspect::master(&storage()).map(drop))?;
        allow("inspect::analyze", inspect::analyze(&storage()).map(drop))?;
        allow("inspect::log", inspect::log(&storage(), 0, 0, &mut |_| true))?;
        let partition = flip.file.strip_prefix("part/").and_then(|name| name.strip_suffix(".dat"));
        if let Some(partition) = partition.and_then(|id| id.parse().ok()) {
            let page = (flip.offset / self.plan.page_bytes as u64) as u32;
            allow("inspect::page", inspect::page(&storage(), partition, page).map(drop))?;
        }
        Ok(())
    }

    /// Reads every row from both ends. Returns whether damage was met; a wrong answer is an error.
    fn scan(&self, db: &Database) -> Checked<bool> {
        let Some(snapshot) = healthy("snapshot", db.snapshot())? else { return Ok(true) };
        let Some(tables) = healthy("list the tables", snapshot.tables())? else { return Ok(true) };
        let names: Vec<&String> = tables.iter().map(|table| &table.name).collect();
        let expected: Vec<&String> = self.state.tables.keys().collect();
        if names != expected {
            return Err(format!("the tables are {names:?}, not {expected:?}"));
        }
        let mut damaged = false;
        for (name, rows) in &self.state.tables {
            damaged |= scan_table(&snapshot, name, rows)?;
        }
        Ok(damaged)
    }

    /// Writes to every table; what was accepted must be there.
    fn write(&self, db: &Database) -> Checked {
        for name in NAMES {
            let written = db.transact(|tx| {
                let mut table = tx.open_bytes_table(name)?;
                table.put(b"after the damage", b"fine")?;
                table.delete(self.plan.key(name, 3).as_slice())
            });
            if healthy(&format!("write to {name}"), written)?.is_none() {
                continue;
            }
            let Some(snapshot) = healthy("snapshot", db.snapshot())? else { continue };
            let read = snapshot.open_bytes_table(name).and_then(|table| table.get(b"after the damage"));
            match healthy(&format!("read from {name}"), read)? {
                Some(None) => return Err(format!("{name}: a row that was just written is not there")),
                Some(Some(value)) if value != b"fine" => {
                    return Err(format!("{name}: wrong value {value:x?}"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Returns whether verification found anything.
fn verify_damaged(db: &Database) -> Checked<bool> {
    match verify(db, &mut Tally::default()) {
        Ok(()) => Ok(false),
        Err(Stop::Unsound(_)) => Ok(true),
        Err(Stop::Engine { error, .. }) => check_error("verify", &error).map(|()| true),
        Err(stop) => Err(stop.to_string()),
    }
}

fn scan_table(snapshot: &Snapshot, name: &str, rows: &Rows) -> Checked<bool> {
    let Some(table) = healthy(&format!("open {name}"), snapshot.open_bytes_table(name))? else {
        return Ok(true);
    };
    let mut damaged = false;
    for forward in [true, false] {
        let Some(mut range) = healthy(&format!("iterate over {name}"), table.iter())? else {
            damaged = true;
            continue;
        };
        let mut expected = rows.iter();
        loop {
            let (found, expected) = if forward {
                (range.next(), expected.next())
            } else {
                (range.next_back(), expected.next_back())
            };
            let Some(found) = healthy(&format!("scan {name}"), found.transpose())? else {
                damaged = true;
                break;
            };
            let found = found.map(|(key, value)| (Hex(&key).to_string(), Value::of(&value)));
            let expected = expected.map(|(key, value)| (Hex(key).to_string(), *value));
            if found != expected {
                return Err(format!(
                    "{name}: a scan gave {found:x?}, not {expected:x?} (forward: {forward})"
                ));
            }
            if found.is_none() {
                break;
            }
        }
    }
    for (key, value) in rows {
        match healthy(&format!("get from {name}"), table.get(key))? {
            None => damaged = true,
            Some(found) if found.as_deref().map(Value::of) == Some(*value) => {}
            Some(found) => {
                let found = found.map(|value| value.len());
                return Err(format!("{name}: get {} gave {found:?} bytes, not {}", Hex(key), value.len));
            }
        }
    }
    match healthy(&format!("count {name}"), table.len())? {
        Some(count) if count != rows.len() as u64 => {
            Err(format!("{name}: the count is {count}, not {}", rows.len()))
        }
        None => Ok(true),
        Some(_) => Ok(damaged),
    }
}

/// `None` where there was damage, said as it should be.
fn healthy<T>(what: &str, result: hamal::Result<T>) -> Checked<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => check_error(what, &error).map(|()| None),
    }
}

/// Only `Corrupt` or `PartitionUnavailable`, naming a file, or an operation refused because of damage met before.
fn check_error(what: &str, error: &hamal::Error) -> Checked {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::Poisoned | ErrorKind::TransactionEnded => Ok(()),
        ErrorKind::Corrupt | ErrorKind::PartitionUnavailable if names_a_place(&text) => Ok(()),
        ErrorKind::Corrupt | ErrorKind::PartitionUnavailable => {
            Err(format!("{what}: the error names no place: {text}"))
        }
        kind => Err(format!("{what}: {kind:?} instead of Corrupt: {text}")),
    }
}

fn names_a_place(text: &str) -> bool {
    ["part/", "wal/", "MASTER", "doublewrite"].iter().any(|file| text.contains(file))
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (_, Some(text)) => (*text).to_owned(),
        _ => "something that is no text".to_owned(),
    }
}
