//! Format 1 of the live rows: what each looks like as bytes.
//!
//! These structs belong to the format. Until the first release they are edited in place, with their golden vectors and a
//! line in CHANGELOG; from then on they never change. The program itself works with the structs of [`crate::live`]. A
//! conversion goes each way and names every field of both sides, so the compiler names a field that was forgotten. When a
//! live struct gets a new field, the conversion from here says its value for old rows, and the next version stores it.
//!
//! In the drawings fields follow each other without a gap, encoded as [`quorate_shares::codec`] does: a bare name is an
//! integer of 1, 3, 5 or 9 bytes, `u8` is one byte, a number is so many bytes, `bool` is 00 or 01, `text`, `bytes`, `list`,
//! `set` and `map` begin with their length, and `?` is 00, or 01 and the value. The number before a variant is its integer.

use std::collections::{BTreeMap, BTreeSet};

use quorate_shares::ids::{
    BatchId, ClusterId, Epoch, KeyName, KeyVersion, KeyVersionId, NodeId, NodeName, ShareKeyGeneration,
};
use quorate_shares::kem::PublicKey;
use quorate_shares::signature;
use serde::{Deserialize, Serialize};

use super::convert::{all_into, same_fields, same_variants};
use crate::live::command::{Operation, Outcome, RequestId, Seat};
use crate::live::refusal::Refusal;
use crate::live::rows::{KeyRow, Row};
use crate::live::state::{
    BatchInfo, CarriedOrder, Cluster, Ended, EpochInfo, EpochPhase, Former, InvitationInfo, LockReport, Member,
    MemberState, Operations, Operator, RecordRef, Running, Version,
};

/// The value of a live row. Clock is the state's time in milliseconds.
///
/// ```text
/// 0 Clock(time_ms)  1 Cluster  2 Member  3 Epoch  4 Batch  5 Key  6 Version  7 Lock  8 Operations  9 Former  10 Invitation
/// 11 Operator  12 Order
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RowV1 {
    Clock(u64),
    Cluster(ClusterV1),
    Member(MemberV1),
    Epoch(EpochV1),
    Batch(BatchV1),
    Key(KeyV1),
    Version(VersionV1),
    Lock(LockReportV1),
    Operations(OperationsV1),
    Former(FormerV1),
    Invitation(InvitationV1),
    Operator(OperatorV1),
    Order(OrderV1),
}

same_variants!(Row, RowV1 {
    Clock(time_ms),
    Cluster(cluster),
    Member(member),
    Epoch(epoch),
    Batch(batch),
    Key(key),
    Version(version),
    Lock(report),
    Operations(operations),
    Former(former),
    Invitation(invitation),
    Operator(operator),
    Order(order)
});

/// ```text
/// cluster 16 | threshold u8 | allow_solo bool | accept_no_redundancy bool | lease_ms | founded_ms
///            | next_node_id | level u16 | incarnation u32
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterV1 {
    cluster: ClusterId,
    threshold: u8,
    allow_solo: bool,
    accept_no_redundancy: bool,
    lease_ms: u64,
    founded_ms: u64,
    next_node_id: u64,
    level: u16,
    incarnation: u32,
}

same_fields!(
    Cluster,
    ClusterV1 {
        cluster,
        threshold,
        allow_solo,
        accept_no_redundancy,
        lease_ms,
        founded_ms,
        next_node_id,
        level,
        incarnation
    }
);

/// ```text
/// node | name text | addresses: list of text | boot_pk 32 | op_pk 32 | share_pk: bytes, 1216 of them | skgen | state
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberV1 {
    node: NodeId,
    name: NodeName,
    addresses: Vec<String>,
    boot_pk: [u8; 32],
    op_pk: [u8; 32],
    share_pk: PublicKey,
    skgen: ShareKeyGeneration,
    state: MemberStateV1,
}

same_fields!(Member, MemberV1 { node, name, addresses, boot_pk, op_pk, share_pk, skgen; state });

/// ```text
/// 0 Active  1 Joining
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MemberStateV1 {
    Active,
    Joining,
}

same_variants!(MemberState, MemberStateV1 { Active, Joining });

