//! The replicated state and its one transition, [`apply`].
//!
//! Pure: no clock, no randomness, no I/O. Two replicas that apply the same commands hold equal states, and answer each
//! command alike. `apply` checks everything before it changes anything, so a refused command leaves no trace but the
//! time that it brought. It returns the rows to write; the share records and batch headers among them live on disk only,
//! and [`State`] keeps just enough of each to recognise a repetition.
//!
//! What holds after every command (the numbers are those of the design, section 6):
//! - I1 every key version has a record in the ACTIVE epoch; I2 an epoch becomes ACTIVE only when every version has a
//!   record in it and enough holders acknowledged them. Both are counters, not scans: a version has at most one record
//!   per epoch, so an epoch covers all versions exactly when its counter equals [`State::live_versions`].
//! - I3 every record names an epoch that is ACTIVE or PENDING, through a batch made for that epoch's committee.
//! - I4 a record is complete in one command. I6 one operation runs at a time, and at most one epoch is PENDING. I7 node ids
//!   and key names are never reused.
//! - I8 a version is ready only when a threshold of distinct holders verified its record in each open epoch.
//!
//! Time never goes back: a command from a slower clock is applied at the time already reached.

mod epochs;
mod founding;
mod joining;
mod keys;
mod operations;
mod restore;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use quorate_shares::ids::{
    BatchId, ClusterId, Epoch, KeyName, KeyUid, KeyVersion, NodeId, NodeName, ShareKeyGeneration,
};
use quorate_shares::kem::PublicKey;
use quorate_shares::seal::{self, Committee};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::command::{Change, Command, Operation, Outcome, RequestId, Seat};
use crate::refusal::Refusal;
use crate::rows::{RowKey, RowV1, RowWrite, Rows};

pub use epochs::SWEEP_MAX;
pub use joining::{INVITATION_TTL_MAX_MS, INVITATIONS_MAX};
pub use operations::LockTerms;
pub use quorate_shares::ids::{ADDRESS_BYTES_MAX, ADDRESSES_MAX, TAG_BYTES_MAX, TAGS_MAX};
pub use restore::RestoreError;

/// Most members. The committee's share numbers would allow 254, but only this many are tested.
pub const MEMBERS_MAX: usize = 9;
/// Most keys; a key beyond it is refused.
pub const KEYS_MAX: usize = 1_000_000;
/// Most versions of one key; a rotation beyond it is refused.
pub const KEY_VERSIONS_MAX: u32 = 10_000;

/// Everything that is replicated, except share records and batch headers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The largest time that any command brought, in milliseconds since 1970.
    pub time_ms: u64,
    /// The cluster, once it is founded.
    pub cluster: Option<Cluster>,
    /// The members.
    pub members: BTreeMap<NodeId, Member>,
    /// Every epoch there ever was.
    pub epochs: BTreeMap<Epoch, EpochInfo>,
    /// Every batch there ever was.
    pub batches: BTreeMap<BatchId, BatchInfo>,
    /// The keys.
    pub keys: BTreeMap<KeyUid, Key>,
    /// The members' newest lock reports.
    pub locks: BTreeMap<NodeId, LockReport>,
    /// Who was a member once.
    pub former: BTreeMap<NodeId, Former>,
    /// The operation that runs, and how the last one ended.
    pub operations: Operations,
    /// Invitations, by SHA-256 of their V.
    pub invitations: BTreeMap<[u8; 32], Invitation>,
    /// Key versions, all keys together.
    pub live_versions: u64,
    /// The versions without a record in the PENDING epoch. Found again at a restart, not stored.
    undealt: BTreeSet<(KeyUid, KeyVersion)>,
    names: BTreeMap<KeyName, KeyUid>,
    requests: HashMap<RequestId, (KeyUid, KeyVersion)>,
    unready: BTreeSet<(KeyUid, KeyVersion)>,
}

/// The cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its identifier.
    pub cluster: ClusterId,
    /// SHA-256 of the root token.
    pub token_hash: [u8; 32],
    /// The threshold that the operator asked for; an epoch carries the one in force.
    pub threshold: u8,
    /// One member was accepted.
    pub allow_solo: bool,
    /// Two members were accepted.
    pub accept_no_redundancy: bool,
    /// When it was founded.
    pub founded_ms: u64,
    /// The next member's id; it only rises, so that no id is ever reused.
    pub next_node_id: u64,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub node: NodeId,
    /// Its label.
    pub name: NodeName,
    /// Where it listens.
    pub addresses: Vec<String>,
    /// Its boot key.
    pub boot_pk: [u8; 32],
    /// Its operating key.
    pub op_pk: [u8; 32],
    /// Its newest share key.
    pub share_pk: PublicKey,
    /// The generation of `share_pk`.
    pub skgen: ShareKeyGeneration,
    /// Where it stands.
    pub state: MemberState,
}

