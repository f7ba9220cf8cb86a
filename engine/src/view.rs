//! What a transaction or snapshot sees: which stamps are of transactions that had committed when it was taken.
//!
//! I1. A stamp on a row is of a transaction that has committed, or is in the timeline's table: undo puts the old stamp back before a
//!     transaction leaves the table. So who was not in the table when the view was taken, and began before, had committed.
//! I2. `xmin` is at or below the id of every writer that the view does not see (hazard H6); `invisible` lies between `xmin` and `xmax`.

use hamal_wal::Lsn;
use smallvec::SmallVec;

use crate::ids::TxnId;

/// Ids of transactions; few, mostly.
pub(crate) type TxnIds = SmallVec<[TxnId; 8]>;

/// A committed state, as of one commit. By default one of before the first: it sees no transaction's rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// The newest commit it sees.
    pub(crate) as_of: Lsn,
    /// Every stamp below is seen.
    pub(crate) xmin: TxnId,
    /// No stamp from here on is seen.
    pub(crate) xmax: TxnId,
    /// Stamps between them that are not seen, sorted.
    pub(crate) invisible: TxnIds,
    /// The transaction it was taken for: it sees its own rows. [`TxnId::NONE`]: nobody.
    pub(crate) own: TxnId,
}

impl View {
    /// Whether it sees rows of this stamp.
    #[inline]
    pub(crate) fn sees(&self, stamp: TxnId) -> bool {
        stamp < self.xmin || stamp == self.own || self.saw(stamp)
    }

    /// Whether a transaction had committed, out of line of the common cases.
    fn saw(&self, stamp: TxnId) -> bool {
        stamp < self.xmax && self.invisible.binary_search(&stamp).is_err()
    }

    /// Whether it sees every row of a page with this `max_txn`.
    #[inline]
    pub(crate) fn sees_all(&self, max_txn: TxnId) -> bool {
        max_txn < self.xmin || (self.invisible.is_empty() && (max_txn < self.xmax || max_txn == self.own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_sees_what_had_committed_and_its_own() {
        let ids = |ids: &[u64]| ids.iter().map(|id| TxnId(*id)).collect::<TxnIds>();
        let view =
            View { as_of: Lsn(1), xmin: TxnId(5), xmax: TxnId(12), invisible: ids(&[5, 9]), own: TxnId(11) };
        let seen: Vec<u64> = (0..16).filter(|id| view.sees(TxnId(*id))).collect();
        assert_eq!(seen, [0, 1, 2, 3, 4, 6, 7, 8, 10, 11]);
        for max_txn in 0..16 {
            let all = (0..=max_txn).all(|id| view.sees(TxnId(id)));
            assert!(!view.sees_all(TxnId(max_txn)) || all, "all up to {max_txn}");
        }
        let alone =
            View { as_of: Lsn(1), xmin: TxnId(11), xmax: TxnId(12), invisible: ids(&[]), own: TxnId(11) };
        assert!(alone.sees_all(TxnId(11)) && !alone.sees_all(TxnId(12)));
    }
}
