//! Secrets: bytes that are never copied by accident, printed, compared in variable time, or left in memory.
//!
//! A [`Secret`] implements none of Clone, Debug, Serialize and PartialEq. It is wiped when it is dropped. It is read
//! only through [`Secret::expose`], so `grep expose` lists every place that touches key material.

use rand_core::CryptoRng;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::arena::Buffer;

/// `N` secret bytes in locked memory (see [`crate::arena`]). They are wiped on drop.
pub struct Secret<const N: usize>(Buffer<N>);

impl<const N: usize> Secret<N> {
    /// Moves the bytes out of `source`, which is wiped.
    pub fn take(source: &mut [u8; N]) -> Self {
        let mut secret = Self::zero();
        secret.expose_mut().copy_from_slice(source);
        source.zeroize();
        secret
    }

    /// Copies a slice; `None` if it does not have `N` bytes. The caller wipes the original.
    pub fn copy_of(source: &[u8]) -> Option<Self> {
        let source: &[u8; N] = source.try_into().ok()?;
        let mut secret = Self::zero();
        secret.expose_mut().copy_from_slice(source);
        Some(secret)
    }

    /// Draws `N` bytes from `rng`.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        let mut secret = Self::zero();
        rng.fill_bytes(secret.expose_mut());
        secret
    }

    /// `N` zero bytes, to be filled through [`Secret::expose_mut`].
    pub fn zero() -> Self {
        Self(Buffer::zero())
    }

    /// Lends the bytes.
    pub fn expose(&self) -> &[u8; N] {
        self.0.bytes()
    }

    /// Lends the bytes, to be written in place.
    pub fn expose_mut(&mut self) -> &mut [u8; N] {
        self.0.bytes_mut()
    }

    /// A second owner of the same bytes. There is no `Clone`, so that each copy is visible in the code.
    pub fn duplicate(&self) -> Self {
        let mut second = Self::zero();
        second.expose_mut().copy_from_slice(self.expose());
        second
    }

    /// Whether both hold the same bytes, compared in constant time.
    pub fn same_as(&self, other: &Self) -> bool {
        self.expose().as_slice().ct_eq(other.expose().as_slice()).into()
    }
}
