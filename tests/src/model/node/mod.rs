//! One node: the pure parts of the daemon, with a shell that runs them in virtual time.
//!
//! What decides is the program's: `apply` and `plan::next`, `phase::answers`, [`Lease`], [`Roots`], `lock_keys`, `Holder`,
//! `Quorum`, `deal`, `reconstruct::is_entitled`, `verify::reached`. The shell stands in for the daemon's tasks: it keeps
//! the order of their steps, not their code. Each place names the function that it stands in for. An error of a vault write ends the process, as in the daemon.

mod apply;
mod cluster;
mod joining;
mod keys;
mod lease_renewal;
mod locks;
mod serve;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quorate_node::base::phase::{self, Phase, RequestClass};
use quorate_node::cluster::leader::{ActiveSince, JoinerSeen};
use quorate_node::lease::renewal as node_confirm;
use quorate_node::memory::checked::Checked;
use quorate_node::memory::dealer::OpenDealer;
use quorate_node::memory::holder::{Holder, Source};
use quorate_node::memory::keyring::Roots;
use quorate_node::memory::lease::{Lease, Renewal};
use quorate_node::messages::peer::{self, ForwardedReply, ForwardedRequest, PeerRefusal, PeerReply, PeerRequest};
use quorate_node::vault::{Vault, VaultError, VaultFile};
use quorate_raft::ReadError;
use quorate_raft::idle::Idlers;
use quorate_raft::rows::RowKey;
use quorate_raft::state::State;
use quorate_shares::ids::{BatchId, Epoch, KeyUid, KeyVersion, NodeId, ShareKeyGeneration};
use quorate_shares::lock::Bundle;
use quorate_shares::secret::Secret;

use self::cluster::leader::Step;
use self::cluster::orders;
use self::keys::verify::Tally;
use self::keys::{deal, reconstruct, reshare};
use self::locks::renewal;
use crate::model::invariants::Watch;
use crate::model::raft::Raft;
use crate::model::world::dice::Dice;
use crate::model::world::disk::{Database, Image, VaultDisk};
use crate::model::world::message::{Answer, Body, Message, Process, To};

/// The daemon's defaults; the model's elections are slower, so that one of them can cost a lease.
pub(super) const LEASE: Duration = Duration::from_millis(3_000);
pub(super) const LEASE_TICK_MS: u64 = 1_000;
pub(super) const WIPE_AFTER_MS: u64 = 10_000;
const KEY_IDLE_MS: u64 = 15_000;
const KEY_AGE_MS: u64 = 60_000;
/// How long an answer of a peer is waited for.
const PATIENCE_MS: u64 = 1_000;
/// How long a forwarded change may take at the leader.
const FORWARD_MS: u64 = 30_000;

/// The process was killed in the middle of a write.
pub(super) struct Killed;

/// What the shell hands to a node for the length of one event.
pub(super) struct Context<'a> {
    /// The machine's clock, which runs while the machine sleeps.
    pub(super) now_ms: u64,
    /// Another, which stands still while the machine sleeps: the timers of the daemon's tasks run on it.
    pub(super) awake_ms: u64,
    pub(super) dice: &'a mut Dice,
    pub(super) db: &'a mut Database,
    pub(super) watch: &'a mut Watch,
    /// This holder sends wrong shares.
    pub(super) lies: bool,
    pub(super) out: Vec<Out>,
}

/// What a node does to the world.
pub(super) enum Out {
    Send(Message),
    /// The answer to a client is ready: the last look at the lease comes after a moment, and the network after another.
    Finish(u64),
    Answer(u64, Box<Answer>),
}

/// A question to a peer that is not answered yet.
enum Asked {
    Lease(Renewal),
    Shares(u64, Arc<Vec<u8>>),
    Verify(NodeId, Epoch),
    AckEpoch(NodeId, Epoch),
    Report(NodeId, Epoch),
    Prepare(NodeId),
    Change(u64),
    Order(u64),
    LockOpen(Box<quorate_shares::lock::LockOpenRequest>),
    Terms,
    FirstKey(NodeId),
    Nothing,
}

/// A process of the daemon, locked or unlocked.
pub(super) struct Daemon {
    pub(super) me: Process,
    pub(super) phase: Phase,
    boot_nonce: [u8; 32],
    vault: VaultFile<VaultDisk>,
    pieces: BTreeMap<u8, Secret<32>>,
    sessions: BTreeMap<NodeId, sessions::Session>,
    greeted_ms: u64,
    /// Former members whose op keys this process knows, to tell them so.
    gone: BTreeSet<NodeId>,
    /// The peers that said that this node was revoked.
    attestations: BTreeSet<NodeId>,
    revoked: bool,
    roster_updated_ms: u64,
    announced_ms: u64,
    joining: Option<joining::Joining>,
    pub(super) unlocked: Option<Unlocked>,
    asked: BTreeMap<u64, (u64, Asked)>,
    next: u64,
    graced_ms: u64,
}

