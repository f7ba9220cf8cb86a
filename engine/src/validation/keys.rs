//! A set of keys and intervals of keys, of many tables, in bounded memory: the common part of read sets and write sets.
//!
//! I1. The bytes of all keys are in one arena; points and spans refer to them by offset. To add a key is to append twice.
//! I2. [`KeySet::bytes`] is never above the limit, and the limit fits the offsets.
//! I3. A set that would exceed its limit is coarsened to half of it or less, so coarsening costs an append O(log n) on average: first
//!     without loss (repeats, what spans cover, and dead bytes go), then neighbours are merged in pairs, again and again, down to one
//!     span per table, then to whole tables, then to everything there is.
//! I4. What was added stays covered, whatever was coarsened (V1). `exact` says that nothing more is covered.
//! I5. The first `sorted` points and spans are sorted, the points differ, and the spans do not overlap. Nothing but [`KeySet::clear`] and coarsening
//!     takes any away, so equal lengths mean that all are.

use std::mem;

use crate::validation::span::{self, Cut, Sequence, Side, Span};

/// A cleared set keeps this much of each buffer: enough for a short transaction, little enough for one set per thread.
const KEPT_BYTES: usize = 64 << 10;
const POINT_BYTES: usize = size_of::<StoredPoint>();
pub(super) const SPAN_BYTES: usize = size_of::<StoredSpan>();

/// A key: where it is in the arena.
#[derive(Clone, Copy, Debug)]
struct StoredPoint {
    table: u32,
    start: u32,
    end: u32,
}

impl StoredPoint {
    fn view(self, arena: &[u8]) -> (u32, &[u8]) {
        (self.table, &arena[self.start as usize..self.end as usize])
    }
}

/// A [`Cut`] whose key is in an arena.
#[derive(Clone, Copy, Debug)]
struct StoredCut {
    start: u32,
    end: u32,
    /// `None`: the top.
    side: Option<Side>,
}

impl StoredCut {
    fn append(arena: &mut Vec<u8>, cut: Cut<'_>) -> Self {
        let start = arena.len() as u32;
        arena.extend_from_slice(cut.key());
        StoredCut { start, end: arena.len() as u32, side: side_of(cut) }
    }

    fn view(self, arena: &[u8]) -> Cut<'_> {
        self.side.map_or(Cut::Top, |side| Cut::At(&arena[self.start as usize..self.end as usize], side))
    }
}

fn side_of(cut: Cut<'_>) -> Option<Side> {
    match cut {
        Cut::At(_, side) => Some(side),
        Cut::Top => None,
    }
}

/// A [`Span`] whose keys are in an arena.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredSpan {
    table: u32,
    lo: StoredCut,
    hi: StoredCut,
}

impl StoredSpan {
    /// Copies the span's keys, [`Span::key_bytes`] of them, to the end of the arena, whose offsets must fit in 32 bits.
    pub(super) fn append(arena: &mut Vec<u8>, span: Span<'_>) -> Self {
        let lo = StoredCut::append(arena, span.lo);
        let hi = if span.has_one_key() {
            StoredCut { side: side_of(span.hi), ..lo }
        } else {
            StoredCut::append(arena, span.hi)
        };
        StoredSpan { table: span.table, lo, hi }
    }

    pub(super) fn view(self, arena: &[u8]) -> Span<'_> {
        Span { table: self.table, lo: self.lo.view(arena), hi: self.hi.view(arena) }
    }
}

/// The points of a sorted set, each as a span.
#[derive(Clone, Copy)]
struct Points<'a> {
    arena: &'a [u8],
    points: &'a [StoredPoint],
}

impl<'a> Sequence<'a> for Points<'a> {
    fn len(&self) -> usize {
        self.points.len()
    }

    fn at(&self, index: usize) -> Span<'a> {
        let (table, key) = self.points[index].view(self.arena);
        Span::point(table, key)
    }
}

/// The spans of a sorted set.
#[derive(Clone, Copy)]
struct Spans<'a> {
    arena: &'a [u8],
    spans: &'a [StoredSpan],
}

impl<'a> Sequence<'a> for Spans<'a> {
    fn len(&self) -> usize {
        self.spans.len()
    }

    fn at(&self, index: usize) -> Span<'a> {
        self.spans[index].view(self.arena)
    }
}

/// A set of keys and intervals of keys.
#[derive(Debug)]
pub(super) struct KeySet {
    limit_bytes: usize,
    arena: Vec<u8>,
    points: Vec<StoredPoint>,
    spans: Vec<StoredSpan>,
    /// How many points and spans are sorted (I5).
    sorted: (usize, usize),
    /// Covers every key of every table; what the vectors hold no longer matters.
    everything: bool,
    exact: bool,
}

impl KeySet {
    pub(super) fn new(limit_bytes: usize) -> Self {
        KeySet {
            limit_bytes: limit_bytes.min(u32::MAX as usize),
            arena: Vec::new(),
            points: Vec::new(),
            spans: Vec::new(),
            sorted: (0, 0),
            everything: false,
            exact: true,
        }
    }

