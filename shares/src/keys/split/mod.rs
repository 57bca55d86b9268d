//! Shamir's secret sharing over GF(256): 32 bytes into numbered shares, any threshold of which give them back.
//!
//! The field arithmetic is vsss-rs (Shamir, "How to share a secret", 1979, byte by byte), and this is its only user. It
//! returns a *wrong* secret without an error when shares are missing or false, so nothing here may be used without a
//! check of what was rebuilt: [`crate::quorum`] and [`crate::lock`] are the two callers, and both check.

use rand_chacha::ChaCha20Rng;
use rand_core::{CryptoRng, SeedableRng};
use vsss_rs::{Gf256, IdentifierGf256};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{CombineError, ThresholdError};
use crate::secret::Secret;

/// Most holders of one key: the size of cluster that is tested.
pub const HOLDERS_MAX: u8 = 9;

/// How many shares of how many rebuild a key: at least a majority, so that no two disjoint groups can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Threshold {
    needed: u8,
    holders: u8,
}

impl Threshold {
    /// `needed` of `holders`, for 1 <= holders <= [`HOLDERS_MAX`] and majority <= needed <= holders.
    ///
    /// # Errors
    /// [`ThresholdError`] for anything else; in particular one share never rebuilds what several hold.
    pub fn new(needed: u8, holders: u8) -> Result<Self, ThresholdError> {
        let majority = holders / 2 + 1;
        match (1..=HOLDERS_MAX).contains(&holders) && (majority..=holders).contains(&needed) {
            true => Ok(Self { needed, holders }),
            false => Err(ThresholdError { threshold: needed, holders }),
        }
    }

    /// Shares that rebuild the key.
    pub fn needed(self) -> u8 {
        self.needed
    }

    /// Shares that are dealt, numbered 1 to this.
    pub fn holders(self) -> u8 {
        self.holders
    }
}

/// The random coefficients of sharing polynomials: ChaCha20 seeded once, instead of one system call per byte.
pub(crate) struct Coefficients(Box<ChaCha20Rng>);

impl Coefficients {
    /// Seeds the stream with 32 bytes of `rng`.
    pub(crate) fn seeded(rng: &mut impl CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(seed.as_mut_slice());
        Self(Box::new(ChaCha20Rng::from_seed(*seed)))
    }
}

impl Drop for Coefficients {
    fn drop(&mut self) {
        // The generator offers no wiping; a stream of a known seed takes its place, before the compiler's eyes.
        *self.0 = ChaCha20Rng::from_seed([0; 32]);
        std::hint::black_box(&self.0);
    }
}

/// Splits `secret` into shares numbered 1 to `holders`; one needed share is the secret itself.
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
/// [`CombineError`]. False shares are *not* noticed: they give a wrong secret, which the caller must detect.
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
