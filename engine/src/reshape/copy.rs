//! Copying the rows of a range of keys from one partition into another, while nobody changes them.
//!
//! I1. Nobody reads the copies before the split or merge commits: they are in a partition that nobody knows, or above the upper bound of one.
//!     So a copy needs no undo: a row is one redo-only record, and what a crash leaves of it is an orphan file, or strays.
//! I2. A long value's runs must never be nobody's: they and the row that has them are an errand, which is done or taken back as one.
//! I3. Rows keep their stamps. Those who may read the copies see the split or merge, so they see all that committed before it: they
//!     need no ghosts, no older images, and no cell's capacity (hazard H5) from before.
//! I4. No latch is held between two rows, and no log room from one to the next (hazard H16). A full log is emptied by a checkpoint.

use std::sync::Arc;

use super::errand::Errand;
use super::{OnProgress, tell};
use crate::change::Row;
use crate::checkpoint::Effort;
use crate::engine::{Engine, PartitionHandle};
use crate::journal::Author;
use crate::tree::{Decision, LeafCopy, Tree};
use crate::{Error, ErrorKind, Result, overflow};

/// Bytes of a long value copied at a time.
const READ_BYTES: usize = 64 << 10;

/// From where to where rows are copied.
pub(super) struct Copy<'c> {
    pub(super) engine: &'c Engine,
    pub(super) from: &'c Arc<PartitionHandle>,
    pub(super) to: &'c Arc<PartitionHandle>,
    /// Bytes of pages that are going to be read, and have been, long values included.
    total_bytes: u64,
    done_bytes: u64,
    copied: Copied,
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) rows: u64,
    /// Keys and values.
    pub(super) bytes: u64,
}

impl<'c> Copy<'c> {
    pub(super) fn new(
        engine: &'c Engine,
        from: &'c Arc<PartitionHandle>,
        to: &'c Arc<PartitionHandle>,
    ) -> Copy<'c> {
        Copy { engine, from, to, total_bytes: 0, done_bytes: 0, copied: Copied::default() }
    }

    /// Copies the rows from `lower` on, up to `upper` (`None`: to the end). `Cancelled` if the caller stops it.
    pub(super) fn run(
        mut self,
        lower: &[u8],
        upper: Option<&[u8]>,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Copied> {
        let tree = self.from.tree();
        let page_bytes = self.engine.page_bytes as u64;
        let mut leaves = 1;
        let blame = |error| self.engine.blame(self.from.partition.id(), error);
        tree.leaf_starts(lower, upper, &mut |_| leaves += 1).map_err(blame)?;
        self.total_bytes = leaves * page_bytes;
        let (mut leaf, mut at, mut key) = (LeafCopy::default(), lower.to_vec(), Vec::new());
        loop {
            self.engine.pause("between leaves of a copy");
            tell(on_progress, self.done_bytes, self.total_bytes)?;
            tree.leaf_at(Some(&at), None, &mut leaf)
                .map_err(|error| self.engine.blame(self.from.partition.id(), error))?;
            // A vacuum may have put the leaf together with one that has been copied.
            for index in leaf.lower_bound(&at)..leaf.len() {
                let row = leaf.row(index);
                key.clear();
                leaf.key_into(index, &mut key);
                if upper.is_some_and(|upper| *key >= *upper) {
                    break;
                }
                if !row.ghost {
                    self.copy_row(&key, row, on_progress)?;
                }
            }
            self.done_bytes += page_bytes;
            match leaf.upper_fence() {
                Some(fence) if upper.is_none_or(|upper| *fence < *upper) => at = fence.to_vec(),
                _ => break,
            }
        }
        tell(on_progress, self.done_bytes, self.done_bytes)?;
        Ok(self.copied)
    }

    fn copy_row(&mut self, key: &[u8], row: Row<'_>, on_progress: &mut OnProgress<'_>) -> Result<()> {
        let value_bytes = if row.overflow {
            let engine = self.engine;
            with_log(engine, || self.copy_long(key, row, on_progress))?
        } else {
            let tree = self.to.tree();
            with_log(self.engine, || {
                let write = &mut |_: Option<Row<'_>>| Ok(Decision::Write(row));
                tree.update(&self.engine.journal, Author::System, key, row.value.len(), write)
                    .map_err(|error| self.engine.blame(self.to.partition.id(), error))?;
                Ok(row.value.len() as u64)
            })?
        };
        self.copied.rows += 1;
        self.copied.bytes += key.len() as u64 + value_bytes;
        Ok(())
    }

    /// Copies a long value and its row (I2); returns the value's length.
    fn copy_long(&mut self, key: &[u8], row: Row<'_>, on_progress: &mut OnProgress<'_>) -> Result<u64> {
        let engine = self.engine;
        let errand = Errand::begin(engine, self.to.partition.id()).ok_or_else(closed)?;
        let [from, to] = [self.from, self.to].map(|handle| handle.partition.id());
        let in_source = |error| engine.blame(from, error);
        let in_copy = |error| engine.blame(to, error);
        let mut reader = overflow::Reader::open(&self.from.partition, row.value).map_err(in_source)?;
        let mut writer = overflow::Writer::new(&engine.journal, &errand.chain, &self.to.space);
        let value_bytes = reader.len();
        let before = self.done_bytes;
        let mut buffer = vec![0; READ_BYTES.min(value_bytes.try_into().unwrap_or(READ_BYTES))];
        loop {
            let count = reader.read(&mut buffer).map_err(in_source)?;
            if count == 0 {
                break;
            }
            writer.write(&buffer[..count]).map_err(in_copy)?;
            self.done_bytes += count as u64;
            tell(on_progress, self.done_bytes, self.total_bytes)?;
        }
        // What is done again counts once.
        self.done_bytes = before;
        let longest = Tree::max_inline_bytes(engine.page_bytes, key.len());
        let reference = writer.finish(longest).map_err(in_copy)?;
        let copy = Row { value: &reference, ..row };
        let write = &mut |_: Option<Row<'_>>| Ok(Decision::Write(copy));
        let author = Author::Transaction(&errand.chain);
        self.to.tree().update(&engine.journal, author, key, reference.len(), write).map_err(in_copy)?;
        errand.commit()?;
        self.done_bytes = before + value_bytes;
        Ok(value_bytes)
    }
}

/// Runs something that has no effect if it fails; once more after a checkpoint, if it was the log that was full.
pub(super) fn with_log<T>(engine: &Engine, mut run: impl FnMut() -> Result<T>) -> Result<T> {
    match run() {
        Err(e) if e.kind() == ErrorKind::LogFull => {
            engine.take_checkpoint(Effort::Full)?;
            run()
        }
        other => other,
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Conflict, "a verification runs")
}
