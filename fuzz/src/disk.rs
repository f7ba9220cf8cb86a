//! The simulated disk under a run, with its monitor, from one crash to the next.

use std::sync::Arc;

use hamal::{Database, OpenMode};
use hamal_storage::Storage;
use hamal_storage::sim::{CrashMode, SimStorage};

use crate::monitor::Monitor;
use crate::plan::Plan;
use crate::workload::{Doing, Step};

/// A disk and who watches it.
#[derive(Debug)]
pub struct Disk {
    sim: SimStorage,
    monitor: Arc<Monitor>,
}

impl Disk {
    /// An empty disk.
    pub fn new(seed: u64, page_bytes: usize) -> Disk {
        Disk::watched(SimStorage::new(seed), Arc::new(Monitor::new(page_bytes)))
    }

    fn watched(sim: SimStorage, monitor: Arc<Monitor>) -> Disk {
        sim.set_observer(Arc::clone(&monitor) as _);
        Disk { sim, monitor }
    }

    /// What survives of this disk when the machine stops now; it replaces the disk.
    pub fn crash(&mut self, mode: CrashMode, seed: u64) {
        self.monitor.restart();
        let image = self.sim.crash(mode, seed);
        *self = Disk::watched(image, Arc::clone(&self.monitor));
    }

    /// The same, leaving this disk as it is: any number of images can be had of it.
    #[must_use]
    pub fn image(&self, mode: CrashMode, seed: u64) -> Disk {
        let monitor = self.monitor.fork();
        monitor.restart();
        Disk::watched(self.sim.crash_image(mode, seed), Arc::new(monitor))
    }

    /// Opens the database on this disk.
    pub fn open(&self, plan: &Plan, mode: OpenMode) -> Step<Database> {
        self.monitor.restart();
        plan.options(mode).open_on(self.storage()).doing(|| "open".to_owned())
    }

    /// As the database sees it.
    pub fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(self.sim.clone())
    }

    /// The simulated disk.
    pub fn sim(&self) -> &SimStorage {
        &self.sim
    }

    /// The monitor.
    pub fn monitor(&self) -> &Monitor {
        &self.monitor
    }
}
