//! What is dealt to an epoch, which nodes can open it, and what is erased after it.

use quorate_shares::ids::{Epoch, KeyVersion, NodeId, ShareKeyGeneration};
use quorate_shares::kem::PublicKey;
use quorate_shares::secret::Secret;

use super::cluster::Cluster;
use crate::Refusal;
use crate::live::command::{Change, EpochAck, Operation, RegisterShareKey};
use crate::live::plan::{self, Patience, Step};
use crate::live::rows::RowKey;
use crate::live::state::State;
use crate::tests::fixture::{rng, uid};

#[test]
fn share_keys_are_drawn_for_the_epoch_that_comes_next() {
    let mut cluster = Cluster::new(3, 2);
    let key = |node, skgen| {
        let share_pk = PublicKey::of_seed(&Secret::random(&mut rng())).as_bytes().to_vec();
        Change::RegisterShareKey(RegisterShareKey { node: NodeId(node), skgen: ShareKeyGeneration(skgen), share_pk })
    };
    for skgen in [1, 3] {
        let stale = Refusal::StaleShareKey { node: NodeId(2) };
        assert_eq!(cluster.refused(key(2, skgen)), stale);
    }
    let good = key(2, 2);
    cluster.apply(good.clone());
    cluster.apply(good);
    assert_eq!(cluster.refused(key(2, 2)), Refusal::StaleShareKey { node: NodeId(2) });
    assert_eq!(cluster.refused(key(9, 2)), Refusal::UnknownMember { node: NodeId(9) });
}

/// I3: a key that is made while an epoch is PENDING is in both, and needs no dealing.
#[test]
fn keys_are_made_while_an_epoch_is_dealt() {
    let mut cluster = Cluster::new(4, 3);
    (1..=2).for_each(|number| cluster.create(number));
    let operation = cluster.begin(50, Operation::Remove { node: NodeId(4) });
    cluster.follow_until(|cluster| cluster.state.pending().is_some());
    cluster.create(3);
    cluster.settle();
    assert_eq!(
        cluster.state.active().map(|active| (active.epoch, active.reshared, active.records)),
        Some((operation, 2, 3))
    );
}

/// S5: no version is dealt twice in one epoch. S3: no node outside the committee can open a share.
#[test]
fn a_version_is_dealt_once_and_to_the_committee_alone() {
    let mut cluster = Cluster::new(4, 3);
    cluster.create(1);
    let slot = (uid(1), KeyVersion(1));
    let operation = cluster.begin(50, Operation::Remove { node: NodeId(4) });
    cluster.follow_until(|cluster| cluster.state.pending().is_some());
    let [first, again] = [(); 2].map(|()| cluster.reshared(operation, &[slot]));
    cluster.apply(first);
    let dealt = Refusal::AlreadyReshared { uid: slot.0, version: slot.1 };
    assert_eq!(cluster.refused(again), dealt);
    cluster.settle();
    assert_eq!(cluster.rebuilt(slot, operation, Some(&[2, 3])), Some(cluster.keys[&slot]));
    assert_eq!(cluster.rebuilt(slot, operation, Some(&[3, 4])), None);
}

/// A key that was verified in the PENDING epoch only is ready when that epoch becomes ACTIVE. A key that was verified in the
/// ACTIVE epoch only is ready when the PENDING epoch is given up. Nothing is left to be verified then, so no later command
/// would make it ready.
#[test]
fn a_key_is_ready_when_the_only_epoch_that_it_waited_for_counts_no_more() {
    let mut cluster = Cluster::new(4, 3);
    let rekeyed = cluster.begin(50, Operation::Rekey);
    cluster.follow_until(|cluster| cluster.state.pending().is_some());
    assert_eq!(cluster.make(1, "key/1"), Ok(vec![Epoch(1), rekeyed]));
    cluster.verify(1, rekeyed);
    assert!(!cluster.is_ready(1), "no holder checked its shares in the epoch that serves");
    cluster.settle();
    assert!(cluster.is_ready(1) && plan::unverified(&cluster.state).is_empty());

    cluster.begin(51, Operation::Rekey);
    cluster.follow_until(|cluster| cluster.state.pending().is_some());
    cluster.make(2, "key/2").expect("a new key");
    cluster.verify(2, rekeyed);
    assert!(!cluster.is_ready(2));
    cluster.begin(52, Operation::Revoke { nodes: [NodeId(4)].into() });
    assert!(cluster.state.pending().is_none() && cluster.is_ready(2));
    // Both are written as they are.
    let stored = cluster.rows[&RowKey::Version(uid(2), KeyVersion(1)).to_bytes()].clone();
    let mut read = State::default();
    read.restore_row(RowKey::Key(uid(2)), &cluster.rows[&RowKey::Key(uid(2)).to_bytes()]).expect("a row");
    read.restore_row(RowKey::Version(uid(2), KeyVersion(1)), &stored).expect("a row");
    assert_eq!(read.unready().len(), 0);
}

