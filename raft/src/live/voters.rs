//! Which nodes vote, why that changes, and which nodes are denied because of it. All rules are pure.
//!
//! A change of the voters is two entries: a joint configuration of the old and the new voters, then the new one alone. Each
//! entry says why it was made. A voter that the newest configuration leaves out is *denied*: its peers refuse it, so that a
//! thief with its disk gets nothing from them. The [`Intent`] says when the denial begins:
//!
//! - at append, before the log acknowledges the entry: a node that is revoked, or that does not answer anyway. Once a
//!   majority of the remaining members has appended the entry, the disk finds no quorum of shares.
//! - at commit of the final configuration: a node that answers and is removed in good order. The change may need its vote.
//!
//! The [`Gate`] keeps denials outside of the log, because a locked node cannot read its log and must refuse all the same.
//! They are durable there before the log acknowledges the entry. An appended entry may never be committed, so a denial can
//! end, but only in two ways ([`Denial::stands`]). Until then it stands, also after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quorate_shares::ids::NodeId;
use serde::{Deserialize, Serialize};

use super::place::LogPlace;

/// Why the voters change. It is stored in the entry that changes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangePurpose {
    /// A learner becomes a voter, and no voter leaves.
    Add,
    /// A voter leaves in good order.
    Remove,
    /// A voter is not trusted any more.
    Revoke,
    /// A learner becomes a voter in the place of another.
    Replace,
}

impl fmt::Display for ChangePurpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Revoke => "revoke",
            Self::Replace => "replace",
        })
    }
}

/// What an entry says besides its membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Why the voters change.
    pub purpose: ChangePurpose,
    /// The voters that leave are denied when the entry is appended, not only when the final configuration is committed.
    pub denies_at_append: bool,
}

/// The voters and learners as of one entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    /// One set of voters; the old one and the new one while they change; empty before there is a cluster.
    pub configs: Vec<BTreeSet<NodeId>>,
    /// The nodes that follow the log without a vote.
    pub learners: BTreeSet<NodeId>,
    pub place: Option<LogPlace>,
    /// A quorum has the entry, as far as this node knows.
    pub committed: bool,
}

impl Membership {
    /// Whether the voters are changing. A quorum then needs a majority of the old voters and one of the new voters.
    pub fn is_joint(&self) -> bool {
        self.configs.len() > 1
    }

    /// The voters, or those that will vote when the change is done.
    pub fn newest(&self) -> BTreeSet<NodeId> {
        self.configs.last().cloned().unwrap_or_default()
    }

    /// Every node with a vote in any of the configurations.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.configs.iter().flatten().copied().collect()
    }

    /// Whether `node` is a voter in the newest configuration, or a learner.
    pub fn names(&self, node: NodeId) -> bool {
        self.configs.last().is_some_and(|voters| voters.contains(&node)) || self.learners.contains(&node)
    }
}

/// A voter that an entry leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Denial {
    /// The node to refuse.
    pub node: NodeId,
    pub by: LogPlace,
}

impl Denial {
    /// Whether the denial still stands once everything up to `applied` is applied, of which `membership` is the newest
    /// membership. It ends only in two ways:
    /// - (a) a committed configuration after its entry names the node as voter or learner; or
    /// - (b) its entry can never be committed: an entry of a later term is committed at or above its index, and the newest
    ///   committed membership is older than its entry, so the entry itself is not committed.
    pub fn stands(&self, applied: LogPlace, membership: &Membership) -> bool {
        let named_again = membership.place.is_some_and(|place| place > self.by) && membership.names(self.node);
        let never_committed = applied.index >= self.by.index
            && applied.term > self.by.term
            && membership.place.is_none_or(|place| place.index < self.by.index);
        !named_again && !never_committed
    }
}

/// Keeps the denials where a locked node can read them.
pub trait Gate: Send + Sync + 'static {
    /// Refuses these nodes from now on. When it returns, they are refused and that is durable; the log waits meanwhile. It is
    /// called on a thread that may block, and once more after a restart.
    ///
    /// A denial by an entry at or before the one that the gate's own roster reflects changes nothing: a node that replays
    /// history must not deny a node that is a member today.
    ///
    /// # Errors
    /// The reason in words. The node must stop then.
    fn deny(&self, denials: &[Denial]) -> Result<(), String>;

    /// Whether `node` is refused.
    fn is_denied(&self, node: NodeId) -> bool;
}

/// Denies no node: for replicas whose voters never change.
impl Gate for () {
    fn deny(&self, _: &[Denial]) -> Result<(), String> {
        Ok(())
    }

    fn is_denied(&self, _: NodeId) -> bool {
        false
    }
}

