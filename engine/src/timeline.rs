//! Which transactions there are, in which order they commit, and what each view sees.
//!
//! Owns the table of active transactions, the order of commits, who sees what ([`View`]), row counts, and what serializable commits
//! are checked against. All under one mutex, held for short steps that neither wait nor do I/O.
//!
//! I1. A transaction is in the table before its id can be in a page or record, and leaves it in the step that reserves its commit
//!     record, or when its last change is undone. So a stamp in a page is of a transaction in the table, or of a committed one.
//! I2. Commit records are reserved under the mutex, after the last check and before the transaction leaves the table: log order is
//!     commit order is the order in which views see them, and every view sees a prefix of it (hazard H8).
//! I3. A read-only view sees the longest prefix that no crash can take back, or that somebody was told of: all commits that are durable,
//!     and all up to the newest one acknowledged with a weaker promise (hazard H10).
//! I4. `horizon` is at or below every id that some view, live or taken from now on, does not see (hazard H6). It never falls.
//! I5. The history has every commit above the view of every serializable transaction that is active, or says what it forgot.
//!
//! Lock order: page latches, then this, then a transaction's section.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hamal_wal::Lsn;
use parking_lot::Mutex;

use crate::Result;
use crate::active::{TxnEntry, TxnState};
use crate::counts::RowCounts;
use crate::ids::TxnId;
use crate::planted::{PlantedBug, is_planted};
use crate::record::TxnImage;
use crate::validation::{History, Published};
use crate::view::View;

/// Most memory that the history of commits takes, bytes.
const HISTORY_BYTES: usize = 16 << 20;

/// What a new transaction is to be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Birth {
    /// The age of its first attempt.
    pub(crate) age: Option<u64>,
    /// Its commit will be checked against the history.
    pub(crate) validates: bool,
}

/// A view that the timeline knows of, and must be told of when it goes.
#[derive(Debug)]
pub(crate) struct LiveView {
    pub(crate) view: View,
    validates: bool,
    taken_at: Duration,
}

/// What a commit changes besides rows.
pub(crate) struct Committing<'c> {
    /// Rows added less rows removed, by table.
    pub(crate) counts: &'c [(u32, i64)],
    /// Makes what it wrote known; called if there is somebody to whom that matters.
    pub(crate) publish: &'c mut dyn FnMut() -> Arc<Published>,
    /// It is acknowledged at once: readers may see it, and all before it.
    pub(crate) exposed: bool,
    /// It has kept before-images.
    pub(crate) keeps_images: bool,
}

/// What goes on beside a transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Company {
    /// Other serializable transactions are active.
    pub(crate) others: bool,
    /// The newest commit that is in the history.
    pub(crate) newest: Lsn,
}

/// A commit that readers must not see yet.
#[derive(Clone, Copy, Debug)]
struct Hidden {
    lsn: Lsn,
    txn: TxnId,
}

#[derive(Debug)]
struct State {
    next: u64,
    active: BTreeMap<TxnId, Arc<TxnEntry>>,
    /// Committed, not exposed, in order of commit.
    hidden: VecDeque<Hidden>,
    hidden_ids: BTreeSet<TxnId>,
    /// The newest commit that readers may see.
    exposed: Lsn,
    /// The newest commit of all.
    newest: Lsn,
    /// Live views: by `xmin`, by `as_of`, and those whose transactions validate, by `as_of`.
    xmins: BTreeMap<TxnId, usize>,
    views: BTreeMap<Lsn, usize>,
    validating: BTreeMap<Lsn, usize>,
    /// When each live view was taken, the oldest first.
    ages: BTreeMap<Duration, usize>,
    counts: RowCounts,
    history: History,
    /// Writers that have committed and kept before-images, and their commits.
    retired: BTreeMap<TxnId, Lsn>,
}

/// The timeline of one database.
#[derive(Debug)]
pub(crate) struct Timeline {
    state: Mutex<State>,
    horizon: Arc<AtomicU64>,
}

