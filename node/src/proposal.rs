//! What a member proposes for itself: through Raft if it leads, at the leader otherwise.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::conn::Lane;
use quorate_raft::command::{Change, Command};
use quorate_raft::refusal::Refusal as StateRefusal;
use quorate_raft::{ProposeError, Replica};
use quorate_shares::ids::NodeId;
use tracing::debug;

use crate::clock::wall_ms;
use crate::found;
use crate::node::Node;
use crate::peer::{PeerReply, PeerRequest, Refusal};

/// How long the leader may take.
const LEADER: Duration = Duration::from_secs(3);

/// Proposes `change`, wherever the leader is. A cluster that is founded already counts as founded.
///
/// # Errors
/// In words.
pub async fn propose(node: &Arc<Node>, replica: &Replica, change: Change) -> Result<(), String> {
    let command = Command::new(wall_ms(), change);
    let leadership = *replica.leadership().borrow();
    if leadership.am_leader {
        return match replica.propose(command).await {
            Ok(_) | Err(ProposeError::Refused(StateRefusal::AlreadyFounded)) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
    }
    let leader = leadership.leader.ok_or("no leader is known")?;
    match node.sessions.ask(leader, Lane::Ordinary, &PeerRequest::Propose(Box::new(command)), LEADER).await {
        Ok(PeerReply::Done) => Ok(()),
        Ok(PeerReply::Refused(refusal)) => Err(refusal.to_string()),
        Ok(_) => Err("malformed reply".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The leader's side: the founding, by the first founder, and what each member says of itself.
///
/// # Errors
/// Why not, by name.
pub async fn answer(replica: &Replica, from: NodeId, command: Command) -> Result<PeerReply, Refusal> {
    let allowed = match &command.change {
        Change::Found(_) => from == found::FIRST,
        Change::ReportLock(report) => report.node == from,
        Change::RegisterShareKey(register) => register.node == from,
        _ => false,
    };
    if !allowed {
        return Err(Refusal::Malformed);
    }
    match replica.propose(command).await {
        Ok(_) | Err(ProposeError::Refused(StateRefusal::AlreadyFounded)) => Ok(PeerReply::Done),
        Err(ProposeError::NotLeader { leader }) => Err(Refusal::NotLeader(leader)),
        Err(error) => {
            debug!(%from, %error, "proposal refused");
            Err(Refusal::Behind)
        }
    }
}
