//! The messages inside an op session (`quorate-peer/1`).
//!
//! Both sides of a session ask and answer. Each message is one enum variant, encoded by the bounded codec. Shares are sealed
//! once more under the session's exporter key ([`crate::keys::reconstruct`]), so a frame that leaks shows no share.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quorate_client::VERSION;
use quorate_client::wire::{Alarm, OldCopies, OperationStatus, Phase, Progress, WireError};
use quorate_raft::command::{Command, Invite};
use quorate_raft::{Flushed, LogPlace};
use quorate_shares::codec::{self, CodecError};
use quorate_shares::ids::{Epoch, KeyName, KeyUid, KeyVersion, KeyVersionId, NodeId, NodeName};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::messages::caller::Caller;
pub use crate::vault::lock_keys::LockState;

/// Longest encoded message between peers. Raft's appends are the largest messages.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Key versions named in one request at most.
pub const VERSIONS_MAX: usize = 1_000;

/// A request of one node to another.
#[derive(Serialize, Deserialize)]
pub enum PeerRequest {
    /// The first request on a session, from the side that dialled.
    Hello(Hello),
    /// Asks whether this session is alive.
    Ping,
    Raft(ByteBuf),
    /// Asks the leader for a lease.
    Lease,
    /// Asks a holder for its shares.
    Shares(SharesRequest),
    /// The leader asks a holder to open and check its shares of new versions.
    Verify(VerifyRequest),
    /// The leader asks a holder whether it opened and checked every record of an epoch.
    AckEpoch {
        epoch: Epoch,
        /// Entry up to which the holder must have applied.
        index: u64,
    },
    /// PREP of a lock renewal: the generation of the asker's durable lock, and the key number of the asked node in it.
    LockPrepare(LockState),
    /// COMMIT of a lock renewal: this lock is durable at the asker.
    LockCommit(LockState),
    /// A founder or a joiner asks how many shares a key will need, or needs.
    FoundingTerms,
    /// A founder's first lock is durable. Only the first founder answers this.
    FoundingLocked {
        /// The founding attempt that the lock belongs to.
        attempt: u32,
    },
    /// A member asks the leader to propose a change that the member vouches for, such as its lock report or the join of a node
    /// that proved its invitation.
    Propose(Box<Command>),
    /// A client's request that the asked node must do: because it leads, or because the request is about it.
    Forwarded(Box<Forwarded>),
    /// Asks for the asked node's [`Report`].
    Report,
    /// ERASED of a lock renewal: the asker holds no older key than this one for the asked node.
    LockErased(LockState),
    /// What is durable in the asker's Raft log now. Sent every second, so that an older copy of its disk is recognised.
    Flushed(Flushed),
    /// Asks for the roster in the asked node's vault.
    Roster,
}

/// A client's request, forwarded to the member that must do it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Forwarded {
    /// The caller, as the sender knows it. The sender checked the key.
    pub caller: Caller,
    pub request: ForwardedRequest,
}

/// The request that is forwarded. The sender has parsed and checked it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ForwardedRequest {
    /// To the leader: make a key or a version.
    Change(KeyChange),
    /// To the leader: remove or revoke nodes.
    Order(Order),
    /// To the leader: report the progress of an operation.
    Progress { operation: Epoch },
    /// To the leader: note an invitation. Its secret stays with the sender.
    Invite(Invite),
    /// To the leader: the node that joins with the invitation of this id replaces the member `gone`.
    Replace { invitation: [u8; 32], gone: NodeId },
    /// To one node: seal or unseal itself.
    Seal { sealed: bool },
    /// To each member: let `node` unlock again, however long it was away.
    Admit { node: NodeId },
    /// To each member: close the alarms of these codes; `None` means all.
    Disarm { codes: Option<BTreeSet<String>> },
    /// To the leader: record where a member listens.
    SetAddresses { name: NodeName, addresses: Vec<String> },
}

/// A member's answer to a [`Forwarded`] request.
#[derive(Debug, Serialize, Deserialize)]
pub enum ForwardedReply {
    /// To [`ForwardedRequest::Change`]: the version that was made.
    Made { uid: KeyUid, version: KeyVersion },
    /// To [`ForwardedRequest::Order`]: the epoch that the operation will bring. It names the operation.
    Begun { operation: Epoch },
    /// To [`ForwardedRequest::Progress`].
    Progress(Box<Progress>),
    /// To all other requests, once their effect is durable.
    Done,
}