/// Where a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberState {
    /// In the cluster.
    Active,
    /// Known by its keys, and not locked yet.
    Joining,
}

/// An invitation that may be proved.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// V, which proves it.
    pub proof_key: [u8; 32],
    /// The name that the joiner must have, if one was chosen.
    pub name: Option<NodeName>,
    /// When nobody new may prove it any more.
    pub expires_ms: u64,
    /// The boot key that proved it first; no other may.
    pub bound: Option<[u8; 32]>,
    /// The member whose place the joiner takes.
    pub replaces: Option<NodeId>,
}

impl Invitation {
    /// What names it without telling V: SHA-256 of V.
    pub fn id(&self) -> [u8; 32] {
        Sha256::digest(self.proof_key).into()
    }
}

impl std::fmt::Debug for Invitation {
    /// Whoever knows V can join.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invitation").field("expires_ms", &self.expires_ms).finish_non_exhaustive()
    }
}

/// Somebody who was a member once. Its id is never given again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    /// Its id.
    pub node: NodeId,
    /// Its label, which others may bear now.
    pub name: NodeName,
    /// Its boot key.
    pub boot_pk: [u8; 32],
    /// Its operating key.
    pub op_pk: [u8; 32],
    /// It was revoked, and did not leave in good order.
    pub revoked: bool,
    /// When it ceased to be a member.
    pub ended_ms: u64,
}

/// At most one operation runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operations {
    /// The one that runs.
    pub running: Option<Running>,
    /// The one before it.
    pub ended: Option<Ended>,
}

/// An operation that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The epoch that it brings, which names it.
    pub epoch: Epoch,
    /// What is to be done.
    pub operation: Operation,
    /// The request that began it.
    pub request: RequestId,
    /// When.
    pub began_ms: u64,
    /// Members that are away and count as lost: whether they could still open their locks does not hold it up.
    pub abandoned: BTreeSet<NodeId>,
}

/// An operation that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// It.
    pub was: Running,
    /// When it ended.
    pub ended_ms: u64,
    /// A revocation took its place before it was done.
    pub preempted: bool,
}

/// Where an epoch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EpochPhase {
    /// Being dealt to.
    Pending,
    /// The one that serves.
    Active,
    /// Replaced; its shares are being erased.
    Retiring,
    /// Gone.
    Retired,
    /// Given up before it was active; its number is not reused.
    Abandoned,
}

/// An epoch and its committee.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochInfo {
    /// Its number.
    pub epoch: Epoch,
    /// Where it stands.
    pub phase: EpochPhase,
    /// Shares needed.
    pub threshold: u8,
    /// The holders, sorted by node; share numbers follow from the position.
    pub committee: Vec<Seat>,
    /// The holders' share keys, in the order of the committee; none once the epoch is over.
    pub share_keys: Vec<PublicKey>,
    /// The committee hash of FORMATS 3.
    pub committee_hash: [u8; 32],
    /// How many re-dealt records each holder opened and verified.
    pub acks: BTreeMap<NodeId, u64>,
    /// When it became ACTIVE; 0 before.
    pub activated_ms: u64,
    /// How far the records of an epoch that is over are dropped: everything up to this version.
    pub swept: Option<(KeyUid, KeyVersion)>,
    /// Records that a [`Change::Redeal`] brought: what holders acknowledge. Those of new keys are verified one by one.
    pub redealt: u64,
    /// Key versions with a record in this epoch. Counted again at a restart, not stored.
    #[serde(skip)]
    pub records: u64,
}

impl EpochInfo {
    /// Whether records may name it: the fence against delayed commands.
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

    /// Whether `node` acknowledged every re-dealt record so far.
    pub fn has_acknowledged(&self, node: NodeId) -> bool {
        self.acks.get(&node).is_some_and(|&redealt| redealt >= self.redealt)
    }

    /// How many holders acknowledged every re-dealt record so far.
    pub fn acknowledged(&self) -> usize {
        self.acks.keys().filter(|&&node| self.has_acknowledged(node)).count()
    }

