//! What the leader does next: one step from the state towards what was asked for.
//!
//! Pure. The leader's loop asks for the next step after every change, and takes it. Each step may be repeated, so a new
//! leader continues where the last one stopped. Nothing is remembered here. What the state cannot know (which nodes answer,
//! which vote) comes in as a [`View`].
//!
//! Each operation opens one epoch. The order of its steps depends on the operation:
//!
//! ```text
//! remove    epoch without its seat ─► locks without its piece ─► vote ─► identity
//! revoke    vote ─► identity ─► epoch without its seat ─► locks without its piece
//! join      its lock ─► a copy of the state ─► its piece of the others' locks ─► vote ─► seat
//! replace   join and revoke together, with one change of the voters and one epoch
//! ```
//!
//! No step waits for a member that is away, nor for one that is there and does nothing ([`idle`](crate::live::idle)). A
//! removal and a replacement do wait for a member whose lock could not be opened without the node that leaves.
//!
//! A node that is removed helps until the others can do without it. A node that is revoked is refused first.

use std::collections::BTreeSet;

use quorate_shares::ids::{Epoch, KeyUid, KeyVersion, KeyVersionId, NodeId};

use crate::live::command::{Change, OpenEpoch, Seat};
use crate::live::state::{EpochInfo, EpochPhase, MemberState, Running, State, majority};
pub use crate::live::state::{RESHARE_MAX, VERIFY_MAX};

/// How many versions a leader deals to the PENDING epoch in one command, and holds in plain meanwhile. Fewer would cost more
/// rounds between nodes; more would keep each node busy with one command while clients wait.
const RESHARE_AT_ONCE: usize = 192;

/// How long the leader waits before it does something by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// An epoch whose only purpose is that returned members erase old share keys comes at the earliest this long after the
    /// last one, on a monotonic clock.
    pub rekey_ms: u64,
    /// A joiner that is silent for this long is given up.
    pub joiner_ms: u64,
    /// A member that answers and for this long does not do its part of an operation counts as away.
    pub member_ms: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { rekey_ms: 10 * 60_000, joiner_ms: 10 * 60_000, member_ms: 60_000 }
    }
}

/// What the leader sees besides the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The leader itself.
    pub me: NodeId,
    /// The nodes that answer now, the leader among them.
    pub present: BTreeSet<NodeId>,
    /// Those of them that do not do their part ([`Idlers`](crate::live::idle::Idlers)). The leader does not wait for them.
    pub idle: BTreeSet<NodeId>,
    /// The voters of Raft's newest membership.
    pub voters: BTreeSet<NodeId>,
    /// The learners of the same membership: they follow the log without a vote.
    pub learners: BTreeSet<NodeId>,
    /// Whether that membership is committed and not joint.
    pub settled: bool,
    /// The learners that have nearly all of the log.
    pub caught_up: BTreeSet<NodeId>,
    /// For how long the joiner has been away, or idle, as far as this leader knows.
    pub joiner_silent_ms: u64,
    /// For how long the ACTIVE epoch has been ACTIVE, as far as this leader knows.
    pub active_ms: u64,
    pub patience: Patience,
}

impl View {
    /// What `me` sees while every member answers and votes.
    pub fn of_all(state: &State, me: NodeId) -> Self {
        let members: BTreeSet<_> = state.members.keys().copied().collect();
        Self {
            me,
            present: members.clone(),
            idle: BTreeSet::new(),
            voters: members,
            learners: BTreeSet::new(),
            settled: true,
            caught_up: BTreeSet::new(),
            joiner_silent_ms: 0,
            active_ms: 0,
            patience: Patience::default(),
        }
    }

