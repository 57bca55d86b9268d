//! Opening the lock of this node, and the keys that it holds for those of others: `unlock` and `unlock::give_piece`.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_node::base::phase::Phase;

use quorate_node::cluster::leader::{ActiveSince, JoinerSeen};
use quorate_node::lock::held::GRACE_TICK_S;
use quorate_node::lock::unlock;
use quorate_node::memory::checked::Checked;
use quorate_node::memory::holder::Holder;
use quorate_node::memory::keyring::Roots;
use quorate_node::memory::lease::Lease;
use quorate_node::messages::peer::{LockState, PeerRefusal, PeerReply};
use quorate_node::vault::RosterLogId;
use quorate_node::vault::lock_keys;
use quorate_raft::idle::Idlers;
use quorate_raft::rows::RowKey;
use quorate_raft::state::State;
use quorate_shares::lock::{
    Lock, LockOpenCode, LockOpenReply, LockOpenRequest, LockParams, PinPlace, RosterPosition, open_piece,
};

use crate::model::node::cluster::leader::Step;
use crate::model::node::keys::verify::Tally;
use crate::model::node::{Asked, Context, Daemon, KEY_AGE_MS, KEY_IDLE_MS, Killed, Unlocked, share_keys};
use crate::model::raft::Raft;
use crate::model::world::disk::Image;
use crate::model::world::message::{Body, Process, To, exported};

