//! The types that openraft is told to work with, and how its own become ours.

use std::fmt;

use openraft::BasicNode;
use openraft::alias::{EntryOf, LogIdOf, StoredMembershipOf, VoteOf};
use openraft::entry::RaftPayload;
use openraft::vote::RaftLeaderId;
use quorate_shares::ids::NodeId;
use serde::{Deserialize, Serialize};

use crate::live::command::{Command, Outcome};
use crate::live::place::{Ballot, LogPlace};
use crate::live::refusal::Refusal;
use crate::live::voters::{Denial, Intent, Membership, denied_by_joint};

/// The answer to an applied entry; `None` for openraft's own entries.
pub(crate) type Answer = Option<Result<Outcome, Refusal>>;

/// What an entry carries. openraft's own payload has no room for the reason of a change of membership. The reason must be in the
/// same entry as the membership, because a node that appends the entry acts on both at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Payload {
    Blank,
    Command(Command),
    /// With the intent of the proposer. The first membership of all has none, and neither have changes of learners.
    Membership(Option<Intent>, openraft::Membership<u64, BasicNode>),
}

impl Payload {
    /// A payload that openraft puts the membership into.
    pub(crate) fn intending(intent: Option<Intent>) -> Self {
        Self::Membership(intent, openraft::Membership::default())
    }
}

impl RaftPayload for Payload {
    type D = Command;
    type NodeId = u64;
    type Node = BasicNode;

    fn blank() -> Self {
        Self::Blank
    }

    fn with_normal(self, command: Command) -> Self {
        Self::Command(command)
    }

    fn with_membership(self, membership: openraft::Membership<u64, BasicNode>) -> Self {
        match self {
            Self::Membership(intent, _) => Self::Membership(intent, membership),
            Self::Blank | Self::Command(_) => Self::Membership(None, membership),
        }
    }

    fn get_membership(&self) -> Option<openraft::Membership<u64, BasicNode>> {
        match self {
            Self::Membership(_, membership) => Some(membership.clone()),
            Self::Blank | Self::Command(_) => None,
        }
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("blank"),
            Self::Command(command) => command.fmt(f),
            Self::Membership(Some(intent), membership) => write!(f, "{membership} to {}", intent.purpose),
            Self::Membership(None, membership) => membership.fmt(f),
        }
    }
}

openraft::declare_raft_types!(
    /// Commands in, answers out. Node ids are numbers, and each node has a label for messages.
    pub(crate) Types:
        D = Command,
        R = Answer,
        NodeId = u64,
        Node = openraft::BasicNode,
        Payload = Payload,
);

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

impl Membership {
    pub(crate) fn of(stored: &StoredMembershipOf<Types>, committed: bool) -> Self {
        Self { place: stored.log_id().map(LogPlace::of), committed, ..Self::from(stored.membership()) }
    }
}

impl From<&openraft::Membership<u64, BasicNode>> for Membership {
    fn from(membership: &openraft::Membership<u64, BasicNode>) -> Self {
        let configs = membership.get_joint_config().iter();
        Self {
            configs: configs.map(|voters| voters.iter().copied().map(NodeId).collect()).collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            place: None,
            committed: false,
        }
    }
}

/// The nodes that an entry denies as soon as it is appended.
pub(crate) fn denied_at_append(entry: &EntryOf<Types>) -> Vec<Denial> {
    let Payload::Membership(Some(intent), membership) = &entry.payload else { return Vec::new() };
    denied_by_joint(*intent, &Membership::from(membership), LogPlace::of(entry.log_id))
}
