//! The cluster that the tests of operations drive: the true state and the true plan, and members that do what they are asked.

use std::collections::{BTreeMap, BTreeSet};

use quorate_shares::ids::{Epoch, KeyVersionId, NodeId, ShareKeyGeneration};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use sha2::{Digest, Sha256};

use crate::Refusal;
use crate::live::command::{Begin, Change, Command, EpochAck, Found, Invite, Join, NewMember, Operation, Outcome};
use crate::live::idle::Idlers;
use crate::live::plan::{self, Patience, RESHARE_MAX, Step, View};
use crate::live::rows::{RowKey, RowWrite};
use crate::live::state::{EpochPhase, MemberState, State, apply};
use crate::stored::rows::COLD_ROWS;
use crate::tests::fixture::{found, member, next_changes, step};

/// Most steps of one operation, and of what follows it.
pub(super) const STEPS_MAX: usize = 200;

/// A cluster whose members do at once what the state asks of them, and nothing else: no network, no disks. The same calls give
/// the same cluster, to the last byte.
pub(super) struct Cluster {
    pub(super) state: State,
    /// Rows as a disk would hold them.
    pub(super) rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Share keys in the bundle of each member, by generation.
    pub(super) share_keys: BTreeMap<NodeId, BTreeMap<ShareKeyGeneration, [u8; 32]>>,
    pub(super) keys: BTreeMap<KeyVersionId, [u8; 32]>,
    pub(super) present: BTreeSet<NodeId>,
    /// Members that answer, and do nothing by themselves.
    pub(super) stuck: BTreeSet<NodeId>,
    pub(super) idle: BTreeSet<NodeId>,
    idlers: Idlers,
    pub(super) voters: BTreeSet<NodeId>,
    pub(super) learners: BTreeSet<NodeId>,
    /// The nodes that the others refuse, because they no longer vote.
    pub(super) denied: BTreeSet<NodeId>,
    pub(super) joiner_silent_ms: u64,
    pub(super) active_ms: u64,
    pub(super) leader: NodeId,
    /// How many versions a leader deals at a time.
    pub(super) batch: usize,
    pub(super) writes: u64,
    pub(super) now_ms: u64,
    /// The leader's own clock.
    boot_ms: u64,
    pub(super) rng: ChaCha20Rng,
}

impl Cluster {
    /// Two members may remain of it.
    pub(super) fn new(members: u64, threshold: u8) -> Self {
        Self::founded(Found { accept_no_redundancy: true, ..found(members, threshold) })
    }

    pub(super) fn founded(found: Found) -> Self {
        let mut state = State::default();
        let mut rows = BTreeMap::new();
        let mut changes = vec![Change::Found(found)];
        while !changes.is_empty() {
            for change in changes {
                let applied = step(&mut state, change);
                applied.outcome.expect("a planned step applies");
                keep(&mut rows, applied.rows);
            }
            changes = next_changes(&state);
        }
        let all: BTreeSet<_> = state.members.keys().copied().collect();
        let mut cluster = Self {
            share_keys: all.iter().map(|node| (*node, first_share_key(*node))).collect(),
            keys: BTreeMap::new(),
            rows,
            present: all.clone(),
            stuck: BTreeSet::new(),
            idle: BTreeSet::new(),
            idlers: Idlers::default(),
            voters: all,
            learners: BTreeSet::new(),
            denied: BTreeSet::new(),
            joiner_silent_ms: 0,
            active_ms: 0,
            leader: NodeId(1),
            batch: RESHARE_MAX,
            writes: 0,
            now_ms: state.time_ms,
            boot_ms: 0,
            rng: ChaCha20Rng::from_seed([7; 32]),
            state,
        };
        cluster.report_locks();
        cluster
    }

    /// Applies a change. A refused one changes nothing but the time.
    pub(super) fn propose(&mut self, change: Change) -> Result<Outcome, Refusal> {
        let mut before = self.state.clone();
        let time_ms = self.now_ms.max(self.state.time_ms + 1);
        if matches!(change, Change::ActivateEpoch { .. }) {
            self.active_ms = 0;
        }
        let applied = apply(&mut self.state, &Command::new(time_ms, change));
        if applied.outcome.is_err() {
            before.time_ms = time_ms;
            assert!(before == self.state, "a refused command changed the state");
            assert!(applied.rows.iter().all(|row| row.key == RowKey::Clock), "a refused command wrote rows");
        }
        keep(&mut self.rows, applied.rows);
        self.check();
        self.look();
        applied.outcome
    }

    /// Members that answer do what the state asks of them, without being asked by the leader.
    fn act(&mut self) {
        let acting = self.present.difference(&self.stuck).copied().collect();
        for node in plan::owing(&self.state, &acting, &acting) {
            let member = &self.state.members[&node];
            let draws = self.state.lock_terms(node).is_some_and(|terms| terms.next_share_key.is_some());
            match member.state {
                MemberState::Joining => {}
                MemberState::Active if draws => self.draw_share_key(node),
                MemberState::Active => self.report_lock(node),
            }
        }
    }

