//! The replicated state and its one transition, [`apply`].
//!
//! Pure: no clock, no randomness, no I/O. Two replicas that apply the same commands hold equal states and give equal answers.
//! `apply` checks everything before it changes anything, so a refused command changes nothing but the time, and what is remembered
//! of an order. It returns the
//! rows to write. Share records and batch headers are kept on disk only; [`State`] keeps enough of each to recognise a
//! repetition.
//!
//! Invariants after every command, with their numbers in the design (section 6):
//! - I1 every key version has a record in the ACTIVE epoch; I2 an epoch becomes ACTIVE only when every version has a
//!   record in it and enough holders acknowledged them. Both are counters, not scans: a version has at most one record
//!   per epoch, so an epoch covers all versions exactly when its counter equals [`State::live_versions`].
//! - I3 every record names an epoch that is ACTIVE or PENDING, through a batch made for that epoch's committee.
//! - I4 a record is complete in one command. I6 one operation runs at a time, and at most one epoch is PENDING. I7 node ids
//!   and key names are never reused.
//! - I8 a version is ready only when a threshold of distinct holders verified its record in each open epoch.
//!
//! Time never goes back: a command from a slower clock is applied at the largest time seen so far.

mod addresses;
mod epochs;
mod founding;
mod joining;
mod keys;
mod level;
mod operations;
mod orders;
mod parts;
mod restore;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::time::Duration;

use quorate_shares::ids::{BatchId, Epoch, KeyName, KeyUid, KeyVersion, KeyVersionId, NodeId};
use quorate_shares::seal::Committee;
use quorate_shares::signature::PublicKey;

use crate::live::command::{Change, Command, Outcome, RequestId};
use crate::live::level::FIRST_LEVEL;
use crate::live::refusal::Refusal;
use crate::live::rows::{Row, RowKey, RowWrite, Rows};

pub use epochs::SWEEP_MAX;
pub use joining::{INVITATION_TTL_MAX_MS, INVITATIONS_MAX};
pub use keys::{RESHARE_MAX, VERIFY_MAX};
pub use operations::LockTerms;
pub use orders::{CarriedOrder, OPERATORS_MAX, ORDERS_MAX, Orders, is_signed};
pub use parts::{
    BatchInfo, Cluster, Ended, EpochInfo, EpochPhase, Former, InvitationInfo, Key, LockReport, Member, MemberState,
    Operations, Operator, RecordRef, Running, Version,
};
pub use quorate_shares::ids::{ADDRESS_BYTES_MAX, ADDRESSES_MAX, TAG_BYTES_MAX, TAGS_MAX};
pub use restore::RestoreError;

/// Most members. The committee's share numbers would allow 254, but only this many are tested.
pub const MEMBERS_MAX: usize = 9;
/// The shortest lease that a cluster can have: a node asks for it twice in that time.
pub const LEASE_MS_MIN: u64 = 100;
/// The longest lease that a cluster can have. A node that is cut off serves for so long, and a revocation waits for it.
pub const LEASE_MS_MAX: u64 = 60_000;
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
    pub members: BTreeMap<NodeId, Member>,
    /// Every epoch since the founding.
    pub epochs: BTreeMap<Epoch, EpochInfo>,
    /// Every batch whose epoch is not swept.
    pub batches: BTreeMap<BatchId, BatchInfo>,
    pub keys: BTreeMap<KeyUid, Key>,
    /// The members' newest lock reports.
    pub locks: BTreeMap<NodeId, LockReport>,
    /// The nodes that were members.
    pub former: BTreeMap<NodeId, Former>,
    /// The operation that runs, and how the last one ended.
    pub operations: Operations,
    /// Who may order.
    pub operators: BTreeMap<PublicKey, Operator>,
    /// What came of the orders that have not expired.
    pub orders: Orders,
    /// Invitations, by SHA-256 of their V.
    pub invitations: BTreeMap<[u8; 32], InvitationInfo>,
    /// The number of key versions of all keys together.
    pub live_versions: u64,
    /// The versions without a record in the PENDING epoch. Not stored: a restart finds them again.
    to_reshare: BTreeSet<KeyVersionId>,
    names: BTreeMap<KeyName, KeyUid>,
    requests: HashMap<RequestId, KeyVersionId>,
    unready: BTreeSet<KeyVersionId>,
}

/// What one command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub outcome: Result<Outcome, Refusal>,
    /// The rows to write, in order, together with the log id of the command.
    pub rows: Vec<RowWrite>,
}

pub fn apply(state: &mut State, command: &Command) -> Applied {
    apply_checked(state, command, is_signed(command))
}

