//! Who votes, why that changes, and who is denied for it: the rules, all pure.
//!
//! A change of the voters is two entries, a joint configuration of old and new voters and then the new one alone. Each says
//! why it was made. A voter that the newest configuration leaves out is *denied*: its peers refuse it, so that whoever has
//! its disk gets nothing from them. When that begins depends on the `Intent`:
//!
//! - at append, before the log acknowledges the entry: a node that is revoked, or that does not answer anyway. Once a
//!   majority of the remaining members has appended the entry, no quorum of shares is left for the disk.
//! - at commit of the final configuration: a node that answers and goes in peace, whose vote the change itself may need.
//!
//! Denials lie outside of the log, with the [`Gate`], because a node that is locked cannot read its log and must refuse all
//! the same. They are durable there before the log acknowledges. An entry that was appended need not be committed, so a
//! denial ends, but only in two ways ([`Denial::stands`]); until then it stands, also over a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quorate_shares::ids::NodeId;
use serde::{Deserialize, Serialize};

use super::place::LogPlace;

/// Why the voters change. It is stored in the entry that changes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangePurpose {
    /// A learner becomes a voter; nobody leaves.
    Add,
    /// A voter leaves in peace.
    Remove,
    /// A voter is not trusted any more.
    Revoke,
    /// One leaves and another takes its place.
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

/// What an entry says beside its membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Why the voters change.
    pub purpose: ChangePurpose,
    /// Those who leave are denied when the entry is appended, not only when the final configuration is committed.
    pub denies_at_append: bool,
}

/// The voters and learners as of one entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    /// One set of voters, or the old one and the new one while they change; none before there is a cluster.
    pub configs: Vec<BTreeSet<NodeId>>,
    /// Those that follow without a vote.
    pub learners: BTreeSet<NodeId>,
    pub place: Option<LogPlace>,
    /// A quorum has it, as far as this node knows.
    pub committed: bool,
}

impl Membership {
    /// Whether the voters are changing: a quorum then needs a majority of the old and of the new ones.
    pub fn is_joint(&self) -> bool {
        self.configs.len() > 1
    }

    /// The voters that are, or are to be.
    pub fn newest(&self) -> BTreeSet<NodeId> {
        self.configs.last().cloned().unwrap_or_default()
    }

    /// Every node with a vote in any of the configurations.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.configs.iter().flatten().copied().collect()
    }

    /// Whether the newest configuration has `node` as a voter, or it is a learner.
    pub fn names(&self, node: NodeId) -> bool {
        self.configs.last().is_some_and(|voters| voters.contains(&node)) || self.learners.contains(&node)
    }
}

/// A voter that an entry leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Denial {
    /// Whom to refuse.
    pub node: NodeId,
    pub by: LogPlace,
}

impl Denial {
    /// Whether it still stands once everything up to `applied` is applied, with `membership` the newest one among that. It
    /// ends only
    /// - (a) if a committed configuration behind its entry names the node as voter or learner; or
    /// - (b) if its entry can never be committed: an entry of a later term is committed at or above its index, and the
    ///   newest committed membership is from before it, so it is not among what is committed.
    pub fn stands(&self, applied: LogPlace, membership: &Membership) -> bool {
        let named_again = membership.place.is_some_and(|place| place > self.by) && membership.names(self.node);
        let never_committed = applied.index >= self.by.index
            && applied.term > self.by.term
            && membership.place.is_none_or(|place| place.index < self.by.index);
        !named_again && !never_committed
    }
}

/// Keeps who is denied, where a node that is locked can read it.
pub trait Gate: Send + Sync + 'static {
    /// These nodes are refused from now on. When it returns that is so, and durable; the log is held up meanwhile. Called on
    /// a thread that may block, and again after a restart.
    ///
    /// Entries at or below what the gate's own roster reflects change nothing: a node that replays history must not deny
    /// who is a member today.
    ///
    /// # Errors
    /// In words; the node must stop then.
    fn deny(&self, denials: &[Denial]) -> Result<(), String>;

    /// Whether `node` is refused.
    fn is_denied(&self, node: NodeId) -> bool;
}

/// Denies nobody: for replicas whose voters never change.
impl Gate for () {
    fn deny(&self, _: &[Denial]) -> Result<(), String> {
        Ok(())
    }

    fn is_denied(&self, _: NodeId) -> bool {
        false
    }
}

