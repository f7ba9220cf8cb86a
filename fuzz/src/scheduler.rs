//! Threads that take turns: a scheduler whose choices come from a seed, so that an interleaving is a function of it.
//!
//! Threads of a run are the operating system's, but only the one that has the *turn* runs. It gives the turn away where the engine, or
//! the workload, pauses: that is where the seed chooses who goes on. A thread that waits for another does so by pausing until what
//! it waits for has come.
//!
//! I1. At most one thread of a run is between two pauses. What it does there depends on nothing but what the threads did before.
//! I2. A thread that ends, by a panic too, gives its turn to another; the run is over when all have ended.
//! I3. If all threads only wait, and go on waiting, one has been forgotten: the run fails, and says where they are. As their time runs
//!     while they look, waits that may not last for ever end even then, and so does the run.
//! I4. A thread that is not of a run (the one that opens the database, say) passes through every pause.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

use hamal_storage::Scheduler;

use crate::choice::{Choices, mix};
use crate::flips::panic_text;

/// Pauses after which threads that all wait are taken to be forgotten. At most 50 us pass with each: no wait that ends by itself, and
/// is to be waited for, may be longer than half a second.
const FORGOTTEN: u64 = 10_000;
/// Pauses after which they cannot be helped.
const HOPELESS: u64 = 2_000_000;
/// Nobody has the turn.
const NOBODY: usize = usize::MAX;

static SCHEDULERS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The scheduler of this thread, and its place there.
    static SELF: Cell<Option<(u64, usize)>> = const { Cell::new(None) };
}

/// What a thread of a run does.
pub type Task<'t> = Box<dyn FnOnce() + Send + 't>;

/// The scheduler. See the module's documentation.
#[derive(Debug)]
pub struct Turns {
    id: u64,
    turn: AtomicUsize,
    state: Mutex<State>,
    trace: bool,
}

/// What happened in all runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Places where the turn might have changed.
    pub pauses: u64,
    /// Where it did.
    pub switches: u64,
    /// Pauses of threads that waited.
    pub waits: u64,
}

#[derive(Debug)]
struct State {
    choices: Choices,
    threads: Vec<Member>,
    /// Whoever has the turn and need not wait keeps it, except once in so many pauses.
    keeps: u64,
    /// Pauses since a thread last did something other than wait.
    idle: u64,
    digest: u64,
    counts: Counts,
    trouble: Option<String>,
}

#[derive(Debug)]
struct Member {
    thread: Option<Thread>,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It can go on.
    Ready(&'static str),
    /// It can go on once another has done something, perhaps.
    Waits(&'static str),
    Over,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Ready(place) => write!(f, "at {place:?}"),
            Place::Waits(place) => write!(f, "waits for {place:?}"),
            Place::Over => f.write_str("has ended"),
        }
    }
}

impl Turns {
    /// A scheduler with no threads. `trace`: every change of the turn is told on standard error.
    pub fn new(seed: u64, trace: bool) -> Turns {
        let state = State {
            choices: Choices::seeded(seed),
            threads: Vec::new(),
            keeps: 1,
            idle: 0,
            digest: 0,
            counts: Counts::default(),
            trouble: None,
        };
        let id = SCHEDULERS.fetch_add(1, Ordering::Relaxed);
        Turns { id, turn: AtomicUsize::new(NOBODY), state: Mutex::new(state), trace }
    }

