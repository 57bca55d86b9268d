//! Members leave: in good order, or because they are refused from now on.

use std::collections::BTreeSet;

use quorate_shares::ids::{Epoch, KeyVersion, NodeId, ShareKeyGeneration};

use super::cluster::{Cluster, invite};
use crate::Refusal;
use crate::live::command::{Begin, Change, Operation, ReportLock};
use crate::live::plan::Step;
use crate::live::rows::RowKey;
use crate::live::state::EpochPhase;
use crate::tests::fixture::{lock, uid};

/// A removed node has neither a seat nor a piece of a lock, and of the old epoch neither share keys nor records are left.
#[test]
fn nothing_is_left_of_a_member_that_was_removed_nor_of_its_epoch() {
    let mut cluster = Cluster::new(4, 3);
    (1..=3).for_each(|number| cluster.create(number));
    let operation = cluster.begin(50, Operation::Remove { node: NodeId(4) });
    cluster.settle();
    let state = &cluster.state;
    assert_eq!(
        state.active().map(|active| (active.epoch, active.threshold, active.committee.len())),
        Some((operation, 2, 3))
    );
    assert!(state.operations.running.is_none() && !state.members.contains_key(&NodeId(4)));
    assert!(!state.former[&NodeId(4)].revoked);
    assert!(state.locks.values().all(|lock| !lock.peers.contains(&NodeId(4)) && lock.threshold == 1));
    let old = ShareKeyGeneration(1);
    assert!(cluster.share_keys.iter().filter(|(node, _)| node.0 != 4).all(|(_, keys)| !keys.contains_key(&old)));
    let records = cluster.rows.keys().filter_map(|key| RowKey::parse(key));
    assert_eq!(records.filter(|key| matches!(key, RowKey::Record(_, _, Epoch(1)))).count(), 0);
    assert_eq!(
        (state.batches.values().all(|batch| batch.epoch == operation), state.is_unswept(Epoch(1))),
        (true, false)
    );
}

/// A leader that is to leave lets another one lead first (I9).
#[test]
fn a_leader_does_not_remove_itself() {
    let mut cluster = Cluster::new(4, 3);
    cluster.create(1);
    cluster.begin(50, Operation::Remove { node: NodeId(1) });
    let Step::TransferLeadership { to } = cluster.next() else { panic!("it must not go on") };
    assert_eq!(to, [NodeId(2), NodeId(3), NodeId(4)].into());
    cluster.settle();
    assert_eq!(cluster.leader, NodeId(2));
    assert!(!cluster.state.members.contains_key(&NodeId(1)));
}

/// A revocation preempts any running operation, and also revokes the nodes that were about to leave.
#[test]
fn a_revocation_comes_first() {
    let mut cluster = Cluster::new(5, 3);
    (1..=2).for_each(|number| cluster.create(number));
    let first = cluster.begin(50, Operation::Remove { node: NodeId(5) });
    cluster.follow_until(|cluster| cluster.state.pending().is_some_and(|pending| pending.reshared > 0));
    let other =
        Begin { request: [51; 16], operation: Operation::Rekey, accept_no_redundancy: false, abandon: BTreeSet::new() };
    let running = Refusal::OperationRunning { operation: first };
    assert_eq!(cluster.refused(Change::Begin(other)), running);

    let nodes: BTreeSet<NodeId> = [NodeId(2)].into();
    let stay = cluster.state.stays_after_revocation(&nodes);
    assert_eq!(stay, [NodeId(1), NodeId(3), NodeId(4)].into(), "n5 is taken along");
    assert!(!cluster.state.are_being_revoked(&[NodeId(5)].into()), "it is removed");
    let revoke = Operation::Revoke { nodes: nodes.clone() };
    let second = cluster.begin(52, revoke.clone());
    assert!(cluster.state.are_being_revoked(&nodes) && !cluster.state.are_being_revoked(&stay));
    assert_eq!(cluster.state.stays_after_revocation(&nodes), stay);
    assert_eq!(cluster.begin(52, revoke), second, "the same request again");
    assert!(second > first, "the number of an epoch that was given up is not used again");
    assert_eq!(cluster.state.epochs[&first].phase, EpochPhase::Abandoned);
    let ended = cluster.state.operations.ended.as_ref().map(|ended| (ended.was.epoch, ended.preempted));
    assert_eq!(ended, Some((first, true)));
    cluster.settle();
    assert_eq!(cluster.state.members.len(), 3);
    assert!(cluster.state.former.keys().eq(&[NodeId(2), NodeId(5)]));
    assert_eq!(cluster.state.active().map(|active| active.epoch), Some(second));
    // The share keys that were drawn for the epoch that was given up are gone, too.
    assert!(cluster.state.locks.values().all(|lock| lock.share_keys.iter().eq(&[ShareKeyGeneration(second.0)])));
}

