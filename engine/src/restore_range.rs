//! Restoring a range of a table's keys to an earlier moment, while everybody goes on (docs/backup.md, docs/adr/0015).
//!
//! | step | changes in the database |
//! |---|---|
//! | the catalog of then, beside ([`crate::backup::aside`]) | none |
//! | which partitions had the range then; their pages and changes, beside | none |
//! | the rows of then and of now are compared, and those put back that differ, in one transaction ([`difference`]) | that transaction's |
//! | what is beside is removed | none |
//!
//! I1. Which partitions there are now, and were then, is nobody's concern: rows go by key. The cuts stay as they are.
//! I2. A table is the same if its id is, whatever it is called: ids are never used again.
//! I3. The transaction is an ordinary one. It reads the whole range, so it commits only if nobody has changed a row there, or added one,
//!     since its view; else it is rolled back and begun anew. So the range is, at its commit, as it was at the moment; others see all of
//!     that or nothing; a crash takes it back as a whole; and it is logged and archived, so it can be undone in the same way.
//!     Now and then it moves its view forward, which it can as long as nobody has changed the range.
//! I4. Memory is bounded, whatever the differences: rows are streamed, and transactions may be larger than the cache. The log needs room for
//!     the differences.

mod difference;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use hamal_pager::PartitionId;

use self::difference::{Difference, Value, walk};
use crate::backup::aside::Aside;
use crate::backup::{OnProgress, Progress, RestoreOptions, RestorePoint, RestoreReport, Stage, Target, tell};
use crate::catalog::Definition;
use crate::database::Handle;
use crate::engine::Engine;
use crate::raw::RawTable;
use crate::snapshot::Snapshot;
use crate::{
    Database, Durability, Error, ErrorKind, Isolation, Maintenance, Options, Result, RetryOptions, Scrub,
    TransactionOptions,
};

/// Rows between two calls of the progress callback.
const PROGRESS_ROWS: u64 = if cfg!(test) { 16 } else { 1024 };
/// Of the database's page cache, a part of this size serves what is restored beside it, unless the size is given.
const CACHE_PART: u64 = 4;
/// Attempts, unless their number is given.
const ATTEMPTS: u32 = 8;

/// Which of a table's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyRange {
    /// Those of the partition that had this key, encoded, at the moment to restore to, whatever partitions have them now.
    PartitionOf(Vec<u8>),
    /// Those from one on (included) to another (not included), encoded.
    Keys {
        /// Empty: the lowest.
        from: Vec<u8>,
        /// `None`: there is no bound.
        below: Option<Vec<u8>>,
    },
}

impl KeyRange {
    /// All keys.
    pub fn all() -> KeyRange {
        KeyRange::Keys { from: Vec::new(), below: None }
    }

    fn check(&self) -> Result<()> {
        match self {
            KeyRange::Keys { from, below: Some(below) } if below < from => {
                Err(Error::invalid("the range's lower bound is above its upper bound"))
            }
            _ => Ok(()),
        }
    }

    /// Its bounds in a table with these partitions.
    fn bounds(&self, then: &Definition) -> (Vec<u8>, Option<Vec<u8>>) {
        match self {
            KeyRange::Keys { from, below } => (from.clone(), below.clone()),
            KeyRange::PartitionOf(key) => {
                let at = then.cuts.partition_point(|cut| *cut.lower <= **key);
                let bound = |at: usize| then.cuts.get(at).map(|cut| cut.lower.to_vec());
                (at.checked_sub(1).and_then(bound).unwrap_or_default(), bound(at))
            }
        }
    }
}

/// How to restore a range.
#[derive(Clone, Debug, Default)]
pub struct RangeRestoreOptions {
    to: RestorePoint,
    backup: Option<String>,
    dry_run: bool,
    cache_bytes: Option<u64>,
    attempts: Option<u32>,
}

impl RangeRestoreOptions {
    /// As of this moment: an LSN or a time. The end is no moment to go back to.
    pub fn to(point: RestorePoint) -> RangeRestoreOptions {
        RangeRestoreOptions { to: point, ..RangeRestoreOptions::default() }
    }

    /// From this backup, rather than from the newest that is of before the moment.
    #[must_use]
    pub fn backup(mut self, id: impl Into<String>) -> Self {
        self.backup = Some(id.into());
        self
    }

