//! Chance as a value: a small seeded generator that the caller owns, one per worker.

/// A fast, statistically sound, not cryptographic source of random numbers (xoshiro256++).
///
/// The proxy seeds one per worker from the system's randomness; a test seeds it with a number and gets the same
/// sequence for ever.
#[derive(Debug, Clone)]
pub struct Dice {
    state: [u64; 4],
}

/// A share of something: `numerator` of `denominator` (100, 10,000 or 1,000,000 in xDS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    /// How many of `denominator`; above it means always.
    pub numerator: u32,
    /// Never zero when built from xDS.
    pub denominator: u32,
}

impl Fraction {
    /// Every time.
    pub const ALWAYS: Self = Self { numerator: 100, denominator: 100 };
    /// Not once.
    pub const NEVER: Self = Self { numerator: 0, denominator: 100 };
}

impl Dice {
    /// A generator whose whole sequence follows from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut x = seed;
        let mut next = || {
            // SplitMix64: the seeding that xoshiro's authors recommend, so that close seeds give unlike states.
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = x;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        Self { state: [next(), next(), next(), next()] }
    }

    /// The next 64 random bits.
    pub fn roll(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let t = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= t;
        *d = d.rotate_left(45);
        result
    }

    /// A number below `bound`, each equally likely (bias below 2^-32 for any bound that fits 32 bits); 0 for bound 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.roll()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with the probability `fraction`.
    pub fn hits(&mut self, fraction: Fraction) -> bool {
        if fraction.numerator >= fraction.denominator {
            return true;
        }
        fraction.numerator != 0 && self.below(u64::from(fraction.denominator)) < u64::from(fraction.numerator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_sequence() {
        let (mut a, mut b, mut c) = (Dice::new(7), Dice::new(7), Dice::new(8));
        let left: Vec<u64> = (0..20).map(|_| a.roll()).collect();
        assert_eq!(left, (0..20).map(|_| b.roll()).collect::<Vec<_>>());
        assert_ne!(left, (0..20).map(|_| c.roll()).collect::<Vec<_>>());
    }

    #[test]
    fn fractions_hold() {
        let mut dice = Dice::new(1);
        let tenth = Fraction { numerator: 10, denominator: 100 };
        let hits = (0..100_000).filter(|_| dice.hits(tenth)).count();
        assert!((9_600..10_400).contains(&hits), "{hits}");
        assert!((0..1000).all(|_| dice.hits(Fraction::ALWAYS)));
        assert!((0..1000).all(|_| !dice.hits(Fraction::NEVER)));
        assert!((0..1000).all(|_| dice.below(3) < 3));
    }
}
