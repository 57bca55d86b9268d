//! All cryptography of Quorate, and nothing else: no I/O, no async, no clock. Randomness is an argument.
//!
//! | module | what it answers |
//! |---|---|
//! | [`ids`], [`labels`], [`layout`], [`codec`], [`error`] | how things are named, and how bytes are laid out and read |
//! | `memory`: [`secret`], [`arena`] | where secrets live |
//! | [`kem`] | how a secret is sealed to the public key of a node |
//! | `keys`: [`master`], [`split`], [`seal`], [`transit`], [`quorum`] | how a key is split, sealed to holders, sent and rebuilt |
//! | [`lock`] | how the peers of a node lock its own keys |
//! | [`envelope`], [`context`] | what a ciphertext is |
//! | [`signature`], [`order`] | how an operator signs what the cluster is to do |

#![warn(clippy::print_stderr)] // what a daemon says goes through its log
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod codec;
pub mod error;
pub mod ids;
pub mod labels;
pub mod layout;

mod memory;
pub use memory::{arena, secret};

pub mod kem;
mod primitive;

mod keys;
pub use keys::{master, quorum, seal, split, transit};

pub mod lock;

pub mod envelope;
pub use envelope::context;

pub mod order;
pub mod signature;
