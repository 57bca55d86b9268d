//! Joining a running cluster: how a member answers a node that proves an invitation, and how the joiner says that it is ready.
//!
//! The proof begins an operation in the replicated state. From then on the joiner does what every member does, and the
//! leader's loop does the rest. The joiner comes to its first lock like a founder ([`founding`]), but it asks other nodes.
//!
//! [`founding`]: crate::join::founding

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quorate_client::conn::close;
use quorate_client::identity::{Protocol, PublicKey};
use quorate_client::reach::{STAGGER, first_of};
use quorate_raft::Replica;
use quorate_raft::command::{Change, Join};
use quorate_raft::refusal::Refusal;
use quorate_raft::state::State;
use quorate_shares::ids::NodeId;
use quorate_shares::secret::Secret;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::base::rate::STRANGERS;
use crate::join::terms::Terms;
use crate::lease::renewal;
use crate::node::Node;
use crate::node::enrolment::Enrolment;
use crate::peers::dial::dial;
use crate::peers::propose::{self, ProposalError};
use crate::vault::Roster;
use crate::vault::invitation::{InvitationKey, JoinCode, JoinReply, JoinRequest, Registration};
use crate::vault::layout::Address;

/// If a member's roster does not name the joiner within this time, the member tells the joiner to ask again.
const KNOWN: Duration = Duration::from_secs(2);
/// How long a joiner may take to answer at one of its addresses.
const DIAL: Duration = Duration::from_secs(2);
/// Pause between two checks of the roster.
const LOOK: Duration = Duration::from_millis(20);

/// A member's side of `quorate-join/1`.
pub async fn take_proof(
    node: &Arc<Node>,
    replica: &Replica,
    request: JoinRequest,
    tls_key: [u8; 32],
    exporter: &[u8; 32],
    remote: SocketAddr,
) -> Vec<u8> {
    let key = match invitation_key(node, replica, &request.invitation).await {
        Ok(Some(key)) => key,
        Ok(None) => {
            note_unknown_invitation(node, &PublicKey(tls_key), remote);
            return JoinReply::unknown(exporter).unwrap_or_default();
        }
        Err(reason) => {
            // The answer that it is unknown would be final. Without an answer the joiner asks again, perhaps another member.
            info!(%remote, reason, "join request with an invitation that may only be new");
            return Vec::new();
        }
    };
    // A stranger must not cost more than a look-up.
    if !request.is_proved(&key, exporter) || request.registration.boot_pk != tls_key {
        warn!(%remote, "join request without a proof");
        return JoinReply::unknown(exporter).unwrap_or_default();
    }
    let registration = &request.registration;
    let join = Join {
        invitation: request.invitation,
        name: registration.name.clone(),
        addresses: registration.addresses.iter().map(Address::to_string).collect(),
        boot_pk: registration.boot_pk,
        op_pk: registration.op_pk,
        share_pk: registration.share_pk.as_bytes().to_vec(),
    };
    let code = match replica.read(|state| standing(state, &join)) {
        Some(code) => code,
        None if !answers_where_it_says(node, &request.registration).await => JoinCode::Unreachable,
        None => match propose::propose(node, replica, Change::Join(join)).await {
            Ok(()) => JoinCode::Complete,
            Err(ProposalError::Refused(refusal)) => code_of(&refusal),
            Err(ProposalError::NoLeader(reason)) => {
                debug!(%reason, "joiner has not joined yet");
                JoinCode::Wait
            }
        },
    };
    let known = match code {
        JoinCode::Complete => await_in_roster(node, registration.boot_pk, registration.op_pk).await,
        _ => None,
    };
    let (code, joiner, roster) = match (code, known) {
        (JoinCode::Complete, Some((joiner, roster))) => (code, Some(joiner), roster),
        (JoinCode::Complete, None) => (JoinCode::Wait, None, Roster::default()),
        (code, _) => (code, None, Roster::default()),
    };
    info!(%code, joiner = ?joiner, name = %registration.name, %remote, "join request");
    JoinReply { code, node: joiner, attempt: 0, roster }.seal(&key, exporter).unwrap_or_default()
}

/// Logs a join request whose invitation this node does not know, from a node with the boot key `key`.
pub fn note_unknown_invitation(node: &Node, key: &PublicKey, remote: SocketAddr) {
    match node.roster().is_key_of_member(Protocol::Join, key) {
        // A founder asked again before it heard that the cluster is founded.
        true => debug!(%remote, "join request of a founder"),
        false => warn!(%remote, "join request with an unknown invitation"),
    }
}

