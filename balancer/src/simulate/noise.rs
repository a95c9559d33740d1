//! Seeded randomness of the simulation: the same seed gives the same run on every machine.

use std::f64::consts::TAU;

/// A generator of normal deviates: splitmix64 (Steele, Lea and Flood 2014) under the Box–Muller transform.
#[derive(Debug, Clone)]
pub struct Noise {
    state: u64,
}

impl Noise {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Above 0, at most 1.
    pub fn uniform(&mut self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "53 bits are exact")]
        let numerator = ((self.next() >> 11) + 1) as f64;
        numerator / 9_007_199_254_740_992.0
    }

    /// From 0 to below `count`, each as likely to within 2^-46 for counts below 2^18.
    pub fn index(&mut self, count: usize) -> usize {
        let place = u128::from(self.next()) * count as u128;
        usize::try_from(place >> 64).expect("it is below the count")
    }

    /// Mean 0, standard deviation 1.
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviates_have_the_right_mean_and_spread_and_repeat_by_seed() {
        let draw = |seed| {
            let mut noise = Noise::new(seed);
            (0..20_000).map(|_| noise.normal()).collect::<Vec<_>>()
        };
        let values = draw(1);
        let mean = values.iter().sum::<f64>() / 20_000.0;
        let variance = values.iter().map(|value| value * value).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.04, "{mean} {variance}");
        assert_eq!(values, draw(1));
        assert_ne!(values, draw(2));
    }

    #[test]
    fn places_are_spread_evenly_below_their_count() {
        let mut noise = Noise::new(1);
        let mut hits = [0_u32; 8];
        for _ in 0..8_000 {
            hits[noise.index(8)] += 1;
        }
        assert!(hits.iter().all(|count| (900..1100).contains(count)), "{hits:?}");
    }
}
