//! The lease: the only right to serve. It is short, and it always comes from a quorum.
//!
//! A node may serve if a leader has confirmed it within the lease time. A quorum must have confirmed that leader. The lease
//! runs from the moment when the request was *sent*, so a slow answer shortens it. The clock also counts while the machine
//! sleeps.
//!
//! The lease is checked before the work and again when the answer is ready. So a process that is stopped during the work does
//! not answer late. A process can still be stopped between the second check and the network. So the answer says how long it
//! is valid, and the client discards it after that.
//!
//! When the lease is lost, the node stops serving at once. Its keys are wiped a little later, so that one slow election does
//! not empty every cache.
//!
//! Functions whose names end in `_at` get the time as an argument, so that the rule can be run in virtual time. The others
//! read the clock.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate_client::wire::Answered;
use quorate_shares::ids::Epoch;

use crate::base::clock::boot_ms;

/// One request for a lease. It knows when it was sent, because the lease begins then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    sent_ms: u64,
    length_ms: u64,
}

impl Renewal {
    /// A request that is sent at `now_ms` ([`boot_ms`]) for a lease of this length. To be made before the request is sent.
    pub fn sent(now_ms: u64, length: Duration) -> Self {
        Self { sent_ms: now_ms, length_ms: length.as_millis() as u64 }
    }

    pub fn sent_ms(&self) -> u64 {
        self.sent_ms
    }

    /// Milliseconds until the confirmation is worthless.
    pub fn left_ms(&self, now_ms: u64) -> u64 {
        (self.sent_ms + self.length_ms).saturating_sub(now_ms)
    }
}

/// Until when this node may serve.
#[derive(Debug, Default)]
pub struct Lease {
    until_ms: AtomicU64,
    barred: AtomicBool,
}

impl Lease {
    /// Notes that `renewal` is confirmed, and that this node has applied the log up to the leader's read index. An older
    /// confirmation changes nothing.
    pub fn grant(&self, renewal: Renewal) {
        self.until_ms.fetch_max(renewal.sent_ms + renewal.length_ms, Ordering::AcqRel);
    }

    /// With `true`, bars this node from serving, whatever leases it has or gets. With `false`, lets it serve again.
    pub fn bar(&self, barred: bool) {
        self.barred.store(barred, Ordering::Release);
    }

    pub fn is_barred(&self) -> bool {
        self.barred.load(Ordering::Acquire)
    }

    /// Whether this node may serve now.
    pub fn is_valid(&self) -> bool {
        self.is_valid_at(boot_ms())
    }

    /// [`Lease::is_valid`] at another time.
    pub fn is_valid_at(&self, now_ms: u64) -> bool {
        self.until_ms_at(now_ms).is_some()
    }

    /// Until when this node may serve ([`boot_ms`]); `None` if it may not now.
    pub fn until_ms(&self) -> Option<u64> {
        self.until_ms_at(boot_ms())
    }

    /// [`Lease::until_ms`] at another time.
    pub fn until_ms_at(&self, now_ms: u64) -> Option<u64> {
        let until_ms = self.until_ms.load(Ordering::Acquire);
        (now_ms < until_ms && !self.is_barred()).then_some(until_ms)
    }

    /// Milliseconds that are left; 0 without a lease.
    pub fn left_ms(&self) -> u64 {
        self.left_ms_at(boot_ms())
    }

    /// [`Lease::left_ms`] at another time.
    pub fn left_ms_at(&self, now_ms: u64) -> u64 {
        self.until_ms_at(now_ms).map_or(0, |until_ms| until_ms - now_ms)
    }

    /// Milliseconds since the lease ran out; `None` while it is valid, and if there never was one.
    pub fn lost_for_ms(&self) -> Option<u64> {
        self.lost_for_ms_at(boot_ms())
    }

    /// [`Lease::lost_for_ms`] at another time.
    pub fn lost_for_ms_at(&self, now_ms: u64) -> Option<u64> {
        let until = self.until_ms.load(Ordering::Acquire);
        (until != 0).then(|| now_ms.checked_sub(until)).flatten()
    }
}

