//! Every field of [`Stats`] as a metric, through the `metrics` facade. Docs: `docs/observability.md`.
//!
//! I1. Names are stable: one that changes is a breaking change.
//! I2. `metrics_of` takes `Stats` apart without a rest: a new field that is not exported does not compile.

use ::metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::{Database, Stats};

/// What is exported of a value.
#[derive(Clone, Copy, Debug)]
enum Value {
    /// It never falls while the database is open.
    Counter(u64),
    /// It rises and falls.
    Gauge(f64),
}

/// One metric.
#[derive(Debug)]
struct Metric {
    name: &'static str,
    unit: Unit,
    help: &'static str,
    value: Value,
}

/// The values under their names.
fn metrics_of(stats: &Stats) -> Vec<Metric> {
    let Stats {
        page_bytes,
        resident_bytes,
        cache_bytes,
        cache_misses,
        evictions,
        dirty_pages,
        pages_written,
        pages_stolen,
        commits,
        commits_waited,
        rollbacks,
        overtaken,
        cancelled,
        log_full,
        deadlocks,
        lock_timeouts,
        lock_waits,
        lock_waited,
        waiting_transactions,
        row_locks,
        version_bytes,
        version_spilled_bytes,
        version_writers,
        views,
        oldest_view,
        history_bytes,
        compensation_records,
        log_flushes,
        largest_group,
        log_tail,
        log_durable,
        log_used_bytes,
        checkpoints,
        structure_changes,
        active_transactions,
        partitions,
        archive_lsn,
        archive_lag_bytes,
        archive_gaps,
        archive_failures,
        pages_damaged,
        pages_healed,
        pages_unhealed,
        healed_from_copies,
        healed_from_log,
        healed_from_backups,
        quarantined_partitions,
        quarantines,
        trailing_partitions,
        trailing_losers,
        scrubs,
        scrubbed_pages,
    } = stats;
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    let level = |value: &u64| Value::Gauge(*value as f64);
    let sum = |value: &u64| Value::Counter(*value);
    let waited_us = Value::Counter(u64::try_from(lock_waited.as_micros()).unwrap_or(u64::MAX));
    let oldest_s = Value::Gauge(oldest_view.unwrap_or_default().as_secs_f64());
    let list = [
        ("hamal_page_bytes", Unit::Bytes, level(page_bytes), "Page size."),
        ("hamal_resident_bytes", Unit::Bytes, level(resident_bytes), "Pages in memory."),
        ("hamal_cache_bytes", Unit::Bytes, level(cache_bytes), "Cache budget."),
        ("hamal_cache_misses_total", Unit::Count, sum(cache_misses), "Page fixes that read a file."),
        ("hamal_evictions_total", Unit::Count, sum(evictions), "Pages evicted."),
        ("hamal_dirty_pages", Unit::Count, level(dirty_pages), "Dirty pages."),
        ("hamal_pages_written_total", Unit::Count, sum(pages_written), "Pages written back."),
        (
            "hamal_pages_stolen_total",
            Unit::Count,
            sum(pages_stolen),
            "Pages written back while a transaction that changed them was active.",
        ),
        ("hamal_commits_total", Unit::Count, sum(commits), "Committed read-write transactions."),
        ("hamal_commits_waited_total", Unit::Count, sum(commits_waited), "Commits that waited for the log."),
        ("hamal_rollbacks_total", Unit::Count, sum(rollbacks), "Rolled back transactions."),
        ("hamal_overtaken_total", Unit::Count, sum(overtaken), "Transactions that could not be serialized."),
        ("hamal_cancelled_total", Unit::Count, sum(cancelled), "Transactions that were cancelled."),
        (
            "hamal_log_full_total",
            Unit::Count,
            sum(log_full),
            "Statements that failed because the log was full.",
        ),
        ("hamal_deadlocks_total", Unit::Count, sum(deadlocks), "Lock waits ended to break a deadlock."),
        (
            "hamal_lock_timeouts_total",
            Unit::Count,
            sum(lock_timeouts),
            "Statements whose lock was not free in time.",
        ),
        ("hamal_lock_waits_total", Unit::Count, sum(lock_waits), "Waits for a lock."),
        ("hamal_lock_waited_microseconds_total", Unit::Microseconds, waited_us, "Time spent in lock waits."),
        (
            "hamal_waiting_transactions",
            Unit::Count,
            level(waiting_transactions),
            "Transactions that wait for a lock.",
        ),
        ("hamal_row_locks", Unit::Count, level(row_locks), "Row locks that the rows do not show."),
        ("hamal_version_bytes", Unit::Bytes, level(version_bytes), "Memory of before-images."),
        (
            "hamal_version_spilled_bytes_total",
            Unit::Bytes,
            sum(version_spilled_bytes),
            "Before-images moved to temporary files.",
        ),
        (
            "hamal_version_writers",
            Unit::Count,
            level(version_writers),
            "Transactions whose before-images are kept.",
        ),
        ("hamal_views", Unit::Count, level(views), "Snapshots and read-write transactions."),
        ("hamal_oldest_view_seconds", Unit::Seconds, oldest_s, "Age of the oldest view; 0: there is none."),
        (
            "hamal_history_bytes",
            Unit::Bytes,
            level(history_bytes),
            "Memory of recent commits' writes, for validation.",
        ),
        (
            "hamal_compensation_records_total",
            Unit::Count,
            sum(compensation_records),
            "Compensation records written.",
        ),
        ("hamal_log_flushes_total", Unit::Count, sum(log_flushes), "Log flushes."),
        ("hamal_largest_group", Unit::Count, level(largest_group), "Most threads that one flush has served."),
        ("hamal_log_tail_bytes_total", Unit::Bytes, sum(log_tail), "Where the log ends."),
        (
            "hamal_log_durable_bytes_total",
            Unit::Bytes,
            sum(log_durable),
            "Below this the log is on the disk.",
        ),
        ("hamal_log_used_bytes", Unit::Bytes, level(log_used_bytes), "Log in use."),
        ("hamal_checkpoints_total", Unit::Count, sum(checkpoints), "Checkpoints taken."),
        (
            "hamal_structure_changes_total",
            Unit::Count,
            sum(structure_changes),
            "Splits, merges, purges, pages allocated and freed.",
        ),
        (
            "hamal_active_transactions",
            Unit::Count,
            level(active_transactions),
            "Active read-write transactions.",
        ),
        ("hamal_partitions", Unit::Count, level(partitions), "Open partitions."),
        ("hamal_archive_bytes_total", Unit::Bytes, sum(archive_lsn), "Below this the log is archived."),
        ("hamal_archive_lag_bytes", Unit::Bytes, level(archive_lag_bytes), "Durable log not archived yet."),
        ("hamal_archive_gaps_total", Unit::Count, sum(archive_gaps), "Times log was given up unarchived."),
        ("hamal_archive_failures_total", Unit::Count, sum(archive_failures), "Times the archive failed."),
        ("hamal_pages_damaged_total", Unit::Count, sum(pages_damaged), "Bad pages found on the disk."),
        ("hamal_pages_healed_total", Unit::Count, sum(pages_healed), "Bad pages rebuilt and written again."),
        (
            "hamal_pages_unhealed_total",
            Unit::Count,
            sum(pages_unhealed),
            "Failed attempts to rebuild a page.",
        ),
        (
            "hamal_healed_from_copies_total",
            Unit::Count,
            sum(healed_from_copies),
            "Pages rebuilt from an older copy and the log.",
        ),
        (
            "hamal_healed_from_log_total",
            Unit::Count,
            sum(healed_from_log),
            "Pages rebuilt from the log alone.",
        ),
        (
            "hamal_healed_from_backups_total",
            Unit::Count,
            sum(healed_from_backups),
            "Pages rebuilt from a backup or the archive.",
        ),
        (
            "hamal_quarantined_partitions",
            Unit::Count,
            level(quarantined_partitions),
            "Partitions that cannot be used until they are repaired.",
        ),
        ("hamal_quarantines_total", Unit::Count, sum(quarantines), "Times that a partition was quarantined."),
        (
            "hamal_trailing_partitions",
            Unit::Count,
            level(trailing_partitions),
            "Partitions in which something is left to be undone since the open.",
        ),
        (
            "hamal_trailing_losers",
            Unit::Count,
            level(trailing_losers),
            "Transactions left to be rolled back since the open.",
        ),
        ("hamal_scrubs_total", Unit::Count, sum(scrubs), "Scrubs that have seen every page."),
        ("hamal_scrubbed_pages_total", Unit::Count, sum(scrubbed_pages), "Pages that scrubs have looked at."),
    ];
    list.into_iter().map(|(name, unit, value, help)| Metric { name, unit, help, value }).collect()
}

