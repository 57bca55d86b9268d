//! Time that counts while the machine sleeps.
//!
//! Whatever must not outlive a suspend is measured on CLOCK_BOOTTIME: a lease at a node, the age of an answer at a client.
//! `std::time::Instant` stops while a machine is suspended, and the wall clock can be set back.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine started, suspends included. Never zero.
pub fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let millis = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32).as_millis();
    u64::try_from(millis).unwrap_or(u64::MAX).max(1)
}
