//! The status of this node, and what it knows of the other nodes: for the public, for peers, and for clients.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorate_client::cluster_file::{ClusterFile, ClusterNode};
use quorate_client::conn::{Conn, Lane};
use quorate_client::identity::PublicKey;
use quorate_client::wire::{
    self, Alarm, NodeInfo, NodeState, OperationStatus, PUBLIC_STATUS, Phase, PublicStatus, Role, Status,
};
use quorate_raft::state::{MEMBERS_MAX, State};
use quorate_raft::{Membership, Replica};
use quorate_shares::ids::{Epoch, NodeId, NodeName};
use quorate_shares::lock::Lock;
use tokio::time::{sleep, timeout};

use crate::base::clock::boot_ms;
use crate::cluster::leader::operation_status;
use crate::lock::absence;
use crate::memory::alarms::{ALARMS_MAX, MESSAGE_BYTES_MAX, cut};
use crate::messages::peer::{PeerReply, PeerRequest, Report};
use crate::node::Node;
use crate::node::locks::Unlocking;
use crate::peers::dial::{Closing, MemberProtocol, dial_member};
use crate::vault::{self, Vault};

/// If a peer does not report within this time, its last report is shown.
const REPORT: Duration = Duration::from_millis(400);
/// How often the members are asked for a report although no status was asked for.
const KEEP: Duration = Duration::from_secs(5);
/// A member that has not reported what is flushed for so long is missing. It reports that each second.
const SILENT_MS: u64 = 2_500;
/// Longest code of an alarm, and longest name of a node, in a report.
const WORDS_BYTES_MAX: usize = 256;

/// The public status: the phase, and which nodes are missing.
pub fn public(node: &Node) -> PublicStatus {
    let phase = node.phase();
    let (have, need, waiting_for): (usize, usize, Vec<NodeId>) = match phase {
        Phase::Locked => {
            // The operator sees a number of nodes, this one included, and not of pieces.
            let begun = Some(node.enrolment().locks.unlocking.lock().clone()).filter(|begun| begun.need > 0);
            let to_begin = || node.with_vault(|vault| vault.lock.as_ref().map(Unlocking::begin)).flatten();
            let unlocking = begun.or_else(to_begin).unwrap_or_default();
            let missing = unlocking.waiting_for.into_keys().collect();
            (usize::from(unlocking.have) + 1, usize::from(unlocking.need) + 1, missing)
        }
        Phase::Open | Phase::Serving | Phase::Sealed => {
            let roster = node.roster();
            let present = |id: NodeId| id == node.id() || node.peers().sessions.with(id).is_some();
            let missing: Vec<_> = roster.members.iter().map(|member| member.node).filter(|&id| !present(id)).collect();
            (roster.members.len() - missing.len(), roster.members.len() / 2 + 1, missing)
        }
        _ => (0, 0, Vec::new()),
    };
    let count = |nodes: usize| u8::try_from(nodes).unwrap_or(u8::MAX);
    let mut waiting_for = names(node, &waiting_for);
    waiting_for.sort();
    PublicStatus { phase, have: count(have), need: count(need), waiting_for }
}

/// The report of this node to its peers.
pub fn report(node: &Node) -> Report {
    let replica = node.replica();
    let active = |replica: &Replica| replica.read(|state| state.active().map(|epoch| epoch.epoch));
    Report {
        phase: node.phase(),
        applied: replica.as_ref().map_or(0, Replica::applied_index),
        lock_generation: lock_generation(node),
        old_copies: node
            .with_vault(|vault| node.enrolment().locks.old_copies.lock().status_of(vault.lock.as_ref()?))
            .flatten(),
        epoch: replica.as_ref().and_then(active).unwrap_or(Epoch(0)),
        alarms: node.alarms.open(),
        operation: node.leader.operation.lock().clone(),
        unreached: node.peers().dial_misses.unreached(),
    }
}

/// What this node is doing: rebuilding its state, unlocking, founding or joining.
pub fn operation(node: &Node) -> Option<OperationStatus> {
    if node.database.rebuild().is_some() {
        let step = "takes the state from another node".to_owned();
        let roster = node.roster();
        let others = roster.members.iter().filter(|member| member.node != node.id());
        let waiting_for = others.map(|member| member.name.to_string()).collect();
        return Some(OperationStatus { step, waiting_for, ..OperationStatus::named("rebuilding") });
    }
    if node.phase() == Phase::Locked {
        return unlocking(node);
    }
    if !node.with_vault(|vault| vault.founding.is_some()).unwrap_or_default() {
        return None;
    }
    let founding = node.enrolment().joining.founding();
    let (step, waiting_for) = (founding.step, founding.waiting_for);
    // A node with an invitation learns only from its inviter whether there is a cluster already.
    let is_invited = |vault: &Vault| {
        vault.founding.as_ref().is_some_and(|founding| !matches!(founding.role, vault::Role::FirstFounder(_)))
    };
    let name = if node.with_vault(is_invited).unwrap_or_default() { "joining" } else { "founding" };
    Some(OperationStatus { step, waiting_for, ..OperationStatus::named(name) })
}

