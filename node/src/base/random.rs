//! The operating system's randomness, for everything in the daemon that needs some.

use getrandom::SysRng;
use rand_core::{Rng, UnwrapErr};

/// The generator that the cryptography takes as an argument.
pub type SystemRng = UnwrapErr<SysRng>;

/// The operating system's generator. A kernel that has no randomness to give stops the process: nothing safe can follow.
pub fn system() -> SystemRng {
    UnwrapErr(SysRng)
}

/// `N` random bytes that are not secret: nonces and request ids.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    system().fill_bytes(&mut bytes);
    bytes
}
