//! The promises of `apply` and `plan`.

mod level;
mod orders;

use std::collections::BTreeSet;

use quorate_shares::ids::{ClusterId, Epoch, KeyVersion, NodeId, ShareKeyGeneration};
use quorate_shares::seal::ShareRecord;
use quorate_shares::signature;

use super::fixture::{
    CLUSTER, Leader, activate, found, founded, lock, next_changes, operator, order, ready, refused, step, uid, view,
};
use crate::Refusal;
use crate::live::command::{
    Begin, Change, Command, EpochAck, Found, OpenEpoch, Operation, Ordered, Outcome, Ready, RecordBytes, Seat, Verified,
};
use crate::live::plan::{self, Step, VERIFY_MAX, View};
use crate::live::rows::{RowKey, RowWrite};
use crate::live::state::{EpochInfo, EpochPhase, KEY_VERSIONS_MAX, LEASE_MS_MAX, LEASE_MS_MIN, State, apply};

fn with_key() -> (State, Leader) {
    let mut state = founded(3, 2);
    let mut leader = Leader::new(&state, Epoch(1));
    step(&mut state, leader.open_batch()).outcome.expect("a batch");
    let create = leader.create(1, "billing/cards");
    step(&mut state, Change::CreateKey(create)).outcome.expect("a key");
    (state, leader)
}

#[test]
fn founding_ends_with_epoch_one_active() {
    let mut state = State::default();
    assert_eq!(plan::next(&state, &view(&state)), Step::AwaitFounding);
    assert_eq!(refused(&mut state, Change::ActivateEpoch { epoch: Epoch(1) }), Refusal::NotFounded);
    assert_eq!(step(&mut state, Change::Found(found(3, 2))).outcome, Ok(Outcome::Founded));
    assert_eq!(step(&mut state, Change::Found(found(3, 2))).outcome, Ok(Outcome::Founded));
    let other = Found { cluster: ClusterId([9; 16]), ..found(3, 2) };
    assert_eq!(refused(&mut state, Change::Found(other)), Refusal::AlreadyFounded);

    for change in next_changes(&state) {
        assert_eq!(step(&mut state, change.clone()).outcome, Ok(Outcome::EpochOpened { epoch: Epoch(1) }));
        assert_eq!(step(&mut state, change).outcome, Ok(Outcome::EpochOpened { epoch: Epoch(1) }));
    }
    let Step::CollectAcks { epoch, reshared: 0, needed: 2, missing } = plan::next(&state, &view(&state)) else {
        panic!("the holders must be asked")
    };
    assert_eq!((epoch, missing), (Epoch(1), vec![NodeId(1), NodeId(2), NodeId(3)]));
    activate(&mut state);
    assert_eq!(state.active().map(|epoch| epoch.epoch), Some(Epoch(1)));
    assert_eq!(state.cluster.as_ref().map(|cluster| cluster.next_node_id), Some(4));
    assert_eq!(state.x_of(Epoch(1), NodeId(3)), Some(3));
    assert_eq!(plan::next(&state, &view(&state)), Step::Nothing);
}

/// Mutated: without the ceiling, a revocation waits for ever for a lease that is never ended.
#[test]
fn a_cluster_has_leases_of_a_bounded_length() {
    for (lease_ms, fits) in [
        (0, false),
        (LEASE_MS_MIN - 1, false),
        (LEASE_MS_MIN, true),
        (LEASE_MS_MAX, true),
        (LEASE_MS_MAX + 1, false),
        (u64::MAX, false),
    ] {
        let mut state = State::default();
        let outcome = step(&mut state, Change::Found(Found { lease_ms, ..found(3, 2) })).outcome;
        assert_eq!(outcome, if fits { Ok(Outcome::Founded) } else { Err(Refusal::BadLease { lease_ms }) });
        assert_eq!(state.lease().is_some(), fits);
    }
}

