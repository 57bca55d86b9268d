//! Invitations to a running cluster, and the members that they replace.

use quorate_client::error::Code;
use quorate_client::wire::{Plaintext, WireError};
use quorate_raft::command::Change;
use quorate_raft::refusal::Refusal;
use quorate_raft::{ProposeError, Replica};
use quorate_shares::ids::{NodeId, NodeName};
use quorate_shares::secret::Secret;

use crate::cluster::leader;
use crate::cluster::orders::{member_named, refuse_stranding, too_few};
use crate::node::Node;
use crate::vault::invitation::{INVITERS_MAX, Invitation, InvitationError, Inviter};

/// The leader's side: puts an invitation, or the node that it replaces, into the replicated state.
///
/// # Errors
/// The error for the client.
pub async fn propose(node: &Node, replica: &Replica, change: Change) -> Result<(), WireError> {
    match replica.propose(node.leader.command(replica, change)).await {
        Ok(_) => Ok(()),
        Err(ProposeError::Refused(refusal)) => Err(invitation_refused(node, refusal)),
        Err(error) => Err(WireError::new(Code::NoQuorum, format!("the leader did not take it: {error}"))
            .hint("try again in a moment")),
    }
}

/// The text of an invitation: its secret, and where the joiner finds members. This node comes first. The other reachable
/// members follow, so the joiner does not depend on this node.
///
/// # Errors
/// If it cannot be written as text.
pub fn invitation(node: &Node, secret: Secret<32>) -> Result<Plaintext, WireError> {
    let roster = node.roster();
    let (mut inviters, others): (Vec<_>, Vec<_>) = roster.members.iter().partition(|member| member.node == node.id());
    inviters.extend(others.into_iter().filter(|member| node.peers().sessions.with(member.node).is_some()));
    let inviters = inviters.into_iter().filter_map(|member| {
        let address = member.addresses.first()?.clone();
        Some(Inviter { boot_pk: member.boot_pk, address })
    });
    let inviters = inviters.take(INVITERS_MAX).collect();
    let text = Invitation { cluster: node.cluster(), secret, inviters }.text();
    let text = text.map_err(|error| WireError::new(Code::Internal, error.to_string()))?;
    Plaintext::new(text.as_bytes().to_vec())
}

/// Checks that a node with `invitation` may replace the member `name`. Returns the id of the invitation, and the member.
///
/// # Errors
/// The error for the client.
pub fn replacement(
    node: &Node,
    replica: &Replica,
    name: &NodeName,
    invitation: &Plaintext,
) -> Result<([u8; 32], NodeId), WireError> {
    let present = leader::answering(node, replica);
    let gone = replica.read(|state| {
        let gone = member_named(state, name)?;
        let away = state.stranded(&[gone].into()).filter(|node| !present.contains(node)).collect();
        let hint =
            |away: &str| format!("start {away} and let it renew its lock, or revoke it first if it is lost, too");
        refuse_stranding(state, &away, hint).map(|()| gone)
    })?;
    let text = std::str::from_utf8(invitation.expose()).unwrap_or_default();
    let invitation: Invitation = text
        .trim()
        .parse()
        .map_err(|error: InvitationError| WireError::new(Code::BadRequest, error.to_string()).hint(error.hint()))?;
    Ok((invitation.key().id(), gone))
}

fn invitation_refused(node: &Node, refusal: Refusal) -> WireError {
    let conflict = |message: &str| WireError::new(Code::Conflict, message.to_owned());
    match refusal {
        Refusal::NodeNameTaken { node: taken } => {
            conflict(&format!("{} is a member already", node.name_of(taken))).hint("choose another --name")
        }
        Refusal::BadInvitation => WireError::new(Code::BadRequest, refusal.to_string()).hint("--ttl 1h, for example"),
        Refusal::ListTooLong { max, .. } => {
            conflict(&format!("{max} invitations are open, which is the limit")).hint("wait until some have expired")
        }
        Refusal::UnknownInvitation => WireError::new(Code::NotFound, "no such invitation".to_owned())
            .hint("`quorate node invite` gives one; the invitations of `cluster init` are for founders"),
        Refusal::InvitationExpired => {
            conflict("the invitation has expired").hint("`quorate node invite` gives another")
        }
        Refusal::InvitationUsed => {
            conflict("the invitation was used already").hint("`quorate node invite` gives another")
        }
        Refusal::UnknownMember { node: gone } => {
            WireError::new(Code::NotFound, format!("{} is no member any more", node.name_of(gone)))
        }
        Refusal::TooFewRemain { remaining, needed } => too_few(remaining, needed),
        refusal => conflict(&refusal.to_string()),
    }
}
