//! Reconstructing cold keys, on both sides: `reconstruct::load`, `reconstruct::master_keys` and `give_shares`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_node::base::phase::{RequestClass, answers};
use quorate_node::keys::reconstruct::{Loaded, is_entitled};
use quorate_node::memory::keyring::Wipes;
use quorate_node::messages::peer::{PeerRefusal, PeerReply, PeerRequest, SealedShare, SharesRequest, VERSIONS_MAX};
use quorate_shares::ids::{Epoch, KeyVersionId, NodeId};
use quorate_shares::master::KeyIdentity;
use quorate_shares::quorum::Quorum;
use quorate_shares::seal::ShareRecord;
use quorate_shares::transit::{self, Place};

use crate::model::node::{Asked, Context, Daemon, Replica};
use crate::model::world::message::{Process, exported};

/// A load gives up after this.
const LOAD_MS: u64 = 5_000;
const SESSION: &[u8] = b"session";

/// What a load is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::model::node) enum Want {
    Root(KeyVersionId),
    Reshare,
}

/// One key version that is being reconstructed.
struct Open {
    quorum: Quorum,
    identity: KeyIdentity,
    kcv: [u8; 32],
    record: ShareRecord,
}

/// A load under way: one version for those who use it, or many that are to be reshared.
pub(in crate::model::node) struct Load {
    want: Want,
    open: BTreeMap<KeyVersionId, Open>,
    epoch: Epoch,
    began: Wipes,
    since_ms: u64,
}

impl Load {
    fn missing(&self) -> BTreeSet<NodeId> {
        let open = self.open.values().filter(|open| !open.quorum.progress().reached());
        open.flat_map(|open| open.quorum.missing()).collect()
    }
}

impl Daemon {
    /// Begins to load `key_versions` for one purpose, unless that is under way. `false` if this replica cannot say what right shares
    /// are.
    pub(in crate::model::node) fn load(
        &mut self,
        context: &mut Context<'_>,
        want: Want,
        key_versions: &[KeyVersionId],
    ) -> bool {
        if self.unlocked_mut().loads.values().any(|load| load.want == want) {
            return true;
        }
        let since_ms = context.awake_ms;
        let Some(load) = self.begin_load(context, want, key_versions, since_ms) else { return false };
        self.next += 1;
        let number = self.next;
        self.unlocked_mut().loads.insert(number, load);
        self.ask_for_shares(context, number);
        self.close_load(context, number);
        true
    }

    /// The own shares of `key_versions`, in the epoch that is ACTIVE here.
    fn begin_load(
        &mut self,
        context: &mut Context<'_>,
        want: Want,
        key_versions: &[KeyVersionId],
        since_ms: u64,
    ) -> Option<Load> {
        let me = self.me.node;
        let unlocked = self.unlocked_mut();
        let epoch = unlocked.active_epoch()?;
        let replica = Replica(&unlocked.state, context.db.now());
        let mut open = BTreeMap::new();
        for info in unlocked.holder.share_record_infos(&replica, epoch, key_versions).ok()? {
            let (identity, kcv, record) = (info.identity, info.kcv, info.record.clone());
            let quorum = Quorum::new(record.clone(), identity, &info.committee, kcv);
            let mut quorum = quorum.expect("record and committee are of one epoch");
            if let Ok((x, share)) = unlocked.holder.open(&replica, &info) {
                context.watch.opened(me, &info, x, &share);
                quorum.add(me, x, share).expect("the own share was checked when it was opened");
            }
            open.insert((identity.uid, identity.version), Open { quorum, identity, kcv, record });
        }
        Some(Load { want, open, epoch, began: unlocked.roots.wipes(), since_ms })
    }

    fn ask_for_shares(&mut self, context: &mut Context<'_>, number: u64) {
        let me = self.me.node;
        let Some(load) = self.unlocked_mut().loads.get(&number) else { return };
        let open = load.open.iter().filter(|(_, open)| !open.quorum.progress().reached());
        let (epoch, missing, versions) =
            (load.epoch, load.missing(), open.map(|(key_version, _)| *key_version).collect::<Vec<_>>());
        for peer in missing.into_iter().filter(|&peer| peer != me) {
            let request = SharesRequest { epoch, versions: versions.clone(), request: context.dice.bytes() };
            self.ask(context, peer, &PeerRequest::Shares(request), Asked::Shares(number, Arc::default()));
        }
    }

    /// `reconstruct::ask_one` and `Quorum::add`: counts shares, and closes the quorums when they are reached.
    pub(in crate::model::node) fn take_shares(
        &mut self,
        context: &mut Context<'_>,
        from: Process,
        number: u64,
        request: &[u8],
        shares: &[SealedShare],
    ) {
        let me = self.me;
        let Some(load) = self.unlocked_mut().loads.get_mut(&number) else { return };
        for sealed in shares {
            let Some(open) = load.open.get_mut(&(sealed.uid, sealed.version)) else { continue };
            let place = Place { direction: direction(from, me), counter: sealed.counter };
            let share = transit::open(&exported(SESSION, from, me), place, request, &sealed.sealed);
            let Some(share) = share else { continue };
            let copy = share.duplicate();
            if open.quorum.add(from.node, sealed.x, share).is_ok() {
                context.watch.accepted(from.node, &open.identity, &open.record, sealed.x, &copy);
            }
        }
        self.close_load(context, number);
    }