/// I2 and I5: shares for a holder that is away are sealed to the key that it has. It serves when it is back, and erases the old
/// key in an epoch that the leader begins by itself.
#[test]
fn a_member_that_was_away_erases_what_it_owes_in_an_epoch_of_its_own() {
    let mut cluster = Cluster::new(6, 4);
    (1..=2).for_each(|number| cluster.create(number));
    cluster.away(3);
    for leaving in [6, 5] {
        cluster.begin(leaving, Operation::Remove { node: NodeId(leaving.into()) });
        cluster.settle();
    }
    let operation = cluster.begin(50, Operation::Remove { node: NodeId(4) });
    // Three of the five that its lock names open it, and only two of them would be left.
    for _ in 0..100 {
        match cluster.next() {
            Step::AwaitLocks { missing } if missing == [NodeId(3)] => break,
            step => cluster.follow(step),
        }
    }
    assert_eq!(cluster.refused(Change::Expel { operation }), Refusal::Stranded { node: NodeId(3) });
    cluster.back(3);
    cluster.settle();
    assert_eq!(cluster.state.active().and_then(|active| active.seat_of(NodeId(3))).map(|seat| seat.skgen.0), Some(1));
    assert!(cluster.state.owes_erasure(NodeId(3)) && !cluster.state.owes_erasure(NodeId(1)));

    cluster.wait(Patience::default().rekey_ms - 1);
    assert_eq!(cluster.next(), Step::Nothing, "not so soon after the last epoch");
    cluster.wait(1);
    assert_eq!(cluster.next(), Step::Rekey);
    cluster.settle();
    assert_eq!(cluster.state.active().map(|active| active.epoch), Some(Epoch(5)));
    assert!(!cluster.state.owes_erasure(NodeId(3)));
    assert_eq!(cluster.share_keys[&NodeId(3)].keys().map(|skgen| skgen.0).collect::<Vec<_>>(), [5]);
}

/// The rows are the whole state at every step of an operation.
#[test]
fn a_restart_finds_the_operation_where_it_was() {
    let mut cluster = Cluster::new(4, 3);
    (1..=3).for_each(|number| cluster.create(number));
    cluster.begin(50, Operation::Revoke { nodes: [NodeId(4)].into() });
    let mut steps = 0;
    loop {
        let step = cluster.next();
        if step == Step::Nothing {
            break;
        }
        cluster.follow(step);
        steps += 1;
        assert!(cluster.restored() == cluster.state);
    }
    assert!(steps > 8);
}

/// Enough holders have checked their shares, and one more answers: it is asked, too, because the more holders have the key, the
/// more of them may be lost. Nothing waits for a holder that is away. Mutated: if the plan stops at enough, this fails.
#[test]
fn every_holder_that_is_there_checks_its_shares_before_they_serve() {
    let mut cluster = Cluster::new(4, 3);
    cluster.create(1);
    let epoch = cluster.begin(50, Operation::Rekey);
    cluster.follow_until(|cluster| cluster.state.pending().is_some_and(|pending| pending.reshared > 0));
    for node in 1..=3 {
        cluster.apply(Change::EpochAck(EpochAck { epoch, node: NodeId(node), reshared: 1 }));
    }
    let missing = vec![NodeId(4)];
    assert_eq!(cluster.next(), Step::CollectAcks { epoch, reshared: 1, needed: 0, missing });
    cluster.away(4);
    assert_eq!(cluster.next(), Step::Propose(Change::ActivateEpoch { epoch }));
}
