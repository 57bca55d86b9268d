//! Orders of operators: whose they are, whether they are still valid, and what came of them.
//!
//! An order is carried out at most once. Its outcome is kept until it expires, also a refusal; the same order gets the same outcome
//! again, whichever node proposes it and however often. After that it is refused as expired: the state's time never goes back. The
//! verdict depends on the order and the state alone, so every replica reaches the same one. The signature is checked before
//! ([`is_signed`]), while the state is not locked.
//!
//! What the leader filled in is not the operator's. A refusal of that is not the outcome of the order: the leader fills in something
//! else, and proposes the order again.

use std::collections::{BTreeMap, BTreeSet};

use quorate_shares::ids::NodeId;
use quorate_shares::order::{Act, LIFETIME_MAX_MS, LabelledKey, NamedNode, Order, RequestId, SignedOrder};
use quorate_shares::signature::PublicKey;
use sha2::{Digest, Sha256};

use super::{Operator, State, addresses, joining, keys, operations};
use crate::live::command::{Begin, Change, Command, FilledVersion, Invite, Operation, Ordered, Outcome};
use crate::live::refusal::Refusal;
use crate::live::rows::{Row, RowKey, Rows};

/// Most orders whose outcomes are kept. Beyond it, orders are refused until the oldest have expired.
pub const ORDERS_MAX: usize = 20_000;
/// Most operators.
pub const OPERATORS_MAX: usize = 64;

/// The orders that were carried out or refused, and have not expired.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orders {
    carried: BTreeMap<RequestId, CarriedOrder>,
    /// By the time at which they expire. Not stored: a restart sorts them again.
    by_expiry: BTreeSet<(u64, RequestId)>,
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarriedOrder {
    pub request: RequestId,
    /// SHA-256 of the order with its signature: tells a repetition from another order of the same id.
    pub digest: [u8; 32],
    pub expires_ms: u64,
    pub outcome: Result<Outcome, Refusal>,
}

impl Orders {
    /// How many outcomes are kept.
    pub fn len(&self) -> usize {
        self.carried.len()
    }

    pub fn is_empty(&self) -> bool {
        self.carried.is_empty()
    }

    pub(super) fn insert(&mut self, order: CarriedOrder) {
        self.by_expiry.insert((order.expires_ms, order.request));
        self.carried.insert(order.request, order);
    }

    fn forget_expired(&mut self, time_ms: u64, rows: &mut Rows) {
        while let Some(&(expires_ms, request)) = self.by_expiry.first()
            && expires_ms <= time_ms
        {
            self.by_expiry.pop_first();
            self.carried.remove(&request);
            rows.delete(RowKey::Order(request));
        }
    }
}

/// Whether the command is no order, or an order that its signer has signed: some 50 µs.
pub fn is_signed(command: &Command) -> bool {
    match &command.change {
        Change::Ordered(ordered) => ordered.order.verify().is_ok(),
        _ => true,
    }
}

/// Carries out an order, whose signature is valid if `signed`.
pub(super) fn ordered(state: &mut State, ordered: &Ordered, signed: bool, rows: &mut Rows) -> Result<Outcome, Refusal> {
    let order = ordered.order.unverified();
    if !signed {
        return Err(Refusal::BadSignature);
    }
    let digest = Sha256::digest(ordered.order.as_bytes()).into();
    if let Some(known) = state.orders.carried.get(&order.request) {
        return if known.digest == digest { known.outcome.clone() } else { Err(Refusal::RequestReused) };
    }
    state.check_order(order)?;
    if order.target.is_some() {
        return Err(Refusal::NotForTheCluster);
    }
    state.orders.forget_expired(state.time_ms, rows);
    if state.orders.len() >= ORDERS_MAX {
        return Err(Refusal::TooManyOrders);
    }
    let outcome = carry_out(state, order, &ordered.filled, rows);
    if !outcome.as_ref().is_err_and(Refusal::is_about_the_filling) {
        let (request, expires_ms) = (order.request, order.expires_ms);
        let carried = CarriedOrder { request, digest, expires_ms, outcome: outcome.clone() };
        rows.put(RowKey::Order(request), Row::Order(carried.clone()));
        state.orders.insert(carried);
    }
    outcome
}

