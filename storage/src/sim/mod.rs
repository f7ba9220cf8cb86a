//! A simulated disk: a machine in memory that stops, loses, tears, reorders and corrupts on a seed's command.
//!
//! # The fault model
//!
//! **Writes.** A write is visible to reads at once. Until its file is synced, a power cut leaves each 512-byte sector it
//! touched in any state the sector went through since the last sync, or as that sync left it, each sector for itself:
//! writes may be lost, torn, and reach the disk in any order. A sector is never torn inside. Bytes that an earlier
//! successful sync covered, and that were not written since, always survive.
//!
//! **Lengths** reach the disk in order, but in no order to the writes: a file may come back long, and with zeros where
//! the new bytes were, or with the bytes cut off. Space reserved by `allocate` is durable together with the length.
//!
//! **Names.** Creation, rename and removal are visible at once. They are durable when every directory concerned has been
//! synced; until then each may survive or not, a rename whole or not at all, and none without the earlier changes of the
//! same names. A file whose creation is lost is gone, synced or not.
//!
//! **Crashes** ([`CrashMode`]) happen at any I/O ([`SimStorage::crash_at`]): the call at which the machine stops may be
//! done, done in part (a write: in whole sectors, from its start) or not, and it and all later calls fail. Then
//! [`SimStorage::crash`] gives the machine that comes up. A killed process leaves the page cache; a power cut does not.
//!
//! **A failed sync** (an injected `Eio` or `Enospc`) leaves some of the sectors it should have written on the disk and
//! others not, and marks all of them clean: reads still see them, but no later sync writes them, only writing them again
//! does (Rebello et al., ATC 2020). [`SimStorage::drop_clean_cache`] makes the page cache forget them. New lengths are
//! different: they stay unsynced until a sync succeeds. A failed directory sync changes nothing.
//!
//! **Other faults**, by schedule ([`Fault`]): EIO, ENOSPC, EINTR and short transfers on any call that can have them, lost
//! and misdirected writes. A write that fails with EIO may have happened in part. A disk of limited size
//! ([`SimStorage::set_capacity_bytes`]) takes what fits and then refuses; holes cost nothing, blocks are 4 KiB. Damage
//! ([`SimStorage::flip_bit`], [`SimStorage::overwrite`]) strikes disk and page cache alike.
//!
//! **Not simulated**: sectors torn inside; a disk that acknowledges a sync without doing it (that is a lost write by another
//! name); damage to names or lengths; reads that return other bytes than the page cache has; latency; the order in which
//! threads run. With more than one thread the same seed gives the same run only if the threads are scheduled alike.
//!
//! # Determinism
//!
//! Everything is derived from the seeds given to [`SimStorage::new`] and [`SimStorage::crash`] and from the calls made,
//! clock and random bits included; [`SimStorage::fingerprint`] proves it. Blocks are shared between a machine and its
//! images, so an image costs what is unsynced, not what the disk holds.

mod clock;
mod content;
mod crash;
mod data;
mod fault;
mod fingerprint;
mod handle;
mod machine;
mod namespace;
mod observer;
mod rng;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use crash::CrashMode;
pub use fault::{Fault, FaultKind, Fired, Operation, Operations, Repeat, When};
pub use observer::Observer;
pub use rng::Rng;

use crate::name;
use crate::{File, FileId, Lock, Scheduler, Storage};
use handle::{SimFile, SimLock};
use machine::Machine;
use namespace::InodeId;

/// The text of the error, of kind `Other`, that every call on a stopped machine returns.
pub const SIMULATED_CRASH: &str = "simulated crash";

/// Whether an error says that the simulated machine has stopped.
pub fn is_simulated_crash(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Other && error.get_ref().is_some_and(|e| e.to_string() == SIMULATED_CRASH)
}

/// A handle on a simulated machine; clones are handles on the same one.
#[derive(Clone)]
pub struct SimStorage {
    machine: Arc<Machine>,
}

impl fmt::Debug for SimStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.machine.state.lock();
        f.debug_struct("SimStorage")
            .field("io_count", &state.io_count)
            .field("crashed", &state.stopped)
            .finish_non_exhaustive()
    }
}

/// Crashes and what comes of them.
impl SimStorage {
    /// A new machine with an empty disk.
    pub fn new(seed: u64) -> SimStorage {
        SimStorage { machine: Arc::new(Machine::new(seed)) }
    }

    /// Stops the machine at the I/O of this number, or at the next if there were more already: that call and all later
    /// ones fail with [`SIMULATED_CRASH`]. The first I/O is number 1.
    pub fn crash_at(&self, io_number: u64) {
        self.machine.state.lock().crash_at = Some(io_number);
    }