/// Any person can make a signature that fits a key of small order. Mutated: such a key becomes an operator's.
#[test]
fn a_cluster_begins_with_one_operator_whose_key_is_good() {
    let founded = |operator, label: &str| {
        let mut state = State::default();
        let found = Found { operator, operator_label: label.to_owned(), ..found(3, 2) };
        (step(&mut state, Change::Found(found)).outcome, state.operators)
    };
    let (outcome, operators) = founded(operator(), "Ada");
    assert_eq!(outcome, Ok(Outcome::Founded));
    let [first] = &operators.into_values().collect::<Vec<_>>()[..] else { panic!("one operator") };
    assert_eq!((first.key, first.label.as_str()), (operator(), "Ada"));
    let mut small_order = [0; 32];
    small_order[0] = 1;
    for (key, label) in [(signature::PublicKey(small_order), "Ada"), (operator(), ""), (operator(), "a\nb")] {
        let (outcome, operators) = founded(key, label);
        assert_eq!((outcome, operators.len()), (Err(Refusal::BadOperator), 0), "{key} {label:?}");
    }
}

/// T31: wrong numbers are refused when they are applied, so every node refuses them.
#[test]
fn thresholds_lie_between_a_majority_and_all() {
    for members in 1..=9u64 {
        for threshold in 0..=10u8 {
            let mut found = found(members, threshold);
            (found.allow_solo, found.accept_no_redundancy) = (true, true);
            let fits = u64::from(threshold) > members / 2 && u64::from(threshold) <= members;
            let outcome = step(&mut State::default(), Change::Found(found)).outcome;
            let refusal = Refusal::BadThreshold { threshold, holders: members as usize };
            assert_eq!(outcome, if fits { Ok(Outcome::Founded) } else { Err(refusal) });
        }
    }
    let mut state = State::default();
    assert_eq!(refused(&mut state, Change::Found(found(10, 6))), Refusal::MemberCount { members: 10 });
    assert_eq!(refused(&mut state, Change::Found(found(0, 1))), Refusal::MemberCount { members: 0 });
    assert_eq!(refused(&mut state, Change::Found(found(1, 1))), Refusal::SoloNotAllowed);
    assert_eq!(refused(&mut state, Change::Found(found(2, 2))), Refusal::NoRedundancyNotAccepted);
}

#[test]
fn founders_are_distinct_and_well_formed() {
    type Case = (fn(&mut Found), Refusal);
    let cases: [Case; 8] = [
        (|found| found.members[1].node = NodeId(1), Refusal::BadNodeId { node: NodeId(1) }),
        (|found| found.members[0].node = NodeId(0), Refusal::BadNodeId { node: NodeId(0) }),
        (|found| found.members[2].node = NodeId(4), Refusal::BadNodeId { node: NodeId(4) }),
        (|found| found.members[1].name = found.members[0].name.clone(), Refusal::NodeNameTaken { node: NodeId(2) }),
        (|found| found.members[2].op_pk = found.members[0].boot_pk, Refusal::IdentityTaken { node: NodeId(3) }),
        (|found| found.members[1].share_pk.truncate(1215), Refusal::BadShareKey { node: NodeId(2) }),
        (|found| found.members[1].skgen = ShareKeyGeneration(0), Refusal::BadShareKey { node: NodeId(2) }),
        (|found| found.members[1].addresses.clear(), Refusal::BadAddresses { node: NodeId(2) }),
    ];
    for (spoil, refusal) in cases {
        let mut spoilt = found(3, 2);
        spoil(&mut spoilt);
        assert_eq!(refused(&mut State::default(), Change::Found(spoilt)), refusal);
    }
}

#[test]
fn a_committee_is_the_one_of_the_state() {
    let mut state = State::default();
    step(&mut state, Change::Found(found(3, 2))).outcome.expect("founded");
    let Step::Propose(Change::OpenEpoch(good)) = plan::next(&state, &view(&state)) else { panic!("epoch 1 is next") };
    let spoil = |spoil: fn(&mut OpenEpoch)| {
        let mut open = good.clone();
        spoil(&mut open);
        Change::OpenEpoch(open)
    };
    let stale = [
        spoil(|open| open.committee.swap(0, 1)),
        spoil(|open| open.committee[1] = open.committee[0]),
        spoil(|open| open.committee[2].node = NodeId(7)),
        spoil(|open| open.committee[2].skgen = ShareKeyGeneration(2)),
        spoil(|open| open.committee_hash[31] ^= 1),
        spoil(|open| open.threshold = 3),
    ];
    for open in stale {
        assert_eq!(refused(&mut state, open), Refusal::StaleCommittee);
    }
    let threshold = spoil(|open| open.committee.push(Seat { node: NodeId(4), skgen: ShareKeyGeneration(1) }));
    assert!(matches!(refused(&mut state, threshold), Refusal::BadThreshold { threshold: 2, holders: 4 }));
    let next = spoil(|open| open.epoch = Epoch(2));
    assert_eq!(refused(&mut state, next), Refusal::NotNextEpoch { given: Epoch(2), next: Epoch(1) });
}

