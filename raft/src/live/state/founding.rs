//! How a cluster is founded, and what members report about themselves.

use std::collections::BTreeSet;

use quorate_shares::ids::NodeId;
use quorate_shares::kem::PublicKey;
use quorate_shares::order::is_label;

use super::addresses::check_addresses;
use super::{
    Cluster, EpochInfo, LEASE_MS_MAX, LEASE_MS_MIN, LockReport, MEMBERS_MAX, Member, MemberState, Operator, State,
    check_threshold,
};
use crate::live::command::{Found, NewMember, Outcome, ReportLock};
use crate::live::level::FIRST_LEVEL;
use crate::live::refusal::Refusal;
use crate::live::rows::{Row, RowKey, Rows};

pub(super) fn found(state: &mut State, found: &Found, rows: &mut Rows) -> Result<Outcome, Refusal> {
    if let Some(cluster) = &state.cluster {
        let repeated = cluster.cluster == found.cluster && state.operators.contains_key(&found.operator);
        return if repeated { Ok(Outcome::Founded) } else { Err(Refusal::AlreadyFounded) };
    }
    let count = found.members.len();
    if count == 0 || count > MEMBERS_MAX {
        return Err(Refusal::MemberCount { members: count });
    }
    if count == 1 && !found.allow_solo {
        return Err(Refusal::SoloNotAllowed);
    }
    if count == 2 && !found.accept_no_redundancy {
        return Err(Refusal::NoRedundancyNotAccepted);
    }
    check_threshold(found.threshold, count)?;
    let lease_ms = found.lease_ms;
    if !(LEASE_MS_MIN..=LEASE_MS_MAX).contains(&lease_ms) {
        return Err(Refusal::BadLease { lease_ms });
    }
    check_members(&found.members)?;
    if !found.operator.is_strict() || !is_label(&found.operator_label) {
        return Err(Refusal::BadOperator);
    }
    let keys = found.members.iter().map(|member| {
        let key = PublicKey::parse(&member.share_pk).ok().filter(|_| member.skgen.0 > 0);
        key.ok_or(Refusal::BadShareKey { node: member.node })
    });
    let keys = keys.collect::<Result<Vec<_>, _>>()?;

    let cluster = Cluster {
        cluster: found.cluster,
        threshold: found.threshold,
        allow_solo: found.allow_solo,
        accept_no_redundancy: found.accept_no_redundancy,
        lease_ms,
        founded_ms: state.time_ms,
        next_node_id: count as u64 + 1,
        level: FIRST_LEVEL,
        incarnation: 1,
    };
    rows.put(RowKey::Cluster, Row::Cluster(cluster.clone()));
    state.cluster = Some(cluster);
    let (key, label) = (found.operator, found.operator_label.clone());
    let operator = Operator { key, label, added_ms: state.time_ms };
    rows.put(RowKey::Operator(key), Row::Operator(operator.clone()));
    state.operators.insert(key, operator);
    for (new, share_pk) in found.members.iter().zip(keys) {
        let member = Member {
            node: new.node,
            name: new.name.clone(),
            addresses: new.addresses.clone(),
            boot_pk: new.boot_pk,
            op_pk: new.op_pk,
            share_pk,
            skgen: new.skgen,
            state: MemberState::Active,
        };
        rows.put(RowKey::Member(new.node), Row::Member(member.clone()));
        state.members.insert(new.node, member);
    }
    Ok(Outcome::Founded)
}

/// The founders have the ids 1 to N, and share no name and no identity key.
fn check_members(members: &[NewMember]) -> Result<(), Refusal> {
    let (mut nodes, mut names, mut keys) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for member in members {
        let node = member.node;
        if !(1..=members.len() as u64).contains(&node.0) || !nodes.insert(node) {
            return Err(Refusal::BadNodeId { node });
        }
        if !names.insert(&member.name) {
            return Err(Refusal::NodeNameTaken { node });
        }
        if !keys.insert(member.boot_pk) || !keys.insert(member.op_pk) {
            return Err(Refusal::IdentityTaken { node });
        }
        check_addresses(node, &member.addresses)?;
    }
    Ok(())
}

/// Stores a lock report. One that is older than the stored one is a late repetition, and is answered as done.
pub(super) fn report_lock(state: &mut State, report: &ReportLock, rows: &mut Rows) -> Result<Outcome, Refusal> {
    let node = report.node;
    let holds_all = |epoch: &EpochInfo| !epoch.is_over() && epoch.threshold == 1 && epoch.x_of(node).is_some();
    let alone = state.members.len() == 1 || state.epochs.values().any(holds_all);
    let solo = alone && report.peers.is_empty() && report.threshold == 0;
    // A lock may name nodes that were members when it was made.
    let known = |node: &NodeId| state.members.contains_key(node) || state.former.contains_key(node);
    if let Some(&stranger) = report.peers.iter().find(|node| !known(node)) {
        return Err(Refusal::UnknownMember { node: stranger });
    }
    if !state.members.contains_key(&node) {
        return Err(Refusal::UnknownMember { node });
    }
    let fits = (1..=report.peers.len()).contains(&usize::from(report.threshold)) && !report.peers.contains(&node);
    if !solo && !fits {
        return Err(Refusal::BadLock { threshold: report.threshold, peers: report.peers.len() });
    }
    if report.former > state.former.len() as u64 {
        return Err(Refusal::FormerAhead { node });
    }
    let newer = |stored: &LockReport| (stored.writes, stored.former) < (report.writes, report.former);
    if state.locks.get(&node).is_none_or(newer) {
        let stored = LockReport {
            node,
            generation: report.generation,
            threshold: report.threshold,
            peers: report.peers.clone(),
            share_keys: report.share_keys.clone(),
            holds_for: report.holds_for.clone(),
            writes: report.writes,
            reported_ms: state.time_ms,
            former: report.former,
        };
        rows.put(RowKey::Lock(node), Row::Lock(stored.clone()));
        state.locks.insert(node, stored);
    }
    Ok(Outcome::LockReported { node })
}
