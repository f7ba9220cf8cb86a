//! Looking into a database's files without opening it: log records, pages, what recovery would do. Read-only; for tools
//! (interface).

use std::sync::Arc;

use hamal_storage::Storage;

use crate::{RecoveryReport, Result};

/// What the master record says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MasterInfo {
    /// The database's id.
    pub database_id: u64,
    /// Page size, bytes.
    pub page_bytes: usize,
    /// BEGIN record of the last checkpoint.
    pub checkpoint_lsn: u64,
    /// Oldest LSN the log must still have.
    pub oldest_lsn: u64,
    /// The log's incarnation.
    pub incarnation: u32,
    /// Sequence number of the master record itself.
    pub sequence: u64,
}

/// One page's part of a log record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogPage {
    /// Partition.
    pub partition: u32,
    /// Page.
    pub page: u32,
    /// The page's LSN before this record.
    pub page_prev_lsn: u64,
    /// What happens to it, readable.
    pub change: String,
}

/// One log record, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogEntry {
    /// Where it starts.
    pub lsn: u64,
    /// Where the next starts.
    pub end_lsn: u64,
    /// Incarnation of the log that wrote it.
    pub incarnation: u32,
    /// Its kind: `update`, `compensation`, `commit`, ...
    pub kind: String,
    /// The transaction, 0 for none.
    pub txn: u64,
    /// The transaction's previous record in the same partition, 0 for none.
    pub prev_lsn: u64,
    /// For a compensation: what is to be undone next.
    pub undo_next_lsn: Option<u64>,
    /// The pages it changes.
    pub pages: Vec<LogPage>,
    /// Everything else, readable ("commit at 2026-...", "undo: ...").
    pub detail: String,
}

/// One page, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PageInfo {
    /// Kind, readable: `leaf`, `inner`, `bitmap`, ...
    pub kind: String,
    /// Page LSN.
    pub page_lsn: u64,
    /// `max_txn`.
    pub max_txn: u64,
    /// Level; 0 for leaves.
    pub level: u8,
    /// What is wrong with it, if anything (checksum, identity, structure).
    pub damage: Option<String>,
    /// Its fields, in order: name and readable value.
    pub fields: Vec<(String, String)>,
    /// Its entries (rows, separators, runs of allocated pages), readable, in order: key and description.
    pub entries: Vec<(Vec<u8>, String)>,
}

/// Reads the master record. `NotADatabase` if there is none.
#[expect(unused_variables, clippy::needless_pass_by_value, reason = "interface")]
pub fn master(storage: Arc<dyn Storage>) -> Result<MasterInfo> {
    unimplemented!()
}

/// Calls `visit` with each record from `from` (0: the last checkpoint) until `to` (0: the end) or until it returns
/// `false`. `from` may lie anywhere in the live log: it is moved up to the next record.
#[expect(unused_variables, clippy::needless_pass_by_value, reason = "interface")]
pub fn log(
    storage: Arc<dyn Storage>,
    from: u64,
    to: u64,
    visit: &mut dyn FnMut(&LogEntry) -> bool,
) -> Result<()> {
    unimplemented!()
}

/// Reads and decodes one page of a partition's file; damage is told, not an error.
#[expect(unused_variables, clippy::needless_pass_by_value, reason = "interface")]
pub fn page(storage: Arc<dyn Storage>, partition: u32, page: u32) -> Result<PageInfo> {
    unimplemented!()
}

/// What recovery would find: the analysis pass alone. Changes nothing.
#[expect(unused_variables, clippy::needless_pass_by_value, reason = "interface")]
pub fn analyze(storage: Arc<dyn Storage>) -> Result<RecoveryReport> {
    unimplemented!()
}
