//! Who else than recovery needs the log: backups under way, the archive, healing.
//!
//! I1. A hold taken while the checkpoint's lock is held, at or above [`hamal_wal::Log::oldest`], is never overtaken: log is cut by checkpoints
//!     alone, which ask [`Retention::cut_at`] under that lock.
//! I2. A hold only ever moves forward.
//! I3. Whoever must not wait for that lock takes [`Retention::hold_oldest`], which knows of a cut that has been decided and not made yet.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use hamal_wal::Lsn;
use parking_lot::Mutex;

/// Checkpoints remembered at most.
const MOST_PLACES: usize = 1024;

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
    /// What checkpoints needed, the oldest first: places where a record starts.
    needed: VecDeque<Lsn>,
}

impl Retention {
    /// Of a log whose oldest record is at `oldest`.
    pub(crate) fn new(oldest: Lsn) -> Retention {
        let retention = Retention::default();
        retention.holds.lock().needed.push_back(oldest);
        retention
    }

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

    /// Where a checkpoint may cut that itself needs no log below `oldest`, if log from `keep_from` on is to be kept in any case. Under the
    /// checkpoint's lock.
    pub(crate) fn cut_at(&self, oldest: Lsn, keep_from: Lsn) -> Lsn {
        let mut holds = self.holds.lock();
        holds.needed.push_back(oldest);
        // The newest that is old enough stays in front: a record starts there, as nobody knows of `keep_from` itself.
        while holds.needed.len() > MOST_PLACES || holds.needed.get(1).is_some_and(|next| *next <= keep_from) {
            holds.needed.pop_front();
        }
        let kept = holds.needed.front().map_or(oldest, |kept| oldest.min(*kept));
        let cut = holds.from.values().fold(kept, |cut, from| cut.min(*from));
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

    /// Nothing is kept for its own sake.
    const NOW: Lsn = Lsn(u64::MAX);

    #[test]
    fn the_oldest_hold_counts_until_it_moves_or_goes() {
        let retention = Retention::default();
        let all = Lsn(1 << 20);
        let first = retention.hold(Lsn(4096));
        let second = retention.hold(Lsn(8192));
        assert_eq!(retention.cut_at(all, NOW), Lsn(4096));
        assert_eq!(retention.cut_at(Lsn(1024), NOW), Lsn(1024), "a checkpoint that needs more itself");
        first.advance(Lsn(16_384));
        first.advance(Lsn(4096));
        assert_eq!(retention.cut_at(all, NOW), Lsn(8192), "it does not move back");
        drop(second);
        assert_eq!(retention.cut_at(all, NOW), Lsn(16_384));
        drop(first);
        assert_eq!(retention.cut_at(all, NOW), all);
    }

    #[test]
    fn a_hold_of_all_there_is_begins_where_a_cut_has_been_decided() {
        let retention = Retention::default();
        let (first, from) = retention.hold_oldest(Lsn(4096));
        assert_eq!((from, retention.cut_at(Lsn(8192), NOW)), (Lsn(4096), Lsn(4096)));
        drop(first);
        assert_eq!(retention.cut_at(Lsn(8192), NOW), Lsn(8192));
        // The log says so only once it has been cut.
        let (_second, from) = retention.hold_oldest(Lsn(4096));
        assert_eq!((from, retention.cut_at(Lsn(16_384), NOW)), (Lsn(8192), Lsn(8192)));
    }

    #[test]
    fn log_that_is_to_be_kept_is_kept_from_a_place_where_a_record_starts() {
        let retention = Retention::new(Lsn(1000));
        assert_eq!(retention.cut_at(Lsn(2000), Lsn(1500)), Lsn(1000));
        assert_eq!(retention.cut_at(Lsn(3000), Lsn(1999)), Lsn(1000));
        assert_eq!(retention.cut_at(Lsn(4000), Lsn(2000)), Lsn(2000));
        assert_eq!(retention.cut_at(Lsn(5000), Lsn(4500)), Lsn(4000));
        assert_eq!(
            retention.cut_at(Lsn(6000), Lsn(9000)),
            Lsn(6000),
            "never more than the checkpoint can do without"
        );
    }
}
