//! Operations, as an operator orders them by the names of nodes: checked, begun, and followed.
//!
//! To begin an operation, the leader puts the intent into the replicated state. The leader's loop ([`leader`]) does the rest,
//! even if the leader changes or no client waits for the end. The state does not say which members are reachable. So an
//! operation that would leave an absent member without a way to open its lock is refused here.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_client::error::Code;
use quorate_client::wire::{Progress, RevocationProgress, Stage, WireError};
use quorate_raft::command::{Begin, Change, Operation, Outcome};
use quorate_raft::refusal::Refusal;
use quorate_raft::state::{Running, State, majority};
use quorate_raft::{LogPlace, ProposeError, Replica};
use quorate_shares::ids::{Epoch, NodeId, NodeName};
use tracing::info;

use crate::base::clock::boot_ms;
use crate::cluster::leader;
use crate::cluster::status::theft_threshold;
use crate::lease::renewal;
use crate::messages::caller::Caller;
use crate::messages::peer::Order;
use crate::node::Node;

/// A lease may last this much longer than its length, if a clock runs a little slower.
const LEASE_SLACK_MS: u64 = 300;

/// The leader's side: begins an operation.
///
/// # Errors
/// The error for the client.
pub async fn begin(node: &Arc<Node>, replica: &Replica, order: Order, caller: &Caller) -> Result<Epoch, WireError> {
    catch_up(node, replica).await?;
    let present = leader::answering(node, replica);
    let begin = match replica.read(|state| ordered(state, &order, &present))? {
        Resolved::Known(epoch) => return Ok(epoch),
        Resolved::New(begin) => begin,
    };
    let operation = begin.operation.clone();
    match replica.propose(node.leader.command(replica, Change::Begin(begin))).await {
        Ok(Outcome::Begun { operation: epoch }) => {
            info!(operation = operation.kind(), %epoch, %caller, "an operation begins");
            Ok(epoch)
        }
        Ok(_) => Err(WireError::new(Code::Internal, "the operation was answered as another change")),
        Err(ProposeError::Refused(refusal)) => Err(explain(node, replica, &operation, refusal)),
        Err(ProposeError::NotLeader { .. } | ProposeError::Unknown { .. }) => {
            Err(WireError::new(Code::NoQuorum, "the leader changed meanwhile").hint("try again"))
        }
        Err(error) => Err(WireError::new(Code::Internal, error.to_string())),
    }
}

/// The operation that an order stands for.
pub enum Resolved {
    /// The same request began this operation before.
    Known(Epoch),
    /// A new operation, which must be proposed.
    New(Begin),
}

/// Finds the operation for `order` in `state`, while the members in `present` are reachable.
///
/// # Errors
/// The error for the client.
pub fn ordered(state: &State, order: &Order, present: &BTreeSet<NodeId>) -> Result<Resolved, WireError> {
    let request = match order {
        Order::Remove { request, .. } | Order::Revoke { request, .. } => *request,
    };
    if let Some(known) = state.operation_of(&request) {
        return Ok(Resolved::Known(known.epoch));
    }
    let all_named = |names: &[NodeName]| -> Result<BTreeSet<NodeId>, WireError> {
        names.iter().map(|name| member_named(state, name)).collect()
    };
    let (operation, accept_no_redundancy, abandon) = match order {
        Order::Remove { name, accept_no_redundancy, abandon, .. } => {
            let node = member_named(state, name)?;
            (Operation::Remove { node }, *accept_no_redundancy, all_named(abandon)?)
        }
        Order::Revoke { names, expect_back, .. } => {
            let nodes = all_named(names)?;
            refuse_to_need_the_absent(state, &nodes, present, &all_named(expect_back)?)?;
            (Operation::Revoke { nodes }, true, BTreeSet::new())
        }
    };
    if !operation.revokes() {
        let leaving = operation.leaving();
        let away = state.stranded(&leaving).filter(|node| !present.contains(node) && !abandon.contains(node));
        let hint =
            |away: &str| format!("start {away} and let it renew its lock, or count it as lost with --abandon {away}");
        refuse_stranding(state, &away.collect(), hint)?;
    }
    Ok(Resolved::New(Begin { request, operation, accept_no_redundancy, abandon }))
}

/// Applies everything that was committed before this call. A new leader may not have applied all that the last leader
/// answered, and must not refuse an order because its state is old.
pub(super) async fn catch_up(node: &Arc<Node>, replica: &Replica) -> Result<(), WireError> {
    renewal::catch_up(node, replica).await.map_err(|reason| {
        WireError::new(Code::NoQuorum, format!("the leader is not confirmed: {reason}")).hint("try again in a moment")
    })
}

