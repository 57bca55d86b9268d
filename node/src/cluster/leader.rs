//! The leader's loop: it compares the state with the operator's orders, and does the next step.
//!
//! Every step can be repeated, and nothing is remembered here: if the leader changes, the new one continues where the last one
//! stopped. The pure function [`plan::next`] decides which step is next. New keys are verified in
//! a loop of their own ([`super::verify`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorate_client::conn::Lane;
use quorate_client::wire;
use quorate_raft::command::{Begin, Change, Operation};
use quorate_raft::idle::Idlers;
use quorate_raft::level::{self, LEVEL};
use quorate_raft::plan::{self, Patience, Step, View};
use quorate_raft::state::{MemberState, State};
use quorate_raft::voters::ChangePurpose;
use quorate_raft::{ChangeError, Leadership, Replica};
use quorate_shares::ids::{Epoch, KeyVersionId, NodeId};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::base::clock::{Watched, boot_ms};
use crate::base::random;
use crate::cluster::status::fell_silent;
use crate::cluster::{HOLDER, PAUSE, propose_here, verify};
use crate::keys::deal::{self, ReshareError};
use crate::memory::keyring::LoadError;
use crate::messages::peer::{PeerReply, PeerRequest};
use crate::node::Node;

/// How often the loop checks again when nothing changes: the state does not say which members are reachable.
const LOOK: Duration = Duration::from_millis(250);
/// The name of this step in the status.
const CHANGES_VOTERS: &str = "changes the voters";
/// A learner that lacks at most this many entries may become a voter.
const NEAR: u64 = 1_000;

/// Runs while the node runs, and acts while it leads. Never returns.
pub async fn run(node: Arc<Node>, replica: Replica) {
    let (mut changes, mut leadership) = (replica.changes(), replica.leadership());
    let (mut seen, mut serving, mut missing_holders) = (Seen::default(), ActiveSince::default(), BTreeSet::new());
    let mut last = (None, Step::Nothing);
    loop {
        changes.borrow_and_update();
        let leads = leadership.borrow_and_update().am_leader;
        // These two run on every node, so the next leader continues with both.
        node.leader.follow_time(&replica);
        let active_ms = serving.for_ms(replica.read(|state| state.active().map(|active| active.epoch)), boot_ms());
        if !leads {
            seen = Seen::default();
        }
        let view = if leads { view(&node, &replica, &mut seen, active_ms).await } else { None };
        let step = view.map_or(Step::Nothing, |view| replica.read(|state| plan::next(state, &view)));
        // `change_voters` finds out which nodes a change waits for. They stay shown while it tries again.
        let now = (replica.read(|state| state.operations.running.as_ref().map(|running| running.epoch)), step.clone());
        if !matches!(step, Step::ChangeVoters { .. }) || now != last {
            *node.leader.operation.lock() =
                replica.read(|state| describe(state, &step, &missing_holders)).filter(|_| leads);
        }
        last = now;
        if leads && raise_level(&node, &replica).await {
            continue;
        }
        if !matches!(step, Step::Retire { .. }) {
            seen.unaware.clear();
        }
        let done = match step {
            Step::AwaitFounding
            | Step::Nothing
            | Step::FinishVoters
            | Step::AwaitJoiner { .. }
            | Step::AwaitShareKeys { .. }
            | Step::AwaitLocks { .. }
            | Step::AwaitHolders { .. } => {
                tokio::select! {
                    _ = changes.changed() => {}
                    _ = leadership.changed() => {}
                    () = sleep(LOOK) => {}
                }
                continue;
            }
            Step::Propose(change) => propose_here(&node, &replica, change).await,
            Step::Rekey => {
                let (request, operation) = (random::bytes(), Operation::Rekey);
                propose_here(
                    &node,
                    &replica,
                    Change::Begin(Begin { request, operation, accept_no_redundancy: false, abandon: BTreeSet::new() }),
                )
                .await
            }
            Step::TransferLeadership { to } => transfer(&replica, to, &mut leadership).await,
            Step::ChangeVoters { voters, revoke } => change_voters(&node, &replica, voters, revoke).await,
            Step::AddLearner { node: joiner } => {
                let added = replica.add_learner(joiner, node.name_of(joiner)).await;
                added.inspect_err(|error| debug!(%error, "no learner yet")).is_ok()
            }
            Step::RemoveLearner { node: joiner } => {
                let removed = replica.remove_learner(joiner).await;
                removed.inspect_err(|error| debug!(%error, "still a learner")).is_ok()
            }
            Step::GiveUpJoiner { node: joiner } => {
                warn!(%joiner, "the joiner has been silent for too long, and is given up");
                let (request, operation) = (random::bytes(), Operation::Revoke { nodes: [joiner].into() });
                propose_here(
                    &node,
                    &replica,
                    Change::Begin(Begin { request, operation, accept_no_redundancy: true, abandon: BTreeSet::new() }),
                )
                .await
            }
            Step::Reshare { epoch, versions, .. } => {
                reshare(&node, &replica, epoch, &versions, &mut missing_holders).await
            }
            Step::CollectAcks { epoch, missing, needed, .. } => {
                let any = verify::collect_acks(&node, &replica, epoch, missing).await;
                // Enough holders have acknowledged, and the others do not answer now. They check their shares when they need
                // them.
                any || (needed == 0 && propose_here(&node, &replica, Change::ActivateEpoch { epoch }).await)
            }
            Step::Retire { epoch, active, members } => {
                seen.unaware = unaware(&node, active, members).await;
                seen.unaware.is_empty() && propose_here(&node, &replica, Change::RetireEpoch { epoch }).await
            }
        };
        if !done {
            let _ = timeout(PAUSE, leadership.changed()).await;
        }
    }
}

