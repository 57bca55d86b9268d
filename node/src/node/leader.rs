//! What a leader keeps in memory while it leads.

use parking_lot::Mutex;
use quorate_client::wire::OperationStatus;
use quorate_raft::Replica;
use quorate_raft::command::{Change, Command};

use crate::base::clock::{Stamps, boot_ms, wall_ms};
use crate::memory::lease::Withdrawal;

/// The leader's memory.
#[derive(Default)]
pub struct Leader {
    /// The operation that this node leads, where it stands, and which nodes it waits for.
    pub operation: Mutex<Option<OperationStatus>>,
    /// The time of what this node proposes.
    stamps: Mutex<Stamps>,
    /// Since when those that are revoked get no lease, as this node sees it.
    pub withdrawal: Mutex<Withdrawal>,
}

impl Leader {
    /// What this node proposes as the leader, at the time that it is.
    pub fn command(&self, replica: &Replica, change: Change) -> Command {
        self.follow_time(replica);
        Command::new(self.stamps.lock().stamp_at(wall_ms(), boot_ms()), change)
    }

    /// Notes how far time in the state is.
    pub fn follow_time(&self, replica: &Replica) {
        let time_ms = replica.read(|state| state.time_ms);
        self.stamps.lock().follow_at(time_ms, boot_ms());
    }
}