    /// Stops the machine now, between two calls, and returns the one that comes up from its disk. Handles on the old one,
    /// its open files included, only fail from here on; its locks hold nobody up. Capacity and time go on, but the new
    /// machine has no faults scheduled, no crash, no observer, and counts its I/Os from 0.
    #[must_use = "the old machine is of no use any more"]
    pub fn crash(&self, mode: CrashMode, seed: u64) -> SimStorage {
        self.machine.state.lock().stopped = true;
        self.crash_image(mode, seed)
    }

    /// What [`SimStorage::crash`] would return, while this machine goes on (or stays stopped): one moment can be looked at
    /// under many seeds.
    #[must_use = "taking an image changes nothing"]
    pub fn crash_image(&self, mode: CrashMode, seed: u64) -> SimStorage {
        SimStorage { machine: Arc::new(self.machine.restart(mode, seed)) }
    }

    /// Whether the machine has stopped.
    pub fn is_crashed(&self) -> bool {
        self.machine.state.lock().stopped
    }
}

/// Faults and damage.
impl SimStorage {
    /// Schedules a fault beside those already scheduled.
    pub fn inject(&self, fault: Fault) {
        self.machine.state.lock().faults.add(fault);
    }

    /// Drops all scheduled faults.
    pub fn clear_faults(&self) {
        self.machine.state.lock().faults.clear();
    }

    /// The faults that struck so far.
    pub fn fired(&self) -> Vec<Fired> {
        self.machine.state.lock().faults.fired.clone()
    }

    /// Limits the disk: blocks beyond this many bytes are refused with `StorageFull`. `None`: no limit.
    pub fn set_capacity_bytes(&self, capacity_bytes: Option<u64>) {
        self.machine.state.lock().capacity_bytes = capacity_bytes;
    }

    /// What the files take on the disk: blocks that were written or reserved, holes not counted.
    pub fn used_bytes(&self) -> u64 {
        self.machine.state.lock().used_bytes()
    }

    /// Makes the page cache forget what it believes to be durable, as memory pressure does. Matters after a failed sync.
    pub fn drop_clean_cache(&self) {
        self.machine.state.lock().names.drop_clean_cache();
    }

    /// Inverts one bit of a file, on the disk and in the page cache. Bit 0 is the lowest of byte 0.
    pub fn flip_bit(&self, name: &str, bit_offset: u64) -> io::Result<()> {
        let mut byte = [0];
        let mut state = self.machine.state.lock();
        let inode = state.names.find_file(&name::file_parts(name)?)?;
        if state.names.file(inode).read(bit_offset / 8, &mut byte) == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        byte[0] ^= 1 << (bit_offset % 8);
        state.names.file_mut(inode).damage(bit_offset / 8, &byte);
        Ok(())
    }

    /// Replaces bytes of a file, on the disk and in the page cache; not beyond its end.
    pub fn overwrite(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.machine.state.lock();
        let inode = state.names.find_file(&name::file_parts(name)?)?;
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > state.names.file(inode).len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        state.names.file_mut(inode).damage(offset, bytes);
        Ok(())
    }
}

/// Looking on. None of this counts as an I/O, and all of it works on a stopped machine.
impl SimStorage {
    /// How many I/Os there were: calls that succeeded, failed or stopped the machine.
    pub fn io_count(&self) -> u64 {
        self.machine.state.lock().io_count
    }

    /// How many of them were of this kind.
    pub fn operation_count(&self, operation: Operation) -> u64 {
        self.machine.state.lock().operation_counts[operation as usize]
    }

    /// Tells `observer` of every change from here on, instead of whoever was told before.
    pub fn set_observer(&self, observer: Arc<dyn Observer>) {
        self.machine.state.lock().observer = Some(observer);
    }

    /// Lets `scheduler` choose which thread runs from here on. Only the first call has an effect; a machine that comes up after a crash
    /// has none.
    pub fn set_scheduler(&self, scheduler: Arc<dyn Scheduler>) {
        let _set_before = self.machine.scheduler.set(scheduler);
    }

    /// The names of all files, sorted.
    pub fn files(&self) -> Vec<String> {
        let state = self.machine.state.lock();
        state.names.files().iter().map(|(path, _)| path.to_string()).collect()
    }

    /// A file's visible content.
    pub fn read_file(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.machine.state.lock();
        let data = state.names.file(state.names.find_file(&name::file_parts(name)?)?);
        let mut bytes = vec![0; usize::try_from(data.len()).map_err(|_| io::ErrorKind::OutOfMemory)?];
        data.read(0, &mut bytes);
        Ok(bytes)
    }

