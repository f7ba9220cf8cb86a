//! Waiting for the transaction that holds a row lock: queues, deadlocks, timeouts.
//!
//! Owns who waits for whom and who is next. Knows no lock: a transaction that met one names the holder, waits here until it may be
//! free, and looks again. A woken waiter has the *turn* for its key; those of the same key queue behind it, as they would behind the
//! lock, until it ends or gives the turn up. So each end wakes one transaction per key, not all.
//!
//! I1. A transaction waits for at most one other: an edge of the waits-for graph. An edge and its entry in `queues` come and go
//!     together.
//! I2. While there is an edge to a transaction, its [`Waits::ended`] has yet to enter the mutex, and will take the edge away.
//! I3. Whenever the mutex is free the graph has no cycle. Edges appear in three places: [`Graph::block`] may close a cycle, and who
//!     calls it looks; [`Graph::wake_first`] and [`Graph::fail`] cannot, and say why. So each waiter's path ends at a transaction
//!     that runs, whose end or next wait moves it on: nobody waits for ever.
//! I4. How a wait went is decided once, under the mutex, by whoever decides it, and stays in the node until the waiter has seen it.
//!     Whatever wakes a waiter early or late changes nothing.
//! I5. Those who wait for one key behind one transaction get their turn in order of arrival; who comes back for the key it has the
//!     turn for arrived when it first came.
//!
//! Order: this mutex, then the active table's (inside `is_active`). Nothing else is held by a caller, no latch either.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hamal_storage::Storage;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::ids::TxnId;

/// What is waited for: a hash of table and key. A collision costs a needless wait, nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LockKey(pub(crate) u64);

/// A transaction that wants to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiter {
    pub(crate) id: TxnId,
    /// Larger is younger. A transaction that is tried again keeps the age of its first attempt, and so wins in the end.
    pub(crate) age: u64,
}

/// How a wait went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Waited {
    /// The lock may be free: look again, and then take it, wait again, or call [`Waits::gave_up`].
    Again,
    /// This transaction was chosen to break a deadlock.
    Deadlock,
    /// The time is over.
    TimedOut,
    /// [`Waits::cancel`] came.
    Cancelled,
}

/// Counted since the database was opened, `waiting` aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WaitStats {
    /// Waits begun.
    pub(crate) waits: u64,
    /// Waits that failed to break a deadlock.
    pub(crate) deadlocks: u64,
    /// Waits that took too long; those that were not to take any time included.
    pub(crate) timeouts: u64,
    /// Transactions that wait now.
    pub(crate) waiting: u64,
    /// Time spent waiting, by all transactions together.
    pub(crate) waited_ns: u64,
}

/// All waiting of one database.
#[derive(Debug)]
pub(crate) struct Waits {
    storage: Arc<dyn Storage>,
    graph: Mutex<Graph>,
    /// Number of nodes; changed under the mutex.
    present: AtomicU64,
    /// Number of edges; changed under the mutex.
    waiting: AtomicU64,
    begun: AtomicU64,
    deadlocks: AtomicU64,
    timeouts: AtomicU64,
    waited_ns: AtomicU64,
}

impl Waits {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Self {
        Waits {
            storage,
            graph: Mutex::default(),
            present: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            deadlocks: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
            waited_ns: AtomicU64::new(0),
        }
    }

