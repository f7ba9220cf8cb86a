//! The only door to the world: files, clock and randomness.
//!
//! Everything above this crate reaches the outside through [`Storage`], a directory with files in it. Two
//! implementations: [`OsStorage`] is the operating system's, [`sim::SimStorage`] a disk in memory that loses,
//! tears, reorders and corrupts on a seed's command. A [`Subdirectory`] of either is a storage too.
//!
//! I1. Nothing else in the workspace touches `std::fs`, `SystemTime` or a random source.
//! I2. A short transfer or `EINTR` is never an error by itself: [`read_exact_at`], [`write_all_at`] and [`write_all_direct_at`] loop.

mod direct_buffer;
mod error;
mod file;
mod name;
mod os;
pub mod sim;
mod subdirectory;

pub use direct_buffer::DirectBuffer;
pub use error::{Error, Result, is_refused};
pub use file::{
    DIRECT_BLOCK_BYTES, File, FileId, Lock, Scheduler, Storage, read_exact_at, write_all_at,
    write_all_direct_at,
};
pub use os::OsStorage;
pub use subdirectory::Subdirectory;
