//! An operation as a reviewer reads it: what a step changed in the state and the voters, in words. The words come from the state
//! before and the state after, not from what the step was meant to do.

use std::collections::{BTreeMap, BTreeSet};

use quorate_shares::ids::{Epoch, NodeId, ShareKeyGeneration};

use super::cluster::Cluster;
use crate::live::command::{Change, Operation};
use crate::live::plan::Step;
use crate::live::state::{EpochInfo, EpochPhase, LockReport, MemberState, State};

/// Everything that is described.
#[derive(Clone)]
pub(super) struct Seen {
    state: State,
    voters: BTreeSet<NodeId>,
    learners: BTreeSet<NodeId>,
    denied: BTreeSet<NodeId>,
    present: BTreeSet<NodeId>,
    idle: BTreeSet<NodeId>,
    leader: NodeId,
}

impl Cluster {
    pub(super) fn seen(&self) -> Seen {
        Seen {
            state: self.state.clone(),
            voters: self.voters.clone(),
            learners: self.learners.clone(),
            denied: self.denied.clone(),
            present: self.present.clone(),
            idle: self.idle.clone(),
            leader: self.leader,
        }
    }

    /// What is new since then; empty if nothing is.
    pub(super) fn news(&self, before: &Seen) -> String {
        let after = self.seen();
        let mut told = who(before, &after);
        told.extend(share_keys(&before.state, &after.state));
        told.extend(locks(&before.state, &after.state));
        told.extend(epochs(&before.state, &after.state));
        told.extend(operation(&before.state, &after.state));
        told.join("; ")
    }

    /// The nodes that a step waits for, after the nodes that answer did what they could.
    pub(super) fn awaited(&self, step: &Step) -> Vec<NodeId> {
        let active = self.state.active().expect("one epoch always serves");
        let holders = || active.committee.iter().map(|seat| seat.node).collect();
        let present = |nodes: &[NodeId]| nodes.iter().filter(|node| self.present.contains(node)).count();
        let nodes = match step {
            Step::AwaitJoiner { node, .. } => vec![*node],
            Step::AwaitShareKeys { missing, .. }
            | Step::AwaitLocks { missing }
            | Step::AwaitHolders { missing, .. } => missing.clone(),
            Step::CollectAcks { missing, needed, .. } if present(missing) < *needed => missing.clone(),
            Step::Reshare { versions, .. } if self.dealable(versions).is_empty() => holders(),
            Step::TransferLeadership { to } if to.is_empty() => holders(),
            _ => Vec::new(),
        };
        nodes.into_iter().filter(|node| !self.present.contains(node) || self.stuck.contains(node)).collect()
    }

    /// The whole state, one line for each item.
    pub(super) fn status(&self) -> String {
        let state = &self.state;
        let mut lines = vec![format!("n{} leads, {} vote", self.leader, names(&self.voters))];
        let away = state.members.keys().filter(|node| !self.present.contains(node) && !self.denied.contains(node));
        let left = state.former.values().filter(|former| !former.revoked).map(|former| &former.node);
        let revoked = state.former.values().filter(|former| former.revoked).map(|former| &former.node);
        let owing = state.members.keys().filter(|node| state.owes_erasure(**node));
        let sets = [
            ("follow without a vote", names(&self.learners)),
            ("away", names(away)),
            ("idle", names(&self.idle)),
            ("denied", names(&self.denied)),
            ("left", names(left)),
            ("revoked", names(revoked)),
            ("to erase old share keys", names(owing)),
        ];
        lines
            .extend(sets.iter().filter(|(_, nodes)| !nodes.is_empty()).map(|(what, nodes)| format!("{what}: {nodes}")));
        lines.extend(state.epochs.values().map(|epoch| {
            let records = format!("{} of {} keys", epoch.records, state.live_versions);
            match epoch.is_over() {
                true => format!("epoch {} is {}", epoch.epoch, phase(epoch)),
                false => format!("epoch {} is {}: {}; {records}", epoch.epoch, phase(epoch), seats(epoch)),
            }
        }));
        let mut locks = BTreeMap::<_, Vec<_>>::new();
        for lock in state.locks.values() {
            let all: BTreeSet<_> = lock.peers.iter().copied().chain([lock.node]).collect();
            let terms = format!("{} of {}, share keys {}", lock.threshold, names(&all), numbers(&lock.share_keys));
            locks.entry(terms).or_default().push(lock.node);
        }
        lines.extend(locks.iter().map(|(terms, nodes)| format!("locks of {}: {terms}", names(nodes))));
        let next = self.next();
        let waits = Some(names(&self.awaited(&next))).filter(|nodes| !nodes.is_empty());
        let waits = waits.map(|nodes| format!(", which waits for {nodes}")).unwrap_or_default();
        lines.push(match &state.operations.running {
            Some(running) => {
                let (number, what) = (running.epoch, ordered(&running.operation));
                format!("operation {number}: {what}; next is {}{waits}", label(&next))
            }
            None => format!("no operation; next is {}", label(&next)),
        });
        lines.join("\n")
    }
}