/// Tells the installed recorder each metric's unit and meaning. Once, after it was installed.
pub fn describe() {
    for Metric { name, unit, help, value } in metrics_of(&Stats::default()) {
        match value {
            Value::Counter(_) => describe_counter!(name, unit, help),
            Value::Gauge(_) => describe_gauge!(name, unit, help),
        }
    }
}

impl Database {
    /// Publishes every field of [`Stats`] to the installed `metrics` recorder, with the label `database`, which tells several databases
    /// of one process apart. Cheap; nothing is published in between, so call it each time before metrics are collected, or every few
    /// seconds. Counters count since the database was opened: one that is opened again in the same process needs another label, for
    /// recorders do not let a counter fall.
    ///
    /// ```
    /// # fn main() -> hamal::Result<()> {
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let db = hamal::Database::open(directory.path().join("bank.hamal"))?;
    /// hamal::metrics::describe(); // once
    /// db.export_metrics("bank");
    /// # Ok(())
    /// # }
    /// ```
    pub fn export_metrics(&self, database: &str) {
        for Metric { name, value, .. } in metrics_of(&self.stats()) {
            match value {
                Value::Counter(value) => counter!(name, "database" => database.to_owned()).absolute(value),
                Value::Gauge(value) => gauge!(name, "database" => database.to_owned()).set(value),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use ::metrics::with_local_recorder;
    use hamal_storage::sim::SimStorage;
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    use super::*;
    use crate::{Maintenance, Options};

    fn open() -> Database {
        Options::new().maintenance(Maintenance::Manual).open_on(Arc::new(SimStorage::new(1))).unwrap()
    }

    /// Names of the fields of [`Stats`].
    fn fields() -> Vec<String> {
        let shown = format!("{:#?}", Stats::default());
        let lines = shown.lines().filter_map(|line| line.strip_prefix("    ")?.split_once(':'));
        lines.map(|(name, _)| name.to_owned()).collect()
    }

    #[test]
    fn every_field_is_exported_under_its_database_with_unit_and_meaning() {
        let recorder = DebuggingRecorder::new();
        let (first, second) = (open(), open());
        first.transact(|tx| tx.open_bytes_table("t")?.put(b"k", b"v")).unwrap();
        with_local_recorder(&recorder, || {
            describe();
            first.export_metrics("first");
            second.export_metrics("second");
        });
        let mut values = BTreeMap::new();
        for (key, unit, help, value) in recorder.snapshotter().snapshot().into_vec() {
            let key = key.key();
            assert!(unit.is_some() && help.is_some_and(|help| !help.is_empty()), "{}", key.name());
            let labels: Vec<_> = key.labels().map(|label| (label.key(), label.value())).collect();
            let [("database", database)] = labels[..] else { panic!("{labels:?}") };
            values.insert((database.to_owned(), key.name().to_owned()), value);
        }
        for database in ["first", "second"] {
            let exported = values.keys().filter(|(of, _)| of == database).count();
            assert_eq!(exported, fields().len(), "of {database}");
        }
        let value = |database: &str, name: &str| &values[&(database.to_owned(), name.to_owned())];
        assert_eq!(*value("first", "hamal_commits_total"), DebugValue::Counter(first.stats().commits));
        assert_eq!(*value("second", "hamal_commits_total"), DebugValue::Counter(0));
        assert_eq!(*value("first", "hamal_page_bytes"), DebugValue::Gauge(8192.0.into()));
    }

    #[test]
    fn every_metric_and_field_is_documented() {
        let docs = include_str!("../../docs/observability.md");
        let names = metrics_of(&Stats::default()).into_iter().map(|metric| metric.name.to_owned());
        for name in names.chain(fields()) {
            assert!(docs.contains(&format!("| `{name}` |")), "docs/observability.md does not have {name}");
        }
    }
}
