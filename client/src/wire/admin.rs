//! What a person at the machine says to its node, through the local socket; and the status that takes no token.
//!
//! One request per connection, in one frame. Any number of [`AdminProgress`] frames may come before the one answer, a
//! [`Result`] of [`AdminResponse`] and [`super::WireError`]. A client that leaves changes nothing: what was begun goes on.

use std::fmt;

use quorate_shares::ids::{ClusterId, NodeName};
use serde::{Deserialize, Serialize};

use super::{OperationStatus, Phase, Status};
use crate::cluster_file::ClusterFile;

/// Path of the local socket unless the configuration names another. The daemon and the command line share it.
pub const SOCKET: &str = "/run/quorate/quorated.sock";
/// The body of a request on `quorate-boot/1` for the [`PublicStatus`]; no token, and only what may be known by anybody.
pub const PUBLIC_STATUS: &[u8] = b"QPS1";

/// What a node tells anybody: how far it is, and who is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicStatus {
    /// How far it is.
    pub phase: Phase,
    /// Pieces of its lock that it has, while locked; otherwise nodes of the quorum that it stands in.
    pub have: u8,
    /// How many of them it needs.
    pub need: u8,
    /// Whom it waits for.
    pub waiting_for: Vec<NodeName>,
}

impl fmt::Display for PublicStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.phase)?;
        if matches!(self.phase, Phase::Locked | Phase::Open) {
            write!(f, ": have {} of {}", self.have, self.need)?;
        }
        let names: Vec<_> = self.waiting_for.iter().map(NodeName::as_str).collect();
        if names.is_empty() { Ok(()) } else { write!(f, ", waiting for {}", names.join(", ")) }
    }
}

/// What may be asked through the local socket.
#[derive(Debug, Serialize, Deserialize)]
pub enum AdminRequest {
    /// Founds a cluster. Repeated with the same options while founding is unfinished, it goes on waiting.
    Init {
        /// Nodes to found with, this one included.
        founders: u8,
        /// Shares that open a key; the majority unless said otherwise.
        threshold: Option<u8>,
        /// Accept one founder, whose disk alone holds everything.
        allow_solo: bool,
        /// Accept two founders, either of whom loses all keys with its disk.
        accept_no_redundancy: bool,
        /// [`super::Token::hash`] of the root token.
        token_hash: [u8; 32],
    },
    /// Joins the cluster of an invitation. Repeated with the same invitation, it goes on waiting.
    Join {
        /// As printed by the inviting node.
        invitation: String,
    },
    /// How this node is.
    Status,
    /// The client file.
    Export,
    /// Forget all keys and stay without until told otherwise, over restarts, or serve again.
    Seal {
        /// Which of the two.
        sealed: bool,
    },
    /// At this node alone, with or without a quorum: a member may come back, however long it was away.
    Admit {
        /// Its name.
        name: NodeName,
    },
}

/// News of an [`AdminRequest`] that takes a while. Each replaces the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminProgress {
    /// Invitations that are open now, one use each. They are secrets of an hour.
    pub invitations: Vec<String>,
    /// The step that is under way.
    pub step: String,
    /// Whom it waits for.
    pub waiting_for: Vec<String>,
}

/// What is answered through the local socket, unless it is a [`super::WireError`].
#[derive(Debug, Serialize, Deserialize)]
pub enum AdminResponse {
    /// To [`AdminRequest::Init`], once keys may exist.
    Founded(ClusterFile),
    /// To [`AdminRequest::Join`], once the node serves.
    Joined {
        /// Its name.
        node: NodeName,
        /// The cluster that it belongs to now.
        cluster: ClusterId,
    },
    /// To [`AdminRequest::Status`].
    Status(Box<LocalStatus>),
    /// To [`AdminRequest::Export`].
    Export(ClusterFile),
    /// To [`AdminRequest::Seal`], once it is durable.
    Sealed {
        /// This node.
        node: NodeName,
        /// What it is now.
        sealed: bool,
    },
    /// To [`AdminRequest::Admit`], once it is durable.
    Admitted {
        /// This node.
        at: NodeName,
    },
}

/// How one node is, for whoever may open its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalStatus {
    /// Where it keeps its data.
    pub data_directory: String,
    /// Its name, once it has one.
    pub name: Option<NodeName>,
    /// Its cluster, once it has one.
    pub cluster: Option<ClusterId>,
    /// What anybody may know.
    pub public: PublicStatus,
    /// What is under way: founding, joining.
    pub operation: Option<OperationStatus>,
    /// The state of the cluster, if this node knows it.
    pub full: Option<Status>,
    /// Where the daemon keeps secrets in memory.
    pub secret_memory: SecretMemory,
}

/// What the system gave a daemon for its secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecretMemory {
    /// Pages that not even the kernel maps.
    Hidden,
    /// Pages that are never swapped out.
    Locked,
    /// Nothing special: they may be swapped out.
    Ordinary,
}
