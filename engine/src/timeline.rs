//! Which transactions there are, in which order they commit, and what each view sees.
//!
//! Owns the table of active transactions, the order of commits, who sees what ([`View`]), row counts, and what serializable commits
//! are checked against. All under one mutex, held for short steps that neither wait nor do I/O.
//!
//! I1. A transaction is in the table before its id can be in a page or record, and leaves it in the step that reserves its commit
//!     record, or when its last change is undone. So a stamp in a page is of a transaction in the table, or of a committed one; or of a
//!     loser that is set aside, in a partition whose rows nobody is shown ([`crate::trailing`]).
//! I2. Commit records are reserved under the mutex, after the last check and before the transaction leaves the table: log order is
//!     commit order is the order in which views see them, and every view sees a prefix of it (hazard H8).
//! I3. A read-only view sees the longest prefix that no crash can take back, or that somebody was told of: all commits that are durable,
//!     and all up to the newest one acknowledged with a weaker promise (hazard H10).
//! I4. `horizon` is at or below every id that some view, live or taken from now on, does not see (hazard H6). It never falls.
//! I5. The history has every commit above the view of every serializable transaction that is active, or says what it forgot.
//! I6. While it is closed, by a verification, no transaction is active.
//!
//! What a step leaves to be dropped is declared before the guard, and so dropped when the mutex has been let go of. A view is filled
//! in place: a value that is moved is read back in larger pieces than it was written in, and that waits until all that was stored before has
//! reached memory, much of which is in another processor's cache.
//!
//! Lock order: page latches, then this, then a transaction's section.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::utils::CachePadded;
use hamal_wal::Lsn;
use smallvec::SmallVec;

use crate::active::{TxnEntry, TxnState};
use crate::counts::RowCounts;
use crate::ids::TxnId;
use crate::planted::{PlantedBug, is_planted};
use crate::record::TxnImage;
use crate::shard;
use crate::validation::{Garbage, History};
use crate::view::View;
use crate::views::{ViewKind, Views};
use crate::{Error, Result};

/// Most memory that the history of commits takes, bytes.
const HISTORY_BYTES: usize = 16 << 20;

/// So many commits may stay in the history though nobody asks for them any more.
const UNPRUNED: usize = 8;

/// What a new transaction is to be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Birth {
    /// The age of its first attempt.
    pub(crate) age: Option<u64>,
    /// Its commit will be checked against the history.
    pub(crate) validates: bool,
    /// Its id will be one that goes with this shard: what is kept by writer is then kept by thread.
    pub(crate) shard: u64,
}

/// A view that the timeline knows of, and must be told of when it goes.
#[derive(Debug)]
pub(crate) struct LiveView {
    pub(crate) view: View,
    kind: ViewKind,
    number: u64,
    /// Commits there had been.
    commits: u64,
    /// Others were active that will validate: they, or others, are likely to be when it goes.
    pub(crate) in_company: bool,
}

impl LiveView {
    /// Of a view that is still to be taken.
    fn new(kind: ViewKind) -> LiveView {
        LiveView { view: View::default(), kind, number: 0, commits: 0, in_company: false }
    }
}

/// What a commit changes besides rows.
pub(crate) struct Committing<'c> {
    /// Rows added less rows removed, by table.
    pub(crate) counts: &'c [(u32, i64)],
    /// Leaves what it wrote in the history; called if there is somebody to whom that matters.
    pub(crate) publish: &'c mut dyn FnMut(&mut History, Lsn),
    /// It is acknowledged at once: readers may see it, and all before it.
    pub(crate) exposed: bool,
}

/// A transaction has committed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    pub(crate) lsn: Lsn,
    /// Commits since its view was taken, itself included.
    pub(crate) since_view: u64,
    /// [`Hints::horizon`], as of this step.
    pub(crate) horizon: TxnId,
}

/// A commit that readers must not see yet.
#[derive(Clone, Copy, Debug)]
struct Hidden {
    lsn: Lsn,
    txn: TxnId,
    /// The oldest transaction that was active beside it, or itself: no hidden commit from this one on is of an older one.
    floor: TxnId,
}