/// Raises the feature level once every member is there and knows more. Returns whether it did.
async fn raise_level(node: &Arc<Node>, replica: &Replica) -> bool {
    let known = |state: &State| {
        let sessions = &node.peers().sessions;
        let level = |member: &NodeId| match *member == node.id() {
            true => Some(LEVEL),
            false => sessions.with(*member).map(|session| session.level),
        };
        level::next_level(state, state.members.keys().map(level).collect::<Vec<_>>())
    };
    match replica.read(known) {
        Some(level) => propose_here(node, replica, Change::RaiseLevel { level }).await,
        None => false,
    }
}

/// What this node has seen since it leads. It is forgotten with the leadership.
#[derive(Default)]
struct Seen {
    /// The time for which others owe something. A pause of this node is not theirs.
    clock: Watched,
    joiner: JoinerSeen,
    idlers: Idlers,
    /// The members that did not say yet that they know the ACTIVE epoch, when they were asked last.
    unaware: BTreeSet<NodeId>,
}

impl Seen {
    /// The members that are idle, and those of them that hold the running operation up.
    fn idle(
        &mut self,
        state: &State,
        able: &BTreeSet<NodeId>,
        now_ms: u64,
        patience_ms: u64,
    ) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
        let idle = self.idlers.look(state, able, &self.unaware, now_ms, patience_ms);
        let acting = able.difference(&idle).copied().collect();
        let mut owing = plan::owing(state, &acting, able);
        owing.extend(&self.unaware);
        let blamed = idle.intersection(&owing).copied().collect();
        (idle, blamed)
    }
}

/// When the joiner was last reachable, as this leader has seen it.
#[derive(Debug, Default)]
pub struct JoinerSeen {
    node: Option<NodeId>,
    seen_ms: u64,
}