/// A node's answer to a [`PeerRequest`].
#[derive(Serialize, Deserialize)]
pub enum PeerReply {
    /// The other side's hello.
    Hello(Hello),
    Pong,
    Raft(ByteBuf),
    /// The lease is confirmed. It counts from when it was asked for, once the asker has applied everything up to `index`.
    Lease {
        /// The leader's read index.
        index: u64,
    },
    /// Shares, each sealed under the session's exporter key.
    Shares(Vec<SealedShare>),
    /// The versions whose shares opened and matched their commitments.
    Verified(Vec<KeyVersionId>),
    /// This holder opened and checked every record of the epoch.
    EpochAck {
        /// How many of these records are reshared.
        reshared: u64,
    },
    /// The public half of a lock key that is durable here for the asker.
    LockKey {
        /// The number of the lock key.
        key_number: u64,
        /// X-Wing public key, 1216 bytes.
        public: ByteBuf,
    },
    /// The terms of the founding attempt.
    FoundingTerms {
        /// Shares that a key will need.
        threshold: u8,
    },
    Done,
    /// To [`PeerRequest::Forwarded`]: the answer, or the error for the client.
    Forwarded(Result<ForwardedReply, WireError>),
    Report(Report),
    /// The request is refused.
    Refused(PeerRefusal),
    /// A roster, in the bytes of the vault.
    Roster(ByteBuf),
}

/// The first message of each side of a session: which process it is, and what is flushed to its disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    pub node: NodeId,
    /// Drawn at each start of the process. Two nonces of one node at the same time mean two processes.
    pub boot_nonce: [u8; 32],
    /// What the node's Raft log holds durably; `None` before it has a log.
    pub flushed: Option<Flushed>,
    /// The highest feature level that the program knows.
    pub level: u16,
}

/// Asks for shares of some key versions of one epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SharesRequest {
    /// The epoch of the shares.
    pub epoch: Epoch,
    pub versions: Vec<KeyVersionId>,
    /// Names this request in the logs of both sides, and binds the reply to it.
    pub request: [u8; 16],
}

/// A holder's share, sealed for the session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SealedShare {
    pub uid: KeyUid,
    pub version: KeyVersion,
    /// The holder's share number.
    pub x: u8,
    /// Counter of the sealing nonce.
    pub counter: u64,
    /// ChaCha20-Poly1305 of the 32-byte share.
    pub sealed: ByteBuf,
}

/// Asks a holder to check its shares of versions that may not be used yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// The epoch of the records.
    pub epoch: Epoch,
    /// Entry up to which the holder must have applied.
    pub index: u64,
    /// Which versions, at most [`VERSIONS_MAX`].
    pub versions: Vec<KeyVersionId>,
}

/// A change of the keys that a client asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum KeyChange {
    Create {
        /// Repeating a request with the same id returns the first answer.
        request: [u8; 16],
        name: KeyName,
        /// Notes for people.
        tags: BTreeMap<String, String>,
    },
    /// Make the next version of a key.
    Rotate {
        request: [u8; 16],
        name: KeyName,
        /// The version that the caller believes to be the newest.
        expect: Option<KeyVersion>,
    },
}

impl KeyChange {
    /// The id of the request. A repetition with the same id does nothing new.
    pub fn request(&self) -> &[u8; 16] {
        match self {
            Self::Create { request, .. } | Self::Rotate { request, .. } => request,
        }
    }

    pub fn name(&self) -> &KeyName {
        match self {
            Self::Create { name, .. } | Self::Rotate { name, .. } => name,
        }
    }
}

/// An operation that a client asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Order {
    /// Removes a node in good order.
    Remove {
        /// Repeating a request with the same id returns the first answer.
        request: [u8; 16],
        name: NodeName,
        /// Go on even if only two nodes remain.
        accept_no_redundancy: bool,
        /// Nodes that are away and count as lost.
        abandon: Vec<NodeName>,
    },
    /// Revokes nodes: all members refuse them from now on.
    Revoke {
        request: [u8; 16],
        names: Vec<NodeName>,
        /// Nodes that are away and come back.
        expect_back: Vec<NodeName>,
    },
}

