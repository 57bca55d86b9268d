//! Operations, followed step by step as a leader would: epochs that come and go, members that leave.

use std::collections::{BTreeMap, BTreeSet};

use quorate_shares::ids::{Epoch, KeyUid, KeyVersion, NodeId, ShareKeyGeneration};
use quorate_shares::kem::PublicKey;
use quorate_shares::master::{KeyIdentity, MasterKey};
use quorate_shares::quorum::Quorum;
use quorate_shares::seal::{BatchHeader, BatchOpener, Dealer, ShareRecord};
use quorate_shares::secret::Secret;
use sha2::{Digest, Sha256};

use super::fixture::{CLUSTER, found, member, next_changes, refused, rng, step, uid};
use crate::Refusal;
use crate::command::{
    Admit, Begin, Change, CreateKey, EpochAck, Invite, NewMember, Operation, Outcome, Ready, RecordBytes, Redeal,
    Redealt, RegisterShareKey, ReportLock, Verified,
};
use crate::plan::{self, Patience, Step, View};
use crate::rows::{COLD_ROWS, RowKey, RowWrite};
use crate::state::{EpochPhase, INVITATION_TTL_MAX_MS, State};

/// A cluster whose members do at once what the state asks of them, and nothing else: no network, no disks.
struct Cluster {
    state: State,
    /// Rows as a disk would hold them.
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Share keys in the bundle of each member, by generation.
    share_keys: BTreeMap<NodeId, BTreeMap<ShareKeyGeneration, [u8; 32]>>,
    keys: BTreeMap<(KeyUid, KeyVersion), [u8; 32]>,
    present: BTreeSet<NodeId>,
    voters: BTreeSet<NodeId>,
    learners: BTreeSet<NodeId>,
    joiner_silent_ms: u64,
    leader: NodeId,
    writes: u64,
    now_ms: u64,
    /// Steps as a reader would tell them.
    told: Vec<String>,
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
    fn new(members: u64, threshold: u8) -> Self {
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

    fn apply(&mut self, change: Change) -> Outcome {
        let applied = step(&mut self.state, change.clone());
        keep(&mut self.rows, applied.rows);
        self.check();
        applied.outcome.unwrap_or_else(|refusal| panic!("{}: {refusal}", change.kind()))
    }

    /// What holds after every command.
    fn check(&self) {
        let active = self.state.active().expect("one epoch always serves");
        assert_eq!(active.records, self.state.live_versions, "I1");
        let open = self.state.epochs.values().filter(|epoch| !epoch.is_over());
        assert!(open.clone().filter(|epoch| epoch.phase == EpochPhase::Pending).count() <= 1, "I6");
        assert!(open.clone().filter(|epoch| epoch.phase == EpochPhase::Active).count() == 1);
        for (&slot, key) in &self.keys {
            assert_eq!(self.rebuilt(slot, active.epoch, None).as_ref(), Some(key), "the key is there for ever");
        }
    }

    fn begin(&mut self, request: u8, operation: Operation) -> Epoch {
        let begin = Begin { request: [request; 16], operation, accept_no_redundancy: true, abandon: BTreeSet::new() };
        match self.apply(Change::Begin(begin)) {
            Outcome::Begun { operation } => operation,
            other => panic!("{other:?}"),
        }
    }

    fn view(&self) -> View {
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

    fn next(&self) -> Step {
        plan::next(&self.state, &self.view())
    }

    /// Does what the plan says until nothing is left.
    fn settle(&mut self) {
        for _ in 0..200 {
            let step = self.next();
            if step == Step::Nothing {
                return;
            }
            self.follow(step);
        }
        panic!("it never ends: {:?}", self.next());
    }

    fn follow(&mut self, step: Step) {
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
    fn draw_share_key(&mut self, node: NodeId) {
        let skgen = self.state.lock_terms(node).and_then(|terms| terms.next_share_key).expect("one is wanted");
        let seed = Secret::random(&mut rng());
        self.share_keys.get_mut(&node).expect("a member").insert(skgen, *seed.expose());
        self.report_lock(node);
        let share_pk = PublicKey::of_seed(&seed).as_bytes().to_vec();
        self.apply(Change::RegisterShareKey(RegisterShareKey { node, skgen, share_pk }));
    }

    /// Every member that is there makes its lock what it must be.
    fn report_locks(&mut self) {
        for node in self.present.clone() {
            self.report_lock(node);
        }
    }

    fn report_lock(&mut self, node: NodeId) {
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

    fn dealer(&mut self, epoch: Epoch) -> Dealer {
        let committee = self.state.committee(epoch).expect("an open epoch");
        let dealer = Dealer::open(CLUSTER, self.leader, &committee, &mut rng());
        self.apply(Change::OpenBatch { header: dealer.header().encode() });
        dealer
    }

    fn redeal(&mut self, epoch: Epoch, versions: &[(KeyUid, KeyVersion)]) {
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
    fn create(&mut self, number: u8) {
        for epoch in self.make(number) {
            self.verify(number, epoch);
        }
        assert!(self.is_ready(number));
    }

    /// A new key with a record in each of these epochs, which are the open ones.
    fn make(&mut self, number: u8) -> Vec<Epoch> {
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
    fn verify(&mut self, number: u8, epoch: Epoch) {
        let holders = self.state.epochs[&epoch].committee.iter().map(|seat| seat.node).collect();
        let verified = vec![Verified { uid: uid(number), version: KeyVersion(1), holders }];
        self.apply(Change::Ready(Ready { epoch, verified }));
    }

    fn is_ready(&self, number: u8) -> bool {
        self.state.version(uid(number), KeyVersion(1)).is_some_and(|version| version.ready)
    }

    /// The key from the records on the disk and the share keys of `holders`, all of them if none are named.
    fn rebuilt(&self, slot: (KeyUid, KeyVersion), epoch: Epoch, holders: Option<&[u64]>) -> Option<[u8; 32]> {
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

    fn away(&mut self, node: u64) {
        self.present.remove(&NodeId(node));
    }

    fn back(&mut self, node: u64) {
        let first = || [(ShareKeyGeneration(1), [node as u8; 32])].into();
        self.share_keys.entry(NodeId(node)).or_insert_with(first);
        self.present.insert(NodeId(node));
    }
}

#[test]
fn a_planned_removal_goes_from_the_inside_out() {
    let mut cluster = Cluster::new(4, 3);
    (1..=3).for_each(|number| cluster.create(number));
    cluster.told.clear();
    let operation = cluster.begin(50, Operation::Remove { node: NodeId(4) });
    cluster.settle();
    let told = [
        "share keys",
        "open_epoch",
        "redeal",
        "acks",
        "activate_epoch",
        "locks",
        "voters",
        "expel",
        "retire_epoch",
        "locks",
        "finish",
        "sweep",
    ];
    assert_eq!(cluster.told, told);
    let state = &cluster.state;
    assert_eq!(
        state.active().map(|active| (active.epoch, active.threshold, active.committee.len())),
        Some((operation, 2, 3))
    );
    assert!(state.operations.running.is_none() && !state.members.contains_key(&NodeId(4)));
    assert!(!state.former[&NodeId(4)].revoked);
    assert!(state.locks.values().all(|lock| !lock.peers.contains(&NodeId(4)) && lock.threshold == 1));
    // Nothing of the epoch before is left, neither keys nor records.
    let old = ShareKeyGeneration(1);
    assert!(cluster.share_keys.iter().filter(|(node, _)| node.0 != 4).all(|(_, keys)| !keys.contains_key(&old)));
    let records = cluster.rows.keys().filter_map(|key| RowKey::parse(key));
    assert_eq!(records.filter(|key| matches!(key, RowKey::Record(_, _, Epoch(1)))).count(), 0);
    assert_eq!(
        (state.batches.values().all(|batch| batch.epoch == operation), state.is_unswept(Epoch(1))),
        (true, false)
    );
}

#[test]
fn a_revocation_goes_from_the_outside_in() {
    let mut cluster = Cluster::new(5, 3);
    (1..=3).for_each(|number| cluster.create(number));
    cluster.told.clear();
    cluster.away(4);
    cluster.begin(50, Operation::Revoke { nodes: [NodeId(4)].into() });
    cluster.settle();
    let told = [
        "voters, denied at once",
        "expel",
        "share keys",
        "open_epoch",
        "redeal",
        "acks",
        "activate_epoch",
        "retire_epoch",
        "locks",
        "finish",
        "sweep",
    ];
    assert_eq!(cluster.told, told);
    assert!(cluster.state.former[&NodeId(4)].revoked);
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

/// I2 and I5: a holder that is away is dealt to with the key that it has, serves when it is back, and erases what it owes
/// in an epoch that the leader begins by itself.
#[test]
fn whoever_was_away_erases_what_it_owes_in_an_epoch_of_its_own() {
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
    assert_eq!(refused(&mut cluster.state, Change::Expel { operation }), Refusal::Stranded { node: NodeId(3) });
    cluster.back(3);
    cluster.settle();
    assert_eq!(cluster.state.active().and_then(|active| active.seat_of(NodeId(3))).map(|seat| seat.skgen.0), Some(1));
    assert!(cluster.state.owes_erasure(NodeId(3)) && !cluster.state.owes_erasure(NodeId(1)));

    cluster.now_ms += Patience::default().rekey_ms - 1;
    assert_eq!(cluster.next(), Step::Nothing, "not so soon after the last epoch");
    cluster.now_ms = cluster.state.time_ms + Patience::default().rekey_ms;
    assert_eq!(cluster.next(), Step::Rekey);
    cluster.settle();
    assert_eq!(cluster.state.active().map(|active| active.epoch), Some(Epoch(5)));
    assert!(!cluster.state.owes_erasure(NodeId(3)));
    assert_eq!(cluster.share_keys[&NodeId(3)].keys().map(|skgen| skgen.0).collect::<Vec<_>>(), [5]);
}

/// Whatever runs makes room for a revocation, which takes over who was about to leave.
#[test]
fn a_revocation_comes_first() {
    let mut cluster = Cluster::new(5, 3);
    (1..=2).for_each(|number| cluster.create(number));
    let first = cluster.begin(50, Operation::Remove { node: NodeId(5) });
    while cluster.state.pending().is_none_or(|pending| pending.redealt == 0) {
        let step = cluster.next();
        cluster.follow(step);
    }
    let other =
        Begin { request: [51; 16], operation: Operation::Rekey, accept_no_redundancy: false, abandon: BTreeSet::new() };
    let running = Refusal::OperationRunning { operation: first };
    assert_eq!(refused(&mut cluster.state, Change::Begin(other)), running);

    let revoke = Operation::Revoke { nodes: [NodeId(2)].into() };
    let second = cluster.begin(52, revoke.clone());
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

/// An emergency is not refused because of what was planned: if too few would remain, a removal is taken back that nobody rests
/// on yet. Mutated: taken along all the same, the revocation is refused.
#[test]
fn a_revocation_takes_a_removal_back_rather_than_be_refused() {
    let mut cluster = Cluster::new(4, 3);
    (1..=2).for_each(|number| cluster.create(number));
    cluster.begin(50, Operation::Remove { node: NodeId(4) });
    while cluster.state.pending().is_none_or(|pending| pending.redealt == 0) {
        let step = cluster.next();
        cluster.follow(step);
    }
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

/// The number of an operation is its name: also of one that never came to open its epoch.
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

/// I3: a key that is made while an epoch is PENDING is in both, and needs no dealing.
#[test]
fn keys_are_made_while_an_epoch_is_dealt() {
    let mut cluster = Cluster::new(4, 3);
    (1..=2).for_each(|number| cluster.create(number));
    let operation = cluster.begin(50, Operation::Remove { node: NodeId(4) });
    while cluster.state.pending().is_none() {
        let step = cluster.next();
        cluster.follow(step);
    }
    cluster.create(3);
    cluster.settle();
    assert_eq!(
        cluster.state.active().map(|active| (active.epoch, active.redealt, active.records)),
        Some((operation, 2, 3))
    );
}

/// S5: no version is dealt twice in one epoch. S3: nobody outside the committee can open a share.
#[test]
fn a_version_is_dealt_once_and_to_the_committee_alone() {
    let mut cluster = Cluster::new(4, 3);
    cluster.create(1);
    let slot = (uid(1), KeyVersion(1));
    let operation = cluster.begin(50, Operation::Remove { node: NodeId(4) });
    while cluster.state.pending().is_none() {
        let step = cluster.next();
        cluster.follow(step);
    }
    cluster.redeal(operation, &[slot]);
    let again = {
        let mut dealer = cluster.dealer(operation);
        let key = MasterKey::from_secret(Secret::take(&mut cluster.keys[&slot].clone()));
        let identity = KeyIdentity { cluster: CLUSTER, uid: slot.0, version: slot.1 };
        let record = dealer.deal(&key, &identity, &key.kcv(&identity)).expect("room");
        let dealt = vec![Redealt { uid: slot.0, version: slot.1, record: RecordBytes(record.encode()) }];
        Change::Redeal(Redeal { epoch: operation, dealt })
    };
    let dealt = Refusal::AlreadyDealt { uid: slot.0, version: slot.1 };
    assert_eq!(refused(&mut cluster.state, again), dealt);
    cluster.settle();
    assert_eq!(cluster.rebuilt(slot, operation, Some(&[2, 3])), Some(cluster.keys[&slot]));
    assert_eq!(cluster.rebuilt(slot, operation, Some(&[3, 4])), None);
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
    assert_eq!(refused(&mut cluster.state, begin(remove, false)), Refusal::NoRedundancyNotAccepted);
    let stranger = Operation::Remove { node: NodeId(7) };
    assert_eq!(refused(&mut cluster.state, begin(stranger, true)), Refusal::UnknownMember { node: NodeId(7) });
    let two = Operation::Revoke { nodes: [NodeId(2), NodeId(3)].into() };
    let few = Refusal::TooFewRemain { remaining: 1, needed: 2 };
    assert_eq!(refused(&mut cluster.state, begin(two, true)), few);
    let nobody = Operation::Revoke { nodes: BTreeSet::new() };
    assert!(matches!(refused(&mut cluster.state, begin(nobody, true)), Refusal::MemberCount { .. }));
    // In an emergency nobody asks for redundancy.
    cluster.begin(61, Operation::Revoke { nodes: [NodeId(3)].into() });
    cluster.settle();
    assert_eq!(cluster.state.active().map(|active| active.threshold), Some(2));
}

#[test]
fn share_keys_are_drawn_for_the_epoch_that_comes_next() {
    let mut cluster = Cluster::new(3, 2);
    let key = |node, skgen| {
        let share_pk = PublicKey::of_seed(&Secret::random(&mut rng())).as_bytes().to_vec();
        Change::RegisterShareKey(RegisterShareKey { node: NodeId(node), skgen: ShareKeyGeneration(skgen), share_pk })
    };
    for skgen in [1, 3] {
        let stale = Refusal::StaleShareKey { node: NodeId(2) };
        assert_eq!(refused(&mut cluster.state, key(2, skgen)), stale);
    }
    let good = key(2, 2);
    cluster.apply(good.clone());
    cluster.apply(good);
    assert_eq!(refused(&mut cluster.state, key(2, 2)), Refusal::StaleShareKey { node: NodeId(2) });
    assert_eq!(refused(&mut cluster.state, key(9, 2)), Refusal::UnknownMember { node: NodeId(9) });
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
        let mut restored = State::default();
        for (key, value) in cluster.rows.iter().filter(|(key, _)| key[0] < COLD_ROWS) {
            restored.restore_row(RowKey::parse(key).expect("a row"), value).expect("a good row");
        }
        assert!(restored.restored().expect("whole") == cluster.state);
    }
    assert!(steps > 8);
}

/// V of the invitation with this number.
fn proof_key(number: u8) -> [u8; 32] {
    [number; 32]
}

fn admit(number: u8, node: u64) -> Admit {
    let NewMember { name, addresses, boot_pk, op_pk, share_pk, .. } = member(node);
    Admit { invitation: Sha256::digest(proof_key(number)).into(), name, addresses, boot_pk, op_pk, share_pk }
}

fn invite(number: u8) -> Change {
    Change::Invite(Invite { proof_key: proof_key(number), name: None, ttl_ms: 1_000 })
}

impl Cluster {
    /// Lets node `node` prove an invitation; it is there from then on.
    fn prove(&mut self, number: u8, node: u64) {
        self.apply(invite(number));
        assert_eq!(self.apply(Change::Admit(admit(number, node))), Outcome::Admitted { node: NodeId(node) });
        self.back(node);
    }
}

#[test]
fn a_joiner_comes_in_from_the_outside() {
    let mut cluster = Cluster::new(3, 2);
    (1..=3).for_each(|number| cluster.create(number));
    cluster.told.clear();
    cluster.prove(1, 4);
    assert!(
        cluster.state.lock_terms(NodeId(1)).is_some_and(|terms| !terms.peers.contains(&NodeId(4))),
        "not locked yet"
    );
    cluster.settle();
    let told = [
        "joiner",
        "learner",
        "share keys",
        "voters",
        "open_epoch",
        "redeal",
        "acks",
        "activate_epoch",
        "locks",
        "retire_epoch",
        "locks",
        "finish",
        "sweep",
    ];
    assert_eq!(cluster.told, told);
    let active = cluster.state.active().expect("active");
    assert_eq!((active.epoch, active.threshold, active.committee.len()), (Epoch(2), 3, 4));
    assert!(
        cluster.state.locks.values().all(|lock| lock.threshold == 2 && lock.peers.len() == 3),
        "t - 1 of all others"
    );
    let slot = (uid(1), KeyVersion(1));
    assert_eq!(cluster.rebuilt(slot, Epoch(2), Some(&[2, 3, 4])), Some(cluster.keys[&slot]));
    assert_eq!(cluster.rebuilt(slot, Epoch(2), Some(&[3, 4])), None);
}

/// T55, and what is left of a joiner that does not come: nothing.
#[test]
fn a_joiner_that_is_silent_is_given_up() {
    let mut cluster = Cluster::new(3, 2);
    cluster.create(1);
    cluster.prove(1, 4);
    while cluster.learners.is_empty() {
        let step = cluster.next();
        cluster.follow(step);
    }
    cluster.away(4);
    cluster.joiner_silent_ms = Patience::default().joiner_ms - 1;
    assert_ne!(cluster.next(), Step::GiveUpJoiner { node: NodeId(4) });
    cluster.joiner_silent_ms = Patience::default().joiner_ms;
    assert_eq!(cluster.next(), Step::GiveUpJoiner { node: NodeId(4) });
    cluster.settle();
    assert!(cluster.state.former[&NodeId(4)].revoked && cluster.learners.is_empty());
    assert!(cluster.state.locks.values().all(|lock| !lock.peers.contains(&NodeId(4))));
    // Its invitation is spent, and its keys are never let in again.
    assert_eq!(refused(&mut cluster.state, Change::Admit(admit(1, 4))), Refusal::InvitationUsed);
    cluster.apply(invite(2));
    assert_eq!(refused(&mut cluster.state, Change::Admit(admit(2, 4))), Refusal::IdentityTaken { node: NodeId(0) });
    assert_eq!(
        cluster.apply(Change::Admit(admit(2, 5))),
        Outcome::Admitted { node: NodeId(5) },
        "an id is not used again"
    );
}

/// Whoever was to be replaced stays if the other one does not come; but not if it may have been refused already, which is
/// after the first lock of the other one.
#[test]
fn a_replacement_is_taken_back_as_long_as_nobody_was_refused() {
    for locked in [false, true] {
        let mut cluster = Cluster::new(4, 3);
        cluster.create(1);
        cluster.apply(invite(1));
        cluster.apply(Change::Designate { invitation: Sha256::digest(proof_key(1)).into(), gone: NodeId(3) });
        cluster.apply(Change::Admit(admit(1, 5)));
        if locked {
            cluster.apply(Change::Admitted { node: NodeId(5) });
        }
        cluster.joiner_silent_ms = Patience::default().joiner_ms;
        assert_eq!(cluster.next(), Step::GiveUpJoiner { node: NodeId(5) });
        cluster.settle();
        let gone: Vec<u64> = cluster.state.former.keys().map(|node| node.0).collect();
        assert_eq!(gone, if locked { vec![3, 5] } else { vec![5] });
        assert!(cluster.state.former.values().all(|former| former.revoked));
        assert_eq!(cluster.voters.len(), cluster.state.members.len());
    }
}

/// A replacement costs a share until all is dealt anew. If those that remain are too few without it, every key would be lost:
/// so it is refused, when it is ordered and again when the joiner comes, since others may have left meanwhile. Mutated: without
/// the second look keys can never be dealt again.
#[test]
fn a_replacement_never_leaves_too_few_shares() {
    let designate = |gone| Change::Designate { invitation: Sha256::digest(proof_key(1)).into(), gone: NodeId(gone) };
    let few = Refusal::TooFewRemain { remaining: 1, needed: 2 };
    let mut cluster = Cluster::new(3, 2);
    (1..=2).for_each(|number| cluster.create(number));
    cluster.apply(invite(1));
    cluster.apply(designate(3));
    cluster.begin(50, Operation::Revoke { nodes: [NodeId(1)].into() });
    cluster.settle();
    assert_eq!(refused(&mut cluster.state, Change::Admit(admit(1, 4))), few);
    cluster.apply(invite(2));
    let other = Change::Designate { invitation: Sha256::digest(proof_key(2)).into(), gone: NodeId(2) };
    assert_eq!(refused(&mut cluster.state, other), few);

    // Another one joins first; then there are enough.
    cluster.prove(2, 4);
    cluster.settle();
    assert_eq!(cluster.apply(Change::Admit(admit(1, 5))), Outcome::Admitted { node: NodeId(5) });
    cluster.back(5);
    cluster.settle();
    assert!(cluster.state.members.keys().eq(&[NodeId(2), NodeId(4), NodeId(5)]), "{:?}", cluster.state.members.keys());
    let slot = (uid(1), KeyVersion(1));
    let epoch = cluster.state.active().expect("active").epoch;
    assert_eq!(cluster.rebuilt(slot, epoch, Some(&[4, 5])), Some(cluster.keys[&slot]));
}

/// One change of the voters and one epoch: never one member more or one less between.
#[test]
fn a_replacement_is_one_change_of_voters_and_one_epoch() {
    let mut cluster = Cluster::new(3, 2);
    (1..=2).for_each(|number| cluster.create(number));
    cluster.away(3);
    cluster.apply(invite(1));
    cluster.apply(Change::Designate { invitation: Sha256::digest(proof_key(1)).into(), gone: NodeId(3) });
    cluster.told.clear();
    cluster.apply(Change::Admit(admit(1, 4)));
    cluster.back(4);
    cluster.settle();
    let told = [
        "joiner",
        "learner",
        "share keys",
        "voters, denied at once",
        "expel",
        "open_epoch",
        "redeal",
        "acks",
        "activate_epoch",
        "retire_epoch",
        "locks",
        "finish",
        "sweep",
    ];
    assert_eq!(cluster.told, told);
    assert_eq!(cluster.voters, [NodeId(1), NodeId(2), NodeId(4)].into());
    assert!(cluster.state.former[&NodeId(3)].revoked);
    assert_eq!(cluster.state.active().map(|active| (active.epoch, active.threshold)), Some((Epoch(2), 2)));
}

#[test]
fn an_invitation_is_for_one_node_and_one_hour() {
    let mut cluster = Cluster::new(3, 2);
    assert_eq!(refused(&mut cluster.state, Change::Admit(admit(1, 4))), Refusal::UnknownInvitation);
    cluster.apply(invite(1));
    cluster.apply(Change::Admit(admit(1, 4)));
    let other = Admit { boot_pk: [77; 32], ..admit(1, 4) };
    assert_eq!(refused(&mut cluster.state, Change::Admit(other)), Refusal::InvitationUsed);
    // The same node, before its first lock: with whatever keys it has now.
    let again = Admit { op_pk: [78; 32], ..admit(1, 4) };
    cluster.apply(Change::Admit(again.clone()));
    assert_eq!(cluster.state.members[&NodeId(4)].op_pk, [78; 32]);
    cluster.apply(Change::Admitted { node: NodeId(4) });
    cluster.apply(Change::Admit(again));
    assert_eq!(
        refused(&mut cluster.state, Change::Admit(admit(1, 4))),
        Refusal::InvitationUsed,
        "it has lost its disk"
    );

    cluster.apply(invite(2));
    let running = Refusal::OperationRunning { operation: Epoch(2) };
    assert_eq!(refused(&mut cluster.state, Change::Admit(admit(2, 5))), running);
    cluster.back(4);
    cluster.settle();
    let named = Admit { name: "n1".parse().expect("a name"), ..admit(2, 5) };
    assert_eq!(refused(&mut cluster.state, Change::Admit(named)), Refusal::NodeNameTaken { node: NodeId(1) });
    let twin = Admit { op_pk: member(1).op_pk, ..admit(2, 5) };
    assert_eq!(refused(&mut cluster.state, Change::Admit(twin)), Refusal::IdentityTaken { node: NodeId(0) });
    cluster.state.time_ms += 1_000;
    assert_eq!(refused(&mut cluster.state, Change::Admit(admit(2, 5))), Refusal::InvitationExpired);
    let named = Invite { proof_key: proof_key(3), name: Some("n9".parse().expect("a name")), ttl_ms: 1_000 };
    cluster.apply(Change::Invite(named));
    assert_eq!(refused(&mut cluster.state, Change::Admit(admit(3, 5))), Refusal::NameNotInvited);
    for ttl_ms in [0, INVITATION_TTL_MAX_MS + 1] {
        let bad = Invite { proof_key: proof_key(4), name: None, ttl_ms };
        assert_eq!(refused(&mut cluster.state, Change::Invite(bad)), Refusal::BadInvitation);
    }
}

/// A key that was checked in the PENDING epoch alone is ready when that one becomes ACTIVE, and one that was checked in the
/// ACTIVE epoch alone when the PENDING one is given up: nothing is left to be checked, so nobody would ever say so.
#[test]
fn a_key_is_ready_when_the_only_epoch_that_it_waited_for_counts_no_more() {
    let mut cluster = Cluster::new(4, 3);
    let rekeyed = cluster.begin(50, Operation::Rekey);
    while cluster.state.pending().is_none() {
        let step = cluster.next();
        cluster.follow(step);
    }
    assert_eq!(cluster.make(1), [Epoch(1), rekeyed]);
    cluster.verify(1, rekeyed);
    assert!(!cluster.is_ready(1), "nobody checked its shares in the epoch that serves");
    cluster.settle();
    assert!(cluster.is_ready(1) && plan::unverified(&cluster.state).is_empty());

    cluster.begin(51, Operation::Rekey);
    while cluster.state.pending().is_none() {
        let step = cluster.next();
        cluster.follow(step);
    }
    cluster.make(2);
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

/// With all of them at once no majority of the four voters would be left to decide it, and nothing would ever end.
#[test]
fn more_nodes_than_a_majority_can_deny_at_once_go_one_after_the_other() {
    let mut cluster = Cluster::new(4, 3);
    let removal = cluster.begin(50, Operation::Remove { node: NodeId(4) });
    while cluster.state.active().is_none_or(|active| active.epoch != removal) {
        let step = cluster.next();
        cluster.follow(step);
    }
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
