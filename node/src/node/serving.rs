//! Whether this node serves, why it may not serve, and which protocols it offers in each phase.

use parking_lot::Mutex;
use quorate_client::identity::Protocol;
use tokio::sync::watch;
use tracing::info;

use crate::base::phase::{self, Phase};
use crate::memory::lease::Lease;
use crate::messages::peer::PeerRefusal;

/// Why this node has no lease.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoLease {
    /// There is no leader, or this node does not know it.
    #[error("no leader is known")]
    NoLeader,
    /// The leader cannot be reached, or did not answer in time.
    #[error("the leader, {0}, does not answer")]
    Unreachable(String),
    #[error("the leader has no quorum")]
    NoQuorum,
    #[error("the leader refused: {0}")]
    Refused(PeerRefusal),
    /// This node did not catch up in time.
    #[error("this node is not caught up yet")]
    Behind,
    #[error("this node is sealed")]
    Sealed,
    /// The replicated state does not name this node as a holder of the active epoch.
    #[error("this node holds no seat in an active epoch yet")]
    NoSeat,
}

/// The phase of a node and its right to serve.
pub struct ServingState {
    phase: watch::Sender<Phase>,
    pub lease: Lease,
    /// Why there is no lease.
    pub trouble: Mutex<Option<NoLease>>,
    /// When the last catch-up that requests share was sent ([`crate::base::clock::boot_ms`]), and how it ended.
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
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Watches the phase.
    pub fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Whether the operator told this node to forget its keys ([`crate::lease::seal`]).
    pub fn is_sealed(&self) -> bool {
        self.lease.is_barred()
    }

    /// Changes the phase to `to`. If that is a phase of an unlocked node, seal and lease decide which of them follows. Returns
    /// whether the phase changed. Changes happen one at a time, so that a lease that came before a seal does not undo it.
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

/// The protocols that a node offers in a phase.
pub(super) fn offered(phase: Phase) -> &'static [Protocol] {
    match phase {
        Phase::Uninitialised | Phase::Revoked => &[],
        Phase::Locked => &[Protocol::Boot],
        Phase::Joining => &[Protocol::Boot, Protocol::Join, Protocol::Peer],
        Phase::Open | Phase::Sealed => &[Protocol::Boot, Protocol::Peer, Protocol::Client],
        Phase::Serving => &Protocol::ALL,
    }
}
