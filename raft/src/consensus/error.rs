//! What can go wrong, one type per operation.
//!
//! Refusals of commands are not among them: those are answers, and stand in [`crate::live::refusal`].

use std::collections::BTreeSet;

use quorate_shares::ids::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

use crate::consensus::network::LinkError;
use crate::live::command::COMMAND_BYTES_MAX;
use crate::live::refusal::Refusal;
use crate::live::voters::Purpose;
use crate::stored::disk::SCHEMA;
use crate::stored::seal::SealProblem;

/// Why the disk cannot be used any more: the node stops.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{path}: column family {family}, key {key}: {problem}; {}", self.hint())]
pub struct StorageError {
    /// The database or the snapshot file.
    pub path: String,
    /// Which part of it.
    pub family: &'static str,
    /// The row, in hexadecimal or as text.
    pub key: String,
    /// What is wrong.
    pub problem: StorageProblem,
}

/// What is wrong with a stored value.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageProblem {
    /// It does not open.
    #[error(transparent)]
    Sealed(#[from] SealProblem),
    /// It opened, but is not what the key says.
    #[error("the value opened but is malformed")]
    Malformed,
    /// It should be there.
    #[error("the value is missing")]
    Missing,
    /// RocksDB's own checks failed, or the file system did.
    #[error("{0}")]
    Database(String),
}

impl StorageError {
    fn hint(&self) -> &'static str {
        match (&self.problem, self.family) {
            (StorageProblem::Database(_), _) => "check the disk; the other members go on without this node",
            (_, "log" | "meta") => {
                "this node must not vote again: it needs `quorate node replace`; the other members go on without it"
            }
            _ => {
                "this node must not serve from it: `quorated --rebuild-state` mends it; the other members go on without it"
            }
        }
    }
}

impl From<StorageError> for std::io::Error {
    fn from(error: StorageError) -> Self {
        Self::other(error)
    }
}

/// Why the database did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The first value does not open: this is another node's directory, or another key.
    #[error("{path}: the storage key does not open this database ({problem}); is this the directory of this node?")]
    WrongStorageKey {
        /// The database.
        path: String,
        /// What its first value says.
        problem: SealProblem,
    },
    /// Another process has it open.
    #[error("{path}: is open in another process; is this node running already?")]
    InUse {
        /// The database.
        path: String,
    },
    /// The directory belongs to another node or cluster.
    #[error("{path}: belongs to node {node} of cluster {cluster}")]
    WrongOwner {
        /// The database.
        path: String,
        /// Its cluster.
        cluster: ClusterId,
        /// Its node.
        node: NodeId,
    },
    /// Written by a newer program.
    #[error("{path}: has schema {found}, and this program knows {SCHEMA}; use the newer program")]
    NewerSchema {
        /// The database.
        path: String,
        /// Its schema.
        found: u32,
    },
    /// Something in it is damaged, or RocksDB cannot open it.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The directory cannot be read or made.
    #[error("{path}: {source}")]
    Directory {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The timing is contradictory.
    #[error("timing: {0}")]
    Timing(String),
    /// openraft does not start.
    #[error("raft: {0}")]
    Raft(String),
}

/// Why a state was not taken from another replica.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// It cannot be reached, or did not answer in time.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It is behind, busy giving its state, or could not read or send it.
    #[error("node {0} does not give its state now")]
    NotGiven(NodeId),
    /// It answered something else.
    #[error("node {0} gave a reply that is not one to the request")]
    Malformed(NodeId),
    /// What came could not be written here.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why a command has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ProposeError {
    /// Nothing was proposed: this node does not lead. Try again there, or soon.
    #[error("this node does not lead")]
    NotLeader {
        /// Who does.
        leader: Option<NodeId>,
    },
    /// Leadership was lost meanwhile: the command may be applied yet. Propose it again, it happens once.
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
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Storage failed, or the replica is shut down; the command may be applied yet.
    #[error("this replica has stopped")]
    Stopped,
}

/// Why the voters or learners were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Nothing was proposed: this node does not lead.
    #[error("this node does not lead")]
    NotLeader {
        /// Who does.
        leader: Option<NodeId>,
    },
    /// Nothing was proposed: too few of the old or of the new voters can be reached. Try again when these are back.
    #[error("waiting for {}: without them the change would have no majority", listed(.missing))]
    Waiting {
        /// Those that cannot be reached; not all of them may be needed.
        missing: BTreeSet<NodeId>,
    },
    /// Nothing was proposed, and never will be: without those who are to be denied there is no majority, whoever is there.
    #[error("no majority is possible without {}, who are denied or to be denied", listed(.denied))]
    NeedsTheDenied {
        /// Whose consent would be needed.
        denied: BTreeSet<NodeId>,
    },
    /// The leader is among those who leave: it must let another one lead first.
    #[error("the leader is among those who leave: transfer leadership first")]
    LeaderLeaves,
    /// A new voter must follow as a learner first.
    #[error("node {node} is not a learner yet")]
    NotALearner {
        /// Who.
        node: NodeId,
    },
    /// A voter is not let go like a learner.
    #[error("node {node} is a voter")]
    IsAVoter {
        /// Who.
        node: NodeId,
    },
    /// The new voters are not what such a change makes of the old ones.
    #[error("the new voters are not what `{purpose}` makes of the present ones")]
    Unfit {
        /// What was asked for.
        purpose: Purpose,
    },
    /// Another change is not committed yet, or came in between. Try again soon.
    #[error("another change of the membership is under way")]
    UnderWay,
    /// Leadership was lost meanwhile; the change may come about yet. Ask for it again: it happens once.
    #[error("leadership was lost while the voters were changing")]
    Unknown {
        /// The next leader.
        leader: Option<NodeId>,
    },
    /// Storage failed, or the replica is shut down.
    #[error("this replica has stopped")]
    Stopped,
}

impl ChangeError {
    /// Whether to ask again is useless: the caller must ask for something else.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::NeedsTheDenied { .. } | Self::IsAVoter { .. } | Self::Unfit { .. } | Self::Stopped)
    }
}

fn listed(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(|node| format!("node {node}")).collect::<Vec<_>>().join(", ")
}

/// Why there is no read index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ReadIndexError {
    /// This node does not lead.
    #[error("this node does not lead")]
    NotLeader {
        /// Who does.
        leader: Option<NodeId>,
    },
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
    /// Not in time.
    #[error("index {index} was not applied in time")]
    Timeout {
        /// Waited for.
        index: u64,
    },
    /// The replica is shut down.
    #[error("this replica has stopped")]
    Stopped,
}

/// Why a cluster was not founded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitializeError {
    /// It has members already, and other ones.
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
