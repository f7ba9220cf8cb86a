//! Exhaustive runs of one fixed piece of work: a crash, and every kind of fault, at every single I/O.
//!
//! The work is drawn from a fixed seed, so it does the same I/Os every time until something strikes. [`crashes`] stops the
//! machine at each I/O, and at each I/O of the recovery that follows; [`faults`] lets each I/O fail, once and from then on.

pub mod crashes;
pub mod faults;

use hamal::{Database, OpenMode};

use crate::choice::Choices;
use crate::disk::Disk;
use crate::model::Model;
use crate::plan::Plan;
use crate::tally::Tally;
use crate::workload::{Session, Step, Stop, Trace};

/// The fixed piece of work.
#[derive(Clone, Debug)]
pub struct Script {
    /// What it is drawn from.
    pub seed: u64,
    /// How the database is laid out.
    pub plan: Plan,
    /// Transactions, with what lies between them.
    pub steps: u64,
}

/// A script being run: what survives it, to be judged.
#[derive(Debug)]
pub struct Performance {
    /// The disk.
    pub disk: Disk,
    /// What must be on it.
    pub model: Model,
    /// Counts.
    pub tally: Tally,
    choices: Choices,
    trace: Trace,
}

impl Script {
    /// The script of the sweeps: a few hundred I/Os, for the cost of a sweep is their square, and in spite of that pages
    /// stolen, overflow values, table changes, rollbacks and checkpoints (`Script::ios` counts them).
    pub fn fixed(page_bytes: usize) -> Script {
        let mut plan = Plan::small(page_bytes);
        // Larger pages make do with fewer I/Os for the same bytes, and a cache of fewer of them steals sooner.
        let (rows, value_bytes, steps) = if page_bytes < 16384 { (120, 6000, 8) } else { (300, 3000, 6) };
        (plan.preload_rows, plan.key_space, plan.value_bytes) = (rows, rows, value_bytes);
        Script { seed: 2, plan, steps }
    }

    /// A disk on which nothing has happened yet.
    pub fn performance(&self) -> Performance {
        Performance {
            disk: Disk::new(self.seed, self.plan.page_bytes),
            model: Model::default(),
            tally: Tally::default(),
            choices: Choices::seeded(self.seed),
            trace: Trace::Off,
        }
    }

    /// Opens the database, works, and closes it.
    pub fn perform(&self, on: &mut Performance) -> Step {
        let db = on.disk.open(&self.plan, OpenMode::OpenOrCreate)?;
        let worked = self.work(&db, on);
        on.tally.add_stats(&db.stats());
        worked?;
        Performance::close(db, &mut on.model)
    }

    /// All of the script that lies between opening and closing.
    pub fn work(&self, db: &Database, on: &mut Performance) -> Step {
        on.session(db, &self.plan).preload()?;
        for _ in 0..self.steps {
            on.session(db, &self.plan).step()?;
        }
        on.session(db, &self.plan).checkpoint()?;
        on.session(db, &self.plan).step()
    }

    /// How many I/Os the whole script has.
    pub fn ios(&self) -> Result<(u64, Tally), String> {
        let mut performance = self.performance();
        self.perform(&mut performance).map_err(|stop| format!("undisturbed: {stop}"))?;
        watched(&performance.disk)?;
        Ok((performance.disk.sim().io_count(), performance.tally))
    }
}

impl Performance {
    /// What a step needs.
    pub fn session<'r>(&'r mut self, db: &'r Database, plan: &'r Plan) -> Session<'r> {
        Session {
            db,
            model: &mut self.model,
            plan,
            choices: &mut self.choices,
            tally: &mut self.tally,
            trace: &mut self.trace,
        }
    }

    /// Closes the database; then everything is durable.
    pub fn close(db: Database, model: &mut Model) -> Step {
        db.close().map_err(|error| Stop::Engine { doing: "close".to_owned(), error })?;
        model.all_durable();
        Ok(())
    }
}

/// Fails if the write-ahead monitor of this disk has seen anything.
pub(crate) fn watched(disk: &Disk) -> Result<(), String> {
    match disk.monitor().violations().first() {
        None => Ok(()),
        Some(violation) => Err(format!("write-ahead monitor: {violation}")),
    }
}
