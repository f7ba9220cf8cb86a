//! The open database (interface).

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use hamal_storage::Storage;

use crate::report::{CheckpointReport, RecoveryReport, Stats, VerifyProgress, VerifyReport};
use crate::{Options, Result, Snapshot, TableInfo, Transaction, TransactionOptions};

/// An open database. Cheap to clone; all clones, transactions and snapshots share one handle, which closes when the last is dropped.
#[derive(Clone, Debug)]
pub struct Database {}

#[expect(unused_variables, clippy::needless_pass_by_value, clippy::unused_self, reason = "interface")]
impl Database {
    /// Opens, or makes, the database in this directory with default [`Options`].
    pub fn open(path: impl AsRef<Path>) -> Result<Database> {
        Options::new().open(path)
    }

    pub(crate) fn open_path(path: &Path, options: Options) -> Result<Database> {
        unimplemented!()
    }

    pub(crate) fn open_storage(storage: Arc<dyn Storage>, options: Options) -> Result<Database> {
        unimplemented!()
    }

    /// Starts a read-write transaction with the database's durability.
    pub fn begin(&self) -> Result<Transaction> {
        self.begin_with(TransactionOptions::new())
    }

    /// Starts a read-write transaction.
    pub fn begin_with(&self, options: TransactionOptions) -> Result<Transaction> {
        unimplemented!()
    }

    /// Runs `work` in a transaction and commits it; runs it again, on a new transaction, when it or the commit returns a
    /// retryable error. Any other error, and a panic, rolls back.
    pub fn transact<T>(&self, work: impl FnMut(&Transaction) -> Result<T>) -> Result<T> {
        unimplemented!()
    }

    /// A read-only view of the committed state.
    pub fn snapshot(&self) -> Result<Snapshot> {
        unimplemented!()
    }

    /// All tables, by name.
    pub fn tables(&self) -> Result<Vec<TableInfo>> {
        unimplemented!()
    }

    /// Takes a checkpoint now.
    pub fn checkpoint(&self) -> Result<CheckpointReport> {
        unimplemented!()
    }

    /// With [`crate::Maintenance::Manual`]: does what the background threads would do by now. Returns whether
    /// anything was done.
    pub fn maintain(&self) -> Result<bool> {
        unimplemented!()
    }

    /// Makes every commit so far durable, whatever its durability.
    pub fn flush(&self) -> Result<()> {
        unimplemented!()
    }

    /// Proves every invariant of every page of every partition. Damage is reported in the findings, not as an error.
    pub fn verify(
        &self,
        progress: &mut dyn FnMut(VerifyProgress) -> ControlFlow<()>,
    ) -> Result<VerifyReport> {
        unimplemented!()
    }

    /// What opening found and did.
    pub fn recovery_report(&self) -> &RecoveryReport {
        unimplemented!()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }

    /// Closes the database: waits for background work, takes a last checkpoint, and says whether all that worked.
    /// `InvalidArgument` while transactions or snapshots are open (then the handle stays usable).
    pub fn close(self) -> Result<()> {
        unimplemented!()
    }
}
