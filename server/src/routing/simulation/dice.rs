//! Chance, by a small generator of its own: the same seed, the same story, whatever becomes of other crates.

/// What is thrown depends on the seed and on what was thrown before, on nothing else.
pub(super) struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    fn next(&mut self) -> u64 {
        // Steele, Lea, Flood: splitmix64 (2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub fn up_to(&mut self, bound: u64) -> u64 {
        self.next() % (bound + 1)
    }

    pub fn one_in(&mut self, bound: u64) -> bool {
        self.next().is_multiple_of(bound)
    }
}
