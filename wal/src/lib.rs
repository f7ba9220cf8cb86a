//! The write-ahead log: framing, append, group commit, segments, scan. Payloads are opaque here.

mod log;
mod lsn;
mod scan;

pub use log::{Log, LogOptions, Permit};
pub use lsn::Lsn;
pub use scan::{End, Frame, Resume, Scanner};
