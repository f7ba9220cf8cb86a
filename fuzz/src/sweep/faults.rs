//! Every single I/O fails: with EIO, with ENOSPC, by a short transfer; once, and from then on.
//!
//! What must follow is `Rule::of`, which puts the fault matrix in terms of what was struck. Then the faults end,
//! the database is opened again on the same disk, and must hold what was acknowledged.

use std::collections::BTreeMap;

use hamal::{Database, Durability, ErrorKind, OpenMode, TransactionOptions};
use hamal_storage::sim::{Fault, FaultKind, Fired, Operation, Repeat, When};

use super::{Performance, Script, watched};
use crate::plan::NAMES;
use crate::tally::Tally;
use crate::workload::{Step, Stop, read_state, verify};

/// Every fault of the sweep.
pub const FAULTS: [(FaultKind, Repeat); 6] = [
    (FaultKind::Eio, Repeat::Once),
    (FaultKind::Eio, Repeat::Forever),
    (FaultKind::Enospc, Repeat::Once),
    (FaultKind::Enospc, Repeat::Forever),
    (FaultKind::Short, Repeat::Once),
    (FaultKind::Short, Repeat::Forever),
];

/// What a sweep saw: how often each kind of call, struck by each kind of fault, gave each kind of error.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Counts.
    pub tally: Tally,
    /// By "what was struck: error".
    pub seen: BTreeMap<String, u64>,
}

/// Lets one I/O in `stride` fail, from `offset` on. `progress` hears of each point.
pub fn sweep(
    script: &Script,
    stride: u64,
    offset: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Answers, String> {
    let (ios, _) = script.ios()?;
    let mut answers = Answers::default();
    let mut io = 1 + offset;
    while io <= ios {
        for (kind, repeat) in FAULTS {
            strike(script, io, kind, repeat, &mut answers)
                .map_err(|what| format!("{kind:?} {repeat:?} at I/O {io}: {what}"))?;
        }
        progress(io, ios);
        io += stride;
    }
    Ok(answers)
}

/// What was struck, as far as it makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Struck {
    /// A read, or a look at names.
    Read,
    /// Writing or syncing the log where it stands.
    Log,
    /// Writing or syncing pages, the doublewrite area or the master record.
    Data,
    /// Making, growing, renaming or removing a file; a new file's first bytes included.
    Space,
}

impl Struck {
    fn of(fired: &Fired) -> Struck {
        let fresh = is_temporary(&fired.file);
        match fired.operation {
            Operation::Open | Operation::Read | Operation::List | Operation::Lock => Struck::Read,
            Operation::Write | Operation::Sync if fresh => Struck::Space,
            Operation::Write | Operation::Sync if fired.file.starts_with("wal/") => Struck::Log,
            Operation::Write | Operation::Sync => Struck::Data,
            _ => Struck::Space,
        }
    }

    /// The errors that the struck operation, or the first to notice, may give.
    fn allowed(self, kind: FaultKind, while_opening: bool) -> &'static [ErrorKind] {
        use ErrorKind::{CommitUnknown, Io, NoSpace, Poisoned};
        match (self, kind) {
            // Poisoned, where it was a rollback that could not read.
            (Struck::Read, _) if !while_opening => &[Io, Poisoned],
            (Struck::Read, _) => &[Io],
            (_, FaultKind::Enospc) if while_opening => &[NoSpace, Io],
            _ if while_opening => &[Io],
            // The one whose flush failed hears the cause, everybody after it that the handle is poisoned.
            (Struck::Log, FaultKind::Enospc) => &[CommitUnknown, Poisoned, NoSpace],
            (Struck::Log, _) => &[CommitUnknown, Poisoned, Io],
            (Struck::Data, FaultKind::Enospc) => &[NoSpace, Poisoned],
            (Struck::Space, FaultKind::Enospc) => &[NoSpace],
            (Struck::Data | Struck::Space, _) => &[Io, Poisoned],
        }
    }

    /// Whether the handle must be of no use for commits afterwards (F6, F7): `None` where either will do.
    fn poisons(self, kind: FaultKind) -> Option<bool> {
        match (self, kind) {
            (Struck::Read, _) | (Struck::Space, FaultKind::Enospc) => Some(false),
            (Struck::Log, _) | (Struck::Data, FaultKind::Eio) => Some(true),
            _ => None,
        }
    }
}