    /// The leader looks who does their part.
    fn look(&mut self) {
        let (now_ms, patience_ms) = (self.boot_ms, Patience::default().member_ms);
        self.idle = self.idlers.look(&self.state, &self.present, &BTreeSet::new(), now_ms, patience_ms);
    }

    /// Applies a change that must not be refused.
    pub(super) fn apply(&mut self, change: Change) -> Outcome {
        let kind = change.kind();
        self.propose(change).unwrap_or_else(|refusal| panic!("{kind}: {refusal}"))
    }

    /// Applies a change that must be refused.
    pub(super) fn refused(&mut self, change: Change) -> Refusal {
        self.propose(change).expect_err("this must be refused")
    }

    /// The invariants after every command.
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

    pub(super) fn begin(&mut self, request: u8, operation: Operation) -> Epoch {
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
            idle: self.idle.clone(),
            voters: self.voters.clone(),
            learners: self.learners.clone(),
            settled: true,
            caught_up: self.learners.intersection(&self.present).copied().collect(),
            joiner_silent_ms: self.joiner_silent_ms,
            active_ms: self.active_ms,
            patience: Patience::default(),
        }
    }

    pub(super) fn next(&self) -> Step {
        plan::next(&self.state, &self.view())
    }

    /// Does what the plan says until nothing is left.
    pub(super) fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            let step = self.next();
            if step == Step::Nothing {
                return;
            }
            self.follow(step);
        }
        panic!("it never ends: {:?}", self.next());
    }

    /// Does what the plan says until the cluster is as wanted.
    pub(super) fn follow_until(&mut self, reached: impl Fn(&Self) -> bool) {
        for _ in 0..STEPS_MAX {
            if reached(self) {
                return;
            }
            self.follow(self.next());
        }
        panic!("it is never reached: {:?}", self.next());
    }

    pub(super) fn follow(&mut self, step: Step) {
        self.take(step).expect("a planned step applies");
    }

    /// Takes a step, with the help of the nodes that answer.
    pub(super) fn take(&mut self, step: Step) -> Result<(), Refusal> {
        match step {
            Step::Propose(change) => {
                self.propose(change)?;
                // A node that is no longer a member is not heard any more.
                let gone = self.present.iter().filter(|node| !self.state.members.contains_key(node));
                self.deny(gone.copied().collect());
            }
            Step::AwaitShareKeys { missing, .. } => {
                self.of_present(missing).into_iter().for_each(|node| self.draw_share_key(node));
            }
            Step::AwaitLocks { missing } => {
                self.of_present(missing).into_iter().for_each(|node| self.report_lock(node));
            }
            Step::ChangeVoters { voters, revoke } => {
                let leaving: BTreeSet<_> = self.voters.difference(&voters).copied().collect();
                let deciding = self.voters.difference(&leaving).count();
                assert!(
                    !revoke || deciding > self.voters.len() / 2,
                    "no majority could decide that {leaving:?} are denied"
                );
                self.learners.retain(|node| !voters.contains(node));
                self.voters = voters;
                self.deny(leaving);
            }
            Step::AddLearner { node } => {
                self.learners.insert(node);
            }
            Step::RemoveLearner { node } => {
                self.learners.remove(&node);
            }
            Step::AwaitJoiner { node, locked } => {
                let acts = self.present.contains(&node) && !self.idle.contains(&node);
                assert!(!locked || !acts, "a learner that is there has caught up at once");
                if self.present.contains(&node) && !self.stuck.contains(&node) {
                    self.propose(Change::Joined { node })?;
                    self.report_lock(node);
                }
            }
            Step::GiveUpJoiner { node } => {
                self.begin(self.own_request(), Operation::Revoke { nodes: [node].into() });
            }
            Step::Reshare { epoch, versions, .. } => {
                let dealable = self.dealable(&versions);
                if !dealable.is_empty() {
                    let reshared = self.reshared(epoch, &dealable);
                    self.propose(reshared)?;
                }
            }
            Step::CollectAcks { epoch, reshared, missing, .. } => {
                // A node that does nothing by itself still answers.
                for node in missing.into_iter().filter(|node| self.present.contains(node)).collect::<Vec<_>>() {
                    self.propose(Change::EpochAck(EpochAck { epoch, node, reshared }))?;
                }
            }
            Step::Retire { epoch, .. } => {
                self.propose(Change::RetireEpoch { epoch })?;
            }
            Step::AwaitHolders { .. } => {}
            Step::TransferLeadership { to } => {
                if let Some(&node) = to.first() {
                    self.lead(node);
                }
            }
            Step::Rekey => {
                self.begin(self.own_request(), Operation::Rekey);
            }
            Step::AwaitFounding | Step::FinishVoters | Step::Nothing => panic!("not here"),
        }
        Ok(())
    }

    /// The request of what a leader begins by itself.
    fn own_request(&self) -> u8 {
        200 + self.state.next_epoch().0 as u8
    }

    fn of_present(&self, mut nodes: Vec<NodeId>) -> Vec<NodeId> {
        nodes.retain(|node| self.present.contains(node) && !self.stuck.contains(node));
        nodes
    }

    fn deny(&mut self, nodes: BTreeSet<NodeId>) {
        self.present.retain(|node| !nodes.contains(node));
        self.denied.extend(nodes);
    }

    /// Another node leads, and knows only what is in the rows. For how long a joiner has been silent, or an epoch ACTIVE, is not
    /// in them.
    pub(super) fn lead(&mut self, node: NodeId) {
        let restored = self.restored();
        assert!(restored == self.state, "the rows are the whole state");
        (self.state, self.leader) = (restored, node);
        (self.joiner_silent_ms, self.active_ms) = (0, 0);
        (self.idlers, self.idle) = (Idlers::default(), BTreeSet::new());
    }

    /// The state as a restart finds it.
    pub(super) fn restored(&self) -> State {
        let mut restored = State::default();
        for (key, value) in self.rows.iter().filter(|(key, _)| key[0] < COLD_ROWS) {
            restored.restore_row(RowKey::parse(key).expect("a row"), value).expect("a good row");
        }
        restored.restored().expect("whole")
    }

    /// Time passes for every node. A joiner that is away is silent meanwhile.
    pub(super) fn wait(&mut self, ms: u64) {
        self.now_ms = self.now_ms.max(self.state.time_ms) + ms;
        self.active_ms += ms;
        self.act();
        self.look();
        self.boot_ms += ms;
        self.look();
        let joiner = self.state.operations.running.as_ref().and_then(|running| running.operation.joining());
        if joiner.is_some_and(|node| !self.present.contains(&node) || self.idle.contains(&node)) {
            self.joiner_silent_ms += ms;
        }
    }

    pub(super) fn away(&mut self, node: u64) {
        self.present.remove(&NodeId(node));
        self.look();
    }

    /// The node answers, and does nothing by itself any more.
    pub(super) fn stuck(&mut self, node: u64) {
        self.stuck.insert(NodeId(node));
    }

    pub(super) fn back(&mut self, node: u64) {
        self.share_keys.entry(NodeId(node)).or_insert_with(|| first_share_key(NodeId(node)));
        self.present.insert(NodeId(node));
        self.stuck.remove(&NodeId(node));
        self.joiner_silent_ms = 0;
        self.look();
    }

    /// Lets node `node` prove an invitation to the place of `gone`; it is there from then on.
    pub(super) fn replace(&mut self, number: u8, gone: u64, node: u64) {
        self.apply(invite(number));
        self.apply(Change::Replace { invitation: invitation(number), gone: NodeId(gone) });
        assert_eq!(self.apply(Change::Join(join_with(number, node))), Outcome::Registered { node: NodeId(node) });
        self.back(node);
    }

    /// Lets node `node` prove an invitation; it is there from then on.
    pub(super) fn prove(&mut self, number: u8, node: u64) {
        self.apply(invite(number));
        assert_eq!(self.apply(Change::Join(join_with(number, node))), Outcome::Registered { node: NodeId(node) });
        self.back(node);
    }
}

