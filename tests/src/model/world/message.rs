//! What travels over the virtual network: the real messages as bytes where the program has them.

use std::sync::Arc;

use quorate_node::messages::peer::Order;
use quorate_shares::ids::{Epoch, KeyName, KeyUid, KeyVersion, NodeId};
use quorate_shares::secret::Secret;
use sha2::{Digest, Sha256};

use crate::model::raft::RaftMessage;

/// One start of one node's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::model) struct Process {
    pub(in crate::model) node: NodeId,
    pub(in crate::model) boot: u64,
}

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum To {
    /// Whatever process of the node is there when it arrives.
    Node(NodeId),
    /// The process that asked. Another one never sees it: its connections are others.
    Process(Process),
    Clients,
}

#[derive(Clone)]
pub(in crate::model) struct Message {
    /// `None` from a client.
    pub(in crate::model) from: Option<Process>,
    pub(in crate::model) to: To,
    pub(in crate::model) body: Body,
}

#[derive(Clone)]
pub(in crate::model) enum Body {
    Raft(RaftMessage),
    /// A `PeerRequest`, encoded.
    Ask(u64, Arc<Vec<u8>>),
    /// The `PeerReply` to it, encoded.
    Tell(u64, Arc<Vec<u8>>),
    /// A `LockOpenRequest`, encoded.
    LockOpen(u64, Arc<Vec<u8>>),
    /// The `LockOpenReply` to it, encoded.
    LockOpened(u64, Arc<Vec<u8>>),
    Request(u64, Arc<Request>),
    Answer(u64, Arc<Answer>),
}

impl Body {
    /// What the trace says of it.
    pub(in crate::model) fn digest(&self, hash: &mut Sha256) {
        let (kind, id, bytes): (u8, u64, &[u8]) = match self {
            Self::Raft(message) => return message.digest(hash),
            Self::Ask(id, bytes) => (1, *id, bytes),
            Self::Tell(id, bytes) => (2, *id, bytes),
            Self::LockOpen(id, bytes) => (3, *id, bytes),
            Self::LockOpened(id, bytes) => (4, *id, bytes),
            Self::Request(id, _) => (5, *id, b""),
            Self::Answer(id, answer) => {
                hash.update(format!("{:?}", answer.said));
                (6, *id, b"")
            }
        };
        hash.update([kind]);
        hash.update(id.to_be_bytes());
        hash.update(bytes);
    }
}

/// What a client asks.
#[derive(Debug, Clone)]
pub(in crate::model) enum Request {
    Create { request: [u8; 16], name: KeyName },
    Rotate { request: [u8; 16], name: KeyName },
    Encrypt { name: KeyName, plaintext: Vec<u8> },
    Decrypt { ciphertext: String },
    Show { name: KeyName },
    Order(Order),
}

/// What a node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::model) enum Said {
    Made {
        uid: KeyUid,
        version: KeyVersion,
    },
    Ciphertext(String),
    Plaintext(Vec<u8>),
    /// The newest version that may encrypt.
    Newest(Option<KeyVersion>),
    /// The operation runs, or ran.
    Begun(Epoch),
    NotFound,
    BadCiphertext,
    Conflict,
    /// Nothing is said about keys: ask again, or another node.
    TryAgain,
}

/// An answer on its way to a client.
#[derive(Debug, Clone)]
pub(in crate::model) struct Answer {
    pub(in crate::model) said: Said,
    /// `Answered::good_for_ms`.
    pub(in crate::model) good_for_ms: u32,
    /// Only the invariants look at this: who answered, from which state, and until when it had a lease (virtual time).
    pub(in crate::model) fact: Fact,
}

#[derive(Debug, Clone, Copy)]
pub(in crate::model) struct Fact {
    pub(in crate::model) node: NodeId,
    pub(in crate::model) applied: u64,
    pub(in crate::model) lease_until_ms: u64,
}

/// The key that two processes export from the connection between them.
pub(in crate::model) fn exported(label: &[u8], one: Process, other: Process) -> Secret<32> {
    let mut hash = Sha256::new_with_prefix(label);
    for process in [one.min(other), one.max(other)] {
        hash.update(process.node.0.to_be_bytes());
        hash.update(process.boot.to_be_bytes());
    }
    Secret::take(&mut hash.finalize().into())
}
