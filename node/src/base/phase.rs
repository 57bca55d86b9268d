//! The phases of a node, and which requests each of them answers.
//!
//! A phase is a fact about what the node has: no identity, no op key, no lease, or all of them. The table below is the one
//! place that decides whether a request may be heard at all; whether it is allowed is decided later, behind its own door.

pub use quorate_client::wire::Phase;

/// Classes of requests that a node admits together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestClass {
    /// A peer asks for its piece of its own lock.
    LockOpen,
    /// Anybody asks for the phase and who is missing.
    PublicStatus,
    /// Somebody proves an invitation.
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

/// Whether a node in `phase` admits requests of `class`.
pub fn admits(phase: Phase, class: RequestClass) -> bool {
    use Phase::{Joining, Locked, Open, Revoked, Sealed, Serving, Uninitialised};
    match phase {
        Uninitialised | Revoked => false,
        Joining => matches!(
            class,
            RequestClass::LockOpen | RequestClass::PublicStatus | RequestClass::Join | RequestClass::Peer
        ),
        Locked => matches!(class, RequestClass::LockOpen | RequestClass::PublicStatus),
        Open | Sealed => matches!(
            class,
            RequestClass::LockOpen | RequestClass::PublicStatus | RequestClass::Peer | RequestClass::Status
        ),
        Serving => true,
    }
}

/// Where a node in `phase` stands, now that it is sealed or not and has a lease or has none: only an unlocked node follows
/// these two, and a seal goes over a lease.
pub fn settled(phase: Phase, sealed: bool, leased: bool) -> Phase {
    match phase {
        Phase::Open | Phase::Serving | Phase::Sealed if sealed => Phase::Sealed,
        Phase::Open | Phase::Serving | Phase::Sealed if leased => Phase::Serving,
        Phase::Open | Phase::Serving | Phase::Sealed => Phase::Open,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_serving_node_touches_keys() {
        for phase in [Phase::Uninitialised, Phase::Joining, Phase::Locked, Phase::Open, Phase::Sealed] {
            assert!(!admits(phase, RequestClass::Work) && !admits(phase, RequestClass::Shares), "{phase}");
        }
        assert!(admits(Phase::Serving, RequestClass::Work));
    }

    #[test]
    fn only_an_unlocked_node_follows_its_seal_and_its_lease() {
        for phase in [Phase::Open, Phase::Serving, Phase::Sealed] {
            assert_eq!((settled(phase, false, true), settled(phase, false, false)), (Phase::Serving, Phase::Open));
            assert_eq!((settled(phase, true, true), settled(phase, true, false)), (Phase::Sealed, Phase::Sealed));
        }
        for phase in [Phase::Uninitialised, Phase::Joining, Phase::Locked, Phase::Revoked] {
            for (sealed, leased) in [(false, false), (false, true), (true, false), (true, true)] {
                assert_eq!(settled(phase, sealed, leased), phase);
            }
        }
    }

    #[test]
    fn a_sealed_node_still_helps_others_to_unlock() {
        assert!(admits(Phase::Sealed, RequestClass::LockOpen) && admits(Phase::Sealed, RequestClass::Peer));
    }

    #[test]
    fn a_locked_node_still_helps_others_to_unlock() {
        assert!(admits(Phase::Locked, RequestClass::LockOpen) && !admits(Phase::Locked, RequestClass::Peer));
        assert!(!admits(Phase::Uninitialised, RequestClass::LockOpen));
    }
}
