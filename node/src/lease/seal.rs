//! `node seal`: the node wipes its keys now and stays without them, over restarts, until it is unsealed.
//!
//! Scenario: an operator sees something suspicious on a machine, and cannot decide yet what to do. A sealed node holds no
//! key, no open batch and no dealing. It gives no share, and answers no client. But it stays a member: it votes, renews its
//! lock and opens the locks of other nodes, so the cluster can still come back after a loss of power. It also checks its own
//! shares of new and reshared keys, because a revocation must not wait for it. What it opens for that check is wiped a moment
//! later. Its op key, storage key and share keys stay in memory, because all of this needs them. To wipe these as well, stop
//! the node.
//!
//! The flag lies in the vault and is durable before the operator gets an answer. In memory it bars the lease, so everything
//! that needs a lease stops at the same moment.

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

/// How long a peer may take to report its status.
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
    let _guard = node.serving.sealing.lock().await;
    if sealed {
        // The keys are wiped at once. The answer waits for the vault, so the seal then outlives this process.
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

/// Transfers leadership whenever this node leads while it is sealed: a leader without keys cannot deal any. Never returns.
pub async fn step_aside(node: Arc<Node>, replica: Replica) {
    let (mut phases, mut leadership) = (node.serving.phases(), replica.leadership());
    loop {
        let leads = leadership.borrow_and_update().am_leader;
        let sealed = *phases.borrow_and_update() == Phase::Sealed;
        if leads && sealed {
            if let Some(successor) = successor(&node).await {
                info!(%successor, "sealed: leadership goes to another node");
                if let Err(error) = replica.transfer_leadership(successor).await {
                    warn!(%error, "leadership not transferred");
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

/// The best next leader: a serving peer before an open one, then the peer that has applied the most entries.
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
