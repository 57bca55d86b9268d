//! Orders: by operators only, each at most once, and with the same outcome whenever it comes again.

use std::collections::BTreeMap;

use quorate_shares::ids::{ClusterId, Epoch, KeyVersion, NodeId};
use quorate_shares::order::{
    Act, LIFETIME_MAX_MS, LIFETIME_MS, LabelledKey, NamedNode, NewKey, Order, ProofKey, RequestId, SignedOrder,
};
use quorate_shares::secret::Secret;
use quorate_shares::signature::PublicKey;

use crate::live::command::{Change, Command, FilledVersion, Operation, Ordered, Outcome};
use crate::live::refusal::Refusal;
use crate::live::rows::RowKey;
use crate::live::state::{Applied, OPERATORS_MAX, ORDERS_MAX, State, apply};
use crate::tests::fixture::{CLUSTER, Leader, founded, operator, operator_seed, ready, step, uid};

/// When the operator's clock shows when they sign.
const NOW_MS: u64 = 1_000_000;

fn seed(byte: u8) -> Secret<32> {
    Secret::take(&mut [byte; 32])
}

fn id(number: u64) -> RequestId {
    u128::from(number).to_be_bytes()
}

/// An order as the operator of the tests signs it, unless `change` makes another one of it.
fn signed(number: u64, act: Act, seed: &Secret<32>, change: impl FnOnce(&mut Order)) -> SignedOrder {
    let (signer, expires_ms) = (PublicKey::of_seed(seed), NOW_MS + LIFETIME_MS);
    let mut order = Order {
        cluster: CLUSTER,
        incarnation: 1,
        signer,
        request: id(number),
        issued_ms: NOW_MS,
        expires_ms,
        target: None,
        act,
    };
    change(&mut order);
    order.sign(seed).expect("a good order")
}

fn order(number: u64, act: Act) -> SignedOrder {
    signed(number, act, &operator_seed(), |_| ())
}

fn create(names: &[&str]) -> Act {
    let key = |name: &&str| NewKey { name: name.parse().expect("a name"), tags: BTreeMap::new() };
    Act::CreateKeys { keys: names.iter().map(key).collect() }
}

fn rotate(name: &str, expect: u32) -> Act {
    Act::RotateKey { name: name.parse().expect("a name"), expect: KeyVersion(expect) }
}

fn named(id: u64, name: &str) -> NamedNode {
    NamedNode { id: NodeId(id), name: name.parse().expect("a name") }
}

/// A cluster at the operator's time, with an open batch.
fn cluster() -> (State, Leader) {
    let mut state = founded(3, 2);
    state.time_ms = NOW_MS;
    let leader = Leader::new(&state, Epoch(1));
    step(&mut state, leader.open_batch()).outcome.expect("a batch");
    (state, leader)
}

fn filled(leader: &mut Leader, versions: &[(u8, u32)]) -> Vec<FilledVersion> {
    let deal = |&(number, version): &(u8, u32)| {
        let (kcv, record) = leader.deal(uid(number), version);
        FilledVersion { uid: uid(number), kcv, records: vec![record] }
    };
    versions.iter().map(deal).collect()
}

fn carry(state: &mut State, order: &SignedOrder, filled: Vec<FilledVersion>) -> Applied {
    step(state, Change::Ordered(Ordered { order: order.clone(), filled }))
}

fn outcome(state: &mut State, order: &SignedOrder) -> Result<Outcome, Refusal> {
    carry(state, order, Vec::new()).outcome
}

/// Refused, and nothing is remembered of it.
fn not_taken(state: &mut State, order: &SignedOrder) -> Refusal {
    let mut before = state.clone();
    let applied = carry(state, order, Vec::new());
    assert!(applied.rows.iter().all(|row| row.key == RowKey::Clock), "{:?}", applied.rows);
    before.time_ms = state.time_ms;
    assert!(*state == before, "it changed the state");
    applied.outcome.expect_err("it must be refused")
}

