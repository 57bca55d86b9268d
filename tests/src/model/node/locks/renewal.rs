//! Renewing this node's lock when the state demands it, and reporting it: `renewal::keep_fresh`, `renew` and `report`.

use std::collections::BTreeMap;

use quorate_node::messages::peer::PeerRequest;
use quorate_node::vault::lock_keys;
use quorate_raft::command::Command;
use quorate_raft::state::LockTerms;
use quorate_shares::ids::NodeId;
use quorate_shares::kem::PublicKey;
use quorate_shares::lock::LockPeer;

use crate::model::node::{Asked, Context, Daemon, Killed, share_keys};

/// A node renews its lock now and then without need: once in so many ticks.
const RENEWAL_IN: u64 = 60;
/// How long a peer may take to make a key durable.
const OFFERS_MS: u64 = 3_000;
/// Pause after a lock that could not be made, and between two reports.
const AGAIN_MS: u64 = 1_000;

/// A renewal of this node's lock that waits for keys from its peers.
pub(in crate::model::node) struct Renewal {
    /// What the state demanded when it began.
    terms: LockTerms,
    demanded: bool,
    until_ms: u64,
    keys: BTreeMap<NodeId, LockPeer>,
}

impl Daemon {
    /// `renewal::keep_fresh`: a key for the next lock from every peer, when another lock is due or now and then.
    pub(in crate::model::node) fn keep_lock_fresh(&mut self, context: &mut Context<'_>) -> Result<(), Killed> {
        let (me, now_ms) = (self.me.node, context.now_ms);
        let renewal_under_way = &mut self.unlocked_mut().renewal_under_way;
        if let Some(renewal_under_way) =
            renewal_under_way.take_if(|renewal_under_way| now_ms >= renewal_under_way.until_ms)
        {
            return self.renew_lock(context, renewal_under_way);
        }
        if renewal_under_way.is_some() || now_ms < self.unlocked_mut().renewed_ms + AGAIN_MS {
            return Ok(());
        }
        let unlocked = self.unlocked_mut();
        let Some(terms) = unlocked.state.lock_terms(me) else { return Ok(()) };
        if lock_keys::is_behind(&unlocked.state, &terms, &unlocked.bundle) {
            return Ok(());
        }
        let demanded = !self.is_locked_as_due(&terms, now_ms);
        if !demanded && context.dice.below(RENEWAL_IN) != 0 {
            return Ok(());
        }
        for &peer in &terms.peers {
            let request = PeerRequest::LockPrepare(lock_keys::durable(self.vault(), peer));
            self.ask(context, peer, &request, Asked::Prepare(peer));
        }
        let until_ms = now_ms + OFFERS_MS;
        self.unlocked_mut().renewal_under_way = Some(Renewal { terms, demanded, until_ms, keys: BTreeMap::new() });
        Ok(())
    }

    /// `renewal::is_lock_as_due`.
    fn is_locked_as_due(&self, terms: &LockTerms, now_ms: u64) -> bool {
        let present = terms.peers.iter().copied().filter(|&peer| self.session_with(peer, now_ms).is_some()).collect();
        let bundle = self.unlocked.as_ref().map(|unlocked| &unlocked.bundle);
        bundle.is_none_or(|bundle| lock_keys::is_as_due(self.vault(), bundle, terms, &present))
    }

    /// An answer to PREP. Once every peer has given a key, there is nothing more to wait for.
    pub(in crate::model::node) fn take_lock_key(
        &mut self,
        context: &mut Context<'_>,
        peer: NodeId,
        key_number: u64,
        public: &[u8],
    ) -> Result<(), Killed> {
        let public_key = PublicKey::parse(public).expect("a member sends a key");
        let unlocked = self.unlocked_mut();
        let Some(renewal_under_way) = unlocked
            .renewal_under_way
            .as_mut()
            .filter(|renewal_under_way| renewal_under_way.terms.peers.contains(&peer))
        else {
            return Ok(());
        };
        renewal_under_way.keys.insert(peer, LockPeer { peer, key_number, public_key });
        let all = |renewal_under_way: &mut Renewal| renewal_under_way.keys.len() >= renewal_under_way.terms.peers.len();
        match unlocked.renewal_under_way.take_if(all) {
            Some(renewal_under_way) => self.renew_lock(context, renewal_under_way),
            None => Ok(()),
        }
    }