    /// Only says what it would do.
    #[must_use]
    pub fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }

    /// Page cache for what is restored beside the database, bytes. Default: a quarter of the database's, beside that.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = Some(bytes);
        self
    }

    /// Most attempts of the transaction that puts the rows back: another one is made when somebody has changed the range meanwhile. Default
    /// 8; 0 counts as 1.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = Some(attempts);
        self
    }
}

/// What restoring a range did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RangeRestoreReport {
    /// The table's name now.
    pub table: String,
    /// Its name then.
    pub table_then: String,
    /// The lowest key of the range, encoded; empty: there is no bound.
    pub from: Vec<u8>,
    /// All keys of the range are below this one, encoded; `None`: there is no bound.
    pub below: Option<Vec<u8>>,
    /// Nothing was changed.
    pub dry_run: bool,
    /// What the rows of then were restored from, and to which LSN.
    pub source: RestoreReport,
    /// Rows of then that were not there any more.
    pub put_back: u64,
    /// Rows that had another value then.
    pub replaced: u64,
    /// Rows that were not there then.
    pub removed: u64,
    /// Rows that were as they are.
    pub unchanged: u64,
    /// Keys and values put back or replaced, bytes.
    pub bytes: u64,
    /// Attempts of the transaction; 0 in a dry run.
    pub attempts: u32,
}

/// See [`Database::restore_range`].
pub(crate) fn run(
    db: &Database,
    table: &str,
    range: &KeyRange,
    target: &dyn Target,
    options: &RangeRestoreOptions,
    on_progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<RangeRestoreReport> {
    let engine = &*db.handle.engine;
    engine.check_poison()?;
    engine.check_resolved()?;
    range.check()?;
    if options.to == RestorePoint::End {
        return Err(Error::invalid(
            "a range is restored to an LSN or a time: at the end it is already, or is quarantined and wants a repair",
        ));
    }
    let _one_at_a_time = engine.lock(&engine.restoring, "a restore of a range");
    let _span = tracing::info_span!("restore range", table).entered();
    let id = table_id(db, table)?;
    if engine.archive.is_some()
        && let Err(error) = engine.archive_all()
    {
        // What the target has may do.
        tracing::warn!(%error, "the log could not be archived before a restore");
    }
    let mut restore = RestoreOptions::new().to(options.to);
    if let Some(backup) = &options.backup {
        restore = restore.backup(backup);
    }
    let beside = loop {
        let beside = Beside::begin(engine, target, (table, id), range, options, &restore, on_progress)?;
        check_available(db, table, beside.bounds())?;
        let missing = beside.aside.missing(&partitions_in(&beside.then, beside.bounds()));
        if missing.is_empty() {
            break beside;
        }
        // An older backup has them. What is beside goes before another is.
        drop(beside);
        restore = restore.needs(missing);
    };
    let Beside { mut aside, table_then, then, from, below } = beside;
    let bounds = (&*from, below.as_deref());
    let handle = aside.open(partitions_in(&then, bounds), on_progress)?;
    let mut report = RangeRestoreReport {
        table: table.to_owned(),
        table_then,
        from: from.clone(),
        below: below.clone(),
        dry_run: options.dry_run,
        source: aside.report.clone(),
        ..RangeRestoreReport::default()
    };
    let snapshot = Snapshot::begin(&handle)?;
    let (_, rows_then) = snapshot.open_raw(&report.table_then, None).map_err(difference::of_then)?;
    let job = Job { table, id, bounds, then: &rows_then, total_bytes: bytes_of(&handle, &rows_then) };
    if options.dry_run {
        job.compare(db, &mut report, on_progress)?;
    } else {
        job.put_back(db, options.attempts.unwrap_or(ATTEMPTS), &mut report, on_progress)?;
    }
    tracing::info!(?report, "restored a range");
    Ok(report)
}

/// The catalog of then, beside the database, and what it says of the range.
struct Beside<'t> {
    aside: Aside<'t>,
    table_then: String,
    then: Definition,
    from: Vec<u8>,
    below: Option<Vec<u8>>,
}

