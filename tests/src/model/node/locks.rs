//! The lock of this node and the keys that it holds for those of others: `unlock`, `locking` and the tasks around them.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_node::holder::Holder;
use quorate_node::keyring::Roots;
use quorate_node::lease::Lease;
use quorate_node::lock_keys;
use quorate_node::peer::{LockState, PeerReply, PeerRequest, Refusal};
use quorate_node::phase::Phase;
use quorate_raft::command::{Change, Command};
use quorate_raft::rows::RowKey;
use quorate_raft::state::State;
use quorate_shares::ids::NodeId;
use quorate_shares::kem::PublicKey;
use quorate_shares::lock::{
    Lock, LockOpenCode, LockOpenReply, LockOpenRequest, LockParams, LockPeer, PinPlace, RosterPosition, open_piece,
};

use super::{Asked, Context, Daemon, KEY_AGE_MS, KEY_IDLE_MS, Killed, Unlocked, lead};
use crate::model::disk::Image;
use crate::model::message::{Body, Process, To, exported};
use crate::model::raft::Raft;

/// How often lock keys in their grace are looked after, in seconds, as in `boot`.
const GRACE_TICK_S: u16 = 10;
/// A node renews its lock now and then: once in so many ticks.
const ROTATION_IN: u64 = 30;

/// A renewal of this node's lock that waits for keys from its peers.
pub(super) struct Rotation {
    until_ms: u64,
    keys: BTreeMap<NodeId, LockPeer>,
}

impl Daemon {
    /// `unlock::gather_pieces`: asks every peer that has not given its piece yet.
    pub(super) fn ask_for_pieces(&mut self, context: &mut Context<'_>) {
        let Some(lock) = self.vault().lock.clone() else { return };
        let params = self.params(&lock);
        for piece in lock.pieces() {
            let waits = |asked: &Asked| matches!(asked, Asked::LockOpen(request) if request.to == piece.peer);
            if self.pieces.contains_key(&piece.x) || self.asked.values().any(|(_, asked)| waits(asked)) {
                continue;
            }
            let request = lock.request(&params, piece.peer, self.boot_nonce).expect("the lock names this peer");
            let bytes = Arc::new(request.encode());
            let id = self.remember(context.awake_ms, Asked::LockOpen(Box::new(request)));
            self.send(context, To::Node(piece.peer), Body::LockOpen(id, bytes));
        }
    }

    fn params(&self, lock: &Lock) -> LockParams {
        LockParams { cluster: self.vault().identity.cluster, node: self.me.node, generation: lock.generation() }
    }

    /// `unlock::answer` and `decide`, without sessions: a copy of a living node is not in the model.
    pub(super) fn answer_lock_open(&mut self, context: &mut Context<'_>, from: Process, id: u64, bytes: &[u8]) {
        let request = LockOpenRequest::parse(bytes).expect("it was encoded by a node");
        let stranger = self.vault().roster.member(request.from).is_none_or(|member| member.node != from.node);
        let misdirected = request.cluster != self.vault().identity.cluster || request.to != self.me.node;
        let piece = match stranger || misdirected {
            true => Err(LockOpenCode::Denied),
            false => lock_keys::seed_for(self.vault(), &request)
                .map_err(|_| LockOpenCode::StaleGeneration)
                .and_then(|seed| open_piece(&seed, &request).map_err(|_| LockOpenCode::StaleGeneration)),
        };
        let position = RosterPosition::default();
        if piece.is_ok() {
            context.watch.piece_leaves(self.me.node, &request);
        }
        let reply = match piece {
            Ok(piece) => LockOpenReply::grant(position, &piece, &exported(&request.hash(), from, self.me)),
            Err(code) => LockOpenReply::refuse(code, position).expect("it is a refusal"),
        };
        self.send(context, To::Process(from), Body::LockOpened(id, Arc::new(reply.encode())));
    }

