//! Who is in the cluster, and where: invitations, replacements, removals and revocations, how far they are, and addresses.

use quorate_client::error::Code;
use quorate_client::wire::{Answer, Plaintext, RequestId, Response, WireError};
use quorate_raft::command::{Change, Invite};
use quorate_raft::state::MEMBERS_MAX;
use quorate_shares::ids::{Epoch, NodeName};
use quorate_shares::secret::Secret;

use crate::base::random;
use crate::cluster::{addresses, invitations, orders};
use crate::messages::peer::{ForwardedReply, ForwardedRequest, Order};
use crate::service::Call;
use crate::service::forward::{self, LeaderIs};
use crate::vault::invitation::InvitationKey;

/// Gives an invitation for one node. Its secret is drawn here and goes to the caller; the state learns its hash.
pub async fn invite(call: Call<'_>, name: Option<NodeName>, ttl_ms: u64) -> Answer {
    let secret = Secret::random(&mut random::system());
    let invite = Invite { proof_key: *InvitationKey::of(&secret).expose(), name, ttl_ms };
    match forward::leader(call)? {
        LeaderIs::Here => invitations::propose(call.node, call.replica, Change::Invite(invite)).await?,
        LeaderIs::At(leader) => done(&forward::to_leader(call, leader, ForwardedRequest::Invite(invite)).await?)?,
    }
    invitations::invitation(call.node, secret).map(Response::Invitation)
}

/// The node that joins with `invitation` replaces `name`, which is then revoked.
pub async fn replace(call: Call<'_>, name: &NodeName, invitation: &Plaintext) -> Answer {
    let Call { node, replica, .. } = call;
    let (invitation, gone) = invitations::replacement(node, replica, name, invitation)?;
    match forward::leader(call)? {
        LeaderIs::Here => invitations::propose(node, replica, Change::Replace { invitation, gone }).await?,
        LeaderIs::At(leader) => {
            done(&forward::to_leader(call, leader, ForwardedRequest::Replace { invitation, gone }).await?)?;
        }
    }
    Ok(Response::Replacing)
}

/// Takes a node out of the cluster in good order.
pub async fn remove(
    call: Call<'_>,
    request: RequestId,
    name: NodeName,
    accept_no_redundancy: bool,
    abandon: Vec<NodeName>,
) -> Answer {
    check_nodes(&abandon)?;
    begin(call, Order::Remove { request, name, accept_no_redundancy, abandon }).await
}

/// Has nodes refused from now on, and reshares every key without them.
pub async fn revoke(call: Call<'_>, request: RequestId, names: Vec<NodeName>, expect_back: Vec<NodeName>) -> Answer {
    if names.is_empty() {
        return Err(WireError::new(Code::BadRequest, "no node is named"));
    }
    check_nodes(&names)?;
    check_nodes(&expect_back)?;
    begin(call, Order::Revoke { request, names, expect_back }).await
}

/// Begins an operation at the leader.
async fn begin(call: Call<'_>, order: Order) -> Answer {
    let operation = match forward::leader(call)? {
        LeaderIs::Here => orders::begin(call.node, call.replica, order, call.caller).await?,
        LeaderIs::At(leader) => match forward::to_leader(call, leader, ForwardedRequest::Order(order)).await? {
            ForwardedReply::Begun { operation } => operation,
            reply => return Err(forward::wrong_reply(&reply)),
        },
    };
    Ok(Response::Begun { operation })
}

/// How far an operation is, as the leader sees it.
pub async fn progress(call: Call<'_>, operation: Epoch) -> Answer {
    let progress = match forward::leader(call)? {
        LeaderIs::Here => Box::new(orders::progress(call.node, call.replica, operation).await?),
        LeaderIs::At(leader) => match forward::to_leader(call, leader, ForwardedRequest::Progress { operation }).await?
        {
            ForwardedReply::Progress(progress) => progress,
            reply => return Err(forward::wrong_reply(&reply)),
        },
    };
    Ok(Response::Progress(progress))
}

/// Records where a node listens.
pub async fn set_addresses(call: Call<'_>, name: NodeName, list: Vec<String>) -> Answer {
    addresses::check(&list)?;
    match forward::leader(call)? {
        LeaderIs::Here => addresses::set(call.node, call.replica, &name, list, call.caller).await?,
        LeaderIs::At(leader) => {
            let request = ForwardedRequest::SetAddresses { name, addresses: list };
            done(&forward::to_leader(call, leader, request).await?)?;
        }
    }
    Ok(Response::Done)
}

fn done(reply: &ForwardedReply) -> Result<(), WireError> {
    match reply {
        ForwardedReply::Done => Ok(()),
        ForwardedReply::Made { .. } | ForwardedReply::Begun { .. } | ForwardedReply::Progress(_) => {
            Err(forward::wrong_reply(reply))
        }
    }
}

fn check_nodes(names: &[NodeName]) -> Result<(), WireError> {
    if names.len() > MEMBERS_MAX {
        return Err(WireError::new(Code::BadRequest, "more nodes are named than a cluster has"));
    }
    Ok(())
}