/// The member of this name. For a former member the error says so: a repeated order must not look like a typing mistake.
pub(super) fn member_named(state: &State, name: &NodeName) -> Result<NodeId, WireError> {
    if let Some(member) = state.members.values().find(|member| member.name == *name) {
        return Ok(member.node);
    }
    let gone = state.former.values().rev().find(|former| former.name == *name);
    let members: Vec<_> = state.members.values().map(|member| member.name.to_string()).collect();
    let message = match gone {
        Some(former) if former.revoked => format!("{name} was revoked already"),
        Some(_) => format!("{name} was removed already"),
        None => format!("no node named {name}"),
    };
    Err(WireError::new(Code::NotFound, message).hint(format!("the nodes are {}", members.join(", "))))
}

/// Refuses a revocation of `nodes` that would need a member that is neither in `present` nor in `expected`: as many holders of shares
/// as the threshold must be there.
///
/// The others make their locks without the revoked nodes at once. If the absent member is lost, the revocation never ends. Then too few
/// are left to unlock themselves after a restart, and every key is lost.
fn refuse_to_need_the_absent(
    state: &State,
    nodes: &BTreeSet<NodeId>,
    present: &BTreeSet<NodeId>,
    expected: &BTreeSet<NodeId>,
) -> Result<(), WireError> {
    if state.are_being_revoked(nodes) {
        return Ok(());
    }
    let Some(active) = state.active() else { return Ok(()) };
    let mut stay = state.stays_after_revocation(nodes);
    stay.retain(|&node| active.x_of(node).is_some());
    let away: Vec<_> = stay.iter().filter(|node| !present.contains(node) && !expected.contains(node)).collect();
    let there = stay.len() - away.len();
    // Of too few, `check_remaining` says so.
    if there >= active.threshold.into() || stay.len() < active.threshold.into() {
        return Ok(());
    }
    let listed = |nodes: &mut dyn Iterator<Item = &NodeId>, between: &str| {
        nodes.map(|node| state.members[node].name.as_str()).collect::<Vec<_>>().join(between)
    };
    let revoked = listed(&mut nodes.iter(), ", ");
    let missing = listed(&mut away.iter().copied(), ", ");
    let flags = listed(&mut away.iter().copied(), " --expect-back ");
    let message = format!(
        "no answer from {missing}: without {revoked}, {there} of {} shares are there, too few to end this revocation and to unlock nodes after a restart",
        active.threshold
    );
    Err(WireError::new(Code::Conflict, message).hint(format!(
        "start {missing} first. If a node comes back later with its disk: --expect-back {flags}. If its disk is lost, replace it or join another node first: afterwards every key would be lost"
    )))
}

pub(super) fn refuse_stranding(
    state: &State,
    away: &BTreeSet<NodeId>,
    hint: impl Fn(&str) -> String,
) -> Result<(), WireError> {
    if away.is_empty() {
        return Ok(());
    }
    let away: Vec<_> = away.iter().map(|node| state.members[node].name.to_string()).collect();
    let away = away.join(", ");
    let message = format!("{away} is away, and could not unlock itself again without this node");
    Err(WireError::new(Code::Conflict, message).hint(hint(&away)))
}

pub(super) fn too_few(remaining: usize, needed: u8) -> WireError {
    let message = format!("{remaining} of {needed} shares would remain, so every key would be lost");
    WireError::new(Code::Conflict, message).hint("take several one after the other, or join another node first")
}

fn explain(node: &Node, replica: &Replica, operation: &Operation, refusal: Refusal) -> WireError {
    let conflict = |message: String| WireError::new(Code::Conflict, message);
    match refusal {
        Refusal::OperationRunning { .. } => {
            let running = |state: &State| {
                Some(leader::operation_status(state, &state.operations.running.as_ref()?.operation).name)
            };
            // It may have ended meanwhile.
            let named = replica.read(running).map_or_else(String::new, |name| format!(": {name}"));
            conflict(format!("another operation is not over yet{named}")).hint("`quorate status` shows where it stands")
        }
        Refusal::TooFewRemain { remaining, needed } => too_few(remaining, needed),
        Refusal::NoRedundancyNotAccepted => {
            conflict("two nodes would remain, and the loss of one disk loses every key".to_owned())
                .hint("join another node first, or accept it with --accept-no-redundancy")
        }
        Refusal::SoloNotAllowed => {
            conflict("one node would remain, and its disk alone would hold everything".to_owned())
                .hint("join another node first")
        }
        Refusal::UnknownMember { node: gone } => {
            WireError::new(Code::NotFound, format!("{} is no member any more", node.name_of(gone)))
        }
        refusal => conflict(format!("{}: {refusal}", operation.kind())),
    }
}

