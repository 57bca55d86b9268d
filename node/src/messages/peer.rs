//! What nodes say to each other inside an op session (`quorate-peer/1`), and nothing else.
//!
//! Both sides of a session ask and answer. Every message is one enum variant, encoded by the bounded codec; shares travel
//! sealed once more under the session's exporter key ([`crate::keys::reconstruct`]), so a frame that leaks holds none in plain.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quorate_client::wire::{Alarm, OldCopies, OperationStatus, Phase, Progress, WireError};
use quorate_raft::command::{Command, Invite};
use quorate_raft::{Flushed, LogPlace};
use quorate_shares::codec;
use quorate_shares::ids::{Epoch, KeyName, KeyUid, KeyVersion, NodeId, NodeName};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::messages::caller::Caller;
pub use crate::vault::lock_keys::LockState;

/// Longest encoded message between peers; Raft's appends are the largest.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Key versions named in one request at most.
pub const VERSIONS_MAX: usize = 1_000;

/// What a node asks of another.
#[derive(Serialize, Deserialize)]
pub enum PeerRequest {
    /// First request on a session, from the side that dialled.
    Hello(Hello),
    /// Is this session alive?
    Ping,
    /// One Raft message.
    Raft(ByteBuf),
    /// Asks the leader for a lease.
    Lease,
    /// Asks a holder for its shares.
    Shares(SharesRequest),
    /// The leader asks a holder to open and check its shares of new versions.
    Verify(VerifyRequest),
    /// The leader asks a holder whether it opened and checked every record of an epoch.
    AckEpoch {
        /// The epoch.
        epoch: Epoch,
        /// Entry up to which the holder must have applied.
        index: u64,
    },
    /// PREP of a lock rotation: the asker's durable generation, and the key number that it uses of ours.
    LockPrepare(LockState),
    /// COMMIT of a lock rotation: durable at the asker.
    LockCommit(LockState),
    /// A founder or a joiner asks how many shares a key will need, or needs.
    FoundingTerms,
    /// A founder's first lock is durable; only the first founder hears this.
    FoundingLocked {
        /// The founding attempt that the lock belongs to.
        attempt: u32,
    },
    /// A member asks the leader to propose what it stands for itself, as its lock report or a joiner's proof.
    Propose(Box<Command>),
    /// What a client asked of the sender, and the asked node has to do: as the leader, or because it is the node that is meant.
    Forwarded(Box<Forwarded>),
    /// How are you?
    Report,
    /// ERASED of a lock rotation: no key older than this one is held for the asked node any more.
    LockErased(LockState),
    /// What is durable in the asker's Raft log now: each second, so that an older copy of its disk is known.
    Flushed(Flushed),
    /// Who is in the cluster, as the asked node's vault says.
    Roster,
}

/// A request of a client, on its way to the member that has to do it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Forwarded {
    /// Who asked, as the sender found out. The sender checked the token.
    pub caller: Caller,
    pub request: ForwardedRequest,
}

/// What is forwarded, in the form that the sender has checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ForwardedRequest {
    /// To the leader: make a key or a version.
    Change(KeyChange),
    /// To the leader: remove or revoke nodes.
    Order(Order),
    /// To the leader: how far an operation is.
    Progress { operation: Epoch },
    /// To the leader: note an invitation. Its secret stays with the sender.
    Invite(Invite),
    /// To the leader: the node that joins with the invitation of this id replaces the member `gone`.
    Replace { invitation: [u8; 32], gone: NodeId },
    /// To the node that is meant: seal or unseal itself.
    Seal { sealed: bool },
    /// To each member: `node` may come back, however long it was away.
    Admit { node: NodeId },
    /// To each member: close the alarms of these codes; `None` means all.
    Disarm { codes: Option<BTreeSet<String>> },
}

/// What a member answers to a [`Forwarded`] request.
#[derive(Debug, Serialize, Deserialize)]
pub enum ForwardedReply {
    /// To [`ForwardedRequest::Change`]: the version that was made.
    Made { uid: KeyUid, version: KeyVersion },
    /// To [`ForwardedRequest::Order`]: the epoch that the operation brings, which names it.
    Begun { operation: Epoch },
    /// To [`ForwardedRequest::Progress`].
    Progress(Box<Progress>),
    /// To all others, once it is durable.
    Done,
}

/// What a node answers.
#[derive(Serialize, Deserialize)]
pub enum PeerReply {
    /// The other side's hello.
    Hello(Hello),
    /// Alive.
    Pong,
    /// One Raft reply.
    Raft(ByteBuf),
    /// A lease counts from when it was asked for, once everything up to `index` is applied.
    Lease {
        /// The leader's read index.
        index: u64,
    },
    /// Shares, each sealed under the session's exporter key.
    Shares(Vec<SealedShare>),
    /// The versions whose shares opened and matched.
    Verified(Vec<(KeyUid, KeyVersion)>),
    /// This holder opened and checked every record of the epoch.
    EpochAck {
        /// How many of them were dealt anew.
        reshared: u64,
    },
    /// The public half of a lock key that is durable here for the asker.
    LockKey {
        /// Its number.
        keyno: u64,
        /// X-Wing public key, 1216 bytes.
        public: ByteBuf,
    },
    /// The terms of the founding attempt.
    FoundingTerms {
        /// Shares that a key will need.
        threshold: u8,
    },
    /// Done.
    Done,
    /// To [`PeerRequest::Forwarded`]: the answer, or what the client should hear.
    Forwarded(Result<ForwardedReply, WireError>),
    /// How this node is.
    Report(Report),
    /// Refused, by name.
    Refused(PeerRefusal),
    /// A roster, in the bytes of the vault.
    Roster(ByteBuf),
}

