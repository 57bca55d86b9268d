//! The leader's work, and what every node does with committed entries: `machine`, `members` and `deal`.

use std::collections::BTreeSet;

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_node::deal::{self, OpenDealer, Target};
use quorate_node::members::{self, Tally};
use quorate_node::peer::{KeyChange, PeerReply, PeerRequest, Refusal, VerifyRequest};
use quorate_raft::command::{Change, Command, EpochAck, Outcome, Ready};
use quorate_raft::plan::{self, Unverified};
use quorate_raft::refusal::Refusal as StateRefusal;
use quorate_raft::state::apply;
use quorate_shares::ids::{Epoch, KeyUid, KeyVersion, NodeId};
use quorate_shares::master::{KeyIdentity, MasterKey};
use quorate_shares::seal::Dealer;

use super::{Asked, Context, Daemon, Replica, Unlocked};
use crate::model::dice::Dice;
use crate::model::disk::Write;
use crate::model::message::Process;

/// How long a change waits for its version to be checked by t holders.
const READY_MS: u64 = 20_000;
/// How often a change is dealt anew after the committee moved on.
const TRIES: u32 = 3;
/// Pause after a step of the plan.
const STEP_MS: u64 = 600;

/// What a proposal of this node was for.
pub(super) enum Purpose {
    Nothing,
    Batch { term: u64, dealer: Box<Dealer> },
    Change(u64),
}

/// The step of the plan that is under way.
#[derive(Default)]
pub(super) struct Step {
    again_ms: u64,
    records: Vec<Unverified>,
    by: Tally,
}

/// Who waits for a change.
#[derive(Clone, Copy)]
pub(super) enum ReplyTo {
    Job(u64),
    Peer(Process, u64),
}

/// A change of the keys on its way through `deal::change`.
pub(super) struct Making {
    reply: ReplyTo,
    change: KeyChange,
    stage: Stage,
    tries: u32,
    since_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A leader that was just elected may not have applied yet what the last one acknowledged.
    CatchUp,
    Deal,
    Batch,
    Proposed,
}

impl Unlocked {
    /// The first version of a key once more, and another key, as a leader that has lost its mind would deal it.
    pub(in crate::model) fn deal_again(&mut self, identity: &KeyIdentity, dice: &mut Dice) -> Option<Change> {
        let key = MasterKey::random(dice.rng());
        let kcv = key.kcv(identity);
        let records = self.dealing.as_mut()?.deal(&key, identity, &kcv).ok()?;
        let name = "dealt/again".parse().expect("a key name");
        let change = KeyChange::Create { request: dice.bytes(), name, tags: Default::default() };
        Some(deal::dealt(&change, identity, kcv, &records))
    }
}

impl Daemon {
    /// `machine`: entries go to the state and to the disk in one write each, at this node's own pace.
    pub(super) fn apply_committed(&mut self, context: &mut Context<'_>) {
        if self.unlocked.is_none() || context.dice.chance(200) {
            return;
        }
        let me = self.me.node;
        loop {
            let unlocked = self.unlocked_mut();
            let index = context.db.now().applied + 1;
            if index > unlocked.raft.commit {
                break;
            }
            let entry = context.db.now().log[index as usize - 1].clone();
            let applied = entry.command.as_ref().map(|command| apply(&mut unlocked.state, command));
            context.watch.applied(me, index, &entry, applied.as_ref());
            let (outcome, rows) = applied.map_or((None, Vec::new()), |applied| (Some(applied.outcome), applied.rows));
            context.db.write(Write::Rows(rows, index));
            if let Some((term, purpose)) = unlocked.proposals.remove(&index) {
                self.resolve(context, purpose, outcome.filter(|_| term == entry.term));
            }
        }
    }

    pub(super) fn propose(&mut self, context: &mut Context<'_>, change: Change, purpose: Purpose) -> bool {
        let command = Command::new(context.watch.wall_ms, change);
        let now_ms = context.now_ms;
        let unlocked = self.unlocked_mut();
        let Some((index, term)) = unlocked.raft.propose(context.db, command, now_ms) else { return false };
        let lost = unlocked.proposals.insert(index, (term, purpose));
        // An entry of an earlier term at this index was truncated: its proposer never hears of it.
        if let Some((_, Purpose::Change(id))) = lost {
            self.give_up(context, id);
        }
        true
    }