/// A revocation is not refused because of a planned removal: if too few holders would remain, the removal is taken back, as long
/// as nothing depends on it. Mutated: if the removed node is revoked nevertheless, the revocation is refused.
#[test]
fn a_revocation_takes_a_removal_back_rather_than_be_refused() {
    let mut cluster = Cluster::new(4, 3);
    (1..=2).for_each(|number| cluster.create(number));
    cluster.begin(50, Operation::Remove { node: NodeId(4) });
    cluster.follow_until(|cluster| cluster.state.pending().is_some_and(|pending| pending.reshared > 0));
    let revocation = cluster.begin(51, Operation::Revoke { nodes: [NodeId(2)].into() });
    cluster.settle();
    assert!(cluster.state.former.keys().eq(&[NodeId(2)]), "{:?}", cluster.state.former);
    let active = cluster.state.active().expect("active");
    assert_eq!((active.epoch, active.threshold, active.committee.len()), (revocation, 2, 3));
    let slot = (uid(1), KeyVersion(1));
    assert_eq!(cluster.rebuilt(slot, revocation, Some(&[1, 4])), Some(cluster.keys[&slot]));
    cluster.begin(52, Operation::Remove { node: NodeId(4) });
    cluster.settle();
    assert_eq!(cluster.state.members.len(), 2);
}

/// A node that has just joined serves, although the operation that took it in still erases old shares. A revocation of another
/// node at that moment leaves the joiner. Mutated: if the joiner is revoked as well, two of three shares would remain, and the
/// revocation is refused.
#[test]
fn a_revocation_leaves_a_node_that_has_joined() {
    let mut cluster = Cluster::new(3, 2);
    cluster.create(1);
    cluster.apply(invite(1));
    cluster.prove(1, 4);
    cluster.follow_until(|cluster| cluster.state.active().is_some_and(|active| active.x_of(NodeId(4)).is_some()));
    assert!(cluster.state.operations.running.is_some(), "the control: the join is not over");
    assert_eq!(cluster.state.active().expect("an epoch").threshold, 3);
    let revoke = cluster.begin(50, Operation::Revoke { nodes: [NodeId(2)].into() });
    cluster.settle();
    assert_eq!(cluster.state.active().map(|active| active.epoch), Some(revoke));
    assert!(cluster.state.former.keys().eq(&[NodeId(2)]), "{:?}", cluster.state.former);
    assert!(cluster.voters.contains(&NodeId(4)), "{:?}", cluster.voters);
    let open = cluster.state.epochs.values().filter(|epoch| !epoch.is_over()).map(|epoch| epoch.epoch);
    assert_eq!(open.collect::<Vec<_>>(), [revoke], "the shares of the epochs before are erased");
}

/// The number of an operation names it, also if it never opened its epoch.
#[test]
fn a_revocation_has_a_number_of_its_own() {
    let mut cluster = Cluster::new(7, 4);
    cluster.create(1);
    let first = cluster.begin(50, Operation::Remove { node: NodeId(5) });
    // Some have drawn a share key for it already.
    (1..=2).for_each(|node| cluster.draw_share_key(NodeId(node)));
    let second = cluster.begin(51, Operation::Revoke { nodes: [NodeId(2)].into() });
    let third = cluster.begin(52, Operation::Revoke { nodes: [NodeId(4)].into() });
    assert!(first < second && second < third, "{first} {second} {third}");
    assert!(cluster.state.epoch(first).is_none(), "the control: it was not opened");
    cluster.settle();
    assert_eq!(cluster.state.active().map(|active| active.epoch), Some(third));
    assert!(cluster.state.locks.values().all(|lock| lock.share_keys.iter().eq(&[ShareKeyGeneration(third.0)])));
    assert_eq!(cluster.state.next_epoch(), Epoch(third.0 + 1));
}

