//! Who told this node that it was revoked. When it believes that, [`crate::peers::revocation`] says.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use quorate_shares::ids::NodeId;
use tokio::sync::watch;

/// Who told this node that it was revoked, and whether it believes it.
#[derive(Default)]
pub struct Revocation {
    /// Those who told it.
    pub voices: Mutex<BTreeSet<NodeId>>,
    /// Whether it believes them.
    pub believed: watch::Sender<bool>,
}