/// The progress of the operation `begun`, as the leader last reported it.
fn reported_by_leader(node: &Node, leader: Option<NodeId>, begun: OperationStatus) -> OperationStatus {
    let reported = match leader {
        Some(leader) if leader == node.id() => node.leader.operation.lock().clone(),
        Some(leader) => node.peers().reports.lock().get(&leader).and_then(|(report, _)| report.operation.clone()),
        None => None,
    };
    // The report may be older than this operation, and name another one.
    let reported = reported.filter(|reported| reported.name == begun.name);
    reported.unwrap_or(begun)
}

/// Why peers have not unlocked this node, in the words of their answers. `None` before the first answer.
fn unlocking(node: &Node) -> Option<OperationStatus> {
    let unlocking = node.enrolment().locks.unlocking.lock().clone();
    let said = unlocking.waiting_for.iter().filter(|(_, said)| !said.is_empty());
    let said = said.map(|(&peer, said)| format!("{}: {said}", node.name_of(peer)));
    let said: Vec<_> = unlocking.failed.into_iter().chain(said).collect();
    let waiting_for = unlocking.waiting_for.keys().map(|&peer| node.name_of(peer)).collect();
    let step = said.join("; ");
    (!said.is_empty()).then(|| OperationStatus { step, waiting_for, ..OperationStatus::named("unlocking") })
}

/// The cluster file that a client needs: the nodes, their addresses and their public keys.
pub fn cluster_file(node: &Node) -> ClusterFile {
    let roster = node.roster();
    let nodes = roster.members.iter().map(|member| ClusterNode {
        name: member.name.clone(),
        id: member.node,
        addresses: member.addresses.iter().map(ToString::to_string).collect(),
        key: PublicKey(member.op_pk),
        boot_key: PublicKey(member.boot_pk),
    });
    ClusterFile { cluster: node.cluster(), nodes: nodes.collect() }
}