#[test]
fn an_order_makes_its_keys_once_whatever_the_next_leader_fills_in() {
    let (mut state, mut leader) = cluster();
    let keys = order(1, create(&["a", "b"]));
    let made = Ok(Outcome::KeysMade { uids: vec![uid(1), uid(2)] });
    let first = filled(&mut leader, &[(1, 1), (2, 1)]);
    assert_eq!(carry(&mut state, &keys, first.clone()).outcome, made);
    assert_eq!((state.keys.len(), state.live_versions), (2, 2));
    let again = filled(&mut leader, &[(3, 1), (4, 1)]);
    for filled in [first, again, Vec::new()] {
        let repeated = carry(&mut state, &keys, filled);
        assert_eq!(repeated.outcome, made);
        assert!(repeated.rows.iter().all(|row| row.key == RowKey::Clock));
    }
    assert_eq!((state.keys.len(), state.live_versions), (2, 2));
    assert_eq!(state.outcome_of(&keys), Some(made));

    step(&mut state, ready(1, 1, 1, &[1, 2])).outcome.expect("ready");
    let next = order(2, rotate("a", 1));
    let filled = filled(&mut leader, &[(1, 2)]);
    let rotated = carry(&mut state, &next, filled).outcome.expect("version 2");
    assert_eq!(outcome(&mut state, &next), Ok(rotated));
    assert_eq!(state.keys[&uid(1)].newest().version, KeyVersion(2));
}

/// Mutated: without the digest, another order of the same id gets the answer of the first, as if it were done.
#[test]
fn a_refusal_comes_again_and_an_id_is_used_once() {
    let (mut state, mut leader) = cluster();
    let unknown = order(1, rotate("later", 1));
    assert_eq!(outcome(&mut state, &unknown), Err(Refusal::NoSuchKey));
    let keys = order(2, create(&["later"]));
    let versions = filled(&mut leader, &[(1, 1)]);
    carry(&mut state, &keys, versions).outcome.expect("made");
    step(&mut state, ready(1, 1, 1, &[1, 2])).outcome.expect("ready");
    let versions = filled(&mut leader, &[(1, 2)]);
    assert_eq!(carry(&mut state, &unknown, versions).outcome, Err(Refusal::NoSuchKey), "the first outcome");

    let other = order(2, rotate("later", 1));
    assert_eq!(not_taken(&mut state, &other), Refusal::RequestReused);
    assert_eq!(state.outcome_of(&other), Some(Err(Refusal::RequestReused)));
    assert_eq!(state.outcome_of(&order(3, rotate("later", 1))), None);
}

/// What the leader fills in may be out of date. Mutated: kept as the outcome, such a refusal ends an order that only has to be
/// proposed again.
#[test]
fn a_wrong_filling_is_no_outcome() {
    let (mut state, mut leader) = cluster();
    let keys = order(1, create(&["a", "b"]));
    let versions = filled(&mut leader, &[(1, 1), (2, 1)]);
    let twice = vec![versions[0].clone(), versions[0].clone()];
    let same_record = vec![versions[0].clone(), FilledVersion { uid: uid(2), ..versions[0].clone() }];
    let mut other_epoch = versions.clone();
    other_epoch[1].records.clear();
    for wrong in [Vec::new(), versions[..1].to_vec(), twice, same_record, other_epoch] {
        let applied = carry(&mut state, &keys, wrong);
        assert!(applied.outcome.is_err_and(|refusal| refusal.is_about_the_filling()));
        assert!(state.keys.is_empty() && state.orders.is_empty(), "all or none");
    }
    carry(&mut state, &keys, versions.clone()).outcome.expect("it only had to be proposed again");
    let more = order(2, create(&["c"]));
    assert_eq!(carry(&mut state, &more, versions[..1].to_vec()).outcome, Err(Refusal::UidTaken { uid: uid(1) }));
    let invite = order(3, Act::InviteNode { proof_key: ProofKey([3; 32]), name: None, ttl_ms: 1 });
    let applied = carry(&mut state, &invite, versions);
    assert_eq!(applied.outcome, Err(Refusal::WrongFilling), "an order that makes no key");
    assert_eq!(outcome(&mut state, &invite), Ok(Outcome::Invited));
}

