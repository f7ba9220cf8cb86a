//! Tables that have been opened, so that opening one again reads no page.
//!
//! I1. Who changes a row of the catalog forgets everything here, under the exclusive latch of the row's leaf. What was read of the
//!     catalog is remembered only if nothing has been forgotten since before it was read. So a row that is remembered is the one that
//!     the catalog has now.
//! I2. Whether a view sees the table's rows as they are remembered, their stamps tell, as of any row. If not, the catalog has to be read.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::RwLock;
use smallvec::SmallVec;

use crate::Result;
use crate::catalog::{CATALOG, Definition, TableRow, cuts_of, row_place, stamps_of_cuts, table_key};
use crate::engine::{Engine, TableGate};
use crate::ids::TxnId;
use crate::options::Maintenance;
use crate::routes::Routes;
use crate::shard::Shards;
use crate::view::View;

/// What all who have opened a table share.
#[derive(Debug)]
pub(crate) struct TableMeta {
    pub(crate) id: u32,
    pub(crate) key_type: String,
    pub(crate) value_type: String,
    /// Where its rows are.
    pub(crate) routes: Routes,
    /// Where writers and whoever drops it meet.
    pub(crate) gate: Arc<TableGate>,
}

/// A table that is remembered.
#[derive(Debug)]
struct Remembered {
    /// Those of its rows in the catalog that not everybody sees, cuts that are gone included: who sees all of them sees the table so.
    stamps: SmallVec<[TxnId; 1]>,
    meta: Arc<TableMeta>,
}

/// All tables that are remembered, by name. Each thread asks its own shard, which has its own references to what all share: to open a
/// table, threads do not write to one place. Where the database is driven by hand there is one shard for all: which threads would share
/// one depends on what else the process does, and with it what is read of the catalog.
#[derive(Debug)]
pub(crate) struct Schema {
    shards: Shards<RwLock<State>>,
    maintenance: Maintenance,
}

#[derive(Debug, Default)]
struct State {
    tables: HashMap<Arc<str>, Remembered>,
    /// How often everything was forgotten.
    changes: u64,
}

impl Remembered {
    fn is_seen_by(&self, view: &View) -> bool {
        self.stamps.iter().all(|stamp| view.sees(*stamp))
    }
}

impl Schema {
    /// Nothing is remembered.
    pub(crate) fn new(maintenance: Maintenance) -> Schema {
        Schema { shards: Shards::default(), maintenance }
    }

    fn mine(&self) -> &RwLock<State> {
        self.shards.of(self.maintenance)
    }

    /// A table that the view sees under this name, if it is remembered.
    pub(crate) fn find(&self, name: &str, view: &View) -> Option<(Arc<str>, Arc<TableMeta>)> {
        let state = self.mine().read();
        let (name, known) = state.tables.get_key_value(name).filter(|(_, known)| known.is_seen_by(view))?;
        Some((name.clone(), known.meta.clone()))
    }

    /// A row of the catalog changes: its leaf is latched exclusively.
    pub(crate) fn forget(&self) {
        for shard in self.shards.iter() {
            let mut state = shard.write();
            state.tables.clear();
            state.changes += 1;
        }
    }
}

impl Engine {
    /// What the table with this definition is. `Corrupt` if a partition's file is missing, or another table has it.
    pub(crate) fn table_meta(&self, table: Definition) -> Result<Arc<TableMeta>> {
        let Definition { row, cuts } = table;
        let first = self.partition(row.partition)?;
        let gate = first.enter(&Arc::new(TableGate::new(row.id)))?;
        let mut others = Vec::with_capacity(cuts.len());
        for cut in cuts {
            let handle = self.partition(cut.partition)?;
            handle.enter(&gate)?;
            others.push((cut.lower, handle));
        }
        let routes = Routes::new(first, others.into_iter());
        Ok(Arc::new(TableMeta {
            id: row.id,
            key_type: row.key_type,
            value_type: row.value_type,
            routes,
            gate,
        }))
    }

    /// What the catalog itself is, as a table.
    pub(crate) fn catalog_meta(&self) -> Result<Arc<TableMeta>> {
        let (key_type, value_type) = (String::new(), String::new());
        let row = TableRow { id: CATALOG.0, partition: CATALOG, key_type, value_type };
        self.table_meta(Definition { row, cuts: Vec::new() })
    }

