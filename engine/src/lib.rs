//! Hamal: an embedded, transactional, ordered key-value storage engine with ARIES recovery.

#![forbid(unsafe_code)]

mod active;
mod archive;
pub mod backup;
mod balance;
mod catalog;
mod change;
mod checkpoint;
mod codec;
mod counts;
mod database;
mod encoding;
mod engine;
mod error;
mod graves;
mod healing;
mod ids;
pub mod inspect;
mod journal;
mod load;
mod locks;
mod maintenance;
mod master;
#[cfg(feature = "metrics")]
pub mod metrics;
mod node;
mod options;
mod overflow;
mod partitions;
#[doc(hidden)]
pub mod planted;
mod quarantine;
mod raw;
mod record;
mod recovery;
mod repair;
mod report;
mod reshape;
mod restore_range;
mod retention;
mod retry;
mod rollback;
mod routes;
mod schema;
mod scrub;
mod shard;
mod snapshot;
mod space;
mod table;
mod timeline;
#[cfg(test)]
mod tracing_tests;
mod trailing;
mod transaction;
mod tree;
mod turns;
mod validation;
mod verify;
mod versions;
mod view;
mod views;
mod waits;

pub use archive::ArchiveReport;
pub use balance::{BalanceAction, BalanceReason, BalancerOptions};
pub use database::Database;
#[cfg(target_endian = "little")]
pub use encoding::Pod;
#[cfg(feature = "serde")]
pub use encoding::Serde;
pub use encoding::{Key, Value};
pub use error::{Error, ErrorKind, Result, UnavailablePartition};
pub use options::{Durability, Isolation, Maintenance, OpenMode, Options, Scrub, TransactionOptions};
pub use partitions::{PartitionInfo, PartitionState};
pub use raw::ValueReader;
pub use repair::{RepairBase, RepairOptions, RepairReport};
pub use report::{
    CheckpointReport, Finding, PartitionReport, PassReport, RecoveryPass, RecoveryProgress, RecoveryReport,
    Stats, VerifyProgress, VerifyReport,
};
pub use reshape::{ReshapeProgress, ReshapeReport};
pub use restore_range::{KeyRange, RangeRestoreOptions, RangeRestoreReport};
pub use retry::{Retry, RetryOptions};
pub use scrub::{ScrubProgress, ScrubReport};
pub use snapshot::Snapshot;
pub use table::{
    Entry, ExtractIf, Keys, OccupiedEntry, Range, ReadTable, Table, TableDef, VacantEntry, Values,
};
pub use transaction::{Canceller, CommitTicket, Savepoint, TableInfo, Transaction};
