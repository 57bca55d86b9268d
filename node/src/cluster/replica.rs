//! The replica of a node: where it lies, and what it is opened with.

use std::path::PathBuf;
use std::sync::Arc;

use quorate_raft::{Options, Replica, Timing as RaftTiming};

use crate::cluster::roster_update::VaultGate;
use crate::node::Node;
use crate::peers::raft_link::PeerLink;

/// Where the replicated state is kept.
pub fn directory(node: &Node) -> PathBuf {
    node.dir.path().join("state")
}

/// Opens the database and Raft on it.
///
/// # Errors
/// In words.
pub async fn open(node: &Arc<Node>) -> Result<Replica, String> {
    Replica::open(options(node)?).await.map_err(|error| error.to_string())
}

/// What the replica of this node is opened with.
///
/// # Errors
/// In words.
pub fn options(node: &Arc<Node>) -> Result<Options, String> {
    let keys = node.enrolment().identity.storage_keys()?;
    let timing = &node.config.timing;
    Ok(Options {
        node: node.id(),
        cluster: node.cluster(),
        dir: directory(node),
        keys,
        timing: RaftTiming {
            heartbeat_ms: timing.heartbeat_ms,
            election_min_ms: timing.election_ms,
            election_max_ms: 2 * timing.election_ms,
            snapshot_every: timing.snapshot_every,
            entries_kept: timing.entries_kept,
            ..RaftTiming::default()
        },
        link: PeerLink::new(node),
        gate: VaultGate::new(node),
    })
}