impl JoinerSeen {
    /// For how long `joiner` has not been among `present` at `now_ms` ([`Watched`]). A new leader begins to count at zero.
    pub fn silent_ms(&mut self, joiner: Option<NodeId>, present: &BTreeSet<NodeId>, now_ms: u64) -> u64 {
        if self.node != joiner || joiner.is_some_and(|node| present.contains(&node)) {
            *self = Self { node: joiner, seen_ms: now_ms };
        }
        now_ms.saturating_sub(self.seen_ms)
    }
}

/// When the ACTIVE epoch became active, as this process has seen it.
#[derive(Debug, Default)]
pub struct ActiveSince {
    epoch: Option<Epoch>,
    since_ms: u64,
}

impl ActiveSince {
    /// For how long `active` has been the ACTIVE epoch at `now_ms` ([`boot_ms`]). The state says when it became ACTIVE, but by
    /// a clock that people set. So a node that has just started begins to count at zero.
    pub fn for_ms(&mut self, active: Option<Epoch>, now_ms: u64) -> u64 {
        if self.epoch != active {
            *self = Self { epoch: active, since_ms: now_ms };
        }
        now_ms.saturating_sub(self.since_ms)
    }
}

/// What this node sees as the leader; `None` if its replica has stopped.
async fn view(node: &Node, replica: &Replica, seen: &mut Seen, active_ms: u64) -> Option<View> {
    let membership = replica.membership().await.ok()?;
    let settled = membership.committed && !membership.is_joint();
    let (me, present, voters) = (node.id(), present(node, replica), membership.newest());
    let matched = replica.matched();
    let last = replica.flushed().last_log.map_or(0, |last| last.index);
    let near = |node: &&NodeId| matched.get(node).copied().flatten().is_some_and(|at| at.index + NEAR >= last);
    let caught_up: BTreeSet<_> = membership.learners.iter().filter(near).copied().collect();
    let learners = membership.learners;
    let timing = &node.config.timing;
    let patience = Patience {
        rekey_ms: timing.rekey_pause_ms,
        joiner_ms: timing.joiner_patience_ms,
        member_ms: timing.member_patience_ms,
    };
    let now_ms = seen.clock.read_at(boot_ms());
    let (idle, joining, operation, blamed) = replica.read(|state| {
        // A learner cannot do its part before it has the log that asks for it, and a long log may take long.
        let locks_first = |node: &NodeId| state.members.get(node).is_some_and(|it| it.state == MemberState::Joining);
        let able = |node: &NodeId| voters.contains(node) || caught_up.contains(node) || locks_first(node);
        let able = present.iter().copied().filter(able).collect();
        let (idle, blamed) = seen.idle(state, &able, now_ms, patience.member_ms);
        let operation = state.operations.running.as_ref().map(|running| &running.operation);
        let name = operation.map(|operation| operation_status(state, operation).name).unwrap_or_default();
        (idle, operation.and_then(Operation::joining), name, blamed)
    });
    blamed.into_iter().for_each(|idler| alarm_about(node, idler, &operation, patience.member_ms));
    let acting = present.difference(&idle).copied().collect();
    let joiner_silent_ms = seen.joiner.silent_ms(joining, &acting, now_ms);
    Some(View { me, present, idle, voters, learners, settled, caught_up, joiner_silent_ms, active_ms, patience })
}

/// Names a member that answers and holds the operation up.
fn alarm_about(node: &Node, idler: NodeId, operation: &str, patience_ms: u64) {
    let (name, seconds) = (node.name_of(idler), patience_ms / 1_000);
    let message = format!("{name} answers, and has not done its part of `{operation}` for {seconds} s");
    node.alarm("member_idle", idler, format!("{message}: it counts as away until it does; its log says why"));
}