/// Denies the voters that a joint configuration leaves out, if its intent denies at append.
pub fn denied_by_joint(intent: Intent, membership: &Membership, by: LogPlace) -> Vec<Denial> {
    let newest = membership.newest();
    let left_out = membership.voters().into_iter().filter(|node| intent.denies_at_append && !newest.contains(node));
    left_out.map(|node| Denial { node, by }).collect()
}

/// Denies every voter and every learner of `previous` that the `committed` configuration after it leaves out, once that is final. A
/// learner that is left out is a joiner that was given up.
pub fn denied_at_commit(previous: &Membership, committed: &Membership, by: LogPlace) -> Vec<Denial> {
    let named: BTreeSet<NodeId> = previous.voters().into_iter().chain(previous.learners.iter().copied()).collect();
    let left_out = named.into_iter().filter(|&node| !committed.is_joint() && !committed.names(node));
    left_out.map(|node| Denial { node, by }).collect()
}

/// Checks whether the leader `me` may propose `voters` while it can reach `reachable`, and returns what the entries will say.
/// `is_denied` tells which nodes are refused already.
///
/// # Errors
/// [`ChangeError`], before anything is proposed.
pub fn intent(
    now: &Membership,
    (voters, purpose): (&BTreeSet<NodeId>, ChangePurpose),
    me: NodeId,
    reachable: &BTreeSet<NodeId>,
    is_denied: impl Fn(NodeId) -> bool,
) -> Result<Intent, ChangeError> {
    let old = now.newest();
    let leaving: BTreeSet<NodeId> = old.difference(voters).copied().collect();
    let coming: BTreeSet<NodeId> = voters.difference(&old).copied().collect();
    let fits = match purpose {
        ChangePurpose::Add => leaving.is_empty(),
        ChangePurpose::Remove | ChangePurpose::Revoke => coming.is_empty(),
        ChangePurpose::Replace => !leaving.is_empty() && !coming.is_empty(),
    };
    if !fits || voters.is_empty() {
        return Err(ChangeError::Unfit { purpose });
    }
    if let Some(&node) = coming.iter().find(|node| !now.learners.contains(node)) {
        return Err(ChangeError::NotALearner { node });
    }
    if leaving.contains(&me) {
        return Err(ChangeError::LeaderLeaves);
    }
    // A node that does not answer cannot help, so refusing it at once loses nothing.
    let silent = !leaving.is_empty() && leaving.is_disjoint(reachable);
    let denies_at_append = !leaving.is_empty() && (purpose == ChangePurpose::Revoke || silent);
    let refused = |node: &NodeId| is_denied(*node) || (denies_at_append && leaving.contains(node));
    let present = reachable.iter().chain([&me]).copied().filter(|node| !refused(node)).collect();
    for side in [&old, voters] {
        let able = side.iter().copied().filter(|node| !refused(node)).collect();
        if missing(side, &able).is_some() {
            return Err(ChangeError::NeedsTheDenied { denied: side.difference(&able).copied().collect() });
        }
        if let Some(missing) = missing(side, &present) {
            return Err(ChangeError::Waiting { missing: missing.intersection(&able).copied().collect() });
        }
    }
    Ok(Intent { purpose, denies_at_append })
}

/// The voters that are not `present`, or `None` if those that are present are a majority.
pub(crate) fn missing(voters: &BTreeSet<NodeId>, present: &BTreeSet<NodeId>) -> Option<BTreeSet<NodeId>> {
    let have = voters.intersection(present).count();
    (have <= voters.len() / 2).then(|| voters.difference(present).copied().collect())
}

/// Why the voters or learners were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Nothing was proposed: this node does not lead.
    #[error("this node does not lead")]
    NotLeader { leader: Option<NodeId> },
    /// Nothing was proposed: too few of the old or of the new voters can be reached. Try again when they are back.
    #[error("waiting for {}: without them the change would have no majority", listed(.missing))]
    Waiting {
        /// The voters that cannot be reached. Perhaps not all of them are needed.
        missing: BTreeSet<NodeId>,
    },
    /// Nothing was proposed, and never will be: without the nodes that are denied no majority is possible.
    #[error("no majority is possible without {}, which are or would be denied", listed(.denied))]
    NeedsTheDenied {
        /// The nodes whose consent would be needed.
        denied: BTreeSet<NodeId>,
    },
    /// The leader is among the nodes that leave: another one must lead first.
    #[error("the leader is among the nodes that leave: transfer leadership first")]
    LeaderLeaves,
    /// A new voter must be a learner first.
    #[error("node {node} is not a learner yet")]
    NotALearner { node: NodeId },
    /// Only a learner can be removed this way.
    #[error("node {node} is a voter")]
    IsAVoter { node: NodeId },
    /// The new voters do not fit the purpose: `Add` must not remove a voter, for example.
    #[error("the new voters do not fit a change to `{purpose}`")]
    Unfit { purpose: ChangePurpose },
    /// Another change is not committed yet, or came in between. Try again soon.
    #[error("another change of the membership is under way")]
    UnderWay,
    /// Leadership was lost meanwhile; the change may or may not happen. Ask for it again: it happens once.
    #[error("leadership was lost while the voters were changing")]
    Unknown {
        /// The next leader.
        leader: Option<NodeId>,
    },
    /// Storage failed, or the replica is shut down.
    #[error("this replica has stopped")]
    Stopped,
}

