//! The cluster that the tests of operations drive: the true state and the true plan, and members that do what they are asked.

use std::collections::{BTreeMap, BTreeSet};

use quorate_shares::ids::{Epoch, KeyUid, KeyVersion, NodeId, ShareKeyGeneration};
use quorate_shares::kem::PublicKey;
use quorate_shares::master::{KeyIdentity, MasterKey};
use quorate_shares::quorum::Quorum;
use quorate_shares::seal::{BatchHeader, BatchOpener, Dealer, ShareRecord};
use quorate_shares::secret::Secret;
use sha2::{Digest, Sha256};

use crate::command::{
    Admit, Begin, Change, CreateKey, EpochAck, Invite, NewMember, Operation, Outcome, Ready, RecordBytes, Redeal,
    Redealt, RegisterShareKey, ReportLock, Verified,
};
use crate::plan::{self, Patience, Step, View};
use crate::rows::{RowKey, RowWrite};
use crate::state::{EpochPhase, State};
use crate::tests::fixture::{CLUSTER, found, member, next_changes, rng, step, uid};

/// A cluster whose members do at once what the state asks of them, and nothing else: no network, no disks.
pub(super) struct Cluster {
    pub(super) state: State,
    /// Rows as a disk would hold them.
    pub(super) rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Share keys in the bundle of each member, by generation.
    pub(super) share_keys: BTreeMap<NodeId, BTreeMap<ShareKeyGeneration, [u8; 32]>>,
    pub(super) keys: BTreeMap<(KeyUid, KeyVersion), [u8; 32]>,
    pub(super) present: BTreeSet<NodeId>,
    pub(super) voters: BTreeSet<NodeId>,
    pub(super) learners: BTreeSet<NodeId>,
    pub(super) joiner_silent_ms: u64,
    pub(super) leader: NodeId,
    pub(super) writes: u64,
    pub(super) now_ms: u64,
    /// Steps as a reader would tell them.
    pub(super) told: Vec<String>,
}

fn keep(rows: &mut BTreeMap<Vec<u8>, Vec<u8>>, written: Vec<RowWrite>) {
    for row in written {
        match row.value {
            Some(value) => drop(rows.insert(row.key.to_bytes(), value)),
            None => drop(rows.remove(&row.key.to_bytes())),
        }
    }
}

impl Cluster {
    pub(super) fn new(members: u64, threshold: u8) -> Self {
        let (mut state, mut rows) = (State::default(), BTreeMap::new());
        let mut found = found(members, threshold);
        found.accept_no_redundancy = true;
        let mut changes = vec![Change::Found(found)];
        while !changes.is_empty() {
            for change in changes {
                keep(&mut rows, step(&mut state, change).rows);
            }
            changes = next_changes(&state);
        }
        let all: BTreeSet<_> = state.members.keys().copied().collect();
        let first = |node: &NodeId| (*node, [(ShareKeyGeneration(1), [node.0 as u8; 32])].into());
        let mut cluster = Self {
            share_keys: all.iter().map(first).collect(),
            keys: BTreeMap::new(),
            rows,
            present: all.clone(),
            voters: all,
            learners: BTreeSet::new(),
            joiner_silent_ms: 0,
            leader: NodeId(1),
            writes: 0,
            now_ms: state.time_ms,
            told: Vec::new(),
            state,
        };
        cluster.report_locks();
        cluster
    }

    pub(super) fn apply(&mut self, change: Change) -> Outcome {
        let applied = step(&mut self.state, change.clone());
        keep(&mut self.rows, applied.rows);
        self.check();
        applied.outcome.unwrap_or_else(|refusal| panic!("{}: {refusal}", change.kind()))
    }

    /// What holds after every command.
    pub(super) fn check(&self) {
        let active = self.state.active().expect("one epoch always serves");
        assert_eq!(active.records, self.state.live_versions, "I1");
        let open = self.state.epochs.values().filter(|epoch| !epoch.is_over());
        assert!(open.clone().filter(|epoch| epoch.phase == EpochPhase::Pending).count() <= 1, "I6");
        assert!(open.clone().filter(|epoch| epoch.phase == EpochPhase::Active).count() == 1);
        for (&slot, key) in &self.keys {
            assert_eq!(self.rebuilt(slot, active.epoch, None).as_ref(), Some(key), "the key is there for ever");
        }
    }