    /// An answer to a proposal; `None` if another entry stands in its place.
    fn resolve(&mut self, context: &mut Context<'_>, purpose: Purpose, outcome: Option<Result<Outcome, StateRefusal>>) {
        match (purpose, outcome) {
            (Purpose::Batch { term, dealer }, Some(Ok(_))) => {
                let now_ms = context.now_ms;
                self.unlocked_mut().dealing = Some(OpenDealer::new(term, now_ms, vec![*dealer]));
                self.batch_is_open();
            }
            (Purpose::Batch { .. }, _) => self.batch_is_open(),
            (Purpose::Change(id), Some(Ok(Outcome::VersionMade { uid, version, .. }))) => {
                self.reply(context, id, Ok((uid, version)));
            }
            (Purpose::Change(id), Some(Err(refusal))) if deal::is_stale(&refusal) => {
                self.unlocked_mut().dealing = None;
                let making = self.unlocked_mut().changes.get_mut(&id);
                let tries = making.map_or(TRIES, |making| {
                    (making.tries, making.stage) = (making.tries + 1, Stage::Deal);
                    making.tries
                });
                if tries >= TRIES {
                    self.give_up(context, id);
                }
            }
            (Purpose::Change(id), Some(Err(refusal))) => {
                self.reply(context, id, Err(WireError::new(Code::Conflict, refusal.to_string())));
            }
            (Purpose::Change(id), _) => self.give_up(context, id),
            (Purpose::Nothing, _) => {}
        }
    }

    fn batch_is_open(&mut self) {
        let waiting = self.unlocked_mut().changes.values_mut().filter(|making| making.stage == Stage::Batch);
        waiting.for_each(|making| making.stage = Stage::Deal);
    }

    fn stage(&mut self, id: u64, stage: Stage) {
        if let Some(making) = self.unlocked_mut().changes.get_mut(&id) {
            making.stage = stage;
        }
    }

    /// `Node::close_batch_if_over`.
    pub(super) fn close_batch_if_over(&mut self, context: &Context<'_>) {
        let unlocked = self.unlocked_mut();
        let (leadership, open_epochs) = (unlocked.raft.leadership(context.db), unlocked.state.record_epochs());
        let leased = unlocked.lease.is_valid_at(context.now_ms);
        unlocked.dealing.take_if(|open| !leased || !open.is_usable_at(&leadership, &open_epochs, context.now_ms));
    }

    // -- the plan

    /// `members::run`: the next step that the plan asks for.
    pub(super) fn lead(&mut self, context: &mut Context<'_>) {
        let now_ms = context.now_ms;
        let unlocked = self.unlocked_mut();
        if !unlocked.raft.leadership(context.db).am_leader || now_ms < unlocked.tally.again_ms {
            return;
        }
        unlocked.tally = Step { again_ms: now_ms + STEP_MS, ..Step::default() };
        let index = context.db.now().applied;
        let records = plan::unverified(&unlocked.state);
        let (me, state) = (self.me.node, &self.unlocked_mut().state);
        let view = plan::View::of_all(state, me, context.watch.wall_ms);
        match plan::next(&self.unlocked_mut().state, &view) {
            plan::Step::AwaitFounding => {
                let found = context.watch.found.clone();
                self.propose(context, Change::Found(found), Purpose::Nothing);
            }
            plan::Step::Propose(change) => drop(self.propose(context, change, Purpose::Nothing)),
            plan::Step::CollectAcks { epoch, missing, .. } => {
                for holder in missing {
                    match holder == self.me.node {
                        true => {
                            if let PeerReply::EpochAck { redealt } = self.answer_ack(context, epoch, index) {
                                self.note_ack(context, holder, epoch, redealt);
                            }
                        }
                        false => {
                            let request = PeerRequest::AckEpoch { epoch, index };
                            self.ask(context, holder, &request, Asked::AckEpoch(holder, epoch));
                        }
                    }
                }
            }
            plan::Step::Nothing => {}
            step => panic!("the members never change: {step:?}"),
        }
        self.verify(context, records, index);
    }

