//! Exact rational numbers.

use num_bigint::BigInt;

/// Larger exponents are not computed.
const MAX_EXPONENT: u32 = 4096;
/// Maximum size of numerator and denominator together.
const MAX_BITS: u64 = 1 << 16;

/// A fraction of integers, not reduced. The denominator is above 0.
#[derive(Clone, Debug)]
pub struct Rational {
    pub numerator: BigInt,
    pub denominator: BigInt,
}

impl PartialEq for Rational {
    fn eq(&self, other: &Self) -> bool {
        &self.numerator * &other.denominator == &other.numerator * &self.denominator
    }
}

impl Rational {
    pub fn whole(n: i64) -> Self {
        Self { numerator: n.into(), denominator: 1.into() }
    }

    fn is_small(&self) -> bool {
        self.numerator.bits() + self.denominator.bits() <= MAX_BITS
    }

    /// The product; `None` if it is too large.
    pub fn times(&self, other: &Self) -> Option<Self> {
        let product =
            Self { numerator: &self.numerator * &other.numerator, denominator: &self.denominator * &other.denominator };
        product.is_small().then_some(product)
    }

    pub fn plus(&self, other: &Self) -> Self {
        let numerator = &self.numerator * &other.denominator + &other.numerator * &self.denominator;
        Self { numerator, denominator: &self.denominator * &other.denominator }
    }

    /// The quotient; `None` for a division by 0.
    pub fn over(&self, other: &Self) -> Option<Self> {
        let zero = BigInt::from(0);
        if other.numerator == zero {
            return None;
        }
        let (numerator, denominator) = (&self.numerator * &other.denominator, &self.denominator * &other.numerator);
        Some(if denominator < zero {
            Self { numerator: -numerator, denominator: -denominator }
        } else {
            Self { numerator, denominator }
        })
    }

    /// The power; `None` if it is too large or a division by 0.
    pub fn power(&self, exponent: i64) -> Option<Self> {
        let n = u32::try_from(exponent.unsigned_abs()).ok().filter(|n| *n <= MAX_EXPONENT)?;
        if (self.numerator.bits() + self.denominator.bits()) * u64::from(n) > MAX_BITS {
            return None;
        }
        let raised = Self { numerator: self.numerator.pow(n), denominator: self.denominator.pow(n) };
        if exponent < 0 { Self::whole(1).over(&raised) } else { Some(raised) }
    }

    pub fn negative(self) -> Self {
        Self { numerator: -self.numerator, ..self }
    }
}