    /// Runs the tasks, each on a thread of its own, to their ends. The error says which of them panicked, or that all waited for ever.
    pub fn run(&self, tasks: Vec<Task<'_>>) -> Result<(), String> {
        if tasks.is_empty() {
            return Ok(());
        }
        {
            let mut state = self.state();
            let member = || Member { thread: None, place: Place::Ready("its start") };
            state.threads = tasks.iter().map(|_| member()).collect();
            state.keeps = *state.choices.pick(&[1, 2, 5, 20]);
            state.idle = 0;
        }
        thread::scope(|scope| {
            let mut threads = Vec::new();
            for (index, task) in tasks.into_iter().enumerate() {
                threads.push(scope.spawn(move || self.work(index, task)).thread().clone());
            }
            let first = {
                let mut state = self.state();
                for (member, thread) in state.threads.iter_mut().zip(threads) {
                    member.thread = Some(thread);
                }
                state.next(None)
            };
            self.give_turn(first);
        });
        self.state().trouble.take().map_or(Ok(()), Err)
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// A digest of everything that was chosen, and of where.
    pub fn fingerprint(&self) -> u64 {
        let state = self.state();
        mix(state.digest ^ state.choices.fingerprint())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, me: usize, task: Task<'_>) {
        SELF.set(Some((self.id, me)));
        self.await_turn(me);
        let panic = catch_unwind(AssertUnwindSafe(task)).err();
        SELF.set(None);
        let next = {
            let mut state = self.state();
            if let Some(panic) = panic {
                let what = format!("thread {me} panicked: {}", panic_text(&*panic));
                state.trouble.get_or_insert(what);
            }
            state.arrive(me, Place::Over);
            state.next(Some(me))
        };
        self.give_turn(next);
    }

    fn give_turn(&self, to: Option<usize>) {
        self.turn.store(to.unwrap_or(NOBODY), Ordering::Release);
        let thread = to.and_then(|to| self.state().threads[to].thread.clone());
        if let Some(thread) = thread {
            thread.unpark();
        }
    }

    fn await_turn(&self, me: usize) {
        while self.turn.load(Ordering::Acquire) != me {
            thread::park();
        }
    }

    fn stop_at(&self, place: Place) {
        let Some((_, me)) = SELF.get().filter(|(id, _)| *id == self.id) else { return };
        let (next, hopeless) = {
            let mut state = self.state();
            state.arrive(me, place);
            (state.next(Some(me)), state.idle > HOPELESS)
        };
        if let Some(next) = next
            && next != me
        {
            if self.trace {
                eprintln!("    [{me} {place}; now {next}]");
            }
            self.give_turn(Some(next));
            self.await_turn(me);
        }
        assert!(!hopeless || thread::panicking(), "no thread will ever go on");
    }
}

impl Scheduler for Turns {
    fn pause(&self, place: &'static str) {
        self.stop_at(Place::Ready(place));
    }

    fn wait(&self, place: &'static str) {
        self.stop_at(Place::Waits(place));
    }
}

impl State {
    fn arrive(&mut self, me: usize, place: Place) {
        self.threads[me].place = place;
        let name = match place {
            Place::Ready(name) | Place::Waits(name) => name,
            Place::Over => "the end",
        };
        let name = name.bytes().fold(me as u64, |digest, byte| digest.wrapping_mul(31) + u64::from(byte));
        self.digest = mix(self.digest ^ name);
        self.counts.pauses += 1;
        self.counts.waits += u64::from(matches!(place, Place::Waits(_)));
        let waits = |member: &Member| !matches!(member.place, Place::Ready(_));
        self.idle = if self.threads.iter().all(waits) { self.idle + 1 } else { 0 };
        if self.idle > FORGOTTEN && self.trouble.is_none() {
            let mut places = String::new();
            for (index, member) in self.threads.iter().enumerate() {
                let _ = write!(places, "; thread {index} {}", member.place);
            }
            self.trouble = Some(format!("all threads wait for ever{places}"));
        }
    }

