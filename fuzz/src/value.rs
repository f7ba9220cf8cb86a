//! Values as recipes: a model need not hold their bytes, only how long they are and what they hash to.

use std::io;

use crate::choice::mix;

/// What a stored value must be: its length and a hash of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// Length, bytes.
    pub len: u32,
    /// [`Hasher`] over the bytes.
    pub hash: u64,
}

/// How to make a value's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Length, bytes.
    pub len: u32,
    /// What the bytes grow from.
    pub seed: u64,
}

/// A streaming hash: the same for the same bytes however they are cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hasher {
    state: u64,
    word: u64,
    len: u64,
}

impl Hasher {
    /// Takes more bytes in.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !self.len.is_multiple_of(8) && !bytes.is_empty() {
            self.push(bytes[0]);
            bytes = &bytes[1..];
        }
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.absorb(u64::from_le_bytes(*word));
        }
        self.len += words.len() as u64 * 8;
        for byte in rest {
            self.push(*byte);
        }
    }

    fn push(&mut self, byte: u8) {
        self.word |= u64::from(byte) << (self.len % 8 * 8);
        self.len += 1;
        if self.len.is_multiple_of(8) {
            let word = std::mem::take(&mut self.word);
            self.absorb(word);
        }
    }

    fn absorb(&mut self, word: u64) {
        self.state = (self.state.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// What the bytes so far amount to.
    pub fn value(&self) -> Value {
        Value { len: self.len as u32, hash: mix(self.state ^ mix(self.word) ^ self.len) }
    }
}

impl Value {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Value {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.value()
    }

    /// Of everything that `source` gives, in bounded memory.
    pub fn read(source: &mut dyn io::Read) -> io::Result<Value> {
        let mut hasher = Hasher::default();
        let mut buffer = [0; 4000];
        loop {
            match source.read(&mut buffer)? {
                0 => return Ok(hasher.value()),
                count => hasher.update(&buffer[..count]),
            }
        }
    }
}

impl Recipe {
    /// The bytes.
    pub fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len as usize + 8);
        let mut counter = self.seed;
        // A quarter of the values are one byte over and over: zeros and 0xff look like holes and fills on disk.
        let plain = match self.seed % 8 {
            0 => Some(0),
            1 => Some(u64::MAX),
            _ => None,
        };
        while bytes.len() < self.len as usize {
            counter = counter.wrapping_add(1);
            bytes.extend_from_slice(&plain.unwrap_or_else(|| mix(counter)).to_le_bytes());
        }
        bytes.truncate(self.len as usize);
        bytes
    }

    /// What they amount to.
    pub fn value(self) -> Value {
        Value::of(&self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_hashes_the_same_however_it_is_cut() {
        let bytes = Recipe { len: 10_001, seed: 7 }.bytes();
        for step in [1, 3, 8, 13, 4000] {
            let mut hasher = Hasher::default();
            for piece in bytes.chunks(step) {
                hasher.update(piece);
            }
            assert_eq!(hasher.value(), Value::of(&bytes), "cut every {step} bytes");
        }
        assert_eq!(Value::read(&mut &bytes[..]).unwrap(), Value::of(&bytes));
    }

    #[test]
    fn a_changed_or_missing_byte_changes_the_hash() {
        let bytes = Recipe { len: 100, seed: 9 }.bytes();
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_ne!(Value::of(&other), Value::of(&bytes), "byte {at}");
            assert_ne!(Value::of(&bytes[..at]), Value::of(&bytes), "cut at {at}");
        }
    }
}