/// What a node has in memory once its bundle is open.
pub(super) struct Unlocked {
    bundle: Bundle,
    holder: Holder,
    pub(super) state: State,
    pub(super) raft: Raft,
    pub(super) lease: Lease,
    pub(super) roots: Roots,
    /// Questions for a lease that are confirmed, and wait for an index to be applied.
    confirming: Vec<(u64, Renewal, u64)>,
    asked_lease_ms: u64,
    own_reads: BTreeMap<u64, Renewal>,
    dealing: Option<OpenDealer>,
    /// Batches whose headers are on their way into the log.
    opening: Option<deal::Opening>,
    proposals: BTreeMap<u64, (u64, apply::Purpose)>,
    changes: BTreeMap<u64, deal::Making>,
    orders: BTreeMap<u64, orders::RunningOrder>,
    jobs: BTreeMap<u64, serve::Job>,
    loads: BTreeMap<u64, reconstruct::Load>,
    resharing: Option<reshare::Resharing>,
    checked: Checked,
    step: Step,
    joiner: JoinerSeen,
    idlers: Idlers,
    serving: ActiveSince,
    /// Something was applied that the roster follows.
    members_changed: bool,
    tally: Tally,
    renewal_under_way: Option<renewal::Renewal>,
    renewed_ms: u64,
    reported_ms: u64,
    sent_shares: BTreeMap<Process, u64>,
}

/// The replica as a holder reads it.
pub(super) struct Replica<'a>(pub(super) &'a State, pub(super) &'a Image);

impl Source for Replica<'_> {
    fn state<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(self.0)
    }

    fn record(&self, uid: KeyUid, version: KeyVersion, epoch: Epoch) -> Result<Option<Vec<u8>>, ReadError> {
        Ok(self.1.row(RowKey::Record(uid, version, epoch)))
    }

    fn batch(&self, batch: BatchId) -> Result<Option<Vec<u8>>, ReadError> {
        Ok(self.1.row(RowKey::Header(batch)))
    }
}

impl Daemon {
    /// The process starts: `boot::run` up to the phase Locked. It may be killed while it mends its vault.
    /// Without a lock it has nothing but the keys that it drew.
    pub(super) fn start(
        me: Process,
        disk: VaultDisk,
        drawn: Option<Bundle>,
        now_ms: u64,
        dice: &mut Dice,
    ) -> Result<Self, Killed> {
        let vault = VaultFile::open_on(disk).map_err(|error| {
            assert!(matches!(error, VaultError::Io { .. }), "no crash costs the vault: {error}");
            Killed
        })?;
        assert_eq!(vault.current().identity.node, Some(me.node), "the vault is that of another node");
        let phase = match &drawn {
            _ if vault.current().flags.revoked => Phase::Revoked,
            Some(_) => Phase::Joining,
            None => Phase::Locked,
        };
        Ok(Self {
            me,
            phase,
            boot_nonce: dice.bytes(),
            vault,
            pieces: BTreeMap::new(),
            sessions: BTreeMap::new(),
            greeted_ms: 0,
            gone: BTreeSet::new(),
            attestations: BTreeSet::new(),
            revoked: false,
            roster_updated_ms: 0,
            announced_ms: 0,
            joining: drawn.map(joining::Joining::with),
            unlocked: None,
            asked: BTreeMap::new(),
            next: 0,
            graced_ms: now_ms,
        })
    }

    pub(super) fn vault(&self) -> &Vault {
        self.vault.current()
    }

    fn peers(&self) -> Vec<NodeId> {
        let members = &self.vault().roster.members;
        members.iter().map(|member| member.node).filter(|&peer| peer != self.me.node).collect()
    }

    /// The door of `serve` and `service::member`: one message off the network.
    pub(super) fn receive(&mut self, context: &mut Context<'_>, message: Message) -> Result<(), Killed> {
        match (message.body, message.from) {
            (Body::LockOpen(id, request), Some(from)) if phase::answers(self.phase, RequestClass::LockOpen) => {
                self.answer_lock_open(context, from, id, &request);
            }
            (Body::LockOpened(id, reply), Some(from)) => self.take_piece(context, from, id, &reply),
            (Body::Raft(message), Some(from)) if self.accepts_from(from, context.now_ms) => {
                self.hear_raft(context, from.node, message)?;
            }
            (Body::Ask(id, request), Some(from)) if phase::answers(self.phase, RequestClass::Peer) => {
                let reply = self.answer(context, from, id, &request)?;
                if let Some(reply) = reply {
                    self.tell(context, from, id, &reply);
                }
            }
            (Body::Tell(id, reply), Some(from)) => self.hear(context, from, id, &reply)?,
            (Body::Request(client, request), None) => self.take_request(context, client, &request),
            _ => {}
        }
        self.after_event(context)
    }