    /// The members that are there and do their part.
    fn acting(&self) -> BTreeSet<NodeId> {
        self.present.difference(&self.idle).copied().collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing was applied yet: the first founder must propose [`Change::Found`].
    AwaitFounding,
    /// Finish a change of voters that an earlier leader left half-way.
    FinishVoters,
    /// Let another node lead, one that holds shares and stays.
    TransferLeadership {
        /// Each of these will do.
        to: BTreeSet<NodeId>,
    },
    /// Propose this change as it is.
    Propose(Change),
    /// Begin an operation that only renews share keys.
    Rekey,
    /// Wait until the joiner has made its first lock durable and said so, or has caught up with the log.
    AwaitJoiner {
        node: NodeId,
        /// It has its lock, and still needs the log.
        locked: bool,
    },
    /// Revoke a joiner that does not answer, so that the cluster keeps nothing of it.
    GiveUpJoiner { node: NodeId },
    /// Let the joiner follow the log.
    AddLearner { node: NodeId },
    /// Stop a learner that is about to lose its membership from following the log.
    RemoveLearner { node: NodeId },
    /// Make these the voters.
    ChangeVoters {
        voters: BTreeSet<NodeId>,
        /// Refuse the nodes that lose their vote at once.
        revoke: bool,
    },
    /// Wait until these members have registered a share key for the epoch.
    AwaitShareKeys {
        /// The next epoch.
        epoch: Epoch,
        missing: Vec<NodeId>,
    },
    /// Deal these versions to the PENDING epoch.
    Reshare {
        epoch: Epoch,
        /// Fewer than [`RESHARE_MAX`].
        versions: Vec<KeyVersionId>,
        /// How many versions lack a record, these among them.
        left: usize,
    },
    /// Ask these holders to open and verify the epoch's records, and propose one `EpochAck` per answer.
    CollectAcks {
        epoch: Epoch,
        /// How many records of older versions were dealt to it: an acknowledgement must cover all of them.
        reshared: u64,
        /// How many more holders must acknowledge before the epoch may become ACTIVE.
        needed: usize,
        /// The holders that did not acknowledge yet.
        missing: Vec<NodeId>,
    },
    /// Wait until the locks of these members are what they must be.
    AwaitLocks { missing: Vec<NodeId> },
    /// Wait until enough holders answer. The next epoch is dealt from their shares, without the node that is about to be refused.
    AwaitHolders {
        /// How many more holders must answer.
        needed: usize,
        /// The holders that are away.
        missing: Vec<NodeId>,
    },
    /// Make sure that these members know which epoch is ACTIVE, then propose that the one before is RETIRED.
    Retire { epoch: Epoch, active: Epoch, members: Vec<NodeId> },
    /// Everything is done.
    Nothing,
}

/// A record that fewer holders than the threshold have verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unverified {
    pub uid: KeyUid,
    pub version: KeyVersion,
    pub epoch: Epoch,
    /// How many holders must verify it.
    pub threshold: u8,
    /// Who holds a share of it.
    pub holders: Vec<NodeId>,
}

/// The leader's next step.
pub fn next(state: &State, view: &View) -> Step {
    if state.cluster.is_none() {
        return Step::AwaitFounding;
    }
    if !view.settled {
        return Step::FinishVoters;
    }
    let running = state.operations.running.as_ref();
    match (state.active(), running) {
        (None, _) => {
            state.pending().map_or_else(|| open_epoch(state), |pending| complete_pending(state, view, pending))
        }
        (Some(active), Some(running)) => continue_operation(state, view, active, running),
        (Some(active), None) => idle(state, view, active),
    }
}

/// The next step of an operation.
fn continue_operation(state: &State, view: &View, active: &EpochInfo, running: &Running) -> Step {
    let (leaving, revoke) = (running.operation.leaving(), running.operation.revokes());
    // I9: a node that is about to leave, or that holds no shares, does not lead an operation.
    if leaving.contains(&view.me) || active.x_of(view.me).is_none() {
        let holds = |node: &NodeId| view.present.contains(node) && active.x_of(*node).is_some();
        return Step::TransferLeadership { to: state.staying().filter(holds).collect() };
    }
    let epoch = state.epoch(running.epoch);
    let phase = epoch.map(|epoch| epoch.phase);
    if let Some(node) = running.operation.joining()
        && phase != Some(EpochPhase::Active)
        && let Some(step) = bring_joiner_to_vote(state, view, running, node)
    {
        return step;
    }
    if revoke && let Some(step) = remove_leaving(state, view, running) {
        return step;
    }
    match phase {
        None => await_share_keys(state, view, running).unwrap_or_else(|| open_epoch(state)),
        Some(EpochPhase::Pending) => complete_pending(state, view, epoch.expect("it has a phase")),
        _ => finish_operation(state, view, running),
    }
}

/// The members of `present` of which the running operation needs something that they can do by themselves: a share key, a
/// lock, or of a joiner its first lock. A lock need not name a member that is not among `acting`.
pub fn owing(state: &State, acting: &BTreeSet<NodeId>, present: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    if state.operations.running.is_none() {
        return BTreeSet::new();
    }
    let joining =
        state.members.values().filter(|member| member.state == MemberState::Joining).map(|member| member.node);
    let staying = state.staying().filter(|node| !state.is_locked_as_due(*node, acting));
    staying.chain(joining).filter(|node| present.contains(node)).collect()
}

/// Waits for members that act and have not registered a share key for the operation's epoch.
fn await_share_keys(state: &State, view: &View, running: &Running) -> Option<Step> {
    let acting = view.acting();
    let lacks = |node: &NodeId| state.members[node].skgen.0 < running.epoch.0 && acting.contains(node);
    let missing: Vec<_> = state.staying().filter(lacks).collect();
    (!missing.is_empty()).then_some(Step::AwaitShareKeys { epoch: running.epoch, missing })
}

