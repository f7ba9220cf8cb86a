//! What the threads of one life share.
//!
//! Only one of them runs at a time, and none pauses while it has the record: its mutex is never waited for.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hamal::{Canceller, Database, ErrorKind};
use hamal_storage::Scheduler as _;
use hamal_storage::sim::FaultKind;

use super::history::History;
use crate::disk::Disk;
use crate::plan::Plan;
use crate::scheduler::Turns;
use crate::tally::Tally;
use crate::workload::{Step, Stop};

#[derive(Debug)]
pub(super) struct Life<'l> {
    pub(super) db: &'l Database,
    pub(super) plan: &'l Plan,
    pub(super) disk: &'l Disk,
    pub(super) turns: &'l Turns,
    pub(super) trace: bool,
    record: Mutex<Record>,
}

/// What has happened.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) history: History,
    /// LSN of the newest commit whose call has returned: all later transactions see it.
    pub(super) returned: u64,
    /// LSN of the newest commit that somebody was told of: all later snapshots see it.
    pub(super) told: u64,
    /// Every commit up to this LSN is promised to survive.
    pub(super) required: u64,
    pub(super) tally: Tally,
    /// Errors that ended a client, in order.
    pub(super) stops: Vec<Stop>,
    /// The running transactions, by client.
    pub(super) running: BTreeMap<usize, Canceller>,
    /// Clients that have work to do.
    pub(super) busy: usize,
    /// Faults of the machine that have been dealt with.
    pub(super) forgiven: usize,
}

impl<'l> Life<'l> {
    pub(super) fn new(
        db: &'l Database,
        plan: &'l Plan,
        disk: &'l Disk,
        turns: &'l Turns,
        trace: bool,
        forgiven: usize,
    ) -> Self {
        let record = Mutex::new(Record { forgiven, ..Record::default() });
        Life { db, plan, disk, turns, trace, record }
    }

    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn into_record(self) -> Record {
        self.record.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Others may run here.
    pub(super) fn pause(&self, place: &'static str) {
        self.turns.pause(place);
    }

    pub(super) fn say(&self, who: usize, line: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("  {who}: {}", line());
        }
    }

    /// Whether an error has ended a client: the others end too.
    pub(super) fn is_over(&self) -> bool {
        !self.record().stops.is_empty()
    }

    /// A client has come to its end.
    pub(super) fn ended(&self, who: usize, ended: Step) {
        if let Err(stop) = ended {
            self.say(who, || format!("ends: {stop}"));
            self.record().stops.push(stop);
        }
    }

    /// A disk that a fault had filled: there is room again (F9). Otherwise the error is returned.
    pub(super) fn make_room(&self, who: usize, stop: Stop) -> Step {
        let fired = self.disk.sim().fired();
        let full = stop.kind() == Some(ErrorKind::NoSpace)
            && fired.iter().any(|fired| fired.kind == FaultKind::Enospc);
        // Where it has hit the log too, in another client's commit, the life is over.
        let poisoned = || self.db.begin().is_err_and(|error| error.kind() == ErrorKind::Poisoned);
        if self.disk.sim().is_crashed() || !full || poisoned() {
            return Err(stop);
        }
        self.say(who, || format!("{stop}; there is room again"));
        // A crash that is due stays due.
        self.disk.sim().clear_faults();
        let mut record = self.record();
        record.tally.faults += u64::from(record.forgiven < fired.len());
        record.forgiven = fired.len();
        Ok(())
    }
}