/// The voters that a joint configuration leaves out, if that denies them already.
pub fn denied_by_joint(intent: Intent, membership: &Membership, by: LogPlace) -> Vec<Denial> {
    let newest = membership.newest();
    let left_out = membership.voters().into_iter().filter(|node| intent.denies_at_append && !newest.contains(node));
    left_out.map(|node| Denial { node, by }).collect()
}

/// Whom a committed configuration denies that follows `previous`: every voter that it leaves out, once it is final.
pub fn denied_at_commit(previous: &Membership, committed: &Membership, by: LogPlace) -> Vec<Denial> {
    let left_out = previous.voters().into_iter().filter(|&node| !committed.is_joint() && !committed.names(node));
    left_out.map(|node| Denial { node, by }).collect()
}

/// Whether the leader `me` may propose to make `voters` the voters while it can reach `reachable`, and what the entries will
/// say. `is_denied` says who is refused already.
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
    // One that does not answer cannot help, so nothing is lost by refusing it at once.
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

/// Who is missing for a majority of `voters` among `present`; `None` if nobody is.
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
    /// Nothing was proposed: too few of the old or of the new voters can be reached. Try again when these are back.
    #[error("waiting for {}: without them the change would have no majority", listed(.missing))]
    Waiting {
        /// Those that cannot be reached; not all of them may be needed.
        missing: BTreeSet<NodeId>,
    },
    /// Nothing was proposed, and never will be: without those who are to be denied there is no majority, whoever is there.
    #[error("no majority is possible without {}, who are denied or to be denied", listed(.denied))]
    NeedsTheDenied {
        /// Whose consent would be needed.
        denied: BTreeSet<NodeId>,
    },
    /// The leader is among those who leave: it must let another one lead first.
    #[error("the leader is among those who leave: transfer leadership first")]
    LeaderLeaves,
    /// A new voter must follow as a learner first.
    #[error("node {node} is not a learner yet")]
    NotALearner { node: NodeId },
    /// A voter is not let go like a learner.
    #[error("node {node} is a voter")]
    IsAVoter { node: NodeId },
    /// The new voters are not what such a change makes of the old ones.
    #[error("the new voters are not what `{purpose}` makes of the present ones")]
    Unfit {
        /// What was asked for.
        purpose: ChangePurpose,
    },
    /// Another change is not committed yet, or came in between. Try again soon.
    #[error("another change of the membership is under way")]
    UnderWay,
    /// Leadership was lost meanwhile; the change may come about yet. Ask for it again: it happens once.
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
    /// Whether to ask again is useless: the caller must ask for something else.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::NeedsTheDenied { .. } | Self::IsAVoter { .. } | Self::Unfit { .. } | Self::Stopped)
    }
}

fn listed(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(|node| format!("node {node}")).collect::<Vec<_>>().join(", ")
}

/// How far each member's log is known to agree with the leader's.
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
        assert!(denial.stands(place(5, 30), &other), "the old half of a joint configuration names nobody");
    }

    #[test]
    fn those_who_are_left_out_are_denied_and_nobody_else() {
        let joint = membership(&[&[1, 2, 3, 4], &[1, 2, 5]], &[], place(2, 9));
        let denied = |denials: Vec<Denial>| denials.into_iter().map(|denial| denial.node.0).collect::<Vec<_>>();
        let revoke = Intent { purpose: ChangePurpose::Revoke, denies_at_append: true };
        let remove = Intent { purpose: ChangePurpose::Remove, denies_at_append: false };
        assert_eq!(denied(denied_by_joint(revoke, &joint, place(2, 9))), [3, 4]);
        assert_eq!(denied(denied_by_joint(remove, &joint, place(2, 9))), [0u64; 0]);
        let last = membership(&[&[1, 2, 5]], &[4], place(2, 10));
        assert_eq!(denied(denied_at_commit(&joint, &last, place(2, 10))), [3], "a learner is still there");
        assert_eq!(denied(denied_at_commit(&last, &joint, place(2, 9))), [0u64; 0], "not while it is joint");
    }

    #[test]
    fn a_majority_is_more_than_half() {
        assert_eq!(missing(&set(&[1, 2]), &set(&[1])), Some(set(&[2])));
        assert_eq!(missing(&set(&[1, 2, 3]), &set(&[1, 3, 9])), None);
        assert_eq!(missing(&set(&[1, 2, 3, 4]), &set(&[1, 2])), Some(set(&[3, 4])));
        assert_eq!(missing(&set(&[1]), &set(&[1])), None);
    }
}