/// As [`apply`], for a command of which the caller has found out whether it [`is_signed`].
pub fn apply_checked(state: &mut State, command: &Command, signed: bool) -> Applied {
    let mut rows = Rows::default();
    if command.time_ms > state.time_ms {
        state.time_ms = command.time_ms;
        rows.put(RowKey::Clock, Row::Clock(state.time_ms));
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
        Change::Reshare(reshare) => keys::reshare(state, reshare, &mut rows),
        Change::Expel { operation } => operations::expel(state, *operation, &mut rows),
        Change::RetireEpoch { epoch } => epochs::retire(state, *epoch, &mut rows),
        Change::Finish { operation } => operations::finish(state, *operation, &mut rows),
        Change::Invite(invite) => joining::invite(state, invite, &mut rows),
        Change::Replace { invitation, gone } => joining::replace(state, invitation, *gone, &mut rows),
        Change::Join(join) => joining::join(state, join, &mut rows),
        Change::Joined { node } => joining::joined(state, *node, &mut rows),
        Change::SetAddresses { node, addresses } => addresses::set_addresses(state, *node, addresses, &mut rows),
        Change::Ordered(ordered) => orders::ordered(state, ordered, signed, &mut rows),
        Change::Sweep { epoch } => epochs::sweep(state, *epoch, &mut rows),
        Change::RaiseLevel { level } => level::raise_level(state, *level, &mut rows),
    };
    Applied { outcome, rows: rows.0 }
}

/// The smallest size at which any two groups of members have a member in common.
pub fn majority(members: usize) -> usize {
    members / 2 + 1
}

/// A threshold is between a majority and the number of holders: 1 for a solo node only, and never above nine.
pub(crate) fn check_threshold(threshold: u8, holders: usize) -> Result<(), Refusal> {
    let fits = holders <= MEMBERS_MAX && (majority(holders)..=holders).contains(&usize::from(threshold));
    if fits { Ok(()) } else { Err(Refusal::BadThreshold { threshold, holders }) }
}

impl State {
    /// The feature level ([`crate::level`]).
    pub fn level(&self) -> u16 {
        self.cluster.as_ref().map_or(FIRST_LEVEL, |cluster| cluster.level)
    }

    /// How long a lease is; `None` before the cluster is founded.
    pub fn lease(&self) -> Option<Duration> {
        self.cluster.as_ref().map(|cluster| Duration::from_millis(cluster.lease_ms))
    }

    /// The epoch that serves.
    pub fn active(&self) -> Option<&EpochInfo> {
        self.epochs.values().rev().find(|epoch| epoch.phase == EpochPhase::Active)
    }

    /// The time until which one disk alone held enough shares to open every key. A thief of that disk has every version that
    /// was made before. 0 if no epoch had a threshold of one; [`u64::MAX`] while the present epoch has one.
    pub fn one_disk_until_ms(&self) -> u64 {
        let Some(last) = self.epochs.values().rev().find(|epoch| epoch.threshold == 1) else { return 0 };
        let mut later = self.epochs.values().filter(|epoch| epoch.epoch > last.epoch && epoch.activated_ms > 0);
        later.next().map_or(u64::MAX, |epoch| epoch.activated_ms)
    }

    /// The epoch that is being dealt to.
    pub fn pending(&self) -> Option<&EpochInfo> {
        self.epochs.values().next_back().filter(|epoch| epoch.phase == EpochPhase::Pending)
    }

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

    /// Keys in order of their names, from the first one after `after`.
    pub fn keys_after(&self, after: Option<&KeyName>) -> impl Iterator<Item = &Key> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.names.range::<KeyName, _>((start, Bound::Unbounded)).filter_map(|(_, uid)| self.keys.get(uid))
    }

    /// A key by its name.
    pub fn key_by_name(&self, name: &KeyName) -> Option<&Key> {
        self.keys.get(self.names.get(name)?)
    }

    pub fn version(&self, uid: KeyUid, version: KeyVersion) -> Option<&Version> {
        self.keys.get(&uid)?.versions.get(&version).map(Box::as_ref)
    }

    /// The version that a request made, if it was applied before. Ask before dealing.
    pub fn answer(&self, request: &RequestId) -> Option<KeyVersionId> {
        self.requests.get(request).copied()
    }

    /// The versions that may not encrypt yet.
    pub fn unready(&self) -> impl ExactSizeIterator<Item = KeyVersionId> + '_ {
        self.unready.iter().copied()
    }

    /// The committee of an epoch with its public keys. `None` for an unknown epoch, or one that is over.
    pub fn committee(&self, epoch: Epoch) -> Option<Committee> {
        self.epoch(epoch)?.seated()
    }

    /// The versions without a record in the PENDING epoch.
    pub fn to_reshare(&self) -> impl ExactSizeIterator<Item = KeyVersionId> + '_ {
        self.to_reshare.iter().copied()
    }

    /// The next epoch's number. An operation that a revocation preempted keeps its number, even if its epoch was never opened:
    /// clients that wait for the operation name it by this number.
    pub fn next_epoch(&self) -> Epoch {
        let preempted = self.operations.ended.iter().filter(|ended| ended.preempted).map(|ended| ended.was.epoch);
        let newest = self.epochs.keys().next_back().copied().into_iter().chain(preempted).max();
        Epoch(newest.map_or(1, |newest| newest.0 + 1))
    }
}
