//! The driver of the schedules: each transaction runs on a thread of its own, one step at a time.
//!
//! S1. After each step the stage comes to rest: every transaction has answered its last step, or waits for a lock. Only then does the
//!     next step go out. So a schedule takes the same course each time, whatever the threads do; no time plays a part. (That is up to the
//!     schedule too: no step may wake two transactions that then race for a lock.)
//! S2. A transaction that gets `Conflict` is rolled back before it answers, as `transact` would do it, unless the step is [`kept`](super::steps::kept).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hamal_storage::sim::SimStorage;

use super::steps::{OnConflict, Step, numbers};
use crate::{
    Canceller, Database, Durability, ErrorKind, Isolation, Maintenance, Options, Result, Snapshot,
    Transaction, TransactionOptions,
};

/// Where the keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    OneTable,
    /// All in one table, which is cut into partitions: two chains too.
    CutTable,
    /// The odd keys in one, the even keys in the other: two partitions, so two chains of each transaction.
    TwoTables,
}

impl Layout {
    pub(super) const ALL: [Layout; 3] = [Layout::OneTable, Layout::CutTable, Layout::TwoTables];

    pub(super) fn tables(self) -> &'static [&'static str] {
        match self {
            Layout::OneTable | Layout::CutTable => &["all"],
            Layout::TwoTables => &["even", "odd"],
        }
    }

    fn splits(self) -> &'static [u64] {
        match self {
            Layout::CutTable => &[2, 3, 20],
            Layout::OneTable | Layout::TwoTables => &[],
        }
    }

    pub(super) fn table_of(self, key: u64) -> &'static str {
        let tables = self.tables();
        tables[key as usize % tables.len()]
    }
}

pub(super) const LEVELS: [Isolation; 2] = [Isolation::Serializable, Isolation::Snapshot];

/// Runs a schedule at both levels, with its keys in one table, in one that is cut, and in two.
pub(super) fn everywhere(schedule: impl Fn(&mut Stage)) {
    for level in LEVELS {
        for layout in Layout::ALL {
            schedule(&mut Stage::new(level, layout));
        }
    }
}

/// As [`everywhere`], and all of it once more with the snapshots of [`Stage::snapshot_sees`]: they keep what is old from going away.
pub(super) fn everywhere_and_watched(schedule: impl Fn(&mut Stage)) {
    everywhere(&schedule);
    everywhere(|stage| {
        println!("watched");
        stage.is_watched = true;
        schedule(stage);
    });
}

/// How a step went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Answer {
    Saw(Vec<u64>),
    /// It has not answered: the transaction waits for a lock.
    Waits,
    Refused(ErrorKind),
}

impl Answer {
    #[track_caller]
    pub(super) fn saw(self, values: &[u64]) {
        assert_eq!(self, Answer::Saw(values.to_vec()));
    }

    /// It has nothing to tell.
    #[track_caller]
    pub(super) fn done(self) {
        self.saw(&[]);
    }

    #[track_caller]
    pub(super) fn waits(self) {
        assert_eq!(self, Answer::Waits);
    }

    #[track_caller]
    pub(super) fn refused(self, kind: ErrorKind) {
        assert_eq!(self, Answer::Refused(kind));
    }

    #[track_caller]
    pub(super) fn conflicts(self) {
        self.refused(ErrorKind::Conflict);
    }

    /// Serializable transactions conflict here, those of snapshot isolation do not notice.
    #[track_caller]
    pub(super) fn conflicts_if_serializable(self, level: Isolation) {
        match level {
            Isolation::Serializable => self.conflicts(),
            Isolation::Snapshot => self.done(),
        }
    }
}

/// A transaction and its thread.
struct Actor {
    steps: Sender<Step>,
    answers: Receiver<Result<Vec<u64>, ErrorKind>>,
    canceller: Canceller,
    thread: JoinHandle<()>,
    /// It has a step that it has not answered.
    is_busy: bool,
    /// An answer nobody has asked for yet.
    answer: Option<Answer>,
}

impl Actor {
    fn spawn(transaction: Transaction, layout: Layout) -> Actor {
        let (steps, to_do) = mpsc::channel();
        let (told, answers) = mpsc::channel();
        let canceller = transaction.canceller();
        let thread = thread::spawn(move || {
            let mut transaction = Some(transaction);
            for step in to_do {
                let result = play(&mut transaction, layout, step);
                if told.send(result.map_err(|error| error.kind())).is_err() {
                    return;
                }
            }
        });
        Actor { steps, answers, canceller, thread, is_busy: false, answer: None }
    }

