//! The balancer: splits partitions that have grown or run hot, merges neighbours that are small and cold.
//!
//! I1. A round looks at everything, then does at most one thing per table. [`Memory::advise`] decides, and looks at nothing but what it is given:
//!     sizes, rates, time.
//! I2. Nothing that it does makes it do the reverse: what a split by heat leaves is warmer, and what one by size leaves is larger, than what is
//!     merged; what a merge leaves is far from being split. And only what stays so for a while counts.
//! I3. A table rests after a change, at least for [`REST`] times as long as that took, for copying is work that others wait for; and longer
//!     after one that failed.
//! I4. It waits little for writers: while it does, others wait for it.

mod round;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::Duration;

use hamal_pager::PartitionId;

/// How much longer than a change took a table rests.
const REST: u32 = 20;
/// Rounds that a partition is hot before it is split.
const HOT_ROUNDS: u32 = 5;
/// Rounds that a table rests after a change, at least; and after one that came to nothing.
const REST_ROUNDS: u32 = 5;
/// See [`REST_ROUNDS`].
const FAILED_ROUNDS: u32 = 20;
/// Rounds that a partition is left alone which no key would help to halve.
const STUCK_ROUNDS: u32 = 60;
/// In so many rounds the rate follows a load that changes by half.
const HALF_LIFE_ROUNDS: f64 = 3.0;

/// When the balancer does what: [`crate::Options::balancer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BalancerOptions {
    /// Time between two rounds. Default 1 s.
    pub interval: Duration,
    /// A partition that uses more bytes is split. Default 256 MiB. One to which rows are only added at its end is split there, at three quarters
    /// of this, so that little moves. Two neighbours that use less than half of it together are small.
    pub split_bytes: u64,
    /// A partition with more operations per second is hot. Default 1,000,000. Two neighbours with less than a quarter of it together are cold.
    pub hot_operations: u64,
    /// How long neighbours must have been small and cold before they are merged. Default 10 minutes.
    pub cold_time: Duration,
    /// A table that has so many partitions gets no more. Default 64.
    pub max_partitions: usize,
    /// Longest wait for writers of a table, who may have to wait meanwhile too, before a change is put off. Default 50 ms.
    pub lock_timeout: Duration,
}

impl Default for BalancerOptions {
    fn default() -> Self {
        BalancerOptions {
            interval: Duration::from_secs(1),
            split_bytes: 256 << 20,
            hot_operations: 1_000_000,
            cold_time: Duration::from_mins(10),
            max_partitions: 64,
            lock_timeout: Duration::from_millis(50),
        }
    }
}

impl BalancerOptions {
    /// The defaults.
    pub fn new() -> Self {
        BalancerOptions::default()
    }

    /// Time between two rounds.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// From how many bytes on a partition is split.
    #[must_use]
    pub fn split_bytes(mut self, bytes: u64) -> Self {
        self.split_bytes = bytes;
        self
    }

    /// From how many operations per second on a partition is hot.
    #[must_use]
    pub fn hot_operations(mut self, operations: u64) -> Self {
        self.hot_operations = operations;
        self
    }

    /// How long neighbours must have been small and cold before they are merged.
    #[must_use]
    pub fn cold_time(mut self, time: Duration) -> Self {
        self.cold_time = time;
        self
    }

    /// Most partitions that a table gets.
    #[must_use]
    pub fn max_partitions(mut self, partitions: usize) -> Self {
        self.max_partitions = partitions;
        self
    }

    /// Longest wait for writers of a table.
    #[must_use]
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }
}

/// Why a partition is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BalanceReason {
    /// It is large.
    Size,
    /// It is used much.
    Load,
    /// It, and its neighbour, are neither.
    Idle,
}

/// Something that the balancer has done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BalanceAction {
    /// The table.
    pub table: String,
    /// The bound that is new, or gone.
    pub key: Vec<u8>,
    /// Why: a split for [`BalanceReason::Size`] or [`BalanceReason::Load`], a merge for [`BalanceReason::Idle`].
    pub reason: BalanceReason,
    /// Rows that have moved.
    pub rows: u64,
    /// How long writers of the table had to wait.
    pub locked: Duration,
}

/// A partition as a round finds it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    id: PartitionId,
    used_bytes: u64,
    /// About how many operations there have been.
    operations: u64,
    /// It still has rows that a split or merge has left, so that its size is not its own; or it cannot be used.
    in_transition: bool,
    /// Of late it has been used at its end only.
    appends: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Advice {
    /// Split the partition in this place of the table.
    Split(usize, BalanceReason),
    /// Merge the one in this place into the one before.
    Merge(usize),
}

/// What is remembered of a partition from round to round.
#[derive(Clone, Copy, Debug)]
struct Past {
    at: Duration,
    operations: u64,
    /// Operations per second; `None`: seen once only.
    rate: Option<f64>,
    /// Since when it is hot; since when it and the one before it are small and cold.
    hot_since: Option<Duration>,
    idle_since: Option<Duration>,
    /// No key would help to halve it: until then.
    stuck_until: Duration,
}

/// What is remembered from round to round.
#[derive(Debug, Default)]
struct Memory {
    partitions: HashMap<PartitionId, Past>,
    /// Until when tables rest, by id.
    rests: HashMap<u32, Duration>,
}

