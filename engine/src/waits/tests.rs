//! Waiting, with threads that wait and with a simulation's single one; then many at once on the locks of a toy.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Instant;

use hamal_storage::sim::{Rng, SimStorage};
use hamal_storage::{OsStorage, Scheduler};

use super::*;

/// Longer than anything here takes: when it is over the test has failed.
const PATIENCE: Duration = Duration::from_mins(1);

const ROW: LockKey = LockKey(7);

/// An active table and the waiting on it.
#[derive(Debug)]
struct World {
    waits: Waits,
    active: Mutex<BTreeSet<TxnId>>,
}

impl World {
    /// A world where the transactions with ids below `txns` are active.
    fn new(txns: u64) -> World {
        World::on(Arc::new(OsStorage::new(".")), txns)
    }

    fn on(storage: Arc<dyn Storage>, txns: u64) -> World {
        World { waits: Waits::new(storage), active: Mutex::new((0..txns).map(TxnId).collect()) }
    }

    fn is_active(&self, txn: TxnId) -> bool {
        self.active.lock().contains(&txn)
    }

    fn end(&self, txn: u64) {
        self.active.lock().remove(&TxnId(txn));
        self.waits.ended(TxnId(txn));
        self.check();
    }

    fn wait_aged(&self, (txn, age): (u64, u64), holder: u64, key: LockKey, timeout: Duration) -> Waited {
        let waiter = Waiter { id: TxnId(txn), age };
        self.waits.wait(waiter, TxnId(holder), key, timeout, &|txn| self.is_active(txn))
    }

    /// Waits as a transaction whose age is its id.
    fn wait(&self, txn: u64, holder: u64, key: LockKey) -> Waited {
        self.wait_aged((txn, txn), holder, key, PATIENCE)
    }

    /// Lets a thread wait; returns when it does.
    fn waits<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        txn: u64,
        holder: u64,
        key: LockKey,
    ) -> ScopedJoinHandle<'s, Waited> {
        let waiting = self.waits.stats().waiting;
        let thread = scope.spawn(move || self.wait(txn, holder, key));
        self.until_waiting(waiting + 1);
        thread
    }

    fn until_waiting(&self, count: u64) {
        until(|| self.waits.stats().waiting == count);
        self.check();
    }

    /// Fails if an invariant is broken.
    fn check(&self) {
        self.waits.graph.lock().check();
    }

    /// Fails if anything is left once all transactions have ended.
    fn check_empty(&self) {
        let graph = self.waits.graph.lock();
        assert!(graph.nodes.is_empty() && graph.queues.is_empty(), "left behind: {graph:?}");
        assert_eq!(self.waits.present.load(Ordering::Relaxed), 0);
        assert_eq!(self.waits.stats().waiting, 0);
    }
}

impl Graph {
    fn check(&self) {
        for (&(holder, key, arrival), txn) in &self.queues {
            let node = &self.nodes[txn];
            assert_eq!((node.holder(), node.key, node.arrival), (Some(holder), key, arrival), "I1: {node:?}");
        }
        let edges = self.nodes.values().filter(|node| node.holder().is_some());
        assert_eq!(edges.count(), self.queues.len(), "I1");
        for (id, node) in &self.nodes {
            assert_eq!(*id, node.id);
            assert!(self.path(*id).take(self.nodes.len() + 2).count() < self.nodes.len() + 2, "I3: {self:?}");
        }
    }
}

/// Lets other threads run until it is so.
fn until(mut it_is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !it_is_so() {
        assert!(start.elapsed() < PATIENCE, "nothing happens");
        thread::yield_now();
    }
}

fn again(thread: ScopedJoinHandle<'_, Waited>) {
    assert_eq!(thread.join().unwrap(), Waited::Again);
}

