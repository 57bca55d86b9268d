//! All cryptography of Quorate, and nothing else: no I/O, no async, no clock; randomness is an argument.
//!
//! In reading order: what names things and how bytes are laid out; what a secret is; how keys are split, sealed to their
//! holders and put together again; how a node's own keys are locked by its peers; what a ciphertext is.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod codec;
pub mod error;
pub mod ids;
pub mod labels;
pub mod layout;

#[expect(unsafe_code, reason = "locked memory and process hardening are system calls")]
pub mod arena;
pub mod kem;
mod primitive;
pub mod secret;

pub mod master;
pub mod quorum;
pub mod seal;
pub mod split;
pub mod transit;

pub mod lock;

pub mod context;
pub mod envelope;