/// Who opens a session, and what is flushed to its disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// The node.
    pub node: NodeId,
    /// Made at each start of the process: two of them at once are two processes.
    pub boot_nonce: [u8; 32],
    /// What its Raft log holds durably; `None` before it has one.
    pub flushed: Option<Flushed>,
}

/// Asks for shares of some key versions of one epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SharesRequest {
    /// The epoch whose shares are meant.
    pub epoch: Epoch,
    /// Which versions.
    pub versions: Vec<(KeyUid, KeyVersion)>,
    /// Ties logs of both sides together, and the reply to this request.
    pub request: [u8; 16],
}

/// A holder's share, sealed for the session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SealedShare {
    /// Which key.
    pub uid: KeyUid,
    /// Which version.
    pub version: KeyVersion,
    /// The holder's share number.
    pub x: u8,
    /// Counter of the sealing nonce.
    pub counter: u64,
    /// ChaCha20-Poly1305 of the 32-byte share.
    pub sealed: ByteBuf,
}

/// Asks a holder to check its shares of versions that nobody may use yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// The epoch of the records.
    pub epoch: Epoch,
    /// Entry up to which the holder must have applied.
    pub index: u64,
    /// Which versions, at most [`VERSIONS_MAX`].
    pub versions: Vec<(KeyUid, KeyVersion)>,
}

/// A change of the keys, as a client asked for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum KeyChange {
    /// Make a key.
    Create {
        /// Repeating a request with the same id returns the first answer.
        request: [u8; 16],
        /// Its name.
        name: KeyName,
        /// Notes for people.
        tags: BTreeMap<String, String>,
    },
    /// Make the next version of a key.
    Rotate {
        /// As above.
        request: [u8; 16],
        /// The key.
        name: KeyName,
        /// The version that the caller believes to be the newest.
        expect: Option<KeyVersion>,
    },
}

impl KeyChange {
    /// The id that makes repeating it harmless.
    pub fn request(&self) -> &[u8; 16] {
        match self {
            Self::Create { request, .. } | Self::Rotate { request, .. } => request,
        }
    }

    /// The key's name.
    pub fn name(&self) -> &KeyName {
        match self {
            Self::Create { name, .. } | Self::Rotate { name, .. } => name,
        }
    }
}

/// An operation, as a client asked for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Order {
    /// Takes a node out in good order.
    Remove {
        /// Repeating a request with the same id returns the first answer.
        request: [u8; 16],
        /// Which.
        name: NodeName,
        /// Two nodes may remain.
        accept_no_redundancy: bool,
        /// Nodes that are away and count as lost.
        abandon: Vec<NodeName>,
    },
    /// Has nodes refused from now on.
    Revoke {
        /// As above.
        request: [u8; 16],
        /// Which.
        names: Vec<NodeName>,
    },
}

/// How a node is, for the status of others.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Its phase.
    pub phase: Phase,
    /// Entry up to which it has applied.
    pub applied: u64,
    /// Generation of its lock.
    pub lock_generation: u64,
    /// What has become of its older locks, if it knows.
    pub old_copies: Option<OldCopies>,
    /// The active epoch that it knows.
    pub epoch: Epoch,
    /// Its open alarms.
    pub alarms: Vec<Alarm>,
    /// The operation that it leads.
    pub operation: Option<OperationStatus>,
}

/// Why a peer refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerRefusal {
    /// No hello came first on this session.
    NoHello,
    /// The op key is not the one that the roster has for this node.
    NotAMember,
    /// The node's session under another boot nonce is alive.
    DuplicateSession,
    /// The storage holds less than was reported before.
    StorageWentBack,
    /// This phase does not hear such a request.
    Phase(String),
    /// The asked node is not the leader; the named one may be.
    NotLeader(Option<NodeId>),
    /// The asked node leads, and cannot reach a quorum.
    NoQuorum,
    /// The asked node has no lease, so it gives no shares.
    NoLease,
    /// The epoch is not the active one, or the asker holds no seat in it.
    WrongEpoch,
    /// More versions than one request may name.
    TooMany,
    /// Only the first founder hears this.
    NotFounding,
    /// The peer keeps as many lock keys for the asker as it may; try again later.
    Busy,
    /// Not caught up yet; try again.
    Behind,
    /// The storage failed; the node is about to stop.
    Storage,
    /// The message is malformed.
    Malformed,
    /// This node is being removed from the cluster; whether it is is not decided yet.
    Denied,
    /// This node is not a member any more, as of this entry of the log.
    Revoked(LogPlace),
    /// The replicated state refuses the change.
    State(quorate_raft::Refusal),
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
        }
    }
}

/// Encodes a message; our own always fit.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    codec::encode(message).expect("a message in memory encodes")
}

/// Decodes a message.
///
/// # Errors
/// [`PeerRefusal::Malformed`] for anything but one whole message.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, PeerRefusal> {
    codec::decode::<T, MESSAGE_BYTES_MAX>(bytes).map_err(|_| PeerRefusal::Malformed)
}