    /// `members::verify`, its first half.
    fn verify(&mut self, context: &mut Context<'_>, records: Vec<Unverified>, index: u64) {
        let Some(epoch) = records.first().map(|record| record.epoch) else { return };
        let holders: BTreeSet<NodeId> = records.iter().flat_map(|record| record.holders.iter().copied()).collect();
        let versions = records.iter().map(|record| (record.uid, record.version)).collect();
        self.unlocked_mut().tally.records = records;
        let request = VerifyRequest { epoch, index, versions };
        for holder in holders {
            if holder != self.me.node {
                self.ask(context, holder, &PeerRequest::Verify(request.clone()), Asked::Verify(holder));
            } else if let PeerReply::Verified(versions) = self.answer_verify(context, &request) {
                self.count(holder, &versions);
            }
        }
    }

    /// A holder has opened and checked its shares of these versions.
    pub(super) fn count(&mut self, holder: NodeId, versions: &[(KeyUid, KeyVersion)]) {
        let step = &mut self.unlocked_mut().tally;
        for version in versions {
            step.by.entry(*version).or_default().insert(holder);
        }
    }

    pub(super) fn note_ack(&mut self, context: &mut Context<'_>, node: NodeId, epoch: Epoch, redealt: u64) {
        self.propose(context, Change::EpochAck(EpochAck { epoch, node, redealt }), Purpose::Nothing);
    }

    /// `members::verify`, its second half: what enough holders have checked is declared ready.
    fn declare_ready(&mut self, context: &mut Context<'_>) {
        let step = &mut self.unlocked_mut().tally;
        let verified = members::reached(&step.records, &step.by);
        if let Some(epoch) = step.records.first().map(|record| record.epoch).filter(|_| !verified.is_empty()) {
            *step = Step::default();
            self.propose(context, Change::Ready(Ready { epoch, verified }), Purpose::Nothing);
        }
    }

    /// `answer::propose`.
    pub(super) fn answer_propose(&mut self, context: &mut Context<'_>, command: Command) -> PeerReply {
        match self.propose(context, command.change, Purpose::Nothing) {
            true => PeerReply::Done,
            false => PeerReply::Refused(Refusal::NotLeader(None)),
        }
    }

    // -- changes

    /// Takes a change; the answer comes when the version is made. Whoever asked waits until it is ready.
    pub(super) fn take_change(
        &mut self,
        context: &mut Context<'_>,
        reply: ReplyTo,
        change: KeyChange,
    ) -> Option<PeerReply> {
        if !self.unlocked_mut().raft.leadership(context.db).am_leader {
            return Some(PeerReply::Refused(Refusal::NotLeader(None)));
        }
        self.next += 1;
        let (id, since_ms) = (self.next, context.now_ms);
        self.unlocked_mut().changes.insert(id, Making { reply, change, stage: Stage::CatchUp, tries: 0, since_ms });
        self.ask_for_lease(context);
        None
    }

    /// A renewal was confirmed: whatever waited for one that was sent later than it began goes on.
    pub(super) fn caught_up(&mut self, renewal: quorate_node::lease::Renewal) {
        let sent_ms = renewal.sent_ms();
        let unlocked = self.unlocked_mut();
        for making in unlocked.changes.values_mut() {
            if making.stage == Stage::CatchUp && sent_ms >= making.since_ms {
                making.stage = Stage::Deal;
            }
        }
        unlocked.jobs.values_mut().for_each(|job| job.caught_up(sent_ms));
    }

    /// Goes on with every change as far as it can.
    pub(super) fn advance_changes(&mut self, context: &mut Context<'_>) {
        if self.unlocked.is_none() {
            return;
        }
        self.declare_ready(context);
        let ids: Vec<u64> = self.unlocked_mut().changes.keys().copied().collect();
        for id in ids {
            let Some(making) = self.unlocked_mut().changes.get(&id) else { continue };
            let (stage, late) = (making.stage, context.now_ms >= making.since_ms + READY_MS);
            match stage {
                _ if late => self.give_up(context, id),
                Stage::Deal => self.deal(context, id),
                Stage::CatchUp | Stage::Batch | Stage::Proposed => {}
            }
        }
    }

