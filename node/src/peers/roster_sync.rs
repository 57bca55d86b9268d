//! Asking for a newer roster: a node that was away may not know who leads now, nor how to reach it.
//!
//! Any unlocked member answers, whether its Raft runs or not. A node that boots asks everybody for at most a second before it
//! starts Raft, and goes on asking as long as it has no lease. What it learns it goes by in memory only, beside what its
//! vault says, and only until its own membership is confirmed by a lease: from then on its own log says who is there. So
//! whoever shows it a wrong roster can at most delay it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorate_client::conn::Lane;
use quorate_shares::ids::NodeId;
use tokio::time::{Instant, sleep};
use tracing::info;

use crate::messages::peer::{PeerReply, PeerRequest};
use crate::node::Node;
use crate::peers::session;
use crate::vault::Roster;

/// How long a node that boots asks before it goes on with what it knows.
const AT_BOOT: Duration = Duration::from_secs(1);
/// How long one peer may take to answer.
const ANSWER: Duration = Duration::from_millis(300);
/// Pause between two rounds at boot, while sessions open.
const ROUND: Duration = Duration::from_millis(20);
/// Pause between two rounds in the background.
const AGAIN: Duration = Duration::from_secs(1);

/// Asks before Raft starts. It ends early when a majority of the voters, this node included, has been heard: what is decided is
/// known to one of any majority.
pub async fn ask_at_boot(node: &Arc<Node>) {
    let start = Instant::now();
    let voters: BTreeSet<NodeId> = node.roster().voters().collect();
    let mut heard = BTreeSet::from([node.id()]);
    while start.elapsed() < AT_BOOT && voters.intersection(&heard).count() <= voters.len() / 2 {
        ask(node, &mut heard).await;
        sleep(ROUND).await;
    }
}

/// Asks whenever there is no lease. Never returns.
pub async fn keep_asking(node: Arc<Node>) {
    loop {
        sleep(AGAIN).await;
        if node.serving.lease.is_valid() {
            node.enrolment().use_newer_roster(None);
        } else {
            ask(&node, &mut BTreeSet::from([node.id()])).await;
        }
    }
}

/// Asks everybody that is reached and was not heard yet.
async fn ask(node: &Arc<Node>, heard: &mut BTreeSet<NodeId>) {
    let roster = node.roster();
    let peers = roster.members.iter().map(|member| member.node).filter(|peer| !heard.contains(peer));
    let asking = peers.map(|peer| async move {
        match node.peers().sessions.ask(peer, Lane::Ordinary, &PeerRequest::Roster, ANSWER).await {
            Ok(PeerReply::Roster(bytes)) => Some((peer, Roster::parse(&bytes).ok()?)),
            _ => None,
        }
    });
    for (peer, shown) in join_all(asking).await.into_iter().flatten() {
        heard.insert(peer);
        if node.enrolment().is_newer(&shown) {
            info!(%peer, index = shown.log_id.index, "has a newer roster");
            node.enrolment().use_newer_roster(Some(shown));
            node.enrolment().close_sessions_with_strangers();
            session::keep_all(node);
        }
    }
}
