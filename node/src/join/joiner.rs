//! The invited node: it proves its invitation to the first founder, or to any member of a running cluster, and learns from it
//! who the other nodes are. The invitation does not say which of the two it is; the answer does.
//!
//! Nothing here is final until this node's lock is durable: a request can be repeated, and a refusal before that leaves
//! nothing behind.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_client::conn::{Conn, Lane};
use quorate_client::identity::{Protocol, PublicKey as Pinned};
use quorate_client::reach::{STAGGER, first_of};
use quorate_shares::labels::EXPORTER_JOIN;
use tracing::debug;

use crate::join::terms::{FoundError, Terms, adopt_roster, attempt, registration};
use crate::messages::peer::{PeerReply, PeerRequest};
use crate::node::Node;
use crate::node::enrolment::Enrolment;
use crate::peers::dial::{Closing, dial};
use crate::vault::invitation::{JoinCode, JoinReply};
use crate::vault::{FIRST_FOUNDER, Invited, Role, Vault};

/// How long the inviting node may take to answer.
const PEER: Duration = Duration::from_secs(3);
/// How many times members say that they could not dial this node before it gives up. Each time another one is asked first. The
/// refusal says the number.
const UNREACHABLE_MAX: usize = 3;

/// Asks the inviting node who the other nodes are. `None` while founders are missing, or if it does not answer.
///
/// # Errors
/// [`FoundError::Refused`] if it refuses while this node has no lock.
pub(crate) async fn ask_inviter(node: &Arc<Node>, enrolment: &Enrolment) -> Result<Option<Terms>, FoundError> {
    let (has_lock, joins) = enrolment.with_vault(|vault| (vault.lock.is_some(), is_joiner(vault))).unwrap_or_default();
    if has_lock && joins {
        // The members have taken this node in, and the vault has all terms.
        let terms = known_terms(enrolment);
        terms.iter().for_each(|terms| adopt_roster(node, enrolment, terms.me, &terms.roster));
        return Ok(terms);
    }
    let unreachable_replies = enrolment.joining.unreachable_replies.load(Ordering::Relaxed);
    let reply = match join_once(node, enrolment, unreachable_replies).await {
        Ok(reply) => reply,
        Err(reason) => {
            enrolment
                .joining
                .progress(&format!("asking the inviting node: {reason}"), vec!["the inviting node".to_owned()]);
            return Ok(known_terms(enrolment));
        }
    };
    let refused = match reply.code {
        JoinCode::Complete => {
            let Some(me) = reply.node else { return Ok(None) };
            adopt_roster(node, enrolment, me, &reply.roster);
            let Some(threshold) = ask_threshold(node, enrolment, &reply).await else { return Ok(None) };
            return Ok(Some(Terms { attempt: reply.attempt, me, threshold, roster: reply.roster }));
        }
        JoinCode::Wait => {
            enrolment.joining.progress(
                "the other founders have not joined, or another operation runs",
                vec!["the cluster".to_owned()],
            );
            return Ok(None);
        }
        JoinCode::Unreachable if unreachable_replies + 1 < UNREACHABLE_MAX => {
            enrolment.joining.unreachable_replies.store(unreachable_replies + 1, Ordering::Relaxed);
            let step = format!("a member does not reach this node at {}; trying again", node.config.advertise);
            enrolment.joining.progress(&step, vec!["the cluster".to_owned()]);
            return Ok(None);
        }
        JoinCode::Unreachable => {
            "three times a member could not dial this node at the address that it advertises; start quorated with another \
             --advertise, or open its UDP port to the members, and join again with the same invitation"
        }
        JoinCode::Used => "the invitation was used by another node; each invitation is for one node",
        JoinCode::Expired => {
            "the invitation has expired; `quorate node invite` gives a new one, and before there is a cluster \
             `quorate cluster init`, repeated on the first node"
        }
        JoinCode::Unknown => {
            "the inviting node does not know this invitation: it was replaced, or belongs to another cluster"
        }
        JoinCode::NameTaken => {
            "another member has this node's name, or the invitation is for another one; start quorated with another --name"
        }
        JoinCode::GivenUp => {
            "the cluster gave this node up while it joined, because it was silent for too long or was revoked. It has other keys now: \
             join again with an invitation that was not used"
        }
        JoinCode::Full => "the cluster has as many members as it may; remove one first",
        JoinCode::TooFew => {
            "without the node that this invitation replaces too few shares would remain, and every key would be lost; join \
             with an invitation that replaces no node first"
        }
    };
    if has_lock {
        // The cluster may be founded by now, and then its first founder has no founder registry any more.
        debug!(refused, "the first founder no longer answers join requests");
        return Ok(known_terms(enrolment));
    }
    Err(FoundError::Refused(refused))
}