impl ChangeError {
    /// Whether asking again is useless: the caller must ask for something else.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::NeedsTheDenied { .. } | Self::IsAVoter { .. } | Self::Unfit { .. } | Self::Stopped)
    }
}

fn listed(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(|node| format!("node {node}")).collect::<Vec<_>>().join(", ")
}

/// The last entry of each member's log that is known to agree with the leader's log.
pub type Matched = BTreeMap<NodeId, Option<LogPlace>>;

#[cfg(test)]
mod tests {
    use super::*;

    fn set(nodes: &[u64]) -> BTreeSet<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    fn place(term: u64, index: u64) -> LogPlace {
        LogPlace { term, node: NodeId(1), index }
    }

    fn membership(configs: &[&[u64]], learners: &[u64], at: LogPlace) -> Membership {
        let configs = configs.iter().map(|voters| set(voters)).collect();
        Membership { configs, learners: set(learners), place: Some(at), committed: true }
    }

    /// Mutated: with either way out forgotten, or the bound of one moved by one, this fails.
    #[test]
    fn a_denial_ends_in_two_ways_only() {
        let denial = Denial { node: NodeId(3), by: place(4, 20) };
        let before = membership(&[&[1, 2, 3]], &[], place(1, 0));
        assert!(denial.stands(place(4, 19), &before), "nothing is known yet");
        assert!(denial.stands(place(5, 19), &before), "the next leader's log may still have it");
        assert!(!denial.stands(place(5, 20), &before), "its place is taken by a later term, so it never will be");
        assert!(!denial.stands(place(5, 21), &before));

        let itself = membership(&[&[1, 2, 3], &[1, 2]], &[], place(4, 20));
        assert!(denial.stands(place(4, 20), &itself), "the old configuration names it, and that is why it is denied");
        assert!(denial.stands(place(6, 30), &itself));
        let last = membership(&[&[1, 2]], &[], place(4, 21));
        assert!(denial.stands(place(9, 99), &last), "committed");
        for named in [membership(&[&[1, 2, 3]], &[], place(5, 30)), membership(&[&[1, 2]], &[3], place(5, 30))] {
            assert!(!denial.stands(place(5, 30), &named), "in the cluster again, by a later configuration");
        }
        let other = membership(&[&[1, 2, 3], &[1, 2, 4]], &[], place(5, 30));
        assert!(denial.stands(place(5, 30), &other), "the old half of a joint configuration names no node");
    }

    /// Mutated: if only voters are denied, a joiner that was given up is heard until the roster follows.
    #[test]
    fn nodes_that_are_left_out_are_denied_and_no_others() {
        let joint = membership(&[&[1, 2, 3, 4], &[1, 2, 5]], &[], place(2, 9));
        let denied = |denials: Vec<Denial>| denials.into_iter().map(|denial| denial.node.0).collect::<Vec<_>>();
        let revoke = Intent { purpose: ChangePurpose::Revoke, denies_at_append: true };
        let remove = Intent { purpose: ChangePurpose::Remove, denies_at_append: false };
        assert_eq!(denied(denied_by_joint(revoke, &joint, place(2, 9))), [3, 4]);
        assert_eq!(denied(denied_by_joint(remove, &joint, place(2, 9))), [0u64; 0]);
        let last = membership(&[&[1, 2, 5]], &[4], place(2, 10));
        assert_eq!(denied(denied_at_commit(&joint, &last, place(2, 10))), [3], "a learner is still there");
        assert_eq!(denied(denied_at_commit(&last, &joint, place(2, 9))), [0u64; 0], "not while it is joint");
        let given_up = membership(&[&[1, 2, 5]], &[], place(2, 11));
        assert_eq!(denied(denied_at_commit(&last, &given_up, place(2, 11))), [4], "a learner that is there no more");
    }

    #[test]
    fn a_majority_is_more_than_half() {
        assert_eq!(missing(&set(&[1, 2]), &set(&[1])), Some(set(&[2])));
        assert_eq!(missing(&set(&[1, 2, 3]), &set(&[1, 3, 9])), None);
        assert_eq!(missing(&set(&[1, 2, 3, 4]), &set(&[1, 2])), Some(set(&[3, 4])));
        assert_eq!(missing(&set(&[1]), &set(&[1])), None);
    }
}
