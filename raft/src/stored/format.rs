//! What log entries, meta rows and the applied position look like as bytes, on disk and between nodes.
//!
//! openraft's own types never leave the process, because their serde layout is not stable. Each stored value is an enum with
//! one variant per version of its format, encoded through [`quorate_shares::codec`] with a limit. A new field needs a new
//! variant. A reader refuses a variant that it does not know.
//!
//! A command is stored as it is: it is a format itself ([`command`](crate::live::command)).

use std::collections::{BTreeMap, BTreeSet};

use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf};
use openraft::{BasicNode, Membership};
use quorate_shares::codec;
use quorate_shares::ids::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

use super::convert::{same_fields, same_variants};
use crate::live::command::{COMMAND_BYTES_MAX, Command};
use crate::live::place::{Ballot, LogPlace};
use crate::live::voters::{ChangePurpose, Intent};
use crate::types::{Payload, Types};

/// Most memory that decoding one entry may claim: a command, and its vectors, which claim more than they fill.
pub(crate) const ENTRY_CLAIM_MAX: usize = 4 * COMMAND_BYTES_MAX;
/// Most memory that decoding a meta row may claim.
const META_CLAIM_MAX: usize = 64 * 1024;

/// The voters and the learners: one set of voters, or two while they change. A node in no set is a learner.
///
/// ```text
/// configs: list of sets of nodes | nodes: map of node to label text
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MembershipV1 {
    configs: Vec<BTreeSet<u64>>,
    nodes: BTreeMap<u64, String>,
}

/// ```text
/// 0 Add  1 Remove  2 Revoke  3 Replace
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ChangePurposeV1 {
    Add,
    Remove,
    Revoke,
    Replace,
}

same_variants!(ChangePurpose, ChangePurposeV1 { Add, Remove, Revoke, Replace });

/// ```text
/// purpose | denies_at_append bool
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IntentV1 {
    purpose: ChangePurposeV1,
    denies_at_append: bool,
}

same_fields!(Intent, IntentV1 { denies_at_append; purpose });

/// An entry, format 1.
///
/// ```text
/// place { term | node | index } | payload
/// payload: 0 Blank  1 Command  2 Membership  3 Change{ purpose | denies_at_append bool | membership }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryV1 {
    place: LogPlace,
    payload: PayloadV1,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PayloadV1 {
    Blank,
    Command(Command),
    /// A membership without an intent: the first of all, and those that differ in learners only.
    Membership(MembershipV1),
    /// A change of the voters, with its intent.
    Change {
        purpose: ChangePurposeV1,
        denies_at_append: bool,
        membership: MembershipV1,
    },
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum StoredEntry {
    V1(EntryV1),
}

/// A [`StoredEntry`] for writing, which borrows the command instead of copying it.
#[derive(Serialize)]
enum StoredEntryRef<'a> {
    V1(EntryRefV1<'a>),
}

#[derive(Serialize)]
struct EntryRefV1<'a> {
    place: LogPlace,
    payload: PayloadRefV1<'a>,
}

#[derive(Serialize)]
enum PayloadRefV1<'a> {
    Blank,
    Command(&'a Command),
    Membership(MembershipV1),
    Change { purpose: ChangePurposeV1, denies_at_append: bool, membership: MembershipV1 },
}

/// A row of `meta`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Meta {
    V1(MetaV1),
}

/// Rows of `meta`, format 1.
///
/// ```text
/// 0 Identity{ cluster 16 | node | schema }  1 Vote{ term | node | committed bool }  2 Committed(place?)  3 Purged(place)
/// 4 Truncations(u64)  5 Installing(snapshot id 16)  6 Snapshot(snapshot id 16)
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MetaV1 {
    /// Whose database this is, and the layout of its rows.
    Identity {
        cluster: ClusterId,
        node: NodeId,
        schema: u32,
    },
    Vote(Ballot),
    Committed(Option<LogPlace>),
    Purged(LogPlace),
    Truncations(u64),
    /// A snapshot is being installed from this file. What `state` holds is half old and half new.
    Installing(SnapshotId),
    /// The newest complete snapshot file.
    Snapshot(SnapshotId),
}

/// Names a snapshot file.
pub(crate) type SnapshotId = [u8; 16];

/// The first row of `state`: the applied position of the rows after it.
///
/// ```text
/// 0 V1{ last: place? | membership_at: place? | membership }  1 V2{ as V1 | intent? }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AppliedRow {
    /// Written before memberships had an intent. Still read.
    V1 {
        last: Option<LogPlace>,
        membership_at: Option<LogPlace>,
        membership: MembershipV1,
    },
    V2 {
        last: Option<LogPlace>,
        membership_at: Option<LogPlace>,
        membership: MembershipV1,
        intent: Option<IntentV1>,
    },
}

/// How far the rows of `state` go, and the newest membership among what is applied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct AppliedPosition {
    pub(crate) last: Option<LogIdOf<Types>>,
    pub(crate) membership: StoredMembershipOf<Types>,
    pub(crate) intent: Option<Intent>,
}

