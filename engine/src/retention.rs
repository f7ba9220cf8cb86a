//! Who else than recovery needs the log: backups under way, the archive.
//!
//! I1. A hold taken while the checkpoint's lock is held, at or above [`hamal_wal::Log::oldest`], is never overtaken: log is cut by checkpoints
//!     alone, which ask [`Retention::floor`] under that lock.
//! I2. A hold only ever moves forward.

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

    /// The oldest LSN that anybody holds.
    pub(crate) fn floor(&self) -> Option<Lsn> {
        self.holds.lock().from.values().min().copied()
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
        assert_eq!(retention.floor(), None);
        let first = retention.hold(Lsn(4096));
        let second = retention.hold(Lsn(8192));
        assert_eq!(retention.floor(), Some(Lsn(4096)));
        first.advance(Lsn(16_384));
        first.advance(Lsn(4096));
        assert_eq!(retention.floor(), Some(Lsn(8192)), "it does not move back");
        drop(second);
        assert_eq!(retention.floor(), Some(Lsn(16_384)));
        drop(first);
        assert_eq!(retention.floor(), None);
    }
}
