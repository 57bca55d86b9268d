//! What every part of the testnet uses: its errors, and waiting for a condition.

pub mod error;
pub mod wait;
