//! Shamir's secret sharing over GF(256): splits 32 bytes into numbered shares and rebuilds them from a threshold of
//! shares.
//!
//! The field arithmetic is that of vsss-rs (Shamir, "How to share a secret", 1979, byte by byte). This module is its
//! only user. If shares are missing or false, vsss-rs returns a *wrong* secret and no error. So every caller must check
//! the rebuilt secret. The two callers, [`crate::quorum`] and [`crate::lock`], do.

use rand_chacha::ChaCha20Rng;
use rand_core::{CryptoRng, SeedableRng};
use vsss_rs::{Gf256, IdentifierGf256};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{CombineError, ThresholdError};
use crate::secret::Secret;

/// Most holders of one key: the largest cluster that is tested.
pub const HOLDERS_MAX: u8 = 9;

/// How many of how many shares rebuild a key. It is at least a majority, so that two disjoint groups of holders can
/// never both rebuild it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Threshold {
    needed: u8,
    holders: u8,
}

impl Threshold {
    /// `needed` of `holders`, for 1 <= holders <= [`HOLDERS_MAX`] and majority <= needed <= holders.
    ///
    /// # Errors
    /// [`ThresholdError`] for anything else. So among several holders, one share alone never rebuilds a key.
    pub fn new(needed: u8, holders: u8) -> Result<Self, ThresholdError> {
        let majority = holders / 2 + 1;
        match (1..=HOLDERS_MAX).contains(&holders) && (majority..=holders).contains(&needed) {
            true => Ok(Self { needed, holders }),
            false => Err(ThresholdError { threshold: needed, holders }),
        }
    }

    /// How many shares rebuild the key.
    pub fn needed(self) -> u8 {
        self.needed
    }

    /// How many shares are dealt. They are numbered from 1.
    pub fn holders(self) -> u8 {
        self.holders
    }
}

/// The random coefficients of the sharing polynomials: a ChaCha20 stream that is seeded once. This avoids one system
/// call per byte.
pub(crate) struct Coefficients(Box<ChaCha20Rng>);

impl Coefficients {
    /// Seeds the stream with 32 bytes from `rng`.
    pub(crate) fn seeded(rng: &mut impl CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(seed.as_mut_slice());
        Self(Box::new(ChaCha20Rng::from_seed(*seed)))
    }
}

impl Drop for Coefficients {
    fn drop(&mut self) {
        // The generator has no method that wipes it, so a stream with a known seed overwrites it. `black_box` keeps the
        // compiler from removing the write.
        *self.0 = ChaCha20Rng::from_seed([0; 32]);
        std::hint::black_box(&self.0);
    }
}

/// Splits `secret` into shares numbered 1 to `holders`. If `needed` is 1, each share is the secret itself.
///
/// The caller has checked 1 <= needed <= holders <= 255.
pub(crate) fn split(secret: &Secret<32>, needed: u8, holders: u8, rng: &mut Coefficients) -> Vec<Secret<32>> {
    if needed == 1 {
        return (0..holders).map(|_| secret.duplicate()).collect();
    }
    let numbers = (1..=holders).map(|x| IdentifierGf256(Gf256(x)));
    let shares = Gf256::split_bytes_with_participant_ids_iter(
        needed.into(),
        holders.into(),
        secret.expose(),
        &mut *rng.0,
        numbers,
    )
    .expect("2 <= needed <= holders, and the numbers are distinct and not zero");
    let shares = shares.into_iter().map(Zeroizing::new);
    shares.map(|share| Secret::copy_of(&share[1..]).expect("a share is its number and 32 bytes")).collect()
}

/// Rebuilds a secret from exactly `needed` shares with distinct numbers from 1 to `holders`.
///
/// # Errors
/// [`CombineError`]. False shares are *not* detected here: they give a wrong secret, and the caller must check it.
pub(crate) fn combine(shares: &[(u8, &Secret<32>)], needed: u8, holders: u8) -> Result<Secret<32>, CombineError> {
    if needed == 0 || shares.len() != usize::from(needed) {
        return Err(CombineError::Count { have: shares.len(), need: needed.into() });
    }
    for (position, (x, _)) in shares.iter().enumerate() {
        let repeated = shares[..position].iter().any(|(earlier, _)| earlier == x);
        if *x == 0 || *x > holders || repeated {
            return Err(CombineError::Number(*x));
        }
    }
    if let [(_, only)] = shares {
        return Ok(only.duplicate());
    }
    let numbered = |(x, y): &(u8, &Secret<32>)| {
        let mut share = Vec::with_capacity(33);
        share.push(*x);
        share.extend_from_slice(y.expose());
        share
    };
    let mut numbered: Vec<Vec<u8>> = shares.iter().map(numbered).collect();
    let combined = Gf256::combine_bytes(&numbered).map(Zeroizing::new);
    numbered.zeroize();
    let combined = combined.expect("at least two shares of one length, with distinct numbers that are not zero");
    Ok(Secret::copy_of(&combined).expect("32 bytes in, 32 bytes out"))
}

#[cfg(test)]
mod tests;