impl Timeline {
    /// No transactions yet; the first will be `next` (hazard H19: ids never restart).
    pub(crate) fn new(next: TxnId, counts: BTreeMap<u32, u64>, horizon: Arc<AtomicU64>) -> Self {
        horizon.store(next.0, Ordering::Release);
        let state = State {
            next: next.0,
            active: BTreeMap::new(),
            hidden: VecDeque::new(),
            hidden_ids: BTreeSet::new(),
            exposed: Lsn::NEVER,
            newest: Lsn::NEVER,
            xmins: BTreeMap::new(),
            views: BTreeMap::new(),
            validating: BTreeMap::new(),
            ages: BTreeMap::new(),
            counts: RowCounts::new(counts),
            history: History::new(HISTORY_BYTES),
            retired: BTreeMap::new(),
        };
        Timeline { state: Mutex::new(state), horizon }
    }

    /// Registers a new transaction; it sees every commit so far.
    pub(crate) fn begin(&self, birth: Birth, now: Duration) -> (Arc<TxnEntry>, LiveView) {
        let mut state = self.state.lock();
        let id = TxnId(state.next);
        state.next += 1;
        let entry = Arc::new(TxnEntry::new(id, birth.age));
        let view = state.view_of_all(id);
        state.active.insert(id, entry.clone());
        let live = state.enlist(view, birth.validates, now);
        self.publish(&state);
        (entry, live)
    }

    /// Registers a transaction that reads nothing.
    #[cfg(test)]
    pub(crate) fn begin_unseeing(&self) -> Arc<TxnEntry> {
        let (entry, live) = self.begin(Birth::default(), Duration::ZERO);
        self.release(&live);
        entry
    }

    /// Puts a loser found by analysis back. Only before the first transaction begins.
    pub(crate) fn restore(&self, image: &TxnImage) -> Arc<TxnEntry> {
        let entry = Arc::new(TxnEntry::restored(image));
        let mut state = self.state.lock();
        state.active.insert(image.txn, entry.clone());
        // The only time that it falls: nobody has asked for it yet.
        self.horizon.fetch_min(image.txn.0, Ordering::AcqRel);
        entry
    }

    /// A read-only view, as of the newest commit that no crash takes back. The log is durable to `durable`.
    pub(crate) fn view(&self, durable: Lsn, now: Duration) -> LiveView {
        let mut state = self.state.lock();
        state.expose(durable);
        let mut invisible: Vec<TxnId> = state.active.keys().chain(&state.hidden_ids).copied().collect();
        invisible.sort_unstable();
        let xmax = TxnId(state.next);
        let view = View {
            as_of: state.exposed,
            xmin: invisible.first().copied().unwrap_or(xmax),
            xmax,
            invisible: invisible.into(),
            own: TxnId::NONE,
        };
        let live = state.enlist(view, false, now);
        self.publish(&state);
        live
    }

    /// Moves a transaction's view forward to now, if `check`, which is shown the history, finds that nothing it read has changed.
    pub(crate) fn advance(
        &self,
        live: &mut LiveView,
        now: Duration,
        check: impl FnOnce(&History) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.state.lock();
        check(&state.history)?;
        let view = state.view_of_all(live.view.own);
        let validates = live.validates;
        state.dismiss(live);
        *live = state.enlist(view, validates, now);
        self.publish(&state);
        Ok(())
    }

    /// A view is no longer used.
    pub(crate) fn release(&self, live: &LiveView) {
        let mut state = self.state.lock();
        state.dismiss(live);
        self.publish(&state);
    }

    /// Whether a transaction may still change something.
    pub(crate) fn is_active(&self, id: TxnId) -> bool {
        self.state.lock().active.contains_key(&id)
    }

