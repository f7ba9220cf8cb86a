//! The error of the layers below the public API.

use std::io;

/// What went wrong below the engine. The engine turns it into the one public error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused an operation on a file.
    #[error("could not {action} {file}: {source}")]
    Io {
        /// What was tried, as a verb: "read", "write", "sync".
        action: &'static str,
        /// The file, relative to the database directory.
        file: String,
        /// The system's answer; `StorageFull` and `QuotaExceeded` mean that the disk is full.
        source: io::Error,
    },
    /// Bytes on disk are not what was written there.
    #[error("{file} is damaged at byte {offset}: expected {expected}, found {found}")]
    Corrupt {
        /// The file, relative to the database directory.
        file: String,
        /// Where in the file.
        offset: u64,
        /// What a sound file has there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// An earlier write or sync failed; what the disk holds is unknown until the database is reopened.
    #[error("the database is poisoned by an earlier failure: {cause}")]
    Poisoned {
        /// The first failure, as text.
        cause: String,
    },
    /// The file, or what it was kept in memory of, is not used any more: something is wrong with it, or it has been replaced.
    #[error("{file} is offline")]
    Offline {
        /// The file, relative to the database directory.
        file: String,
    },
    /// The log has no room for this record beside what is reserved for rollback and checkpoints.
    #[error("the log is full: {needed_bytes} bytes needed, {available_bytes} available")]
    LogFull {
        /// What the caller asked for.
        needed_bytes: u64,
        /// What is left.
        available_bytes: u64,
    },
    /// A limit of the process or the machine: address space, threads, memory.
    #[error("{what} is not to be had: {why}")]
    Limit {
        /// What was asked for.
        what: String,
        /// The system's answer and what to change.
        why: String,
    },
    /// The caller's configuration cannot work.
    #[error("{0}")]
    Invalid(String),
}

/// The result of an operation below the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps a system error with what was tried on which file.
    pub fn io(action: &'static str, file: impl Into<String>, source: io::Error) -> Self {
        Error::Io { action, file: file.into(), source }
    }

    /// Whether the disk, or the caller's share of it, is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Error::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Whether the system refuses a file, or a part of it, for a reason that lies with these: neither a full disk nor a limit of the process.
pub fn is_refused(error: &io::Error) -> bool {
    /// EIO, ENXIO, ENODEV: the device does not answer as it should.
    const DEVICE_ERRORS: [i32; 3] = [5, 6, 19];
    error.raw_os_error().is_some_and(|code| DEVICE_ERRORS.contains(&code))
        || matches!(
            error.kind(),
            io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::IsADirectory
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::StaleNetworkFileHandle
        )
}
