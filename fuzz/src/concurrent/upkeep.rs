//! The thread that does, beside the clients, what background threads and operators do.

use hamal::ErrorKind;
use hamal_storage::Scheduler as _;

use super::life::Life;
use crate::choice::Choices;
use crate::tally::Tally;
use crate::workload::{Doing, Step, reshape, verify};

/// Does some rounds, as long as there are clients.
pub(super) fn run(life: &Life<'_>, who: usize, mut choices: Choices) {
    let ended = work(life, who, &mut choices);
    life.ended(who, ended);
}

fn work(life: &Life<'_>, who: usize, choices: &mut Choices) -> Step {
    for _ in 0..choices.below(24) {
        for _ in 0..choices.below(16) {
            life.turns.wait("time to pass");
        }
        if life.is_over() || life.record().busy == 0 {
            break;
        }
        match round(life, who, choices) {
            Err(stop) if stop.kind() == Some(ErrorKind::NoSpace) => life.make_room(who, stop)?,
            other => other?,
        }
    }
    Ok(())
}

fn round(life: &Life<'_>, who: usize, choices: &mut Choices) -> Step {
    let returned = life.record().returned;
    match choices.below(16) {
        0..=2 => {
            life.say(who, || "checkpoint".to_owned());
            life.db.checkpoint().doing(|| "checkpoint".to_owned())?;
            durable(life, returned);
        }
        3..=4 => {
            life.say(who, || "flush".to_owned());
            life.db.flush().doing(|| "flush".to_owned())?;
            durable(life, returned);
        }
        5 => {
            life.say(who, || "verify".to_owned());
            let mut tally = Tally::default();
            let verified = verify(life.db, &mut tally);
            life.record().tally += tally;
            match verified {
                // Transactions did not end in time.
                Err(stop) if stop.kind() == Some(ErrorKind::Conflict) => {}
                other => other?,
            }
        }
        6 => {
            let mut record = life.record();
            let nth = choices.below(8) as usize;
            if let Some((client, canceller)) = record.running.iter().nth(nth) {
                life.say(who, || format!("cancel {client}"));
                let canceller = canceller.clone();
                record.tally.cancellations += 1;
                drop(record);
                canceller.cancel();
            }
        }
        7..=9 => {
            let mut tally = Tally::default();
            let done = reshape(life.db, life.plan, choices, &mut tally, &mut |line| life.say(who, || line));
            life.record().tally += tally;
            match done {
                // Its commit is durable, and so are all before.
                Ok(true) => durable(life, returned),
                Ok(false) => {}
                // A full log is nobody's fault.
                Err(stop) if stop.kind() == Some(ErrorKind::LogFull) => {
                    life.db.checkpoint().doing(|| "checkpoint after LogFull".to_owned())?;
                }
                Err(stop) => return Err(stop),
            }
        }
        _ => {
            life.say(who, || "maintain".to_owned());
            for _ in 0..choices.between(1, 4) {
                if !life.db.maintain().doing(|| "maintain".to_owned())? {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Every commit up to here has been made durable.
fn durable(life: &Life<'_>, up_to: u64) {
    let mut record = life.record();
    record.required = record.required.max(up_to);
}
