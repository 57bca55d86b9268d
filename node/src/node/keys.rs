//! Keys in memory: the keys that clients use, and the keys that this node deals and checks.

use std::sync::Arc;

use parking_lot::Mutex;
use quorate_raft::Replica;

use crate::memory::checked::Checked;
use crate::memory::dealer::OpenDealer;
use crate::memory::keyring::Keyring;
use crate::memory::lease::Lease;

pub struct Keys {
    /// Roots of the keys that clients use.
    pub keyring: Arc<Keyring>,
    /// The batches in which this node deals keys while it leads.
    pub dealing: Mutex<Option<OpenDealer>>,
    /// Held by the task that opens the next batch.
    pub opening: tokio::sync::Mutex<()>,
    /// The records of the PENDING epoch that this node has checked.
    pub checked: tokio::sync::Mutex<Checked>,
}

impl Keys {
    pub fn new(keyring: Arc<Keyring>) -> Self {
        Self {
            keyring,
            dealing: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            checked: tokio::sync::Mutex::default(),
        }
    }

    pub fn forget(&self) {
        self.close_batch();
        self.keyring.wipe();
    }

    pub fn close_batch(&self) {
        *self.dealing.lock() = None;
    }

    /// Wipes the open batch if it is over: leadership, lease or epoch are lost, the batch is full, or it is ten minutes old.
    pub fn close_batch_if_over(&self, lease: &Lease, replica: &Replica) {
        let mut dealing = self.dealing.lock();
        if dealing.as_ref().is_some_and(|open| !open.is_usable(replica) || !lease.is_valid()) {
            *dealing = None;
        }
    }
}
