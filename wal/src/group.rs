//! Group commit by leader: who needs a flush and finds none running leads one, in its own thread, for all who
//! joined meanwhile. Also where those wait who find the ring full, and where a failure is remembered.
//!
//! Who waits for a flush waits on its own, and is told what came of it: a leader that is done hands over to the first whose record it
//! has not made durable, and wakes those whose record it has. Nobody else is disturbed, and nobody queues up for a mutex to learn that
//! it may go. It stays awake for a while before it sleeps (see `waiters_patience`).
//!
//! I1. At most one leader; `leading` changes under the mutex alone, and stays set while leadership is handed over.
//! I2. The durable frontier only grows, and only the leader moves it.
//! I3. No lost wake-up: whoever waits for a flush has joined `waiting` under the mutex while somebody led, and a leader stops leading, or
//!     hands over, and takes from `waiting` all it has to tell, in one step under the mutex. Whoever waits for room has checked its
//!     condition under the mutex, and every change that can make it true is followed by a notification under the mutex. For room
//!     given back without the mutex, the giver's and the waiter's sequentially consistent fences make one of the two see the other.
//! I4. A failed flush is remembered for ever, and nobody leads again (Rebello et al., ATC 2020). A leader that
//!     panics has failed.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use hamal_storage::{Error, Result};

use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Condvar, Mutex, Ordering, Padded, fence, thread, wait};

/// How often to give up the processor at most, in case the clock stands still.
const MOST_YIELDS: usize = 4096;
/// Flushes that take longer are slept through.
const SHORT_FLUSH: Duration = Duration::from_micros(250);

/// See the module's documentation. `SOUND` is false only in the models that show what I3 is for.
#[derive(Debug)]
pub(crate) struct Group<const SOUND: bool = true> {
    durable: Padded<AtomicU64>,
    state: Mutex<State>,
    /// For those who wait for room.
    changed: Condvar,
    asked: Padded<Asked>,
    /// The leader's.
    last_flush_ns: AtomicU64,
}

/// What is asked at every record, away from what every flush changes.
#[derive(Debug)]
struct Asked {
    room_waiters: AtomicU32,
    failed: AtomicBool,
}

#[derive(Debug)]
struct State {
    leading: bool,
    cause: Option<String>,
    /// Those who wait for a flush, in the order they came.
    waiting: Vec<Arc<Waiter>>,
    /// How many led, had waited, or waited on when the last flush ended.
    company: usize,
    /// Most that one flush has served: who led, and who had waited and need not any more.
    largest: usize,
}

/// A thread that waits for the frontier to reach `at_least`. It sleeps on a condition of its own and not by `thread::park`: that would
/// swallow a token that the application has been given for its own waits.
#[derive(Debug)]
struct Waiter {
    at_least: u64,
    told: Mutex<Option<Told>>,
    changed: Condvar,
}

/// What a leader tells those who waited.
#[derive(Clone, Copy, Debug)]
enum Told {
    /// A flush made it durable, or failed.
    Over,
    /// It leads now.
    Lead,
}

impl Waiter {
    fn new(at_least: u64) -> Self {
        Waiter { at_least, told: Mutex::new(None), changed: Condvar::new() }
    }

    fn tell(&self, what: Told) {
        *self.told.lock() = Some(what);
        self.changed.notify_one();
    }

    /// Waits to be told: first it only lets others have the processor, while `patience` lasts, then it sleeps.
    fn listen(&self, mut patience: Patience<'_>) -> Told {
        let mut told = self.told.lock();
        loop {
            if let Some(what) = *told {
                return what;
            }
            if patience.lasts() {
                drop(told);
                thread::yield_now();
                told = self.told.lock();
            } else {
                told = wait(&self.changed, told);
            }
        }
    }
}

/// For how long to give up the processor again and again rather than sleep.
struct Patience<'a> {
    clock: &'a dyn Fn() -> Duration,
    began: Duration,
    bound: Duration,
    yields: usize,
}

impl Patience<'_> {
    fn lasts(&mut self) -> bool {
        self.yields = self.yields.saturating_sub(1);
        self.yields > 0 && (self.clock)().saturating_sub(self.began) < self.bound
    }
}

/// What a wait for room came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RoomWait {
    /// The claim succeeded.
    Claimed,
    /// A flush can make room, and nobody leads one.
    FlushWanted {
        /// Up to here: it had been appended. What the frontier is by now would not do, for that may be the tail.
        at_least: u64,
    },
}

