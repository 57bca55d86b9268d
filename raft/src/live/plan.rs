//! What the leader still owes: the next step from the state to what was asked for.
//!
//! Pure. The leader's loop asks for the next step after every change and does it; each step may be repeated, so a new
//! leader goes on where the last one stopped. Nothing here remembers anything: what the state cannot know (who is there,
//! who votes) comes in as a [`View`].
//!
//! An operation brings one epoch. A planned removal goes from the inside out, so that nobody misses who leaves before
//! everybody can do without it: the epoch without its seat, the locks without its piece, the vote, the identity. A
//! revocation goes from the outside in: the vote and the identity first, then everything else in the same way. A joiner
//! comes in from the outside: its lock, a copy of the state, its piece of the others' locks, its vote, its seat. A
//! replacement is both at once, with one change of the voters and one epoch.

use std::collections::BTreeSet;

use quorate_shares::ids::{Epoch, KeyUid, KeyVersion, NodeId};

use crate::live::command::{Change, OpenEpoch, Seat};
use crate::live::state::{EpochInfo, EpochPhase, MemberState, Running, State, majority};
pub use crate::live::state::{REDEAL_MAX, VERIFY_MAX};

/// How many a leader deals anew at a time, and has in plain: so few that no node is busy for long with the command, and clients
/// are answered; so many that the rounds between nodes cost little.
const REDEAL_AT_ONCE: usize = 192;

/// How long the leader waits before it does something by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// An epoch that only lets returned members erase old share keys comes this long after the last one at the earliest, by
    /// clocks that nobody sets.
    pub rekey_ms: u64,
    /// A joiner that is silent for so long is given up.
    pub joiner_ms: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { rekey_ms: 10 * 60_000, joiner_ms: 10 * 60_000 }
    }
}

/// What the leader sees besides the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    pub me: NodeId,
    /// The nodes that can be asked now, the leader among them.
    pub present: BTreeSet<NodeId>,
    /// Who votes, by the newest membership of Raft.
    pub voters: BTreeSet<NodeId>,
    /// Who follows without a vote, by the same.
    pub learners: BTreeSet<NodeId>,
    /// Whether that membership is one set of voters, and committed.
    pub settled: bool,
    /// The learners that have nearly all of the log.
    pub caught_up: BTreeSet<NodeId>,
    /// For how long the joiner has not been there, as far as this leader knows.
    pub joiner_silent_ms: u64,
    /// For how long the ACTIVE epoch has been so, as far as this leader knows.
    pub active_ms: u64,
    /// How long it waits.
    pub patience: Patience,
}

