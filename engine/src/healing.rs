//! Pages that heal themselves: what a page was, out of copies of it and the log. docs/adr/0013-pages-are-rebuilt-when-they-are-read.md.
//!
//! The pager asks when a page that it reads in is damaged, misplaced, missing or stale ([`hamal_pager::Healer`]). The sources, in turn:
//!
//! | source | gives |
//! |---|---|
//! | the retained log | the page, if a blind record of it is there; else what has been done to a copy |
//! | a copy of the page, stale in place or in the doublewrite area | the page, if it can be shown how old the copy is ([`rebuild`]) |
//! | a backup, and the archived log behind it ([`Options::heal_from`]) | the page, if the archive reaches to the retained log |
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

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hamal_pager::{BadPage, Healer, Healing};
use hamal_storage::Error as LowError;
use hamal_wal::Log;

use crate::backup::Target;
use crate::retention::Retention;
use crate::{Error, ErrorKind};
use rebuild::{Base, Rebuild};

/// What rebuilds the pages of one open database.
pub(crate) struct PageHealer {
    log: Arc<Log>,
    retention: Retention,
    database_id: u64,
    history: u64,
    page_bytes: usize,
    /// Backups and archived log, if there are any.
    target: Option<Arc<dyn Target>>,
    pub(crate) counters: HealCounters,
}

/// By what a page was rebuilt from.
#[derive(Debug, Default)]
pub(crate) struct HealCounters {
    /// A copy, with the log or without.
    pub(crate) from_copies: AtomicU64,
    /// The log alone.
    pub(crate) from_log: AtomicU64,
    /// A backup, or archived log.
    pub(crate) from_backups: AtomicU64,
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
        log: Arc<Log>,
        retention: Retention,
        (database_id, history): (u64, u64),
        page_bytes: usize,
        target: Option<Arc<dyn Target>>,
    ) -> PageHealer {
        let counters = HealCounters::default();
        PageHealer { log, retention, database_id, history, page_bytes, target, counters }
    }
}

impl Healer for PageHealer {
    fn rebuild(&self, bad: &BadPage<'_>, out: &mut [u8]) -> Result<Healing, LowError> {
        let (partition, page) = (bad.partition.0, bad.page.0);
        let _span = tracing::info_span!("heal", partition, page).entered();
        tracing::warn!(fault = %bad.fault, known_lsn = bad.known_lsn.0, copies = bad.copies.len(), "bad page");
        let (hold, from) = self.retention.hold_oldest(self.log.oldest());
        let mut refusals = Vec::new();
        let mut failure = None;
        let sources: [(&str, &AtomicU64, _); 2] = [
            ("the log", &self.counters.from_log, PageHealer::from_log as source::Source),
            ("a backup", &self.counters.from_backups, PageHealer::from_backups as source::Source),
        ];
        for (name, counter, source) in sources {
            let mut rebuild = Rebuild::new((bad.partition, bad.page), self.page_bytes, bad.known_lsn);
            for copy in bad.copies {
                rebuild.offer(&copy.image, Base::Copy);
            }
            match source(self, from, rebuild) {
                Ok(done) => {
                    let counter = if done.base == Base::Copy { &self.counters.from_copies } else { counter };
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
            _ => Ok(Healing::Impossible(why)),
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