impl<const SOUND: bool> Group<SOUND> {
    /// Nothing running; everything below `durable` is durable.
    pub(crate) fn new(durable: u64) -> Self {
        Group {
            durable: Padded(AtomicU64::new(durable)),
            state: Mutex::new(State {
                leading: false,
                cause: None,
                waiting: Vec::new(),
                company: 0,
                largest: 0,
            }),
            changed: Condvar::new(),
            asked: Padded(Asked { room_waiters: AtomicU32::new(0), failed: AtomicBool::new(false) }),
            last_flush_ns: AtomicU64::new(0),
        }
    }

    /// The durable frontier.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Moves the durable frontier. For the leader, once the bytes are synced.
    pub(crate) fn advance(&self, durable: u64) {
        self.durable.store(durable, Ordering::Release);
    }

    /// Whether a flush has failed; cheap.
    pub(crate) fn check(&self) -> Result<()> {
        if self.asked.failed.load(Ordering::Relaxed) { Err(self.poisoned()) } else { Ok(()) }
    }

    /// How many of those who were here when the last flush ended have not come back for another one. For the leader.
    fn absent(&self) -> usize {
        let state = self.state.lock();
        state.company.saturating_sub(1 + state.waiting.len())
    }

    /// Most threads that one flush has served.
    pub(crate) fn largest(&self) -> usize {
        self.state.lock().largest
    }

    /// The first failure, as text.
    pub(crate) fn cause(&self) -> Option<String> {
        // Relaxed: whoever has heard of the failure has synchronized with who did.
        if self.asked.failed.load(Ordering::Relaxed) { self.state.lock().cause.clone() } else { None }
    }

    /// Returns once the frontier is at `at_least` or beyond. If nobody leads, `flush(at_least)` runs here: it must
    /// make everything up to `at_least`, and may make more, durable, and call [`Group::advance`]. `clock` does not run backwards.
    pub(crate) fn reach(
        &self,
        at_least: u64,
        clock: &dyn Fn() -> Duration,
        flush: impl Fn(u64) -> Result<()>,
    ) -> Result<()> {
        while self.durable() < at_least {
            if self.joins_or_leads(at_least, clock)? {
                let lead = Lead { group: self };
                self.let_others_join(clock);
                let began = clock();
                let result = flush(at_least);
                let took = u64::try_from(clock().saturating_sub(began).as_nanos()).unwrap_or(u64::MAX);
                self.last_flush_ns.store(took, Ordering::Relaxed);
                lead.finish(&result);
                result?;
            }
        }
        Ok(())
    }

    /// Waits for a flush, if somebody leads one. Whether this thread leads now.
    fn joins_or_leads(&self, at_least: u64, clock: &dyn Fn() -> Duration) -> Result<bool> {
        let mut state = self.state.lock();
        if self.durable() >= at_least {
            return Ok(false);
        }
        if let Some(cause) = &state.cause {
            return Err(Error::Poisoned { cause: cause.clone() });
        }
        if !state.leading {
            state.leading = true;
            return Ok(true);
        }
        if !SOUND {
            // The planted bug: between the check and the joining the leader may finish and tell nobody.
            drop(state);
            state = self.state.lock();
        }
        let waiter = Arc::new(Waiter::new(at_least));
        state.waiting.push(Arc::clone(&waiter));
        drop(state);
        Ok(matches!(waiter.listen(self.waiters_patience(clock)), Told::Lead))
    }