/// The next step until a joiner votes. First every member's lock names it: each voter must be able to help others unlock.
fn bring_joiner_to_vote(state: &State, view: &View, running: &Running, node: NodeId) -> Option<Step> {
    let acting = view.acting();
    let leaving = running.operation.leaving();
    let locked = state.members.get(&node).is_some_and(|member| member.state != MemberState::Joining);
    if view.joiner_silent_ms >= view.patience.joiner_ms && !acting.contains(&node) {
        // A joiner with a lock takes the node that it replaces along, and the shares of that node with it.
        let missing = if locked && !leaving.is_empty() { await_holders(state, &view.present, &leaving) } else { None };
        return Some(missing.unwrap_or(Step::GiveUpJoiner { node }));
    }
    if !locked {
        return Some(Step::AwaitJoiner { node, locked: false });
    }
    if view.voters.contains(&node) {
        return None;
    }
    if !view.learners.contains(&node) {
        return Some(Step::AddLearner { node });
    }
    // A vote that is never cast would cost the others redundancy.
    if !view.caught_up.contains(&node) || !acting.contains(&node) {
        return Some(Step::AwaitJoiner { node, locked: true });
    }
    if let Some(step) = await_share_keys(state, view, running) {
        return Some(step);
    }
    let awaited = |node: &NodeId| acting.contains(node) && !state.is_locked_as_due(*node, &acting);
    let missing: BTreeSet<_> = state.staying().filter(awaited).chain(state.stranded(&leaving)).collect();
    if !missing.is_empty() {
        return Some(Step::AwaitLocks { missing: missing.into_iter().collect() });
    }
    if !leaving.is_empty()
        && let Some(step) = await_holders(state, &view.present, &leaving)
    {
        return Some(step);
    }
    let voters = view.voters.iter().copied().filter(|voter| !leaving.contains(voter)).chain([node]).collect();
    Some(Step::ChangeVoters { voters, revoke: running.operation.revokes() })
}

/// Waits until a threshold of holders is `present` without `leaving`. A node that is replaced may work well, but from the change of
/// voters on it is refused, and its shares with it. Until every version is dealt to the next epoch, keys can be opened with
/// the shares of the others only. If the threshold is above a majority, a majority of the voters does not have enough shares.
pub fn await_holders(state: &State, present: &BTreeSet<NodeId>, leaving: &BTreeSet<NodeId>) -> Option<Step> {
    let active = state.active()?;
    let remain = state.members.keys().copied().filter(|node| active.x_of(*node).is_some() && !leaving.contains(node));
    let (there, missing): (Vec<_>, Vec<_>) = remain.partition(|node| present.contains(node));
    let needed = usize::from(active.threshold).saturating_sub(there.len());
    (needed > 0).then_some(Step::AwaitHolders { needed, missing })
}

/// Takes vote and identity from the nodes that leave.
fn remove_leaving(state: &State, view: &View, running: &Running) -> Option<Step> {
    let leaving = running.operation.leaving();
    let revoke = running.operation.revokes();
    if leaving.iter().any(|node| view.voters.contains(node)) {
        let gone = if revoke { denied_at_once(view, &leaving) } else { leaving };
        return Some(Step::ChangeVoters { voters: view.voters.difference(&gone).copied().collect(), revoke });
    }
    if let Some(&node) = leaving.iter().find(|node| view.learners.contains(node)) {
        return Some(Step::RemoveLearner { node });
    }
    let member = leaving.iter().any(|node| state.members.contains_key(node));
    member.then_some(Step::Propose(Change::Expel { operation: running.epoch }))
}

/// Those of `leaving` whose votes end with one change. A node that is denied cannot help to commit the change, so the others
/// must be a majority of the present voters. A revocation may name too many for one change: of four voters, it may take the
/// place of a removal, and then names the node that was about to leave and the one that is revoked. The nodes that do not
/// answer go first; the others can still help.
fn denied_at_once(view: &View, leaving: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let most = view.voters.len() - majority(view.voters.len());
    let (mut first, present): (Vec<_>, Vec<_>) =
        view.voters.intersection(leaving).copied().partition(|node| !view.present.contains(node));
    first.extend(present);
    // Of two voters neither can be denied. The change of voters refuses it with a reason.
    first.into_iter().take(most.max(1)).collect()
}