impl Daemon {
    /// `unlock::gather_pieces`: asks every peer that has not given its piece yet; once a peer says that this node was revoked, it
    /// also asks those that have given theirs.
    pub(in crate::model::node) fn ask_for_pieces(&mut self, context: &mut Context<'_>) {
        let Some(lock) = self.vault().lock.clone() else { return };
        let params = self.params(&lock);
        for piece in lock.pieces() {
            let waits = |asked: &Asked| matches!(asked, Asked::LockOpen(request) if request.to == piece.peer);
            let given = self.attestations.is_empty() && self.pieces.contains_key(&piece.x);
            if given || self.asked.values().any(|(_, asked)| waits(asked)) {
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

    /// `unlock::give_piece` and `decide`, without sessions: a copy of a living node is not in the model.
    pub(in crate::model::node) fn answer_lock_open(
        &mut self,
        context: &mut Context<'_>,
        from: Process,
        id: u64,
        bytes: &[u8],
    ) {
        let request = LockOpenRequest::parse(bytes).expect("it was encoded by a node");
        let roster = &self.vault().roster;
        let misdirected = request.cluster != self.vault().identity.cluster || request.to != self.me.node;
        let turned_away = unlock::turned_away(roster, request.from, &context.watch.boot_pk(from.node));
        let piece = match turned_away.or_else(|| misdirected.then_some(LockOpenCode::Denied)) {
            Some(code) => Err(code),
            None => lock_keys::seed_for(self.vault(), &request)
                .map_err(|_| LockOpenCode::StaleGeneration)
                .and_then(|seed| open_piece(&seed, &request).map_err(|_| LockOpenCode::StaleGeneration)),
        };
        let position = unlock::roster_position(roster);
        if piece.is_ok() {
            context.watch.piece_leaves(self.me.node, &request, context.db.now());
        }
        let reply = match piece {
            Ok(piece) => LockOpenReply::grant(position, &piece, &exported(&request.hash(), from, self.me)),
            Err(code) => LockOpenReply::refuse(code, position).expect("it is a refusal"),
        };
        self.send(context, To::Process(from), Body::LockOpened(id, Arc::new(reply.encode())));
    }

    pub(in crate::model::node) fn take_piece(
        &mut self,
        context: &mut Context<'_>,
        from: Process,
        id: u64,
        bytes: &[u8],
    ) {
        let Some((_, Asked::LockOpen(request))) = self.asked.remove(&id) else { return };
        let reply = LockOpenReply::parse(bytes).expect("it was encoded by a node");
        match reply.code() {
            LockOpenCode::StaleGeneration if !context.watch.is_former(self.me.node) => {
                return context.watch.broken("a node whose disk never went back is told that it is stale");
            }
            LockOpenCode::Revoked => {
                let RosterPosition { term, leader, index } = reply.roster();
                self.hear_of_revocation(from.node, RosterLogId { term, leader: leader.0, index });
            }
            _ => {}
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

    /// `boot::unlock_and_open`: the state from its rows, and Raft.
    pub(in crate::model::node) fn open(&mut self, context: &mut Context<'_>, bundle: quorate_shares::lock::Bundle) {
        let state = restore(context.db.now());
        context.watch.restored(self.me.node, context.db.now().applied, &state);
        let applied = context.db.now().applied;
        let raft = Raft::new(self.me.node, applied, context.now_ms, context.dice);
        let holder = Holder::new(self.vault().identity.cluster, self.me.node, share_keys(&bundle));
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
            opening: None,
            proposals: BTreeMap::new(),
            changes: BTreeMap::new(),
            orders: BTreeMap::new(),
            jobs: BTreeMap::new(),
            loads: BTreeMap::new(),
            resharing: None,
            checked: Checked::default(),
            step: Step::default(),
            joiner: JoinerSeen::default(),
            idlers: Idlers::default(),
            serving: ActiveSince::default(),
            members_changed: true,
            tally: Tally::default(),
            renewal_under_way: None,
            renewed_ms: 0,
            reported_ms: 0,
            sent_shares: BTreeMap::new(),
        });
    }

    /// `held::keep`: this process counts its own running time.
    pub(in crate::model::node) fn grace(&mut self, context: &mut Context<'_>) -> Result<(), Killed> {
        if context.now_ms < self.graced_ms + u64::from(GRACE_TICK_S) * 1_000 {
            return Ok(());
        }
        self.graced_ms = context.now_ms;
        if lock_keys::owes_erasure(self.vault()) {
            context.watch.grace_granted(self.me.node, GRACE_TICK_S);
            self.vault.update(|vault| lock_keys::tick(vault, GRACE_TICK_S)).map_err(|_| Killed)?;
        }
        if self.vault().founding.is_none() && self.phase != Phase::Revoked {
            self.tell_commit(context);
        }
        Ok(())
    }

    /// `held::prepare`: the key is durable before its public half leaves.
    pub(in crate::model::node) fn answer_prepare(
        &mut self,
        context: &mut Context<'_>,
        from: Process,
        durable: LockState,
    ) -> Result<PeerReply, Killed> {
        let rng = context.dice.rng();
        let offered =
            self.vault.update(|vault| lock_keys::prepare(vault, from.node, durable, rng)).map_err(|_| Killed)?;
        Ok(match offered {
            Ok((key_number, public)) => {
                context.watch.lock_key_leaves(self.me.node, from.node, key_number, &public);
                PeerReply::LockKey { key_number, public: public.as_bytes().to_vec().into() }
            }
            Err(lock_keys::Busy) => PeerReply::Refused(PeerRefusal::Busy),
        })
    }

    pub(in crate::model::node) fn answer_commit(
        &mut self,
        context: &mut Context<'_>,
        from: Process,
        durable: LockState,
    ) -> Result<PeerReply, Killed> {
        self.vault.update(|vault| lock_keys::commit(vault, from.node, durable)).map_err(|_| Killed)?;
        context.watch.generation_reported(self.me.node, from.node, durable.generation);
        Ok(PeerReply::Done)
    }
}

/// The live state, as a restart reads it.
fn restore(image: &Image) -> State {
    let mut state = State::default();
    for (key, value) in &image.rows {
        let key = RowKey::parse(key).expect("only rows are written");
        if !matches!(key, RowKey::Header(_) | RowKey::Record(..)) {
            state.restore_row(key, value).expect("a written row can be read");
        }
    }
    state.restored().expect("every key has its versions")
}
