//! Carrying a request of a client to the member that has to do it, together with the client's [`Caller`].

use std::time::Duration;

use quorate_client::conn::Lane;
use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_shares::ids::NodeId;

use crate::messages::caller::Caller;
use crate::messages::peer::{Forwarded, ForwardedReply, ForwardedRequest, PeerRefusal, PeerReply, PeerRequest};
use crate::node::Node;
use crate::node::peers::sessions::AskError;
use crate::service::Call;

/// How long the leader may take.
const LEADER: Duration = Duration::from_secs(30);
/// How long another member may take to make something durable.
const MEMBER: Duration = Duration::from_secs(5);

/// Where the leader is.
pub(super) enum LeaderIs {
    Here,
    At(NodeId),
}

/// Why a member did not do what it was asked.
pub(super) enum NotDone {
    /// It says why, in words for the client.
    Failed(WireError),
    /// It refuses the question.
    Refused(PeerRefusal),
    /// No answer came.
    Silent(AskError),
}

/// Who leads, as this node knows it.
///
/// # Errors
/// [`Code::NoQuorum`] if no leader is known.
pub(super) fn leader(call: Call<'_>) -> Result<LeaderIs, WireError> {
    let leadership = *call.replica.leadership().borrow();
    match leadership.leader {
        _ if leadership.am_leader => Ok(LeaderIs::Here),
        Some(leader) => Ok(LeaderIs::At(leader)),
        None => Err(no_leader()),
    }
}

/// Has the leader do it. Once another node leads, the answer of the last leader is not waited for: it may hang, or be cut off.
///
/// # Errors
/// What the leader says, or [`Code::NoQuorum`].
pub(super) async fn to_leader(
    call: Call<'_>,
    leader: NodeId,
    request: ForwardedRequest,
) -> Result<ForwardedReply, WireError> {
    let mut leadership = call.replica.leadership();
    let silent = |why: &dyn std::fmt::Display| {
        let message = format!("the leader, {}, did not answer: {why}", call.node.name_of(leader));
        WireError::new(Code::NoQuorum, message).hint("try again; a change with the same request id is made once")
    };
    let answered = tokio::select! {
        biased;
        answered = ask(call.node, call.caller, leader, Lane::Ordinary, request, LEADER) => answered,
        Ok(_) = leadership.wait_for(|now| now.leader.is_some_and(|now| now != leader)) => {
            return Err(silent(&"another node leads now"));
        }
    };
    answered.map_err(|not_done| match not_done {
        NotDone::Failed(error) => error,
        NotDone::Refused(_) => no_leader(),
        NotDone::Silent(error) => silent(&error),
    })
}

/// Sends the request to `member`, whether it leads or not.
///
/// # Errors
/// [`NotDone`].
pub(super) async fn to_member(
    call: Call<'_>,
    member: NodeId,
    lane: Lane,
    request: ForwardedRequest,
) -> Result<(), NotDone> {
    ask(call.node, call.caller, member, lane, request, MEMBER).await.map(|_| ())
}

async fn ask(
    node: &Node,
    caller: &Caller,
    member: NodeId,
    lane: Lane,
    request: ForwardedRequest,
    deadline: Duration,
) -> Result<ForwardedReply, NotDone> {
    let forwarded = PeerRequest::Forwarded(Box::new(Forwarded { caller: caller.clone(), request }));
    match node.peers().sessions.ask(member, lane, &forwarded, deadline).await {
        Ok(PeerReply::Forwarded(done)) => done.map_err(NotDone::Failed),
        Ok(PeerReply::Refused(refusal)) => Err(NotDone::Refused(refusal)),
        Ok(_) => Err(NotDone::Refused(PeerRefusal::Malformed)),
        Err(error) => Err(NotDone::Silent(error)),
    }
}

/// The error for a leader that answers another question.
pub(super) fn wrong_reply(reply: &ForwardedReply) -> WireError {
    let answered = match reply {
        ForwardedReply::Made { .. } => "a key change",
        ForwardedReply::Begun { .. } => "an operation",
        ForwardedReply::Progress(_) => "a question about an operation",
        ForwardedReply::Done => "another request",
    };
    WireError::new(Code::Protocol, format!("the leader answered {answered}"))
}

fn no_leader() -> WireError {
    WireError::new(Code::NoQuorum, "no leader is known").hint("try again in a moment")
}