    /// What the daemon's tasks do in their own time.
    pub(super) fn tick(&mut self, context: &mut Context<'_>) -> Result<(), Killed> {
        self.asked.retain(|_, (until_ms, _)| context.awake_ms < *until_ms);
        self.grace(context)?;
        if self.phase == Phase::Revoked {
            return Ok(());
        }
        if self.joining.is_some() {
            return self.tick_joining(context);
        }
        if self.unlocked.is_none() {
            self.ask_for_pieces(context);
            return Ok(());
        }
        if self.vault().founding.is_some() {
            return self.tick_announcing(context);
        }
        self.greet(context);
        self.tick_raft(context)?;
        self.watch_lease(context);
        self.lead(context)?;
        self.report_lock(context);
        self.keep_lock_fresh(context)?;
        self.erase_former()?;
        self.look_after_work(context);
        self.after_event(context)
    }

    /// After every event: consensus sends its messages, entries are applied, and everything that waited for them goes on.
    fn after_event(&mut self, context: &mut Context<'_>) -> Result<(), Killed> {
        self.apply_committed(context)?;
        self.update_roster(context)?;
        if self.revoked {
            return self.stay_revoked();
        }
        self.take_confirmations(context);
        self.settle_phase(context.now_ms);
        self.advance_changes(context);
        self.advance_orders(context);
        self.advance_reshare(context);
        self.advance_jobs(context);
        self.speak(context);
        Ok(())
    }

    /// Messages of consensus go to every node that this one has a session with.
    fn speak(&mut self, context: &mut Context<'_>) {
        let Some(unlocked) = &mut self.unlocked else { return };
        for (to, body) in std::mem::take(&mut unlocked.raft.out) {
            context.watch.raft_leaves(self.me.node, to, &body, context.db.durable());
            if let Some(to) = self.session_with(to, context.now_ms) {
                context.watch.accepted_from(self.me.node, to.node, context.db.now());
                self.send(context, To::Process(to), Body::Raft(body));
            }
        }
    }

    pub(super) fn settle_phase(&mut self, now_ms: u64) {
        if let Some(unlocked) = &self.unlocked {
            self.phase = phase::settled(self.phase, false, unlocked.lease.is_valid_at(now_ms));
        }
    }

    fn answer(
        &mut self,
        context: &mut Context<'_>,
        from: Process,
        id: u64,
        body: &[u8],
    ) -> Result<Option<PeerReply>, Killed> {
        let request: PeerRequest = peer::decode(body).expect("it was encoded by a member");
        let refused = |refusal| Some(PeerReply::Refused(refusal));
        if let PeerRequest::Hello(hello) = request {
            return Ok(self.accept_hello(context, from, &hello));
        }
        if !self.hears(from, context.now_ms) {
            let told = self.turned_away(from.node).unwrap_or(PeerRefusal::NoHello);
            return Ok(refused(told));
        }
        let of_locks = matches!(request, PeerRequest::LockPrepare(_) | PeerRequest::LockCommit(_));
        if self.unlocked.is_none() && !of_locks {
            return Ok(refused(PeerRefusal::Phase(self.phase)));
        }
        Ok(match request {
            PeerRequest::FoundingTerms => Some(self.terms()),
            PeerRequest::Lease => self.answer_lease(context, from, id),
            PeerRequest::Shares(request) => Some(self.answer_shares(context, from, &request, body)),
            PeerRequest::Verify(request) => Some(self.answer_verify(context, &request)),
            PeerRequest::AckEpoch { epoch, index } => Some(self.answer_ack(context, epoch, index)),
            PeerRequest::LockPrepare(durable) => Some(self.answer_prepare(context, from, durable)?),
            PeerRequest::LockCommit(durable) => Some(self.answer_commit(context, from, durable)?),
            PeerRequest::Report => Some(self.report()),
            PeerRequest::Propose(command) => Some(self.answer_propose(context, from.node, *command)),
            PeerRequest::Forwarded(forwarded) => match forwarded.request {
                ForwardedRequest::Change(change) => self.take_change(context, deal::ReplyTo::Peer(from, id), change),
                ForwardedRequest::Order(order) => self.take_order(context, deal::ReplyTo::Peer(from, id), order),
                _ => refused(PeerRefusal::Malformed),
            },
            _ => refused(PeerRefusal::Malformed),
        })
    }