/// I2: an epoch is not active before enough distinct holders can open it.
#[test]
fn an_epoch_waits_for_distinct_holders() {
    let mut state = State::default();
    step(&mut state, Change::Found(found(5, 3))).outcome.expect("founded");
    for change in next_changes(&state) {
        step(&mut state, change).outcome.expect("opened");
    }
    let (epoch, activate) = (Epoch(1), Change::ActivateEpoch { epoch: Epoch(1) });
    let ack = |node| Change::EpochAck(EpochAck { epoch, node: NodeId(node), reshared: 0 });
    for node in [1, 1, 1, 2] {
        assert!(step(&mut state, ack(node)).outcome.is_ok());
    }
    assert_eq!(refused(&mut state, activate.clone()), Refusal::AcksMissing { epoch, have: 2, need: 3 });
    assert_eq!(refused(&mut state, ack(6)), Refusal::NotAHolder { node: NodeId(6), epoch });
    let ahead = Change::EpochAck(EpochAck { epoch, node: NodeId(3), reshared: 1 });
    assert_eq!(refused(&mut state, ahead), Refusal::AckAhead { epoch, records: 0 });
    step(&mut state, ack(5)).outcome.expect("the third holder");
    assert_eq!(step(&mut state, activate.clone()).outcome, Ok(Outcome::EpochActivated { epoch }));
    assert_eq!(step(&mut state, activate).outcome, Ok(Outcome::EpochActivated { epoch }));
}

#[test]
fn a_key_encrypts_once_a_threshold_verified_it() {
    let (mut state, _) = with_key();
    let version = state.version(uid(1), KeyVersion(1)).expect("made");
    assert!(!version.ready);
    let records = plan::unverified(&state);
    assert_eq!((records.len(), records[0].threshold, records[0].holders.len()), (1, 2, 3));

    let few = Refusal::TooFewHolders { uid: uid(1), version: KeyVersion(1), have: 1, need: 2 };
    assert_eq!(refused(&mut state, ready(1, 1, 1, &[1])), few);
    assert_eq!(refused(&mut state, ready(1, 1, 1, &[1, 9])), Refusal::NotAHolder { node: NodeId(9), epoch: Epoch(1) });
    assert!(matches!(refused(&mut state, ready(2, 1, 1, &[1, 2])), Refusal::WrongEpoch { .. }));
    assert!(matches!(refused(&mut state, ready(1, 1, 2, &[1, 2])), Refusal::UnknownVersion { .. }));
    assert_eq!(step(&mut state, ready(1, 1, 1, &[1, 3])).outcome, Ok(Outcome::MadeReady { versions: 1 }));
    assert_eq!(step(&mut state, ready(1, 1, 1, &[2, 3])).outcome, Ok(Outcome::MadeReady { versions: 0 }));
    assert_eq!(state.keys[&uid(1)].newest_ready().map(|version| version.version), Some(KeyVersion(1)));
    assert_eq!(plan::next(&state, &view(&state)), Step::Nothing);

    let item = Verified { uid: uid(1), version: KeyVersion(1), holders: [NodeId(1), NodeId(2)].into() };
    let long = Ready { epoch: Epoch(1), verified: vec![item; VERIFY_MAX + 1] };
    assert!(matches!(refused(&mut state, Change::Ready(long)), Refusal::ListTooLong { .. }));
}

