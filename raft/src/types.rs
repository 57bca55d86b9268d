//! The types that openraft is told to work with.

use std::fmt;

use openraft::entry::RaftPayload;
use openraft::{BasicNode, Membership};
use serde::{Deserialize, Serialize};

use crate::live::command::{Command, Outcome};
use crate::live::refusal::Refusal;
use crate::live::voters::Intent;

/// What applying an entry answers; `None` for entries of openraft's own.
pub(crate) type Answer = Option<Result<Outcome, Refusal>>;

/// What an entry carries. openraft's own payload has no room for why a membership changes, and that must be one entry
/// with the membership: whoever appends it acts on it at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Payload {
    Blank,
    Command(Command),
    /// The intent is that of whoever proposed it; the first membership of all, and learners, have none.
    Membership(Option<Intent>, Membership<u64, BasicNode>),
}

impl Payload {
    /// What openraft is given to put the membership into.
    pub(crate) fn intending(intent: Option<Intent>) -> Self {
        Self::Membership(intent, Membership::default())
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

    fn with_membership(self, membership: Membership<u64, BasicNode>) -> Self {
        match self {
            Self::Membership(intent, _) => Self::Membership(intent, membership),
            Self::Blank | Self::Command(_) => Self::Membership(None, membership),
        }
    }

    fn get_membership(&self) -> Option<Membership<u64, BasicNode>> {
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
    /// Commands in, answers out; node ids as numbers, and a label of each node for messages.
    pub(crate) Types:
        D = Command,
        R = Answer,
        NodeId = u64,
        Node = openraft::BasicNode,
        Payload = Payload,
);
