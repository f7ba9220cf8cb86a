//! The clauses of the fault model, one test each.

#![expect(clippy::large_stack_arrays, reason = "test data reads best as array literals")]

mod crashes;
mod damage;
mod faults;
mod names;
mod runs;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use super::*;
use crate::{File, Storage, write_all_at};

const SECTOR: usize = 512;

/// A machine with one file, `f`, that holds `synced` durably, name included.
fn machine_with(synced: &[u8]) -> (SimStorage, Arc<dyn File>) {
    let storage = SimStorage::new(1);
    let file = storage.create("f").unwrap();
    write_all_at(&*file, synced, 0).unwrap();
    file.sync_data().unwrap();
    storage.sync_directory("").unwrap();
    assert_eq!(storage.unsynced(), 0);
    (storage, file)
}

/// The contents of `f` that power cuts of `seeds` seeds leave.
fn outcomes(storage: &SimStorage, seeds: u64) -> BTreeSet<Vec<u8>> {
    (0..seeds).map(|seed| storage.crash_image(CrashMode::Subset, seed).read_file("f").unwrap()).collect()
}

fn after(storage: &SimStorage, mode: CrashMode) -> Vec<u8> {
    storage.crash_image(mode, 0).read_file("f").unwrap()
}