    /// Whether nobody deals to it or asks for its shares any more.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, EpochPhase::Retired | EpochPhase::Abandoned)
    }

    /// The seat of a holder.
    pub fn seat_of(&self, node: NodeId) -> Option<&Seat> {
        self.committee.iter().find(|seat| seat.node == node)
    }

    /// The committee with its public keys, as dealer and holders need it; `None` once the epoch is over.
    fn seated(&self) -> Option<Committee> {
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchInfo {
    /// Its identifier.
    pub batch: BatchId,
    /// The epoch that it deals to.
    pub epoch: Epoch,
    /// Who dealt it.
    pub dealer: NodeId,
    /// When it was opened.
    pub opened_ms: u64,
    /// SHA-256 of the header, to tell a repetition from another batch of the same name.
    pub header_hash: [u8; 32],
    /// Whether each record carries a slot for the recovery recipient.
    pub recovery: bool,
    /// One bit per used index. Found again at a restart, not stored.
    #[serde(skip)]
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
    /// Its identifier.
    pub uid: KeyUid,
    /// Its name.
    pub name: KeyName,
    /// When it was made.
    pub created_ms: u64,
    /// Notes for people: names and values.
    pub tags: BTreeMap<String, String>,
    /// Its versions, never empty. Boxed, because a tree has room for eleven where most keys have one.
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

/// A version of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Its number.
    pub version: KeyVersion,
    /// When it was made.
    pub created_ms: u64,
    /// Its key-check value.
    pub kcv: [u8; 32],
    /// Whether it may encrypt: its record in each open epoch was verified by a threshold of holders. It never goes back.
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

    /// Whether a threshold of holders verified its record in each of the epochs that records are needed in.
    fn is_verified(&self, open: &[Epoch]) -> bool {
        open.iter().all(|&epoch| self.record(epoch).is_some_and(|record| record.verified))
    }
}

/// Names one share record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordRef {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its batch.
    pub batch: BatchId,
    /// Its index in the batch.
    pub index: u32,
    /// A threshold of holders opened and verified it.
    pub verified: bool,
}

/// A member's lock, as it reported it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockReport {
    /// Whose.
    pub node: NodeId,
    /// Its generation.
    pub generation: u64,
    /// Pieces needed.
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
}

/// What one command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The answer.
    pub outcome: Result<Outcome, Refusal>,
    /// The rows to write, in order, together with the log id of the command.
    pub rows: Vec<RowWrite>,
}

/// Applies one command.
pub fn apply(state: &mut State, command: &Command) -> Applied {
    let mut rows = Rows::default();
    if command.time_ms > state.time_ms {
        state.time_ms = command.time_ms;
        rows.put(RowKey::Clock, RowV1::Clock(state.time_ms));
    }
    let outcome = match &command.change {
        Change::Found(found) => founding::found(state, found, &mut rows),
        _ if state.cluster.is_none() => Err(Refusal::NotFounded),
        Change::OpenEpoch(open) => epochs::open(state, open, &mut rows),
        Change::EpochAck(ack) => epochs::ack(state, ack, &mut rows),
        Change::ActivateEpoch { epoch } => epochs::activate(state, *epoch, &mut rows),
        Change::OpenBatch { header } => keys::open_batch(state, header, &mut rows),
        Change::CreateKey(create) => keys::create(state, create, &mut rows),
        Change::RotateKey(rotate) => keys::rotate(state, rotate, &mut rows),
        Change::Ready(ready) => keys::ready(state, ready, &mut rows),
        Change::ReportLock(report) => founding::report_lock(state, report, &mut rows),
        Change::Begin(begin) => operations::begin(state, begin, &mut rows),
        Change::RegisterShareKey(register) => operations::register_share_key(state, register, &mut rows),
        Change::Redeal(redeal) => keys::redeal(state, redeal, &mut rows),
        Change::Expel { operation } => operations::expel(state, *operation, &mut rows),
        Change::RetireEpoch { epoch } => epochs::retire(state, *epoch, &mut rows),
        Change::Finish { operation } => operations::finish(state, *operation, &mut rows),
        Change::Invite(invite) => joining::invite(state, invite, &mut rows),
        Change::Designate { invitation, gone } => joining::designate(state, invitation, *gone, &mut rows),
        Change::Admit(admit) => joining::admit(state, admit, &mut rows),
        Change::Admitted { node } => joining::admitted(state, *node, &mut rows),
        Change::Sweep { epoch } => epochs::sweep(state, *epoch, &mut rows),
    };
    Applied { outcome, rows: rows.0 }
}

