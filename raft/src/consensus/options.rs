//! What a replica is opened with.

use std::path::PathBuf;
use std::sync::Arc;

use openraft::{Config, SnapshotPolicy};
use quorate_shares::ids::{ClusterId, NodeId};

use crate::consensus::network::Link;
use crate::live::voters::Gate;
use crate::stored::error::OpenError;
use crate::stored::seal::StorageKeys;

/// Who, where, and how to reach the others.
pub struct Options {
    /// This node's id. It is never reused: a node that lost its disk joins again under a new id.
    pub node: NodeId,
    pub cluster: ClusterId,
    /// The data directory. If it holds no database, one is made.
    pub dir: PathBuf,
    /// What seals every value.
    pub keys: StorageKeys,
    pub timing: Timing,
    /// Carries messages to the other members.
    pub link: Arc<dyn Link>,
    /// Keeps the denials.
    pub gate: Arc<dyn Gate>,
}

/// Intervals and limits. The defaults suit one site; tests use shorter ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// How often the leader sends a heartbeat.
    pub heartbeat_ms: u64,
    /// A follower that hears no leader stands for election after a random time between this and `election_max_ms`.
    pub election_min_ms: u64,
    /// See [`Timing::election_min_ms`].
    pub election_max_ms: u64,
    /// How long one request with entries may take, including the sync.
    pub append_ms: u64,
    /// How long a whole snapshot may take.
    pub snapshot_ms: u64,
    /// A snapshot is built after this many entries.
    pub snapshot_every: u64,
    /// Entries that stay in the log after a snapshot, so that a node that was away for a short time needs no snapshot.
    pub entries_kept: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_ms: 100,
            election_min_ms: 300,
            election_max_ms: 600,
            append_ms: 5_000,
            snapshot_ms: 600_000,
            snapshot_every: 10_000,
            entries_kept: 2_000,
        }
    }
}

/// With pre-vote, so that a node that was away does not disturb the others. A restarted leader does not lead again without an
/// election, because rows are written without a sync.
///
/// openraft uses the upper timeout also as the time for which a follower trusts its leader in any case, and adds the random
/// timeout to it. So openraft gets half of our upper limit. With the defaults, a follower stands for election after 300 ms plus
/// a random time between 150 and 300 ms.
pub(crate) fn config(timing: &Timing) -> Result<Config, OpenError> {
    let belief = timing.election_max_ms / 2;
    let drawn_min = timing.election_min_ms.saturating_sub(belief).max(belief / 2);
    let config = Config {
        cluster_name: "quorate".to_owned(),
        heartbeat_interval: timing.heartbeat_ms,
        election_timeout_min: drawn_min,
        election_timeout_max: belief,
        install_snapshot_timeout: timing.snapshot_ms,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(timing.snapshot_every),
        max_in_snapshot_log_to_keep: timing.entries_kept,
        replication_lag_threshold: timing.snapshot_every.max(timing.entries_kept) * 2,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        backoff: "50ms..500ms".to_owned(),
        ..Config::default()
    };
    config.validate().map_err(|error| OpenError::Timing(error.to_string()))
}
