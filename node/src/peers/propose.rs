//! Changes that a member proposes for itself. If it leads, it proposes them through Raft, otherwise it sends them to the leader.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::conn::Lane;
use quorate_raft::command::{Change, Command};
use quorate_raft::refusal::Refusal as StateRefusal;
use quorate_raft::state::State;
use quorate_raft::{ProposeError, Replica};
use quorate_shares::ids::NodeId;
use tracing::debug;

use crate::base::clock::wall_ms;
use crate::messages::peer::{PeerRefusal, PeerReply, PeerRequest};
use crate::node::Node;
use crate::vault::FIRST_FOUNDER;

/// How long the leader may take to answer.
const LEADER: Duration = Duration::from_secs(3);

/// Why a change was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposalError {
    /// The replicated state refuses the change, whichever node proposes it.
    #[error(transparent)]
    Refused(#[from] StateRefusal),
    /// There is no leader, or it did not answer. The text says which.
    #[error("{0}")]
    NoLeader(String),
}

/// Proposes `change`, here or at the leader. That the cluster is founded already is no error.
///
/// # Errors
/// [`ProposalError`].
pub async fn propose(node: &Arc<Node>, replica: &Replica, change: Change) -> Result<(), ProposalError> {
    let leadership = *replica.leadership().borrow();
    if leadership.am_leader {
        return match replica.propose(node.leader.command(replica, change)).await {
            Ok(_) | Err(ProposeError::Refused(StateRefusal::AlreadyFounded)) => Ok(()),
            Err(ProposeError::Refused(refusal)) => Err(refusal.into()),
            Err(error) => Err(ProposalError::NoLeader(error.to_string())),
        };
    }
    let no_leader = || ProposalError::NoLeader("no leader is known".to_owned());
    propose_at(node, leadership.leader.ok_or_else(no_leader)?, change).await.map_err(|(error, _)| error)
}

/// Proposes `change` at the member `at`. If that member does not lead, the error names the leader that it knows.
///
/// # Errors
/// [`ProposalError`].
pub async fn propose_at(node: &Arc<Node>, at: NodeId, change: Change) -> Result<(), (ProposalError, Option<NodeId>)> {
    let request = PeerRequest::Propose(Box::new(Command::new(wall_ms(), change)));
    let failed = |reason: String| (ProposalError::NoLeader(reason), None);
    match node.peers().sessions.ask(at, Lane::Ordinary, &request, LEADER).await {
        Ok(PeerReply::Done) => Ok(()),
        Ok(PeerReply::Refused(PeerRefusal::State(refusal))) => Err((refusal.into(), None)),
        Ok(PeerReply::Refused(PeerRefusal::NotLeader(leader))) => {
            Err((ProposalError::NoLeader(PeerRefusal::NotLeader(leader).to_string()), leader))
        }
        Ok(PeerReply::Refused(refusal)) => Err(failed(refusal.to_string())),
        Ok(_) => Err(failed("malformed reply".to_owned())),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Whether the leader proposes `change` for the member `from`. Allowed are: the founding, by the first founder; what a member
/// reports about itself; and the join of a node that proved its invitation, by a member with a seat in the active epoch.
pub fn is_allowed(state: &State, from: NodeId, change: &Change) -> bool {
    match change {
        Change::Found(_) => from == FIRST_FOUNDER,
        Change::ReportLock(report) => report.node == from,
        Change::RegisterShareKey(register) => register.node == from,
        Change::Joined { node } => *node == from,
        Change::Join(_) => state.active().is_some_and(|active| active.x_of(from).is_some()),
        Change::OpenEpoch(_)
        | Change::EpochAck(_)
        | Change::ActivateEpoch { .. }
        | Change::OpenBatch { .. }
        | Change::CreateKey(_)
        | Change::RotateKey(_)
        | Change::Ready(_)
        | Change::Begin(_)
        | Change::Reshare(_)
        | Change::Expel { .. }
        | Change::RetireEpoch { .. }
        | Change::Finish { .. }
        | Change::Sweep { .. }
        | Change::Invite(_)
        | Change::Replace { .. }
        | Change::RaiseLevel { .. }
        | Change::SetAddresses { .. }
        | Change::Ordered(_) => false,
    }
}

/// The leader's side: proposes what [`is_allowed`], with the time of its own clock. The time in the member's command is ignored:
/// the time in the state never goes back, so one member whose clock is ahead for a moment would stop the time for all.
///
/// # Errors
/// [`PeerRefusal`].
pub async fn propose_for(
    node: &Node,
    replica: &Replica,
    from: NodeId,
    command: Command,
) -> Result<PeerReply, PeerRefusal> {
    if !replica.read(|state| is_allowed(state, from, &command.change)) {
        return Err(PeerRefusal::Malformed);
    }
    match replica.propose(node.leader.command(replica, command.change)).await {
        Ok(_) | Err(ProposeError::Refused(StateRefusal::AlreadyFounded)) => Ok(PeerReply::Done),
        Err(ProposeError::NotLeader { leader }) => Err(PeerRefusal::NotLeader(leader)),
        Err(ProposeError::Refused(refusal)) => Err(PeerRefusal::State(refusal)),
        Err(error) => {
            debug!(%from, %error, "proposal refused");
            Err(PeerRefusal::Behind)
        }
    }
}