    /// `renewal::renew`, with what the peers have offered, and `lock` and `commit`.
    fn renew_lock(&mut self, context: &mut Context<'_>, renewal_under_way: Renewal) -> Result<(), Killed> {
        let Renewal { terms, demanded, mut keys, .. } = renewal_under_way;
        let now_ms = context.now_ms;
        self.unlocked_mut().renewed_ms = now_ms;
        let me = self.me.node;
        let same = self.unlocked_mut().state.lock_terms(me).as_ref() == Some(&terms);
        if !same || !demanded && keys.is_empty() {
            return Ok(());
        }
        let offered = terms.peers.iter().map(|&peer| (peer, keys.remove(&peer))).collect();
        let Some(last) = self.vault().lock.clone() else { return Ok(()) };
        let is_there = |peer: &NodeId| self.session_with(*peer, now_ms).is_some();
        let Some(named) = lock_keys::peers_of_next(&last, offered, is_there) else { return Ok(()) };
        let bundle = lock_keys::next_bundle(&self.unlocked_mut().bundle, &terms, context.dice.rng());
        let whose = (self.vault().identity.cluster, self.me.node);
        let (place, pin) = lock_keys::inline_pin(context.dice.rng());
        let threshold = terms.needed.saturating_add(1);
        let lock =
            lock_keys::next_lock(Some(&last), whose, threshold, &named, (place, &pin), &bundle, context.dice.rng());
        // As many peers as it needs are not known by a key yet: later.
        let Ok(lock) = lock else { return Ok(()) };
        context.watch.lock_made(self.me.node, &lock, &bundle, &self.unlocked_mut().state);
        self.vault.update(|vault| vault.lock = Some(lock)).map_err(|_| Killed)?;
        let unlocked = self.unlocked_mut();
        unlocked.holder.set_keys(share_keys(&bundle));
        unlocked.bundle = bundle;
        self.tell_commit(context);
        Ok(())
    }

    /// `renewal::commit`, without a memory of who has acknowledged it: it may be told again and again.
    pub(in crate::model::node) fn tell_commit(&mut self, context: &mut Context<'_>) {
        for peer in self.peers() {
            let request = PeerRequest::LockCommit(lock_keys::durable(self.vault(), peer));
            self.ask(context, peer, &request, Asked::Nothing);
        }
    }

    /// `renewal::report`.
    pub(in crate::model::node) fn report_lock(&mut self, context: &mut Context<'_>) {
        let (me, now_ms, writes) = (self.me.node, context.now_ms, self.vault.writes());
        let Some(unlocked) = &self.unlocked else { return };
        if unlocked.state.cluster.is_none() || now_ms < unlocked.reported_ms + AGAIN_MS {
            return;
        }
        let former = unlocked.state.former.keys().copied().collect();
        let Some(report) = lock_keys::report(self.vault(), me, &unlocked.bundle, writes, &former) else { return };
        let owed = lock_keys::owed(&unlocked.state, report, &unlocked.bundle);
        let unlocked = self.unlocked_mut();
        unlocked.reported_ms = now_ms;
        let leadership = unlocked.raft.leadership(context.db);
        for change in owed {
            let command = Command::new(context.watch.wall_ms, change);
            if leadership.am_leader {
                self.unlocked_mut().raft.propose(context.db, command, now_ms);
            } else if let Some(leader) = leadership.leader {
                self.ask(context, leader, &PeerRequest::Propose(Box::new(command)), Asked::Nothing);
            }
        }
    }
}