#[test]
fn those_who_remain_can_go_on() {
    let mut cluster = Cluster::new(3, 2);
    if let Some(cluster) = &mut cluster.state.cluster {
        cluster.accept_no_redundancy = false;
    }
    cluster.create(1);
    let begin = |operation, accept_no_redundancy| {
        Change::Begin(Begin { request: [60; 16], operation, accept_no_redundancy, abandon: BTreeSet::new() })
    };
    let remove = Operation::Remove { node: NodeId(3) };
    assert_eq!(cluster.refused(begin(remove, false)), Refusal::NoRedundancyNotAccepted);
    let stranger = Operation::Remove { node: NodeId(7) };
    assert_eq!(cluster.refused(begin(stranger, true)), Refusal::UnknownMember { node: NodeId(7) });
    let two = Operation::Revoke { nodes: [NodeId(2), NodeId(3)].into() };
    let few = Refusal::TooFewRemain { remaining: 1, needed: 2 };
    assert_eq!(cluster.refused(begin(two, true)), few);
    let no_node = Operation::Revoke { nodes: BTreeSet::new() };
    assert!(matches!(cluster.refused(begin(no_node, true)), Refusal::MemberCount { .. }));
    // A revocation needs no consent to lost redundancy.
    cluster.begin(61, Operation::Revoke { nodes: [NodeId(3)].into() });
    cluster.settle();
    assert_eq!(cluster.state.active().map(|active| active.threshold), Some(2));
}

/// The lock report of a revoked member counts until the operation is over: it says how many other disks a thief of its disk
/// needs. Mutated: without it, its old disk is called dead although the lock of a smaller cluster still opens it.
#[test]
fn the_lock_of_a_revoked_member_is_known_until_all_is_reshared() {
    let mut cluster = Cluster::new(3, 2);
    cluster.create(1);
    cluster.away(2);
    for (number, node) in [(1, 4), (2, 5)] {
        cluster.prove(number, node);
        cluster.settle();
    }
    let revocation = cluster.begin(50, Operation::Revoke { nodes: [NodeId(2)].into() });
    cluster.follow_until(|cluster| cluster.state.former.contains_key(&NodeId(2)));
    let known = |cluster: &Cluster| cluster.state.locks.get(&NodeId(2)).map(|lock| lock.threshold);
    assert_eq!((cluster.state.active().map(|active| active.threshold), known(&cluster)), (Some(3), Some(1)));
    assert_eq!(cluster.state.former_holders().collect::<Vec<_>>(), [NodeId(2)]);
    // Another revocation preempts it.
    cluster.begin(51, Operation::Revoke { nodes: [NodeId(3)].into() });
    cluster.follow_until(|cluster| cluster.state.former.contains_key(&NodeId(3)));
    assert_eq!(cluster.state.former_holders().collect::<Vec<_>>(), [NodeId(2), NodeId(3)]);
    cluster.settle();
    assert!(cluster.state.active().is_some_and(|active| active.epoch > revocation));
    assert_eq!((known(&cluster), cluster.state.former_holders().count()), (None, 0));
    assert!(cluster.state.locks.keys().eq(cluster.state.members.keys()));
    assert!(cluster.restored() == cluster.state, "and its row with it");
}

