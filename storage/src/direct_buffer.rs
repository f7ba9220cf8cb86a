//! Memory for [`File::write_direct_at`](crate::File::write_direct_at).

use std::ops::{Deref, DerefMut};

use crate::DIRECT_BLOCK_BYTES;

/// Bytes that begin at a multiple of [`DIRECT_BLOCK_BYTES`], so that they can be written past the system's cache. As a slice, it is they.
#[derive(Debug)]
pub struct DirectBuffer {
    memory: Box<[u8]>,
    from: usize,
    len: usize,
}

impl DirectBuffer {
    /// Zeros.
    pub fn new(len: usize) -> Self {
        let memory = vec![0; len + DIRECT_BLOCK_BYTES].into_boxed_slice();
        // If that cannot be told, writes go through the cache.
        let from = memory.as_ptr().align_offset(DIRECT_BLOCK_BYTES).min(DIRECT_BLOCK_BYTES);
        DirectBuffer { memory, from, len }
    }
}

impl Deref for DirectBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.from..self.from + self.len]
    }
}

impl DerefMut for DirectBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.from + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_where_a_write_past_the_cache_may() {
        for len in [1, 4096, 12_288, 1 << 20] {
            let mut buffer = DirectBuffer::new(len);
            assert!(buffer.len() == len && buffer.iter().all(|byte| *byte == 0));
            assert!(buffer.as_ptr().addr().is_multiple_of(DIRECT_BLOCK_BYTES));
            buffer[len - 1] = 1;
            assert_eq!(buffer[len - 1], 1);
        }
    }
}
