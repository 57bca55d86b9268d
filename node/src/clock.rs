//! Time that counts while the machine sleeps.
//!
//! A lease must not survive a suspend, so it is measured on CLOCK_BOOTTIME: `std::time::Instant` stops while a machine is
//! suspended, and the wall clock can be set back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine started, suspends included. Never zero.
pub fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let millis = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32).as_millis();
    u64::try_from(millis).unwrap_or(u64::MAX).max(1)
}

/// Milliseconds since 1970, for stamps that people read; no decision rests on it.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