/// ```text
/// epoch | phase | threshold u8 | committee: list of seats | share_keys: list of bytes, 1216 each | committee_hash 32
///       | acks: map of node to reshared | activated_ms | swept? { uid 16 | version } | reshared
/// ```
///
/// The number of its records is not stored: a restart counts them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EpochV1 {
    epoch: Epoch,
    phase: EpochPhaseV1,
    threshold: u8,
    committee: Vec<SeatV1>,
    share_keys: Vec<PublicKey>,
    committee_hash: [u8; 32],
    acks: BTreeMap<NodeId, u64>,
    activated_ms: u64,
    swept: Option<KeyVersionId>,
    reshared: u64,
}

impl From<EpochInfo> for EpochV1 {
    fn from(live: EpochInfo) -> Self {
        let EpochInfo {
            epoch,
            phase,
            threshold,
            committee,
            share_keys,
            committee_hash,
            acks,
            activated_ms,
            swept,
            reshared,
            records: _,
        } = live;
        let (phase, committee) = (phase.into(), all_into(committee));
        Self { epoch, phase, threshold, committee, share_keys, committee_hash, acks, activated_ms, swept, reshared }
    }
}

impl From<EpochV1> for EpochInfo {
    fn from(stored: EpochV1) -> Self {
        let EpochV1 {
            epoch,
            phase,
            threshold,
            committee,
            share_keys,
            committee_hash,
            acks,
            activated_ms,
            swept,
            reshared,
        } = stored;
        Self {
            epoch,
            phase: phase.into(),
            threshold,
            committee: all_into(committee),
            share_keys,
            committee_hash,
            acks,
            activated_ms,
            swept,
            reshared,
            records: 0,
        }
    }
}

/// ```text
/// 0 Pending  1 Active  2 Retiring  3 Retired  4 Abandoned
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum EpochPhaseV1 {
    Pending,
    Active,
    Retiring,
    Retired,
    Abandoned,
}

same_variants!(EpochPhase, EpochPhaseV1 { Pending, Active, Retiring, Retired, Abandoned });

/// ```text
/// node | skgen
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeatV1 {
    node: NodeId,
    skgen: ShareKeyGeneration,
}

same_fields!(Seat, SeatV1 { node, skgen });

/// ```text
/// batch 16 | epoch | dealer | opened_ms | header_hash 32 | recovery bool
/// ```
///
/// Which of its indices are used is not stored: a restart finds them in the versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BatchV1 {
    batch: BatchId,
    epoch: Epoch,
    dealer: NodeId,
    opened_ms: u64,
    header_hash: [u8; 32],
    recovery: bool,
}

impl From<BatchInfo> for BatchV1 {
    fn from(live: BatchInfo) -> Self {
        let BatchInfo { batch, epoch, dealer, opened_ms, header_hash, recovery, used: _ } = live;
        Self { batch, epoch, dealer, opened_ms, header_hash, recovery }
    }
}

impl From<BatchV1> for BatchInfo {
    fn from(stored: BatchV1) -> Self {
        let BatchV1 { batch, epoch, dealer, opened_ms, header_hash, recovery } = stored;
        Self { batch, epoch, dealer, opened_ms, header_hash, recovery, used: Vec::new() }
    }
}

/// A key without its versions, which are rows of their own.
///
/// ```text
/// name text | created_ms | tags: map of text to text
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyV1 {
    name: KeyName,
    created_ms: u64,
    tags: BTreeMap<String, String>,
}

same_fields!(KeyRow, KeyV1 { name, created_ms, tags });

/// ```text
/// version | created_ms | kcv 32 | ready bool | request 16 | records: list of record places
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VersionV1 {
    version: KeyVersion,
    created_ms: u64,
    kcv: [u8; 32],
    ready: bool,
    request: RequestId,
    records: Vec<RecordRefV1>,
}

impl From<Version> for VersionV1 {
    fn from(live: Version) -> Self {
        let Version { version, created_ms, kcv, ready, request, records } = live;
        Self { version, created_ms, kcv, ready, request, records: all_into(records) }
    }
}

impl From<VersionV1> for Version {
    fn from(stored: VersionV1) -> Self {
        let VersionV1 { version, created_ms, kcv, ready, request, records } = stored;
        Self { version, created_ms, kcv, ready, request, records: all_into(records) }
    }
}

