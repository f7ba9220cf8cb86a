//! RocksDB, both kinds of concurrent transactions (its wiki, "Transactions"). `OptimisticTransactionDB` takes no locks and
//! validates at commit; `TransactionDB` locks keys, here with deadlock detection. Both read what they will write with
//! `GetForUpdate`, without which a read is not validated. Synchronous commits are `WriteOptions::sync`; relaxed ones are the
//! default, in the system's hands (wiki, "WAL Performance"). Options as the wiki's "Setup Options and Basic Tuning" recommends;
//! concurrent memtable writes and group commit are the default.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, DBCompressionType, ErrorKind, IteratorMode, OptimisticTransactionDB,
    OptimisticTransactionOptions, Options, SingleThreaded, Transaction as RocksTransaction, TransactionDB,
    TransactionDBOptions, TransactionOptions, WriteOptions,
};

use super::{Failure, Session, Setup, Step, Store, Transaction, Work, fatal};
use crate::peer::{Commit, Outcome};

type Optimistic = OptimisticTransactionDB<SingleThreaded>;
type Locking = TransactionDB<SingleThreaded>;

/// What the two kinds do not share in the crate's interface.
pub(super) trait Kind: Sized {
    fn begin(&self, write: &WriteOptions) -> RocksTransaction<'_, Self>;
    fn flush_all(&self) -> Result<(), rocksdb::Error>;
    fn scan(&self, look: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), rocksdb::Error>;
}

impl Kind for Optimistic {
    fn begin(&self, write: &WriteOptions) -> RocksTransaction<'_, Self> {
        self.transaction_opt(write, &OptimisticTransactionOptions::default())
    }

    fn flush_all(&self) -> Result<(), rocksdb::Error> {
        self.flush_wal(true)?;
        self.flush()
    }

    fn scan(&self, look: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), rocksdb::Error> {
        for row in self.iterator(IteratorMode::Start) {
            let (key, value) = row?;
            look(&key, &value);
        }
        Ok(())
    }
}

impl Kind for Locking {
    fn begin(&self, write: &WriteOptions) -> RocksTransaction<'_, Self> {
        let mut options = TransactionOptions::default();
        options.set_deadlock_detect(true);
        self.transaction_opt(write, &options)
    }

    fn flush_all(&self) -> Result<(), rocksdb::Error> {
        self.flush_wal(true)?;
        self.flush()
    }

    fn scan(&self, look: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), rocksdb::Error> {
        for row in self.iterator(IteratorMode::Start) {
            let (key, value) = row?;
            look(&key, &value);
        }
        Ok(())
    }
}

/// A database with the default column family.
pub(super) struct RocksStore<D> {
    database: D,
    commit: Commit,
}

fn options(setup: Setup) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(setup.cache_bytes as usize));
    table.set_block_size(16 << 10);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_max_background_jobs(6);
    options.set_bytes_per_sync(1 << 20);
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

pub(super) fn open_optimistic(directory: &Path, setup: Setup) -> Outcome<RocksStore<Optimistic>> {
    let database = Optimistic::open(&options(setup), directory.join("rows.rocksdb"))?;
    Ok(RocksStore { database, commit: setup.commit })
}

pub(super) fn open_locking(directory: &Path, setup: Setup) -> Outcome<RocksStore<Locking>> {
    let kind = TransactionDBOptions::default();
    let database = Locking::open(&options(setup), &kind, directory.join("rows.rocksdb"))?;
    Ok(RocksStore { database, commit: setup.commit })
}

fn failure(error: rocksdb::Error) -> Failure {
    match error.kind() {
        // Lost validation, a lock's timeout or a deadlock, memtables too young to validate against.
        ErrorKind::Busy | ErrorKind::TimedOut | ErrorKind::TryAgain => Failure::Conflict,
        _ => fatal(error),
    }
}

struct Rows<'d, D>(RocksTransaction<'d, D>);

impl<D> Transaction for Rows<'_, D> {
    fn read(&mut self, key: &[u8], look: &mut dyn FnMut(&[u8])) -> Step<bool> {
        let value = self.0.get_pinned(key).map_err(failure)?;
        Ok(value.map(|value| look(&value)).is_some())
    }

    fn read_to_write(&mut self, key: &[u8], look: &mut dyn FnMut(&[u8])) -> Step<bool> {
        let value = self.0.get_pinned_for_update(key, true).map_err(failure)?;
        Ok(value.map(|value| look(&value)).is_some())
    }

    fn write(&mut self, key: &[u8], value: &[u8]) -> Step<()> {
        self.0.put(key, value).map_err(failure)
    }
}

struct RocksSession<'s, D> {
    database: &'s D,
    write: WriteOptions,
}

impl<D: Kind> Session for RocksSession<'_, D> {
    fn run(&mut self, work: &mut Work<'_>) -> Step<()> {
        let mut rows = Rows(self.database.begin(&self.write));
        match work(&mut rows) {
            Ok(()) => rows.0.commit().map_err(failure),
            Err(lost) => {
                rows.0.rollback().map_err(fatal)?;
                Err(lost)
            }
        }
    }
}

impl<D: Kind + Sync> Store for RocksStore<D> {
    fn session(&self) -> Outcome<Box<dyn Session + '_>> {
        let mut write = WriteOptions::default();
        write.set_sync(self.commit == Commit::Durable);
        Ok(Box::new(RocksSession { database: &self.database, write }))
    }

    fn scan(&self, look: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()> {
        Ok(self.database.scan(look)?)
    }

    fn settle(&self) -> Outcome<()> {
        Ok(self.database.flush_all()?)
    }
}
