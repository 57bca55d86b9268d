//! Every change of the replicated state.
//!
//! A [`Command`] is one entry of the Raft log: a [`Change`] and the time at which its proposer made it. Everything that needs
//! a clock, a random number or a secret is done before the command exists, so each replica that applies it reaches the same
//! state. A change names the state that it expects. It may be proposed again after a lost answer: the first answer comes
//! back, and nothing happens twice.
//!
//! The answer is an [`Outcome`] or a [`Refusal`](crate::live::refusal::Refusal). Both are deterministic.
//!
//! These types are a format themselves: peers send each other commands, and the log stores them. They never change. A new
//! kind is a new variant at the end of [`Change`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quorate_shares::ids::{ClusterId, Epoch, KeyName, KeyUid, KeyVersion, NodeId, NodeName, ShareKeyGeneration};
use quorate_shares::order::SignedOrder;
use quorate_shares::signature::PublicKey;
use serde::{Deserialize, Serialize};

pub use super::outcome::Outcome;

/// Most bytes of one command. A larger one is refused before it enters the log, so one entry always fits one frame.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// The id that a client gives to one request. A repetition carries the same id and gets the first answer.
pub type RequestId = [u8; 16];

/// One change, stamped by its proposer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The proposer's clock, in milliseconds since 1970. The state's time is the largest seen: it never goes back.
    pub time_ms: u64,
    pub change: Change,
}

impl Command {
    pub fn new(time_ms: u64, change: Change) -> Self {
        Self { time_ms, change }
    }
}

impl fmt::Display for Command {
    /// Names the kind only: a log line must carry no key name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.change.kind(), self.time_ms)
    }
}

/// What a command changes: one variant per kind. The order of the variants is part of the stored format, so a new kind
/// goes to the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The first command of every cluster: its members and its terms.
    Found(Found),
    /// Opens the next epoch as PENDING, with its committee.
    OpenEpoch(OpenEpoch),
    /// One holder opened and verified the records of an epoch.
    EpochAck(EpochAck),
    /// Makes the PENDING epoch the ACTIVE one.
    ActivateEpoch {
        /// The epoch that must be PENDING.
        epoch: Epoch,
    },
    /// Announces a dealing, before any record of it.
    OpenBatch {
        /// The batch header, laid out as FORMATS 3 says.
        #[serde(with = "serde_bytes")]
        header: Vec<u8>,
    },
    /// Makes a named key and its version 1.
    CreateKey(CreateKey),
    /// Makes the next version of a key.
    RotateKey(RotateKey),
    /// Key versions whose shares were opened and verified by a threshold of holders: they may encrypt from now on.
    Ready(Ready),
    /// A member renewed its lock, or erased a key that it held for a peer's.
    ReportLock(ReportLock),
    /// Begins an operation. The leader proposes its steps, up to [`Change::Finish`].
    Begin(Begin),
    /// A member's share key for the next epoch, durable in its lock.
    RegisterShareKey(RegisterShareKey),
    /// Records of the PENDING epoch for versions that exist already.
    Reshare(Reshare),
    /// Ends the membership of the nodes that an operation removes.
    Expel {
        /// The operation, by its epoch.
        operation: Epoch,
    },
    /// The RETIRING epoch is over: its holders erase its share keys.
    RetireEpoch {
        /// The epoch that must be RETIRING.
        epoch: Epoch,
    },
    /// The operation is done.
    Finish {
        /// The operation, by its epoch.
        operation: Epoch,
    },
    /// Drops records and batches of an epoch that is over, at most as many as one command may.
    Sweep {
        /// The RETIRED or ABANDONED epoch.
        epoch: Epoch,
    },
    /// One node may join with this invitation.
    Invite(Invite),
    /// The node that joins with the invitation replaces a member.
    Replace {
        /// SHA-256 of the invitation's V.
        invitation: [u8; 32],
        /// The member that is replaced, and then revoked.
        gone: NodeId,
    },
    /// A node proved an invitation: the operation that lets it join begins, or continues with the node's new keys.
    Join(Join),
    /// The joiner's first lock is durable: it can hold pieces of the others' locks, and shares can be dealt to it.
    Joined { node: NodeId },
    /// Every member knows changes up to this level ([`crate::level`]).
    RaiseLevel { level: u16 },
    /// A member listens elsewhere from now on.
    SetAddresses {
        node: NodeId,
        /// As `host:port`, best first.
        addresses: Vec<String>,
    },
    /// What an operator ordered, with what the leader filled in.
    Ordered(Ordered),
}