/// Adds, removes or replaces voters.
async fn change_voters(node: &Node, replica: &Replica, voters: BTreeSet<NodeId>, revoke: bool) -> bool {
    let Ok(now) = replica.membership().await else { return false };
    let purpose = purpose(&now.newest(), &voters, revoke);
    let answering = answering(node, replica);
    // The plan has seen them, but perhaps one of them has just died.
    if purpose == ChangePurpose::Replace
        && let Some(waits) = replica.read(|state| {
            let leaving = state.operations.running.as_ref()?.operation.leaving();
            describe(state, &plan::await_holders(state, &answering, &leaving)?, &BTreeSet::new())
        })
    {
        *node.leader.operation.lock() = Some(waits);
        return false;
    }
    let changed = replica.change_voters(voters, purpose, &answering).await;
    if let Err(error) = &changed {
        debug!(%error, "voters not changed yet");
        // The operator must see which nodes the change waits for.
        if let Some(operation) = node.leader.operation.lock().as_mut() {
            (operation.step, operation.waiting_for) = match error {
                ChangeError::Waiting { missing } => {
                    (CHANGES_VOTERS.to_owned(), missing.iter().map(|&missing| node.name_of(missing)).collect())
                }
                error => (format!("{CHANGES_VOTERS}: {error}"), Vec::new()),
            };
        }
    }
    changed.is_ok()
}

/// The purpose of a change from the voters `old` to `voters`.
pub fn purpose(old: &BTreeSet<NodeId>, voters: &BTreeSet<NodeId>, revoke: bool) -> ChangePurpose {
    match (voters.is_subset(old), old.is_subset(voters)) {
        (true, _) if revoke => ChangePurpose::Revoke,
        (true, _) => ChangePurpose::Remove,
        (false, true) => ChangePurpose::Add,
        (false, false) => ChangePurpose::Replace,
    }
}

/// The members that are reachable now, this node included.
pub fn present(node: &Node, replica: &Replica) -> BTreeSet<NodeId> {
    let members: Vec<_> = replica.read(|state| state.members.keys().copied().collect());
    members.into_iter().filter(|&id| id == node.id() || node.peers().sessions.with(id).is_some()).collect()
}

/// As [`present`], without members that fell silent. The session of a member that has died is open until it times out, and a change that
/// counts on that member leaves the others without a quorum.
pub fn answering(node: &Node, replica: &Replica) -> BTreeSet<NodeId> {
    present(node, replica).into_iter().filter(|&id| !fell_silent(node, id)).collect()
}

/// Describes the running operation to the operator.
fn describe(state: &State, step: &Step, missing_holders: &BTreeSet<NodeId>) -> Option<wire::OperationStatus> {
    let running = state.operations.running.as_ref()?;
    let begun = operation_status(state, &running.operation);
    let names = |nodes: &mut dyn Iterator<Item = NodeId>| nodes.map(|id| name_in(state, id)).collect::<Vec<_>>();
    let epoch = running.epoch;
    let left = if let Step::Reshare { left, .. } = step { Some(*left as u64) } else { None };
    let (step, waiting_for) = match step {
        Step::FinishVoters => ("finishes a change of voters".to_owned(), Vec::new()),
        Step::TransferLeadership { to } => ("lets another node lead".to_owned(), names(&mut to.iter().copied())),
        Step::ChangeVoters { .. } => (CHANGES_VOTERS.to_owned(), Vec::new()),
        Step::AddLearner { .. } | Step::RemoveLearner { .. } => ("changes the learners".to_owned(), Vec::new()),
        Step::GiveUpJoiner { .. } => ("gives up the joiner".to_owned(), Vec::new()),
        Step::AwaitJoiner { node, locked: false } => {
            ("the joiner makes its first lock".to_owned(), names(&mut [*node].into_iter()))
        }
        Step::AwaitJoiner { node, locked: true } => {
            ("the joiner catches up".to_owned(), names(&mut [*node].into_iter()))
        }
        Step::AwaitShareKeys { missing, .. } => {
            (format!("new share keys for epoch {epoch}"), names(&mut missing.iter().copied()))
        }
        Step::Reshare { .. } => {
            let step = format!("reshares to epoch {epoch}");
            (step, names(&mut state.staying().filter(|node| missing_holders.contains(node))))
        }
        Step::CollectAcks { missing, .. } => {
            (format!("holders check their shares of epoch {epoch}"), names(&mut missing.iter().copied()))
        }
        Step::AwaitLocks { missing } => ("locks are renewed".to_owned(), names(&mut missing.iter().copied())),
        Step::AwaitHolders { needed, missing } => {
            (format!("{needed} more holders of shares must be there"), names(&mut missing.iter().copied()))
        }
        Step::Retire { epoch, members, .. } => (format!("retires epoch {epoch}"), names(&mut members.iter().copied())),
        Step::Propose(change) => (change.kind().replace('_', " "), Vec::new()),
        Step::AwaitFounding | Step::Rekey | Step::Nothing => (String::new(), Vec::new()),
    };
    Some(wire::OperationStatus { step, left, waiting_for, ..begun })
}