/// In the order in which it is used: what every transaction changes is in as few cache lines as it fits, for these have to be fetched from
/// another processor's cache each time.
#[derive(Debug)]
#[repr(C)]
struct State {
    /// As it was published last: who compares it need not fetch what it was published in.
    horizon: TxnId,
    next: u64,
    /// The newest commit of all.
    newest: Lsn,
    /// The newest commit that readers may see.
    exposed: Lsn,
    commits: u64,
    history: History,
    /// By id, which is here so that who looks for one need not look at what others write; in place while they are few, as [`Views`].
    active: SmallVec<[(TxnId, Arc<TxnEntry>); 2]>,
    views: Views,
    /// Transactions of before the open that are still to be rolled back, where nobody meets what they have done.
    aside: Vec<Arc<TxnEntry>>,
    /// Threads that wait to begin, or to close.
    waiting: usize,
    /// No transaction may begin.
    closed: bool,
    /// Committed, not exposed, in order of commit.
    hidden: VecDeque<Hidden>,
    counts: RowCounts,
}

type Guard<'t> = MutexGuard<'t, State>;

/// The timeline of one database.
#[derive(Debug)]
pub(crate) struct Timeline {
    /// Its word is in the cache line of what every step asks for first.
    state: CachePadded<Mutex<State>>,
    hints: Arc<Hints>,
    /// Those wait here who wait to begin, or to close.
    changed: Condvar,
}

/// What is told without the mutex, and written under it: true a moment ago. In a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Hints {
    /// See I4.
    horizon: AtomicU64,
}

impl Hints {
    /// Every transaction below this id is settled: no snapshot, no undo needs what it overwrote (hazard H6).
    pub(crate) fn horizon(&self) -> TxnId {
        TxnId(self.horizon.load(Ordering::Acquire))
    }
}

/// No transaction begins while there is one.
#[derive(Debug)]
pub(crate) struct Closed<'t>(&'t Timeline);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = false;
        self.0.changed.notify_all();
    }
}

impl Timeline {
    /// No transactions yet; the first will be `next` (hazard H19: ids never restart).
    pub(crate) fn new(next: TxnId, counts: BTreeMap<u32, u64>, hints: Arc<Hints>) -> Self {
        hints.horizon.store(next.0, Ordering::Release);
        let state = State {
            horizon: next,
            next: next.0,
            active: SmallVec::new(),
            aside: Vec::new(),
            hidden: VecDeque::new(),
            exposed: Lsn::NEVER,
            newest: Lsn::NEVER,
            views: Views::default(),
            counts: RowCounts::new(counts),
            history: History::new(HISTORY_BYTES),
            commits: 0,
            closed: false,
            waiting: 0,
        };
        Timeline { state: CachePadded::new(Mutex::new(state)), hints, changed: Condvar::new() }
    }

    /// The mutex, which is rarely held for long. The standard library's: where that is made of a futex, who finds it taken looks again for about
    /// as long as most steps take before it lets others have the processor, and who takes it asks for its cache line once, to write.
    fn lock(&self) -> Guard<'_> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a new transaction; it sees every commit so far. `None` while the timeline is closed, if it stays so for `patience`.
    pub(crate) fn begin(
        &self,
        birth: Birth,
        now: Duration,
        patience: Duration,
    ) -> Option<(Arc<TxnEntry>, LiveView)> {
        // Made here, for it takes a while.
        let mut entry = Arc::new(TxnEntry::new(birth.age));
        let mut live =
            LiveView::new(if birth.validates { ViewKind::Validated } else { ViewKind::Unvalidated });
        let mut state = self.lock();
        if state.closed {
            state = self.wait_while(state, patience, |state| state.closed)?;
        }
        // The next id of the shard.
        let id = TxnId(state.next + (birth.shard + shard::COUNT - state.next % shard::COUNT) % shard::COUNT);
        state.next = id.0 + 1;
        if let Some(entry) = Arc::get_mut(&mut entry) {
            entry.set_id(id);
        }
        live.view.own = id;
        state.show_all(&mut live.view);
        state.active.push((id, entry.clone()));
        state.enlist(&mut live, now);
        self.publish(&mut state);
        drop(state);
        Some((entry, live))
    }