/// A version has one record in an epoch, and it never changes (S5).
fn keep(rows: &mut BTreeMap<Vec<u8>, Vec<u8>>, written: Vec<RowWrite>) {
    for RowWrite { key, value } in written {
        let Some(value) = value else {
            rows.remove(&key.to_bytes());
            continue;
        };
        let old = rows.insert(key.to_bytes(), value.into_bytes());
        assert!(!matches!(key, RowKey::Record(..)) || old.is_none(), "a version was dealt twice");
    }
}

/// The share key that a node has when it is founded or joins.
fn first_share_key(node: NodeId) -> BTreeMap<ShareKeyGeneration, [u8; 32]> {
    [(ShareKeyGeneration(1), [node.0 as u8; 32])].into()
}

/// V of the invitation with this number.
pub(super) fn proof_key(number: u8) -> [u8; 32] {
    [number; 32]
}

pub(super) fn join_with(number: u8, node: u64) -> Join {
    let NewMember { name, addresses, boot_pk, op_pk, share_pk, .. } = member(node);
    Join { invitation: invitation(number), name, addresses, boot_pk, op_pk, share_pk }
}

/// What names the invitation with this number.
pub(super) fn invitation(number: u8) -> [u8; 32] {
    Sha256::digest(proof_key(number)).into()
}

pub(super) fn invite(number: u8) -> Change {
    Change::Invite(Invite { proof_key: proof_key(number), name: None, ttl_ms: 1_000 })
}
