//! The source of randomness of the server: seeds, ids and secrets; seedable in tests.

use std::sync::{Mutex, PoisonError};

use crate::domain::{LabelerId, hash};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;

/// Largest seed drawn plus one: exact in every JSON reader and in a signed database column.
const SEED_BOUND: u64 = 1 << 53;

/// A cryptographic generator behind a lock.
pub struct Random(Mutex<ChaCha20Rng>);

impl Random {
    /// Seeded by the operating system.
    ///
    /// # Errors
    /// When the system provides no entropy.
    pub fn from_os() -> std::io::Result<Self> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| std::io::Error::other(e.to_string()))?;
        Ok(Self(Mutex::new(ChaCha20Rng::from_seed(seed))))
    }

    /// Repeatable, for tests.
    pub fn from_seed(seed: u64) -> Self {
        Self(Mutex::new(ChaCha20Rng::seed_from_u64(seed)))
    }

    /// A sampling or order seed below 2^53.
    pub fn seed(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next_u64() % SEED_BOUND
    }

    /// Uniform in [0, 1).
    pub fn fraction(&self) -> f64 {
        self.seed() as f64 / SEED_BOUND as f64
    }

    /// 256 random bits.
    pub fn bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut bytes);
        bytes
    }

    /// 256 random bits as hex behind a readable prefix: keys, session tokens, invites.
    pub fn secret(&self, prefix: &str) -> String {
        format!("{prefix}{}", hex::encode(self.bytes()))
    }
}

/// SHA-256 (hex) by which a secret is stored. Secrets are 256 random bits, so no slow hash is needed.
pub fn secret_hash(secret: &str) -> String {
    hash::of_bytes(secret.as_bytes())
}

/// The pseudonym of a person in feedback events.
pub fn actor_hash(id: &LabelerId) -> String {
    secret_hash(id.as_str())[..16].to_owned()
}

/// The order in which a set of `n` completions is shown: a permutation given by the seed.
pub fn shown_order(seed: u64, n: usize) -> Vec<usize> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        // n ≤ 9 here: the bias of the modulus is below 2^-60.
        order.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
    }
    order
}
