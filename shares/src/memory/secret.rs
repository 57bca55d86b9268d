//! Secrets: bytes that are never copied by accident, printed, compared in variable time, or left behind.
//!
//! A [`Secret`] has no Clone, Debug, Serialize or PartialEq. It is wiped when dropped and read only through
//! [`Secret::expose`], so `grep expose` lists every place that touches key material.

use rand_core::CryptoRng;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::arena::Place;

/// `N` secret bytes in locked memory (see [`crate::arena`]), wiped on drop.
pub struct Secret<const N: usize>(Place<N>);

impl<const N: usize> Secret<N> {
    /// Takes the bytes out of `source` and wipes it.
    pub fn take(source: &mut [u8; N]) -> Self {
        let mut secret = Self::zero();
        secret.expose_mut().copy_from_slice(source);
        source.zeroize();
        secret
    }

    /// Copies a slice; `None` if it does not have `N` bytes. The caller keeps, and wipes, the original.
    pub fn copy_of(source: &[u8]) -> Option<Self> {
        let source: &[u8; N] = source.try_into().ok()?;
        let mut secret = Self::zero();
        secret.expose_mut().copy_from_slice(source);
        Some(secret)
    }

    /// `N` bytes from `rng`.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        let mut secret = Self::zero();
        rng.fill_bytes(secret.expose_mut());
        secret
    }

    /// `N` zero bytes, to be filled through [`Secret::expose_mut`].
    pub fn zero() -> Self {
        Self(Place::zero())
    }

    /// The bytes, for the length of a borrow.
    pub fn expose(&self) -> &[u8; N] {
        self.0.bytes()
    }

    /// The bytes, to be written in place.
    pub fn expose_mut(&mut self) -> &mut [u8; N] {
        self.0.bytes_mut()
    }

    /// A second owner of the same bytes, said in so many words.
    pub fn duplicate(&self) -> Self {
        let mut second = Self::zero();
        second.expose_mut().copy_from_slice(self.expose());
        second
    }

    /// Compares in constant time.
    pub fn same_as(&self, other: &Self) -> bool {
        self.expose().as_slice().ct_eq(other.expose().as_slice()).into()
    }
}
