//! The operating system's randomness. The whole daemon uses this one source.

use getrandom::SysRng;
use rand_core::{Rng, UnwrapErr};

/// The generator that the cryptography takes as an argument.
pub type SystemRng = UnwrapErr<SysRng>;

/// The operating system's generator. If the kernel has no randomness, the process stops: it could not go on safely.
pub fn system() -> SystemRng {
    UnwrapErr(SysRng)
}

/// `N` random bytes that are not secret: nonces and request ids.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    system().fill_bytes(&mut bytes);
    bytes
}