/// A report from before the expulsion says nothing about the node that is revoked: the member may have taken a lock key for it
/// since, or named it in a newer lock. Mutated: if such reports count, the old disk is called dead before any key is erased. If the
/// keys or the pieces that a report names do not count, `old disk: dead` or `names safe` is said too early.
#[test]
fn only_reports_from_after_the_expulsion_say_that_a_disk_is_dead() {
    let mut cluster = Cluster::new(4, 3);
    cluster.create(1);
    let gone = BTreeSet::from([NodeId(4)]);
    let counts = |cluster: &Cluster| (cluster.state.erased_keys_of(&gone), cluster.state.renewed_without(&gone));
    let without_4 = |cluster: &mut Cluster, node: u64| {
        cluster.writes += 1;
        let peers: Vec<u64> = (1..=3).filter(|peer| *peer != node).collect();
        lock(node, cluster.writes, 2, &peers)
    };
    let (first, second) = (without_4(&mut cluster, 1), without_4(&mut cluster, 2));
    cluster.apply(Change::ReportLock(first.clone()));
    cluster.begin(50, Operation::Revoke { nodes: gone.clone() });
    assert_eq!(counts(&cluster), (0, 0), "it is a member still");
    cluster.follow_until(|cluster| cluster.state.former.contains_key(&NodeId(4)));
    assert_eq!(counts(&cluster), (0, 0), "n1 spoke too early");
    cluster.apply(Change::ReportLock(second.clone()));
    assert_eq!(counts(&cluster), (0, 0), "n2 speaks late of what it read before");
    let ahead = ReportLock { former: 2, ..second.clone() };
    assert_eq!(cluster.refused(Change::ReportLock(ahead)), Refusal::FormerAhead { node: NodeId(2) });
    // Nothing was to be erased, so the vaults were not written since.
    for (counted, report) in [(1, first), (2, second)] {
        cluster.apply(Change::ReportLock(ReportLock { former: 1, ..report }));
        assert_eq!(counts(&cluster), (counted, counted));
    }
    // n3 has renewed its lock, and a key of its own still opens a piece of the revoked disk.
    let still_held = ReportLock { holds_for: [NodeId(4)].into(), ..without_4(&mut cluster, 3) };
    cluster.apply(Change::ReportLock(ReportLock { former: 1, ..still_held }));
    assert_eq!(counts(&cluster), (2, 3), "the lock is renewed, and the key is not erased");
    // n3 has erased its key for the revoked disk, and a piece of its own lock still opens with that disk.
    let still_named = ReportLock { peers: [1, 2, 4].map(NodeId).into(), ..without_4(&mut cluster, 3) };
    cluster.apply(Change::ReportLock(ReportLock { former: 1, ..still_named }));
    assert_eq!(counts(&cluster), (3, 2), "the key is erased, and the lock is not renewed");
    cluster.settle();
    assert_eq!(counts(&cluster), (3, 3));
    cluster.begin(51, Operation::Remove { node: NodeId(3) });
    cluster.settle();
    assert!(cluster.restored() == cluster.state);
}

/// A node that is given up later, by a repetition of the same order, is not waited for either.
#[test]
fn a_removal_that_waits_is_told_whom_to_give_up() {
    let mut cluster = Cluster::new(6, 4);
    cluster.create(1);
    cluster.away(6);
    cluster.lead(NodeId(5));
    for node in [1, 2] {
        cluster.apply(remove(50 + node as u8, node, &[]));
        cluster.settle();
    }
    cluster.apply(remove(60, 3, &[]));
    cluster.follow_until(|cluster| cluster.next() == Step::AwaitLocks { missing: vec![NodeId(6)] });
    cluster.apply(remove(61, 3, &[6]));
    cluster.settle();
    assert!(cluster.state.former.contains_key(&NodeId(3)), "{:?}", cluster.state.operations);
}

fn remove(request: u8, node: u64, abandon: &[u64]) -> Change {
    Change::Begin(Begin {
        request: [request; 16],
        operation: Operation::Remove { node: NodeId(node) },
        accept_no_redundancy: true,
        abandon: abandon.iter().copied().map(NodeId).collect(),
    })
}

/// If all of them were denied at once, no majority of the four voters could commit it, and the operation would never end.
#[test]
fn more_nodes_than_a_majority_can_deny_at_once_go_one_after_the_other() {
    let mut cluster = Cluster::new(4, 3);
    let removal = cluster.begin(50, Operation::Remove { node: NodeId(4) });
    cluster.follow_until(|cluster| cluster.state.active().is_some_and(|active| active.epoch == removal));
    assert_eq!(cluster.voters.len(), 4, "its seat is gone, and its vote is not");
    cluster.leader = NodeId(2);
    cluster.begin(51, Operation::Revoke { nodes: [NodeId(1)].into() });
    // The one that is away cannot help, so it goes first.
    cluster.away(1);
    let voters = |step: Step| match step {
        Step::ChangeVoters { voters, revoke: true } => voters.into_iter().map(|node| node.0).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(voters(cluster.next()), [2, 3, 4]);
    cluster.settle();
    assert_eq!(cluster.voters, [NodeId(2), NodeId(3)].into());
    assert!(cluster.state.members.keys().eq(&[NodeId(2), NodeId(3)]));
}
