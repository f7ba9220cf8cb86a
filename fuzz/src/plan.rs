//! What one run is like: sizes, shapes and odds, all drawn from its seed.

use std::collections::BTreeSet;
use std::time::Duration;

use hamal::{Durability, Maintenance, OpenMode, Options};

use crate::choice::Choices;
use crate::keys::{SHAPES, Shape, max_key_bytes};

/// Names that tables may have. Each has a shape of keys of its own; renaming mixes them.
pub const NAMES: [&str; 4] = ["accounts", "blobs", "paths", "z"];

/// Most partitions that a table has.
const MOST_PARTITIONS: u64 = 8;

/// Longest wait of those who do not choose another: verifications, for transactions to end.
const LOCK_TIMEOUT: Duration = Duration::from_millis(5);

/// How one database is laid out and worked on.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Page size, bytes.
    pub page_bytes: usize,
    /// Log segment size, bytes.
    pub segment_bytes: u64,
    /// Log buffer, bytes.
    pub buffer_bytes: usize,
    /// Most log the database may need at once, bytes.
    pub max_log_bytes: u64,
    /// Log between checkpoints, bytes.
    pub checkpoint_log_bytes: u64,
    /// Page cache, bytes.
    pub cache_bytes: u64,
    /// What did not commit and can be undone behind an open is, however little it is.
    pub trailing_undo: bool,
    /// Shapes of the keys of [`NAMES`].
    pub shapes: [Shape; NAMES.len()],
    /// Keys per table that are ever used.
    pub key_space: u64,
    /// At which keys tables of [`NAMES`] are cut into partitions when they are made; taken modulo the key space.
    pub cuts: [Vec<u64>; NAMES.len()],
    /// Rows written before anything else, so that the data is larger than the cache.
    pub preload_rows: u64,
    /// Length of an ordinary value is mostly below this, bytes.
    pub value_bytes: u64,
    /// Length of a big value is mostly below this, bytes.
    pub big_value_bytes: u64,
    /// One commit in so many does without a promise of durability; 0: none.
    pub relaxed_one_in: u64,
    /// Transactions per opening, at most.
    pub transactions: u64,
}

impl Plan {
    /// Draws a plan. `page_bytes`: this size instead of a drawn one.
    pub fn draw(choices: &mut Choices, page_bytes: Option<usize>) -> Plan {
        let drawn = *choices.pick(&[4096, 16384]);
        let page_bytes = page_bytes.unwrap_or(drawn);
        let buffer_bytes = 16 * page_bytes;
        // A large run has more data than the cache; a small one is quick, so that crashes fall everywhere in its life.
        let large = choices.once_in(2);
        let value_bytes = *choices.pick(&[40, 300, 1200]);
        let preload_bytes = choices.between(1 << 20, 2 << 20);
        let preload_rows = if large { (2 * preload_bytes / (value_bytes + 30)).min(6000) } else { 0 };
        Plan {
            page_bytes,
            segment_bytes: *choices.pick(&[64 << 10, 128 << 10, 256 << 10]),
            buffer_bytes,
            max_log_bytes: *choices.pick(&[8, 16, 64]) * buffer_bytes as u64,
            checkpoint_log_bytes: *choices.pick(&[64 << 10, 256 << 10, 1 << 20]),
            cache_bytes: 1 << 20,
            shapes: std::array::from_fn(|_| *choices.pick(&SHAPES)),
            key_space: preload_rows.max(choices.between(20, 600)),
            preload_rows,
            value_bytes,
            big_value_bytes: *choices.pick(&[20_000, 100_000, 300_000]),
            relaxed_one_in: *choices.pick(&[0, 2, 5]),
            transactions: choices.between(3, 40),
            cuts: std::array::from_fn(|_| {
                let partitions = choices.between(1, MOST_PARTITIONS);
                (1..partitions).map(|_| choices.fresh()).collect()
            }),
            trailing_undo: choices.once_in(2),
        }
    }