    /// Lets no transaction begin, once there is none. `None` if there is one all of the time that the `patience` lasts.
    pub(crate) fn close(&self, patience: Duration) -> Option<Closed<'_>> {
        let mut state = self.lock();
        let is_busy = |state: &State| state.closed || !state.active.is_empty() || !state.aside.is_empty();
        if is_busy(&state) {
            state = self.wait_while(state, patience, is_busy)?;
        }
        state.closed = true;
        Some(Closed(self))
    }

    /// Waits until the condition no longer holds; `None` if that did not happen in time.
    #[cold]
    fn wait_while<'t>(
        &self,
        mut state: Guard<'t>,
        patience: Duration,
        condition: impl Fn(&State) -> bool,
    ) -> Option<Guard<'t>> {
        state.waiting += 1;
        let waited = self.changed.wait_timeout_while(state, patience, |state| condition(state));
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        (!condition(&state)).then_some(state)
    }

    /// Registers a transaction that reads nothing.
    #[cfg(test)]
    pub(crate) fn begin_unseeing(&self) -> Arc<TxnEntry> {
        let (entry, live) = self.begin(Birth::default(), Duration::ZERO, Duration::ZERO).unwrap();
        self.release(&live);
        entry
    }

    /// Puts a loser found by analysis back. Only before the first transaction begins.
    pub(crate) fn restore(&self, image: &TxnImage) -> Arc<TxnEntry> {
        let entry = Arc::new(TxnEntry::restored(image));
        let mut state = self.lock();
        let at = state.active.partition_point(|(id, _)| *id < image.txn);
        state.active.insert(at, (image.txn, entry.clone()));
        // The only time that it falls: nobody has asked for it yet.
        state.horizon = state.horizon.min(image.txn);
        self.hints.horizon.store(state.horizon.0, Ordering::Release);
        entry
    }

    /// Sets a loser that was put back aside: it is to be rolled back, but nobody meets its rows before. So no view need leave it out, and
    /// it holds no horizon back.
    pub(crate) fn set_aside(&self, entry: &Arc<TxnEntry>) {
        let mut state = self.lock();
        state.forget(entry.id);
        state.aside.push(entry.clone());
        self.publish(&mut state);
    }

    /// A read-only view, as of the newest commit that no crash takes back. The log is durable to `durable`.
    pub(crate) fn view(&self, durable: Lsn, now: Duration) -> LiveView {
        let mut live = LiveView::new(ViewKind::ReadOnly);
        let view = &mut live.view;
        let mut state = self.lock();
        state.expose(durable);
        view.invisible.extend(state.active.iter().map(|(id, _)| *id));
        if !state.hidden.is_empty() {
            view.invisible.extend(state.hidden.iter().map(|hidden| hidden.txn));
            view.invisible.sort_unstable();
        }
        view.as_of = state.exposed;
        view.xmax = TxnId(state.next);
        view.xmin = view.invisible.first().copied().unwrap_or(view.xmax);
        state.enlist(&mut live, now);
        self.publish(&mut state);
        drop(state);
        live
    }

    /// Moves a transaction's view forward to now, if `check`, which is shown the history, finds that nothing it read has changed.
    pub(crate) fn advance(
        &self,
        live: &mut LiveView,
        now: Duration,
        check: impl FnOnce(&History) -> Result<()>,
    ) -> Result<()> {
        let mut pruned = Garbage::default();
        let mut state = self.lock();
        check(&state.history)?;
        state.dismiss(live, &mut pruned);
        state.show_all(&mut live.view);
        state.enlist(live, now);
        self.publish(&mut state);
        Ok(())
    }

    /// A view is no longer used.
    pub(crate) fn release(&self, live: &LiveView) {
        let mut pruned = Garbage::default();
        let mut state = self.lock();
        state.dismiss(live, &mut pruned);
        self.publish(&mut state);
    }

    /// Whether a transaction may still change something.
    pub(crate) fn is_active(&self, id: TxnId) -> bool {
        self.lock().position(id).is_ok()
    }

    /// The commit section. `check` is shown the history, and told whether others are active that will validate; then `reserve` reserves the commit record in the transaction's own section; then
    /// everybody sees it. If one of them fails nothing has happened.
    pub(crate) fn commit<E: From<Error>>(
        &self,
        entry: &TxnEntry,
        live: &LiveView,
        check: impl FnOnce(&History, bool) -> std::result::Result<(), E>,
        reserve: impl FnOnce() -> Result<Lsn>,
        what: &mut Committing<'_>,
    ) -> std::result::Result<Committed, E> {
        let mut pruned = Garbage::default();
        let _left;
        let mut state = self.lock();
        let state = &mut *state;
        let others = state.views.validated() > usize::from(live.kind == ViewKind::Validated);
        check(&state.history, others)?;
        let lsn = {
            let mut section = entry.lock();
            let lsn = reserve()?;
            section.ended = true;
            lsn
        };
        let floor = state.active.first().map_or(entry.id, |(oldest, _)| *oldest);
        _left = state.forget(entry.id);
        state.dismiss(live, &mut pruned);
        state.newest = lsn;
        if what.exposed {
            if !state.hidden.is_empty() {
                state.hidden.clear();
            }
            state.exposed = lsn;
        } else {
            state.hidden.push_back(Hidden { lsn, txn: entry.id, floor });
        }
        for (table, delta) in what.counts {
            state.counts.add(*table, *delta, lsn, &state.views, state.exposed);
        }
        if others {
            (what.publish)(&mut state.history, lsn);
        }
        state.commits += 1;
        let since_view = state.commits - live.commits;
        self.publish(state);
        Ok(Committed { lsn, since_view, horizon: state.horizon })
    }

    /// A transaction is over without a commit: it changed nothing, or all is undone. Returns the commits since its view was taken.
    pub(crate) fn end(&self, entry: &TxnEntry, live: Option<&LiveView>) -> u64 {
        let mut pruned = Garbage::default();
        let _left;
        let mut state = self.lock();
        _left = state.forget(entry.id);
        if let Some(live) = live {
            state.dismiss(live, &mut pruned);
        }
        self.publish(&mut state);
        live.map_or(0, |live| state.commits - live.commits)
    }

    /// The log is durable to `durable`: readers may see more.
    pub(crate) fn expose(&self, durable: Lsn) {
        let mut state = self.lock();
        state.expose(durable);
        self.publish(&mut state);
    }

    /// Somebody was told of what the commit at `lsn` left: readers may see it, and all before it.
    pub(crate) fn acknowledge(&self, lsn: Lsn) {
        let mut state = self.lock();
        state.expose_through(lsn);
        self.publish(&mut state);
    }

    /// Puts commits, given in their order, into groups: no view stands, or can be taken, between those of a group. Leaves out those
    /// behind which a view can still be taken.
    pub(crate) fn indistinguishable(&self, commits: &[(Lsn, TxnId)]) -> Vec<Vec<TxnId>> {
        let state = self.lock();
        let mut groups: Vec<Vec<TxnId>> = Vec::new();
        let mut last = None;
        for &(lsn, id) in commits.iter().take_while(|(lsn, _)| *lsn <= state.exposed) {
            match (groups.last_mut(), last) {
                (Some(group), Some(last)) if !state.views.stand_in(&(last..lsn)) => group.push(id),
                _ => groups.push(vec![id]),
            }
            last = Some(lsn);
        }
        groups
    }

    /// Shows the history to `look`.
    pub(crate) fn with_history<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.lock().history)
    }

    /// Committed rows of a table, as of a view's commit.
    pub(crate) fn rows_as_of(&self, table: u32, lsn: Lsn) -> u64 {
        self.lock().counts.as_of(table, lsn)
    }

    /// Committed rows of a table, as of its newest commit.
    pub(crate) fn newest_rows(&self, table: u32) -> u64 {
        self.rows_as_of(table, Lsn(u64::MAX))
    }

    /// The row counts of all tables, and what `tail` says while they are.
    pub(crate) fn newest_counts(&self, tail: impl FnOnce() -> Lsn) -> (Vec<(u32, u64)>, Lsn) {
        let state = self.lock();
        (state.counts.newest(), tail())
    }

    /// A table is gone for good.
    pub(crate) fn forget_table(&self, table: u32) {
        self.lock().counts.forget(table);
    }

    /// Only these tables are still there.
    pub(crate) fn keep_tables(&self, is_there: impl Fn(u32) -> bool) {
        self.lock().counts.keep(is_there);
    }

    /// The id the next transaction will get.
    pub(crate) fn next_id(&self) -> TxnId {
        TxnId(self.lock().next)
    }

    /// Commits since the database was opened.
    pub(crate) fn commits(&self) -> u64 {
        self.lock().commits
    }

    /// Number of active transactions, and of those set aside.
    pub(crate) fn active(&self) -> usize {
        let state = self.lock();
        state.active.len() + state.aside.len()
    }

    /// The other transactions, active or set aside, that `is_one` is true of in their sections.
    pub(crate) fn others(&self, than: TxnId, is_one: impl Fn(&TxnState) -> bool) -> Option<TxnId> {
        let entries: Vec<_> = self.lock().entries().collect();
        entries.iter().find(|entry| entry.id != than && is_one(&entry.lock())).map(|entry| entry.id)
    }

    /// The checkpoint's transaction table: every transaction that has records and has not ended. BEGIN is reserved.
    pub(crate) fn images(&self) -> Vec<TxnImage> {
        let entries: Vec<_> = self.lock().entries().collect();
        entries.iter().filter_map(|entry| entry.image()).collect()
    }

    /// Number of live views, and when the oldest was taken.
    pub(crate) fn live_views(&self) -> (usize, Option<Duration>) {
        let state = self.lock();
        (state.views.len(), state.views.oldest())
    }

    /// Tells those who ask without the mutex how things stand, and wakes who waits for that.
    fn publish(&self, state: &mut State) {
        let horizon = state.oldest_of_all();
        debug_assert!(horizon >= state.horizon, "the horizon never falls (I4)");
        // What has not changed is not written: others have it in their caches.
        if horizon != state.horizon {
            state.horizon = horizon;
            self.hints.horizon.store(horizon.0, Ordering::Release);
        }
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }
}