    /// The commit section. `check` is shown the history; then `reserve` reserves the commit record in the transaction's own section; then
    /// everybody sees it. If one of them fails nothing has happened.
    pub(crate) fn commit(
        &self,
        entry: &TxnEntry,
        live: &LiveView,
        check: impl FnOnce(&History) -> Result<()>,
        reserve: impl FnOnce() -> Result<Lsn>,
        what: Committing<'_>,
    ) -> Result<Lsn> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        check(&state.history)?;
        let lsn = {
            let mut section = entry.lock();
            let lsn = reserve()?;
            section.ended = true;
            lsn
        };
        state.active.remove(&entry.id);
        state.dismiss(live);
        state.newest = lsn;
        if what.keeps_images {
            state.retired.insert(entry.id, lsn);
        }
        state.hidden.push_back(Hidden { lsn, txn: entry.id });
        state.hidden_ids.insert(entry.id);
        if what.exposed {
            state.expose_through(lsn);
        }
        for (table, delta) in what.counts {
            state.counts.add(*table, *delta, lsn, &state.views, state.exposed);
        }
        if !state.validating.is_empty() {
            state.history.push(lsn, (what.publish)());
        }
        self.publish(state);
        Ok(lsn)
    }

    /// A transaction is over without a commit: it changed nothing, or all is undone.
    pub(crate) fn end(&self, entry: &TxnEntry, live: Option<&LiveView>) {
        let mut state = self.state.lock();
        state.active.remove(&entry.id);
        if let Some(live) = live {
            state.dismiss(live);
        }
        self.publish(&state);
    }

    /// The log is durable to `durable`: readers may see more.
    pub(crate) fn expose(&self, durable: Lsn) {
        let mut state = self.state.lock();
        state.expose(durable);
        self.publish(&state);
    }

    /// Somebody was told of what the commit at `lsn` left: readers may see it, and all before it.
    pub(crate) fn acknowledge(&self, lsn: Lsn) {
        let mut state = self.state.lock();
        state.expose_through(lsn);
        self.publish(&state);
    }

    /// What goes on beside a transaction.
    pub(crate) fn company(&self, live: &LiveView) -> Company {
        let state = self.state.lock();
        let others = state.validating.values().sum::<usize>() > usize::from(live.validates);
        Company { others, newest: state.history.newest() }
    }

    /// Takes the committed writers with before-images that every view sees.
    pub(crate) fn settled(&self) -> Vec<TxnId> {
        let mut state = self.state.lock();
        let horizon = TxnId(self.horizon.load(Ordering::Relaxed));
        if state.retired.keys().next().is_none_or(|oldest| *oldest >= horizon) {
            return Vec::new();
        }
        let kept = state.retired.split_off(&horizon);
        std::mem::replace(&mut state.retired, kept).into_keys().collect()
    }

    /// The committed writers with before-images, in groups: no view stands, or can be taken, between the commits of a group, which are in
    /// their order.
    pub(crate) fn indistinguishable_writers(&self) -> Vec<Vec<TxnId>> {
        let state = self.state.lock();
        let mut writers: Vec<(Lsn, TxnId)> = state.retired.iter().map(|(id, lsn)| (*lsn, *id)).collect();
        writers.retain(|(lsn, _)| *lsn <= state.exposed);
        writers.sort_unstable();
        let mut groups: Vec<Vec<TxnId>> = Vec::new();
        let mut last = None;
        for (lsn, id) in writers {
            match (groups.last_mut(), last) {
                (Some(group), Some(last)) if state.views.range(last..lsn).next().is_none() => group.push(id),
                _ => groups.push(vec![id]),
            }
            last = Some(lsn);
        }
        groups
    }

    /// Shows the history to `look`.
    pub(crate) fn with_history<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.state.lock().history)
    }

    /// Committed rows of a table, as of a view's commit.
    pub(crate) fn rows_as_of(&self, table: u32, lsn: Lsn) -> u64 {
        self.state.lock().counts.as_of(table, lsn)
    }

    /// Committed rows of a table, as of its newest commit.
    pub(crate) fn newest_rows(&self, table: u32) -> u64 {
        self.rows_as_of(table, Lsn(u64::MAX))
    }

    /// The row counts of all tables, and what `tail` says while they are.
    pub(crate) fn newest_counts(&self, tail: impl FnOnce() -> Lsn) -> (Vec<(u32, u64)>, Lsn) {
        let state = self.state.lock();
        (state.counts.newest(), tail())
    }

    /// A table is gone for good.
    pub(crate) fn forget_table(&self, table: u32) {
        self.state.lock().counts.forget(table);
    }

    /// The id the next transaction will get.
    pub(crate) fn next_id(&self) -> TxnId {
        TxnId(self.state.lock().next)
    }

    /// Number of active transactions.
    pub(crate) fn active(&self) -> usize {
        self.state.lock().active.len()
    }

    /// The other active transactions that `is_one` is true of in their sections.
    pub(crate) fn others(&self, than: TxnId, is_one: impl Fn(&TxnState) -> bool) -> Option<TxnId> {
        let entries: Vec<_> = self.state.lock().active.values().cloned().collect();
        entries.iter().find(|entry| entry.id != than && is_one(&entry.lock())).map(|entry| entry.id)
    }

    /// The checkpoint's transaction table: every transaction that has records and has not ended. BEGIN is reserved.
    pub(crate) fn images(&self) -> Vec<TxnImage> {
        let entries: Vec<_> = self.state.lock().active.values().cloned().collect();
        entries.iter().filter_map(|entry| entry.image()).collect()
    }

    /// Number of live views, and when the oldest was taken.
    pub(crate) fn live_views(&self) -> (usize, Option<Duration>) {
        let state = self.state.lock();
        (state.ages.values().sum(), state.ages.keys().next().copied())
    }

    fn publish(&self, state: &State) {
        let next = TxnId(state.next);
        let oldest = [state.active.keys().next(), state.hidden_ids.first(), state.xmins.keys().next()];
        let oldest = oldest.into_iter().flatten().min().copied().unwrap_or(next);
        let before = self.horizon.swap(oldest.0, Ordering::AcqRel);
        debug_assert!(oldest.0 >= before, "the horizon never falls (I4)");
    }
}

