//! Members: who may vote, who must be refused, and what an operator is told.

use std::collections::BTreeSet;

use quorate_raft::Membership;
use quorate_raft::command::{Change, Operation};
use quorate_raft::state::EpochPhase;
use quorate_shares::ids::{Epoch, NodeId};

use super::Watch;
use crate::model::world::disk::Image;

impl Watch {
    /// Whether a node was a member and is none any more, by what is committed.
    pub(in crate::model) fn is_former(&self, node: NodeId) -> bool {
        self.state.former.contains_key(&node)
    }

    /// S4: a node that is left out is refused by every node that appended the entry that denies it, or applied the entry that
    /// leaves it out: it gets no session, no piece of its lock, no share, no message of consensus.
    pub(in crate::model) fn accepted_from(&self, by: NodeId, node: NodeId, image: &Image) {
        self.holds(!is_left_out(image, node), || format!("S4: node {by} hears node {node}, which its own log denies"));
    }

    /// M1: every voter is a holder of the active epoch, or named by the operation that runs. M2: one epoch is active and at most one
    /// pending, and what is pending belongs to the operation that runs.
    pub(super) fn members_are_in_order(&self) {
        let state = &self.state;
        let Some(active) = state.active() else { return };
        let running = state.operations.running.as_ref();
        let named = |node: &NodeId| {
            running.is_some_and(|running| {
                running.operation.leaving().contains(node) || running.operation.joining() == Some(*node)
            })
        };
        for voter in self.membership.newest() {
            self.holds(active.x_of(voter).is_some() || named(&voter), || {
                format!(
                    "M1: node {voter} votes, holds no share of epoch {}, and nothing is under way with it",
                    active.epoch
                )
            });
        }
        let of = |phase: EpochPhase| state.epochs.values().filter(move |epoch| epoch.phase == phase).count();
        let ours = state.pending().is_none_or(|pending| running.is_some_and(|running| running.epoch == pending.epoch));
        let one = of(EpochPhase::Active) == 1 && of(EpochPhase::Pending) <= 1;
        self.holds(one && ours, || "M2: two operations are under way".to_owned());
    }

    /// Counts the operations that ended, and notes the nodes that cannot unlock themselves any more: a revocation does not ask
    /// whether a node that is away needs the revoked one.
    pub(super) fn members_change(&mut self, change: &Change, ran: Option<Epoch>) {
        match change {
            Change::Expel { .. } => {
                let stranded: Vec<NodeId> = self.state.stranded(&BTreeSet::new()).collect();
                self.stranded.extend(stranded);
            }
            Change::Finish { operation } if ran == Some(*operation) => {
                let ended = self.state.operations.ended.as_ref().filter(|ended| ended.was.epoch == *operation);
                match ended.map(|ended| &ended.was.operation) {
                    Some(Operation::Rekey) => self.seen.rekeyed += 1,
                    Some(Operation::Remove { .. }) => self.seen.removed += 1,
                    Some(Operation::Revoke { .. }) => self.seen.revoked += 1,
                    Some(Operation::Join { .. }) => self.seen.joined += 1,
                    Some(Operation::Replace { .. }) => self.seen.replaced += 1,
                    None => {}
                }
            }
            _ => {}
        }
    }

    /// L2: an order that is repeated begins nothing else.
    pub(in crate::model) fn begun(&mut self, request: [u8; 16], operation: Epoch) {
        let first = *self.begun.entry(request).or_insert(operation);
        self.holds(first == operation, || format!("L2: one order began the operations {first} and {operation}"));
    }

    pub(super) fn membership_commits(&mut self, membership: &Membership) {
        self.membership = membership.clone();
    }
}

/// Whether a node with this log must refuse `node`: the newest membership that says anything about it leaves it out.
fn is_left_out(image: &Image, node: NodeId) -> bool {
    let mut memberships = image.memberships(u64::MAX);
    while let Some((intent, membership)) = memberships.next() {
        if membership.names(node) {
            return false;
        }
        if membership.is_joint() {
            if membership.voters().contains(&node) {
                return intent.is_some_and(|intent| intent.denies_at_append);
            }
        } else if membership.place.is_some_and(|place| place.index <= image.applied) {
            return memberships.any(|(_, before)| before.voters().contains(&node) || before.learners.contains(&node));
        }
    }
    false
}