impl Memory {
    /// Takes in how often a partition has been used; returns its rate.
    #[expect(clippy::cast_precision_loss, reason = "operations of a round are far fewer than 2^52")]
    fn observe(&mut self, options: &BalancerOptions, seen: &Seen, now: Duration) -> f64 {
        let past = self.partitions.entry(seen.id).or_insert(Past {
            at: now,
            operations: seen.operations,
            rate: None,
            hot_since: None,
            idle_since: None,
            stuck_until: Duration::ZERO,
        });
        let elapsed = now.saturating_sub(past.at).as_secs_f64();
        if elapsed > 0.0 {
            let newest = seen.operations.saturating_sub(past.operations) as f64 / elapsed;
            // What is older counts less, by time: a late round counts for more.
            let rounds = elapsed / options.interval.as_secs_f64().max(1e-3);
            let weight = 0.5_f64.powf(rounds / HALF_LIFE_ROUNDS);
            past.rate = Some(past.rate.map_or(newest, |rate| rate * weight + newest * (1.0 - weight)));
            (past.at, past.operations) = (now, seen.operations);
        }
        past.rate.unwrap_or(0.0)
    }

    fn rate(&self, id: PartitionId) -> Option<f64> {
        self.partitions.get(&id).and_then(|past| past.rate)
    }

    /// What to do about a table, whose partitions, all observed, are given from the lowest keys on.
    #[expect(clippy::cast_precision_loss, reason = "nothing runs as hot as 2^52 operations per second")]
    fn advise(
        &mut self,
        options: &BalancerOptions,
        table: u32,
        partitions: &[Seen],
        now: Duration,
    ) -> Option<Advice> {
        let hot = options.hot_operations as f64;
        let mut previous: Option<&Seen> = None;
        for seen in partitions {
            let rate = self.rate(seen.id);
            let is_idle = previous.is_some_and(|previous| {
                let rates = self.rate(previous.id).zip(rate);
                rates.is_some_and(|(one, other)| one + other < hot / 4.0)
                    && previous.used_bytes.saturating_add(seen.used_bytes) < options.split_bytes / 2
                    && !previous.in_transition
                    && !seen.in_transition
            });
            previous = Some(seen);
            let Some(past) = self.partitions.get_mut(&seen.id) else { continue };
            let since = |known: Option<Duration>, is_so: bool| is_so.then(|| known.unwrap_or(now));
            past.hot_since = since(past.hot_since, rate.is_some_and(|rate| rate > hot));
            past.idle_since = since(past.idle_since, is_idle);
        }
        if self.rests.get(&table).is_some_and(|until| now < *until) {
            return None;
        }
        self.rests.remove(&table);
        let lasts = |since: Option<Duration>, time: Duration| {
            since.is_some_and(|since| now.saturating_sub(since) >= time)
        };
        if partitions.len() < options.max_partitions {
            let past = |seen: &Seen| self.partitions.get(&seen.id).filter(|past| now >= past.stuck_until);
            let may_split = |(_, seen): &(usize, &Seen)| !seen.in_transition && past(seen).is_some();
            let candidates = || partitions.iter().enumerate().filter(may_split);
            let is_large = |seen: &Seen| {
                seen.used_bytes > options.split_bytes
                    || (seen.appends && seen.used_bytes > options.split_bytes / 4 * 3)
            };
            let large = candidates().filter(|(_, seen)| is_large(seen));
            if let Some((at, _)) = large.max_by_key(|(_, seen)| seen.used_bytes) {
                return Some(Advice::Split(at, BalanceReason::Size));
            }
            let is_hot = |past: &&Past| lasts(past.hot_since, options.interval.saturating_mul(HOT_ROUNDS));
            let rate = |seen: &Seen| past(seen).filter(is_hot).and_then(|past| past.rate);
            let hot = candidates().filter_map(|(at, seen)| Some((at, rate(seen)?)));
            if let Some((at, _)) = hot.max_by(|(_, one), (_, other)| one.total_cmp(other)) {
                return Some(Advice::Split(at, BalanceReason::Load));
            }
        }
        let idle = partitions.iter().position(|seen| {
            self.partitions.get(&seen.id).is_some_and(|past| lasts(past.idle_since, options.cold_time))
        });
        idle.map(Advice::Merge)
    }

    /// A change of the table was made, or came to nothing, and took so long: it rests for so many rounds at least.
    fn rest(
        &mut self,
        options: &BalancerOptions,
        table: u32,
        (took, rounds): (Duration, u32),
        now: Duration,
    ) {
        let rest = took.saturating_mul(REST).max(options.interval.saturating_mul(rounds));
        self.rests.insert(table, now.saturating_add(rest));
    }

    /// A partition cannot be split such that it would help.
    fn stick(&mut self, options: &BalancerOptions, id: PartitionId, now: Duration) {
        if let Some(past) = self.partitions.get_mut(&id) {
            past.stuck_until = now.saturating_add(options.interval.saturating_mul(STUCK_ROUNDS));
        }
    }

    /// Forgets partitions, and tables, that are no more.
    fn keep(&mut self, is_partition: impl Fn(PartitionId) -> bool, is_table: impl Fn(u32) -> bool) {
        self.partitions.retain(|id, _| is_partition(*id));
        self.rests.retain(|id, _| is_table(*id));
    }

    /// These begin anew: what was observed of them is not what they are now.
    fn forget(&mut self, ids: impl IntoIterator<Item = PartitionId>) {
        for id in ids {
            if let Some(past) = self.partitions.get_mut(&id) {
                (past.rate, past.hot_since, past.idle_since) = (None, None, None);
            }
        }
    }
}

pub(crate) use round::{Balancer, round};