/// `ages.len()` transactions, each waiting for the next, the last for the first; returns who was chosen.
fn close_a_circle(ages: &[u64]) -> Vec<usize> {
    let parties = ages.len();
    let world = World::new(parties as u64);
    let party = |at: usize| {
        let next = (at + 1) % parties;
        let waited = world.wait_aged((at as u64, ages[at]), next as u64, LockKey(next as u64), PATIENCE);
        if waited == Waited::Again {
            assert!(!world.is_active(TxnId(next as u64)), "{at} was woken before {next} ended");
        }
        world.end(at as u64);
        waited
    };
    let waited: Vec<_> = thread::scope(|scope| {
        let mut threads = Vec::new();
        for at in 0..parties - 1 {
            threads.push(scope.spawn(move || party(at)));
            world.until_waiting(at as u64 + 1);
        }
        threads.push(scope.spawn(|| party(parties - 1)));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    world.check_empty();
    assert_eq!(world.waits.stats().deadlocks, 1);
    assert_eq!(world.waits.stats().waits, parties as u64);
    assert_eq!(world.waits.stats().timeouts, 0);
    assert!(waited.iter().all(|w| matches!(w, Waited::Again | Waited::Deadlock)), "{waited:?}");
    (0..parties).filter(|at| waited[*at] == Waited::Deadlock).collect()
}

#[test]
fn a_deadlock_of_two_to_eight_is_broken_at_once_by_the_youngest() {
    let seed = 20_260_101;
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for parties in 2..=8 {
        for youngest in 0..parties {
            let mut ages: Vec<_> = (0..parties).map(|_| rng.below(1000)).collect();
            ages[youngest] = 1000;
            assert_eq!(close_a_circle(&ages), [youngest], "ages {ages:?}");
        }
    }
}

#[test]
fn of_the_same_age_the_one_that_began_last_gives_way() {
    assert_eq!(close_a_circle(&[5, 5, 5]), [2]);
    assert_eq!(close_a_circle(&[5, 5, 4]), [1]);
}

#[test]
fn ten_waiters_of_one_key_get_it_one_by_one_in_order_of_arrival() {
    let world = World::new(11);
    let (woken, who) = mpsc::channel();
    thread::scope(|scope| {
        for (at, txn) in [4, 2, 9, 1, 10, 3, 8, 5, 7, 6].into_iter().enumerate() {
            let (woken, world) = (woken.clone(), &world);
            scope.spawn(move || woken.send((txn, world.wait(txn, 0, ROW))).unwrap());
            world.until_waiting(at as u64 + 1);
        }
        let mut holder = 0;
        for (at, txn) in [4, 2, 9, 1, 10, 3, 8, 5, 7, 6].into_iter().enumerate() {
            world.end(holder);
            assert_eq!(world.waits.stats().waiting, 9 - at as u64, "one is woken, and only one");
            assert_eq!(who.recv().unwrap(), (txn, Waited::Again));
            holder = txn;
        }
        world.end(holder);
    });
    world.check_empty();
}

#[test]
fn waiters_of_different_keys_are_woken_together() {
    let world = World::new(4);
    thread::scope(|scope| {
        let a = world.waits(scope, 1, 0, LockKey(0));
        let b = world.waits(scope, 2, 0, LockKey(u64::MAX));
        let other = world.waits(scope, 3, 1, LockKey(0));
        world.end(0);
        again(a);
        again(b);
        assert_eq!(world.waits.stats().waiting, 1);
        world.end(2);
        assert!(!other.is_finished());
        world.end(1);
        again(other);
        world.end(3);
    });
    world.check_empty();
}

#[test]
fn who_has_the_turn_and_finds_the_lock_taken_stays_ahead_of_the_others() {
    let world = World::new(6);
    thread::scope(|scope| {
        let first = world.waits(scope, 1, 0, ROW);
        let second = world.waits(scope, 2, 0, ROW);
        world.end(0);
        again(first);
        // 3 is quicker and has the lock; 4 meets it before the one whose turn it is does.
        let newcomer = world.waits(scope, 4, 3, ROW);
        let first = world.waits(scope, 1, 3, ROW);
        world.end(3);
        again(first);
        assert_eq!(world.waits.stats().waiting, 2);
        world.end(1);
        again(second);
        assert_eq!(world.waits.stats().waiting, 1);
        world.end(2);
        again(newcomer);
        world.end(4);
    });
    world.check_empty();
}

#[test]
fn a_holder_that_has_ended_is_not_waited_for() {
    let world = World::new(1);
    assert_eq!(world.wait(1, 9, ROW), Waited::Again);
    assert_eq!(world.wait_aged((1, 1), 9, ROW, Duration::ZERO), Waited::Again);
    assert_eq!(world.waits.stats(), WaitStats::default());
    world.end(1);
    world.check_empty();
}

#[test]
fn a_wait_ends_when_its_time_is_over() {
    let world = World::new(2);
    assert_eq!(world.wait_aged((1, 1), 0, ROW, Duration::from_micros(100)), Waited::TimedOut);
    let stats = world.waits.stats();
    assert_eq!((stats.waits, stats.timeouts, stats.waiting), (1, 1, 0));
    assert!(stats.waited_ns >= 100_000);
    world.check_empty();
}

#[test]
fn a_timeout_of_zero_never_waits_and_passes_the_turn_on() {
    let world = World::new(4);
    assert_eq!(world.wait_aged((1, 1), 0, ROW, Duration::ZERO), Waited::TimedOut);
    thread::scope(|scope| {
        let first = world.waits(scope, 1, 0, ROW);
        let second = world.waits(scope, 2, 0, ROW);
        world.end(0);
        again(first);
        assert_eq!(world.wait_aged((1, 1), 3, ROW, Duration::ZERO), Waited::TimedOut);
        again(second);
    });
    let stats = world.waits.stats();
    assert_eq!((stats.waits, stats.timeouts, stats.waiting), (2, 2, 0));
    world.end(2);
    world.check_empty();
}

#[test]
fn a_wait_can_be_cancelled_and_only_a_wait() {
    let world = World::new(2);
    world.waits.cancel(TxnId(1));
    thread::scope(|scope| {
        let waiter = world.waits(scope, 1, 0, ROW);
        world.waits.cancel(TxnId(0));
        assert_eq!(world.waits.stats().waiting, 1);
        world.waits.cancel(TxnId(1));
        assert_eq!(waiter.join().unwrap(), Waited::Cancelled);
        let waiter = world.waits(scope, 1, 0, ROW);
        world.end(0);
        world.waits.cancel(TxnId(1));
        again(waiter);
    });
    world.end(1);
    world.check_empty();
}

#[test]
fn those_behind_a_failed_waiter_wait_for_whom_it_waited_for() {
    let world = World::new(5);
    thread::scope(|scope| {
        let first = world.waits(scope, 1, 0, ROW);
        let second = world.waits(scope, 2, 0, ROW);
        let third = world.waits(scope, 3, 0, ROW);
        world.end(0);
        again(first);
        let first = world.waits(scope, 1, 4, ROW);
        world.waits.cancel(TxnId(1));
        assert_eq!(first.join().unwrap(), Waited::Cancelled);
        assert_eq!(world.waits.stats().waiting, 2);
        // 1 lives on: nobody waits for it.
        world.end(4);
        again(second);
        assert_eq!(world.waits.stats().waiting, 1);
        world.end(2);
        again(third);
        world.end(3);
    });
    world.end(1);
    world.check_empty();
}

#[test]
fn those_behind_a_waiter_that_ran_out_of_time_get_their_turn() {
    let world = World::new(4);
    thread::scope(|scope| {
        let first = world.waits(scope, 1, 0, ROW);
        let second = world.waits(scope, 2, 0, ROW);
        world.end(0);
        again(first);
        assert_eq!(world.wait_aged((1, 1), 3, ROW, Duration::from_micros(10)), Waited::TimedOut);
        assert_eq!(world.waits.stats().waiting, 1);
        world.end(3);
        again(second);
        world.end(2);
    });
    world.check_empty();
}

#[test]
fn those_behind_the_victim_of_a_deadlock_get_their_turn() {
    let world = World::new(10);
    thread::scope(|scope| {
        let first = world.waits(scope, 9, 0, ROW);
        let second = world.waits(scope, 2, 0, ROW);
        world.end(0);
        again(first);
        // 3 has taken the row and waits for something else that 9 has.
        let holder = world.waits(scope, 3, 9, LockKey(100));
        assert_eq!(world.wait(9, 3, ROW), Waited::Deadlock);
        // The victim takes back one statement only; that frees what 3 waits for, and 2 waits for 3.
        world.check();
        assert_eq!(world.waits.stats().waiting, 2);
        world.waits.gave_up(TxnId(9), LockKey(100));
        again(holder);
        world.end(3);
        again(second);
        world.end(2);
        world.end(9);
    });
    world.check_empty();
}

#[test]
fn a_turn_that_is_given_up_goes_to_the_next() {
    let world = World::new(4);
    thread::scope(|scope| {
        let first = world.waits(scope, 1, 0, ROW);
        let second = world.waits(scope, 2, 0, ROW);
        let third = world.waits(scope, 3, 0, ROW);
        world.end(0);
        again(first);
        world.waits.gave_up(TxnId(1), LockKey(8));
        assert_eq!(world.waits.stats().waiting, 2);
        world.waits.gave_up(TxnId(1), ROW);
        again(second);
        assert_eq!(world.waits.stats().waiting, 1);
        world.end(2);
        again(third);
        world.end(3);
    });
    world.check_empty();
}

#[test]
fn who_only_queues_in_between_is_not_the_victim() {
    let world = World::new(10);
    thread::scope(|scope| {
        let between = world.waits(scope, 9, 0, ROW);
        let behind = world.waits(scope, 5, 0, ROW);
        world.end(0);
        again(between);
        // 1 has taken the row, and waits for what 5 holds; 5 waits for the row, behind 9.
        let holder = world.waits(scope, 1, 5, LockKey(100));
        let between = scope.spawn(|| world.wait(9, 1, ROW));
        assert_eq!(behind.join().unwrap(), Waited::Deadlock, "to refuse 9 would not help 1");
        world.end(5);
        again(holder);
        world.end(1);
        again(between);
        world.end(9);
    });
    assert_eq!(world.waits.stats().deadlocks, 1);
    world.check_empty();
}

#[test]
fn a_deadlock_about_a_single_key_has_one_victim() {
    // Both share the lock, and each wants it for itself.
    let world = World::new(3);
    thread::scope(|scope| {
        let older = world.waits(scope, 1, 2, ROW);
        assert_eq!(world.wait(2, 1, ROW), Waited::Deadlock);
        again(older);
        let older = world.waits(scope, 1, 2, ROW);
        world.end(2);
        again(older);
    });
    world.end(1);
    assert_eq!(world.waits.stats().deadlocks, 1);
    world.check_empty();
}

/// What happens when the simulation lets others run: on the one thread there is.
type Event = Box<dyn FnOnce() + Send>;

/// Runs the next event at each pause.
#[derive(Default)]
struct Script(Mutex<VecDeque<Event>>);

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

impl Scheduler for Script {
    fn pause(&self, place: &'static str) {
        assert_eq!(place, "lock wait");
        let event = self.0.lock().pop_front().expect("a pause too many");
        event();
    }
}

#[test]
fn a_simulation_waits_by_pausing() {
    let sim = SimStorage::new(1);
    let script = Arc::new(Script::default());
    sim.set_scheduler(script.clone());
    let world = Arc::new(World::on(Arc::new(sim.clone()), 3));
    let add = |event: Event| script.0.lock().push_back(event);

    add(Box::new(|| {}));
    let w = world.clone();
    add(Box::new(move || w.waits.cancel(TxnId(1))));
    assert_eq!(world.wait(1, 0, ROW), Waited::Cancelled);

    add(Box::new(move || sim.advance(PATIENCE)));
    assert_eq!(world.wait(1, 0, ROW), Waited::TimedOut);

    // While 1 waits for 2, 2 waits for 1.
    let w = world.clone();
    add(Box::new(move || assert_eq!(w.wait(2, 1, LockKey(1)), Waited::Deadlock)));
    let w = world.clone();
    add(Box::new(move || w.end(2)));
    assert_eq!(world.wait(1, 2, ROW), Waited::Again);
    world.end(1);
    world.end(0);
    world.check_empty();
    assert!(script.0.lock().is_empty());
}

/// Whether waits are cancelled and run out of time now and then. That could save a sleeper whose wake-up was lost, and nobody would
/// know; undisturbed, such a one sleeps until [`PATIENCE`] is over, which fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disturbed {
    Yes,
    No,
}

/// Row locks as simple as can be: a row's owner has it locked while it is active.
struct Toy {
    world: World,
    owners: Mutex<HashMap<usize, TxnId>>,
    /// Who believes to own each row: 0 is nobody.
    inside: Vec<AtomicU64>,
    next: AtomicU64,
    /// Rows a transaction takes.
    each: usize,
    target: u64,
    disturbed: Disturbed,
    /// A thread has failed: the others stop.
    failed: AtomicBool,
}

/// Tells the others if its thread fails.
struct Alarm<'t>(&'t AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.0.fetch_or(thread::panicking(), Ordering::Relaxed);
    }
}

