//! The floor under a synchronous commit: the least that makes bytes durable.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Writes blocks one after another into a preallocated, zero-filled file and syncs each: what a log can cost at best.
#[derive(Debug)]
pub struct Floor {
    file: File,
    block: Vec<u8>,
    at: u64,
    file_bytes: u64,
}

impl Floor {
    /// Makes the file of `file_bytes`, filled with zeros and synced, so that no later write touches metadata.
    pub fn create(path: &Path, file_bytes: u64, block_bytes: usize) -> io::Result<Floor> {
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(path)?;
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < file_bytes {
            let step = zeros.len().min(usize::try_from(file_bytes - at).unwrap_or(usize::MAX));
            file.write_all_at(&zeros[..step], at)?;
            at += step as u64;
        }
        file.sync_all()?;
        Ok(Floor { file, block: vec![0x5a; block_bytes], at: 0, file_bytes })
    }

    /// One `pwrite` and one `fdatasync`.
    pub fn commit(&mut self) -> io::Result<()> {
        if self.at + self.block.len() as u64 > self.file_bytes {
            self.at = 0;
        }
        self.block[0] = self.block[0].wrapping_add(1);
        self.file.write_all_at(&self.block, self.at)?;
        self.at += self.block.len() as u64;
        self.file.sync_data()
    }
}