    pub(super) fn take_piece(&mut self, context: &mut Context<'_>, from: Process, id: u64, bytes: &[u8]) {
        let Some((_, Asked::LockOpen(request))) = self.asked.remove(&id) else { return };
        let reply = LockOpenReply::parse(bytes).expect("it was encoded by a node");
        if reply.code() == LockOpenCode::StaleGeneration {
            context.watch.broken("a node whose disk never went back is told that it is stale");
        }
        let Ok(piece) = reply.open(&exported(&request.hash(), from, self.me)) else { return };
        self.pieces.insert(request.x, piece);
        let Some(lock) = self.vault().lock.clone() else { return };
        if self.unlocked.is_some() || self.pieces.len() < usize::from(lock.needed()) {
            return;
        }
        let PinPlace::Inline(pin) = lock.pin() else { return };
        let pieces: Vec<_> = std::mem::take(&mut self.pieces).into_iter().take(lock.needed().into()).collect();
        let bundle = lock.open(&self.params(&lock), &pieces, pin).expect("honest pieces open an honest lock");
        self.open(context, bundle);
    }

    /// `boot::open_replica`: the state from its rows, and Raft.
    fn open(&mut self, context: &mut Context<'_>, bundle: quorate_shares::lock::Bundle) {
        let state = restore(context.db.now());
        context.watch.restored(self.me.node, context.db.now().applied, &state);
        let members: Vec<NodeId> = self.vault().roster.members.iter().map(|member| member.node).collect();
        let applied = context.db.now().applied;
        let raft = Raft::new(self.me.node, &members, applied, context.now_ms, context.dice);
        let keys = bundle.share_keys.iter().map(|key| (key.generation, key.seed.duplicate())).collect();
        let holder = Holder::new(self.vault().identity.cluster, self.me.node, keys);
        self.phase = Phase::Open;
        self.unlocked = Some(Unlocked {
            bundle,
            holder,
            state,
            raft,
            lease: Lease::default(),
            roots: Roots::new(KEY_IDLE_MS, KEY_AGE_MS),
            confirming: Vec::new(),
            asked_lease_ms: 0,
            own_reads: BTreeMap::new(),
            dealing: None,
            proposals: BTreeMap::new(),
            changes: BTreeMap::new(),
            jobs: BTreeMap::new(),
            loads: BTreeMap::new(),
            tally: lead::Step::default(),
            rotation: None,
            reported_ms: 0,
            sent_shares: BTreeMap::new(),
        });
    }

    /// `boot::erase_old_lock_keys`: this process counts its own running time.
    pub(super) fn grace(&mut self, context: &mut Context<'_>) -> Result<(), Killed> {
        if context.now_ms < self.graced_ms + u64::from(GRACE_TICK_S) * 1_000 {
            return Ok(());
        }
        self.graced_ms = context.now_ms;
        if lock_keys::owes_erasure(self.vault()) {
            context.watch.graced(self.me.node, GRACE_TICK_S);
            self.vault.update(|vault| lock_keys::tick(vault, GRACE_TICK_S)).map_err(|_| Killed)?;
        }
        Ok(())
    }

    /// `locking::prepare`: now and then, a key for the next lock from every peer.
    pub(super) fn rotate_lock(&mut self, context: &mut Context<'_>) -> Result<(), Killed> {
        let now_ms = context.now_ms;
        let rotation = &mut self.unlocked_mut().rotation;
        if let Some(Rotation { keys, .. }) = rotation.take_if(|rotation| now_ms >= rotation.until_ms) {
            return self.renew_lock(context, keys);
        }
        if rotation.is_some() || context.dice.below(ROTATION_IN) != 0 {
            return Ok(());
        }
        *rotation = Some(Rotation { until_ms: now_ms + 3_000, keys: BTreeMap::new() });
        for peer in self.peers() {
            let request = PeerRequest::LockPrepare(lock_keys::durable(self.vault(), peer));
            self.ask(context, peer, &request, Asked::Prepare(peer));
        }
        Ok(())
    }

    /// An answer to PREP. Once every peer has given a key, there is nothing more to wait for.
    pub(super) fn take_lock_key(
        &mut self,
        context: &mut Context<'_>,
        peer: NodeId,
        key_number: u64,
        public: &[u8],
    ) -> Result<(), Killed> {
        let peers = self.peers();
        let public_key = PublicKey::parse(public).expect("a member sends a key");
        let unlocked = self.unlocked_mut();
        let Some(rotation) = &mut unlocked.rotation else { return Ok(()) };
        rotation.keys.insert(peer, LockPeer { peer, key_number, public_key });
        if rotation.keys.len() < peers.len() {
            return Ok(());
        }
        let keys = std::mem::take(&mut rotation.keys);
        unlocked.rotation = None;
        self.renew_lock(context, keys)
    }