/// How many bytes [`encode`] makes of `value`.
pub(crate) fn encoded_len<T: Serialize>(value: &T) -> usize {
    codec::encoded_len(value).expect("counting has no limit to exceed")
}

/// Encodes anything stored. Encoding to memory cannot fail.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    codec::encode(value).expect("encoding to memory has no limit to exceed")
}

pub(crate) fn decode_entry(bytes: &[u8]) -> Result<EntryOf<Types>, codec::CodecError> {
    let StoredEntry::V1(entry) = codec::decode::<_, ENTRY_CLAIM_MAX>(bytes)?;
    entry.into_entry()
}

/// Encodes one entry, as a [`StoredEntry`] is encoded.
pub(crate) fn encode_entry(entry: &EntryOf<Types>) -> Vec<u8> {
    encode(&StoredEntryRef::V1(EntryRefV1::from(entry)))
}

/// Decodes a row of `meta`.
pub(crate) fn decode_meta(bytes: &[u8]) -> Result<MetaV1, codec::CodecError> {
    let Meta::V1(row) = codec::decode::<_, META_CLAIM_MAX>(bytes)?;
    Ok(row)
}

/// Decodes the first row of `state`.
pub(crate) fn decode_applied(bytes: &[u8]) -> Result<AppliedRow, codec::CodecError> {
    codec::decode::<_, META_CLAIM_MAX>(bytes)
}

impl From<&Membership<u64, BasicNode>> for MembershipV1 {
    fn from(membership: &Membership<u64, BasicNode>) -> Self {
        let nodes = membership.nodes().map(|(node, basic)| (*node, basic.addr.clone()));
        Self { configs: membership.get_joint_config().clone(), nodes: nodes.collect() }
    }
}

impl TryFrom<MembershipV1> for Membership<u64, BasicNode> {
    type Error = codec::CodecError;
    fn try_from(stored: MembershipV1) -> Result<Self, Self::Error> {
        if stored.configs.is_empty() && stored.nodes.is_empty() {
            return Ok(Self::default());
        }
        let nodes: BTreeMap<_, _> = stored.nodes.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
        Self::new(stored.configs, nodes).map_err(|_| codec::CodecError::Malformed)
    }
}

impl From<&AppliedPosition> for AppliedRow {
    fn from(position: &AppliedPosition) -> Self {
        Self::V2 {
            last: position.last.map(LogPlace::of),
            membership_at: position.membership.log_id().map(LogPlace::of),
            membership: position.membership.membership().into(),
            intent: position.intent.map(Into::into),
        }
    }
}

impl AppliedPosition {
    /// As openraft describes a snapshot.
    pub(crate) fn into_meta(self) -> SnapshotMetaOf<Types> {
        SnapshotMetaOf::<Types> { last_log_id: self.last, last_membership: self.membership }
    }
}

impl TryFrom<AppliedRow> for AppliedPosition {
    type Error = codec::CodecError;
    fn try_from(applied: AppliedRow) -> Result<Self, Self::Error> {
        let (last, at, membership, intent) = match applied {
            AppliedRow::V1 { last, membership_at, membership } => (last, membership_at, membership, None),
            AppliedRow::V2 { last, membership_at, membership, intent } => (last, membership_at, membership, intent),
        };
        let membership = StoredMembershipOf::<Types>::new(at.map(LogPlace::log_id), membership.try_into()?);
        Ok(Self { last: last.map(LogPlace::log_id), membership, intent: intent.map(Into::into) })
    }
}

impl<'a> From<&'a EntryOf<Types>> for EntryRefV1<'a> {
    fn from(entry: &'a EntryOf<Types>) -> Self {
        let payload = match &entry.payload {
            Payload::Blank => PayloadRefV1::Blank,
            Payload::Command(command) => PayloadRefV1::Command(command),
            Payload::Membership(None, membership) => PayloadRefV1::Membership(membership.into()),
            Payload::Membership(Some(Intent { purpose, denies_at_append }), membership) => PayloadRefV1::Change {
                purpose: (*purpose).into(),
                denies_at_append: *denies_at_append,
                membership: membership.into(),
            },
        };
        Self { place: LogPlace::of(entry.log_id), payload }
    }
}

impl EntryV1 {
    fn into_entry(self) -> Result<EntryOf<Types>, codec::CodecError> {
        let payload = match self.payload {
            PayloadV1::Blank => Payload::Blank,
            PayloadV1::Command(command) => Payload::Command(command),
            PayloadV1::Membership(membership) => Payload::Membership(None, membership.try_into()?),
            PayloadV1::Change { purpose, denies_at_append, membership } => {
                let intent = Intent { purpose: purpose.into(), denies_at_append };
                Payload::Membership(Some(intent), membership.try_into()?)
            }
        };
        Ok(EntryOf::<Types> { log_id: self.place.log_id(), payload })
    }
}
