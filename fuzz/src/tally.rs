//! What runs did, so that it is clear that the paths ran.

use std::fmt;
use std::ops::AddAssign;

use hamal::{RecoveryReport, Stats};

macro_rules! tally {
    ($($(#[$doc:meta])* $field:ident: $label:literal,)*) => {
        /// Counts over one run or many.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Tally { $($(#[$doc])* pub $field: u64,)* }

        impl AddAssign for Tally {
            fn add_assign(&mut self, other: Tally) { $(self.$field += other.$field;)* }
        }

        impl Tally {
            /// Every count with its name.
            pub fn entries(&self) -> Vec<(&'static str, u64)> { vec![$(($label, self.$field),)*] }
        }
    };
}

tally! {
    /// Seeds run.
    runs: "runs",
    /// I/O operations on the simulated disk.
    ios: "I/Os",
    /// Times a database was opened.
    opens: "opens",
    /// Opens that recovered something.
    recoveries: "recoveries",
    /// Crashes.
    crashes: "crashes",
    /// Crashes while the database was being opened.
    crashes_in_recovery: "crashes inside open or recovery",
    /// Crashes of a process alone: everything written stays.
    kills: "process kills",
    /// Faults injected that were not crashes.
    faults: "injected faults",
    /// Commits acknowledged as durable.
    sync_commits: "durable commits",
    /// Commits acknowledged without that promise.
    relaxed_commits: "relaxed commits",
    /// Commits in doubt that were there afterwards.
    in_doubt_kept: "commits in doubt, kept",
    /// Commits in doubt that were gone.
    in_doubt_lost: "commits in doubt, gone",
    /// Relaxed commits that were there after a crash.
    relaxed_kept: "relaxed commits kept by a crash",
    /// Relaxed commits that a crash took back.
    relaxed_lost: "relaxed commits taken back by a crash",
    /// Transactions rolled back by a call.
    rollbacks: "rollbacks",
    /// Transactions dropped.
    drops: "drops without commit",
    /// Rollbacks to a savepoint.
    savepoint_rollbacks: "rollbacks to a savepoint",
    /// Rows written or removed.
    writes: "row writes",
    /// Big values written.
    big_values: "overflow values written",
    /// Tables created, dropped or renamed.
    table_changes: "table changes",
    /// Partitions split in two.
    partition_splits: "partitions split",
    /// Partitions merged into their neighbours.
    partition_merges: "partitions merged",
    /// Splits and merges that were refused, or given up.
    reshapes_refused: "splits and merges refused or stopped",
    /// Transactions that met a full log.
    log_full: "log full",
    /// Comparisons of all rows with the model.
    comparisons: "full comparisons",
    /// Comparisons of a range with the model.
    scans: "range comparisons",
    /// Verifications.
    verifications: "verifications",
    /// Pages verified.
    pages_verified: "pages verified",
    /// Checkpoints.
    checkpoints: "checkpoints",
    /// Pages written back.
    pages_written: "pages written",
    /// Pages written back with uncommitted changes on them.
    pages_stolen: "pages stolen",
    /// Pages evicted.
    evictions: "pages evicted",
    /// Compensation records.
    compensation_records: "compensation records",
    /// Losers met by recovery.
    losers: "losers",
    /// Of these, the ones that were undone behind the open.
    trailing_losers: "losers undone behind the open",
    /// Opens after which that was left to what came then.
    left_behind: "opens followed by work with something left to undo",
    /// Records undone by recovery.
    undone: "records undone by recovery",
    /// Page changes redone by recovery.
    redone: "page changes redone",
    /// Pages put back from the doublewrite area.
    restored_pages: "torn pages restored",
    /// Torn log tails.
    torn_tails: "torn log tails",
    /// Structure changes: splits, merges, root changes, chains.
    structure_changes: "structure changes",
    /// Log segments used again for a later part of the log.
    log_wraps: "log segments recycled",
    /// Transactions of concurrent clients.
    transactions: "concurrent transactions",
    /// Snapshots of concurrent clients.
    snapshots: "concurrent snapshots",
    /// Places where another thread might have gone on.
    pauses: "pauses",
    /// Where it did.
    switches: "switches of threads",
    /// Pauses of threads that waited.
    wait_pauses: "pauses of threads that waited",
    /// Waits for a row or table lock.
    lock_waits: "lock waits",
    /// Waits that were broken because they would have lasted for ever.
    deadlocks: "deadlocks",
    /// Waits that took too long.
    lock_timeouts: "lock timeouts",
    /// Commits and writes refused because what was read had changed.
    overtaken: "refused for what had changed",
    /// Transactions given up because of others.
    conflicts: "transactions given up for a conflict",
    /// Calls that cancel a running transaction.
    cancellations: "cancellations",
    /// Transactions that were cancelled.
    cancelled: "transactions cancelled",
    /// Commits that were in the log when the machine or the log failed, and were given no answer.
    commits_unknown: "commits with an unknown outcome",
    /// Lives that ended with such a commit.
    ends_in_commit: "lives that ended inside a commit",
    /// Commits of concurrent clients that were there in the next life.
    commits_kept: "concurrent commits there in the next life",
    /// Unanswered commits of full durability that a crash took back.
    sync_lost: "unanswered durable commits taken back by a crash",
    /// Page images that the write-ahead monitor checked.
    pages_monitored: "page images checked by the monitor",
}

impl Tally {
    /// Adds the counters of a handle that is about to go.
    pub fn add_stats(&mut self, stats: &Stats) {
        self.pages_written += stats.pages_written;
        self.pages_stolen += stats.pages_stolen;
        self.evictions += stats.evictions;
        self.compensation_records += stats.compensation_records;
        self.checkpoints += stats.checkpoints;
        self.structure_changes += stats.structure_changes;
        self.lock_waits += stats.lock_waits;
        self.deadlocks += stats.deadlocks;
        self.lock_timeouts += stats.lock_timeouts;
        self.overtaken += stats.overtaken;
    }

    /// Adds what an open found.
    pub fn add_recovery(&mut self, report: &RecoveryReport) {
        self.opens += 1;
        self.recoveries += u64::from(!report.clean && !report.created);
        self.losers += report.losers;
        self.trailing_losers += report.trailing_losers;
        self.undone += report.undo.applied;
        self.redone += report.redo.applied;
        self.restored_pages += report.partitions.iter().map(|p| p.restored_pages).sum::<u64>();
        self.torn_tails += u64::from(report.torn_tail);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (label, count) in self.entries() {
            if count > 0 {
                writeln!(f, "{count:>12}  {label}")?;
            }
        }
        Ok(())
    }
}
