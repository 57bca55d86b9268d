//! Joining: invitations, and what the nodes that prove them register.
//!
//! SHA-256 of V names an invitation. V is the hash of a secret that the cluster never stores. The first boot key that proves
//! an invitation is bound to it: a joiner that restarts continues, another node is refused. Nothing depends on a joiner's keys
//! before its first lock is durable, so until then it may come back with new keys, and after that it may not.

use std::collections::BTreeSet;

use quorate_shares::ids::{NodeId, ShareKeyGeneration};
use quorate_shares::kem::PublicKey;
use sha2::{Digest, Sha256};

use super::addresses::check_addresses;
use super::{InvitationInfo, MEMBERS_MAX, Member, MemberState, Running, State, operations};
use crate::live::command::{Invite, Join, Operation, Outcome};
use crate::live::refusal::Refusal;
use crate::live::rows::{Row, RowKey, Rows};

/// Most invitations at a time. Expired ones are dropped to make room.
pub const INVITATIONS_MAX: usize = 64;
/// Longest lifetime of an invitation.
pub const INVITATION_TTL_MAX_MS: u64 = 7 * 24 * 3_600_000;

pub(super) fn invite(state: &mut State, invite: &Invite, rows: &mut Rows) -> Result<Outcome, Refusal> {
    let id: [u8; 32] = Sha256::digest(invite.proof_key).into();
    if state.invitations.contains_key(&id) {
        return Ok(Outcome::Invited);
    }
    if let Some(name) = &invite.name {
        check_name(state, name, None)?;
    }
    if invite.ttl_ms == 0 || invite.ttl_ms > INVITATION_TTL_MAX_MS {
        return Err(Refusal::BadInvitation);
    }
    let now_ms = state.time_ms;
    let old: Vec<_> =
        state.invitations.iter().filter(|(_, known)| known.expires_ms <= now_ms).map(|(id, _)| *id).collect();
    if state.invitations.len() - old.len() >= INVITATIONS_MAX {
        return Err(Refusal::ListTooLong { given: state.invitations.len() + 1, max: INVITATIONS_MAX });
    }
    for id in old {
        state.invitations.remove(&id);
        rows.delete(RowKey::Invitation(id));
    }
    let (proof_key, name, expires_ms) = (invite.proof_key, invite.name.clone(), now_ms + invite.ttl_ms);
    put(state, id, InvitationInfo { proof_key, name, expires_ms, bound: None, replaces: None }, rows);
    Ok(Outcome::Invited)
}

/// Notes that the node that joins with the invitation `id` replaces `gone`. The replacement itself, [`Operation::Replace`], begins in
/// [`join`].
pub(super) fn replace(state: &mut State, id: &[u8; 32], gone: NodeId, rows: &mut Rows) -> Result<Outcome, Refusal> {
    if !state.members.contains_key(&gone) {
        return Err(Refusal::UnknownMember { node: gone });
    }
    operations::check_holders(state, &[gone].into())?;
    let mut invitation = state.invitations.get(id).ok_or(Refusal::UnknownInvitation)?.clone();
    if invitation.replaces == Some(gone) {
        return Ok(Outcome::Invited);
    }
    // A node that has proved it is joining already, and replaces no member.
    if invitation.bound.is_some() {
        return Err(Refusal::InvitationUsed);
    }
    if state.time_ms >= invitation.expires_ms {
        return Err(Refusal::InvitationExpired);
    }
    invitation.replaces = Some(gone);
    put(state, *id, invitation, rows);
    Ok(Outcome::Invited)
}

