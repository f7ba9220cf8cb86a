//! SQLite in WAL mode, one connection per thread. Writers take turns (sqlite.org/wal.html, "Concurrency"), and one that will
//! write begins with `BEGIN IMMEDIATE`, or it may fail halfway (lang_transaction.html). Who finds the turn taken polls with
//! growing pauses (c3ref/busy_timeout.html); an application whose writers are one process can queue them by a mutex instead
//! ([`Turns::Mutex`]).
//!
//! Synchronous commits are `synchronous=FULL`, which syncs the WAL at every commit; relaxed ones are `NORMAL`, which leaves
//! this sync out and stays consistent (wal.html, "Performance Considerations"; pragma.html, "synchronous"). Not `OFF`, after
//! which a power cut can leave a corrupt database. Rows live in the key's own tree (withoutrowid.html). Statements are prepared
//! once (c3ref/prepare.html).

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension};

use super::{Failure, Session, Setup, Step, Store, Transaction, Work, fatal};
use crate::peer::{Commit, Outcome};

/// How writers wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turns {
    /// By SQLite's busy handler.
    BusyHandler,
    /// By a mutex around each transaction.
    Mutex,
}

/// Longest wait for the turn before `SQLITE_BUSY`, which counts as a conflict.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// A database file with one table.
#[derive(Debug)]
pub(super) struct SqliteStore {
    path: PathBuf,
    setup: Setup,
    turn: Option<Mutex<()>>,
}

impl SqliteStore {
    pub(super) fn open(directory: &Path, setup: Setup, turns: Turns) -> Outcome<SqliteStore> {
        let turn = (turns == Turns::Mutex).then(Mutex::default);
        let store = SqliteStore { path: directory.join("rows.sqlite"), setup, turn };
        let connection = store.connect()?;
        connection.execute_batch(
            "CREATE TABLE rows (key BLOB PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID",
        )?;
        Ok(store)
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        let connection = Connection::open(&self.path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let synchronous = match self.setup.commit {
            Commit::Durable => "FULL",
            Commit::Lazy => "NORMAL",
        };
        // Negative: KiB. Each connection has a cache of its own.
        let cache_kib = (self.setup.cache_bytes >> 10) / self.setup.writers.max(1) as u64;
        connection.execute_batch(&format!(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous}; PRAGMA cache_size=-{cache_kib}"
        ))?;
        Ok(connection)
    }
}

fn failure(error: rusqlite::Error) -> Failure {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Failure::Conflict,
        _ => fatal(error),
    }
}

fn execute(connection: &Connection, sql: &str, parameters: impl rusqlite::Params) -> Step<()> {
    let mut statement = connection.prepare_cached(sql).map_err(failure)?;
    statement.execute(parameters).map_err(failure)?;
    Ok(())
}

struct SqliteSession<'s> {
    connection: Connection,
    turn: Option<&'s Mutex<()>>,
}

struct Rows<'c>(&'c Connection);

impl Transaction for Rows<'_> {
    fn read(&mut self, key: &[u8], look: &mut dyn FnMut(&[u8])) -> Step<bool> {
        let mut statement =
            self.0.prepare_cached("SELECT value FROM rows WHERE key = ?1").map_err(failure)?;
        let found = statement.query_row([key], |row| {
            look(row.get_ref(0)?.as_blob()?);
            Ok(())
        });
        Ok(found.optional().map_err(failure)?.is_some())
    }

    fn write(&mut self, key: &[u8], value: &[u8]) -> Step<()> {
        let upsert =
            "INSERT INTO rows VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        execute(self.0, upsert, [key, value])
    }
}

impl Session for SqliteSession<'_> {
    fn run(&mut self, work: &mut Work<'_>) -> Step<()> {
        // The mutex guards no data that a panic could have left half done.
        let _turn = self.turn.map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner));
        execute(&self.connection, "BEGIN IMMEDIATE", [])?;
        let done = work(&mut Rows(&self.connection)).and_then(|()| execute(&self.connection, "COMMIT", []));
        if done.is_err() && !self.connection.is_autocommit() {
            execute(&self.connection, "ROLLBACK", [])?;
        }
        done
    }
}

impl Store for SqliteStore {
    fn session(&self) -> Outcome<Box<dyn Session + '_>> {
        Ok(Box::new(SqliteSession { connection: self.connect()?, turn: self.turn.as_ref() }))
    }

    fn scan(&self, look: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()> {
        let connection = self.connect()?;
        let mut statement = connection.prepare("SELECT key, value FROM rows")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            look(row.get_ref(0)?.as_blob()?, row.get_ref(1)?.as_blob()?);
        }
        Ok(())
    }

    fn settle(&self) -> Outcome<()> {
        // The row it returns says whether somebody was in the way.
        let busy: i64 = self.connect()?.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy == 0 { Ok(()) } else { Err("a reader or writer kept SQLite from its checkpoint".into()) }
    }
}
