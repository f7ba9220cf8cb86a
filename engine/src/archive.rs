//! The archive: a copy of the log in a target, kept up to date while the database is open, for restoring it to any moment since a backup.
//!
//! I1. Only durable log is archived, in order, without gaps but those that [`crate::Options::archive_hold_bytes`] allows, which are counted.
//! I2. No log is cut that is not archived: the archive holds it from the moment the log is open on, and lets go only at record boundaries (a
//!     master record's oldest LSN is where a record starts), when all before is in the target.
//! I3. What the target has is looked at before the first piece is written, and after any failure: it may have more than was heard of. It is
//!     compared with the log, so that the logs of two copies of one database are never mixed.
//!
//! Lock order: `state` is outermost of all; the target is called with nothing else in hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hamal_wal::{Log, Lsn};
use parking_lot::Mutex;

use crate::backup::Target;
use crate::backup::logs::{self, Chunk};
use crate::backup::object::{BLOCK_BYTES, Header, Kind, ObjectIn, ObjectOut};
use crate::engine::Engine;
use crate::options::Maintenance;
use crate::retention::Hold;
use crate::{Error, ErrorKind, Result};

/// Log in one object, at most, bytes.
const CHUNK_BYTES: u64 = 16 << 20;

/// What [`crate::Database::archive`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ArchiveReport {
    /// Log below this LSN is in the archive.
    pub to_lsn: u64,
    /// Bytes written by this call.
    pub bytes: u64,
    /// Objects written by this call.
    pub objects: u64,
}

/// An open database's archive.
#[derive(Debug)]
pub(crate) struct Archive {
    target: Arc<dyn Target>,
    database_id: u64,
    history: u64,
    directory: String,
    hold: Hold,
    state: Mutex<State>,
    /// A copy of what `state` has, for others to read.
    archived_to: AtomicU64,
    /// Times that log was given up unarchived.
    gaps: AtomicU64,
    failures: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// `None`: the target is still to be looked at (I3).
    archived_to: Option<Lsn>,
    /// Monotonic.
    last_at: Duration,
}

/// What there is to say about an archive.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ArchiveStats {
    pub(crate) lsn: u64,
    pub(crate) lag_bytes: u64,
    pub(crate) gaps: u64,
    pub(crate) failures: u64,
}

