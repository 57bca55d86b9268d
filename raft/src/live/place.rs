//! What names an entry of the log, and what names a vote.

use quorate_shares::ids::NodeId;
use serde::{Deserialize, Serialize};

/// The place of an entry in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogPlace {
    pub term: u64,
    pub node: NodeId,
    pub index: u64,
}

/// A vote: the newest term that this node knows, the node that it voted for, and whether a quorum granted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ballot {
    pub term: u64,
    /// The candidate or leader.
    pub node: NodeId,
    /// Granted by a quorum.
    pub committed: bool,
}