/// What a thread met.
#[derive(Debug, Default)]
struct Met {
    commits: u64,
    deadlocks: u64,
    timeouts: u64,
    cancels: u64,
    most_attempts: u64,
}

impl Toy {
    fn begin(&self) -> TxnId {
        let mut active = self.world.active.lock();
        let id = TxnId(self.next.fetch_add(1, Ordering::Relaxed));
        active.insert(id);
        id
    }

    /// Takes the row, or says whose it is.
    fn take(&self, row: usize, txn: TxnId) -> Option<TxnId> {
        let mut owners = self.owners.lock();
        let owner = owners.get(&row).copied().filter(|owner| *owner != txn && self.world.is_active(*owner));
        if owner.is_none() {
            owners.insert(row, txn);
        }
        owner
    }

    fn end(&self, txn: TxnId, held: &BTreeSet<usize>) {
        for row in held {
            assert_eq!(self.inside[*row].swap(0, Ordering::Relaxed), txn.0, "row {row} was not its own");
        }
        self.world.active.lock().remove(&txn);
        self.world.waits.ended(txn);
    }

    /// One attempt; its age if it was chosen to break a deadlock and has rolled back.
    fn attempt(&self, age: Option<u64>, rng: &mut Rng, met: &mut Met) -> std::result::Result<(), u64> {
        let id = self.begin();
        let waiter = Waiter { id, age: age.unwrap_or(id.0) };
        let is_disturbed = self.disturbed == Disturbed::Yes;
        let mut held = BTreeSet::new();
        for _ in 0..self.each {
            let row = rng.index(self.inside.len());
            let key = LockKey(row as u64 % 9); // The last row shares its key with the first.
            loop {
                let Some(owner) = self.take(row, id) else {
                    let before = self.inside[row].swap(id.0, Ordering::Relaxed);
                    assert!(before == 0 || before == id.0, "row {row}: both {before} and {id} are inside");
                    held.insert(row);
                    break;
                };
                let timeout = match rng.below(100) {
                    0 if is_disturbed => Duration::ZERO,
                    1 if is_disturbed => Duration::from_micros(rng.below(200)),
                    _ => PATIENCE,
                };
                let start = Instant::now();
                let is_active = |txn| self.world.is_active(txn);
                match self.world.waits.wait(waiter, owner, key, timeout, &is_active) {
                    Waited::Again if rng.chance(1, 50) => {
                        self.world.waits.gave_up(id, key);
                        break;
                    }
                    Waited::Again => {}
                    Waited::Deadlock => {
                        met.deadlocks += 1;
                        // Now and then it only takes back the statement.
                        if rng.chance(1, 4) {
                            break;
                        }
                        self.end(id, &held);
                        return Err(waiter.age);
                    }
                    Waited::TimedOut => {
                        assert!(start.elapsed() < PATIENCE, "{id} waits for {owner} for ever");
                        met.timeouts += 1;
                        break;
                    }
                    Waited::Cancelled => {
                        met.cancels += 1;
                        break;
                    }
                }
            }
            if is_disturbed && rng.chance(1, 50) {
                let newest = self.next.load(Ordering::Relaxed);
                self.world.waits.cancel(TxnId(newest.saturating_sub(rng.below(16))));
            }
            if rng.chance(1, 50) {
                self.world.check();
            }
            if rng.chance(1, 2) {
                thread::yield_now();
            }
        }
        self.end(id, &held);
        met.commits += 1;
        if rng.chance(1, 2) {
            thread::yield_now();
        }
        Ok(())
    }

