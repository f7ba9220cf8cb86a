//! Where decisions come from: a seed (campaigns) or the bytes a fuzzer made (libFuzzer).
//!
//! One source drives a whole run, so that a run is a function of its seed or of its bytes. Bytes are spent sparingly (one
//! for a choice of up to 256), so that a fuzzer's mutations move single decisions.

use hamal_storage::sim::Rng;

/// Mixes a 64-bit number into one that looks random (the finaliser of SplitMix64).
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[derive(Debug)]
enum Source {
    Seeded(Rng),
    Bytes { bytes: Vec<u8>, at: usize },
}

/// A stream of decisions.
#[derive(Debug)]
pub struct Choices {
    source: Source,
    drawn: u64,
    digest: u64,
}

impl Choices {
    /// Endless decisions from a seed.
    pub fn seeded(seed: u64) -> Self {
        Choices { source: Source::Seeded(Rng::new(seed)), drawn: 0, digest: mix(seed) }
    }

    /// Decisions spelled out by bytes; when they run out, every decision is the first option.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Choices { source: Source::Bytes { bytes: bytes.to_vec(), at: 0 }, drawn: 0, digest: 0 }
    }

    /// Whether the bytes have run out. Never, for a seed.
    pub fn exhausted(&self) -> bool {
        match &self.source {
            Source::Seeded(_) => false,
            Source::Bytes { bytes, at } => *at >= bytes.len(),
        }
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        let value = match &mut self.source {
            Source::Seeded(rng) => rng.next_u64() % bound.max(1),
            Source::Bytes { bytes, at } => {
                let width = match bound {
                    0..=0x100 => 1,
                    0x101..=0x1_0000 => 2,
                    _ => 4,
                };
                let mut value = 0;
                for _ in 0..width {
                    value = value << 8 | u64::from(bytes.get(*at).copied().unwrap_or(0));
                    *at += 1;
                }
                value % bound.max(1)
            }
        };
        self.drawn += 1;
        self.digest = mix(self.digest ^ value);
        value
    }

    /// A number in `least..=most`.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// True once in `one_in` times.
    pub fn once_in(&mut self, one_in: u64) -> bool {
        self.below(one_in) == one_in - 1
    }

    /// A number below `bound`, small ones far more often than large ones.
    pub fn skewed(&mut self, bound: u64) -> u64 {
        let part = self.below(bound) + 1;
        self.below(part)
    }

    /// One of `options`, which must not be empty.
    pub fn pick<'o, T>(&mut self, options: &'o [T]) -> &'o T {
        &options[self.below(options.len() as u64) as usize]
    }

    /// A number that no two calls in a run share; costs no input bytes.
    pub fn fresh(&mut self) -> u64 {
        self.drawn += 1;
        mix(self.digest ^ self.drawn)
    }

    /// A digest of every decision taken so far.
    pub fn fingerprint(&self) -> u64 {
        mix(self.digest ^ self.drawn)
    }
}