impl Archive {
    /// `hold`: on the log, from its oldest record on, which is at `oldest`.
    pub(crate) fn new(
        target: Arc<dyn Target>,
        (database_id, history): (u64, u64),
        hold: Hold,
        oldest: Lsn,
    ) -> Archive {
        Archive {
            target,
            database_id,
            history,
            directory: logs::directory(database_id, history),
            hold,
            state: Mutex::new(State { archived_to: None, last_at: Duration::ZERO }),
            archived_to: AtomicU64::new(oldest.0),
            gaps: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// Gives up log that has waited too long: whoever cuts it needs no more than `needed_from`.
    pub(crate) fn give_up(&self, hold_bytes: Option<u64>, needed_from: Lsn, tail: Lsn) {
        let archived_to = self.archived_to.load(Ordering::Relaxed);
        if hold_bytes.is_some_and(|most| tail.0.saturating_sub(archived_to) > most)
            && Lsn(archived_to) < needed_from
        {
            // Counted when the archive comes to the gap.
            self.hold.advance(needed_from);
        }
    }

    pub(crate) fn stats(&self, durable: Lsn) -> ArchiveStats {
        let lsn = self.archived_to.load(Ordering::Relaxed);
        ArchiveStats {
            lsn,
            lag_bytes: durable.0.saturating_sub(lsn),
            gaps: self.gaps.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }

    /// Archives what is durable.
    fn advance(&self, engine: &Engine, state: &mut State) -> Result<ArchiveReport> {
        let (log, mut report) = (&engine.log, ArchiveReport::default());
        // Before the frontier is read: what was acknowledged by then is below it.
        let micros = engine.storage.now_micros();
        let to = log.durable();
        let mut at = match state.archived_to {
            Some(at) => at,
            None => self.attach(log)?,
        };
        self.note(state, at);
        let mut gap_from = None;
        while at < to {
            let oldest = log.oldest();
            if at < oldest {
                gap_from.get_or_insert(at);
                at = oldest;
                continue;
            }
            let chunk = Chunk { first: at, end: Lsn(to.0.min(at.0.saturating_add(CHUNK_BYTES))) };
            match self.write(log, chunk, micros) {
                Ok(()) => {}
                // It was given up while it was read.
                Err(_) if at < log.oldest() => continue,
                Err(error) => return Err(error),
            }
            // There is one once there is something behind it.
            if let Some(from) = gap_from.take() {
                let (from, to) = (from.0, at.0);
                tracing::error!(from, to, "log was given up before it was archived: take a new backup");
                self.gaps.fetch_add(1, Ordering::Relaxed);
            }
            report.objects += 1;
            report.bytes += chunk.end.0 - chunk.first.0;
            at = chunk.end;
            self.note(state, at);
        }
        // The durable frontier stands between records.
        self.hold.advance(to.min(at));
        report.to_lsn = at.0;
        Ok(report)
    }

    fn note(&self, state: &mut State, at: Lsn) {
        state.archived_to = Some(at);
        self.archived_to.store(at.0, Ordering::Relaxed);
    }

    /// Where the archive is to go on.
    fn attach(&self, log: &Log) -> Result<Lsn> {
        let chunks = logs::chunks(&*self.target, &self.directory)?;
        let (oldest, durable) = (log.oldest(), log.durable());
        let Some(last) = chunks.iter().max_by_key(|chunk| chunk.end).copied() else {
            return Ok(oldest);
        };
        if last.end > durable {
            return Err(other_log(&logs::chunk_name(&self.directory, last), last.end, durable));
        }
        self.compare(log, last)?;
        Ok(last.end)
    }

    /// `InvalidArgument` if the log has other bytes, as far as it still has them (I3).
    fn compare(&self, log: &Log, chunk: Chunk) -> Result<()> {
        let name = logs::chunk_name(&self.directory, chunk);
        let mut object = ObjectIn::open(&*self.target, &name, Kind::Log)?;
        object.check_origin(self.database_id, self.history)?;
        let (mut at, mut ours) = (chunk.first, Vec::new());
        while let Some(theirs) = object.next_block()? {
            let end = Lsn(at.0 + theirs.len() as u64);
            let from = at.max(log.oldest());
            if end > chunk.end {
                return Err(Error::corrupt(&name, 0, format!("log to {}", chunk.end), end));
            }
            if from < end {
                ours.resize((end.0 - from.0) as usize, 0);
                log.read_durable(from, &mut ours)?;
                if ours != theirs[(from.0 - at.0) as usize..] {
                    return Err(other_log(&name, from, from));
                }
            }
            at = end;
        }
        if at == chunk.end {
            Ok(())
        } else {
            Err(Error::corrupt(&name, 0, format!("log to {}", chunk.end), at))
        }
    }

    fn write(&self, log: &Log, chunk: Chunk, micros: u64) -> Result<()> {
        let header = Header {
            kind: Kind::Log,
            database_id: self.database_id,
            history: self.history,
            argument: chunk.first.0,
            micros,
        };
        let mut object =
            ObjectOut::create(&*self.target, &logs::chunk_name(&self.directory, chunk), &header)?;
        let (mut at, mut bytes) = (chunk.first, Vec::new());
        while at < chunk.end {
            bytes.resize(BLOCK_BYTES.min((chunk.end.0 - at.0) as usize), 0);
            log.read_durable(at, &mut bytes)?;
            object.put(&bytes)?;
            at.0 += bytes.len() as u64;
        }
        object.finish().map(drop)
    }
}

fn other_log(name: &str, at: Lsn, end: Lsn) -> Error {
    Error::invalid(format!(
        "the archive's {name} does not belong to this log (at LSN {at}; the log has {end}): another copy of the database has been \
         archived here; archive to another target, and take a backup"
    ))
}

impl Engine {
    /// Archives the durable log; `None` if the database has no archive.
    pub(crate) fn archive_now(&self) -> Result<Option<ArchiveReport>> {
        let Some(archive) = &self.archive else { return Ok(None) };
        let mut state = self.lock(&archive.state, "the archive");
        let archived = archive.advance(self, &mut state).inspect_err(|_| {
            archive.failures.fetch_add(1, Ordering::Relaxed);
            // The target may have more than was heard of (I3).
            state.archived_to = None;
        })?;
        state.last_at = self.storage.monotonic();
        Ok(Some(archived))
    }

    /// As [`Engine::archive_now`], if enough log, or any for long enough, waits for it. Whether anything was done.
    pub(crate) fn archive_if_due(&self) -> Result<bool> {
        let Some(archive) = &self.archive else { return Ok(false) };
        let lag_bytes = archive.stats(self.log.durable()).lag_bytes;
        let is_due = {
            // Whoever has it archives.
            let Some(state) = archive.state.try_lock() else { return Ok(false) };
            let age = self.storage.monotonic().saturating_sub(state.last_at);
            lag_bytes >= CHUNK_BYTES || (lag_bytes > 0 && age >= self.options.archive_interval)
        };
        if !is_due {
            return Ok(false);
        }
        Ok(self.archive_now()?.is_some_and(|report| report.bytes > 0))
    }

    /// With the database driven by hand: what a thread would do otherwise. A failure is not that of whoever drives.
    pub(crate) fn archive_by_hand(&self) -> bool {
        self.options.maintenance == Maintenance::Manual
            && self.archive_if_due().unwrap_or_else(|error| {
                tracing::warn!(%error, "the log could not be archived; it is kept, and tried again");
                false
            })
    }

    /// The last there is to archive.
    pub(crate) fn archive_at_close(&self) {
        if let Err(error) = self.archive_now() {
            tracing::warn!(%error, "the end of the log could not be archived; the next open goes on with it");
        }
    }

    /// What [`crate::Database::archive`] does.
    pub(crate) fn archive_all(&self) -> Result<ArchiveReport> {
        let flushed = self.log.flush();
        self.durable_moved();
        flushed?;
        self.archive_now()?.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidArgument,
                "the database was opened without an archive (Options::archive)",
            )
        })
    }
}
