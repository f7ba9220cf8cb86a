//! Zipfian picks, as YCSB draws them: Gray et al., "Quickly Generating Billion-Record Synthetic Databases" (1994), section 3.2.

use crate::rows::{Picks, Seed};

/// The popularity of `rows` items: the one of rank `n` is picked `1 / (n + 1)^theta` as often as the first.
#[derive(Clone, Copy, Debug)]
pub struct Popularity {
    rows: u64,
    theta: f64,
    zeta: f64,
    eta: f64,
}

impl Popularity {
    /// Of `rows` items. O(`rows`).
    ///
    /// # Panics
    ///
    /// If `theta` is not from 0 to below 1.
    #[expect(clippy::cast_precision_loss, reason = "row counts are far below 2^52")]
    pub fn new(rows: u64, theta: f64) -> Self {
        assert!((0.0..1.0).contains(&theta), "the method holds for exponents from 0 to 1, not for {theta}");
        let rows = rows.max(2);
        let zeta_of = |n: u64| (1..=n).map(|rank| (rank as f64).powf(-theta)).sum::<f64>();
        let zeta = zeta_of(rows);
        let eta = (1.0 - (2.0 / rows as f64).powf(1.0 - theta)) / (1.0 - zeta_of(2) / zeta);
        Popularity { rows, theta, zeta, eta }
    }
}

/// An endless, repeatable sequence of ranks below the number of items, the popular ones first.
#[derive(Clone, Debug)]
pub struct ZipfPicks {
    popularity: Popularity,
    uniform: Picks,
}

/// Steps between 0 and 1: as many as a float tells apart.
const STEPS: u64 = 1 << 53;

impl ZipfPicks {
    /// The sequence of this `seed`.
    pub fn new(seed: Seed, popularity: Popularity) -> Self {
        ZipfPicks { popularity, uniform: Picks::new(seed, STEPS) }
    }

    /// The next rank.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "between 0 and the number of rows"
    )]
    pub fn pick(&mut self) -> u64 {
        let Popularity { rows, theta, zeta, eta } = self.popularity;
        let u = self.uniform.pick() as f64 / STEPS as f64;
        let uz = u * zeta;
        if uz < 1.0 {
            return 0;
        }
        if uz < 1.0 + 0.5_f64.powf(theta) {
            return 1;
        }
        let rank = rows as f64 * (eta * u - eta + 1.0).powf(1.0 / (1.0 - theta));
        (rank as u64).min(rows - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_thousand_is_picked_as_often_as_the_exponent_says() {
        let popularity = Popularity::new(1000, 0.99);
        let mut picks = ZipfPicks::new(Seed(1), popularity);
        let mut seen = vec![0_u32; 1000];
        for _ in 0..100_000 {
            seen[usize::try_from(picks.pick()).unwrap()] += 1;
        }
        let expected = 100_000.0 / popularity.zeta;
        assert!((f64::from(seen[0]) / expected - 1.0).abs() < 0.05, "{} of {expected}", seen[0]);
        assert!((f64::from(seen[1]) / f64::from(seen[0]) - 0.5_f64.powf(0.99)).abs() < 0.05);
        assert!(seen[500..].iter().sum::<u32>() > 5_000, "the tail is long");
    }
}