impl State {
    /// The oldest id that somebody may not see (I4).
    fn oldest_of_all(&self) -> TxnId {
        // Compared one by one. Gathered first, they would be written to the stack in halves and read back whole, which waits for all that
        // was stored before, and much of that goes to memory that another processor has.
        let mut oldest = self.views.xmin().unwrap_or(TxnId(self.next));
        if let Some((active, _)) = self.active.first() {
            oldest = oldest.min(*active);
        }
        if let Some(hidden) = self.hidden.front() {
            oldest = oldest.min(hidden.floor);
        }
        oldest
    }

    /// Where an active transaction is.
    fn position(&self, id: TxnId) -> std::result::Result<usize, usize> {
        self.active.binary_search_by_key(&id, |(id, _)| *id)
    }

    fn entries(&self) -> impl Iterator<Item = Arc<TxnEntry>> {
        self.active.iter().map(|(_, entry)| entry).chain(&self.aside).cloned()
    }

    /// A transaction is active no more; returns what told of it.
    fn forget(&mut self, id: TxnId) -> Option<Arc<TxnEntry>> {
        if let Ok(at) = self.position(id) {
            return Some(self.active.remove(at).1);
        }
        let at = self.aside.iter().position(|entry| entry.id == id)?;
        Some(self.aside.remove(at))
    }