/// The progress of an operation, as the leader sees it.
///
/// # Errors
/// [`Code::NotFound`] if it neither runs nor was the last one.
pub async fn progress(node: &Arc<Node>, replica: &Replica, operation: Epoch) -> Result<Progress, WireError> {
    let look = || {
        replica.read(|state| {
            let operations = &state.operations;
            let running = operations.running.as_ref().filter(|running| running.epoch == operation);
            let ended = operations.ended.as_ref().filter(|ended| ended.was.epoch == operation);
            let stage = match (running, ended) {
                (Some(_), _) => Stage::Runs,
                (None, Some(ended)) if ended.preempted => Stage::Preempted,
                (None, Some(_)) => Stage::Done,
                (None, None) => return None,
            };
            Some((running.or(ended.map(|ended| &ended.was))?.clone(), stage))
        })
    };
    let mut known = look();
    if known.is_none() {
        catch_up(node, replica).await?;
        known = look();
    }
    let (running, stage) = known.ok_or_else(|| {
        WireError::new(Code::NotFound, format!("no operation of epoch {operation} is known any more"))
            .hint("others followed since; `quorate node list` shows the members")
    })?;
    let shown = node.leader.operation.lock().clone().filter(|_| stage == Stage::Runs);
    let shown = shown.unwrap_or_else(|| replica.read(|state| leader::operation_status(state, &running.operation)));
    let revocation = if running.operation.revokes() { revocation(node, replica, &running).await } else { None };
    Ok(Progress { stage, operation: shown, revocation })
}

/// The progress of the revocation that `running` is.
async fn revocation(node: &Node, replica: &Replica, running: &Running) -> Option<RevocationProgress> {
    let membership = replica.membership().await.ok()?;
    let matched = replica.matched();
    let revoked = running.operation.leaving();
    let leadership = *replica.leadership().borrow();
    replica.read(|state| {
        let over_ms = state.cluster.as_ref()?.lease_ms + LEASE_SLACK_MS;
        let remaining: BTreeSet<_> = state.members.keys().copied().filter(|node| !revoked.contains(node)).collect();
        // A second revocation may follow before the first one is over. The disks of both count together.
        let out: BTreeSet<_> = state.former_holders().chain(revoked.iter().copied()).collect();
        let needed = needed(remaining.len(), out.len(), theft_threshold(state));
        // The final configuration comes after the entry that denies the nodes. So a member that has the configuration in its
        // log denies them. A joiner without a vote is denied once it is no member any more.
        let follows = |node| membership.learners.contains(node) || state.members.contains_key(node);
        let votes = !membership.committed || membership.is_joint() || !membership.newest().is_disjoint(&revoked);
        let has_it = |node: &&NodeId| reaches(matched.get(node).copied().flatten(), membership.place);
        let denied = !votes && !revoked.iter().any(follows);
        let decisive = denied && remaining.iter().filter(has_it).count() >= needed;
        let expelled = revoked.iter().all(|node| state.former.contains_key(node));
        // If they still have a lease, they requested it before that.
        let withdrawn = denied && expelled && leadership.am_leader;
        let lasts_ms = || node.leader.withdrawal.lock().lasts_ms_at(running.epoch, leadership.term, boot_ms());
        let over = withdrawn && lasts_ms() > over_ms;
        Some(RevocationProgress {
            decisive,
            leases_over: decisive && over,
            erased: count(state.erased_keys_of(&out)),
            erased_needed: count(needed),
            renewed: count(state.renewed_without(&out)),
            remaining: count(remaining.len()),
        })
    })
}

/// How many of the `remaining` members must refuse the `revoked` nodes. Then the other members are no majority, which could let
/// them in. And a thief who has the disks of these other members and of the `revoked` nodes has fewer than `threshold`.
fn needed(remaining: usize, revoked: usize, threshold: u8) -> usize {
    let helpers = usize::from(threshold).saturating_sub(1 + revoked);
    majority(remaining).max(remaining.saturating_sub(helpers))
}

fn reaches(matched: Option<LogPlace>, place: Option<LogPlace>) -> bool {
    matched.zip(place).is_some_and(|(matched, place)| matched.index >= place.index)
}

fn count(nodes: usize) -> u8 {
    u8::try_from(nodes).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::needed;

    /// From the design: decisive with max(majority of R, R - (t - 1 - f)).
    #[test]
    fn one_revocation_is_decisive_with_a_majority_and_two_with_all() {
        assert_eq!(needed(2, 1, 2), 2);
        assert_eq!(needed(3, 1, 3), 2);
        assert_eq!(needed(4, 1, 3), 3);
        assert_eq!(needed(3, 2, 3), 3);
        assert_eq!(needed(8, 1, 5), 5);
    }
}
