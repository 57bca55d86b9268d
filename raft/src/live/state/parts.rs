//! What the state is made of: the cluster, its members, epochs, batches, keys, locks and operations.

use std::collections::{BTreeMap, BTreeSet};

use quorate_shares::ids::{
    BatchId, ClusterId, Epoch, KeyName, KeyUid, KeyVersion, KeyVersionId, NodeId, NodeName, ShareKeyGeneration,
};
use quorate_shares::kem::PublicKey;
use quorate_shares::seal::{self, Committee};
use quorate_shares::signature;
use sha2::{Digest, Sha256};

use super::majority;
use crate::live::command::{Operation, RequestId, Seat};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    pub cluster: ClusterId,
    /// The threshold that the operator asked for. The one in force is in the epoch.
    pub threshold: u8,
    /// The operator accepted a cluster of one member.
    pub allow_solo: bool,
    /// The operator accepted a cluster of two members.
    pub accept_no_redundancy: bool,
    /// How long a lease is.
    pub lease_ms: u64,
    pub founded_ms: u64,
    /// It only rises, so no id is ever reused.
    pub next_node_id: u64,
    /// The feature level; it only rises.
    pub level: u16,
    /// 1, and one more for each restore from a backup. An order is for one incarnation.
    pub incarnation: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub node: NodeId,
    pub name: NodeName,
    pub addresses: Vec<String>,
    pub boot_pk: [u8; 32],
    pub op_pk: [u8; 32],
    /// Its newest share key.
    pub share_pk: PublicKey,
    /// The generation of `share_pk`.
    pub skgen: ShareKeyGeneration,
    pub state: MemberState,
}

/// A person who may order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    pub key: signature::PublicKey,
    /// Whose key it is, for people.
    pub label: String,
    pub added_ms: u64,
}

/// How far a member has joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    Active,
    /// Its keys are known, and its first lock is not durable yet.
    Joining,
}

/// An invitation that may be proved.
#[derive(Clone, PartialEq, Eq)]
pub struct InvitationInfo {
    /// V, which proves the invitation.
    pub proof_key: [u8; 32],
    /// The name that the joiner must have, if one was chosen.
    pub name: Option<NodeName>,
    /// From this time on, no new node may prove it.
    pub expires_ms: u64,
    /// The boot key that proved it first; no other key may prove it.
    pub bound: Option<[u8; 32]>,
    /// The member that the joiner replaces.
    pub replaces: Option<NodeId>,
}

impl InvitationInfo {
    /// SHA-256 of V: names the invitation and does not reveal V.
    pub fn id(&self) -> [u8; 32] {
        Sha256::digest(self.proof_key).into()
    }
}

impl std::fmt::Debug for InvitationInfo {
    /// Without V: a node that knows it can join.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InvitationInfo").field("expires_ms", &self.expires_ms).finish_non_exhaustive()
    }
}

/// A node that was a member. Its id is never assigned again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Former {
    pub node: NodeId,
    /// Another node may have this name now.
    pub name: NodeName,
    pub boot_pk: [u8; 32],
    pub op_pk: [u8; 32],
    /// True if it was revoked, false if it was removed in good order.
    pub revoked: bool,
    pub ended_ms: u64,
}

/// At most one operation runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Operations {
    pub running: Option<Running>,
    /// The operation before the running one.
    pub ended: Option<Ended>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// The epoch that the operation opens; its number names the operation.
    pub epoch: Epoch,
    pub operation: Operation,
    /// The request that began it.
    pub request: RequestId,
    pub began_ms: u64,
    /// Members that are away and count as lost. The operation does not wait until they can open their locks.
    pub abandoned: BTreeSet<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub was: Running,
    pub ended_ms: u64,
    /// A revocation ended it before it was done.
    pub preempted: bool,
}

/// The phases of an epoch, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochPhase {
    /// Versions are dealt to it.
    Pending,
    /// Keys are opened with its shares.
    Active,
    /// Replaced: its holders are erasing their share keys.
    Retiring,
    /// Its holders erased their share keys.
    Retired,
    /// Given up before it was active; its number is not reused.
    Abandoned,
}

/// An epoch and its committee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochInfo {
    pub epoch: Epoch,
    pub phase: EpochPhase,
    pub threshold: u8,
    /// The holders, sorted by node. The share number is the position plus one.
    pub committee: Vec<Seat>,
    /// The holders' share keys, in the order of the committee. Empty once the epoch is over.
    pub share_keys: Vec<PublicKey>,
    /// The committee hash of FORMATS 3.
    pub committee_hash: [u8; 32],
    /// How many reshared records each holder opened and verified.
    pub acks: BTreeMap<NodeId, u64>,
    /// When it became ACTIVE; 0 before.
    pub activated_ms: u64,
    /// Of an epoch that is over, the records of all versions up to this one are dropped.
    pub swept: Option<KeyVersionId>,
    /// Number of records of existing versions, from [`Change::Reshare`](crate::live::command::Change::Reshare). Holders
    /// acknowledge these; records of new versions are verified one by one.
    pub reshared: u64,
    /// Number of key versions with a record in this epoch. Not stored: a restart counts them again.
    pub records: u64,
}

