//! Keys that trees find hard: long shared prefixes, prefixes of one another, runs of 0x00 and 0xff, all lengths.

use crate::choice::mix;

/// How a table's keys look. Each shape maps an index to a key, one to one, in an order of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Eight bytes, big-endian, ascending with the index.
    Ascending,
    /// Random bytes of random length, 9 to 40.
    Random,
    /// A long prefix that all share, then the index.
    SharedPrefix,
    /// Each key a prefix of the next: 0x00 and 0xff runs whose length grows with the index, the empty key included.
    Nested,
    /// Anything up to the longest key a page allows.
    Long,
}

/// All shapes.
pub const SHAPES: [Shape; 5] =
    [Shape::Ascending, Shape::Random, Shape::SharedPrefix, Shape::Nested, Shape::Long];

/// Longest key for a page size, bytes.
pub fn max_key_bytes(page_bytes: usize) -> usize {
    page_bytes / 4 - 64
}

impl Shape {
    /// The key of `index`, at most `max_bytes` long.
    pub fn key(self, index: u64, max_bytes: usize) -> Vec<u8> {
        match self {
            Shape::Ascending => index.to_be_bytes().to_vec(),
            Shape::Random => {
                let noise = mix(index ^ 0x5151);
                let len = 9 + (noise % 32) as usize;
                fill(mix(index), len - 8, index)
            }
            Shape::SharedPrefix => {
                let mut key = vec![0x61; 150.min(max_bytes - 8)];
                key.extend_from_slice(&index.to_be_bytes());
                key
            }
            Shape::Nested => {
                // Index 0 is the empty key; then runs of 0x00, of 0xff, and of both.
                let run = (index / 4) as usize % (max_bytes / 2).clamp(1, 400);
                let around = index / 4 / (max_bytes as u64 / 2).clamp(1, 400);
                let mut key = match index % 4 {
                    0 => vec![0x00; run],
                    1 => vec![0xff; run + 1],
                    2 => [vec![0x00; run + 1], vec![0xff]].concat(),
                    _ => [vec![0xff; run + 1], vec![0x00]].concat(),
                };
                if around > 0 {
                    key.push(0x7f);
                    key.extend_from_slice(&around.to_be_bytes());
                }
                key.truncate(max_bytes);
                key
            }
            Shape::Long => {
                let noise = mix(index ^ 0xa0a0);
                let room = max_bytes - 8;
                let len = match noise % 8 {
                    0 => room,
                    1 => room - 1,
                    2 => 0,
                    _ => (noise >> 8) as usize % room,
                };
                fill(noise % 3, len, index)
            }
        }
    }
}

/// `len` bytes that depend on `pattern` alone, then the index.
fn fill(pattern: u64, len: usize, index: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(len + 8);
    let mut counter = pattern;
    while key.len() < len {
        counter = counter.wrapping_add(1);
        key.extend_from_slice(&mix(counter).to_be_bytes());
    }
    key.truncate(len);
    key.extend_from_slice(&index.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_shape_keeps_indexes_apart_and_keys_within_bounds() {
        for page_bytes in [4096, 16384] {
            let max = max_key_bytes(page_bytes);
            for shape in SHAPES {
                let keys: BTreeSet<_> = (0..4000).map(|index| shape.key(index, max)).collect();
                assert_eq!(keys.len(), 4000, "{shape:?} at {page_bytes}");
                assert!(keys.iter().all(|key| key.len() <= max), "{shape:?} at {page_bytes}");
            }
        }
    }
}
