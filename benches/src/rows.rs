//! The rows of every benchmark: 24-byte random keys, 150-byte values, each a function of the row's number.

/// Bytes of a key.
pub const KEY_BYTES: usize = 24;
/// Bytes of a value.
pub const VALUE_BYTES: usize = 150;
/// Bytes of a row, key and value.
pub const ROW_BYTES: usize = KEY_BYTES + VALUE_BYTES;

/// A bijection of 64-bit words that looks random (the finalizer of SplitMix64).
pub const fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// The key of row `n`. No two rows share one, and their order is random.
pub fn key(n: u64) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    let (first, rest) = key.split_at_mut(8);
    let (second, third) = rest.split_at_mut(8);
    first.copy_from_slice(&mix(n).to_be_bytes());
    second.copy_from_slice(&mix(!n).to_be_bytes());
    third.copy_from_slice(&n.to_be_bytes());
    key
}

/// A key of row `n` that sorts by `n`.
pub fn ascending_key(n: u64) -> [u8; KEY_BYTES] {
    let mut key = key(n);
    key[..8].copy_from_slice(&n.to_be_bytes());
    key
}

/// The value of row `n` in its `version`.
pub fn value(n: u64, version: u64) -> [u8; VALUE_BYTES] {
    let mut value = [0; VALUE_BYTES];
    let mut word = mix(n ^ mix(version));
    for chunk in value.chunks_mut(8) {
        word = mix(word);
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
    value
}

/// An endless, repeatable sequence of row numbers below `rows`.
#[derive(Clone, Debug)]
pub struct Picks {
    state: u64,
    rows: u64,
}

impl Picks {
    /// The sequence of this `seed`.
    pub fn new(Seed(seed): Seed, rows: u64) -> Self {
        Picks { state: mix(seed), rows: rows.max(1) }
    }

    /// The next row number.
    pub fn pick(&mut self) -> u64 {
        self.state = self.state.wrapping_add(1);
        // The high half of a 128-bit product: uniform without a division.
        ((u128::from(mix(self.state)) * u128::from(self.rows)) >> 64) as u64
    }
}

/// What makes two sequences of picks different.
#[derive(Clone, Copy, Debug)]
pub struct Seed(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_a_function_of_their_number_and_picks_stay_in_range() {
        assert_eq!(key(7), key(7));
        assert_ne!(key(7), key(8));
        assert_ne!(value(7, 0), value(7, 1));
        let mut picks = Picks::new(Seed(3), 10);
        let mut seen = [0_u32; 10];
        for _ in 0..1000 {
            seen[usize::try_from(picks.pick()).unwrap()] += 1;
        }
        assert!(seen.iter().all(|&n| n > 50), "{seen:?}");
    }
}
