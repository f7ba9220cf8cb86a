//! Pages that heal themselves: what a page was, out of copies of it and the log. docs/adr/0013-pages-are-rebuilt-when-they-are-read.md.
//!
//! The pager asks when a page that it reads in is damaged, misplaced, missing or stale ([`hamal_pager::Healer`]). The sources, in turn:
//!
//! | source | gives |
//! |---|---|
//! | the retained log | the page, if a blind record of it is there; else what has been done to a copy |
//! | a copy of the page, stale in place or in the doublewrite area | the page, if it can be shown how old the copy is ([`rebuild`]) |
//! | a backup, and the archived log behind it ([`crate::Options::heal_from`]) | the page, if the archive reaches to the retained log |
//!
//! I1. What is handed out is the page as of its newest record, or nothing. All records of a page that is not in memory are durable, for it was
//!     written back after them; none can come while it is read in.
//! I2. Nothing is guessed: a step is made where `page_prev_lsn` says that the page at hand is the one that the record changed (hazard H13
//!     follows: a copy from before the log is joined to it by the log's first record of the page, or is not used).
//! I3. Waits for no latch, no lock of the engine and no log room: who reads a page in may have log room, and others may wait for the page. The
//!     log is held from the first record read to when the page is durable in its place, without the checkpoint's lock
//!     ([`crate::retention::Retention::hold_oldest`]).
//! I4. Memory: a window of the log, some blocks of a backup, and a few pages. Time: the retained log is read once; then the page's partition in a
//!     backup, and the log since.

pub(crate) mod rebuild;
mod source;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hamal_pager::{BadPage, Healer, Healing, PageNo, PartitionId};
use hamal_storage::{Error as LowError, Storage};
use hamal_wal::Log;
use parking_lot::Mutex;

use crate::backup::Target;
use crate::retention::Retention;
use crate::{Error, ErrorKind};
use rebuild::{Base, Rebuild};

/// How long it is remembered that a page could not be rebuilt: a descent tries again at once, and the log may be long.
const REMEMBERED: Duration = Duration::from_secs(1);
/// Pages remembered so, at most.
const MOST_FAILURES: usize = 64;

/// What rebuilds the pages of one open database.
pub(crate) struct PageHealer {
    log: Arc<Log>,
    retention: Retention,
    database_id: u64,
    history: u64,
    page_bytes: usize,
    clock: Arc<dyn Storage>,
    failures: Mutex<VecDeque<Failure>>,
    /// Backups and archived log, if there are any.
    target: Option<Arc<dyn Target>>,
    pub(crate) counters: HealCounters,
}

/// By what a page was rebuilt from.
#[derive(Debug, Default)]
pub(crate) struct HealCounters {
    /// A copy, with the log or without.
    pub(crate) copies: AtomicU64,
    /// The log alone.
    pub(crate) log: AtomicU64,
    /// A backup, or archived log.
    pub(crate) backups: AtomicU64,
}

/// A page that could not be rebuilt: whoever reads it again at once hears the same, and the log is not read again.
struct Failure {
    key: (PartitionId, PageNo),
    at: Duration,
    why: String,
}

/// Why a source does not give the page: in words, or an error that trying again may get over.
enum Refusal {
    Useless(String),
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        match error.kind() {
            ErrorKind::Io | ErrorKind::Limit | ErrorKind::Cancelled => Refusal::Failed(error),
            _ => Refusal::Useless(error.to_string()),
        }
    }
}

impl From<LowError> for Refusal {
    fn from(error: LowError) -> Refusal {
        Refusal::from(Error::from(error))
    }
}

impl PageHealer {
    /// `target`: where backups may be.
    pub(crate) fn new(
        (log, clock): (Arc<Log>, Arc<dyn Storage>),
        retention: Retention,
        (database_id, history): (u64, u64),
        page_bytes: usize,
        target: Option<Arc<dyn Target>>,
    ) -> PageHealer {
        let counters = HealCounters::default();
        let failures = Mutex::default();
        PageHealer { log, retention, database_id, history, page_bytes, clock, failures, target, counters }
    }

    /// Why the page could not be rebuilt a moment ago.
    fn failed_before(&self, key: (PartitionId, PageNo)) -> Option<String> {
        let now = self.clock.monotonic();
        let mut failures = self.failures.lock();
        failures.retain(|failure| now.saturating_sub(failure.at) < REMEMBERED);
        failures.iter().find(|failure| failure.key == key).map(|failure| failure.why.clone())
    }

    fn remember(&self, key: (PartitionId, PageNo), why: &str) {
        let failure = Failure { key, at: self.clock.monotonic(), why: why.to_owned() };
        let mut failures = self.failures.lock();
        failures.push_back(failure);
        if failures.len() > MOST_FAILURES {
            failures.pop_front();
        }
    }
}

impl Healer for PageHealer {
    fn rebuild(&self, bad: &BadPage<'_>, out: &mut [u8]) -> Result<Healing, LowError> {
        let (partition, page) = (bad.partition.0, bad.page.0);
        let _span = tracing::info_span!("heal", partition, page).entered();
        let key = (bad.partition, bad.page);
        if let Some(why) = self.failed_before(key) {
            return Ok(Healing::Impossible(why));
        }
        tracing::warn!(fault = %bad.fault, known_lsn = bad.known_lsn.0, copies = bad.copies.len(), "bad page");
        let (hold, from) = self.retention.hold_oldest(self.log.oldest());
        let mut refusals = Vec::new();
        let mut failure = None;
        let sources: [(&str, &AtomicU64, _); 2] = [
            ("the log", &self.counters.log, PageHealer::out_of_log as source::Source),
            ("a backup", &self.counters.backups, PageHealer::out_of_backups as source::Source),
        ];
        let mut rebuild = Rebuild::new(key, self.page_bytes, bad.known_lsn);
        for copy in bad.copies {
            rebuild.offer(&copy.image, Base::Copy);
        }
        for (name, counter, source) in sources {
            match source(self, from, &rebuild) {
                Ok(done) => {
                    let counter = if done.base == Base::Copy { &self.counters.copies } else { counter };
                    counter.fetch_add(1, Ordering::Relaxed);
                    out.copy_from_slice(&done.image);
                    tracing::info!(page_lsn = done.page_lsn.0, records = done.records, base = ?done.base, source = name, "rebuilt");
                    return Ok(Healing::Rebuilt(Box::new(hold)));
                }
                Err(Refusal::Useless(why)) => refusals.push(why),
                Err(Refusal::Failed(error)) => {
                    refusals.push(error.to_string());
                    failure.get_or_insert(error);
                }
            }
        }
        let why = refusals.join("; ");
        tracing::error!(why, "the page could not be rebuilt");
        match failure {
            // It may work the next time.
            Some(error) if error.kind() == ErrorKind::Io => {
                let source = std::io::Error::other(error.to_string());
                Err(LowError::io("rebuild a page of", format!("part/{}.dat", bad.partition), source))
            }
            _ => {
                self.remember(key, &why);
                Ok(Healing::Impossible(why))
            }
        }
    }
}

impl fmt::Debug for PageHealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageHealer")
            .field("target", &self.target)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}