    /// Empties it and keeps its buffers, unless they have become large.
    pub(super) fn clear(&mut self) {
        self.arena.clear();
        self.arena.shrink_to(KEPT_BYTES);
        self.points.clear();
        self.points.shrink_to(KEPT_BYTES / POINT_BYTES);
        self.spans.clear();
        self.spans.shrink_to(KEPT_BYTES / SPAN_BYTES);
        self.sorted = (0, 0);
        self.everything = false;
        self.exact = true;
    }

    /// Adds a key.
    pub(super) fn point(&mut self, table: u32, key: &[u8]) {
        if self.points.last().is_some_and(|last| last.view(&self.arena) == (table, key)) {
            return;
        }
        if self.bytes() + POINT_BYTES + key.len() > self.limit_bytes
            && !self.make_room(POINT_BYTES + key.len())
        {
            self.whole(table);
            return;
        }
        let start = self.arena.len() as u32;
        self.arena.extend_from_slice(key);
        self.points.push(StoredPoint { table, start, end: self.arena.len() as u32 });
    }

    /// Adds an interval.
    pub(super) fn span(&mut self, span: Span<'_>) {
        if span.is_empty() {
            return;
        }
        let needed = SPAN_BYTES + span.key_bytes();
        if self.bytes() + needed > self.limit_bytes && !self.make_room(needed) {
            self.whole(span.table);
            return;
        }
        let stored = StoredSpan::append(&mut self.arena, span);
        self.spans.push(stored);
    }

    /// Adds a table, for something in it that is larger than the limit.
    fn whole(&mut self, table: u32) {
        self.exact = false;
        if self.bytes() + SPAN_BYTES > self.limit_bytes && !self.make_room(SPAN_BYTES) {
            self.everything();
            return;
        }
        let stored = StoredSpan::append(&mut self.arena, Span::whole(table));
        self.spans.push(stored);
    }

    /// Adds every key of every table.
    pub(super) fn everything(&mut self) {
        self.clear();
        self.everything = true;
        self.exact = false;
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.points.is_empty() && self.spans.is_empty() && !self.everything
    }

    /// Number of points and spans.
    pub(super) fn len(&self) -> usize {
        self.points.len() + self.spans.len()
    }

    /// Whether it covers every key of every table.
    pub(super) fn is_everything(&self) -> bool {
        self.everything
    }

    /// Whether it covers nothing but what was added.
    pub(super) fn is_exact(&self) -> bool {
        self.exact
    }

    /// Marks it as covering more than it was meant to.
    pub(super) fn set_inexact(&mut self) {
        self.exact = false;
    }

    /// Bytes it uses; its buffers' capacity may be twice that, and coarsening takes about as much again for a moment.
    pub(super) fn bytes(&self) -> usize {
        self.arena.len() + self.points.len() * POINT_BYTES + self.spans.len() * SPAN_BYTES
    }

    /// Sorts it, for [`KeySet::overlap`]. Costs nothing if nothing was added since the last time.
    pub(super) fn sort(&mut self) {
        if self.sorted == (self.points.len(), self.spans.len()) {
            return;
        }
        let arena = &self.arena;
        self.points.sort_unstable_by(|a, b| a.view(arena).cmp(&b.view(arena)));
        self.points.dedup_by(|a, b| a.view(arena) == b.view(arena));
        self.spans.sort_unstable_by(|a, b| (a.table, a.lo.view(arena)).cmp(&(b.table, b.lo.view(arena))));
        self.spans.dedup_by(|next, kept| {
            let touches = next.table == kept.table && next.lo.view(arena) <= kept.hi.view(arena);
            if touches && kept.hi.view(arena) < next.hi.view(arena) {
                kept.hi = next.hi;
            }
            touches
        });
        self.sorted = (self.points.len(), self.spans.len());
    }

    /// What both sets have in common, if anything. Both are sorted, and neither is everything.
    pub(super) fn overlap<'a>(&'a self, other: &'a KeySet) -> Option<Span<'a>> {
        span::meet(self.points(), other.points())
            .or_else(|| span::meet(self.points(), other.spans()))
            .or_else(|| span::meet(self.spans(), other.points()))
            .or_else(|| span::meet(self.spans(), other.spans()))
    }

    /// What a sorted set that is not everything has in common with a sequence, if anything.
    pub(super) fn overlap_with<'a>(&'a self, other: impl Sequence<'a>) -> Option<Span<'a>> {
        span::meet(self.points(), other).or_else(|| span::meet(self.spans(), other))
    }

    /// Whether it is so few keys, of so few bytes together, and nothing else.
    pub(super) fn is_few_points(&self, points: usize, key_bytes: usize) -> bool {
        self.points.len() <= points
            && self.arena.len() <= key_bytes
            && self.spans.is_empty()
            && !self.everything
    }

    /// Its keys, in the order in which they are kept.
    pub(super) fn each_point(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.points.iter().map(|point| point.view(&self.arena))
    }

    /// The tables of a sorted set; some may come twice.
    pub(super) fn tables(&self) -> impl Iterator<Item = u32> {
        span::tables(self.points()).chain(span::tables(self.spans()))
    }

