//! The messages on the local socket of a daemon, and the status that needs no credential.
//!
//! A connection to the socket carries one request in one frame. Any number of [`AdminProgress`] frames may precede the
//! answer, a [`Result`] of [`AdminResponse`] and [`super::WireError`]. If the client closes the connection, the work
//! continues.

use std::fmt;

use quorate_shares::ids::{ClusterId, NodeName};
use serde::{Deserialize, Serialize};

use super::{OperationStatus, Phase, Status};
use crate::cluster_file::ClusterFile;
use crate::identity::PublicKey;

/// Path of the local socket unless the configuration names another. The daemon and the command line share it.
pub const SOCKET: &str = "/run/quorate/quorated.sock";
/// The beginning of the text of every invitation.
pub const INVITATION_TEXT_PREFIX: &str = "UUpUM";
/// The body of a request on `quorate-boot/1` for the [`PublicStatus`]. It needs no credential.
pub const PUBLIC_STATUS: &[u8] = b"QPS1";

/// What a node tells every caller: its phase, and which nodes are missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicStatus {
    /// The phase of the node.
    pub phase: Phase,
    /// While the node is locked: number of pieces of its lock that it has. Otherwise: number of nodes in its quorum.
    pub have: u8,
    /// How many of these the node needs.
    pub need: u8,
    /// The nodes that it waits for.
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

/// What a person at the machine asks of its daemon.
#[derive(Debug, Serialize, Deserialize)]
pub enum AdminRequest {
    /// Founds a cluster. If founding already runs with the same options, the request waits for it.
    Init {
        /// Number of founders, including this node.
        founders: u8,
        /// How many shares rebuild a key; `None` for a majority.
        threshold: Option<u8>,
        /// Accept a single founder. Then one stolen disk opens everything.
        allow_solo: bool,
        /// Accept two founders. Then the loss of one disk loses every key.
        accept_no_redundancy: bool,
        /// The public key of the first operator.
        operator: PublicKey,
        /// Whose key it is, for people: 1 to 64 bytes without control characters.
        label: String,
    },
    /// Joins the cluster of an invitation. If joining already runs with the same invitation, the request waits for it.
    Join {
        /// The text of the invitation, as the inviting node printed it.
        invitation: String,
    },
    /// Asks for the state of this node.
    Status,
    /// Asks for the client file.
    Export,
    /// Seals this node, so that it forgets all keys and stays without them also after restarts, or unseals it.
    Seal {
        /// `true` to seal, `false` to unseal.
        sealed: bool,
    },
    /// Admits a member again at this node alone, for any length of its absence. It needs no quorum.
    Admit {
        /// The name of the member.
        name: NodeName,
    },
}

/// The progress of a long [`AdminRequest`]. Each message replaces the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminProgress {
    /// The texts of the open invitations. Each is a secret that can be used once, within an hour.
    pub invitations: Vec<String>,
    /// The step that runs now.
    pub step: String,
    /// The nodes that it waits for.
    pub waiting_for: Vec<String>,
}

/// The answer to an [`AdminRequest`] that succeeded.
#[derive(Debug, Serialize, Deserialize)]
pub enum AdminResponse {
    /// To [`AdminRequest::Init`], when keys can be created: the client file.
    Founded(ClusterFile),
    /// To [`AdminRequest::Join`], when the node serves.
    Joined {
        /// The name of this node.
        node: NodeName,
        /// The cluster that the node belongs to now.
        cluster: ClusterId,
    },
    /// To [`AdminRequest::Status`].
    Status(Box<LocalStatus>),
    /// To [`AdminRequest::Export`].
    Export(ClusterFile),
    /// To [`AdminRequest::Seal`], when the change is durable.
    Sealed {
        /// The name of this node.
        node: NodeName,
        /// Whether the node is sealed now.
        sealed: bool,
    },
    /// To [`AdminRequest::Admit`], when the change is durable.
    Admitted {
        /// The name of this node.
        at: NodeName,
    },
}

/// The state of a node, for a user who may open its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalStatus {
    /// The path of the data directory.
    pub data_directory: String,
    /// The name of the node, if it has one.
    pub name: Option<NodeName>,
    /// The cluster of the node, if it has one.
    pub cluster: Option<ClusterId>,
    /// The public part of the state.
    pub public: PublicStatus,
    /// The operation that runs, such as founding or joining.
    pub operation: Option<OperationStatus>,
    /// The state of the cluster, if this node knows it.
    pub full: Option<Status>,
    /// Where the daemon keeps secrets in memory.
    pub secret_memory: SecretMemory,
}

/// The memory that the system granted a daemon for its secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecretMemory {
    /// Pages that the kernel itself does not map (memfd_secret(2)).
    Hidden,
    /// Pages that are never swapped out (mlock(2)).
    Locked,
    /// Ordinary pages, which may be swapped out.
    Ordinary,
}