    /// Remembers what the catalog has under this name now, if there is something.
    pub(crate) fn remember_table(&self, name: &str) -> Result<()> {
        let shard = self.schema.mine();
        let changes = {
            let state = shard.read();
            if state.tables.contains_key(name) {
                return Ok(());
            }
            state.changes
        };
        let catalog = self.partition(CATALOG)?.tree();
        // Everybody sees what is below: those who are there, and, as it never falls, those who come.
        let horizon = self.journal.horizon();
        let found =
            catalog.get(table_key(name)?, |row| (!row.ghost).then(|| (row.stamp, TableRow::of(row))))?;
        let Some((stamp, row)) = found.flatten() else { return Ok(()) };
        let row = row.map_err(|e| e.context(row_place(name)))?;
        let mut stamps = stamps_of_cuts(&catalog, row.id)?;
        stamps.push(stamp);
        stamps.retain(|stamp| *stamp >= horizon);
        let cuts = cuts_of(&catalog, None, row.id)?;
        let meta = self.table_meta(Definition { row, cuts })?;
        let mut state = shard.write();
        if state.changes == changes {
            state.tables.insert(Arc::from(name), Remembered { stamps, meta });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hamal_storage::sim::SimStorage;

    use crate::{Database, ErrorKind, Maintenance, Options, TransactionOptions};

    fn open() -> Database {
        Options::new().maintenance(Maintenance::Manual).open_on(Arc::new(SimStorage::new(1))).unwrap()
    }

    fn remembered(db: &Database) -> usize {
        db.handle.engine.schema.mine().read().tables.len()
    }

    fn make(db: &Database, names: &[&str]) {
        db.transact(|tx| {
            names.iter().try_for_each(|name| tx.open_bytes_table(name)?.put(b"k", name.as_bytes()))
        })
        .unwrap();
    }

    #[test]
    fn a_table_is_remembered_until_the_catalog_changes() {
        let db = open();
        make(&db, &["a"]);
        db.transact(|tx| tx.open_bytes_table("a").map(drop)).unwrap();
        assert_eq!(remembered(&db), 1);
        db.snapshot().unwrap().open_bytes_table("a").unwrap();
        make(&db, &["b"]);
        assert_eq!(remembered(&db), 0);
        db.transact(|tx| tx.open_bytes_table("a").and(tx.open_bytes_table("b")).map(drop)).unwrap();
        assert_eq!(remembered(&db), 2);
        let tx = db.begin().unwrap();
        tx.rename_table("a", "c").unwrap();
        assert_eq!(remembered(&db), 0);
        tx.rollback().unwrap();
        db.transact(|tx| tx.open_bytes_table("a").map(drop)).unwrap();
        assert_eq!(remembered(&db), 1);
    }

    /// A run that is driven by hand is a function of what is called, whatever number the process gives its threads.
    #[test]
    fn all_threads_remember_the_same_where_the_database_is_driven_by_hand() {
        let db = open();
        make(&db, &["a"]);
        std::thread::scope(|scope| {
            let open = || db.snapshot().unwrap().open_bytes_table("a").map(drop);
            scope.spawn(open).join().unwrap().unwrap();
        });
        assert_eq!(remembered(&db), 1);
    }

    #[test]
    fn a_table_that_is_remembered_is_found_by_those_who_see_it_only() {
        let db = open();
        make(&db, &["a"]);
        let before = db.snapshot().unwrap();
        let late = db.begin_with(TransactionOptions::new()).unwrap();
        db.transact(|tx| tx.rename_table("a", "b")).unwrap();
        make(&db, &["a"]);
        // Both names are remembered as they are now.
        db.transact(|tx| tx.open_bytes_table("a").and(tx.open_bytes_table("b")).map(drop)).unwrap();
        assert_eq!(remembered(&db), 2);
        let now = db.snapshot().unwrap();
        let value = |name: &str, new: bool| {
            let snapshot = if new { &now } else { &before };
            snapshot.open_bytes_table(name).and_then(|table| table.get(b"k")).map(Option::unwrap)
        };
        assert_eq!(value("a", false).unwrap(), b"a");
        assert_eq!(value("b", false).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(value("b", true).unwrap(), b"a");
        assert_eq!(value("a", true).unwrap(), b"a");
        assert_eq!(late.open_bytes_table("a").unwrap().get(b"k").unwrap().unwrap(), b"a");
        assert!(!late.has_table("b").unwrap());
    }

    #[test]
    fn a_table_that_a_transaction_makes_is_nobody_elses() {
        let db = open();
        let tx = db.begin().unwrap();
        let savepoint = tx.savepoint().unwrap();
        tx.open_bytes_table("a").unwrap().put(b"k", b"v").unwrap();
        assert_eq!(db.snapshot().unwrap().open_bytes_table("a").unwrap_err().kind(), ErrorKind::NotFound);
        tx.rollback_to(savepoint).unwrap();
        assert_eq!(remembered(&db), 0);
        assert!(!tx.has_table("a").unwrap());
    }
}