/// Members, voters and who leads.
fn who(before: &Seen, after: &Seen) -> Vec<String> {
    let mut told = Vec::new();
    if before.leader != after.leader {
        told.push(format!("n{} leads", after.leader));
    }
    let (was, is) = (&before.state, &after.state);
    for member in is.members.values() {
        let state = was.members.get(&member.node).map(|member| member.state);
        match member.state {
            now if Some(now) == state => {}
            MemberState::Joining => told.push(format!("n{} is known", member.node)),
            MemberState::Active => told.push(format!("n{} is a member", member.node)),
        }
    }
    for (node, former) in is.former.iter().filter(|(node, _)| !was.former.contains_key(node)) {
        told.push(format!("n{node} {}", if former.revoked { "is revoked" } else { "has left" }));
    }
    let sets = [
        (difference(&after.learners, &before.learners), "follows without a vote"),
        (difference(&before.learners, &after.learners).difference(&after.voters).copied().collect(), "follows no more"),
        (difference(&after.voters, &before.voters), "votes"),
        (difference(&before.voters, &after.voters), "votes no more"),
        (difference(&after.denied, &before.denied), "is denied"),
        (difference(&before.present, &after.present).difference(&after.denied).copied().collect(), "is away"),
        (difference(&after.present, &before.present), "is there"),
        (difference(&after.idle, &before.idle), "is idle"),
        (difference(&before.idle, &after.idle).intersection(&after.present).copied().collect(), "is idle no more"),
    ];
    for (nodes, what) in sets {
        told.extend(nodes.iter().map(|node| format!("n{node} {what}")));
    }
    told
}

/// Share keys that were registered.
fn share_keys(was: &State, is: &State) -> Vec<String> {
    let mut registered = BTreeMap::<ShareKeyGeneration, Vec<NodeId>>::new();
    for member in is.members.values() {
        if was.members.get(&member.node).is_some_and(|before| before.skgen != member.skgen) {
            registered.entry(member.skgen).or_default().push(member.node);
        }
    }
    registered.iter().map(|(skgen, nodes)| format!("share key {skgen} of {}", names(nodes))).collect()
}

/// Locks that changed; equal ones share a line.
fn locks(was: &State, is: &State) -> Vec<String> {
    let mut changed = BTreeMap::<String, Vec<NodeId>>::new();
    for lock in is.locks.values() {
        let how = was.locks.get(&lock.node).map_or_else(|| first_lock(lock), |before| lock_change(before, lock));
        if !how.is_empty() {
            changed.entry(how).or_default().push(lock.node);
        }
    }
    changed.iter().map(|(how, nodes)| format!("locks of {}: {how}", names(nodes))).collect()
}

fn first_lock(lock: &LockReport) -> String {
    format!("{} of {}", lock.threshold, names(&lock.peers))
}

fn lock_change(was: &LockReport, is: &LockReport) -> String {
    let mut how = Vec::new();
    how.extend(is.peers.difference(&was.peers).map(|node| format!("+n{node}")));
    how.extend(was.peers.difference(&is.peers).map(|node| format!("-n{node}")));
    if was.threshold != is.threshold {
        how.push(format!("opened by {}", is.threshold));
    }
    how.extend(is.share_keys.difference(&was.share_keys).map(|skgen| format!("+key {skgen}")));
    how.extend(was.share_keys.difference(&is.share_keys).map(|skgen| format!("-key {skgen}")));
    how.join(" ")
}

/// Epochs: their phase, their records, and who acknowledged them.
fn epochs(was: &State, is: &State) -> Vec<String> {
    let mut told = Vec::new();
    for epoch in is.epochs.values() {
        let number = epoch.epoch;
        let before = was.epoch(number);
        match before {
            None => told.push(format!("epoch {number} is {}: {}", phase(epoch), seats(epoch))),
            Some(before) if before.phase != epoch.phase => told.push(format!("epoch {number} is {}", phase(epoch))),
            Some(_) => {}
        }
        let dealt: Vec<_> = records(is, number).difference(&records(was, number)).cloned().collect();
        if !dealt.is_empty() {
            let progress = format!("{} of {}", epoch.records, is.live_versions);
            told.push(format!("epoch {number} has {}, {progress}", dealt.join(" ")));
        }
        let known = |node: &NodeId| before.is_some_and(|before| before.has_acknowledged(*node));
        let acks: Vec<_> = epoch.acks.keys().filter(|node| epoch.has_acknowledged(**node) && !known(node)).collect();
        if !acks.is_empty() {
            told.push(format!("epoch {number} acknowledged by {}; {} needed", names(acks), epoch.acks_needed()));
        }
        let gone = before.map_or(0, |before| before.records).saturating_sub(epoch.records);
        let of = |state: &State| state.batches.values().filter(|batch| batch.epoch == number).count();
        let batches = of(was).saturating_sub(of(is));
        if gone > 0 || batches > 0 {
            told.push(format!("{gone} records and {batches} batches of epoch {number} dropped"));
        }
    }
    let ready = |state: &State| -> BTreeSet<String> {
        let versions = state.keys.values().flat_map(|key| key.versions.values().map(move |version| (key, version)));
        let ready = versions.filter(|(_, version)| version.ready);
        ready.map(|(key, version)| format!("{}/{}", key.name, version.version)).collect()
    };
    told.extend(ready(is).difference(&ready(was)).map(|version| format!("{version} is ready")));
    told
}

