//! The database of this node: closed, open, or being rebuilt from another node's state.

use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use quorate_raft::{Flushed, Rebuild, Replica};

/// The replicated state of this node, once it is there.
#[derive(Default)]
pub struct Database {
    replica: OnceLock<Replica>,
    rebuild: RwLock<Option<Arc<Rebuild>>>,
    /// What the log held when it was opened. Once the replica runs, the replica knows it.
    stored: Mutex<Option<Flushed>>,
}

impl Database {
    /// The replicated state, once it is open.
    pub fn replica(&self) -> Option<Replica> {
        self.replica.get().cloned()
    }

    /// Takes an open replica into use.
    pub fn adopt(&self, replica: Replica) {
        let _ = self.replica.set(replica);
    }

    /// The database that waits for another node's state, if the operator asked for a rebuild at this start.
    pub fn rebuild(&self) -> Option<Arc<Rebuild>> {
        self.rebuild.read().clone()
    }

    /// Notes that the state is being rebuilt, or with `None` that it no longer is.
    pub fn rebuild_with(&self, rebuild: Option<Arc<Rebuild>>) {
        *self.rebuild.write() = rebuild;
    }

    /// Notes the content of the log that was just opened.
    pub fn note_stored(&self, flushed: Flushed) {
        *self.stored.lock() = Some(flushed);
    }

    /// What the log holds durably; `None` before there is a log. The running replica is asked first, then a rebuild, then the
    /// value from opening the log.
    pub fn flushed(&self) -> Option<Flushed> {
        let running = self.replica.get().map(Replica::flushed);
        running.or_else(|| self.rebuild().map(|rebuild| rebuild.flushed())).or_else(|| *self.stored.lock())
    }
}
