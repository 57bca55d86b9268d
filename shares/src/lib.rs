//! All cryptography of Quorate, and nothing else: no I/O, no async, no clock; randomness is an argument.

pub mod codec;
pub mod ids;
pub mod secret;
