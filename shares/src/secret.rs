//! Secrets: bytes that are never copied by accident, printed, compared in variable time, or left behind.
//!
//! A [`Secret`] has no Clone, Debug, Serialize or PartialEq. It is wiped when dropped and read only through
//! [`Secret::expose`], so `grep expose` lists every place that touches key material.

use rand_core::CryptoRng;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// `N` secret bytes on the heap, wiped on drop.
pub struct Secret<const N: usize>(Box<[u8; N]>);

impl<const N: usize> Secret<N> {
    /// Takes the bytes out of `source` and wipes it.
    pub fn take(source: &mut [u8; N]) -> Self {
        let secret = Self(Box::new(*source));
        source.zeroize();
        secret
    }

    /// Copies a slice; `None` if it does not have `N` bytes. The caller keeps, and wipes, the original.
    pub fn copy_of(source: &[u8]) -> Option<Self> {
        let mut secret = Self::zero();
        if source.len() != N {
            return None;
        }
        secret.0.copy_from_slice(source);
        Some(secret)
    }

    /// `N` bytes from `rng`.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        let mut secret = Self::zero();
        rng.fill_bytes(secret.0.as_mut_slice());
        secret
    }

    /// `N` zero bytes, to be filled through [`Secret::expose_mut`].
    pub fn zero() -> Self {
        Self(Box::new([0; N]))
    }

    /// The bytes, for the length of a borrow.
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }

    /// The bytes, to be written in place.
    pub fn expose_mut(&mut self) -> &mut [u8; N] {
        &mut self.0
    }

    /// A second owner of the same bytes, said in so many words.
    pub fn duplicate(&self) -> Self {
        Self(Box::new(*self.0))
    }

    /// Compares in constant time.
    pub fn same_as(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}
