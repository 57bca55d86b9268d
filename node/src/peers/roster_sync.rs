//! Asking for a newer roster: a node that was away may not know the present leader, or how to reach it.
//!
//! Any unlocked member answers, whether its Raft runs or not. A node that boots asks all peers for at most a second before it
//! starts Raft. It goes on asking as long as it has no lease. A newer roster is kept in memory only, and is used only until the node has
//! a lease. From then on its own log says who the members are. A peer may show a wrong roster, so it only adds members and addresses
//! to those of the vault ([`Roster::merged_with`]): by it no member is refused, and none is told that it was revoked.

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

/// How long a node that boots asks before it goes on with the roster that it has.
const AT_BOOT: Duration = Duration::from_secs(1);
/// How long one peer may take to answer.
const ANSWER: Duration = Duration::from_millis(300);
/// Pause between two rounds at boot, while sessions open.
const ROUND: Duration = Duration::from_millis(20);
/// Pause between two rounds in the background.
const AGAIN: Duration = Duration::from_secs(1);

/// Asks before Raft starts. It ends early once a majority of the voters has answered, this node included: in every majority
/// there is a node that knows each committed change.
pub async fn ask_at_boot(node: &Arc<Node>) {
    let start = Instant::now();
    let voters: BTreeSet<NodeId> = node.roster().voters().collect();
    let mut answered = BTreeSet::from([node.id()]);
    while start.elapsed() < AT_BOOT && voters.intersection(&answered).count() <= voters.len() / 2 {
        ask(node, &mut answered).await;
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

/// Asks all peers with a session that have not answered yet.
async fn ask(node: &Arc<Node>, answered: &mut BTreeSet<NodeId>) {
    let roster = node.roster();
    let peers = roster.members.iter().map(|member| member.node).filter(|peer| !answered.contains(peer));
    let asking = peers.map(|peer| async move {
        match node.peers().sessions.ask(peer, Lane::Ordinary, &PeerRequest::Roster, ANSWER).await {
            Ok(PeerReply::Roster(bytes)) => Some((peer, Roster::parse(&bytes).ok()?)),
            _ => None,
        }
    });
    for (peer, shown) in join_all(asking).await.into_iter().flatten() {
        answered.insert(peer);
        if node.enrolment().is_newer(&shown) {
            info!(%peer, index = shown.log_id.index, "a peer has a newer roster");
            node.enrolment().use_newer_roster(Some(shown));
            node.enrolment().close_sessions_with_strangers();
            session::keep_all(node);
        }
    }
}
