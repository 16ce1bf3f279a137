//! Random numbers that are the same for a seed for ever: a seed in a bug report must stay good.

/// SplitMix64 (Steele, Lea, Flood 2014): small, and its output is fixed by definition, not by the
/// version of a library.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..end`.
    ///
    /// *Panics*: when `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        // The modulo's bias is far below anything a test could see.
        let end = u64::try_from(end).expect("usize is no wider than 64 bits");
        usize::try_from(self.number() % end).expect("less than a usize")
    }

    /// One of `first..=last`.
    pub fn between(&mut self, first: usize, last: usize) -> usize {
        first + self.below(last - first + 1)
    }

    /// True in so many of a hundred.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of these.
    ///
    /// *Panics*: when there is none.
    pub fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}