#[test]
fn only_an_operator_of_this_cluster_orders_and_only_in_time() {
    let (mut state, _) = cluster();
    let act = || rotate("a", 1);
    let with = |change: fn(&mut Order)| signed(1, act(), &operator_seed(), change);
    assert_eq!(not_taken(&mut state, &with(|order| order.cluster = ClusterId([9; 16]))), Refusal::OtherCluster);
    assert_eq!(not_taken(&mut state, &with(|order| order.incarnation = 2)), Refusal::OtherCluster);
    assert_eq!(not_taken(&mut state, &signed(1, act(), &seed(7), |_| ())), Refusal::UnknownSigner);
    let at = |from: u64, to: u64| {
        signed(1, act(), &operator_seed(), |order| (order.issued_ms, order.expires_ms) = (from, to))
    };
    let now_ms = state.time_ms + 1;
    assert_eq!(not_taken(&mut state, &at(NOW_MS - 9, now_ms)), Refusal::Expired { now_ms });
    let now_ms = state.time_ms + 1;
    let ahead = at(NOW_MS + 9_999, now_ms + LIFETIME_MAX_MS + 1);
    assert_eq!(not_taken(&mut state, &ahead), Refusal::IssuedAhead { now_ms });
    let local = signed(1, Act::Seal { sealed: true }, &operator_seed(), |order| order.target = Some(NodeId(1)));
    assert_eq!(not_taken(&mut state, &local), Refusal::NotForTheCluster);
    assert_eq!(outcome(&mut state, &order(1, act())), Err(Refusal::NoSuchKey), "the control: it is considered");
}

/// Mutated: without the look at the signature, a member orders what it likes in the name of the operator.
#[test]
fn an_order_with_another_signature_is_not_taken() {
    let (mut state, _) = cluster();
    let good = order(1, rotate("a", 1));
    let mut bytes = good.as_bytes().to_vec();
    *bytes.last_mut().expect("not empty") ^= 1;
    let forged = SignedOrder::parse(&bytes).expect("it reads");
    assert_eq!(not_taken(&mut state, &forged), Refusal::BadSignature);
    assert_eq!(outcome(&mut state, &good), Err(Refusal::NoSuchKey), "the control");
    assert_eq!(not_taken(&mut state, &forged), Refusal::BadSignature, "nor does it get the outcome of the other");
}

/// Mutated: without forgetting, the table fills for good; with a clock that goes back, an order is carried out again.
#[test]
fn an_outcome_is_kept_until_the_order_expires() {
    let (mut state, _) = cluster();
    let first = order(1, rotate("a", 1));
    assert_eq!(outcome(&mut state, &first), Err(Refusal::NoSuchKey));
    let at = |state: &mut State, time_ms: u64, order: &SignedOrder| {
        let change = Change::Ordered(Ordered { order: order.clone(), filled: Vec::new() });
        apply(state, &Command::new(time_ms, change))
    };
    let end_ms = NOW_MS + LIFETIME_MS;
    assert_eq!(at(&mut state, end_ms - 1, &first).outcome, Err(Refusal::NoSuchKey), "still");
    let later = |number| signed(number, rotate("a", 1), &operator_seed(), |order| order.expires_ms += 1_000);
    let applied = at(&mut state, end_ms, &later(2));
    let dropped = |row: &&crate::live::rows::RowWrite| row.key == RowKey::Order(id(1)) && row.value.is_none();
    assert_eq!(applied.rows.iter().filter(dropped).count(), 1);
    assert_eq!((state.orders.len(), state.outcome_of(&first)), (1, None));
    for time_ms in [end_ms + 1, NOW_MS] {
        let now_ms = end_ms.max(time_ms).max(state.time_ms);
        assert_eq!(at(&mut state, time_ms, &first).outcome, Err(Refusal::Expired { now_ms }), "time never goes back");
    }
}

#[test]
fn the_table_of_outcomes_is_bounded_and_makes_room() {
    let (mut state, _) = cluster();
    for number in 0..ORDERS_MAX as u64 {
        assert_eq!(outcome(&mut state, &order(number, rotate("a", 1))), Err(Refusal::NoSuchKey));
    }
    let one_more = signed(u64::MAX, rotate("a", 1), &operator_seed(), |order| order.expires_ms += LIFETIME_MS);
    assert_eq!(not_taken(&mut state, &one_more), Refusal::TooManyOrders);
    assert_eq!(outcome(&mut state, &order(0, rotate("a", 1))), Err(Refusal::NoSuchKey), "the control: it is known");
    state.time_ms = NOW_MS + LIFETIME_MS;
    assert_eq!(outcome(&mut state, &one_more), Err(Refusal::NoSuchKey));
    assert_eq!(state.orders.len(), 1);
}