/// The status for a client.
pub async fn full(node: &Arc<Node>, replica: &Replica) -> Status {
    // The reports of the peers come first, since they take time. Then everything is read at one moment.
    let reports = reports(node, replica).await;
    let silent = silent(node, replica, &reports);
    let leader = replica.leadership().borrow().leader;
    let (nodes, running, (threshold, theft_threshold, epoch, keys, one_disk_keys)) =
        replica.read_members(|state, _, membership| {
            let nodes = listed(node, state, membership, leader, &reports);
            let running = state.operations.running.as_ref();
            let active = state.active();
            let threshold = active.map_or(0, |epoch| epoch.threshold);
            let epoch = active.map_or(Epoch(0), |epoch| epoch.epoch);
            let running = running.map(|running| operation_status(state, &running.operation));
            (nodes, running, (threshold, theft_threshold(state), epoch, state.keys.len() as u64, one_disk_keys(state)))
        });
    let mut waiting_for = public(node).waiting_for;
    waiting_for.extend(names(node, &silent));
    waiting_for.sort();
    waiting_for.dedup();
    let quorum = node.serving.lease.is_valid();
    let trouble = node.serving.trouble.lock().as_ref().map(ToString::to_string);
    let lease_ms = u32::try_from(node.serving.lease.left_ms()).ok().filter(|&left| left > 0);
    Status {
        cluster: node.cluster(),
        node: node.name(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        phase: node.phase(),
        quorum,
        reason: if quorum { None } else { Some(trouble.unwrap_or_else(|| "no lease from a quorum yet".to_owned())) },
        threshold,
        voters: u8::try_from(nodes.iter().filter(|node| node.role != Role::Learner).count()).unwrap_or(u8::MAX),
        theft_threshold,
        epoch,
        leader: leader.and_then(|leader| names(node, &[leader]).pop()),
        lease_ms,
        keys,
        one_disk_keys,
        operation: operation(node).or_else(|| running.map(|begun| reported_by_leader(node, leader, begun))),
        alarms: alarms(node),
        waiting_for,
        nodes,
    }
}

/// The members that did not answer now, and did not report for a while. A session to a node that has just died looks open until
/// it times out.
fn silent(node: &Node, replica: &Replica, reports: &Reports) -> Vec<NodeId> {
    let answered = |id: &NodeId| reports.get(id).is_some_and(|(_, last_seen_ms)| *last_seen_ms == 0);
    let members: Vec<NodeId> = replica.read(|state| state.members.keys().copied().collect());
    members.into_iter().filter(|id| !answered(id) && reported_ms_ago(node, *id).is_none_or(is_silence)).collect()
}

/// Whether a member that reported what is flushed no longer does so.
pub fn fell_silent(node: &Node, id: NodeId) -> bool {
    reported_ms_ago(node, id).is_some_and(is_silence)
}

fn reported_ms_ago(node: &Node, id: NodeId) -> Option<u64> {
    Some(boot_ms().saturating_sub(node.peers().sessions.heard_ms(id)?))
}

fn is_silence(ms: u64) -> bool {
    ms >= SILENT_MS
}

/// How many keys were made while one disk alone could open them, and should be rotated.
fn one_disk_keys(state: &State) -> u64 {
    match state.one_disk_until_ms() {
        0 => 0,
        until_ms => state.keys.values().filter(|key| key.newest().created_ms <= until_ms).count() as u64,
    }
}

/// Every member with its newest report.
pub async fn nodes(node: &Arc<Node>, replica: &Replica) -> Vec<NodeInfo> {
    let reports = reports(node, replica).await;
    let leader = replica.leadership().borrow().leader;
    replica.read_members(|state, _, membership| listed(node, state, membership, leader, &reports))
}

/// Asks the members for reports from time to time. So the first status after the death of a member shows what the member was. Never
/// returns.
pub async fn keep_reports(node: Arc<Node>, replica: Replica) {
    loop {
        sleep(KEEP).await;
        reports(&node, &replica).await;
    }
}

/// The newest report of each member, and its age in milliseconds.
type Reports = BTreeMap<NodeId, (Report, u64)>;

async fn reports(node: &Arc<Node>, replica: &Replica) -> Reports {
    let members: Vec<NodeId> = replica.read(|state| state.members.keys().copied().collect());
    let own = report(node);
    let asked = members.into_iter().map(|id| {
        let own = own.clone();
        async move {
            if id == node.id() {
                return Some((id, (own, 0)));
            }
            if let Some(report) = ask(node, id).await {
                node.peers().reports.lock().insert(id, (report.clone(), boot_ms()));
                return Some((id, (report, 0)));
            }
            let last = node.peers().reports.lock().get(&id).cloned();
            let heard_ms = node.peers().sessions.heard_ms(id).unwrap_or_default();
            // 0 means that it answers now, and it does not.
            let age_ms = |seen_ms: u64| boot_ms().saturating_sub(seen_ms.max(heard_ms)).max(1);
            last.map(|(report, seen_ms)| (id, (report, age_ms(seen_ms))))
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

fn listed(
    node: &Node,
    state: &State,
    membership: &Membership,
    leader: Option<NodeId>,
    reports: &Reports,
) -> Vec<NodeInfo> {
    let newest = reports.values().map(|(report, _)| report.applied).max().unwrap_or(0);
    let reported = |(report, last_seen_ms): &(Report, u64)| NodeState {
        phase: report.phase,
        lag: newest.saturating_sub(report.applied),
        epoch: report.epoch,
        lock_generation: report.lock_generation,
        old_copies: report.old_copies,
        last_seen_ms: *last_seen_ms,
        unreached: report.unreached.iter().filter_map(|id| Some(state.members.get(id)?.name.clone())).collect(),
    };
    let voters = membership.voters();
    let role = |id| match leader == Some(id) {
        true => Role::Leader,
        false if voters.contains(&id) => Role::Voter,
        false => Role::Learner,
    };
    let infos = state.members.values().map(|member| NodeInfo {
        name: member.name.clone(),
        id: member.node,
        addresses: member.addresses.iter().map(ToString::to_string).collect(),
        role: role(member.node),
        state: reports.get(&member.node).map(reported),
        away_ms: absence::long_away_ms(node, member.node),
    });
    infos.collect()
}

/// How many disks a thief must have at one instant: the smallest number that any epoch or any lock demands.
pub fn theft_threshold(state: &State) -> u8 {
    let epochs = state.epochs.values().filter(|epoch| !epoch.is_over()).map(|epoch| epoch.threshold);
    let locks = state.locks.values().map(|lock| lock.threshold.saturating_add(1));
    epochs.chain(locks).min().unwrap_or(0)
}

/// Asks a peer for its report: over its session, or, if it is locked and has none, for its public status.
async fn ask(node: &Arc<Node>, peer: NodeId) -> Option<Report> {
    if node.peers().sessions.with(peer).is_some() {
        return match node.peers().sessions.ask(peer, Lane::Ordinary, &PeerRequest::Report, REPORT).await {
            Ok(PeerReply::Report(report)) => Some(within_limits(report)),
            _ => None,
        };
    }
    let public = timeout(REPORT, ask_public(node, peer)).await.ok()??;
    let last = node.peers().reports.lock().get(&peer).map(|(report, _)| report.clone());
    let (applied, lock_generation, epoch) =
        last.map_or((0, 0, Epoch(0)), |last| (last.applied, last.lock_generation, last.epoch));
    let (phase, alarms) = (public.phase, Vec::new());
    let (old_copies, operation, unreached) = (None, None, BTreeSet::new());
    Some(Report { phase, applied, lock_generation, old_copies, epoch, alarms, operation, unreached })
}

/// What a peer reports, cut to what an honest node reports at most: the reports of all nodes are one answer.
fn within_limits(mut report: Report) -> Report {
    report.alarms.truncate(ALARMS_MAX);
    for alarm in &mut report.alarms {
        cut(&mut alarm.code, WORDS_BYTES_MAX);
        cut(&mut alarm.message, MESSAGE_BYTES_MAX);
    }
    if let Some(OperationStatus { name, nodes, step, left: _, waiting_for }) = &mut report.operation {
        [name, step].into_iter().for_each(|text| cut(text, MESSAGE_BYTES_MAX));
        for names in [nodes, waiting_for] {
            names.truncate(MEMBERS_MAX);
            names.iter_mut().for_each(|name| cut(name, WORDS_BYTES_MAX));
        }
    }
    report
}

async fn ask_public(node: &Arc<Node>, peer: NodeId) -> Option<PublicStatus> {
    let connection = dial_member(node, &node.enrolment(), peer, MemberProtocol::Boot, REPORT).await.ok()?;
    let conn = Closing(Conn::start(connection, None));
    let reply = conn.0.call(Lane::Ordinary, PUBLIC_STATUS, REPORT).await.ok()?;
    wire::decode(&reply).ok()
}

/// This node's alarms, and those that its peers reported.
pub fn alarms(node: &Node) -> Vec<Alarm> {
    let (mut alarms, roster, peers) = (node.alarms.open(), node.roster(), node.peers());
    let reports = peers.reports.lock();
    // The alarms of a former member are left out, because no operator could close them.
    for (_, (report, _)) in reports.iter().filter(|(peer, _)| roster.member(**peer).is_some()) {
        for alarm in &report.alarms {
            if !alarms.iter().any(|known| known.code == alarm.code && known.node == alarm.node) {
                alarms.push(alarm.clone());
            }
        }
    }
    alarms.sort_by_key(|alarm| alarm.since_ms);
    alarms
}

fn lock_generation(node: &Node) -> u64 {
    node.with_vault(|vault| vault.lock.as_ref().map_or(0, Lock::generation)).unwrap_or_default()
}

fn names(node: &Node, nodes: &[NodeId]) -> Vec<NodeName> {
    let roster = node.roster();
    nodes.iter().filter_map(|&id| roster.member(id)).map(|member| member.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(alarms: usize, length: usize, names: usize) -> Report {
        let text = |length| "ä".repeat(length / 2);
        let alarm = Alarm { code: text(length), message: text(length), node: None, since_ms: 0 };
        let operation = OperationStatus {
            name: text(length),
            nodes: vec![text(length); names],
            step: text(length),
            left: None,
            waiting_for: vec![text(length); names],
        };
        Report {
            phase: Phase::Serving,
            applied: 0,
            lock_generation: 1,
            old_copies: None,
            epoch: Epoch(1),
            alarms: vec![alarm; alarms],
            operation: Some(operation),
            unreached: BTreeSet::new(),
        }
    }

    /// Mutated: without the limits, one member that lies makes the status of all larger than a message.
    #[test]
    fn a_peer_reports_no_more_than_an_honest_one() {
        let large = within_limits(reported(10_000, 10_001, 1_000));
        assert_eq!(large.alarms.len(), ALARMS_MAX);
        let longest = |text: fn(&Alarm) -> &String| large.alarms.iter().map(text).map(String::len).max();
        assert_eq!(longest(|alarm| &alarm.code), Some(WORDS_BYTES_MAX));
        assert_eq!(longest(|alarm| &alarm.message), Some(MESSAGE_BYTES_MAX));
        let operation = large.operation.expect("one");
        assert_eq!((operation.name.len(), operation.step.len()), (MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX));
        for names in [operation.nodes, operation.waiting_for] {
            assert_eq!((names.len(), names[0].len()), (MEMBERS_MAX, WORDS_BYTES_MAX));
        }
        let honest = within_limits(reported(3, 40, 2));
        assert_eq!((honest.alarms.len(), honest.alarms[0].message.len()), (3, 40), "the control: what is usual stays");
        assert_eq!(honest.operation.map(|operation| operation.waiting_for.len()), Some(2));
    }
}
