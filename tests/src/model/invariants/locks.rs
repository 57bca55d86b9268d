//! Locks: what lies on the disks, and what is told about it.

use quorate_node::vault::Vault;
use quorate_node::vault::lock_keys::GRACE_S;
use quorate_raft::state::State;
use quorate_shares::ids::NodeId;
use quorate_shares::kem::PublicKey;
use quorate_shares::lock::{Bundle, Lock, LockOpenRequest};

use super::Watch;
use crate::model::world::disk::Image;

impl Watch {
    /// D3: a lock key is durable before its public half leaves.
    pub(in crate::model) fn lock_key_leaves(
        &mut self,
        holder: NodeId,
        peer: NodeId,
        key_number: u64,
        public: &PublicKey,
    ) {
        let vault = self.durable_vault(holder);
        let durable = vault.held_for(peer).and_then(|held| held.key(key_number));
        let durable = durable.is_some_and(|key| PublicKey::of_seed(&key.seed) == *public);
        self.holds(durable, || format!("D3: node {holder} told node {peer} of a lock key that is not durable"));
    }

    /// Nothing is sealed twice under one generation: every lock that a node makes is of a newer one than is durable, and as
    /// many peers open it as a thief needs disks besides this one, in the epoch that is active in its `own` state.
    pub(in crate::model) fn lock_made(&mut self, node: NodeId, lock: &Lock, bundle: &Bundle, own: &State) {
        let durable = self.durable_vault(node).lock.map_or(0, |lock| lock.generation());
        let generation = lock.generation();
        self.holds(generation > durable, || format!("node {node} sealed again under generation {generation}"));
        let newest = self.locks.get(&node).copied().unwrap_or(0);
        self.holds(generation >= newest, || {
            format!("the generation of node {node} fell from {newest} to {generation}")
        });
        self.locks.insert(node, generation);
        // A joiner has no state yet: it was told what its lock had to be, by an epoch that was active before.
        let any =
            || self.state.epochs.values().filter(|epoch| epoch.activated_ms > 0).map(|epoch| epoch.threshold).min();
        let threshold = own.active().map(|active| active.threshold).or_else(any).unwrap_or(self.found.threshold);
        self.holds(lock.needed() + 1 >= threshold, || {
            format!("S1: {} disks open the lock of node {node}", lock.needed() + 1)
        });
        self.bundle_sealed(node, generation, bundle, own);
        self.seen.locks += 1;
    }

    /// A holder heard, durably, that a lock of this generation is durable at its node.
    pub(in crate::model) fn generation_reported(&mut self, holder: NodeId, of: NodeId, generation: u64) {
        let known = self.told.entry((holder, of)).or_default();
        *known = (*known).max(generation);
    }

    /// D4: a lock that was replaced, as its holder was told, is not opened for anybody: only an old disk still asks for it.
    pub(in crate::model) fn piece_leaves(&self, holder: NodeId, request: &LockOpenRequest, image: &Image) {
        self.accepted_from(holder, request.from, image);
        let newest = self.told.get(&(holder, request.from)).copied().unwrap_or(0);
        self.holds(request.generation >= newest, || {
            let (from, asked) = (request.from, request.generation);
            format!("D4: node {holder} opens lock {asked} of node {from}, although it was told of {newest}")
        });
    }

    /// A holder of lock keys counts its running time.
    pub(in crate::model) fn grace_granted(&mut self, holder: NodeId, seconds: u16) {
        let counts = self.held_keys.iter_mut().filter(|((of, ..), _)| *of == holder);
        counts.filter_map(|(_, old_s)| old_s.as_mut()).for_each(|old_s| *old_s += u64::from(seconds));
    }

    /// After every step: the vaults that changed are looked at.
    pub(in crate::model) fn check_vaults(&mut self) {
        let changed = |node: &NodeId| {
            let disk = &self.disks[node];
            self.vaults.get(node).is_none_or(|(image, _)| !disk.is_durably(image))
        };
        let changed: Vec<NodeId> = self.disks.keys().copied().filter(changed).collect();
        for &node in &changed {
            self.vaults.insert(node, (self.disks[&node].durable(), self.durable_vault(node)));
        }
        for &node in &changed {
            self.old_keys_outlive_their_grace(node);
            self.share_keys_are_as_due(node);
        }
        if !changed.is_empty() {
            self.every_piece_can_be_opened();
        }
    }

    /// D6, the part of the disks: every member that a member's durable lock names durably holds the key of its piece, and as
    /// many of them are members as open it; but for a lock that a revocation left without enough.
    fn every_piece_can_be_opened(&self) {
        for node in self.state.members.keys() {
            let Some((_, vault)) = self.vaults.get(node) else { continue };
            let Some(lock) = &vault.lock else { continue };
            let mut members = 0;
            for piece in lock.pieces() {
                if !self.state.members.contains_key(&piece.peer) {
                    continue;
                }
                members += 1;
                let holder = self.vaults.get(&piece.peer).map(|(_, vault)| vault);
                let key = holder.and_then(|vault| vault.held_for(*node)).and_then(|held| held.key(piece.key_number));
                self.holds(key.is_some(), || {
                    format!(
                        "D6: node {} cannot open the piece of node {node}: key {} is gone",
                        piece.peer, piece.key_number
                    )
                });
            }
            let enough = members >= usize::from(lock.needed()) || self.stranded.contains(node);
            self.holds(enough, || format!("D6: {members} of {} pieces of node {node} can be opened", lock.needed()));
        }
    }

    /// A lock key is erased no sooner than a minute of its holder's running time after a newer one was confirmed, unless its owner
    /// is no member any more.
    fn old_keys_outlive_their_grace(&mut self, holder: NodeId) {
        let Some((_, vault)) = self.vaults.get(&holder) else { return };
        let there =
            |peer: NodeId, key_number: u64| vault.held_for(peer).is_some_and(|held| held.key(key_number).is_some());
        let gone: Vec<_> = self
            .held_keys
            .iter()
            .filter(|((of, peer, key_number), _)| *of == holder && !there(*peer, *key_number))
            .map(|(key, old_s)| (*key, *old_s))
            .collect();
        for (key, old_s) in gone {
            let former = self.state.former.contains_key(&key.1);
            self.holds(former || old_s.is_some_and(|old_s| old_s >= u64::from(GRACE_S)), || {
                format!("node {holder} erased a lock key that was old for {old_s:?} seconds")
            });
            self.held_keys.remove(&key);
            self.seen.erased += 1;
        }
        for held in &vault.held {
            for key in &held.keys {
                let old_s = self.held_keys.entry((holder, held.peer, key.key_number)).or_default();
                if key.key_number < held.committed_key_number {
                    old_s.get_or_insert(0);
                }
            }
        }
    }

    /// D4: no old disk of a former member can be opened any more.
    pub(in crate::model) fn lock_keys_of_former_members_are_gone(&self) -> bool {
        let held =
            self.state.members.keys().filter_map(|node| self.vaults.get(node)).flat_map(|(_, vault)| &vault.held);
        !held.map(|held| held.peer).any(|peer| self.state.former.contains_key(&peer))
    }

    /// The generation of the lock that a loss of power would leave; 0 without one.
    pub(super) fn lock_generation_on_disk(&self, node: NodeId) -> u64 {
        self.durable_vault(node).lock.map_or(0, |lock| lock.generation())
    }

    fn durable_vault(&self, node: NodeId) -> Vault {
        self.disks[&node].durable().open()
    }
}