/// The state of a node, for the status that other nodes show.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub phase: Phase,
    /// Index of the last log entry that the node has applied.
    pub applied: u64,
    /// Generation of its lock.
    pub lock_generation: u64,
    /// How many peers can no longer open its older locks, if it knows.
    pub old_copies: Option<OldCopies>,
    /// The active epoch, as the node knows it.
    pub epoch: Epoch,
    pub alarms: Vec<Alarm>,
    /// The operation that it leads.
    pub operation: Option<OperationStatus>,
    /// The members that the node cannot dial at any recorded address.
    pub unreached: BTreeSet<NodeId>,
}

/// Why a peer refuses a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerRefusal {
    /// The first request on this session was not a hello.
    NoHello,
    /// The op key is not the one that the roster has for this node.
    NotAMember,
    /// Another process of the node has a session that is alive.
    DuplicateSession,
    /// The node's storage holds less than it reported before.
    StorageWentBack,
    /// The asked node does not answer this request in its phase.
    Phase(Phase),
    /// The asked node is not the leader; the named one may be.
    NotLeader(Option<NodeId>),
    /// The asked node leads, and cannot reach a quorum.
    NoQuorum,
    /// The asked node has no lease, so it gives no shares.
    NoLease,
    /// The epoch is not the active one, or the asker has no seat in it.
    WrongEpoch,
    /// More versions than one request may name.
    TooMany,
    /// The asked node is not the first founder, or the founding is over.
    NotFounding,
    /// The peer keeps as many lock keys for the asker as it may. The asker tries again later.
    Busy,
    /// The asked node is not caught up yet. The asker tries again.
    Behind,
    /// The storage failed. The asked node is about to stop.
    Storage,
    Malformed,
    /// The asker is being removed from the cluster, but that is not decided yet.
    Denied,
    /// The asker is not a member any more, since this log entry.
    Revoked(LogPlace),
    /// The replicated state refuses the change.
    State(quorate_raft::Refusal),
    /// The other node does not know the form of a message, or needs a feature level that this one does not know. The version of
    /// the other node.
    Unsupported(String),
}

impl fmt::Display for PeerRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHello => f.write_str("no hello came first"),
            Self::NotAMember => f.write_str("not a member"),
            Self::DuplicateSession => f.write_str("duplicate session: that node is alive in another process"),
            Self::StorageWentBack => f.write_str("storage went back in time: re-join"),
            Self::Phase(phase) => write!(f, "the node is {phase}"),
            Self::NotLeader(Some(leader)) => write!(f, "not the leader; node {leader} may be"),
            Self::NotLeader(None) => f.write_str("no leader is known"),
            Self::NoQuorum => f.write_str("the leader has no quorum"),
            Self::NoLease => f.write_str("the node has no lease"),
            Self::WrongEpoch => f.write_str("wrong epoch"),
            Self::TooMany => f.write_str("too many key versions in one request"),
            Self::NotFounding => f.write_str("not the first founder, or founded already"),
            Self::Busy => f.write_str("busy"),
            Self::Behind => f.write_str("not caught up yet"),
            Self::Storage => f.write_str("storage failed"),
            Self::Malformed => f.write_str("malformed message"),
            Self::Denied => f.write_str("this node is being removed from the cluster"),
            Self::Revoked(_) => f.write_str("this node was revoked"),
            Self::State(refusal) => refusal.fmt(f),
            Self::Unsupported(version) => {
                write!(f, "quorate {version} there and quorate {VERSION} here do not understand each other")
            }
        }
    }
}

/// Encodes a message. Our own messages always fit.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    codec::encode(message).expect("a message in memory encodes")
}

/// Decodes a request, or says why it is refused.
///
/// # Errors
/// [`PeerRefusal::Unsupported`] for a variant that this version does not know; [`PeerRefusal::Malformed`] for anything else but
/// one whole message.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, PeerRefusal> {
    codec::decode::<T, MESSAGE_BYTES_MAX>(bytes).map_err(|error| match error {
        CodecError::UnknownVariant => PeerRefusal::Unsupported(VERSION.to_owned()),
        _ => PeerRefusal::Malformed,
    })
}

/// Decodes the answer of another node. Whatever is wrong with it is a refusal by that node.
pub fn decode_reply(bytes: &[u8]) -> PeerReply {
    let reply = decode(bytes).map_err(|refusal| match refusal {
        PeerRefusal::Unsupported(version) => PeerRefusal::Unsupported(format!("newer than {version}")),
        other => other,
    });
    reply.unwrap_or_else(PeerReply::Refused)
}