    /// Waking a sleeper takes as long as some disks take to sync, and the one who wakes many is late itself. So, where flushes are short, a
    /// waiter stays awake for as long as the one under way, the next one and some work between them may take.
    fn waiters_patience<'a>(&self, clock: &'a dyn Fn() -> Duration) -> Patience<'a> {
        let flush = self.last_flush();
        let bound = if flush <= SHORT_FLUSH { 4 * flush } else { Duration::ZERO };
        Patience { clock, began: clock(), bound, yields: MOST_YIELDS }
    }

    /// Those who shared the last flush are about to commit again, or do not know yet that they may: they get the processor, and so may
    /// share this flush rather than wait for the next. Not for longer than half of what the last flush took: then waiting costs
    /// more than it saves, and who has the processor may be somebody else altogether.
    fn let_others_join(&self, clock: &dyn Fn() -> Duration) {
        let bound = self.last_flush() / 2;
        let mut patience = Patience { clock, began: clock(), bound, yields: MOST_YIELDS };
        while self.absent() > 0 && patience.lasts() {
            thread::yield_now();
        }
    }

    fn last_flush(&self) -> Duration {
        Duration::from_nanos(self.last_flush_ns.load(Ordering::Relaxed))
    }

    /// Waits until `try_claim` succeeds, or until a flush would help and nobody leads one: `flushable` says up to where.
    pub(crate) fn wait_for_room(
        &self,
        try_claim: impl Fn() -> bool,
        flushable: impl Fn() -> Option<u64>,
    ) -> Result<RoomWait> {
        self.asked.room_waiters.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence in `room_given` (I3).
        fence(Ordering::SeqCst);
        let mut state = self.state.lock();
        let room = loop {
            if let Some(cause) = &state.cause {
                break Err(Error::Poisoned { cause: cause.clone() });
            }
            if try_claim() {
                break Ok(RoomWait::Claimed);
            }
            if !state.leading
                && let Some(at_least) = flushable()
            {
                break Ok(RoomWait::FlushWanted { at_least });
            }
            state = wait(&self.changed, state);
        };
        drop(state);
        self.asked.room_waiters.fetch_sub(1, Ordering::Relaxed);
        room
    }

    /// A permit ended: claimed room came back, or there is something to flush now. Call after the change.
    pub(crate) fn room_given(&self) {
        if SOUND {
            // Pairs with the fence in `wait_for_room` (I3).
            fence(Ordering::SeqCst);
        }
        if self.asked.room_waiters.load(Ordering::Relaxed) != 0 {
            let _state = self.state.lock();
            self.changed.notify_all();
        }
    }

    fn poisoned(&self) -> Error {
        Error::Poisoned { cause: self.cause().unwrap_or_default() }
    }

    fn stop_leading(&self, failure: Option<String>) {
        let mut state = self.state.lock();
        state.company = 1 + state.waiting.len();
        let mut over = mem::take(&mut state.waiting);
        if let Some(failure) = failure {
            state.cause.get_or_insert(failure);
            self.asked.failed.store(true, Ordering::Relaxed);
        } else {
            let durable = self.durable();
            state.waiting = over.extract_if(.., |waiter| waiter.at_least > durable).collect();
            state.largest = state.largest.max(1 + over.len());
        }
        let next = (!state.waiting.is_empty()).then(|| state.waiting.remove(0));
        state.leading = next.is_some();
        self.changed.notify_all();
        drop(state);
        // The next one first: the disk is idle.
        if let Some(next) = next {
            next.tell(Told::Lead);
        }
        for waiter in over {
            waiter.tell(Told::Over);
        }
    }
}

/// The leader's duty to stop leading, whatever happens.
struct Lead<'a, const SOUND: bool> {
    group: &'a Group<SOUND>,
}

impl<const SOUND: bool> Lead<'_, SOUND> {
    fn finish(self, result: &Result<()>) {
        self.group.stop_leading(result.as_ref().err().map(ToString::to_string));
        mem::forget(self);
    }
}

impl<const SOUND: bool> Drop for Lead<'_, SOUND> {
    fn drop(&mut self) {
        self.group.stop_leading(Some("a thread panicked while it flushed the log".to_owned()));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn no_time() -> Duration {
        Duration::ZERO
    }

    #[test]
    fn who_joins_during_a_flush_shares_the_next_one() {
        let group = Group::<true>::new(0);
        let (started, arrived, next_flushes) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let flush = |_| {
                    started.store(true, Ordering::Release);
                    while arrived.load(Ordering::Acquire) < 4 {
                        std::thread::yield_now();
                    }
                    group.advance(1);
                    Ok(())
                };
                group.reach(1, &no_time, flush).expect("the first flush");
            });
            for own_end in 2..=5 {
                let (group, started, arrived, next_flushes) = (&group, &started, &arrived, &next_flushes);
                scope.spawn(move || {
                    while !started.load(Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                    arrived.fetch_add(1, Ordering::AcqRel);
                    let flush = |_| {
                        next_flushes.fetch_add(1, Ordering::AcqRel);
                        group.advance(5);
                        Ok(())
                    };
                    group.reach(own_end, &no_time, flush).expect("the second flush");
                });
            }
        });
        assert_eq!((group.durable(), next_flushes.load(Ordering::Acquire)), (5, 1));
    }

    #[test]
    fn a_leader_that_panics_has_failed() {
        let group = Group::<true>::new(0);
        let panicked = catch_unwind(AssertUnwindSafe(|| group.reach(1, &no_time, |_| panic!("planted"))));
        assert!(panicked.is_err());
        let result = group.reach(1, &no_time, |_| unreachable!("nobody leads after a failure"));
        assert!(matches!(result, Err(Error::Poisoned { cause }) if cause.contains("panicked")));
        assert!(group.check().is_err());
        group.reach(0, &no_time, |_| unreachable!("it is durable")).expect("what was durable stays so");
    }
}
