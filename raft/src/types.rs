//! The types that openraft is told to work with.

use crate::command::{Command, Outcome};
use crate::refusal::Refusal;

/// What applying an entry answers; `None` for entries of openraft's own.
pub(crate) type Answer = Option<Result<Outcome, Refusal>>;

openraft::declare_raft_types!(
    /// Commands in, answers out; node ids as numbers, and a label of each node for messages.
    pub(crate) Types:
        D = Command,
        R = Answer,
        NodeId = u64,
        Node = openraft::BasicNode,
);