    /// Waits until `holder` has ended or it is this transaction's turn for the key. A timeout of zero never waits.
    ///
    /// `is_active` asks the active table, and takes its mutex. It is asked about the holder once, before the wait; if it says no, the
    /// answer is [`Waited::Again`] at once. A caller that may be cancelled lets it say no after that too: see [`Waits::cancel`].
    pub(crate) fn wait(
        &self,
        waiter: Waiter,
        holder: TxnId,
        key: LockKey,
        timeout: Duration,
        is_active: &dyn Fn(TxnId) -> bool,
    ) -> Waited {
        if timeout.is_zero() {
            return self.refuse(waiter.id, holder, key, is_active);
        }
        let start = self.storage.monotonic();
        let mut graph = self.graph.lock();
        let wake = graph.arrive(waiter, key);
        self.publish(&graph);
        // After `publish`, so that a holder that is active now will not overlook the node: see `ended`.
        if !is_active(holder) {
            return Waited::Again;
        }
        graph.block(waiter.id, holder);
        if let Some(victim) = graph.victim(waiter.id) {
            graph.fail(victim, Waited::Deadlock);
            self.deadlocks.fetch_add(1, Ordering::Relaxed);
        }
        self.publish(&graph);
        self.begun.fetch_add(1, Ordering::Relaxed);

        let waited = self.sleep(&mut graph, waiter.id, &wake, start.checked_add(timeout));
        if waited != Waited::Again {
            graph.nodes.remove(&waiter.id);
        }
        self.publish(&graph);
        drop(graph);
        let spent = self.storage.monotonic().saturating_sub(start);
        self.waited_ns.fetch_add(u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if waited == Waited::Deadlock {
            tracing::info!(txn = waiter.id.0, age = waiter.age, holder = holder.0, "deadlock broken");
        }
        tracing::debug!(txn = waiter.id.0, holder = holder.0, outcome = ?waited, ?spent, "lock wait");
        waited
    }

    /// `txn` has left the active table: wakes whose turn it is. The caller holds nothing.
    ///
    /// Most transactions end while nobody waits: that costs one load. No wake-up is lost by it. A waiter publishes its node (A), then
    /// enters the active table's mutex and finds `txn` there (B); if it does not, it does not wait. `txn` enters that mutex to leave
    /// (C), then loads (D). B found what C took away, so A happens before B, B before C, C before D: D reads what A stored or what
    /// was stored later, which counts the node for as long as it is there. A turn's node is there since a wait of `txn` itself.
    pub(crate) fn ended(&self, txn: TxnId) {
        // Relaxed: it is the active table's mutex that orders this load after the store.
        if self.present.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut graph = self.graph.lock();
        let turn = graph.nodes.remove(&txn);
        debug_assert!(turn.is_none_or(|node| node.holder().is_none()), "it ends while it waits");
        while let Some(key) = graph.next_key(txn) {
            graph.wake_first(txn, key);
        }
        self.publish(&graph);
    }

    /// `txn`, which does not wait now, will not take the lock it had the turn for, or holds it no more: passes the turn on. Needed
    /// after [`Waited::Again`] if the key is neither taken nor waited for again; does no harm if it was not needed.
    ///
    /// For a lock that is given back before the end, as by a rollback to a savepoint, this wakes those who wait, but not one who has
    /// seen the lock and does not wait yet: that one waits until `txn` ends.
    pub(crate) fn gave_up(&self, txn: TxnId, key: LockKey) {
        // Relaxed: whoever queues behind a turn began to before `txn` saw that it has it.
        if self.present.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut graph = self.graph.lock();
        if graph.nodes.get(&txn).is_some_and(|node| node.key == key && node.holder().is_none()) {
            graph.nodes.remove(&txn);
        }
        graph.wake_first(txn, key);
        self.publish(&graph);
    }

    /// Ends the wait of `txn`, if it waits now, with [`Waited::Cancelled`].
    ///
    /// Always takes the mutex. So if the caller first sets a flag, and the waiter's `is_active` says no once the flag is set, then
    /// either `is_active` sees the flag or this sees the wait.
    pub(crate) fn cancel(&self, txn: TxnId) {
        let mut graph = self.graph.lock();
        graph.fail(txn, Waited::Cancelled);
        self.publish(&graph);
    }

    /// The counters now; each is exact, together they are no snapshot.
    pub(crate) fn stats(&self) -> WaitStats {
        WaitStats {
            waits: self.begun.load(Ordering::Relaxed),
            deadlocks: self.deadlocks.load(Ordering::Relaxed),
            timeouts: self.timeouts.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            waited_ns: self.waited_ns.load(Ordering::Relaxed),
        }
    }

    /// A wait that is not to take any time. If `txn` has the turn, others may be behind it: they are not moved behind the holder,
    /// which could close a cycle (the holder may wait for one of them); the first of them tries, and finds that out.
    #[cold]
    fn refuse(&self, txn: TxnId, holder: TxnId, key: LockKey, is_active: &dyn Fn(TxnId) -> bool) -> Waited {
        if !is_active(holder) {
            return Waited::Again;
        }
        self.gave_up(txn, key);
        self.timeouts.fetch_add(1, Ordering::Relaxed);
        Waited::TimedOut
    }

    /// Sleeps until it is decided how the wait of `txn` went.
    fn sleep(
        &self,
        graph: &mut MutexGuard<'_, Graph>,
        txn: TxnId,
        wake: &Condvar,
        deadline: Option<Duration>,
    ) -> Waited {
        loop {
            // Before the clock: a turn that came together with the deadline is taken, not lost.
            if let Some(waited) = graph.decided(txn) {
                return waited;
            }
            let remaining = deadline.map_or(Duration::MAX, |d| d.saturating_sub(self.storage.monotonic()));
            if remaining.is_zero() {
                self.timeouts.fetch_add(1, Ordering::Relaxed);
                graph.fail(txn, Waited::TimedOut);
            } else if let Some(scheduler) = self.storage.scheduler() {
                MutexGuard::unlocked(graph, || scheduler.wait("lock wait"));
            } else {
                wake.wait_for(graph, remaining);
            }
        }
    }

    /// Shows the graph's size to those who look without the mutex.
    fn publish(&self, graph: &Graph) {
        // Relaxed: pairs with the load in `ended`, by way of the active table's mutex.
        self.present.store(graph.nodes.len() as u64, Ordering::Relaxed);
        self.waiting.store(graph.queues.len() as u64, Ordering::Relaxed);
    }
}

/// Where a transaction stands.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// It waits for this one: an edge.
    Waits(TxnId),
    /// Its wait is decided. `Again` is a turn, which stays until it ends, waits anew, or gives up.
    Over(Waited),
}

