//! The one source of chance for simulations: small, fast, the same on every machine and in every version.
//!
//! xoshiro256++ (Blackman, Vigna 2019), its state filled by SplitMix64 (Steele, Lea, Flood 2014). Not for secrets.

/// A seeded random generator. Equal seeds give equal streams for ever: recorded seeds stay replayable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    state: [u64; 4],
}

/// One step of SplitMix64: also a good 64-bit mixing function.
pub(super) fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Rng {
    /// The stream of this seed; every seed is as good as any other.
    pub fn new(seed: u64) -> Rng {
        let mut seed = seed;
        Rng { state: std::array::from_fn(|_| split_mix(&mut seed)) }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let [s0, s1, s2, s3] = self.state;
        let result = s0.wrapping_add(s3).rotate_left(23).wrapping_add(s0);
        let (s2, s3) = (s2 ^ s0, s3 ^ s1);
        self.state = [s0 ^ s3, s1 ^ s2, s2 ^ (s1 << 17), s3.rotate_left(45)];
        result
    }

    /// A number in `0..bound`; 0 if `bound` is 0. The bias is below `bound / 2^64`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// An index into something of `len` elements; 0 if there are none.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True `numerator` times out of `denominator`, on average.
    pub fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// Fills `bytes` with random bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let random = self.next_u64().to_le_bytes();
            piece.copy_from_slice(&random[..piece.len()]);
        }
    }

    /// A generator of its own for some part of a run, so that what one part draws does not shift the others' streams.
    #[must_use]
    pub fn fork(&mut self) -> Rng {
        Rng::new(self.next_u64())
    }

    /// The state, for fingerprints.
    pub(super) fn state(&self) -> [u64; 4] {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator that changes silently makes every recorded seed worthless.
    #[test]
    fn the_stream_of_a_seed_never_changes() {
        let mut reference = Rng { state: [1, 2, 3, 4] };
        // The first outputs of the authors' C code for state {1, 2, 3, 4}.
        assert_eq!(
            [reference.next_u64(), reference.next_u64(), reference.next_u64(), reference.next_u64()],
            [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386]
        );
        // SplitMix64's published first output for seed 0.
        assert_eq!(split_mix(&mut 0), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn numbers_below_a_bound_are_below_it_and_reach_all_values() {
        let mut rng = Rng::new(7);
        let mut seen = [0_u32; 5];
        for _ in 0..5_000 {
            seen[rng.index(5)] += 1;
        }
        assert!(seen.iter().all(|count| (800..1_200).contains(count)), "{seen:?}");
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.below(1), 0);
    }

    #[test]
    fn chance_is_as_likely_as_it_says() {
        let mut rng = Rng::new(8);
        let hits = (0..8_000).filter(|_| rng.chance(1, 8)).count();
        assert!((850..1_150).contains(&hits), "{hits}");
        assert!(!rng.chance(0, 3));
        assert!(rng.chance(3, 3));
    }

    #[test]
    fn a_fork_leaves_its_parent_a_stream_of_its_own() {
        let mut one = Rng::new(9);
        let mut two = Rng::new(9);
        let mut fork = one.fork();
        let _ = two.fork();
        fork.fill(&mut [0; 100]);
        assert_eq!(one, two);
        assert_ne!(fork.next_u64(), one.next_u64());
    }

    #[test]
    fn filling_depends_on_the_seed_alone_and_covers_odd_lengths() {
        let (mut one, mut two) = ([0; 13], [0; 13]);
        Rng::new(1).fill(&mut one);
        Rng::new(1).fill(&mut two);
        assert_eq!(one, two);
        assert_ne!(one[8..], [0; 5]);
    }
}
