//! What a node and a cluster say about themselves.

use std::fmt;

use quorate_shares::ids::{ClusterId, Epoch, NodeId, NodeName};
use serde::{Deserialize, Serialize};

/// How far a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// No vault: waits for `cluster init` or `node join`.
    Uninitialised,
    /// Founding a cluster, or joining one.
    Joining,
    /// Waits for its peers to unlock it.
    Locked,
    /// Unlocked, without a lease.
    Open,
    /// Answers clients.
    Serving,
    /// Told to forget its keys until told otherwise.
    Sealed,
    /// Removed from the cluster for good.
    Revoked,
}

impl Phase {
    /// The word for people and for JSON.
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

/// A node's part in the cluster's decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Leads the others.
    Leader,
    /// Has a vote, and a share of every key.
    Voter,
    /// Follows without a vote.
    Learner,
}

impl Role {
    /// The word for people and for JSON.
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

/// The state of a cluster, as one serving node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Who answers.
    pub node: NodeName,
    /// The software that it runs.
    pub version: String,
    /// Its phase.
    pub phase: Phase,
    /// Whether it stands in a quorum now.
    pub quorum: bool,
    /// Why it does not.
    pub reason: Option<String>,
    /// Shares that open a key.
    pub threshold: u8,
    /// Voters.
    pub voters: u8,
    /// Disks that a thief must have at one instant to open anything; below `threshold` while a change is under way.
    pub theft_threshold: u8,
    /// The active epoch.
    pub epoch: Epoch,
    /// Who leads, if known.
    pub leader: Option<NodeName>,
    /// What is left of the answering node's lease; `None` without one.
    pub lease_ms: Option<u32>,
    /// Keys that exist.
    pub keys: u64,
    /// Those whose newest version existed while one disk alone opened every key; after growth they should be rotated.
    pub one_disk_keys: u64,
    /// A change of members that is under way.
    pub operation: Option<OperationStatus>,
    /// Open alarms, oldest first.
    pub alarms: Vec<Alarm>,
    /// Whom the answering node waits for.
    pub waiting_for: Vec<NodeName>,
    /// All nodes, by rising id.
    pub nodes: Vec<NodeInfo>,
}

impl Status {
    /// How many more nodes may fail while every key can still be used: as many as neither the majority of the voters nor the
    /// threshold needs. A sealed node votes, and gives no share. `None` without a quorum, and if too few give shares already.
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

/// A long operation and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationStatus {
    /// What was ordered, as in `founding` or `revoke n4`.
    pub name: String,
    /// The step that is under way.
    pub step: String,
    /// Whom it waits for.
    pub waiting_for: Vec<String>,
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Whether it still runs.
    pub stage: Stage,
    /// What it is and where it stands; only its name once it is over.
    pub operation: OperationStatus,
    /// What has become of the nodes that it revokes, if it does.
    pub revocation: Option<RevocationProgress>,
}

/// Whether an operation still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// It does.
    Runs,
    /// It is done.
    Done,
    /// A revocation took its place; it can be ordered again.
    Preempted,
}

/// What has become of revoked nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationProgress {
    /// Enough nodes refuse them that the rest cannot let them in any more.
    pub decisive: bool,
    /// No lease that was given before still runs.
    pub leases_over: bool,
    /// Nodes that have erased what their disks need to be opened.
    pub erased: u8,
    /// How many must have, for their disks to be dead.
    pub erased_needed: u8,
    /// Nodes that renewed their own locks without them.
    pub renewed: u8,
    /// Nodes that remain.
    pub remaining: u8,
}

impl RevocationProgress {
    /// Whether a stolen disk of theirs, with those of fewer than the threshold of others, opens no key.
    pub fn disk_is_dead(&self) -> bool {
        self.decisive && self.erased >= self.erased_needed
    }

    /// Whether it opens nothing at all, names included: neither its own lock nor, with its help, that of another.
    pub fn names_are_safe(&self) -> bool {
        self.disk_is_dead() && self.renewed >= self.remaining
    }
}

/// Something that an operator should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// For programs, as in `stale_image`.
    pub code: String,
    /// For people.
    pub message: String,
    /// The node that it is about.
    pub node: Option<NodeName>,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// One node as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub name: NodeName,
    /// Its number, never reused.
    pub id: NodeId,
    /// Where it listens.
    pub addresses: Vec<String>,
    /// Its part.
    pub role: Role,
    /// What it reported when it was last heard of; `None` if it has not been since the answering node started.
    pub state: Option<NodeState>,
}

/// Whether copies of a node's disk from before its last renewal still open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldCopies {
    /// Peers that can open no piece of an older lock any more.
    pub erased: u8,
    /// How many of them are enough: from then on no number of current disks that is below the threshold opens an old copy.
    pub needed: u8,
}

impl OldCopies {
    /// Whether every older copy is worthless.
    pub fn are_dead(self) -> bool {
        self.erased >= self.needed
    }
}

/// What a node reports about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// How far it is.
    pub phase: Phase,
    /// Entries of the log that it has still to apply.
    pub lag: u64,
    /// The epoch that it holds shares of.
    pub epoch: Epoch,
    /// The generation of its quorum lock.
    pub lock_generation: u64,
    /// What has become of older locks; `None` until it renews its lock after a start.
    pub old_copies: Option<OldCopies>,
    /// How long ago it was heard of, in milliseconds.
    pub last_seen_ms: u64,
}
