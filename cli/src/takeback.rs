//! Removing the database that a failed command made.
//!
//! I1. Only a database without tables goes, and only if nobody has opened it since: every opening raises the incarnation.
//! I2. It is locked meanwhile, and gives up its name in one step: whoever opens that name finds all of it, locked, or nothing.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use hamal::{Database, inspect};
use hamal_storage::{OsStorage, Storage};

/// The file whose lock an open database holds.
const LOCK: &str = "LOCK";

/// Closes and removes the database that this process made in `directory`, where nothing was before. In doubt it stays: empty, but sound.
pub(crate) fn take_back(db: Database, directory: &Path) {
    // The command has failed already; this failure would say no more.
    let _ = try_take_back(db, directory);
}

fn try_take_back(db: Database, directory: &Path) -> Option<()> {
    // Batches of a load that were committed are not to be thrown away.
    if !db.tables().ok()?.is_empty() {
        return None;
    }
    let storage: Arc<dyn Storage> = Arc::new(OsStorage::new(directory));
    let made = inspect::master(&storage).ok()?;
    db.close().ok()?;
    let lock = storage.lock(LOCK).ok()?;
    let left = inspect::master(&storage).ok()?;
    if (left.database_id, left.incarnation) != (made.database_id, made.incarnation) {
        return None;
    }
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let bin = tempfile::Builder::new().prefix(".hamal-removed-").tempdir_in(parent).ok()?;
    fs::rename(directory, bin.path().join("database")).ok()?;
    bin.close().ok()?;
    drop(lock);
    Some(())
}
