//! The phases of a node, and which requests each of them answers.
//!
//! A phase says what the node has: no identity, no op key, no lease, or all of them. [`answers`] is the one place that decides
//! which classes of requests a phase answers. Whether the caller may do what it asks is decided later, in [`crate::service`].

pub use quorate_client::wire::Phase;

/// Classes of requests that a node answers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestClass {
    /// A peer asks this node to open a piece of the peer's own lock.
    LockOpen,
    /// Anyone asks for the phase, and which nodes are missing.
    PublicStatus,
    /// A new node proves an invitation.
    Join,
    /// A member with its op key: locks, Raft, leases, status.
    Peer,
    /// A member asks for shares of a key.
    Shares,
    /// A client asks for the status of the cluster.
    Status,
    /// A client wants something encrypted, decrypted, created or listed.
    Work,
}

/// Whether a node in `phase` answers requests of `class`.
pub fn answers(phase: Phase, class: RequestClass) -> bool {
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

/// The phase that follows `phase`, given whether the node is sealed and whether it has a lease. Only the phases of an unlocked
/// node change. A sealed node is `Sealed`, also with a lease.
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
            assert!(!answers(phase, RequestClass::Work) && !answers(phase, RequestClass::Shares), "{phase}");
        }
        assert!(answers(Phase::Serving, RequestClass::Work));
    }

    #[test]
    fn seal_and_lease_change_the_phase_of_an_unlocked_node_only() {
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
        assert!(answers(Phase::Sealed, RequestClass::LockOpen) && answers(Phase::Sealed, RequestClass::Peer));
    }

    #[test]
    fn a_locked_node_still_helps_others_to_unlock() {
        assert!(answers(Phase::Locked, RequestClass::LockOpen) && !answers(Phase::Locked, RequestClass::Peer));
        assert!(!answers(Phase::Uninitialised, RequestClass::LockOpen));
    }
}
