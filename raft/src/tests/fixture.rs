//! What the tests share: members, dealings, and commands that apply.

use std::collections::BTreeSet;

use quorate_shares::ids::{BatchId, ClusterId, Epoch, KeyUid, KeyVersion, NodeId, ShareKeyGeneration};
use quorate_shares::kem::PublicKey;
use quorate_shares::master::{KeyIdentity, MasterKey};
use quorate_shares::order::{Act, LIFETIME_MAX_MS, Order, RequestId, SignedOrder};
use quorate_shares::seal::Dealer;
use quorate_shares::secret::Secret;
use quorate_shares::signature;

use crate::live::command::{
    Change, Command, CreateKey, Found, NewMember, Ready, RecordBytes, ReportLock, RotateKey, Verified,
};
use crate::live::plan::{self, Step, View};
use crate::live::state::{Applied, State, apply};
use crate::{Refusal, StorageKeys};

pub(super) const CLUSTER: ClusterId = ClusterId([0xc1; 16]);

pub(super) type Rng = rand_core::UnwrapErr<getrandom::SysRng>;

pub(super) fn rng() -> Rng {
    rand_core::UnwrapErr(getrandom::SysRng)
}

/// The storage key of a node, which no other node has.
pub(super) fn storage_keys(node: u64) -> StorageKeys {
    StorageKeys::new(1, &Secret::take(&mut [node as u8; 32]))
}

pub(super) fn uid(number: u8) -> KeyUid {
    KeyUid([number; 16])
}

pub(super) fn member(node: u64) -> NewMember {
    let seed = Secret::take(&mut [node as u8; 32]);
    NewMember {
        node: NodeId(node),
        name: format!("n{node}").parse().expect("a node name"),
        addresses: vec![format!("10.0.0.{node}:7400")],
        boot_pk: [node as u8; 32],
        op_pk: [node as u8 + 100; 32],
        share_pk: PublicKey::of_seed(&seed).as_bytes().to_vec(),
        skgen: ShareKeyGeneration(1),
    }
}

/// The seed of the operator of each test's cluster.
pub(super) fn operator_seed() -> Secret<32> {
    Secret::take(&mut [0xad; 32])
}

pub(super) fn operator() -> signature::PublicKey {
    signature::PublicKey::of_seed(&operator_seed())
}

/// An order of the operator, valid for as long as an order may be, counted from time 0.
pub(super) fn order(request: RequestId, act: Act) -> SignedOrder {
    let (signer, expires_ms) = (operator(), LIFETIME_MAX_MS);
    let order =
        Order { cluster: CLUSTER, incarnation: 1, signer, request, issued_ms: 0, expires_ms, target: None, act };
    order.sign(&operator_seed()).expect("a good order")
}

pub(super) fn found(members: u64, threshold: u8) -> Found {
    Found {
        cluster: CLUSTER,
        operator: operator(),
        operator_label: "Ada".to_owned(),
        threshold,
        allow_solo: false,
        accept_no_redundancy: false,
        lease_ms: 3_000,
        members: (1..=members).map(member).collect(),
    }
}

/// Applies at the next millisecond.
pub(super) fn step(state: &mut State, change: Change) -> Applied {
    let time_ms = state.time_ms + 1;
    apply(state, &Command::new(time_ms, change))
}

/// A cluster of `members` with epoch 1 ACTIVE, as the leader's loop gets it there.
pub(super) fn founded(members: u64, threshold: u8) -> State {
    let mut state = State::default();
    step(&mut state, Change::Found(found(members, threshold))).outcome.expect("a good founding");
    activate(&mut state);
    state
}

/// Follows the plan until it has nothing left but to verify.
pub(super) fn activate(state: &mut State) {
    loop {
        let changes = next_changes(state);
        if changes.is_empty() {
            return;
        }
        for change in changes {
            step(state, change).outcome.expect("a planned step applies");
        }
    }
}

/// What a leader would propose for the next step, with every holder answering.
pub(super) fn next_changes(state: &State) -> Vec<Change> {
    match plan::next(state, &view(state)) {
        Step::Propose(change) => vec![change],
        Step::CollectAcks { epoch, reshared, missing, .. } => missing
            .into_iter()
            .map(|node| Change::EpochAck(crate::live::command::EpochAck { epoch, node, reshared }))
            .collect(),
        _ => Vec::new(),
    }
}

/// What node 1 sees as the leader while every member answers.
pub(super) fn view(state: &State) -> View {
    View::of_all(state, NodeId(1))
}

/// A lock report, whose generation also counts the writes of the vault.
pub(super) fn lock(node: u64, generation: u64, threshold: u8, peers: &[u64]) -> ReportLock {
    let peers: BTreeSet<_> = peers.iter().copied().map(NodeId).collect();
    let (share_keys, holds_for) = ([ShareKeyGeneration(1)].into(), peers.clone());
    ReportLock {
        node: NodeId(node),
        generation,
        threshold,
        peers,
        share_keys,
        holds_for,
        writes: generation,
        former: 0,
    }
}

/// A leader with an open batch.
pub(super) struct Leader {
    pub(super) dealer: Dealer,
}

impl Leader {
    pub(super) fn new(state: &State, epoch: Epoch) -> Self {
        let committee = state.committee(epoch).expect("the epoch is known");
        Self { dealer: Dealer::open(CLUSTER, NodeId(1), &committee, &mut rng()) }
    }

    pub(super) fn open_batch(&self) -> Change {
        Change::OpenBatch { header: self.dealer.header().encode() }
    }

    pub(super) fn batch(&self) -> BatchId {
        self.dealer.header().batch
    }

    /// The key-check value and one record.
    pub(super) fn deal(&mut self, uid: KeyUid, version: u32) -> ([u8; 32], RecordBytes) {
        let key = MasterKey::random(&mut rng());
        let identity = KeyIdentity { cluster: CLUSTER, uid, version: KeyVersion(version) };
        let kcv = key.kcv(&identity);
        let record = self.dealer.deal(&key, &identity, &kcv).expect("the batch has room");
        (kcv, RecordBytes(record.encode()))
    }

    pub(super) fn create(&mut self, number: u8, name: &str) -> CreateKey {
        let (kcv, record) = self.deal(uid(number), 1);
        let name = name.parse().expect("a key name");
        let tags = [("team".to_owned(), "payments".to_owned())].into();
        CreateKey { request: [number; 16], uid: uid(number), name, tags, kcv, records: vec![record] }
    }

    pub(super) fn rotate(&mut self, request: u8, number: u8, expect: u32) -> RotateKey {
        let (kcv, record) = self.deal(uid(number), expect + 1);
        RotateKey { request: [request; 16], uid: uid(number), expect: KeyVersion(expect), kcv, records: vec![record] }
    }
}

pub(super) fn ready(epoch: u64, number: u8, version: u32, holders: &[u64]) -> Change {
    let holders: BTreeSet<_> = holders.iter().copied().map(NodeId).collect();
    let verified = vec![Verified { uid: uid(number), version: KeyVersion(version), holders }];
    Change::Ready(Ready { epoch: Epoch(epoch), verified })
}

/// Applies a change that must be refused, and checks that it changed nothing but the time.
pub(super) fn refused(state: &mut State, change: Change) -> Refusal {
    let mut before = state.clone();
    let applied = step(state, change);
    before.time_ms = state.time_ms;
    assert!(*state == before, "a refused command changed the state");
    assert!(applied.rows.iter().all(|row| row.key == crate::live::rows::RowKey::Clock), "a refused command wrote rows");
    applied.outcome.expect_err("this must be refused")
}
