//! The clocks of a node: one that counts while the machine sleeps, for every decision, and one for people.

use std::time::{SystemTime, UNIX_EPOCH};

pub use quorate_client::clock::boot_ms;

/// Milliseconds since 1970, for stamps that people read; no decision rests on it.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