impl Change {
    /// The kind, for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Found(_) => "found",
            Self::OpenEpoch(_) => "open_epoch",
            Self::EpochAck(_) => "epoch_ack",
            Self::ActivateEpoch { .. } => "activate_epoch",
            Self::OpenBatch { .. } => "open_batch",
            Self::CreateKey(_) => "create_key",
            Self::RotateKey(_) => "rotate_key",
            Self::Ready(_) => "ready",
            Self::ReportLock(_) => "report_lock",
            Self::Begin(_) => "begin",
            Self::RegisterShareKey(_) => "register_share_key",
            Self::Reshare(_) => "reshare",
            Self::Expel { .. } => "expel",
            Self::RetireEpoch { .. } => "retire_epoch",
            Self::Finish { .. } => "finish",
            Self::Sweep { .. } => "sweep",
            Self::Invite(_) => "invite",
            Self::Replace { .. } => "replace",
            Self::Join(_) => "join",
            Self::Joined { .. } => "joined",
            Self::RaiseLevel { .. } => "raise_level",
            Self::SetAddresses { .. } => "set_addresses",
            Self::Ordered(ordered) => ordered.order.unverified().act.kind(),
        }
    }

    /// Bytes of headers, records, tags and keys: everything in it without a small bound of its own.
    pub(crate) fn carried_bytes(&self) -> usize {
        let records = |records: &[RecordBytes]| records.iter().map(|record| record.0.len()).sum::<usize>();
        match self {
            Self::OpenBatch { header } => header.len(),
            Self::CreateKey(create) => {
                let tags = create.tags.iter().map(|(name, value)| name.len() + value.len());
                records(&create.records) + tags.sum::<usize>()
            }
            Self::RotateKey(rotate) => records(&rotate.records),
            Self::Ordered(ordered) => {
                let filled = ordered.filled.iter().map(|version| records(&version.records));
                ordered.order.as_bytes().len() + filled.sum::<usize>()
            }
            Self::Reshare(reshare) => reshare.dealt.iter().map(|dealt| dealt.record.0.len()).sum(),
            Self::RegisterShareKey(register) => register.share_pk.len(),
            Self::Join(join) => join.share_pk.len(),
            Self::Found(_)
            | Self::OpenEpoch(_)
            | Self::EpochAck(_)
            | Self::ActivateEpoch { .. }
            | Self::Ready(_)
            | Self::ReportLock(_)
            | Self::Begin(_)
            | Self::Expel { .. }
            | Self::RetireEpoch { .. }
            | Self::Finish { .. }
            | Self::Sweep { .. }
            | Self::Invite(_)
            | Self::Replace { .. }
            | Self::Joined { .. }
            | Self::RaiseLevel { .. }
            | Self::SetAddresses { .. } => 0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Never changes.
    pub cluster: ClusterId,
    /// The key of the first operator.
    pub operator: PublicKey,
    /// Whose key it is, for people.
    pub operator_label: String,
    /// Shares needed: from a majority of the members up to all of them.
    pub threshold: u8,
    /// The operator accepts one member (`--allow-solo`): one disk then holds everything.
    pub allow_solo: bool,
    /// The operator accepts two members (`--accept-no-redundancy`): losing one disk then loses every key.
    pub accept_no_redundancy: bool,
    /// How long a lease is. Never changes.
    pub lease_ms: u64,
    /// The founders. Their node ids were given in the order in which they proved their invitations.
    pub members: Vec<NewMember>,
}

/// A member as it joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewMember {
    /// Assigned once and never reused.
    pub node: NodeId,
    pub name: NodeName,
    /// Where it listens, as `host:port`, preferred ones first.
    pub addresses: Vec<String>,
    /// Ed25519 key that is accepted for LockOpen only.
    pub boot_pk: [u8; 32],
    /// Ed25519 key for everything else.
    pub op_pk: [u8; 32],
    /// X-Wing key that its shares are sealed to, 1216 bytes.
    #[serde(with = "serde_bytes")]
    pub share_pk: Vec<u8>,
    /// The generation of `share_pk`.
    pub skgen: ShareKeyGeneration,
}