/// The terms in the vault, for when the first founder cannot be asked. They are complete once this node's lock is durable.
fn known_terms(enrolment: &Enrolment) -> Option<Terms> {
    let known = enrolment.with_vault(|vault| {
        let lock = vault.lock.as_ref()?;
        let attempt = attempt(vault)?;
        Some(Terms { attempt, me: vault.identity.node?, threshold: lock.needed() + 1, roster: vault.roster.clone() })
    });
    known.flatten()
}

/// One request of `quorate-join/1`, to one of the inviting nodes. The first `skipped` of them are asked last.
async fn join_once(node: &Node, enrolment: &Enrolment, skipped: usize) -> Result<JoinReply, String> {
    let (key, inviters) = enrolment
        .with_vault(|vault| match &vault.founding.as_ref()?.role {
            Role::Founder(Invited { key, inviters }) | Role::Joiner(Invited { key, inviters }) => {
                Some((key.duplicate(), inviters.clone()))
            }
            Role::FirstFounder(_) => None,
        })
        .flatten()
        .ok_or("no invitation")?;
    let me = enrolment.identity.boot().ok_or("no boot identity")?;
    let registration = registration(enrolment).ok_or("no keys")?;
    let (mut left, mut failures) = (inviters, Vec::new());
    let first = skipped % left.len().max(1);
    left.rotate_left(first);
    while !left.is_empty() {
        // Several are dialled side by side, and one is asked at a time.
        let dialling = left.iter().enumerate().map(|(position, inviter)| {
            let (address, pinned, me) = ([inviter.address.to_string()], Pinned(inviter.boot_pk), &me);
            async move {
                let dialled = dial(&node.endpoint, &address, me, pinned, Protocol::Join, PEER).await;
                dialled.map(|connection| (position, connection))
            }
        });
        let (position, connection) = match first_of(STAGGER, dialling.collect()).await {
            Ok(reached) => reached,
            Err(reasons) => {
                failures.extend(reasons);
                break;
            }
        };
        left.remove(position);
        let closing = Closing(Conn::start(connection, None));
        let conn = &closing.0;
        let exporter = *conn.export(EXPORTER_JOIN, b"").expose();
        let request = registration.request(&key, &exporter).map_err(|error| error.to_string())?;
        let reply = conn.call(Lane::Ordinary, &request, PEER).await.map_err(|error| error.to_string());
        match reply.and_then(|reply| JoinReply::open(&reply, &key, &exporter).map_err(|error| error.to_string())) {
            Ok(reply) => return Ok(reply),
            Err(reason) => failures.push(reason),
        }
    }
    Err(failures.join("; "))
}

/// Asks the first founder, or any member of a running cluster, how many shares a key needs.
async fn ask_threshold(node: &Node, enrolment: &Enrolment, reply: &JoinReply) -> Option<u8> {
    let members = reply.roster.members.iter().map(|member| member.node).filter(|&member| Some(member) != reply.node);
    let asked: Vec<_> = members.filter(|&member| reply.attempt == 0 || member == FIRST_FOUNDER).collect();
    let asking = asked.iter().map(|&member| async move {
        match enrolment.peers.sessions.ask(member, Lane::Ordinary, &PeerRequest::FoundingTerms, PEER).await {
            Ok(PeerReply::FoundingTerms { threshold }) => Ok(threshold),
            _ => Err(()),
        }
    });
    if let Ok(threshold) = first_of(STAGGER, asking.collect()).await {
        return Some(threshold);
    }
    enrolment.joining.progress("opening sessions", asked.into_iter().map(|member| node.name_of(member)).collect());
    None
}

/// Whether this node was invited into a running cluster.
fn is_joiner(vault: &Vault) -> bool {
    matches!(vault.founding.as_ref().map(|founding| &founding.role), Some(Role::Joiner(_)))
}
