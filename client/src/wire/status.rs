//! The state of nodes, of the cluster and of operations, as nodes report it.

use std::fmt;

use quorate_shares::ids::{ClusterId, Epoch, NodeId, NodeName};
use serde::{Deserialize, Serialize};

/// The phase of a node between its first start and its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The node has no vault and waits for `cluster init` or `node join`.
    Uninitialised,
    /// The node founds a cluster, or joins one.
    Joining,
    /// The node waits for its peers to unlock it.
    Locked,
    /// The node is unlocked, but has no lease.
    Open,
    /// The node answers clients.
    Serving,
    /// An operator sealed the node: it holds no keys until it is unsealed.
    Sealed,
    /// The node is removed from the cluster for ever.
    Revoked,
}

impl Phase {
    /// The word for this value, for people and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uninitialised => "uninitialised",
            Self::Joining => "joining",
            Self::Locked => "locked",
            Self::Open => "open",
            Self::Serving => "serving",
            Self::Sealed => "sealed",
            Self::Revoked => "revoked",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The role of a node in Raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The node leads the others, and has a vote and a share of every key.
    Leader,
    /// The node has a vote, and a share of every key.
    Voter,
    /// The node follows without a vote.
    Learner,
}

impl Role {
    /// The word for this value, for people and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Voter => "voter",
            Self::Learner => "learner",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The state of a cluster as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The id of the cluster.
    pub cluster: ClusterId,
    /// The name of the node that answers.
    pub node: NodeName,
    /// The version of the software on that node.
    pub version: String,
    /// The phase of that node.
    pub phase: Phase,
    /// Whether that node is in a quorum now.
    pub quorum: bool,
    /// Why it is not in a quorum; `None` if it is.
    pub reason: Option<String>,
    /// How many shares rebuild a key.
    pub threshold: u8,
    /// Number of nodes with a vote.
    pub voters: u8,
    /// How many disks, all as they are at one instant, a thief needs to open anything. It is below `threshold` while a
    /// change of members runs.
    pub theft_threshold: u8,
    /// The epoch whose shares are in use.
    pub epoch: Epoch,
    /// The leader, if it is known.
    pub leader: Option<NodeName>,
    /// What is left of the answering node's lease, in milliseconds; `None` without a lease.
    pub lease_ms: Option<u32>,
    /// Number of keys.
    pub keys: u64,
    /// Number of keys whose newest version existed while one disk alone opened every key. They should be rotated when
    /// the cluster has grown.
    pub one_disk_keys: u64,
    /// The operation that runs now, if one does.
    pub operation: Option<OperationStatus>,
    /// The open alarms, oldest first.
    pub alarms: Vec<Alarm>,
    /// The nodes that the answering node waits for.
    pub waiting_for: Vec<NodeName>,
    /// All nodes, by rising id.
    pub nodes: Vec<NodeInfo>,
}

impl Status {
    /// How many more nodes may fail while every key can still be used. A majority of the voters must remain, and enough
    /// nodes for the threshold. A sealed node votes but gives no share. `None` without a quorum, or if too few nodes
    /// give shares now.
    pub fn may_lose(&self) -> Option<u8> {
        let is = |node: &&NodeInfo, phases: &[Phase]| {
            let now = node.state.as_ref().filter(|state| state.last_seen_ms == 0);
            node.role != Role::Learner && now.is_some_and(|state| phases.contains(&state.phase))
        };
        let count = |phases: &[Phase]| self.nodes.iter().filter(|node| is(node, phases)).count();
        let votes =
            count(&[Phase::Open, Phase::Serving, Phase::Sealed]).checked_sub(usize::from(self.voters) / 2 + 1)?;
        let shares = count(&[Phase::Open, Phase::Serving]).checked_sub(self.threshold.into())?;
        u8::try_from(votes.min(shares)).ok().filter(|_| self.quorum)
    }
}

/// A long operation and its present step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationStatus {
    /// The name of the operation, as in `founding` or `revoke n4`.
    pub name: String,
    /// The step that runs now.
    pub step: String,
    /// The nodes that it waits for.
    pub waiting_for: Vec<String>,
}

/// The progress of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Whether the operation still runs.
    pub stage: Stage,
    /// The operation and its step. When it is over, only the name is set.
    pub operation: OperationStatus,
    /// The progress of the revocation, if the operation revokes nodes.
    pub revocation: Option<RevocationProgress>,
}

/// Whether an operation still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// It still runs.
    Runs,
    /// It is done.
    Done,
    /// A revocation replaced it. It can be started again.
    Preempted,
}

/// How effective the revocation of nodes is so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationProgress {
    /// So many nodes refuse the revoked nodes that the others cannot let them in any more.
    pub decisive: bool,
    /// No lease that was given before the revocation still runs.
    pub leases_over: bool,
    /// Number of nodes that have erased the lock keys that the disks of the revoked nodes need.
    pub erased: u8,
    /// How many nodes must have erased them, so that those disks never open again.
    pub erased_needed: u8,
    /// Number of nodes that have renewed their own locks without the revoked nodes.
    pub renewed: u8,
    /// Number of nodes that remain in the cluster.
    pub remaining: u8,
}

impl RevocationProgress {
    /// Whether the stolen disk of a revoked node opens no key, even together with the disks of other nodes below the
    /// threshold.
    pub fn disk_is_dead(&self) -> bool {
        self.decisive && self.erased >= self.erased_needed
    }

    /// Whether that disk opens nothing at all, not even names: neither its own lock nor, with its help, the lock of
    /// another node.
    pub fn names_are_safe(&self) -> bool {
        self.disk_is_dead() && self.renewed >= self.remaining
    }
}

/// A condition that an operator should examine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// The kind of alarm for programs, as in `stale_image`.
    pub code: String,
    /// What happened, for people.
    pub message: String,
    /// The node that the alarm is about, if it is about one.
    pub node: Option<NodeName>,
    /// When the alarm was raised, in milliseconds since 1970.
    pub since_ms: u64,
}

/// One node as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The name of the node.
    pub name: NodeName,
    /// The number of the node. It is never reused.
    pub id: NodeId,
    /// Where the node listens, as `host:port`.
    pub addresses: Vec<String>,
    /// The role of the node in Raft.
    pub role: Role,
    /// The last report of the node; `None` if there was none since the answering node started.
    pub state: Option<NodeState>,
}

/// Whether a copy of a node's disk from before its last lock renewal still opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldCopies {
    /// Number of peers that cannot open a piece of an older lock any more.
    pub erased: u8,
    /// How many such peers are enough. Then no set of current disks below the threshold opens an old copy.
    pub needed: u8,
}

impl OldCopies {
    /// Whether no older copy opens any more.
    pub fn are_dead(self) -> bool {
        self.erased >= self.needed
    }
}

/// The report of a node about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// The phase of the node.
    pub phase: Phase,
    /// Number of log entries that the node has still to apply.
    pub lag: u64,
    /// The epoch of the shares that the node holds.
    pub epoch: Epoch,
    /// The generation of the node's quorum lock.
    pub lock_generation: u64,
    /// Whether copies with older locks still open; `None` until the node has renewed its lock after a start.
    pub old_copies: Option<OldCopies>,
    /// How long ago the report came, in milliseconds.
    pub last_seen_ms: u64,
}