/// A transaction that waits, or whose last wait gave it the turn.
#[derive(Debug)]
struct Node {
    id: TxnId,
    age: u64,
    key: LockKey,
    arrival: u64,
    step: Step,
    wake: Arc<Condvar>,
}

impl Node {
    /// Whom it waits for.
    fn holder(&self) -> Option<TxnId> {
        match self.step {
            Step::Waits(holder) => Some(holder),
            Step::Over(_) => None,
        }
    }

    /// Decides its wait.
    fn finish(&mut self, waited: Waited) {
        self.step = Step::Over(waited);
        self.wake.notify_one();
    }
}

/// Who waits for whom.
#[derive(Debug, Default)]
struct Graph {
    /// Never iterated: a simulation replays.
    nodes: HashMap<TxnId, Node>,
    /// Holder, key, arrival of each waiter: the queues of all holders, a holder's by key, a key's in order of arrival. Handing a key
    /// over moves each that waits for it, under the mutex.
    queues: BTreeMap<(TxnId, LockKey, u64), TxnId>,
    arrivals: u64,
}

impl Graph {
    /// Makes the node of a transaction about to wait; returns what it sleeps on.
    fn arrive(&mut self, waiter: Waiter, key: LockKey) -> Arc<Condvar> {
        let before = self.nodes.remove(&waiter.id);
        debug_assert!(before.as_ref().is_none_or(|node| node.holder().is_none()), "I1: it waits already");
        let arrival = before.filter(|node| node.key == key).map_or_else(
            || {
                self.arrivals += 1;
                self.arrivals
            },
            |node| node.arrival,
        );
        let wake = Arc::new(Condvar::new());
        let node = Node {
            id: waiter.id,
            age: waiter.age,
            key,
            arrival,
            step: Step::Over(Waited::Again),
            wake: wake.clone(),
        };
        self.nodes.insert(waiter.id, node);
        wake
    }

    /// Draws the edge from `txn` to `holder` and puts it into the queue. May close a cycle if others are behind `txn`.
    fn block(&mut self, txn: TxnId, holder: TxnId) {
        if let Some(node) = self.nodes.get_mut(&txn) {
            node.step = Step::Waits(holder);
            self.queues.insert((holder, node.key, node.arrival), txn);
        }
    }

    /// How the wait of `txn` went, if that is decided.
    fn decided(&self, txn: TxnId) -> Option<Waited> {
        match self.nodes.get(&txn).map(|node| node.step) {
            Some(Step::Waits(_)) => None,
            Some(Step::Over(waited)) => Some(waited),
            None => Some(Waited::Again),
        }
    }