/// The answer to a joiner that asks again, if it needs no new log entry: the joiner has joined with these keys, was given up, or
/// another operation runs.
fn standing(state: &State, join: &Join) -> Option<JoinCode> {
    if state.former.values().any(|former| former.boot_pk == join.boot_pk) {
        return Some(JoinCode::GivenUp);
    }
    let member = state.members.values().find(|member| member.boot_pk == join.boot_pk);
    match member {
        Some(member) => (member.op_pk == join.op_pk).then_some(JoinCode::Complete),
        None => state.operations.running.as_ref().map(|_| JoinCode::Wait),
    }
}

/// Whether the joiner answers at an address that it registers. A node that no other node can dial must not become a voter: it would work
/// over the sessions that it opens itself, and the cluster would count on it.
async fn answers_where_it_says(node: &Node, joiner: &Registration) -> bool {
    let Some(me) = node.enrolment().identity.boot() else { return false };
    let addresses: Vec<_> = joiner.addresses.iter().map(Address::to_string).collect();
    let key = PublicKey(joiner.boot_pk);
    match dial(&node.endpoint, &addresses, &me, key, Protocol::Boot, DIAL).await {
        Ok(connection) => {
            connection.close(close::DONE.into(), b"reached");
            true
        }
        Err(reason) => {
            warn!(name = %joiner.name, %reason, "a joiner is not reached at its addresses");
            false
        }
    }
}

/// The key V of an invitation. If this member does not know the invitation, another member may have made it a moment ago. To look for
/// it costs a round to a quorum, and any stranger may ask, so that is done twice a second.
///
/// # Errors
/// Why this member cannot say now whether there is such an invitation.
async fn invitation_key(node: &Node, replica: &Replica, id: &[u8; 32]) -> Result<Option<InvitationKey>, String> {
    let look = || replica.read(|state| state.invitations.get(id).map(|invitation| invitation.proof_key));
    let mut found = look();
    if found.is_none() {
        if !node.peers().rates.looks_for_invitations.allows(STRANGERS, 1) {
            return Err("others have asked about unknown invitations in this second".to_owned());
        }
        renewal::catch_up(node, replica).await.map_err(|reason| reason.to_string())?;
        found = look();
    }
    Ok(found.map(|mut proof_key| InvitationKey::from(Secret::take(&mut proof_key))))
}

/// Waits until this member's roster names the joiner with these keys. Returns the joiner's id and the roster.
async fn await_in_roster(node: &Node, boot_pk: [u8; 32], op_pk: [u8; 32]) -> Option<(NodeId, Roster)> {
    let until = Instant::now() + KNOWN;
    loop {
        let roster = node.roster();
        if let Some(member) = roster.by_boot_pk(&boot_pk).filter(|member| member.op_pk == op_pk) {
            return Some((member.node, (*roster).clone()));
        }
        if Instant::now() >= until {
            return None;
        }
        sleep(LOOK).await;
    }
}

fn code_of(refusal: &Refusal) -> JoinCode {
    match refusal {
        Refusal::InvitationUsed | Refusal::IdentityTaken { .. } => JoinCode::Used,
        Refusal::GivenUp => JoinCode::GivenUp,
        Refusal::InvitationExpired => JoinCode::Expired,
        Refusal::UnknownInvitation => JoinCode::Unknown,
        Refusal::NodeNameTaken { .. } | Refusal::NameNotInvited => JoinCode::NameTaken,
        Refusal::MemberCount { .. } => JoinCode::Full,
        Refusal::TooFewRemain { .. } => JoinCode::TooFew,
        // Another operation runs, or the state has no epoch yet.
        _ => JoinCode::Wait,
    }
}

/// The joiner's side, once its lock is durable: it tells the leader. The cluster does the rest, and then this node's own
/// replica names it.
pub(crate) async fn announce(node: &Arc<Node>, enrolment: &Enrolment, terms: &Terms) {
    enrolment.joining.progress("locked; the cluster takes this node in", Vec::new());
    let me = terms.me;
    let members = terms.roster.members.iter().map(|member| member.node).filter(|member| *member != me);
    let reached = members.filter(|&member| enrolment.peers.sessions.with(member).is_some());
    let telling = reached.map(|member| async move {
        let mut at = Some(member);
        // The first answer usually names the leader.
        for _ in 0..2 {
            let Some(asked) = at else { break };
            match propose::propose_at(node, asked, Change::Joined { node: me }).await {
                Ok(()) => return Ok(()),
                Err((error, leader)) => {
                    debug!(%asked, %error, "the lock is not reported to the leader yet");
                    at = leader;
                }
            }
        }
        Err(())
    });
    // The caller announces it again as long as no leader has taken it.
    drop(first_of(STAGGER, telling.collect()).await);
}