/// How long a leader has given no lease to revoked nodes. The last leases that they got run out in this time.
///
/// It is in memory only. The state also says when these nodes ceased to be members, but by wall clocks, which people set. So a
/// leader counts by its own clock, from the moment when it first sees in the state that they are no members any more. The
/// next leader starts to count from 0.
#[derive(Debug, Default)]
pub struct Withdrawal {
    /// The revocation, and the term of the leader.
    of: Option<(Epoch, u64)>,
    since_ms: u64,
}

impl Withdrawal {
    /// Notes that the leader of `term` sees that the nodes of `operation` are no members any more. Returns for how long, at
    /// `now_ms` ([`boot_ms`]), it has seen that.
    pub fn lasts_ms_at(&mut self, operation: Epoch, term: u64, now_ms: u64) -> u64 {
        if self.of != Some((operation, term)) {
            *self = Self { of: Some((operation, term)), since_ms: now_ms };
        }
        now_ms.saturating_sub(self.since_ms)
    }
}

/// How long an answer is valid ([`Answered::good_for_ms`]), counted from `received_ms`, when the request came in. The lease
/// behind the answer ends at `until_ms`.
pub fn good_for_ms(until_ms: u64, received_ms: u64) -> u32 {
    u32::try_from(until_ms.saturating_sub(received_ms)).unwrap_or(u32::MAX).min(Answered::ALWAYS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_runs_from_when_it_was_asked_for() {
        let lease = Lease::default();
        assert!(!lease.is_valid() && lease.lost_for_ms().is_none());
        let (now, length) = (100_000, Duration::from_secs(3));
        let late = Renewal::sent(now - 5_000, length);
        assert_eq!((late.left_ms(now), Renewal::sent(now - 1_000, length).left_ms(now)), (0, 2_000));
        lease.grant(late);
        assert!(!lease.is_valid_at(now), "the answer came too late to be worth anything");
        assert_eq!(lease.lost_for_ms_at(now), Some(2_000));
        lease.grant(Renewal::sent(now, length));
        lease.grant(Renewal::sent(now - 1_000, length));
        assert_eq!(lease.left_ms_at(now), 3_000, "an older confirmation shortens nothing");
        assert!(lease.is_valid_at(now + 2_999) && !lease.is_valid_at(now + 3_000));
        assert_eq!(lease.lost_for_ms_at(now + 3_000), Some(0));
    }

    #[test]
    fn a_barred_node_has_no_lease_whatever_is_granted() {
        let lease = Lease::default();
        let (now, length) = (100_000, Duration::from_secs(3));
        lease.grant(Renewal::sent(now, length));
        lease.bar(true);
        assert!(!lease.is_valid_at(now) && lease.left_ms_at(now) == 0);
        lease.grant(Renewal::sent(now + 1_000, length));
        assert_eq!(lease.until_ms_at(now + 1_000), None, "an answer that was under way changes nothing");
        lease.bar(false);
        assert!(lease.is_valid_at(now + 1_000));
    }

    /// Mutated: a leader that goes on with the count of another term takes leases for over that may still be valid.
    #[test]
    fn leases_run_out_from_when_this_leader_saw_the_revocation() {
        let mut withdrawal = Withdrawal::default();
        assert_eq!(withdrawal.lasts_ms_at(Epoch(4), 7, 100_000), 0);
        assert_eq!(withdrawal.lasts_ms_at(Epoch(4), 7, 103_300), 3_300);
        assert_eq!(withdrawal.lasts_ms_at(Epoch(4), 8, 103_400), 0, "a new term starts from 0");
        assert_eq!(withdrawal.lasts_ms_at(Epoch(4), 8, 103_500), 100);
        assert_eq!(withdrawal.lasts_ms_at(Epoch(5), 8, 103_600), 0, "others are revoked since");
    }
}