fn strike(
    script: &Script,
    io: u64,
    kind: FaultKind,
    repeat: Repeat,
    answers: &mut Answers,
) -> Result<(), String> {
    let mut on = script.performance();
    on.disk.sim().inject(Fault::new(kind, When::Io(io), repeat));
    match on.disk.open(&script.plan, OpenMode::OpenOrCreate) {
        Ok(db) => {
            let worked = script.work(&db, &mut on);
            judge(script, &mut on, db, worked, kind, answers)?;
        }
        Err(stop) => {
            let fired = on.disk.sim().fired();
            expect_kind(&stop, &fired, kind, true, answers)?;
        }
    }
    on.disk.sim().clear_faults();
    recover(script, &mut on).map_err(|stop| format!("afterwards: {stop}"))?;
    watched(&on.disk)?;
    answers.tally.faults += 1;
    Ok(())
}

/// What became of the script, and what the handle is worth now.
fn judge(
    script: &Script,
    on: &mut Performance,
    db: Database,
    worked: Step,
    kind: FaultKind,
    answers: &mut Answers,
) -> Result<(), String> {
    let fired = on.disk.sim().fired();
    match worked {
        Ok(()) => {
            if let Some(first) = fired.first() {
                let key = format!("{kind:?} on {:?} {}: nobody noticed", first.operation, class(&first.file));
                *answers.seen.entry(key).or_default() += 1;
            }
            let closed = db.close();
            let fired = on.disk.sim().fired();
            match closed {
                Ok(()) => on.model.all_durable(),
                Err(error) => {
                    let stop = Stop::Engine { doing: "close".to_owned(), error };
                    expect_kind(&stop, &fired, kind, false, answers)?;
                }
            }
        }
        Err(stop) => {
            expect_kind(&stop, &fired, kind, false, answers)?;
            probe(script, on, &db, &stop, kind).map_err(|what| format!("after {stop}: {what}"))?;
            drop(db);
        }
    }
    Ok(())
}

/// Whether a file is not in use yet: it is being made under another name.
fn is_temporary(file: &str) -> bool {
    file.rsplit_once('.').is_some_and(|(_, extension)| extension == "tmp")
}

fn class(file: &str) -> &str {
    match file.split_once('/') {
        Some((directory, name)) if is_temporary(name) => {
            if directory == "wal" {
                "new log segment"
            } else {
                name
            }
        }
        Some((directory, _)) => directory,
        None => file,
    }
}

/// The error must be one that the matrix asks for, and must have a cause.
fn expect_kind(
    stop: &Stop,
    fired: &[Fired],
    kind: FaultKind,
    while_opening: bool,
    answers: &mut Answers,
) -> Result<(), String> {
    let first = fired.first().ok_or_else(|| format!("an error before anything was struck: {stop}"))?;
    let struck = Struck::of(first);
    let what = format!("{kind:?} on {:?} {}", first.operation, class(&first.file));
    if kind == FaultKind::Short {
        return Err(format!("{what}: a short transfer is no error: {stop}"));
    }
    let found = match stop {
        Stop::Wrong(what) => return Err(what.clone()),
        // Verification names what it could not read; a stream gives the system's error.
        Stop::Unsound(_) | Stop::Read { .. } => ErrorKind::Io,
        Stop::Engine { error, .. } => error.kind(),
    };
    *answers.seen.entry(format!("{what}: {found:?}")).or_default() += 1;
    // With a fault that stays, the error may come from any later call that was struck.
    let allowed = fired.iter().any(|fired| Struck::of(fired).allowed(kind, while_opening).contains(&found));
    if allowed {
        return Ok(());
    }
    Err(format!("{what} gave {found:?}, not one of {:?}: {stop}", struck.allowed(kind, while_opening)))
}