#[test]
fn a_repeated_request_gets_the_first_answer() {
    let mut state = founded(3, 2);
    let mut leader = Leader::new(&state, Epoch(1));
    step(&mut state, leader.open_batch()).outcome.expect("a batch");
    step(&mut state, leader.open_batch()).outcome.expect("the same batch");
    let create = leader.create(1, "billing/cards");
    let first = step(&mut state, Change::CreateKey(create.clone()));
    let made = first.outcome.clone().expect("a key");
    assert_eq!(step(&mut state, Change::CreateKey(create.clone())).outcome, Ok(made.clone()));

    // The next leader deals again, under another uid, for a client that asks again.
    let mut again = leader.create(2, "billing/cards");
    again.request = create.request;
    assert_eq!(step(&mut state, Change::CreateKey(again)).outcome, Ok(made));
    assert_eq!((state.keys.len(), state.live_versions), (1, 1));
    assert_eq!(state.answer(&create.request), Some((uid(1), KeyVersion(1))));

    step(&mut state, ready(1, 1, 1, &[1, 2])).outcome.expect("ready");
    let rotate = leader.rotate(9, 1, 1);
    let made = step(&mut state, Change::RotateKey(rotate.clone())).outcome.expect("version 2");
    assert_eq!(step(&mut state, Change::RotateKey(rotate)).outcome, Ok(made));
    let mut reused = leader.create(3, "other");
    reused.request = [9; 16];
    assert_eq!(refused(&mut state, Change::CreateKey(reused)), Refusal::RequestReused);
    let mut reused = leader.rotate(1, 1, 2);
    reused.request = [1; 16];
    assert_eq!(refused(&mut state, Change::RotateKey(reused)), Refusal::RequestReused);
}

#[test]
fn names_and_versions_are_taken_once() {
    let (mut state, mut leader) = with_key();
    let create = leader.create(2, "billing/cards");
    assert_eq!(refused(&mut state, Change::CreateKey(create)), Refusal::NameTaken);
    let mut create = leader.create(1, "other");
    create.request = [2; 16];
    assert_eq!(refused(&mut state, Change::CreateKey(create)), Refusal::UidTaken { uid: uid(1) });
    let mut create = leader.create(2, "other");
    create.tags.insert("note".to_owned(), "x".repeat(256));
    assert_eq!(refused(&mut state, Change::CreateKey(create)), Refusal::BadTags);
    let rotate = leader.rotate(3, 1, 1);
    assert_eq!(refused(&mut state, Change::RotateKey(rotate)), Refusal::NotReady { version: KeyVersion(1) });
    step(&mut state, ready(1, 1, 1, &[1, 2])).outcome.expect("ready");
    let rotate = leader.rotate(3, 1, 2);
    assert_eq!(refused(&mut state, Change::RotateKey(rotate)), Refusal::VersionChanged { newest: KeyVersion(1) });
    let rotate = leader.rotate(3, 7, 1);
    assert_eq!(refused(&mut state, Change::RotateKey(rotate)), Refusal::UnknownKey { uid: uid(7) });

    let key = state.keys.get_mut(&uid(1)).expect("made");
    let mut last = key.newest().clone();
    last.version = KeyVersion(KEY_VERSIONS_MAX);
    key.versions.insert(last.version, Box::new(last));
    let rotate = leader.rotate(3, 1, KEY_VERSIONS_MAX);
    assert_eq!(refused(&mut state, Change::RotateKey(rotate)), Refusal::KeyVersionsLimit);
}