    pub(super) fn begin(&mut self, request: u8, operation: Operation) -> Epoch {
        let begin = Begin { request: [request; 16], operation, accept_no_redundancy: true, abandon: BTreeSet::new() };
        match self.apply(Change::Begin(begin)) {
            Outcome::Begun { operation } => operation,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn view(&self) -> View {
        View {
            me: self.leader,
            present: self.present.clone(),
            voters: self.voters.clone(),
            learners: self.learners.clone(),
            settled: true,
            caught_up: self.learners.clone(),
            joiner_silent_ms: self.joiner_silent_ms,
            now_ms: self.now_ms,
            patience: Patience::default(),
        }
    }

    pub(super) fn next(&self) -> Step {
        plan::next(&self.state, &self.view())
    }

    /// Does what the plan says until nothing is left.
    pub(super) fn settle(&mut self) {
        for _ in 0..200 {
            let step = self.next();
            if step == Step::Nothing {
                return;
            }
            self.follow(step);
        }
        panic!("it never ends: {:?}", self.next());
    }

    pub(super) fn follow(&mut self, step: Step) {
        let tell = |told: &mut Vec<String>, what: &str| {
            if told.last().is_none_or(|last| last != what) {
                told.push(what.to_owned());
            }
        };
        match step {
            Step::Propose(change) => {
                tell(&mut self.told, change.kind());
                self.apply(change);
            }
            Step::AwaitShareKeys { missing, .. } => {
                tell(&mut self.told, "share keys");
                missing.into_iter().for_each(|node| self.draw_share_key(node));
            }
            Step::AwaitLocks { .. } => {
                tell(&mut self.told, "locks");
                self.report_locks();
            }
            Step::ChangeVoters { voters, revoke } => {
                tell(&mut self.told, if revoke { "voters, denied at once" } else { "voters" });
                let leaving = self.voters.difference(&voters).copied().collect::<BTreeSet<_>>();
                let deciding = self.voters.difference(&leaving).count();
                assert!(!revoke || deciding > self.voters.len() / 2, "nobody could decide that {leaving:?} are denied");
                self.learners.retain(|node| !voters.contains(node));
                self.voters = voters;
            }
            Step::AddLearner { node } => {
                tell(&mut self.told, "learner");
                self.learners.insert(node);
            }
            Step::RemoveLearner { node } => {
                tell(&mut self.told, "no learner");
                self.learners.remove(&node);
            }
            Step::AwaitJoiner { node, locked } => {
                assert!(!locked, "a learner has caught up at once here");
                tell(&mut self.told, "joiner");
                self.apply(Change::Admitted { node });
                self.report_lock(node);
            }
            Step::GiveUpJoiner { node } => {
                tell(&mut self.told, "give up");
                self.begin(199, Operation::Revoke { nodes: [node].into() });
            }
            Step::Redeal { epoch, versions, .. } => {
                tell(&mut self.told, "redeal");
                self.redeal(epoch, &versions);
            }
            Step::CollectAcks { epoch, redealt, missing, .. } => {
                tell(&mut self.told, "acks");
                for node in missing.into_iter().filter(|node| self.present.contains(node)).collect::<Vec<_>>() {
                    self.apply(Change::EpochAck(EpochAck { epoch, node, redealt }));
                }
            }
            Step::Retire { epoch, .. } => {
                tell(&mut self.told, "retire_epoch");
                self.apply(Change::RetireEpoch { epoch });
            }
            Step::TransferLeadership { to } => {
                tell(&mut self.told, "leader");
                self.leader = *to.first().expect("somebody can lead");
            }
            Step::Rekey => {
                tell(&mut self.told, "rekey");
                let request = 200 + self.state.next_epoch().0 as u8;
                self.begin(request, Operation::Rekey);
            }
            Step::AwaitFounding | Step::FinishVoters | Step::Nothing => panic!("not here"),
        }
    }

    /// The lock rotation that adds a share key, then its registration.
    pub(super) fn draw_share_key(&mut self, node: NodeId) {
        let skgen = self.state.lock_terms(node).and_then(|terms| terms.next_share_key).expect("one is wanted");
        let seed = Secret::random(&mut rng());
        self.share_keys.get_mut(&node).expect("a member").insert(skgen, *seed.expose());
        self.report_lock(node);
        let share_pk = PublicKey::of_seed(&seed).as_bytes().to_vec();
        self.apply(Change::RegisterShareKey(RegisterShareKey { node, skgen, share_pk }));
    }

    /// Every member that is there makes its lock what it must be.
    pub(super) fn report_locks(&mut self) {
        for node in self.present.clone() {
            self.report_lock(node);
        }
    }

    pub(super) fn report_lock(&mut self, node: NodeId) {
        let Some(terms) = self.state.lock_terms(node) else { return };
        let keys = self.share_keys.get_mut(&node).expect("a member");
        keys.retain(|skgen, _| terms.share_keys.contains(skgen) || terms.next_share_key == Some(*skgen));
        self.writes += 1;
        let report = ReportLock {
            node,
            generation: self.writes,
            threshold: terms.needed,
            holds_for: terms.peers.clone(),
            peers: terms.peers,
            share_keys: keys.keys().copied().collect(),
            writes: self.writes,
        };
        self.apply(Change::ReportLock(report));
    }

    pub(super) fn dealer(&mut self, epoch: Epoch) -> Dealer {
        let committee = self.state.committee(epoch).expect("an open epoch");
        let dealer = Dealer::open(CLUSTER, self.leader, &committee, &mut rng());
        self.apply(Change::OpenBatch { header: dealer.header().encode() });
        dealer
    }

    pub(super) fn redeal(&mut self, epoch: Epoch, versions: &[(KeyUid, KeyVersion)]) {
        let mut dealer = self.dealer(epoch);
        let dealt = versions.iter().map(|&(uid, version)| {
            let key = MasterKey::from_secret(Secret::take(&mut self.keys[&(uid, version)].clone()));
            let identity = KeyIdentity { cluster: CLUSTER, uid, version };
            let record = dealer.deal(&key, &identity, &key.kcv(&identity)).expect("room");
            Redealt { uid, version, record: RecordBytes(record.encode()) }
        });
        let dealt = dealt.collect();
        self.apply(Change::Redeal(Redeal { epoch, dealt }));
    }

    /// A new key with a record in each open epoch, verified by all of their holders.
    pub(super) fn create(&mut self, number: u8) {
        for epoch in self.make(number) {
            self.verify(number, epoch);
        }
        assert!(self.is_ready(number));
    }

    /// A new key with a record in each of these epochs, which are the open ones.
    pub(super) fn make(&mut self, number: u8) -> Vec<Epoch> {
        let (uid, version) = (uid(number), KeyVersion(1));
        let identity = KeyIdentity { cluster: CLUSTER, uid, version };
        let secret = *Secret::<32>::random(&mut rng()).expose();
        let key = MasterKey::from_secret(Secret::take(&mut secret.clone()));
        let kcv = key.kcv(&identity);
        let epochs = self.state.record_epochs();
        let records = epochs.iter().map(|&epoch| {
            let record = self.dealer(epoch).deal(&key, &identity, &kcv).expect("room");
            RecordBytes(record.encode())
        });
        let records = records.collect();
        let (request, name) = ([number; 16], format!("key/{number}").parse().expect("a name"));
        self.apply(Change::CreateKey(CreateKey { request, uid, name, tags: BTreeMap::new(), kcv, records }));
        self.keys.insert((uid, version), secret);
        epochs
    }

    /// All holders of an epoch open and check their shares of a key.
    pub(super) fn verify(&mut self, number: u8, epoch: Epoch) {
        let holders = self.state.epochs[&epoch].committee.iter().map(|seat| seat.node).collect();
        let verified = vec![Verified { uid: uid(number), version: KeyVersion(1), holders }];
        self.apply(Change::Ready(Ready { epoch, verified }));
    }

    pub(super) fn is_ready(&self, number: u8) -> bool {
        self.state.version(uid(number), KeyVersion(1)).is_some_and(|version| version.ready)
    }

    /// The key from the records on the disk and the share keys of `holders`, all of them if none are named.
    pub(super) fn rebuilt(
        &self,
        slot: (KeyUid, KeyVersion),
        epoch: Epoch,
        holders: Option<&[u64]>,
    ) -> Option<[u8; 32]> {
        let (uid, version) = slot;
        let record = ShareRecord::parse(self.rows.get(&RowKey::Record(uid, version, epoch).to_bytes())?).ok()?;
        let header = BatchHeader::parse(self.rows.get(&RowKey::Header(record.batch).to_bytes())?).ok()?;
        let identity = KeyIdentity { cluster: CLUSTER, uid, version };
        let kcv = self.state.version(uid, version)?.kcv;
        let committee = self.state.committee(epoch)?;
        let mut quorum = Quorum::new(record.clone(), identity, &committee, kcv).ok()?;
        for holder in committee.holders() {
            let member = &holder.member;
            if quorum.progress().reached() || holders.is_some_and(|holders| !holders.contains(&member.node.0)) {
                continue;
            }
            let Some(seed) = self.share_keys.get(&member.node).and_then(|keys| keys.get(&member.generation)) else {
                continue;
            };
            let seed = Secret::take(&mut seed.clone());
            let opener = BatchOpener::open(&header, &committee, member.node, member.generation, &seed).ok()?;
            let share = opener.open_share(&record, &identity, &kcv).ok()?;
            quorum.add(member.node, holder.x, share).ok()?;
        }
        let key = quorum.close().ok()?;
        (key.matches(&identity, &kcv)).then(|| self.keys[&slot])
    }

    pub(super) fn away(&mut self, node: u64) {
        self.present.remove(&NodeId(node));
    }

    pub(super) fn back(&mut self, node: u64) {
        let first = || [(ShareKeyGeneration(1), [node as u8; 32])].into();
        self.share_keys.entry(NodeId(node)).or_insert_with(first);
        self.present.insert(NodeId(node));
    }
}

/// V of the invitation with this number.
pub(super) fn proof_key(number: u8) -> [u8; 32] {
    [number; 32]
}

pub(super) fn admit(number: u8, node: u64) -> Admit {
    let NewMember { name, addresses, boot_pk, op_pk, share_pk, .. } = member(node);
    Admit { invitation: Sha256::digest(proof_key(number)).into(), name, addresses, boot_pk, op_pk, share_pk }
}

pub(super) fn invite(number: u8) -> Change {
    Change::Invite(Invite { proof_key: proof_key(number), name: None, ttl_ms: 1_000 })
}

impl Cluster {
    /// Lets node `node` prove an invitation; it is there from then on.
    pub(super) fn prove(&mut self, number: u8, node: u64) {
        self.apply(invite(number));
        assert_eq!(self.apply(Change::Admit(admit(number, node))), Outcome::Admitted { node: NodeId(node) });
        self.back(node);
    }
}
