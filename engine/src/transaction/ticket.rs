//! Commits that are waited for later, or awaited.
//!
//! I1. Whoever asks leaves a waker first and looks at the log's durable frontier second; whoever moves the frontier, or poisons the
//!     handle, wakes afterwards. So no waker sleeps through it.
//! I2. Wakers are code of others: they are cloned, woken and dropped with nothing in hand.

#[cfg(test)]
mod tests;

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use hamal_wal::Lsn;
use parking_lot::Mutex;

use super::Transaction;
use super::commit::{make_commit_durable, unknown};
use crate::Result;
use crate::database::Handle;
use crate::engine::Engine;

/// Who is to be woken when the log is durable beyond their LSN.
#[derive(Debug, Default)]
pub(crate) struct Wakers {
    waiting: Mutex<Vec<(Lsn, u64, Waker)>>,
    next: AtomicU64,
}

impl Wakers {
    fn leave(&self, id: u64, lsn: Lsn, waker: &Waker) {
        let waker = waker.clone();
        let mut waiting = self.waiting.lock();
        let old = if let Some((_, _, old)) = waiting.iter_mut().find(|(_, other, _)| *other == id) {
            Some(mem::replace(old, waker))
        } else {
            waiting.push((lsn, id, waker));
            None
        };
        drop(waiting);
        drop(old);
    }

    fn take_back(&self, id: u64) {
        let mut waiting = self.waiting.lock();
        let at = waiting.iter().position(|(_, other, _)| *other == id);
        let old = at.map(|at| waiting.swap_remove(at));
        drop(waiting);
        drop(old);
    }

    /// Wakes those whose record is durable now; everybody, if nothing more will be.
    fn wake(&self, durable: Lsn, is_over: bool) {
        let due = |(lsn, _, _): &mut (Lsn, u64, Waker)| is_over || *lsn < durable;
        let due: Vec<_> = self.waiting.lock().extract_if(.., due).collect();
        for (_, _, waker) in due {
            waker.wake();
        }
    }
}

impl Engine {
    /// The log may be durable further than before, or the handle poisoned: shows readers what they may see now, and wakes who waits for
    /// that.
    pub(crate) fn durable_moved(&self) {
        let durable = self.log.durable();
        self.timeline.expose(durable);
        self.wakers.wake(durable, self.check_poison().is_err());
    }
}

/// A commit that has its place in the log, and is visible to other read-write transactions, but may not be durable yet: made by
/// [`Transaction::commit_ticket`]. Wait for it, await it, or drop it: the commit stands either way, and a crash takes it back only as
/// long as it is not durable.
///
/// It keeps the database open, as a transaction does: whoever drops the last of what keeps it open closes it there and then, which waits for
/// the disk. An executor's thread had better not; one of the database's own, if it wakes a task that is over, has another thread do it.
///
/// ```
/// # fn main() -> hamal::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let db = hamal::Database::open(directory.path().join("example.hamal"))?;
/// const ROWS: hamal::TableDef<&str, u64> = hamal::TableDef::new("rows");
/// let tx = db.begin()?;
/// tx.open_table(ROWS)?.put("a", 1)?;
/// let ticket = tx.commit_ticket()?;
/// // The next transaction works with it already; in async code, `ticket.await?` goes on once it is on the disk.
/// ticket.wait()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "the commit is durable only once this says so"]
pub struct CommitTicket {
    handle: Arc<Handle>,
    /// [`Lsn::NEVER`]: there is nothing to wait for.
    pub(super) lsn: Lsn,
    /// Whether the LSN is its own commit's.
    pub(super) wrote: bool,
    id: u64,
}

impl CommitTicket {
    /// Whether the commit is durable. Never waits.
    pub fn is_durable(&self) -> bool {
        self.lsn == Lsn::NEVER || self.handle.engine.log.durable() > self.lsn
    }

    /// Returns once the commit is durable: leads a flush of the log, or joins one. `CommitUnknown` if the disk failed; reopening tells.
    pub fn wait(self) -> Result<()> {
        if self.lsn != Lsn::NEVER {
            if self.wrote && !self.is_durable() {
                self.handle.engine.counters.commits_waited.fetch_add(1, Ordering::Relaxed);
            }
            make_commit_durable(&self.handle.engine, self.lsn)?;
        }
        self.handle.engine.bury_due();
        Ok(())
    }
}

/// Ready once the commit is durable. The database's background thread flushes the log; with [`crate::Maintenance::Manual`],
/// [`crate::Database::maintain`] does, or any synchronous commit.
impl Future for CommitTicket {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        if self.is_durable() {
            return Poll::Ready(Ok(()));
        }
        let engine = &self.handle.engine;
        engine.wakers.leave(self.id, self.lsn, context.waker());
        if self.is_durable() {
            return Poll::Ready(Ok(()));
        }
        if let Err(error) = engine.check_poison() {
            return Poll::Ready(Err(unknown(&error)));
        }
        self.handle.flush_soon();
        Poll::Pending
    }
}

impl Drop for CommitTicket {
    fn drop(&mut self) {
        self.handle.engine.wakers.take_back(self.id);
    }
}

impl Transaction {
    /// As [`Transaction::commit`], but returns once the commit has its place in the log: other read-write transactions see it, and
    /// what it locked is free; snapshots see one of [`crate::Durability::Sync`] once it is durable, or a weaker one behind it has been
    /// acknowledged. The ticket tells when that is. The log is flushed in the background, whether
    /// or not anybody waits.
    pub fn commit_ticket(mut self) -> Result<CommitTicket> {
        let mut wrote = false;
        let lsn = self.commit_reserved(&mut |_| wrote = true)?;
        self.tidy();
        let handle = self.handle.clone();
        let id = handle.engine.wakers.next.fetch_add(1, Ordering::Relaxed);
        let ticket = CommitTicket { handle, lsn, wrote, id };
        if !ticket.is_durable() {
            ticket.handle.flush_soon();
        }
        Ok(ticket)
    }
}
