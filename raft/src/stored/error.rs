//! What goes wrong below the consensus: with the database, a value in it, or a file.

use quorate_shares::ids::{ClusterId, NodeId};

use super::disk::SCHEMA;
use super::seal::SealProblem;
use crate::live::level::LEVEL;

/// Why the disk cannot be used any more: the node stops.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{path}: column family {family}, key {key}: {problem}; {}", self.hint())]
pub struct StorageError {
    /// The database or the snapshot file.
    pub path: String,
    /// The column family, or the kind of file.
    pub family: &'static str,
    /// The row, in hexadecimal or as text.
    pub key: String,
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
    /// A value that must exist does not.
    #[error("the value is missing")]
    Missing,
    /// RocksDB or the file system reports an error.
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
                "this node must not serve from it: `quorated --rebuild-state` repairs it; the other members go on without it"
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
        path: String,
        /// Why its first value does not open.
        problem: SealProblem,
    },
    /// Another process has it open.
    #[error("{path}: is open in another process; is this node running already?")]
    InUse { path: String },
    /// The directory belongs to another node or cluster.
    #[error("{path}: belongs to node {node} of cluster {cluster}")]
    WrongOwner { path: String, cluster: ClusterId, node: NodeId },
    /// Written by a newer program.
    #[error("{path}: has schema {found}, and this program knows {SCHEMA}; use the newer program")]
    NewerSchema { path: String, found: u32 },
    /// Written by a build from before the first release. Such builds changed the formats in place.
    #[error(
        "{path}: has schema {found}, of an earlier build, and this program knows {SCHEMA} only; use that build, or move the \
         data directories of all nodes away and found the cluster again"
    )]
    OlderSchema { path: String, found: u32 },
    /// Its feature level is one that this program does not know.
    #[error("{path}: the cluster has the feature level {found}, and this program knows {LEVEL}; use the newer program")]
    NewerLevel { path: String, found: u16 },
    /// Something in it is damaged, or RocksDB cannot open it.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The directory cannot be read or made.
    #[error("{path}: {source}")]
    Directory { path: String, source: std::io::Error },
    /// The timing is contradictory.
    #[error("timing: {0}")]
    Timing(String),
    /// openraft does not start.
    #[error("raft: {0}")]
    Raft(String),
}
