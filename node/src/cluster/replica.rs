//! The replica of a node: its directory and its options.

use std::path::PathBuf;
use std::sync::Arc;

use quorate_raft::{Options, Replica, Timing as RaftTiming};

use crate::cluster::roster_update::VaultGate;
use crate::node::Node;
use crate::peers::raft_link::PeerLink;

/// The directory of the replicated state.
pub fn directory(node: &Node) -> PathBuf {
    node.dir.path().join("state")
}

/// Opens the database and starts Raft on it.
///
/// # Errors
/// The reason, as a text.
pub async fn open(node: &Arc<Node>) -> Result<Replica, String> {
    Replica::open(options(node)?).await.map_err(|error| error.to_string())
}

/// The options to open the replica of this node with.
///
/// # Errors
/// If the storage keys are not open yet.
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
