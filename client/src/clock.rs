//! Time that counts while the machine sleeps.
//!
//! A lease at a node and the age of an answer at a client must not survive a suspend, so they are measured on
//! CLOCK_BOOTTIME. `std::time::Instant` stops while a machine is suspended, and the wall clock can be set back.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine started, including the time that it was suspended. Never zero.
pub fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let millis = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32).as_millis();
    u64::try_from(millis).unwrap_or(u64::MAX).max(1)
}