    fn hear(&mut self, context: &mut Context<'_>, from: Process, id: u64, body: &[u8]) -> Result<(), Killed> {
        let reply: PeerReply = peer::decode(body).expect("it was encoded by a member");
        if let PeerReply::Hello(_) = reply {
            self.begin_session(context, from);
            return Ok(());
        }
        if let PeerReply::Refused(PeerRefusal::Revoked(place)) = reply {
            self.hear_of_revocation(from.node, place.into());
        }
        let Some((_, asked)) = self.asked.remove(&id) else { return Ok(()) };
        match (asked, reply) {
            (Asked::Lease(renewal), PeerReply::Lease { index }) => {
                self.unlocked_mut().confirming.push((id, renewal, index));
            }
            (Asked::Shares(load, request), PeerReply::Shares(shares)) => {
                self.take_shares(context, from, load, &request, &shares);
            }
            (Asked::Verify(holder, epoch), PeerReply::Verified(versions)) => self.count(holder, epoch, &versions),
            (Asked::AckEpoch(holder, epoch), PeerReply::EpochAck { reshared }) => {
                self.note_ack(context, holder, epoch, reshared);
            }
            (Asked::Report(member, active), PeerReply::Report(report)) if report.epoch >= active => {
                self.knows(context, member, active);
            }
            (Asked::Prepare(peer), PeerReply::LockKey { key_number, public }) => {
                self.take_lock_key(context, peer, key_number, &public)?;
            }
            (Asked::Terms, PeerReply::FoundingTerms { threshold }) => self.take_terms(context, threshold)?,
            (Asked::FirstKey(peer), PeerReply::LockKey { key_number, public }) => {
                self.take_first_key(context, peer, key_number, &public)?;
            }
            (Asked::Change(job), PeerReply::Forwarded(Ok(ForwardedReply::Made { uid, version }))) => {
                self.changed(context, job, Ok((uid, version)));
            }
            (Asked::Order(job), PeerReply::Forwarded(Ok(ForwardedReply::Begun { operation }))) => {
                self.operated(context, job, Ok(operation));
            }
            (Asked::Change(job), PeerReply::Forwarded(Err(error))) => self.changed(context, job, Err(error)),
            (Asked::Order(job), PeerReply::Forwarded(Err(error))) => self.operated(context, job, Err(error)),
            (Asked::Change(job) | Asked::Order(job), _) => self.refuse_job(context, job),
            _ => {}
        }
        Ok(())
    }

    fn ask(&mut self, context: &mut Context<'_>, to: NodeId, request: &PeerRequest, asked: Asked) -> u64 {
        let body = Arc::new(peer::encode(request));
        let asked = match asked {
            Asked::Shares(load, _) => Asked::Shares(load, Arc::clone(&body)),
            other => other,
        };
        let id = self.remember(context.awake_ms, asked);
        if let Some(to) = self.session_with(to, context.now_ms) {
            self.send(context, To::Process(to), Body::Ask(id, body));
        }
        id
    }

    fn remember(&mut self, awake_ms: u64, asked: Asked) -> u64 {
        self.next += 1;
        let patience_ms = if matches!(asked, Asked::Change(_) | Asked::Order(_)) { FORWARD_MS } else { PATIENCE_MS };
        self.asked.insert(self.next, (awake_ms + patience_ms, asked));
        self.next
    }

    fn tell(&self, context: &mut Context<'_>, to: Process, id: u64, reply: &PeerReply) {
        self.send(context, To::Process(to), Body::Tell(id, Arc::new(peer::encode(reply))));
    }

    fn send(&self, context: &mut Context<'_>, to: To, body: Body) {
        context.out.push(Out::Send(Message { from: Some(self.me), to, body }));
    }

    fn accepts_from(&mut self, from: Process, now_ms: u64) -> bool {
        phase::answers(self.phase, RequestClass::Peer) && self.hears(from, now_ms)
    }

    fn unlocked_mut(&mut self) -> &mut Unlocked {
        self.unlocked.as_mut().expect("only an unlocked node asks its peers")
    }

    fn is_seated(&self) -> bool {
        self.unlocked.as_ref().is_some_and(|unlocked| node_confirm::is_seated(&unlocked.state, self.me.node))
    }
}

/// The share keys of a bundle, as a holder takes them.
pub(super) fn share_keys(bundle: &Bundle) -> Vec<(ShareKeyGeneration, Secret<32>)> {
    bundle.share_keys.iter().map(|key| (key.generation, key.seed.duplicate())).collect()
}

impl Unlocked {
    fn active_epoch(&self) -> Option<Epoch> {
        self.state.active().map(|epoch| epoch.epoch)
    }
}