    /// A plan small enough for an exhaustive sweep or a fuzzer: little data, few pages, one shape of key per table.
    pub fn small(page_bytes: usize) -> Plan {
        let buffer_bytes = 16 * page_bytes;
        Plan {
            page_bytes,
            segment_bytes: 64 << 10,
            buffer_bytes,
            max_log_bytes: 8 * buffer_bytes as u64,
            checkpoint_log_bytes: 64 << 10,
            cache_bytes: 1 << 20,
            shapes: [Shape::Ascending, Shape::Random, Shape::Nested, Shape::Long],
            key_space: 60,
            preload_rows: 0,
            value_bytes: 300,
            big_value_bytes: 20_000,
            relaxed_one_in: 3,
            transactions: 8,
            trailing_undo: false,
            cuts: [vec![20, 40], vec![30], vec![], vec![10, 30]],
        }
    }

    /// The options to open the database with.
    pub fn options(&self, mode: OpenMode) -> Options {
        Options::new()
            .mode(mode)
            .page_bytes(self.page_bytes)
            .cache_bytes(self.cache_bytes)
            .log_buffer_bytes(self.buffer_bytes)
            .log_segment_bytes(self.segment_bytes)
            .max_log_bytes(self.max_log_bytes)
            .checkpoint_log_bytes(self.checkpoint_log_bytes)
            .durability(Durability::Sync)
            .lock_timeout(LOCK_TIMEOUT)
            .trailing_undo_bytes(if self.trailing_undo { 0 } else { u64::MAX })
            .maintenance(Maintenance::Manual)
    }

    /// Longest key, bytes.
    pub fn max_key_bytes(&self) -> usize {
        max_key_bytes(self.page_bytes)
    }

    /// The key of `index` in the table of this name.
    pub fn key(&self, table: &str, index: u64) -> Vec<u8> {
        let slot = NAMES.iter().position(|name| *name == table).unwrap_or(0);
        self.shapes[slot].key(index, self.max_key_bytes())
    }

    /// The split keys of the table of this name, if it is made now: where some of its keys are, so that partitions meet in the middle of
    /// what is used.
    pub fn splits(&self, table: &str) -> Vec<Vec<u8>> {
        let slot = NAMES.iter().position(|name| *name == table).unwrap_or(0);
        let keys = self.cuts[slot].iter().map(|cut| {
            let mut key = self.key(table, cut % self.key_space.max(1));
            // A split key leaves room for what stands before it in the catalog.
            key.truncate(self.max_key_bytes() - 5);
            key
        });
        let splits: BTreeSet<Vec<u8>> = keys.filter(|key| !key.is_empty()).collect();
        splits.into_iter().collect()
    }

    /// Length of a value to write, bytes: mostly ordinary, sometimes empty, around a quarter or a whole page, or big.
    pub fn value_len(&self, choices: &mut Choices) -> u32 {
        let page = self.page_bytes as u64;
        let len = match choices.below(40) {
            0 => 0,
            1 | 2 => page / 4 - 40 + choices.below(80),
            3 => page - 80 + choices.below(160),
            4 => choices.below(self.big_value_bytes),
            5..=12 => choices.below(self.value_bytes * 3),
            _ => choices.below(self.value_bytes),
        };
        len as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_cut_into_one_to_eight_partitions_within_their_keys() {
        let mut seen = BTreeSet::new();
        for seed in 0..300 {
            let plan = Plan::draw(&mut Choices::seeded(seed), None);
            for name in NAMES {
                let splits = plan.splits(name);
                assert!(splits.is_sorted_by(|a, b| a < b) && splits.iter().all(|split| !split.is_empty()));
                assert!(splits.iter().all(|split| split.len() + 5 <= plan.max_key_bytes()), "seed {seed}");
                let keys: BTreeSet<Vec<u8>> =
                    (0..plan.key_space).map(|index| plan.key(name, index)).collect();
                // Nothing of this is for show: there are keys in most partitions.
                let used = |lower: &Vec<u8>, upper: Option<&Vec<u8>>| {
                    keys.range(lower.clone()..)
                        .next()
                        .is_some_and(|key| upper.is_none_or(|upper| key < upper))
                };
                let ranges = splits.iter().enumerate().map(|(at, lower)| (lower, splits.get(at + 1)));
                assert!(ranges.filter(|(lower, upper)| !used(lower, *upper)).count() <= splits.len() / 2);
                seen.insert(splits.len() + 1);
            }
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    }
}
