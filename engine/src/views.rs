//! Which views are in use, so that what they need is kept.
//!
//! I1. Of one kind, a view taken later sees no less: neither `as_of` nor `xmin` falls from one to the next. So what the oldest one needs
//!     is what all of its kind need.

use std::ops::Range;
use std::time::Duration;

use hamal_wal::Lsn;
use smallvec::SmallVec;

use crate::ids::TxnId;
use crate::view::View;

/// For whom a view was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ViewKind {
    /// A transaction whose commit is checked against the history.
    Validated,
    /// Any other read-write transaction.
    Unvalidated,
    /// A snapshot.
    ReadOnly,
}

impl ViewKind {
    const ALL: [ViewKind; 3] = [ViewKind::Validated, ViewKind::Unvalidated, ViewKind::ReadOnly];
}

/// A view in use.
#[derive(Clone, Copy, Debug)]
struct Taken {
    number: u64,
    xmin: TxnId,
    as_of: Lsn,
    /// Nanoseconds: half as long as a [`Duration`].
    at: u64,
}

/// All views in use.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Views {
    next: u64,
    /// The least `xmin` of each kind, which is the first one's; `NO_TXN`: there is none. Asked by every transaction twice.
    xmins: [u64; ViewKind::ALL.len()],
    /// Of each kind, in the order in which they were taken. In place while they are few: every transaction comes here, and what lies
    /// elsewhere has to be fetched from another processor's cache each time.
    taken: [SmallVec<[Taken; 2]>; ViewKind::ALL.len()],
}

/// Above all ids.
const NO_TXN: u64 = u64::MAX;

impl Default for Views {
    fn default() -> Self {
        Views { next: 0, xmins: [NO_TXN; ViewKind::ALL.len()], taken: Default::default() }
    }
}

impl Views {
    fn of(&self, kind: ViewKind) -> &[Taken] {
        &self.taken[kind as usize]
    }

    /// A view is in use from now on; returns its number.
    pub(crate) fn add(&mut self, kind: ViewKind, view: &View, now: Duration) -> u64 {
        let number = self.next;
        self.next += 1;
        let at = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let taken = Taken { number, xmin: view.xmin, as_of: view.as_of, at };
        let of_kind = &mut self.taken[kind as usize];
        debug_assert!(
            of_kind.last().is_none_or(|last| last.xmin <= taken.xmin && last.as_of <= taken.as_of),
            "I1"
        );
        of_kind.push(taken);
        self.note_xmin(kind);
        number
    }

    /// A view is no longer in use. O(views of its kind that were taken later).
    pub(crate) fn remove(&mut self, kind: ViewKind, number: u64) {
        let of_kind = &mut self.taken[kind as usize];
        if let Ok(at) = of_kind.binary_search_by_key(&number, |taken| taken.number) {
            of_kind.remove(at);
            self.note_xmin(kind);
        }
    }

    fn note_xmin(&mut self, kind: ViewKind) {
        let xmin = self.of(kind).first().map_or(NO_TXN, |oldest| oldest.xmin.0);
        self.xmins[kind as usize] = xmin;
    }

    /// Number of views in use.
    pub(crate) fn len(&self) -> usize {
        self.taken.iter().map(SmallVec::len).sum()
    }

    /// Number of views of transactions that validate.
    pub(crate) fn validated(&self) -> usize {
        self.of(ViewKind::Validated).len()
    }

    /// Where the oldest view of a transaction that validates stands.
    pub(crate) fn oldest_validated(&self) -> Option<Lsn> {
        self.of(ViewKind::Validated).first().map(|oldest| oldest.as_of)
    }

    /// The least `xmin`.
    pub(crate) fn xmin(&self) -> Option<TxnId> {
        self.xmins.iter().copied().min().filter(|xmin| *xmin != NO_TXN).map(TxnId)
    }

    /// When the oldest was taken.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        let first = self.taken.iter().filter_map(|of_kind| of_kind.first());
        first.map(|oldest| Duration::from_nanos(oldest.at)).min()
    }

    /// Whether one stands at a commit in this range.
    pub(crate) fn stand_in(&self, range: &Range<Lsn>) -> bool {
        self.taken.iter().any(|of_kind| {
            let at = of_kind.partition_point(|taken| taken.as_of < range.start);
            of_kind.get(at).is_some_and(|taken| taken.as_of < range.end)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_come_and_go_in_any_order() {
        let view = |xmin, as_of| View {
            as_of: Lsn(as_of),
            xmin: TxnId(xmin),
            xmax: TxnId(100),
            invisible: [].into_iter().collect(),
            own: TxnId::NONE,
        };
        let mut views = Views::default();
        let taken = [
            (ViewKind::Validated, 3, 30),
            (ViewKind::ReadOnly, 2, 20),
            (ViewKind::Validated, 3, 40),
            (ViewKind::Unvalidated, 4, 40),
            (ViewKind::Validated, 9, 90),
        ]
        .map(|(kind, xmin, as_of)| (kind, views.add(kind, &view(xmin, as_of), Duration::from_secs(as_of))));
        assert_eq!((views.len(), views.validated()), (5, 3));
        assert_eq!(views.xmin(), Some(TxnId(2)));
        assert_eq!(views.oldest(), Some(Duration::from_secs(20)));
        assert!(views.stand_in(&(Lsn(40)..Lsn(41))) && !views.stand_in(&(Lsn(41)..Lsn(90))));
        for (at, xmin, oldest) in [(1, 3, Some(30)), (2, 3, Some(30)), (0, 4, Some(90)), (3, 9, Some(90))] {
            let (kind, number) = taken[at];
            views.remove(kind, number);
            views.remove(kind, number);
            assert_eq!((views.xmin(), views.oldest_validated()), (Some(TxnId(xmin)), oldest.map(Lsn)));
        }
        assert!(!views.stand_in(&(Lsn(0)..Lsn(90))) && views.stand_in(&(Lsn(90)..Lsn(91))));
        views.remove(taken[4].0, taken[4].1);
        assert_eq!((views.len(), views.xmin(), views.oldest()), (0, None, None));
    }
}