/// One holder of an epoch. Its share number is its position in the committee plus one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    pub node: NodeId,
    /// The share key that its shares are sealed to.
    pub skgen: ShareKeyGeneration,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenEpoch {
    /// One more than the newest epoch; the first is 1.
    pub epoch: Epoch,
    /// Shares needed in this epoch.
    pub threshold: u8,
    /// The holders, sorted by node.
    pub committee: Vec<Seat>,
    /// The committee hash of FORMATS 3. Each replica computes it, too, and compares.
    pub committee_hash: [u8; 32],
}

/// A holder states that it can open its shares of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochAck {
    pub epoch: Epoch,
    pub node: NodeId,
    /// How many reshared records the holder opened and verified: all that the epoch had at that time.
    pub reshared: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateKey {
    pub request: RequestId,
    /// Never changes.
    pub uid: KeyUid,
    /// Never changes.
    pub name: KeyName,
    /// Notes for people: names and values.
    pub tags: BTreeMap<String, String>,
    /// The key-check value of version 1.
    pub kcv: [u8; 32],
    /// One share record for the ACTIVE epoch, and one for the PENDING epoch if there is one.
    pub records: Vec<RecordBytes>,
}

/// Makes the next version of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotateKey {
    pub request: RequestId,
    pub uid: KeyUid,
    /// The newest version when the request was made. The new version is one more.
    pub expect: KeyVersion,
    /// The key-check value of the new version.
    pub kcv: [u8; 32],
    /// As in [`CreateKey::records`].
    pub records: Vec<RecordBytes>,
}

/// An order, in the bytes that the operator signed, and what the operator cannot know: the leader adds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    pub order: SignedOrder,
    /// Of an order that makes key versions: the versions, in its order. Empty for every other one.
    pub filled: Vec<FilledVersion>,
}

/// A key version that the leader drew and dealt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilledVersion {
    /// Never changes. That of a new key is drawn by the leader.
    pub uid: KeyUid,
    /// The key-check value.
    pub kcv: [u8; 32],
    /// As in [`CreateKey::records`].
    pub records: Vec<RecordBytes>,
}

/// A share record, laid out as FORMATS 3 says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordBytes(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl fmt::Debug for RecordBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordBytes({} bytes)", self.0.len())
    }
}

/// Key versions that a threshold of holders can open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The epoch of the records that were opened.
    pub epoch: Epoch,
    /// At most [`VERIFY_MAX`](crate::live::plan::VERIFY_MAX) of them.
    pub verified: Vec<Verified>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    pub uid: KeyUid,
    pub version: KeyVersion,
    /// The holders that opened and verified a share of it. A set, so each counts once.
    pub holders: BTreeSet<NodeId>,
}

