//! Intervals of keys, and how two sorted lists of them are compared.
//!
//! I1. A [`Cut`] is a place between two keys of a table, so every kind of bound is one, and cuts compare with `<` alone.
//! I2. A [`Span`] is what lies between two cuts of a table; it is empty if the lower one is not below the upper one.
//! I3. A [`Sequence`] is sorted and its spans do not overlap, so their lower cuts rise and so do their upper ones.

use std::iter;
use std::ops::Bound;

use crate::validation::Part;

/// On which side of its key a cut is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Before,
    After,
}

/// A place between two keys. Below every key is `At(&[], Before)`, for the empty key is the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cut<'a> {
    /// Next to this key, which need not exist.
    At(&'a [u8], Side),
    /// Above every key.
    Top,
}

impl<'a> Cut<'a> {
    /// Below every key.
    pub(super) const BOTTOM: Cut<'static> = Cut::At(&[], Side::Before);

    /// Where an interval with this lower bound starts.
    pub(super) fn lower(bound: Bound<&'a [u8]>) -> Self {
        match bound {
            Bound::Included(key) => Cut::At(key, Side::Before),
            Bound::Excluded(key) => Cut::At(key, Side::After),
            Bound::Unbounded => Cut::BOTTOM,
        }
    }

    /// Where an interval with this upper bound ends.
    pub(super) fn upper(bound: Bound<&'a [u8]>) -> Self {
        match bound {
            Bound::Included(key) => Cut::At(key, Side::After),
            Bound::Excluded(key) => Cut::At(key, Side::Before),
            Bound::Unbounded => Cut::Top,
        }
    }

    /// The key it is next to; empty at the top.
    pub(super) fn key(self) -> &'a [u8] {
        match self {
            Cut::At(key, _) => key,
            Cut::Top => &[],
        }
    }

    fn to_lower(self) -> Bound<Vec<u8>> {
        match self {
            Cut::BOTTOM | Cut::Top => Bound::Unbounded,
            Cut::At(key, Side::Before) => Bound::Included(key.to_vec()),
            Cut::At(key, Side::After) => Bound::Excluded(key.to_vec()),
        }
    }

    fn to_upper(self) -> Bound<Vec<u8>> {
        match self {
            Cut::At(key, Side::Before) => Bound::Excluded(key.to_vec()),
            Cut::At(key, Side::After) => Bound::Included(key.to_vec()),
            Cut::Top => Bound::Unbounded,
        }
    }
}

/// An interval of a table's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span<'a> {
    pub(super) table: u32,
    pub(super) lo: Cut<'a>,
    pub(super) hi: Cut<'a>,
}

impl<'a> Span<'a> {
    /// One key.
    pub(super) fn point(table: u32, key: &'a [u8]) -> Self {
        Span { table, lo: Cut::At(key, Side::Before), hi: Cut::At(key, Side::After) }
    }

    /// Every key of a table.
    pub(super) fn whole(table: u32) -> Self {
        Span { table, lo: Cut::BOTTOM, hi: Cut::Top }
    }

    /// Whether no key is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.lo >= self.hi
    }

    /// Both cuts are next to one key, whose bytes are therefore kept once.
    pub(super) fn has_one_key(&self) -> bool {
        matches!((self.lo, self.hi), (Cut::At(lo, _), Cut::At(hi, _)) if lo == hi)
    }

    /// Bytes of the keys that describe it.
    pub(super) fn key_bytes(&self) -> usize {
        let hi_bytes = if self.has_one_key() { 0 } else { self.hi.key().len() };
        self.lo.key().len() + hi_bytes
    }

    /// What it shares with another span of its table.
    fn common(&self, other: &Self) -> Self {
        Span { table: self.table, lo: self.lo.max(other.lo), hi: self.hi.min(other.hi) }
    }

    /// For the message about a conflict.
    pub(super) fn to_part(self) -> Part {
        match (self.lo, self.hi) {
            (Cut::At(lo, Side::Before), Cut::At(hi, Side::After)) if lo == hi => Part::Key(lo.to_vec()),
            (lo, hi) => Part::Keys { lower: lo.to_lower(), upper: hi.to_upper() },
        }
    }
}

/// A sorted list of spans that do not overlap (I3).
pub(super) trait Sequence<'a>: Copy {
    /// Number of spans.
    fn len(&self) -> usize;

    /// One of them.
    fn at(&self, index: usize) -> Span<'a>;
}

/// What a span of one sequence shares with a span of the other. Visits each of the shorter one, and looks it up in the longer one; unless
/// all of one lies behind the other.
pub(super) fn meet<'a, A: Sequence<'a>, B: Sequence<'a>>(a: A, b: B) -> Option<Span<'a>> {
    if a.len() == 0 || b.len() == 0 || lies_behind(a, b) || lies_behind(b, a) {
        return None;
    }
    if a.len() <= b.len() { meet_few(a, b) } else { meet_few(b, a) }
}

/// Whether the first span of one sequence begins where the last one of the other ends, or later. Neither is empty.
fn lies_behind<'a>(behind: impl Sequence<'a>, before: impl Sequence<'a>) -> bool {
    let (first, last) = (behind.at(0), before.at(before.len() - 1));
    (first.table, first.lo) >= (last.table, last.hi)
}

fn meet_few<'a>(few: impl Sequence<'a>, many: impl Sequence<'a>) -> Option<Span<'a>> {
    let mut from = 0;
    for index in 0..few.len() {
        let span = few.at(index);
        from = ends_behind(many, from, (span.table, span.lo));
        if from == many.len() {
            return None;
        }
        let other = many.at(from);
        if (other.table, other.lo) < (span.table, span.hi) {
            return Some(span.common(&other));
        }
    }
    None
}

/// Index of the first span at or after `from` that ends behind `place`. Steps of rising length before the binary search make the visits
/// of a whole sequence linear where the two are equally long.
fn ends_behind<'a>(spans: impl Sequence<'a>, from: usize, place: (u32, Cut<'a>)) -> usize {
    let behind = |index: usize| {
        let span = spans.at(index);
        (span.table, span.hi) > place
    };
    let (mut low, mut high, mut step) = (from, from, 1);
    while high < spans.len() && !behind(high) {
        low = high + 1;
        high += step;
        step *= 2;
    }
    high = high.min(spans.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        if behind(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// The tables of a sequence, rising.
pub(super) fn tables<'a>(spans: impl Sequence<'a>) -> impl Iterator<Item = u32> {
    let mut next = 0;
    iter::from_fn(move || {
        let table = (next < spans.len()).then(|| spans.at(next).table)?;
        next = ends_behind(spans, next, (table, Cut::Top));
        Some(table)
    })
}
