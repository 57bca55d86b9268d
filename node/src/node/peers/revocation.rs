//! The attestations that this node was revoked. [`crate::peers::revocation`] decides when this node believes them.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use quorate_shares::ids::NodeId;
use tokio::sync::watch;

/// Which peers attest that this node was revoked, and whether it believes them.
#[derive(Default)]
pub struct Revocation {
    /// The peers that attest it.
    pub attestations: Mutex<BTreeSet<NodeId>>,
    believed: watch::Sender<bool>,
}

impl Revocation {
    /// Whether at least one peer attests it.
    pub fn is_said(&self) -> bool {
        !self.attestations.lock().is_empty()
    }

    /// Notes that this node believes that it was revoked.
    pub fn accept(&self) {
        self.believed.send_if_modified(|believed| !std::mem::replace(believed, true));
    }

    /// Returns once this node believes that it was revoked.
    pub async fn accepted(&self) {
        // This cannot fail: the sender is a field of `self`.
        let _ = self.believed.subscribe().wait_for(|&believed| believed).await;
    }
}