/// Tries the handle after an error: reads go on; commits go on or never again.
fn probe(
    script: &Script,
    on: &mut Performance,
    db: &Database,
    stop: &Stop,
    kind: FaultKind,
) -> Result<(), String> {
    if kind == FaultKind::Enospc && must_poison(on, stop, kind) == Some(false) {
        // Still full: reads and rollbacks work.
        let found = read_state(db).map_err(|stop| format!("reading on a full disk: {stop}"))?;
        on.model.explain(&found)?;
        let rolled_back = db.begin().and_then(hamal::Transaction::rollback);
        // Unless reading had to evict a page, whose log the full disk did not take where it stands: that is F6.
        if must_poison(on, stop, kind) == Some(false) {
            rolled_back.map_err(|error| format!("rolling back on a full disk: {error}"))?;
        }
    }
    on.disk.sim().clear_faults();
    let committed = commit_something(db);
    match (must_poison(on, stop, kind), committed) {
        (Some(true), Ok(())) => return Err("a commit succeeded on a handle that must be poisoned".to_owned()),
        (Some(false), Err(kind)) => return Err(format!("commits must go on, but gave {kind:?}")),
        (_, Err(ErrorKind::Poisoned)) => {
            // Reads may go on or not; what they answer must be right.
            if let Ok(found) = read_state(db) {
                on.model.explain(&found)?;
            }
            return Ok(());
        }
        (_, Err(kind)) => return Err(format!("a commit gave {kind:?}; on a poisoned handle it is Poisoned")),
        (_, Ok(())) => {}
    }
    let mut session = on.session(db, &script.plan);
    session.model.create(NAMES[0]);
    session.model.set(NAMES[0], PROBE, Some(crate::value::Value::of(PROBE)));
    session.model.commit();
    session.model.all_durable();
    session.compare().and_then(|()| session.step()).map_err(|stop| format!("going on: {stop}"))
}

/// Whether the handle must be of no use for commits, by all that was struck so far; `None` where either will do.
fn must_poison(on: &Performance, stop: &Stop, kind: FaultKind) -> Option<bool> {
    let fired = on.disk.sim().fired();
    let mut verdicts = fired.iter().map(|fired| Struck::of(fired).poisons(kind));
    if verdicts.clone().any(|verdict| verdict == Some(true)) {
        return Some(true);
    }
    // A rollback that a fault cut short leaves a transaction half undone, and the handle poisoned.
    let rolling_back = fired.len() > 1
        || stop.kind() == Some(ErrorKind::Poisoned)
        || matches!(stop, Stop::Engine { doing, .. } if doing.starts_with("roll"));
    if kind == FaultKind::Eio && rolling_back {
        return None;
    }
    verdicts.all(|verdict| verdict == Some(false)).then_some(false)
}

const PROBE: &[u8] = b"probe";

fn commit_something(db: &Database) -> Result<(), ErrorKind> {
    let commit = || -> hamal::Result<()> {
        let tx = db.begin_with(TransactionOptions::new().durability(Durability::Sync))?;
        tx.open_bytes_table(NAMES[0])?.put(PROBE, PROBE)?;
        tx.commit()
    };
    commit().map_err(|error| error.kind())
}

/// Opens the database again, on the same disk, and checks everything.
fn recover(script: &Script, on: &mut Performance) -> Step {
    let db = on.disk.open(&script.plan, OpenMode::OpenOrCreate)?;
    on.tally.add_recovery(db.recovery_report());
    on.model.recovered(read_state(&db)?).map_err(Stop::Wrong)?;
    verify(&db, &mut on.tally)?;
    on.session(&db, &script.plan).step()?;
    Performance::close(db, &mut on.model)
}