/// The smallest number of members that every two groups of share one of.
pub fn majority(members: usize) -> usize {
    members / 2 + 1
}

/// A threshold lies between a majority and all holders; so 1 only for a solo node, and never above nine.
pub(crate) fn check_threshold(threshold: u8, holders: usize) -> Result<(), Refusal> {
    let fits = holders <= MEMBERS_MAX && (majority(holders)..=holders).contains(&usize::from(threshold));
    if fits { Ok(()) } else { Err(Refusal::BadThreshold { threshold, holders }) }
}

impl State {
    /// The epoch that serves.
    pub fn active(&self) -> Option<&EpochInfo> {
        self.epochs.values().rev().find(|epoch| epoch.phase == EpochPhase::Active)
    }

    /// Until when one disk alone held enough shares to open every key: whoever had it then has every version that was made
    /// up to then. 0 if no epoch ever had a threshold of one; [`u64::MAX`] as long as that holds.
    pub fn one_disk_until_ms(&self) -> u64 {
        let Some(last) = self.epochs.values().rev().find(|epoch| epoch.threshold == 1) else { return 0 };
        let mut later = self.epochs.values().filter(|epoch| epoch.epoch > last.epoch && epoch.activated_ms > 0);
        later.next().map_or(u64::MAX, |epoch| epoch.activated_ms)
    }

    /// The epoch that is being dealt to.
    pub fn pending(&self) -> Option<&EpochInfo> {
        self.epochs.values().next_back().filter(|epoch| epoch.phase == EpochPhase::Pending)
    }

    /// An epoch.
    pub fn epoch(&self, epoch: Epoch) -> Option<&EpochInfo> {
        self.epochs.get(&epoch)
    }

    /// The share number of a node in an epoch.
    pub fn x_of(&self, epoch: Epoch, node: NodeId) -> Option<u8> {
        self.epoch(epoch)?.x_of(node)
    }

    /// The epochs in which a new key version needs a record: the ACTIVE one, and the PENDING one.
    pub fn record_epochs(&self) -> Vec<Epoch> {
        self.active().into_iter().chain(self.pending()).map(|epoch| epoch.epoch).collect()
    }

    /// Keys in order of name, from the first one behind `after`.
    pub fn keys_after(&self, after: Option<&KeyName>) -> impl Iterator<Item = &Key> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.names.range::<KeyName, _>((start, Bound::Unbounded)).filter_map(|(_, uid)| self.keys.get(uid))
    }

    /// A key by its name.
    pub fn key_by_name(&self, name: &KeyName) -> Option<&Key> {
        self.keys.get(self.names.get(name)?)
    }

    /// A version of a key.
    pub fn version(&self, uid: KeyUid, version: KeyVersion) -> Option<&Version> {
        self.keys.get(&uid)?.versions.get(&version).map(Box::as_ref)
    }

    /// What a request made, if it was applied before: to be asked before dealing.
    pub fn answer(&self, request: &RequestId) -> Option<(KeyUid, KeyVersion)> {
        self.requests.get(request).copied()
    }

    /// The versions that may not encrypt yet.
    pub fn unready(&self) -> impl ExactSizeIterator<Item = (KeyUid, KeyVersion)> + '_ {
        self.unready.iter().copied()
    }

    /// The committee of an epoch with its public keys. `None` for an unknown epoch, or one that is over.
    pub fn committee(&self, epoch: Epoch) -> Option<Committee> {
        self.epoch(epoch)?.seated()
    }

    /// The versions without a record in the PENDING epoch.
    pub fn undealt(&self) -> impl ExactSizeIterator<Item = (KeyUid, KeyVersion)> + '_ {
        self.undealt.iter().copied()
    }

    /// The next epoch's number. An operation that a revocation took the place of keeps its number, whether or not its epoch was
    /// opened: the number names the operation to whoever waits for it.
    pub fn next_epoch(&self) -> Epoch {
        let preempted = self.operations.ended.iter().filter(|ended| ended.preempted).map(|ended| ended.was.epoch);
        let newest = self.epochs.keys().next_back().copied().into_iter().chain(preempted).max();
        Epoch(newest.map_or(1, |newest| newest.0 + 1))
    }
}
