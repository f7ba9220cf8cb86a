//! What tests of other modules need of nodes.

use super::route::Words;
use super::u64_at;

/// A page's words as an optimistic reader sees them.
pub(crate) struct SliceWords<'a>(pub(crate) &'a [u8]);

impl Words for SliceWords<'_> {
    fn words(&self) -> usize {
        self.0.len() / 8
    }

    fn word(&self, index: usize) -> u64 {
        self.0.get(index * 8..index * 8 + 8).map_or(0, |word| u64_at(word, 0))
    }
}
