//! What this node knows in memory of its own lock, and of the peers that have a part in it.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use quorate_shares::ids::NodeId;
use tokio::sync::Notify;

use crate::memory::absences::Absences;
use crate::messages::peer::LockState;
use crate::vault::Vault;
use crate::vault::lock_keys::OldCopies;

/// How far unlocking is, for the status.
#[derive(Debug, Clone, Default)]
pub struct Unlocking {
    /// Pieces that peers gave.
    pub have: u8,
    /// Pieces needed.
    pub need: u8,
    /// Peers that gave none yet, and what they said, if anything.
    pub waiting_for: BTreeMap<NodeId, String>,
}

/// The state of the locks at this node.
#[derive(Default)]
pub struct Locks {
    /// How far unlocking is.
    pub unlocking: Mutex<Unlocking>,
    /// How long each peer has been away.
    pub absences: Mutex<Absences>,
    /// The lock that each peer has last acknowledged to know of.
    pub commits: Mutex<BTreeMap<NodeId, LockState>>,
    /// The newest lock of each peer of which that one knows that no older key is held here.
    pub told_erased: Mutex<BTreeMap<NodeId, LockState>>,
    /// What has become of the locks before this one.
    pub old_copies: Mutex<OldCopies>,
    /// Rung when the vault was written in a way that the replicated state should know.
    pub to_report: Notify,
}

impl Locks {
    /// As the vault remembers them.
    pub fn of(vault: &Vault) -> Self {
        Self { absences: Mutex::new(Absences::remembered(vault)), ..Self::default() }
    }
}
