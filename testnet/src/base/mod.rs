//! What every part of the testnet uses: its errors, waiting for a condition, and random choices.

pub mod dice;
pub mod error;
pub mod wait;
