//! Choices from a seed: SplitMix64 (Steele, Lea and Flood 2014, <https://doi.org/10.1145/2660193.2660195>).

use cloudtik_model::scenario::Span;

#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Choices of their own for what `parts` name: whatever else is chosen before, they are the same.
    pub fn stream(seed: u64, parts: &[u64]) -> Self {
        parts.iter().fold(Self(seed), |before, part| Self(Self(before.clone().draw() ^ part).draw()))
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `least` to `most`, both included.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.draw() % (most - least + 1)
    }

    /// A time until something that comes after `mean` on average, whenever one begins to wait: exponentially distributed.
    pub fn lasting(&mut self, mean: u64) -> u64 {
        // In (0, 1]: 53 bits are what a double holds.
        let uniform = ((self.draw() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        (-logarithm(uniform) * mean as f64) as u64
    }

    pub fn within(&mut self, span: Span) -> u64 {
        self.between(span.least, span.most)
    }

    /// True so many times in a thousand.
    pub fn permille(&mut self, chance: u64) -> bool {
        self.draw() % 1000 < chance
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() { None } else { of.get((self.draw() % of.len() as u64) as usize) }
    }
}

/// The natural logarithm of a number in (0, 1], from what every machine computes alike: that of a library may differ in its
/// last bit, and then no seed would be the same life elsewhere.
fn logarithm(mut number: f64) -> f64 {
    let mut halvings = 0.0;
    while number < 0.5 {
        (number, halvings) = (number * 2.0, halvings + 1.0);
    }
    // ln m = 2 artanh((m − 1) / (m + 1)), whose series converges by a factor of nine at least.
    let z = (number - 1.0) / (number + 1.0);
    let (mut term, mut sum) = (z, 0.0);
    for odd in (1..=33).step_by(2) {
        sum += term / f64::from(odd);
        term *= z * z;
    }
    2.0 * sum - halvings * std::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_exponentially_distributed() {
        for number in [1.0, 0.75, 0.5, 0.1, 1e-3, 1e-16] {
            assert!((logarithm(number) - f64::ln(number)).abs() < 1e-12, "{number}");
        }
        let mut random = Random::new(1);
        let mean = (0..100_000).map(|_| random.lasting(1_000) as f64).sum::<f64>() / 100_000.0;
        assert!((985.0..1_015.0).contains(&mean), "{mean}");
    }

    #[test]
    fn streams_differ_and_are_each_their_own() {
        let draw = |seed, parts: &[u64]| Random::stream(seed, parts).draw();
        assert_eq!(draw(1, &[2, 3]), draw(1, &[2, 3]));
        let all = [draw(1, &[2, 3]), draw(1, &[3, 2]), draw(2, &[2, 3]), draw(1, &[2]), draw(1, &[2, 3, 0])];
        assert!(all.iter().enumerate().all(|(i, a)| all[..i].iter().all(|b| a != b)), "{all:?}");
    }
}
