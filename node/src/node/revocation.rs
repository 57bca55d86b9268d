//! Who told this node that it was revoked. When it believes that, [`crate::peers::revocation`] says.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use quorate_shares::ids::NodeId;
use tokio::sync::watch;

/// Who told this node that it was revoked, and whether it believes it.
#[derive(Default)]
pub struct Revocation {
    /// Those who told it.
    pub attestations: Mutex<BTreeSet<NodeId>>,
    believed: watch::Sender<bool>,
}

impl Revocation {
    /// Whether any node has said so.
    pub fn is_said(&self) -> bool {
        !self.attestations.lock().is_empty()
    }

    /// Believes it.
    pub fn accept(&self) {
        self.believed.send_if_modified(|believed| !std::mem::replace(believed, true));
    }

    /// Returns once it is believed.
    pub async fn accepted(&self) {
        // The sender is this value's own.
        let _ = self.believed.subscribe().wait_for(|&believed| believed).await;
    }
}