    /// `locking::renew`, with what the peers have offered: for one that was silent the key that the last lock names.
    fn renew_lock(&mut self, context: &mut Context<'_>, mut keys: BTreeMap<NodeId, LockPeer>) -> Result<(), Killed> {
        let peers = self.peers();
        if keys.is_empty() {
            return Ok(());
        }
        let offered = peers.iter().map(|&peer| (peer, keys.remove(&peer))).collect();
        let Some(last) = self.vault().lock.clone() else { return Ok(()) };
        let Some(keys) = lock_keys::named(&last, offered, |_| false) else { return Ok(()) };
        let unlocked = self.unlocked_mut();
        let Some(threshold) = unlocked.state.cluster.as_ref().map(|cluster| cluster.threshold) else { return Ok(()) };
        let bundle = unlocked.bundle.duplicate();
        let whose = (self.vault().identity.cluster, self.me.node);
        let (place, pin) = lock_keys::inline_pin(context.dice.rng());
        let lock =
            lock_keys::next_lock(Some(&last), whose, threshold, &keys, (place, &pin), &bundle, context.dice.rng());
        let lock = lock.expect("every peer is named once");
        context.watch.lock_made(self.me.node, &lock);
        self.vault.update(|vault| vault.lock = Some(lock)).map_err(|_| Killed)?;
        for peer in peers {
            let request = PeerRequest::LockCommit(lock_keys::durable(self.vault(), peer));
            self.ask(context, peer, &request, Asked::Nothing);
        }
        Ok(())
    }

    /// `answer::prepare_lock`: the key is durable before its public half leaves.
    pub(super) fn answer_prepare(
        &mut self,
        context: &mut Context<'_>,
        from: Process,
        durable: LockState,
    ) -> Result<PeerReply, Killed> {
        let rng = context.dice.rng();
        let offered =
            self.vault.update(|vault| lock_keys::prepare(vault, from.node, durable, rng)).map_err(|_| Killed)?;
        Ok(match offered {
            Ok((keyno, public)) => {
                context.watch.lock_key_leaves(self.me.node, from.node, keyno, &public);
                PeerReply::LockKey { keyno, public: public.as_bytes().to_vec().into() }
            }
            Err(lock_keys::Busy) => PeerReply::Refused(Refusal::Busy),
        })
    }

    pub(super) fn answer_commit(
        &mut self,
        context: &mut Context<'_>,
        from: Process,
        durable: LockState,
    ) -> Result<PeerReply, Killed> {
        self.vault.update(|vault| lock_keys::commit(vault, from.node, durable)).map_err(|_| Killed)?;
        context.watch.told(self.me.node, from.node, durable.generation);
        Ok(PeerReply::Done)
    }

    /// `locking::report`.
    pub(super) fn report_lock(&mut self, context: &mut Context<'_>) {
        let (me, now_ms) = (self.me.node, context.now_ms);
        let Some(bundle) = self.unlocked.as_ref().map(|unlocked| &unlocked.bundle) else { return };
        let Some(report) = lock_keys::report(self.vault(), me, bundle, self.vault.writes()) else { return };
        let unlocked = self.unlocked_mut();
        if lock_keys::is_known(unlocked.state.locks.get(&me), &report)
            || unlocked.state.cluster.is_none()
            || now_ms < unlocked.reported_ms + 1_000
        {
            return;
        }
        unlocked.reported_ms = now_ms;
        let command = Command::new(context.watch.wall_ms, Change::ReportLock(report));
        let leadership = unlocked.raft.leadership(context.db);
        match leadership.leader {
            Some(_) if leadership.am_leader => drop(unlocked.raft.propose(context.db, command, now_ms)),
            Some(leader) => drop(self.ask(context, leader, &PeerRequest::Propose(Box::new(command)), Asked::Nothing)),
            None => {}
        }
    }
}

/// The live state, as a restart reads it.
pub(in crate::model) fn restore(image: &Image) -> State {
    let mut state = State::default();
    for (key, value) in &image.rows {
        let key = RowKey::parse(key).expect("only rows are written");
        if !matches!(key, RowKey::Header(_) | RowKey::Record(..)) {
            state.restore_row(key, value).expect("a written row can be read");
        }
    }
    state.restored().expect("every key has its versions")
}
