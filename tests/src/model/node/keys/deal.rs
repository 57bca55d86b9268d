//! Making keys: `deal`, from the request of a client to the entry in the log.

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_node::keys::deal::{self, Target};
use quorate_node::memory::dealer::OpenDealer;
use quorate_node::messages::peer::{ForwardedReply, KeyChange, PeerRefusal, PeerReply};
use quorate_raft::command::Change;
use quorate_shares::ids::KeyVersionId;
use quorate_shares::master::{KeyIdentity, MasterKey};
use quorate_shares::seal::Dealer;

use crate::model::node::apply::Purpose;
use crate::model::node::{Context, Daemon, Unlocked};
use crate::model::world::dice::Dice;
use crate::model::world::message::Process;

/// How long a change waits for its version to be checked by t holders.
const READY_MS: u64 = 20_000;
/// How often a change is dealt again after the committee has changed.
const TRIES: u32 = 3;

/// Who waits for a change.
#[derive(Clone, Copy)]
pub(in crate::model::node) enum ReplyTo {
    Job(u64),
    Peer(Process, u64),
}

/// A change of the keys on its way through `deal::change`.
pub(in crate::model::node) struct Making {
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

/// One batch for each open epoch, until the headers of all of them are applied.
pub(in crate::model::node) struct Opening {
    number: u64,
    term: u64,
    left: usize,
    dealers: Vec<Dealer>,
}

impl Unlocked {
    /// The first version of a key once more, and another key, as a faulty leader would deal it.
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
    /// Takes a change; the answer comes when the version is made. The client waits until it is ready.
    pub(in crate::model::node) fn take_change(
        &mut self,
        context: &mut Context<'_>,
        reply: ReplyTo,
        change: KeyChange,
    ) -> Option<PeerReply> {
        if !self.unlocked_mut().raft.leadership(context.db).am_leader {
            return Some(PeerReply::Refused(PeerRefusal::NotLeader(None)));
        }
        self.next += 1;
        let (id, since_ms) = (self.next, context.now_ms);
        self.unlocked_mut().changes.insert(id, Making { reply, change, stage: Stage::CatchUp, tries: 0, since_ms });
        self.ask_for_lease(context);
        None
    }

    /// A renewal was confirmed: every change that began before it was sent, and waited for it, goes on.
    pub(in crate::model::node) fn caught_up(&mut self, renewal: quorate_node::memory::lease::Renewal) {
        let sent_ms = renewal.sent_ms();
        let unlocked = self.unlocked_mut();
        for making in unlocked.changes.values_mut() {
            if making.stage == Stage::CatchUp && sent_ms >= making.since_ms {
                making.stage = Stage::Deal;
            }
        }
        unlocked.orders.values_mut().for_each(|order| order.caught_up(sent_ms));
        unlocked.jobs.values_mut().for_each(|job| job.caught_up(sent_ms));
    }

