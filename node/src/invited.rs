//! The other founders: proving an invitation to the first one, and learning from it who the others are.
//!
//! Nothing here is final until this node's lock is durable: a request may be repeated as often as it takes, and a refusal
//! before that leaves nothing behind.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::conn::{Conn, Lane};
use quorate_client::identity::{Protocol, PublicKey as Pinned};
use quorate_shares::labels::EXPORTER_JOIN;
use tracing::debug;

use crate::found::{FIRST, FoundError, Terms, attempt, progress, registration, settle_roster};
use crate::invitation::{JoinCode, JoinReply};
use crate::listen::Closing;
use crate::node::Node;
use crate::peer::{PeerReply, PeerRequest};
use crate::vault::{Invited, Role};

/// How long the first founder may take to answer.
const PEER: Duration = Duration::from_secs(3);

/// What the first founder says of the others. `None` while some are missing, or it does not answer.
///
/// # Errors
/// [`FoundError::Refused`] if it refuses while this node has no lock.
pub(crate) async fn ask_first_founder(node: &Arc<Node>) -> Result<Option<Terms>, FoundError> {
    let has_lock = node.with_vault(|vault| vault.lock.is_some()).unwrap_or_default();
    let reply = match join_once(node).await {
        Ok(reply) => reply,
        Err(reason) => {
            progress(node, &format!("asking the first founder: {reason}"), vec!["the first founder".to_owned()]);
            return Ok(known_terms(node));
        }
    };
    let refused = match reply.code {
        JoinCode::Complete => {
            let Some(me) = reply.node else { return Ok(None) };
            settle_roster(node, me, &reply.roster);
            let Some(threshold) = ask_threshold(node).await else { return Ok(None) };
            return Ok(Some(Terms { attempt: reply.attempt, me, threshold, roster: reply.roster }));
        }
        JoinCode::Wait => {
            progress(node, "waiting for the other founders to join", vec!["other founders".to_owned()]);
            return Ok(None);
        }
        JoinCode::Used => "the invitation was used by another node; each invitation is for one node",
        JoinCode::Expired => {
            "the invitation has expired; repeat `quorate cluster init` on the first node for a new one"
        }
        JoinCode::Unknown => {
            "the first node does not know this invitation: it was replaced, or belongs to another cluster"
        }
        JoinCode::NameTaken => "another founder has this node's name; start quorated with another --name",
    };
    if has_lock {
        // The cluster may simply be founded by now, and its first founder keeps no book any more.
        debug!(refused, "the first founder no longer takes requests");
        return Ok(known_terms(node));
    }
    Err(FoundError::Refused(refused))
}

/// What the vault already knows, when the first founder cannot be asked: enough once this node's lock is durable.
fn known_terms(node: &Node) -> Option<Terms> {
    let known = node.with_vault(|vault| {
        let lock = vault.lock.as_ref()?;
        let attempt = attempt(vault)?;
        Some(Terms { attempt, me: vault.identity.node?, threshold: lock.needed() + 1, roster: vault.roster.clone() })
    });
    known.flatten()
}

/// One request of `quorate-join/1`.
async fn join_once(node: &Arc<Node>) -> Result<JoinReply, String> {
    let (key, inviters) = node
        .with_vault(|vault| match &vault.founding.as_ref()?.role {
            Role::Founder(Invited { key, inviters }) | Role::Joiner(Invited { key, inviters }) => {
                Some((key.duplicate(), inviters.clone()))
            }
            Role::FirstFounder(_) => None,
        })
        .flatten()
        .ok_or("no invitation")?;
    let me = node.boot_identity().ok_or("no boot identity")?;
    let registration = registration(node).ok_or("no keys")?;
    let mut failures = Vec::new();
    for inviter in inviters {
        let address = [inviter.address.to_string()];
        let pinned = Pinned(inviter.boot_pk);
        let connection = match crate::listen::dial(node, &address, &me, pinned, Protocol::Join, PEER).await {
            Ok(connection) => connection,
            Err(reason) => {
                failures.push(reason);
                continue;
            }
        };
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

async fn ask_threshold(node: &Arc<Node>) -> Option<u8> {
    match node.sessions.ask(FIRST, Lane::Ordinary, &PeerRequest::FoundingTerms, PEER).await {
        Ok(PeerReply::FoundingTerms { threshold }) => Some(threshold),
        _ => {
            progress(node, "opening a session with the first founder", vec![node.name_of(FIRST)]);
            None
        }
    }
}
