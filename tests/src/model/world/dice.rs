//! Every choice of a run, from one seed.
//!
//! The same stream feeds the scheduler and, as the argument that all cryptography here takes, every key, nonce and
//! coefficient: a run replays to the last byte.

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

/// The one source of chance.
pub(in crate::model) struct Dice(ChaCha20Rng);

impl Dice {
    pub(in crate::model) fn seeded(seed: u64) -> Self {
        Self(ChaCha20Rng::seed_from_u64(seed))
    }

    /// The generator itself, for cryptography.
    pub(in crate::model) fn rng(&mut self) -> &mut ChaCha20Rng {
        &mut self.0
    }

    /// A number below `limit`, which is not zero. The bias of the remainder is far below what a run could notice.
    pub(in crate::model) fn below(&mut self, limit: u64) -> u64 {
        self.0.next_u64() % limit
    }

    /// A number from `low` to `high`, both included.
    pub(in crate::model) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True so many times in a thousand.
    pub(in crate::model) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    /// One of `items`; `None` of none.
    pub(in crate::model) fn pick<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        if items.is_empty() { None } else { Some(items[self.below(items.len() as u64) as usize]) }
    }

    pub(in crate::model) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill_bytes(&mut bytes);
        bytes
    }
}