    /// Goes on with every change as far as it can.
    pub(in crate::model::node) fn advance_changes(&mut self, context: &mut Context<'_>) {
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

    fn stage(&mut self, id: u64, stage: Stage) {
        if let Some(making) = self.unlocked_mut().changes.get_mut(&id) {
            making.stage = stage;
        }
    }

    /// `deal::propose` and `deal`: draws a key and puts its record into the log, once a batch is open.
    fn deal(&mut self, context: &mut Context<'_>, id: u64) {
        let cluster = self.vault().identity.cluster;
        let Some(unlocked) = &mut self.unlocked else { return };
        let Some(change) = unlocked.changes.get(&id).map(|making| making.change.clone()) else { return };
        let (uid, version) = match deal::target(&unlocked.state, &change, context.dice.rng()) {
            Ok(Target::New(key_version)) => key_version,
            Ok(Target::Made(key_version)) => return self.reply(context, id, Ok(key_version)),
            Err(error) => return self.reply(context, id, Err(error)),
        };
        if !self.may_deal(context) {
            return self.give_up(context, id);
        }
        let identity = KeyIdentity { cluster, uid, version };
        let key = MasterKey::random(context.dice.rng());
        let kcv = key.kcv(&identity);
        let Some(open) = self.open_dealer(context) else {
            self.stage(id, Stage::Batch);
            return self.open_batches(context);
        };
        let records = open.deal(&key, &identity, &kcv).expect("a usable batch has room");
        let change = deal::dealt(&change, &identity, kcv, &records);
        self.stage(id, Stage::Proposed);
        if !self.propose(context, change, Purpose::Change(id)) {
            self.give_up(context, id);
        }
    }

    /// The committee changed during a change of keys: another batch, and one more try.
    pub(in crate::model::node) fn deal_again_for(&mut self, context: &mut Context<'_>, id: u64) {
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

    pub(in crate::model::node) fn give_up(&mut self, context: &mut Context<'_>, id: u64) {
        self.reply(context, id, Err(WireError::new(Code::NoQuorum, "not now")));
    }

    pub(in crate::model::node) fn reply(
        &mut self,
        context: &mut Context<'_>,
        id: u64,
        made: Result<KeyVersionId, WireError>,
    ) {
        let Some(making) = self.unlocked_mut().changes.remove(&id) else { return };
        match making.reply {
            ReplyTo::Peer(from, ask) => self.tell(
                context,
                from,
                ask,
                &PeerReply::Forwarded(made.map(|(uid, version)| ForwardedReply::Made { uid, version })),
            ),
            ReplyTo::Job(job) => self.changed(context, job, made),
        }
    }

    // -- batches

    /// Only a leader with a lease deals.
    pub(in crate::model::node) fn may_deal(&mut self, context: &Context<'_>) -> bool {
        let unlocked = self.unlocked_mut();
        unlocked.raft.leadership(context.db).am_leader && unlocked.lease.is_valid_at(context.now_ms)
    }

    /// `deal::with_open_batch`.
    pub(in crate::model::node) fn open_dealer(&mut self, context: &Context<'_>) -> Option<&mut OpenDealer> {
        let unlocked = self.unlocked_mut();
        let (leadership, open_epochs) = (unlocked.raft.leadership(context.db), unlocked.state.record_epochs());
        unlocked.dealing.as_mut().filter(|open| open.is_usable_at(&leadership, &open_epochs, context.now_ms))
    }

    /// `deal::open_batches`: the headers come before their records, one for each open epoch. The changes that wait find them open.
    pub(in crate::model::node) fn open_batches(&mut self, context: &mut Context<'_>) {
        let (cluster, me) = (self.vault().identity.cluster, self.me.node);
        let unlocked = self.unlocked_mut();
        let term = unlocked.raft.leadership(context.db).term;
        if unlocked.opening.as_ref().is_some_and(|opening| opening.term == term) {
            return;
        }
        let epochs = unlocked.state.record_epochs();
        let committees = epochs.iter().map(|&epoch| unlocked.state.committee(epoch).expect("an open epoch"));
        let dealers: Vec<_> =
            committees.map(|committee| Dealer::open(cluster, me, &committee, context.dice.rng())).collect();
        let headers: Vec<_> = dealers.iter().map(|dealer| dealer.header().encode()).collect();
        self.next += 1;
        let number = self.next;
        self.unlocked_mut().opening = Some(Opening { number, term, left: headers.len(), dealers });
        for header in headers {
            self.propose(context, Change::OpenBatch { header }, Purpose::Batch(number));
        }
    }

    /// A header is applied, or will not be.
    pub(in crate::model::node) fn batch_is_open(&mut self, context: &Context<'_>, number: u64, open: bool) {
        let unlocked = self.unlocked_mut();
        let Some(opening) = unlocked.opening.as_mut().filter(|opening| opening.number == number) else { return };
        opening.left -= 1;
        if open && opening.left > 0 {
            return;
        }
        let opening = unlocked.opening.take().expect("it was just there");
        if open {
            unlocked.dealing = Some(OpenDealer::new(opening.term, context.now_ms, opening.dealers));
        }
        let waiting = unlocked.changes.values_mut().filter(|making| making.stage == Stage::Batch);
        waiting.for_each(|making| making.stage = Stage::Deal);
    }

    /// `Keys::close_batch_if_over`.
    pub(in crate::model::node) fn close_batch_if_over(&mut self, context: &Context<'_>) {
        let unlocked = self.unlocked_mut();
        let (leadership, open_epochs) = (unlocked.raft.leadership(context.db), unlocked.state.record_epochs());
        let leased = unlocked.lease.is_valid_at(context.now_ms);
        unlocked.dealing.take_if(|open| !leased || !open.is_usable_at(&leadership, &open_epochs, context.now_ms));
        unlocked.opening.take_if(|opening| !leadership.am_leader || opening.term != leadership.term);
    }
}