    /// Takes the answer in, if there is one.
    fn listen(&mut self) {
        if !self.is_busy {
            return;
        }
        match self.answers.try_recv() {
            Ok(answer) => {
                self.is_busy = false;
                self.answer = Some(answer.map_or_else(Answer::Refused, Answer::Saw));
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => panic!("a transaction's thread has died"),
        }
    }
}

fn play(transaction: &mut Option<Transaction>, layout: Layout, step: Step) -> Result<Vec<u64>> {
    match step {
        Step::Commit => transaction.take().expect("it has not ended").commit().map(|()| Vec::new()),
        Step::RollBack => transaction.take().expect("it has not ended").rollback().map(|()| Vec::new()),
        Step::Work(run, on_conflict) => {
            let result = run(transaction.as_ref().expect("it has not ended"), layout);
            if on_conflict == OnConflict::RollBack && result.as_ref().is_err_and(crate::Error::is_retryable) {
                *transaction = None;
            }
            result
        }
    }
}

/// A database and the transactions of a schedule, numbered as in the literature.
pub(super) struct Stage {
    pub(super) db: Database,
    /// What it is on, and the clock.
    pub(super) disk: SimStorage,
    pub(super) level: Isolation,
    layout: Layout,
    actors: BTreeMap<u32, Actor>,
    is_watched: bool,
    /// Snapshots, and what each sees for as long as it is there.
    snapshots: Vec<(Snapshot, Vec<(u64, u64)>)>,
}

impl Stage {
    /// With the rows 1 -> 10 and 2 -> 20.
    pub(super) fn new(level: Isolation, layout: Layout) -> Stage {
        Stage::with_rows(level, layout, &[(1, 10), (2, 20)])
    }

    pub(super) fn with_rows(level: Isolation, layout: Layout, rows: &[(u64, u64)]) -> Stage {
        println!("{level:?}, {layout:?}");
        let options = Options::new().page_bytes(4096).durability(Durability::Relaxed).isolation(level);
        let disk = SimStorage::new(1);
        let db = options.maintenance(Maintenance::Manual).open_on(Arc::new(disk.clone())).unwrap();
        db.transact(|tx| {
            for name in layout.tables() {
                tx.create_table(numbers(name), layout.splits().iter().copied())?;
            }
            rows.iter()
                .try_for_each(|(key, value)| tx.open_table(numbers(layout.table_of(*key)))?.put(*key, *value))
        })
        .unwrap();
        Stage { db, disk, level, layout, actors: BTreeMap::new(), is_watched: false, snapshots: Vec::new() }
    }

    /// Begins transactions, at the stage's level; they see what has been committed until now.
    pub(super) fn begin<const N: usize>(&mut self, numbers: [u32; N]) {
        for number in numbers {
            self.begin_with(number, TransactionOptions::new());
        }
    }

    pub(super) fn begin_with(&mut self, number: u32, options: TransactionOptions) {
        let actor = Actor::spawn(self.db.begin_with(options).unwrap(), self.layout);
        assert!(self.actors.insert(number, actor).is_none(), "T{number} has begun already");
    }

    /// The transaction's next step.
    pub(super) fn go(&mut self, number: u32, step: Step) -> Answer {
        let actor = self.actors.get_mut(&number).expect("it has begun");
        assert!(!actor.is_busy && actor.answer.is_none(), "T{number} has yet to answer");
        actor.is_busy = true;
        actor.steps.send(step).expect("its thread lives");
        self.come_to_rest();
        self.answer(number)
    }

    /// How the step went on which the transaction has waited.
    pub(super) fn after_wait(&mut self, number: u32) -> Answer {
        self.come_to_rest();
        self.answer(number)
    }

    /// As [`Stage::go`], but lets it wait as long as it will.
    pub(super) fn go_and_wait(&mut self, number: u32, step: Step) -> Answer {
        match self.go(number, step) {
            Answer::Waits => {
                while self.actors[&number].answer.is_none() {
                    self.actors.get_mut(&number).expect("it has begun").listen();
                    thread::yield_now();
                }
                self.after_wait(number)
            }
            answer => answer,
        }
    }