/// A member's lock as it is stored on its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportLock {
    pub node: NodeId,
    /// It only rises.
    pub generation: u64,
    /// Pieces needed to open it.
    pub threshold: u8,
    /// The peers that hold a piece.
    pub peers: BTreeSet<NodeId>,
    /// The share keys that the lock protects.
    pub share_keys: BTreeSet<ShareKeyGeneration>,
    /// The nodes for whose locks this member holds keys.
    pub holds_for: BTreeSet<NodeId>,
    /// Writes of the member's vault so far. Of two reports, the one with more writes is newer.
    pub writes: u64,
    /// How many former members there were for the member when it read the rest from its vault. Of two reports after the same
    /// write, the one with more of them is newer.
    pub former: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    pub request: RequestId,
    pub operation: Operation,
    /// The operator accepts that two members remain: losing one disk then loses every key.
    pub accept_no_redundancy: bool,
    /// Members that are away and count as lost.
    pub abandon: BTreeSet<NodeId>,
}

/// What an operator asks of the cluster, or the leader begins by itself. Each opens one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// The same members get new share keys, so members that were away can erase their old ones.
    Rekey,
    /// A member leaves in good order: its seat first, then its vote.
    Remove { node: NodeId },
    /// Members are refused from now on; votes, identities and seats follow.
    Revoke { nodes: BTreeSet<NodeId> },
    /// A node becomes a member.
    Join { node: NodeId },
    /// A node becomes a member and replaces another one, which is revoked.
    Replace { gone: NodeId, node: NodeId },
}

impl Operation {
    /// The nodes that are no longer members when it is done.
    pub fn leaving(&self) -> BTreeSet<NodeId> {
        match self {
            Self::Rekey | Self::Join { .. } => BTreeSet::new(),
            Self::Remove { node } | Self::Replace { gone: node, .. } => [*node].into(),
            Self::Revoke { nodes } => nodes.clone(),
        }
    }

    /// The node that is a new member when it is done.
    pub fn joining(&self) -> Option<NodeId> {
        match self {
            Self::Join { node } | Self::Replace { node, .. } => Some(*node),
            Self::Rekey | Self::Remove { .. } | Self::Revoke { .. } => None,
        }
    }

    /// The kind, for status and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Rekey => "rekey",
            Self::Remove { .. } => "remove",
            Self::Revoke { .. } => "revoke",
            Self::Join { .. } => "join",
            Self::Replace { .. } => "replace",
        }
    }

    /// Whether the nodes that leave are refused before the others can do without them.
    pub fn revokes(&self) -> bool {
        matches!(self, Self::Revoke { .. } | Self::Replace { .. })
    }
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// V, which proves the invitation: the hash of a secret that the cluster never stores.
    pub proof_key: [u8; 32],
    /// The name that the joiner must have, if one was chosen.
    pub name: Option<NodeName>,
    /// How long the invitation is valid.
    pub ttl_ms: u64,
}

impl fmt::Debug for Invite {
    /// Without V: a node that knows it can join.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invite").field("ttl_ms", &self.ttl_ms).finish_non_exhaustive()
    }
}

/// What a joiner registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// SHA-256 of the invitation's V.
    pub invitation: [u8; 32],
    pub name: NodeName,
    /// Where it listens, as `host:port`, best first.
    pub addresses: Vec<String>,
    pub boot_pk: [u8; 32],
    pub op_pk: [u8; 32],
    /// Its first share key. No share is ever dealt to it.
    #[serde(with = "serde_bytes")]
    pub share_pk: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterShareKey {
    pub node: NodeId,
    /// The number of the epoch that the key was drawn for.
    pub skgen: ShareKeyGeneration,
    /// X-Wing key, 1216 bytes.
    #[serde(with = "serde_bytes")]
    pub share_pk: Vec<u8>,
}

/// Deals existing versions to the PENDING epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reshare {
    pub epoch: Epoch,
    /// At most [`RESHARE_MAX`](crate::live::plan::RESHARE_MAX) of them.
    pub dealt: Vec<Reshared>,
}

/// One existing version with its new record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reshared {
    pub uid: KeyUid,
    pub version: KeyVersion,
    /// Its record in the PENDING epoch.
    pub record: RecordBytes,
}
