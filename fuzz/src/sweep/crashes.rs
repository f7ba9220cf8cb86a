//! A crash at every I/O of the script, and at every I/O of the recovery that follows.

use hamal::{ErrorKind, OpenMode};
use hamal_storage::sim::CrashMode;

use super::{Script, watched};
use crate::choice::mix;
use crate::disk::Disk;
use crate::model::Model;
use crate::plan::Plan;
use crate::tally::Tally;
use crate::workload::{Step, Stop, read_state, verify};

/// Which of all crashes to try.
#[derive(Clone, Copy, Debug)]
pub struct Stride {
    /// One in so many I/Os of the script.
    pub script: u64,
    /// One in so many I/Os of each recovery.
    pub recovery: u64,
    /// Start with this I/O of the script, counted from 0: lets several threads share a sweep.
    pub offset: u64,
}

/// What a crash leaves, tried at every point.
const MODES: [CrashMode; 3] = [CrashMode::LoseAll, CrashMode::Subset, CrashMode::Kill];

/// Crashes the script at every I/O (of the stride). `progress` hears of each point.
pub fn sweep(script: &Script, stride: Stride, progress: &mut dyn FnMut(u64, u64)) -> Result<Tally, String> {
    let (ios, _) = script.ios()?;
    let mut tally = Tally::default();
    let mut io = 1 + stride.offset;
    while io <= ios {
        tally +=
            crash_at(script, io, stride.recovery).map_err(|what| format!("crash at I/O {io}: {what}"))?;
        progress(io, ios);
        io += stride.script;
    }
    Ok(tally)
}

/// Crashes the script at one I/O, in every mode, and then the recovery at each of its own.
pub fn crash_at(script: &Script, io: u64, recovery_stride: u64) -> Result<Tally, String> {
    let mut performance = script.performance();
    performance.disk.sim().crash_at(io);
    match script.perform(&mut performance) {
        Err(Stop::Wrong(what)) => return Err(what),
        Err(stop) if stop.kind() == Some(ErrorKind::Corrupt) => return Err(stop.to_string()),
        Err(_) if performance.disk.sim().is_crashed() => {}
        Err(stop) => return Err(format!("before the crash: {stop}")),
        // The last I/O may be one whose failure nobody need hear of: the lock is given back, a file removed.
        Ok(()) => {}
    }
    watched(&performance.disk)?;
    let mut tally = performance.tally;
    for (mode, seed) in MODES.into_iter().zip(io * 8..) {
        let before = Before { disk: &performance.disk, model: &performance.model, mode, seed };
        tally += before
            .recover_with_crashes(&script.plan, recovery_stride)
            .map_err(|what| format!("{mode:?}: {what}"))?;
    }
    Ok(tally)
}

/// A disk that crashed, of which any number of images can be had.
struct Before<'d> {
    disk: &'d Disk,
    model: &'d Model,
    mode: CrashMode,
    seed: u64,
}

impl Before<'_> {
    fn recover_with_crashes(&self, plan: &Plan, stride: u64) -> Result<Tally, String> {
        let mut tally = Tally::default();
        let image = self.disk.image(self.mode, mix(self.seed));
        let ios = recover(&image, self.model, plan, &mut tally).map_err(|stop| stop.to_string())?;
        tally.crashes += 1;
        // Not the same points for every crash of the script, so that a strided sweep sees them all in the end.
        let mut io = 1 + self.seed % stride;
        while io <= ios {
            self.crash_again(plan, io, &mut tally)
                .map_err(|what| format!("crash at I/O {io} of {ios} of the recovery: {what}"))?;
            io += stride;
        }
        Ok(tally)
    }

    fn crash_again(&self, plan: &Plan, io: u64, tally: &mut Tally) -> Result<(), String> {
        let mut image = self.disk.image(self.mode, mix(self.seed));
        image.sim().crash_at(io);
        match image.open(plan, OpenMode::OpenOrCreate) {
            Err(_) if image.sim().is_crashed() => {}
            Err(stop) => return Err(stop.to_string()),
            Ok(db) => drop(db),
        }
        watched(&image)?;
        tally.crashes += 1;
        tally.crashes_in_recovery += 1;
        let mode = MODES[(io % MODES.len() as u64) as usize];
        image.crash(mode, mix(self.seed ^ io << 32));
        recover(&image, self.model, plan, tally).map_err(|stop| format!("then {mode:?}: {stop}"))?;
        Ok(())
    }
}

/// Opens the database and checks everything. Returns how many I/Os opening took.
fn recover(image: &Disk, model: &Model, plan: &Plan, tally: &mut Tally) -> Step<u64> {
    let db = image.open(plan, OpenMode::OpenOrCreate)?;
    let ios = image.sim().io_count();
    tally.add_recovery(db.recovery_report());
    model.clone().recovered(read_state(&db)?).map_err(Stop::Wrong)?;
    tally.comparisons += 1;
    verify(&db, tally)?;
    drop(db);
    watched(image).map_err(Stop::Wrong)?;
    Ok(ios)
}
