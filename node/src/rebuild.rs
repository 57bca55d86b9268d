//! `--rebuild-state`: a node whose state is damaged takes the state from another node before it uses its own.
//!
//! The lock is open by then, so this node has its op key and the storage key. To all others it is still locked: it gives its
//! pieces to peers that boot, and answers neither Raft nor clients. It does not matter which replica gives the state
//! ([`quorate_raft::Rebuild`] says why), so the node asks all peers in turn, without end.

use std::sync::Arc;
use std::time::Duration;

use quorate_raft::{Rebuild, RebuildError};
use quorate_shares::ids::NodeId;
use tokio::time::sleep;
use tracing::{debug, info};

use crate::cluster::replica;
use crate::node::Node;
use crate::peers::session;

/// Pause between two rounds.
const AGAIN: Duration = Duration::from_millis(500);

/// Replaces the state. When this returns, the database is closed, and can be opened as after any crash.
///
/// # Errors
/// A text that says what is damaged besides the state, or that the disk fails.
pub async fn run(node: &Arc<Node>) -> Result<(), String> {
    let options = replica::options(node)?;
    let rebuild = Rebuild::begin(options).await.map_err(|error| format!("the state cannot be rebuilt: {error}"))?;
    let rebuild = Arc::new(rebuild);
    info!("log and vote are whole; taking the state from another node");
    node.database.rebuild_with(Some(Arc::clone(&rebuild)));
    session::keep_all(node);
    let peers: Vec<NodeId> = node.roster().members.iter().map(|member| member.node).collect();
    loop {
        for &peer in peers.iter().filter(|&&peer| peer != node.id()) {
            match rebuild.take_from(peer).await {
                Ok(()) => {
                    info!(%peer, "the state is taken over");
                    node.database.rebuild_with(None);
                    return Ok(());
                }
                Err(RebuildError::Storage(error)) => return Err(error.to_string()),
                Err(reason) => debug!(%peer, %reason, "no state yet"),
            }
        }
        sleep(AGAIN).await;
    }
}
