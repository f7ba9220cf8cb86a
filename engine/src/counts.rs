//! Exact row counts of tables, as of any commit that a view may stand at (hazard H17).
//!
//! I1. A table's counts are in order of commit; the last one is the newest.
//! I2. A count goes only when no view stands, or can be taken, between its commit and the next one's.

use std::collections::BTreeMap;

use hamal_wal::Lsn;

use crate::views::Views;

/// Counts kept of one table before the needless ones are looked for.
const KEPT: usize = 16;

/// A table's rows from this commit on.
#[derive(Clone, Copy, Debug)]
struct Count {
    since: Lsn,
    rows: u64,
}

/// The row counts of all tables, by table id.
#[derive(Debug, Default)]
pub(crate) struct RowCounts {
    tables: BTreeMap<u32, Vec<Count>>,
}

impl RowCounts {
    /// Counts as recovery found them.
    pub(crate) fn new(found: BTreeMap<u32, u64>) -> RowCounts {
        let tables = found.into_iter().map(|(table, rows)| (table, vec![Count { since: Lsn::NEVER, rows }]));
        RowCounts { tables: tables.collect() }
    }

    /// The newest counts.
    pub(crate) fn newest(&self) -> Vec<(u32, u64)> {
        self.tables.iter().filter_map(|(table, counts)| Some((*table, counts.last()?.rows))).collect()
    }

    /// A table's rows as of a commit that a view stands at. O(log of its commits since the oldest view).
    pub(crate) fn as_of(&self, table: u32, lsn: Lsn) -> u64 {
        let counts = self.tables.get(&table).map_or(&[][..], Vec::as_slice);
        let behind = counts.partition_point(|count| count.since <= lsn);
        behind.checked_sub(1).map_or(0, |at| counts[at].rows)
    }

    /// A commit at `lsn`, the newest, has added `delta` rows. `views`: where views stand; `next_view`: the oldest commit that a view
    /// taken from now on can stand at.
    pub(crate) fn add(&mut self, table: u32, delta: i64, lsn: Lsn, views: &Views, next_view: Lsn) {
        let counts = self.tables.entry(table).or_default();
        let rows = counts.last().map_or(0, |count| count.rows).saturating_add_signed(delta);
        let count = Count { since: lsn, rows };
        match counts.last_mut() {
            // In most cases the one before goes at once (I2).
            Some(last) if next_view >= lsn && !views.stand_in(&(last.since..lsn)) => *last = count,
            _ => counts.push(count),
        }
        // Amortized: looked for each time the list has doubled beyond what views can hold.
        if counts.len() >= KEPT && counts.len() >= 4 * views.len() {
            let until: Vec<Lsn> = counts.iter().skip(1).map(|count| count.since).collect();
            let mut at = 0;
            counts.retain(|count| {
                let end = until.get(at).copied();
                at += 1;
                // The newest, and those that a view stands in, now or later.
                end.is_none_or(|end| next_view < end || views.stand_in(&(count.since..end)))
            });
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
        assert!(counts.tables[&7].len() <= KEPT, "needless counts go: {}", counts.tables[&7].len());
        assert_eq!(counts.newest(), [(7, 1100)]);
    }
}