impl State {
    /// What a transaction that begins, or moves its view, now sees: every commit so far.
    fn view_of_all(&self, own: TxnId) -> View {
        let xmax = TxnId(self.next);
        let mut invisible: Vec<TxnId> = self.active.keys().filter(|id| **id != own).copied().collect();
        if is_planted(PlantedBug::EarlySnapshot) {
            invisible.extend(&self.hidden_ids);
            invisible.sort_unstable();
        }
        let xmin = invisible.first().copied().unwrap_or(xmax).min(own);
        View { as_of: self.newest, xmin, xmax, invisible: invisible.into(), own }
    }

    fn enlist(&mut self, view: View, validates: bool, now: Duration) -> LiveView {
        *self.xmins.entry(view.xmin).or_default() += 1;
        *self.views.entry(view.as_of).or_default() += 1;
        *self.ages.entry(now).or_default() += 1;
        if validates {
            *self.validating.entry(view.as_of).or_default() += 1;
        }
        LiveView { view, validates, taken_at: now }
    }

    fn dismiss(&mut self, live: &LiveView) {
        one_less(&mut self.xmins, live.view.xmin);
        one_less(&mut self.views, live.view.as_of);
        one_less(&mut self.ages, live.taken_at);
        if live.validates {
            one_less(&mut self.validating, live.view.as_of);
            self.history.prune(self.validating.keys().next().copied().unwrap_or(self.newest));
        }
    }

    fn expose(&mut self, durable: Lsn) {
        while let Some(first) = self.hidden.front().copied()
            && first.lsn < durable
        {
            self.expose_first(first);
        }
    }

    fn expose_through(&mut self, lsn: Lsn) {
        while let Some(first) = self.hidden.front().copied()
            && first.lsn <= lsn
        {
            self.expose_first(first);
        }
    }

    fn expose_first(&mut self, first: Hidden) {
        self.hidden.pop_front();
        self.hidden_ids.remove(&first.txn);
        self.exposed = first.lsn;
    }
}

fn one_less<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) {
    if let std::collections::btree_map::Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}
