//! What a member proposes for itself: through Raft if it leads, at the leader otherwise.

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

/// How long the leader may take.
const LEADER: Duration = Duration::from_secs(3);

/// Why a change was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposalError {
    /// The replicated state refuses it, wherever it is proposed.
    #[error(transparent)]
    Refused(#[from] StateRefusal),
    /// There is no leader, or it did not answer; in words.
    #[error("{0}")]
    NoLeader(String),
}

/// Proposes `change`, wherever the leader is. A cluster that is founded already counts as founded.
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

/// Proposes `change` at the member `at`. If that does not lead, the error comes with the one that does.
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

/// Whether the leader proposes `change` for `from`: the founding, by the first founder; what each member says of itself; and a
/// joiner that has proved its invitation to a member with a seat.
pub fn is_allowed(state: &State, from: NodeId, change: &Change) -> bool {
    match change {
        Change::Found(_) => from == FIRST_FOUNDER,
        Change::ReportLock(report) => report.node == from,
        Change::RegisterShareKey(register) => register.node == from,
        Change::Admitted { node } => *node == from,
        Change::Admit(_) => state.active().is_some_and(|active| active.x_of(from).is_some()),
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
        | Change::Designate { .. } => false,
    }
}

/// The leader's side: whatever [`is_allowed`], at the time of its own clock. The one that the member says counts for nothing:
/// the state's time goes back no more, and one clock that was wrong for a moment would stop it for all.
///
/// # Errors
/// Why not, by name.
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
