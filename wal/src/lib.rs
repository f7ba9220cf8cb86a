//! The write-ahead log: framing, append, group commit, segments, scan. Payloads are opaque here.
//!
//! The log is one endless stream of bytes; an [`Lsn`] is an offset in it. Records are framed (`frame`), may
//! straddle segment files (`segments`), and are read back by [`Scanner`], whose decision table tells a torn
//! tail from damage.
//!
//! The life of a record: a thread takes a [`Permit`] (room in the ring and in the log, before any latch), appends
//! under it (`fetch_add`, copy, publish; never waits, never fails), and, when it must, calls
//! [`Log::make_durable`], which leads a group flush or joins one (`group`, `flusher`).
//!
//! Frontiers, each only growing: oldest <= free <= durable <= published <= tail <= claimed <= spoken for
//! <= prepared end. `ring` owns free, tail and claimed, `group` durable, `budget` oldest and spoken for, `segments` the
//! prepared end.
//!
//! Order of locks: leader's turn (`group`) before the flusher; maintenance before the segment table; neither
//! of the two pairs is held while taking the other, except that a flush looks files up in the table. Who waits for room clears the
//! shelves (`stock`) under the mutex of `group`; nothing is locked under a shelf.
#![forbid(unsafe_code)]

mod behind;
mod budget;
mod flusher;
mod frame;
mod group;
mod log;
#[cfg(all(test, loom))]
mod loom_models;
mod lsn;
mod permit;
mod rebuild;
mod resume;
mod ring;
mod scan;
mod segments;
mod stock;
mod stream;
mod sync;
#[cfg(all(test, not(loom)))]
mod tests;

pub use log::{Log, LogOptions, LogStats};
pub use lsn::Lsn;
pub use permit::{Permit, Placed};
pub use rebuild::LogBuilder;
pub use scan::{End, Frame, FrameBatch, Resume, Scanner};
pub use stream::FrameStream;
