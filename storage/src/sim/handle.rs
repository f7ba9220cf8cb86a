//! Open files and held locks of the simulated machine.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use super::content::{BLOCK_BYTES, SECTOR_BYTES};
use super::fault::{FaultKind, Operation};
use super::machine::{Machine, State, Verdict, crashed};
use super::namespace::InodeId;
use crate::{File, FileId, Lock};

/// No file is larger than this, as on ext4.
const MAX_FILE_BYTES: u64 = 16 << 40;

/// What tells this file from others.
pub(super) fn file_id(inode: InodeId) -> FileId {
    FileId { device: 0, number: inode.0 }
}

#[derive(Debug)]
pub(super) struct SimFile {
    machine: Arc<Machine>,
    inode: InodeId,
}

impl SimFile {
    /// A handle on a file; `state` is the locked state of `machine`.
    pub(super) fn open(machine: &Arc<Machine>, state: &mut State, inode: InodeId) -> Arc<dyn File> {
        state.names.inode_mut(inode).open_handles += 1;
        Arc::new(SimFile { machine: Arc::clone(machine), inode })
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.machine.state.lock().names.inode_mut(self.inode).open_handles -= 1;
    }
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        check_range(offset, buffer.len() as u64)?;
        let mut state = self.machine.state.lock();
        let path = state.names.path(self.inode);
        let count = match state.begin(Operation::Read, &[&path])? {
            Verdict::Stop => return Err(crashed()),
            Verdict::Fault(FaultKind::Short) => shortened(&mut state, buffer.len()),
            Verdict::Fault(kind) => kind.error().map_or(Ok(buffer.len()), Err)?,
            Verdict::Proceed => buffer.len(),
        };
        Ok(state.names.file(self.inode).read(offset, &mut buffer[..count]))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        check_range(offset, bytes.len() as u64)?;
        let mut state = self.machine.state.lock();
        let state = &mut *state;
        let path = state.names.path(self.inode);
        match state.begin(Operation::Write, &[&path])? {
            Verdict::Proceed => self.write(state, &path, bytes, offset),
            Verdict::Stop => {
                let part = whole_sectors(state, offset, bytes.len());
                let _ = self.write(state, &path, &bytes[..part], offset);
                Err(crashed())
            }
            Verdict::Fault(FaultKind::Short) => {
                let part = shortened(state, bytes.len());
                self.write(state, &path, &bytes[..part], offset)
            }
            Verdict::Fault(FaultKind::LostWrite) => {
                state.observe(|observer| observer.write(&path, offset, bytes));
                Ok(bytes.len())
            }
            Verdict::Fault(FaultKind::Misdirected { by_bytes }) => {
                state.observe(|observer| observer.write(&path, offset, bytes));
                let there = offset.saturating_add_signed(by_bytes);
                check_range(there, bytes.len() as u64)?;
                let sequence = state.next_sequence();
                state.names.file_mut(self.inode).write(there, bytes, sequence);
                Ok(bytes.len())
            }
            Verdict::Fault(kind @ (FaultKind::Eio | FaultKind::Enospc | FaultKind::Interrupted)) => {
                if kind == FaultKind::Eio {
                    let part = whole_sectors(state, offset, bytes.len());
                    let _ = self.write(state, &path, &bytes[..part], offset);
                }
                Err(kind.error().unwrap_or_else(crashed))
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.machine.state.lock();
        let state = &mut *state;
        let path = state.names.path(self.inode);
        match state.begin(Operation::Sync, &[&path])? {
            // What a stopping machine got done of a sync is what any power cut leaves of unsynced writes.
            Verdict::Stop => Err(crashed()),
            Verdict::Fault(kind) if let Some(error) = kind.error() => {
                state.names.file_mut(self.inode).fail_sync(&mut state.chance);
                Err(error)
            }
            Verdict::Fault(_) | Verdict::Proceed => {
                state.names.file_mut(self.inode).sync();
                state.observe(|observer| observer.synced(&path));
                Ok(())
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.machine.state.lock();
        state.check_running()?;
        Ok(state.names.file(self.inode).len())
    }

    fn identity(&self) -> io::Result<FileId> {
        self.machine.state.lock().check_running()?;
        Ok(file_id(self.inode))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        check_range(len, 0)?;
        let mut state = self.machine.state.lock();
        let path = state.names.path(self.inode);
        state.whole(Operation::SetLen, &[&path], |state| {
            state.observe(|observer| observer.resized(&path, len));
            let sequence = state.next_sequence();
            state.names.file_mut(self.inode).set_len(len, sequence);
            Ok(())
        })
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(offset, len)?;
        let mut state = self.machine.state.lock();
        let path = state.names.path(self.inode);
        state.whole(Operation::Allocate, &[&path], |state| {
            if len == 0 {
                return Ok(());
            }
            if state.capacity_bytes.is_some()
                && state.names.file(self.inode).needed_blocks(offset, len) > state.free_blocks()
            {
                return Err(Errno::NOSPC.into());
            }
            if offset + len > state.names.file(self.inode).len() {
                state.observe(|observer| observer.resized(&path, offset + len));
            }
            let sequence = state.next_sequence();
            state.names.file_mut(self.inode).reserve(offset, len, sequence);
            Ok(())
        })
    }
}

impl SimFile {
    /// Writes what the disk has room for.
    fn write(&self, state: &mut State, path: &str, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let count = self.room(state, offset, bytes.len());
        if count == 0 {
            return if bytes.is_empty() { Ok(0) } else { Err(Errno::NOSPC.into()) };
        }
        let bytes = &bytes[..count];
        state.observe(|observer| observer.write(path, offset, bytes));
        let sequence = state.next_sequence();
        state.names.file_mut(self.inode).write(offset, bytes, sequence);
        Ok(count)
    }

    /// How many bytes of a write the disk has room for.
    fn room(&self, state: &State, offset: u64, len: usize) -> usize {
        let data = state.names.file(self.inode);
        if state.capacity_bytes.is_none() || data.needed_blocks(offset, len as u64) == 0 {
            return len;
        }
        let mut left = state.free_blocks();
        let mut count = 0;
        while count < len {
            let at = offset + count as u64;
            let piece = (BLOCK_BYTES - (at % BLOCK_BYTES as u64) as usize).min(len - count);
            match left.checked_sub(data.needed_blocks(at, piece as u64)) {
                Some(after) => left = after,
                None => break,
            }
            count += piece;
        }
        count
    }
}

/// A part of a transfer, at least one byte.
fn shortened(state: &mut State, len: usize) -> usize {
    if len <= 1 { len } else { 1 + state.chance.index(len - 1) }
}

/// How much of a write happens when it is interrupted: nothing, all, or something that ends with a sector.
fn whole_sectors(state: &mut State, offset: u64, len: usize) -> usize {
    let within = (offset % SECTOR_BYTES as u64) as usize;
    let sectors = (within + len).div_ceil(SECTOR_BYTES);
    (state.chance.index(sectors + 1) * SECTOR_BYTES).saturating_sub(within).min(len)
}

fn check_range(offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= MAX_FILE_BYTES => Ok(()),
        _ => Err(Errno::FBIG.into()),
    }
}

#[derive(Debug)]
pub(super) struct SimLock {
    machine: Arc<Machine>,
    inode: InodeId,
}

impl SimLock {
    /// Takes the lock on a file; `state` is the locked state of `machine`.
    pub(super) fn take(
        machine: &Arc<Machine>,
        state: &mut State,
        inode: InodeId,
    ) -> io::Result<Box<dyn Lock>> {
        if !state.locked.insert(inode) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.names.inode_mut(inode).open_handles += 1;
        Ok(Box::new(SimLock { machine: Arc::clone(machine), inode }))
    }
}

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.machine.state.lock();
        state.locked.remove(&self.inode);
        state.names.inode_mut(self.inode).open_handles -= 1;
    }
}