impl View {
    /// What `me` sees while every member is there and votes.
    pub fn of_all(state: &State, me: NodeId) -> Self {
        let members: BTreeSet<_> = state.members.keys().copied().collect();
        Self {
            me,
            present: members.clone(),
            voters: members,
            learners: BTreeSet::new(),
            settled: true,
            caught_up: BTreeSet::new(),
            joiner_silent_ms: 0,
            active_ms: 0,
            patience: Patience::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing was applied yet: the first founder owes [`Change::Found`].
    AwaitFounding,
    /// Finish a change of voters that an earlier leader left half-way.
    FinishVoters,
    /// Let another one lead, who holds shares and stays.
    TransferLeadership {
        /// Any of these.
        to: BTreeSet<NodeId>,
    },
    /// Propose this change as it is.
    Propose(Change),
    /// Begin an operation that only renews share keys.
    Rekey,
    /// Wait until the joiner has made its first lock durable and said so, or has caught up with the log.
    AwaitJoiner {
        node: NodeId,
        /// It has its lock, and needs the log.
        locked: bool,
    },
    /// Revoke a joiner that does not come any more, so that nothing of it is left.
    GiveUpJoiner {
        node: NodeId,
    },
    /// Let the joiner follow the log.
    AddLearner {
        node: NodeId,
    },
    /// Let nobody follow the log who is about to be a member no more.
    RemoveLearner {
        node: NodeId,
    },
    /// Make these the voters.
    ChangeVoters {
        /// All voters from then on.
        voters: BTreeSet<NodeId>,
        /// Those who vote no more are refused at once.
        revoke: bool,
    },
    /// Wait until these members have registered a share key for the epoch.
    AwaitShareKeys {
        /// The epoch that comes next.
        epoch: Epoch,
        /// Whom to wait for.
        missing: Vec<NodeId>,
    },
    /// Deal these versions to the PENDING epoch.
    Redeal {
        epoch: Epoch,
        /// At most [`REDEAL_MAX`], and fewer.
        versions: Vec<(KeyUid, KeyVersion)>,
        /// How many lack a record, these among them.
        left: usize,
    },
    /// Ask these holders to open and verify the epoch's records, and propose one `EpochAck` per answer.
    CollectAcks {
        epoch: Epoch,
        /// Records that were dealt anew, which an acknowledgement must cover.
        redealt: u64,
        /// How many more holders must acknowledge before the epoch may become ACTIVE.
        needed: usize,
        /// The holders that did not yet.
        missing: Vec<NodeId>,
    },
    /// Wait until the locks of these members are what they must be.
    AwaitLocks {
        /// Whom to wait for.
        missing: Vec<NodeId>,
    },
    /// Wait until enough holders are there to deal from without whoever is about to be refused.
    AwaitHolders {
        /// How many more it takes.
        needed: usize,
        /// The holders that are away.
        missing: Vec<NodeId>,
    },
    /// See that these members know which epoch is ACTIVE, then propose that the one before is RETIRED.
    Retire {
        epoch: Epoch,
        active: Epoch,
        members: Vec<NodeId>,
    },
    Nothing,
}

/// A record that no threshold of holders verified yet.
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
    // I9: whoever is about to go, or holds no shares, leads nobody through this.
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

/// Members that are there and have not registered a share key for the operation's epoch.
fn await_share_keys(state: &State, view: &View, running: &Running) -> Option<Step> {
    let lacks = |node: &NodeId| state.members[node].skgen.0 < running.epoch.0 && view.present.contains(node);
    let missing: Vec<_> = state.staying().filter(lacks).collect();
    (!missing.is_empty()).then_some(Step::AwaitShareKeys { epoch: running.epoch, missing })
}

/// Brings a joiner as far as a vote. Everybody's lock names it before it has one: whoever votes also unlocks.
fn bring_joiner_to_vote(state: &State, view: &View, running: &Running, node: NodeId) -> Option<Step> {
    if view.joiner_silent_ms >= view.patience.joiner_ms && !view.present.contains(&node) {
        return Some(Step::GiveUpJoiner { node });
    }
    if state.members.get(&node).is_none_or(|member| member.state == MemberState::Joining) {
        return Some(Step::AwaitJoiner { node, locked: false });
    }
    if view.voters.contains(&node) {
        return None;
    }
    if !view.learners.contains(&node) {
        return Some(Step::AddLearner { node });
    }
    if !view.caught_up.contains(&node) {
        return Some(Step::AwaitJoiner { node, locked: true });
    }
    if let Some(step) = await_share_keys(state, view, running) {
        return Some(step);
    }
    let leaving = running.operation.leaving();
    let awaited = |node: &NodeId| view.present.contains(node) && !state.is_locked_as_due(*node, &view.present);
    let missing: BTreeSet<_> = state.staying().filter(awaited).chain(state.stranded(&leaving)).collect();
    if !missing.is_empty() {
        return Some(Step::AwaitLocks { missing: missing.into_iter().collect() });
    }
    if !leaving.is_empty()
        && let Some(step) = await_holders(state, view, &leaving)
    {
        return Some(step);
    }
    let voters = view.voters.iter().copied().filter(|voter| !leaving.contains(voter)).chain([node]).collect();
    Some(Step::ChangeVoters { voters, revoke: running.operation.revokes() })
}

/// Whoever is replaced is refused from the change of voters on, and its share with it, although it may be well: until all is
/// dealt anew, keys rest on the others alone. A majority of the voters is not enough of them if the threshold is above it.
fn await_holders(state: &State, view: &View, leaving: &BTreeSet<NodeId>) -> Option<Step> {
    let active = state.active()?;
    let remain = state.members.keys().copied().filter(|node| active.x_of(*node).is_some() && !leaving.contains(node));
    let (there, missing): (Vec<_>, Vec<_>) = remain.partition(|node| view.present.contains(node));
    let needed = usize::from(active.threshold).saturating_sub(there.len());
    (needed > 0).then_some(Step::AwaitHolders { needed, missing })
}

/// Takes vote and identity from those who leave.
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

/// Those of `leaving` whose votes end with one change: whoever is denied helps to decide nothing any more, and the rest must be a
/// majority of the present voters. A revocation may name more of them, if it took the place of something else: of four
/// voters, one that was about to leave and one that is revoked. Those who are away go first; the others can still help.
fn denied_at_once(view: &View, leaving: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let most = view.voters.len() - majority(view.voters.len());
    let (mut first, present): (Vec<_>, Vec<_>) =
        view.voters.intersection(leaving).copied().partition(|node| !view.present.contains(node));
    first.extend(present);
    // Of two voters neither can be denied: whoever is asked to says so.
    first.into_iter().take(most.max(1)).collect()
}

/// The next epoch: everybody who stays has a seat, with the share key that was drawn for it, or, for a member that is away,
/// with the one of the seat that it has.
fn open_epoch(state: &State) -> Step {
    let epoch = state.next_epoch();
    let seat = |node: NodeId| {
        let registered = state.members[&node].skgen;
        let held = || state.active()?.seat_of(node).map(|seat| seat.skgen);
        let skgen = if registered.0 >= epoch.0 { registered } else { held().unwrap_or(registered) };
        Seat { node, skgen }
    };
    let committee: Vec<_> = state.staying().map(seat).collect();
    // Of the founders' epoch the operator chose the threshold.
    let founded = state.cluster.as_ref().filter(|_| state.active().is_none()).map(|cluster| cluster.threshold);
    let threshold = founded.unwrap_or_else(|| state.threshold_for(committee.len()));
    let mut open = OpenEpoch { epoch, threshold, committee, committee_hash: [0; 32] };
    match state.opened(&open) {
        Some(info) => open.committee_hash = info.committee_hash,
        // A member without any key that could be sealed to: it must register one first.
        None => return Step::AwaitShareKeys { epoch, missing: state.staying().collect() },
    }
    Step::Propose(Change::OpenEpoch(open))
}

/// Deals every version to the PENDING epoch, has the records verified, and makes it the ACTIVE one.
fn complete_pending(state: &State, view: &View, pending: &EpochInfo) -> Step {
    let epoch = pending.epoch;
    let left = state.undealt().len();
    if left > 0 {
        return Step::Redeal { epoch, versions: state.undealt().take(REDEAL_AT_ONCE).collect(), left };
    }
    let (have, need) = (pending.acknowledged(), pending.acks_needed());
    let missing = pending.committee.iter().map(|seat| seat.node).filter(|node| !pending.has_acknowledged(*node));
    let missing: Vec<_> = missing.collect();
    // Enough is enough, but whoever is there is asked: the more holders, the more of them may be lost.
    if have < need || missing.iter().any(|node| view.present.contains(node)) {
        let needed = need.saturating_sub(have);
        return Step::CollectAcks { epoch, redealt: pending.redealt, needed, missing };
    }
    Step::Propose(Change::ActivateEpoch { epoch })
}

/// What follows once the operation's epoch is ACTIVE.
fn finish_operation(state: &State, view: &View, running: &Running) -> Step {
    // Nobody's lock may need the piece of somebody who is about to go. Of those who are away the old lock is known.
    let awaited = |node: &NodeId| !state.is_locked_as_due(*node, &view.present) && view.present.contains(node);
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
        let members = state.staying().filter(|node| view.present.contains(node)).collect();
        return Step::Retire { epoch: old.epoch, active: running.epoch, members };
    }
    Step::Propose(Change::Finish { operation: running.epoch })
}

/// What a leader does by itself.
fn idle(state: &State, view: &View, active: &EpochInfo) -> Step {
    if let Some(epoch) = state.epochs.keys().copied().find(|epoch| state.is_unswept(*epoch)) {
        return Step::Propose(Change::Sweep { epoch });
    }
    let rests_on_old_key = |node: NodeId| active.seat_of(node).is_some_and(|seat| seat.skgen.0 < active.epoch.0);
    let returned = |node: &NodeId| view.present.contains(node) && rests_on_old_key(*node) && state.owes_erasure(*node);
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