/// The versions with a record in an epoch.
fn records(state: &State, epoch: Epoch) -> BTreeSet<String> {
    let versions = state.keys.values().flat_map(|key| key.versions.values().map(move |version| (key, version)));
    let dealt = versions.filter(|(_, version)| version.record(epoch).is_some());
    dealt.map(|(key, version)| format!("{}/{}", key.name, version.version)).collect()
}

fn operation(was: &State, is: &State) -> Vec<String> {
    let mut told = Vec::new();
    let ended = is.operations.ended.as_ref().filter(|_| was.operations.ended != is.operations.ended);
    told.extend(ended.map(|ended| {
        format!("operation {} {}", ended.was.epoch, if ended.preempted { "gives way" } else { "is done" })
    }));
    let begun = is.operations.running.as_ref().filter(|running| was.operations.running.as_ref() != Some(*running));
    told.extend(begun.map(|running| format!("operation {}: {}", running.epoch, ordered(&running.operation))));
    told
}

/// An operation as it is ordered.
fn ordered(operation: &Operation) -> String {
    match operation {
        Operation::Rekey => "rekey".to_owned(),
        Operation::Remove { node } => format!("remove n{node}"),
        Operation::Revoke { nodes } => format!("revoke {}", names(nodes)),
        Operation::Join { node } => format!("join n{node}"),
        Operation::Replace { gone, node } => format!("replace n{gone} with n{node}"),
    }
}

/// A step by its name, with the nodes that it concerns.
pub(super) fn label(step: &Step) -> String {
    let name = match step {
        Step::Propose(change) => return change.kind().to_owned(),
        Step::Retire { epoch, .. } => return Change::RetireEpoch { epoch: *epoch }.kind().to_owned(),
        Step::AwaitJoiner { .. } => "await_joiner",
        Step::GiveUpJoiner { .. } => "give_up_joiner",
        Step::AddLearner { .. } => "add_learner",
        Step::RemoveLearner { .. } => "remove_learner",
        Step::ChangeVoters { .. } => "change_voters",
        Step::AwaitShareKeys { .. } => "await_share_keys",
        Step::AwaitLocks { .. } => "await_locks",
        Step::AwaitHolders { .. } => "await_holders",
        Step::Reshare { .. } => "reshare",
        Step::CollectAcks { .. } => "collect_acks",
        Step::TransferLeadership { .. } => "transfer_leadership",
        Step::Rekey => "rekey",
        Step::AwaitFounding => "await_founding",
        Step::FinishVoters => "finish_voters",
        Step::Nothing => "nothing",
    };
    name.to_owned()
}

fn phase(epoch: &EpochInfo) -> &'static str {
    match epoch.phase {
        EpochPhase::Pending => "PENDING",
        EpochPhase::Active => "ACTIVE",
        EpochPhase::Retiring => "RETIRING",
        EpochPhase::Retired => "RETIRED",
        EpochPhase::Abandoned => "ABANDONED",
    }
}

/// How many of which holders open a key, and which of them do it with an older share key than the epoch's own.
fn seats(epoch: &EpochInfo) -> String {
    let mut told = format!("{} of {}", epoch.threshold, names(epoch.committee.iter().map(|seat| &seat.node)));
    for seat in epoch.committee.iter().filter(|seat| seat.skgen.0 != epoch.epoch.0) {
        told += &format!(", n{} by share key {}", seat.node, seat.skgen);
    }
    told
}

fn difference(of: &BTreeSet<NodeId>, without: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    of.difference(without).copied().collect()
}

pub(super) fn names<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> String {
    nodes.into_iter().map(|node| format!("n{node}")).collect::<Vec<_>>().join(" ")
}

fn numbers<'a>(generations: impl IntoIterator<Item = &'a ShareKeyGeneration>) -> String {
    generations.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