/// I3 and T28: a record that was dealt for another epoch, committee or place is refused at any time.
#[test]
fn records_are_fenced() {
    let (mut state, mut leader) = with_key();
    let good = leader.create(2, "other");
    let spoil = |spoil: fn(&mut ShareRecord)| {
        let mut record = ShareRecord::parse(&good.records[0].0).expect("dealt");
        spoil(&mut record);
        let mut create = good.clone();
        create.records = vec![RecordBytes(record.encode())];
        Change::CreateKey(create)
    };
    let active = Some(Epoch(1));
    let wrong = Refusal::WrongEpoch { given: Epoch(2), active };
    assert_eq!(refused(&mut state, spoil(|record| record.epoch = Epoch(2))), wrong);
    assert_eq!(refused(&mut state, spoil(|record| record.uid = uid(9))), Refusal::RecordMismatch);
    assert_eq!(refused(&mut state, spoil(|record| record.version = KeyVersion(2))), Refusal::RecordMismatch);
    let used = Refusal::IndexUsed { batch: leader.batch(), index: 0 };
    assert_eq!(refused(&mut state, spoil(|record| record.index = 0)), used);
    let range = Refusal::IndexUsed { batch: leader.batch(), index: 10_000 };
    assert_eq!(refused(&mut state, spoil(|record| record.index = 10_000)), range);
    assert!(matches!(refused(&mut state, spoil(|record| record.batch.0[0] ^= 1)), Refusal::UnknownBatch { .. }));

    let records =
        |records: Vec<RecordBytes>| Change::CreateKey(crate::live::command::CreateKey { records, ..good.clone() });
    assert_eq!(refused(&mut state, records(Vec::new())), Refusal::RecordCount { given: 0, need: 1 });
    let twice = vec![good.records[0].clone(), good.records[0].clone()];
    assert_eq!(refused(&mut state, records(twice)), Refusal::RecordCount { given: 2, need: 1 });
    let mut bytes = good.records[0].0.clone();
    bytes.push(0);
    assert_eq!(refused(&mut state, records(vec![RecordBytes(bytes)])), Refusal::MalformedRecord);

    // A record for another number of holders parses, but does not belong to this epoch.
    let mut other = founded(5, 3);
    let mut stranger = Leader::new(&other, Epoch(1));
    step(&mut other, stranger.open_batch()).outcome.expect("a batch");
    let create = stranger.create(2, "other");
    assert!(matches!(refused(&mut state, stranger.open_batch()), Refusal::StaleCommittee));
    assert!(matches!(refused(&mut state, Change::CreateKey(create)), Refusal::UnknownBatch { .. }));
}

/// The next epoch with the same members, which are all away: shares are dealt to the share key that each has.
fn open_next(state: &mut State) -> Epoch {
    let (epoch, request) = (state.next_epoch(), [epoch_request(state); 16]);
    let begin = Begin { request, operation: Operation::Rekey, accept_no_redundancy: false, abandon: BTreeSet::new() };
    step(state, Change::Begin(begin)).outcome.expect("nothing else runs");
    let away = View { present: [NodeId(9)].into(), ..view(state) };
    let Step::Propose(open @ Change::OpenEpoch(_)) = plan::next(state, &away) else { panic!("the epoch is next") };
    step(state, open).outcome.expect("the next epoch");
    epoch
}

fn epoch_request(state: &State) -> u8 {
    100 + state.next_epoch().0 as u8
}

/// I2 and I3: while an epoch is PENDING a new key has a record in both, and an old one keeps it from becoming ACTIVE.
#[test]
fn every_version_is_covered_before_an_epoch_is_active() {
    let mut state = founded(3, 2);
    let mut one = Leader::new(&state, Epoch(1));
    step(&mut state, one.open_batch()).outcome.expect("a batch");
    let epoch = open_next(&mut state);
    assert_eq!(state.record_epochs(), [Epoch(1), epoch]);
    let mut two = Leader::new(&state, epoch);
    step(&mut state, two.open_batch()).outcome.expect("a batch of the pending epoch");

    let mut create = one.create(1, "both");
    assert_eq!(refused(&mut state, Change::CreateKey(create.clone())), Refusal::RecordCount { given: 1, need: 2 });
    create.records.push(one.deal(uid(1), 1).1);
    assert_eq!(refused(&mut state, Change::CreateKey(create.clone())), Refusal::RecordMismatch, "one epoch twice");
    create.records[1] = two.deal(uid(1), 1).1;
    step(&mut state, Change::CreateKey(create)).outcome.expect("both are there");

    // It encrypts once both are verified.
    assert_eq!(step(&mut state, ready(1, 1, 1, &[1, 2])).outcome, Ok(Outcome::MadeReady { versions: 0 }));
    assert_eq!(step(&mut state, ready(2, 1, 1, &[1, 2])).outcome, Ok(Outcome::MadeReady { versions: 1 }));
    let few = Refusal::AcksMissing { epoch, have: 0, need: 2 };
    assert_eq!(refused(&mut state, Change::ActivateEpoch { epoch }), few);
    activate(&mut state);
    assert_eq!(state.active().map(|active| active.epoch), Some(epoch));
    assert_eq!(state.epochs[&Epoch(1)].phase, EpochPhase::Retiring);

    step(&mut state, Change::RetireEpoch { epoch: Epoch(1) }).outcome.expect("retiring");
    step(&mut state, Change::Finish { operation: epoch }).outcome.expect("the operation is done");
    let next = open_next(&mut state);
    let uncovered = Refusal::VersionsUncovered { epoch: next, missing: 1 };
    assert_eq!(refused(&mut state, Change::ActivateEpoch { epoch: next }), uncovered);
    let Step::Reshare { versions, left: 1, .. } = plan::next(&state, &view(&state)) else { panic!("it must be dealt") };
    assert_eq!(versions, [(uid(1), KeyVersion(1))]);
}