/// The place of one share record.
///
/// ```text
/// epoch | batch 16 | index | verified bool
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordRefV1 {
    epoch: Epoch,
    batch: BatchId,
    index: u32,
    verified: bool,
}

same_fields!(RecordRef, RecordRefV1 { epoch, batch, index, verified });

/// ```text
/// node | generation | threshold u8 | peers: set of nodes | share_keys: set of skgen | holds_for: set of nodes | writes
///      | reported_ms | former
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LockReportV1 {
    node: NodeId,
    generation: u64,
    threshold: u8,
    peers: BTreeSet<NodeId>,
    share_keys: BTreeSet<ShareKeyGeneration>,
    holds_for: BTreeSet<NodeId>,
    writes: u64,
    reported_ms: u64,
    former: u64,
}

same_fields!(
    LockReport,
    LockReportV1 { node, generation, threshold, peers, share_keys, holds_for, writes, reported_ms, former }
);

/// ```text
/// running? | ended?
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OperationsV1 {
    running: Option<RunningV1>,
    ended: Option<EndedV1>,
}

impl From<Operations> for OperationsV1 {
    fn from(Operations { running, ended }: Operations) -> Self {
        Self { running: running.map(Into::into), ended: ended.map(Into::into) }
    }
}

impl From<OperationsV1> for Operations {
    fn from(OperationsV1 { running, ended }: OperationsV1) -> Self {
        Self { running: running.map(Into::into), ended: ended.map(Into::into) }
    }
}

/// ```text
/// epoch | operation | request 16 | began_ms | abandoned: set of nodes
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunningV1 {
    epoch: Epoch,
    operation: OperationV1,
    request: RequestId,
    began_ms: u64,
    abandoned: BTreeSet<NodeId>,
}

same_fields!(Running, RunningV1 { epoch, request, began_ms, abandoned; operation });

/// ```text
/// was: as running | ended_ms | preempted bool
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndedV1 {
    was: RunningV1,
    ended_ms: u64,
    preempted: bool,
}

same_fields!(Ended, EndedV1 { ended_ms, preempted; was });

/// ```text
/// 0 Rekey  1 Remove{ node }  2 Revoke{ nodes: set of nodes }  3 Join{ node }  4 Replace{ gone | node }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum OperationV1 {
    Rekey,
    Remove { node: NodeId },
    Revoke { nodes: BTreeSet<NodeId> },
    Join { node: NodeId },
    Replace { gone: NodeId, node: NodeId },
}

same_variants!(Operation, OperationV1 {
    Rekey,
    Remove { node },
    Revoke { nodes },
    Join { node },
    Replace { gone, node }
});

/// ```text
/// node | name text | boot_pk 32 | op_pk 32 | revoked bool | ended_ms
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FormerV1 {
    node: NodeId,
    name: NodeName,
    boot_pk: [u8; 32],
    op_pk: [u8; 32],
    revoked: bool,
    ended_ms: u64,
}

same_fields!(Former, FormerV1 { node, name, boot_pk, op_pk, revoked, ended_ms });

/// ```text
/// proof_key 32 | name? text | expires_ms | bound? 32 | replaces? node
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InvitationV1 {
    proof_key: [u8; 32],
    name: Option<NodeName>,
    expires_ms: u64,
    bound: Option<[u8; 32]>,
    replaces: Option<NodeId>,
}

same_fields!(InvitationInfo, InvitationV1 { proof_key, name, expires_ms, bound, replaces });

impl std::fmt::Debug for InvitationV1 {
    /// Without the proof key: a node that knows it can join.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InvitationV1").field("expires_ms", &self.expires_ms).finish_non_exhaustive()
    }
}

/// ```text
/// key 32 | label text | added_ms
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OperatorV1 {
    key: signature::PublicKey,
    label: String,
    added_ms: u64,
}

same_fields!(Operator, OperatorV1 { key, label, added_ms });

/// ```text
/// request 16 | digest 32 | expires_ms | outcome: 0 and the outcome, or 1 and the refusal
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OrderV1 {
    request: RequestId,
    digest: [u8; 32],
    expires_ms: u64,
    outcome: Result<Outcome, Refusal>,
}

same_fields!(CarriedOrder, OrderV1 { request, digest, expires_ms, outcome });
