//! What a leader keeps in memory while it leads.

use parking_lot::Mutex;
use quorate_client::wire::OperationStatus;
use quorate_raft::Replica;
use quorate_raft::command::{Change, Command};

use crate::base::clock::{Stamps, boot_ms, wall_ms};
use crate::memory::lease::Withdrawal;

#[derive(Default)]
pub struct Leader {
    /// The operation that this node leads, its step, and the nodes that it waits for.
    pub operation: Mutex<Option<OperationStatus>>,
    /// The time stamps of what this node proposes.
    stamps: Mutex<Stamps>,
    /// How long revoked nodes have got no lease.
    pub withdrawal: Mutex<Withdrawal>,
}

impl Leader {
    /// The command with which this node, as the leader, proposes `change` now.
    pub fn command(&self, replica: &Replica, change: Change) -> Command {
        self.follow_time(replica);
        Command::new(self.stamps.lock().stamp_at(wall_ms(), boot_ms()), change)
    }

    /// Notes the time in the state.
    pub fn follow_time(&self, replica: &Replica) {
        let time_ms = replica.read(|state| state.time_ms);
        self.stamps.lock().follow_at(time_ms, boot_ms());
    }
}
