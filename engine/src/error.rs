//! The one public error: what the caller should do, what went wrong where, and why.

use std::fmt;

use hamal_storage::Error as LowError;

/// The result of every operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an [`Error`]: one kind per reaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Bytes on disk are not what was written there. Restore or repair; nothing that was read is wrong.
    Corrupt,
    /// The keys are in a partition that is quarantined: its file is missing, or something in it is wrong. Everything else can be used.
    /// [`Error::unavailable_partition`] says which, and why; [`crate::Database::repair`] brings it back.
    PartitionUnavailable,
    /// The directory is not a Hamal database (or not one this version can read). It was left untouched.
    NotADatabase,
    /// Another handle, in this process or another, has the database open.
    Locked,
    /// The disk, or the caller's share of it, is full. The operation had no effect; it works again when there is room.
    NoSpace,
    /// The log has no room. The transaction can only roll back; end old transactions or raise the limit.
    LogFull,
    /// The system refused a read or write.
    Io,
    /// An earlier write or sync failed: no more commits in this handle. Reopen the database; recovery settles it.
    Poisoned,
    /// The commit record was written but its durability is unknown: it may or may not be there after reopening.
    CommitUnknown,
    /// The transaction cannot be serialized with others, or waited too long for a lock. Roll back and try again.
    Conflict,
    /// The table, savepoint or key is not there.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The table was created with other key or value types.
    TypeMismatch,
    /// An argument or option is out of its range: key too large, bounds reversed, unsupported page size.
    InvalidArgument,
    /// The transaction has failed or ended; it can only be dropped or rolled back.
    TransactionEnded,
    /// A limit of the process or machine: address space, threads, memory.
    Limit,
    /// The caller's cancellation flag or progress callback stopped the operation.
    Cancelled,
}

/// What went wrong. [`Error::kind`] says what to do about it, `Display` says it in prose, `source` has the system's answer.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    /// Boxed like the rest, for results are as large as their errors.
    context: Box<str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    unavailable: Option<Box<UnavailablePartition>>,
}

/// A partition that is quarantined, as [`Error::unavailable_partition`] tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnavailablePartition {
    /// Its number.
    pub id: u32,
    /// The table that it is a part of; `None` if the catalog does not say.
    pub table: Option<String>,
    /// No key in it is below this one, encoded; `None`: there is no bound.
    pub lower: Option<Vec<u8>>,
    /// All keys in it are below this one, encoded; `None`: there is no bound.
    pub upper: Option<Vec<u8>>,
    /// Its file, in the database's directory.
    pub file: String,
    /// What is wrong.
    pub cause: String,
}

impl fmt::Display for UnavailablePartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = |key: &Option<Vec<u8>>, open: &str| {
            key.as_ref().map_or_else(|| open.to_owned(), |key| format!("\"{}\"", key.escape_ascii()))
        };
        let (id, file) = (self.id, &self.file);
        match &self.table {
            Some(table) => {
                let (lower, upper) = (bound(&self.lower, "the lowest"), bound(&self.upper, "the end"));
                write!(
                    f,
                    "partition {id} of table {table:?}, with the keys from {lower} to {upper} ({file}), "
                )?;
            }
            None => write!(f, "partition {id} ({file}) ")?,
        }
        write!(f, "is quarantined: {}", self.cause)
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Error { kind, context: context.into().into(), source: None, unavailable: None }
    }

    pub(crate) fn invalid(context: impl Into<String>) -> Self {
        Error::new(ErrorKind::InvalidArgument, context)
    }

    /// Damage in `file` at byte `offset`.
    pub(crate) fn corrupt(
        file: impl fmt::Display,
        offset: u64,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Error::new(
            ErrorKind::Corrupt,
            format!("{file} is damaged at byte {offset}: expected {expected}, found {found}"),
        )
    }

    /// Keys of a partition that is quarantined.
    pub(crate) fn unavailable(partition: UnavailablePartition) -> Self {
        let error = Error::new(ErrorKind::PartitionUnavailable, partition.to_string());
        Error { unavailable: Some(Box::new(partition)), ..error }
    }

    /// Of a [`ErrorKind::PartitionUnavailable`]: which partition, and why. `None` of any other.
    pub fn unavailable_partition(&self) -> Option<&UnavailablePartition> {
        self.unavailable.as_deref()
    }

    /// What the layers below said, if it is they that failed.
    pub(crate) fn low(&self) -> Option<&LowError> {
        self.source.as_ref()?.downcast_ref()
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same transaction, run again from its start, may succeed without anyone's help.
    pub fn is_retryable(&self) -> bool {
        self.kind == ErrorKind::Conflict
    }

    /// Adds what was being done, in front.
    pub(crate) fn context(mut self, what: impl fmt::Display) -> Self {
        self.context = format!("{what}: {}", self.context).into();
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

impl From<LowError> for Error {
    fn from(error: LowError) -> Self {
        let kind = match &error {
            LowError::Corrupt { .. } => ErrorKind::Corrupt,
            LowError::Offline { .. } => ErrorKind::PartitionUnavailable,
            LowError::Poisoned { .. } => ErrorKind::Poisoned,
            LowError::LogFull { .. } => ErrorKind::LogFull,
            LowError::Limit { .. } => ErrorKind::Limit,
            LowError::Invalid(_) => ErrorKind::InvalidArgument,
            e if e.is_no_space() => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Error { kind, context: error.to_string().into(), source: Some(Box::new(error)), unavailable: None }
    }
}