    /// Reconstructs the keys when every quorum is reached.
    fn close_load(&mut self, context: &mut Context<'_>, number: u64) {
        let unlocked = self.unlocked_mut();
        let reached = |load: &&Load| load.open.values().all(|open| open.quorum.progress().reached());
        if unlocked.loads.get(&number).filter(reached).is_none() {
            return;
        }
        let load = unlocked.loads.remove(&number).expect("it was just there");
        let mut loaded = Vec::with_capacity(load.open.len());
        for Open { quorum, identity, kcv, .. } in load.open.into_values() {
            let Ok(key) = quorum.close() else {
                return context.watch.broken("shares that match their commitments rebuild another key than was dealt");
            };
            context.watch.rebuilt(&identity, &key);
            loaded.push(Loaded { identity, kcv, key, epoch: load.epoch });
        }
        match load.want {
            Want::Root(key_version) => self.keep_root(context, key_version, load.began, &loaded),
            Want::Reshare => self.take_reconstructed(Some(loaded)),
        }
    }

    fn keep_root(&mut self, context: &mut Context<'_>, key_version: KeyVersionId, began: Wipes, loaded: &[Loaded]) {
        let Some(Loaded { identity, key, .. }) = loaded.first() else { return };
        let root = Arc::new(key.encryption_root(identity));
        let unlocked = self.unlocked_mut();
        unlocked.roots.keep(key_version, &root, began, context.now_ms);
        if began != unlocked.roots.wipes() && unlocked.roots.warm(key_version, context.now_ms).is_some() {
            context.watch.broken("a load that began before everything was wiped puts a key back");
        }
        self.loaded(key_version, &root);
    }

    /// Asks again for missing shares, starts over in an epoch that became ACTIVE meanwhile, and gives up a load that took
    /// too long.
    pub(in crate::model::node) fn look_after_loads(&mut self, context: &mut Context<'_>) {
        let awake_ms = context.awake_ms;
        let waits = |asked: &Asked, number: &u64| matches!(asked, Asked::Shares(asked, _) if asked == number);
        let numbers: Vec<u64> = self.unlocked_mut().loads.keys().copied().collect();
        for number in numbers {
            let active = self.unlocked_mut().active_epoch();
            let Some(load) = self.unlocked_mut().loads.get(&number) else { continue };
            if awake_ms >= load.since_ms + LOAD_MS {
                self.give_up_load(context, number);
            } else if active != Some(load.epoch) {
                let (want, since_ms, key_versions) =
                    (load.want, load.since_ms, load.open.keys().copied().collect::<Vec<_>>());
                // The same load: a root that was wiped since it began is wiped for it, too.
                let began = load.began;
                match self.begin_load(context, want, &key_versions, since_ms) {
                    Some(load) => drop(self.unlocked_mut().loads.insert(number, Load { began, ..load })),
                    None => self.give_up_load(context, number),
                }
                self.ask_for_shares(context, number);
            } else if !self.asked.values().any(|(_, asked)| waits(asked, &number)) {
                self.ask_for_shares(context, number);
            }
        }
    }

    fn give_up_load(&mut self, context: &mut Context<'_>, number: u64) {
        match self.unlocked_mut().loads.remove(&number).map(|load| load.want) {
            Some(Want::Root(key_version)) => self.load_failed(context, key_version),
            Some(Want::Reshare) => self.take_reconstructed(None),
            None => {}
        }
    }

    /// A node without a session asks for shares, past the check of sessions.
    pub(in crate::model) fn is_asked_for_shares(
        &mut self,
        context: &mut Context<'_>,
        from: Process,
        request: &SharesRequest,
        body: &[u8],
    ) {
        if self.unlocked.is_some() {
            self.answer_shares(context, from, request, body);
        }
    }

    /// The holder's side.
    pub(in crate::model::node) fn answer_shares(
        &mut self,
        context: &mut Context<'_>,
        from: Process,
        request: &SharesRequest,
        body: &[u8],
    ) -> PeerReply {
        let (me, phase, now_ms) = (self.me, self.phase, context.now_ms);
        let unlocked = self.unlocked_mut();
        if request.versions.len() > VERSIONS_MAX {
            return PeerReply::Refused(PeerRefusal::TooMany);
        }
        if !answers(phase, RequestClass::Shares) || !unlocked.lease.is_valid_at(now_ms) {
            return PeerReply::Refused(PeerRefusal::NoLease);
        }
        if !is_entitled(&unlocked.state, request.epoch, from.node) {
            return PeerReply::Refused(PeerRefusal::WrongEpoch);
        }
        let replica = Replica(&unlocked.state, context.db.now());
        let Ok(all) = unlocked.holder.share_record_infos(&replica, request.epoch, &request.versions) else {
            return PeerReply::Refused(PeerRefusal::Behind);
        };
        let mut shares = Vec::new();
        for info in all {
            let Ok((x, mut share)) = unlocked.holder.open(&replica, &info) else {
                return PeerReply::Refused(PeerRefusal::Storage);
            };
            context.watch.opened(me.node, &info, x, &share);
            context.watch.given(me, from.node, request.epoch, context.db.now());
            if context.lies {
                share.expose_mut()[0] ^= 1;
            }
            let counter = unlocked.sent_shares.entry(from).or_default();
            let place = Place { direction: direction(me, from), counter: *counter };
            *counter += 1;
            let sealed = transit::seal(&exported(SESSION, from, me), place, body, &share).to_vec().into();
            let (uid, version) = (info.identity.uid, info.identity.version);
            shares.push(SealedShare { uid, version, x, counter: place.counter, sealed });
        }
        PeerReply::Shares(shares)
    }
}

/// The lower node id is the side that dialled.
fn direction(sender: Process, other: Process) -> u32 {
    u32::from(sender.node > other.node)
}
