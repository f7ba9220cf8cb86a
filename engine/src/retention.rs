//! Who else than recovery needs the log: backups under way, the archive.
//!
//! I1. A hold taken while the checkpoint's lock is held, at or above [`hamal_wal::Log::oldest`], is never overtaken: log is cut by checkpoints
//!     alone, which ask [`Retention::cut_at`] under that lock.
//! I2. A hold only ever moves forward.
//! I3. Whoever must not wait for that lock takes [`Retention::hold_oldest`], which knows of a cut that has been decided and not made yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use hamal_wal::Lsn;
use parking_lot::Mutex;

/// All holds on the log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Retention {
    holds: Arc<Mutex<Holds>>,
}

#[derive(Debug, Default)]
struct Holds {
    next: u64,
    from: BTreeMap<u64, Lsn>,
    /// Where a checkpoint has cut, or is about to.
    cut: Lsn,
}

impl Retention {
    /// Keeps the log from `from` on until the hold is dropped.
    pub(crate) fn hold(&self, from: Lsn) -> Hold {
        let mut holds = self.holds.lock();
        let id = holds.next;
        holds.next += 1;
        holds.from.insert(id, from);
        Hold { retention: self.clone(), id }
    }

    /// Keeps all log that is not cut yet until the hold is dropped: from the returned LSN on, where a record starts (I3). `oldest`: the
    /// log's. Waits for nobody.
    pub(crate) fn hold_oldest(&self, oldest: Lsn) -> (Hold, Lsn) {
        let mut holds = self.holds.lock();
        let from = oldest.max(holds.cut);
        let id = holds.next;
        holds.next += 1;
        holds.from.insert(id, from);
        (Hold { retention: self.clone(), id }, from)
    }

    /// Whether anybody holds log.
    #[cfg(test)]
    pub(crate) fn is_held(&self) -> bool {
        !self.holds.lock().from.is_empty()
    }

    /// Where a checkpoint may cut that itself needs no log below `oldest`. Under the checkpoint's lock.
    pub(crate) fn cut_at(&self, oldest: Lsn) -> Lsn {
        let mut holds = self.holds.lock();
        let cut = holds.from.values().fold(oldest, |cut, from| cut.min(*from));
        holds.cut = holds.cut.max(cut);
        cut
    }
}

/// Keeps log until it is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    retention: Retention,
    id: u64,
}

impl Hold {
    /// Log below `to` is no longer needed.
    pub(crate) fn advance(&self, to: Lsn) {
        if let Some(from) = self.retention.holds.lock().from.get_mut(&self.id) {
            *from = to.max(*from);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.retention.holds.lock().from.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_hold_counts_until_it_moves_or_goes() {
        let retention = Retention::default();
        let all = Lsn(1 << 20);
        let first = retention.hold(Lsn(4096));
        let second = retention.hold(Lsn(8192));
        assert_eq!(retention.cut_at(all), Lsn(4096));
        assert_eq!(retention.cut_at(Lsn(1024)), Lsn(1024), "a checkpoint that needs more itself");
        first.advance(Lsn(16_384));
        first.advance(Lsn(4096));
        assert_eq!(retention.cut_at(all), Lsn(8192), "it does not move back");
        drop(second);
        assert_eq!(retention.cut_at(all), Lsn(16_384));
        drop(first);
        assert_eq!(retention.cut_at(all), all);
    }

    #[test]
    fn a_hold_of_all_there_is_begins_where_a_cut_has_been_decided() {
        let retention = Retention::default();
        let (first, from) = retention.hold_oldest(Lsn(4096));
        assert_eq!((from, retention.cut_at(Lsn(8192))), (Lsn(4096), Lsn(4096)));
        drop(first);
        assert_eq!(retention.cut_at(Lsn(8192)), Lsn(8192));
        // The log says so only once it has been cut.
        let (_second, from) = retention.hold_oldest(Lsn(4096));
        assert_eq!((from, retention.cut_at(Lsn(16_384))), (Lsn(8192), Lsn(8192)));
    }
}