fn carry_out(state: &mut State, order: &Order, filled: &[FilledVersion], rows: &mut Rows) -> Result<Outcome, Refusal> {
    let request = order.request;
    match &order.act {
        Act::CreateKeys { keys } => keys::create_all(state, (request, keys), filled, rows),
        Act::RotateKey { name, expect } => keys::rotate_named(state, (request, name, *expect), filled, rows),
        _ if !filled.is_empty() => Err(Refusal::WrongFilling),
        Act::InviteNode { proof_key, name, ttl_ms } => {
            let invite = Invite { proof_key: proof_key.0, name: name.clone(), ttl_ms: *ttl_ms };
            joining::invite(state, &invite, rows)
        }
        Act::ReplaceNode { gone, invitation } => {
            let gone = member(state, gone)?;
            joining::replace(state, invitation, gone, rows)
        }
        Act::RemoveNode { node, accept_no_redundancy, abandon } => {
            let operation = Operation::Remove { node: member(state, node)? };
            let (accept_no_redundancy, abandon) = (*accept_no_redundancy, members(state, abandon)?);
            operations::begin(state, &Begin { request, operation, accept_no_redundancy, abandon }, rows)
        }
        Act::RevokeNodes { nodes, expect_back: _ } => {
            let operation = Operation::Revoke { nodes: members(state, nodes)? };
            let (accept_no_redundancy, abandon) = (true, BTreeSet::new());
            operations::begin(state, &Begin { request, operation, accept_no_redundancy, abandon }, rows)
        }
        Act::SetAddresses { node, addresses } => {
            let node = member(state, node)?;
            addresses::set_addresses(state, node, addresses, rows)
        }
        Act::AddOperator(operator) => add_operator(state, operator, rows),
        Act::RemoveOperator { key } => remove_operator(state, key, rows),
        Act::Seal { .. } | Act::Admit { .. } | Act::Disarm { .. } => Err(Refusal::NotForTheCluster),
    }
}

/// The member that an operator means. A number whose name has changed, or a name that another node has now, is refused: the operator
/// may have meant the other one.
fn member(state: &State, named: &NamedNode) -> Result<NodeId, Refusal> {
    let member = state.members.get(&named.id).ok_or(Refusal::UnknownMember { node: named.id })?;
    if member.name == named.name { Ok(named.id) } else { Err(Refusal::OtherName { node: named.id }) }
}

fn members(state: &State, named: &[NamedNode]) -> Result<BTreeSet<NodeId>, Refusal> {
    named.iter().map(|named| member(state, named)).collect()
}

fn add_operator(state: &mut State, new: &LabelledKey, rows: &mut Rows) -> Result<Outcome, Refusal> {
    if let Some(known) = state.operators.get(&new.key) {
        return if known.label == new.label { Ok(Outcome::OperatorsChanged) } else { Err(Refusal::OperatorKnown) };
    }
    if state.operators.len() >= OPERATORS_MAX {
        return Err(Refusal::OperatorsLimit);
    }
    let operator = Operator { key: new.key, label: new.label.clone(), added_ms: state.time_ms };
    rows.put(RowKey::Operator(new.key), Row::Operator(operator.clone()));
    state.operators.insert(new.key, operator);
    Ok(Outcome::OperatorsChanged)
}

fn remove_operator(state: &mut State, key: &PublicKey, rows: &mut Rows) -> Result<Outcome, Refusal> {
    if !state.operators.contains_key(key) {
        return Err(Refusal::UnknownOperator);
    }
    if state.operators.len() == 1 {
        return Err(Refusal::LastOperator);
    }
    state.operators.remove(key);
    rows.delete(RowKey::Operator(*key));
    Ok(Outcome::OperatorsChanged)
}

impl State {
    /// What came of an order, if it was carried out or refused before and has not expired.
    ///
    /// # Errors
    /// The first refusal; or [`Refusal::RequestReused`] if another order has its id.
    pub fn outcome_of(&self, order: &SignedOrder) -> Option<Result<Outcome, Refusal>> {
        let known = self.orders.carried.get(&order.unverified().request)?;
        let same = known.digest == <[u8; 32]>::from(Sha256::digest(order.as_bytes()));
        Some(if same { known.outcome.clone() } else { Err(Refusal::RequestReused) })
    }

    /// Whether an order is for this cluster, by an operator of it, and valid now.
    ///
    /// # Errors
    /// The reason why it is not.
    pub fn check_order(&self, order: &Order) -> Result<(), Refusal> {
        let cluster = self.cluster.as_ref().ok_or(Refusal::NotFounded)?;
        if (order.cluster, order.incarnation) != (cluster.cluster, cluster.incarnation) {
            return Err(Refusal::OtherCluster);
        }
        if !self.operators.contains_key(&order.signer) {
            return Err(Refusal::UnknownSigner);
        }
        if order.expires_ms <= self.time_ms {
            return Err(Refusal::Expired { now_ms: self.time_ms });
        }
        if order.expires_ms - self.time_ms > LIFETIME_MAX_MS {
            return Err(Refusal::IssuedAhead { now_ms: self.time_ms });
        }
        Ok(())
    }
}