/// T28. Mutated once: with `open_epoch` letting closed epochs pass, this fails.
#[test]
fn a_delayed_command_never_reaches_a_retired_epoch() {
    let mut state = founded(3, 2);
    let mut one = Leader::new(&state, Epoch(1));
    step(&mut state, one.open_batch()).outcome.expect("a batch");
    let (late, delayed) = (one.create(1, "late"), Leader::new(&state, Epoch(1)).open_batch());
    let epoch = open_next(&mut state);
    activate(&mut state);
    assert_eq!(state.active().map(|active| active.epoch), Some(epoch));

    let closed = Refusal::WrongEpoch { given: Epoch(1), active: Some(epoch) };
    assert_eq!(refused(&mut state, Change::CreateKey(late)), closed);
    assert_eq!(refused(&mut state, delayed), closed);
    let ack = Change::EpochAck(EpochAck { epoch: Epoch(1), node: NodeId(1), reshared: 0 });
    assert_eq!(refused(&mut state, ack), closed);
    assert_eq!(refused(&mut state, Change::ActivateEpoch { epoch: Epoch(1) }), closed);
}

#[test]
fn batches_belong_to_the_committee() {
    let mut state = founded(3, 2);
    let leader = Leader::new(&state, Epoch(1));
    assert_eq!(refused(&mut state, Change::OpenBatch { header: vec![1; 40] }), Refusal::MalformedBatch);
    step(&mut state, leader.open_batch()).outcome.expect("a batch");
    let mut other = Leader::new(&state, Epoch(1)).dealer.header().clone();
    other.batch = leader.batch();
    let taken = Refusal::BatchTaken { batch: leader.batch() };
    assert_eq!(refused(&mut state, Change::OpenBatch { header: other.encode() }), taken);
    let mut stranger = Leader::new(&state, Epoch(1)).dealer.header().clone();
    stranger.dealer = NodeId(9);
    let mismatch = Refusal::BatchMismatch { batch: stranger.batch };
    assert_eq!(refused(&mut state, Change::OpenBatch { header: stranger.encode() }), mismatch);
    stranger.dealer = NodeId(1);
    stranger.cluster = ClusterId([9; 16]);
    assert_eq!(refused(&mut state, Change::OpenBatch { header: stranger.encode() }), mismatch);
    stranger.cluster = CLUSTER;
    stranger.recipients[0].generation = ShareKeyGeneration(2);
    assert_eq!(refused(&mut state, Change::OpenBatch { header: stranger.encode() }), mismatch);
}

#[test]
fn time_never_goes_back() {
    let mut state = founded(3, 2);
    let report = |generation| Change::ReportLock(lock(1, generation, 1, &[2, 3]));
    apply(&mut state, &Command::new(5_000, report(1))).outcome.expect("reported");
    let applied = apply(&mut state, &Command::new(4_000, report(2)));
    applied.outcome.expect("reported");
    assert_eq!((state.time_ms, state.locks[&NodeId(1)].reported_ms), (5_000, 5_000));
    assert!(applied.rows.iter().all(|row| row.key != RowKey::Clock));
}