/// Mutated: by the number alone, an order of yesterday removes the node that has the name today.
#[test]
fn a_node_is_meant_by_its_number_and_its_name() {
    let (mut state, _) = cluster();
    let remove = |node: NamedNode| Act::RemoveNode { node, accept_no_redundancy: true, abandon: vec![named(2, "n2")] };
    let renamed = order(1, remove(named(3, "n2")));
    assert_eq!(outcome(&mut state, &renamed), Err(Refusal::OtherName { node: NodeId(3) }));
    assert_eq!(outcome(&mut state, &order(2, remove(named(9, "n3")))), Err(Refusal::UnknownMember { node: NodeId(9) }));
    let nodes = vec![named(2, "n2"), named(3, "n1")];
    let revoke = order(3, Act::RevokeNodes { nodes, expect_back: Vec::new() });
    assert_eq!(outcome(&mut state, &revoke), Err(Refusal::OtherName { node: NodeId(3) }));
    let addresses = vec!["10.0.0.9:1".to_owned()];
    let moved = order(4, Act::SetAddresses { node: named(3, "n1"), addresses: addresses.clone() });
    assert_eq!(outcome(&mut state, &moved), Err(Refusal::OtherName { node: NodeId(3) }));
    let moved = order(5, Act::SetAddresses { node: named(3, "n3"), addresses: addresses.clone() });
    assert_eq!(outcome(&mut state, &moved), Ok(Outcome::AddressesSet { node: NodeId(3) }));
    assert_eq!(state.members[&NodeId(3)].addresses, addresses);

    assert!(matches!(outcome(&mut state, &order(6, remove(named(3, "n3")))), Ok(Outcome::Begun { .. })));
    let running = state.operations.running.as_ref().expect("it runs");
    assert_eq!((&running.operation, running.request), (&Operation::Remove { node: NodeId(3) }, id(6)));
    assert!(running.abandoned.contains(&NodeId(2)));
}

#[test]
fn operators_are_added_and_removed_by_operators_and_the_last_one_stays() {
    let (mut state, _) = cluster();
    let key = |byte: u8| LabelledKey { key: PublicKey::of_seed(&seed(byte)), label: format!("operator {byte}") };
    let add = |number: u64, byte: u8| order(number, Act::AddOperator(key(byte)));
    let remove = |number, byte| order(number, Act::RemoveOperator { key: key(byte).key });
    let mine = order(1, Act::RemoveOperator { key: operator() });
    assert_eq!(outcome(&mut state, &mine), Err(Refusal::LastOperator));
    let by_the_second = signed(2, rotate("a", 1), &seed(1), |_| ());
    assert_eq!(not_taken(&mut state, &by_the_second), Refusal::UnknownSigner);

    assert_eq!(outcome(&mut state, &add(3, 1)), Ok(Outcome::OperatorsChanged));
    assert_eq!(outcome(&mut state, &by_the_second), Err(Refusal::NoSuchKey), "it may order now");
    assert_eq!(outcome(&mut state, &add(4, 1)), Ok(Outcome::OperatorsChanged), "twice the same");
    let other_label = Act::AddOperator(LabelledKey { label: "other".to_owned(), ..key(1) });
    assert_eq!(outcome(&mut state, &order(5, other_label)), Err(Refusal::OperatorKnown));
    assert_eq!(outcome(&mut state, &remove(6, 9)), Err(Refusal::UnknownOperator));

    // The second removes the first. What the first ordered keeps its outcome, and it orders nothing more.
    let first_goes = signed(7, Act::RemoveOperator { key: operator() }, &seed(1), |_| ());
    assert_eq!(outcome(&mut state, &first_goes), Ok(Outcome::OperatorsChanged));
    assert_eq!(outcome(&mut state, &add(3, 1)), Ok(Outcome::OperatorsChanged));
    assert_eq!(not_taken(&mut state, &add(8, 2)), Refusal::UnknownSigner);
    let labels: Vec<_> = state.operators.values().map(|operator| operator.label.as_str()).collect();
    assert_eq!(labels, ["operator 1"]);

    for number in 0..OPERATORS_MAX as u64 {
        let new = signed(100 + number, Act::AddOperator(key(10 + number as u8)), &seed(1), |_| ());
        let full = state.operators.len() == OPERATORS_MAX;
        let expected = if full { Err(Refusal::OperatorsLimit) } else { Ok(Outcome::OperatorsChanged) };
        assert_eq!(outcome(&mut state, &new), expected);
    }
    assert_eq!(state.operators.len(), OPERATORS_MAX);
}