    /// How many sectors and changes of names a power cut now may lose or keep.
    pub fn unsynced(&self) -> u64 {
        let state = self.machine.state.lock();
        let sectors = |(_, inode): &(_, InodeId)| state.names.file(*inode).pending_sectors();
        state.names.files().iter().map(sectors).sum::<u64>() + state.names.pending_changes() as u64
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.machine.state.lock().clock.advance(by);
    }

    /// A summary of the disk (visible, durable and in between), of the I/O count, the clock and the random streams: equal
    /// after two runs if, beyond reasonable doubt, they did the same.
    pub fn fingerprint(&self) -> u64 {
        self.machine.state.lock().fingerprint()
    }
}

impl Storage for SimStorage {
    fn scheduler(&self) -> Option<&dyn Scheduler> {
        self.machine.scheduler.get().map(|scheduler| &**scheduler)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let parts = name::file_parts(name)?;
        let mut state = self.machine.state.lock();
        let inode = state.whole(Operation::Open, &[name], |state| state.names.find_file(&parts))?;
        Ok(SimFile::open(&self.machine, &mut state, inode))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let parts = name::file_parts(name)?;
        let mut state = self.machine.state.lock();
        let inode = state.whole(Operation::Create, &[name], |state| {
            state.names.check_create(&parts)?;
            state.observe(|observer| observer.created(name));
            let sequence = state.next_sequence();
            state.names.create_file(&parts, sequence)
        })?;
        Ok(SimFile::open(&self.machine, &mut state, inode))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        let parts = name::parts(name)?;
        let state = self.machine.state.lock();
        state.check_running()?;
        Ok(state.names.find(&parts).is_ok())
    }

    fn identity(&self, name: &str) -> io::Result<Option<FileId>> {
        let parts = name::file_parts(name)?;
        let state = self.machine.state.lock();
        state.check_running()?;
        Ok(state.names.find(&parts).ok().map(handle::file_id))
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let parts = name::parts(directory)?;
        let mut state = self.machine.state.lock();
        state.whole(Operation::List, &[directory], |state| state.names.list(&parts))
    }

    fn create_directory(&self, name: &str) -> io::Result<()> {
        let parts = name::parts(name)?;
        let mut state = self.machine.state.lock();
        state.whole(Operation::CreateDirectory, &[name], |state| {
            for depth in 1..=parts.len() {
                let above = &parts[..depth];
                if state.names.find(above).is_err() {
                    state.observe(|observer| observer.created(&above.join("/")));
                }
                let sequence = state.next_sequence();
                state.names.create_directory(above, sequence).map_err(|error| match error.kind() {
                    io::ErrorKind::AlreadyExists if depth < parts.len() => {
                        io::ErrorKind::NotADirectory.into()
                    }
                    _ => error,
                })?;
            }
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from_parts, to_parts) = (name::file_parts(from)?, name::file_parts(to)?);
        let mut state = self.machine.state.lock();
        state.whole(Operation::Rename, &[from, to], |state| {
            state.names.check_rename(&from_parts, &to_parts)?;
            state.observe(|observer| observer.renamed(from, to));
            let sequence = state.next_sequence();
            state.names.rename(&from_parts, &to_parts, sequence)
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let parts = name::file_parts(name)?;
        let mut state = self.machine.state.lock();
        state.whole(Operation::Remove, &[name], |state| {
            state.names.check_remove(&parts)?;
            state.observe(|observer| observer.removed(name));
            let sequence = state.next_sequence();
            state.names.remove(&parts, sequence)
        })
    }

    fn sync_directory(&self, name: &str) -> io::Result<()> {
        let parts = name::parts(name)?;
        let mut state = self.machine.state.lock();
        state.whole(Operation::SyncDirectory, &[name], |state| {
            state.names.sync_directory(&parts)?;
            state.observe(|observer| observer.directory_synced(name));
            Ok(())
        })
    }

    fn lock(&self, name: &str) -> io::Result<Box<dyn Lock>> {
        let parts = name::file_parts(name)?;
        let mut state = self.machine.state.lock();
        let inode = state.whole(Operation::Lock, &[name], |state| {
            match state.names.find_file(&parts) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
            state.names.check_create(&parts)?;
            state.observe(|observer| observer.created(name));
            let sequence = state.next_sequence();
            state.names.create_file(&parts, sequence)
        })?;
        SimLock::take(&self.machine, &mut state, inode)
    }

    fn now_micros(&self) -> u64 {
        self.machine.state.lock().clock.now_micros()
    }

    fn monotonic(&self) -> Duration {
        self.machine.state.lock().clock.monotonic()
    }

    fn random_u64(&self) -> u64 {
        self.machine.state.lock().random.next_u64()
    }
}
