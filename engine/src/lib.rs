//! Hamal: an embedded, transactional, ordered key-value storage engine with ARIES recovery.

#![forbid(unsafe_code)]

mod change;
mod error;
mod ids;
mod journal;
mod record;
mod tree;

pub use error::{Error, ErrorKind, Result};