pub(super) fn join(state: &mut State, join: &Join, rows: &mut Rows) -> Result<Outcome, Refusal> {
    let mut invitation = state.invitations.get(&join.invitation).ok_or(Refusal::UnknownInvitation)?.clone();
    if invitation.bound.is_some_and(|bound| bound != join.boot_pk) {
        return Err(Refusal::InvitationUsed);
    }
    if state.former.values().any(|former| former.boot_pk == join.boot_pk) {
        return Err(Refusal::GivenUp);
    }
    let known = state.members.values().find(|member| member.boot_pk == join.boot_pk).cloned();
    let known = known.filter(|_| invitation.bound.is_some());
    if invitation.bound.is_some() && known.is_none() {
        // The node that joined with it is neither a member nor a former member.
        return Err(Refusal::InvitationUsed);
    }
    if known.is_none() && state.time_ms >= invitation.expires_ms {
        return Err(Refusal::InvitationExpired);
    }
    let node = known.as_ref().map_or(NodeId(0), |member| member.node);
    let share_pk = PublicKey::parse(&join.share_pk).map_err(|_| Refusal::BadShareKey { node })?;
    check_addresses(node, &join.addresses)?;
    if let Some(member) = known {
        return come_back(state, member, join, share_pk, rows);
    }
    check_name(state, &join.name, invitation.name.as_ref())?;
    let keys = [join.boot_pk, join.op_pk];
    let mut taken = state.members.values().flat_map(|member| [member.boot_pk, member.op_pk]);
    let mut former = state.former.values().flat_map(|former| [former.boot_pk, former.op_pk]);
    if join.boot_pk == join.op_pk || taken.any(|key| keys.contains(&key)) || former.any(|key| keys.contains(&key)) {
        return Err(Refusal::IdentityTaken { node });
    }
    if let Some(running) = &state.operations.running {
        return Err(Refusal::OperationRunning { operation: running.epoch });
    }
    if state.active().is_none() {
        return Err(Refusal::NotFounded);
    }
    let gone = invitation.replaces.filter(|gone| state.members.contains_key(gone));
    if let Some(gone) = gone {
        // Others may have left since it was named.
        operations::check_holders(state, &[gone].into())?;
    }
    if state.members.len() - usize::from(gone.is_some()) >= MEMBERS_MAX {
        return Err(Refusal::MemberCount { members: state.members.len() + 1 });
    }
    let cluster = state.cluster.as_mut().ok_or(Refusal::NotFounded)?;
    let node = NodeId(cluster.next_node_id);
    cluster.next_node_id += 1;
    rows.put(RowKey::Cluster, Row::Cluster(cluster.clone()));
    invitation.bound = Some(join.boot_pk);
    put(state, join.invitation, invitation, rows);
    let member = Member {
        node,
        name: join.name.clone(),
        addresses: join.addresses.clone(),
        boot_pk: join.boot_pk,
        op_pk: join.op_pk,
        share_pk,
        skgen: ShareKeyGeneration::FIRST,
        state: MemberState::Joining,
    };
    put_member(state, member, rows);
    let operation = gone.map_or(Operation::Join { node }, |gone| Operation::Replace { gone, node });
    // A request id of its own: no client waits for this operation.
    let mut request = [0; 16];
    request.copy_from_slice(&join.invitation[..16]);
    let (epoch, began_ms) = (state.next_epoch(), state.time_ms);
    state.operations.running = Some(Running { epoch, operation, request, began_ms, abandoned: BTreeSet::new() });
    operations::store(state, rows);
    Ok(Outcome::Registered { node })
}

/// The joiner proves its invitation again.
fn come_back(
    state: &mut State,
    mut member: Member,
    join: &Join,
    share_pk: PublicKey,
    rows: &mut Rows,
) -> Result<Outcome, Refusal> {
    let node = member.node;
    if member.state == MemberState::Active {
        // Other nodes may depend on its keys by now. A node that lost its keys lost its disk.
        return if member.op_pk == join.op_pk {
            Ok(Outcome::Registered { node })
        } else {
            Err(Refusal::InvitationUsed)
        };
    }
    let renamed = member.name != join.name;
    if renamed {
        check_name(state, &join.name, None)?;
    }
    (member.name, member.addresses) = (join.name.clone(), join.addresses.clone());
    (member.op_pk, member.share_pk) = (join.op_pk, share_pk);
    if state.members.get(&node) != Some(&member) {
        put_member(state, member, rows);
    }
    Ok(Outcome::Registered { node })
}

pub(super) fn joined(state: &mut State, node: NodeId, rows: &mut Rows) -> Result<Outcome, Refusal> {
    let mut member = state.members.get(&node).ok_or(Refusal::UnknownMember { node })?.clone();
    if member.state != MemberState::Active {
        member.state = MemberState::Active;
        put_member(state, member, rows);
    }
    Ok(Outcome::Registered { node })
}

fn check_name(
    state: &State,
    name: &quorate_shares::ids::NodeName,
    wanted: Option<&quorate_shares::ids::NodeName>,
) -> Result<(), Refusal> {
    if wanted.is_some_and(|wanted| wanted != name) {
        return Err(Refusal::NameNotInvited);
    }
    let taken = state.members.values().find(|member| member.name == *name);
    taken.map_or(Ok(()), |member| Err(Refusal::NodeNameTaken { node: member.node }))
}

fn put(state: &mut State, id: [u8; 32], invitation: InvitationInfo, rows: &mut Rows) {
    rows.put(RowKey::Invitation(id), Row::Invitation(invitation.clone()));
    state.invitations.insert(id, invitation);
}

pub(super) fn put_member(state: &mut State, member: Member, rows: &mut Rows) {
    rows.put(RowKey::Member(member.node), Row::Member(member.clone()));
    state.members.insert(member.node, member);
}