impl<'t> Beside<'t> {
    /// `table`: its name now, and its id.
    fn begin(
        engine: &Engine,
        target: &'t dyn Target,
        (table, id): (&str, u32),
        range: &KeyRange,
        options: &RangeRestoreOptions,
        restore: &RestoreOptions,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Beside<'t>> {
        let options = options_beside(engine, options);
        let aside = Aside::begin(target, &engine.storage, engine.origin(), restore, options, on_progress)?;
        let (table_then, then) = table_of_then(aside.tables(on_progress)?, table, id)?;
        let (from, below) = range.bounds(&then);
        Ok(Beside { aside, table_then, then, from, below })
    }

    fn bounds(&self) -> (&[u8], Option<&[u8]>) {
        (&self.from, self.below.as_deref())
    }
}

/// What is beside is opened with.
fn options_beside(engine: &Engine, options: &RangeRestoreOptions) -> Options {
    let least = Options::least_cache_bytes(engine.page_bytes);
    let own = &engine.options;
    let mut beside = Options::new()
        .mode(crate::OpenMode::Open)
        .cache_bytes(options.cache_bytes.unwrap_or(own.cache_bytes / CACHE_PART).max(least))
        .log_buffer_bytes(own.log_buffer_bytes)
        .max_log_bytes(own.max_log_bytes)
        .maintenance(Maintenance::Manual)
        .balancer(None)
        .self_repair(false)
        .scrub(Scrub::Off);
    beside.recovery_workers = own.recovery_workers;
    beside
}

/// The id of the table of this name now.
fn table_id(db: &Database, table: &str) -> Result<u32> {
    match db.snapshot()?.open_raw(table, None) {
        Ok((_, rows)) => Ok(rows.id()),
        Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "there is no table {table:?}; one that has been dropped comes back by restoring the database into another directory"
            ),
        )),
        Err(e) => Err(e),
    }
}

/// The table with this id among those of then.
fn table_of_then(tables: Vec<(String, Definition)>, table: &str, id: u32) -> Result<(String, Definition)> {
    let had_name = tables.iter().any(|(name, _)| name == table);
    tables.into_iter().find(|(_, then)| then.row.id == id).ok_or_else(|| {
        let what = if had_name {
            format!("the table that was called {table:?} at that moment has been dropped since, or renamed: today's is another one")
        } else {
            format!("the table {table:?} did not exist at that moment")
        };
        Error::new(ErrorKind::NotFound, what)
    })
}

/// Which partitions have keys in the range.
fn partitions_in(table: &Definition, (from, below): (&[u8], Option<&[u8]>)) -> BTreeSet<PartitionId> {
    let lower = |at: usize| at.checked_sub(1).and_then(|at| table.cuts.get(at)).map(|cut| &*cut.lower);
    let upper = |at: usize| table.cuts.get(at).map(|cut| &*cut.lower);
    let is_in = |at: usize| {
        let begins_below = below.is_none_or(|below| lower(at).is_none_or(|lower| lower < below));
        begins_below && upper(at).is_none_or(|upper| from < upper)
    };
    table.partitions().enumerate().filter(|(at, _)| is_in(*at)).map(|(_, id)| id).collect()
}

/// Before anything is copied: `PartitionUnavailable` if a partition that has a part of the range now is quarantined.
fn check_available(db: &Database, table: &str, bounds: (&[u8], Option<&[u8]>)) -> Result<()> {
    let engine = &db.handle.engine;
    let tables = db.snapshot()?.definitions()?;
    let Some((_, now)) = tables.into_iter().find(|(name, _)| name == table) else { return Ok(()) };
    match partitions_in(&now, bounds).into_iter().find(|id| engine.quarantine.cause(*id).is_some()) {
        None => Ok(()),
        Some(id) => Err(engine.unavailable(id).context("repair it first, then restore")),
    }
}

/// About how many bytes of rows there are to compare: the files of then, twice.
fn bytes_of(handle: &Handle, then: &RawTable<'_>) -> u64 {
    let engine = &handle.engine;
    let is_there = |id: &PartitionId| !engine.options.leaves_out(*id);
    let routes = then.routes().iter().filter(|route| is_there(&route.id()));
    2 * routes.map(|route| u64::from(route.handle.partition.file_pages())).sum::<u64>()
        * engine.page_bytes as u64
}

