//! Whether this node serves: why it may not, and what it offers in each phase.

use parking_lot::Mutex;
use quorate_client::identity::Protocol;
use tokio::sync::watch;
use tracing::info;

use crate::base::phase::{self, Phase};
use crate::memory::lease::Lease;
use crate::messages::peer::PeerRefusal;

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
    Refused(PeerRefusal),
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

/// The phase of a node and its right to serve.
pub struct ServingState {
    phase: watch::Sender<Phase>,
    /// The right to serve.
    pub lease: Lease,
    /// Why there is no lease.
    pub trouble: Mutex<Option<NoLease>>,
    /// When the last shared catch-up was sent ([`crate::base::clock::boot_ms`]), and how it ended.
    pub catch_up: tokio::sync::Mutex<(u64, Result<(), NoLease>)>,
    /// Held while this node is sealed or unsealed.
    pub sealing: tokio::sync::Mutex<()>,
}

impl Default for ServingState {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Uninitialised),
            lease: Lease::default(),
            trouble: Mutex::default(),
            catch_up: tokio::sync::Mutex::new((0, Ok(()))),
            sealing: tokio::sync::Mutex::default(),
        }
    }
}

impl ServingState {
    /// The present phase.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Follows the phase.
    pub fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Whether the operator told this node to forget its keys ([`crate::lease::seal`]).
    pub fn is_sealed(&self) -> bool {
        self.lease.is_barred()
    }

    /// Changes the phase to `to`, or to the one of the unlocked phases that seal and lease allow. Returns whether it is another
    /// one. One change at a time: a seal is not overtaken by a lease that came before it.
    pub(super) fn change_phase(&self, to: impl FnOnce(Phase) -> Phase) -> bool {
        let mut step = None;
        self.phase.send_if_modified(|phase| {
            let from = std::mem::replace(phase, phase::settled(to(*phase), self.is_sealed(), self.lease.is_valid()));
            step = Some((from, *phase)).filter(|(from, to)| from != to);
            step.is_some()
        });
        if let Some((from, to)) = step {
            info!(%from, %to, "phase");
        }
        step.is_some()
    }
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
