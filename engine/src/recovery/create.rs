//! Making a new database. The master record comes last: until it is durable, `CREATING` says that whatever is there may go.

use std::sync::Arc;

use hamal_pager::PartitionId;
use hamal_storage::{Error as LowError, Lock, Storage};
use hamal_wal::{Log, Lsn};

use super::{log_options, pager_options, remove_marker};
use crate::catalog::CATALOG;
use crate::checkpoint::{CheckpointState, Effort};
use crate::engine::{Engine, PageCache, Parts};
use crate::ids::TxnId;
use crate::master::{CREATING, Master, MasterFiles};
use crate::report::RecoveryReport;
use crate::tree::Tree;
use crate::{Options, Result};

pub(super) fn create(storage: Arc<dyn Storage>, options: Options, lock: Box<dyn Lock>) -> Result<Engine> {
    clear(&*storage)?;
    let database_id = storage.random_u64() | 1;
    let incarnation = 1;
    let log = Log::create(storage.clone(), log_options(&options, options.log_segment_bytes), incarnation)?;
    let page_bytes = options.page_bytes;
    let layers = PageCache::open(&storage, pager_options(&options, page_bytes, database_id))?.over(log);
    let master = Master {
        sequence: 0,
        database_id,
        page_bytes,
        incarnation,
        log_segment_bytes: options.log_segment_bytes,
        checkpoint_lsn: Lsn::FIRST,
        attested: Lsn::FIRST,
        oldest_lsn: Lsn::FIRST,
        restored_to: Lsn::NEVER,
        history: 0,
    };
    let engine = Engine::new(Parts {
        checkpoint: CheckpointState {
            master: MasterFiles::open(&*storage, master)?,
            last_begin: Lsn::FIRST,
            needed_from: Lsn::FIRST,
            last_end: Lsn::NEVER,
            last_at: storage.monotonic(),
        },
        storage,
        options,
        page_bytes,
        layers,
        partitions: Vec::new(),
        counts: std::collections::BTreeMap::new(),
        next_txn: TxnId(1),
        next_id: CATALOG.0 + 1,
        lock,
    })?;
    let catalog = engine.create_partition(CATALOG)?;
    Tree::format_partition(&engine.journal, &catalog.partition)?;
    engine.take_checkpoint(Effort::Full)?;
    remove_marker(&*engine.storage)?;
    engine.report.get_or_init(|| RecoveryReport {
        clean: true,
        created: true,
        incarnation,
        ..RecoveryReport::default()
    });
    Ok(engine)
}

/// Sets the marker and removes what a broken-off creation left.
fn clear(storage: &dyn Storage) -> Result<()> {
    let io = |action, name: &str, e| LowError::io(action, name, e);
    if !storage.exists(CREATING).map_err(|e| io("look for", CREATING, e))? {
        storage.create(CREATING).map_err(|e| io("create", CREATING, e))?;
    }
    storage.sync_directory("").map_err(|e| io("sync", "the database directory", e))?;
    let remove = |name: &str| match storage.remove(name) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("remove", name, e)),
        _ => Ok(()),
    };
    for directory in ["wal", "part"] {
        if storage.exists(directory).map_err(|e| io("look for", directory, e))? {
            for name in storage.list(directory).map_err(|e| io("list", directory, e))? {
                remove(&format!("{directory}/{name}"))?;
            }
            storage.sync_directory(directory).map_err(|e| io("sync", directory, e))?;
        }
    }
    for name in [hamal_pager::DOUBLEWRITE, crate::master::NAMES[0], crate::master::NAMES[1]] {
        remove(name)?;
    }
    storage.sync_directory("").map_err(|e| io("sync", "the database directory", e))?;
    Ok(())
}

const _: () = assert!(PartitionId(0).0 == CATALOG.0, "the catalog is partition 0");
