//! What the log and the meta rows look like as bytes, on disk and between nodes.
//!
//! openraft's own types never leave the process: their serde layout is not stable. Each stored thing is an enum with one
//! variant per version of its format, encoded through [`quorate_shares::codec`] with a limit. Adding a field means adding
//! a variant; a reader that meets a variant that it does not know refuses it.

use std::collections::{BTreeMap, BTreeSet};

use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use openraft::vote::RaftLeaderId;
use openraft::{BasicNode, Membership};
use quorate_shares::codec;
use quorate_shares::ids::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

use crate::command::{COMMAND_BYTES_MAX, Command};
use crate::types::{Payload, Types};
use crate::voters::{Intent, Purpose};

/// What decoding one entry may claim: a command, and the vectors inside it, which claim more than they fill.
pub(crate) const ENTRY_CLAIM_MAX: usize = 4 * COMMAND_BYTES_MAX;
/// What decoding a meta row may claim.
const META_CLAIM_MAX: usize = 64 * 1024;

/// The place of an entry in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogPlace {
    /// The leader's term.
    pub term: u64,
    /// The leader.
    pub node: NodeId,
    /// The index in the log.
    pub index: u64,
}

/// A vote: the newest term that this node knows, for whom, and whether a quorum granted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ballot {
    /// The term.
    pub term: u64,
    /// The candidate or leader.
    pub node: NodeId,
    /// Granted by a quorum.
    pub committed: bool,
}

/// Who votes and who learns: one set of voters, or two while it changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Roster {
    configs: Vec<BTreeSet<u64>>,
    nodes: BTreeMap<u64, String>,
}

/// An entry, format 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryV1 {
    place: LogPlace,
    payload: PayloadV1,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PayloadV1 {
    Blank,
    Command(Command),
    /// A membership that nobody had to say more about: the first of all, and those that only differ in learners.
    Membership(Roster),
    /// A change of the voters, and why.
    Change {
        purpose: Purpose,
        denies_at_append: bool,
        membership: Roster,
    },
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum StoredEntry {
    V1(EntryV1),
}

/// A [`StoredEntry`] that is only to be written: without a copy of the command.
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
    Membership(Roster),
    Change { purpose: Purpose, denies_at_append: bool, membership: Roster },
}

/// A row of `meta`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Meta {
    V1(MetaV1),
}

/// Rows of `meta`, format 1.
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
    /// A snapshot is being installed from this file; whatever `state` holds is half old and half new.
    Installing(SnapshotId),
    /// The newest complete snapshot file.
    Snapshot(SnapshotId),
}

/// Names a snapshot file.
pub(crate) type SnapshotId = [u8; 16];

/// The first row of `state`: how far the rows after it go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Applied {
    /// Written before memberships had an intent; read for ever.
    V1 {
        last: Option<LogPlace>,
        membership_at: Option<LogPlace>,
        membership: Roster,
    },
    V2 {
        last: Option<LogPlace>,
        membership_at: Option<LogPlace>,
        membership: Roster,
        intent: Option<Intent>,
    },
}

/// How far the rows of `state` go, and the newest membership among what is applied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Reach {
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

/// Decodes one entry.
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
pub(crate) fn decode_applied(bytes: &[u8]) -> Result<Applied, codec::CodecError> {
    codec::decode::<_, META_CLAIM_MAX>(bytes)
}

impl LogPlace {
    pub(crate) fn of(id: LogIdOf<Types>) -> Self {
        Self { term: id.leader_id.term, node: NodeId(id.leader_id.node_id), index: id.index }
    }

    pub(crate) fn log_id(self) -> LogIdOf<Types> {
        LogIdOf::<Types> { leader_id: RaftLeaderId::new(self.term, self.node.0), index: self.index }
    }
}

impl Ballot {
    pub(crate) fn of(vote: VoteOf<Types>) -> Self {
        let leader = vote.leader_id;
        Self { term: leader.term, node: NodeId(leader.node_id), committed: vote.committed }
    }

    pub(crate) fn vote(self) -> VoteOf<Types> {
        let mut vote = VoteOf::<Types>::new(self.term, self.node.0);
        vote.committed = self.committed;
        vote
    }
}

impl From<&Membership<u64, BasicNode>> for Roster {
    fn from(membership: &Membership<u64, BasicNode>) -> Self {
        let nodes = membership.nodes().map(|(node, basic)| (*node, basic.addr.clone()));
        Self { configs: membership.get_joint_config().clone(), nodes: nodes.collect() }
    }
}

impl TryFrom<Roster> for Membership<u64, BasicNode> {
    type Error = codec::CodecError;
    fn try_from(roster: Roster) -> Result<Self, Self::Error> {
        if roster.configs.is_empty() && roster.nodes.is_empty() {
            return Ok(Self::default());
        }
        let nodes: BTreeMap<_, _> = roster.nodes.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
        Self::new(roster.configs, nodes).map_err(|_| codec::CodecError::Malformed)
    }
}

impl From<&Reach> for Applied {
    fn from(reach: &Reach) -> Self {
        Self::V2 {
            last: reach.last.map(LogPlace::of),
            membership_at: reach.membership.log_id().map(LogPlace::of),
            membership: reach.membership.membership().into(),
            intent: reach.intent,
        }
    }
}

impl Reach {
    /// As openraft describes a snapshot.
    pub(crate) fn into_meta(self) -> SnapshotMetaOf<Types> {
        SnapshotMetaOf::<Types> { last_log_id: self.last, last_membership: self.membership }
    }
}

impl TryFrom<Applied> for Reach {
    type Error = codec::CodecError;
    fn try_from(applied: Applied) -> Result<Self, Self::Error> {
        let (last, at, membership, intent) = match applied {
            Applied::V1 { last, membership_at, membership } => (last, membership_at, membership, None),
            Applied::V2 { last, membership_at, membership, intent } => (last, membership_at, membership, intent),
        };
        let membership = StoredMembershipOf::<Types>::new(at.map(LogPlace::log_id), membership.try_into()?);
        Ok(Self { last: last.map(LogPlace::log_id), membership, intent })
    }
}

impl<'a> From<&'a EntryOf<Types>> for EntryRefV1<'a> {
    fn from(entry: &'a EntryOf<Types>) -> Self {
        let payload = match &entry.payload {
            Payload::Blank => PayloadRefV1::Blank,
            Payload::Command(command) => PayloadRefV1::Command(command),
            Payload::Membership(None, membership) => PayloadRefV1::Membership(membership.into()),
            Payload::Membership(Some(Intent { purpose, denies_at_append }), membership) => PayloadRefV1::Change {
                purpose: *purpose,
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
            PayloadV1::Membership(roster) => Payload::Membership(None, roster.try_into()?),
            PayloadV1::Change { purpose, denies_at_append, membership } => {
                Payload::Membership(Some(Intent { purpose, denies_at_append }), membership.try_into()?)
            }
        };
        Ok(EntryOf::<Types> { log_id: self.place.log_id(), payload })
    }
}