/// Proposes the next epoch. Each member that stays has a seat, with the share key that it drew for this epoch. A member that
/// is away drew none: it keeps the share key of its present seat.
fn open_epoch(state: &State) -> Step {
    let epoch = state.next_epoch();
    let seat = |node: NodeId| {
        let registered = state.members[&node].skgen;
        let held = || state.active()?.seat_of(node).map(|seat| seat.skgen);
        let skgen = if registered.0 >= epoch.0 { registered } else { held().unwrap_or(registered) };
        Seat { node, skgen }
    };
    let committee: Vec<_> = state.staying().map(seat).collect();
    // The operator chose the threshold of the founders' epoch.
    let founded = state.cluster.as_ref().filter(|_| state.active().is_none()).map(|cluster| cluster.threshold);
    let threshold = founded.unwrap_or_else(|| state.threshold_for(committee.len()));
    let mut open = OpenEpoch { epoch, threshold, committee, committee_hash: [0; 32] };
    match state.opened(&open) {
        Some(info) => open.committee_hash = info.committee_hash,
        // A member has no key that shares could be sealed to: it must register one first.
        None => return Step::AwaitShareKeys { epoch, missing: state.staying().collect() },
    }
    Step::Propose(Change::OpenEpoch(open))
}

/// Deals every version to the PENDING epoch, has the records verified, and makes it the ACTIVE one.
fn complete_pending(state: &State, view: &View, pending: &EpochInfo) -> Step {
    let epoch = pending.epoch;
    let left = state.to_reshare().len();
    if left > 0 {
        return Step::Reshare { epoch, versions: state.to_reshare().take(RESHARE_AT_ONCE).collect(), left };
    }
    let (have, need) = (pending.acknowledged(), pending.acks_needed());
    let missing = pending.committee.iter().map(|seat| seat.node).filter(|node| !pending.has_acknowledged(*node));
    let missing: Vec<_> = missing.collect();
    // The needed acknowledgements are enough, but each holder that answers is asked: the more holders have their shares, the
    // more of them may be lost.
    if have < need || missing.iter().any(|node| view.present.contains(node)) {
        let needed = need.saturating_sub(have);
        return Step::CollectAcks { epoch, reshared: pending.reshared, needed, missing };
    }
    Step::Propose(Change::ActivateEpoch { epoch })
}

/// The next step once the operation's epoch is ACTIVE.
fn finish_operation(state: &State, view: &View, running: &Running) -> Step {
    // No lock may need the piece of a node that is about to leave. A member that is away reported its old lock.
    let acting = view.acting();
    let awaited = |node: &NodeId| !state.is_locked_as_due(*node, &acting) && acting.contains(node);
    let leaving = running.operation.leaving();
    let strands = !running.operation.revokes();
    let mut missing: BTreeSet<_> = state.staying().filter(awaited).collect();
    if strands {
        missing.extend(state.stranded(&leaving));
    }
    if !missing.is_empty() {
        return Step::AwaitLocks { missing: missing.into_iter().collect() };
    }
    if let Some(step) = remove_leaving(state, view, running) {
        return step;
    }
    if let Some(old) = state.epochs.values().find(|epoch| epoch.phase == EpochPhase::Retiring) {
        let members = state.staying().filter(|node| acting.contains(node)).collect();
        return Step::Retire { epoch: old.epoch, active: running.epoch, members };
    }
    Step::Propose(Change::Finish { operation: running.epoch })
}

/// What a leader does while no operation runs.
fn idle(state: &State, view: &View, active: &EpochInfo) -> Step {
    if let Some(epoch) = state.epochs.keys().copied().find(|epoch| state.is_unswept(*epoch)) {
        return Step::Propose(Change::Sweep { epoch });
    }
    let rests_on_old_key = |node: NodeId| active.seat_of(node).is_some_and(|seat| seat.skgen.0 < active.epoch.0);
    let acting = view.acting();
    let returned = |node: &NodeId| acting.contains(node) && rests_on_old_key(*node) && state.owes_erasure(*node);
    let due = view.active_ms >= view.patience.rekey_ms;
    if due && state.members.keys().any(returned) { Step::Rekey } else { Step::Nothing }
}

/// New records to be opened and verified by their holders, [`VERIFY_MAX`] at most.
pub fn unverified(state: &State) -> Vec<Unverified> {
    let versions = state.unready().filter_map(|(uid, number)| Some((uid, state.version(uid, number)?)));
    let records = versions.flat_map(move |(uid, version)| {
        let open = version.records.iter().filter(|record| !record.verified);
        open.filter_map(move |record| {
            let epoch = state.epoch(record.epoch).filter(|epoch| epoch.is_open())?;
            Some(Unverified {
                uid,
                version: version.version,
                epoch: record.epoch,
                threshold: epoch.threshold,
                holders: epoch.committee.iter().map(|seat| seat.node).collect(),
            })
        })
    });
    records.take(VERIFY_MAX).collect()
}
