//! The lease: the only right to serve, always short and always earned from a quorum.
//!
//! A node may serve while a leader, itself confirmed by a quorum, confirmed it within the lease time. The lease runs from
//! the moment the request was *sent*, so a slow answer shortens it, and on a clock that counts while the machine sleeps.
//! It is checked before the work and again when the answer is ready, so a process that was stopped during the work does not
//! answer late. One that is stopped between that last look and the network does; so the answer says how long it holds, and
//! the client discards it afterwards.
//! At its loss a node stops serving at once; its keys are wiped a little later, so that one slow election does not
//! empty every cache.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::boot_ms;

/// Until when this node may serve.
#[derive(Debug, Default)]
pub struct Lease {
    until_ms: AtomicU64,
}

impl Lease {
    /// Notes a confirmation whose request was sent at `sent_ms` ([`boot_ms`]). An older confirmation changes nothing.
    pub fn grant(&self, sent_ms: u64, length: Duration) {
        self.until_ms.fetch_max(sent_ms + length.as_millis() as u64, Ordering::AcqRel);
    }

    /// Whether this node may serve now.
    pub fn is_valid(&self) -> bool {
        self.until_ms().is_some()
    }

    /// Until when this node may serve ([`boot_ms`]); `None` if it may not now.
    pub fn until_ms(&self) -> Option<u64> {
        Some(self.until_ms.load(Ordering::Acquire)).filter(|&until| boot_ms() < until)
    }

    /// Milliseconds that are left; zero without a lease.
    pub fn left_ms(&self) -> u64 {
        self.until_ms.load(Ordering::Acquire).saturating_sub(boot_ms())
    }

    /// Milliseconds since the lease ran out; `None` while it is valid or was never had.
    pub fn lost_for_ms(&self) -> Option<u64> {
        let until = self.until_ms.load(Ordering::Acquire);
        (until != 0).then(|| boot_ms().checked_sub(until)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_runs_from_when_it_was_asked_for() {
        let lease = Lease::default();
        assert!(!lease.is_valid() && lease.lost_for_ms().is_none());
        let now = boot_ms();
        lease.grant(now.saturating_sub(5_000), Duration::from_secs(3));
        assert!(!lease.is_valid(), "the answer came too late to be worth anything");
        assert!(lease.lost_for_ms().is_some_and(|lost| lost >= 2_000));
        lease.grant(now, Duration::from_secs(3));
        lease.grant(now - 1_000, Duration::from_secs(3));
        assert!(lease.is_valid() && lease.left_ms() > 2_000, "an older confirmation shortens nothing");
    }
}