impl EpochInfo {
    /// Whether records may name it. This keeps delayed commands out of closed epochs.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, EpochPhase::Active | EpochPhase::Pending)
    }

    /// The share number of a holder.
    pub fn x_of(&self, node: NodeId) -> Option<u8> {
        let position = self.committee.iter().position(|seat| seat.node == node)?;
        u8::try_from(position + 1).ok()
    }

    /// How many holders must acknowledge it before it may become ACTIVE: the threshold, and a majority at least.
    pub fn acks_needed(&self) -> usize {
        usize::from(self.threshold).max(majority(self.committee.len()))
    }

    /// Whether `node` acknowledged every reshared record so far.
    pub fn has_acknowledged(&self, node: NodeId) -> bool {
        self.acks.get(&node).is_some_and(|&reshared| reshared >= self.reshared)
    }

    /// How many holders acknowledged every reshared record so far.
    pub fn acknowledged(&self) -> usize {
        self.acks.keys().filter(|&&node| self.has_acknowledged(node)).count()
    }

    /// Whether its shares are no longer dealt or asked for.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, EpochPhase::Retired | EpochPhase::Abandoned)
    }

    /// The seat of a holder.
    pub fn seat_of(&self, node: NodeId) -> Option<&Seat> {
        self.committee.iter().find(|seat| seat.node == node)
    }

    /// The committee with its public keys; `None` once the epoch is over.
    pub(super) fn seated(&self) -> Option<Committee> {
        let seats = self.committee.iter().zip(&self.share_keys);
        let members = seats.map(|(seat, key)| seal::CommitteeMember {
            node: seat.node,
            generation: seat.skgen,
            public_key: key.clone(),
        });
        let members: Vec<_> = members.collect();
        if members.len() < self.committee.len() {
            None
        } else {
            Committee::new(self.epoch, self.threshold, members).ok()
        }
    }
}

/// What the state remembers of a batch; the header itself is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchInfo {
    pub batch: BatchId,
    /// The epoch that it deals to.
    pub epoch: Epoch,
    pub dealer: NodeId,
    pub opened_ms: u64,
    /// SHA-256 of the header. It tells a repetition from another batch of the same id.
    pub header_hash: [u8; 32],
    /// Whether each record carries a slot for the recovery recipient.
    pub recovery: bool,
    /// One bit per used index. Not stored: a restart finds them again.
    pub(crate) used: Vec<u64>,
}

impl BatchInfo {
    /// Whether a record has this index.
    pub fn is_used(&self, index: u32) -> bool {
        self.used.get(index as usize / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    pub(crate) fn mark_used(&mut self, index: u32) {
        let word = index as usize / 64;
        if self.used.len() <= word {
            self.used.resize(word + 1, 0);
        }
        self.used[word] |= 1 << (index % 64);
    }
}

/// A master key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub uid: KeyUid,
    pub name: KeyName,
    pub created_ms: u64,
    /// Notes for people: names and values.
    pub tags: BTreeMap<String, String>,
    /// Never empty. Boxed, because a tree has room for eleven versions, and most keys have one.
    pub versions: BTreeMap<KeyVersion, Box<Version>>,
}

impl Key {
    /// The newest version, ready or not.
    pub fn newest(&self) -> &Version {
        self.versions.values().next_back().expect("a key is made with its first version")
    }

    /// The newest version that may encrypt.
    pub fn newest_ready(&self) -> Option<&Version> {
        self.versions.values().rev().map(Box::as_ref).find(|version| version.ready)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub version: KeyVersion,
    pub created_ms: u64,
    /// Its key-check value.
    pub kcv: [u8; 32],
    /// Whether it may encrypt: a threshold of holders verified its record in each open epoch. Once true, it stays true.
    pub ready: bool,
    /// The request that made it.
    pub request: RequestId,
    /// Where its share records are, at most one per epoch.
    pub records: Vec<RecordRef>,
}

impl Version {
    /// The record of an epoch.
    pub fn record(&self, epoch: Epoch) -> Option<&RecordRef> {
        self.records.iter().find(|record| record.epoch == epoch)
    }

    /// Whether a threshold of holders verified its record in each of these epochs.
    pub(super) fn is_verified(&self, open: &[Epoch]) -> bool {
        open.iter().all(|&epoch| self.record(epoch).is_some_and(|record| record.verified))
    }
}

/// Names one share record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef {
    pub epoch: Epoch,
    pub batch: BatchId,
    /// Its index in the batch.
    pub index: u32,
    /// A threshold of holders opened and verified it.
    pub verified: bool,
}

/// A member's lock, as it reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockReport {
    pub node: NodeId,
    pub generation: u64,
    pub threshold: u8,
    /// The peers that hold a piece.
    pub peers: BTreeSet<NodeId>,
    /// The share keys that the lock protects.
    pub share_keys: BTreeSet<ShareKeyGeneration>,
    /// The nodes for whose locks this member holds keys.
    pub holds_for: BTreeSet<NodeId>,
    /// Writes of the member's vault when it reported.
    pub writes: u64,
    /// When it was reported.
    pub reported_ms: u64,
    /// How many former members there were for the member when it reported.
    pub former: u64,
}