    fn run(&self, mut rng: Rng) -> Met {
        let _alarm = Alarm(&self.failed);
        let mut met = Met::default();
        while self.world.waits.stats().waits < self.target && !self.failed.load(Ordering::Relaxed) {
            let (mut age, mut attempts) = (None, 1);
            while let Err(first) = self.attempt(age, &mut rng, &mut met) {
                age = Some(first);
                attempts += 1;
            }
            met.most_attempts = met.most_attempts.max(attempts);
        }
        met
    }
}

/// Lets threads take row locks until `HAMAL_LOCK_WAITS` waits, or this part of them, have begun.
fn campaign(threads: u64, rows: usize, each: usize, part: u64, disturbed: Disturbed) {
    let count = std::env::var("HAMAL_LOCK_WAITS").map_or(20_000, |count| count.parse().unwrap());
    let seed = std::env::var("HAMAL_SEED").map_or(3, |seed| seed.parse().unwrap());
    let target = count / part;
    println!(
        "seed {seed}, {threads} threads, {rows} rows, {each} each, {target} lock waits, disturbed: {disturbed:?}"
    );
    let toy = Toy {
        world: World::new(0),
        owners: Mutex::default(),
        inside: (0..rows).map(|_| AtomicU64::new(0)).collect(),
        next: AtomicU64::new(1),
        each,
        target,
        disturbed,
        failed: AtomicBool::new(false),
    };
    let mut rng = Rng::new(seed);
    let start = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| {
                let (rng, toy) = (rng.fork(), &toy);
                scope.spawn(move || toy.run(rng))
            })
            .collect();
        for thread in threads {
            let met = thread.join().unwrap();
            println!("{met:?}");
            assert!(disturbed == Disturbed::Yes || met.cancels == 0, "nobody cancels");
        }
    });
    let stats = toy.world.waits.stats();
    println!("{} lock waits in {:?}, disturbed: {disturbed:?}: {stats:?}", stats.waits, start.elapsed());
    assert!(stats.waits >= target);
    assert!(disturbed == Disturbed::Yes || stats.timeouts == 0, "no wait is short");
    toy.world.check_empty();
}

#[test]
fn no_wake_up_is_lost_and_no_row_has_two_owners() {
    campaign(8, 10, 4, 1, Disturbed::Yes);
}

#[test]
fn no_wake_up_is_lost_where_nothing_else_would_end_the_wait() {
    campaign(8, 10, 4, 1, Disturbed::No);
}

#[test]
fn no_wake_up_is_lost_when_the_first_waiter_meets_the_last_end() {
    // Two threads, one row, held for a moment: many ends find nobody, or somebody about to wait.
    campaign(2, 1, 1, 10, Disturbed::Yes);
}

#[test]
fn no_wake_up_is_lost_when_the_first_waiter_meets_the_last_end_and_nothing_else_would_end_the_wait() {
    campaign(2, 1, 1, 10, Disturbed::No);
}