    /// Who has the turn next; `None` if all have ended. `me`: who has it.
    fn next(&mut self, me: Option<usize>) -> Option<usize> {
        let ready = |member: &Member| matches!(member.place, Place::Ready(_));
        let alive = |member: &Member| member.place != Place::Over;
        if let Some(me) = me
            && ready(&self.threads[me])
            && !self.choices.once_in(self.keeps)
        {
            return Some(me);
        }
        // Those who wait get a look now and then: most looks are in vain.
        let of_ready = self.threads.iter().any(ready) && !self.choices.once_in(4);
        let may = |member: &Member| if of_ready { ready(member) } else { alive(member) };
        let count = self.threads.iter().filter(|member| may(member)).count() as u64;
        if count == 0 {
            return None;
        }
        let nth = self.choices.below(count) as usize;
        let chosen = self.threads.iter().enumerate().filter(|(_, member)| may(member)).nth(nth);
        let next = chosen.map(|(index, _)| index);
        self.counts.switches += u64::from(next != me);
        next
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// Threads that write down when they run.
    fn interleaving(seed: u64) -> (Vec<usize>, u64) {
        let turns = Turns::new(seed, false);
        let order = Mutex::new(Vec::new());
        let task = |me: usize| {
            let (turns, order) = (&turns, &order);
            Box::new(move || {
                for _ in 0..20 {
                    order.lock().unwrap().push(me);
                    turns.pause("a step");
                }
            }) as Task<'_>
        };
        turns.run((0..4).map(task).collect()).unwrap();
        (order.into_inner().unwrap(), turns.fingerprint())
    }

    #[test]
    fn an_interleaving_is_a_function_of_its_seed() {
        let runs: Vec<_> = (0..20).map(interleaving).collect();
        for (seed, run) in (0..).zip(&runs) {
            assert_eq!(interleaving(seed), *run, "seed {seed}");
            assert_eq!(run.0.len(), 80);
        }
        assert!(runs.windows(2).all(|two| two[0] != two[1]), "seeds differ");
    }

    #[test]
    fn who_waits_goes_on_once_what_it_waits_for_has_come() {
        for seed in 0..20 {
            let (turns, come) = (Turns::new(seed, false), AtomicBool::new(false));
            let waiter = || {
                while !come.load(Ordering::Relaxed) {
                    turns.wait("a flag");
                }
            };
            let setter = || {
                turns.pause("a step");
                come.store(true, Ordering::Relaxed);
            };
            turns.run(vec![Box::new(waiter), Box::new(setter), Box::new(waiter)]).unwrap();
        }
    }

    #[test]
    fn threads_that_all_wait_for_ever_are_told_with_their_places() {
        let turns = Turns::new(1, false);
        let (first, second) = (Mutex::new(()), Mutex::new(()));
        let take_both = |one: &Mutex<()>, other: &Mutex<()>| {
            let _one = one.lock();
            turns.pause("between the two");
            for _ in 0..100_000 {
                if other.try_lock().is_ok() {
                    return;
                }
                turns.wait("the other");
            }
        };
        let mut stuck = 0;
        for _ in 0..20 {
            let one: Task<'_> = Box::new(|| take_both(&first, &second));
            let other: Task<'_> = Box::new(|| take_both(&second, &first));
            if let Err(what) = turns.run(vec![one, other]) {
                assert!(
                    what.contains("all threads wait for ever; thread 0 waits for \"the other\""),
                    "{what}"
                );
                stuck += 1;
            }
        }
        assert!(stuck > 0);
    }

    #[test]
    fn a_panic_ends_one_thread_and_fails_the_run() {
        let turns = Turns::new(1, false);
        let done = AtomicBool::new(false);
        let fails = || {
            turns.pause("a step");
            panic!("planted");
        };
        let goes_on = || {
            (0..50).for_each(|_| turns.pause("a step"));
            done.store(true, Ordering::Relaxed);
        };
        let what = turns.run(vec![Box::new(fails), Box::new(goes_on)]).unwrap_err();
        assert_eq!(what, "thread 0 panicked: planted");
        assert!(done.load(Ordering::Relaxed));
    }

    #[test]
    fn a_thread_of_no_run_passes_through() {
        let turns = Turns::new(1, false);
        turns.pause("nowhere");
        turns.wait("nothing");
        assert_eq!(turns.counts(), Counts::default());
    }
}
