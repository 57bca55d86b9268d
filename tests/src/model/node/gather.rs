//! Loading a cold key, on both sides: `gather::load` and `answer`.

use std::sync::Arc;

use quorate_node::gather::is_entitled;
use quorate_node::keyring::{Slot, Wipes};
use quorate_node::peer::{PeerReply, PeerRequest, Refusal, SealedShare, SharesRequest, VERSIONS_MAX};
use quorate_node::phase::{Door, admits};
use quorate_shares::ids::Epoch;
use quorate_shares::master::KeyIdentity;
use quorate_shares::quorum::Quorum;
use quorate_shares::seal::ShareRecord;
use quorate_shares::transit::{self, Place};

use super::{Asked, Context, Daemon, Replica};
use crate::model::message::{Process, exported};

/// A load gives up after this.
const LOAD_MS: u64 = 5_000;
const SESSION: &[u8] = b"session";

/// A load under way.
pub(super) struct Load {
    quorum: Quorum,
    identity: KeyIdentity,
    record: ShareRecord,
    epoch: Epoch,
    began: Wipes,
    since_ms: u64,
}

impl Daemon {
    /// Begins to load a key, unless that is under way. `false` if this replica cannot say what a right share is.
    pub(super) fn load(&mut self, context: &mut Context<'_>, slot: Slot) -> bool {
        let me = self.me.node;
        let unlocked = self.unlocked_mut();
        if unlocked.loads.contains_key(&slot) {
            return true;
        }
        let Some(epoch) = unlocked.active_epoch() else { return false };
        let replica = Replica(&unlocked.state, context.db.now());
        let Ok(facts) = unlocked.holder.facts(&replica, epoch, slot.0, slot.1) else { return false };
        let quorum = Quorum::new(facts.record.clone(), facts.identity, &facts.committee, facts.kcv);
        let mut quorum = quorum.expect("record and committee are of one epoch");
        if let Ok((x, share)) = unlocked.holder.open(&replica, &facts) {
            context.watch.opened(me, &facts, x, &share);
            quorum.add(me, x, share).expect("the own share was checked when it was opened");
        }
        let (identity, record) = (facts.identity, facts.record);
        let (began, since_ms) = (unlocked.roots.wipes(), context.awake_ms);
        unlocked.loads.insert(slot, Load { quorum, identity, record, epoch, began, since_ms });
        self.ask_for_shares(context, slot);
        true
    }

    fn ask_for_shares(&mut self, context: &mut Context<'_>, slot: Slot) {
        let me = self.me.node;
        let Some(load) = self.unlocked_mut().loads.get(&slot) else { return };
        let (epoch, missing) = (load.epoch, load.quorum.missing().filter(|&peer| peer != me).collect::<Vec<_>>());
        for peer in missing {
            let request = SharesRequest { epoch, versions: vec![slot], request: context.dice.bytes() };
            self.ask(context, peer, &PeerRequest::Shares(request), Asked::Shares(slot, Arc::default()));
        }
    }

    /// `gather::ask_one` and `Quorum::add`: counts a share, and closes the quorum when it is reached.
    pub(super) fn take_share(
        &mut self,
        context: &mut Context<'_>,
        from: Process,
        slot: Slot,
        request: &[u8],
        shares: &[SealedShare],
    ) {
        let me = self.me;
        let unlocked = self.unlocked_mut();
        let (Some(load), Some(sealed)) = (unlocked.loads.get_mut(&slot), shares.first()) else { return };
        let place = Place { direction: direction(from, me), counter: sealed.counter };
        let Some(share) = transit::open(&exported(SESSION, from, me), place, request, &sealed.sealed) else { return };
        let copy = share.duplicate();
        if load.quorum.add(from.node, sealed.x, share).is_err() {
            return;
        }
        context.watch.accepted(from.node, &load.identity, &load.record, sealed.x, &copy);
        if load.quorum.progress().reached() {
            let load = unlocked.loads.remove(&slot).expect("it was just there");
            let Ok(key) = load.quorum.close() else {
                return context.watch.broken("shares that match their commitments rebuild another key than was dealt");
            };
            context.watch.rebuilt(&load.identity, &key);
            let root = Arc::new(key.encryption_root(&load.identity));
            unlocked.roots.keep(slot, &root, load.began, context.now_ms);
            if load.began != unlocked.roots.wipes() && unlocked.roots.warm(slot, context.now_ms).is_some() {
                context.watch.broken("a load that began before everything was wiped puts a key back");
            }
            self.loaded(slot, &root);
        }
    }

    /// Asks again for what has not come, and gives up what took too long.
    pub(super) fn look_after_loads(&mut self, context: &mut Context<'_>) {
        let awake_ms = context.awake_ms;
        let waits = |asked: &Asked, slot: &Slot| matches!(asked, Asked::Shares(asked, _) if asked == slot);
        let slots: Vec<Slot> = self.unlocked_mut().loads.keys().copied().collect();
        for slot in slots {
            if self.unlocked_mut().loads.get(&slot).is_some_and(|load| awake_ms >= load.since_ms + LOAD_MS) {
                self.unlocked_mut().loads.remove(&slot);
                self.load_failed(context, slot);
            } else if !self.asked.values().any(|(_, asked)| waits(asked, &slot)) {
                self.ask_for_shares(context, slot);
            }
        }
    }

    /// The holder's side.
    pub(super) fn answer_shares(
        &mut self,
        context: &mut Context<'_>,
        from: Process,
        request: &SharesRequest,
        body: &[u8],
    ) -> PeerReply {
        let (me, phase, now_ms) = (self.me, self.phase, context.now_ms);
        let unlocked = self.unlocked_mut();
        if request.versions.len() > VERSIONS_MAX {
            return PeerReply::Refused(Refusal::TooMany);
        }
        if !admits(phase, Door::Shares) || !unlocked.lease.is_valid_at(now_ms) {
            return PeerReply::Refused(Refusal::NoLease);
        }
        if !is_entitled(&unlocked.state, request.epoch, from.node) {
            return PeerReply::Refused(Refusal::WrongEpoch);
        }
        let replica = Replica(&unlocked.state, context.db.now());
        let mut shares = Vec::new();
        for &(uid, version) in &request.versions {
            let facts = unlocked.holder.facts(&replica, request.epoch, uid, version);
            let opened = facts.and_then(|facts| unlocked.holder.open(&replica, &facts).map(|opened| (facts, opened)));
            let Ok((facts, (x, mut share))) = opened else { return PeerReply::Refused(Refusal::Behind) };
            context.watch.opened(me.node, &facts, x, &share);
            context.watch.given(me, from.node, request.epoch);
            if context.lies {
                share.expose_mut()[0] ^= 1;
            }
            let counter = unlocked.sent_shares.entry(from).or_default();
            let place = Place { direction: direction(me, from), counter: *counter };
            *counter += 1;
            let sealed = transit::seal(&exported(SESSION, from, me), place, body, &share).to_vec().into();
            shares.push(SealedShare { uid, version, x, counter: place.counter, sealed });
        }
        PeerReply::Shares(shares)
    }
}

/// The lower node id is the side that dialled.
fn direction(sender: Process, other: Process) -> u32 {
    u32::from(sender.node > other.node)
}
