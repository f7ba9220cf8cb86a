//! A running 64-bit summary, to prove that two runs did the same.

use super::rng::split_mix;

/// The summary so far. Order matters; not for hostile input.
#[derive(Debug)]
pub(super) struct Fingerprint(u64);

impl Fingerprint {
    pub(super) fn new() -> Fingerprint {
        Fingerprint(0)
    }

    pub(super) fn word(&mut self, word: u64) {
        let mut mixed = self.0.rotate_left(5) ^ word;
        self.0 = split_mix(&mut mixed);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        for piece in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            self.word(u64::from_le_bytes(word));
        }
    }

    pub(super) fn finish(&self) -> u64 {
        self.0
    }
}