    /// Cancels it, from here.
    pub(super) fn cancel(&mut self, number: u32) {
        self.actors[&number].canceller.cancel();
    }

    fn answer(&mut self, number: u32) -> Answer {
        self.actors.get_mut(&number).expect("it has begun").answer.take().unwrap_or(Answer::Waits)
    }

    /// Until every transaction has answered or waits (S1). A wait ends only by what another transaction does, by a cancellation, or by a
    /// timeout, so this is a state that lasts.
    fn come_to_rest(&mut self) {
        loop {
            self.actors.values_mut().for_each(Actor::listen);
            let busy = self.actors.values().filter(|actor| actor.is_busy).count();
            if self.db.stats().waiting_transactions == busy as u64 {
                break;
            }
            thread::yield_now();
        }
        self.look_at_snapshots();
    }

    /// Takes a snapshot: it sees these rows, now and after each step to come, and at the end. Nothing if the schedule is not watched.
    #[track_caller]
    pub(super) fn snapshot_sees(&mut self, rows: &[(u64, u64)]) {
        if self.is_watched {
            self.snapshots.push((self.snapshot(), rows.to_vec()));
            self.look_at_snapshots();
        }
    }

    #[track_caller]
    fn look_at_snapshots(&self) {
        for (at, (snapshot, rows)) in self.snapshots.iter().enumerate() {
            assert_eq!(self.rows_in(snapshot), *rows, "snapshot {at}");
        }
    }

    /// The rows, as a snapshot taken now has them.
    pub(super) fn rows(&self) -> Vec<(u64, u64)> {
        rows_in(&self.db.snapshot().unwrap(), self.layout)
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.db.snapshot().unwrap()
    }

    pub(super) fn rows_in(&self, snapshot: &Snapshot) -> Vec<(u64, u64)> {
        rows_in(snapshot, self.layout)
    }

    /// The schedule is over: these rows are there, nothing else is left, and every page is sound.
    #[track_caller]
    pub(super) fn ends_with(&mut self, rows: &[(u64, u64)]) {
        self.close();
        assert_eq!(self.rows(), rows);
    }

    /// The schedule is over: nothing is left, and every page is sound.
    #[track_caller]
    pub(super) fn close(&mut self) {
        for (number, actor) in std::mem::take(&mut self.actors) {
            assert!(!actor.is_busy && actor.answer.is_none(), "T{number} has yet to answer");
            drop(actor.steps);
            actor.thread.join().unwrap();
        }
        self.look_at_snapshots();
        self.snapshots.clear();
        let stats = self.db.stats();
        let left =
            [stats.active_transactions, stats.waiting_transactions, stats.row_locks, stats.history_bytes];
        assert_eq!(left, [0; 4], "transactions, waits, locks and history are left");
        let report = self.db.verify(&mut |_| ControlFlow::Continue(())).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    }
}

/// The rows; however they are asked for, they are the same.
#[track_caller]
fn rows_in(snapshot: &Snapshot, layout: Layout) -> Vec<(u64, u64)> {
    let mut rows = BTreeMap::new();
    for name in layout.tables() {
        let table = snapshot.open_table(numbers(name)).unwrap();
        let ahead: Vec<_> = table.iter().unwrap().map(Result::unwrap).collect();
        let mut back: Vec<_> = table.iter().unwrap().rev().map(Result::unwrap).collect();
        back.reverse();
        assert_eq!(ahead, back, "rows of {name}");
        assert_eq!(table.len().unwrap(), ahead.len() as u64, "rows of {name}");
        rows.extend(ahead);
    }
    for key in rows.keys().copied().chain(1..=3) {
        let table = snapshot.open_table(numbers(layout.table_of(key))).unwrap();
        assert_eq!(table.get(key).unwrap(), rows.get(&key).copied(), "row {key}");
    }
    rows.into_iter().collect()
}

/// Options of one transaction at this level.
pub(super) fn at(level: Isolation) -> TransactionOptions {
    TransactionOptions::new().isolation(level)
}

/// Options of one transaction that waits no longer than this.
pub(super) fn patience(timeout: Duration) -> TransactionOptions {
    TransactionOptions::new().lock_timeout(timeout)
}
