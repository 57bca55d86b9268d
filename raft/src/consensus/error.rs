//! What can go wrong, one type per call.
//!
//! Refusals of commands are answers, and are in [`crate::live::refusal`].

use quorate_shares::ids::NodeId;
use serde::{Deserialize, Serialize};

use super::network::LinkError;
use crate::live::command::COMMAND_BYTES_MAX;
use crate::live::refusal::Refusal;
use crate::stored::error::StorageError;

/// Why a state was not taken from another replica.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// It cannot be reached, or did not answer in time.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It is behind, gives its state to another replica, or could not read or send it.
    #[error("node {0} does not give its state now")]
    NotGiven(NodeId),
    /// It answered something else.
    #[error("node {0} gave a reply that does not fit the request")]
    Malformed(NodeId),
    /// The state that came could not be written here.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why a command has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ProposeError {
    /// Nothing was proposed: this node does not lead. Try again at the leader, or soon.
    #[error("this node does not lead")]
    NotLeader { leader: Option<NodeId> },
    /// Leadership was lost meanwhile: the command may or may not be applied. Propose it again; it happens once.
    #[error("leadership was lost while the command was on its way")]
    Unknown {
        /// The next leader.
        leader: Option<NodeId>,
    },
    /// It was applied, and refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It cannot be proposed.
    #[error("a command of {bytes} bytes is larger than {COMMAND_BYTES_MAX}")]
    TooLarge { bytes: usize },
    /// A member may not be able to read it: the cluster has a lower feature level.
    #[error("the cluster has the feature level {level}, and this needs level {needs}: update every node first")]
    AboveLevel { level: u16, needs: u16 },
    /// Storage failed, or the replica is shut down. The command may or may not be applied.
    #[error("this replica has stopped")]
    Stopped,
}

/// Why there is no read index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ReadIndexError {
    /// This node does not lead.
    #[error("this node does not lead")]
    NotLeader { leader: Option<NodeId> },
    /// No quorum confirmed that this node leads.
    #[error("no quorum confirmed this leader")]
    NoQuorum,
    /// Storage failed, or the replica is shut down.
    #[error("this replica has stopped")]
    Stopped,
}

/// Why an index was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    #[error("index {index} was not applied in time")]
    Timeout { index: u64 },
    /// The replica is shut down.
    #[error("this replica has stopped")]
    Stopped,
}

/// Why a cluster was not founded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitializeError {
    /// It has members already, and they are not these.
    #[error("this replica belongs to a cluster already")]
    Initialized,
    /// The founders do not include this node.
    #[error("this node is not among the founders")]
    NotAMember,
    /// Storage failed, or the replica is shut down.
    #[error("this replica has stopped")]
    Stopped,
}

/// The replica is shut down, or its storage failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// After [`Replica::shutdown`](crate::Replica::shutdown).
    #[error("this replica has stopped")]
    Stopped,
    /// A snapshot is being installed: try again soon.
    #[error("a snapshot is being installed")]
    Busy,
    /// The node must stop.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