/// What is to be put back.
struct Job<'j> {
    table: &'j str,
    id: u32,
    bounds: (&'j [u8], Option<&'j [u8]>),
    then: &'j RawTable<'j>,
    total_bytes: u64,
}

impl Job<'_> {
    /// Only counts.
    fn compare(
        &self,
        db: &Database,
        report: &mut RangeRestoreReport,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<()> {
        let snapshot = db.snapshot()?;
        let (_, now) = snapshot.open_raw(self.table, None)?;
        self.check_same(&now)?;
        let mut each = |difference: &Difference<'_>| match difference {
            Difference::Missing(row) | Difference::Changed(row) => Ok(match row.value()? {
                Value::Inline(value) => value.len() as u64,
                Value::Long(value) => value.len(),
            }),
            Difference::Extra(_) => Ok(0),
        };
        self.walk(&now, report, on_progress, &mut each, &|| Ok(()))
    }

    /// Makes the rows of now those of then, in one transaction.
    fn put_back(
        &self,
        db: &Database,
        attempts: u32,
        report: &mut RangeRestoreReport,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<()> {
        let options =
            TransactionOptions::new().isolation(Isolation::Serializable).durability(Durability::Sync);
        let (mut attempt, empty) = (0, report.clone());
        db.transact_with(options, RetryOptions::new().attempts(attempts), |tx| {
            attempt += 1;
            *report = RangeRestoreReport { attempts: attempt, ..empty.clone() };
            let (_, now) = tx.open_raw(self.table, None, false)?;
            self.check_same(&now)?;
            let mut each = |difference: &Difference<'_>| match difference {
                Difference::Missing(row) | Difference::Changed(row) => match row.value()? {
                    Value::Inline(value) => now.put(row.key, value).map(|()| value.len() as u64),
                    Value::Long(mut value) => {
                        now.put_stream(row.key, &mut value).map_err(|error| value.blame(error))
                    }
                },
                Difference::Extra(key) => now.delete(key).map(|()| 0),
            };
            // So that who changes the range is noticed soon; and the others' commits need be remembered, and their ghosts and before-images
            // kept, only since the last time (hazard H12), however long this takes.
            self.walk(&now, report, on_progress, &mut each, &|| tx.advance())
        })
    }

    /// Whether it is still the table that was asked for.
    fn check_same(&self, now: &RawTable<'_>) -> Result<()> {
        if now.id() == self.id {
            return Ok(());
        }
        let what = format!("the table {:?} has been dropped meanwhile, and another one made", self.table);
        Err(Error::new(ErrorKind::NotFound, what))
    }

    /// Walks through the differences and counts them; `each` returns how many bytes the value of then has. `now_and_then` is done between
    /// rows.
    fn walk(
        &self,
        now: &RawTable<'_>,
        report: &mut RangeRestoreReport,
        on_progress: &mut OnProgress<'_>,
        each: &mut dyn FnMut(&Difference<'_>) -> Result<u64>,
        now_and_then: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let (mut rows, mut done_bytes) = (0_u64, 0);
        let mut progress = |bytes| {
            rows += 1;
            done_bytes += bytes;
            if rows.is_multiple_of(PROGRESS_ROWS) {
                tell(on_progress, Stage::Rows, done_bytes, self.total_bytes)?;
                now_and_then()?;
            }
            Ok(())
        };
        let (mut put_back, mut replaced, mut removed, mut bytes) = (0, 0, 0, 0);
        let mut count = |difference: Difference<'_>| {
            let value_bytes = each(&difference)?;
            match difference {
                Difference::Missing(row) => {
                    put_back += 1;
                    bytes += row.key.len() as u64 + value_bytes;
                }
                Difference::Changed(row) => {
                    replaced += 1;
                    bytes += row.key.len() as u64 + value_bytes;
                }
                Difference::Extra(_) => removed += 1,
            }
            Ok(())
        };
        report.unchanged = walk(now, self.then, self.bounds, &mut count, &mut progress)?;
        (report.put_back, report.replaced, report.removed, report.bytes) =
            (put_back, replaced, removed, bytes);
        tell(on_progress, Stage::Rows, self.total_bytes.max(done_bytes), self.total_bytes)
    }
}
