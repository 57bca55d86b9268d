//! The phases of a node, and which requests each of them answers.
//!
//! A phase is a fact about what the node has: no identity, no op key, no lease, or all of them. The table below is the one
//! place that decides whether a request may be heard at all; whether it is allowed is decided later, behind its own door.

pub use quorate_client::wire::Phase;

/// What is asked of a node, in classes that are admitted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// A peer asks for its piece of its own lock.
    LockOpen,
    /// Anybody asks for the phase and who is missing.
    PublicStatus,
    /// A founder proves its invitation.
    Join,
    /// A member with its op key: locks, Raft, leases, status.
    Peer,
    /// A member asks for shares of a key.
    Shares,
    /// A client asks how the cluster is.
    Status,
    /// A client wants something encrypted, decrypted, created or listed.
    Work,
}

/// Whether a node in `phase` hears requests of the class `door`.
pub fn admits(phase: Phase, door: Door) -> bool {
    use Phase::{Joining, Locked, Open, Revoked, Sealed, Serving, Uninitialised};
    match phase {
        Uninitialised | Revoked => false,
        Joining => matches!(door, Door::LockOpen | Door::PublicStatus | Door::Join | Door::Peer),
        Locked => matches!(door, Door::LockOpen | Door::PublicStatus),
        Open | Sealed => matches!(door, Door::LockOpen | Door::PublicStatus | Door::Peer | Door::Status),
        Serving => !matches!(door, Door::Join),
    }
}

/// Where a node in `phase` stands, now that it has a lease or has none: only Open and Serving follow the lease.
pub fn settled(phase: Phase, leased: bool) -> Phase {
    match (phase, leased) {
        (Phase::Open, true) => Phase::Serving,
        (Phase::Serving, false) => Phase::Open,
        (other, _) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_serving_node_touches_keys() {
        for phase in [Phase::Uninitialised, Phase::Joining, Phase::Locked, Phase::Open] {
            assert!(!admits(phase, Door::Work) && !admits(phase, Door::Shares), "{phase}");
        }
        assert!(admits(Phase::Serving, Door::Work));
    }

    #[test]
    fn only_an_open_node_follows_its_lease() {
        assert_eq!((settled(Phase::Open, true), settled(Phase::Serving, false)), (Phase::Serving, Phase::Open));
        for phase in [Phase::Uninitialised, Phase::Joining, Phase::Locked, Phase::Sealed, Phase::Revoked] {
            assert_eq!((settled(phase, true), settled(phase, false)), (phase, phase));
        }
    }

    #[test]
    fn a_locked_node_still_helps_others_to_unlock() {
        assert!(admits(Phase::Locked, Door::LockOpen) && !admits(Phase::Locked, Door::Peer));
        assert!(!admits(Phase::Uninitialised, Door::LockOpen));
    }
}
