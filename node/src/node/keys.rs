//! Keys in memory: those that clients use, and those that this node deals and checks.

use std::sync::Arc;

use parking_lot::Mutex;
use quorate_raft::Replica;

use crate::memory::checked::Checked;
use crate::memory::dealer::OpenDealer;
use crate::memory::keyring::Keyring;
use crate::memory::lease::Lease;

/// The keys of a node.
pub struct Keys {
    /// Roots of the keys that clients use.
    pub keyring: Arc<Keyring>,
    /// The batches that keys are dealt in, while this node leads.
    pub dealing: Mutex<Option<OpenDealer>>,
    /// Held by the task that opens the next batch.
    pub opening: tokio::sync::Mutex<()>,
    /// The records of the PENDING epoch that this node has checked.
    pub checked: tokio::sync::Mutex<Checked>,
}

impl Keys {
    /// None yet.
    pub fn new(keyring: Arc<Keyring>) -> Self {
        Self {
            keyring,
            dealing: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            checked: tokio::sync::Mutex::default(),
        }
    }

    /// Wipes every key.
    pub fn forget(&self) {
        self.close_batch();
        self.keyring.wipe();
    }

    /// Wipes the open batch.
    pub fn close_batch(&self) {
        *self.dealing.lock() = None;
    }

    /// Wipes the open batch when it is over: leadership, lease or epoch gone, or ten minutes old.
    pub fn close_batch_if_over(&self, lease: &Lease, replica: &Replica) {
        let mut dealing = self.dealing.lock();
        if dealing.as_ref().is_some_and(|open| !open.is_usable(replica) || !lease.is_valid()) {
            *dealing = None;
        }
    }
}
