//! What the leader does: steps, verification, operations, invitations. And how members follow it: rosters, status, alarms.

pub mod addresses;
pub mod alarms;
pub mod invitations;
pub mod leader;
pub mod orders;
pub mod replica;
pub mod roster_update;
pub mod status;
pub mod verify;

use std::time::Duration;

use quorate_raft::Replica;
use quorate_raft::command::Change;
use tracing::debug;

use crate::node::Node;

/// How long a holder may take to open and check a list of shares.
const HOLDER: Duration = Duration::from_secs(5);
/// Pause after a step that did not succeed.
const PAUSE: Duration = Duration::from_millis(100);

/// Proposes a step at this node, which leads. Returns whether it was applied. `false` may also mean that the answer was lost, so
/// every step can be repeated.
async fn propose_here(node: &Node, replica: &Replica, change: Change) -> bool {
    let kind = change.kind();
    match replica.propose(node.leader.command(replica, change)).await {
        Ok(_) => true,
        Err(error) => {
            debug!(kind, %error, "step not done");
            false
        }
    }
}
