//! The floor under a synchronous commit: the least that makes bytes durable.

use std::io;
use std::path::Path;
use std::sync::Arc;

use hamal_storage::{DirectBuffer, File, OsStorage, Storage, write_all_at, write_all_direct_at};

/// Writes blocks one after another into a preallocated, zero-filled file and syncs each: what a log can cost at best.
#[derive(Debug)]
pub struct Floor {
    file: Arc<dyn File>,
    block: DirectBuffer,
    at: u64,
    file_bytes: u64,
}

impl Floor {
    /// Makes the file of `file_bytes` in a directory, filled with zeros and synced, so that no later write touches metadata.
    pub fn create(directory: &Path, file_bytes: u64, block_bytes: usize) -> io::Result<Floor> {
        let file = OsStorage::new(directory).create("floor")?;
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < file_bytes {
            let step = zeros.len().min(usize::try_from(file_bytes - at).unwrap_or(usize::MAX));
            write_all_at(&*file, &zeros[..step], at)?;
            at += step as u64;
        }
        file.sync_data()?;
        let mut block = DirectBuffer::new(block_bytes);
        block.fill(0x5a);
        Ok(Floor { file, block, at: 0, file_bytes })
    }

    /// One `pwrite` past the system's cache, where it can be passed, and one `fdatasync`.
    pub fn commit(&mut self) -> io::Result<()> {
        self.write(write_all_direct_at)
    }

    /// One `pwrite` through the system's cache and one `fdatasync`.
    pub fn commit_cached(&mut self) -> io::Result<()> {
        self.write(write_all_at)
    }

    fn write(&mut self, write: fn(&dyn File, &[u8], u64) -> io::Result<()>) -> io::Result<()> {
        if self.at + self.block.len() as u64 > self.file_bytes {
            self.at = 0;
        }
        self.block[0] = self.block[0].wrapping_add(1);
        write(&*self.file, &self.block, self.at)?;
        self.at += self.block.len() as u64;
        self.file.sync_data()
    }
}
