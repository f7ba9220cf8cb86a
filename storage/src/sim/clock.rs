//! Time that passes because somebody looked, or because a test says so.

use std::time::Duration;

use super::fingerprint::Fingerprint;
use super::rng::Rng;

/// 2026-01-01 00:00:00 UTC.
const START_MICROS: u64 = 1_767_225_600_000_000;
/// The most that passes per look, exclusive.
const STEP_MICROS: u64 = 50;

#[derive(Clone, Debug)]
pub(super) struct Clock {
    elapsed_micros: u64,
    rng: Rng,
}

impl Clock {
    pub(super) fn new(rng: Rng) -> Clock {
        Clock { elapsed_micros: 0, rng }
    }

    /// The clock of the machine that comes up after this one stopped.
    pub(super) fn restart(&self, rng: Rng) -> Clock {
        Clock { elapsed_micros: self.elapsed_micros.saturating_add(1_000_000), rng }
    }

    pub(super) fn advance(&mut self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.elapsed_micros = self.elapsed_micros.saturating_add(micros);
    }

    /// Time since the first machine came up; looking takes time.
    pub(super) fn monotonic(&mut self) -> Duration {
        self.elapsed_micros = self.elapsed_micros.saturating_add(1 + self.rng.below(STEP_MICROS - 1));
        Duration::from_micros(self.elapsed_micros)
    }

    pub(super) fn now_micros(&mut self) -> u64 {
        START_MICROS.saturating_add(self.monotonic().as_micros() as u64)
    }

    pub(super) fn fingerprint(&self, into: &mut Fingerprint) {
        into.word(self.elapsed_micros);
        self.rng.state().into_iter().for_each(|word| into.word(word));
    }
}