    /// Makes a transaction's view one of every commit so far.
    fn show_all(&self, view: &mut View) {
        view.as_of = self.newest;
        view.xmax = TxnId(self.next);
        view.invisible.clear();
        view.invisible.extend(self.active.iter().map(|(id, _)| *id).filter(|id| *id != view.own));
        if is_planted(PlantedBug::EarlySnapshot) {
            view.invisible.extend(self.hidden.iter().map(|hidden| hidden.txn));
            view.invisible.sort_unstable();
        }
        view.xmin = view.invisible.first().copied().unwrap_or(view.xmax).min(view.own);
    }

    /// A view that has been taken is in use.
    fn enlist(&mut self, live: &mut LiveView, now: Duration) {
        live.in_company = self.views.validated() > 0;
        live.number = self.views.add(live.kind, &live.view, now);
        live.commits = self.commits;
    }

    /// A view is no longer used; adds to `garbage` what nobody will ask the history for any more.
    fn dismiss(&mut self, live: &LiveView, garbage: &mut Garbage) {
        self.views.remove(live.kind, live.number);
        match live.kind {
            ViewKind::Validated => {
                let oldest = self.views.oldest_validated();
                // Some are left for later, if there will be a later: to look at one is to fetch what another thread has written.
                if oldest.is_none() || self.history.len() > UNPRUNED {
                    self.history.prune(oldest.unwrap_or(self.newest), garbage);
                }
            }
            ViewKind::Unvalidated | ViewKind::ReadOnly => {}
        }
    }

    fn expose(&mut self, durable: Lsn) {
        self.expose_while(|lsn| lsn < durable);
    }

    fn expose_through(&mut self, last: Lsn) {
        self.expose_while(|lsn| lsn <= last);
    }

    fn expose_while(&mut self, is_due: impl Fn(Lsn) -> bool) {
        while let Some(first) = self.hidden.pop_front_if(|first| is_due(first.lsn)) {
            self.exposed = first.lsn;
        }
    }
}