    /// The transactions from `txn` along the edges.
    fn path(&self, txn: TxnId) -> impl Iterator<Item = TxnId> + '_ {
        iter::successors(Some(txn), |at| self.nodes.get(at)?.holder())
    }

    /// Who must give way, if the edge just drawn from `txn` closed a cycle. There was none before (I3), so one that there is now leads
    /// back to `txn`, and is the only one.
    ///
    /// It is the youngest of those that hold what the one before them in the cycle waits for. One that waits for the same key as the one
    /// before it does not: it is ahead in a queue, and without it the same cycle would close again, one shorter. Around a cycle the key
    /// changes twice or never, so there are two to choose from and the oldest goes on; if never (locks that are shared and then
    /// upgraded, or a collision), all hold.
    fn victim(&self, txn: TxnId) -> Option<TxnId> {
        let holder = self.nodes.get(&txn)?.holder()?;
        if !self.path(holder).any(|at| at == txn) {
            return None;
        }
        let others = self.path(holder).take_while(|at| *at != txn);
        let cycle: Vec<&Node> = iter::once(txn).chain(others).filter_map(|at| self.nodes.get(&at)).collect();
        let before = cycle.iter().cycle().skip(cycle.len() - 1);
        let holding = cycle.iter().zip(before).filter(|(node, before)| node.key != before.key);
        let youth = |node: &&&Node| (node.age, node.id);
        holding.map(|(node, _)| node).max_by_key(youth).or(cycle.iter().max_by_key(youth)).map(|node| node.id)
    }

    /// The lowest key somebody waits for behind `txn`.
    fn next_key(&self, txn: TxnId) -> Option<LockKey> {
        let ((holder, key, _), _) = self.queues.range((txn, LockKey(0), 0)..).next()?;
        (*holder == txn).then_some(*key)
    }

    /// Gives the turn to the first of those behind `txn` for the key; the others are behind that one now.
    ///
    /// Closes no cycle: the new edges all lead to the one woken, which has none.
    fn wake_first(&mut self, txn: TxnId, key: LockKey) {
        let Some((&entry, &first)) = self.queues.range(range(txn, key)).next() else {
            return;
        };
        self.queues.remove(&entry);
        if let Some(node) = self.nodes.get_mut(&first) {
            node.finish(Waited::Again);
        }
        self.move_queue(txn, key, first);
    }

    /// Ends the wait of `txn`, if it waits, without its getting the lock. Those behind it for the key move on to the one it waited for,
    /// which has not ended (I2), or they would wait for a transaction that will never have the lock.
    ///
    /// Closes no cycle: say one has the moved edge F -> holder. Before there was F -> `txn` -> holder in its place, so that was a cycle,
    /// and as there is one only while [`Waits::wait`] breaks it, `txn` is its victim and F the one before it there. As a rule F waits
    /// for another key then, and is not moved: see [`Graph::victim`]. Where it waits for the same, nobody is moved: the first of
    /// them is woken and looks who holds the lock, and if it waits again, that edge is looked at.
    fn fail(&mut self, txn: TxnId, waited: Waited) {
        let Some(node) = self.nodes.get_mut(&txn) else {
            return;
        };
        let Some(holder) = node.holder() else {
            return;
        };
        let key = node.key;
        self.queues.remove(&(holder, key, node.arrival));
        node.finish(waited);
        let mut ahead = self.path(holder).filter_map(|at| self.nodes.get(&at));
        let returns = ahead.any(|node| node.key == key && node.holder() == Some(txn));
        drop(ahead);
        if returns {
            self.wake_first(txn, key);
        } else {
            self.move_queue(txn, key, holder);
        }
    }

    /// Moves those behind `from` for the key behind `to`, each to where its arrival puts it.
    fn move_queue(&mut self, from: TxnId, key: LockKey, to: TxnId) {
        let moved: Vec<_> = self.queues.extract_if(range(from, key), |_, _| true).collect();
        for ((_, key, arrival), txn) in moved {
            debug_assert_ne!(txn, to, "I3: it would wait for itself");
            self.queues.insert((to, key, arrival), txn);
            if let Some(node) = self.nodes.get_mut(&txn) {
                node.step = Step::Waits(to);
            }
        }
    }
}

/// The part of the queues that waits behind `txn` for the key.
fn range(txn: TxnId, key: LockKey) -> std::ops::RangeInclusive<(TxnId, LockKey, u64)> {
    (txn, key, 0)..=(txn, key, u64::MAX)
}