#[test]
fn lock_reports_only_rise() {
    let mut state = founded(3, 2);
    let report =
        |node, generation, threshold, peers: &[u64]| Change::ReportLock(lock(node, generation, threshold, peers));
    step(&mut state, report(1, 5, 1, &[2, 3])).outcome.expect("reported");
    step(&mut state, report(1, 4, 1, &[2])).outcome.expect("answered as a late repetition");
    assert_eq!((state.locks[&NodeId(1)].generation, state.locks[&NodeId(1)].peers.len()), (5, 2));
    assert_eq!(refused(&mut state, report(4, 1, 1, &[2])), Refusal::UnknownMember { node: NodeId(4) });
    assert_eq!(refused(&mut state, report(1, 6, 1, &[4])), Refusal::UnknownMember { node: NodeId(4) });
    assert_eq!(refused(&mut state, report(1, 6, 3, &[2, 3])), Refusal::BadLock { threshold: 3, peers: 2 });
    assert_eq!(refused(&mut state, report(1, 6, 0, &[])), Refusal::BadLock { threshold: 0, peers: 0 });
    assert_eq!(refused(&mut state, report(1, 6, 1, &[1, 2])), Refusal::BadLock { threshold: 1, peers: 2 });
}

/// Rows are the whole state: read back, they make the same state.
#[test]
fn a_state_restored_from_its_rows_is_the_same() {
    let mut state = State::default();
    let mut rows = std::collections::BTreeMap::new();
    let mut keep = |written: Vec<RowWrite>| {
        for row in written {
            rows.insert(row.key.to_bytes(), row.value.expect("nothing is deleted yet").into_bytes());
        }
    };
    keep(step(&mut state, Change::Found(found(3, 2))).rows);
    loop {
        let changes = next_changes(&state);
        if changes.is_empty() {
            break;
        }
        changes.into_iter().for_each(|change| keep(step(&mut state, change).rows));
    }
    let mut leader = Leader::new(&state, Epoch(1));
    keep(step(&mut state, leader.open_batch()).rows);
    for number in 1..=3 {
        let create = leader.create(number, &format!("key/{number}"));
        keep(step(&mut state, Change::CreateKey(create)).rows);
    }
    keep(step(&mut state, ready(1, 2, 1, &[1, 2])).rows);
    let rotate = leader.rotate(9, 2, 1);
    keep(step(&mut state, Change::RotateKey(rotate)).rows);
    keep(step(&mut state, Change::ReportLock(lock(1, 1, 1, &[2]))).rows);
    let expect = quorate_shares::ids::KeyVersion(1);
    let act = quorate_shares::order::Act::RotateKey { name: "unknown".parse().expect("a name"), expect };
    let ordered = Ordered { order: order([7; 16], act), filled: Vec::new() };
    let applied = step(&mut state, Change::Ordered(ordered));
    assert!(applied.outcome.is_err() && state.orders.len() == 1, "its refusal is remembered");
    keep(applied.rows);

    let mut restored = State::default();
    for (key, value) in rows.iter().filter(|(key, _)| key[0] < crate::stored::rows::COLD_ROWS) {
        restored.restore_row(RowKey::parse(key).expect("a row"), value).expect("a good row");
    }
    assert!(restored.restored().expect("whole") == state);
}

/// The time until which one disk opened everything is never forgotten, also if the epoch with one holder was given up.
#[test]
fn what_one_disk_opened_ends_with_the_next_epoch() {
    let founded = founded(3, 2);
    let epoch = |number: u64, threshold, phase, activated_ms| {
        let info = founded.epochs[&Epoch(1)].clone();
        (Epoch(number), EpochInfo { epoch: Epoch(number), threshold, phase, activated_ms, ..info })
    };
    let until_ms = |epochs: &[&(Epoch, EpochInfo)]| {
        let mut state = State::default();
        state.epochs = epochs.iter().copied().cloned().collect();
        state.one_disk_until_ms()
    };
    let first = epoch(1, 1, EpochPhase::Retired, 10);
    let grown = epoch(2, 2, EpochPhase::Active, 20);
    let given_up = epoch(3, 1, EpochPhase::Abandoned, 0);
    let next = epoch(4, 2, EpochPhase::Active, 40);
    assert_eq!(until_ms(&[&grown]), 0, "never");
    assert_eq!(until_ms(&[&first]), u64::MAX, "still");
    assert_eq!(until_ms(&[&first, &grown]), 20);
    assert_eq!(until_ms(&[&first, &grown, &next]), 20, "later epochs change nothing");
    assert_eq!(until_ms(&[&grown, &given_up]), u64::MAX, "its records lie on that disk");
    assert_eq!(until_ms(&[&grown, &given_up, &next]), 40);
}
