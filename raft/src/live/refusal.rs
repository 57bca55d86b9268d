//! Why a change is refused. Each reason has its own name.
//!
//! A refusal is a deterministic answer: each replica reaches the same one from the same log. It is not a failure of the node;
//! those are a [`StorageError`](crate::StorageError), and stop it.

use quorate_shares::ids::{BatchId, Epoch, KeyUid, KeyVersion, NodeId};
use serde::{Deserialize, Serialize};

/// Why a change is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    // -- founding
    /// Only [`Change::Found`](crate::live::command::Change::Found) is possible yet.
    #[error("the cluster is not founded yet")]
    NotFounded,
    /// A cluster is founded once.
    #[error("the cluster is founded already")]
    AlreadyFounded,
    /// No members, or more than [`MEMBERS_MAX`](crate::live::state::MEMBERS_MAX).
    #[error("a cluster has 1 to {max} members, not {members}", max = crate::live::state::MEMBERS_MAX)]
    MemberCount {
        /// How many were given.
        members: usize,
    },
    /// Node ids start at 1 and are never shared.
    #[error("node id {node} is zero or given twice")]
    BadNodeId { node: NodeId },
    /// Two members with one name.
    #[error("the name of node {node} is taken")]
    NodeNameTaken {
        /// The second of the two.
        node: NodeId,
    },
    /// Two members with one identity.
    #[error("one of its identity keys belongs, or belonged, to another member")]
    IdentityTaken {
        /// The second of the two.
        node: NodeId,
    },
    /// Not an X-Wing public key, or generation zero.
    #[error("the share key of node {node} is malformed")]
    BadShareKey { node: NodeId },
    /// No address, too many, or one that is not `host:port`.
    #[error("the addresses of node {node} are malformed")]
    BadAddresses { node: NodeId },
    /// One member without `allow_solo`.
    #[error("one node alone holds everything on one disk")]
    SoloNotAllowed,
    /// Two members without `accept_no_redundancy`.
    #[error("with two nodes the loss of one disk loses every key")]
    NoRedundancyNotAccepted,
    /// Below a majority, or above the number of holders.
    #[error("a threshold of {threshold} of {holders} is not between a majority and all of them")]
    BadThreshold { threshold: u8, holders: usize },
    /// Shorter than [`LEASE_MS_MIN`](crate::live::state::LEASE_MS_MIN), or longer than
    /// [`LEASE_MS_MAX`](crate::live::state::LEASE_MS_MAX).
    #[error("a lease of {lease_ms} ms is not between {min} and {max} ms",
        min = crate::live::state::LEASE_MS_MIN, max = crate::live::state::LEASE_MS_MAX)]
    BadLease { lease_ms: u64 },

    /// The key of the first operator has small order or a second encoding; or its label is empty, too long, or has control
    /// characters.
    #[error("the key or the label of the operator is malformed")]
    BadOperator,

    // -- orders
    /// The signature is not that of the signer.
    #[error("the signature of the order is not valid")]
    BadSignature,
    /// For another cluster, or for the same one before it was restored from a backup.
    #[error("the order is for another cluster")]
    OtherCluster,
    /// Its signer is no operator of this cluster.
    #[error("the cluster does not know the key that signed the order")]
    UnknownSigner,
    /// It came too late.
    #[error("the order has expired")]
    Expired {
        /// The state's time.
        now_ms: u64,
    },
    /// It would be valid for longer than an order may be: the signer's clock is ahead.
    #[error("the order was signed by a clock that is ahead of the cluster's")]
    IssuedAhead {
        /// The state's time.
        now_ms: u64,
    },
    /// One node does this by itself, and not the cluster.
    #[error("the order is for one node, and not for the cluster")]
    NotForTheCluster,
    /// [`ORDERS_MAX`](crate::live::state::ORDERS_MAX) outcomes are kept.
    #[error("too many orders at a time: {max} have not expired", max = crate::live::state::ORDERS_MAX)]
    TooManyOrders,
    /// The leader filled in other versions than the order makes.
    #[error("the versions are not those that were ordered")]
    WrongFilling,
    /// The member with this number has another name.
    #[error("node {node} has another name")]
    OtherName { node: NodeId },
    /// [`OPERATORS_MAX`](crate::live::state::OPERATORS_MAX) reached.
    #[error("the cluster has {max} operators, which is the limit", max = crate::live::state::OPERATORS_MAX)]
    OperatorsLimit,
    /// The key is an operator's already, under another label.
    #[error("the key is known under another label")]
    OperatorKnown,
    #[error("no operator has this key")]
    UnknownOperator,
    /// Without operators, the cluster takes no orders, not even one that adds an operator.
    #[error("the last operator stays")]
    LastOperator,

    // -- epochs
    /// The epoch is not the one after the newest.
    #[error("epoch {given} is not the next one, which is {next}")]
    NotNextEpoch { given: Epoch, next: Epoch },
    /// One reconfiguration at a time.
    #[error("epoch {pending} is still pending")]
    EpochPending {
        /// The one that is open.
        pending: Epoch,
    },
    /// The epoch is not in the phase that the change needs: a delayed command never reaches a closed epoch.
    #[error("epoch {given} is not open for this{}", .active.map(|epoch| format!("; epoch {epoch} is active")).unwrap_or_default())]
    WrongEpoch {
        given: Epoch,
        /// The ACTIVE one, if any.
        active: Option<Epoch>,
    },
    /// The committee is not sorted by node, names a node that is no member, names another share key than the registered one,
    /// or has another hash.
    #[error("the committee is not the one of this state")]
    StaleCommittee,
    /// The node holds no shares of the epoch.
    #[error("node {node} is no holder of epoch {epoch}")]
    NotAHolder { node: NodeId, epoch: Epoch },
    /// The holder claims more records than there are.
    #[error("epoch {epoch} has {records} records, fewer than acknowledged")]
    AckAhead {
        epoch: Epoch,
        /// How many it has.
        records: u64,
    },
    /// Too few holders acknowledged the epoch.
    #[error("{have} of {need} holders acknowledged epoch {epoch}")]
    AcksMissing { epoch: Epoch, have: usize, need: usize },
    /// Live key versions lack a record in the epoch.
    #[error("{missing} key versions have no record in epoch {epoch}")]
    VersionsUncovered { epoch: Epoch, missing: u64 },

    // -- batches and records
    /// Not a batch header.
    #[error("malformed batch header")]
    MalformedBatch,
    /// Another batch has this identifier.
    #[error("batch {batch} exists with other contents")]
    BatchTaken { batch: BatchId },
    /// The header's cluster, dealer or holders are not this state's.
    #[error("batch {batch} was made for another cluster or committee")]
    BatchMismatch { batch: BatchId },
    /// Records must follow their batch.
    #[error("batch {batch} is not open")]
    UnknownBatch { batch: BatchId },
    /// An index of a batch is used once.
    #[error("index {index} of batch {batch} is used or out of range")]
    IndexUsed { batch: BatchId, index: u32 },
    /// Not a share record.
    #[error("malformed share record")]
    MalformedRecord,
    /// The record's key, version, epoch, threshold or size are not the command's and the epoch's.
    #[error("a share record disagrees with its command or its epoch")]
    RecordMismatch,
    /// There must be exactly one record for every open epoch.
    #[error("{given} share records, where the open epochs need {need}")]
    RecordCount { given: usize, need: usize },

    // -- keys
    /// Names are never reused.
    #[error("a key of this name exists")]
    NameTaken,
    /// Identifiers are never reused.
    #[error("key {uid} exists")]
    UidTaken { uid: KeyUid },
    /// The request identifier belongs to another request.
    #[error("this request id was used for another request")]
    RequestReused,
    #[error("no key {uid}")]
    UnknownKey { uid: KeyUid },
    #[error("no key of this name")]
    NoSuchKey,
    #[error("key {uid} has no version {version}")]
    UnknownVersion { uid: KeyUid, version: KeyVersion },
    /// Another request rotated the key meanwhile.
    #[error("the newest version is {newest}")]
    VersionChanged {
        /// The newest one now.
        newest: KeyVersion,
    },
    /// The newest version is not verified yet, so a newer one must wait.
    #[error("version {version} is not ready yet")]
    NotReady { version: KeyVersion },
    /// [`KEYS_MAX`](crate::live::state::KEYS_MAX) reached.
    #[error("the cluster holds {max} keys, which is the limit", max = crate::live::state::KEYS_MAX)]
    KeysLimit,
    /// [`KEY_VERSIONS_MAX`](crate::live::state::KEY_VERSIONS_MAX) reached.
    #[error("the key has {max} versions, which is the limit", max = crate::live::state::KEY_VERSIONS_MAX)]
    KeyVersionsLimit,
    /// Too many tags, or one that is too long.
    #[error("a key has at most {max} tags, each with a name and a value of at most {bytes} bytes",
        max = crate::live::state::TAGS_MAX, bytes = crate::live::state::TAG_BYTES_MAX)]
    BadTags,
    /// Fewer holders verified the record than the threshold.
    #[error("{have} of {need} holders verified key {uid} version {version}")]
    TooFewHolders { uid: KeyUid, version: KeyVersion, have: usize, need: usize },
    /// A list is longer than its limit.
    #[error("{given} items in one command, more than {max}")]
    ListTooLong { given: usize, max: usize },

    // -- operations
    /// One operation at a time.
    #[error("the operation of epoch {operation} is not over yet")]
    OperationRunning {
        /// The one that runs.
        operation: Epoch,
    },
    /// The change belongs to an operation that does not run.
    #[error("no operation of epoch {operation} runs")]
    NoOperation { operation: Epoch },
    /// The operation has not reached this step.
    #[error("the operation of epoch {operation} has not reached this step")]
    NotYet { operation: Epoch },
    /// The holders that would remain do not have enough shares for the next epoch.
    #[error("{remaining} holders would remain, and {needed} shares are needed")]
    TooFewRemain { remaining: usize, needed: u8 },
    /// A member's lock could no longer be opened.
    #[error("the lock of node {node} needs the nodes that leave")]
    Stranded { node: NodeId },
    /// A share key is drawn once, for the next epoch.
    #[error("the share key of node {node} was drawn for another epoch")]
    StaleShareKey { node: NodeId },
    /// The version has a record in the PENDING epoch.
    #[error("key {uid} version {version} is reshared already")]
    AlreadyReshared { uid: KeyUid, version: KeyVersion },

    // -- joining
    /// No lifetime, or a longer one than an invitation may have.
    #[error("an invitation is good for at most {days} days", days = crate::live::state::INVITATION_TTL_MAX_MS / 86_400_000)]
    BadInvitation,
    #[error("no such invitation")]
    UnknownInvitation,
    /// A node has proved it already, and this is not a repetition by that node.
    #[error("the invitation was used")]
    InvitationUsed,
    /// The boot key belongs to a former member, which was given up while it joined, or revoked.
    #[error("the cluster gave this node up, and refuses its keys")]
    GivenUp,
    /// No node proved it in time.
    #[error("the invitation has expired")]
    InvitationExpired,
    /// The invitation is for a node of another name.
    #[error("the invitation is for a node of another name")]
    NameNotInvited,

    // -- members
    #[error("node {node} is no member")]
    UnknownMember { node: NodeId },
    /// Peers could not open such a lock: its threshold is 0 or above the number of peers, or it names its own node.
    #[error("a lock of {threshold} of {peers} pieces cannot be opened by peers")]
    BadLock { threshold: u8, peers: usize },
    /// The member claims to know more former members than there are.
    #[error("node {node} knows of former members that this state does not")]
    FormerAhead { node: NodeId },

    // -- levels
    /// The feature level only rises.
    #[error("the feature level is {level}, and does not fall")]
    LevelFalls { level: u16 },
}

impl Refusal {
    /// Whether what the leader filled in is out of date or wrong, and not the order itself.
    pub fn is_about_the_filling(&self) -> bool {
        matches!(
            self,
            Self::WrongFilling
                | Self::UidTaken { .. }
                | Self::WrongEpoch { .. }
                | Self::UnknownBatch { .. }
                | Self::BatchMismatch { .. }
                | Self::StaleCommittee
                | Self::MalformedRecord
                | Self::RecordMismatch
                | Self::RecordCount { .. }
                | Self::IndexUsed { .. }
        )
    }
}
