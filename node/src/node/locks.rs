//! What this node keeps in memory about its own lock, and about the locks of its peers.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use quorate_shares::ids::NodeId;
use quorate_shares::lock::Lock;
use tokio::sync::Notify;

use crate::memory::absences::Absences;
use crate::messages::peer::LockState;
use crate::vault::Vault;
use crate::vault::lock_keys::OldCopies;

/// How far unlocking is, for the status.
#[derive(Debug, Clone, Default)]
pub struct Unlocking {
    /// Pieces that peers have opened.
    pub have: u8,
    pub need: u8,
    /// Peers that have opened none yet, and what each answered; empty if it did not answer.
    pub waiting_for: BTreeMap<NodeId, String>,
    /// Why enough pieces did not open the lock.
    pub failed: Option<String>,
}

impl Unlocking {
    /// What there is before any peer has answered.
    pub fn begin(lock: &Lock) -> Self {
        let waiting_for = lock.pieces().iter().map(|piece| (piece.peer, String::new())).collect();
        Self { have: 0, need: lock.needed(), waiting_for, failed: None }
    }
}

/// The state of the locks, as this node knows it.
#[derive(Default)]
pub struct Locks {
    pub unlocking: Mutex<Unlocking>,
    /// How long each peer has been away.
    pub absences: Mutex<Absences>,
    /// For each peer: the lock of this node whose COMMIT it last acknowledged.
    pub commits: Mutex<BTreeMap<NodeId, LockState>>,
    /// For each peer: its newest lock of which it knows that this node holds no older key (ERASED).
    pub told_erased: Mutex<BTreeMap<NodeId, LockState>>,
    /// Which peers can no longer open the older locks of this node.
    pub old_copies: Mutex<OldCopies>,
    /// Notified when the vault has changed in a way that the replicated state should know.
    pub to_report: Notify,
}

impl Locks {
    /// The state at a start, with the absences of the vault.
    pub fn of(vault: &Vault) -> Self {
        Self { absences: Mutex::new(Absences::remembered(vault)), ..Self::default() }
    }
}