    /// `deal::propose` and `deal`: draws a key and puts its record into the log, once a batch is open.
    fn deal(&mut self, context: &mut Context<'_>, id: u64) {
        let now_ms = context.now_ms;
        let cluster = self.vault().identity.cluster;
        let Some(unlocked) = &mut self.unlocked else { return };
        let Some(change) = unlocked.changes.get(&id).map(|making| making.change.clone()) else { return };
        let (uid, version) = match deal::target(&unlocked.state, &change, context.dice.rng()) {
            Ok(Target::New(slot)) => slot,
            Ok(Target::Made(slot)) => return self.reply(context, id, Ok(slot)),
            Err(error) => return self.reply(context, id, Err(error)),
        };
        let (leadership, open_epochs) = (unlocked.raft.leadership(context.db), unlocked.state.record_epochs());
        if !leadership.am_leader || !unlocked.lease.is_valid_at(now_ms) {
            return self.give_up(context, id);
        }
        let identity = KeyIdentity { cluster, uid, version };
        let open = unlocked.dealing.as_mut().filter(|open| open.is_usable_at(&leadership, &open_epochs, now_ms));
        let Some(open) = open else { return self.open_batch(context, id) };
        let key = MasterKey::random(context.dice.rng());
        let kcv = key.kcv(&identity);
        let records = open.deal(&key, &identity, &kcv).expect("a usable batch has room");
        let change = deal::dealt(&change, &identity, kcv, &records);
        self.stage(id, Stage::Proposed);
        if !self.propose(context, change, Purpose::Change(id)) {
            self.give_up(context, id);
        }
    }

    fn open_batch(&mut self, context: &mut Context<'_>, id: u64) {
        let (cluster, me) = (self.vault().identity.cluster, self.me.node);
        self.stage(id, Stage::Batch);
        let unlocked = self.unlocked.as_mut().filter(|unlocked| {
            !unlocked.proposals.values().any(|(_, purpose)| matches!(purpose, Purpose::Batch { .. }))
        });
        let Some(unlocked) = unlocked else { return };
        let Some(epoch) = unlocked.active_epoch() else { return };
        let committee = unlocked.state.committee(epoch).expect("the active epoch has its committee");
        let term = unlocked.raft.leadership(context.db).term;
        let dealer = Box::new(Dealer::open(cluster, me, &committee, context.dice.rng()));
        let change = Change::OpenBatch { header: dealer.header().encode() };
        self.propose(context, change, Purpose::Batch { term, dealer });
    }

    fn give_up(&mut self, context: &mut Context<'_>, id: u64) {
        self.reply(context, id, Err(WireError::new(Code::NoQuorum, "not now")));
    }

    fn reply(&mut self, context: &mut Context<'_>, id: u64, made: Result<(KeyUid, KeyVersion), WireError>) {
        let Some(making) = self.unlocked_mut().changes.remove(&id) else { return };
        match making.reply {
            ReplyTo::Peer(from, ask) => self.tell(context, from, ask, &PeerReply::Changed(made)),
            ReplyTo::Job(job) => self.changed(context, job, made),
        }
    }

    /// `members::check_epoch`.
    pub(super) fn answer_ack(&mut self, context: &mut Context<'_>, epoch: Epoch, index: u64) -> PeerReply {
        let Some((redealt, versions)) = members::records_of(&self.unlocked_mut().state, epoch) else {
            return PeerReply::Refused(Refusal::WrongEpoch);
        };
        let request = VerifyRequest { epoch, index, versions };
        match self.answer_verify(context, &request) {
            PeerReply::Verified(verified) if verified.len() == request.versions.len() => {
                context.watch.epoch_acked(self.me.node, epoch, redealt);
                PeerReply::EpochAck { redealt }
            }
            PeerReply::Verified(_) => PeerReply::Refused(Refusal::WrongEpoch),
            refused => refused,
        }
    }

    /// `members::check_shares`, for a node that has applied so far.
    pub(super) fn answer_verify(&mut self, context: &mut Context<'_>, request: &VerifyRequest) -> PeerReply {
        if context.db.now().applied < request.index {
            return PeerReply::Refused(Refusal::Behind);
        }
        let me = self.me.node;
        let unlocked = self.unlocked_mut();
        let replica = Replica(&unlocked.state, context.db.now());
        let opens = |&(uid, version): &(KeyUid, KeyVersion)| {
            let facts = unlocked.holder.facts(&replica, request.epoch, uid, version).ok()?;
            let (x, share) = unlocked.holder.open(&replica, &facts).ok()?;
            Some(((uid, version), facts, x, share))
        };
        let mut verified = Vec::new();
        for (slot, facts, x, share) in request.versions.iter().filter_map(opens) {
            context.watch.opened(me, &facts, x, &share);
            context.watch.verified(me, slot, request.epoch);
            verified.push(slot);
        }
        PeerReply::Verified(verified)
    }
}
