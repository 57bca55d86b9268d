//! The founder registry of the first founder: the invitations, the founders that have proved one, and whether all are there.
//!
//! The functions are pure changes of the vault's founding section. The caller makes them durable before it answers.

use quorate_shares::ids::NodeId;
use quorate_shares::secret::Secret;

use crate::base::random;
use crate::vault::invitation::{Invitation, InvitationKey, Inviter, JoinCode, JoinReply, JoinRequest};
use crate::vault::layout::Address;
use crate::vault::{
    FIRST_FOUNDER, FirstFounder, FounderKeys, Founding, FoundingStep, OpenInvitation, Role, Roster, RosterLogId,
    RosterMember, Standing, Vault,
};

/// An invitation must be proved for the first time within this time.
pub const INVITATION_MS: u64 = 3_600_000;

/// The registry in a vault, if this node is the first founder and founding is unfinished.
pub fn of(vault: &mut Vault) -> Option<(&mut u32, &mut FirstFounder)> {
    match vault.founding.as_mut()? {
        Founding { attempt, role: Role::FirstFounder(first), .. } => Some((attempt, first)),
        _ => None,
    }
}

/// Like [`of`], but read-only.
pub fn view(vault: &Vault) -> Option<(u32, &FirstFounder)> {
    match vault.founding.as_ref()? {
        Founding { attempt, role: Role::FirstFounder(first), .. } => Some((*attempt, first)),
        _ => None,
    }
}

/// Draws an invitation for every founder that has not proved one, and returns them. Earlier ones without a proof are void.
pub fn invite(vault: &mut Vault, boot_pk: [u8; 32], address: &Address, now_ms: u64) -> Vec<Invitation> {
    let cluster = vault.identity.cluster;
    let Some((_, first)) = of(vault) else { return Vec::new() };
    first.invitations.retain(|invitation| invitation.bound.is_some());
    let wanted = usize::from(first.founders).saturating_sub(1 + first.invitations.len());
    let mut made = Vec::with_capacity(wanted);
    for _ in 0..wanted {
        let secret = Secret::random(&mut random::system());
        let key = InvitationKey::of(&secret);
        first.invitations.push(OpenInvitation { key, expires_ms: now_ms + INVITATION_MS, bound: None });
        made.push(Invitation { cluster, secret, inviters: vec![Inviter { boot_pk, address: address.clone() }] });
    }
    made
}

/// Registers the first founder itself, or its new keys, if it crashed before its first lock was durable.
pub fn register_self(vault: &mut Vault, me: FounderKeys) {
    let Some((attempt, first)) = of(vault) else { return };
    let known = first.so_far.iter().any(|founder| founder.node == me.node);
    if put(first, me) && known {
        raise_attempt(attempt, first);
    }
}

/// Whether the request proves an invitation of this registry.
pub fn knows(vault: &Vault, request: &JoinRequest, exporter: &[u8; 32]) -> bool {
    let proves = |invitation: &OpenInvitation| request.is_proved(&invitation.key, exporter);
    view(vault).is_some_and(|(_, first)| first.invitations.iter().any(proves))
}

/// Handles a request that came over a connection with this exporter, from this boot key. Returns the answer and the key
/// that authenticates it; `None` if the invitation is unknown.
pub fn register(
    vault: &mut Vault,
    request: &JoinRequest,
    tls_key: [u8; 32],
    exporter: &[u8; 32],
    now_ms: u64,
) -> Option<(JoinReply, InvitationKey)> {
    let (attempt, first) = of(vault)?;
    let position = first.invitations.iter().position(|invitation| request.is_proved(&invitation.key, exporter))?;
    let invitation = &mut first.invitations[position];
    let key = invitation.key.duplicate();
    let refuse = |code| JoinReply { code, node: None, attempt: 0, roster: Roster::default() };
    let registration = &request.registration;
    if registration.boot_pk != tls_key || invitation.bound.is_some_and(|bound| bound != tls_key) {
        return Some((refuse(JoinCode::Used), key));
    }
    if invitation.bound.is_none() && now_ms > invitation.expires_ms {
        return Some((refuse(JoinCode::Expired), key));
    }
    let known = first.so_far.iter().find(|founder| founder.boot_pk == tls_key).map(|founder| founder.node);
    if first.so_far.iter().any(|founder| founder.name == registration.name && Some(founder.node) != known) {
        return Some((refuse(JoinCode::NameTaken), key));
    }
    if known.is_none() && first.so_far.len() >= usize::from(first.founders) {
        return Some((refuse(JoinCode::Used), key));
    }
    invitation.bound = Some(tls_key);
    // Founders get ids in the order in which they prove their invitations. The first founder is 1.
    let highest = first.so_far.iter().map(|founder| founder.node).max().unwrap_or(FIRST_FOUNDER).max(FIRST_FOUNDER);
    let node = known.unwrap_or(NodeId(highest.0 + 1));
    let founder = FounderKeys {
        node,
        boot_pk: tls_key,
        op_pk: registration.op_pk,
        share_pk: registration.share_pk.clone(),
        name: registration.name.clone(),
        addresses: registration.addresses.clone(),
    };
    if first.step == FoundingStep::Starting && !first.so_far.contains(&founder) {
        // Raft knows the old keys by now. This founder lost the disk with them, and cannot found with new ones.
        return Some((refuse(JoinCode::Used), key));
    }
    if put(first, founder) && known.is_some() {
        raise_attempt(attempt, first);
    }
    let attempt = *attempt;
    let complete = first.so_far.len() == usize::from(first.founders);
    if complete && first.step == FoundingStep::Gathering {
        first.step = FoundingStep::Locking;
    }
    let roster = if complete { roster(first) } else { Roster::default() };
    let code = if complete { JoinCode::Complete } else { JoinCode::Wait };
    Some((JoinReply { code, node: Some(node), attempt, roster }, key))
}

/// The roster of the founders so far.
pub fn roster(first: &FirstFounder) -> Roster {
    let members = first.so_far.iter().map(|founder| RosterMember {
        node: founder.node,
        boot_pk: founder.boot_pk,
        op_pk: founder.op_pk,
        standing: Standing { member: true, voter: true, ..Standing::default() },
        name: founder.name.clone(),
        addresses: founder.addresses.clone(),
    });
    Roster { log_id: RosterLogId::default(), members: members.collect(), revoked: Vec::new() }
}

/// Adds a founder or replaces its entry; returns whether anything changed.
fn put(first: &mut FirstFounder, founder: FounderKeys) -> bool {
    match first.so_far.iter_mut().find(|known| known.node == founder.node) {
        Some(known) if *known == founder => false,
        Some(known) => {
            *known = founder;
            true
        }
        None => {
            first.so_far.push(founder);
            first.so_far.sort_by_key(|founder| founder.node);
            true
        }
    }
}

/// Begins the next attempt: a founder came back with new keys, so every founder must make a new lock.
fn raise_attempt(attempt: &mut u32, first: &mut FirstFounder) {
    *attempt += 1;
    let complete = first.so_far.len() == usize::from(first.founders);
    first.step = if complete { FoundingStep::Locking } else { FoundingStep::Gathering };
}
