//! Who votes: what a majority is while that changes, and how a leader changes it. The rules are the program's (`voters`); here
//! is what openraft does with them: two entries for each change of the voters, of which the second may be another leader's.

use std::collections::BTreeSet;

use quorate_raft::voters::{denied_by_joint, intent};
use quorate_raft::{ChangePurpose, Denial, Intent, LogPlace, Membership};
use quorate_shares::ids::NodeId;

use super::{Gate, Raft, Role};
use crate::model::node::Killed;
use crate::model::world::disk::{Database, Entry, Payload, Write};

/// A change of who votes or follows.
pub(in crate::model) enum Wanted<'a> {
    Learner(NodeId),
    NoLearner(NodeId),
    Voters {
        voters: BTreeSet<NodeId>,
        purpose: ChangePurpose,
        reachable: &'a BTreeSet<NodeId>,
        denied: &'a BTreeSet<NodeId>,
    },
}

/// Whether these nodes are a majority of the voters; of the old and of the new ones while they change.
pub(in crate::model) fn has_majority(membership: &Membership, nodes: &BTreeSet<NodeId>) -> bool {
    let is_one = |voters: &BTreeSet<NodeId>| voters.intersection(nodes).count() > voters.len() / 2;
    !membership.configs.is_empty() && membership.configs.iter().all(is_one)
}

/// The highest number that a majority has reached.
pub(super) fn reached_by_majority(membership: &Membership, reached: impl Fn(NodeId) -> u64) -> u64 {
    let of_one = |voters: &BTreeSet<NodeId>| {
        let mut numbers: Vec<u64> = voters.iter().map(|node| reached(*node)).collect();
        numbers.sort_unstable_by(|one, other| other.cmp(one));
        numbers.get(voters.len() / 2).copied().unwrap_or(0)
    };
    membership.configs.iter().map(of_one).min().unwrap_or(0)
}

/// The denials of the entries that are about to be appended behind `after`.
pub(super) fn denied(after: u64, entries: &[Entry]) -> Vec<Denial> {
    let mut denials = Vec::new();
    for (index, entry) in (after + 1..).zip(entries) {
        if let Payload::Members(Some(intent), membership) = &entry.payload {
            let place = LogPlace { term: entry.term, node: NodeId(0), index };
            denials.extend(denied_by_joint(*intent, membership, place));
        }
    }
    denials
}

impl Raft {
    /// On the leader, how far a follower's log is known to agree with its own.
    pub(in crate::model) fn matched(&self, node: NodeId) -> u64 {
        match &self.role {
            Role::Leader(lead) => lead.matched.get(&node).copied().unwrap_or(0),
            Role::Follower | Role::Candidate(_) => 0,
        }
    }

    /// `Replica::add_learner`, `remove_learner` and `change_voters`: proposes what is wanted, if that can be done now.
    pub(in crate::model) fn change_members(
        &mut self,
        wanted: Wanted<'_>,
        (db, gate): (&mut Database, &mut impl Gate),
        now_ms: u64,
    ) -> Result<(), Killed> {
        let now = self.membership(db);
        if !now.committed || now.is_joint() {
            return Ok(());
        }
        let (configs, mut learners) = (now.configs.clone(), now.learners.clone());
        match wanted {
            Wanted::Learner(node) if !now.names(node) => {
                learners.insert(node);
                self.propose_members(None, (configs, learners), (db, gate), now_ms)
            }
            Wanted::NoLearner(node) if learners.remove(&node) => {
                self.propose_members(None, (configs, learners), (db, gate), now_ms)
            }
            Wanted::Voters { voters, purpose, reachable, denied } if voters != now.newest() => {
                let is_denied = |node| denied.contains(&node);
                let Ok(intent) = intent(&now, (&voters, purpose), self.me, reachable, is_denied) else { return Ok(()) };
                learners.retain(|node| !voters.contains(node));
                let joint = vec![now.newest(), voters];
                self.propose_members(Some(intent), (joint, learners), (db, gate), now_ms)
            }
            Wanted::Learner(_) | Wanted::NoLearner(_) | Wanted::Voters { .. } => Ok(()),
        }
    }

    /// `keep_finishing`, and the second half of a change that was not interrupted.
    pub(in crate::model) fn finish_joint(
        &mut self,
        (db, gate): (&mut Database, &mut impl Gate),
        now_ms: u64,
    ) -> Result<(), Killed> {
        let now = self.membership(db);
        if !now.committed || !now.is_joint() {
            return Ok(());
        }
        let intent = db.now().memberships(u64::MAX).next().and_then(|(intent, _)| intent);
        self.propose_members(intent, (vec![now.newest()], now.learners), (db, gate), now_ms)
    }

    fn propose_members(
        &mut self,
        intent: Option<Intent>,
        (configs, learners): (Vec<BTreeSet<NodeId>>, BTreeSet<NodeId>),
        (db, gate): (&mut Database, &mut impl Gate),
        now_ms: u64,
    ) -> Result<(), Killed> {
        let Role::Leader(_) = self.role else { return Ok(()) };
        let membership = Membership { configs, learners, place: None, committed: false };
        let (term, after) = (db.now().term, db.now().last_index());
        let entry = Entry { term, payload: Payload::Members(intent, membership) };
        gate.deny(&denied(after, std::slice::from_ref(&entry)))?;
        db.write_synced(Write::Append(after, vec![entry]));
        self.broadcast(db, now_ms);
        self.advance(db);
        Ok(())
    }
}
