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
    /// How many more nodes may fail, whichever they are, while every key can still be used. A majority of the voters must
    /// remain, and enough nodes for the threshold. A sealed node votes but gives no share. `None` without a quorum, or if too few
    /// nodes give shares now.
    ///
    /// A session that is open may end with a node that fails. So two nodes work together only if one of them can dial the other
    /// at an address that the cluster records, and clients need such a node, too.
    pub fn may_lose(&self) -> Option<u8> {
        let is = |node: &&NodeInfo, phases: &[Phase]| {
            let now = node.state.as_ref().filter(|state| state.last_seen_ms == 0);
            node.role != Role::Learner && now.is_some_and(|state| phases.contains(&state.phase))
        };
        let there: Vec<_> =
            self.nodes.iter().filter(|node| is(node, &[Phase::Open, Phase::Serving, Phase::Sealed])).collect();
        let need = Need { voters: usize::from(self.voters) / 2 + 1, sharers: self.threshold.into() };
        if !self.quorum || !need.is_met(&there) || there.len() > NODES_MAX {
            return None;
        }
        let left = |group: u32| -> Vec<&NodeInfo> {
            let stays = |(place, _): &(usize, &&NodeInfo)| group >> place & 1 == 1;
            there.iter().enumerate().filter(stays).map(|(_, node)| *node).collect()
        };
        let fatal = (0..1 << there.len())
            .map(left)
            .filter(|left| !need.is_met_by_dialling(left))
            .map(|left| there.len() - left.len());
        let first = fatal.min().unwrap_or(there.len() + 1);
        u8::try_from(first.saturating_sub(1)).ok()
    }
}

/// Nodes whose groups are all looked at: 512 groups of the nine that a cluster has at most.
const NODES_MAX: usize = 9;

/// What must remain so that keys can be used.
#[derive(Clone, Copy)]
struct Need {
    voters: usize,
    sharers: usize,
}

impl Need {
    fn is_met(self, nodes: &[&NodeInfo]) -> bool {
        let phase = |node: &&&NodeInfo| node.state.as_ref().map(|state| state.phase);
        let sharers = nodes.iter().filter(|node| matches!(phase(node), Some(Phase::Open | Phase::Serving)));
        nodes.len() >= self.voters && sharers.count() >= self.sharers
    }

    /// Whether one of `nodes` finds enough of the others, and clients find one of these.
    fn is_met_by_dialling(self, nodes: &[&NodeInfo]) -> bool {
        let reaches = |one: &NodeInfo, other: &NodeInfo| {
            one.state.as_ref().is_some_and(|state| !state.unreached.contains(&other.name))
        };
        let is_found =
            |node: &NodeInfo| nodes.len() == 1 || nodes.iter().any(|one| one.id != node.id && reaches(one, node));
        nodes.iter().any(|leader| {
            let follows = |node: &&&NodeInfo| node.id == leader.id || reaches(node, leader) || reaches(leader, node);
            let group: Vec<_> = nodes.iter().filter(follows).copied().collect();
            self.is_met(&group) && group.iter().any(|node| is_found(node))
        })
    }
}

/// A long operation and its present step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationStatus {
    /// The name of the operation, as in `founding` or `revoke n4`. Text for people.
    pub name: String,
    /// The nodes that join or leave by it.
    pub nodes: Vec<String>,
    /// The step that runs now, for people. Empty if it is not known.
    pub step: String,
    /// How many key versions this step has still to do, if it goes through all of them.
    pub left: Option<u64>,
    /// The nodes that it waits for.
    pub waiting_for: Vec<String>,
}

impl OperationStatus {
    /// An operation of which no step is known yet.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), nodes: Vec::new(), step: String::new(), left: None, waiting_for: Vec::new() }
    }
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
    /// For how long the node has been away while the answering node served, in milliseconds. `None` before half of the
    /// absence window.
    pub away_ms: Option<u64>,
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
    /// 0 if the node answers now, otherwise how long ago the answering node last heard from it, in milliseconds. The other fields
    /// may be some seconds older.
    pub last_seen_ms: u64,
    /// The nodes that the node cannot dial at any address that the cluster records.
    pub unreached: Vec<NodeName>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u64) -> NodeName {
        format!("n{number}").parse().expect("a name")
    }

    /// A node that serves and cannot dial `unreached`.
    fn node(number: u64, unreached: &[u64]) -> NodeInfo {
        let state = NodeState {
            phase: Phase::Serving,
            lag: 0,
            epoch: Epoch(1),
            lock_generation: 1,
            old_copies: None,
            last_seen_ms: 0,
            unreached: unreached.iter().map(|&number| name(number)).collect(),
        };
        NodeInfo {
            name: name(number),
            id: NodeId(number),
            addresses: Vec::new(),
            role: Role::Voter,
            state: Some(state),
            away_ms: None,
        }
    }

    fn status(nodes: Vec<NodeInfo>) -> Status {
        let voters = u8::try_from(nodes.len()).expect("few");
        Status {
            cluster: ClusterId([1; 16]),
            node: name(1),
            version: String::new(),
            phase: Phase::Serving,
            quorum: true,
            reason: None,
            threshold: voters / 2 + 1,
            voters,
            theft_threshold: voters / 2 + 1,
            epoch: Epoch(1),
            leader: None,
            lease_ms: None,
            keys: 0,
            one_disk_keys: 0,
            operation: None,
            alarms: Vec::new(),
            waiting_for: Vec::new(),
            nodes,
        }
    }

    #[test]
    fn a_minority_may_fail_while_all_reach_all() {
        for (nodes, may_lose) in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (9, 4)] {
            assert_eq!(
                status((1..=nodes).map(|number| node(number, &[])).collect()).may_lose(),
                Some(may_lose),
                "{nodes}"
            );
        }
        let mut sealed = status((1..=3).map(|number| node(number, &[])).collect());
        sealed.nodes[2].state.as_mut().expect("seen").phase = Phase::Sealed;
        assert_eq!(sealed.may_lose(), Some(0), "it votes, and gives no share");
        sealed.nodes[1].state.as_mut().expect("seen").last_seen_ms = 1;
        assert_eq!(sealed.may_lose(), None);
    }

    /// Two of three nodes have moved, and serve over sessions that they opened themselves. Mutated: with sessions taken for
    /// reachability one more may fail, and the two that are left do not find each other.
    #[test]
    fn a_node_that_no_member_finds_is_no_redundancy() {
        let moved = |unreached: [&[u64]; 3]| {
            status((1..).zip(unreached).map(|(number, unreached)| node(number, unreached)).collect()).may_lose()
        };
        assert_eq!(moved([&[2, 3], &[3], &[2]]), Some(0));
        assert_eq!(moved([&[2], &[], &[2]]), Some(1), "one that has moved finds the others itself");
        assert_eq!(moved([&[2], &[], &[]]), Some(1), "a single direction that is blocked costs nothing");
        assert_eq!(moved([&[2], &[1], &[]]), Some(0), "two that do not find each other need the third");
        assert_eq!(moved([&[2, 3], &[1, 3], &[1, 2]]), Some(0), "all serve over old sessions, and none may fail");
    }
}
