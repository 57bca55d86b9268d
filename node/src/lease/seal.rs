//! `node seal`: a node that forgets its keys now and stays without them, over restarts, until it is unsealed.
//!
//! A sealed node is for whoever looks at a machine and does not like what he sees, and cannot decide yet. It holds no key,
//! no opened batch and no dealing, gives no share, and answers no client. It stays a member all the same: it votes, renews
//! its lock and opens the locks of others, so that sealing one node does not cost the cluster its way back. And it checks its
//! own shares of what is dealt anew: a revocation must not wait for it. What it opens for that is wiped a moment later. Its own op key,
//! storage key and share keys stay in memory: without them it could do none of that. To be rid of these as well, stop it.
//!
//! The flag lies in the vault and is durable before anybody is answered. In memory it bars the lease, so that everything that
//! needs one stops at the same moment.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorate_client::conn::Lane;
use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_raft::Replica;
use quorate_shares::ids::NodeId;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::base::phase::Phase;
use crate::messages::caller::Caller;
use crate::messages::peer::{PeerReply, PeerRequest};
use crate::node::Node;

/// How long a peer may take to say how it is.
const REPORT: Duration = Duration::from_millis(400);
/// How soon a sealed leader looks for a successor again.
const AGAIN: Duration = Duration::from_secs(1);

/// Seals this node or unseals it; durable when this returns. Repeating it changes nothing.
///
/// # Errors
/// If it has no cluster yet, or the vault cannot be written.
pub async fn set(node: &Arc<Node>, sealed: bool, caller: &Caller) -> Result<(), WireError> {
    let unfinished = node.with_vault(|vault| vault.founding.is_some()).unwrap_or(true);
    if unfinished {
        return Err(WireError::new(Code::NotServing, format!("{} is {}", node.name(), node.phase()))
            .hint("a node can be sealed once it belongs to a cluster"));
    }
    let _one = node.serving.sealing.lock().await;
    if sealed {
        // Keys go at once; whoever is answered knows, too, that it outlives this process.
        node.serving.lease.bar(true);
        node.settle_phase();
        node.forget_keys();
    }
    let written = node.update_vault(move |vault| vault.flags.sealed = sealed).await;
    written.map_err(|error| WireError::new(Code::Storage, error.to_string()).hint(error.hint()))?;
    node.serving.lease.bar(sealed);
    node.settle_phase();
    match sealed {
        true => warn!(%caller, "sealed: every key is wiped from memory, until `quorate node unseal`"),
        false => info!(%caller, "unsealed"),
    }
    Ok(())
}

/// Hands leadership over whenever this node leads while it is sealed: a leader without keys deals none. Never returns.
pub async fn step_aside(node: Arc<Node>, replica: Replica) {
    let (mut phases, mut leadership) = (node.serving.phases(), replica.leadership());
    loop {
        let leads = leadership.borrow_and_update().am_leader;
        let sealed = *phases.borrow_and_update() == Phase::Sealed;
        if leads && sealed {
            if let Some(successor) = successor(&node).await {
                info!(%successor, "sealed: another node shall lead");
                if let Err(error) = replica.transfer_leadership(successor).await {
                    warn!(%error, "leadership is not handed over");
                }
            }
            let _ = timeout(AGAIN, leadership.changed()).await;
            continue;
        }
        tokio::select! {
            _ = leadership.changed() => {}
            _ = phases.changed() => {}
        }
    }
}

/// The peer that can lead best: one that serves, and has applied the most.
async fn successor(node: &Arc<Node>) -> Option<NodeId> {
    let roster = node.roster();
    let peers = roster.members.iter().map(|member| member.node).filter(|&peer| peer != node.id());
    let reports = join_all(peers.map(|peer| async move {
        match node.peers().sessions.ask(peer, Lane::Ordinary, &PeerRequest::Report, REPORT).await {
            Ok(PeerReply::Report(report)) => Some((peer, report)),
            _ => None,
        }
    }));
    let able = reports.await.into_iter().flatten();
    let able = able.filter(|(_, report)| matches!(report.phase, Phase::Open | Phase::Serving));
    able.max_by_key(|(_, report)| (report.phase == Phase::Serving, report.applied)).map(|(peer, _)| peer)
}
