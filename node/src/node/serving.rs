//! Whether this node serves: why it may not, and what it offers in each phase.

use quorate_client::identity::Protocol;

use crate::base::phase::Phase;
use crate::messages::peer::Refusal;

/// Why the leader did not confirm this node.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoLease {
    /// Nobody leads, or nobody known.
    #[error("no leader is known")]
    NoLeader,
    /// The leader cannot be reached, or did not answer in time.
    #[error("the leader, {0}, does not answer")]
    Unreachable(String),
    /// The leader has no quorum.
    #[error("the leader has no quorum")]
    NoQuorum,
    /// The leader refused.
    #[error("the leader refused: {0}")]
    Refused(Refusal),
    /// This node did not catch up in time.
    #[error("this node is not caught up yet")]
    Behind,
    /// The operator sealed this node.
    #[error("this node is sealed")]
    Sealed,
    /// The replicated state does not name this node as a holder of the active epoch.
    #[error("this node holds no seat in an active epoch yet")]
    NoSeat,
}

/// Protocols that a node offers in a phase.
pub(super) fn offered(phase: Phase) -> &'static [Protocol] {
    match phase {
        Phase::Uninitialised | Phase::Revoked => &[],
        Phase::Locked => &[Protocol::Boot],
        Phase::Joining => &[Protocol::Boot, Protocol::Join, Protocol::Peer],
        Phase::Open | Phase::Sealed => &[Protocol::Boot, Protocol::Peer, Protocol::Client],
        Phase::Serving => &Protocol::ALL,
    }
}
