//! Partitions are split and merged while everything else goes on.

use std::ops::ControlFlow;

use hamal::{Database, ErrorKind};

use super::{Doing, Session, Step, Stop};
use crate::choice::Choices;
use crate::model::Hex;
use crate::plan::{NAMES, Plan};
use crate::tally::Tally;

/// More partitions than this are merged again.
const MANY: usize = 12;

impl Session<'_> {
    /// Splits or merges partitions of some table.
    pub fn reshape(&mut self) -> Step {
        let mut lines = Vec::new();
        let done = reshape(self.db, self.plan, self.choices, self.tally, &mut |line| lines.push(line));
        for line in lines {
            self.trace.say(|| line);
        }
        match done {
            // Its commit is durable, and so are all before.
            Ok(true) => {
                self.model.all_durable();
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(stop) if stop.kind() == Some(ErrorKind::LogFull) => {
                self.tally.log_full += 1;
                self.checkpoint()
            }
            Err(stop) => Err(stop),
        }
    }
}

/// Splits or merges partitions of some table; whether that was done. Not, if others were in the way.
pub(crate) fn reshape(
    db: &Database,
    plan: &Plan,
    choices: &mut Choices,
    tally: &mut Tally,
    say: &mut dyn FnMut(String),
) -> Step<bool> {
    let name = NAMES[choices.skewed(NAMES.len() as u64) as usize];
    let partitions = db.partitions().doing(|| "list the partitions".to_owned())?;
    let of_table: Vec<_> = partitions.iter().filter(|p| p.table.as_deref() == Some(name)).collect();
    let lowers: Vec<&Vec<u8>> = of_table.iter().filter_map(|p| p.lower.as_ref()).collect();
    // Sometimes it is given up in the middle.
    let mut patience = if choices.once_in(5) { choices.between(1, 12) } else { u64::MAX };
    let mut progress = |_| {
        patience -= 1;
        if patience == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let (what, done) = if !lowers.is_empty() && (lowers.len() > MANY || choices.once_in(2)) {
        let key = lowers[choices.below(lowers.len() as u64) as usize];
        (format!("merge {name} at {}", Hex(key)), db.merge(name, key, &mut progress).map(|_| true))
    } else {
        let mut key = plan.key(name, choices.below(plan.key_space));
        key.truncate(plan.max_key_bytes() - 5);
        (format!("split {name} at {}", Hex(&key)), db.split(name, &key, &mut progress).map(|_| false))
    };
    say(what.clone());
    match done {
        Ok(merged) => {
            if merged {
                tally.partition_merges += 1;
            } else {
                tally.partition_splits += 1;
            }
            Ok(true)
        }
        Err(error) => {
            say(format!("  {:?}: {error}", error.kind()));
            match error.kind() {
                // There is no such table, or not any more; a partition begins there already; somebody is in the way, or has stopped it.
                ErrorKind::NotFound
                | ErrorKind::InvalidArgument
                | ErrorKind::Conflict
                | ErrorKind::Cancelled => {
                    tally.reshapes_refused += 1;
                    Ok(false)
                }
                _ => Err(Stop::Engine { doing: what, error }),
            }
        }
    }
}