    /// The least and the greatest table in a sorted set that is not everything.
    pub(super) fn table_range(&self) -> Option<(u32, u32)> {
        let points = self.points.first().zip(self.points.last()).map(|(a, b)| (a.table, b.table));
        let spans = self.spans.first().zip(self.spans.last()).map(|(a, b)| (a.table, b.table));
        match (points, spans) {
            (Some(points), Some(spans)) => Some((points.0.min(spans.0), points.1.max(spans.1))),
            (range, None) | (None, range) => range,
        }
    }

    /// Becomes a copy of a sorted set, its keys in order; new buffers are of exactly its size.
    pub(super) fn copy(&mut self, other: &KeySet) {
        self.clear();
        self.limit_bytes = other.limit_bytes;
        self.everything = other.everything;
        self.exact = other.exact;
        if self.everything {
            return;
        }
        let points = other.points.iter().map(|point| point.view(&other.arena));
        let spans = other.spans.iter().map(|span| span.view(&other.arena));
        self.points.reserve_exact(other.points.len());
        self.spans.reserve_exact(other.spans.len());
        self.arena.reserve_exact(
            points.clone().map(|(_, key)| key.len()).sum::<usize>()
                + spans.clone().map(|span| span.key_bytes()).sum::<usize>(),
        );
        self.fill(points, spans);
    }

    fn points(&self) -> Points<'_> {
        debug_assert_eq!(self.sorted.0, self.points.len());
        Points { arena: &self.arena, points: &self.points }
    }

    fn spans(&self) -> Spans<'_> {
        debug_assert_eq!(self.sorted.1, self.spans.len());
        Spans { arena: &self.arena, spans: &self.spans }
    }

    /// Fills an empty set with what is sorted already and does not exceed the limit.
    fn fill<'a>(
        &mut self,
        points: impl Iterator<Item = (u32, &'a [u8])>,
        spans: impl Iterator<Item = Span<'a>>,
    ) {
        for (table, key) in points {
            let start = self.arena.len() as u32;
            self.arena.extend_from_slice(key);
            self.points.push(StoredPoint { table, start, end: self.arena.len() as u32 });
        }
        for span in spans {
            let stored = StoredSpan::append(&mut self.arena, span);
            self.spans.push(stored);
        }
        self.sorted = (self.points.len(), self.spans.len());
        debug_assert!(self.bytes() <= self.limit_bytes);
    }

    /// Coarsens the set; `false` if this many bytes have no place even then.
    #[cold]
    fn make_room(&mut self, needed: usize) -> bool {
        if self.everything {
            self.everything(); // What was added since is covered.
        } else {
            self.coarsen();
        }
        self.bytes() + needed <= self.limit_bytes
    }

    /// Brings the set down to half its limit (I3).
    fn coarsen(&mut self) {
        self.sort();
        let target_bytes = self.limit_bytes / 2;
        let arena = mem::take(&mut self.arena);
        let spans: Vec<_> = mem::take(&mut self.spans).into_iter().map(|span| span.view(&arena)).collect();
        let mut points: Vec<_> =
            mem::take(&mut self.points).into_iter().map(|point| point.view(&arena)).collect();
        remove_covered(&mut points, &spans);

        let point_bytes: usize = points.iter().map(|(_, key)| POINT_BYTES + key.len()).sum();
        if point_bytes + bytes_of(&spans) <= target_bytes {
            self.fill(points.into_iter(), spans.into_iter());
            return;
        }
        self.exact = false;
        let mut all = spans;
        all.extend(points.into_iter().map(|(table, key)| Span::point(table, key)));
        // Two sorted lists behind one another: a stable sort only merges them.
        all.sort_by_key(|span| (span.table, span.lo));
        while bytes_of(&all) > target_bytes {
            let len = all.len();
            merge_pairs(&mut all);
            if all.len() == len {
                for span in &mut all {
                    *span = Span::whole(span.table);
                }
                if bytes_of(&all) > target_bytes {
                    self.everything();
                    return;
                }
            }
        }
        self.fill([].into_iter(), all.into_iter());
    }
}

fn bytes_of(spans: &[Span<'_>]) -> usize {
    spans.iter().map(|span| SPAN_BYTES + span.key_bytes()).sum()
}

/// Drops the points that a span covers; both are sorted.
fn remove_covered(points: &mut Vec<(u32, &[u8])>, spans: &[Span<'_>]) {
    let mut rest = spans.iter().peekable();
    points.retain(|&(table, key)| {
        let point = Span::point(table, key);
        while rest.next_if(|span| (span.table, span.hi) <= (table, point.lo)).is_some() {}
        rest.peek().is_none_or(|span| (span.table, span.lo) > (table, point.lo))
    });
}

/// Merges the first and second span of each table, the third and fourth, and so on, with what lies between them.
fn merge_pairs(spans: &mut Vec<Span<'_>>) {
    let mut paired = false;
    spans.dedup_by(|next, kept| {
        paired = !paired && next.table == kept.table;
        if paired {
            kept.hi = next.hi;
        }
        paired
    });
}
