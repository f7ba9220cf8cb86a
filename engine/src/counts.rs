//! Exact row counts of tables, as of any commit that a view may stand at (hazard H17).
//!
//! I1. A table's counts are in order of commit; the last one is the newest.
//! I2. A count goes only when no view stands, or can be taken, between its commit and the next one's.
//! I3. Between two looks for counts that may go are half as many commits, at least, as the second one looks at; and what need not stay any
//!     more goes within as many commits as there had to stay at the last look.

use std::collections::BTreeMap;

use hamal_wal::Lsn;

use crate::views::Views;

/// Counts kept of one table before the needless ones are looked for.
const KEPT: usize = 16;

/// Those of one table.
#[derive(Debug)]
struct Counts {
    /// In order of commit (I1).
    kept: Vec<Count>,
    /// Once there are so many, needless ones are looked for; falls as commits leave none.
    most: usize,
}

impl Default for Counts {
    fn default() -> Self {
        Counts { kept: Vec::new(), most: KEPT }
    }
}

/// A table's rows from this commit on.
#[derive(Clone, Copy, Debug)]
struct Count {
    since: Lsn,
    rows: u64,
}

/// The row counts of all tables, by table id.
#[derive(Debug, Default)]
pub(crate) struct RowCounts {
    tables: BTreeMap<u32, Counts>,
}

impl RowCounts {
    /// Counts as recovery found them.
    pub(crate) fn new(found: BTreeMap<u32, u64>) -> RowCounts {
        let counts = |rows| Counts { kept: vec![Count { since: Lsn::NEVER, rows }], most: KEPT };
        RowCounts { tables: found.into_iter().map(|(table, rows)| (table, counts(rows))).collect() }
    }

    /// The newest counts.
    pub(crate) fn newest(&self) -> Vec<(u32, u64)> {
        self.tables.iter().filter_map(|(table, counts)| Some((*table, counts.kept.last()?.rows))).collect()
    }

    /// A table's rows as of a commit that a view stands at. O(log of the counts that are kept).
    pub(crate) fn as_of(&self, table: u32, lsn: Lsn) -> u64 {
        let counts = self.tables.get(&table).map_or(&[][..], |counts| &counts.kept);
        let behind = counts.partition_point(|count| count.since <= lsn);
        behind.checked_sub(1).map_or(0, |at| counts[at].rows)
    }

    /// A commit at `lsn`, the newest, has added `delta` rows. `views`: where views stand; `next_view`: the oldest commit that a view
    /// taken from now on can stand at.
    pub(crate) fn add(&mut self, table: u32, delta: i64, lsn: Lsn, views: &Views, next_view: Lsn) {
        let Counts { kept: counts, most } = self.tables.entry(table).or_default();
        let rows = counts.last().map_or(0, |count| count.rows).saturating_add_signed(delta);
        let count = Count { since: lsn, rows };
        match counts.last_mut() {
            // In most cases the one before goes at once (I2).
            Some(last) if next_view >= lsn && !views.stand_in(&(last.since..lsn)) => {
                *last = count;
                *most = KEPT.max(most.saturating_sub(1));
            }
            _ => counts.push(count),
        }
        // Amortized (I3): views may hold many, and so do commits that are not durable yet, of which tickets make any number.
        if counts.len() >= *most {
            let until: Vec<Lsn> = counts.iter().skip(1).map(|count| count.since).collect();
            let mut at = 0;
            counts.retain(|count| {
                let end = until.get(at).copied();
                at += 1;
                // The newest, and those that a view stands in, now or later.
                end.is_none_or(|end| next_view < end || views.stand_in(&(count.since..end)))
            });
            *most = KEPT.max(2 * counts.len());
        }
    }

    /// A table is gone, and nobody will ask for it again.
    pub(crate) fn forget(&mut self, table: u32) {
        self.tables.remove(&table);
    }

    /// As [`RowCounts::forget`], for all tables but these.
    pub(crate) fn keep(&mut self, is_there: impl Fn(u32) -> bool) {
        self.tables.retain(|table, _| is_there(*table));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ids::TxnId;
    use crate::view::View;
    use crate::views::ViewKind;

    #[test]
    fn a_count_is_that_of_the_commit_a_view_stands_at() {
        let mut counts = RowCounts::new(BTreeMap::from([(7, 100)]));
        let mut views = Views::default();
        for as_of in [0, 25] {
            let invisible = [].into_iter().collect();
            let (xmin, xmax) = (TxnId(1), TxnId(1));
            let view = View { as_of: Lsn(as_of), xmin, xmax, invisible, own: TxnId::NONE };
            views.add(ViewKind::ReadOnly, &view, Duration::ZERO);
        }
        for step in 1..=1000 {
            counts.add(7, 1, Lsn(step * 10), &views, Lsn(step * 10 - 10));
        }
        for (lsn, rows) in [(0, 100), (25, 102), (9_990, 1099), (10_000, 1100), (20_000, 1100)] {
            assert_eq!(counts.as_of(7, Lsn(lsn)), rows, "as of {lsn}");
        }
        assert_eq!(counts.as_of(8, Lsn(5)), 0);
        assert!(counts.kept_of(7) <= KEPT, "needless counts go: {}", counts.kept_of(7));
        assert_eq!(counts.newest(), [(7, 1100)]);
    }

    #[test]
    fn counts_that_must_stay_are_looked_at_less_often_the_more_there_are() {
        let views = Views::default();
        // Once all of it is durable they go, whether commits leave counts from then on or not.
        for left in [5, 0] {
            let mut counts = RowCounts::default();
            let mut looks = 0;
            for step in 1..=10_000 {
                let most = counts.tables.get(&7).map_or(KEPT, |counts| counts.most);
                // Nothing is durable.
                counts.add(7, 1, Lsn(step), &views, Lsn::NEVER);
                looks += usize::from(counts.tables[&7].most != most);
            }
            assert_eq!((counts.kept_of(7), looks), (10_000, 10));
            for step in 10_001..=30_000 {
                counts.add(7, 1, Lsn(step), &views, Lsn(step - left));
            }
            assert!(counts.kept_of(7) <= KEPT, "they go once they may: {}", counts.kept_of(7));
            assert_eq!((counts.as_of(7, Lsn(30_000)), counts.newest()), (30_000, vec![(7, 30_000)]));
        }
    }

    impl RowCounts {
        fn kept_of(&self, table: u32) -> usize {
            self.tables[&table].kept.len()
        }
    }
}