/// An operation and its nodes, before its steps are known.
pub fn operation_status(state: &State, operation: &Operation) -> wire::OperationStatus {
    let nodes = operation.leaving().into_iter().chain(operation.joining()).map(|id| name_in(state, id));
    let nodes: Vec<_> = nodes.collect();
    let name = [&[operation.kind().to_owned()], &nodes[..]].concat().join(" ");
    wire::OperationStatus { nodes, ..wire::OperationStatus::named(name) }
}

/// The name of a member or a former member. The roster forgets the names of former members.
fn name_in(state: &State, node: NodeId) -> String {
    let member = state.members.get(&node).map(|member| &member.name);
    let name = member.or_else(|| state.former.get(&node).map(|former| &former.name));
    name.map_or_else(|| format!("node {node}"), ToString::to_string)
}

/// Transfers leadership to one of `to`.
async fn transfer(replica: &Replica, to: BTreeSet<NodeId>, leadership: &mut watch::Receiver<Leadership>) -> bool {
    for candidate in to {
        info!(to = %candidate, "transferring leadership");
        if replica.transfer_leadership(candidate).await.is_ok()
            && let Ok(Ok(_)) = timeout(HOLDER, leadership.wait_for(|leadership| !leadership.am_leader)).await
        {
            return true;
        }
    }
    false
}

/// Reshares some versions. Only the keys of one command are in plain at a time. If shares are missing, `missing_holders` gets
/// the holders that gave none, for the operator who waits.
async fn reshare(
    node: &Arc<Node>,
    replica: &Replica,
    epoch: Epoch,
    versions: &[KeyVersionId],
    missing_holders: &mut BTreeSet<NodeId>,
) -> bool {
    let work = {
        let (node, replica, versions) = (Arc::clone(node), replica.clone(), versions.to_vec());
        async move { deal::reshare(&node, &replica, epoch, &versions).await }
    };
    match node.background.run(work).await {
        Ok(reshare) => {
            missing_holders.clear();
            propose_here(node, replica, Change::Reshare(reshare)).await
        }
        Err(reason) => {
            warn!(%epoch, %reason, "key versions not reshared yet");
            if let ReshareError::Load(LoadError::TooFew { missing, .. }) = reason {
                missing_holders.extend(missing);
            }
            false
        }
    }
}

/// Those of `members` that do not say that they know the epoch `active`. Once every one knows it, no member loads keys from the
/// epoch before any more, and that one may be retired.
async fn unaware(node: &Arc<Node>, active: Epoch, members: Vec<NodeId>) -> BTreeSet<NodeId> {
    let asked = members.into_iter().filter(|&member| member != node.id()).map(|member| async move {
        let report = node.peers().sessions.ask(member, Lane::Ordinary, &PeerRequest::Report, HOLDER).await;
        let knows = matches!(report, Ok(PeerReply::Report(report)) if report.epoch >= active);
        (!knows).then_some(member)
    });
    join_all(asked).await.into_iter().flatten().collect()
}
